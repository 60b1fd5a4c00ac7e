"""What one transaction writes: sessions, runs, their events and their brief records."""

from __future__ import annotations

import logging
import sqlite3
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from nbrun.core import events as ev
from nbrun.core.errors import StoreError
from nbrun.core.record import fold
from nbrun.core.text import clean_text
from nbrun.store import attachments as checkpoints, payloads, payloads as large, queries as reader
from nbrun.store.attachments import insert_artifacts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.core.artifacts import ArtifactFiles
    from nbrun.core.record import RunRecord, RunStatus
    from nbrun.store.attachments import Checkpointed
    from nbrun.store.backlog import Dropped

_LARGE = large.LIMIT
_log = logging.getLogger("nbrun")

_INSERT_EVENT = (
    "INSERT INTO events (run, seq, count, ts, attempt, parent, type, data)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)

_UPDATE_RUN = "UPDATE runs SET status = ?, ended_at = ?, record = ? WHERE number = ?"

TRIES, TRY_S = 100, 0.004
"""How often, and how far apart, a writer behind many others tries once more."""

Values = tuple[object, ...]


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
        """Return what is inserted for it."""
        return (
            number, self.seq, len(self.texts), self.ts, self.attempt, self.parent, self.kind,
            payloads.encode(self.texts, self.steps),
        )  # fmt: skip


class Row(NamedTuple):
    """What the file says of a run, as far as its next write needs it."""

    number: int
    status: RunStatus
    deltas: OpenRow | None = None


class IdTaken(Exception):
    """A run with this id is in the file already; `args[0]` is the id."""


class Ledger:
    """Writes in a transaction, which it begins and commits.

    It keeps nothing of what it has committed: a caller that rolls back drops what was returned, one that
    commits hands it in again. What has no answer to wait for is collected, and written at the commit in one go:
    a statement of its own for each costs more than its row.

    Threads: of the writer's thread.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.files: ArtifactFiles | None = None  # for what is too large for a row
        self._events: list[Values] = []
        self._records: list[Values] = []

    def begin(self) -> None:
        """Begin a transaction, in which no other connection writes."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            self._begin_among_many(error)

    def _begin_among_many(self, error: sqlite3.OperationalError) -> None:
        """Begin where SQLite has waited in vain: not for one that holds the file, it may be, but behind many.

        Source: its tries come to lie 0.1 s apart, so that among four busy writers one in some ten thousand
        finds none that succeeds in a second.
        """
        (waited_ms,) = self._connection.execute("PRAGMA busy_timeout").fetchone()
        if waited_ms < TRIES * TRY_S * 1000:  # no second look where the lock is known to be there
            raise error
        self._connection.execute("PRAGMA busy_timeout = 0")
        try:
            for left in reversed(range(TRIES)):
                time.sleep(TRY_S)
                try:
                    self._connection.execute("BEGIN IMMEDIATE")
                    break
                except sqlite3.OperationalError:
                    if not left:
                        raise
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {waited_ms}")

    def commit(self) -> None:
        """Write what was collected, and commit."""
        self.flush()
        self._connection.execute("COMMIT")

    def rollback(self) -> None:
        """Take all back; also where the transaction is over already, as SQLite ends one itself in need."""
        self._events.clear()
        self._records.clear()
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def flush(self) -> None:
        """Write what was collected."""
        events, self._events = self._events, []
        records, self._records = self._records, []
        if events:
            self._connection.executemany(_INSERT_EVENT, events)
        if records:
            self._connection.executemany(_UPDATE_RUN, records)

    def insert_session(self, values: Values) -> int:
        """Insert the session; return its key."""
        cursor = self._connection.execute(
            "INSERT INTO sessions (session_id, notebook, host, boot_id, pid_namespace, pid,"
            " process_started_at, started_at, heartbeat_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )
        return int(cursor.lastrowid or 0)

    def insert_run(self, session_key: int, created: ev.RunEvent) -> tuple[Row, ev.RunEvent]:
        """Insert a run; return its row, and its creation with the number that it was given.

        Raises
        ------
        IdTaken
            It is to be started once only, and the file has a run with its id: of another kernel, perhaps, that
            came first; or it goes on from a run that another one goes on from already. The transaction that is
            open here keeps all others out meanwhile.
        """
        data = created.data
        assert isinstance(data, ev.RunCreated)  # noqa: S101 - the writer looks before it calls
        record = fold([created])
        if self._is_taken(created.run_id, data):
            raise IdTaken(created.run_id)
        number = self.insert_row(None, session_key, record, data.inputs())
        origin = data.origin
        if origin is not None and origin.number is not None:
            checkpoints.insert_origin(self._connection, number, origin.number, origin.kind)
        numbered = msgspec.structs.replace(data, number=number)
        return Row(number, record.status), msgspec.structs.replace(created, data=numbered)

    def insert_row(
        self, number: int | None, session_key: int, record: RunRecord, inputs: str | None
    ) -> int:
        """Insert the row of a run, with the next number unless one is given; return its number."""
        cursor = self._connection.execute(
            "INSERT INTO runs (number, session, run_id, name, status, created_at, inputs, record, parent, agent, model)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number, session_key, record.run_id, record.name, record.status, micros(record.created_at),
                inputs, reader.encode_record(record), record.parent_id, record.agent, record.model,
            ),
        )  # fmt: skip
        return int(cursor.lastrowid or 0)

    def _is_taken(self, run_id: str, data: ev.RunCreated) -> bool:
        """Return whether what this run is to be the only one of is there already."""
        if data.options.get(ev.ONCE):
            same = "SELECT 1 FROM runs WHERE run_id = ?"
            return self._connection.execute(same, (run_id,)).fetchone() is not None
        origin = data.origin
        if origin is None or origin.kind != ev.RESUME or origin.number is None:
            return False
        return checkpoints.is_resumed(self._connection, origin.number)

    def find_run(self, session_key: int, run_id: str, status: RunStatus) -> Row:
        """Return the row of a run that is no longer kept in mind: its detached work has something to tell.

        Raises
        ------
        sqlite3.IntegrityError
            There is no such run.
        """
        found = self._connection.execute(
            "SELECT number FROM runs WHERE session = ? AND run_id = ?", (session_key, run_id)
        ).fetchone()
        if found is None:
            raise sqlite3.IntegrityError(f"{run_id} was never created")
        return Row(found[0], status)

    def write_events(self, row: Row, events: Sequence[ev.RunEvent]) -> Row:
        """Write events of one run, by seq; deltas join the run's open row."""
        opened = row.deltas
        if opened is not None:  # a copy: what was handed in must stand if this is rolled back
            opened = replace(opened, texts=list(opened.texts), steps=list(opened.steps))
        for event in events:
            if opened is not None and not opened.takes(event):
                self._put(row.number, opened)
                opened = None
            if event.data.TYPE not in ev.DELTA_TYPES:
                values = _values(row.number, event)
                if len(values[-1]) > _LARGE:  # type: ignore[arg-type]  # the last one is its data
                    values = self._outsourced(row.number, event) or values
                self._events.append(values)
                continue
            if opened is None:
                opened = OpenRow(
                    None, event.seq, micros(event.ts), event.type, event.attempt, event.parent
                )
            opened.texts.append(event.data.text)  # type: ignore[attr-defined]  # both delta types have one
            opened.steps.append(micros(event.ts) - opened.ts)
        if opened is not None:
            opened = self._keep_open(row.number, opened)
        return row if opened is row.deltas else Row(row.number, row.status, opened)

    def _outsourced(self, number: int, event: ev.RunEvent) -> Values | None:
        """Return the row of an event whose payload is in a file, listed with its run; None if it has to stay."""
        if self.files is None:
            return None
        try:
            found = large.outsourced(event, self.files)
        except (OSError, StoreError) as error:  # no room there: then the row is as large as it is
            _log.info("%s: a large value stays in the file (%s)", event.run_id, error)
            return None
        if found is None:
            return None
        event, made = found
        told = msgspec.structs.replace(event, data=made)
        insert_artifacts(self._connection, number, [told])
        return _values(number, event)

    def write_one_by_one(
        self, row: Row, events: Sequence[ev.RunEvent]
    ) -> tuple[Row, list[ev.RunEvent]]:
        """Write events each for itself, a stand-in for one that cannot be stored; return what was written.

        The log stays without a gap, and an end stays an end.
        """
        written: list[ev.RunEvent] = []
        for event in events:
            self._connection.execute("SAVEPOINT one")
            try:
                after = self.write_events(row, [event])
                self.flush()
            except Exception as error:
                self._events.clear()
                self._connection.execute("ROLLBACK TO one")
                event = _stand_in(event, error)
                after = self.write_events(row, [event])
                self.flush()
            row = after
            self._connection.execute("RELEASE one")
            written.append(event)
        return row, written

    def write_dropped(self, row: Row, dropped: Dropped, text: str) -> Row:
        """Write what stands in the place of events that were let go of, a few at a time."""
        for part in dropped.parts(text):
            row = self.write_events(row, part)
            self.flush()
        return row

    def write_record(self, row: Row, record: RunRecord) -> Row:
        """Write the brief record where its status has changed."""
        if record.status is row.status:
            return row
        self.update_row(row.number, record)
        return Row(row.number, record.status, row.deltas)

    def update_row(self, number: int, record: RunRecord) -> None:
        """Write what changes in the row of a run."""
        ended_at = None if record.ended_at is None else micros(record.ended_at)
        self._records.append((record.status, ended_at, reader.encode_record(record), number))

    def keep_checkpoint(self, row: Row, checkpointed: Checkpointed) -> None:
        """Write the newest state that a run can be gone on from, after the events before it."""
        checkpoints.keep(self._connection, row.number, checkpointed)

    def drop_checkpoints(self, number: int) -> None:
        """Delete, in a transaction of its own, what nobody goes on from any more: the run has completed."""
        checkpoints.drop(self._connection, number)

    def _put(self, number: int, opened: OpenRow) -> None:
        """Write a row that takes no more: over its first form, or with the other events."""
        if opened.key is None:
            self._events.append(opened.values(number))
        else:
            self._update(opened)

    def _keep_open(self, number: int, opened: OpenRow) -> OpenRow:
        """Write a row that may take more, and remember where it is."""
        if opened.key is not None:
            self._update(opened)
            return opened
        cursor = self._connection.execute(_INSERT_EVENT, opened.values(number))
        return replace(opened, key=cursor.lastrowid)

    def _update(self, opened: OpenRow) -> None:
        self._connection.execute(
            "UPDATE events SET count = ?, data = ? WHERE key = ?",
            (len(opened.texts), payloads.encode(opened.texts, opened.steps), opened.key),
        )


def _values(number: int, event: ev.RunEvent) -> Values:
    return (
        number, event.seq, 1, micros(event.ts), event.attempt, event.parent, event.type,
        ev.encode_data(event.data),
    )  # fmt: skip


def _stand_in(event: ev.RunEvent, error: Exception) -> ev.RunEvent:
    """Return an event that says, in the place of one that cannot be stored, that there was one."""
    what = clean_text(f"an event of type {event.type} could not be stored: {error}")
    data: ev.EventData
    match event.data:
        case ev.RunCancelled(cause=cause, detached=detached):
            data = ev.RunCancelled(cause, error=ev.ErrorInfo("NotStored", what), detached=detached)
        case ev.RunCompleted():  # it has come to its end; what it gave is known to this kernel only
            data = ev.RunCompleted({"$type": "NotStored", "$repr": what})
        case ev.RunFailed():
            data = ev.RunFailed(ev.ErrorInfo("NotStored", what))
        case _:
            data = ev.Log(what, "warning")
    return ev.RunEvent(event.seq, event.ts, event.run_id, event.attempt, data)


def micros(ts: float) -> int:
    """Return epoch seconds as whole microseconds."""
    return round(ts * 1_000_000)
