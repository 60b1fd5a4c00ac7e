"""What an agent sees of its run, and what its host provides for that."""

from __future__ import annotations

import asyncio
import os.path
import threading
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from nbrun.agents.context.approvals import ASK, SECRET, TEXT, Answer, Approvals, Ask, Question
from nbrun.agents.context.budget import Budget, Calls
from nbrun.agents.context.inbox import Inbox
from nbrun.agents.context.steps import StepCall, is_async
from nbrun.agents.context.threads import Work, Worker
from nbrun.core import (
    ArtifactWriter,
    CancelCause,
    CancelToken,
    Clock,
    Journal,
    LineBuffer,
    NbrunError,
    Restored,
    RunOptions,
    State,
    Turn,
    checkpoint as checkpoints,
    clean_text,
    current_guard,
    events as ev,
    exact,
    guarded,
    plain,
    revived,
    size_words,
    type_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, MutableMapping, Sequence
    from weakref import ref


T = TypeVar("T")

_MAX_USAGE = 10**15
_NO_USAGE = ev.Usage()

TOOL_ENDS = ("ok", "error", "denied", "cancelled")


class ChildRun(Protocol):
    """The handle of a child run, as the agent that started it sees it."""

    @property
    def id(self) -> str:
        """The child run's id."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def number(self) -> int | None:
        """Its short number in the store."""

    @property
    def status(self) -> str:
        """Its status."""

    @property
    def usage(self) -> ev.Usage:
        """The tokens and requests that it has used so far."""

    def cancel(self, reason: str | None = None, cause: CancelCause = ...) -> object:
        """Ask it to stop; its parent continues."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until it has ended: for sync agents."""

    def result(self, timeout_s: float | None = None) -> object:
        """Return its output, after waiting for it: for sync agents."""

    def when_created(self, function: Callable[[], object]) -> None:
        """Call `function` when its name and number are known."""

    def when_ended(self, function: Callable[[], object]) -> None:
        """Call `function` when it has ended."""

    def __await__(self) -> Generator[object, None, object]:
        """Wait for its end and return its output; raises as `result()` does."""


class Backend(Protocol):
    """What a host provides behind the context of one run.

    Threads: any member, from any thread of the agent. What few agents use is made when it is first asked for.
    """

    @property
    def budget(self) -> Budget:
        """What the run and its child runs may use."""

    @property
    def approvals(self) -> Approvals:
        """The run's questions to the user."""

    @property
    def inbox(self) -> Inbox:
        """The messages into the run."""

    @property
    def artifact_writer(self) -> ArtifactWriter:
        """What keeps files beside the log; raises `NbrunError` if nothing can."""

    @property
    def journal(self) -> Journal | None:
        """The answers that the run keeps, and what it is answered from; None if nothing can be kept."""

    def emit(self, data: ev.EventData, parent: str | None = None) -> None:
        """Take an event of the agent."""

    def call_when_stored(self, function: Callable[[], object], *, is_urgent: bool = False) -> None:
        """Call `function` when all that was sent is on disk, or can't be put there; on any thread, or at once."""

    def start_child(self, agent: object, prompt: str, options: dict[str, Any]) -> ChildRun:
        """Start a child run; raises `NbrunError` if that is not possible."""


def _line(error: Exception) -> str:
    """Return an error in a line; its own code may raise another one, which must not take its place."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # as above
        return type(error).__name__


current_run: ContextVar[RunContext | None] = ContextVar("nbrun_current", default=None)
_current_tool: ContextVar[tuple[str, str]] = ContextVar("nbrun_tool", default=("", ""))
"""The innermost `tool()` around this code: the ids of its run and of the tool."""


def watched_run() -> RunContext | None:
    """Return the run that this code belongs to, if its model calls are watched; called with every request."""
    run = current_run.get()
    return run if run is not None and run.watch_calls else None


def current() -> RunContext:
    """Return the context of the run that this code belongs to; raises `NbrunError` outside of an agent."""
    run = current_run.get()
    if run is None:
        raise NbrunError("nbrun.current() works only inside a running agent")
    return run


class ToolUse:
    """One use of a tool. Set `result` in a `with` block, or call `finish()`; what is left open ends with the run.

    Threads: any, so that it can be ended elsewhere than it was begun. `running` has those that are open, by id; it is
    written under the run's lock.
    """

    def __init__(
        self, run: RunContext, tool_id: str, name: str, running: dict[str, ToolUse], lock: threading.RLock
    ) -> None:
        self.id = tool_id
        self.name = name
        self.result: object = None
        self._run = run
        self._began = run.clock.monotonic()
        self._running = running
        self._lock = lock

    @property
    def _is_open(self) -> bool:
        return self._running.get(self.id) is self

    def args(self, delta: str) -> None:
        """Add to the arguments, as the model writes them."""
        if delta and self._is_open:
            self._run.send(ev.ToolArgsDelta(self.id, delta))

    def progress(self, done: float, total: float | None = None, label: str = "") -> None:
        """Report how far the tool has come."""
        if self._is_open:
            self._run.send(ev.ToolProgress(self.id, done, total, label))

    def finish(self, result: object = None, *, status: str = "ok") -> bool:
        """End it; return whether this call did: only the first one counts.

        `status` is `ok`, `error`, `denied` or `cancelled`; raises `ValueError` for any other.
        """
        if status not in TOOL_ENDS:
            raise ValueError(f"status must be one of {', '.join(TOOL_ENDS)}, not {status!r}")
        kept = plain(self.result if result is None else result)  # not guarded: it runs the agent's code
        with guarded():
            with self._lock:
                if not self._is_open:
                    return False
                del self._running[self.id]
            ms = (self._run.clock.monotonic() - self._began) * 1000
            self._run.send(ev.ToolFinished(self.id, status, kept, round(ms, 3)))
        return True


class RunContext:
    """What an agent sees of its run: its token, and how to report what it does.

    Threads: any method, from any thread or task of the run; events keep the order in which one thread sends them.
    """

    __slots__ = (
        "__weakref__", "_artifacts", "_backend", "_before", "_calls", "_checkpoints", "_lock", "_reported",
        "_restored", "_running", "_tools", "_unfinished", "_usage", "_work", "clock", "library_tasks", "prompt",
        "run_id", "tasks", "token", "watch_calls",
    )  # fmt: skip

    def __init__(
        self,
        run_id: str,
        prompt: str,
        token: CancelToken,
        clock: Clock,
        backend: Backend,
        restored: Restored | None = None,
        *,
        watch_calls: bool = True,
    ) -> None:
        self.run_id = run_id
        self.prompt = prompt
        self.token = token
        self.clock = clock
        self.watch_calls = watch_calls
        self._backend: Backend | None = backend  # None once the run is over
        self._lock = threading.RLock()  # entered again where a collected object prints
        self._restored = restored
        self._usage = self._before = _NO_USAGE if restored is None else restored.usage
        self._reported = _NO_USAGE  # by the agent
        self._calls: Calls | None = None  # with the first
        self._tools = 0 if restored is None else restored.tools
        self._running: dict[str, ToolUse] | None = None  # with the first
        self._checkpoints = 0
        self._artifacts = 0
        self._unfinished: LineBuffer | None = None  # with the first print
        # What the agent has started, each made with the first: most have none. The tasks are those on the host's
        # loop, and of that loop: the agent's own with the task that has made each, and those of its libraries
        # with whether another of these has made it.
        self._work: dict[Work, None] | None = None
        self.tasks: MutableMapping[asyncio.Task[Any], ref[asyncio.Task[Any]]] | None = None
        self.library_tasks: MutableMapping[asyncio.Task[Any], bool] | None = None

    def leave(self) -> None:
        """Let go of the host: the run is over, and whoever still holds this context can do no more."""
        with self._lock:
            self._backend = self._work = None

    def _host(self) -> Backend:
        backend = self._backend
        if backend is None:
            raise NbrunError("this run has ended")
        return backend

    @property
    def deadline(self) -> float | None:
        """When the run's time limit is up, in epoch seconds (UTC), or None."""
        return self.token.deadline

    @property
    def restored(self) -> State:
        """The state to resume from, as given to the last `checkpoint()`; None in a new run."""
        state = None if self._restored is None else self._restored.state
        return None if state is None else checkpoints.unpack(state)

    @property
    def history(self) -> tuple[Turn, ...]:
        """The conversation that this run continues, oldest first; each `Turn` has `role` and `text`."""
        return () if self._restored is None else self._restored.history

    @property
    def work(self) -> tuple[Work, ...]:
        """The threads and processes that were started for the run, oldest first."""
        # A copy is made in one step, whatever other threads add meanwhile.
        return () if (work := self._work) is None else tuple(work.copy())

    def add_work(self, work: Work) -> None:
        """Let a cancel of the run reach a thread or a process that is started for it."""
        with guarded(), self._lock:
            if self._backend is None:
                return
            if self._work is None:
                self._work = {}
            self._work[work] = None

    def drop_work(self, ended: Work) -> None:
        """Forget what has ended."""
        with guarded(), self._lock:
            if self._work is not None:
                self._work.pop(ended, None)

    @property
    def inbox(self) -> Inbox:
        """The messages to the running agent: `take()` them when it can use them, or `await run.inbox.get()`."""
        backend = self._backend
        inbox = backend.inbox if backend else Inbox(self.token, self.send, self._lock)
        inbox.note_reader()
        return inbox

    @property
    def budget(self) -> Budget:
        """What the run may use; the usage of its child runs counts, too."""
        backend = self._backend
        return backend.budget if backend else Budget(RunOptions(), self.token)

    @property
    def journal(self) -> Journal | None:
        """What the run's model calls are answered from, and where their answers are kept; None once it is over."""
        backend = self._backend
        return None if backend is None else backend.journal

    def call_when_stored(self, function: Callable[[], object], *, is_urgent: bool = False) -> None:
        """Call `function` when all that the run has sent is on disk, or can't be put there; on any thread, or at once.

        Something that must not be known before waits for that; `is_urgent` has it done now, and not with what follows.
        """
        if (backend := self._backend) is None:
            function()
        else:
            with guarded():
                backend.call_when_stored(function, is_urgent=is_urgent)

    @property
    def _approvals(self) -> Approvals:
        if backend := self._backend:
            return backend.approvals
        approvals = Approvals(self.token, self.send, self._lock, self.clock)
        approvals.close()
        return approvals

    def send(self, data: ev.EventData, parent: str | None = None) -> None:
        """Append an event to the run's log."""
        if (backend := self._backend) is None:
            return
        if type(data) is not ev.TextDelta or type(data.text) is not str or parent is not None:
            data = ev.checked(data, parent)  # here: it may run the agent's code, for any time
        # As guarded() does, which on this hot path would cost as much as the rest.
        guard = current_guard.get()
        if guard is None:
            backend.emit(data, parent)
        else:
            guard.enter()
            try:
                backend.emit(data, parent)
            finally:
                guard.leave()

    def _send_own(self, data: ev.EventData) -> None:
        """Append an event that is nbrun's own through and through: nothing in it needs a check."""
        if (backend := self._backend) is not None:
            with guarded():
                backend.emit(data, None)

    def text(self, delta: str) -> None:
        """Add to the answer."""
        if delta:
            self.send(ev.TextDelta(delta))

    def reasoning(self, delta: str) -> None:
        """Add to the reasoning."""
        if delta:
            self.send(ev.ReasoningDelta(delta))

    def phase(self, name: str) -> None:
        """Say what the agent is doing now, in a word or two."""
        self.send(ev.RunPhase(clean_text(name)))

    def progress(self, done: float, total: float | None = None, label: str = "") -> None:
        """Report the run's progress: `done` of `total`, in any unit."""
        self.send(ev.Progress(float(done), None if total is None else float(total), clean_text(label)))

    def log(self, text: str, level: str = "info") -> None:
        """Write to the run's log; level `warning` is also shown on the card."""
        self.send(ev.Log(clean_text(text), level))

    def write(self, text: str, level: str = "stdout") -> None:
        """Take printed text; whole lines go to the log, the rest waits for its end."""
        text = text if type(text) is str else exact(text)
        with guarded(), self._lock:
            if self._unfinished is None:
                self._unfinished = LineBuffer()
            lines = self._unfinished.add(text, level)
        if lines is not None:
            self.log(lines, level)

    def flush_lines(self) -> None:
        """Log what was printed without an end of line."""
        if self._unfinished is None:
            return
        with guarded(), self._lock:
            rest = self._unfinished.take()
        for level, text in rest:
            self.log(text, level)

    def emit(self, name: str, value: object = None) -> None:
        """Append an event of the agent's own."""
        self.send(ev.Custom(clean_text(name), plain(value)))

    def artifact(self, name: str, data: bytes | str | Path, media_type: str | None = None) -> bool:
        """Keep a file with the run, listed in `run.artifacts` of its handle. Return whether it was kept.

        If it can't be kept, the card says why and the agent continues. It is on disk when this returns; an async
        agent keeps a large one with `await run.in_thread(run.artifact, name, data)`. `data` is bytes; text, in which
        secrets are replaced; or the `pathlib.Path` of a file, which is copied. `media_type` is such as `image/png`;
        if it is None, the name's ending decides.
        """
        if not isinstance(data, bytes | str | Path):
            raise TypeError(f"an artifact is bytes, a str or a Path, not {type(data).__name__}")
        with guarded(), self._lock:
            self._artifacts += 1
            artifact_id = f"{ev.FILE_ID}{self._artifacts}"
        try:
            made = self._host().artifact_writer.keep(artifact_id, str(name), data, media_type)
        except (NbrunError, OSError) as error:
            self.log(f"the artifact '{name}' is not kept: {error}", "warning")
            return False
        self.send(made)
        if isinstance(data, str) and os.path.isfile(data):
            words = f"the artifact '{name}' contains the text {data}; pass pathlib.Path(…) to copy that file"
            self.log(words, "warning")
        return True

    def begin_turn(self) -> None:
        """Report that the agent is about to call a model; call it each time, so that `max_turns=N` allows exactly N.

        Report what the call has used afterwards, with `usage()`; a request reported there is not counted again.
        Raises `Cancelled` if the call must not be made: the budget is used up, or the run was cancelled.
        """
        with guarded():
            if self._restored is not None and self._restored.journal and self.journal and self.journal.is_answering:
                self.token.raise_if_cancelled()  # it may cost nothing; if it does, the call itself is counted
                return
            self.budget.begin_turn()
            self.usage()  # so that a budget above counts the call, too, wherever it is made

    def usage(
        self,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        reasoning_tokens: int = 0,
        requests: int = 0,
        cost_usd: float | None = None,
    ) -> None:
        """Add to the run's usage; runs that exceed their budget are cancelled.

        Raises `ValueError` if a number is negative, not finite, or no number of tokens at all (10**15 or more).
        """
        # int() and float() first, and unlocked: they may call code of the agent's, as for a number of numpy's.
        added = int(input_tokens), int(output_tokens), int(requests)
        details = int(cache_read_tokens), int(reasoning_tokens)
        cost_added = None if cost_usd is None else float(cost_usd)
        if not all(0 <= number < _MAX_USAGE for number in (*added, *details, cost_added or 0.0)):
            raise ValueError("usage numbers must be finite, not negative, and below 10**15")
        with guarded(), self._lock:
            self._reported = self._reported.plus(ev.Usage(*added[:2], *details, added[2], cost_added))
            self._send_usage()

    def begin_call(self, provider: str, model: str, *, is_free: bool = False) -> str:
        """Take note of a request to a model that is about to be sent; return the call's id.

        One that is free is answered without its provider, so it counts for no limit. Raises `Cancelled` if it must not
        be sent: the budget is used up, or the run was cancelled.
        """
        if not is_free:
            self.budget.begin_call()
        with self._lock:
            if self._calls is None:
                self._calls = Calls()
            call_id = self._calls.begin(is_free=is_free)
            run_id, tool_id = _current_tool.get()  # a child run inherits it
            self._send_own(ev.CallStarted(call_id, provider, model, tool_id if run_id == self.run_id else ""))
        return call_id

    def note_call(self, call_id: str, usage: ev.Usage) -> None:
        """Take what a call that is under way has used so far; the run is cancelled if that exceeds its budget."""
        with self._lock:
            if self._calls is not None:
                self._calls.note(call_id, usage)
                self._send_usage()

    def end_call(self, finished: ev.CallFinished) -> None:
        """Take the end of a call. One that was refused is not counted: trying again is the same call."""
        is_refused = finished.status == "error" and finished.usage is None and finished.source == "live"
        if is_refused:
            self.budget.drop_call()
        with self._lock:
            if self._calls is not None:
                self._calls.end(finished, is_refused=is_refused)
                self._send_own(finished)
                self._send_usage()

    def _send_usage(self) -> None:
        """Send the totals if they have changed; the caller holds the lock, or older ones might come later.

        Once calls have reported tokens, their sum is what the run has used: what the agent reports is the same again.
        """
        known, used = self._usage, self._reported
        called, answered = (_NO_USAGE,) * 2 if self._calls is None else (self._calls.used, self._calls.answered)
        if called.input_tokens + called.output_tokens + answered.requests > 0:
            is_priced = called.cost_usd is not None and not (self._calls and self._calls.is_unpriced)
            is_known = is_priced or used.cost_usd is None or answered.requests > 0
            cost = called.cost_usd if is_known else used.cost_usd
            requests = max(used.requests - answered.requests, called.requests)
            used = msgspec.structs.replace(called, cost_usd=cost, requests=requests)
        totals = self._before.plus(used)
        totals = ev.Usage(
            max(totals.input_tokens, known.input_tokens),
            max(totals.output_tokens, known.output_tokens),
            max(totals.cache_read_tokens, known.cache_read_tokens),
            max(totals.reasoning_tokens, known.reasoning_tokens),
            max(totals.requests, self.budget.begun),
            known.cost_usd if totals.cost_usd is None else max(totals.cost_usd, known.cost_usd or 0.0),
            known.exact,
        )
        if totals != known:
            self._usage = totals
            self._send_own(totals)

    @contextmanager
    def tool(self, name: str, args: object = None, kind: str = "function") -> Iterator[ToolUse]:
        """Show a tool while the block runs; it ends `ok`, `error` or `cancelled` as the block does.

        Raises `Cancelled` if the run was cancelled before the tool was entered.
        """
        used = self.begin_tool(name, args, kind=kind)
        outer = _current_tool.get()
        _current_tool.set((self.run_id, used.id))
        try:
            yield used
        except Exception as error:
            used.finish(_line(error), status="error")
            raise
        except BaseException:  # CancelledError, Cancelled, SystemExit: noted, and raised again
            used.finish(status="cancelled" if self.token.cancelled else "error")
            raise
        finally:
            _current_tool.set(outer)  # not reset(): an async generator may end in another context
        used.finish()

    def begin_tool(self, name: str, args: object = None, *, id: str | None = None, kind: str = "function") -> ToolUse:
        """Show a tool until `finish()` of what this returns is called, for a framework that reports start and end.

        Raises `Cancelled` if the run was cancelled before.

        Parameters
        ----------
        id : the framework's id of the call, unique in the run; None: a new one. If a tool with this id is running, that
            one is returned.
        """
        self.token.raise_if_cancelled()
        if id is not None and type(id) is not str:
            raise TypeError(f"id must be a str, not {type_name(id)}")
        known = plain(args)  # not guarded: it runs the agent's code
        with guarded(), self._lock:
            if self._running is None:
                self._running = {}
            tool_id = clean_text(id) if id else self._new_tool_id()
            if (used := self._running.get(tool_id)) is None:
                used = self._running[tool_id] = ToolUse(self, tool_id, name, self._running, self._lock)
                self.send(ev.ToolStarted(tool_id, clean_text(name), kind, known))
        return used

    def _new_tool_id(self) -> str:
        with self._lock:
            self._tools += 1
            return f"tool-{self._tools}"

    def sleep(self, seconds: float) -> None:
        """Sleep in a sync agent; wakes at once and raises `Cancelled` when the run is cancelled."""
        if self.token.wait_sync(seconds):
            self.token.raise_if_cancelled()

    async def in_thread(self, function: Callable[..., T], /, *args: object, **kwargs: object) -> T:
        """Call a sync function in a thread of its own, and return what it returns.

        `nbrun.current()`, prints and the token work there. A cancel of the run raises `Cancelled` in it after the
        grace period; a cancel of this wait alone, such as a timeout, at once. If it does not stop, the log names it.
        Raises `Cancelled` without a call if the run was cancelled before, and `NbrunError` if it has ended.
        """
        self.token.raise_if_cancelled()
        self._host()
        name = clean_text(str(getattr(function, "__name__", type(function).__name__)))
        call = partial(function, *args, **kwargs)
        thread = Worker(self.run_id, call, copy_context(), name=name)
        self.add_work(thread)
        try:
            return await thread.result()
        except asyncio.CancelledError:
            if not self.token.cancelled:  # else the escalation waits for the grace period first
                thread.interrupt()
            raise
        finally:
            if not thread.is_alive():
                self.drop_work(thread)

    async def step(self, function: Callable[..., Any], /, *args: object, **kwargs: object) -> Any:
        """Call a function that must not be called twice, and return its result; a sync one in a thread of its own.

        The result is kept in the run's journal. A run that resumes this one, or that retries it with `reuse=True`, gets
        it without a call where it makes the same one: the same function, by its name, with the same arguments. If this
        run ends during the call, the user is asked before another run makes it again. One that raises is made again.

        Secrets in the result are replaced in the journal. Raises `BadOption` if the arguments or the result are more
        than data, `NbrunError` if the user denies another call, and what the function raises.
        """
        step = self._step(function, args, kwargs)
        if step.is_open and not await self.ask(step.question, editable=False):
            raise step.refused()
        with self.tool(step.name, step.given, kind=step.kind) as use:
            if step.is_known:
                use.result = step.known()
            else:
                call: Callable[..., Any] = function if is_async(function) else partial(self.in_thread, function)
                with step.calling() as hand_over:
                    use.result = hand_over(await call(*args, **kwargs))
        return revived(use.result)

    def step_sync(self, function: Callable[..., Any], /, *args: object, **kwargs: object) -> Any:
        """Do the same in a sync agent."""
        if is_async(function):
            raise NbrunError("run.step_sync() calls sync functions; in an async agent, use `await run.step(…)`")
        step = self._step(function, args, kwargs)
        if step.is_open and not self.ask_sync(step.question, editable=False):
            raise step.refused()
        with self.tool(step.name, step.given, kind=step.kind) as use:
            if step.is_known:
                use.result = step.known()
            else:
                with step.calling() as hand_over:
                    use.result = hand_over(function(*args, **kwargs))
        return revived(use.result)

    def _step(self, function: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, object]) -> StepCall:
        return StepCall(self.journal, self.clock, partial(self.log, level="warning"), function, args, kwargs)

    def ask(
        self,
        message: str,
        *,
        args: object = None,
        options: Sequence[str] = (),
        tool_id: str | None = None,
        timeout_s: float | None = None,
        tool: str = "",
        editable: bool = True,
    ) -> Question:
        """Ask the user, and wait: `answer = await run.ask("Delete it?")`; in a sync agent use `ask_sync()`.

        Several questions may be open at once. `--approve auto` and `--approve deny` answer at once.
        Raises `Cancelled` or `asyncio.CancelledError` if the run is cancelled, before or while it waits.

        Parameters
        ----------
        args : what is to be allowed; the user may edit it if it is `editable`. Use the ones in the answer: they are
            what the user saw, also if the object that you gave has changed since.
        tool : the name of the tool in question; the user may allow it for the rest of the run.
        options : the choices, instead of allow; `--approve auto` takes the first.
        tool_id : the tool call in question.
        timeout_s : seconds after which the answer is `deny`.
        """
        approvals = self._approvals
        ask = Ask(message, args, options, tool_id, timeout_s, tool, editable)
        return Question(approvals, ASK, partial(approvals.ask, ask))

    def ask_sync(
        self,
        message: str,
        *,
        args: object = None,
        options: Sequence[str] = (),
        tool_id: str | None = None,
        timeout_s: float | None = None,
        tool: str = "",
        editable: bool = True,
    ) -> Answer:
        """Ask the user, and wait, in a sync agent; otherwise the same as `ask()`.

        Raises `Cancelled` if the run is cancelled, before or while it waits, and `NbrunError` on an event loop, which
        it would block.
        """
        ask = Ask(message, args, options, tool_id, timeout_s, tool, editable)
        return self._approvals.ask_sync(ask)

    def read_line(self, prompt: str, *, is_secret: bool = False) -> Answer:
        """Ask the user for a line of text, and wait; this is what `input()` and `getpass()` do in a sync agent.

        The answer's `text` is the line. One that `is_secret` is not stored, and replaced wherever the run shows it.
        """
        message = prompt.strip() or ("Password:" if is_secret else "The agent waits for a line of input")
        return self._approvals.ask_sync(Ask(message, editable=False, input=SECRET if is_secret else TEXT))

    def approve_tool(
        self,
        name: str,
        args: object = None,
        *,
        message: str | None = None,
        timeout_s: float | None = None,
        editable: bool = True,
    ) -> Question:
        """Ask whether a tool may be used, and wait; if not, it is listed among the tools as `denied`."""
        approvals = self._approvals
        ask = Ask(message or f"Use {name}?", args, (), None, timeout_s, name, editable)
        return Question(approvals, "run.approve_tool", partial(self._approve_tool, approvals, ask))

    async def _approve_tool(self, approvals: Approvals, ask: Ask) -> Answer:
        answer = await approvals.ask(ask)
        if not answer:
            with guarded():
                tool_id = self._new_tool_id()
                name = clean_text(str(ask.tool))
                self.send(ev.ToolStarted(tool_id, name, "function", plain(answer.args)))
                self.send(ev.ToolFinished(tool_id, "denied", answer.text or None))
        return answer

    def checkpoint(self, state: object) -> None:
        """Save a state to resume from, anything JSON-like or `bytes`; it replaces the previous one.

        If the run fails, is cancelled or lost, `run.resume()` starts a new run that finds it in `restored`.
        It is stored after everything that the run has sent before. Secrets in it are replaced, as everywhere. Tuples
        come back as lists, keys as text, other objects as their `repr`, and the card says so.
        """
        blob = checkpoints.pack(state)  # not guarded: it runs code of the state's, for any time
        lost = sorted(set(checkpoints.stand_ins(checkpoints.unpack(blob))))
        with guarded(), self._lock:
            self._checkpoints += 1
            name = f"checkpoint-{self._checkpoints}"
        if len(blob) > checkpoints.MAX_BYTES:
            size = size_words(len(blob))
            self.log(f"a checkpoint of {size} is too large; the previous one is kept", "warning")
            return
        if lost:
            what = ", ".join(lost)
            self.log(f"a checkpoint keeps only the repr of what is not data: {what}", "warning")
        self.send(ev.Checkpoint(name, len(blob), blob))

    def start_child(self, agent: object, prompt: str = "", **options: Any) -> ChildRun:
        """Start a child run with the options of `nbrun.start()`; it has its own log, and is cancelled with this run.

        A run ends after its children: it waits for them when it returns, and cancels them when it fails. A child
        that fails or is cancelled does not affect this run, unless it is awaited: then it raises here what
        `run.result()` raises. If this run was cancelled, nothing is started and `Cancelled` raised; if it has ended,
        or its host can't start child runs, `NbrunError`.
        """
        self.token.raise_if_cancelled()
        return self._host().start_child(agent, prompt, options)
