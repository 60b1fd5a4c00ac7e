"""Runs whose kernel died: found at load, and told as lost."""

from __future__ import annotations

import logging
import sqlite3

import msgspec

from nbrun import events as ev
from nbrun.fold import fold
from nbrun.record import LIVE, RunRecord, RunStatus
from nbrun.store import reader
from nbrun.store.lease import ProcessIdentity
from nbrun.store.ledger import Ledger, Row, micros

_log = logging.getLogger("nbrun")


def mark_lost(connection: sqlite3.Connection, now: float) -> int:
    """Mark the live-looking runs of dead kernels as lost, with the time of their last event.

    Returns
    -------
    How many there were. Runs of a kernel that cannot be seen from here (another host) are left alone.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = 0
        for session_key, identity in open_sessions(connection):
            if identity.is_alive() is not False:
                continue
            numbers = connection.execute(
                "SELECT number FROM runs WHERE session = ? AND status IN (?, ?, ?, ?)",
                (session_key, *LIVE),
            ).fetchall()
            for (number,) in numbers:
                try:
                    _mark_one_lost(connection, number, now)
                except (
                    TypeError,
                    ValueError,
                    sqlite3.DataError,
                ):  # one damaged run must not close the file
                    _log.exception("run #%s is damaged and cannot be marked as lost", number)
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


def open_sessions(connection: sqlite3.Connection) -> list[tuple[int, ProcessIdentity]]:
    """Return the sessions that were not closed, by key, with their kernels."""
    rows = connection.execute(
        "SELECT key, host, boot_id, pid_namespace, pid, process_started_at FROM sessions WHERE closed_at IS NULL"
    ).fetchall()
    return [(row[0], ProcessIdentity(*row[1:])) for row in rows]


def _mark_one_lost(connection: sqlite3.Connection, number: int, now: float) -> None:
    record = _record(connection, number)
    (seq,) = connection.execute(
        "SELECT coalesce(max(seq + count), 0) FROM events WHERE run = ?", (number,)
    ).fetchone()
    data = ev.RunLost("its kernel died", record.last_event_at or None)
    # The clock may have been set back since that kernel died.
    lost = ev.RunEvent(seq, max(now, record.last_event_at), record.run_id, 0, data)
    row = Row(number, record.status)
    ledger = Ledger(connection)
    ledger.write_events(row, [lost])
    ledger.write_record(row, fold([lost], msgspec.structs.replace(record, event_count=seq)))
    ledger.flush()


def _record(connection: sqlite3.Connection, number: int) -> RunRecord:
    record = reader.read_record(connection, number)
    return record if record.is_live else msgspec.structs.replace(record, status=RunStatus.RUNNING)
