"""Lines typed in a terminal, each waited for only as long as it is wanted."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from prompt_toolkit import PromptSession

POLL_S = 0.05
"""How often to check that the line is still wanted."""


def next_line(prompt: str, is_wanted: Callable[[], bool], *, is_secret: bool = False) -> str | None:
    """Return the next line typed after `prompt`, not shown if it is secret; None as soon as it is no longer wanted.

    Ctrl-C raises `KeyboardInterrupt`, Ctrl-D and the end of the input raise `EOFError`.
    """
    if not _is_terminal():
        print(prompt, end="", flush=True)
        return _PIPED.next_line(is_wanted)
    session = _prompt_session()

    def check() -> None:
        if is_wanted():
            asyncio.get_running_loop().call_later(POLL_S, check)
        elif session.app.is_running and not session.app.is_done:
            session.app.exit(result=None)

    line: str | None = session.prompt(prompt, pre_run=check, in_thread=_is_in_loop(), is_password=is_secret)
    return None if line is None else line.strip()


def discard_typed_ahead(seconds: float) -> str:
    """Discard what is typed until so many seconds from now, and return it; at once if the input is no terminal."""
    if not _is_terminal():
        return ""
    time.sleep(seconds)
    source = _prompt_session().input
    with source.raw_mode():  # only then does the terminal hand out an unfinished line
        keys = [*source.read_keys(), *source.flush_keys()]
    return "".join(key.data for key in keys).strip()


def _is_terminal() -> bool:
    try:
        return sys.stdin.isatty()
    except (AttributeError, ValueError):  # no stdin, or a closed one
        return False


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _prompt_session() -> PromptSession[str | None]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output
    from prompt_toolkit.output.vt100 import Vt100_Output

    output = create_output()
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False  # asking a terminal that doesn't answer costs a wait and a warning
    return PromptSession(output=output)


class _PipedLines:
    """Lines of an input that isn't a terminal, read by a thread because Python may buffer what has arrived.

    The thread can't be stopped: a line that it reads when its question is over is dropped, and doesn't answer the
    next. Threads: `next_line()` on the main thread; `nbrun-keyboard` reads one line and ends.
    """

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._is_reading = False

    def next_line(self, is_wanted: Callable[[], bool]) -> str | None:
        """Return the next line, None once it is no longer wanted; raise `EOFError` at the end."""
        if not self._lines.empty():
            self._lines.get()
            self._is_reading = False
        if not self._is_reading:
            self._is_reading = True
            threading.Thread(target=self._read, name="nbrun-keyboard", daemon=True).start()
        while True:
            try:
                line = self._lines.get(timeout=POLL_S)
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
        except (AttributeError, OSError, ValueError):  # no stdin
            line = ""
        self._lines.put(line)


_PIPED = _PipedLines()
