"""Runs that go: those that were named, and the oldest where there are more than are kept.

A run goes whole, with its child runs, its events and its files, and never while one of them is live. Its row goes
first, in one transaction with all that points to it, so that no reader meets half a run; its events follow in
small ones, so that no commit of the writer waits for long. What a crash leaves of them, the next sweep takes.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbrun.core import events as ev
from nbrun.core.record import LIVE
from nbrun.store import queries as reader
from nbrun.store.liveness import open_sessions

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from nbrun.core.artifacts import ArtifactFiles

KEEP_RUNS = 10_000
"""Runs that a store keeps, unless it is told otherwise; 0 for all."""
KEEP_BYTES = 2 * 1024**3
"""The same in bytes, of the file and of what lies beside it."""
STEP = 500
"""Rows that one transaction removes: some milliseconds."""
REST_S = 0.03
"""How long the file is left to others then."""

_LIVE = frozenset(str(status) for status in LIVE)
_TAKE_OUT = (
    "DELETE FROM artifacts WHERE run = ?",
    "DELETE FROM checkpoints WHERE run = ?",
    "DELETE FROM origins WHERE run = ?",
    "DELETE FROM runs WHERE number = ?",
)


@dataclass(frozen=True, slots=True)
class Keep:
    """How much a store keeps; 0 for everything."""

    runs: int = KEEP_RUNS
    bytes: int = KEEP_BYTES


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a cleaning has done; `is_in_use` where a kernel keeps runs there, and the file's room was left to it."""

    removed: list[int]
    strays: int
    is_in_use: bool


def _pause() -> bool:
    return threading.Event().wait(REST_S)


class Sweeper:
    """Removes runs, on a connection of its own.

    It gathers what it removes into transactions of some milliseconds, and rests after each: the writers of this
    and other kernels get in meanwhile. One that finds the file locked tries again sooner than the rest is over.

    Threads: of one at a time.

    Parameters
    ----------
    rest : called between two transactions, to wait; returns whether to stop. What is left then is for the next sweep.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        files: ArtifactFiles,
        rest: Callable[[], bool] | None = None,
    ) -> None:
        self._connection = connection
        self._files = files
        self._rest = rest or _pause
        self._rows = 0  # removed in the open transaction
        self._hashes: set[str] = set()  # of files that may be needed no more when that is committed
        self._is_stopped = False

    def remove(self, numbers: Iterable[int]) -> list[int]:
        """Remove runs and those below them; return the numbers of those that are gone: no live one is."""
        with self._transactions():
            return [gone for number in numbers for gone in self._remove(number)]

    def sweep(self, keep: Keep) -> list[int]:
        """Remove the oldest runs that are more than is kept; return their numbers."""
        removed: list[int] = []
        with self._transactions():
            self._remove_leftovers()
            (count,) = self._connection.execute("SELECT count(*) FROM runs").fetchone()
            for number in self._roots():
                too_many = bool(keep.runs) and count - len(removed) > keep.runs
                too_large = bool(keep.bytes) and self._used_bytes() > keep.bytes
                if self._is_stopped or not (too_many or too_large):
                    break
                removed += self._remove(number)
        return removed

    def clean(self, keep: Keep, now: float) -> Cleaned:
        """Remove what is more than is kept, and files that no run names; give back room unless a kernel is at work."""
        connection = self._connection
        removed = self.sweep(keep)
        named = {row[0] for row in connection.execute("SELECT DISTINCT sha256 FROM artifacts")}
        strays = self._files.remove_strays(named, now)
        is_in_use = any(
            sight.is_home and sight.is_alive() is not False for sight in open_sessions(connection)
        )
        if not is_in_use:  # it would keep the kernel's commits waiting
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return Cleaned(removed, strays, is_in_use)

    # --- transactions ----------------------------------------------------------------------------

    @contextmanager
    def _transactions(self) -> Iterator[None]:
        try:
            yield
            self._commit()
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._hashes.clear()

    def _begin(self) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")
            self._rows = 0

    def _count(self, rows: int) -> None:
        """Note what was removed; after a step's worth, commit it and let others write."""
        self._rows += rows
        if self._rows >= STEP:
            self._commit()
            self._is_stopped = self._rest() or self._is_stopped

    def _commit(self) -> None:
        if not self._connection.in_transaction:
            return
        self._connection.execute("COMMIT")
        for sha256 in self._hashes:
            named = self._connection.execute("SELECT 1 FROM artifacts WHERE sha256 = ?", (sha256,))
            if named.fetchone() is None:
                self._files.remove(sha256)
        self._hashes.clear()

    # --- what is too much ------------------------------------------------------------------------

    def _used_bytes(self) -> int:
        """Return what the runs take: the file's pages that are in use, and the files beside it."""
        pages, free, size = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        (beside,) = self._connection.execute(
            "SELECT coalesce(sum(size), 0) FROM artifacts"
        ).fetchone()
        return int((pages - free) * size + beside)

    def _roots(self) -> Iterator[int]:
        """Yield the runs that may go, oldest first: ended, below no other, and not the newest."""
        (newest,) = self._connection.execute("SELECT max(number) FROM runs").fetchone()
        last = 0
        while True:
            rows = self._connection.execute(
                "SELECT number, session, status, record FROM runs WHERE number > ? AND number < ?"
                " ORDER BY number LIMIT 100",
                (last, newest or 0),
            ).fetchall()
            if not rows:
                return
            for number, session, status, blob in rows:
                last = number
                if status not in _LIVE and not self._has_parent(session, blob):
                    yield number

    def _has_parent(self, session: int, blob: bytes) -> bool:
        parent_id = reader.decode_parent(blob)
        return parent_id is not None and self._find(session, parent_id) is not None

    def _find(self, session: int, run_id: str) -> int | None:
        row = self._connection.execute(
            "SELECT number FROM runs WHERE session = ? AND run_id = ?", (session, run_id)
        ).fetchone()
        return None if row is None else int(row[0])

    # --- one run and those below it --------------------------------------------------------------

    def _remove(self, number: int) -> list[int]:
        """Remove a tree of runs; return their numbers, none if one of them is live, or there is none."""
        if self._is_long(number):  # looking through its log takes a while: not with the file locked
            self._commit()
        tree = self._tree(number)  # it does not grow any more once all in it have ended
        if not tree:
            return []
        self._begin()
        if self._has_live(tree):
            return []
        keys = [(each,) for each in tree]
        for key in keys:
            found = self._connection.execute("SELECT sha256 FROM artifacts WHERE run = ?", key)
            self._hashes.update(row[0] for row in found)
        for statement in _TAKE_OUT:
            self._connection.executemany(statement, keys)
        self._count(len(_TAKE_OUT) * len(tree))
        for each in tree:
            self._remove_events(each)
        return tree

    def _is_long(self, number: int) -> bool:
        row = self._connection.execute(
            "SELECT max(seq) FROM events WHERE run = ?", (number,)
        ).fetchone()
        return (row[0] or 0) > STEP

    def _has_live(self, tree: Sequence[int]) -> bool:
        rows = (
            self._connection.execute(
                "SELECT status FROM runs WHERE number = ?", (number,)
            ).fetchone()
            for number in tree
        )
        return any(row is None or row[0] in _LIVE for row in rows)

    def _tree(self, root: int) -> list[int]:
        """Return the numbers of a run and of all below it; none where there is no such run."""
        tree: dict[int, None] = {}
        todo = [root]
        while todo:
            number = todo.pop()
            row = self._connection.execute(
                "SELECT session, run_id FROM runs WHERE number = ?", (number,)
            ).fetchone()
            if row is None or number in tree:
                continue
            tree[number] = None
            todo += self._children(number, *row)
        return list(tree)

    def _children(self, number: int, session: int, run_id: str) -> Iterator[int]:
        """Yield the numbers of a run's children: what its log says is checked, for it may say anything."""
        rows = self._connection.execute(
            "SELECT data FROM events WHERE run = ? AND type = ?", (number, ev.ChildStarted.TYPE)
        ).fetchall()
        for (blob,) in rows:
            data = ev.decode_data(ev.ChildStarted.TYPE, blob)
            child = self._find(session, data.run_id) if isinstance(data, ev.ChildStarted) else None
            if child is None:
                continue
            (record,) = self._connection.execute(
                "SELECT record FROM runs WHERE number = ?", (child,)
            ).fetchone()
            if reader.decode_parent(record) == run_id:
                yield child

    def _remove_events(self, number: int) -> None:
        count = STEP
        while count == STEP and not self._is_stopped:
            self._begin()
            count = self._connection.execute(
                "DELETE FROM events WHERE key IN (SELECT key FROM events WHERE run = ? LIMIT ?)",
                (number, STEP),
            ).rowcount
            self._count(count)

    def _remove_leftovers(self) -> None:
        """Remove events whose run is gone: a removal was cut short."""
        number = 0
        while True:  # by the index: there may be millions of events
            (found,) = self._connection.execute(
                "SELECT min(run) FROM events WHERE run > ?", (number,)
            ).fetchone()
            if found is None:
                return
            number = found
            run = self._connection.execute("SELECT 1 FROM runs WHERE number = ?", (number,))
            if run.fetchone() is None:
                self._remove_events(number)
