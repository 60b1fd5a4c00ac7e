"""Writing the runs of this kernel into a new file, after the old one was lost or damaged."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from nbrun.core import CancelCause, RunRecord, RunStatus, events as ev
from nbrun.store import queries
from nbrun.store.backlog import Dropped
from nbrun.store.liveness import note_file
from nbrun.store.rows import Row, RowWriter, Values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.store.signing import Signer

_TABLES = {
    "events": "seq, count, ts, attempt, parent, type, data",
    "checkpoints": "seq, ts, state, signature",
    "origins": "origin, kind",
    "artifacts": "id, name, media_type, size, sha256, made_at",
}
"""The tables with rows of a run, and the columns that are copied."""


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run that this kernel knows, and how many of its events were in the old file."""

    record: RunRecord
    saved: int


def rebuild(
    previous: sqlite3.Connection | None,
    known: Sequence[KnownRun],
    connection: sqlite3.Connection,
    session: Values,
    signer: Signer | None,
) -> tuple[int, dict[str, Row]]:
    """Write a session and its runs into a new file with a transaction open; return its key, and each run's row by id.

    Logs are copied from the old file, or reconstructed from the records where that cannot be read; a run keeps its
    number if that is free.
    """
    row_writer = RowWriter(connection, signer=signer)
    found = connection.execute("SELECT key FROM sessions WHERE session_id = ?", (session[0],)).fetchone()
    key = row_writer.insert_session(session) if found is None else int(found[0])
    note_file(connection, key)
    return key, {
        run.record.run_id: _rebuild_run(previous, connection, row_writer, key, run)
        for run in sorted(known, key=lambda run: run.record.number or 0)
    }


def _rebuild_run(
    previous: sqlite3.Connection | None,
    connection: sqlite3.Connection,
    row_writer: RowWriter,
    session_key: int,
    run: KnownRun,
) -> Row:
    number = _insert(connection, row_writer, session_key, run.record)
    row = Row(number, RunStatus.QUEUED)
    if previous is None or not _copy(previous, connection, run, number):
        for event in reconstructed(run.record, run.saved):
            if isinstance(event, Dropped):
                row = row_writer.write_dropped(row, event, run.record.text)
            else:
                row = row_writer.write_events(row, [event])
    row_writer.flush()
    record = run.record
    if run.saved < record.event_count:  # its status may be ahead of what is in the file
        record = queries.read_record(connection, number)
    record = msgspec.structs.replace(record, number=number)
    row_writer.update_row(number, record)
    row_writer.flush()
    return Row(number, record.status)


def _insert(connection: sqlite3.Connection, row_writer: RowWriter, session_key: int, record: RunRecord) -> int:
    """Return the number of a run's row, which is made unless it exists; rows of its older state are deleted."""
    there = connection.execute(
        "SELECT number FROM runs WHERE session = ? AND run_id = ?", (session_key, record.run_id)
    ).fetchone()
    if there is not None:
        for table in _TABLES:
            connection.execute(f"DELETE FROM {table} WHERE run = ?", there)  # noqa: S608 - our own names
        return int(there[0])
    taken = connection.execute("SELECT 1 FROM runs WHERE number = ?", (record.number,)).fetchone()
    number = None if taken else record.number
    return row_writer.insert_row(number, session_key, record)


def _copy(previous: sqlite3.Connection, connection: sqlite3.Connection, run: KnownRun, number: int) -> bool:
    """Copy a run from the old file; return whether its log was complete."""
    copied: dict[str, list[Values]] = {}
    try:
        for table, columns in _TABLES.items():
            sql = f"SELECT {columns} FROM {table} WHERE run = ? ORDER BY 1"  # noqa: S608 - our own names
            copied[table] = previous.execute(sql, (run.record.number,)).fetchall()
    except sqlite3.Error:
        return False
    if not _is_whole(copied["events"], run.saved):
        return False
    for table, rows in copied.items():
        columns = _TABLES[table]
        marks = ", ".join("?" * (columns.count(",") + 2))
        connection.executemany(
            f"INSERT INTO {table} (run, {columns}) VALUES ({marks})",  # noqa: S608
            [(number, *row) for row in rows],
        )
    return True


def _is_whole(events: list[Values], count: int) -> bool:
    due = 0
    for event in events:
        if event[0] != due or not isinstance(event[1], int):
            return False
        due += event[1]
    return due == count


_Entry = tuple[float, int, ev.EventData]


def reconstructed(record: RunRecord, count: int) -> list[ev.RunEvent | Dropped]:
    """Return a log of `count` events that folds to the record of a run, with those in the middle dropped.

    If the run has had more events than that, the log has only its beginning.
    """
    is_all = count >= record.event_count
    head, tail = _beginning(record)[:count], _ending(record) if is_all else []
    tail = tail[max(0, len(tail) - (count - len(head))) :]
    missing = count - len(head) - len(tail)
    log = [_event(record, seq, entry) for seq, entry in enumerate(head)]
    if missing:
        moment = record.started_at or record.created_at
        why = "their file was lost or damaged"
        end = len(record.text) if is_all else 0
        log.append(Dropped(record.run_id, len(head), missing, moment, record.attempt, why, 0, end))
    first = len(head) + missing
    return log + [_event(record, first + place, entry) for place, entry in enumerate(tail)]


def _event(record: RunRecord, seq: int, entry: _Entry) -> ev.RunEvent | Dropped:
    ts, attempt, data = entry
    return ev.RunEvent(seq, ts, record.run_id, attempt, data)


def _created(record: RunRecord) -> ev.RunCreated:
    return ev.RunCreated(**{name: getattr(record, name) for name in ev.RunCreated.__struct_fields__})


def _beginning(record: RunRecord) -> list[_Entry]:
    entries: list[_Entry] = [(record.created_at, 0, _created(record))]
    if record.started_at is not None:
        entries.append((record.started_at, record.attempt, ev.RunStarted()))
    return entries


def _ending(record: RunRecord) -> list[_Entry]:
    """Return the events that the status follows from, after the beginning."""
    entries: list[_Entry] = []
    last = record.last_event_at
    if record.cancel_requested_at is not None and record.cause is not None:
        asked = ev.CancelRequested(record.cause, record.reason, record.cancelled_by)
        entries.append((record.cancel_requested_at, 0, asked))
    if record.status is RunStatus.QUEUED and record.lost_attempts:
        lost = record.lost_attempts[-1]
        entries += [(last, lost.number, record.checkpoint)] if record.checkpoint is not None else []
        entries.append((lost.at, 0, ev.AttemptLost(lost.number, lost.error)))
    if record.status is RunStatus.WAITING:
        entries += [(last, record.attempt, asked) for asked in record.pending]
        entries.append((last, record.attempt, ev.RunWaiting()))
    end = _end(record)
    if end is not None:
        entries.append((record.ended_at or last, record.attempt, end))
    entries += [(last, record.attempt, ev.DetachedFinished(n)) for n in record.detached_finished]
    return entries


def _end(record: RunRecord) -> ev.EventData | None:
    cause = record.cause or CancelCause.USER
    match record.status:
        case RunStatus.COMPLETED:
            return ev.RunCompleted(record.output, record.usage, record.detached)
        case RunStatus.FAILED:
            error = record.error or ev.ErrorInfo("Unknown", "the reason is not known")
            return ev.RunFailed(error, record.output, record.usage, record.detached)
        case RunStatus.CANCELLED:
            return ev.RunCancelled(cause, record.reason, record.output, record.error, record.usage, record.detached)
        case RunStatus.LOST:
            return ev.RunLost(record.reason or "", record.ended_at)
        case _:
            return None
