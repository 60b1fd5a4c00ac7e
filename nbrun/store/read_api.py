"""What can be read of a store, whichever connection it is read by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import msgspec

from nbrun.core.record import RunRecord
from nbrun.store import attachments as checkpoints, queries as reader
from nbrun.store.attachments import read_artifacts
from nbrun.store.liveness import sight_of
from nbrun.store.queries import StoredRun

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from nbrun.core.artifacts import Artifact, ArtifactFiles
    from nbrun.core.clock import Clock
    from nbrun.core.events import RunEvent
    from nbrun.store.filters import Query

S = TypeVar("S", StoredRun, StoredRun | None)

PAGE = 200
"""Runs that are looked at in one go."""


class StoredRuns(ABC):
    """Answers what is asked of the runs in a file.

    Every method may raise `StoreInTrouble`: there is something, and it cannot be read now.

    Threads: any method, from any thread, as far as `_reading()` allows.
    """

    _clock: Clock

    @abstractmethod
    def _reading(self) -> AbstractContextManager[sqlite3.Connection | None]:
        """Give a connection to read with; None where there is nothing."""

    @property
    @abstractmethod
    def files(self) -> ArtifactFiles:
        """Where the files that runs have made are kept."""

    def runs(self, limit: int | None = None, before: int | None = None) -> list[StoredRun]:
        """Return stored runs, newest first, those below number `before`, at most `limit`; records are brief."""
        with self._reading() as connection:
            if connection is None:
                return []
            found = reader.read_runs(connection, limit, before)
            return [self._seen(connection, stored) for stored in found]

    def select(
        self, query: Query, skip: Callable[[StoredRun], bool] = lambda _: False
    ) -> list[StoredRun]:
        """Return stored runs that fit the query, newest first, but those of which `skip` says so.

        Page by page, so that nobody has to wait until a long log was searched.
        """
        found: list[StoredRun] = []
        before, limit = query.before, query.limit
        while limit is None or len(found) < limit:
            is_short = query.is_of_columns and limit is not None
            size = min(limit - len(found), PAGE) if is_short and limit is not None else PAGE
            with self._reading() as connection:
                page = [] if connection is None else self._page(connection, query, before, size)
            for stored in page:
                if (
                    query.fits_within(stored.record)
                    and not skip(stored)
                    and self._finds(query, stored)
                ):
                    found.append(stored)
                    if len(found) == limit:
                        break
            if len(page) < size:
                break
            before = page[-1].number
        return found

    def _page(
        self, connection: sqlite3.Connection, query: Query, before: int | None, size: int
    ) -> list[StoredRun]:
        found = reader.read_page(connection, query, before, size)
        return [self._seen(connection, stored) for stored in found]

    def _finds(self, query: Query, stored: StoredRun) -> bool:
        is_found = query.finds(stored.record)
        return bool(query.finds(self.record(stored.number)) if is_found is None else is_found)

    def count(self) -> int:
        """Return how many runs are stored."""
        with self._reading() as connection:
            return 0 if connection is None else reader.count_runs(connection)

    def run(self, number: int) -> StoredRun | None:
        """Return the run with this number."""
        with self._reading() as connection:
            if connection is None:
                return None
            return self._seen(connection, reader.read_run(connection, number))

    def find(self, text: str) -> StoredRun | None:
        """Return the newest run with this id or name."""
        with self._reading() as connection:
            if connection is None:
                return None
            return self._seen(connection, reader.find_run(connection, text))

    def find_id(self, run_id: str, session_id: str | None = None) -> StoredRun | None:
        """Return the newest run with exactly this id, of that session if one is given."""
        with self._reading() as connection:
            if connection is None:
                return None
            return self._seen(connection, reader.find_id(connection, run_id, session_id))

    def record(self, number: int) -> RunRecord:
        """Return the whole record of a run."""
        with self._reading() as connection:
            if connection is None:
                return RunRecord(number=number)
            record = reader.read_record(connection, number)
            return msgspec.structs.replace(
                record, number=number, unseen=self._unseen(connection, number, record)
            )

    def _seen(self, connection: sqlite3.Connection, stored: S) -> S:
        """Return a run with a word on its kernel, where it looks live."""
        if stored is None or not stored.record.is_live:
            return stored
        unseen = self._unseen(connection, stored.number, stored.record)
        return replace(stored, record=msgspec.structs.replace(stored.record, unseen=unseen))

    def _unseen(self, connection: sqlite3.Connection, number: int, record: RunRecord) -> str:
        """Return why nobody here can say how a live-looking run stands; empty for all others."""
        sight = sight_of(connection, number) if record.is_live else None
        return "" if sight is None else sight.unseen(self._clock.now())

    def events(self, number: int, after: int = -1, limit: int | None = None) -> list[RunEvent]:
        """Return the events of a run that come after seq `after`, by seq, at most `limit`."""
        with self._reading() as connection:
            return (
                [] if connection is None else reader.read_events(connection, number, after, limit)
            )

    def checkpoint(self, number: int) -> bytes | None:
        """Return the packed state that a run can be gone on from, if there is one."""
        with self._reading() as connection:
            return None if connection is None else checkpoints.read(connection, number)

    def sequels(self, number: int) -> list[tuple[int, str]]:
        """Return the number and the kind (`resume`, `retry`, `replay`) of each run that comes from this one."""
        with self._reading() as connection:
            return [] if connection is None else checkpoints.sequels(connection, number)

    def artifacts(self, number: int) -> list[Artifact]:
        """Return the files that a run has made, oldest first."""
        with self._reading() as connection:
            return [] if connection is None else read_artifacts(connection, number, self.files)

    def is_removed(self, number: int) -> bool:
        """Return whether there is no run with this number any more."""
        with self._reading() as connection:
            return connection is not None and reader.read_run(connection, number) is None
