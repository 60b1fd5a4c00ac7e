"""What a process prints past its agent's run: on its file descriptors, from C, from programs it starts."""

from __future__ import annotations

import codecs

from nbrun.unfinished import MAX_LINE

TAIL = 4_000
"""Characters that are kept for the case that they are the last words of a process."""


class Printed:
    """One stream of a process: bytes in, whole lines out: for the run's log.

    Threads: of one.
    """

    def __init__(self, level: str) -> None:
        self.level = level
        self.tail = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """Take what was printed, nothing at the end of the stream; return the lines that are whole now."""
        text = self._decoder.decode(data, final=not data)
        self.tail = (self.tail + text)[-TAIL:]
        self._held += text
        # A progress bar ends its lines by a bare return.
        end = max(self._held.rfind("\n"), self._held.rfind("\r"))
        if end < 0 and len(self._held) > MAX_LINE:
            # Cut at a space, where there is one: half a secret would not be known as one.
            end = self._held.rfind(" ", MAX_LINE // 2)
            if end < 0:
                return self.rest()
        if not data:
            return self.rest()
        lines, self._held = self._held[: max(end, 0)], self._held[end + 1 :]
        return lines.rstrip("\r")

    def last_words(self) -> str:
        """Return the end of what was printed, from a line's beginning on: half a secret would not be known as one."""
        if len(self.tail) < TAIL:
            return self.tail
        return self.tail.partition("\n")[2] or self.tail

    def rest(self) -> str:
        """Return what waits for its line's end, and wait no longer."""
        rest, self._held = self._held.removesuffix("\n"), ""
        return rest
