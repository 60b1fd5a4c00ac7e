"""A value as this shell would display it, without displaying it."""

from __future__ import annotations

import inspect
from typing import Any

from nbrun.core.mimebundle import KINDS


def format_value(shell: Any, value: object) -> dict[str, object]:
    """Return a value's forms by MIME type, of those that are kept.

    Its own code runs, and may raise. `_ipython_display_` is left out: it would show something in some cell.

    Source: IPython's formatters print what a form raises into the cell that ran last; the call below their
    wrapper (`catch_format_error`) raises it instead.
    """
    formatter = shell.display_formatter
    data: dict[str, object] = {}
    bundle = _called(formatter.mimebundle_formatter, value)
    if isinstance(bundle, tuple):  # with metadata
        bundle = bundle[0]
    if isinstance(bundle, dict):
        data.update({kind: bundle[kind] for kind in KINDS if kind in bundle})
    for kind in KINDS:
        made = formatter.formatters.get(kind)
        if made is None or kind in data:
            continue
        form = _called(made, value)
        data[kind] = form[0] if isinstance(form, tuple) else form
    return data


def _called(formatter: Any, value: object) -> Any:
    try:
        return inspect.unwrap(type(formatter).__call__)(formatter, value)
    except NotImplementedError:  # how an object says that it has no such form
        return None
