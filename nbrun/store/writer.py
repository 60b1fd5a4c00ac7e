"""The writer: one thread that commits events in groups and tells its source what is on disk."""

from __future__ import annotations

import logging
import sqlite3
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from nbrun import events as ev
from nbrun.artifacts import ArtifactFiles, folder_beside
from nbrun.fold import fold
from nbrun.record import RunRecord, RunStatus
from nbrun.store import schema, watch
from nbrun.store.artifacts import insert_artifacts
from nbrun.store.backlog import HELD_BYTES, Backlog
from nbrun.store.bell import Bell
from nbrun.store.lease import this_process
from nbrun.store.ledger import IdTaken, Ledger, Row, Values, micros
from nbrun.store.renewal import Known, renew
from nbrun.store.sight import note_home
from nbrun.store.source import Committed
from nbrun.store.trouble import Kind, Trouble, is_damage, is_of_file, trouble_of
from nbrun.store.watch import Flight, Watch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nbrun.clock import Clock
    from nbrun.store.checkpoints import Checkpointed
    from nbrun.store.home import Home
    from nbrun.store.source import Source

_log = logging.getLogger("nbrun")

BEAT_S = 15.0
"""How often a commit also says that this kernel lives, for those who cannot see it."""
RETRY_S = 1.0
"""How long the writer waits before it tries again what could not be written."""
BUSY_AGAIN_S = 0.05
"""How long it then waits for a lock: what is new is not to wait for that."""


_NOTHING = Backlog()
"""That of all runs which are saved; nothing is ever added to it."""


class _Overtaken(Exception):
    """The disk has failed after a while, in which what was to be written was kept and made public."""


@dataclass(slots=True)
class _Run:
    """A run in the writer's hands."""

    record: RunRecord
    row: Row | None = None  # None until it is in the file
    backlog: Backlog = _NOTHING  # folded, and not in the file


_Group = dict[str, list[ev.RunEvent]]


class Writer:
    """Commits what its source gives.

    Threads: `ring()` and `close()` from any thread, `trouble` and `behind` are read by any; the rest is of the
    thread `nbrun-writer`, or of its watch while the disk keeps that waiting for too long. The connection is used
    under `lock`, which a reader of a store in memory shares.

    Parameters
    ----------
    connection : to the file, None where `home` could not open it yet.
    home : gives a connection in place of one whose file is gone; without one, this connection is all there is.
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
        home: Home | None = None,
    ) -> None:
        identity, now = this_process(), micros(clock.now())
        self.source = source
        self._home = home
        # In memory until there is a file: nothing is written to it.
        self._connection = connection or sqlite3.connect(":memory:", check_same_thread=False)
        self._ledger = _ledger(self._connection, home)
        self._lock = lock
        self._clock = clock
        self.trouble: Trouble | None = None if home is None else home.trouble
        self._trouble_at = clock.now()
        self._retry_at = 0.0  # by the monotonic clock
        self._held = 0  # bytes of all backlogs
        self._session_row: Values = (
            session_id, notebook, identity.host, identity.boot_id, identity.pid_namespace, identity.pid,
            identity.started_at, now, now,
        )  # fmt: skip
        self._session_key: int | None = None
        self._beaten_at = clock.monotonic()  # the session is inserted with its first beat
        self._runs: dict[str, _Run] = {}
        self._behind: set[str] = set()  # those of them that have a backlog
        self._is_full_sync = False
        self._busy_wait_s = schema.BUSY_TIMEOUT_S
        self._bell = Bell()
        # Not a method that asks the bell: every batch of a host's comes by here.
        self.ring = self._bell.ring
        self._is_stopping = False
        self._checkpointed: set[str] = set()  # live runs that have a checkpoint in the file
        self._is_look_due = True
        self._given_up: set[str] = set()  # runs of which something can never be stored
        self._watch = Watch(self._overtake, clock)
        self._thread = threading.Thread(target=self._main, name="nbrun-writer", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Write what is there, release the lease and stop; return whether that was done in time."""
        self._is_stopping = True
        self.ring(is_urgent=True)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        self._watch.close()
        return not self._thread.is_alive()

    # --- the thread ------------------------------------------------------------------------------

    def _main(self) -> None:
        while not self._is_stopping:
            # What is urgent, an end mostly, is also the time to look whether the file is still the one it was.
            self._is_look_due = self._bell.gather(RETRY_S if self._behind else None)
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
            with self._lock:
                self._ledger.drop_checkpoints(record.number)
        except sqlite3.Error as error:  # it does no harm, and is swept when the file is next opened
            _log.warning("%s: its checkpoint could not be deleted (%s)", record.run_id, error)

    def _source_groups(self, committed: list[Committed]) -> _Group:
        """Return new events by run, and no events for runs that have only a backlog.

        Nothing while the file is in trouble: what is new is then kept with the rest.
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
            self._write(groups, committed, is_watched=not is_part)
        except _Overtaken as overtaken:  # all is kept already
            if isinstance(overtaken.__cause__, Exception) and is_of_file(overtaken.__cause__):
                self._note_trouble(overtaken.__cause__, self._clock.monotonic() - began)
        except IdTaken as taken:
            self._refuse(str(taken), groups, committed)
        except Exception as error:
            if is_of_file(error):  # not a value's: it may pass
                self._note_trouble(error, self._clock.monotonic() - began)
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
                self._note_trouble(again)
                self._keep_all(groups, committed)
                return
            self._given_up.add(run_id)
            self._keep(run_id, new, str(error), committed)

    def _run(self, run_id: str) -> _Run:
        known = self._runs.get(run_id)
        if known is None:
            known = self._runs[run_id] = _Run(self.source.record(run_id) or RunRecord())
        return known

    def _keep_all(self, groups: _Group, committed: list[Committed]) -> None:
        words = "the store is in trouble" if self.trouble is None else self.trouble.words
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
        if run.backlog is _NOTHING:
            run.backlog = Backlog()
        run.backlog.add(new, text_at, HELD_BYTES - self._held, f"{problem}, since {self._since()}")
        self._held += run.backlog.size - size
        is_behind = len(run.backlog) > 0 and run_id not in self._given_up
        (self._behind.add if is_behind else self._behind.discard)(run_id)
        waiting = run.backlog.waiting(run.record.text)
        committed.append(Committed(run_id, run.record, new, problem, waiting))

    # --- the file's trouble ----------------------------------------------------------------------

    @property
    def behind(self) -> int:
        """How many runs wait to be saved."""
        return len(self._behind)

    def _can_write(self, committed: list[Committed]) -> bool:
        """Return whether to write now: the file is there, or it is time to try again."""
        is_tried = self.trouble is None or self._is_stopping
        if not is_tried and self._clock.monotonic() < self._retry_at:
            return False
        if self._home is None:
            return True
        try:
            connection = self._made_ready(self._home, committed)
            if connection is not self._connection:
                self._connection, self._ledger = connection, _ledger(connection, self._home)
                self._is_full_sync, self._busy_wait_s = False, -1.0
            self._wait_for_locks(schema.BUSY_TIMEOUT_S if self.trouble is None else BUSY_AGAIN_S)
            if self._home.is_begun_again:
                self._renew(self._home, committed)
        except Exception as error:  # of whatever kind: what was drained must be kept
            if not is_of_file(error):
                _log.exception("the store's file could not be made ready")
            self._note_trouble(error)
            return False
        return True

    def _made_ready(self, home: Home, committed: list[Committed]) -> sqlite3.Connection:
        self._watch.depart({}, committed)
        try:
            return home.ready(looks=self._is_look_due)
        finally:
            self._watch.land()

    def _note_trouble(self, error: BaseException, took_s: float = 0.0) -> None:
        """Have nothing written for a while; an attempt that took long, with much to write, is not made too often."""
        now = self._clock.monotonic()
        path = None if self._home is None else self._home.path
        found = trouble_of(error, path)
        if self.trouble is None:
            self._trouble_at = self._clock.now()
        if self.trouble != found:
            _log.info("runs are not saved: %s", found)
        self.trouble = found
        self._retry_at = now + (RETRY_S if found.kind is Kind.LOCKED else max(RETRY_S, 5 * took_s))
        if self._home is not None and path is not None and is_damage(error):
            self._home.suspect(error)
            self._retry_at = now  # there is nothing to wait for
            self.ring(is_urgent=True)

    def _note_well(self) -> None:
        if self.trouble is not None:
            _log.info("runs are saved again")
            self.trouble = None

    def _since(self) -> str:
        return datetime.fromtimestamp(self._trouble_at, UTC).astimezone().strftime("%H:%M")

    def _wait_for_locks(self, wait_s: float) -> None:
        """Have a lock waited for so long; while it is known to be there, events must not wait for it each time."""
        if self._busy_wait_s != wait_s:
            self._connection.execute(f"PRAGMA busy_timeout = {round(wait_s * 1000)}")
            self._busy_wait_s = wait_s

    def _renew(self, home: Home, committed: list[Committed]) -> None:
        """Write what this kernel knows into a file that was begun again."""
        known = []
        for public in self.source.known():
            run = self._runs.get(public.run_id)
            record = public if run is None else run.record
            first = None if run is None else run.backlog.first_seq
            if record.number is not None:  # else it never was in a file
                known.append(Known(record, record.event_count if first is None else first))
        self._sync_fully(True)
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                key, rows = renew(home.former, self._connection, self._session_row, known)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        home.let_go_of_former()
        self._session_key = key
        for told in known:
            row = rows[told.record.run_id]
            record = msgspec.structs.replace(told.record, number=row.number)
            mine = self._runs.get(record.run_id)
            if mine is not None:
                mine.row, mine.record = row, record
            if record.number != told.record.number and (mine is None or not mine.backlog):
                committed.append(Committed(record.run_id, record, ()))
        while home.news:
            if not self.source.warn(home.news[0]):  # then the next run tells it
                break
            home.news.popleft()

    # --- one transaction -------------------------------------------------------------------------

    def _write(
        self,
        groups: _Group,
        committed: list[Committed],
        *,
        stand_in: bool = False,
        is_watched: bool = False,
    ) -> None:
        """Commit the backlogs and the new events of these runs.

        Nothing changes when it raises, so that the same can be tried again.
        """
        runs = {run_id: self._run(run_id) for run_id in groups}
        self._sync_fully(
            any(
                _has_end(run.backlog.whole()) or _has_end(groups[run_id])
                for run_id, run in runs.items()
            )
        )
        if is_watched:
            self._watch.depart(groups, committed)
        try:
            session_key, written = self._transact(runs, groups, stand_in)
        except Exception as error:
            if is_watched and self._watch.land():
                raise _Overtaken from error
            raise
        is_overtaken = is_watched and self._watch.land()
        self._session_key = session_key
        for run_id, (row, record, new) in written.items():
            if is_overtaken:
                committed.append(self._catch_up(run_id, row, record))
                continue
            run = runs[run_id]
            run.record, run.row, run.backlog = record, row, _NOTHING
            self._behind.discard(run_id)
            committed.append(Committed(run_id, record, new))

    def _transact(
        self, runs: dict[str, _Run], groups: _Group, stand_in: bool
    ) -> tuple[int, dict[str, tuple[Row, RunRecord, list[ev.RunEvent]]]]:
        """Write in one transaction; it touches nothing of the writer's, which may be overtaken."""
        with self._lock:
            self._ledger.begin()
            try:
                session_key = self._session_key or self._insert_session()
                self._beat(session_key)
                written = {
                    run_id: self._write_run(session_key, run_id, run, groups[run_id], stand_in)
                    for run_id, run in runs.items()
                }
                kept = self._keep_checkpoints(written)
                self._ledger.commit()
            except BaseException:
                self._ledger.rollback()
                raise
        for run_id, checkpointed in kept.items():
            self._checkpointed.add(run_id)
            if (
                self.source.checkpoints.get(run_id) is checkpointed
            ):  # else a newer one waits already
                del self.source.checkpoints[run_id]
        return session_key, written

    def _keep_checkpoints(
        self, written: dict[str, tuple[Row, RunRecord, list[ev.RunEvent]]]
    ) -> dict[str, Checkpointed]:
        """Write the newest states of these runs; return them. One whose event is not written yet has to wait for it."""
        kept: dict[str, Checkpointed] = {}
        for run_id in self.source.checkpoints.keys() & written.keys():
            checkpointed = self.source.checkpoints[run_id]
            row, record, _ = written[run_id]
            if checkpointed.seq < record.event_count:
                self._ledger.keep_checkpoint(row, checkpointed)
                kept[run_id] = checkpointed
        return kept

    # --- while the disk does not answer ----------------------------------------------------------

    def _overtake(self, flight: Flight) -> None:
        """Keep, and make public, what the writer was to write, then what is new; on the watch's thread.

        The writer has the runs of its flight in its hands, so others are put in their place.
        """
        committed: list[Committed] = []
        new = flight.groups
        if flight.committed:
            committed += flight.committed
            flight.committed.clear()
        if not flight.is_kept:
            flight.is_kept = True
            self._held = sum(run.backlog.size for run in self._runs.values())
            for run_id in new:
                run = self._run(run_id)
                self._runs[run_id] = _Run(run.record, run.row, run.backlog.copy())
            if self.trouble is None:
                self._trouble_at = self._clock.now()
            self.trouble = Trouble(Kind.OTHER, f"the disk has not answered for {watch.HANG_S:g} s")
            _log.info("runs are not saved: %s", self.trouble)
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
            words = str(self.trouble or "the disk is slow")
            return Committed(run_id, run.record, (), words, waiting)
        self._behind.discard(run_id)
        return Committed(run_id, run.record, ())

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
        if run.backlog.has_dropped:
            return self._write_with_gaps(session_key, run_id, run, new, stand_in)
        events = [*run.backlog.whole(), *new]
        row, record = run.row, run.record
        if row is None and events and isinstance(events[0].data, ev.RunCreated):
            row, events[0] = self._ledger.insert_run(session_key, events[0])
        elif row is None:
            row = self._ledger.find_run(session_key, run_id, record.status)
        if stand_in:
            row, events = self._ledger.write_one_by_one(row, events)
        else:
            row = self._ledger.write_events(row, events)
        insert_artifacts(self._connection, row.number, events)
        new = events[len(run.backlog) :]
        record = fold(new, record)
        if record.number is None:  # it was folded before it had one
            record = msgspec.structs.replace(record, number=row.number)
        return self._ledger.write_record(row, record), record, new

    def _write_with_gaps(
        self, session_key: int, run_id: str, run: _Run, new: list[ev.RunEvent], stand_in: bool
    ) -> tuple[Row, RunRecord, list[ev.RunEvent]]:
        """Write a run of whose backlog a part was dropped: piece by piece, then what is new."""
        row, record = run.row, run.record
        for piece in run.backlog.pieces():
            if isinstance(piece, Backlog):
                part = _Run(record, row, piece)
                row, record, _ = self._write_run(session_key, run_id, part, [], stand_in)
            elif row is not None:  # always: a run's creation is never dropped
                row = self._ledger.write_dropped(row, piece, record.text)
        return self._write_run(session_key, run_id, _Run(record, row), new, stand_in)

    def _sync_fully(self, wanted: bool) -> None:
        """Have the next commit survive a power loss, or only the death of this process.

        Source: SQLite ignores a change of `synchronous` within a transaction, so it is made between two.
        """
        if wanted != self._is_full_sync:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}")
            self._is_full_sync = wanted

    def _release(self) -> None:
        """Give up the lease, so that nobody has to find out that this process is gone."""
        if self._behind:
            _log.warning("%d runs were not saved: %s", len(self._behind), self.trouble)
        try:
            with self._lock:
                # With a run given up, the file does not tell all; its live-looking runs are then lost at the next load.
                is_told = not self._behind and not self._given_up
                if self._session_key is not None and is_told:
                    self._connection.execute(
                        "UPDATE sessions SET closed_at = ? WHERE key = ?",
                        (micros(self._clock.now()), self._session_key),
                    )
        except sqlite3.Error:  # the lease then lapses with the process, as after a crash
            _log.exception("the session's lease could not be released")
        finally:
            self._connection.close()
            if self._home is not None:
                self._home.close()


def _ledger(connection: sqlite3.Connection, home: Home | None) -> Ledger:
    """Return what writes to a file, and what is too large for it beside it."""
    ledger = Ledger(connection)
    if home is not None and home.path is not None:
        ledger.files = ArtifactFiles(folder_beside(home.path))
    return ledger


def _has_end(events: Iterable[ev.RunEvent]) -> bool:
    return any(event.data.TYPE in ev.END_TYPES for event in events)
