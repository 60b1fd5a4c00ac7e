"""Starts runs: checks the options, finds the agent and its adapter, makes the run and queues it."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import functools
import inspect
import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, cast

import msgspec

from nbrun.agents import (
    AgentAdapter,
    Budget,
    Replay,
    by_name,
    current_run,
    environment_of,
    find_adapter,
    limitations_of,
    registered,
)
from nbrun.core import (
    AgentNotFound,
    BadOption,
    CancelCause,
    CancelToken,
    IdConflict,
    IdGenerator,
    Latch,
    NotResumable,
    Plain,
    Restored,
    RunOptions,
    RunRecord,
    RunRejected,
    SessionClosed,
    clean_text,
    events as ev,
    guarded,
    need_stack,
    options as run_options,
)
from nbrun.core.commands import number_of
from nbrun.core.recording import read_speed
from nbrun.host import capture, failures
from nbrun.host.attempt import Attempt
from nbrun.host.process import pickling
from nbrun.sessions.live_run import LiveRun
from nbrun.sessions.run import CREATION_S, Parts, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nbrun.sessions.catalog import Catalog
    from nbrun.sessions.live_run import Listener
    from nbrun.sessions.scheduler import RunQueue

_log = logging.getLogger("nbrun")

P = ParamSpec("P")

MAX_NESTED = 50
"""How many runs may be below one another: an agent that starts itself ends with an error, not with the memory."""
MAX_FAMILY = 2_000
"""How many runs that were started by runs may be in progress at once, below and beside one that a person started."""


class Predecessor(msgspec.Struct, frozen=True):
    """What a start needs to know about the run that the new one comes from."""

    origin: ev.Origin
    model: str | None = None
    usage: ev.Usage = msgspec.field(default_factory=ev.Usage)
    restored: Restored | None = None
    notice: str | None = None  # for the new run's card
    is_reusing: bool = False  # whether it is a retry that is answered from that run's journal


class StartOptions(RunOptions, frozen=True, kw_only=True):
    """The options of a run, and the circumstances of its start.

    Circumstances
    -------------
    cell_id : the cell that starts the run.
    parent : the run whose child it is: it is cancelled with that run, and ends before it.
    answerable : whether there is a person to ask; False makes `approve="ask"` deny at once.
    target : the agent's name in the notebook, by which a later kernel finds it again.
    predecessor : the run that this one comes from.
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


_NO_OPTIONS = StartOptions()


class StartFunction(Protocol[P]):
    """Starts a run: agent and prompt by position, options by name."""

    def __call__(self, agent: object = None, prompt: str = "", *args: P.args, **options: P.kwargs) -> Run:
        """Start a run and return its handle."""
        ...


def takes(options: Callable[P, RunOptions]) -> Callable[[Callable[..., Run]], StartFunction[P]]:
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
    """Return the options of a start; raises `BadOption` if one is unknown or invalid."""
    if not given:
        return _NO_OPTIONS
    known = StartOptions.__struct_fields__
    for name in given:
        if name not in known:
            near = [option for option in sorted(known) if option.startswith(name)]
            hint = f"; did you mean {near[0]}?" if near else ""
            raise BadOption(f"{name} isn't an option of a run{hint}")
    return StartOptions(**given)


@dataclass(slots=True)
class _Plan:
    """A start, worked out: the agent itself with its adapter, the run's first event, and its predecessor."""

    agent: object
    adapter: AgentAdapter
    created: ev.RunCreated
    predecessor: Predecessor | None
    restored: Restored | None = None


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """How the runs of a set are started: worked out, described and pickled once."""

    plan: _Plan
    options: StartOptions
    pickled: bytes

    @property
    def agent(self) -> str:
        """The agent's label."""
        return self.plan.created.agent

    @property
    def name(self) -> str:
        """What its runs are called."""
        return self.plan.created.name


class Starter:
    """Starts the runs of a session, from any thread; the session's lock keeps starts and the close apart."""

    def __init__(self, parts: Parts, catalog: Catalog, ids: IdGenerator) -> None:
        self._parts = parts
        self._catalog = catalog
        self._ids = ids
        self._defaults = RunOptions()
        # Bound once, and shared by all runs.
        self._child_starter, self._on_fired = self._start_child, parts.control.note_fired

    def start(self, agent: object, prompt: str, given: Mapping[str, Any]) -> Run:
        """Start a run and return its handle; raises as `NotebookSession.start()` says."""
        need_stack()
        options = read_options(given)
        parts, scheduler = self._parts, self._parts.scheduler
        plan = _plan(agent, prompt, options, parts.session_id)
        created = plan.created
        pickled = b"" if options.on == "local" else _pickled(plan)
        loop = None if options.loop == "host" else _kernel_loop(scheduler.is_on_loop)
        parts.keyring.look()
        if environ := environment_of(plan.adapter, plan.agent):
            parts.keyring.take(environ)
        capture.renew()
        live: LiveRun | None = None
        try:
            with parts.lock:
                if existing := self._existing(options.id, created):
                    return existing
                notes = self._apply_if_running(options.key, options.if_running)
                self.begin()
                above = self._run_above(options.parent)
                family = None if above is None else _family(above)
                run_id = self._new_id() if options.id is None else clean_text(options.id)
                token = self._token_above(options.parent).child()
                live = LiveRun(run_id, token, key=options.key, is_child=options.parent is not None)
                live.agent, live.loop = plan.agent, loop
                live.above, live.family = above, family
                live.is_inner = current_run.get() is not None
                if family is not None:
                    family.append(live.is_ended)
                parent = None if options.parent is None else options.parent.live
                shared = None if parent is None else parent.budget
                live.budget = self._budget(live, options, created.usage, shared)
                attempt = self._attempt(live, plan, options, pickled)
                if options.retries:
                    live.first, live.retries = attempt, options.retries
                scheduler.attempts[run_id] = attempt
                is_full = parts.intake.open(live, created)
                token.add_first(functools.partial(self._on_fired, live))
            # Its creation queues it, once that is on disk, and nobody waits for that here: except where another kernel
            # may have started the same run, or more is started than can be saved.
            if options.id is not None or plan.predecessor is not None:
                live.is_created.wait(CREATION_S)
            elif is_full:
                parts.await_creation(live)
            if live.is_refused:
                return self._take_back(live, created)
            if plan.predecessor is not None and plan.predecessor.notice is not None:
                notes = [*notes, ev.Log(plan.predecessor.notice, "warning")]
            for note in notes:
                parts.intake.emit(live, note)
        except BaseException:  # ■ in the middle: leave no run behind that nobody has a handle to
            if live is not None:
                parts.control.cancel(live, None, CancelCause.INTERRUPT, "interrupt")
                scheduler.let_pass(live)
            raise
        return Run(parts, live.record, live)

    # --- the runs of a set -----------------------------------------------------------------------

    def plan(self, agent: object, given: Mapping[str, Any]) -> MemberPlan:
        """Work out once how the runs of a set are started; raises as `start()` does."""
        options = read_options(given)
        plan = _plan(agent, "", options, self._parts.session_id)
        pickled = b"" if options.on == "local" else _pickled(plan)
        if environ := environment_of(plan.adapter, plan.agent):
            self._parts.keyring.take(environ)
        capture.renew()
        with self._parts.lock:
            self._existing(None, plan.created)
            self.begin()
        return MemberPlan(plan, options, pickled)

    @guarded()  # as a start is
    def start_member(
        self,
        known: MemberPlan,
        prompt: str,
        member: ev.Member,
        origin: ev.Origin | None,
        token: CancelToken,
        queue: RunQueue,
        budget: Budget | None,
        listener: Listener,
    ) -> LiveRun:
        """Start a run of a set, below its token, in its queue and budget; nobody waits for anything here."""
        parts, plan = self._parts, known.plan
        created = msgspec.structs.replace(plan.created, prompt=clean_text(prompt), member=member, origin=origin)
        with parts.lock:
            self._existing(None, created)
            live = LiveRun(self._new_id(), token.child())
            live.agent, live.queue, live.listeners = plan.agent, queue, (listener,)
            live.budget = self._budget(live, known.options, created.usage, budget)
            own = _Plan(plan.agent, plan.adapter, created, None, plan.restored)
            parts.scheduler.attempts[live.run_id] = self._attempt(live, own, known.options, known.pickled)
            parts.intake.open(live, created)
            live.token.add_first(functools.partial(self._on_fired, live))
        return live

    def begin(self) -> None:
        """Start the threads of the session, with its first run."""
        parts = self._parts
        if parts.is_begun:
            return
        notebook = None if parts.notebook is None else str(parts.notebook)
        writer = parts.store.begin(parts.intake, session_id=parts.session_id, notebook=notebook)
        parts.intake.wake = writer.wake
        capture.install()
        _log.addFilter(parts.keyring)
        atexit.register(parts.close)
        parts.scheduler.begin(parts.intake)
        parts.is_begun = True  # last: a store that refuses must do so for the next run as well

    def try_again(self, live: LiveRun) -> None:
        """Start the next attempt at a run whose last one has failed, once that is on disk; on the writer's thread."""
        try:
            attempt = self._next_attempt(live)
        except Exception as error:  # a mistake of ours must not leave a run without its end
            _log.exception("%s could not be tried again", live.run_id)
            self._parts.intake.emit(live, ev.RunFailed(failures.describe(error)))
            return
        if attempt is not None:
            self._parts.scheduler.try_again(live, attempt)

    def _next_attempt(self, live: LiveRun) -> Attempt | None:
        record, first, parts = live.record, live.first, self._parts
        if first is None:
            return None
        options, lost = first.options, record.lost_attempts[-1]
        if options.timeout_s is not None and record.started_at is not None:  # of the run, not of each attempt
            left_s = record.started_at + options.timeout_s - parts.clock.now()
            if left_s <= 0:
                live.token.cancel(None, CancelCause.DEADLINE, patience_s=0.0)
            options = msgspec.structs.replace(options, timeout_s=max(left_s, 0.001))
        restored = first.restored or Restored()
        restored = msgspec.structs.replace(
            restored, state=live.state or restored.state, usage=record.usage, tools=record.tool_count
        )
        if lost.error.type == ev.PROCESS_DIED and restored.speed is None and record.number is not None:
            # Where it has failed by itself, an answer may be what it fails on.
            known = parts.store.journal(record.number)
            since = parts.store.journal(record.number, since_checkpoint=True) if live.state is not None else known
            before = known[: len(known) - len(since)]
            restored = msgspec.structs.replace(
                restored, journal=tuple(since), before=tuple(before), journal_of=f"attempt {lost.number}"
            )
        return replace(first, number=live.attempt, options=options, restored=restored, context=first.context.copy())

    # --- the parts of a run ----------------------------------------------------------------------

    def _attempt(self, live: LiveRun, plan: _Plan, options: StartOptions, pickled: bytes) -> Attempt:
        """Return what the run's host needs; call it where the run is started, since it copies the context."""
        parts = self._parts
        # What a journal or a cassette is to answer must be seen, or it would be paid for.
        answers = plan.restored is not None and (bool(plan.restored.journal) or plan.restored.speed is not None)
        # Most runs have no options: they share these, since an attempt is kept as long as its run is live.
        executed = options if plan.created.options else self._defaults
        return Attempt(
            live.run_id, live.attempt, plan.agent, plan.created.prompt, live.token,
            contextvars.copy_context(), executed, options.answerable, parts.cancel_grace_s,
            functools.partial(self._child_starter, live, executed, options.answerable),
            pickled, live.budget, parts.scheduler.is_reentrant,
            plan.restored, parts.artifact_writer, live.loop,
            parts.watch_calls or answers, parts.journals,
            functools.partial(parts.intake.call_when_stored, live),
            functools.partial(parts.intake.add_secrets, live) if pickled else None,
        )  # fmt: skip

    def _new_id(self) -> str:
        run_id = f"run-{self._ids.next_id()}"
        while run_id in self._parts.intake.runs:  # an id that was given may look like one of ours
            run_id = f"run-{self._ids.next_id()}"
        return run_id

    def _budget(self, live: LiveRun, options: RunOptions, before: ev.Usage, above: Budget | None) -> Budget | None:
        """Return a new run's budget, which also counts towards that of its parent, or set; None without limits."""
        if above is None and not options.has_limits:
            return None
        return Budget(
            options.only(run_options.LIMITS),
            live.token,
            lambda notice: self._parts.intake.emit(live, ev.Log(notice, "warning")),
            above,
            before,
        )

    # --- below another run -----------------------------------------------------------------------

    def _token_above(self, parent: Run | None) -> CancelToken:
        """Return the token above a new run's; raise `RunRejected` if the parent has ended, or is another session's."""
        if parent is None:
            return self._parts.token
        if parent.live is None or parent.done():
            raise RunRejected(f"{parent!r} can't start child runs: it isn't running here")
        return parent.live.token

    def _run_above(self, parent: Run | None) -> LiveRun | None:
        """Return the live run that starts a new one, as its child or not; None where a person does."""
        if parent is not None:
            return parent.live
        run = current_run.get()
        return None if run is None else self._parts.intake.runs.get(run.run_id)

    def _start_child(
        self, parent: LiveRun, own: RunOptions, answerable: bool, agent: object, prompt: str, options: dict[str, Any]
    ) -> Run:
        """Start a child run. Its questions are answered as its parent's are, or more strictly, and so are its calls."""
        above = self._catalog.run(parent)
        given = {"answerable": answerable, "cassette": own.cassette, "speed": own.speed, **options, "parent": above}
        given["approve"] = _strictest(own.approve, options.get("approve", own.approve))
        with guarded():
            run = self.start(agent, prompt, given)
        if "id" in options and run.parent_id not in (parent.run_id, None):
            raise IdConflict(f"{run!r} is another run's child; give this one an id of its own")
        if run.live is None or not run.live.is_child:
            raise IdConflict(f"{run!r} isn't a child run; give this one an id of its own")
        return run

    # --- beside other runs -----------------------------------------------------------------------

    def _existing(self, run_id: str | None, created: ev.RunCreated) -> Run | None:
        """Return the run that an earlier start with this id made; None if a new one is needed.

        Raise if the session is closed, the id contains a secret, or it names a run with other inputs.
        """
        if self._parts.is_closed:
            raise SessionClosed(self._parts.why_closed)
        if run_id is None:
            return None
        without_secrets = self._parts.intake.redactor.text(run_id)
        if without_secrets != run_id:  # it names the run everywhere, so it cannot be replaced
            raise BadOption(f"the id contains a secret, {without_secrets}; choose another id")
        return self._same(clean_text(run_id), created)

    def _same(self, run_id: str, created: ev.RunCreated) -> Run | None:
        """Return the run that this id already names in the store, if its inputs are these."""
        run = self._catalog.with_id(run_id)
        if run is None:
            return None
        run.wait_created()
        if run.live is not None and run.live.is_refused:  # another thread was faster
            return self._same(run_id, created)
        # Secrets are replaced in the stored inputs, so compare these without secrets too.
        asked = self._parts.intake.storable(created)
        if not isinstance(asked, ev.RunCreated) or _inputs(run.record) != asked.inputs():
            raise IdConflict(f"the id '{run_id}' already names a run with other inputs; choose another id")
        return run

    def _take_back(self, live: LiveRun, created: ev.RunCreated) -> Run:
        """Forget a run whose id another kernel took first; return that one.

        Raises `NotResumable` if no id was given: another kernel was the first to resume the same run.
        """
        self._parts.scheduler.attempts.pop(live.run_id, None)
        live.token.release()
        taken = self._same(live.run_id, created)
        if taken is None:
            raise NotResumable("another kernel is already resuming that run; see nbrun.runs()")
        return taken

    def _apply_if_running(self, key: str | None, if_running: str) -> list[ev.Log]:
        """Apply `if_running` to a live run of the same cell or name; return what the new run's log says of it."""
        lives = [] if key is None else self._parts.intake.live()
        others = [live for live in lives if live.key == key]
        if not others:
            return []
        self._parts.await_creation(others[-1])
        title = f"run #{others[-1].record.number}"
        if if_running == "reject":
            raise RunRejected(
                f"R{title[1:]} of this cell is still running; wait for it, cancel it, or use if_running='queue'"
            )
        if if_running == "replace":
            for other in others:
                self._parts.control.cancel(other, None, CancelCause.REPLACED, "a newer run of the same cell")
            return [ev.Log(f"Replaces {title}", "warning")]
        # No warning: it would stay on the card. The status says it while it is so.
        return [ev.Log(f"Waiting for {title} of this cell to finish", "info")]


def _family(above: LiveRun) -> list[Latch]:
    """Return the ends of the runs that a new one below `above` belongs to; raise `RunRejected` if they are too many."""
    depth, run = 1, above
    while run.above is not None:
        if run.above.is_ended.is_set():  # as where each run starts its successor: that may go on for ever
            run.above = None
        else:
            depth, run = depth + 1, run.above
    if depth > MAX_NESTED:
        raise RunRejected(
            f"runs are nested {MAX_NESTED} deep here, each started by the one above, which is the limit; an agent that "
            "starts itself must stop at some depth"
        )
    if above.family is None:
        above.family = []
    family = above.family
    if len(family) >= MAX_FAMILY:
        family[:] = [end for end in family if not end.is_set()]
    if len(family) >= MAX_FAMILY:
        raise RunRejected(
            f"{MAX_FAMILY:,} runs that this run and those around it have started are in progress, which is the limit; "
            "wait for some of them before you start more"
        )
    return family


# --- planning a start ---------------------------------------------------------------------------------


def _plan(agent: object, prompt: str, options: StartOptions, session_id: str) -> _Plan:
    """Work out a start; raises `AgentNotFound`, or `BadOption` if the agent, the prompt or the name is invalid."""
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
    label, target = clean_text(adapter.label(agent)), target and clean_text(target)
    # Many agents have no name except that of their variable in the notebook.
    known_as = target if target is not None and target.isidentifier() else label
    created = ev.RunCreated(
        session_id=session_id,
        name=known_as if name is None else clean_text(name),
        agent=label,
        prompt=clean_text(prompt),
        parent_id=None if options.parent is None else options.parent.id,
        cell_id=options.cell_id,
        model=model,
        tags={clean_text(str(key)): clean_text(str(value)) for key, value in (options.tags or {}).items()},
        target=target,
        options={} if options is _NO_OPTIONS else _recorded(options),
    )
    if predecessor is not None:
        options_of = {**created.options, ev.REUSE: True} if predecessor.is_reusing else created.options
        created = msgspec.structs.replace(
            created, origin=predecessor.origin, usage=predecessor.usage, model=model or predecessor.model,
            options=options_of,
        )  # fmt: skip
    return _Plan(agent, adapter, created, predecessor, _restored(predecessor, options))


def _restored(predecessor: Predecessor | None, options: RunOptions) -> Restored | None:
    """Return what a run starts from: what a run has that it comes from, and a cassette."""
    restored = None if predecessor is None else predecessor.restored
    if options.cassette is None:
        return restored
    from nbrun.calls import cassette  # with the first

    return msgspec.structs.replace(
        restored or Restored(),
        journal=cassette.load(options.cassette),
        journal_of=f"the cassette {os.path.basename(options.cassette)}",
        speed=1.0 if options.speed is None else read_speed(options.speed),
    )


def _recorded(options: StartOptions) -> dict[str, Plain]:
    """Return what the record keeps of the options."""
    return {**options.recorded(), **({} if options.id is None else {ev.ONCE: True})}


def _resolved(agent: object, options: RunOptions) -> tuple[object, str | None]:
    """Return the agent itself, and for the built-in agent its model's name; raise if it isn't found or can't be run."""
    if agent is None:
        from nbrun.agents import builtin  # with the first run of it

        return builtin.choose(options.model, os.environ, options.only(run_options.SETUP))
    if options.model is not None:
        raise BadOption("give an agent or a model, not both")
    if given := [name for name in run_options.SETUP if getattr(options, name) is not None]:
        raise BadOption(f"{', '.join(given)}: only for the built-in agent; leave out the agent, or these options")
    if not isinstance(agent, str):
        return agent, None
    found = by_name(agent)
    if found is None:
        names = ", ".join(sorted(registered())) or "none yet"
        raise AgentNotFound(f"no agent is registered as '{agent}' ({names}); use @nbrun.agent, or give the object")
    return found, None


def _inputs(record: RunRecord) -> str:
    """Return what identifies the inputs of a recorded run."""
    return ev.RunCreated(
        session_id=record.session_id, name=record.name, agent=record.agent, prompt=record.prompt,
        model=record.model, options=record.options,
    ).inputs()  # fmt: skip


def _strictest(policy: str, asked: object) -> object:
    """Return the stricter of two values of `approve`."""
    order = ("auto", "ask", "deny")
    if asked not in order:
        return asked  # refused when the options are read
    return max(policy, str(asked), key=order.index)


def _kernel_loop(is_on_host: bool) -> asyncio.AbstractEventLoop:
    """Return the loop that the calling cell runs on."""
    running = asyncio._get_running_loop()
    if running is None or is_on_host:
        raise BadOption(
            "loop='kernel' needs the kernel's event loop: start the run in a notebook cell, or leave out loop"
        )
    return running


def _pickled(plan: _Plan) -> bytes:
    """Return the agent as bytes, to be run in another process."""
    limitations = limitations_of(plan.adapter)
    # Some agents can be pickled but don't work afterwards, so their adapter decides.
    if limitations is not None and limitations.process:
        label = plan.adapter.label(plan.agent)
        raise BadOption(f"'{label}' cannot run in another process: {limitations.process}, or leave out on='process'")
    return pickling.pack(plan.agent)
