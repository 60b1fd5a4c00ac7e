"""Runs that go: those that were named, and the oldest where there are more than are kept.

A run goes whole, with its child runs, its events and its files, and never while one of them is live. Its row goes
first, in one transaction with all that points to it, so that no reader meets half a run; its events follow in
small ones, so that no commit of the writer waits for long. What a crash leaves of them, the next sweep takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbrun import events as ev
from nbrun.record import LIVE
from nbrun.store import reader
from nbrun.store.orphans import open_sessions

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    from nbrun.artifacts import ArtifactFiles

KEEP_RUNS = 10_000
"""Runs that a store keeps, unless it is told otherwise; 0 for all."""
KEEP_BYTES = 2 * 1024**3
"""The same in bytes, of the file and of what lies beside it."""
STEP = 500
"""Rows that one transaction removes: some milliseconds."""

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


class Sweeper:
    """Removes runs, on a connection of its own.

    Threads: of one at a time. The writer of this kernel, and those of others, may commit between its steps.

    Parameters
    ----------
    is_stopped : asked between two steps; what is left then is for the next sweep.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        files: ArtifactFiles,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._connection = connection
        self._files = files
        self._is_stopped = is_stopped

    def remove(self, number: int) -> list[int]:
        """Remove a run and those below it; return their numbers, none if one of them is live, or there is none."""
        tree = self._take_out(number)
        self._remove_events(tree)
        return tree

    def sweep(self, keep: Keep) -> list[int]:
        """Remove the oldest runs that are more than is kept; return their numbers."""
        self.remove_leftovers()
        removed: list[int] = []
        for number in self._roots():
            if self._is_stopped() or not self._is_too_much(keep):
                break
            removed += self.remove(number)
        return removed

    def remove_leftovers(self) -> int:
        """Remove events whose run is gone: a removal was cut short. Return of how many runs there were some."""
        left = [
            number
            for number in self._numbers_with_events()
            if not self._connection.execute(
                "SELECT 1 FROM runs WHERE number = ?", (number,)
            ).fetchone()
        ]
        self._remove_events(left)
        return len(left)

    def used_bytes(self) -> int:
        """Return what the runs take: the file's pages that are in use, and the files beside it."""
        pages, free, size = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        (beside,) = self._connection.execute(
            "SELECT coalesce(sum(size), 0) FROM (SELECT DISTINCT sha256, size FROM artifacts)"
        ).fetchone()
        return int((pages - free) * size + beside)

    def clean(self, keep: Keep, now: float) -> Cleaned:
        """Remove what is more than is kept, and files that no run names; give back room unless a kernel is at work."""
        connection = self._connection
        removed = self.sweep(keep)
        named = {row[0] for row in connection.execute("SELECT DISTINCT sha256 FROM artifacts")}
        strays = self._files.remove_strays(named, now)
        is_in_use = any(kernel.is_alive() is not False for _, kernel in open_sessions(connection))
        if not is_in_use:  # it would keep the kernel's commits waiting
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return Cleaned(removed, strays, is_in_use)

    # --- what is too much ------------------------------------------------------------------------

    def _is_too_much(self, keep: Keep) -> bool:
        if keep.runs:
            (count,) = self._connection.execute("SELECT count(*) FROM runs").fetchone()
            if count > keep.runs:
                return True
        return bool(keep.bytes) and self.used_bytes() > keep.bytes

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

    def _take_out(self, number: int) -> list[int]:
        """Remove a tree of runs from sight, with their files; return their numbers."""
        connection = self._connection
        tree = self._tree(number)  # it does not grow any more once all in it have ended
        keys = [(number,) for number in tree]
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not tree or self._has_live(tree):
                connection.execute("ROLLBACK")
                return []
            hashes = {
                row
                for key in keys
                for row in connection.execute("SELECT sha256 FROM artifacts WHERE run = ?", key)
            }
            for statement in _TAKE_OUT:
                connection.executemany(statement, keys)
            unnamed = [row[0] for row in hashes if not self._is_named(row)]
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        for sha256 in unnamed:
            self._files.remove(sha256)
        return tree

    def _is_named(self, row: tuple[str]) -> bool:
        """Return whether a run that stays has made the same file."""
        found = self._connection.execute("SELECT 1 FROM artifacts WHERE sha256 = ?", row)
        return found.fetchone() is not None

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
                "SELECT session FROM runs WHERE number = ?", (number,)
            ).fetchone()
            if row is None or number in tree:
                continue
            tree[number] = None
            children = self._connection.execute(
                "SELECT data FROM events WHERE run = ? AND type = ?",
                (number, ev.ChildStarted.TYPE),
            )
            for (blob,) in children.fetchall():
                data = ev.decode_data(ev.ChildStarted.TYPE, blob)
                child = (
                    self._find(row[0], data.run_id) if isinstance(data, ev.ChildStarted) else None
                )
                # What a log says is checked: a run may only take with it what names it as its parent.
                if child is not None and self._is_child(child, number):
                    todo.append(child)
        return list(tree)

    def _is_child(self, child: int, parent: int) -> bool:
        (blob,) = self._connection.execute(
            "SELECT record FROM runs WHERE number = ?", (child,)
        ).fetchone()
        (parent_id,) = self._connection.execute(
            "SELECT run_id FROM runs WHERE number = ?", (parent,)
        ).fetchone()
        return bool(reader.decode_parent(blob) == parent_id)

    def _remove_events(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            while not self._is_stopped():
                cursor = self._connection.execute(
                    "DELETE FROM events WHERE key IN (SELECT key FROM events WHERE run = ? LIMIT ?)",
                    (number, STEP),
                )
                if cursor.rowcount < STEP:
                    break

    def _numbers_with_events(self) -> Iterator[int]:
        """Yield each run's number once, by the index: there may be millions of events."""
        number = 0
        while True:
            (found,) = self._connection.execute(
                "SELECT min(run) FROM events WHERE run > ?", (number,)
            ).fetchone()
            if found is None:
                return
            number = found
            yield number
