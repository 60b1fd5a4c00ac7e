"""A line of `%%agentrun` or `%agentrun` as its values: split, read by the table, and checked as a whole."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from nbrun.core import BadOption
from nbrun.core.commands import Command, asks_for_help
from nbrun.ui.magics.options import CELL, LINE

if TYPE_CHECKING:
    from types import SimpleNamespace


_CALL = re.compile(r"\s*(\w+)\s*\(")
_SAY = re.compile(
    r"\s*say(?:\s+(?:(?P<quote>['\"])(?P<quoted>.+?)(?P=quote)|(?P<ref>\S+)))?(?:\s+(?P<text>.*?))?\s*", re.DOTALL
)


def read_cell(line: str) -> SimpleNamespace:
    """Return what a `%%agentrun` line asks for; None for what it doesn't give.

    Raises
    ------
    BadOption
        An option or a value is wrong; the message says how to fix it.
    """
    given = CELL.parse(_split(line))
    if given.target is not None and given.model is not None:
        raise BadOption("Give a TARGET or a --model, not both")
    if given.block and given.loop == "kernel":
        raise BadOption("--loop kernel makes no progress while its cell waits; leave out --block, and await the run")
    if given.python and (given.target is not None or given.model is not None):
        raise BadOption("--python runs the cell body itself; leave out TARGET and --model")
    if given.python and given.on == "process":
        raise BadOption("--python runs in this notebook's namespace; leave out --on process")
    return given


def read_line(line: str) -> tuple[Command, list[str]]:
    """Return the subcommand of a `%agentrun` line and its words; `list` for an empty line.

    Raises
    ------
    BadOption
        There is no such subcommand.
    """
    if (say := _SAY.fullmatch(line)) is not None:  # its text is taken as it is, quotes included
        words = [word for word in (say["quoted"] or say["ref"], say["text"]) if word]
        words = ["say", *([] if asks_for_help(words[:1]) else ["--"]), *words]
    else:
        words = _split(line) or ["list"]
    if (command := LINE.find(words[0])) is not None:
        return command, words[1:]
    raise BadOption(
        f"{LINE.unknown(words[0])} To start a run, put %%agentrun on the first line of a cell and the prompt below it."
    )


def _split(line: str) -> list[str]:
    if call := _CALL.match(line):
        raise BadOption(f"Name the agent, don't call it: write %%agentrun {call[1]}, and the prompt below it")
    try:
        return shlex.split(line)
    except ValueError as error:  # a quote that is never closed
        raise BadOption(f"The line can't be read ({error}); close the quote or escape it") from None
