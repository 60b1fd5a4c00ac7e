"""Reading a file that nothing is written to: it is a newer version's, write-protected, or changed by somebody."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from nbrun.core.errors import StoreDamaged, StoreError, StoreReadOnly
from nbrun.store import schema
from nbrun.store.connection import BUSY_TIMEOUT_S, refuse_links, set_limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEP = 100_000
MAX_STEPS = 2_000
"""How much work one look may be, in SQLite's instructions: some seconds. Nobody has promised us an index."""

_WANTED = ("sessions", "runs", "events")
_READS = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_FUNCTION,  # those of our own queries; a strange schema may call harmless ones only
        sqlite3.SQLITE_RECURSIVE,
        sqlite3.SQLITE_TRANSACTION,
    }
)


@dataclass(frozen=True, slots=True)
class Look:
    """What a file that is not written to was found to be.

    `greatest` is the greatest number of its runs, 0 where it has none, None where nothing can be read from it.
    """

    words: str
    greatest: int | None


def look(path: Path, error: Exception, words: str) -> Look:
    """Return what is to be said of a file that was not taken because of `error`, and whether it can be read."""
    if words.startswith(f"{path} "):  # a card has no room for saying it twice
        words = f"it{words.removeprefix(str(path))}"
    if isinstance(error, StoreDamaged) or not path.is_file():
        return Look(words, None)
    try:
        with closing(open_to_read(path)) as connection:
            (greatest,) = connection.execute("SELECT max(number) FROM runs").fetchone()
    except (StoreError, sqlite3.Error) as other:
        return Look(words if str(other) == str(error) else f"{words}; {other}", None)
    return Look(f"{words}; the runs in it can be read", greatest or 0)


def open_to_read(path: Path) -> sqlite3.Connection:
    """Return a connection that can only read our tables; where the file has no such table, it is empty.

    It is for one look: without a journal beside it, the file is taken as one that does not change.

    Raises
    ------
    StoreReadOnly, StoreDamaged
        Nothing can be read from it; the message says why.
    """
    refuse_links(path)
    is_at_rest = not any(_has_bytes(path, suffix) for suffix in ("-wal", "-journal"))
    mode = "mode=ro&immutable=1" if is_at_rest else "mode=ro"
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=BUSY_TIMEOUT_S,
            check_same_thread=False, isolation_level=None,
        )  # fmt: skip
    except sqlite3.Error as error:
        raise StoreDamaged(f"nothing can be read from {path}: {error}") from error
    try:
        _restrict(connection)
    except sqlite3.Error as error:
        connection.close()
        raise StoreDamaged(f"nothing can be read from {path}: {error}") from error
    except StoreReadOnly as error:
        connection.close()
        raise StoreReadOnly(f"nothing can be read from {path}: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _has_bytes(path: Path, suffix: str) -> bool:
    try:
        return path.with_name(path.name + suffix).stat().st_size > 0
    except FileNotFoundError:
        return False


def _restrict(connection: sqlite3.Connection) -> None:
    """Leave nothing but reading, and nothing to be read but our tables."""
    set_limits(connection)
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.set_progress_handler(_stop_after(MAX_STEPS), STEP)
    ours = _tables()
    found = {table: _columns_of(connection, table) for table in ours}
    if missing := [table for table in _WANTED if not ours[table].required <= found[table]]:
        raise StoreReadOnly(f"it has no table of ours called {' or '.join(missing)}")
    # What is missing is stood in for. A name is looked for among the temporary tables first, so that what the file
    # itself has under it is not reached; a view has the name of its table, which no view of the file can have.
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
        """Return whether a statement may do this; the last of `rest` is the view or trigger that does it."""
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
    """Return the columns of an ordinary table; none of a view, or of a virtual table, and no computed ones.

    Source: views and virtual tables have no root page; `hidden` marks computed columns and those of
    virtual tables.
    """
    found = connection.execute(
        "SELECT type, rootpage, sql FROM sqlite_schema WHERE name = ? COLLATE NOCASE", (table,)
    ).fetchall()
    if len(found) != 1:
        return set()
    ((kind, root, sql),) = found
    if kind != "table" or not isinstance(root, int) or root <= 0 or not isinstance(sql, str):
        return set()
    if not re.match(rf"create table {table}\s*\(", sql, re.IGNORECASE):
        return set()  # SQLite goes by this text, whatever the other columns say
    info = connection.execute(f"PRAGMA table_xinfo({table})").fetchall()
    return {row[1] for row in info if row[6] == 0}


class _Table(NamedTuple):
    """One of our tables; the columns that it had from the first version on are required."""

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
