"""Reading a session store: runs newest first, events by seq. Reading runs no code of what is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from nbrun import events as ev
from nbrun.fold import fold
from nbrun.record import RunRecord
from nbrun.store import deltas

if TYPE_CHECKING:
    import sqlite3

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RunRecord)

_GREATEST = 2**63 - 1  # of SQLite's numbers
_COLUMNS = (
    "SELECT r.number, r.run_id, r.record, r.inputs, s.session_id"
    " FROM runs r JOIN sessions s ON s.key = r.session"
)


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as the store lists it; `record` is brief."""

    number: int
    record: RunRecord
    inputs: str | None


def encode_record(record: RunRecord) -> bytes:
    """Return what the `runs` table keeps of a record: its brief form."""
    return _encoder.encode(record.brief())


def read_events(
    connection: sqlite3.Connection, number: int, after: int = -1, limit: int | None = None
) -> list[ev.RunEvent]:
    """Return the events of run `number` that come after seq `after`, by seq, at most `limit`."""
    found: list[ev.RunEvent] = []
    if limit is not None and limit <= 0:
        return found
    run_id = connection.execute("SELECT run_id FROM runs WHERE number = ?", (number,)).fetchone()
    if run_id is None:
        return found
    rows = connection.execute(
        # A row of deltas begins before its last event does: look as far back as one can be long.
        "SELECT seq, count, ts, attempt, parent, type, data FROM events WHERE run = ? AND seq > ? ORDER BY seq",
        (number, after - deltas.PER_ROW),
    )
    for seq, count, ts, attempt, parent, kind, blob in rows:
        if seq + count - 1 <= after:
            continue
        for offset, (moment, data) in enumerate(_unpack(kind, blob, ts, count)):
            if seq + offset > after:
                found.append(
                    ev.RunEvent(seq + offset, moment / 1_000_000, run_id[0], attempt, data, parent)
                )
                if limit is not None and len(found) == limit:
                    return found
    return found


def _unpack(kind: str, blob: bytes, ts: int, count: int) -> list[tuple[int, ev.EventData]]:
    if kind in ev.DELTA_TYPES:
        try:
            return deltas.decode(kind, blob, ts)
        except (msgspec.DecodeError, TypeError, ValueError):
            # Damaged: its numbers stay taken, so that no gap opens; no more of them than a row can hold.
            count = max(1, min(count, deltas.PER_ROW))
            return [(ts, ev.Unknown(kind, {"$damaged": len(blob)}))] * count
    return [(ts, ev.decode_data(kind, blob))]


def read_record(connection: sqlite3.Connection, number: int) -> RunRecord:
    """Return the whole record of a run: the fold of its log, or what was last noted of it if that is damaged."""
    try:
        return fold(read_events(connection, number))
    except (TypeError, ValueError):
        stored = read_run(connection, number)
        if stored is None:
            raise
        notice = "its log is damaged; this is what was last noted of it"
        return msgspec.structs.replace(stored.record, is_brief=False, notices=(notice,))


def read_runs(
    connection: sqlite3.Connection, limit: int | None = None, before: int | None = None
) -> list[StoredRun]:
    """Return runs newest first, those below number `before` if it is given, at most `limit`."""
    rows = connection.execute(
        f"{_COLUMNS} WHERE r.number <= ? ORDER BY r.number DESC LIMIT ?",
        (_GREATEST if before is None else before - 1, -1 if limit is None else limit),
    )
    return [_stored(row) for row in rows]


def read_run(connection: sqlite3.Connection, number: int) -> StoredRun | None:
    """Return the run with this number."""
    row = connection.execute(f"{_COLUMNS} WHERE r.number = ?", (number,)).fetchone()
    return None if row is None else _stored(row)


def find_id(
    connection: sqlite3.Connection, run_id: str, session_id: str | None = None
) -> StoredRun | None:
    """Return the newest run with exactly this id, of that session if one is given."""
    row = connection.execute(
        f"{_COLUMNS} WHERE r.run_id = ?1 AND (?2 IS NULL OR s.session_id = ?2)"
        " ORDER BY r.number DESC LIMIT 1",
        (run_id, session_id),
    ).fetchone()
    return None if row is None else _stored(row)


def find_run(connection: sqlite3.Connection, text: str) -> StoredRun | None:
    """Return the newest run with this id, else the newest with this name."""
    for column in ("run_id", "name"):
        row = connection.execute(
            f"{_COLUMNS} WHERE r.{column} = ? ORDER BY r.number DESC LIMIT 1", (text,)
        ).fetchone()
        if row is not None:
            return _stored(row)
    return None


def _stored(row: tuple[int, str, bytes, str | None, str]) -> StoredRun:
    number, run_id, blob, inputs, session_id = row
    try:
        record = _decoder.decode(blob)
    except (
        msgspec.DecodeError,
        RecursionError,
        TypeError,
    ):  # the log is whole even if this copy is not
        record = RunRecord(run_id=run_id, session_id=session_id, is_brief=True)
    # Brief whatever it says: it is as of the last change of status, and the log may have gone on.
    record = msgspec.structs.replace(record, number=number, is_brief=True, unseen="")
    return StoredRun(number, record, inputs)
