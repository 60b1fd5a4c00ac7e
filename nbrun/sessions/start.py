"""From what a start asks for to a run that is under way."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, cast

import msgspec

from nbrun.agents import Replay, by_name, environment_of, find_adapter, lacks_of, registered
from nbrun.agents.context.budget import Budget
from nbrun.agents.context.run_context import current_run
from nbrun.core import events as ev, options as run_options
from nbrun.core.cancellation import CancelCause, CancelToken
from nbrun.core.checkpoint import Restored
from nbrun.core.errors import (
    AgentNotFound,
    BadOption,
    IdConflict,
    NotResumable,
    RunRejected,
    SessionClosed,
)
from nbrun.core.options import RunOptions
from nbrun.core.text import clean_text
from nbrun.host import capture
from nbrun.host.attempt import Attempt
from nbrun.host.process import pickling
from nbrun.sessions.catalog import number_of
from nbrun.sessions.live_run import LiveRun
from nbrun.sessions.run import Owner, Run

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from nbrun.core.artifacts import ArtifactWriter
    from nbrun.core.clock import IdGenerator
    from nbrun.core.record import RunRecord
    from nbrun.core.redaction import SecretRegistry
    from nbrun.sessions.catalog import Catalog
    from nbrun.sessions.control import Canceller
    from nbrun.sessions.intake import Intake
    from nbrun.sessions.scheduler import Dispatcher

P = ParamSpec("P")

SAVE_LIMIT_S = 2.0
"""How long a start waits for its run to be saved before it goes on unsaved."""


class Predecessor(msgspec.Struct, frozen=True):
    """What a start has to know of the run that the new one comes from."""

    origin: ev.Origin
    model: str | None = None
    usage: ev.Usage = msgspec.field(default_factory=ev.Usage)
    restored: Restored | None = None


class StartOptions(RunOptions, frozen=True, kw_only=True):
    """The options of a run, and the circumstances of its start.

    Circumstances
    -------------
    cell_id : the cell that starts the run.
    parent : the run whose child it is: it is cancelled with that run, and ends before it.
    answerable : whether there is a person to ask; False makes `approve="ask"` deny at once.
    target : the agent's name in the notebook, by which a later kernel finds it again.
    predecessor : what there is to know of the run that this one comes from.
    """

    cell_id: str | None = None
    parent: Run | None = None
    answerable: bool = True
    target: str | None = None
    predecessor: Predecessor | None = None

    @property
    def key(self) -> str | None:
        """What `if_running` looks at: the cell, else the given name."""
        return self.cell_id or self.name


class StartFunction(Protocol[P]):
    """Starts a run: agent and prompt by position, options by name."""

    def __call__(
        self, agent: object = None, prompt: str = "", *args: P.args, **options: P.kwargs
    ) -> Run:
        """Start a run and return its handle."""
        ...


def takes(
    options: Callable[P, RunOptions],
) -> Callable[[Callable[..., Run]], StartFunction[P]]:
    """Return a decorator for a function whose `**options` are these; its signature and its docstring list them."""

    def decorate(function: Callable[..., Run]) -> StartFunction[P]:
        kind = cast("type[RunOptions]", options)
        function.__signature__ = run_options.signature(kind, function)  # type: ignore[attr-defined]  # read by inspect
        documented = [base.__doc__ for base in kind.__mro__[::-1] if issubclass(base, RunOptions)]
        parts = [function.__doc__, *documented]
        function.__doc__ = "\n\n".join(inspect.cleandoc(part) for part in parts if part)
        return function

    return decorate


def read_options(given: Mapping[str, Any]) -> StartOptions:
    """Return the options of a start.

    Raises
    ------
    BadOption
        One is unknown or invalid.
    """
    known = StartOptions.__struct_fields__
    for name in given:
        if name not in known:
            near = [option for option in sorted(known) if option.startswith(name)]
            hint = f"; did you mean {near[0]}?" if near else ""
            raise BadOption(f"{name} isn't an option of a run{hint}")
    return StartOptions(**given)


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
    _keeper: ArtifactWriter
    _keyring: SecretRegistry

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


@dataclass(slots=True)
class _Plan:
    """What a start comes to: the agent itself, the run's first event, and what it comes from."""

    agent: object
    created: ev.RunCreated
    predecessor: Predecessor | None


class Starter:
    """Starts the runs of a session.

    Threads: any method, from any thread. The session's lock makes starts and the close follow one another.
    """

    def __init__(self, session: Session, ids: IdGenerator) -> None:
        self._session = session
        self._ids = ids
        self._child_starter = self._start_child  # one object for all runs

    def start(self, agent: object, prompt: str, options: StartOptions) -> Run:
        """Start a run and return its handle; raises as `NotebookSession.start()` says."""
        session = self._session
        plan = _plan(agent, prompt, options, session.id)
        created = plan.created
        parcel = _parcel(plan.agent, options.on)
        loop = _loop(options.loop, is_on_host=session.is_on_host_loop)
        session._keyring.look()
        if environ := environment_of(find_adapter(plan.agent), plan.agent):
            session._keyring.take(environ)
        capture.renew()
        live: LiveRun | None = None
        try:
            with session._lock:
                if existing := self._existing(options.id, created):
                    return existing
                behind = self._make_way(options.key, options.if_running)
                session._begin()
                run_id = self._new_id() if options.id is None else clean_text(options.id)
                token = self._token_above(options.parent).child()
                live = LiveRun(run_id, token, key=options.key, is_child=options.parent is not None)
                live.agent, live.loop = plan.agent, loop
                live.budget = self._budget(live, options, created.usage)
                attempt = self._attempt(live, plan, options, parcel)
                session._enter(live, attempt, created)
            is_waited_for = options.id is not None or plan.predecessor is not None
            # On a host's loop, a busy file would hold up all runs.
            if is_waited_for or not session.is_on_host_loop:
                live.is_created.wait(SAVE_LIMIT_S)
            if live.is_refused:
                return self._take_back(live, created)
            for notice in (behind, session.store.problem, *session.store.take_unreported()):
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

    def _attempt(self, live: LiveRun, plan: _Plan, options: StartOptions, parcel: bytes) -> Attempt:
        """Return what travels to the run's host; to be called where the run is started, for its context."""
        session, predecessor = self._session, plan.predecessor
        return Attempt(
            live.run_id, live.attempt, plan.agent, plan.created.prompt, live.token,
            contextvars.copy_context(), options, options.answerable, session.cancel_grace_s,
            functools.partial(self._child_starter, live, options.approve, options.answerable),
            parcel, live.budget, session._is_reentrant,
            None if predecessor is None else predecessor.restored, session._keeper, live.loop,
        )  # fmt: skip

    def _new_id(self) -> str:
        run_id = f"run-{self._ids.next_id()}"
        while run_id in self._session._catalog:  # an id that was given may look like one of ours
            run_id = f"run-{self._ids.next_id()}"
        return run_id

    def _budget(self, live: LiveRun, options: StartOptions, before: ev.Usage) -> Budget | None:
        """Return a new run's budget, which its parent's counts in; None where neither has limits."""
        parent = options.parent
        above = parent._live.budget if parent is not None and parent._live is not None else None
        if above is None and not options.has_limits:
            return None
        return Budget(
            options.only(run_options.LIMITS),
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
            The parent has ended, or belongs to another session.
        """
        if parent is None:
            return self._session.token
        if parent._live is None or parent.done():
            raise RunRejected(f"{parent!r} can't start child runs: it isn't running here")
        return parent._live.token

    def _start_child(
        self, parent: LiveRun, approve: str, answerable: bool,
        agent: object, prompt: str, options: dict[str, Any],
    ) -> Run:  # fmt: skip
        """Start a child run; who answers for its parent answers for it, and it may be granted less, not more."""
        above = self._session._catalog.run(parent)
        given = {"answerable": answerable, **options, "parent": above}
        given["approve"] = _strictest(approve, options.get("approve", approve))
        run = self._session.start(agent, prompt, **given)
        if run.parent_id not in (parent.run_id, None):
            raise IdConflict(f"{run!r} is another run's child; give this one an id of its own")
        if run._live is None or not run._live.is_child:
            raise IdConflict(f"{run!r} isn't a child run; give this one an id of its own")
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
            raise BadOption(f"the id contains a secret, {without_secrets}; choose another id")
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
        if not isinstance(asked, ev.RunCreated) or _inputs(run.record) != asked.inputs():
            raise IdConflict(
                f"the id '{run_id}' already names a run with other inputs; choose another id"
            )
        return run

    def _take_back(self, live: LiveRun, created: ev.RunCreated) -> Run:
        """Forget a run whose id another kernel took first; return that one.

        Raises
        ------
        NotResumable
            No id was given: another kernel was the first to resume the same run.
        """
        self._session._dispatcher.discard(live)
        self._session._catalog.discard(live)
        live.token.release()
        taken = self._same(live.run_id, created)
        if taken is None:
            raise NotResumable("another kernel is already resuming that run; see nbrun.runs()")
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


# --- what a start comes to ---------------------------------------------------------------------------


def _plan(agent: object, prompt: str, options: StartOptions, session_id: str) -> _Plan:
    """Return what a start comes to.

    Raises
    ------
    AgentNotFound, BadOption
        The agent could not be entered, or the prompt or the name is invalid.
    """
    target = agent if isinstance(agent, str) else options.target
    agent, model = _resolved(agent, options)
    predecessor = options.predecessor
    if predecessor is None and isinstance(agent, Replay):
        header = agent.header
        origin = ev.Origin(ev.REPLAY, header.run_id, None, header.name)
        predecessor = Predecessor(origin, header.model)
        prompt = prompt or header.prompt
    if not isinstance(prompt, str):
        raise BadOption(f"prompt must be a str, not {type(prompt).__name__}")
    name = options.name
    if name is not None and number_of(name.strip()) is not None:
        raise BadOption(f"the name '{name}' would refer to a run by number; give another name")
    adapter = find_adapter(agent)
    adapter.check(agent)
    label = adapter.label(agent)
    # Many agents have no name but the one that they have in the notebook.
    known_as = target if target is not None and target.isidentifier() else label
    created = ev.RunCreated(
        session_id=session_id,
        name=clean_text(name or known_as),
        agent=clean_text(label),
        prompt=clean_text(prompt),
        parent_id=None if options.parent is None else options.parent.id,
        cell_id=options.cell_id,
        model=model,
        tags={
            clean_text(str(key)): clean_text(str(value))
            for key, value in (options.tags or {}).items()
        },
        target=target and clean_text(target),
        options={**options.recorded(), **({} if options.id is None else {ev.ONCE: True})},
    )
    if predecessor is not None:
        created = msgspec.structs.replace(
            created, origin=predecessor.origin, usage=predecessor.usage,
            model=model or predecessor.model,
        )  # fmt: skip
    return _Plan(agent, created, predecessor)


def _resolved(agent: object, options: RunOptions) -> tuple[object, str | None]:
    """Return the agent itself, and what cards call its model where the built-in agent is meant.

    Raises
    ------
    AgentNotFound, BadOption
        It isn't found, or it could not be entered.
    """
    if agent is None:
        from nbrun.agents.builtin import adapter as builtin  # with the first run of it

        return builtin.choose(options.model, os.environ, options.only(run_options.SETUP))
    if options.model is not None:
        raise BadOption("give an agent or a model, not both")
    if given := [name for name in run_options.SETUP if getattr(options, name) is not None]:
        raise BadOption(
            f"{', '.join(given)}: only for the built-in agent; leave out the agent, or these options"
        )
    if not isinstance(agent, str):
        return agent, None
    found = by_name(agent)
    if found is None:
        names = ", ".join(sorted(registered())) or "none yet"
        raise AgentNotFound(
            f"no agent is registered as '{agent}' ({names}); use @nbrun.agent, or give the object"
        )
    return found, None


def _inputs(record: RunRecord) -> str:
    """Return what tells the inputs of a recorded run from another's."""
    return ev.RunCreated(
        session_id=record.session_id, name=record.name, agent=record.agent, prompt=record.prompt,
        model=record.model, options=record.options,
    ).inputs()  # fmt: skip


def _strictest(policy: str, asked: object) -> object:
    """Return which of two ways to answer an agent's questions grants less."""
    order = ("auto", "ask", "deny")
    if asked not in order:
        return asked  # refused in a moment
    return max(policy, str(asked), key=order.index)


def _loop(loop: str, *, is_on_host: bool) -> asyncio.AbstractEventLoop | None:
    """Return the loop that an agent is to be on where that is not the host's own."""
    if loop == "host":
        return None
    running = asyncio._get_running_loop()
    if running is None or is_on_host:
        raise BadOption(f"loop='{loop}' needs a running kernel event loop; there is none here")
    return running


def _parcel(agent: object, on: str) -> bytes:
    """Return the agent as bytes where it is to run in another process, else nothing."""
    if on == "local":
        return b""
    adapter = find_adapter(agent)
    lacks = lacks_of(adapter)
    # Some that can be pickled come out as something else: what their adapter says of them counts.
    if lacks is not None and lacks.process:
        raise BadOption(
            f"'{adapter.label(agent)}' cannot run in another process: {lacks.process}, or leave out on='process'"
        )
    return pickling.pack(agent)
