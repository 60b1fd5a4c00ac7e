"""The writer: one thread that commits events in groups and publishes what is on disk."""

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
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from nbrun.core import Clock, RunRecord, RunStatus, events as ev, fold
from nbrun.core.record import TOOLS_KEPT
from nbrun.store.backlog import HELD_BYTES, Backlog
from nbrun.store.connection import BUSY_TIMEOUT_S
from nbrun.store.faults import FaultKind, StoreFault, fault_of, is_damage, is_of_file
from nbrun.store.liveness import this_process
from nbrun.store.rebuild import KnownRun, rebuild
from nbrun.store.rows import Checkpointed, FileWriter, HeldRun, IdTaken, Row, Values, has_end, micros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nbrun.store.database_file import DatabaseFile
    from nbrun.store.signing import Signer

_log = logging.getLogger("nbrun")

RETRY_S = 1.0  # how long the writer waits before it tries a failed write again
BUSY_AGAIN_S = 0.05  # how long it then waits for a lock: new events must not wait for that

SOON_S = 0.005
"""How long the writer gathers events before it commits; ends and new runs do not have to wait."""
LINGER_S = 0.045
"""How much longer it gathers while there is only what can wait: text, and requests to cancel."""
CROWD, CROWD_S = 100, 0.003
"""After so many wake-ups it gathers for so long, urgent or not: many runs are ending together, and share a commit."""

HANG_S = 2.0  # how long the disk may take before waiting events are published unsaved
LOOK_S = 0.5  # how often the stall guard looks at the writer
TICK_S = 0.05  # how often new events are published while the disk does not answer
CLOSE_S = 0.05
"""How long a close waits for the guard's thread, which ends at once unless an observer holds it up."""
_QUIET_LOOKS = 4  # looks without a write, after which the guard rests

_OF_TOOLS = (ev.ToolStarted, ev.ToolFinished)

_Group = dict[str, list[ev.RunEvent]]


class Committed(NamedTuple):
    """What is to be published of one run: its record, and the events since the last one.

    `problem` says why the events are not on disk, None if they are; `waiting` are then all unsaved ones.
    """

    run_id: str
    record: RunRecord
    events: Sequence[ev.RunEvent]
    problem: str | None = None
    waiting: Iterable[ev.RunEvent] = ()


class Source(Protocol):
    """Where events come from: a session. Its methods are called on the writer's thread only.

    `checkpoints` belong to drained events, by run: the writer takes them out once they are stored.
    """

    checkpoints: dict[str, Checkpointed]

    @property
    def has_waiting(self) -> bool:
        """Whether events wait."""

    def drain(self) -> list[ev.RunEvent]:
        """Return events that wait, as many as one commit takes: numbered, redacted, in order."""

    def record(self, run_id: str) -> RunRecord | None:
        """Return the public record of a run."""

    def known(self) -> list[RunRecord]:
        """Return the public records of all runs in memory."""

    def publish(self, committed: list[Committed]) -> None:
        """Make this public."""

    def warn(self, text: str) -> bool:
        """Add a warning to the logs of all live runs; return whether there were any."""

    def refuse(self, run_id: str) -> None:
        """Take back a run that did not start: its id is taken."""


class _TakenOver(Exception):
    """The disk failed after the stall guard took over: the events are already kept and published."""


class Writer:
    """Commits the events of its source.

    `connection` is None if `database` could not open it yet. The `database` replaces a connection whose file is gone;
    without it, this connection is all there is.

    Threads: `wake()` and `close()` from any thread, `fault` and `behind` are read by any; all else belongs to the
    thread `nbrun-writer`, or to its stall guard while the disk does not answer. The connection is used under `lock`,
    which readers of a store in memory share.
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
        signer: Signer | None = None,
    ) -> None:
        identity, now = this_process(), micros(clock.now())
        self.source = source
        self._database = database
        session: Values = (
            session_id, notebook, identity.host, identity.boot_id, identity.pid_namespace, identity.pid,
            identity.started_at, now, now,
        )  # fmt: skip
        self._file = FileWriter(connection, None if database is None else database.path, lock, session, clock, signer)
        self._clock = clock
        self.fault: StoreFault | None = None if database is None else database.fault
        self._fault_at = clock.now()
        self._retry_at = 0.0  # by the monotonic clock
        self._held = 0  # bytes of all backlogs
        self._runs: dict[str, HeldRun] = {}
        self._behind: set[str] = set()  # those of them that have a backlog
        self._wake_up = WakeUp()
        self.wake = self._wake_up.wake  # bound directly: it is called for every batch of events
        self._is_stopping = False
        self._checkpointed: set[str] = set()  # live runs that have a checkpoint in the file
        self._is_look_due = True
        self._given_up: set[str] = set()  # runs that can't be stored completely
        self._stall_guard = StallGuard(self._take_over, clock)
        self._thread = threading.Thread(target=self._main, name="nbrun-writer", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Write what waits, close the session and stop; return whether that was done in time."""
        self._is_stopping = True
        self.wake(is_urgent=True)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        self._stall_guard.close()
        return not self._thread.is_alive()

    # --- the thread ------------------------------------------------------------------------------

    def _main(self) -> None:
        while not self._is_stopping:
            # Something urgent, mostly an end, is also the occasion to check that the file is still the same.
            self._is_look_due = self._wake_up.wait(RETRY_S if self._behind else None)
            self._cycle()
        self._cycle()
        while self.source.has_waiting:  # a commit takes only so much
            self._cycle()
        self._release()

    def _cycle(self) -> None:
        committed: list[Committed] = []
        try:
            if self._behind or self._given_up:
                waiting = self._behind | self._given_up
                self._held = _size(self._runs[run_id] for run_id in waiting)
            self._commit(self._source_groups(committed), committed)
        except Exception:  # this thread serves every run: it continues, whatever happens
            _log.exception("the store's writer failed")
        finally:
            if committed:
                self.source.publish(committed)
        for item in committed:
            if not item.record.is_live and item.run_id not in self._behind and item.run_id not in self._given_up:
                self._runs.pop(item.run_id, None)
                self._delete_checkpoints(item.record)

    def _delete_checkpoints(self, record: RunRecord) -> None:
        """Delete what an ended run could be resumed from, if it has completed; its end is on disk."""
        had_one = record.run_id in self._checkpointed or record.resumed_from is not None
        self._checkpointed.discard(record.run_id)
        if not had_one or record.status is not RunStatus.COMPLETED or record.number is None:
            return
        try:
            self._file.delete_checkpoints(record.number)
        except sqlite3.Error as error:  # harmless, and done when the file is next opened
            _log.warning("%s: its checkpoint could not be deleted (%s)", record.run_id, error)

    def _source_groups(self, committed: list[Committed]) -> _Group:
        """Return new events by run, an empty list for a run with only a backlog."""
        # Nothing while the file cannot be written: new events are then added to the backlogs.
        can_write = self._can_write(committed)
        new: _Group = {}
        for event in self.source.drain():
            new.setdefault(event.run_id, []).append(event)
        if can_write:
            return {**{run_id: [] for run_id in self._behind}, **new} if self._behind else new
        self._keep_all(new, committed)
        return {}

    def _commit(self, groups: _Group, committed: list[Committed], *, is_part: bool = False) -> None:
        """Write the groups together; if that fails, keep them, or find out which one is to blame."""
        # With `is_part`, the stall guard does not take over: the writer still holds the other groups.
        for run_id in self._given_up & groups.keys():
            self._keep(run_id, groups.pop(run_id), "one of its values cannot be stored", committed)
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
            if is_of_file(error):  # not caused by a value: it may pass
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
        if self._run(run_id).backlog:  # it has started, unsaved: it cannot be taken back
            self._given_up.add(run_id)
            self._keep(run_id, new, "the store already has a run with its id", committed)
        else:
            del self._runs[run_id]
            self.source.refuse(run_id)
        self._commit(groups, committed)

    def _write_carefully(self, groups: _Group, error: Exception, committed: list[Committed]) -> None:
        """Write the run that is to blame with placeholders for what cannot be stored; give it up if that fails."""
        ((run_id, new),) = groups.items()
        _log.warning("%s: something in it cannot be stored (%s)", run_id, error)
        try:
            self._write(groups, committed, has_placeholders=True)
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
        words = "the store is unavailable" if self.fault is None else self.fault.words
        for run_id, new in groups.items():
            self._keep(run_id, new, words, committed)

    def _keep(self, run_id: str, new: list[ev.RunEvent], problem: str, committed: list[Committed]) -> None:
        """Publish events that are not on disk; they are written later unless their run was given up."""
        run = self._run(run_id)
        backlog = run.backlog = run.backlog or Backlog()
        text_at, size = len(run.record.text), backlog.size
        checkpoint_at = max(0, run.record.checkpoint_text - run.record.text_cut)
        try:
            run.record = fold(new, run.record)
        except Exception:  # an end must be seen, whatever led to it
            _log.exception("%s: its events cannot be read", run_id)
            if has_end(new):
                run.record = msgspec.structs.replace(run.record, status=RunStatus.FAILED)
        why = f"{problem}, since {self._since()}"
        backlog.add(new, text_at, checkpoint_at, HELD_BYTES - self._held, why)
        self._held += backlog.size - size
        is_behind = len(backlog) > 0 and run_id not in self._given_up
        (self._behind.add if is_behind else self._behind.discard)(run_id)
        waiting = backlog.waiting(run.record.text)
        committed.append(Committed(run_id, run.record, new, problem, waiting))

    # --- faults of the file ----------------------------------------------------------------------

    @property
    def behind(self) -> int:
        """How many runs are not saved yet."""
        return len(self._behind)

    def _can_write(self, committed: list[Committed]) -> bool:
        """Return whether the file can be written now; while it has a fault, try only now and then."""
        is_due = self.fault is None or self._is_stopping
        if not is_due and self._clock.monotonic() < self._retry_at:
            return False
        if self._database is None:
            return True
        try:
            self._stall_guard.begin_call({}, committed)
            try:
                connection = self._database.ready(looks=self._is_look_due)
            finally:
                self._stall_guard.end_call()
            self._file.take(connection, self._database.path, BUSY_TIMEOUT_S if self.fault is None else BUSY_AGAIN_S)
            if self._database.needs_rebuild:
                self._rebuild(self._database, committed)
        except Exception as error:  # of any kind: what is drained next must be kept
            if not is_of_file(error):
                _log.exception("the store's file could not be opened")
            self._note_fault(error)
            return False
        return True

    def _note_fault(self, error: BaseException, took_s: float = 0.0) -> None:
        """Write nothing for a while; the longer this attempt took, the longer the wait."""
        now = self._clock.monotonic()
        path = None if self._database is None else self._database.path
        found = fault_of(error, path)
        is_first = self.fault is None
        if is_first:
            self._fault_at = self._clock.now()
        if self.fault != found:
            _log.info("runs are not saved: %s", found)
        self.fault = found
        is_locked = found.kind is FaultKind.LOCKED
        self._retry_at = now + (RETRY_S if is_locked else max(RETRY_S, 5 * took_s))
        if self._database is None or path is None:
            return
        was_replaced = not self._database.is_in_place()
        if is_damage(error) and not was_replaced:
            self._database.suspect(error)
        if is_damage(error) or (was_replaced and is_first):
            self._retry_at = now  # there is nothing to wait for
            self.wake(is_urgent=True)

    def _note_well(self) -> None:
        if self.fault is not None:
            _log.info("runs are saved again")
            self.fault = None

    def _since(self) -> str:
        return datetime.fromtimestamp(self._fault_at, UTC).astimezone().strftime("%H:%M")

    def _rebuild(self, database: DatabaseFile, committed: list[Committed]) -> None:
        """Write what this kernel knows into a new file."""
        known = []
        for public in self.source.known():
            run = self._runs.get(public.run_id)
            record = public if run is None else run.record
            first = None if run is None or run.backlog is None else run.backlog.first_seq
            if record.number is not None:  # else it was never in a file
                known.append(KnownRun(record, record.event_count if first is None else first))
        rows = self._file.rebuild(partial(rebuild, database.previous, known))
        database.close_previous()
        for known_run in known:
            row = rows[known_run.record.run_id]
            record = msgspec.structs.replace(known_run.record, number=row.number)
            run = self._runs.get(record.run_id)
            if run is not None:
                run.row, run.record = row, record
            if record.number != known_run.record.number and (run is None or not run.backlog):
                committed.append(Committed(record.run_id, record, ()))
        # Without a live run to show the warning, it waits for the next one.
        while database.unreported and self.source.warn(database.unreported[0]):
            database.unreported.popleft()

    # --- one transaction -------------------------------------------------------------------------

    def _write(
        self, groups: _Group, committed: list[Committed], *, has_placeholders: bool = False, is_guarded: bool = False
    ) -> None:
        """Commit the backlogs and the new events of these runs; if it raises, nothing has changed."""
        runs = {run_id: self._run(run_id) for run_id in groups}
        if is_guarded:
            self._stall_guard.begin_call(groups, committed)
        try:
            written, kept = self._file.write(runs, groups, self.source.checkpoints, has_placeholders=has_placeholders)
        except Exception as error:
            if is_guarded and self._stall_guard.end_call():
                raise _TakenOver from error
            raise
        is_taken_over = is_guarded and self._stall_guard.end_call()
        for run_id, checkpointed in kept.items():
            self._checkpointed.add(run_id)
            if self.source.checkpoints.get(run_id) is checkpointed:  # else there is a newer one
                del self.source.checkpoints[run_id]
        for run_id, made in written.items():
            if is_taken_over:
                committed.append(self._catch_up(run_id, made.row, made.record))
                continue
            run = runs[run_id]
            # Only now, when the file has all of it: what is dropped of a backlog is a part of the record's text.
            record = made.record.with_end_of_text()
            if record.tools is not run.record.tools:
                run.tool_bytes += sum(ev.weight(one.data) for one in made.events if isinstance(one.data, _OF_TOOLS))
                if run.tool_bytes > 2 * TOOLS_KEPT:
                    record, run.tool_bytes = record.with_short_tools(), 0
            run.record, run.row, run.backlog = record, made.row, None
            self._behind.discard(run_id)
            committed.append(Committed(run_id, run.record, made.events))

    # --- while the disk does not answer ----------------------------------------------------------

    def _take_over(self, call: DiskCall) -> None:
        """Keep and publish what the writer was about to write, then what is new; on the guard's thread."""
        # The writer is still using the runs of its call, so they are replaced by copies.
        committed, new = list(call.committed), call.groups
        call.committed.clear()
        if not call.is_kept:
            call.is_kept = True
            self._held = _size(self._runs.values())
            for run_id in new:
                run = self._run(run_id)
                backlog = None if run.backlog is None else run.backlog.copy()
                self._runs[run_id] = HeldRun(run.record, run.row, backlog)
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
        """Remove from a run's backlog what is now written, up to this record, and return what to publish."""
        run = self._runs[run_id]
        run.row = row
        if run.backlog is not None:
            run.backlog.cut(record.event_count, len(record.text))
        run.record = msgspec.structs.replace(run.record, number=row.number)
        if not run.backlog:
            self._behind.discard(run_id)
            return Committed(run_id, run.record, ())
        waiting = run.backlog.waiting(run.record.text)
        return Committed(run_id, run.record, (), str(self.fault or "the disk is slow"), waiting)

    def _release(self) -> None:
        """Close the session in the file, and the file."""
        if self._behind:
            _log.warning("%d runs were not saved: %s", len(self._behind), self.fault)
        try:
            # Else something is missing in the file: runs that look live in it are marked as lost at the next load.
            if not self._behind and not self._given_up:
                self._file.release()
        except sqlite3.Error:  # as after a crash: others see that the process is gone
            _log.exception("the session could not be closed in the store")
        finally:
            self._file.close()
            if self._database is not None:
                self._database.close()


def _size(runs: Iterable[HeldRun]) -> int:
    """Return how many bytes the backlogs of these runs take, about."""
    return sum(run.backlog.size for run in runs if run.backlog is not None)


class _State(Enum):
    """What the writer is doing; it needs to be woken only while it listens."""

    IDLE = auto()
    GATHERING = auto()
    LINGERING = auto()
    BUSY = auto()


class WakeUp:
    """Wakes the writer when there is something to write.

    Threads: `wake()` from any thread, a signal handler too; `wait()` is the writer's. The flags are set by `wake()`
    and cleared by the writer, which alone writes the state.
    """

    def __init__(self) -> None:
        # Written in C: a put can be interrupted, or entered again by a signal handler, at any point without leaving
        # a lock behind.
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._state = _State.BUSY
        self._has_news = self._is_urgent = self._has_more = False
        self._wakes = 0  # roughly: two wake-ups at once may count as one

    def wake(self, *, can_wait: bool = False, is_urgent: bool = False) -> None:
        """Announce events: urgent ones are committed at once, those that can wait a little later."""
        if not can_wait:
            self._has_more = True
        if is_urgent:
            self._is_urgent = True
        self._has_news = True
        self._wakes += 1
        # Flags first, then the state: the writer sets its state first, then looks at the flags.
        state = self._state
        if state is _State.BUSY:
            return
        if state is _State.IDLE or is_urgent or (state is _State.LINGERING and not can_wait):
            self._queue.put(None)

    def wait(self, at_most_s: float | None) -> bool:
        """Wait for events, then a moment more, so that many share one commit; return whether one is urgent.

        The first of them may take `at_most_s`; None for as long as it takes.
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
        # Cleared before the source is drained: what comes later counts as new.
        is_urgent = self._is_urgent
        self._has_news = self._is_urgent = self._has_more = False
        self._wakes = 0
        while not self._queue.empty():
            self._queue.get()
        return is_urgent

    def _listen(self, timeout_s: float | None) -> None:
        with contextlib.suppress(queue.Empty):
            self._queue.get(timeout=timeout_s)


@dataclass(slots=True, eq=False)
class DiskCall:
    """A call to the disk in progress: what it writes, and what was committed before and is not published yet."""

    groups: dict[str, list[ev.RunEvent]]
    committed: list[Committed]
    began: float  # by the monotonic clock
    is_taken_over: bool = False
    is_kept: bool = False  # `groups` are published


class StallGuard:
    """Drains the writer's source and publishes, by calling `take_over` repeatedly, while the disk does not answer.

    Its thread, `nbrun-writer-watch`, does that under `_turn`, for which `end_call()` waits, so that the two never do
    it at once. It rests while nothing is written.

    Threads: `begin_call()` and `end_call()` are the writer's.
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
        """Note that the writer is about to call the disk; it changes nothing shared until `end_call()`."""
        self._call = DiskCall(groups, committed, self._clock.monotonic())
        self._has_called = True
        if not self._is_awake:
            self._is_awake = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="nbrun-writer-watch", daemon=True)
                self._thread.start()
            self._wake.set()

    def end_call(self) -> bool:
        """Note that the disk has answered; return whether the guard has taken over meanwhile."""
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
            # Clear the flag, then look: a call that began in between has not woken this thread.
            if self._call is not None:
                self._is_awake = True
                self._wake.set()

    def _look(self) -> bool:
        """Take over if the writer is late; return whether it has written anything since the last look."""
        with self._turn:
            call, has_called, self._has_called = self._call, self._has_called, False
            if call is None:
                return has_called
            if self._clock.monotonic() - call.began >= HANG_S:
                call.is_taken_over = True
                try:
                    self._take_over(call)
                except Exception:  # this thread serves every run: it continues, whatever happens
                    _log.exception("the guard of the store's writer failed")
            return True
