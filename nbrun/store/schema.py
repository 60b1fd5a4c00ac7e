"""The tables of the session store, and opening a file so that they are there and ours.

Times are integer microseconds since the epoch (UTC). `events.data` is MessagePack; consecutive text deltas
share a row (`count` > 1), see `deltas`.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from typing import TYPE_CHECKING

from nbrun.errors import StoreDamaged, StoreReadOnly, StoreTooNew

if TYPE_CHECKING:
    from pathlib import Path

VERSION = 1
FOLDER = ".nbrun"
APPLICATION_ID = 0x6E62726E  # "nbrn"

DDL = (
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

BUSY_TIMEOUT_S = 1.0
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


def connect(path: Path | None, *, create: bool = False) -> sqlite3.Connection:
    """Return a connection that reads and, where the file allows it, writes; `None` is memory.

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
        if create:
            # SQLite would make it by the umask; its -wal and -shm files take the mode of this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, stat.S_IRUSR | stat.S_IWUSR))
        connection = sqlite3.connect(
            # rw: a file that is gone must not come back empty because somebody looked for it
            f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S,
            check_same_thread=False, isolation_level=None,
        )  # fmt: skip
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def open_for_writing(path: Path | None) -> sqlite3.Connection:
    """Return a connection to a file that has our tables, made if the file is new.

    Raises
    ------
    StoreTooNew
        A newer nbrun made it.
    StoreReadOnly
        It holds tables, triggers or views that are not ours; nothing is written to it.
    StoreDamaged
        It is no database.
    """
    connection = connect(path, create=path is not None)
    try:
        # Before anything is written: the journal's mode is a write as well.
        _has_tables(connection, path)
        if path is not None:
            # WAL lets readers go on while we write; where it cannot be had, SQLite stays with its journal.
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        if not _has_tables(connection, path):
            _make_tables(connection)
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


def _make_tables(connection: sqlite3.Connection) -> None:
    for statement in DDL:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _has_tables(connection: sqlite3.Connection, path: Path | None) -> bool:
    """Return whether our tables are there, False for an empty file; raise where anything else is."""
    found = {
        row[0] for row in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")
    }
    if not found:
        return False
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise StoreTooNew(
            f"{path} was made by a newer nbrun (schema {version}, this one knows {VERSION}); update nbrun"
        )
    strange = found - set(DDL) - {"CREATE TABLE sqlite_sequence(name,seq)"}
    if strange or set(DDL) - found:
        what = ", ".join(sorted(" ".join(sql.split()[:3]) for sql in strange)) or "missing tables"
        raise StoreReadOnly(
            f"{path} is not as nbrun makes its stores ({what}); it is not written to"
        )
    return True
