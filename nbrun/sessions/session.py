"""The session: the runs that one load of nbrun started. It starts, finds, cancels and closes them."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from nbrun.agents import registered
from nbrun.core import (
    ArtifactWriter,
    BadOption,
    CancelCause,
    CancelOutcome,
    CancelReceipt,
    Clock,
    IdGenerator,
    Journals,
    NotResumable,
    RunNotFound,
    SecretRegistry,
    SystemClock,
    TimeOrderedIds,
    events as ev,
    guarded,
    shown,
)
from nbrun.host import capture
from nbrun.sessions.catalog import Catalog, removable
from nbrun.sessions.control import Control
from nbrun.sessions.intake import Intake
from nbrun.sessions.observers import Observer, ObserverThread
from nbrun.sessions.run import Parts, Run
from nbrun.sessions.run_list import RunList
from nbrun.sessions.run_set import RunSet, Sets
from nbrun.sessions.scheduler import Scheduler
from nbrun.sessions.start import Starter, StartOptions, takes
from nbrun.store import (
    KEEP_BYTES,
    KEEP_RUNS,
    Keep,
    SessionStore,
    Since,
    notebook_path,
    places_for,
    read_query,
    store_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from types import TracebackType

    from nbrun.sessions.comparison import SetComparison
    from nbrun.sessions.followups import FindAgent
    from nbrun.sessions.live_run import Listener, LiveRun
    from nbrun.sessions.live_set import RetryIf, Template
    from nbrun.sessions.scoring import Score


_log = logging.getLogger("nbrun")

LIST_LIMIT = 100
"""How many runs a list shows by default."""

_MOVES_QUEUE = ev.END_TYPES | {ev.RunWaiting.TYPE, ev.RunResumed.TYPE, ev.AttemptLost.TYPE}

CLOSE_S = 0.8
"""How long a close waits for its runs to settle."""
CLOSE_STORE_S = 0.3
"""How long it waits for the disk at least; what the runs leave of `CLOSED_S` is the disk's, too."""
CLOSED_S = 1.35
"""When the disk should be done, so that all of it stays under 1.5 s."""


class NotebookSession:
    """The runs that one load of the extension started, and those its store has from before.

    Threads: any method, from any thread. `parts.lock` keeps starts and the close apart; the intake owns the state
    of the runs.

    Parameters
    ----------
    path : the notebook; chooses the store's file and is a label. None: `JPY_SESSION_NAME`, else the working
        folder.
    store : a `SessionStore`, or the path of its file.
    ids, clock : where ids and times come from.
    observers : called for each run, see `Observer`.
    max_concurrent : how many runs may be in progress at once; more are queued.
    cancel_grace_s : seconds that cleanup code gets after a cancel.
    reentrant_loop : let agents call `asyncio.run()` on the event loop that drives them.
    watch_calls : see the model calls of new runs, at the HTTP clients.
    journal : `on` keeps the answers to these calls with their run, `off` doesn't.
    keep_runs, keep_bytes : what the store keeps at most; the oldest ended runs go first. 0: all.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        store: SessionStore | str | Path | None = None,
        ids: IdGenerator | None = None,
        clock: Clock | None = None,
        observers: Sequence[Observer | object] = (),
        max_concurrent: int = 8,
        cancel_grace_s: float = 2.0,
        reentrant_loop: bool = False,
        watch_calls: bool = True,
        journal: str = "on",
        keep_runs: int = KEEP_RUNS,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        if min(keep_runs, keep_bytes) < 0:
            raise BadOption("keep_runs and keep_bytes must be at least 1, or 0 to keep all")
        self.clock = clock or SystemClock()
        self.notebook = notebook_path(path)
        self.store = _store(store, self.notebook, self.clock, Keep(keep_runs, keep_bytes))
        # Replaced by the user interface. The first three show a card, show the live table and find an agent by its name
        # in the notebook. The others are called when a run was resumed, retried …, when runs were removed and, on any
        # thread, when the queue moves.
        self.on_display: Callable[[Run], object] = lambda run: print(repr(run))
        self.on_panel: Callable[[], object] = lambda: print(repr(self.runs(limit=LIST_LIMIT)))
        self.on_set_begun: Callable[[int], object] = lambda number: None  # when a set is run, also again
        self.find_agent: FindAgent = lambda name: registered().get(name)
        self.on_followed: Callable[[Run], object] = lambda _run: None
        self.on_removed: Callable[[], object] = lambda: None
        self.on_queue_moved: Callable[[], object] = lambda: None
        # Not from `ids`: the first run is number 0.
        self.id = f"session-{TimeOrderedIds(self.clock).next_id()}"
        keyring = SecretRegistry(os.environ)
        intake = Intake(self.clock, keyring, self._published)
        scheduler = Scheduler(_slots(max_concurrent), self.clock)
        self.parts = parts = Parts(
            session_id=self.id, notebook=self.notebook, clock=self.clock, cancel_grace_s=cancel_grace_s,
            watch_calls=watch_calls, store=self.store, keyring=keyring, intake=intake, scheduler=scheduler,
            artifact_writer=ArtifactWriter(lambda: self.store.files, keyring),
            journals=Journals(self.id, lambda: self.store.journals, self._journal_key, keyring),
            control=Control(intake, scheduler, keyring), display=lambda run: self.on_display(run), follow=self.follow,
            close=self.close,
        )  # fmt: skip
        self.journal = journal
        self.token = parts.token
        self._catalog = Catalog(parts)
        self._starter = Starter(parts, self._catalog, ids or TimeOrderedIds(self.clock))
        if reentrant_loop:
            self.let_enter_loop(True)
        self._sets = Sets(parts, self._starter, self._catalog, lambda number: self.on_set_begun(number))
        self._observers = [ObserverThread(observer) for observer in observers]
        self._listeners: tuple[Listener, ...] = tuple(one.publish for one in self._observers)
        self.store.open_existing(sets_aside=True)
        _sessions.add(self)

    def _journal_key(self, run_id: str) -> bytes:
        return self.store.signer.journal_key(self.id, run_id)

    @property
    def max_concurrent(self) -> int:
        """How many runs may be in progress at once; a change applies to queued runs, too."""
        return self.parts.scheduler.limit

    @max_concurrent.setter
    def max_concurrent(self, limit: int) -> None:
        self.parts.scheduler.limit = _slots(limit)
        self.on_queue_moved()

    @property
    def cancel_grace_s(self) -> float:
        """Seconds that cleanup code gets after a cancel; a change applies to new runs."""
        return self.parts.cancel_grace_s

    @cancel_grace_s.setter
    def cancel_grace_s(self, seconds: float) -> None:
        self.parts.cancel_grace_s = seconds

    @property
    def journal(self) -> str:
        """Whether runs keep the answers to their model calls, `on` or `off`; a change applies at once."""
        return "on" if self.parts.journals.is_on else "off"

    @journal.setter
    def journal(self, value: str) -> None:
        if value not in ("on", "off"):
            raise BadOption(f"journal={value!r} is invalid; use on or off")
        self.parts.journals.is_on = value == "on"

    @property
    def watch_calls(self) -> bool:
        """Whether the model calls of new runs are seen: counted, limited, closed by a cancel, and shown."""
        return self.parts.watch_calls

    @watch_calls.setter
    def watch_calls(self, is_on: bool) -> None:
        self.parts.watch_calls = is_on

    # --- starting --------------------------------------------------------------------------------

    @takes(StartOptions)
    @guarded()  # a cancel of the sync agent that starts a run must not leave it half-made
    def start(self, agent: object = None, prompt: str = "", **options: Any) -> Run:
        """Start a run and return its handle at once; the run continues in the background.

        Its agent is entered once its creation is on disk; `run.number`, `run.status` and the like wait for that.

        Parameters
        ----------
        agent : a function, an agent object, or a registered agent's name; None for the built-in agent.
        options : see below.

        Raises
        ------
        AgentNotFound, BadOption, IdConflict, RunRejected, SessionClosed
            Nothing was started, and nothing is left behind.
        """
        return self._starter.start(agent, prompt, options)

    def map(
        self,
        agent: object,
        inputs: object,
        *,
        template: Template | None = None,
        key: str | None = None,
        id: str | None = None,
        concurrency: int | None = None,
        rate: str | None = None,
        retries: int = 0,
        retry_if: RetryIf | None = None,
        max_failures: float | None = None,
        max_cost: float | None = None,
        max_tokens: int | None = None,
        score: Score | None = None,
        approve: str = "deny",
        **options: Any,
    ) -> RunSet:
        """Run an agent on each of many inputs; return the set of these runs at once.

        A run that fails is a result like any other. Inputs that have not begun take next to no memory, and a
        generator is read only so far ahead. What has ended is stored; if the kernel dies, `resume()` runs the rest.

        Parameters
        ----------
        inputs : prompts: a list, a Series, a dict of keys and prompts, pairs of a key and a prompt, or any generator of
            these, sync or async; with a template, also a DataFrame, or rows as dicts.
        template : makes the prompt of each input: `{item}` is the input, `{question}` or `{item.question}` its column,
            `{key}` its key. Or a function of the input and its key, or position if it has none.
        key : the column that has the keys; by default they are a DataFrame's index, unless that only counts.
        concurrency : how many may be in progress at once, in places of the set's own; None: `max_concurrent`.
        rate : at most so many starts, as `600/min` or `5/s`.
        id : names the set, for good: with the same id, only what has no ending is run, and inputs that are new or have
            another prompt. Of another agent's label or other options, all inputs are run again.
        retries : how often an input is tried again whose run failed.
        retry_if : called with the error, a `nbrun.events.ErrorInfo`; False: it is not tried again.
        max_failures : if more inputs fail, nothing further is begun: a number, or a share of all, such as 0.05.
        max_cost, max_tokens : limits of the whole set, in US dollars and in tokens, in and out together.
        score : called with each output and its item (index, key, prompt), sync or async: a number, a bool or a dict of
            these by name. What it raises is the score's error, and the run stays as it is.
        approve : who answers questions of the runs; `deny` refuses.
        options : those of `start()`, for each run.

        Raises
        ------
        AgentNotFound, BadOption, SessionClosed, StoreUnavailable
            Nothing was started.
        """
        own = {
            "template": template, "key": key, "id": id, "concurrency": concurrency, "rate": rate, "retries": retries,
            "retry_if": retry_if, "max_failures": max_failures, "max_cost": max_cost, "max_tokens": max_tokens,
            "score": score, "approve": approve,
        }  # fmt: skip
        return self._sets.map(agent, inputs, {**own, **options})

    def compare(self, first: RunSet | str, second: RunSet | str) -> SetComparison:
        """Return two sets side by side: their inputs aligned, and how the scores of the second differ.

        Raises
        ------
        RunNotFound, BadOption
            There is no such set, or it is a run.
        """
        from nbrun.sessions.comparison import SetComparison  # with the first that is asked for

        found = [self.get(ref) for ref in (first, second)]
        for ref, one in zip((first, second), found, strict=True):
            if not isinstance(one, RunSet):
                raise BadOption(f"{shown(str(ref), 60)} is a run; compare takes two sets, such as set-1 and set-2")
        return SetComparison(found[0], found[1])

    def sets(self) -> list[RunSet]:
        """Return the sets of this notebook, newest first."""
        return self._sets.all()

    @guarded()  # as above
    def follow(self, kind: str, ref: Run | int | str, agent: object = None, **options: Any) -> Run:
        """Start a run from another one, which `ref` names: a `resume`, `retry`, `replay` or `continue` of it.

        Parameters
        ----------
        agent : what to run; None for the agent that the run had, which must be signed by this user's nbrun.
        options : those of `start()` that should differ from the run's own; of a replay, `speed` as well.

        Raises
        ------
        NotResumable, RunNotFound, AgentNotFound, BadOption, SessionClosed
            Nothing was started; the message says what to do instead.
        """
        from nbrun.sessions.followups import plan  # with the first that needs it: loading is quick

        run = self.get_run(ref)
        if run.store is not self.store:
            raise NotResumable(f"{run!r} belongs to another store; resume it there")
        following = self._starter.start(*plan(kind, run, agent, options, self.find_agent, self.get_run))
        self.on_followed(run)
        return following

    def redact(self, value: str, name: str = "SECRET") -> None:
        """Replace a secret by `[NAME]` in everything that runs report from now on; the secret itself is never stored.

        Raises
        ------
        BadOption
            It has fewer than 8 characters, so that replacing it would damage ordinary words.
        """
        self.parts.keyring.add(value, name)

    def watch_variables(self, names: Collection[str]) -> None:
        """Treat the values of these environment variables as secrets, whatever their names look like."""
        self.parts.keyring.watch(names)

    def let_enter_loop(self, is_reentrant: bool) -> None:
        """Set whether agents may call `asyncio.run()` on the loop that drives them; applies to new runs.

        Raises
        ------
        BadOption
            That loop isn't one of asyncio's own.
        """
        self.parts.scheduler.let_enter(is_reentrant)

    # --- finding ---------------------------------------------------------------------------------

    @property
    def live_runs(self) -> RunList:
        """The runs of this session that have not ended, newest first."""
        return RunList(self._catalog.run(live) for live in reversed(self.parts.intake.live()))

    def in_progress(self) -> list[Run | RunSet]:
        """Return the sets that this session runs, and the live runs that are of none of these, newest first."""
        sets = {one.number: one for one in self._sets.in_progress()}
        alone = [run for run in self.live_runs if run.glance.member is None or run.glance.member.set not in sets]
        return [*sets.values(), *alone]

    @property
    def recent_sets(self) -> list[int]:
        """The numbers of the sets that this session has run, newest first, without asking the store."""
        return sorted(self._sets.live, reverse=True)

    def recent_runs(self, limit: int, in_set: int | None = None) -> RunList:
        """Return the newest runs of this session that are in memory, newest first, without asking the store.

        `in_set` is the number of the set that they belong to, 0 for none.
        """
        return RunList(self._catalog.recent(limit, in_set))

    @property
    def current_run(self) -> Run | None:
        """The newest live run of this session that isn't a child, or None."""
        own = (live for live in reversed(self.parts.intake.live()) if not live.is_child)
        return next(map(self._catalog.run, own), None)

    def get_set(self, number: int) -> RunSet | None:
        """Return the set with this number; one that this session runs is found without asking the store."""
        return self._sets.numbered(number)

    @overload
    def get(self, ref: Run | int) -> Run: ...
    @overload
    def get(self, ref: Run | RunSet | int | str) -> Any: ...
    def get(self, ref: Run | RunSet | int | str) -> Any:
        """Return the run that `ref` names: `#3`, `3`, `last`, `-1`, a name or an id; of this session first.

        `set-3` names a set, unless there is none with this number; so does the id that a set was started with.

        Raises
        ------
        RunNotFound
            No run has this reference.
        """
        if isinstance(ref, RunSet):
            return ref
        found = self._sets.find(ref) if isinstance(ref, str) else None
        if found is None and isinstance(ref, str):  # an empty set is found, too
            found = self._sets.with_id(ref)
        return self.get_run(ref) if found is None else found

    def get_run(self, ref: Run | int | str) -> Run:
        """Return the run that `ref` names, as `get()` does; raises `BadOption` if it names a set."""
        if isinstance(ref, Run):
            return ref
        if isinstance(ref, RunSet) or (isinstance(ref, str) and self._sets.find(ref) is not None):
            raise BadOption(f"{ref} is a set of runs, and this takes a single run; see nbrun.get('{ref}')")
        return self._catalog.get(ref)

    def own(self, run_id: str) -> Run | None:
        """Return the run of this session with exactly this id; names and numbers don't count."""
        return self._catalog.own(run_id)

    def runs(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        agent: str | None = None,
        tag: str | None = None,
        since: Since | None = None,
        text: str | None = None,
        limit: int | None = None,
        before: Run | int | None = None,
        in_set: int | None = None,
    ) -> RunList:
        """Return the runs of this notebook, newest first, that fit every filter given.

        Parameters
        ----------
        agent : the agent's name, or its model's.
        tag : `key=value`, or a key alone for any value of it.
        since : created at or after this; a date, a datetime, epoch seconds as `run.created_at` is, or text such as
            `2h` for two hours ago.
        text : found in the name, prompt, error, text or output, ignoring case; reads the logs of long runs.
        limit : at most this many, the newest; None: all.
        before : only runs older than this one, or below this number: the last of one page gives the next.
        in_set : only runs of the set with this number; 0: only runs that belong to no set.

        Raises
        ------
        BadOption
            A filter is invalid.
        """
        if isinstance(before, Run):
            if before.number is None:
                raise BadOption(f"before={before!r} isn't saved and has no number; give another run")
            before = before.number
        query = read_query(
            self.clock.now(), status=status, name=name, agent=agent, tag=tag, since=since, text=text,
            limit=limit, before=before, in_set=in_set,
        )  # fmt: skip
        return self._catalog.runs(query)

    def count_runs(self) -> int:
        """Return how many runs of this notebook are stored."""
        return self._catalog.count()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(record, events)` for every run, on the writer's thread; return a function that stops this."""
        with self.parts.lock:
            self._listeners = (*self._listeners, listener)

        def remove() -> None:
            with self.parts.lock:
                self._listeners = tuple(known for known in self._listeners if known is not listener)

        return remove

    # --- removing --------------------------------------------------------------------------------

    def remove(self, *refs: Run | int | str) -> list[int]:
        """Remove ended runs, with their events, files and child runs; return the numbers of those removed.

        Raises
        ------
        RunNotFound, BadOption, StoreError
            A run isn't found, or it or a child still runs; the store can't be written. All are looked up first.
        """
        runs = [self.get_run(ref) for ref in refs]
        numbers = [removable(run) for run in runs]
        gone = self._remove(numbers)
        for run, number in zip(runs, numbers, strict=True):
            if number not in gone and not self.store.is_removed(number):
                raise BadOption(f"{run!r} has a child run that is still running; cancel that first")
        return gone

    def remove_ended(self) -> list[int]:
        """Remove all runs of this notebook that have ended; return their numbers."""
        return self._remove([stored.number for stored in self.store.runs() if not stored.record.is_live])

    def _remove(self, numbers: Sequence[int]) -> list[int]:
        gone = self._catalog.remove(numbers)
        self.on_removed()
        return gone

    # --- cancelling ------------------------------------------------------------------------------

    def cancel(self, ref: Run | int | str, reason: str | None = None, *, by: str = "python") -> CancelReceipt:
        """Ask the run that `ref` names to stop; the receipt says so if it isn't found or has already ended."""
        try:
            run = self.get(ref)
        except RunNotFound as error:
            return CancelReceipt(CancelOutcome.NOT_FOUND, None, error.reason, fixes=error.fixes)
        return run.cancel(reason, by=by)

    def cancel_current(self, reason: str | None = None, *, by: str = "python") -> CancelReceipt:
        """Ask the newest live run to stop, or the whole set that it is of."""
        run, sets = self.current_run, self._sets.in_progress()
        member = None if run is None else run.glance.member
        of = [one for one in sets if run is None or (member is not None and member.set == one.number)]
        found = of[0] if of else run
        if found is None:
            return CancelReceipt(CancelOutcome.NOT_FOUND, None, "No runs in progress.")
        return found.cancel(reason, by=by)

    def cancel_all(self, reason: str | None = None, *, by: str = "python") -> list[CancelReceipt]:
        """Ask everything of this session to stop; return a receipt for each set and each other run, newest first."""
        return [each.cancel(reason, by=by) for each in self.in_progress()]

    def ping_hosts(self, timeout_s: float) -> list[float | None]:
        """Return how many seconds each event loop that drives runs took to answer, in order; None: not yet."""
        return self.parts.scheduler.ping(timeout_s)

    # --- what became public ----------------------------------------------------------------------

    def _published(self, live: LiveRun, events: Sequence[ev.RunEvent]) -> None:
        """Give an ended run's slot to the next one, call the listeners, and queue a new run; on the writer's thread."""
        record = live.record
        # A host in another process can't reach the budget; totals may be noted twice.
        if live.budget is not None and any(isinstance(event.data, ev.Usage) for event in events):
            live.budget.note_usage(record.usage)
        kinds = [event.data.TYPE for event in events]
        if not ev.END_TYPES.isdisjoint(kinds):
            live.token.release()
            self.parts.scheduler.note_end(live)
            self.parts.control.forget(live)
            self._catalog.note_end(live)
            self.store.note_end(record.number)
        if not _MOVES_QUEUE.isdisjoint(kinds):
            self.on_queue_moved()
        for listener in (*live.listeners, *self._listeners):
            try:
                listener(record, events)
            except Exception:  # isolated: a card or an observer that fails must not stop the log
                _log.exception("a listener of %s failed", live.run_id)
        if ev.AttemptLost.TYPE in kinds and record.is_live:
            self._starter.try_again(live)
        if ev.RunCreated.TYPE in kinds and record.is_live:  # else it was cancelled before this
            for notice in self.store.notices():  # now, since its commit may have met with something
                self.parts.intake.emit(live, ev.Log(notice, "warning"))
            self.parts.scheduler.queue(live)

    def panel(self) -> None:
        """Show a live table of this notebook's runs; where there is no page for it, print the newest."""
        self.on_panel()

    # --- the end ---------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether the session takes no new runs."""
        return self.parts.is_closed

    @property
    def is_inherited(self) -> bool:
        """Whether the session belongs to the process that this one was forked from."""
        return self.parts.is_inherited

    def leave_to_parent(self, parent: int) -> None:
        """Close the session in a child process that was forked, and touch nothing: its threads are the parent's."""
        parts = self.parts
        parts.lock = threading.RLock()  # another thread may have held it
        parts.is_closed = parts.is_inherited = True
        parts.why_closed = (
            f"this session belongs to process {parent}, from which this one was forked; here, nbrun.start() uses a "
            "session of its own, and so does NotebookSession()"
        )
        self.store.leave_to_parent(parts.why_closed)
        # For good. Connections must not be closed here, and an event loop that is closed takes what it watches out of
        # its parent's, too: they share one epoll.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))

    @guarded()  # closing cancels an agent that closes its own session; the close must complete anyway
    def close(self, *, by: str = "shutdown") -> None:
        """Cancel what is running, save everything and close the store; idempotent, takes at most 1.5 s.

        Parameters
        ----------
        by : who closes it, for the log and the card.
        """
        parts = self.parts
        with parts.lock:
            if parts.is_closed:
                return
            parts.is_closed = True
        began = self.clock.monotonic()
        lives = parts.intake.live()
        parts.control.cancel_together(lives, CancelCause.SHUTDOWN, by)
        parts.scheduler.hurry()
        self._sets.wake()
        for live in lives:
            live.is_ended.wait(max(0.0, began + CLOSE_S - self.clock.monotonic()))
        for live in lives:
            if not live.is_ended.is_set():
                end = ev.RunCancelled(CancelCause.SHUTDOWN, detached=(live.record.agent,))
                parts.intake.emit(live, end)
        self._sets.wait_idle(lambda: max(0.0, began + CLOSE_S - self.clock.monotonic()))
        self.store.close(max(CLOSE_STORE_S, began + CLOSED_S - self.clock.monotonic()), parts.intake)
        for observer in self._observers:
            observer.close(0.05)
        if parts.is_begun:
            capture.remove()
            _log.removeFilter(parts.keyring)
            parts.scheduler.close(0.1)
            atexit.unregister(self.close)

    def __enter__(self) -> NotebookSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _slots(max_concurrent: int) -> int:
    if max_concurrent < 1:
        raise BadOption(f"max_concurrent is {max_concurrent}; give at least 1")
    return max_concurrent


_sessions: weakref.WeakSet[NotebookSession] = weakref.WeakSet()


def _after_fork() -> None:
    """Leave everything that runs to the parent, in a child process."""
    for session in tuple(_sessions):
        if not session.is_inherited:
            session.leave_to_parent(os.getppid())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _store(store: SessionStore | str | Path | None, notebook: Path | None, clock: Clock, keep: Keep) -> SessionStore:
    if isinstance(store, SessionStore):
        return store
    places = [Path(store)] if store is not None else places_for(notebook)
    if store is not None or notebook is None:
        return SessionStore(places, clock, keep)
    own, places[0] = places[0], store_of(notebook, clock)
    found = SessionStore(places, clock, keep)
    if places[0] != own:
        found.report(f"this notebook was renamed: its runs are in {places[0]}")
    return found
