"""The file as its writer has it: the connection, the session's row in it, and one transaction at a time."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import msgspec

from nbrun.core import events as ev
from nbrun.core.artifacts import ArtifactFiles, folder_beside
from nbrun.core.record import fold
from nbrun.store.connection import BUSY_TIMEOUT_S
from nbrun.store.liveness import note_file
from nbrun.store.rebuild import KnownRun, rebuild
from nbrun.store.rows import Dropped, Row, RowWriter, Values, insert_artifacts, micros

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from nbrun.core.clock import Clock
    from nbrun.core.record import RunRecord
    from nbrun.store.database_file import DatabaseFile
    from nbrun.store.rows import Checkpointed

HELD_BYTES = 64 * 1024 * 1024
"""How much of all runs together is held."""


_EVENT_BYTES = 300  # of an event besides what it says


_NEEDED = ev.END_TYPES | {
    cls.TYPE
    for cls in (
        ev.RunCreated, ev.RunStarted, ev.RunWaiting, ev.RunResumed, ev.CancelRequested,
        ev.CancelEscalated, ev.DetachedFinished, ev.ApprovalRequested, ev.ApprovalResolved,
    )
}  # fmt: skip
"""Few of a run, and what its status follows from."""


class Backlog:
    """The events of a run that are public and not in the file; by seq, no gaps.

    Threads: the writer's.
    """

    def __init__(self) -> None:
        self._items: list[ev.RunEvent | Dropped] = []
        self._dropped = 0
        self.size = 0  # in bytes, about

    def __len__(self) -> int:
        """Return how many entries there are; events that were dropped together are one."""
        return len(self._items)

    def __iter__(self) -> Iterator[ev.RunEvent | Dropped]:
        return iter(self._items)

    @property
    def has_dropped(self) -> bool:
        """Whether a part of it was let go of."""
        return self._dropped > 0

    def whole(self) -> Sequence[ev.RunEvent]:
        """Return the events that it holds."""
        return (
            ()
            if not self._items
            else [item for item in self._items if not isinstance(item, Dropped)]
        )

    def pieces(self) -> Iterator[Backlog | Dropped]:
        """Yield what was held and what was dropped, in turn."""
        for is_dropped, items in groupby(self._items, lambda item: isinstance(item, Dropped)):
            if is_dropped:
                yield from (item for item in items if isinstance(item, Dropped))
            else:
                piece = Backlog()
                piece._items += items
                yield piece

    @property
    def first_seq(self) -> int | None:
        """The number of its first event."""
        return self._items[0].seq if self._items else None

    def add(self, events: list[ev.RunEvent], text_at: int, room: int, why: str) -> None:
        """Take events.

        Parameters
        ----------
        text_at : how many characters the record's text had before them.
        room : how many bytes may be taken; beyond it only what is needed is.
        why : what is said of those that are not.
        """
        for event in events:
            start = text_at
            if isinstance(event.data, ev.TextDelta):
                text_at += len(event.data.text)
            weight = _weight(event)
            if event.type in _NEEDED or weight <= room:
                self._items.append(event)
                self.size += weight
                room -= weight
            else:
                self._drop(event, start, text_at, why)

    def _drop(self, event: ev.RunEvent, start: int, end: int, why: str) -> None:
        self._dropped += 1
        last = self._items[-1] if self._items else None
        if isinstance(last, Dropped) and last.attempt == event.attempt:
            self._items[-1] = replace(last, count=last.count + 1, end=end)
            return
        self._items.append(
            Dropped(event.run_id, event.seq, 1, event.ts, event.attempt, why, start, end)
        )
        self.size += _EVENT_BYTES

    def copy(self) -> Backlog:
        """Return another with the same events."""
        other = Backlog()
        other._items, other._dropped, other.size = [*self._items], self._dropped, self.size
        return other

    def cut(self, seq: int, text_at: int) -> None:
        """Let go of what comes before event `seq`, where the record's text has `text_at` characters: it is written."""
        items, self._items, self._dropped, self.size = self._items, [], 0, 0
        for item in items:
            if not isinstance(item, Dropped):
                if item.seq >= seq:
                    self._items.append(item)
                    self.size += _weight(item)
            elif item.seq + item.count > seq:
                over = max(0, seq - item.seq)
                start = max(item.start, text_at) if over else item.start
                rest = replace(item, seq=item.seq + over, count=item.count - over, start=start)
                self._items.append(rest)
                self._dropped += rest.count
                self.size += _EVENT_BYTES

    def waiting(self, text: str) -> Waiting:
        """Return what of it can be read from now on, by any thread."""
        return Waiting(tuple(self._items), text)


class Waiting:
    """What waited at one moment, as events; frozen.

    Parameters
    ----------
    text : that of the record at that moment.
    """

    def __init__(self, items: tuple[ev.RunEvent | Dropped, ...] = (), text: str = "") -> None:
        self._items = items
        self._text = text

    def __iter__(self) -> Iterator[ev.RunEvent]:
        for item in self._items:
            if isinstance(item, Dropped):
                yield from item.events(self._text)
            else:
                yield item


def _weight(event: ev.RunEvent) -> int:
    """Return about how many bytes an event takes."""
    data = event.data
    if isinstance(data, ev.TextDelta | ev.ReasoningDelta | ev.Log) and isinstance(data.text, str):
        return _EVENT_BYTES + len(data.text)
    try:
        return _EVENT_BYTES + len(ev.encode_data(data))
    except (TypeError, ValueError, OverflowError):  # it cannot be written, and is replaced then
        return _EVENT_BYTES


BEAT_S = 15.0
"""How often a commit also says that this kernel lives, for those who cannot see it."""

NOTHING = Backlog()
"""That of all runs which are saved; nothing is ever added to it."""


@dataclass(slots=True)
class HeldRun:
    """A run in the writer's hands."""

    record: RunRecord
    row: Row | None = None  # None until it is in the file
    backlog: Backlog = NOTHING  # folded, and not in the file


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a run in a transaction: the events are those beyond its backlog, with their numbers."""

    row: Row
    record: RunRecord
    events: list[ev.RunEvent]


class FileWriter:
    """Writes runs, whole transactions only: when a method raises, nothing has changed.

    Threads: of the writer's; the connection is used under `lock`, which a reader of a store in memory shares.

    Parameters
    ----------
    connection : to the file; None is memory, a stand-in while there is no file.
    session : the session's row, by the columns of its table.
    """

    def __init__(
        self,
        connection: sqlite3.Connection | None,
        database: DatabaseFile | None,
        lock: threading.RLock,
        session: Values,
        clock: Clock,
    ) -> None:
        self._database = database
        self._lock = lock
        self._session = session
        self._clock = clock
        self._session_key: int | None = None
        self._beaten_at = clock.monotonic()  # the session is inserted with its first beat
        self._is_stand_in = connection is None
        self._connection = connection or sqlite3.connect(":memory:", check_same_thread=False)
        self._row_writer = self._row_writer_for(self._connection)
        self._is_full_sync = False
        self._busy_wait_s = BUSY_TIMEOUT_S

    def take(self, connection: sqlite3.Connection) -> None:
        """Go on with a connection, which may be to another file."""
        if connection is not self._connection:
            if self._is_stand_in:
                self._connection.close()
                self._is_stand_in = False
            self._connection, self._row_writer = connection, self._row_writer_for(connection)
            self._is_full_sync, self._busy_wait_s = False, -1.0

    def wait_for_locks(self, wait_s: float) -> None:
        """Have a lock waited for so long; while it is known to be there, events must not wait for it each time."""
        if self._busy_wait_s != wait_s:
            self._connection.execute(f"PRAGMA busy_timeout = {round(wait_s * 1000)}")
            self._busy_wait_s = wait_s

    def write(
        self,
        runs: Mapping[str, HeldRun],
        groups: Mapping[str, list[ev.RunEvent]],
        checkpoints: Mapping[str, Checkpointed],
        *,
        stand_in: bool,
    ) -> tuple[dict[str, Written], dict[str, Checkpointed]]:
        """Commit the backlogs and the new events of these runs; return what was written, and which checkpoints.

        It touches neither the runs nor the checkpoints: while the disk does not answer, somebody else goes on with
        them.

        Parameters
        ----------
        stand_in : whether an event that cannot be stored is written as a stand-in for it.
        """
        has_end = (
            _has_end(run.backlog.whole()) or _has_end(groups[key]) for key, run in runs.items()
        )
        self._sync_fully(any(has_end))
        with self._lock:
            self._row_writer.begin()
            try:
                session_key = self._session_key or self._insert_session()
                self._beat(session_key)
                written = {
                    run_id: self._write_run(session_key, run_id, run, groups[run_id], stand_in)
                    for run_id, run in runs.items()
                }
                kept = self._keep_checkpoints(checkpoints, written)
                self._row_writer.commit()
            except BaseException:
                self._row_writer.rollback()
                raise
        self._session_key = session_key
        return written, kept

    def drop_checkpoints(self, number: int) -> None:
        """Delete what a run was to be gone on from."""
        with self._lock:
            self._row_writer.drop_checkpoints(number)

    def rebuild(
        self, previous: sqlite3.Connection | None, known: Sequence[KnownRun]
    ) -> dict[str, Row]:
        """Write what this kernel knows into a file that was begun again; return the row of each run, by its id."""
        self._sync_fully(True)
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                key, rows = rebuild(previous, self._connection, self._session, known)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        self._session_key = key
        return rows

    def release(self) -> None:
        """Give up the session's lease, so that nobody has to find out that this process is gone."""
        with self._lock:
            if self._session_key is not None:
                self._connection.execute(
                    "UPDATE sessions SET closed_at = ? WHERE key = ?",
                    (micros(self._clock.now()), self._session_key),
                )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _row_writer_for(self, connection: sqlite3.Connection) -> RowWriter:
        """Return what writes to a file, and what is too large for it beside it."""
        row_writer = RowWriter(connection)
        if self._database is not None and self._database.path is not None:
            row_writer.files = ArtifactFiles(folder_beside(self._database.path))
        return row_writer

    def _sync_fully(self, wanted: bool) -> None:
        """Have the next commit survive a power loss, or only the death of this process.

        Source: SQLite ignores a change of `synchronous` within a transaction, so it is made between two.
        """
        if wanted != self._is_full_sync:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}")
            self._is_full_sync = wanted

    def _insert_session(self) -> int:
        key = self._row_writer.insert_session(self._session)
        note_file(self._connection, key)
        return key

    def _beat(self, session_key: int) -> None:
        """Say now and then that this kernel lives; if the transaction fails, with the next beat."""
        now = self._clock.monotonic()
        if now - self._beaten_at >= BEAT_S:
            self._beaten_at = now
            self._connection.execute(
                "UPDATE sessions SET heartbeat_at = ? WHERE key = ?",
                (micros(self._clock.now()), session_key),
            )

    def _write_run(
        self, session_key: int, run_id: str, run: HeldRun, new: list[ev.RunEvent], stand_in: bool
    ) -> Written:
        if run.backlog.has_dropped:
            return self._write_with_gaps(session_key, run_id, run, new, stand_in)
        events = [*run.backlog.whole(), *new]
        row, record = run.row, run.record
        if row is None and events and isinstance(events[0].data, ev.RunCreated):
            row, events[0] = self._row_writer.insert_run(session_key, events[0])
        elif row is None:
            row = self._row_writer.find_run(session_key, run_id, record.status)
        if stand_in:
            row, events = self._row_writer.write_one_by_one(row, events)
        else:
            row = self._row_writer.write_events(row, events)
        insert_artifacts(self._connection, row.number, events)
        new = events[len(run.backlog) :]
        record = fold(new, record)
        if record.number is None:  # it was folded before it had one
            record = msgspec.structs.replace(record, number=row.number)
        return Written(self._row_writer.write_record(row, record), record, new)

    def _write_with_gaps(
        self, session_key: int, run_id: str, run: HeldRun, new: list[ev.RunEvent], stand_in: bool
    ) -> Written:
        """Write a run of whose backlog a part was dropped: piece by piece, then what is new."""
        row, record = run.row, run.record
        for piece in run.backlog.pieces():
            if isinstance(piece, Backlog):
                part = HeldRun(record, row, piece)
                told = self._write_run(session_key, run_id, part, [], stand_in)
                row, record = told.row, told.record
            elif row is not None:  # always: a run's creation is never dropped
                row = self._row_writer.write_dropped(row, piece, record.text)
        return self._write_run(session_key, run_id, HeldRun(record, row), new, stand_in)

    def _keep_checkpoints(
        self, checkpoints: Mapping[str, Checkpointed], written: Mapping[str, Written]
    ) -> dict[str, Checkpointed]:
        """Write the newest states of these runs; return them. One whose event is not written yet has to wait for it."""
        kept: dict[str, Checkpointed] = {}
        for run_id in checkpoints.keys() & written.keys():
            checkpointed, told = checkpoints[run_id], written[run_id]
            if checkpointed.seq < told.record.event_count:
                self._row_writer.keep_checkpoint(told.row, checkpointed)
                kept[run_id] = checkpointed
        return kept


def _has_end(events: Iterable[ev.RunEvent]) -> bool:
    return any(event.data.TYPE in ev.END_TYPES for event in events)
