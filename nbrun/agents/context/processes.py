"""Processes that belong to a run."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


class Process:
    """A process that an agent has started, with all below it. Threads: any.

    It is known by its number and the time of its start: another one that gets the number later is left alone.
    """

    is_driver = False

    def __init__(self, process: psutil.Process, command: object) -> None:
        first = command if isinstance(command, str | bytes | os.PathLike) else next(iter(command), "")  # type: ignore[call-overload]  # as `Popen` takes it
        words = os.fsdecode(first).split()  # a shell's command is one string
        self.pid: int = process.pid
        self.name = f"{os.path.basename(words[0]) if words else 'a process'} (process {process.pid})"
        self._process = process

    def is_alive(self) -> bool:
        """Return whether it runs; its exit status is left to who waits for it."""
        import psutil

        with contextlib.suppress(psutil.Error):
            return bool(self._process.is_running()) and self._process.status() != psutil.STATUS_ZOMBIE
        return False

    async def ended(self) -> None:
        """Return when it has ended."""
        wait_s = 0.005
        while self.is_alive():
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, 0.5)

    def stop(self) -> bool:
        """Ask it to end."""
        return self._signal("terminate")

    def interrupt(self) -> bool:
        """Kill it."""
        return self._signal("kill")

    def _signal(self, way: str) -> bool:
        import psutil

        for process in (self._process, *_below(self._process)):
            with contextlib.suppress(psutil.Error):
                getattr(process, way)()
        return True


def _below(process: psutil.Process) -> list[psutil.Process]:
    import psutil

    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def below(pid: int) -> list[Process]:
    """Return the processes below one, those that run."""
    import psutil

    found = []
    with contextlib.suppress(psutil.Error):
        for process in _below(psutil.Process(pid)):
            with contextlib.suppress(psutil.Error):
                found.append(Process(process, process.cmdline() or [process.name()]))
    return [process for process in found if process.is_alive()]
