"""A list of runs that shows itself as a table."""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from nbrun.core.errors import PackageMissing
from nbrun.core.text import printable
from nbrun.core.values import shown
from nbrun.render.words import origin_words, tokens_words
from nbrun.sessions.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

CELL = 200
"""Characters of a name or a status that the table shows."""
DTYPES = {
    "number": "Int64", "id": "string", "name": "string", "agent": "string", "model": "string",
    "status": "string", "cause": "string", "created_at": "time", "started_at": "time", "ended_at": "time",
    "elapsed_s": "float64", "input_tokens": "int64", "output_tokens": "int64", "requests": "int64",
    "cost_usd": "float64", "events": "int64", "tags": "object", "prompt": "string", "output": "object",
    "error": "string", "parent_id": "string",
}  # fmt: skip
"""The columns of a DataFrame, and what they hold."""
COLUMNS = ("run", "name", "status", "agent", "started", "tokens", "output")

_LEAST = {"started": 11, "output": 14, "agent": 8, "name": 9, "status": 12}
"""Columns that become narrower where the terminal is narrow, in this order, and how narrow they may become."""
_GIVEN_UP = ("tokens", "agent")
"""Columns that are left out there, before a name or a status is cut: these say which run it is, and how it ended."""

_MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


class RunList(list[Run]):
    """Runs, newest first; a table in a notebook, in a terminal and as a DataFrame."""

    def rows(self) -> list[tuple[str, ...]]:
        """Return what the table shows: one row a run, columns as in `COLUMNS`."""
        return [_row(run) for run in self]

    def to_pandas(self) -> pd.DataFrame:
        """Return the runs as a DataFrame, one row a run; times are UTC, seconds and US dollars are floats.

        Raises
        ------
        PackageMissing
            pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise PackageMissing(
                "to_pandas() needs pandas, which is not installed: pip install pandas"
            ) from None

        rows = [_fields(run) for run in self]
        frame = pd.DataFrame({name: [row[name] for row in rows] for name in DTYPES})
        for name, dtype in DTYPES.items():
            if dtype == "time":
                seconds = frame[name].astype("float64")
                # Somebody else's file may tell of a time that pandas has none for.
                moments = pd.to_datetime(seconds, unit="s", utc=True, errors="coerce")
                frame[name] = moments.astype("datetime64[us, UTC]")
            else:
                frame[name] = frame[name].astype(dtype)
        return frame

    def __repr__(self) -> str:
        if not self:
            return "no runs"
        room = shutil.get_terminal_size().columns
        rows = _fitting(self._table(), room)
        widths = _widths(rows, room)
        lines = [
            "  ".join(_fitted(cell, w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self._notes()])

    def _notes(self) -> list[str]:
        """Return a line for each file that is only read: which runs are from there, and why."""
        numbers: dict[str, list[int]] = {}
        for run in self:
            if (why := run.only_read) is not None and run.number is not None:
                numbers.setdefault(printable(why), []).append(run.number)
        return [
            f"#{found[0]} is only read: {why}"
            if len(found) == 1
            else f"#{min(found)} to #{max(found)} are only read: {why}"
            for why, found in numbers.items()
        ]

    def _table(self) -> list[tuple[str, ...]]:
        """Return the columns' names and the rows, without a column in which nothing stands."""
        rows = self.rows()
        kept = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
        return [tuple(row[i] for i in kept) for row in (COLUMNS, *rows)]

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no runs</p>"
        columns, *rows = self._table()
        body = "".join(_html(row, "td") for row in rows)
        head = _html(columns, "th")
        # The class keeps dollar signs in an agent's text from being set as formulas.
        notes = "".join(f"<p>{escape(note)}</p>" for note in self._notes())
        return (
            '<table class="mathjax_ignore tex2jax_ignore">'
            f"<thead>{head}</thead><tbody>{body}</tbody></table>{notes}"
        )


def _fitting(rows: list[tuple[str, ...]], room: int) -> list[tuple[str, ...]]:
    """Return the rows without the columns for which there is no room."""
    for name in _GIVEN_UP:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        narrow = {at: _LEAST[key] for at, key in enumerate(rows[0]) if key in ("started", "output")}
        needed = sum(min(width, narrow.get(at, width)) for at, width in enumerate(widths))
        if needed + 2 * (len(widths) - 1) <= room:
            break
        if name in rows[0]:
            at = rows[0].index(name)
            rows = [(*row[:at], *row[at + 1 :]) for row in rows]
    return rows


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return how wide the columns are, so that their rows fit into so many characters, if they can."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    over = sum(widths) + 2 * (len(widths) - 1) - room
    for name, least in _LEAST.items():
        if name in rows[0]:
            at = rows[0].index(name)
            taken = min(max(over, 0), max(widths[at] - least, 0))
            widths[at] -= taken
            over -= taken
    return widths


def _fitted(cell: str, width: int) -> str:
    if len(cell) > width and _MOMENT.fullmatch(cell):
        cell = cell[5 : 5 + width]  # the year goes first, then the seconds
    return cell.ljust(width) if len(cell) <= width else f"{cell[: width - 1]}…"


def _html(cells: Sequence[str], tag: str) -> str:
    inner = "".join(f'<{tag} style="text-align:left">{escape(cell)}</{tag}>' for cell in cells)
    return f"<tr>{inner}</tr>"


def _row(run: Run) -> tuple[str, ...]:
    record = run.glance
    started = record.started_at or record.created_at
    agent = record.model or record.agent
    result = printable(shown(record.output, 60)) if record.output is not None else ""
    if record.error is not None:
        result = printable(shown(str(record.error), 60))
    return (
        f"#{record.number}" if record.number is not None else "–",
        _cell(
            f"{record.name} ({comes_from})" if (comes_from := origin_words(record)) else record.name
        ),
        _cell(run.status_words()),
        _cell(agent) if agent != record.name else "",
        datetime.fromtimestamp(started, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        tokens_words(record),
        result,
    )


def _cell(text: str) -> str:
    """Return a text that may be of any length, and anybody's, as one cell of the table."""
    return printable(shown(text, CELL))


def _fields(run: Run) -> dict[str, object]:
    record = run.record
    used = record.own_usage  # so that a column can be summed up
    return {
        "number": record.number,
        "id": record.run_id,
        "name": record.name,
        "agent": record.agent,
        "model": record.model,
        "status": str(record.status),
        "cause": None if record.cause is None else str(record.cause),
        "created_at": record.created_at,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "elapsed_s": record.elapsed_s(record.ended_at or record.last_event_at),
        "input_tokens": used.input_tokens,
        "output_tokens": used.output_tokens,
        "requests": used.requests,
        "cost_usd": used.cost_usd,
        "events": record.event_count,
        "tags": dict(record.tags),
        "prompt": record.prompt,
        "output": record.output,
        "error": None if record.error is None else str(record.error),
        "parent_id": record.parent_id,
    }
