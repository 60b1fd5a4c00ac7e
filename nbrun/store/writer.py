"""The writer: one thread that commits events in groups and tells its source what is on disk."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import msgspec

from nbrun import events as ev
from nbrun.record import LIVE, RunRecord, RunStatus
from nbrun.store import deltas, reader
from nbrun.store.lease import ProcessIdentity, this_process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.clock import Clock

SOON_S = 0.005
"""How long the writer gathers events before it commits; endings and new runs are not kept waiting."""
LINGER_S = 0.045
"""How much longer it gathers while there is only text."""
RETRY_S = 1.0
"""How long it waits before it tries again what could not be written."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What became public of one run: its record, and the events that led there from the last one."""

    run_id: str
    record: RunRecord
    events: Sequence[ev.RunEvent]


class Source(Protocol):
    """Where the writer gets events from; its methods are called on the writer's thread only."""

    def drain(self) -> list[ev.RunEvent]:
        """Return all events that wait: numbered, redacted, in order."""
        ...

    def record(self, run_id: str) -> RunRecord | None:
        """Return what is public of a run."""
        ...

    def publish(self, committed: list[Committed], problem: str | None) -> None:
        """Make this public; `problem` says why it is not on disk, if it is not."""
        ...


@dataclass(frozen=True, slots=True)
class _OpenRow:
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
        return (
            len(self.texts) < deltas.PER_ROW
            and event.type == self.kind
            and event.attempt == self.attempt
            and event.parent == self.parent
        )

    def copy(self) -> _OpenRow:
        return replace(self, texts=list(self.texts), steps=list(self.steps))


@dataclass(frozen=True, slots=True)
class _Row:
    """What the file says of a live run, as far as the next write needs it."""

    number: int
    status: RunStatus
    deltas: _OpenRow | None = None


class Writer:
    """Commits what its source gives.

    Threads: `ring()` and `close()` from any thread; the rest is of the thread `nbrun-writer`. The connection
    is used under `lock`, which a reader of a store in memory shares.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        lock: threading.RLock,
        source: Source,
        *,
        session_id: str,
        notebook: str | None,
        clock: Clock,
    ) -> None:
        identity, started_at = this_process(), micros(clock.now())
        self._connection = connection
        self._lock = lock
        self._source = source
        self._session_id = session_id
        self._session_row = (
            session_id, notebook, identity.host, identity.boot_id, identity.pid_namespace, identity.pid,
            identity.started_at, started_at, started_at,
        )  # fmt: skip
        self._clock = clock
        self._session_key: int | None = None
        self._records: dict[str, RunRecord] = {}
        self._rows: dict[str, _Row] = {}
        self._backlog: list[ev.RunEvent] = []
        self._is_full_sync = False
        self._any = threading.Event()
        self._now = threading.Event()
        self._has_more_than_text = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._main, name="nbrun-writer", daemon=True)
        self._thread.start()

    def ring(self, *, is_text: bool = False, is_urgent: bool = False) -> None:
        """Say that the source has events; urgent ones are committed without waiting for more."""
        if not is_text:
            self._has_more_than_text = True
        if is_urgent and not self._now.is_set():
            self._now.set()
        if not self._any.is_set():
            self._any.set()

    def close(self, timeout_s: float) -> bool:
        """Write what is there, release the lease and stop; return whether that was done in time."""
        self._is_stopping = True
        self._now.set()
        self._any.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # --- the thread ------------------------------------------------------------------------------

    def _main(self) -> None:
        while not self._is_stopping:
            self._gather()
            self._cycle()
        self._cycle()  # what came while the last one was written
        self._release()

    def _gather(self) -> None:
        """Wait for events, then a moment more, so that many share one commit."""
        self._any.wait(RETRY_S if self._backlog else None)
        if not self._now.wait(SOON_S) and not self._has_more_than_text:
            self._now.wait(LINGER_S)
        # Cleared before the source is drained: what comes after that rings again.
        self._any.clear()
        self._now.clear()
        self._has_more_than_text = False

    def _cycle(self) -> None:
        events = self._source.drain()
        if not events and not self._backlog:
            return
        had_backlog = bool(self._backlog)
        problem: str | None = None
        try:
            with self._lock:
                events = self._write(events)
        except sqlite3.Error as error:
            problem = f"{error}"
            self._backlog.extend(events)
            self._fold(events)
        committed = self._grouped(events)
        if had_backlog and problem is None:  # what was shown as not saved is saved now
            known = {item.run_id for item in committed}
            committed += [
                Committed(run_id, self._records[run_id], ())
                for run_id in self._rows
                if run_id not in known
            ]
        self._source.publish(committed, problem)
        self._forget_ended()

    def _grouped(self, events: list[ev.RunEvent]) -> list[Committed]:
        groups: dict[str, list[ev.RunEvent]] = {}
        for event in events:
            groups.setdefault(event.run_id, []).append(event)
        return [Committed(run_id, self._records[run_id], group) for run_id, group in groups.items()]

    def _forget_ended(self) -> None:
        if self._backlog:
            return
        for run_id in [run_id for run_id, record in self._records.items() if not record.is_live]:
            del self._records[run_id]
            self._rows.pop(run_id, None)

    # --- one transaction -------------------------------------------------------------------------

    def _write(self, new: list[ev.RunEvent]) -> list[ev.RunEvent]:
        """Commit the backlog and `new`; return `new` with the numbers that its runs were given.

        Nothing of this object changes when it raises, so that the same can be tried again.
        """
        self._sync_fully(any(event.type in ev.END_TYPES for event in (*self._backlog, *new)))
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            session_key = self._session_key or self._insert_session()
            rows: dict[str, _Row] = {}
            backlog = [self._enter(event, session_key, rows) for event in self._backlog]
            entered = [self._enter(event, session_key, rows) for event in new]
            records = dict(self._folded(entered))
            for event in backlog:  # folded when it could not be written, and without its number
                known = records.get(event.run_id) or self._records[event.run_id]
                records[event.run_id] = msgspec.structs.replace(
                    known, number=rows[event.run_id].number
                )
            self._write_events([*backlog, *entered], rows)
            self._write_records(records, rows)
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        self._session_key = session_key
        self._backlog = []
        self._records.update(records)
        self._rows.update(rows)
        return entered

    def _sync_fully(self, wanted: bool) -> None:
        """Have the next commit survive a power loss, or only the death of this process.

        Source: SQLite ignores a change of `synchronous` within a transaction, so it is made between two.
        """
        if wanted != self._is_full_sync:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}")
            self._is_full_sync = wanted

    def _insert_session(self) -> int:
        cursor = self._connection.execute(
            "INSERT INTO sessions (session_id, notebook, host, boot_id, pid_namespace, pid, process_started_at,"
            " started_at, heartbeat_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self._session_row,
        )
        return int(cursor.lastrowid or 0)

    def _enter(self, event: ev.RunEvent, session_key: int, rows: dict[str, _Row]) -> ev.RunEvent:
        """See to it that the event's run has a row; return a creation with the number that it gave."""
        run_id = event.run_id
        if not isinstance(event.data, ev.RunCreated) or run_id in self._rows:
            if run_id not in rows:
                known = self._rows.get(run_id) or self._recall(run_id, session_key)
                rows[run_id] = replace(known, deltas=known.deltas.copy() if known.deltas else None)
            return event
        record = RunRecord().apply([event])
        cursor = self._connection.execute(
            "INSERT INTO runs (session, run_id, name, status, created_at, inputs, record)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                session_key, run_id, record.name, record.status, micros(event.ts), event.data.inputs(),
                reader.encode_record(record),
            ),
        )  # fmt: skip
        number = int(cursor.lastrowid or 0)
        rows[run_id] = _Row(number, record.status)
        return msgspec.structs.replace(
            event, data=msgspec.structs.replace(event.data, number=number)
        )

    def _recall(self, run_id: str, session_key: int) -> _Row:
        """Return the row of a run that had ended: its detached work has something to tell."""
        row = self._connection.execute(
            "SELECT number FROM runs WHERE session = ? AND run_id = ?", (session_key, run_id)
        ).fetchone()
        if run_id not in self._records:  # else it knows of events that could not be written yet
            self._records[run_id] = reader.read_record(self._connection, row[0])
        return _Row(row[0], self._records[run_id].status)

    def _folded(self, events: list[ev.RunEvent]) -> list[tuple[str, RunRecord]]:
        groups: dict[str, list[ev.RunEvent]] = {}
        for event in events:
            groups.setdefault(event.run_id, []).append(event)
        return [(run_id, self._base(run_id).apply(group)) for run_id, group in groups.items()]

    def _base(self, run_id: str) -> RunRecord:
        """Return the record that new events of a run go on from; an ended one is known to the source only."""
        return self._records.get(run_id) or self._source.record(run_id) or RunRecord()

    def _fold(self, events: list[ev.RunEvent]) -> None:
        self._records.update(self._folded(events))

    def _write_events(self, events: list[ev.RunEvent], rows: dict[str, _Row]) -> None:
        inserts: list[tuple[object, ...]] = []
        for event in events:
            row = rows[event.run_id]
            if event.type in ev.DELTA_TYPES:
                rows[event.run_id] = self._add_delta(event, row, inserts)
                continue
            if row.deltas is not None:
                self._put_deltas(row.number, row.deltas, inserts)
                rows[event.run_id] = replace(row, deltas=None)
            inserts.append(
                (
                    row.number, event.seq, 1, micros(event.ts), event.attempt, event.parent, event.type,
                    ev.encode_data(event.data),
                )
            )  # fmt: skip
        self._connection.executemany(
            "INSERT INTO events (run, seq, count, ts, attempt, parent, type, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            inserts,
        )
        for run_id, row in rows.items():
            if row.deltas is not None and row.deltas.texts:
                rows[run_id] = replace(row, deltas=self._keep_open(row.number, row.deltas))

    def _add_delta(self, event: ev.RunEvent, row: _Row, inserts: list[tuple[object, ...]]) -> _Row:
        opened = row.deltas
        if opened is not None and not opened.takes(event):
            self._put_deltas(row.number, opened, inserts)
            opened = None
        if opened is None:
            opened = _OpenRow(
                None, event.seq, micros(event.ts), event.type, event.attempt, event.parent
            )
            row = replace(row, deltas=opened)
        opened.texts.append(event.data.text)  # type: ignore[attr-defined]  # both delta types have a text
        opened.steps.append(micros(event.ts) - opened.ts)
        return row

    def _put_deltas(self, number: int, row: _OpenRow, inserts: list[tuple[object, ...]]) -> None:
        """Write a row that takes no more: over its first form, or as one of the inserts."""
        if row.key is None:
            inserts.append(_delta_values(number, row))
        else:
            self._update_deltas(row)

    def _keep_open(self, number: int, row: _OpenRow) -> _OpenRow:
        """Write a row that may take more, and remember where it is."""
        if row.key is not None:
            self._update_deltas(row)
            return row
        cursor = self._connection.execute(
            "INSERT INTO events (run, seq, count, ts, attempt, parent, type, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            _delta_values(number, row),
        )
        return replace(row, key=cursor.lastrowid)

    def _update_deltas(self, row: _OpenRow) -> None:
        self._connection.execute(
            "UPDATE events SET count = ?, data = ? WHERE key = ?",
            (len(row.texts), deltas.encode(row.texts, row.steps), row.key),
        )

    def _write_records(self, records: dict[str, RunRecord], rows: dict[str, _Row]) -> None:
        for run_id, record in records.items():
            row = rows[run_id]
            if record.status != row.status:
                self._connection.execute(
                    "UPDATE runs SET status = ?, record = ? WHERE number = ?",
                    (record.status, reader.encode_record(record), row.number),
                )
                rows[run_id] = replace(row, status=record.status)

    def _release(self) -> None:
        """Give up the lease, so that nobody has to find out that this process is gone."""
        try:
            with self._lock:
                if self._session_key is not None and not self._backlog:
                    self._connection.execute(
                        "UPDATE sessions SET closed_at = ? WHERE key = ?",
                        (micros(self._clock.now()), self._session_key),
                    )
                self._connection.close()
        except sqlite3.Error as error:  # the lease then lapses with the process, as after a crash
            self._source.publish([], f"{error}")


def _delta_values(number: int, row: _OpenRow) -> tuple[object, ...]:
    return (
        number, row.seq, len(row.texts), row.ts, row.attempt, row.parent, row.kind,
        deltas.encode(row.texts, row.steps),
    )  # fmt: skip


def micros(ts: float) -> int:
    """Return epoch seconds as whole microseconds."""
    return round(ts * 1_000_000)


def mark_lost(connection: sqlite3.Connection, now: float) -> int:
    """Mark the live-looking runs of dead kernels as lost, with the time of their last event.

    Returns
    -------
    How many there were. Runs of a kernel that cannot be seen from here (another host) are left alone.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = 0
        for session_key, identity in _open_sessions(connection):
            if identity.is_alive() is not False:
                continue
            numbers = connection.execute(
                "SELECT number FROM runs WHERE session = ? AND status IN (?, ?, ?, ?)",
                (session_key, *LIVE),
            ).fetchall()
            for (number,) in numbers:
                _mark_one_lost(connection, number, now)
            found += len(numbers)
            connection.execute(
                "UPDATE sessions SET closed_at = ? WHERE key = ?", (micros(now), session_key)
            )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return found


def _open_sessions(connection: sqlite3.Connection) -> list[tuple[int, ProcessIdentity]]:
    rows = connection.execute(
        "SELECT key, host, boot_id, pid_namespace, pid, process_started_at FROM sessions WHERE closed_at IS NULL"
    ).fetchall()
    return [(row[0], ProcessIdentity(*row[1:])) for row in rows]


def _mark_one_lost(connection: sqlite3.Connection, number: int, now: float) -> None:
    record = reader.read_record(connection, number)
    lost = ev.RunEvent(
        record.event_count,
        now,
        record.run_id,
        0,
        ev.RunLost("its kernel died", record.last_event_at),
    )
    connection.execute(
        "INSERT INTO events (run, seq, count, ts, attempt, parent, type, data) VALUES (?, ?, 1, ?, 0, NULL, ?, ?)",
        (number, lost.seq, micros(now), lost.type, ev.encode_data(lost.data)),
    )
    record = record.apply([lost])
    connection.execute(
        "UPDATE runs SET status = ?, record = ? WHERE number = ?",
        (record.status, reader.encode_record(record), number),
    )
