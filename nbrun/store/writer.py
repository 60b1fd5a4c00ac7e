"""The writer: one thread that commits events in groups and tells its source what is on disk."""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from nbrun.core import events as ev
from nbrun.core.record import RunRecord, RunStatus, fold
from nbrun.store.connection import BUSY_TIMEOUT_S
from nbrun.store.faults import FaultKind, StoreFault, fault_of, is_damage, is_of_file
from nbrun.store.liveness import this_process
from nbrun.store.rebuild import KnownRun
from nbrun.store.rows import IdTaken, Row, Values, micros
from nbrun.store.transaction import HELD_BYTES, NOTHING, Backlog, FileWriter, HeldRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nbrun.core.clock import Clock
    from nbrun.store.database_file import DatabaseFile
    from nbrun.store.rows import Checkpointed


class Committed(NamedTuple):
    """What became public of one run: its record, and the events that led there from the last one.

    `problem` says why it is not on disk, if it is not; `waiting` is then all that is not.
    """

    run_id: str
    record: RunRecord
    events: Sequence[ev.RunEvent]
    problem: str | None = None
    waiting: Iterable[ev.RunEvent] = ()


class Source(Protocol):
    """Where the writer gets events from; its methods are called on the writer's thread only.

    `checkpoints` are states that drained events tell of, by run: the writer takes them out once they are stored.
    """

    checkpoints: dict[str, Checkpointed]

    def drain(self) -> list[ev.RunEvent]:
        """Return all events that wait: numbered, redacted, in order."""
        ...

    def record(self, run_id: str) -> RunRecord | None:
        """Return what is public of a run."""
        ...

    def known(self) -> list[RunRecord]:
        """Return what is public of all runs that are in memory."""
        ...

    def publish(self, committed: list[Committed]) -> None:
        """Make this public."""
        ...

    def warn(self, text: str) -> bool:
        """Tell all live runs of something; return whether there were any."""
        ...

    def refuse(self, run_id: str) -> None:
        """Take back a run that was not begun: its id is taken."""
        ...


_log = logging.getLogger("nbrun")

RETRY_S = 1.0
"""How long the writer waits before it tries again what could not be written."""
BUSY_AGAIN_S = 0.05
"""How long it then waits for a lock: what is new is not to wait for that."""


class _TakenOver(Exception):
    """The disk has failed after a while, in which what was to be written was kept and made public."""


_Group = dict[str, list[ev.RunEvent]]


class Writer:
    """Commits what its source gives.

    Threads: `wake()` and `close()` from any thread, `fault` and `behind` are read by any; the rest is of the
    thread `nbrun-writer`, or of its watch while the disk keeps that waiting for too long. The connection is used
    under `lock`, which a reader of a store in memory shares.

    Parameters
    ----------
    connection : to the file, None where `database` could not open it yet.
    database : gives a connection in place of one whose file is gone; without one, this connection is all there is.
    """

    def __init__(
        self,
        connection: sqlite3.Connection | None,
        lock: threading.RLock,
        source: Source,
        *,
        session_id: str,
        notebook: str | None,
        clock: Clock,
        database: DatabaseFile | None = None,
    ) -> None:
        identity, now = this_process(), micros(clock.now())
        self.source = source
        self._database = database
        session: Values = (
            session_id, notebook, identity.host, identity.boot_id, identity.pid_namespace, identity.pid,
            identity.started_at, now, now,
        )  # fmt: skip
        self._file = FileWriter(connection, database, lock, session, clock)
        self._clock = clock
        self.fault: StoreFault | None = None if database is None else database.fault
        self._fault_at = clock.now()
        self._retry_at = 0.0  # by the monotonic clock
        self._held = 0  # bytes of all backlogs
        self._runs: dict[str, HeldRun] = {}
        self._behind: set[str] = set()  # those of them that have a backlog
        self._wake_up = WakeUp()
        # Not a method that asks the bell: every batch of a host's comes by here.
        self.wake = self._wake_up.wake
        self._is_stopping = False
        self._checkpointed: set[str] = set()  # live runs that have a checkpoint in the file
        self._is_look_due = True
        self._given_up: set[str] = set()  # runs of which something can never be stored
        self._stall_guard = StallGuard(self._take_over, clock)
        self._thread = threading.Thread(target=self._main, name="nbrun-writer", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Write what is there, release the lease and stop; return whether that was done in time."""
        self._is_stopping = True
        self.wake(is_urgent=True)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        self._stall_guard.close()
        return not self._thread.is_alive()

    # --- the thread ------------------------------------------------------------------------------

    def _main(self) -> None:
        while not self._is_stopping:
            # What is urgent, an end mostly, is also the time to look whether the file is still the one it was.
            self._is_look_due = self._wake_up.wait(RETRY_S if self._behind else None)
            self._cycle()
        self._cycle()  # what came while the last one was written
        self._release()

    def _cycle(self) -> None:
        committed: list[Committed] = []
        try:
            if self._behind or self._given_up:
                waiting = self._behind | self._given_up
                self._held = sum(self._runs[run_id].backlog.size for run_id in waiting)
            self._commit(self._source_groups(committed), committed)
        except Exception:  # this thread serves every run: whatever comes, it goes on
            _log.exception("the store's writer failed")
        finally:
            if committed:
                self.source.publish(committed)
        for item in committed:
            if not item.record.is_live and item.run_id not in self._behind | self._given_up:
                self._runs.pop(item.run_id, None)
                self._drop_checkpoints(item.record)

    def _drop_checkpoints(self, record: RunRecord) -> None:
        """Delete what an ended run was to be gone on from, if it has completed; its end is on disk."""
        had_one = record.run_id in self._checkpointed or record.resumed_from is not None
        self._checkpointed.discard(record.run_id)
        if not had_one or record.status is not RunStatus.COMPLETED or record.number is None:
            return
        try:
            self._file.drop_checkpoints(record.number)
        except sqlite3.Error as error:  # it does no harm, and is swept when the file is next opened
            _log.warning("%s: its checkpoint could not be deleted (%s)", record.run_id, error)

    def _source_groups(self, committed: list[Committed]) -> _Group:
        """Return new events by run, and no events for runs that have only a backlog.

        Nothing while the file is in fault: what is new is then kept with the rest.
        """
        can_write = self._can_write(committed)
        new: _Group = {}
        for event in self.source.drain():
            new.setdefault(event.run_id, []).append(event)
        if can_write:
            return {**{run_id: [] for run_id in self._behind}, **new} if self._behind else new
        self._keep_all(new, committed)
        return {}

    def _commit(self, groups: _Group, committed: list[Committed], *, is_part: bool = False) -> None:
        """Write the groups together; where that cannot be, keep them, or find out which of them is to blame.

        Of groups that are a part of what was drained the writer is not relieved: the others are in its hands.
        """
        for run_id in self._given_up & groups.keys():
            self._keep(run_id, groups.pop(run_id), "a value of it cannot be stored", committed)
        if not groups:
            return
        began = self._clock.monotonic()
        try:
            self._write(groups, committed, is_guarded=not is_part)
        except _TakenOver as taken_over:  # all is kept already
            if isinstance(taken_over.__cause__, Exception) and is_of_file(taken_over.__cause__):
                self._note_fault(taken_over.__cause__, self._clock.monotonic() - began)
        except IdTaken as taken:
            self._refuse(str(taken), groups, committed)
        except Exception as error:
            if is_of_file(error):  # not a value's: it may pass
                self._note_fault(error, self._clock.monotonic() - began)
                self._keep_all(groups, committed)
            elif len(groups) > 1:
                for run_id, new in groups.items():
                    self._commit({run_id: new}, committed, is_part=True)
            else:
                self._write_carefully(groups, error, committed)
        else:
            self._note_well()

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
        except Exception as again:
            if is_of_file(again):
                self._note_fault(again)
                self._keep_all(groups, committed)
                return
            self._given_up.add(run_id)
            self._keep(run_id, new, str(error), committed)

    def _run(self, run_id: str) -> HeldRun:
        known = self._runs.get(run_id)
        if known is None:
            known = self._runs[run_id] = HeldRun(self.source.record(run_id) or RunRecord())
        return known

    def _keep_all(self, groups: _Group, committed: list[Committed]) -> None:
        words = "the store is in fault" if self.fault is None else self.fault.words
        for run_id, new in groups.items():
            self._keep(run_id, new, words, committed)

    def _keep(
        self, run_id: str, new: list[ev.RunEvent], problem: str, committed: list[Committed]
    ) -> None:
        """Make events public that are not on disk; they are tried again unless their run was given up."""
        run = self._run(run_id)
        text_at, size = len(run.record.text), run.backlog.size
        try:
            run.record = fold(new, run.record)
        except Exception:  # an end must be seen even if what led to it cannot be
            _log.exception("%s: its events cannot be read", run_id)
            if _has_end(new):
                run.record = msgspec.structs.replace(run.record, status=RunStatus.FAILED)
        if run.backlog is NOTHING:
            run.backlog = Backlog()
        run.backlog.add(new, text_at, HELD_BYTES - self._held, f"{problem}, since {self._since()}")
        self._held += run.backlog.size - size
        is_behind = len(run.backlog) > 0 and run_id not in self._given_up
        (self._behind.add if is_behind else self._behind.discard)(run_id)
        waiting = run.backlog.waiting(run.record.text)
        committed.append(Committed(run_id, run.record, new, problem, waiting))

    # --- the file's fault ----------------------------------------------------------------------

    @property
    def behind(self) -> int:
        """How many runs wait to be saved."""
        return len(self._behind)

    def _can_write(self, committed: list[Committed]) -> bool:
        """Return whether to write now: the file is there, or it is time to try again."""
        is_tried = self.fault is None or self._is_stopping
        if not is_tried and self._clock.monotonic() < self._retry_at:
            return False
        if self._database is None:
            return True
        try:
            self._file.take(self._made_ready(self._database, committed))
            self._file.wait_for_locks(BUSY_TIMEOUT_S if self.fault is None else BUSY_AGAIN_S)
            if self._database.needs_rebuild:
                self._rebuild(self._database, committed)
        except Exception as error:  # of whatever kind: what was drained must be kept
            if not is_of_file(error):
                _log.exception("the store's file could not be made ready")
            self._note_fault(error)
            return False
        return True

    def _made_ready(self, database: DatabaseFile, committed: list[Committed]) -> sqlite3.Connection:
        self._stall_guard.begin_call({}, committed)
        try:
            return database.ready(looks=self._is_look_due)
        finally:
            self._stall_guard.end_call()

    def _note_fault(self, error: BaseException, took_s: float = 0.0) -> None:
        """Have nothing written for a while; an attempt that took long, with much to write, is not made too often."""
        now = self._clock.monotonic()
        path = None if self._database is None else self._database.path
        found = fault_of(error, path)
        if self.fault is None:
            self._fault_at = self._clock.now()
        if self.fault != found:
            _log.info("runs are not saved: %s", found)
        self.fault = found
        self._retry_at = now + (
            RETRY_S if found.kind is FaultKind.LOCKED else max(RETRY_S, 5 * took_s)
        )
        if self._database is not None and path is not None and is_damage(error):
            self._database.suspect(error)
            self._retry_at = now  # there is nothing to wait for
            self.wake(is_urgent=True)

    def _note_well(self) -> None:
        if self.fault is not None:
            _log.info("runs are saved again")
            self.fault = None

    def _since(self) -> str:
        return datetime.fromtimestamp(self._fault_at, UTC).astimezone().strftime("%H:%M")

    def _rebuild(self, database: DatabaseFile, committed: list[Committed]) -> None:
        """Write what this kernel knows into a file that was begun again."""
        known = []
        for public in self.source.known():
            run = self._runs.get(public.run_id)
            record = public if run is None else run.record
            first = None if run is None else run.backlog.first_seq
            if record.number is not None:  # else it never was in a file
                known.append(KnownRun(record, record.event_count if first is None else first))
        rows = self._file.rebuild(database.previous, known)
        database.close_previous()
        for told in known:
            row = rows[told.record.run_id]
            record = msgspec.structs.replace(told.record, number=row.number)
            mine = self._runs.get(record.run_id)
            if mine is not None:
                mine.row, mine.record = row, record
            if record.number != told.record.number and (mine is None or not mine.backlog):
                committed.append(Committed(record.run_id, record, ()))
        while database.unreported:
            if not self.source.warn(database.unreported[0]):  # then the next run tells it
                break
            database.unreported.popleft()

    # --- one transaction -------------------------------------------------------------------------

    def _write(
        self,
        groups: _Group,
        committed: list[Committed],
        *,
        stand_in: bool = False,
        is_guarded: bool = False,
    ) -> None:
        """Commit the backlogs and the new events of these runs.

        Nothing changes when it raises, so that the same can be tried again.
        """
        runs = {run_id: self._run(run_id) for run_id in groups}
        if is_guarded:
            self._stall_guard.begin_call(groups, committed)
        try:
            written, kept = self._file.write(
                runs, groups, self.source.checkpoints, stand_in=stand_in
            )
        except Exception as error:
            if is_guarded and self._stall_guard.end_call():
                raise _TakenOver from error
            raise
        is_taken_over = is_guarded and self._stall_guard.end_call()
        self._note_checkpoints(kept)
        for run_id, told in written.items():
            if is_taken_over:
                committed.append(self._catch_up(run_id, told.row, told.record))
                continue
            run = runs[run_id]
            run.record, run.row, run.backlog = told.record, told.row, NOTHING
            self._behind.discard(run_id)
            committed.append(Committed(run_id, told.record, told.events))

    def _note_checkpoints(self, kept: dict[str, Checkpointed]) -> None:
        """Take these off what waits; where a newer one waits already, that stays."""
        for run_id, checkpointed in kept.items():
            self._checkpointed.add(run_id)
            if self.source.checkpoints.get(run_id) is checkpointed:
                del self.source.checkpoints[run_id]

    # --- while the disk does not answer ----------------------------------------------------------

    def _take_over(self, call: DiskCall) -> None:
        """Keep, and make public, what the writer was to write, then what is new; on the watch's thread.

        The writer has the runs of its call in its hands, so others are put in their place.
        """
        committed: list[Committed] = []
        new = call.groups
        if call.committed:
            committed += call.committed
            call.committed.clear()
        if not call.is_kept:
            call.is_kept = True
            self._held = sum(run.backlog.size for run in self._runs.values())
            for run_id in new:
                run = self._run(run_id)
                self._runs[run_id] = HeldRun(run.record, run.row, run.backlog.copy())
            if self.fault is None:
                self._fault_at = self._clock.now()
            self.fault = StoreFault(FaultKind.OTHER, f"the disk has not answered for {HANG_S:g} s")
            _log.info("runs are not saved: %s", self.fault)
        else:
            new = {}
            for event in self.source.drain():
                new.setdefault(event.run_id, []).append(event)
        self._keep_all(new, committed)
        if committed:
            self.source.publish(committed)

    def _catch_up(self, run_id: str, row: Row, record: RunRecord) -> Committed:
        """Take out of a run's backlog what is written now, up to this record, and return what is public of it."""
        run = self._runs[run_id]
        run.row = row
        run.backlog.cut(record.event_count, len(record.text))
        run.record = msgspec.structs.replace(run.record, number=row.number)
        if run.backlog:
            waiting = run.backlog.waiting(run.record.text)
            words = str(self.fault or "the disk is slow")
            return Committed(run_id, run.record, (), words, waiting)
        self._behind.discard(run_id)
        return Committed(run_id, run.record, ())

    def _release(self) -> None:
        """Give up the lease, so that nobody has to find out that this process is gone."""
        if self._behind:
            _log.warning("%d runs were not saved: %s", len(self._behind), self.fault)
        try:
            # With a run given up, the file does not tell all; its live-looking runs are then lost at the next load.
            if not self._behind and not self._given_up:
                self._file.release()
        except sqlite3.Error:  # the lease then lapses with the process, as after a crash
            _log.exception("the session's lease could not be released")
        finally:
            self._file.close()
            if self._database is not None:
                self._database.close()


def _has_end(events: Iterable[ev.RunEvent]) -> bool:
    return any(event.data.TYPE in ev.END_TYPES for event in events)


SOON_S = 0.005
"""How long the writer gathers events before it commits; endings and new runs are not kept waiting."""


LINGER_S = 0.045
"""How much longer it gathers while there is only what can wait: text, and the wish that a run stops."""


CROWD, CROWD_S = 100, 0.003


"""After so many rings, of many runs that end together mostly, it gathers for so long, urgent or not: what is about
to end then is written once, and not twice."""


class _State(Enum):
    """What the writer does: ringing its bell is needed only while it listens."""

    IDLE = auto()
    GATHERING = auto()
    LINGERING = auto()
    BUSY = auto()


class WakeUp:
    """Wakes the writer when there is something to write.

    Threads: `wake()` from any thread, a signal handler too; `wait()` is the writer's. The flags are set by who
    rings and cleared by the writer, which alone writes the state.
    """

    def __init__(self) -> None:
        # A queue of C: ringing it can be interrupted, or entered again by a signal handler, at any point without
        # leaving a lock behind.
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._state = _State.BUSY
        self._has_news = self._is_urgent = self._has_more = False
        self._wakes = 0  # about: two who wake at once may count as one

    def wake(self, *, can_wait: bool = False, is_urgent: bool = False) -> None:
        """Say that the source has events; urgent ones are committed at once, those that can wait a little later."""
        if not can_wait:
            self._has_more = True
        if is_urgent:
            self._is_urgent = True
        self._has_news = True
        self._wakes += 1
        # Said first, then looked: the writer sets its state first, then looks at what was said.
        state = self._state
        if state is _State.BUSY:
            return
        if state is _State.IDLE or is_urgent or (state is _State.LINGERING and not can_wait):
            self._queue.put(None)

    def wait(self, at_most_s: float | None) -> bool:
        """Wait for events, then a moment more, so that many share one commit; return whether one is urgent.

        Parameters
        ----------
        at_most_s : how long it waits for the first of them; None for as long as it takes.
        """
        self._state = _State.IDLE
        if not self._has_news:
            self._listen(at_most_s)
        self._state = _State.GATHERING
        if not self._is_urgent:
            self._listen(SOON_S)
        self._state = _State.LINGERING
        if not self._is_urgent and not self._has_more:
            self._listen(LINGER_S)
        self._state = _State.BUSY
        if self._wakes > CROWD:
            time.sleep(CROWD_S)
        # Cleared before the source is drained: what comes after that is news again.
        is_urgent = self._is_urgent
        self._has_news = self._is_urgent = self._has_more = False
        self._wakes = 0
        while not self._queue.empty():
            self._queue.get()
        return is_urgent

    def _listen(self, timeout_s: float | None) -> None:
        with contextlib.suppress(queue.Empty):
            self._queue.get(timeout=timeout_s)


HANG_S = 2.0
"""How long the disk may take before what waits for it becomes public unsaved."""


LOOK_S = 0.5


TICK_S = 0.05
"""How often what is new becomes public then."""


CLOSE_S = 0.05
"""How long a close waits for its thread, which ends at once unless somebody who is told of a run keeps it."""


_QUIET_LOOKS = 4  # without a write, after which the watch rests


@dataclass(slots=True, eq=False)
class DiskCall:
    """A call to the disk that is under way: what it is to write, and what came before it and is not public."""

    groups: dict[str, list[ev.RunEvent]]
    committed: list[Committed]
    began: float  # by the monotonic clock
    is_taken_over: bool = False
    is_kept: bool = False  # `groups` have become public


class StallGuard:
    """Takes the writer's part over while the writer waits for the disk for too long.

    What the writer else does, draining its source and publishing, is then done by the thread `nbrun-writer-watch`,
    under `_turn`; `end_call()` waits for it, so that the two never do it at once. Where nothing is written the thread
    rests.

    Threads: `begin_call()` and `end_call()` are the writer's.

    Parameters
    ----------
    take_over : does the writer's part once; called with the same call again and again until it lands.
    """

    def __init__(self, take_over: Callable[[DiskCall], None], clock: Clock) -> None:
        self._take_over = take_over
        self._clock = clock
        self._turn = threading.Lock()
        self._call: DiskCall | None = None
        self._has_called = False
        self._is_awake = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin_call(self, groups: dict[str, list[ev.RunEvent]], committed: list[Committed]) -> None:
        """Note that the writer is about to call the disk; it touches nothing that is shared until `end_call()`."""
        self._call = DiskCall(groups, committed, self._clock.monotonic())
        self._has_called = True
        if not self._is_awake:
            self._is_awake = True
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._main, name="nbrun-writer-watch", daemon=True
                )
                self._thread.start()
            self._wake.set()

    def end_call(self) -> bool:
        """Note that the disk has answered; return whether the writer was taken_over meanwhile."""
        with self._turn:
            call, self._call = self._call, None
        return call is not None and call.is_taken_over

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)

    def _main(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            quiet = 0
            while quiet < _QUIET_LOOKS:
                call = self._call
                is_late = call is not None and call.is_taken_over
                if self._stop.wait(TICK_S if is_late else min(LOOK_S, HANG_S / 4)):
                    return
                quiet = 0 if self._look() else quiet + 1
            self._is_awake = False
            # Said first, then looked: a departure in between has not woken anybody.
            if self._call is not None:
                self._is_awake = True
                self._wake.set()

    def _look(self) -> bool:
        """Overtake the writer if it is late; return whether it has written anything since the last look."""
        with self._turn:
            call, has_called, self._has_called = self._call, self._has_called, False
            if call is None:
                return has_called
            if self._clock.monotonic() - call.began >= HANG_S:
                call.is_taken_over = True
                try:
                    self._take_over(call)
                except Exception:  # this thread serves every run: whatever comes, it goes on
                    _log.exception("the watch over the store's writer failed")
            return True
