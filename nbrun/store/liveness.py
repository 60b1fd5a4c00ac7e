"""Whether the kernel of a session is running, as far as that can be seen from here."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from nbrun.core import duration, shown

if TYPE_CHECKING:
    import sqlite3


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """Identifies a process, also across reboots and containers.

    `started_at` is only ever compared: clock ticks since the boot on Linux, elsewhere microseconds since the epoch.
    """

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started_at: int

    def is_alive(self) -> bool | None:
        """Return whether it is running; None if that cannot be seen from here, as on another machine."""
        # On the same host, boot and PID namespace the process itself decides, never a heartbeat: laptops sleep.
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
    """Return the identity of this process, or of the child after a fork."""
    return _identity_of(os.getpid())


def _started_at(pid: int) -> int | None:
    """Return when a process started, in a form that doesn't depend on the clock; None if it doesn't exist.

    Raises `PermissionError` if the system hides it.
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
        # macOS and Windows: the boot time, to the minute, since it is computed from the current time.
        import psutil

        return f"boot-{round(psutil.boot_time() / 60)}"


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


_MASK = 2**63 - 1  # SQLite's integers have a sign; inodes have none

_COLUMNS = (
    "SELECT s.key, s.host, s.boot_id, s.pid_namespace, s.pid, s.process_started_at,"
    " s.heartbeat_at, s.closed_at, h.device, h.inode"
    " FROM sessions s LEFT JOIN homes h ON h.session = s.key"
)


@dataclass(frozen=True, slots=True)
class KernelState:
    """What is known of the kernel of a session.

    `is_same_file` says whether it writes to this very file: in a copy its runs have stopped, wherever they are now.
    """

    session: int
    identity: ProcessIdentity
    heartbeat_at: float  # epoch seconds
    is_closed: bool
    is_same_file: bool

    def is_alive(self) -> bool | None:
        """Return whether the kernel is running and writes to this file; None if that cannot be seen from here."""
        return self.identity.is_alive() if self.is_same_file else None

    def why_unknown(self, now: float) -> str:
        """Return why the state of its live-looking runs is unknown here; empty if the kernel is running."""
        if self.is_closed:
            return "its session was closed, and its end was not saved"
        alive = self.is_alive()
        if alive is None:
            return f"its kernel cannot be seen from here ({self._where()}{self._last_seen(now)})"
        return "" if alive else "its kernel died, and this file is read-only"

    def _where(self) -> str:
        if not self.is_same_file:
            return "this file is a copy"
        if self.identity.host != this_process().host:
            return f"on {shown(self.identity.host, 60)}"
        if self.identity.pid_namespace != this_process().pid_namespace:
            return "in another container"
        return "the system does not say"

    def _last_seen(self, now: float) -> str:
        # The clocks of two hosts may differ.
        ago = max(0.0, now - self.heartbeat_at)
        return f", last seen {duration(ago)} ago" if self.heartbeat_at > 0 else ""


def note_file(connection: sqlite3.Connection, session: int) -> None:
    """Save which file a session writes to; the caller has a transaction open."""
    file_id = _file_id(connection)
    if file_id is not None:
        connection.execute("INSERT OR REPLACE INTO homes VALUES (?, ?, ?)", (session, *file_id))


def open_kernels(connection: sqlite3.Connection) -> list[KernelState]:
    """Return the kernels of all sessions that were not closed."""
    file_id = _file_id(connection)
    rows = connection.execute(f"{_COLUMNS} WHERE s.closed_at IS NULL").fetchall()
    return [_state(row, file_id) for row in rows]


def kernel_of(connection: sqlite3.Connection, number: int) -> KernelState | None:
    """Return the kernel of a run."""
    row = connection.execute(f"{_COLUMNS} JOIN runs r ON r.session = s.key WHERE r.number = ?", (number,)).fetchone()
    return None if row is None else _state(row, _file_id(connection))


def _state(row: tuple[object, ...], file_id: tuple[int, int] | None) -> KernelState:
    """Return the state for a row, whatever somebody has put into it."""
    key, host, boot_id, namespace, pid, started_at, heartbeat_at, closed_at, device, inode = row
    identity = ProcessIdentity(str(host), str(boot_id), str(namespace), _integer(pid), _integer(started_at))
    is_same_file = inode is None or file_id is None or inode == file_id[1]
    if is_same_file and device is not None and file_id is not None and device != file_id[0]:
        # A device may have a different number after a reboot.
        is_same_file = boot_id != this_process().boot_id
    return KernelState(_integer(key), identity, _integer(heartbeat_at) / 1_000_000, closed_at is not None, is_same_file)


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def _file_id(connection: sqlite3.Connection) -> tuple[int, int] | None:
    """Return the device and the inode of the file behind a connection; None for memory."""
    path = connection.execute("PRAGMA database_list").fetchone()[2]
    try:
        found = os.stat(path) if path else None
    except OSError:  # moved away while it is open
        return None
    if found is None:
        return None
    return found.st_dev & _MASK, found.st_ino & _MASK
