"""Captures what an agent prints into its own run's log, never into another cell's output."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, TextIO

from nbrun.agents import current_run

_lock = threading.RLock()
_users = 0


class RunStream:
    """Wraps `sys.stdout` or `sys.stderr`: a run's text goes to its log, all else passes through. Threads: any."""

    def __init__(self, stream: TextIO, level: str) -> None:
        self._stream = stream
        self._level = level
        self._pid = os.getpid()

    def write(self, text: str) -> int:
        """Write to the run's log inside an agent, else to the wrapped stream."""
        run = current_run.get()
        if run is None or os.getpid() != self._pid:  # a fork has no writer thread
            return self._stream.write(text)
        run.write(text, self._level)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def install() -> None:
    """Wrap both streams, until `remove()` was called as often."""
    global _users
    with _lock:
        _users += 1
    renew()


def renew() -> None:
    """Reinstall the stdout/stderr hooks if another library replaced them."""
    with _lock:
        for name in ("stdout", "stderr") if _users else ():
            if not isinstance(getattr(sys, name), RunStream):
                setattr(sys, name, RunStream(getattr(sys, name), name))


def remove() -> None:
    """Restore both streams, unless another library has wrapped ours by now."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            for name in ("stdout", "stderr"):
                stream = getattr(sys, name)
                if isinstance(stream, RunStream):
                    setattr(sys, name, stream._stream)
