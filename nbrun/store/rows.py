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
from nbrun.store import payloads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nbrun.core.artifacts import ArtifactFiles
    from nbrun.core.record import RunRecord, RunStatus

_LARGE = payloads.LIMIT
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


class RowWriter:
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
            insert_origin(self._connection, number, origin.number, origin.kind)
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
                inputs, encode_record(record), record.parent_id, record.agent, record.model,
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
        return is_resumed(self._connection, origin.number)

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
                    values = self._moved_to_file(row.number, event) or values
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

    def _moved_to_file(self, number: int, event: ev.RunEvent) -> Values | None:
        """Return the row of an event whose payload is in a file, listed with its run; None if it has to stay."""
        if self.files is None:
            return None
        try:
            found = payloads.moved_to_file(event, self.files)
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
        self._records.append((record.status, ended_at, encode_record(record), number))

    def keep_checkpoint(self, row: Row, checkpointed: Checkpointed) -> None:
        """Write the newest state that a run can be gone on from, after the events before it."""
        self._connection.execute(
            "INSERT OR REPLACE INTO checkpoints (run, seq, ts, state) VALUES (?, ?, ?, ?)",
            (row.number, *checkpointed),
        )

    def drop_checkpoints(self, number: int) -> None:
        """Delete, in a transaction of its own, what nobody goes on from any more: the run has completed."""
        self._connection.execute(
            f"{ORIGINS} DELETE FROM checkpoints WHERE run IN (SELECT run FROM line)",  # noqa: S608 - ours
            (number,),
        )

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


_NOTHING = ev.TextDelta("")


@dataclass(frozen=True, slots=True)
class Dropped:
    """Events in a row that were let go of. Their numbers stay taken, so that the log has no gap.

    What the agent has said in them is a part of the record's text, from character `start` to `end`.
    """

    run_id: str
    seq: int
    count: int
    ts: float
    attempt: int
    why: str
    start: int = 0
    end: int = 0

    def events(self, text: str) -> Iterator[ev.RunEvent]:
        """Yield what stands in their place: a word about them, the text, and nothing as often as is needed."""
        said = text[self.start : self.end]
        if self.count == 1 and said:  # nothing was lost of it
            yield self._event(0, ev.TextDelta(said))
            return
        yield self._event(0, ev.Log(f"{self.count} events were not kept: {self.why}", "warning"))
        for place in range(1, self.count):
            yield self._event(place, ev.TextDelta(said) if place == 1 and said else _NOTHING)

    def parts(self, text: str) -> Iterator[list[ev.RunEvent]]:
        """Yield the same a few at a time: of millions, not all have to be in memory."""
        part: list[ev.RunEvent] = []
        for event in self.events(text):
            part.append(event)
            if len(part) == 64 * payloads.PER_ROW:
                yield part
                part = []
        yield part

    def _event(self, place: int, data: ev.EventData) -> ev.RunEvent:
        return ev.RunEvent(self.seq + place, self.ts, self.run_id, self.attempt, data)


class Checkpointed(NamedTuple):
    """A state as it goes into the file; `ts` in microseconds."""

    seq: int
    ts: int
    state: bytes


# The steps are bounded, because a planted file may lead in a circle.
ORIGINS = """WITH RECURSIVE line (run, steps) AS (
  SELECT ?1, 0 UNION
  SELECT o.origin, line.steps + 1 FROM origins o JOIN line ON o.run = line.run
   WHERE o.kind = 'resume' AND line.steps < 1000
)"""


def delete_stale_checkpoints(connection: sqlite3.Connection) -> None:
    """Delete what is of no use any more: a kernel has died after a run had completed, and before it did that."""
    connection.execute(
        """WITH RECURSIVE line (kept, run) AS (
  SELECT run, run FROM checkpoints UNION
  SELECT line.kept, o.run FROM origins o JOIN line ON o.origin = line.run WHERE o.kind = 'resume'
)
DELETE FROM checkpoints WHERE run IN (
  SELECT line.kept FROM line JOIN runs r ON r.number = line.run WHERE r.status = 'completed'
)"""
    )


def insert_origin(connection: sqlite3.Connection, number: int, origin: int, kind: str) -> None:
    """Note which run of the same file a run comes from."""
    connection.execute(
        "INSERT INTO origins (run, origin, kind) VALUES (?, ?, ?)", (number, origin, kind)
    )


def is_resumed(connection: sqlite3.Connection, number: int) -> bool:
    """Return whether a run that goes on from this one is live, or has completed."""
    row = connection.execute(
        "SELECT 1 FROM origins o JOIN runs r ON r.number = o.run WHERE o.origin = ? AND o.kind = 'resume'"
        " AND r.status NOT IN ('failed', 'cancelled', 'lost')",
        (number,),
    ).fetchone()
    return row is not None


# A later attempt at a run counts its files anew: the last one of a name stands.
_INSERT_ARTIFACT = (
    "INSERT INTO artifacts (run, id, name, media_type, size, sha256, made_at) VALUES (?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (run, id) DO UPDATE SET name = excluded.name, media_type = excluded.media_type,"
    " size = excluded.size, sha256 = excluded.sha256, made_at = excluded.made_at"
)


def insert_artifacts(
    connection: sqlite3.Connection, number: int, events: Iterable[ev.RunEvent]
) -> None:
    """List the files that events of a run tell of, in their transaction: the files are written already."""
    for event in events:
        data = event.data
        if (
            type(data) is ev.Artifact and data.sha256
        ):  # for every event that there is: the quickest look
            made_at = round(event.ts * 1_000_000)
            row = (number, data.id, data.name, data.media_type, data.size, data.sha256, made_at)
            connection.execute(_INSERT_ARTIFACT, row)


_encoder = msgspec.msgpack.Encoder()


def encode_record(record: RunRecord) -> bytes:
    """Return what the `runs` table keeps of a record: its brief form."""
    return _encoder.encode(record.brief())
