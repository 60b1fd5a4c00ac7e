"""The tables of the session store: made, migrated and checked.

Times are integer microseconds since the epoch (UTC). `events.data` is MessagePack; consecutive text deltas
share a row (`count` > 1), see `payloads`.

A new version only adds tables, columns and indexes, so an older file is migrated by running the new statements; new
files are made by the same ones, so both have the same schema text. `versions` has the time of each migration.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from nbrun.core import LIVE, StoreReadOnly, StoreTooNew
from nbrun.store.validation import LATEST_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
    # Which file the session writes to: a copy of it has another inode.
    """CREATE TABLE homes (
  session INTEGER PRIMARY KEY REFERENCES sessions (key),
  device INTEGER NOT NULL,
  inode INTEGER NOT NULL
)""",
    # Which run a run comes from: `kind` is resume, retry, replay or continue.
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

# Copies of what the brief record says, for queries; `agent` is NULL until they are filled in.
_THIRD = (
    "ALTER TABLE runs ADD COLUMN parent TEXT",
    "ALTER TABLE runs ADD COLUMN agent TEXT",
    "ALTER TABLE runs ADD COLUMN model TEXT",
    "ALTER TABLE runs ADD COLUMN ended_at INTEGER",
    "CREATE INDEX runs_by_parent ON runs (session, parent) WHERE parent IS NOT NULL",
    "CREATE INDEX runs_to_fill ON runs (number) WHERE agent IS NULL",
)

# NULL where nothing shows that this user's nbrun wrote the run, or its checkpoint; see `signing`.
_FOURTH = ("ALTER TABLE runs ADD COLUMN signature BLOB", "ALTER TABLE checkpoints ADD COLUMN signature BLOB")

# Sets of runs: `size` inputs so far, all of them if `is_whole`; `stopped` says why the rest of them won't be run. Each
# run of a set, and all below it, name the set; only its own have a position, which is that of their input.
_FIFTH = (
    """CREATE TABLE sets (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  session_id TEXT NOT NULL,
  set_id TEXT NOT NULL UNIQUE,
  created_at INTEGER NOT NULL,
  ended_at INTEGER,
  size INTEGER NOT NULL,
  is_whole INTEGER NOT NULL,
  stopped TEXT,
  header BLOB NOT NULL
)""",
    """CREATE TABLE items (
  in_set INTEGER NOT NULL REFERENCES sets (number),
  position INTEGER NOT NULL,
  key TEXT,
  prompt TEXT NOT NULL,
  PRIMARY KEY (in_set, position)
) WITHOUT ROWID""",
    "CREATE UNIQUE INDEX items_by_key ON items (in_set, key) WHERE key IS NOT NULL",
    "ALTER TABLE runs ADD COLUMN in_set INTEGER",
    "ALTER TABLE runs ADD COLUMN position INTEGER",
    "CREATE INDEX runs_by_set ON runs (in_set, position) WHERE in_set IS NOT NULL",
)

# How the output of a run of a set was scored; as `sessions/scoring` has it.
_SIXTH = ("ALTER TABLE runs ADD COLUMN score BLOB",)

LIVE_STATUSES = ", ".join(f"'{status}'" for status in LIVE)
"""For a query that is to use the index of live runs: SQLite needs its words there as they are in the index."""

VERSIONS = (
    _FIRST,
    _SECOND,
    _THIRD,
    _FOURTH,
    _FIFTH,
    _SIXTH,
)  # what each version of the schema added, the first one first
VERSION = len(VERSIONS)

MAX_NUMBER = 2**53
"""Run numbers end here: JavaScript has no greater ones, and SQLite none after 2**63."""
MAX_RECORD_BYTES = 65_536
"""The longest brief record that is read; ours are shorter, and a list reads one for each run."""

_FILL_ROWS = 1_000


class _Columns(msgspec.Struct):
    """The fields of a brief record that have columns of their own."""

    agent: str = ""
    model: str | None = None
    parent_id: str | None = None
    ended_at: float | None = None


_columns_decoder = msgspec.msgpack.Decoder(_Columns)


def number_above(connection: sqlite3.Connection, number: int) -> None:
    """Set new runs to be numbered from above `number`."""
    # Source: an AUTOINCREMENT column continues from `sqlite_sequence`, whose rows may be written.
    changed = connection.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'runs'", (number,))
    if not changed.rowcount:
        connection.execute("INSERT INTO sqlite_sequence VALUES ('runs', ?)", (number,))


def _greatest_number(connection: sqlite3.Connection) -> int:
    """Return the greatest number that a run has had; 0 if there is something else in its place."""
    row = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'runs'").fetchone()
    return row[0] if isinstance(row[0], int) else 0


def migrate(connection: sqlite3.Connection, version: int, now: float) -> None:
    """Add what a file of this version lacks; the caller has a transaction open."""
    for number, statements in enumerate(VERSIONS[version:], version + 1):
        for statement in statements:
            connection.execute(statement)
        if number > 1:  # the first version had no table for it
            connection.execute("INSERT INTO versions VALUES (?, ?)", (number, round(now * 1_000_000)))
    if version < VERSION:
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    fill_columns(connection)


def fill_columns(connection: sqlite3.Connection) -> None:
    """Fill in the columns of runs that an older version wrote; the caller has a transaction open.

    That version may still be running in another kernel, so there may be such runs at any time.
    """
    number = -1
    while True:
        rows = connection.execute(
            "SELECT number, CASE WHEN typeof(record) = 'blob' AND length(record) <= ? THEN record END"
            " FROM runs INDEXED BY runs_to_fill WHERE agent IS NULL AND number > ? ORDER BY number LIMIT ?",
            (MAX_RECORD_BYTES, number, _FILL_ROWS),
        ).fetchall()
        if not rows:
            return
        connection.executemany(
            "UPDATE runs SET agent = ?, model = ?, parent = ?, ended_at = ? WHERE number = ?",
            [(*_columns(blob), key) for key, blob in rows],
        )
        number = rows[-1][0]


def _columns(blob: bytes | None) -> tuple[str, str | None, str | None, int | None]:
    """Return the columns for a brief record; no agent, and nothing else, if it cannot be read."""
    try:
        found = _columns_decoder.decode(blob or b"")
    except (msgspec.DecodeError, RecursionError):
        found = _Columns()
    ended_at = found.ended_at
    if ended_at is None or not 0 <= ended_at <= LATEST_S:
        return found.agent, found.model, found.parent_id, None
    return found.agent, found.model, found.parent_id, round(ended_at * 1_000_000)


@lru_cache(maxsize=VERSION)
def schema_of(version: int) -> frozenset[str]:
    """Return the text of all tables and indexes in a file of this version, as SQLite stores it."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statements in VERSIONS[:version]:
            for statement in statements:
                connection.execute(statement)
        return frozenset(_texts(connection))


def _texts(connection: sqlite3.Connection) -> Iterator[str]:
    for (sql,) in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL"):
        yield sql


def check(connection: sqlite3.Connection, path: Path | None) -> int:
    """Return the version of a file with exactly our schema, 0 if empty; or raise `StoreTooNew` or `StoreReadOnly`."""
    # In one statement, which sees one state of the file: another process may be migrating it just now.
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
    if version and (greatest := _greatest_number(connection)) > MAX_NUMBER:
        raise StoreReadOnly(f"the run numbers of {path} are used up (#{greatest}), so nbrun does not write to it")
    ours = schema_of(max(version, 1))
    if found != ours:
        strange = sorted(" ".join(str(sql).split()[:3]) for sql in found - ours)
        what = ", ".join(strange) or "missing tables"
        raise StoreReadOnly(f"{path} is not exactly a store of nbrun ({what}), so nbrun does not write to it")
    return version
