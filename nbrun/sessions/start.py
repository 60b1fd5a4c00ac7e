"""From what a start asks for to a run that is under way."""

from __future__ import annotations

import contextvars
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from nbrun.agents import Replay, environment_of, find_adapter
from nbrun.agents.context.approvals import NOBODY
from nbrun.agents.context.budget import NO_LIMITS, Budget, Limits
from nbrun.agents.context.run_context import current_run
from nbrun.core import events as ev
from nbrun.core.cancellation import CancelCause, CancelToken
from nbrun.core.errors import BadOption, IdConflict, NotResumable, RunRejected, SessionClosed
from nbrun.core.text import clean_text
from nbrun.host import capture
from nbrun.host.attempt import Attempt
from nbrun.sessions import start_options as request
from nbrun.sessions.live_run import LiveRun
from nbrun.sessions.run import Owner, Run

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from nbrun.agents.builtin.options import Setup
    from nbrun.core.artifacts import Keeper
    from nbrun.core.clock import IdGenerator
    from nbrun.core.redaction import Keyring
    from nbrun.sessions.catalog import Catalog
    from nbrun.sessions.control import Canceller
    from nbrun.sessions.followups import Sequel
    from nbrun.sessions.intake import Intake
    from nbrun.sessions.scheduler import Dispatcher

SAVE_LIMIT_S = 2.0
"""How long a start waits for its run to be saved before it goes on unsaved."""


@dataclass(slots=True, kw_only=True)
class Order:
    """What a start asks for, by the words of `NotebookSession.start()`; an agent's name gives way to the agent."""

    agent: object
    prompt: str
    name: str | None
    id: str | None
    model: str | None
    timeout_s: float | None
    max_turns: int | None
    max_tokens: int | None
    max_cost: float | None
    approve: str
    if_running: str
    on: str
    thread: bool
    loop: str
    tags: Mapping[str, str] | None
    setup: Setup
    cell_id: str | None
    parent: Run | None
    answerable: bool
    keep_object: bool
    target: str | None
    sequel: Sequel | None

    @property
    def key(self) -> str | None:
        """What `if_running` looks at: the cell, else the given name."""
        return self.cell_id or self.name


class Session(Owner, Protocol):
    """What starting a run needs of its session. It is asked each time: a test may have put another part there."""

    id: str
    token: CancelToken
    cancel_grace_s: float
    _lock: threading.RLock
    _is_reentrant: bool
    _intake: Intake
    _dispatcher: Dispatcher
    _catalog: Catalog
    _canceller: Canceller
    _keeper: Keeper
    _keyring: Keyring

    @property
    def is_closed(self) -> bool:
        """Whether it takes no new runs."""
        ...

    @property
    def start(self) -> Callable[..., Run]:
        """What users start a run with."""
        ...

    def _begin(self) -> None:
        """Start the threads, with the first run."""
        ...

    def _enter(self, live: LiveRun, attempt: Attempt, created: ev.RunCreated) -> None:
        """Let a run in."""
        ...


class Starter:
    """Starts the runs of a session.

    Threads: any method, from any thread. The session's lock makes starts and the close follow one another.
    """

    def __init__(self, session: Session, ids: IdGenerator) -> None:
        self._session = session
        self._ids = ids
        self._child_starter = self._start_child  # one object for all runs

    def start(self, order: Order) -> Run:
        """Start a run and return its handle; raises as `NotebookSession.start()` says."""
        limits = _check(order)
        created = _describe(order, limits, self._session.id)
        parcel = request.parcel_of(order.agent, order.on)
        session = self._session
        loop = request.loop_of(
            order.loop, order.on, thread=order.thread, is_on_host=session.is_on_host_loop
        )
        session._keyring.look()
        if environ := environment_of(find_adapter(order.agent), order.agent):
            session._keyring.take(environ)
        capture.renew()
        live: LiveRun | None = None
        try:
            with session._lock:
                if existing := self._existing(order.id, created):
                    return existing
                behind = self._make_way(order.key, order.if_running)
                session._begin()
                run_id = self._new_id() if order.id is None else clean_text(order.id)
                token = self._token_above(order.parent).child()
                live = LiveRun(run_id, token, key=order.key, is_child=order.parent is not None)
                live.agent, live.loop = order.agent, loop
                live.budget = self._budget(live, limits, order.parent, created.usage)
                attempt = self._attempt(live, order, limits, created.prompt, parcel)
                session._enter(live, attempt, created)
            is_waited_for = order.id is not None or order.sequel is not None
            # On a host's loop, a busy file would hold up all runs.
            if is_waited_for or not session.is_on_host_loop:
                live.is_created.wait(SAVE_LIMIT_S)
            if live.is_refused:
                return self._take_back(live, created)
            for notice in (behind, session.store.problem, *session.store.take_news()):
                if notice is not None:
                    session._intake.tell(live, ev.Log(notice, "warning"))
            # A run that another run starts does not wait: the other may be waiting for it, with its place.
            session._dispatcher.queue(live, at_once=current_run.get() is not None)
        except BaseException:  # ■ in the middle: a run that nobody holds must not be left behind
            if live is not None:
                session._canceller.cancel(live, None, CancelCause.INTERRUPT, "interrupt")
                session._dispatcher.queue(live, at_once=True)
            raise
        return Run(session, live.record, live)

    # --- what it is made of ----------------------------------------------------------------------

    def _attempt(
        self, live: LiveRun, order: Order, limits: Limits, prompt: str, parcel: bytes
    ) -> Attempt:
        """Return what travels to the run's host; to be called where the run is started, for its context."""
        session, sequel = self._session, order.sequel
        return Attempt(
            live.run_id, live.attempt, order.agent, prompt, live.token, contextvars.copy_context(),
            session.cancel_grace_s, order.timeout_s, order.thread, limits,
            order.approve if order.answerable or order.approve != "ask" else NOBODY, order.on,
            functools.partial(self._child_starter, live, order.approve, order.answerable), parcel,
            live.budget, session._is_reentrant, None if sequel is None else sequel.restored,
            session._keeper, order.keep_object, live.loop,
        )  # fmt: skip

    def _new_id(self) -> str:
        run_id = f"run-{self._ids.next_id()}"
        while run_id in self._session._catalog:  # an id that was given may look like one of ours
            run_id = f"run-{self._ids.next_id()}"
        return run_id

    def _budget(
        self, live: LiveRun, limits: Limits, parent: Run | None, before: ev.Usage
    ) -> Budget | None:
        """Return a new run's budget, which its parent's counts in; None where neither has limits."""
        above = parent._live.budget if parent is not None and parent._live is not None else None
        if above is None and limits == NO_LIMITS:
            return None
        return Budget(
            limits,
            live.token,
            lambda notice: self._session._intake.tell(live, ev.Log(notice, "warning")),
            above,
            before,
        )

    # --- below another run -----------------------------------------------------------------------

    def _token_above(self, parent: Run | None) -> CancelToken:
        """Return the token that a new run's hangs below.

        Raises
        ------
        RunRejected
            The parent has ended, or is not of this session.
        """
        if parent is None:
            return self._session.token
        if parent._live is None or parent.done():
            raise RunRejected(f"{parent!r} starts no child runs: it is not under way here")
        return parent._live.token

    def _start_child(
        self, parent: LiveRun, approve: str, answerable: bool,
        agent: object, prompt: str, options: dict[str, Any],
    ) -> Run:  # fmt: skip
        """Start a child run; who answers for its parent answers for it, and it may be granted less, not more."""
        asked = options.get("approve", approve)
        strictest = request.strictest(approve, asked) if isinstance(asked, str) else asked
        policy = {"answerable": answerable, **options, "approve": strictest}
        above = self._session._catalog.run(parent)
        run = self._session.start(agent, prompt, parent=above, **policy)
        if run.parent_id not in (parent.run_id, None):
            raise IdConflict(f"{run!r} is another run's child; give this one an id of its own")
        if run._live is None or not run._live.is_child:
            raise IdConflict(f"{run!r} is no child run; give this one an id of its own")
        return run

    # --- beside other runs -----------------------------------------------------------------------

    def _existing(self, run_id: str | None, created: ev.RunCreated) -> Run | None:
        """Return the run that this start has made before, by its id; None where it is to make one.

        Raises
        ------
        SessionClosed, BadOption, IdConflict
            No run can be made here; the id holds a secret; it is that of another start.
        """
        if self._session.is_closed:
            raise SessionClosed("this session is closed; run %reload_ext nbrun")
        if run_id is None:
            return None
        without_secrets = self._session._intake.redactor.text(run_id)
        if without_secrets != run_id:  # it names the run everywhere, so it cannot be replaced
            raise BadOption(f"the id holds a secret, {without_secrets}; choose another id")
        return self._same(clean_text(run_id), created)

    def _same(self, run_id: str, created: ev.RunCreated) -> Run | None:
        """Return the run that this id already names in the store, if its inputs are these."""
        session = self._session
        run = session._catalog.with_id(run_id)
        if run is None:
            return None
        run.wait_created(SAVE_LIMIT_S)
        if run._live is not None and run._live.is_refused:  # another thread of ours came too late
            session._catalog.discard(run._live)
            return self._same(run_id, created)
        # The stored inputs hold no secrets, so these must not either.
        asked = session._intake.storable(created)
        if not isinstance(asked, ev.RunCreated) or request.inputs_of(run.record) != asked.inputs():
            raise IdConflict(
                f"the id '{run_id}' already names a run with other inputs; choose another id"
            )
        return run

    def _take_back(self, live: LiveRun, created: ev.RunCreated) -> Run:
        """Forget a run whose id another kernel took first; return that one.

        Raises
        ------
        NotResumable
            It was no id: another kernel was the first to go on from the same run.
        """
        self._session._dispatcher.discard(live)
        self._session._catalog.discard(live)
        live.token.release()
        taken = self._same(live.run_id, created)
        if taken is None:
            raise NotResumable("another kernel goes on from that run already; see nbrun.runs()")
        return taken

    def _make_way(self, key: str | None, if_running: str) -> str | None:
        """Do what `if_running` says of a live run of the same cell; return what the new run's card says of it."""
        lives = [] if key is None else self._session._catalog.live()
        others = [live for live in lives if live.key == key]
        if not others:
            return None
        title = f"run #{others[-1].record.number}"
        if if_running == "reject":
            raise RunRejected(
                f"{title} of the same cell is live; wait for it, cancel it, or use --if-running queue"
            )
        if if_running == "replace":
            for other in others:
                self._session._canceller.cancel(
                    other, None, CancelCause.REPLACED, "a newer run of the same cell"
                )
            return f"takes the place of {title}"
        return f"queued behind {title} of the same cell"


def _check(order: Order) -> Limits:
    """Return what the run may use up; raise `BadOption` for a word, a number or an id that is none."""
    request.check_choices(
        approve=order.approve, if_running=order.if_running, on=order.on, loop=order.loop
    )
    limits = request.read_limits(order.max_turns, order.max_tokens, order.max_cost)
    request.check_timeout(order.timeout_s)
    request.check_id(order.id)
    return limits


def _describe(order: Order, limits: Limits, session_id: str) -> ev.RunCreated:
    """Return the run's first event; the order then has the agent itself, and what the run comes from."""
    if isinstance(order.agent, str):
        order.target = order.agent
    order.agent, order.model = request.resolve(order.agent, order.model, order.setup)
    if order.sequel is None and isinstance(order.agent, Replay):
        from nbrun.sessions.followups import (
            of_recording,  # with the first that needs it: a load must be quick
        )

        order.sequel = of_recording(order.agent)
        order.prompt = order.prompt or order.agent.header.prompt
    created = request.describe(
        order.agent, session_id=session_id, prompt=order.prompt, name=order.name, model=order.model,
        cell_id=order.cell_id, tags=order.tags, setup=order.setup, target=order.target,
        timeout_s=order.timeout_s, thread=order.thread or None,
        on=None if order.on == "local" else order.on,
        loop=None if order.loop == request.HOST else order.loop,
        keep_object=order.keep_object or None,
        approve=None if order.approve == "ask" else order.approve,
        parent_id=None if order.parent is None else order.parent.id,
        **({} if order.id is None else {ev.ONCE: True}),
        max_turns=limits.max_turns, max_tokens=limits.max_tokens, max_cost=limits.max_cost,
    )  # fmt: skip
    return created if order.sequel is None else _following(created, order.sequel)


def _following(created: ev.RunCreated, sequel: Sequel) -> ev.RunCreated:
    """Return a run's creation with what it has of the run that it comes from."""
    model = created.model or sequel.model
    return msgspec.structs.replace(created, origin=sequel.origin, usage=sequel.usage, model=model)
