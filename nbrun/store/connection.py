"""Safe SQLite connections to store files."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import sys
import time
from typing import TYPE_CHECKING

from nbrun.core import StoreDamaged, StoreReadOnly
from nbrun.store.schema import VERSION, check, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


BUSY_TIMEOUT_S = 1.0  # how long a connection waits for a lock, at most
TRY_MS = 5  # the time between two tries where SQLite itself does not wait
MAX_VALUE_BYTES = 64 * 1024 * 1024
"""The longest value that is written or read. Reading one takes several times its length in memory, so a planted file
could use up a laptop's with little more; an agent's text of this length is 40 novels."""
COMPANIONS = ("-wal", "-shm", "-journal")
"""What SQLite appends to the name of a file for those beside it."""

_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")

_inherited: set[tuple[int, int]] = set()  # files, by device and inode; empty unless this process was forked


def refuse_links(path: Path) -> None:
    """Raise `StoreReadOnly` if a store or a file that SQLite opens with it is a link, or may block its reader.

    So is a file that this process must not open, see `note_inherited()`.
    """
    if _inherited and path.exists() and _identity(path) in _inherited:
        raise StoreReadOnly(f"{path} was open in the process that this one was forked from")
    for part in (path, *(path.with_name(path.name + suffix) for suffix in COMPANIONS)):
        try:
            mode = part.lstat().st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(mode):
            raise StoreReadOnly(f"{part} is a symbolic link; nbrun does not write through it")
        if not stat.S_ISREG(mode):
            raise StoreReadOnly(f"{part} is not a regular file")
        if part.name.endswith("-journal") and _names_another(part):
            raise StoreReadOnly(f"{part} names another file, which SQLite would delete")


def note_inherited(path: Path) -> None:
    """Refuse to open this file from now on: there were connections to it when this process was forked.

    Source: SQLite takes locks once for a process and file, and a child believes that it has its parent's. What it
    writes is lost as soon as another process closes the file (measured: 3.40, WAL).
    """
    with contextlib.suppress(OSError):
        _inherited.add(_identity(path))


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _names_another(journal: Path) -> bool:
    """Return whether a rollback journal ends with the name of another file, as ours never do."""
    # Source: SQLite deletes the file of that name, whatever it is, after a rollback.
    try:
        with journal.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(_JOURNAL_MAGIC)))
            return file.read() == _JOURNAL_MAGIC
    except FileNotFoundError:  # another kernel has just deleted it
        return False


def _make(path: Path) -> None:
    """Make an empty file for its owner only: SQLite would apply the umask, and -wal and -shm take its mode."""
    # An existing file is not even opened. Source: POSIX drops all of a process's locks on a file when it closes any
    # descriptor of it, and another connection of this process may have some.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR))


def connect(path: Path | None, *, create: bool = False, wait_s: float | None = None) -> sqlite3.Connection:
    """Return a connection that reads and, if the file allows it, writes; `None` is memory.

    It waits for a lock for `wait_s`, by default and at most `BUSY_TIMEOUT_S`. Raises `StoreReadOnly`, `StoreDamaged`,
    `sqlite3.Error` or `OSError` if the file cannot be opened.
    """
    if path is None:
        connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    else:
        refuse_links(path)
        if _is_emptied(path):
            raise StoreDamaged(f"{path} is empty, but its journal is not")
        if create:
            _make(path)
            if not os.access(path, os.W_OK):  # SQLite would open it for reading, silently
                raise StoreReadOnly(f"{path} is read-only")
        connection = sqlite3.connect(
            # rw: a file that is gone must not be made again by a reader
            f"{path.absolute().as_uri()}?mode=rw", uri=True,
            timeout=BUSY_TIMEOUT_S if wait_s is None else min(wait_s, BUSY_TIMEOUT_S),
            check_same_thread=False, isolation_level=None,
        )  # fmt: skip
    set_limits(connection)
    return connection


def set_limits(connection: sqlite3.Connection) -> None:
    """Limit what a file made by somebody else can do to the one who opens it."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.text_factory = _text
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE)
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")


def _text(stored: bytes) -> str:
    """Return a text, with replacement characters for what is not UTF-8."""
    return stored.decode("utf-8", "replace")


def _is_emptied(path: Path) -> bool:
    """Return whether the database is empty and its journal is not: SQLite would delete the journal."""
    try:
        if path.stat().st_size > 0:
            return False
        return path.with_name(f"{path.name}-wal").stat().st_size > 0
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is written within, or nothing; no other connection writes meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def open_for_writing(path: Path | None, now: float = 0.0, wait_s: float | None = None) -> sqlite3.Connection:
    """Return a connection to a file with our tables, made or migrated if necessary; `now` is in epoch seconds.

    `wait_s` is as in `connect()`. Raises `StoreTooNew` if a newer nbrun made the file, `StoreReadOnly` if it has
    tables, triggers or views that are not ours, `StoreDamaged` if it is not a database.
    """
    connection = connect(path, create=path is not None, wait_s=wait_s)
    try:
        # Before anything is written; setting the journal mode is a write as well.
        check(connection, path)
        if path is not None:
            # WAL lets readers read while we write; where it is not supported, SQLite keeps its rollback journal.
            _switch_to_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        version = check(connection, path)
        migrate(connection, version, now)
        connection.execute("COMMIT")
        if path is not None and version < VERSION:
            # Into the file itself, which must be recognisable by its header whatever is in the journal.
            connection.execute("PRAGMA wal_checkpoint")
    except sqlite3.DatabaseError as error:
        connection.close()
        if "not a database" in str(error) or "malformed" in str(error):
            raise StoreDamaged(f"{path} is not a usable database ({error})") from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Set the journal mode, retrying for as long as the connection waits for locks elsewhere."""
    # Source: SQLite does not wait for a lock here, because two processes might wait for each other.
    (patience_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute("PRAGMA busy_timeout = 0")
    for left in reversed(range(patience_ms // TRY_MS + 1)):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if not left or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        time.sleep(TRY_MS / 1000)
    connection.execute(f"PRAGMA busy_timeout = {patience_ms}")
