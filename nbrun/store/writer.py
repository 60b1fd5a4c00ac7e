"""The writer: one thread that commits events in groups and tells its source what is on disk."""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from nbrun import events as ev
from nbrun.fold import fold
from nbrun.record import RunRecord, RunStatus
from nbrun.store.lease import this_process
from nbrun.store.ledger import IdTaken, Ledger, Row, Values, micros
from nbrun.store.sight import note_home

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nbrun.clock import Clock

_log = logging.getLogger("nbrun")

SOON_S = 0.005
"""How long the writer gathers events before it commits; endings and new runs are not kept waiting."""
LINGER_S = 0.045
"""How much longer it gathers while there is only text."""
BEAT_S = 15.0
"""How often a commit also says that this kernel lives, for those who cannot see it."""
RETRY_S = 1.0
"""How long it waits before it tries again what could not be written."""


class _State(Enum):
    """What the writer does: ringing its bell is needed only while it listens."""

    IDLE = auto()
    GATHERING = auto()
    LINGERING = auto()
    BUSY = auto()


class Committed(NamedTuple):
    """What became public of one run: its record, and the events that led there from the last one.

    `problem` says why it is not on disk, if it is not.
    """

    run_id: str
    record: RunRecord
    events: Sequence[ev.RunEvent]
    problem: str | None = None


class Source(Protocol):
    """Where the writer gets events from; its methods are called on the writer's thread only."""

    def drain(self) -> list[ev.RunEvent]:
        """Return all events that wait: numbered, redacted, in order."""
        ...

    def record(self, run_id: str) -> RunRecord | None:
        """Return what is public of a run."""
        ...

    def publish(self, committed: list[Committed]) -> None:
        """Make this public."""
        ...

    def refuse(self, run_id: str) -> None:
        """Take back a run that was not begun: its id is taken."""
        ...


@dataclass(slots=True)
class _Run:
    """A run in the writer's hands."""

    record: RunRecord
    row: Row | None = None  # None until it is in the file
    backlog: Sequence[ev.RunEvent] = ()  # folded, and not in the file


_Group = dict[str, list[ev.RunEvent]]


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
        identity, now = this_process(), micros(clock.now())
        self.source = source
        self._connection = connection
        self._ledger = Ledger(connection)
        self._lock = lock
        self._clock = clock
        self._session_row: Values = (
            session_id, notebook, identity.host, identity.boot_id, identity.pid_namespace, identity.pid,
            identity.started_at, now, now,
        )  # fmt: skip
        self._session_key: int | None = None
        self._beaten_at = clock.monotonic()  # the session is inserted with its first beat
        self._runs: dict[str, _Run] = {}
        self._behind: set[str] = set()  # those of them that have a backlog
        self._is_full_sync = False
        # The bell is a queue of C: ringing it can be interrupted, or entered again by a signal handler, at any
        # point without leaving a lock behind.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._state = _State.BUSY
        self._has_news = self._is_urgent = self._has_more_than_text = False
        self._is_stopping = False
        self._given_up: set[str] = set()  # runs of which something can never be stored
        self._thread = threading.Thread(target=self._main, name="nbrun-writer", daemon=True)
        self._thread.start()

    def ring(self, *, is_text: bool = False, is_urgent: bool = False) -> None:
        """Say that the source has events; urgent ones are committed without waiting for more."""
        if not is_text:
            self._has_more_than_text = True
        if is_urgent:
            self._is_urgent = True
        self._has_news = True
        # Said first, then looked: the writer sets its state first, then looks at what was said.
        state = self._state
        if state is _State.IDLE or is_urgent or (state is _State.LINGERING and not is_text):
            self._bell.put(None)

    def close(self, timeout_s: float) -> bool:
        """Write what is there, release the lease and stop; return whether that was done in time."""
        self._is_stopping = True
        self.ring(is_urgent=True)
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
        self._state = _State.IDLE
        if not self._has_news:
            self._listen(RETRY_S if self._behind else None)
        self._state = _State.GATHERING
        if not self._is_urgent:
            self._listen(SOON_S)
        self._state = _State.LINGERING
        if not self._is_urgent and not self._has_more_than_text:
            self._listen(LINGER_S)
        self._state = _State.BUSY
        # Cleared before the source is drained: what comes after that is news again.
        self._has_news = self._is_urgent = self._has_more_than_text = False
        while not self._bell.empty():
            self._bell.get()

    def _listen(self, timeout_s: float | None) -> None:
        with contextlib.suppress(queue.Empty):
            self._bell.get(timeout=timeout_s)

    def _cycle(self) -> None:
        committed: list[Committed] = []
        try:
            self._commit(self._source_groups(), committed)
        except Exception:  # this thread serves every run: whatever comes, it goes on
            _log.exception("the store's writer failed")
        finally:
            if committed:
                self.source.publish(committed)
        for item in committed:
            if not item.record.is_live and item.run_id not in self._behind:
                self._runs.pop(item.run_id, None)

    def _source_groups(self) -> _Group:
        """Return new events by run, and no events for runs that have only a backlog."""
        groups: _Group = {run_id: [] for run_id in self._behind}
        for event in self.source.drain():
            groups.setdefault(event.run_id, []).append(event)
        return groups

    def _commit(self, groups: _Group, committed: list[Committed]) -> None:
        """Write the groups together; where that cannot be, keep them, or find out which of them is to blame."""
        for run_id in self._given_up & groups.keys():
            self._keep(run_id, groups.pop(run_id), "a value of it cannot be stored", committed)
        if not groups:
            return
        try:
            self._write(groups, committed)
        except IdTaken as taken:
            self._refuse(str(taken), groups, committed)
        except sqlite3.OperationalError as error:  # the file's trouble, not a value's: it may pass
            for run_id, new in groups.items():
                self._keep(run_id, new, str(error), committed)
        except Exception as error:
            if len(groups) > 1:
                for run_id, new in groups.items():
                    self._commit({run_id: new}, committed)
                return
            self._write_carefully(groups, error, committed)

    def _refuse(self, run_id: str, groups: _Group, committed: list[Committed]) -> None:
        """Leave out a run whose id is taken, and commit the others."""
        new = groups.pop(run_id)
        if self._run(run_id).backlog:  # it is under way, unsaved: it cannot be taken back any more
            self._given_up.add(run_id)
            self._keep(run_id, new, "the store has a run with its id already", committed)
        else:
            del self._runs[run_id]
            self.source.refuse(run_id)
        self._commit(groups, committed)

    def _write_carefully(
        self, groups: _Group, error: Exception, committed: list[Committed]
    ) -> None:
        """Write the run that is to blame with stand-ins for what cannot be stored; give it up if that fails too."""
        ((run_id, new),) = groups.items()
        _log.warning("%s: something in it cannot be stored (%s)", run_id, error)
        try:
            self._write(groups, committed, stand_in=True)
        except sqlite3.OperationalError as trouble:
            self._keep(run_id, new, str(trouble), committed)
        except Exception:
            self._given_up.add(run_id)
            self._keep(run_id, new, str(error), committed)

    def _run(self, run_id: str) -> _Run:
        known = self._runs.get(run_id)
        if known is None:
            known = self._runs[run_id] = _Run(self.source.record(run_id) or RunRecord())
        return known

    def _keep(
        self, run_id: str, new: list[ev.RunEvent], problem: str, committed: list[Committed]
    ) -> None:
        """Make events public that are not on disk; they are tried again unless their run was given up."""
        run = self._run(run_id)
        try:
            run.record = fold(new, run.record)
        except Exception:  # an end must be seen even if what led to it cannot be
            _log.exception("%s: its events cannot be read", run_id)
            if _has_end(new):
                run.record = msgspec.structs.replace(run.record, status=RunStatus.FAILED)
        run.backlog = () if run_id in self._given_up else (*run.backlog, *new)
        (self._behind.add if run.backlog else self._behind.discard)(run_id)
        committed.append(Committed(run_id, run.record, new, problem))

    # --- one transaction -------------------------------------------------------------------------

    def _write(self, groups: _Group, committed: list[Committed], *, stand_in: bool = False) -> None:
        """Commit the backlogs and the new events of these runs.

        Nothing changes when it raises, so that the same can be tried again.
        """
        runs = {run_id: self._run(run_id) for run_id in groups}
        self._sync_fully(
            any(_has_end(run.backlog) or _has_end(groups[run_id]) for run_id, run in runs.items())
        )
        with self._lock:
            self._ledger.begin()
            try:
                session_key = self._session_key or self._insert_session()
                self._beat(session_key)
                written = {
                    run_id: self._write_run(session_key, run_id, run, groups[run_id], stand_in)
                    for run_id, run in runs.items()
                }
                self._ledger.commit()
            except BaseException:
                self._ledger.rollback()
                raise
        self._session_key = session_key
        for run_id, (row, record, new) in written.items():
            run = runs[run_id]
            run.record, run.row, run.backlog = record, row, ()
            self._behind.discard(run_id)
            committed.append(Committed(run_id, record, new))

    def _insert_session(self) -> int:
        key = self._ledger.insert_session(self._session_row)
        note_home(self._connection, key)
        return key

    def _beat(self, session_key: int) -> None:
        """Say now and then that this kernel lives; if the transaction fails, with the next beat."""
        now = self._clock.monotonic()
        if now - self._beaten_at >= BEAT_S:
            self._beaten_at = now
            self._connection.execute(
                "UPDATE sessions SET heartbeat_at = ? WHERE key = ?",
                (micros(self._clock.now()), session_key),
            )

    def _write_run(
        self, session_key: int, run_id: str, run: _Run, new: list[ev.RunEvent], stand_in: bool
    ) -> tuple[Row, RunRecord, list[ev.RunEvent]]:
        events = [*run.backlog, *new]
        row, record = run.row, run.record
        if row is None and events and isinstance(events[0].data, ev.RunCreated):
            row, events[0] = self._ledger.insert_run(session_key, events[0])
        elif row is None:
            row = self._ledger.find_run(session_key, run_id, record.status)
        if stand_in:
            row, events = self._ledger.write_one_by_one(row, events)
        else:
            row = self._ledger.write_events(row, events)
        new = events[len(run.backlog) :]
        record = fold(new, record)
        if record.number is None:  # it was folded before it had one
            record = msgspec.structs.replace(record, number=row.number)
        return self._ledger.write_record(row, record), record, new

    def _sync_fully(self, wanted: bool) -> None:
        """Have the next commit survive a power loss, or only the death of this process.

        Source: SQLite ignores a change of `synchronous` within a transaction, so it is made between two.
        """
        if wanted != self._is_full_sync:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}")
            self._is_full_sync = wanted

    def _release(self) -> None:
        """Give up the lease, so that nobody has to find out that this process is gone."""
        try:
            with self._lock:
                # With a run given up, the file does not tell all; its live-looking runs are then lost at the next load.
                is_told = not self._behind and not self._given_up
                if self._session_key is not None and is_told:
                    self._connection.execute(
                        "UPDATE sessions SET closed_at = ? WHERE key = ?",
                        (micros(self._clock.now()), self._session_key),
                    )
                self._connection.close()
        except sqlite3.Error:  # the lease then lapses with the process, as after a crash
            _log.exception("the session's lease could not be released")


def _has_end(events: Iterable[ev.RunEvent]) -> bool:
    return any(event.data.TYPE in ev.END_TYPES for event in events)
