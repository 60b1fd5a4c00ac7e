"""Drives one attempt: enters the agent, sends its events in order, and sends exactly one end event."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.agents import (
    AgentAdapter,
    Approvals,
    Budget,
    ChildRun,
    Inbox,
    Output,
    Resuming,
    RunContext,
    Worker,
    current_run,
    find_adapter,
)
from nbrun.core import (
    ArtifactWriter,
    CancelCause,
    Cancelled,
    Clock,
    InterruptGuard,
    LoopLatch,
    NbrunError,
    Plain,
    Rung,
    Stepped,
    clean_text,
    current_guard,
    events as ev,
    guarded,
    is_on_loop,
    separator,
    sized,
)
from nbrun.core.text import split_half
from nbrun.host import capture, packages
from nbrun.host.attempt import Attempt, HostEvent, Sink
from nbrun.host.belongings import Belongings
from nbrun.host.escalation import LAST_S, Escalation
from nbrun.host.failures import describe, safely

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nbrun.host.loops import LoopThread

_STREAMED = (ev.TextDelta, ev.ReasoningDelta, ev.ToolArgsDelta)
_Streamed = ev.TextDelta | ev.ReasoningDelta | ev.ToolArgsDelta

PAUSE_S = 0.05
"""How long an agent is paused at a time while it yields faster than the store can save."""
FORMAT_LIMIT_S = 5.0
"""How long an output's own code may take to render it; after that the run ends without its rendering."""
IMPORT_LIMITS = 12
"""How often that time begins again while its code imports a package, as plotly's does when it shows a figure."""
PICKLE_LIMIT_S = 60.0
"""The same if the object itself is kept too, which may be large."""

_NOT_FOR_AGENTS = ev.END_TYPES | ev.INTERACTION_TYPES | {ev.RunCreated.TYPE, ev.CancelRequested.TYPE}
"""Events that only the host or the session may send."""


class Driver:
    """Drives one attempt.

    Threads: `emit()` and `start_child()` from any thread of the agent; `report()`, `warn()` and
    `stop_from_outside()` from any thread; everything else on the loop. `_lock` guards the numbers and the
    end: after the end, only `detached.finished` is sent. The lock is reentrant, because a garbage collection
    anywhere may call an agent's `__del__`, and that may print; `_outbox` then keeps the numbers in order. Apart
    from that, no code of the agent is called under the lock.
    """

    __slots__ = (
        "__weakref__", "_adapter", "_approvals", "_attempt", "_belongings", "_budget", "_children", "_clock",
        "_detached", "_escalation", "_finished", "_fired_at", "_guard", "_halves", "_host_name", "_inbox",
        "_is_between", "_is_driving", "_is_ended", "_is_entered", "_is_sending", "_lock", "_must_pause", "_n",
        "_open_tools", "_outbox", "_refused", "_returned_at", "_sink", "_stop_until", "_texts", "_thread", "_token",
        "_usage", "_usage_before", "run", "task",
    )  # fmt: skip

    def __init__(self, attempt: Attempt, thread: LoopThread, sink: Sink, clock: Clock, host_name: str) -> None:
        self._attempt = attempt
        self._thread = thread
        self._sink = sink
        self._clock = clock
        self._host_name = host_name
        self._token = token = attempt.token
        self._adapter = self._find_adapter()
        self._guard = InterruptGuard(threading.get_ident())  # drivers are made on their loop
        self._lock = threading.RLock()
        self.run = RunContext(attempt.run_id, attempt.prompt, token, clock, self, attempt.restored)
        self._belongings = Belongings(self.run)
        self.task: asyncio.Task[None] | None = None
        restored = attempt.restored
        self._usage = self._usage_before = None if restored is None else restored.usage
        # Most runs use none of these, and there may be thousands of runs: each is made when it is first used.
        self._budget = attempt.budget
        self._approvals: Approvals | None = None
        self._inbox: Inbox | None = None
        self._children: Children | None = None
        self._escalation: Escalation | None = None
        # What is sent.
        self._n = 0
        self._outbox: tuple[tuple[ev.EventData, float, str | None, object, int], ...] = ()
        self._is_sending = self._must_pause = False
        self._texts: list[str] = []
        self._halves: dict[tuple[type, str], str] = {}  # of surrogate pairs, by stream
        self._is_between = False  # messages: the last is complete
        self._open_tools: dict[str, float] = {}
        # The state of the attempt.
        self._is_entered = self._is_driving = self._is_ended = False
        self._finished = LoopLatch()
        self._fired_at = 0.0
        self._returned_at: float | None = None
        self._stop_until: float | None = None  # of the watchdog's thread
        self._detached: tuple[str, ...] = ()
        self._refused = 0

    def _find_adapter(self) -> AgentAdapter:
        """Return what drives the agent, on the loop and thread that it is to be driven on."""
        attempt = self._attempt
        if attempt.loop is None and not attempt.options.thread:
            return find_adapter(attempt.agent)
        from nbrun.host import offload  # few runs need it

        if attempt.loop is not None:
            return offload.on_loop(attempt.agent, attempt.loop, self._hold)
        return offload.ThreadedAdapter(attempt.agent, attempt.grace_s, self._hold)

    def emit(self, data: ev.EventData, parent: str | None = None) -> None:
        """Send an event of the agent; refused and counted when the attempt has ended.

        A thread that sends faster than the store can save is held up here, after the lock is released.
        """
        now = self._now()
        usage: ev.Usage | None = None
        _check_event(data, parent)
        with self._lock:
            if self._is_ended:
                self._refused += 1
                return
            if isinstance(data, _STREAMED) and (self._halves or not data.text.isascii()):
                data = self._whole(data)
                if not data.text:
                    return
            if isinstance(data, ev.TextDelta):
                if self._is_between and data.text:
                    self._texts.append(separator(self._texts, data.text))
                    self._is_between = False
                self._texts.append(data.text)
            elif isinstance(data, ev.ToolStarted):
                self._open_tools[data.id] = now
            elif isinstance(data, ev.ToolFinished):
                self._open_tools.pop(data.id, None)
            elif isinstance(data, ev.Usage):
                self._usage = usage = data
            elif isinstance(data, ev.Message):
                self._is_between = True
            self._send(data, now, parent)
        if usage is not None and (self._budget is not None or self._attempt.options.has_limits):
            self.budget.note_usage(usage)  # not under the lock: a fired token calls others' code
        if self._must_pause and not is_on_loop():
            # Also after a cancel, when the token no longer waits: the run's end is stored after all that it sends.
            wait = time.sleep if self._token.cancelled else self._token.wait_sync
            wait(PAUSE_S)

    def _whole(self, data: _Streamed) -> _Streamed:
        """Return a delta as UTF-8 can hold it; half of a surrogate pair waits for the next one of its stream."""
        stream = type(data), data.id if isinstance(data, ev.ToolArgsDelta) else ""
        text, half = split_half(self._halves.pop(stream, "") + data.text)
        if half:
            self._halves[stream] = half
        return msgspec.structs.replace(data, text=clean_text(text))

    def _now(self) -> float:
        """Return the time; from the agent's return to the end that moment, since showing its output isn't its time."""
        return self._clock.now() if self._returned_at is None or self._is_ended else self._returned_at

    def report(self, data: ev.EventData) -> None:
        """Send an event of the host's own, if the run has not ended."""
        with self._lock:
            if not self._is_ended:
                self._send(data, self._now())

    def warn(self, text: str) -> None:
        """Show a warning on the run's card."""
        self.report(ev.Log(text, "warning"))

    # --- what the agent's context uses -----------------------------------------------------------

    def start_child(self, agent: object, prompt: str, options: dict[str, Any]) -> ChildRun:
        """Start a child run, and keep track of it."""
        start = self._attempt.start_child
        if start is None:
            raise NbrunError("a run with on='process' can't start child runs; leave it out")
        with guarded():  # a child that has started is tracked, even if a cancel comes in between
            if self._is_ended:
                raise NbrunError("this run has ended")
            child = start(agent, prompt, options)
            self.children.add(child)
        return child

    @property
    def children(self) -> Children:
        """The child runs."""
        with guarded(), self._lock:
            if self._children is None:
                self._children = Children(self._thread, self.report)
            return self._children

    @property
    def budget(self) -> Budget:
        """The run's limits, and what it has used of them."""
        with guarded(), self._lock:
            if self._budget is None:
                limits, before = self._attempt.options, self._usage_before
                self._budget = Budget(limits, self._token, self.warn, before=before)
            return self._budget

    @property
    def approvals(self) -> Approvals:
        """The run's questions to the user."""
        with guarded(), self._lock:
            if self._approvals is None:
                self._approvals = Approvals(self._token, self.report, self._lock, self._clock, self._attempt.approve)
                if self._is_ended:
                    self._approvals.close()
            return self._approvals

    @property
    def inbox(self) -> Inbox:
        """The messages to the agent."""
        with guarded(), self._lock:
            if self._inbox is None:
                self._inbox = Inbox(self._token, self.report, self._lock)
            return self._inbox

    @property
    def artifact_writer(self) -> ArtifactWriter:
        """Writes files beside the run's log."""
        if self._attempt.artifact_writer is None:
            raise NbrunError("this run has no folder for files")
        return self._attempt.artifact_writer

    def control(self, op: str, body: dict[str, object]) -> str:
        """Carry out a request of the session; return its outcome."""
        match op:
            case "answer":
                return self.approvals.answer(body)
            case "steer":
                return self.inbox.put(body)
            case _:
                return "unknown_op"

    def _send(
        self, data: ev.EventData, now: float, parent: str | None = None, live: object = None, size: int = 0
    ) -> None:
        """Hand an event over; the caller holds the lock."""
        if self._is_sending:  # entered again from within: the outer call sends it, after its own
            self._outbox = (*self._outbox, (data, now, parent, live, size))
            return
        self._is_sending = True
        attempt = self._attempt
        try:
            while True:
                event = HostEvent(attempt.run_id, attempt.number, self._n, now, data, parent, live, size)
                self._n += 1
                self._must_pause = self._sink((event,))
                if not self._outbox:
                    break
                (data, now, parent, live, size), *rest = self._outbox
                self._outbox = tuple(rest)
        finally:
            self._is_sending = False

    async def main(self) -> None:
        """Drive the agent to its end, whatever it raises."""
        current_run.set(self.run)
        current_guard.set(self._guard)
        cancel = self._token.add_first(self._note_cancel)
        timer = self._start_timer()
        output: object = None
        error: BaseException | None = None
        try:
            # A cancel between "created" and "started" ends here: the agent is never entered.
            if not self._token.cancelled:
                self._is_entered = self._is_driving = True
                capture.watch(self.run)
                self.emit(ev.RunStarted(self._host_name))
                output = await self._drive()
        except BaseException as raised:  # the one place: an agent's SystemExit fails its own run only
            error = raised
        finally:
            self._is_driving = False
        left: tuple[str, ...] = ()
        try:
            left = await self._rest_ended(error)
            self._returned_at = self._clock.now()
            if timer is not None:
                timer.cancel()
            if packages.has_figures(self.run):
                await self._keep_figures()
            if error is None and not self._token.cancelled:
                await self._keep_output(output)
        finally:
            cancel.remove()
            if timer is not None:
                timer.cancel()
            self._end(output, error, left)
        if left:
            self._thread.spawn(self._detached_ended(), f"nbrun-detached-{self._attempt.run_id}")
        else:
            self._leave()
        try:
            if isinstance(error, asyncio.CancelledError):
                raise error  # recorded above; the task itself must still end as cancelled
        finally:
            error = None  # its traceback refers to this frame; see `Steps.throw()`

    async def _drive(self) -> object:
        """Send what the agent yields, with the guard open while its own code runs; return its output."""
        returned: Output | None = None
        guard, events = self._guard, self._events()
        try:
            while True:
                try:
                    item = await Stepped(anext(events), guard, self._hold)
                except StopAsyncIteration:
                    return None if returned is None else returned.value
                if isinstance(item, Output):
                    returned = item
                    continue
                self.emit(item)
                if self._must_pause:  # never a blocking wait here: other runs are on this loop
                    await asyncio.sleep(PAUSE_S)
        finally:  # as aclosing() does, with two objects less for each run
            await events.aclose()  # type: ignore[attr-defined]  # adapters are async generators

    def _events(self) -> AsyncIterator[ev.EventData | Output]:
        """Return the agent's events: from its beginning, or from a saved state if its adapter can resume one."""
        attempt, adapter = self._attempt, self._adapter
        has_state = attempt.restored is not None and attempt.restored.state is not None
        if has_state and isinstance(adapter, Resuming):
            return adapter.resume(attempt.agent, self.run.restored, self.run)
        return adapter.events(attempt.agent, attempt.prompt, self.run)

    def _hold(self) -> float:
        """Return how long the agent must wait for the store to catch up."""
        return PAUSE_S if self._must_pause else 0.0

    async def _rest_ended(self, error: BaseException | None) -> tuple[str, ...]:
        """Return when all that the agent has started has ended, then its child runs, whose ends come before this one's.

        What does not end in time is left, and its names returned; in a cancelled run the escalation decides that.
        """
        left: tuple[str, ...] = ()
        rest = self._belongings
        if self._token.cancelled:
            self._escalate().stop_rest()
            await rest.ended()
        elif error is not None:
            self.children.cancel()
            left = await self._escalate().end_rest()
        elif rest.is_running:
            left = await self._escalate().let_rest_end()
        if (error is not None or self._token.cancelled) and (names := rest.library_names()):
            self.report(ev.Log(f"started by a library, and not cancelled: {', '.join(names)}"))
        self._finished.set()
        if self._escalation is not None:
            self._escalation.end()
        if self._children is not None:
            await self._children.ended()
        return left

    async def _detached_ended(self) -> None:
        """Report when what an ended run has left running has ended."""
        await self._belongings.ended()
        self._end(None, None)
        self._leave()

    # --- the end ---------------------------------------------------------------------------------

    async def _keep_output(self, output: object) -> None:
        """Keep the output's rendering, and the object if asked to; in a thread, as this runs the output's own code.

        It must not harm the run: its errors become warnings, it has a time limit, and a cancel doesn't wait for it.
        """
        attempt = self._attempt
        artifact_writer, keep_object = attempt.artifact_writer, attempt.options.keep_object
        if artifact_writer is None:
            if keep_object:
                self.warn("the output object was not kept: this run has no folder for files")
            return
        if not artifact_writer.wants(output, keep_object):
            return
        not_kept = "the output's rendering was not kept"
        keep = partial(artifact_writer.keep_output, output, keep_object)
        work = Worker(attempt.run_id, keep, copy_context(), name="output")
        limit_s = PICKLE_LIMIT_S if keep_object else FORMAT_LIMIT_S
        try:
            kept = asyncio.wrap_future(work.start())
        except RuntimeError as no_thread:
            self.warn(f"{not_kept}: {no_thread}")
            return
        hurry = self._token.add_callback(lambda _request: self._thread.call(kept.cancel))
        for _ in range(IMPORT_LIMITS):
            await asyncio.wait({kept}, timeout=limit_s)
            if kept.done() or not work.is_importing():
                break
        hurry.remove()
        if not kept.done():
            kept.cancel()
            if not work.is_importing():
                work.interrupt()
            self.warn(f"{not_kept}: it took more than {limit_s:g} s")
        elif kept.cancelled():
            if not work.is_importing():
                work.interrupt()
        elif (error := kept.exception()) is not None:  # a SystemExit, say, of its own code
            self.warn(f"{not_kept} ({describe(error)})")
        else:
            for data in kept.result():
                self.report(data)

    async def _keep_figures(self) -> None:
        """Keep the figures that pyplot has open for the run, however it ends; in a thread, as drawing takes time."""
        not_kept = "figures were not kept"
        work = Worker(self._attempt.run_id, partial(packages.keep_figures, self.run), copy_context(), name="figures")
        try:
            kept = asyncio.wrap_future(work.start())
        except RuntimeError as no_thread:
            self.warn(f"{not_kept}: {no_thread}")
            return
        await asyncio.wait({kept}, timeout=FORMAT_LIMIT_S)
        if not kept.done():
            work.interrupt()
            self.warn(f"{not_kept}: it took more than {FORMAT_LIMIT_S:g} s")
        elif (error := kept.exception()) is not None:
            self.warn(f"{not_kept} ({describe(error)})")

    def _leave(self) -> None:
        """Drop all references to this driver, so that an ended run is freed without the garbage collector."""
        with self._lock:
            self.task = self._escalation = self._children = None
            self._approvals = self._inbox = self._budget = None
        self.run.leave()

    def _end(self, output: object, error: BaseException | None, detached: tuple[str, ...] = ()) -> None:
        """Send the one end event, after the ends of open tools; if it was sent, report the end of detached work."""
        safely(self.run.flush_lines, None)
        while self._halves:
            (kind, tool_id), half = self._halves.popitem()
            escape = f"\\u{ord(half):x}"  # as `clean_text` writes one that stays alone
            self.emit(kind(tool_id, escape) if tool_id else kind(escape))
        text = "".join(self._texts)
        if output is None and text:
            output = text
        # These call the agent's code (`__repr__`, `__str__`), so they come before the lock, and an error in it
        # must not prevent the end. Streamed text is already in the log: a record that ends without an output of
        # its own uses that text.
        is_streamed = output is None or (type(output) is str and output == text)
        unreadable: Plain = "<not readable>"
        stored, size = (None, len(text)) if is_streamed else safely(lambda: sized(output), (unreadable, 0))
        is_signal = isinstance(error, Cancelled | asyncio.CancelledError)
        info: ev.ErrorInfo | None = None
        if error is not None and not (is_signal and self._token.cancelled):
            # Not for a requested cancel: a traceback takes as long as a run.
            info = describe(error, self._thread.moved_by)
        now = self._now()
        with self._lock:
            if self._is_ended:
                names = ", ".join(self._detached) or self.label
                self._send(ev.DetachedFinished(names, self._refused), now)
                return
            if self._approvals is not None:
                self._approvals.close()
            if self._inbox is not None:
                self._inbox.close()
            for tool_id, since in self._open_tools.items():
                status = "cancelled" if self._token.cancelled or error is None else "error"
                ms = round((now - since) * 1000, 3)
                self._send(ev.ToolFinished(tool_id, status, None, ms), now)
            self._is_ended = True
            self._detached = detached
            end = self._end_event(stored, info, detached, is_signal=is_signal)
            live = error if isinstance(end, ev.RunFailed) else output
            self._send(end, now, live=live, size=size)

    def _end_event(
        self, output: Plain, error: ev.ErrorInfo | None, detached: tuple[str, ...], *, is_signal: bool
    ) -> ev.EventData:
        """Return the end event, which depends on the token and on what was raised, never on the text of a result."""
        token, usage = self._token, self._usage
        if token.cancelled:
            error = None if is_signal else error
            if usage is not None and (error is not None or is_signal or detached):
                usage = msgspec.structs.replace(usage, exact=False)  # the last report is missing
            cause = token.cause or CancelCause.USER
            return ev.RunCancelled(cause, token.reason, output, error, usage, detached)
        if error is None:
            return ev.RunCompleted(output, usage, detached)
        return ev.RunFailed(error, output, usage, detached)

    # --- the cancel ------------------------------------------------------------------------------

    def _start_timer(self) -> asyncio.TimerHandle | None:
        """Have the token fire at its deadline."""
        if (timeout_s := self._attempt.options.timeout_s) is not None:
            self._token.set_deadline(self._clock.now() + timeout_s)
        if (deadline := self._token.deadline) is None:
            return None
        left_s = max(0.0, deadline - self._clock.now())
        return self._thread.loop.call_later(left_s, self._fire_deadline)

    def _fire_deadline(self) -> None:
        self._token.cancel(None, CancelCause.DEADLINE, patience_s=0.0)

    def _note_cancel(self, _request: object) -> None:
        """Begin the escalation, from whichever thread the token was fired."""
        self._fired_at = self._clock.monotonic()
        self._thread.call(self._begin_escalation)

    def _begin_escalation(self) -> None:
        if self._is_entered and not self._finished.is_set():
            self._escalate().begin(self._fired_at)

    def _escalate(self) -> Escalation:
        if self._escalation is None:
            self._escalation = Escalation(
                self._attempt, self._adapter, self.run, self._belongings, self._thread, self._finished,
                self._cancel_task, self.report, self._give_up,
            )  # fmt: skip
        return self._escalation

    def _cancel_task(self) -> bool:
        if self.task is None or not self._is_driving:
            return False
        return self.task.cancel()

    async def _give_up(self, names: tuple[str, ...]) -> None:
        """End the run and name what still runs; another event follows when that has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_S):  # they were cancelled with this one
                await self.children.ended()
        if not self._finished.is_set():  # else it has just ended by itself
            self._detach(names or (self.label,))

    def _detach(self, names: tuple[str, ...]) -> None:
        with self._lock:
            if self._is_ended:
                return
            self.report(ev.CancelEscalated(Rung.DETACHED, ", ".join(names)))
            self._end(None, None, names)

    # --- from outside the loop -------------------------------------------------------------------

    @property
    def key(self) -> tuple[str, int]:
        """The run's id, and the number of this attempt."""
        return self._attempt.run_id, self._attempt.number

    @property
    def label(self) -> str:
        """The agent's name."""
        return self._adapter.label(self._attempt.agent)

    @property
    def has_ended(self) -> bool:
        """Whether the end event was sent; what still runs was named in it."""
        return self._is_ended

    @property
    def is_on_thread(self) -> bool:
        """Whether the agent's own code runs on the loop's thread right now."""
        return self._guard.is_open

    def stop_from_outside(self) -> None:
        """Do the work of the timer and the escalation, because their loop is blocked."""
        if self._is_ended or not self._is_entered:
            return
        if not self._token.cancelled:
            deadline = self._token.deadline
            if deadline is not None and self._clock.now() >= deadline:
                self._fire_deadline()
            return
        now = self._clock.monotonic()
        if not self._fired_at or now < self._fired_at + self._attempt.grace_s:
            return
        threads = self._belongings.work()
        was_raised = any([self._guard.interrupt(), *(work.interrupt() for work in threads)])
        if self._stop_until is None:
            self._stop_until = now + LAST_S
            if was_raised:
                names = ", ".join(work.name for work in threads) or self.label
                self.report(ev.CancelEscalated(Rung.THREAD, names))
        elif now >= self._stop_until:
            self._detach(tuple(work.name for work in threads) or (self.label,))


def _check_event(data: ev.EventData, parent: str | None) -> None:
    """Raise for what an agent may not send: in the agent, which then fails with its own mistake."""
    if isinstance(data, _STREAMED):  # a tuple: a union would be built on each call
        if not isinstance(data.text, str):
            raise TypeError(f"text must be a str, not {type(data.text).__name__}")
    elif (kind := data.TYPE or ev.type_of(data)) in _NOT_FOR_AGENTS:
        raise ValueError(f"an agent cannot send {kind}; it can return, raise or ask")
    if parent is not None and not isinstance(parent, str):
        raise TypeError(f"parent must be an id (str), not {type(parent).__name__}")


class Children:
    """Keeps track of the child runs of one run; `report` takes an event of the run.

    Threads: `add()` from any thread of the agent; everything else on the host's loop.
    """

    __slots__ = ("_all", "_is_closing", "_report", "_thread")

    def __init__(self, thread: LoopThread, report: Callable[[ev.EventData], None]) -> None:
        self._thread = thread
        self._report = report
        self._all: list[tuple[ChildRun, LoopLatch]] = []
        self._is_closing = False

    def add(self, child: ChildRun) -> None:
        """Keep track of a child run that has just been started."""
        ended = LoopLatch()
        if self._is_closing:
            child.cancel(None, CancelCause.PARENT)
        self._all.append((child, ended))
        # Not at once: its name is public only when its creation has been saved.
        child.when_created(partial(self._thread.call, partial(self._note_start, child)))
        child.when_ended(partial(self._thread.call, partial(self._note_end, child, ended)))

    def cancel(self) -> None:
        """Cancel all live child runs, and any added later: the run has failed, and no longer waits for them."""
        self._is_closing = True
        for child, ended in tuple(self._all):
            if not ended.is_set():
                child.cancel(None, CancelCause.PARENT)

    async def ended(self) -> None:
        """Return when every child run has ended."""
        for _child, ended in self._all:  # may grow meanwhile
            await ended.wait()

    def _note_start(self, child: ChildRun) -> None:
        self._report(ev.ChildStarted(child.id, child.name, child.number))

    def _note_end(self, child: ChildRun, ended: LoopLatch) -> None:
        self._report(ev.ChildFinished(child.id, str(child.status), child.usage))
        ended.set()
