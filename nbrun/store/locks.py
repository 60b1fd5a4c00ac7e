"""Locks between all processes of nbrun: who may open or replace a store's file now, and who has it open.

SQLite finds the journal of a database (`-wal`) and its index (`-shm`) by name when it first reads, and deletes both
when it closes as the last one. It knows that by POSIX locks, which a process loses when it closes any descriptor of
the file, as after copying it. Therefore:

* Opening a file until the first read, closing it and putting another one in its place is done by one process at a
  time, which holds `exclusive()`.
* Whoever has a file open holds a shared lock in a folder beside it, `NAME.db-lock`, and keeps a second name there for
  the journal and its index, by which they are put back if they are deleted, moved or replaced. Names begin with the
  inode of the database, so what belongs to another file that was moved here or away is never taken for its own.

Where a system has no such locks or names (Windows, some network file systems), SQLite's own locks are all there is;
Windows lets nobody rename or delete an open file.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from typing import TYPE_CHECKING

from nbrun.core import StoreReadOnly, secure

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WAIT_S = 5.0
"""How long a process waits for its turn, which takes milliseconds unless another one has stopped in the middle."""
TRY_S = 0.002
COMPANIONS = ("-wal", "-shm")
"""What SQLite appends to a database's name for the files that belong to it."""

Identity = tuple[int, int]

_held = threading.local()
_guard = threading.Lock()  # of the two below
_uses: dict[tuple[str, Identity], Use] = {}
_descriptors: set[int] = set()


def identity(path: Path | str) -> Identity | None:
    """Return the device and the inode of a file; None if it doesn't exist."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep all other threads and processes from opening, closing or replacing a store in this folder.

    A thread may enter it again. Raises `sqlite3.OperationalError`, as for a locked database, if the turn does not come
    within `WAIT_S`.
    """
    folder = os.fspath(path.absolute().parent)
    held: set[str] = _held.__dict__.setdefault("folders", set())
    if folder in held:
        yield
        return
    descriptor = _lock_folder(folder)
    held.add(folder)
    try:
        yield
    finally:
        held.discard(folder)
        if descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if a child was forked meanwhile
            _close(descriptor)


def _lock_folder(folder: str) -> int | None:
    """Return the descriptor of a folder, locked; None where that is not possible."""
    if fcntl is None:
        return None
    until = time.monotonic() + WAIT_S
    while True:
        try:
            # The folder itself: there may be no right to make a file in it, and a process that dies lets go of it.
            descriptor = _open(folder, os.O_RDONLY)
        except OSError:
            return None
        while not (is_locked := _try_lock(descriptor, fcntl.LOCK_EX)) and time.monotonic() < until:
            time.sleep(TRY_S)
        found = os.fstat(descriptor)
        if is_locked and identity(folder) == (found.st_dev, found.st_ino):
            return descriptor
        _close(descriptor)
        if is_locked is None:  # a file system without such locks
            return None
        if time.monotonic() >= until:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error


def _try_lock(descriptor: int, kind: int) -> bool | None:
    """Return whether the lock was obtained; None if there are no such locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _open(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NOFOLLOW, stat.S_IRUSR | stat.S_IWUSR)
    _descriptors.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    _descriptors.discard(descriptor)
    os.close(descriptor)


class Use:
    """The use of a database file by this process: begun by its first connection to it, ended by the last one.

    All methods but `is_whole()` are called while `exclusive()` is held, which also keeps other threads out.
    """

    def __init__(self, path: Path, file: Identity) -> None:
        self._path = os.fspath(path)
        self._folder = f"{path}-lock"
        self._own = f"{self._folder}/{file[1]}"
        self.file = file
        self._place = path
        self._process = os.getpid()
        self._count = 0
        self._lock: int | None = None
        self._companions: dict[str, Identity] = {}

    @staticmethod
    def begin(path: Path, file: Identity) -> Use:
        """Return the use of this database, with one connection more."""
        key = (os.fspath(path), file)
        with _guard:
            use = _uses.get(key)
            if use is None:
                use = _uses[key] = Use(path, file)
            use._count += 1
        if use._lock is None:
            # Without the right to make it, or if it is another user's: SQLite's own locks must do.
            with contextlib.suppress(OSError, StoreReadOnly):
                use._begin()
        return use

    def _begin(self) -> None:
        if fcntl is None:
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._folder, stat.S_IRWXU)
        secure(self._place.with_name(os.path.basename(self._folder)))
        self._remove_unused()
        lock = _open(self._own, os.O_RDWR | os.O_CREAT)
        if _try_lock(lock, fcntl.LOCK_SH):
            self._lock = lock
        else:
            _close(lock)

    def _remove_unused(self) -> None:
        """Remove the entries of database files that nobody uses any more, as after a crash."""
        names = os.listdir(self._folder)
        for key in filter(str.isdigit, {name.partition("-")[0] for name in names}):
            lock = _open(f"{self._folder}/{key}", os.O_RDWR | os.O_CREAT)
            is_unused = _try_lock(lock, fcntl.LOCK_EX)
            _close(lock)
            if is_unused:
                for name in names:
                    if name.partition("-")[0] == key:
                        os.unlink(f"{self._folder}/{name}")

    def is_alone(self) -> bool:
        """Return whether no other process has the file open, as far as that can be known."""
        if self._process != os.getpid():  # forked: it is the parent's
            return False
        if self._lock is None:
            return True
        is_alone = bool(_try_lock(self._lock, fcntl.LOCK_EX))
        _try_lock(self._lock, fcntl.LOCK_SH)
        return is_alone

    def consent(self) -> bool:
        """Let others replace the file although it is open here; return whether they all do, so that it can be done."""
        is_alone = self.is_alone()
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        return is_alone

    # --- the journal -----------------------------------------------------------------------------

    def is_current(self) -> bool:
        """Return whether the database is still at its path, with the journal that those who use it have open."""
        return identity(self._path) == self.file and all(
            identity(self._own + part) in (None, identity(self._path + part)) for part in COMPANIONS
        )

    def is_in_place(self) -> bool:
        """Return whether file, journal and index are all where this process opened them."""
        return self.is_current() and self.is_whole()

    def is_whole(self) -> bool:
        """Return whether the journal and its index are still where they were."""
        return all(identity(self._path + part) == known for part, known in self._companions.items())

    def restore(self) -> bool:
        """Put this database's journal and index back, and remove another's; return whether that worked."""
        with contextlib.suppress(OSError):
            for part in COMPANIONS:
                name, own = self._path + part, self._own + part
                there, known = identity(name), identity(own)
                if known is not None and there != known:
                    spare = f"{own}-back"
                    os.link(own, spare)
                    os.replace(spare, name)
                elif known is None and there is not None and there in self._others(part):
                    os.unlink(name)
        return self.is_whole()

    def _others(self, part: str) -> set[Identity | None]:
        names = os.listdir(self._folder) if self._lock is not None else []
        return {identity(f"{self._folder}/{name}") for name in names if name.endswith(part)}

    def remember(self) -> bool:
        """Keep a second name for journal and index, by which they can be put back; return whether both are there."""
        for part in COMPANIONS:
            there = identity(self._path + part)
            if there is None:
                return False
            self._companions[part] = there
            if self._lock is not None and identity(self._own + part) is None:
                with contextlib.suppress(OSError):  # a file system without hard links
                    os.link(self._path + part, self._own + part)
        return True

    # --- the end ---------------------------------------------------------------------------------

    def end(self, close: Callable[[], None] | None = None) -> None:
        """Close one connection, by calling `close`; the journal stays if others have the file open."""
        with contextlib.ExitStack() as stack:
            is_alone = False
            with contextlib.suppress(sqlite3.OperationalError):  # no turn: somebody else may be opening it
                stack.enter_context(exclusive(self._place))
                is_alone = self.is_alone()
            with _guard:
                self._count -= 1
                is_last = self._count == 0
                if is_last:
                    _uses.pop((self._path, self.file), None)
            if close is not None:
                with self._keeping_journal() if is_last and not is_alone else contextlib.nullcontext():
                    close()
            if is_last and self._lock is not None:
                _close(self._lock)
                self._lock = None
                if is_alone:
                    with contextlib.suppress(OSError):
                        self._remove_unused()
                        os.rmdir(self._folder)

    @contextlib.contextmanager
    def _keeping_journal(self) -> Iterator[None]:
        """Keep SQLite from deleting the journal when the last connection of this process is closed."""
        # Source: it deletes the journal if it obtains an exclusive lock of the database. It does not while the process
        # has another connection, nor for a connection that can only read.
        reader = None
        if identity(self._path) == self.file:  # else SQLite sees for itself that it was moved
            with contextlib.suppress(sqlite3.Error):
                reader = sqlite3.connect(f"{self._place.absolute().as_uri()}?mode=ro", uri=True)
                reader.execute("PRAGMA schema_version").fetchone()
        try:
            yield
        finally:
            if reader is not None:
                reader.close()


def is_open_here(path: Path) -> bool:
    """Return whether this process has a connection to a database that is, or was, at this path."""
    with _guard:
        return any(name == os.fspath(path) for name, _file in _uses)


def _forget_all() -> None:
    """Let go, in a child that was forked, of what its parent has locked."""
    global _guard
    _guard = threading.Lock()
    _held.__dict__.clear()
    for use in _uses.values():
        use._lock = None
    _uses.clear()
    while _descriptors:
        _close(_descriptors.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
