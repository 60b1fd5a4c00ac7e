"""Turns what is printed into whole lines for a run's log: text of an agent, or bytes of a process."""

from __future__ import annotations

import codecs

MAX_LINE = 10_000
"""How many printed characters may wait for the end of their line."""


class LineBuffer:
    """What a run has printed since its last whole line, by level.

    Threads: one at a time; what a collected object prints may come in between.
    """

    __slots__ = ("_length", "_parts")

    def __init__(self) -> None:
        self._parts: dict[str, list[str]] = {}
        self._length = 0

    def add(self, text: str, level: str) -> str | None:
        """Take what was printed; return the lines that are complete now, None if there are none."""
        self._parts.setdefault(level, []).append(text)
        self._length += len(text)
        # A progress bar ends its lines with a bare return; and nothing is held forever.
        if "\n" in text or "\r" in text or self._length > MAX_LINE:
            return self._cut(level)
        return None

    def _cut(self, level: str) -> str | None:
        held = "".join(self._parts.pop(level, []))
        end = max(held.rfind("\n"), held.rfind("\r"))
        lines, rest = (held[:end], held[end + 1 :]) if end >= 0 else _cut(held)
        self._parts[level] = [rest] if rest else []
        self._length = sum(map(len, self._parts[level]))
        return lines.rstrip("\r") if held else None

    def take(self) -> list[tuple[str, str]]:
        """Return level and text of everything that waits."""
        parts, self._parts = self._parts, {}
        return [(level, "".join(held)) for level, held in parts.items() if held]


def _cut(text: str) -> tuple[str, str]:
    """Cut a text at a space, if there is one, else with a mark: half a secret is found beside it."""
    end = text.rfind(" ", MAX_LINE // 2)
    if end >= 0:
        return text[:end], text[end + 1 :]
    end = max(len(text) // 2, len(text) - TAIL)
    return f"{text[:end]}…", f"…{text[end:]}"


TAIL = 4_000
"""Characters that are kept, in case they are the last words of a process."""


class Printed:
    """One stream of a process: bytes in, whole lines out. Used by one thread."""

    def __init__(self, level: str) -> None:
        self.level = level
        self.tail = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """Take what was printed, nothing at the end of the stream; return the lines that are complete now."""
        text = self._decoder.decode(data, final=not data)
        self.tail = (self.tail + text)[-TAIL:]
        self._held += text
        # A progress bar ends its lines with a bare return.
        end = max(self._held.rfind("\n"), self._held.rfind("\r"))
        if end < 0 and len(self._held) > MAX_LINE:
            lines, self._held = _cut(self._held)
            return lines
        if not data:
            return self.rest()
        lines, self._held = self._held[: max(end, 0)], self._held[end + 1 :]
        return lines.rstrip("\r")

    def last_words(self) -> str:
        """Return the end of what was printed, from the start of a line, else marked as cut."""
        if len(self.tail) < TAIL:
            return self.tail
        return self.tail.partition("\n")[2] or f"…{self.tail}"

    def rest(self) -> str:
        """Return what waits for the end of its line."""
        rest, self._held = self._held.removesuffix("\n"), ""
        return rest
