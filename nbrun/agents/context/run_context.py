"""What an agent sees of its run."""

from __future__ import annotations

import asyncio
import math
import os.path
import threading
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nbrun.agents.context.approvals import ASK, Asking
from nbrun.core import checkpoint as checkpoints, events as ev
from nbrun.core.errors import NbrunError
from nbrun.core.interrupt_guard import current_guard, guarded
from nbrun.core.line_buffer import LineBuffer
from nbrun.core.quantities import size_words
from nbrun.core.text import clean_text
from nbrun.core.values import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nbrun.agents.context.approvals import Answer
    from nbrun.agents.context.backend import Backend, ChildRun, Work
    from nbrun.agents.context.budget import Budget
    from nbrun.agents.context.inbox import Inbox
    from nbrun.core.cancellation import CancelToken
    from nbrun.core.checkpoint import Restored, State, Turn
    from nbrun.core.clock import Clock


class ToolScope:
    """One use of a tool: set `result` before its end.

    Threads: of the thread or task that opened it.
    """

    def __init__(self, send: Callable[[ev.EventData], object], tool_id: str, name: str) -> None:
        self.id = tool_id
        self.name = name
        self.result: object = None
        self._send = send

    def progress(self, done: float, total: float | None = None, label: str = "") -> None:
        """Tell how far the tool has come."""
        self._send(ev.ToolProgress(self.id, done, total, label))


T = TypeVar("T")

_NO_USAGE = ev.Usage()


current_run: ContextVar[RunContext | None] = ContextVar("nbrun_current", default=None)


def current() -> RunContext:
    """Return the context of the run that this code belongs to.

    Raises
    ------
    NbrunError
        This code does not run inside an agent.
    """
    run = current_run.get()
    if run is None:
        raise NbrunError("nbrun.current() works only inside the agent of a run")
    return run


class RunContext:
    """What an agent sees of its run: its token, and how to tell what it does.

    Threads: any method, from any thread or task of the run; events keep the order in which they are sent
    by one thread.
    """

    __slots__ = (
        "__weakref__",
        "_artifacts",
        "_backend",
        "_checkpoints",
        "_lock",
        "_requests",
        "_restored",
        "_tools",
        "_unfinished",
        "_usage",
        "clock",
        "prompt",
        "run_id",
        "token",
        "work",
    )

    def __init__(
        self,
        run_id: str,
        prompt: str,
        token: CancelToken,
        clock: Clock,
        backend: Backend,
        restored: Restored | None = None,
    ) -> None:
        self.run_id = run_id
        self.prompt = prompt
        self.token = token
        self.clock = clock
        self._backend = backend
        self._lock = threading.RLock()  # entered again where a collected object prints
        self._restored = restored
        self._usage = _NO_USAGE if restored is None else restored.usage
        self._requests = self._usage.requests  # as reported; those begun are the budget's
        self._tools = 0 if restored is None else restored.tools
        self._checkpoints = 0
        self._artifacts = 0
        self._unfinished: LineBuffer | None = None  # with the first print
        self.work: tuple[Work, ...] = ()  # replaced, never changed: the cancel ladder walks it

    def leave(self, backend: Backend) -> None:
        """Stand on another backend from now on: the run is over."""
        with self._lock:
            self._backend, self.work = backend, ()

    @property
    def deadline(self) -> float | None:
        """When the run will be cancelled for its time limit, in epoch seconds (UTC), or None."""
        return self.token.deadline

    @property
    def restored(self) -> State:
        """The state to go on from, as `checkpoint()` was given it last; None in a run that begins anew."""
        state = None if self._restored is None else self._restored.state
        return None if state is None else checkpoints.unpack(state)

    @property
    def history(self) -> tuple[Turn, ...]:
        """What was said in the runs that this one continues, oldest first; each `Turn` has `role` and `text`."""
        return () if self._restored is None else self._restored.history

    def add_work(self, work: Work) -> None:
        """Let a cancel of the run reach a thread that is started for it."""
        with guarded(), self._lock:
            self.work = (*self.work, work)

    def drop_work(self, ended: Work) -> None:
        """Forget a thread that has ended."""
        with guarded(), self._lock:
            self.work = tuple(work for work in self.work if work is not ended)

    @property
    def inbox(self) -> Inbox:
        """The messages into the running agent: `take()` them at a safe point, or `await run.inbox.get()` one."""
        inbox = self._backend.inbox
        inbox.note_reader()
        return inbox

    @property
    def budget(self) -> Budget:
        """What the run may use up; what its child runs use counts in it, too."""
        return self._backend.budget

    def send(self, data: ev.EventData, parent: str | None = None) -> None:
        """Append an event to the run's log."""
        # As guarded() does, which on this hot path would cost as much as the rest.
        guard = current_guard.get()
        if guard is None:
            self._backend.emit(data, parent)
        else:
            guard.enter()
            try:
                self._backend.emit(data, parent)
            finally:
                guard.leave()

    def text(self, delta: str) -> None:
        """Add to the answer."""
        if delta:
            self.send(ev.TextDelta(clean_text(delta)))

    def reasoning(self, delta: str) -> None:
        """Add to the reasoning."""
        if delta:
            self.send(ev.ReasoningDelta(clean_text(delta)))

    def phase(self, name: str) -> None:
        """Say what the agent is doing now, in a word or two."""
        self.send(ev.RunPhase(clean_text(name)))

    def progress(self, done: float, total: float | None = None, label: str = "") -> None:
        """Say how far the run has come: `done` of `total`, in any unit."""
        self.send(
            ev.Progress(float(done), None if total is None else float(total), clean_text(label))
        )

    def log(self, text: str, level: str = "info") -> None:
        """Write to the run's log; level `warning` is also shown on the card."""
        self.send(ev.Log(clean_text(text), level))

    def write(self, text: str, level: str = "stdout") -> None:
        """Take printed text; whole lines go to the log, the rest waits for its end."""
        with guarded(), self._lock:
            if self._unfinished is None:
                self._unfinished = LineBuffer()
            lines = self._unfinished.add(text, level)
        if lines is not None:
            self.log(lines, level)

    def flush_lines(self) -> None:
        """Log what was printed without a line's end."""
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
        """Keep a file with the run: `run.artifacts` of its handle lists it. Return whether it is kept.

        Where it cannot be, the card says why and the agent goes on. It is on disk when this returns; from an async
        agent, a large one is kept by `await run.in_thread(run.artifact, name, data)`.

        Parameters
        ----------
        data : bytes; a text, in which secrets are replaced; or a `pathlib.Path` of a file, which is copied.
        media_type : such as `image/png`; None: by the name's ending.
        """
        if not isinstance(data, bytes | str | Path):
            raise TypeError(f"an artifact is bytes, a str or a Path, not {type(data).__name__}")
        with guarded(), self._lock:
            self._artifacts += 1
            number = self._artifacts
        try:
            made = self._backend.keeper.keep(f"{ev.FILE_ID}{number}", str(name), data, media_type)
        except (NbrunError, OSError) as error:
            self.log(f"the artifact '{name}' is not kept: {error}", "warning")
            return False
        self.send(made)
        if isinstance(data, str) and os.path.isfile(data):
            words = f"the artifact '{name}' holds this path itself: {data}; pathlib.Path(…) copies the file"
            self.log(words, "warning")
        return True

    def begin_turn(self) -> None:
        """Say that the agent is about to call a model: counts the call, and stops where no budget is left for it.

        To be called before each call, so that `max_turns=N` lets N calls be made and no more. What a call
        has used is told afterwards, by `usage()`; a request told of there is not counted again.

        Raises
        ------
        Cancelled
            The call must not be made: the run is over budget now, or was cancelled before.
        """
        with guarded():
            self.budget.begin_turn()
            self.usage()  # so that a budget above hears of the call, too, from wherever it is made

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
        """Add to the run's usage; what is over budget by it is cancelled.

        Raises
        ------
        ValueError
            A number is below zero, or none.
        """
        # int() and float() first, for they are code of the agent's: what counts tokens may be a number of numpy's.
        added = int(input_tokens), int(output_tokens), int(requests)
        details = int(cache_read_tokens), int(reasoning_tokens)
        cost_added = None if cost_usd is None else float(cost_usd)
        if min(*added, *details, cost_added or 0.0) < 0 or not math.isfinite(cost_added or 0.0):
            raise ValueError("usage is what was used more, in finite numbers from 0 on")
        with guarded(), self._lock:
            known = self._usage
            self._requests += added[2]
            cost = known.cost_usd if cost_added is None else (known.cost_usd or 0.0) + cost_added
            totals = ev.Usage(
                input_tokens=known.input_tokens + added[0],
                output_tokens=known.output_tokens + added[1],
                cache_read_tokens=known.cache_read_tokens + details[0],
                reasoning_tokens=known.reasoning_tokens + details[1],
                requests=max(self._requests, self.budget.begun),
                cost_usd=cost,
                exact=known.exact,
            )
            if totals != known:
                self._usage = totals
                self.send(totals)  # under the lock: totals must not be overtaken by older ones

    @contextmanager
    def tool(self, name: str, args: object = None, kind: str = "function") -> Iterator[ToolScope]:
        """Show a tool while the block runs; it ends `ok`, `error` or `cancelled` as the block does.

        Raises
        ------
        Cancelled
            The run was cancelled before the tool was entered.
        """
        self.token.raise_if_cancelled()
        with guarded():
            scope = ToolScope(self.send, self._new_tool_id(), name)
        began = self.clock.monotonic()
        self.send(ev.ToolStarted(scope.id, clean_text(name), kind, plain(args)))

        def finish(status: str, result: object) -> None:
            ms = (self.clock.monotonic() - began) * 1000
            self.send(ev.ToolFinished(scope.id, status, plain(result), round(ms, 3)))

        try:
            yield scope
        except Exception as error:
            finish("error", f"{type(error).__name__}: {error}")
            raise
        except BaseException:  # CancelledError, Cancelled, SystemExit: noted, and raised again
            finish("cancelled" if self.token.cancelled else "error", scope.result)
            raise
        finish("ok", scope.result)

    def _new_tool_id(self) -> str:
        with self._lock:
            self._tools += 1
            return f"tool-{self._tools}"

    def sleep(self, seconds: float) -> None:
        """Sleep in a sync agent; wakes at once when the run is cancelled.

        Raises
        ------
        Cancelled
            The run was cancelled.
        """
        if self.token.wait_sync(seconds):
            self.token.raise_if_cancelled()

    async def in_thread(self, function: Callable[..., T], /, *args: object, **kwargs: object) -> T:
        """Call a sync function in a thread of its own, and return what it returns.

        `nbrun.current()`, prints and the token work there. A cancel of the run raises `Cancelled` in it after
        the grace; one of this wait alone, by a time limit around it, at once. What does not stop is named.

        Raises
        ------
        Cancelled
            The run was cancelled before: the function was not called.
        """
        self.token.raise_if_cancelled()
        name = clean_text(str(getattr(function, "__name__", type(function).__name__)))
        call = partial(function, *args, **kwargs)
        thread = self._backend.make_thread(self.run_id, call, copy_context(), name=name)
        self.add_work(thread)
        try:
            return await thread.result()
        except asyncio.CancelledError:
            if not self.token.cancelled:  # else the ladder gives it its grace first
                thread.interrupt()
            raise
        finally:
            if not thread.is_alive():
                self.drop_work(thread)

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
    ) -> Asking:
        """Ask a person, and wait: `answer = await run.ask("Delete it?")`; in a sync agent use `ask_sync()`.

        Several questions may be asked at once. `--approve auto` allows at once, `--approve deny` refuses at once.

        Parameters
        ----------
        args : what is to be allowed; the person may change it, and the answer has what counts.
        editable : False where it can only be allowed as it is.
        tool : the name of the tool that it is about; a person may allow it for the rest of the run, and then is
            asked for it no more.
        options : the words to choose from, instead of allow; the first is what `--approve auto` takes.
        tool_id : the tool call that it is about.
        timeout_s : seconds after which the answer is `deny`.

        Raises
        ------
        Cancelled, asyncio.CancelledError
            The run was cancelled, before or while it waited.
        """
        questions = self._backend.questions
        work = partial(questions.ask, message, args, options, tool_id, timeout_s, tool, editable)
        return Asking(questions, ASK, work)

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
        """Ask a person, and wait, in a sync agent; the same as `ask()`.

        Raises
        ------
        Cancelled
            The run was cancelled, before or while it waited.
        NbrunError
            Called on an event loop, where it would hold up everything.
        """
        return self._backend.questions.ask_sync(
            message, args, options, tool_id, timeout_s, tool, editable
        )

    def approve_tool(
        self,
        name: str,
        args: object = None,
        *,
        message: str | None = None,
        timeout_s: float | None = None,
        editable: bool = True,
    ) -> Asking:
        """Ask whether a tool may be used, and wait; one that may not stands among the tools as `denied`."""
        words = message or f"Use {name}?"
        work = partial(self._approve_tool, name, args, words, timeout_s, editable)
        return Asking(self._backend.questions, "run.approve_tool", work)

    async def _approve_tool(
        self, name: str, args: object, message: str, timeout_s: float | None, editable: bool
    ) -> Answer:
        answer = await self.ask(
            message, args=args, timeout_s=timeout_s, tool=name, editable=editable
        )
        if not answer:
            with guarded():
                tool_id = self._new_tool_id()
                self.send(ev.ToolStarted(tool_id, clean_text(name), "function", plain(answer.args)))
                self.send(ev.ToolFinished(tool_id, "denied", answer.text or None))
        return answer

    def checkpoint(self, state: object) -> None:
        """Keep a state to go on from, in the place of the one before.

        Should the run fail, be cancelled or lost, `run.resume()` starts a new one that finds it in `restored`.
        It is stored after everything that the run has said before. Secrets in it are replaced, as everywhere.

        Parameters
        ----------
        state : anything JSON-like, or `bytes`; tuples come back as lists, keys as text. What has no such form
            comes back as its `repr`, and the card says so.
        """
        with guarded():
            blob = checkpoints.pack(state)
            lost = sorted(set(checkpoints.stand_ins(checkpoints.unpack(blob))))
            with self._lock:
                self._checkpoints += 1
                name = f"checkpoint-{self._checkpoints}"
        if len(blob) > checkpoints.MAX_BYTES:
            size = size_words(len(blob))
            self.log(f"a checkpoint of {size} is too large; the one before it stays", "warning")
            return
        if lost:
            what = ", ".join(lost)
            self.log(f"a checkpoint holds what is no data ({what}): its repr is kept", "warning")
        self.send(ev.Checkpoint(name, len(blob), blob))

    def start_child(self, agent: object, prompt: str = "", **options: Any) -> ChildRun:
        """Start a run below this one: with a log of its own, and cancelled when this one is.

        This run ends after its children: one that has returned waits for them, one that has failed cancels
        them. A child that is cancelled, or fails, leaves this run alone, unless it is awaited: then it raises
        here what `run.result()` raises.

        Parameters
        ----------
        options : those of `nbrun.start()`.

        Raises
        ------
        Cancelled
            This run was cancelled: nothing was started.
        NbrunError
            This run has ended, or it is on a host that starts no child runs.
        """
        self.token.raise_if_cancelled()
        return self._backend.start_child(agent, prompt, options)
