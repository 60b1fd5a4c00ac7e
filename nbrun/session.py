"""The session: the runs that one load of nbrun started. It starts, finds, cancels and closes them."""

from __future__ import annotations

import contextvars
import logging
import os
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from nbrun import capture
from nbrun import events as ev
from nbrun.agents import builtin, find_adapter, registered
from nbrun.attempt import Attempt
from nbrun.cancellation import CancelCause, CancelOutcome, CancelReceipt, CancelToken
from nbrun.clock import Clock, IdGenerator, SystemClock, TimeOrderedIds
from nbrun.context import guarded
from nbrun.encoding import Plain, clean_text
from nbrun.errors import (
    AgentNotFound,
    BadOption,
    IdConflict,
    RunNotFound,
    RunRejected,
    SessionClosed,
)
from nbrun.executors import local
from nbrun.hooks import Observer, ObserverThread
from nbrun.host import LoopThread
from nbrun.intake import Intake, LiveRun
from nbrun.line import Line
from nbrun.redaction import Redactor
from nbrun.run import Run
from nbrun.run_list import RunList
from nbrun.store import SessionStore, places_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from nbrun.record import RunRecord

_log = logging.getLogger("nbrun")

SAVE_LIMIT_S = 2.0
"""How long a start waits for its run to be saved before it goes on unsaved."""
CLOSE_S = 1.0
"""How long a close waits for its runs to settle; with the flush it stays under 1.5 s."""
KEEP_ENDED = 100
"""How many ended runs stay in memory with their live output; older ones are read from the store."""
MAX_TIMEOUT_S = 366 * 86_400.0

_CHOICES = {
    "approve": ("ask", "auto", "deny"),
    "if_running": ("queue", "reject", "replace"),
    "on": (local.NAME,),
}


class NotebookSession:
    """The runs that one load of the extension started, and those its store has from before.

    Threads: any method, from any thread. `_lock` makes starts and the close follow one another; the state of
    runs is the intake's.

    Parameters
    ----------
    path : the notebook; chooses the store's file and is a label. None: `JPY_SESSION_NAME`, else the working
        folder.
    store : a `SessionStore`, or the path of its file.
    ids, clock : where ids and times come from.
    observers : who is told of runs, see `Observer`.
    max_concurrent : how many runs are under way at once; more wait in line.
    cancel_grace_s : seconds that cleanup code gets after a cancel.
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
    ) -> None:
        if max_concurrent < 1:
            raise BadOption(f"max_concurrent is {max_concurrent}; give at least 1")
        self.clock = clock or SystemClock()
        self.cancel_grace_s = cancel_grace_s
        self.notebook = _notebook_path(path)
        self.store = _store(store, self.notebook, self.clock)
        self.on_display: Callable[[Run], None] | None = None  # given by the user interface
        self._ids = ids or TimeOrderedIds(self.clock)
        self.id = f"session-{TimeOrderedIds(self.clock).next_id()}"  # not from `ids`: the first run is number 0
        self.token = CancelToken()
        self._lock = threading.RLock()
        self._is_closed = False
        self._lives: dict[str, LiveRun] = {}  # all that are in memory, oldest first
        self._ended: deque[LiveRun] = (
            deque()
        )  # those of them that have ended; of the writer's thread
        self._line = Line(max_concurrent)
        self._intake = Intake(self.clock, Redactor.from_environment(os.environ), self._published)
        self._observers = [ObserverThread(observer) for observer in observers]
        self._attempts: dict[str, Attempt] = {}
        self._outgoing: deque[Attempt] = deque()
        self._host: LoopThread | None = None
        self._executor: local.LocalExecutor | None = None
        self.store.open_existing()

    # --- starting --------------------------------------------------------------------------------

    @guarded()  # a cancel of the sync agent that starts a run must not leave it half-made
    def start(
        self,
        agent: object = None,
        prompt: str = "",
        *,
        name: str | None = None,
        id: str | None = None,
        model: str | None = None,
        timeout_s: float | None = None,
        max_turns: int | None = None,
        max_tokens: int | None = None,
        max_cost: float | None = None,
        approve: str = "ask",
        if_running: str = "queue",
        on: str = local.NAME,
        thread: bool = False,
        tags: Mapping[str, str] | None = None,
        tools: Sequence[Callable[..., object]] | None = None,
        cell_id: str | None = None,
    ) -> Run:
        """Start a run and return its handle; the run goes on in the background.

        Parameters
        ----------
        agent : a function, an agent object, or a registered agent's name; None for the built-in agent.
        model : the built-in agent's model; None with no agent: the configured one.
        id : makes the start idempotent: the same id and inputs give the existing run.
        timeout_s : seconds after which the run is cancelled (cause `deadline`), counted from its start.
        if_running : what to do while a run of the same cell, or the same given name, is live.
        thread : drive an async agent on a thread of its own, because it blocks.
        tools : functions for the built-in agent.

        Raises
        ------
        AgentNotFound, BadOption, IdConflict, RunRejected, SessionClosed
            Nothing was started, and nothing is left behind.
        """
        for option, value in (("approve", approve), ("if_running", if_running), ("on", on)):
            _check_choice(option, value)
        if max_turns is not None or max_tokens is not None or max_cost is not None:
            raise NotImplementedError(
                "max_turns, max_tokens and max_cost are not in this version of nbrun"
            )
        _check_timeout(timeout_s)
        agent, model_label = self._resolved(agent, model, tools)
        adapter = find_adapter(agent)
        adapter.check(agent)
        label = adapter.label(agent)
        created = ev.RunCreated(
            session_id=self.id,
            name=clean_text(name or label),
            agent=label,
            prompt=clean_text(prompt),
            cell_id=cell_id,
            model=model_label,
            tags=dict(tags or {}),
            options=_options(timeout_s=timeout_s, thread=thread or None),
        )
        with self._lock:
            if self._is_closed:
                raise SessionClosed(
                    "this session is closed; load nbrun again with %reload_ext nbrun"
                )
            if id is not None and (existing := self._same(id, created)):
                return existing
            live = LiveRun(
                id or f"run-{self._ids.next_id()}", self.token.child(), key=cell_id or name
            )
            behind = self._make_way(live, if_running)
            self._attempts[live.run_id] = Attempt(
                live.run_id, live.attempt, agent, created.prompt, live.token, contextvars.copy_context(),
                self.cancel_grace_s, timeout_s, thread,
            )  # fmt: skip
            self._begin()
            self._intake.add(live)
            self._lives[live.run_id] = live  # from here on it can be found, and it has its token
            live.token.add_callback(lambda _request: self._token_fired(live))
            self._intake.tell(live, created)
        live.is_created.wait(SAVE_LIMIT_S)
        if behind is not None:
            self._intake.tell(live, ev.Log(f"waits for {behind} of the same cell", "warning"))
        if self._line.join(live) or live.token.cancelled:
            self._line.pass_by(live)
            self._submit(live)
        return Run(self, live.record, live)

    def _resolved(
        self, agent: object, model: str | None, tools: Sequence[Callable[..., object]] | None
    ) -> tuple[object, str | None]:
        """Return the agent object, and the model's name where the built-in agent is meant."""
        if agent is None:
            return builtin.choose(model, os.environ, tuple(tools or ()))
        if model is not None:
            raise BadOption("give an agent or a model, not both")
        if isinstance(agent, str):
            known = registered()
            if agent not in known:
                names = ", ".join(sorted(known)) or "none yet"
                raise AgentNotFound(
                    f"no agent is registered as '{agent}' ({names}); use @nbrun.agent, or give the object"
                )
            return known[agent], None
        return agent, None

    def _same(self, run_id: str, created: ev.RunCreated) -> Run | None:
        """Return the run that this id already names in the store, if its inputs are these."""
        live = self._lives.get(run_id)
        stored = self.store.find(run_id)
        inputs = None
        if live is not None:
            live.is_created.wait(SAVE_LIMIT_S)
            inputs = _inputs(live.record)
        elif stored is not None and stored.record.run_id == run_id:
            inputs = stored.inputs
        if inputs is None:
            return None
        # The stored inputs hold no secrets, so these must not either.
        asked = self._intake.storable(created)
        if not isinstance(asked, ev.RunCreated) or inputs != asked.inputs():
            raise IdConflict(
                f"the id '{run_id}' already names a run with other inputs; choose another id"
            )
        return self.get(run_id)

    def _make_way(self, live: LiveRun, if_running: str) -> str | None:
        """Do what `if_running` says of a live run of the same cell; return that run's title if there is one."""
        if live.key is None:
            return None
        others = [other for other in self._live() if other.key == live.key]
        if not others:
            return None
        title = f"run #{others[-1].record.number}"
        match if_running:
            case "reject":
                raise RunRejected(
                    f"{title} of the same cell is live; wait for it, cancel it, or use --if-running queue"
                )
            case "replace":
                for other in others:
                    self._cancel(other, None, CancelCause.REPLACED, "a newer run of the same cell")
        return title

    def _begin(self) -> None:
        """Start the threads of this session, with its first run."""
        if self._host is not None:
            return
        writer = self.store.begin(
            self._intake, session_id=self.id, notebook=str(self.notebook) if self.notebook else None
        )
        self._intake.ring = writer.ring
        capture.install()
        self._host = host = LoopThread("nbrun-host")
        self._executor = executor = local.LocalExecutor(host, self.clock)
        host.call(
            lambda: host.spawn(
                executor.open(self._intake.put, lambda _host, _up: None), "nbrun-open"
            )
        )

    def _submit(self, live: LiveRun) -> None:
        """Hand the run's attempt to the executor; only the first call for a run does something."""
        attempt = self._attempts.pop(live.run_id, None)
        host = self._host
        if attempt is None or host is None:
            return
        self._outgoing.append(attempt)
        host.call(self._send_out)

    def _send_out(self) -> None:
        """Submit all that waits to go out, in one batch; on the host's loop."""
        attempts: list[Attempt] = []
        while self._outgoing:
            attempts.append(self._outgoing.popleft())
        if attempts and self._host is not None and self._executor is not None:
            self._host.spawn(self._executor.submit(attempts), "nbrun-submit")

    # --- finding ---------------------------------------------------------------------------------

    @property
    def live_runs(self) -> RunList:
        """The runs of this session that have not ended, newest first."""
        return RunList(Run(self, live.record, live) for live in reversed(self._live()))

    @property
    def current_run(self) -> Run | None:
        """The newest-created live run of this session that is no child; None when there is none."""
        for live in reversed(self._live()):
            if live.record.parent_id is None:
                return Run(self, live.record, live)
        return None

    def get(self, ref: Run | int | str) -> Run:
        """Return the run that `ref` names: `#3`, `3`, `last`, `-1`, a name or an id.

        This session is looked through first, then the store, newest first.

        Raises
        ------
        RunNotFound
            No run has this reference.
        """
        if isinstance(ref, Run):
            return ref
        text = str(ref).strip()
        digits = text.removeprefix("#")
        if text == "last":
            digits = "-1"
        is_number = digits.lstrip("-").isdecimal() and digits.count("-") <= 1
        if is_number and len(digits) < 19:  # SQLite takes no greater one; then it may be a name
            found = (
                self._nth_newest(-int(digits))
                if digits.startswith("-")
                else self._numbered(int(digits))
            )
        else:
            found = self._named(text)
        if found is None:
            raise RunNotFound(f"no run '{text}' here; %agentrun list shows what there is")
        return found

    def own(self, run_id: str) -> Run | None:
        """Return the run of this session that has exactly this id: no name and no number stands for it."""
        live = self._lives.get(run_id)
        if live is not None:
            return Run(self, live.record, live)
        stored = self.store.find(clean_text(run_id))
        if stored is None or (stored.record.run_id, stored.record.session_id) != (run_id, self.id):
            return None
        return self._run_of(stored.record)

    def runs(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        agent: str | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> RunList:
        """Return the runs of this notebook, newest first, that fit every filter given.

        Parameters
        ----------
        tag : `key=value`.
        """

        def fits(record: RunRecord) -> bool:
            tags = {f"{key}={value}" for key, value in record.tags.items()}
            return (
                (status is None or record.status == status)
                and (name is None or record.name == name)
                and (agent is None or record.agent == agent)
                and (tag is None or tag in tags)
            )

        everything = limit is None or any(value is not None for value in (status, name, agent, tag))
        found = [run for run in self._all(None if everything else limit) if fits(run._glance)]
        return RunList(found if limit is None else found[:limit])

    def _all(self, limit: int | None) -> list[Run]:
        unsaved = [live for live in self._lives.values() if live.record.number is None]
        runs = [Run(self, live.record, live) for live in reversed(unsaved)]
        for stored in self.store.runs(limit):
            runs.append(self._run_of(stored.record))
        return runs

    def _run_of(self, record: RunRecord) -> Run:
        live = self._lives.get(record.run_id) if record.session_id == self.id else None
        return Run(self, record if live is None else live.record, live)

    def _numbered(self, number: int) -> Run | None:
        stored = self.store.run(number)
        return None if stored is None else self._run_of(stored.record)

    def _nth_newest(self, n: int) -> Run | None:
        own = list(self._lives.values())
        if 0 < n <= len(own):
            return Run(self, own[-n].record, own[-n])
        runs = self._all(n)
        return runs[n - 1] if 0 < n <= len(runs) else None

    def _named(self, text: str) -> Run | None:
        own = self._lives.get(text)
        if own is None:
            named = [live for live in self._lives.values() if live.record.name == text]
            own = named[-1] if named else None
        if own is not None:
            return Run(self, own.record, own)
        stored = self.store.find(text)
        return None if stored is None else self._run_of(stored.record)

    def _live(self) -> list[LiveRun]:
        return [live for live in tuple(self._lives.values()) if not live.is_ended.is_set()]

    # --- cancelling ------------------------------------------------------------------------------

    def cancel(
        self, ref: Run | int | str, reason: str | None = None, *, by: str = "python"
    ) -> CancelReceipt:
        """Ask the run that `ref` names to stop; says so, and changes nothing, if there is none or it has ended."""
        try:
            run = self.get(ref)
        except RunNotFound as error:
            return CancelReceipt(CancelOutcome.NOT_FOUND, None, str(error))
        return self.cancel_run(run, reason, CancelCause.USER, by)

    def cancel_current(self, reason: str | None = None, *, by: str = "python") -> CancelReceipt:
        """Ask the newest live run to stop."""
        run = self.current_run
        if run is None:
            return CancelReceipt(CancelOutcome.NOT_FOUND, None, "no run is live: nothing to cancel")
        return self.cancel_run(run, reason, CancelCause.USER, by)

    def cancel_all(self, reason: str | None = None, *, by: str = "python") -> list[CancelReceipt]:
        """Ask every live run of this session to stop; one receipt a run, newest first."""
        return [self.cancel_run(run, reason, CancelCause.USER, by) for run in self.live_runs]

    def cancel_run(
        self, run: Run, reason: str | None, cause: CancelCause, by: str
    ) -> CancelReceipt:
        """Ask one run to stop: the one function that every door leads to."""
        live = run._live
        if live is None:
            if run.done():
                return CancelReceipt(
                    CancelOutcome.ALREADY_FINISHED, run.id, f"{run!r} has ended already", run
                )
            return CancelReceipt(
                CancelOutcome.FOREIGN,
                run.id,
                f"{run!r} belongs to another kernel; cancel it there",
                run,
            )
        outcome = self._cancel(live, reason, cause, by)
        words = {
            CancelOutcome.REQUESTED: "cancel requested",
            CancelOutcome.ALREADY_REQUESTED: "was asked to stop already",
            CancelOutcome.ALREADY_FINISHED: "has ended already",
        }
        return CancelReceipt(outcome, run.id, f"{run!r}: {words[outcome]}", run)

    def _cancel(
        self, live: LiveRun, reason: str | None, cause: CancelCause, by: str
    ) -> CancelOutcome:
        request = ev.CancelRequested(cause, None if reason is None else clean_text(reason), by)
        # Recorded first, then fired: were it the other way round, an agent that sees its token could end the
        # run before the log knows why.
        outcome = self._intake.request_cancel(live, request)
        if outcome is CancelOutcome.REQUESTED:
            self._fire(live, request.reason, cause)
        return outcome

    def _fire(self, live: LiveRun, reason: str | None, cause: CancelCause) -> None:
        """Fire the token of a run; what its agent has hung on it cannot stop whoever cancels."""
        try:
            live.token.cancel(reason, cause)
        except Exception:
            _log.exception("a cancel callback of %s failed", live.run_id)

    def _token_fired(self, live: LiveRun) -> None:
        """See to it that whoever fired the token (a deadline, the agent, a parent), it stands in the log."""
        token = live.token
        by = {CancelCause.DEADLINE: "its time limit"}.get(
            token.cause or CancelCause.USER, "its token"
        )
        self._intake.request_cancel(
            live, ev.CancelRequested(token.cause or CancelCause.USER, token.reason, by)
        )
        if self._line.pass_by(live):
            self._submit(live)  # the host ends it without entering the agent

    # --- what became public ----------------------------------------------------------------------

    def _published(self, live: LiveRun, events: Sequence[ev.RunEvent]) -> None:
        """Tell everybody; on the writer's thread."""
        record = live.record
        for listener in live.listeners:
            try:
                listener(record, events)
            except Exception:  # isolated: a card that fails must not stop the log
                _log.exception("a listener of %s failed", live.run_id)
        for observer in self._observers:
            observer.tell(record, events)
        if any(event.type in ev.END_TYPES for event in events):
            live.token.release()
            self._attempts.pop(live.run_id, None)
            for following in self._line.leave(live):
                self._submit(following)
            self._ended.append(live)
            self._evict()

    def _evict(self) -> None:
        """Let go of runs that ended long ago and are saved."""
        while len(self._ended) > KEEP_ENDED and self._ended[0].problem is None:
            live = self._ended.popleft()
            self._intake.forget(live)
            self._lives.pop(live.run_id, None)

    def display(self, run: Run) -> None:
        """Show a run's card, where there is something to show it with."""
        if self.on_display is None:
            print(repr(run))
        else:
            self.on_display(run)

    # --- the end ---------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether the session takes no new runs."""
        return self._is_closed

    def close(self) -> None:
        """Cancel what is live, write everything, release the lease; idempotent, at most 1.5 s."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        began = self.clock.monotonic()
        lives = self._live()
        for live in lives:  # all of them first, so that the requests are on disk whatever comes
            self._intake.request_cancel(
                live, ev.CancelRequested(CancelCause.SHUTDOWN, None, "shutdown")
            )
        for live in lives:
            self._fire(live, None, CancelCause.SHUTDOWN)
        for live in lives:
            live.is_ended.wait(max(0.0, began + CLOSE_S - self.clock.monotonic()))
        for live in lives:
            if not live.is_ended.is_set():
                self._intake.tell(
                    live, ev.RunCancelled(CancelCause.SHUTDOWN, detached=(live.record.agent,))
                )
        self.store.close(0.3)
        for observer in self._observers:
            observer.close(0.05)
        if self._host is not None:
            capture.remove()
            self._host.close(0.1)

    def __enter__(self) -> NotebookSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_choice(option: str, value: str) -> None:
    if value not in _CHOICES[option]:
        raise BadOption(f"{option} is '{value}'; give one of: {', '.join(_CHOICES[option])}")


def _check_timeout(timeout_s: float | None) -> None:
    if timeout_s is not None and not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise BadOption(f"timeout_s is {timeout_s}; give seconds above 0, at most a year")


def _options(**values: Plain) -> dict[str, Plain]:
    """Return the execution options that differ from the defaults: part of a run's inputs."""
    return {name: value for name, value in values.items() if value is not None}


def _inputs(record: RunRecord) -> str:
    return ev.RunCreated(
        session_id=record.session_id, name=record.name, agent=record.agent, prompt=record.prompt,
        model=record.model, options=record.options,
    ).inputs()  # fmt: skip


def _notebook_path(path: str | Path | None) -> Path | None:
    """Return the notebook's path: the one given, else the one Jupyter names, if its folder exists.

    Source: Jupyter Server sets `JPY_SESSION_NAME` to the notebook's absolute path when it starts a kernel.
    """
    if path is not None:
        return Path(path).absolute()
    named = os.environ.get("JPY_SESSION_NAME")
    if named and Path(named).is_absolute() and Path(named).parent.is_dir():
        return Path(named)
    return None


def _store(
    store: SessionStore | str | Path | None, notebook: Path | None, clock: Clock
) -> SessionStore:
    if isinstance(store, SessionStore):
        return store
    return SessionStore([Path(store)] if store is not None else places_for(notebook), clock)
