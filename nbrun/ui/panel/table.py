"""Runs as rows of a table: what the panel's page draws, and what a notebook file keeps of it."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from nbrun.core.durations import duration
from nbrun.core.record import RunRecord, RunStatus
from nbrun.core.values import shown
from nbrun.render.static_card import SHAPES
from nbrun.render.words import status_words, tokens_words, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.ui.panel.page import Row

NAME_LIMIT = 80
WORDS_LIMIT = 160
COLUMNS = ("Status", "Run", "Agent", "Started", "Elapsed", "Tokens", "Cost")
LATER = "%agentrun shows how they stand"

_FRAME = "border:1px solid rgba(128,128,128,.35);border-radius:3px;padding:8px 12px;line-height:1.5;overflow:auto"
_CELL = "text-align:left;padding:2px 8px"
# As on a static card: white on a ground that is seen on white and on black.
_SHAPE = "display:inline-block;min-width:1.5em;text-align:center;border-radius:3px;color:#fff"
_PLAIN_WORDS = {RunStatus.COMPLETED: "Completed", RunStatus.FAILED: "Failed"}
"""Where the words would tell only how long it took besides, which has a column of its own."""


def key_of(record: RunRecord) -> str:
    """Return what the page knows a run by: an id may exist once a session."""
    return f"{record.session_id}/{record.run_id}"


def page_row(row: Row, session_id: str) -> dict[str, Any]:
    """Return a row as the page draws it; every text of it is short, and has nothing in it that hides."""
    record, run = row.record, row.run
    is_own = run._live is not None
    words = run.status_words() if is_own else status_words(record)
    is_elsewhere = record.is_live and not record.is_unknown and record.session_id != session_id
    usage, elapsed_s = record.usage, record.elapsed_s(record.ended_at or 0.0)
    return {
        "key": key_of(record),
        "id": record.run_id,
        "number": record.number,
        "name": _text(record.name),
        "agent": _text(record.model or record.agent),
        "status": str(RunStatus.LOST if record.is_unknown else record.status),
        "words": _text(
            _PLAIN_WORDS.get(record.status, words)
            + (", in another kernel" if is_elsewhere else ""),
            WORDS_LIMIT,
        ),
        "live": record.is_live and not record.is_unknown,
        "own": is_own,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "took": "" if record.ended_at is None or elapsed_s is None else duration(elapsed_s),
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "exact": usage.exact,
            "cost_usd": usage.cost_usd,
        },
    }


def bundle(records: Sequence[RunRecord], stored: int, now: float) -> dict[str, Any]:
    """Return the runs as static output: HTML without script, Markdown, text. All of their text is escaped.

    What is live is told as what it was at this moment: a file may be looked at years later.
    """
    rows = [_static_row(record) for record in records]
    title = _title(len(rows), stored, now)
    return {
        "text/html": _html(title, rows, records),
        "text/markdown": _markdown(title, rows),
        "text/plain": _plain(title, rows),
    }


def _title(count: int, stored: int, now: float) -> str:
    if not count:
        return f"No runs at {_utc(now)} UTC; {LATER}"
    which = f"The {count} newest of {stored:,} runs" if stored > count else "Runs of this notebook"
    return f"{which} at {_utc(now)} UTC; {LATER}"


def _static_row(record: RunRecord) -> tuple[str, ...]:
    """Return the cells of a run, columns as in `COLUMNS`."""
    words = _PLAIN_WORDS.get(record.status) or status_words(record)
    if record.is_live and not record.is_unknown:
        words = f"Was {record.status}"
    number = "" if record.number is None else f" #{record.number}"
    agent = record.model or record.agent
    elapsed_s = None if record.ended_at is None else record.elapsed_s(record.ended_at)
    return (
        _text(words, WORDS_LIMIT),
        f"{_text(record.name)}{number}",
        _text(agent) if agent != record.name else "",
        _utc(record.started_at or record.created_at),
        "" if elapsed_s is None else duration(elapsed_s),
        tokens_words(record).removesuffix(" tokens"),
        cost_words(record),
    )


def cost_words(record: RunRecord) -> str:
    """Return what a run has cost, with `≥` where a stream was cut; empty where nobody has told."""
    cost = record.usage.cost_usd
    return "" if cost is None else f"{'' if record.usage.exact else '≥ '}${cost:,.4f}"


def _text(text: str, limit: int = NAME_LIMIT) -> str:
    return visible(shown(text, limit))


def _utc(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # somebody else's file
        return str(at)


def _shape(record: RunRecord) -> tuple[str, str]:
    """Return the sign of a status and its ground; of what was live then, the grey one of the past."""
    if record.is_live:
        return SHAPES[record.status][0], SHAPES[RunStatus.LOST][1]
    return SHAPES[record.status]


def _html(title: str, rows: Sequence[Sequence[str]], records: Sequence[RunRecord]) -> str:
    # The classes keep dollar signs in an agent's text from being set as formulas.
    parts = [f'<div class="nbrun-static mathjax_ignore tex2jax_ignore" style="{_FRAME}">']
    parts.append(f"<div><strong>{escape(title)}</strong></div>")
    if rows:
        head = "".join(f'<th style="{_CELL}">{name}</th>' for name in COLUMNS)
        parts.append(f'<table style="margin:6px 0 0"><thead><tr>{head}</tr></thead><tbody>')
        parts += [
            _html_row(row, *_shape(record)) for row, record in zip(rows, records, strict=True)
        ]
        parts.append("</tbody></table>")
    return "".join([*parts, "</div>"])


def _html_row(row: Sequence[str], shape: str, ground: str) -> str:
    sign = f'<span style="{_SHAPE};background-color:{ground}" aria-hidden="true">{shape}</span> '
    first, *others = (escape(cell) for cell in row)
    cells = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in (sign + first, *others))
    return f"<tr>{cells}</tr>"


def _markdown(title: str, rows: Sequence[Sequence[str]]) -> str:
    parts = [f"**{title}**"]
    if rows:
        head = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
        body = [f"| {' | '.join(map(_code, row))} |" for row in rows]
        parts.append("\n".join([*head, *body]))
    return "\n\n".join(parts)


def _code(text: str) -> str:
    """Return a text as code in a cell of a Markdown table, in which nothing of it means anything."""
    line = " ".join(text.split()).replace("|", "¦")  # a bar ends the cell, in code too
    if not line:
        return ""
    runs = "".join(c if c == "`" else " " for c in line).split()
    fence = "`" * (max(map(len, runs), default=0) + 1)
    return f"{fence} {line} {fence}"


def _plain(title: str, rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([title, *("  " + " · ".join(filter(None, row)) for row in rows)])
