"""The tables of the session store, and opening a file so that they are there and ours.

Times are integer microseconds since the epoch (UTC). `events.data` is MessagePack; consecutive text deltas
share a row (`count` > 1), see `deltas`.

A new version adds tables and indexes and changes none, so that going up is running the statements that are new;
`versions` says when that was done.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import sys
import time
from typing import TYPE_CHECKING

from nbrun.errors import StoreDamaged, StoreReadOnly, StoreTooNew

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = ".nbrun"
APPLICATION_ID = 0x6E62726E  # "nbrn"

_FIRST = (
    """CREATE TABLE sessions (
  key INTEGER PRIMARY KEY,
  session_id TEXT NOT NULL UNIQUE,
  notebook TEXT,
  host TEXT NOT NULL,
  boot_id TEXT NOT NULL,
  pid_namespace TEXT NOT NULL,
  pid INTEGER NOT NULL,
  process_started_at INTEGER NOT NULL,
  started_at INTEGER NOT NULL,
  heartbeat_at INTEGER NOT NULL,
  closed_at INTEGER
)""",
    """CREATE TABLE runs (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  session INTEGER NOT NULL REFERENCES sessions (key),
  run_id TEXT NOT NULL,
  name TEXT NOT NULL,
  status TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  inputs TEXT,
  record BLOB NOT NULL,
  UNIQUE (session, run_id)
)""",
    "CREATE INDEX runs_by_run_id ON runs (run_id)",
    "CREATE INDEX runs_by_status ON runs (status) WHERE status IN ('queued', 'running', 'waiting', 'cancelling')",
    """CREATE TABLE events (
  key INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES runs (number),
  seq INTEGER NOT NULL,
  count INTEGER NOT NULL,
  ts INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  parent TEXT,
  type TEXT NOT NULL,
  data BLOB NOT NULL
)""",
    "CREATE UNIQUE INDEX events_by_run ON events (run, seq)",
    """CREATE TABLE checkpoints (
  run INTEGER PRIMARY KEY REFERENCES runs (number),
  seq INTEGER NOT NULL,
  ts INTEGER NOT NULL,
  state BLOB NOT NULL
)""",
)
_SECOND = (
    """CREATE TABLE versions (
  version INTEGER PRIMARY KEY,
  made_at INTEGER NOT NULL
)""",
    # Which file the session wrote to: a copy of it has another inode.
    """CREATE TABLE homes (
  session INTEGER PRIMARY KEY REFERENCES sessions (key),
  device INTEGER NOT NULL,
  inode INTEGER NOT NULL
)""",
    # What a run goes on from: `kind` is resume, retry, replay or continue.
    """CREATE TABLE origins (
  run INTEGER PRIMARY KEY REFERENCES runs (number),
  origin INTEGER NOT NULL,
  kind TEXT NOT NULL
)""",
    "CREATE INDEX origins_by_origin ON origins (origin)",
    # Files beside the database, named by their hash; several rows may share one.
    """CREATE TABLE artifacts (
  key INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES runs (number),
  id TEXT NOT NULL,
  name TEXT NOT NULL,
  media_type TEXT NOT NULL,
  size INTEGER NOT NULL,
  sha256 TEXT NOT NULL,
  made_at INTEGER NOT NULL,
  UNIQUE (run, id)
)""",
    "CREATE INDEX artifacts_by_sha256 ON artifacts (sha256)",
)

VERSIONS = (_FIRST, _SECOND)
"""What each version of the schema has added, the first one first."""
VERSION = len(VERSIONS)

MAX_NUMBER = 2**53
"""Run numbers end here: a page writes no greater ones, and SQLite has none after 2**63."""

BUSY_TIMEOUT_S = 1.0
TRY_MS = 5
"""What lies between two tries where SQLite itself does not wait."""
MAX_VALUE_BYTES = 64 * 1024 * 1024
"""The longest value that is written or read. Reading one takes several times its length in memory, so that a
planted file could use up a laptop's with little more; an agent's text of this length is 40 novels."""

_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
COMPANIONS = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a file."""


def prepare_folder(folder: Path) -> None:
    """Make the store's folder: 0700, and with a `.gitignore` of its own, since runs hold prompts.

    Raises
    ------
    OSError
        It cannot be made or written.
    StoreReadOnly
        It is a link to somewhere else.
    """
    if folder.is_symlink():
        raise StoreReadOnly(f"{folder} is a symbolic link; nbrun does not write through it")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if folder.name == FOLDER and not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")


def refuse_links(path: Path) -> None:
    """See to it that a store, and what SQLite opens with it unasked, are files of their own or not there.

    Raises
    ------
    StoreReadOnly
        One of them leads somewhere else, or would keep us waiting.
    """
    for part in (path, *(path.with_name(path.name + suffix) for suffix in COMPANIONS)):
        try:
            mode = part.lstat().st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(mode):
            raise StoreReadOnly(f"{part} is a symbolic link; nbrun does not write through it")
        if not stat.S_ISREG(mode):
            raise StoreReadOnly(f"{part} is no file")
        if part.name.endswith("-journal") and _names_another(part):
            raise StoreReadOnly(f"{part} names another file, which SQLite would delete")


def _names_another(journal: Path) -> bool:
    """Return whether a rollback journal ends with the name of another one, as those of attached files do.

    Ours never do. Source: SQLite deletes a file of that name, whatever it is, when it has rolled back.
    """
    try:
        with journal.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(_JOURNAL_MAGIC)))
            return file.read() == _JOURNAL_MAGIC
    except FileNotFoundError:  # another kernel has just done with it
        return False


def _make(path: Path) -> None:
    """Make an empty file for its owner only; SQLite would go by the umask, and -wal and -shm take its mode.

    One that is there is not even opened: closing it would take away the locks that another connection of
    this process has on it.

    Source: POSIX drops all of a process's locks on a file when it closes any descriptor of it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR))


def connect(
    path: Path | None, *, create: bool = False, wait_s: float | None = None
) -> sqlite3.Connection:
    """Return a connection that reads and, where the file allows it, writes; `None` is memory.

    Parameters
    ----------
    wait_s : how long it waits for a lock, at most and if not given `BUSY_TIMEOUT_S`.

    Raises
    ------
    StoreReadOnly, StoreDamaged, sqlite3.Error, OSError
        The file cannot be opened.
    """
    if path is None:
        connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    else:
        refuse_links(path)
        if _is_emptied(path):
            raise StoreDamaged(f"{path} is empty, and its journal is not")
        if create:
            _make(path)
            if not os.access(path, os.W_OK):  # SQLite would open it to be read, and say nothing
                raise StoreReadOnly(f"{path} may only be read")
        connection = sqlite3.connect(
            # rw: a file that is gone must not come back empty because somebody looked for it
            f"{path.absolute().as_uri()}?mode=rw", uri=True,
            timeout=BUSY_TIMEOUT_S if wait_s is None else min(wait_s, BUSY_TIMEOUT_S),
            check_same_thread=False, isolation_level=None,
        )  # fmt: skip
    set_limits(connection)
    return connection


def set_limits(connection: sqlite3.Connection) -> None:
    """Bound what a file that somebody else made can do to who opens it."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.text_factory = _text
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE)
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")


def _text(stored: bytes) -> str:
    """Return a text; where it is none in UTF-8, with signs for what cannot be read."""
    return stored.decode("utf-8", "replace")


def _is_emptied(path: Path) -> bool:
    """Return whether the database was cut to nothing beside a journal that is full.

    SQLite would take it for a new one, and delete the journal.
    """
    try:
        if path.stat().st_size > 0:
            return False
        return path.with_name(f"{path.name}-wal").stat().st_size > 0
    except FileNotFoundError:
        return False


def open_for_writing(
    path: Path | None, now: float = 0.0, wait_s: float | None = None
) -> sqlite3.Connection:
    """Return a connection to a file that has our tables, made where they are missing.

    Parameters
    ----------
    now : epoch seconds; what `versions` notes.
    wait_s : how long to wait for a lock, as in `connect()`.

    Raises
    ------
    StoreTooNew
        A newer nbrun made it.
    StoreReadOnly
        It holds tables, triggers or views that are not ours; nothing is written to it.
    StoreDamaged
        It is no database.
    """
    connection = connect(path, create=path is not None, wait_s=wait_s)
    try:
        # Before anything is written: the journal's mode is a write as well.
        _check(connection, path)
        if path is not None:
            # WAL lets readers go on while we write; where it cannot be had, SQLite stays with its journal.
            _switch_to_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        version = _check(connection, path)
        _bring_up(connection, version, now)
        connection.execute("COMMIT")
        if path is not None and version < VERSION:
            # Into the file itself: it is known by its head, also while all else stands in the journal only.
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
    """Set the journal's mode, as soon as no other process is in the way.

    Source: SQLite does not wait for a lock when it changes this, since two that do so at once might wait for each
    other; it says "locked". So it is tried again, for as long as the connection waits for locks elsewhere.
    """
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


def number_above(connection: sqlite3.Connection, number: int) -> None:
    """Have the runs that are to come numbered from above `number`.

    Source: an AUTOINCREMENT column goes on from `sqlite_sequence`, whose ordinary rows may be written.
    """
    changed = connection.execute(
        "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'runs'", (number,)
    )
    if not changed.rowcount:
        connection.execute("INSERT INTO sqlite_sequence VALUES ('runs', ?)", (number,))


def _greatest_number(connection: sqlite3.Connection) -> int:
    """Return the greatest number that a run has had; 0 where something else stands in its place."""
    row = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'runs'").fetchone()
    return row[0] if isinstance(row[0], int) else 0


def _bring_up(connection: sqlite3.Connection, version: int, now: float) -> None:
    """Make the tables that a file of this version lacks; the caller has a transaction open."""
    for number, statements in enumerate(VERSIONS[version:], version + 1):
        for statement in statements:
            connection.execute(statement)
        if number > 1:  # the first version had no table for it
            connection.execute(
                "INSERT INTO versions VALUES (?, ?)", (number, round(now * 1_000_000))
            )
    if version < VERSION:
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _check(connection: sqlite3.Connection, path: Path | None) -> int:
    """Return the version of a file that is as we make them, 0 for an empty one.

    Raises
    ------
    StoreTooNew, StoreReadOnly
        It is anything else.
    """
    # In one statement, which sees one state of the file: another process may be bringing it up just now.
    rows = connection.execute(
        "SELECT sql, (SELECT user_version FROM pragma_user_version) FROM sqlite_schema WHERE sql IS NOT NULL"
    ).fetchall()
    if not rows:
        return 0
    found = {row[0] for row in rows}
    version: int = rows[0][1]
    if version > VERSION:
        raise StoreTooNew(
            f"{path} was made by a newer nbrun (schema {version}, this one knows {VERSION}); update nbrun"
        )
    ours = {sql for statements in VERSIONS[: max(version, 1)] for sql in statements}
    strange = found - ours - {"CREATE TABLE sqlite_sequence(name,seq)"}
    if version and (greatest := _greatest_number(connection)) > MAX_NUMBER:
        raise StoreReadOnly(
            f"the run numbers of {path} are used up (#{greatest}); it is not written to"
        )
    if strange or ours - found:
        what = ", ".join(sorted(" ".join(sql.split()[:3]) for sql in strange)) or "missing tables"
        raise StoreReadOnly(
            f"{path} is not as nbrun makes its stores ({what}); it is not written to"
        )
    return version
