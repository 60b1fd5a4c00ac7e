"""The one table of runs, for `nbrun.runs()`, `nbrun list` and the panel; each row of `COLUMNS` is one column."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto
from html import escape
from typing import TYPE_CHECKING

from nbrun.core import RunRecord, duration, moment, printable, shown
from nbrun.render import markdown, words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class View(Flag):
    """Where a column is shown."""

    LIST = auto()
    """Lists, in a notebook and on the command line."""
    PANEL = auto()
    """The panel, live, and as a saved notebook keeps it."""
    BOTH = LIST | PANEL


@dataclass(frozen=True, slots=True)
class Row:
    """A run as the table shows it; `status` are its words, where more is known than its record says."""

    record: RunRecord
    status: str = ""
    shape: tuple[str, str] | None = None
    """The sign of its status and the colour behind it; by the record's status where it is None."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `least` is how narrow a narrow terminal may make it; None keeps it whole."""

    key: str
    heading: str
    text: Callable[[Row], str]
    views: View = View.BOTH
    limit: int = 80
    least: int | None = None
    is_number: bool = False

    def cell(self, row: Row) -> str:
        """Return what it shows of a run: one short line in which nothing is hidden, whoever wrote it."""
        return printable(shown(self.text(row), self.limit))


def _number(row: Row) -> str:
    return "–" if row.record.number is None else f"#{row.record.number}"


def _name(row: Row) -> str:
    origin = words.origin_words(row.record)
    return f"{row.record.name} ({origin})" if origin else row.record.name


def _agent(row: Row) -> str:
    agent = row.record.model or row.record.agent
    return "" if agent == row.record.name else agent


def _elapsed(row: Row) -> str:
    ended_at = row.record.ended_at
    seconds = None if ended_at is None else row.record.elapsed_s(ended_at)
    return "" if seconds is None else duration(seconds)


def _output(row: Row) -> str:
    record = row.record
    if record.error is not None:
        return str(record.error)
    return record.text_head or record.text if record.output is None else shown(record.output, 200)


COLUMNS = (
    Column("number", "Run", _number, View.LIST),
    Column("name", "Name", _name, View.LIST, 200, least=9),
    Column("run", "Run", lambda row: words.name_and_number(row.record), View.PANEL, 100),
    Column("status", "Status", lambda row: row.status or words.status_words(row.record), limit=200, least=12),
    Column("agent", "Agent", _agent, least=8),
    Column("started", "Started", lambda row: moment(row.record.started_at or row.record.created_at), least=11),
    Column("elapsed", "Elapsed", _elapsed, View.PANEL, is_number=True),
    Column("tokens", "Tokens", lambda row: words.tokens_words(row.record.usage), is_number=True),
    Column("cost", "Cost", lambda row: words.cost_words(row.record.usage), is_number=True),
    Column("output", "Output", _output, View.LIST, least=14),
)

_SHRINKS = ("started", "output", "agent", "name", "status")
"""Columns that become narrower in a narrow terminal, in this order."""
_DROPPED = ("cost", "tokens", "agent")
"""Columns left out there before a name or a status is cut: those say which run it is, and how it ended."""


def columns(view: View) -> list[Column]:
    """Return the columns of a view, in order."""
    return [column for column in COLUMNS if column.views & view]


def cells(row: Row, view: View) -> list[str]:
    """Return the texts of a row, in the order of `columns(view)`."""
    return [column.cell(row) for column in columns(view)]


# --- as text ---------------------------------------------------------------------------------------


def text_lines(rows: Sequence[Row], width: int | None, view: View = View.LIST) -> list[str]:
    """Return the table as lines of at most `width` characters, if they can be; empty columns are left out."""
    table = _filled(rows, view)
    if width is not None:
        table = _fitting(table, width)
    widths = _widths(table, width)
    return [
        "  ".join(_fitted(cell, at, column) for (column, cell), at in zip(line, widths, strict=True)).rstrip()
        for line in zip(*[[(column, cell) for cell in texts] for column, texts in table], strict=True)
    ]


_Table = list[tuple[Column, list[str]]]


def _filled(rows: Sequence[Row], view: View) -> _Table:
    """Return the columns that aren't empty, each with its heading and its cells."""
    table = [(column, [column.cell(row) for row in rows]) for column in columns(view)]
    return [(column, [column.heading, *texts]) for column, texts in table if any(texts)]


def _fitting(table: _Table, width: int) -> _Table:
    """Return the table without the columns that don't fit."""
    for key in _DROPPED:
        needed = 2 * (len(table) - 1)
        for column, texts in table:
            longest = max(map(len, texts))
            needed += min(longest, column.least or longest) if column.key in _SHRINKS[:2] else longest
        if needed <= width:
            break
        table = [(column, texts) for column, texts in table if column.key != key]
    return table


def _widths(table: _Table, width: int | None) -> list[int]:
    widths = {column.key: max(map(len, texts)) for column, texts in table}
    least = {column.key: column.least or 0 for column, _ in table}
    over = 0 if width is None else sum(widths.values()) + 2 * (len(widths) - 1) - width
    for key in _SHRINKS:
        if key in widths and over > 0:
            taken = min(over, max(widths[key] - least[key], 0))
            widths[key] -= taken
            over -= taken
    return list(widths.values())


def _fitted(cell: str, width: int, column: Column) -> str:
    if len(cell) > width and column.key == "started":
        cell = cell[5 : 5 + width]  # the year goes first, then the seconds
    if len(cell) > width:
        return f"{cell[: width - 1]}…"
    return cell.rjust(width) if column.is_number else cell.ljust(width)


# --- as HTML and Markdown --------------------------------------------------------------------------

_CELL = "text-align:{};padding:2px 8px"


def html_table(rows: Sequence[Row], view: View) -> str:
    """Return the table as HTML without script; all text is escaped. Empty columns are left out."""
    table = _filled(rows, view)
    lines: list[list[str]] = [[] for _ in range(len(rows) + 1)]
    for column, texts in table:
        style = _CELL.format("right" if column.is_number else "left")
        for at, (line, text) in enumerate(zip(lines, texts, strict=True)):
            tag = "td" if at else "th"
            sign = _sign(rows[at - 1]) if at and column.key == "status" and view is View.PANEL else ""
            line.append(f'<{tag} style="{style}">{sign}{escape(text)}</{tag}>')
    head, *body = (f"<tr>{''.join(line)}</tr>" for line in lines)
    # The classes keep dollar signs in an agent's text from being set as formulas.
    return (
        '<table class="mathjax_ignore tex2jax_ignore" style="margin:6px 0 0">'
        f"<thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"
    )


def _sign(row: Row) -> str:
    return markdown.sign(*(row.shape or words.shape(row.record))) + " "


def markdown_table(rows: Sequence[Row], view: View) -> str:
    """Return the table as Markdown in which no text of a run means anything."""
    headings = [column.heading for column in columns(view)]
    head = [f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    body = [f"| {' | '.join(map(_code, cells(row, view)))} |" for row in rows]
    return "\n".join([*head, *body])


def _code(text: str) -> str:
    return markdown.code(text.replace("|", "¦")) if text else ""  # a bar ends the cell, in code too
