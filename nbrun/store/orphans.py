"""Runs whose kernel died: marked as lost when the file is opened, or when somebody says so."""

from __future__ import annotations

import logging
import sqlite3

import msgspec

from nbrun.core import NotPending, RunStatus, events as ev, fold
from nbrun.core.record import GIVEN_UP
from nbrun.store import queries
from nbrun.store.connection import transaction
from nbrun.store.liveness import kernel_of, open_kernels
from nbrun.store.rows import Row, RowWriter, micros
from nbrun.store.schema import LIVE_STATUSES

_log = logging.getLogger("nbrun")


def mark_lost(connection: sqlite3.Connection, now: float) -> int:
    """Mark the live-looking runs of dead kernels as lost, with the time of their last event; return how many.

    Not if the kernel cannot be seen: it is on another host, or wrote to the original of which this file is a copy.
    """
    found = 0
    with transaction(connection):
        for kernel in open_kernels(connection):
            if kernel.is_alive() is not False:
                continue
            numbers = connection.execute(
                f"SELECT number FROM runs WHERE session = ? AND status IN ({LIVE_STATUSES})",  # noqa: S608 - ours
                (kernel.session,),
            ).fetchall()
            for (number,) in numbers:
                connection.execute("SAVEPOINT one")
                try:
                    _mark_one_lost(connection, number, now)
                # One damaged run must not keep the file closed.
                except (TypeError, ValueError, OverflowError, sqlite3.DataError, sqlite3.IntegrityError):
                    connection.execute("ROLLBACK TO one")
                    _log.exception("run #%s is damaged and cannot be marked as lost", number)
                connection.execute("RELEASE one")
            found += len(numbers)
            connection.execute("UPDATE sessions SET closed_at = ? WHERE key = ?", (micros(now), kernel.session))
    return found


def give_up(connection: sqlite3.Connection, number: int, now: float) -> None:
    """Mark one live-looking run as lost on request; raise `NotPending` if it has ended or its kernel is running."""
    with transaction(connection):
        kernel = kernel_of(connection, number)
        if kernel is None or not queries.read_record(connection, number).is_live:
            raise NotPending(f"Run #{number} has already ended; there is nothing to give up.")
        if not kernel.why_unknown(now):
            raise NotPending(f"The kernel of run #{number} is running; cancel the run there")
        _mark_one_lost(connection, number, now, GIVEN_UP)


def _mark_one_lost(connection: sqlite3.Connection, number: int, now: float, reason: str = "its kernel died") -> None:
    record = queries.read_record(connection, number)
    if not record.is_live:
        record = msgspec.structs.replace(record, status=RunStatus.RUNNING)
    (seq,) = connection.execute("SELECT coalesce(max(seq + count), 0) FROM events WHERE run = ?", (number,)).fetchone()
    data = ev.RunLost(reason, record.last_event_at or None)
    # The clock may have been set back since that kernel died.
    lost = ev.RunEvent(seq, max(now, record.last_event_at), record.run_id, 0, data)
    row_writer = RowWriter(connection)
    row = row_writer.write_events(Row(number, record.status), [lost])
    row_writer.write_record(row, fold([lost], msgspec.structs.replace(record, event_count=seq)))
    row_writer.flush()
