"""Safe SQLite connections to store files."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import sys
import time
from typing import TYPE_CHECKING

from nbrun.core import StoreDamaged, StoreReadOnly, secure
from nbrun.store.location import FOLDER
from nbrun.store.locks import COMPANIONS, Identity, Use, exclusive, identity
from nbrun.store.schema import VERSION, check, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


BUSY_TIMEOUT_S = 1.0  # how long a connection waits for a lock, at most
TRIES, TRY_S = 800, 0.0005  # how often, and how far apart, a writer among many tries again to begin a transaction
TRY_MS = 5  # the time between two tries where SQLite itself does not wait
MAX_VALUE_BYTES = 64 * 1024 * 1024
"""The longest value that is written or read. Reading one takes several times its length in memory, so a planted file
could use up a laptop's with little more; an agent's text of this length is 40 novels."""
OPEN_TRIES = 5
"""How often a file is opened that is replaced at the same moment, by a program that does not wait for its turn."""

_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")

_inherited: set[Identity] = set()  # files; empty unless this process was forked


def refuse_links(path: Path, *, tightens: bool = False) -> None:
    """Raise `StoreReadOnly` if a store or what SQLite opens with it is a link, another user's, or may block its reader.

    So is a file that this process must not open, see `note_inherited()`. With `tightens`, group and others lose their
    rights to all of them, which they have after a clone or a copy.
    """
    if _inherited and identity(path) in _inherited:
        raise StoreReadOnly(f"{path} was open in the process that this one was forked from")
    if path.parent.name == FOLDER:
        secure(path.parent, tightens=False)
    for suffix in ("", *COMPANIONS, "-journal", "-lock"):
        part = path.with_name(path.name + suffix)
        found = secure(part, tightens=tightens)
        if found is None:
            continue
        if not stat.S_ISREG(found.st_mode) and suffix != "-lock":
            raise StoreReadOnly(f"{part} is not a regular file")
        if part.name.endswith("-journal") and _names_another(part):
            raise StoreReadOnly(f"{part} names another file, which SQLite would delete")


def note_inherited(path: Path) -> None:
    """Refuse to open this file from now on: there were connections to it when this process was forked.

    Source: SQLite takes locks once for a process and file, and a child believes that it has its parent's. What it
    writes is lost as soon as another process closes the file (measured: 3.40, WAL).
    """
    file = identity(path)
    if file is not None:
        _inherited.add(file)


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


class _Replaced(sqlite3.OperationalError):
    """The file was replaced while it was being opened; `code` is SQLite's for what that is like."""

    def __init__(self, path: Path | None, code: int = sqlite3.SQLITE_BUSY) -> None:
        super().__init__(f"{path} is gone, or is being replaced")
        self.sqlite_errorcode = code


class Connection(sqlite3.Connection):
    """A connection that ends its use of the file when it is closed; `use` is None in memory."""

    use: Use | None = None

    def close(self) -> None:
        """Close it; the journal stays while others have the file open."""
        use, self.use = self.use, None
        if use is None:
            super().close()
        else:
            use.end(super().close)


def _make(path: Path) -> None:
    """Make an empty file for its owner only: SQLite would apply the umask, and -wal and -shm take its mode."""
    # An existing file is not even opened. Source: POSIX drops all of a process's locks on a file when it closes any
    # descriptor of it, and another connection of this process may have some.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        os.close(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR))
    except FileExistsError:
        return
    for suffix in COMPANIONS:  # those of a file that is gone: SQLite would take them for the new one's
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")


def connect(path: Path | None, *, create: bool = False, wait_s: float | None = None) -> Connection:
    """Return a connection that reads and, if the file allows it, writes; `None` is memory.

    It waits for a lock for `wait_s`, by default and at most `BUSY_TIMEOUT_S`. Raises `StoreReadOnly`, `StoreDamaged`,
    `sqlite3.Error` or `OSError` if the file cannot be opened.
    """
    if path is None:
        connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None, factory=Connection)
        set_limits(connection)
        return connection
    wait_s = BUSY_TIMEOUT_S if wait_s is None else min(wait_s, BUSY_TIMEOUT_S)
    with exclusive(path):
        for _ in range(OPEN_TRIES):
            found = _connect(path, create, wait_s)
            if found is not None:
                return found
    raise _Replaced(path)


def _connect(path: Path, create: bool, wait_s: float) -> Connection | None:
    """Return a connection, or None if the file or its journal was replaced meanwhile."""
    refuse_links(path, tightens=create)
    if create:
        _make(path)
        if not os.access(path, os.W_OK) and path.exists():  # SQLite would open it for reading, silently
            raise StoreReadOnly(f"{path} is read-only")
    file = identity(path)
    if file is None and create:
        return None
    if file is None:  # a file that is gone must not be made again by a reader
        raise _Replaced(path, sqlite3.SQLITE_CANTOPEN)
    use = Use.begin(path, file)
    connection = None
    try:
        use.restore()
        _refuse_emptied(path)
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=wait_s,
            check_same_thread=False, isolation_level=None, factory=Connection,
        )  # fmt: skip
        set_limits(connection)
        connection.execute("PRAGMA schema_version").fetchone()  # opens the journal
    except BaseException as error:
        is_current = use.is_current()
        use.end(None if connection is None else connection.close)
        if is_current or not isinstance(error, sqlite3.Error | StoreDamaged):
            raise
        return None
    connection.use = use
    if _remember_journal(connection):
        return connection
    connection.close()
    return None


def _remember_journal(connection: Connection) -> bool:
    """Have the journal kept that the connection has opened; return False if it is gone or replaced already."""
    if connection.use is None:
        return True
    if not connection.use.is_current():
        return False
    return connection.use.remember() or connection.execute("PRAGMA journal_mode").fetchone() != ("wal",)


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


def _refuse_emptied(path: Path) -> None:
    """Raise `StoreDamaged` if the database is empty and its journal is not: SQLite would delete the journal."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size == 0 < path.with_name(f"{path.name}-wal").stat().st_size:
            raise StoreDamaged(f"{path} is empty, but its journal is not")


def begin(connection: sqlite3.Connection) -> None:
    """Begin a transaction that writes, as soon as no other connection writes."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        _begin_among_many(connection, error)


def _begin_among_many(connection: sqlite3.Connection, error: sqlite3.OperationalError) -> None:
    """Begin where SQLite has waited in vain, perhaps not for a lock that stays but among many writers."""
    # Source: SQLite's tries are up to 0.1 s apart, so among four busy writers about one in ten thousand finds no free
    # moment within a second, and more within half of one. The pauses between their commits are short, too.
    (waited_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    if waited_ms < TRIES * TRY_S * 1000:  # the lock is known: do not wait again
        raise error
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        for left in reversed(range(TRIES)):
            time.sleep(TRY_S)
            try:
                connection.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError:
                if not left:
                    raise
    finally:
        connection.execute(f"PRAGMA busy_timeout = {waited_ms}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is written within, or nothing; no other connection writes meanwhile."""
    begin(connection)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def open_for_writing(path: Path | None, now: float = 0.0, wait_s: float | None = None) -> Connection:
    """Return a connection to a file with our tables, made or migrated if necessary; `now` is in epoch seconds.

    `wait_s` is as in `connect()`. Raises `StoreTooNew` if a newer nbrun made the file, `StoreReadOnly` if it has
    tables, triggers or views that are not ours, `StoreDamaged` if it is not a database.
    """
    with contextlib.nullcontext() if path is None else exclusive(path):
        try:
            for _ in range(OPEN_TRIES):
                connection = connect(path, create=path is not None, wait_s=wait_s)
                if _prepare(connection, path, now):
                    return connection
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error) or "malformed" in str(error):
                raise StoreDamaged(f"{path} is not a usable database ({error})") from error
            raise
    raise _Replaced(path)


def _prepare(connection: Connection, path: Path | None, now: float) -> bool:
    """Make or migrate the tables; if that fails, close it, and return False if the file was replaced meanwhile."""
    try:
        # Before anything is written; setting the journal mode is a write as well.
        check(connection, path)
        if path is not None:
            # WAL lets readers read while we write; where it is not supported, SQLite keeps its rollback journal.
            _switch_to_wal(connection)
            if not _remember_journal(connection):
                connection.close()
                return False
        connection.execute("PRAGMA synchronous = NORMAL")
        begin(connection)
        version = check(connection, path)
        migrate(connection, version, now)
        connection.execute("COMMIT")
        if path is not None and version < VERSION:
            # Into the file itself, which must be recognisable by its header whatever is in the journal.
            connection.execute("PRAGMA wal_checkpoint")
    except BaseException as error:
        is_in_place = connection.use is None or connection.use.is_in_place()
        connection.close()
        if is_in_place or not isinstance(error, sqlite3.Error):
            raise
        return False
    return True


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
