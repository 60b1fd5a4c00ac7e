"""What is written to the file: rows of sessions, runs, their events, checkpoints and artifacts, in transactions."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nbrun.core import (
    ArtifactFiles,
    Clock,
    RunRecord,
    RunStatus,
    StoreError,
    clean_text,
    events as ev,
    fold,
    folder_beside,
    shown,
)
from nbrun.store import payloads
from nbrun.store.backlog import Backlog, Dropped
from nbrun.store.connection import BUSY_TIMEOUT_S, begin, transaction
from nbrun.store.liveness import note_file

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from nbrun.store.signing import Signer


_LARGE = payloads.LIMIT
_log = logging.getLogger("nbrun")

Values = tuple[object, ...]

_INSERT_EVENT = "INSERT INTO events (run, seq, count, ts, attempt, parent, type, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE_RUN = "UPDATE runs SET status = ?, ended_at = ?, record = ? WHERE number = ?"
# A later attempt at a run numbers its files from 1 again: the newest file with an id is kept.
_INSERT_ARTIFACT = (
    "INSERT INTO artifacts (run, id, name, media_type, size, sha256, made_at) VALUES (?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (run, id) DO UPDATE SET name = excluded.name, media_type = excluded.media_type,"
    " size = excluded.size, sha256 = excluded.sha256, made_at = excluded.made_at"
)
# A run and those that it was resumed from. The steps are bounded, because a planted file may lead in a circle.
ORIGINS = """WITH RECURSIVE line (run, steps) AS (
  SELECT ?1, 0 UNION
  SELECT o.origin, line.steps + 1 FROM origins o JOIN line ON o.run = line.run
   WHERE o.kind = 'resume' AND line.steps < 1000
)"""

BEAT_S = 15.0
"""How often a commit also updates the heartbeat, for those who cannot see this process."""

_encoder = msgspec.msgpack.Encoder()


def micros(ts: float) -> int:
    """Return epoch seconds as whole microseconds."""
    return round(ts * 1_000_000)


def encode_record(record: RunRecord) -> bytes:
    """Return what the `runs` table keeps of a record: its brief form."""
    return _encoder.encode(record.brief())


@dataclass(frozen=True, slots=True)
class OpenRow:
    """The last row of a run while it takes more deltas."""

    key: int | None  # None until it is inserted
    seq: int
    ts: int
    kind: str
    attempt: int
    parent: str | None
    texts: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def takes(self, event: ev.RunEvent) -> bool:
        """Return whether the event belongs to this row."""
        return (
            len(self.texts) < payloads.PER_ROW
            and len(self.texts[-1]) < payloads.LONG
            and self.kind == event.data.TYPE
            and event.attempt == self.attempt
            and event.parent == self.parent
        )

    def values(self, number: int) -> Values:
        """Return the values to insert."""
        return (
            number, self.seq, len(self.texts), self.ts, self.attempt, self.parent, self.kind,
            payloads.encode(self.texts, self.steps),
        )  # fmt: skip


class Row(NamedTuple):
    """What is known of a run's rows, as far as the next write needs it."""

    number: int
    status: RunStatus
    deltas: OpenRow | None = None


class Checkpointed(NamedTuple):
    """A checkpoint as it is stored; `ts` in microseconds."""

    seq: int
    ts: int
    state: bytes


class IdTaken(Exception):
    """The file already has a run with this id; `args[0]` is the id."""


class RowWriter:
    """Writes rows in a transaction.

    It remembers nothing of what it has committed: a caller that rolls back drops what was returned, one that
    commits passes it in again. Statements whose result is not needed are collected and executed together at the
    commit: executing each by itself costs more than its row.

    Threads: the writer's only.
    """

    def __init__(
        self, connection: sqlite3.Connection, files: ArtifactFiles | None = None, signer: Signer | None = None
    ) -> None:
        self._connection = connection
        self._files = files  # for what is too large for a row
        self._signer = signer  # of runs that this kernel has started; None for runs from elsewhere
        self._events: list[Values] = []
        self._records: list[Values] = []

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is written within, or nothing; no other connection writes meanwhile."""
        self.begin()
        try:
            yield
            self.commit()
        except BaseException:
            self._events.clear()
            self._records.clear()
            if self._connection.in_transaction:  # SQLite itself may have ended it
                self._connection.execute("ROLLBACK")
            raise

    def begin(self) -> None:
        """Begin a transaction."""
        begin(self._connection)

    def commit(self) -> None:
        """Write what was collected, and commit."""
        self.flush()
        self._connection.execute("COMMIT")

    def flush(self) -> None:
        """Write what was collected."""
        events, self._events = self._events, []
        records, self._records = self._records, []
        if events:
            self._connection.executemany(_INSERT_EVENT, events)
        if records:
            self._connection.executemany(_UPDATE_RUN, records)

    # --- sessions and runs -----------------------------------------------------------------------

    def insert_session(self, values: Values) -> int:
        """Insert the session; return its key."""
        cursor = self._connection.execute(
            "INSERT INTO sessions (session_id, notebook, host, boot_id, pid_namespace, pid,"
            " process_started_at, started_at, heartbeat_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )
        return int(cursor.lastrowid or 0)

    def insert_run(self, session_key: int, created: ev.RunEvent) -> tuple[Row, ev.RunEvent]:
        """Insert a run; return its row, and its first event with the number that it was given.

        Raises `IdTaken` if it may be started only once and the file has a run with its id, perhaps of another
        kernel, or if it resumes a run that has been resumed already.
        """
        data = created.data
        assert isinstance(data, ev.RunCreated)  # noqa: S101 - the caller has looked
        record = fold([created])
        if self._is_taken(created.run_id, data):
            raise IdTaken(created.run_id)
        number = self.insert_row(None, session_key, record)
        origin = data.origin
        if origin is not None and origin.number is not None:
            values = (number, origin.number, origin.kind)
            self._connection.execute("INSERT INTO origins (run, origin, kind) VALUES (?, ?, ?)", values)
        numbered = msgspec.structs.replace(data, number=number)
        return Row(number, record.status), msgspec.structs.replace(created, data=numbered)

    def _is_taken(self, run_id: str, data: ev.RunCreated) -> bool:
        """Return whether there is another run where there may be only one."""
        # Of the runs that resume the same one, those that are in progress or completed count.
        sql = "SELECT 1 FROM runs WHERE run_id = ?"
        key: object = run_id if data.options.get(ev.ONCE) else None
        if key is None and data.origin is not None and data.origin.kind == ev.RESUME:
            key = data.origin.number
            sql = (
                "SELECT 1 FROM origins o JOIN runs r ON r.number = o.run WHERE o.origin = ?"
                " AND o.kind = 'resume' AND r.status NOT IN ('failed', 'cancelled', 'lost')"
            )
        return key is not None and self._connection.execute(sql, (key,)).fetchone() is not None

    def insert_row(self, number: int | None, session_key: int, record: RunRecord) -> int:
        """Insert the row of a run, with the next number unless one is given; return its number."""
        cursor = self._connection.execute(
            "INSERT INTO runs (number, session, run_id, name, status, created_at, record, parent, agent, model,"
            " signature, in_set, position) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number, session_key, record.run_id, record.name, record.status, micros(record.created_at),
                encode_record(record), record.parent_id, record.agent, record.model,
                None if self._signer is None else self._signer.of_run(record.run_id, record),
                *self._place_in_set(session_key, record),
            ),
        )  # fmt: skip
        return int(cursor.lastrowid or 0)

    def _place_in_set(self, session_key: int, record: RunRecord) -> tuple[int | None, int | None]:
        """Return the set that a run belongs to, itself or by the run above it, and its position there."""
        if record.member is not None:
            return record.member.set, record.member.index
        if record.parent_id is None:
            return None, None
        found = self._connection.execute(
            "SELECT in_set FROM runs WHERE session = ? AND run_id = ?", (session_key, record.parent_id)
        ).fetchone()
        return (None, None) if found is None else (found[0], None)

    def find_run(self, session_key: int, run_id: str, status: RunStatus) -> Row:
        """Return the row of a run that is no longer in memory: its detached work has sent something."""
        found = self._connection.execute(
            "SELECT number FROM runs WHERE session = ? AND run_id = ?", (session_key, run_id)
        ).fetchone()
        if found is None:
            raise sqlite3.IntegrityError(f"{run_id} was never created")
        return Row(found[0], status)

    def write_record(self, row: Row, record: RunRecord) -> Row:
        """Write the brief record if the status has changed."""
        if record.status is row.status:
            return row
        self.update_row(row.number, record)
        return Row(row.number, record.status, row.deltas)

    def update_row(self, number: int, record: RunRecord) -> None:
        """Write the columns of a run that change."""
        ended_at = None if record.ended_at is None else micros(record.ended_at)
        self._records.append((record.status, ended_at, encode_record(record), number))

    # --- events ----------------------------------------------------------------------------------

    def write_events(self, row: Row, events: Sequence[ev.RunEvent]) -> Row:
        """Write events of one run, by seq; deltas join the run's open row."""
        opened = row.deltas
        if opened is not None:  # a copy: the original must not change if this is rolled back
            opened = replace(opened, texts=list(opened.texts), steps=list(opened.steps))
        for event in events:
            if opened is not None and not opened.takes(event):
                if opened.key is None:
                    self._events.append(opened.values(row.number))
                else:
                    self._update(opened)
                opened = None
            if event.data.TYPE not in ev.DELTA_TYPES:
                values = _values(row.number, event)
                if len(values[-1]) > _LARGE:  # type: ignore[arg-type]  # the last one is its data
                    values = self._moved_to_file(row.number, event) or values
                self._events.append(values)
                continue
            if opened is None:
                opened = OpenRow(None, event.seq, micros(event.ts), event.type, event.attempt, event.parent)
            opened.texts.append(event.data.text)  # type: ignore[attr-defined]  # both delta types have one
            opened.steps.append(micros(event.ts) - opened.ts)
        if opened is None:
            return row if row.deltas is None else Row(row.number, row.status)
        if opened.key is None:
            cursor = self._connection.execute(_INSERT_EVENT, opened.values(row.number))
            opened = replace(opened, key=cursor.lastrowid)
        else:
            self._update(opened)
        return Row(row.number, row.status, opened)

    def _update(self, opened: OpenRow) -> None:
        self._connection.execute(
            "UPDATE events SET count = ?, data = ? WHERE key = ?",
            (len(opened.texts), payloads.encode(opened.texts, opened.steps), opened.key),
        )

    def _moved_to_file(self, number: int, event: ev.RunEvent) -> Values | None:
        """Return the row of an event whose payload was moved to a file; None if it has to stay in the row."""
        if self._files is None:
            return None
        try:
            found = payloads.moved_to_file(event, self._files)
        except (OSError, StoreError) as error:
            _log.info("%s: a large value stays in the database (%s)", event.run_id, error)
            return None
        if found is None:
            return None
        event, made = found
        self.insert_artifacts(number, [msgspec.structs.replace(event, data=made)])
        return _values(number, event)

    def write_one_by_one(self, row: Row, events: Sequence[ev.RunEvent]) -> tuple[Row, list[ev.RunEvent]]:
        """Write events one by one, with a placeholder for one that cannot be stored; return what was written."""
        # The log stays without a gap, and an end stays an end.
        written: list[ev.RunEvent] = []
        for event in events:
            self._connection.execute("SAVEPOINT one")
            try:
                after = self.write_events(row, [event])
                self.flush()
            except Exception as error:
                self._events.clear()
                self._connection.execute("ROLLBACK TO one")
                event = _placeholder(event, error)
                after = self.write_events(row, [event])
                self.flush()
            row = after
            self._connection.execute("RELEASE one")
            written.append(event)
        return row, written

    def write_dropped(self, row: Row, dropped: Dropped, text: str) -> Row:
        """Write what replaces dropped events, a few at a time."""
        for part in dropped.parts(text):
            row = self.write_events(row, part)
            self.flush()
        return row

    # --- beside the log --------------------------------------------------------------------------

    def insert_artifacts(self, number: int, events: Iterable[ev.RunEvent]) -> None:
        """List the files that these events of a run name; the files themselves are written already."""
        for event in events:
            data = event.data
            if type(data) is ev.Artifact and data.sha256:  # the fastest check: every event passes here
                values = (number, data.id, data.name, data.media_type, data.size, data.sha256, micros(event.ts))
                self._connection.execute(_INSERT_ARTIFACT, values)

    def write_checkpoint(self, row: Row, record: RunRecord, checkpointed: Checkpointed) -> None:
        """Write the newest checkpoint of a run in place of the one before."""
        seq, _, state = checkpointed
        signer = self._signer
        signature = None if signer is None else signer.of_checkpoint(record.session_id, record.run_id, seq, state)
        self._connection.execute(
            "INSERT OR REPLACE INTO checkpoints (run, seq, ts, state, signature) VALUES (?, ?, ?, ?, ?)",
            (row.number, *checkpointed, signature),
        )

    def delete_checkpoints(self, number: int) -> None:
        """Delete the checkpoints of a completed run and of those that it was resumed from."""
        self._connection.execute(
            f"{ORIGINS} DELETE FROM checkpoints WHERE run IN (SELECT run FROM line)",  # noqa: S608 - ours
            (number,),
        )


@dataclass(slots=True)
class HeldRun:
    """A run in the writer's hands."""

    record: RunRecord
    row: Row | None = None  # None until it is in the file
    backlog: Backlog | None = None  # folded into the record, and not in the file; None if all is there
    tool_bytes: int = 0  # that its tools have taken and given since they were last cut, about

    def unsaved(self) -> Sequence[ev.RunEvent]:
        """Return the events of its backlog that were not dropped."""
        return () if self.backlog is None else self.backlog.whole()


@dataclass(frozen=True, slots=True)
class Written:
    """What a transaction wrote of a run; the events are those beyond its backlog, with their numbers."""

    row: Row
    record: RunRecord
    events: list[ev.RunEvent]


Rebuild = Callable[[sqlite3.Connection, Values, "Signer | None"], tuple[int, dict[str, Row]]]
"""Writes a session and its runs into a new file, in a transaction; returns its key, and each run's row by id."""


class FileWriter:
    """Writes runs in whole transactions: if a method raises, nothing has changed.

    `connection` is None while there is no file, `path` also for a store in memory; `session` is the session's row, by
    the columns of its table.

    Threads: the writer's only; the connection is used under `lock`, which readers of a store in memory share.
    """

    def __init__(
        self,
        connection: sqlite3.Connection | None,
        path: Path | None,
        lock: threading.RLock,
        session: Values,
        clock: Clock,
        signer: Signer | None = None,
    ) -> None:
        self._signer = signer
        self._lock = lock
        self._session = session
        self._clock = clock
        self._session_key: int | None = None
        self._beaten_at = clock.monotonic()  # the session is inserted with its first beat
        self._is_stand_in = connection is None
        self._connection = connection or sqlite3.connect(":memory:", check_same_thread=False)
        self._rows = self._row_writer(path)
        self._is_full_sync = False
        self._busy_wait_s = BUSY_TIMEOUT_S

    def _row_writer(self, path: Path | None) -> RowWriter:
        files = None if path is None else ArtifactFiles(folder_beside(path))
        return RowWriter(self._connection, files, self._signer)

    def take(self, connection: sqlite3.Connection, path: Path | None, wait_s: float) -> None:
        """Use this connection from now on, which may be to another file, and wait so long for a lock."""
        if connection is not self._connection:
            if self._is_stand_in:
                self._connection.close()
                self._is_stand_in = False
            self._connection = connection
            self._rows = self._row_writer(path)
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
        ends = (has_end(run.unsaved()) or has_end(groups[key]) for key, run in runs.items())
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

    def rebuild(self, rebuild: Rebuild) -> dict[str, Row]:
        """Write what this kernel knows into a new file; return the row of each run, by its id."""
        self._sync_fully(True)
        with self._lock, transaction(self._connection):
            key, rows = rebuild(self._connection, self._session, self._signer)
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
        if run.backlog is not None and run.backlog.has_dropped:
            return self._write_with_gaps(session_key, run_id, run, run.backlog, new, has_placeholders)
        unsaved = run.unsaved()
        events = [*unsaved, *new]
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
        new = events[len(unsaved) :]
        record = fold(new, record)
        if record.number is None:  # it was folded before it had one
            record = msgspec.structs.replace(record, number=row.number)
        return Written(self._rows.write_record(row, record), record, new)

    def _write_with_gaps(
        self,
        session_key: int,
        run_id: str,
        run: HeldRun,
        backlog: Backlog,
        new: list[ev.RunEvent],
        has_placeholders: bool,
    ) -> Written:
        """Write a run with dropped events in its backlog: piece by piece, then what is new."""
        row, record = run.row, run.record
        for piece in backlog.pieces():
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


def delete_stale_checkpoints(connection: sqlite3.Connection) -> None:
    """Delete the checkpoints of completed runs: their kernels died before they had done that."""
    connection.execute(
        """WITH RECURSIVE line (kept, run) AS (
  SELECT run, run FROM checkpoints UNION
  SELECT line.kept, o.run FROM origins o JOIN line ON o.origin = line.run WHERE o.kind = 'resume'
)
DELETE FROM checkpoints WHERE run IN (
  SELECT line.kept FROM line JOIN runs r ON r.number = line.run WHERE r.status = 'completed'
)"""
    )


def _values(number: int, event: ev.RunEvent) -> Values:
    return (number, event.seq, 1, micros(event.ts), event.attempt, event.parent, event.type, ev.encode_data(event.data))


def _beginning(value: Any, why: str) -> Any:
    """Return a value that is large, or the large parts of a dict, as their beginning."""
    if isinstance(value, dict):
        return {name: _beginning(part, why) for name, part in value.items()}
    if isinstance(value, msgspec.Struct) or ev.size_of(value) <= payloads.LIMIT // 10:
        return value
    return f"{shown(value[: 2 * payloads.HEAD] if isinstance(value, str) else value, payloads.HEAD)} ({why})"


def _placeholder(event: ev.RunEvent, error: Exception) -> ev.RunEvent:
    """Return an event that replaces one that cannot be stored."""
    what = clean_text(f"an event of type {event.type} could not be stored: {error}")
    data: ev.EventData
    match event.data:
        case ev.RunCancelled(cause=cause, detached=detached):
            data = ev.RunCancelled(cause, error=ev.ErrorInfo("NotStored", what), detached=detached)
        case ev.RunCompleted(detached=detached):  # it did complete; only this kernel knows its output
            data = ev.RunCompleted({"$type": "NotStored", "$repr": what}, detached=detached)
        case ev.RunCreated():  # everything else depends on it: what is large keeps its beginning
            kept = {name: _beginning(getattr(event.data, name), what) for name in event.data.__struct_fields__}
            data = ev.RunCreated(**kept)
        case ev.RunFailed(detached=detached):
            data = ev.RunFailed(ev.ErrorInfo("NotStored", what), detached=detached)
        case _:
            data = ev.Log(what, "warning")
    return ev.RunEvent(event.seq, event.ts, event.run_id, event.attempt, data)


def has_end(events: Iterable[ev.RunEvent]) -> bool:
    """Return whether one of the events ends its run."""
    return any(event.data.TYPE in ev.END_TYPES for event in events)
