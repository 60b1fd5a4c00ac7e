"""What the command line prints: lines and tables, and an agent's text only as text."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nbrun.core import RunRecord, UserError, printable
from nbrun.render import run_table

if TYPE_CHECKING:
    from collections.abc import Iterable


class CommandError(UserError):
    """The command cannot do what was asked; one line that says how to fix it."""


def say(text: str) -> None:
    """Print lines at once, also into a pipe; escape codes of agents and file names are made visible."""
    print(printable(text), flush=True)


def say_table(records: Iterable[RunRecord]) -> None:
    """Print runs as a table: as wide as the terminal, and uncut into a file or a pipe."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    say("\n".join(run_table.text_lines([run_table.Row(record) for record in records], width)))


def relative(path: Path) -> str:
    """Return the path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
