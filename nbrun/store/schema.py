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

BUSY_TIMEOUT_S = 1.0
TRY_MS = 5
"""What lies between two tries where SQLite itself does not wait."""
MAX_VALUE_BYTES = 256 * 1024 * 1024


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
        if path.is_symlink():
            raise StoreReadOnly(f"{path} is a symbolic link; nbrun does not write through it")
        if _is_emptied(path):
            raise StoreDamaged(f"{path} is empty, and its journal is not")
        if create:
            # SQLite would make it by the umask; its -wal and -shm files take the mode of this one. Not where it is
            # there: closing a file that this process has open elsewhere would give up the locks on it.
            with contextlib.suppress(FileExistsError):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
                os.close(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR))
            if not os.access(path, os.W_OK):  # SQLite would open it to be read, and say nothing
                raise StoreReadOnly(f"{path} may only be read")
        connection = sqlite3.connect(
            # rw: a file that is gone must not come back empty because somebody looked for it
            f"{path.absolute().as_uri()}?mode=rw", uri=True,
            timeout=BUSY_TIMEOUT_S if wait_s is None else min(wait_s, BUSY_TIMEOUT_S),
            check_same_thread=False, isolation_level=None,
        )  # fmt: skip
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


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
        _bring_up(connection, _check(connection, path), now)
        connection.execute("COMMIT")
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
    if strange or ours - found:
        what = ", ".join(sorted(" ".join(sql.split()[:3]) for sql in strange)) or "missing tables"
        raise StoreReadOnly(
            f"{path} is not as nbrun makes its stores ({what}); it is not written to"
        )
    return version
