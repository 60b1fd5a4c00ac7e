"""Runs whose kernel died: found at load, and told as lost."""

from __future__ import annotations

import logging
import sqlite3

import msgspec

from nbrun.core import events as ev
from nbrun.core.errors import NotPending
from nbrun.core.record import GIVEN_UP, LIVE, RunRecord, RunStatus, fold
from nbrun.store import queries
from nbrun.store.liveness import kernel_of, open_kernels
from nbrun.store.rows import Row, RowWriter, micros

_log = logging.getLogger("nbrun")


def mark_lost(connection: sqlite3.Connection, now: float) -> int:
    """Mark the live-looking runs of dead kernels as lost, with the time of their last event.

    Returns
    -------
    How many there were. Runs of a kernel that cannot be seen from here are left alone: it is on another
    host, or this file is a copy and the kernel has written to the original.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = 0
        for kernel in open_kernels(connection):
            if kernel.is_alive() is not False:
                continue
            session_key = kernel.session
            numbers = connection.execute(
                "SELECT number FROM runs WHERE session = ? AND status IN (?, ?, ?, ?)",
                (session_key, *LIVE),
            ).fetchall()
            for (number,) in numbers:
                connection.execute("SAVEPOINT one")
                try:
                    _mark_one_lost(connection, number, now)
                # One damaged run must not close the file.
                except (
                    TypeError,
                    ValueError,
                    OverflowError,
                    sqlite3.DataError,
                    sqlite3.IntegrityError,
                ):
                    connection.execute("ROLLBACK TO one")
                    _log.exception("run #%s is damaged and cannot be marked as lost", number)
                connection.execute("RELEASE one")
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


def give_up(connection: sqlite3.Connection, number: int, now: float) -> None:
    """Mark one live-looking run as lost because somebody says so: its kernel cannot be seen from here.

    Raises
    ------
    NotPending
        It has ended, or its kernel lives.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        _refuse_known(connection, number, now)
        _mark_one_lost(connection, number, now, GIVEN_UP)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _refuse_known(connection: sqlite3.Connection, number: int, now: float) -> None:
    """Raise `NotPending` for a run of which it can be told how it stands."""
    kernel = kernel_of(connection, number)
    if kernel is None or not queries.read_record(connection, number).is_live:
        raise NotPending(f"run #{number} has ended; there is nothing to give up")
    if not kernel.why_unknown(now):
        raise NotPending(f"the kernel of run #{number} lives; cancel it there")


def _mark_one_lost(
    connection: sqlite3.Connection, number: int, now: float, reason: str = "its kernel died"
) -> None:
    record = _record(connection, number)
    (seq,) = connection.execute(
        "SELECT coalesce(max(seq + count), 0) FROM events WHERE run = ?", (number,)
    ).fetchone()
    data = ev.RunLost(reason, record.last_event_at or None)
    # The clock may have been set back since that kernel died.
    lost = ev.RunEvent(seq, max(now, record.last_event_at), record.run_id, 0, data)
    row = Row(number, record.status)
    row_writer = RowWriter(connection)
    row_writer.write_events(row, [lost])
    row_writer.write_record(row, fold([lost], msgspec.structs.replace(record, event_count=seq)))
    row_writer.flush()


def _record(connection: sqlite3.Connection, number: int) -> RunRecord:
    record = queries.read_record(connection, number)
    return record if record.is_live else msgspec.structs.replace(record, status=RunStatus.RUNNING)
