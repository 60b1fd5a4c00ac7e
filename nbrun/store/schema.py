"""The tables of the session store, and opening a file so that they are there and ours.

Times are integer microseconds since the epoch (UTC). `events.data` is MessagePack; consecutive text deltas
share a row (`count` > 1), see `deltas`.

A new version adds tables and indexes and changes none, so that going up is running the statements that are new;
`versions` says when that was done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbrun.core.errors import StoreReadOnly, StoreTooNew

if TYPE_CHECKING:
    import sqlite3
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

"""What lies between two tries where SQLite itself does not wait."""
"""The longest value that is written or read. Reading one takes several times its length in memory, so that a
planted file could use up a laptop's with little more; an agent's text of this length is 40 novels."""

"""What SQLite keeps beside a file."""


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


def bring_up(connection: sqlite3.Connection, version: int, now: float) -> None:
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


def check(connection: sqlite3.Connection, path: Path | None) -> int:
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
