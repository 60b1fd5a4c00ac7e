"""A Python process and everything that it starts, killed as one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from nbrun.agents import Process, below
from nbrun.core import subreaper

if TYPE_CHECKING:
    from collections.abc import Sequence


class ProcessGroup:
    """A process with all below it; on Linux, that is a subreaper with the run's process. Threads: of one.

    It is waited for only after all of it was killed: until then its number cannot be reused. Python runs `code`
    there; `pass_fds` are what it keeps of our file descriptors, under the same numbers. Raises `OSError` or
    `ValueError` if it could not be started.
    """

    def __init__(self, code: str, pass_fds: Sequence[int]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this Python, and code of ours
            [sys.executable, "-u", "-c", code],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            pass_fds=pass_fds, start_new_session=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self.was_killed = False
        self._killed: list[Process] = []

    def streams(self) -> list[tuple[int, str]]:
        """Return the file descriptors of what it prints, with their names; they never block."""
        named = ((self._process.stdout, "stdout"), (self._process.stderr, "stderr"))
        streams = [(stream.fileno(), name) for stream, name in named if stream is not None]
        for fd, _ in streams:
            os.set_blocking(fd, False)
        return streams

    def is_dead(self) -> bool:
        """Return whether the process has ended."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self._process.poll() is not None
        try:
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # other code in this kernel waits for every child
            return True
        return found is not None

    def kill(self) -> None:
        """Have all of it killed; a no-op when it has been put away."""
        if self._process.returncode is None:  # else its number may be in use again
            self.was_killed = True
            if subreaper.IS_SUPPORTED:
                os.kill(self.pid, signal.SIGTERM)
            else:
                self.kill_directly()

    def kill_directly(self) -> None:
        """Kill all that there is now: an agent may have stopped the subreaper; a no-op when it has been put away."""
        if self._process.returncode is not None:
            return
        self._killed = [process for process in below(self.pid) if process.interrupt()]
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing of it is left
            os.killpg(self.pid, signal.SIGKILL)

    async def let_die(self, limit_s: float) -> None:
        """Return when all that was killed has ended, or after so many seconds: on a busy machine it takes a moment."""
        if not self.is_dead():
            self.kill_directly()
        give_up_at = time.monotonic() + limit_s
        while not self.is_dead() or any(process.is_alive() for process in self._killed):
            if time.monotonic() > give_up_at:
                return
            await asyncio.sleep(0.01)

    def put_away(self) -> tuple[str, ...]:
        """Kill what is left, then take note of the process's end; return the names of what does not die.

        One that is still dying is waited for on a thread: nobody else will, and it would stay a zombie.
        """
        is_dead = self.is_dead()
        if not is_dead or not subreaper.IS_SUPPORTED:  # a subreaper ends last
            self.kill_directly()
        left = tuple(process.name for process in self._killed if process.is_alive())
        if self._process.poll() is not None:
            return left
        with contextlib.suppress(RuntimeError):  # no thread can start while the interpreter ends
            threading.Thread(target=self._process.wait, name="nbrun-reaper", daemon=True).start()
        return left or (f"process-{self.pid}",)

    def close(self) -> None:
        """Close the streams of what it prints."""
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    @property
    def fate(self) -> str:
        """What has become of the process, after it was put away."""
        code = self._process.returncode
        if code is None:
            return "does not answer and cannot be killed"
        if self.was_killed:
            return "was ended by nbrun"
        if code >= 0:
            return f"ended with exit code {code} before the agent was done"
        if -code == signal.SIGKILL:
            return "was killed by SIGKILL (out of memory?)"
        return f"was killed by {_signal_name(-code)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
