"""Who writes a store, and whether that process still lives."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """What tells one process from every other, also across reboots and containers.

    `started_at` is compared, never read as a time: clock ticks since the boot on Linux, elsewhere
    microseconds since the epoch.
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
        try:
            return _started_at(self.pid) == self.started_at
        except PermissionError:
            return None


@lru_cache(maxsize=1)
def _identity_of(pid: int) -> ProcessIdentity:
    started_at = _started_at(pid)
    return ProcessIdentity(socket.gethostname(), _boot_id(), _pid_namespace(), pid, started_at or 0)


def this_process() -> ProcessIdentity:
    """Return the identity of this process; made anew after a fork."""
    return _identity_of(os.getpid())


def _started_at(pid: int) -> int | None:
    """Return when a process was started, None if there is none; exact, and untouched by a clock that is set.

    Raises
    ------
    PermissionError
        The system does not tell.
    """
    stat = Path(f"/proc/{pid}/stat")
    if sys.platform == "linux":
        try:
            # After the name, which may hold anything: state, then 18 numbers, then clock ticks since the boot.
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else int(fields[19])
    import psutil

    try:
        return int(psutil.Process(pid).create_time() * 1_000_000)
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied as error:
        raise PermissionError(f"process {pid} cannot be asked for its start") from error


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        # macOS and Windows: the boot time, to the minute, since it is reckoned from now.
        import psutil

        return f"boot-{round(psutil.boot_time() / 60)}"


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
