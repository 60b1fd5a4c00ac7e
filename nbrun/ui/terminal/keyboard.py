"""A person at the keyboard of a terminal: lines, waited for only as long as somebody wants them."""

from __future__ import annotations

import os
import queue
import select
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_S = 0.05
"""How often it is looked whether the line is still wanted."""


def next_line(is_wanted: Callable[[], bool]) -> str | None:
    """Return the next line that is typed; None when it is wanted no more, and then nothing is taken.

    Raises
    ------
    EOFError
        Nobody is at the keyboard, or Ctrl-D was typed.
    """
    fd = _terminal()
    return _ASIDE.next_line(is_wanted) if fd is None else _polled(fd, is_wanted)


def typed_ahead() -> str:
    """Take what was typed up to now, and return its whole lines: it is no answer to what is asked after it."""
    fd = _terminal()
    if fd is None:
        return ""
    import termios

    typed = b""
    while select.select([fd], [], [], 0)[0] and (data := os.read(fd, 4096)):
        typed += data
    termios.tcflush(fd, termios.TCIFLUSH)  # the beginning of a line
    return _text(typed)


def _terminal() -> int | None:
    """Return the file descriptor of a terminal that gives whole lines, where stdin is one."""
    try:
        fd = sys.stdin.fileno()
        return fd if os.isatty(fd) and os.name == "posix" else None
    except (AttributeError, OSError, ValueError):  # none at all, one of a test's, or closed
        return None


def _polled(fd: int, is_wanted: Callable[[], bool]) -> str | None:
    import termios

    typed = b""
    while not typed.endswith(b"\n"):
        if select.select([fd], [], [], LOOK_S)[0]:
            data = os.read(fd, 4096)  # of a terminal: one line at most
            if not data and not typed:
                raise EOFError
            if not data:
                break
            typed += data
        elif not is_wanted():
            # The beginning of an answer that is too late must not become that of the next cell.
            termios.tcflush(fd, termios.TCIFLUSH)
            return None
    return _text(typed)


def _text(typed: bytes) -> str:
    return typed.decode(sys.stdin.encoding or "utf-8", "replace").strip()


class _Aside:
    """Lines of a stdin that is no terminal, where Python may hold back what has come: a thread waits for them.

    The thread cannot be called off, so it takes one line more when its question is over. That line is dropped: it
    is no answer to the next question.

    Threads: `next_line()` of the main one; `nbrun-keyboard` reads one line and ends.
    """

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._is_reading = False

    def next_line(self, is_wanted: Callable[[], bool]) -> str | None:
        """Return the next line, None when it is wanted no more; raise `EOFError` at the end."""
        if not self._lines.empty():
            self._lines.get()
            self._is_reading = False
        if not self._is_reading:
            self._is_reading = True
            threading.Thread(target=self._read, name="nbrun-keyboard", daemon=True).start()
        while True:
            try:
                line = self._lines.get(timeout=LOOK_S)
            except queue.Empty:
                if not is_wanted():
                    return None
                continue
            self._is_reading = False
            if not line:
                raise EOFError
            return line.strip()

    def _read(self) -> None:
        try:
            line = sys.stdin.readline()
        except (AttributeError, OSError, ValueError):  # there is none
            line = ""
        self._lines.put(line)


_ASIDE = _Aside()
