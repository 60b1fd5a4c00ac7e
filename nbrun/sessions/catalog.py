"""Finding runs: those of this session by what is in memory, all others in the store."""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from nbrun.core import Action, BadOption, Fix, RunNotFound, RunRecord, StoreError, clean_text
from nbrun.core.commands import number_of
from nbrun.render.words import run_ref, title
from nbrun.sessions.live_run import aside
from nbrun.sessions.run import Parts, Run
from nbrun.sessions.run_list import RunList
from nbrun.store import Query

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbrun.sessions.live_run import LiveRun
    from nbrun.store import SessionStore, StoredRun

_log = logging.getLogger("nbrun")
T = TypeVar("T")

KEEP_ENDED = 100
"""How many ended runs stay in memory with their live output; older ones are read from the store."""
KEEP_ENDED_BYTES = 500_000_000
"""How many bytes they take together; the newest one always stays."""

_CHAIN = 10  # how many errors that led to one another are looked at: a chain may be a circle


class Catalog:
    """The runs of a session and of its store, by reference. Threads: any."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._store = parts.store
        self._runs = parts.intake.runs
        self._lock = threading.Lock()
        self._ended: deque[LiveRun] = deque()  # under the lock
        self._held_bytes = 0  # by them, under the lock
        self._last_failed: LiveRun | None = None  # whose error still has the agent's variables, for a debugger

    def remove(self, numbers: Sequence[int]) -> list[int]:
        """Remove ended runs from the store, and from memory; return the numbers of the runs that are gone."""
        gone = self._store.remove(numbers)
        removed = set(gone)
        for live in tuple(self._runs.values()):
            if live.record.number in removed:
                # Otherwise it would be written again when the file is replaced.
                self._forget(live)
                live.agent = None
        with self._lock:
            self._ended = deque(live for live in self._ended if live.record.number not in removed)
            self._held_bytes = sum(live.held_bytes for live in self._ended)
        return gone

    def note_end(self, live: LiveRun) -> None:
        """Note that a run has ended; those that ended long ago, and are saved, are kept in memory no longer."""
        with self._lock:
            if self._runs.get(live.run_id) is not live:  # it has just been removed
                live.let_go()
                return
            self._ended.append(live)
            self._held_bytes += live.held_bytes
            if issubclass(type(live.output), BaseException):  # asking for its class may run code of its own
                if self._last_failed is not None:
                    aside(partial(_clear_locals, self._last_failed.output))
                self._last_failed = live
            while self._holds_too_much():
                oldest = self._ended.popleft()
                self._held_bytes -= oldest.held_bytes
                self._forget(oldest)

    def _holds_too_much(self) -> bool:
        count = len(self._ended)
        if self._ended[0].problem is not None:  # what cannot be saved stays longer, and not for ever
            return count > 2 * KEEP_ENDED
        return count > KEEP_ENDED or (count > 1 and self._held_bytes > KEEP_ENDED_BYTES)

    def _forget(self, live: LiveRun) -> None:
        self._parts.intake.forget(live)
        live.let_go()

    def recent(self, limit: int, in_set: int | None = None) -> list[Run]:
        """Return the newest runs in memory, newest first; the store is not asked."""
        found = reversed(tuple(self._runs.values()))
        if in_set is not None:
            found = (live for live in found if self._set_of(live) == in_set)
        return [self.run(live) for live in islice(found, limit)]

    def _set_of(self, live: LiveRun) -> int:
        """Return the number of the set that a run, or the run whose child it is, belongs to; 0 for none."""
        known: LiveRun | None = live
        while known is not None:
            if known.record.member is not None:
                return known.record.member.set
            known = self._runs.get(known.record.parent_id or "")
        return 0

    def run(self, live: LiveRun) -> Run:
        """Return the handle of a run in memory."""
        return Run(self._parts, live.record, live)

    def get(self, ref: int | str) -> Run:
        """Return the run that `ref` names; raises `RunNotFound` if it names no run."""
        text = str(ref).strip()
        number = number_of(text)
        if number is None:
            found = self.named(text)
        elif number < 0:
            found = self._nth_newest(-number)
        else:
            found = self._numbered(number)
        if found is None:
            raise RunNotFound(f"No run '{text}' found", fixes=[Fix(Action.LIST)])
        return found

    def own(self, run_id: str) -> Run | None:
        """Return the run of this session that has exactly this id; names and numbers don't count."""
        live = self._runs.get(run_id)
        if live is not None:
            return self.run(live)
        stored = self._store.find_id(clean_text(run_id), self._parts.session_id)
        return None if stored is None else self._of(stored.record)

    def with_id(self, run_id: str) -> Run | None:
        """Return the newest run of the store with exactly this id, whichever session's."""
        live = self._runs.get(run_id)
        if live is not None:
            return self.run(live)
        stored = self._store.find_id(run_id)
        if stored is None:
            return self._in_read_only(lambda store: store.find_id(run_id))
        return self._of(stored.record)

    def named(self, text: str) -> Run | None:
        """Return the newest run with this id, else the newest with this name; this session's first.

        A replay has the name of the run that it shows; by that it is found only if no other run has it.
        """
        self._await_creations()
        own = self._runs.get(text)
        same = [live for live in tuple(self._runs.values()) if live.record.name == text]
        if own is None:
            real = [live for live in same if not live.record.is_replay]
            own = real[-1] if real else None
        if own is not None:
            return self.run(own)
        stored = self._store.find(clean_text(text))
        if same and (stored is None or stored.record.is_replay):
            return self.run(same[-1])  # the store may be behind
        if stored is None:
            return self._in_read_only(lambda store: store.find(clean_text(text)))
        return self._of(stored.record)

    def runs(self, query: Query) -> RunList:
        """Return the runs that are asked for, newest first."""
        self._await_creations()
        if query.is_unfiltered and query.before is None:
            return RunList(self._all(query.limit)[: query.limit])
        known = dict(self._runs)  # of these their own state decides: the store may be behind it
        # A child that is not committed yet has no record that says so.
        lives = [live for live in known.values() if not (query.is_top_level and live.is_child)]
        if query.in_set is not None:
            lives = [live for live in lives if self._set_of(live) == query.in_set]
        mine = [run for run in map(self.run, lives) if run.fits(query)]
        stored = self._store.select(query, lambda found: found.record.run_id in known and self._is_own(found.record))
        found = [*reversed(mine), *(self._of(one.record) for one in stored)]
        others = self._ask_read_only(lambda store: store.select(query)) or []
        found += [Run(self._parts, one.record, store=self._store.read_only) for one in others]
        found.sort(key=_number_or_newer, reverse=True)
        return RunList(found[: query.limit])

    def count(self) -> int:
        """Return how many runs are stored."""
        self._await_creations()
        others = self._ask_read_only(lambda store: store.count())
        return self._store.count() + (others or 0)

    def _all(self, limit: int | None) -> list[Run]:
        unsaved = [live for live in tuple(self._runs.values()) if live.record.number is None]
        stored = self._store.runs(limit)
        own = [*map(self.run, reversed(unsaved)), *(self._of(found.record) for found in stored)]
        return own + self._read_only_runs(limit) if limit is None or len(own) < limit else own

    def _await_creations(self) -> None:
        """See to it that all runs that were started can be found: the newest is the last to become public."""
        for newest in tuple(self._runs.values())[-1:]:
            self._parts.await_creation(newest)

    # --- the read-only file ----------------------------------------------------------------------

    def _ask_read_only(self, question: Callable[[SessionStore], T]) -> T | None:
        """Ask the read-only file; None if it doesn't exist or can't be read."""
        store = self._store.read_only
        if store is None:
            return None
        try:
            return question(store)
        except StoreError as error:  # someone else's file: our own runs are found all the same
            _log.warning("%s", error)
            return None

    def _in_read_only(self, question: Callable[[SessionStore], StoredRun | None]) -> Run | None:
        found = self._ask_read_only(question)
        if found is None:
            return None
        return Run(self._parts, found.record, store=self._store.read_only)

    def _read_only_runs(self, limit: int | None) -> list[Run]:
        found = self._ask_read_only(lambda store: store.runs(limit)) or []
        return [Run(self._parts, one.record, store=self._store.read_only) for one in found]

    def _is_own(self, record: RunRecord) -> bool:
        return record.session_id == self._parts.session_id

    def _of(self, record: RunRecord) -> Run:
        live = self._runs.get(record.run_id) if self._is_own(record) else None
        return Run(self._parts, record) if live is None else self.run(live)

    def _numbered(self, number: int) -> Run | None:
        # First, so that a busy store keeps no cancel waiting.
        for live in tuple(self._runs.values()):
            if live.record.number == number:
                return self.run(live)
        self._await_creations()
        stored = self._store.run(number)
        if stored is None:
            return self._in_read_only(lambda store: store.run(number))
        return self._of(stored.record)

    def _nth_newest(self, n: int) -> Run | None:
        own = [live for live in tuple(self._runs.values()) if not live.is_child]
        if n <= len(own):
            return self.run(own[-n])
        runs = self.runs(Query(is_top_level=True, limit=n))
        return runs[n - 1] if n <= len(runs) else None


def removable(run: Run) -> int:
    """Return the number of a run that may be removed."""
    if run.is_unknown:
        raise BadOption(
            f"{run!r} may still be running", run=title(run.glance), fixes=[Fix(Action.LOST, run_ref(run.glance))]
        )
    if run.why_read_only is not None:
        raise BadOption(f"{run!r} can't be removed because its file is read-only: {run.why_read_only}")
    if not run.done():
        raise BadOption(f"{run!r} is still running; cancel it first")
    if run.number is None or run.problem is not None:
        raise BadOption(f"{run!r} isn't saved, so there is nothing to remove")
    return run.number


def _clear_locals(error: object) -> None:
    """Release the variables in an error's tracebacks, which may be large; its lines stay."""
    for _ in range(_CHAIN):
        if isinstance(error, BaseException):
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__


def _number_or_newer(run: Run) -> int:
    """Return what a list is sorted by: a run that is not saved yet is newer than all that are."""
    return 2**63 if run.number is None else run.number
