"""Runs as rows of the panel, for its page and for the saved notebook; the columns are in `render/run_table`."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, TypeVar

from nbrun.core import RunRecord, RunStatus, moment, shown, visible
from nbrun.render import run_table, words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbrun.render.set_view import SetView
    from nbrun.ui.panel.page import Row

T = TypeVar("T")

COLUMNS = [
    {"key": column.key, "heading": column.heading, "number": column.is_number}
    for column in run_table.columns(run_table.View.PANEL)
]
"""The columns, as the page gets them."""
NOW = "Run %agentrun for the current state."

_FRAME = "border:1px solid rgba(128,128,128,.35);border-radius:3px;padding:8px 12px;line-height:1.5;overflow:auto"
_PLAIN_WORDS = {RunStatus.COMPLETED: "Completed", RunStatus.FAILED: "Failed"}
"""Where the words would only add how long it took, which has a column of its own."""


def key_of(record: RunRecord) -> str:
    """Return what the page knows a run by: an id may exist once a session."""
    return f"{record.session_id}/{record.run_id}"


def page_row(row: Row, session_id: str) -> dict[str, Any]:
    """Return a row as the page draws it: `cells` by column, and what it needs to keep them current."""
    record, run = row.record, row.run
    is_own = run.live is not None
    is_live = record.is_live and not record.is_unknown
    status = _PLAIN_WORDS.get(record.status) or (run.status_words() if is_own else words.status_words(record))
    if is_live and record.session_id != session_id:
        status += ", in another kernel"
    cells = run_table.cells(run_table.Row(record, status), run_table.View.PANEL)
    return {
        "key": key_of(record),
        "id": record.run_id,
        "number": record.number,
        "name": visible(shown(record.name, 80)),
        "status": str(RunStatus.LOST if record.is_unknown else record.status),
        "live": is_live,
        "own": is_own,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "cells": {column["key"]: cell for column, cell in zip(COLUMNS, cells, strict=True)},
    }


def set_row(seen: SetView, is_own: bool) -> dict[str, Any]:
    """Return a set as the page draws it, as one row."""
    status = seen.brief_words + ("" if is_own or not seen.is_live else ", in another kernel")
    cells = run_table.cells(run_table.Row(seen.record, status), run_table.View.PANEL)
    return {
        "key": f"set-{seen.number}",
        "id": f"set-{seen.number}",
        "set": seen.number,
        "number": None,
        "name": visible(shown(seen.title, 80)),
        "status": str(seen.record.status),
        "live": seen.is_live,
        "own": is_own,
        "created_at": seen.began_at,
        "started_at": seen.began_at,
        "cells": {column["key"]: cell for column, cell in zip(COLUMNS, cells, strict=True)},
    }


def in_order(runs: Sequence[T], sets: Sequence[T], age: Callable[[T], float]) -> list[T]:
    """Return the rows of runs with those of sets between them, by when they began; the newest first."""
    found, left = [], list(sets)
    for one in runs:
        while left and age(left[0]) >= age(one):
            found.append(left.pop(0))
        found.append(one)
    return found + left


def bundle(
    records: Sequence[RunRecord], stored: int, now: float, sets: Sequence[SetView] = ()
) -> dict[str, Any]:  # fmt: skip
    """Return the runs as HTML without script, Markdown and text, escaped; a live run as what it is at this moment."""
    past = [_past(record) for record in records]
    rows = in_order(past, [_past_set(seen) for seen in sets], lambda row: row.record.created_at)
    title = _title(len(rows), stored, now, has_sets=bool(sets))
    html = run_table.html_table(rows, run_table.View.PANEL) if rows else ""
    text = run_table.text_lines(rows, None, run_table.View.PANEL) if rows else []
    head = f"<div><strong>{escape(title)}</strong></div>"
    return {
        "text/html": f'<div class="nbrun-static" style="{_FRAME}">{head}{html}</div>',
        "text/markdown": f"**{title}**"
        + (f"\n\n{run_table.markdown_table(rows, run_table.View.PANEL)}" if rows else ""),
        "text/plain": "\n".join([title, *text]),
    }


def _title(count: int, stored: int, now: float, *, has_sets: bool) -> str:
    if not count:
        return f"No runs at {moment(now)}. {NOW}"
    newest = "The newest" if has_sets else f"The {count} newest"
    which = f"{newest} of {stored:,} runs" if stored > count else "Runs of this notebook"
    return f"{which} at {moment(now)}. {NOW}"


def _past_set(seen: SetView) -> run_table.Row:
    status = f"Was {seen.brief_words[:1].lower()}{seen.brief_words[1:]}" if seen.is_live else seen.brief_words
    mark, colour = seen.shape
    sign = (mark, words.SHAPES[RunStatus.LOST][1] if seen.is_live else colour)
    return run_table.Row(seen.record, status, sign)


def _past(record: RunRecord) -> run_table.Row:
    """Return the row of a run; what was live then has the grey sign of the past."""
    if record.is_live and not record.is_unknown:
        sign = (words.SHAPES[record.status][0], words.SHAPES[RunStatus.LOST][1])
        return run_table.Row(record, f"Was {record.status}", sign)
    return run_table.Row(record, _PLAIN_WORDS.get(record.status) or words.status_words(record))
