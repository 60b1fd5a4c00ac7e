"""Printed text that waits for its line's end."""

from __future__ import annotations

MAX_LINE = 10_000
"""Printed characters that wait for their line's end at most."""


class Unfinished:
    """What a run has printed since its last whole line, by level.

    Threads: of one at a time; what a collected object prints may come in between.
    """

    __slots__ = ("_length", "_parts")

    def __init__(self) -> None:
        self._parts: dict[str, list[str]] = {}
        self._length = 0

    def add(self, text: str, level: str) -> str | None:
        """Take what was printed; return the lines that are whole now, None where none is."""
        self._parts.setdefault(level, []).append(text)
        self._length += len(text)
        # A progress bar ends its lines by a bare return; and nothing is held for ever.
        if "\n" in text or "\r" in text or self._length > MAX_LINE:
            return self._cut(level)
        return None

    def _cut(self, level: str) -> str | None:
        held = "".join(self._parts.pop(level, []))
        end = max(held.rfind("\n"), held.rfind("\r"))
        if end < 0:  # cut at a space: half a secret would not be known as one
            end = held.rfind(" ", MAX_LINE // 2)
        lines, rest = (held[:end], held[end + 1 :]) if end >= 0 else (held, "")
        self._parts[level] = [rest] if rest else []
        self._length = sum(map(len, self._parts[level]))
        return lines.rstrip("\r") if held else None

    def take(self) -> list[tuple[str, str]]:
        """Return level and text of all that waits, and wait no longer."""
        parts, self._parts = self._parts, {}
        return [(level, "".join(held)) for level, held in parts.items() if held]
