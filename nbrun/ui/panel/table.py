"""Runs as rows of the panel, for its page and for the saved notebook; the columns are in `render/run_table`."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from nbrun.core import RunRecord, RunStatus, moment, shown, visible
from nbrun.render import run_table, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.ui.panel.page import Row

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


def bundle(records: Sequence[RunRecord], stored: int, now: float) -> dict[str, Any]:
    """Return the runs as HTML without script, Markdown and text, escaped; a live run as what it is at this moment."""
    rows = [_past(record) for record in records]
    title = _title(len(rows), stored, now)
    html = run_table.html_table(rows, run_table.View.PANEL) if rows else ""
    text = run_table.text_lines(rows, None, run_table.View.PANEL) if rows else []
    head = f"<div><strong>{escape(title)}</strong></div>"
    return {
        "text/html": f'<div class="nbrun-static" style="{_FRAME}">{head}{html}</div>',
        "text/markdown": f"**{title}**"
        + (f"\n\n{run_table.markdown_table(rows, run_table.View.PANEL)}" if rows else ""),
        "text/plain": "\n".join([title, *text]),
    }


def _title(count: int, stored: int, now: float) -> str:
    if not count:
        return f"No runs at {moment(now)}. {NOW}"
    which = f"The {count} newest of {stored:,} runs" if stored > count else "Runs of this notebook"
    return f"{which} at {moment(now)}. {NOW}"


def _past(record: RunRecord) -> run_table.Row:
    """Return the row of a run; what was live then has the grey sign of the past."""
    if record.is_live and not record.is_unknown:
        sign = (words.SHAPES[record.status][0], words.SHAPES[RunStatus.LOST][1])
        return run_table.Row(record, f"Was {record.status}", sign)
    return run_table.Row(record, _PLAIN_WORDS.get(record.status) or words.status_words(record))
