"""Who writes a store, and whether that process still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """What tells one process from every other, also across reboots and containers.

    `started_at` is in microseconds since the epoch, as the operating system tells it.
    """

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started_at: int

    def is_alive(self) -> bool | None:
        """Return whether it runs; None where that cannot be seen from here.

        On the same host, boot and PID namespace the process itself decides, never a heartbeat: laptops
        sleep. A process that cannot be asked, because it is on another machine, is neither dead nor alive.
        """
        here = this_process()
        if self.host != here.host or self.pid_namespace != here.pid_namespace:
            return None
        if self.boot_id != here.boot_id:
            return False
        started_at = _started_at(self.pid)
        # Clocks are adjusted, and the start time is reckoned from the boot: allow for it.
        return started_at is not None and abs(started_at - self.started_at) < 2_000_000


@lru_cache(maxsize=1)
def _identity_of(pid: int) -> ProcessIdentity:
    started_at = _started_at(pid)
    return ProcessIdentity(socket.gethostname(), _boot_id(), _pid_namespace(), pid, started_at or 0)


def this_process() -> ProcessIdentity:
    """Return the identity of this process; made anew after a fork."""
    return _identity_of(os.getpid())


def _started_at(pid: int) -> int | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return int(process.create_time() * 1_000_000)
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (
        OSError
    ):  # macOS and Windows: the boot time, to the minute, since it is reckoned from now
        import psutil

        return f"boot-{round(psutil.boot_time() / 60)}"


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
