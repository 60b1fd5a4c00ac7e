"""The newest runs of a store at a glance, for somebody who must not wait: their names, without their records."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbrun.errors import StoreReadOnly
from nbrun.record import RunStatus
from nbrun.store import schema

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nbrun.clock import Clock

PATIENCE_S = 0.02
"""How long a look at the file may take; then there is nothing to be seen."""
_STEPS = 1000
"""Instructions of SQLite between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What a reference to a stored run can be made of."""

    number: int
    run_id: str
    name: str
    status: RunStatus

    def is_named_in(self, words: Sequence[str]) -> bool:
        """Return whether one of the words is its number, its name or its id."""
        return not {f"#{self.number}", str(self.number), self.name, self.run_id}.isdisjoint(words)


def glimpse(path: Path, limit: int, clock: Clock) -> list[Glimpse]:
    """Return the newest runs of a file, newest first; none of one that is missing, locked, damaged or slow.

    It has a connection of its own, because the store's may be held by somebody who reads a long log.
    """
    try:
        schema.refuse_links(path)
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE_S)) as connection:
            return _newest(connection, limit, clock)
    except (OSError, StoreReadOnly, sqlite3.Error):
        return []


def _newest(connection: sqlite3.Connection, limit: int, clock: Clock) -> list[Glimpse]:
    until = clock.monotonic() + PATIENCE_S
    schema.set_limits(connection)
    # Somebody else may have made the file: `runs` may be a view that never ends, and a name of any length.
    connection.set_progress_handler(lambda: clock.monotonic() > until, _STEPS)
    rows = connection.execute(
        "SELECT number, substr(run_id, 1, 200), substr(name, 1, 200), status FROM runs"
        " ORDER BY number DESC LIMIT ?",
        (limit,),
    ).fetchall()
    statuses = {str(status): status for status in RunStatus}
    return [
        Glimpse(number, run_id, name, statuses[status])
        for number, run_id, name, status in rows
        if isinstance(number, int)
        and isinstance(run_id, str)
        and isinstance(name, str)
        and status in statuses
    ]
