"""What the writer commits: the runs in its hands, the events that wait, and one transaction at a time."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import msgspec

from nbrun.core import ArtifactFiles, Clock, RunRecord, events as ev, fold, folder_beside
from nbrun.store.connection import BUSY_TIMEOUT_S, transaction
from nbrun.store.liveness import note_file
from nbrun.store.rebuild import KnownRun, rebuild
from nbrun.store.rows import Checkpointed, Dropped, Row, RowWriter, Values, micros

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from nbrun.store.database_file import DatabaseFile
    from nbrun.store.signing import Signer

HELD_BYTES = 64 * 1024 * 1024  # how much is kept in memory for all runs together
BEAT_S = 15.0
"""How often a commit also updates the heartbeat, for those who cannot see this process."""

_EVENT_BYTES = 300  # of an event besides its data
# Few per run, and the status follows from them.
_REQUIRED = ev.END_TYPES | {
    cls.TYPE
    for cls in (
        ev.RunCreated, ev.RunStarted, ev.RunWaiting, ev.RunResumed, ev.CancelRequested,
        ev.CancelEscalated, ev.DetachedFinished, ev.ApprovalRequested, ev.ApprovalResolved,
    )
}  # fmt: skip


class Backlog:
    """The events of a run that are public but not in the file; by seq, no gaps.

    Threads: the writer's only.
    """

    def __init__(self, items: Iterable[ev.RunEvent | Dropped] = ()) -> None:
        self._items = list(items)
        self._dropped = 0
        self.size = 0  # in bytes, about

    def __len__(self) -> int:
        """Return how many entries there are; events that were dropped together are one."""
        return len(self._items)

    def __iter__(self) -> Iterator[ev.RunEvent | Dropped]:
        return iter(self._items)

    @property
    def has_dropped(self) -> bool:
        """Whether a part of it was dropped."""
        return self._dropped > 0

    def whole(self) -> Sequence[ev.RunEvent]:
        """Return the events that were not dropped."""
        return [item for item in self._items if not isinstance(item, Dropped)] if self._items else ()

    def pieces(self) -> Iterator[Backlog | Dropped]:
        """Yield what was kept and what was dropped, in order."""
        for is_dropped, items in groupby(self._items, lambda item: isinstance(item, Dropped)):
            if is_dropped:
                yield from (item for item in items if isinstance(item, Dropped))
            else:
                yield Backlog(items)

    @property
    def first_seq(self) -> int | None:
        """The number of its first event."""
        return self._items[0].seq if self._items else None

    def add(self, events: list[ev.RunEvent], text_at: int, room: int, why: str) -> None:
        """Add events, before which the record's text has `text_at` characters.

        Beyond `room` bytes only required events are added; `why` is the reason given for those that are dropped.
        """
        for event in events:
            start = text_at
            if isinstance(event.data, ev.TextDelta):
                text_at += len(event.data.text)
            weight = _weight(event)
            if event.type in _REQUIRED or weight <= room:
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
        self._items.append(Dropped(event.run_id, event.seq, 1, event.ts, event.attempt, why, start, end))
        self.size += _EVENT_BYTES

    def copy(self) -> Backlog:
        """Return another with the same events."""
        other = Backlog(self._items)
        other._dropped, other.size = self._dropped, self.size
        return other

    def cut(self, seq: int, text_at: int) -> None:
        """Remove what comes before event `seq`, where the record's text has `text_at` characters: it is written."""
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
        """Return what waits now, to be read by any thread; `text` is that of the record."""
        return Waiting(tuple(self._items), text)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The events that waited at one moment, and the record's text then."""

    items: tuple[ev.RunEvent | Dropped, ...]
    text: str

    def __iter__(self) -> Iterator[ev.RunEvent]:
        for item in self.items:
            if isinstance(item, Dropped):
                yield from item.events(self.text)
            else:
                yield item


def _weight(event: ev.RunEvent) -> int:
    """Return about how many bytes an event takes."""
    data = event.data
    if isinstance(data, ev.TextDelta | ev.ReasoningDelta | ev.Log) and isinstance(data.text, str):
        return _EVENT_BYTES + len(data.text)
    try:
        return _EVENT_BYTES + len(ev.encode_data(data))
    except (TypeError, ValueError, OverflowError):  # it cannot be written, and will be replaced
        return _EVENT_BYTES


NOTHING = Backlog()  # the backlog of all runs that are saved; nothing is ever added to it


@dataclass(slots=True)
class HeldRun:
    """A run in the writer's hands."""

    record: RunRecord
    row: Row | None = None  # None until it is in the file
    backlog: Backlog = NOTHING  # folded into the record, and not in the file
    tool_bytes: int = 0  # that its tools have taken and given since they were last cut, about


@dataclass(frozen=True, slots=True)
class Written:
    """What a transaction wrote of a run; the events are those beyond its backlog, with their numbers."""

    row: Row
    record: RunRecord
    events: list[ev.RunEvent]


class FileWriter:
    """Writes runs in whole transactions: if a method raises, nothing has changed.

    `connection` is None while there is no file; `session` is the session's row, by the columns of its table.

    Threads: the writer's only; the connection is used under `lock`, which readers of a store in memory share.
    """

    def __init__(
        self,
        connection: sqlite3.Connection | None,
        database: DatabaseFile | None,
        lock: threading.RLock,
        session: Values,
        clock: Clock,
        signer: Signer | None = None,
    ) -> None:
        self._database = database
        self._signer = signer
        self._lock = lock
        self._session = session
        self._clock = clock
        self._session_key: int | None = None
        self._beaten_at = clock.monotonic()  # the session is inserted with its first beat
        self._is_stand_in = connection is None
        self._connection = connection or sqlite3.connect(":memory:", check_same_thread=False)
        self._rows = self._row_writer()
        self._is_full_sync = False
        self._busy_wait_s = BUSY_TIMEOUT_S

    def _row_writer(self) -> RowWriter:
        path = None if self._database is None else self._database.path
        files = None if path is None else ArtifactFiles(folder_beside(path))
        return RowWriter(self._connection, files, self._signer)

    def take(self, connection: sqlite3.Connection, wait_s: float) -> None:
        """Use this connection from now on, which may be to another file, and wait so long for a lock."""
        if connection is not self._connection:
            if self._is_stand_in:
                self._connection.close()
                self._is_stand_in = False
            self._connection = connection
            self._rows = self._row_writer()
            self._is_full_sync, self._busy_wait_s = False, -1.0
        if self._busy_wait_s != wait_s:
            self._connection.execute(f"PRAGMA busy_timeout = {round(wait_s * 1000)}")
            self._busy_wait_s = wait_s

    def write(
        self,
        runs: Mapping[str, HeldRun],
        groups: Mapping[str, list[ev.RunEvent]],
        checkpoints: Mapping[str, Checkpointed],
        *,
        has_placeholders: bool,
    ) -> tuple[dict[str, Written], dict[str, Checkpointed]]:
        """Commit the backlogs and the new events of these runs; return what was written, and which checkpoints.

        It changes neither the runs nor the checkpoints: if the disk does not answer, another thread continues with
        them. With `has_placeholders`, an event that cannot be stored is replaced by a placeholder.
        """
        ends = (has_end(run.backlog.whole()) or has_end(groups[key]) for key, run in runs.items())
        self._sync_fully(any(ends))
        with self._lock, self._rows.transaction():
            session_key = self._session_key or self._insert_session()
            self._beat(session_key)
            written = {
                run_id: self._write_run(session_key, run_id, run, groups[run_id], has_placeholders)
                for run_id, run in runs.items()
            }
            kept = self._write_checkpoints(checkpoints, written)
        self._session_key = session_key
        return written, kept

    def delete_checkpoints(self, number: int) -> None:
        """Delete, in a transaction of its own, the checkpoints that a completed run leaves."""
        with self._lock:
            self._rows.delete_checkpoints(number)

    def rebuild(self, previous: sqlite3.Connection | None, known: Sequence[KnownRun]) -> dict[str, Row]:
        """Write what this kernel knows into a new file; return the row of each run, by its id."""
        self._sync_fully(True)
        with self._lock, transaction(self._connection):
            key, rows = rebuild(previous, self._connection, self._session, known, self._signer)
        self._session_key = key
        return rows

    def release(self) -> None:
        """Close the session, so that nobody has to find out that this process is gone."""
        with self._lock:
            if self._session_key is not None:
                self._connection.execute(
                    "UPDATE sessions SET closed_at = ? WHERE key = ?", (micros(self._clock.now()), self._session_key)
                )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _sync_fully(self, wanted: bool) -> None:
        """Have the next commit survive a power failure, or only the death of this process."""
        # Source: SQLite ignores a change of `synchronous` within a transaction, so it is made between two.
        if wanted != self._is_full_sync:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}")
            self._is_full_sync = wanted

    def _insert_session(self) -> int:
        key = self._rows.insert_session(self._session)
        note_file(self._connection, key)
        return key

    def _beat(self, session_key: int) -> None:
        """Update the heartbeat now and then; if the transaction fails, the next beat will do."""
        now = self._clock.monotonic()
        if now - self._beaten_at >= BEAT_S:
            self._beaten_at = now
            self._connection.execute(
                "UPDATE sessions SET heartbeat_at = ? WHERE key = ?", (micros(self._clock.now()), session_key)
            )

    def _write_run(
        self, session_key: int, run_id: str, run: HeldRun, new: list[ev.RunEvent], has_placeholders: bool
    ) -> Written:
        if run.backlog.has_dropped:
            return self._write_with_gaps(session_key, run_id, run, new, has_placeholders)
        events = [*run.backlog.whole(), *new]
        row, record = run.row, run.record
        if row is None and events and isinstance(events[0].data, ev.RunCreated):
            row, events[0] = self._rows.insert_run(session_key, events[0])
        elif row is None:
            row = self._rows.find_run(session_key, run_id, record.status)
        if has_placeholders:
            row, events = self._rows.write_one_by_one(row, events)
        else:
            row = self._rows.write_events(row, events)
        self._rows.insert_artifacts(row.number, events)
        new = events[len(run.backlog) :]
        record = fold(new, record)
        if record.number is None:  # it was folded before it had one
            record = msgspec.structs.replace(record, number=row.number)
        return Written(self._rows.write_record(row, record), record, new)

    def _write_with_gaps(
        self, session_key: int, run_id: str, run: HeldRun, new: list[ev.RunEvent], has_placeholders: bool
    ) -> Written:
        """Write a run with dropped events in its backlog: piece by piece, then what is new."""
        row, record = run.row, run.record
        for piece in run.backlog.pieces():
            if isinstance(piece, Backlog):
                part = HeldRun(record, row, piece)
                written = self._write_run(session_key, run_id, part, [], has_placeholders)
                row, record = written.row, written.record
            elif row is not None:  # always: a run's first event is never dropped
                row = self._rows.write_dropped(row, piece, record.text)
        return self._write_run(session_key, run_id, HeldRun(record, row), new, has_placeholders)

    def _write_checkpoints(
        self, checkpoints: Mapping[str, Checkpointed], written: Mapping[str, Written]
    ) -> dict[str, Checkpointed]:
        """Write the newest checkpoints of these runs; return them. One must wait until its event is written."""
        kept: dict[str, Checkpointed] = {}
        for run_id in checkpoints.keys() & written.keys():
            checkpointed, run = checkpoints[run_id], written[run_id]
            if checkpointed.seq < run.record.event_count:
                self._rows.write_checkpoint(run.row, run.record, checkpointed)
                kept[run_id] = checkpointed
        return kept


def has_end(events: Iterable[ev.RunEvent]) -> bool:
    """Return whether one of the events ends its run."""
    return any(event.data.TYPE in ev.END_TYPES for event in events)
