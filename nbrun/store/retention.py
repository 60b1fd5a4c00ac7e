"""Removing runs: those that were named, and the oldest if there are too many.

A run is removed whole, with its child runs, events and files, and never while one of them is live. A set counts as one,
and goes whole, when it is not in progress. A row goes first, in one transaction with all that refers to it, so that no
reader sees half a run; its events follow in small transactions, so that no commit of the writer waits for long. What a
crash leaves of them, the next sweep removes.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbrun.core import LIVE, ArtifactFiles, JournalFiles
from nbrun.core.journal import journal_name
from nbrun.store import sets
from nbrun.store.liveness import open_kernels
from nbrun.store.schema import LIVE_STATUSES, fill_columns

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator


KEEP_RUNS = 10_000  # how many runs a store keeps by default; 0 for all
KEEP_BYTES = 2_000_000_000  # how many bytes it keeps, of the file and of the artifacts beside it
STEP = 500  # how many rows one transaction removes, in a few milliseconds
REST_S = 0.03  # how long others have the file to themselves then

_LIVE = frozenset(str(status) for status in LIVE)
_COUNT = "SELECT (SELECT count(*) FROM runs WHERE in_set IS NULL) + (SELECT count(*) FROM sets)"
_EMPTY = (  # sets of which nothing is left; one that is in progress, or can be resumed, has no end
    "DELETE FROM sets WHERE ended_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.in_set = sets.number)"
)
_ROOTS = (
    f"SELECT r.number, r.in_set FROM runs r WHERE r.number > ? AND r.number < ? AND r.status NOT IN ({LIVE_STATUSES})"  # noqa: S608
    " AND NOT EXISTS (SELECT 1 FROM runs p WHERE p.session = r.session AND p.run_id = r.parent)"
    " ORDER BY r.number LIMIT 100"
)
# A run and all below it; UNION, because a planted file may lead in a circle.
_TREE = """WITH RECURSIVE tree (number) AS (
  SELECT number FROM runs WHERE number = ? UNION
  SELECT c.number FROM tree JOIN runs p ON p.number = tree.number
   JOIN runs c ON c.session = p.session AND c.parent = p.run_id
) SELECT r.number, r.status FROM tree JOIN runs r ON r.number = tree.number"""
_NAMES = "SELECT s.session_id, r.run_id FROM runs r JOIN sessions s ON s.key = r.session WHERE r.number = ?"
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
    """What cleaning did; `is_in_use` if a kernel writes to the file, which was then not compacted."""

    removed: list[int]
    strays: int
    is_in_use: bool


def _pause() -> bool:
    return threading.Event().wait(REST_S)


class Sweeper:
    """Removes runs, on its own connection.

    It works in transactions of a few milliseconds and rests after each, so that the writers of this and other kernels
    can write in between: one that finds the file locked tries again sooner than the rest is over. `rest()` waits, and
    returns whether to stop and leave what remains to the next sweep.

    Threads: one at a time.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        files: ArtifactFiles,
        journals: JournalFiles,
        rest: Callable[[], bool] | None = None,
    ) -> None:
        self._connection = connection
        self._files = files
        self._journals = journals
        self._journal_bytes: int | None = None  # of all; None: not counted yet
        self._journal_names: set[str] = set()  # of runs that are removed with the next commit
        self._rest = rest or _pause
        self._rows = 0  # removed in the open transaction
        self._hashes: set[str] = set()  # of files that may not be needed after its commit
        self._is_stopped = False
        self.removed_sets: dict[int, int] = {}  # and how many runs went with each

    def remove(self, numbers: Iterable[int]) -> list[int]:
        """Remove runs with their child runs, except live ones; return the numbers of those removed."""
        with self._transactions():
            removed = [gone for number in numbers for gone in self._remove(number)]
            self._begin()
            self._connection.execute(_EMPTY)
            self._connection.execute("DELETE FROM items WHERE in_set NOT IN (SELECT number FROM sets)")
        return removed

    def sweep(self, keep: Keep) -> list[int]:
        """Remove the oldest runs while there are too many; return their numbers."""
        removed: list[int] = []
        with self._transactions():
            self._remove_leftovers()
            (count,) = self._connection.execute(_COUNT).fetchone()
            here = sets.running_sessions(self._connection)
            seen: set[int] = set()
            for number, in_set in self._roots():
                too_many = bool(keep.runs) and count > keep.runs
                too_large = bool(keep.bytes) and self._used_bytes() > keep.bytes
                if self._is_stopped or not (too_many or too_large):
                    break
                if in_set is None:
                    gone = self._remove(number)
                    removed += gone
                    count -= len(gone)
                elif in_set not in seen:
                    seen.add(in_set)
                    gone = self._remove_set(in_set, here)
                    removed += gone
                    count -= bool(gone)
        return removed

    def clean(self, keep: Keep, now: float) -> Cleaned:
        """Remove runs beyond the limits, and files that no run names; compact the file unless a kernel uses it."""
        connection = self._connection
        removed = self.sweep(keep)
        named = {row[0] for row in connection.execute("SELECT DISTINCT sha256 FROM artifacts")}
        strays = self._files.remove_strays(named, now)
        runs = connection.execute(_NAMES.partition(" WHERE")[0])
        strays += self._journals.remove_strays({journal_name(str(one), str(other)) for one, other in runs}, now)
        is_in_use = any(kernel.is_same_file and kernel.is_alive() is not False for kernel in open_kernels(connection))
        if not is_in_use:  # else the kernel's commits would have to wait
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return Cleaned(removed, strays, is_in_use)

    # --- transactions ----------------------------------------------------------------------------

    @contextmanager
    def _transactions(self) -> Iterator[None]:
        try:
            self._begin()
            fill_columns(self._connection)  # an older version may be running in another kernel
            self._commit()
            yield
            self._commit()
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._hashes.clear()
            self._journal_names.clear()

    def _begin(self) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")
            self._rows = 0

    def _count(self, rows: int) -> None:
        """Count removed rows; after `STEP` of them, commit and let others write."""
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
        for name in self._journal_names:
            size = self._journals.remove(name)
            self._journal_bytes = None if self._journal_bytes is None else self._journal_bytes - size
        self._journal_names.clear()

    # --- too many runs ---------------------------------------------------------------------------

    def _used_bytes(self) -> int:
        """Return the size of the file's pages in use and of the artifacts beside it."""
        pages, free, size = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        (beside,) = self._connection.execute("SELECT coalesce(sum(size), 0) FROM artifacts").fetchone()
        if self._journal_bytes is None:
            self._journal_bytes = self._journals.size()
        return int((pages - free) * size + beside + self._journal_bytes)

    def _roots(self) -> Iterator[tuple[int, int | None]]:
        """Yield the runs that may be removed, with their set, oldest first: ended, no child, and not the newest."""
        (newest,) = self._connection.execute("SELECT max(number) FROM runs").fetchone()
        last = 0
        while True:
            rows = self._connection.execute(_ROOTS, (last, newest or 0)).fetchall()
            if not rows:
                return
            for last, in_set in rows:
                yield last, in_set

    def _remove_set(self, number: int, here: dict[str, bool | None]) -> list[int]:
        """Remove a set with all its runs, whose numbers are returned; nothing of one that may be in progress."""
        self._begin()
        found = sets.read_sets(self._connection, number)
        if found and found[0].ended_at is None and found[0].session_id in here:
            return []
        newest = self._connection.execute("SELECT max(number) FROM runs").fetchone()[0]
        members = self._connection.execute(
            "SELECT number, status FROM runs WHERE in_set = ? AND position IS NOT NULL ORDER BY number", (number,)
        ).fetchall()
        if any(status in _LIVE or one == newest for one, status in members):
            return []
        gone: list[int] = []
        for one, _ in members:
            gone += self._remove(one)
            if self._is_stopped:
                return gone  # the next sweep takes the rest
        self._begin()
        self._connection.execute("DELETE FROM items WHERE in_set = ?", (number,))
        self._connection.execute("DELETE FROM sets WHERE number = ?", (number,))
        self._count(len(members))
        self.removed_sets[number] = len(gone)
        return gone

    # --- one run and all below it ----------------------------------------------------------------

    def _remove(self, number: int) -> list[int]:
        """Remove a run with all below it; return their numbers, none if one of them is live."""
        self._begin()
        tree = self._connection.execute(_TREE, (number,)).fetchall()
        if any(status in _LIVE for _, status in tree):
            return []
        keys = [(each,) for each, _ in tree]
        for key in keys:
            found = self._connection.execute("SELECT sha256 FROM artifacts WHERE run = ?", key)
            self._hashes.update(row[0] for row in found)
            names = self._connection.execute(_NAMES, key)
            self._journal_names.update(journal_name(str(session_id), str(run_id)) for session_id, run_id in names)
        for statement in _TAKE_OUT:
            self._connection.executemany(statement, keys)
        self._count(len(_TAKE_OUT) * len(tree))
        for (each,) in keys:
            self._remove_events(each)
        return [each for (each,) in keys]

    def _remove_events(self, number: int) -> None:
        count = STEP
        while count == STEP and not self._is_stopped:
            self._begin()
            count = self._connection.execute(
                "DELETE FROM events WHERE key IN (SELECT key FROM events WHERE run = ? LIMIT ?)", (number, STEP)
            ).rowcount
            self._count(count)

    def _remove_leftovers(self) -> None:
        """Remove events whose run is gone: a removal was interrupted."""
        number = 0
        while True:  # with the index: there may be millions of events
            (found,) = self._connection.execute("SELECT min(run) FROM events WHERE run > ?", (number,)).fetchone()
            if found is None:
                return
            number = found
            run = self._connection.execute("SELECT 1 FROM runs WHERE number = ?", (number,))
            if run.fetchone() is None:
                self._remove_events(number)
