"""Importing runs into a store: under new numbers, and never over anything that is there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from nbrun.core import BadRecording, IdConflict, events as ev, fold, shown
from nbrun.store import queries
from nbrun.store.rows import IdTaken, RowWriter, Values, micros

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

HOST = "import"  # the host of the session that an imported run gets
NOT_HERE = "imported while it was running; its kernel is elsewhere"

MAX_ID = 1_000  # characters
MAX_TIME = 1e11


@dataclass(frozen=True, slots=True)
class Imported:
    """An imported run: its number here, whether it is new here, and whether it was live in its file."""

    number: int
    is_new: bool
    was_live: bool = False


def import_run(connection: sqlite3.Connection, events: Sequence[ev.RunEvent], label: str, now: float) -> Imported:
    """Import a run, given by all its events, in one transaction; `label` says where it came from.

    It keeps its id, in a session of its own that is named by the run's content: so the same run is imported only
    once. A run that was live is marked as lost, since its kernel is elsewhere. `now` is in epoch seconds.

    Raises `IdConflict` if a run with this id may exist only once and there is another one, `BadRecording` if
    something in it cannot be stored.
    """
    row_writer = RowWriter(connection)
    try:
        with row_writer.transaction():
            return _import(connection, row_writer, events, label, now)
    except IdTaken as taken:
        raise IdConflict(
            f"another run here already has the id '{shown(str(taken), 80)}'; the run was not imported"
        ) from None
    except (OverflowError, TypeError, ValueError) as error:
        raise BadRecording(f"{shown(events[0].run_id, 80)} cannot be stored: {error}") from None


def _import(
    connection: sqlite3.Connection, row_writer: RowWriter, events: Sequence[ev.RunEvent], label: str, now: float
) -> Imported:
    created = events[0].data
    if not isinstance(created, ev.RunCreated):
        raise ValueError("its first event is not run.created")  # noqa: TRY004 - of what was read, not of a call
    events = [_without_numbers(event) for event in events]
    session_id = f"{HOST}-{_digest(events)}"
    for known_session in (session_id, created.session_id):
        if (here := _number_of(connection, known_session, events)) is not None:
            return Imported(here, is_new=False)
    at = micros(now)
    row: Values = (session_id, label, HOST, "", "", 0, 0, at, at)
    session = row_writer.insert_session(row)
    connection.execute("UPDATE sessions SET closed_at = ? WHERE key = ?", (at, session))
    first = msgspec.structs.replace(events[0].data, session_id=session_id)
    place, events[0] = row_writer.insert_run(session, msgspec.structs.replace(events[0], data=first))
    record = fold(events)
    if not 0 < len(record.run_id) <= MAX_ID or not 0 <= (record.ended_at or 0.0) < MAX_TIME:
        raise ValueError("its id or its end time is out of range")
    was_live = record.is_live
    if was_live:
        lost = ev.RunLost(NOT_HERE, record.last_event_at or None)
        events.append(ev.RunEvent(len(events), now, record.run_id, 0, lost))
        record = fold(events)
    row_writer.write_record(row_writer.write_events(place, events), record)
    return Imported(place.number, is_new=True, was_live=was_live)


def _number_of(connection: sqlite3.Connection, session_id: str, events: Sequence[ev.RunEvent]) -> int | None:
    """Return the number of a run of this session that began with these events."""
    found = queries.find_id(connection, events[0].run_id, session_id)
    if found is None:
        return None
    known = queries.read_events(connection, found.number, limit=len(events))
    is_same = _digest([_without_numbers(event) for event in known]) == _digest(events)
    return found.number if is_same else None


def _without_numbers(event: ev.RunEvent) -> ev.RunEvent:
    """Return an event without the numbers of runs, which belong to other runs here."""
    data = event.data
    if not isinstance(data, ev.RunCreated | ev.ChildStarted):
        return event
    data = msgspec.structs.replace(data, number=None)
    if isinstance(data, ev.RunCreated):
        origin = None if data.origin is None else msgspec.structs.replace(data.origin, number=None)
        data = msgspec.structs.replace(data, origin=origin, member=None)
    return msgspec.structs.replace(event, data=data)


def _digest(events: Sequence[ev.RunEvent]) -> str:
    """Return a hash of a run's content that does not depend on the file."""
    digest = hashlib.sha256()
    for event in events:
        data = event.data
        if isinstance(data, ev.RunCreated):
            data = msgspec.structs.replace(data, session_id="")
        parts = [event.run_id, event.seq, micros(event.ts), event.attempt, event.parent, event.type, data]
        digest.update(msgspec.msgpack.encode(parts))
    return digest.hexdigest()[:32]
