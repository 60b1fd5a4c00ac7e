"""What the command line prints: lines and tables, and an agent's text only as text."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbrun.core.errors import UserError
from nbrun.core.text import printable
from nbrun.core.values import Plain, shown
from nbrun.render.words import tokens_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nbrun.core.record import RunRecord

PLAIN_WIDTH = 110
"""Columns of a table that goes into a file or a pipe."""


class CommandError(UserError):
    """The command cannot do what was asked; one line that names the mend."""


def say(text: str) -> None:
    """Print lines at once, also into a pipe, as text: agents wrote it, and names of files may be anybody's too."""
    print(printable(text), flush=True)


def cells(*texts: str) -> list[Any]:
    """Return texts as a row of a table shows them."""
    from rich.text import Text

    return [
        Text(printable(text)) for text in texts
    ]  # as Text: brackets in a plain string are markup


def table(*columns: str) -> Table:
    """Return an empty table with these columns."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.ROUNDED, show_lines=True)
    for column in columns:
        is_number = column in ("seconds", "tokens")
        table.add_column(
            column, justify="right" if is_number else "left", no_wrap=column in ("run", "started")
        )
    return table


def console() -> Console:
    """Return what prints tables: as wide as the terminal, or as `PLAIN_WIDTH`."""
    from rich.console import Console

    is_fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if is_fixed else PLAIN_WIDTH)


def answer(record: RunRecord) -> str:
    """Return what the agent said, or else what it returned, or why there is neither."""
    if record.text or record.output is not None:
        output: Plain = record.output
        return record.text.strip() or (output if isinstance(output, str) else shown(output, 2_000))
    return "" if record.error is None else str(record.error)


def tokens(record: RunRecord) -> str:
    """Return the tokens in words, without the word itself."""
    return tokens_words(record).removesuffix(" tokens")  # the column's title says it


def moment(seconds: float) -> str:
    """Return epoch seconds as the local time."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def relative(path: Path) -> str:
    """Return the path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
