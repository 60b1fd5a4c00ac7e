"""Lines that the page itself writes into doctor's output: which roads lead from it to the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from nbrun.finding import Finding, Sign
from nbrun.ui.doctor import bundle
from nbrun.ui.page_module import page_module

_WAITS = Finding(Sign.NOTE, "page", "it answers here when it is drawn", "look at it in a notebook")
_LIMIT = 4
"""How many lines a page may write; it has two roads."""

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class PageProbe(anywidget.AnyWidget):
    """What the page draws: two questions to the kernel, and what became of them."""

    _esm = page_module("doctor.js")
    kernel_id = traitlets.Unicode().tag(sync=True)


def show_probe(kernel_id: str, answer: Answer) -> None:
    """Display the probe; when the page has its answers, they stay as a static output and the widget goes."""
    from IPython.display import DisplayHandle, display

    widget, handle = PageProbe(kernel_id=kernel_id), DisplayHandle()

    def on_message(_widget: object, content: object, _buffers: object) -> None:
        if not isinstance(content, dict):
            return
        if content.get("op") != "found":
            widget.send(answer(content))
            return
        handle.update(bundle(_findings(content.get("findings"))), raw=True)
        widget.close()

    widget.on_msg(on_message)
    view = {"version_major": 2, "version_minor": 1, "model_id": widget.model_id}
    data = {"application/vnd.jupyter.widget-view+json": view, **bundle([_WAITS])}
    display(data, raw=True, display_id=handle.display_id)


def _findings(told: object) -> list[Finding]:
    """Return what the page says it has found; it comes from outside, so nothing is taken for granted."""
    rows = told[:_LIMIT] if isinstance(told, list) else []
    signs = set(Sign)
    return [
        Finding(
            Sign(row["sign"]) if row.get("sign") in signs else Sign.NOTE,
            *(str(row.get(part, ""))[:300] for part in ("subject", "text", "mend")),
        )
        for row in rows
        if isinstance(row, dict)
    ]
