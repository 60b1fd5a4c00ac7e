"""Text in Markdown that is shown as it was written, whatever is in it."""

from __future__ import annotations

import textwrap


def _fence(text: str, least: int) -> str:
    """Return backticks that are longer than any run of them in the text, so that it cannot end its block."""
    longest = max(
        (len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0
    )
    return "`" * max(least, longest + 1)


def fenced(text: str, width: int | None = None) -> str:
    """Return a text as it was written, its lines broken where they are longer than `width`."""
    if width is not None:
        text = "\n".join(_broken(line, width) for line in text.splitlines())
    fence = _fence(text, 3)
    return f"{fence}text\n{text}\n{fence}"


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    lines = textwrap.wrap(line, width, replace_whitespace=False, break_on_hyphens=False)
    return "\n".join(lines)


def code(text: str) -> str:
    """Return a text on one line, as code."""
    line = " ".join(text.split())
    fence = _fence(line, 1)
    return f"{fence} {line} {fence}"


def literal(text: str) -> str:
    """Return a text in which nothing is Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-!|~&" else c for c in text)
