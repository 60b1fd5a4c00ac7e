"""Reading a file that must not be written to: a newer version's, write-protected, or changed by somebody else."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from nbrun.core import StoreDamaged, StoreError, StoreReadOnly
from nbrun.store import schema
from nbrun.store.connection import BUSY_TIMEOUT_S, refuse_links, set_limits
from nbrun.store.locks import exclusive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEP = 100_000
MAX_STEPS = 2_000
"""How much work one connection may do, in SQLite's instructions: a few seconds. There may be no index."""

_WANTED = ("sessions", "runs", "events")
_READS = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_FUNCTION,  # those of our own queries; an untrusted schema may call harmless ones only
        sqlite3.SQLITE_RECURSIVE,
        sqlite3.SQLITE_TRANSACTION,
    }
)


def examine(path: Path, error: Exception, words: str) -> tuple[str, int | None]:
    """Return how to describe a file that was rejected because of `error`, and the greatest number of its runs.

    The number is 0 if it has none, None if nothing can be read from it.
    """
    if words.startswith(f"{path} "):  # the description comes after the path
        words = f"it{words.removeprefix(str(path))}"
    if isinstance(error, StoreDamaged) or not os.path.isfile(path):
        return words, None
    try:
        with closing(open_to_read(path)) as connection:
            (greatest,) = connection.execute("SELECT max(number) FROM runs").fetchone()
    except (StoreError, sqlite3.Error) as other:
        return words if str(other) == str(error) else f"{words}; {other}", None
    return f"{words}; the runs in it can be read", greatest or 0


def open_to_read(path: Path) -> sqlite3.Connection:
    """Return a connection that can only read our tables; a table that the file lacks is empty.

    Do not keep it: without a journal beside it, the file is assumed not to change. Raises `StoreReadOnly` or
    `StoreDamaged`, with the reason, if nothing can be read from it.
    """
    refuse_links(path)
    try:
        with exclusive(path):  # until the journal is open
            is_at_rest = not any(_has_bytes(path, suffix) for suffix in ("-wal", "-journal"))
            mode = "mode=ro&immutable=1" if is_at_rest else "mode=ro"  # neither deletes a journal
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=BUSY_TIMEOUT_S,
                check_same_thread=False, isolation_level=None,
            )  # fmt: skip
            try:
                _restrict(connection)
            except BaseException:
                connection.close()
                raise
    except sqlite3.Error as error:
        raise StoreDamaged(f"nothing can be read from {path}: {error}") from error
    except StoreReadOnly as error:
        raise StoreReadOnly(f"nothing can be read from {path}: {error}") from error
    return connection


def _has_bytes(path: Path, suffix: str) -> bool:
    try:
        return path.with_name(path.name + suffix).stat().st_size > 0
    except FileNotFoundError:
        return False


def _restrict(connection: sqlite3.Connection) -> None:
    """Allow nothing but reading our tables."""
    set_limits(connection)
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.set_progress_handler(_stop_after(MAX_STEPS), STEP)
    ours = _tables()
    found = {table: _columns_of(connection, table) for table in ours}
    if missing := [table for table in _WANTED if not ours[table].required <= found[table]]:
        raise StoreReadOnly(f"it has no table {' or '.join(missing)} like nbrun's")
    # Temporary tables and views stand in for what is missing. SQLite looks for a name among them first, so what the
    # file itself has under that name is not reached. Our view has the name of its table, which no view of the file
    # can have.
    allowed: set[str | None] = {None}
    for table, made in ours.items():
        if made.columns <= found[table]:
            continue
        if table in _WANTED:
            parts = (name if name in found[table] else f"NULL AS {name}" for name in made.columns)
            connection.execute(
                f"CREATE TEMP VIEW {table} AS SELECT {', '.join(parts)} FROM main.{table}"  # noqa: S608 - ours
            )
            allowed.add(table)
        else:
            connection.execute(made.sql.replace("CREATE TABLE", "CREATE TEMP TABLE", 1))
    connection.execute("PRAGMA query_only = ON")

    def judge(action: int, table: str | None, *rest: str | None) -> int:
        """Return whether a statement may do this; the last of `rest` is the view or trigger behind it."""
        is_read = (
            action in _READS
            or (action == sqlite3.SQLITE_READ and table in ours)
            or (action == sqlite3.SQLITE_PRAGMA and table == "database_list")
        )
        return sqlite3.SQLITE_OK if is_read and rest[-1] in allowed else sqlite3.SQLITE_DENY

    connection.set_authorizer(judge)


def _stop_after(steps: int) -> Callable[[], int]:
    left = steps

    def is_over() -> int:
        nonlocal left
        left -= 1
        return left < 0

    return is_over


def _columns_of(connection: sqlite3.Connection, table: str) -> set[str]:
    """Return the columns of an ordinary table, without computed ones; none of a view or a virtual table."""
    # Source: views and virtual tables have no root page; `hidden` marks computed columns and those of virtual tables.
    found = connection.execute(
        "SELECT type, rootpage, sql FROM sqlite_schema WHERE name = ? COLLATE NOCASE", (table,)
    ).fetchall()
    if len(found) != 1:
        return set()
    ((kind, root, sql),) = found
    if kind != "table" or not isinstance(root, int) or root <= 0 or not isinstance(sql, str):
        return set()
    if not re.match(rf"create table {table}\s*\(", sql, re.IGNORECASE):
        return set()  # SQLite relies on this text, whatever the other columns say
    info = connection.execute(f"PRAGMA table_xinfo({table})").fetchall()
    return {row[1] for row in info if row[6] == 0}


class _Table(NamedTuple):
    """One of our tables; the columns of its first version are required."""

    sql: str
    columns: frozenset[str]
    required: frozenset[str]


@lru_cache(maxsize=1)
def _tables() -> dict[str, _Table]:
    """Return our tables by name."""
    found: dict[str, _Table] = {}
    for version in range(1, schema.VERSION + 1):
        with closing(sqlite3.connect(":memory:")) as connection:
            for sql in schema.schema_of(version):
                if sql.startswith("CREATE TABLE") and "sqlite_sequence" not in sql:
                    connection.execute(sql)
                    table = sql.split()[2]
                    info = connection.execute(f"PRAGMA table_xinfo({table})")
                    columns = frozenset(row[1] for row in info)
                    first = found[table].required if table in found else columns
                    found[table] = _Table(sql, columns, first)
    return found
