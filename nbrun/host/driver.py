"""Drives one attempt: enters the agent, sends its events in order, and sends exactly one end event."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import threading
import time
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

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
    CallbackHandle,
    CancelCause,
    Cancelled,
    Clock,
    InterruptGuard,
    Journal,
    LoopLatch,
    NbrunError,
    Plain,
    Restored,
    Rung,
    Stepped,
    clean_text,
    current_guard,
    events as ev,
    guarded,
    is_on_loop,
    is_simple,
    separator,
    sized,
)
from nbrun.core.text import split_half
from nbrun.host import capture, packages
from nbrun.host.attempt import Attempt, HostEvent, IsFull, Sink
from nbrun.host.belongings import Belongings
from nbrun.host.escalation import LAST_S, Escalation
from nbrun.host.failures import brief, describe, is_plain, safely, undescribed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nbrun.host.loops import LoopThread

T = TypeVar("T")

_log = logging.getLogger("nbrun")

_STREAMED = (ev.TextDelta, ev.ReasoningDelta, ev.ToolArgsDelta)
_PLENTY = (*_STREAMED, ev.Log)  # what an agent can send without end
_Streamed = ev.TextDelta | ev.ReasoningDelta | ev.ToolArgsDelta

PIECES_HELD = 5_000
"""How many pieces of text are held, and characters of one; of what was streamed before, a digest."""
PAUSE_S, PAUSES = 0.05, 200
"""How long an agent is paused at a time while it sends faster than the store can save, and how often in a thread."""
LOOK_LIMIT_S = 2.5
"""How long the code of an output or an error may take to turn it into data; then the run ends without it."""
FORMAT_LIMIT_S = 5.0
"""How long an output's own code may take to render it; after that the run ends without its rendering."""
IMPORT_LIMITS = 12
"""How often that time begins again while its code imports a package, as plotly's does when it shows a figure."""
PICKLE_LIMIT_S = 60.0
"""The same if the object itself is kept too, which may be large."""


class _Kept(NamedTuple):
    """What an agent has returned or raised, as it is stored: the output, its size, and the error."""

    output: Plain = None
    size: int = 0
    error: ev.ErrorInfo | None = None


class Driver:
    """Drives one attempt.

    Threads: `emit()` and `start_child()` from any thread of the agent; `report()`, `warn()` and
    `stop_from_outside()` from any thread; everything else on the loop. `_lock` guards the numbers and the
    end: after the end, only `detached.finished` is sent. The lock is reentrant, because a garbage collection
    anywhere may call an agent's `__del__`, and that may print; `_outbox` then keeps the numbers in order. Apart
    from that, no code of the agent is called under the lock.
    """

    __slots__ = (
        "__weakref__", "_adapter", "_approvals", "_attempt", "_budget", "_children", "_clock",
        "_detached", "_digest", "_digested", "_escalation", "_finished", "_fired_at", "_guard", "_halves", "_host_name",
        "_inbox", "_is_between", "_is_driving", "_is_ended", "_is_entered", "_is_full", "_is_owed_turn",
        "_is_sending", "_journal", "_lock", "_looks", "_n", "_open_tools", "_outbox", "_refused", "_returned_at",
        "_sink", "_stop_until", "_text_room", "_texts", "_thread", "_token", "_usage", "_usage_before", "run", "task",
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
        self.run = RunContext(
            attempt.run_id, attempt.prompt, token, clock, self, attempt.restored, watch_calls=attempt.watch_calls
        )
        self.task: asyncio.Task[None] | None = None
        restored = attempt.restored
        self._usage = self._usage_before = None if restored is None else restored.usage
        # Most runs use none of these, and there may be thousands of runs: each is made when it is first used.
        self._budget = attempt.budget
        self._approvals: Approvals | None = None
        self._inbox: Inbox | None = None
        self._journal: Journal | None = None
        self._children: Children | None = None
        self._escalation: Escalation | None = None
        # What is sent.
        self._n = 0
        self._outbox: tuple[tuple[ev.EventData, float, str | None, object, int], ...] = ()
        self._is_sending = False
        self._is_full: IsFull | None = None
        self._is_owed_turn = False  # whether others on its loop wait for a turn since too much waits to be stored
        self._texts: list[str] = []
        self._digest: hashlib.blake2b | None = None  # of a longer text, without its last piece
        self._digested = 0  # characters
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
        self._looks: tuple[Worker[Any], ...] = ()

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
        """Send an event of the agent that is `checked`; refused and counted when the attempt has ended.

        A thread that sends faster than the store can save is held up here, after the lock is released.
        """
        now = self._now()
        usage: ev.Usage | None = None
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
                texts = self._texts
                texts.append(data.text)
                if len(texts) > PIECES_HELD or len(data.text) > PIECES_HELD:
                    self._condense()
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
        if self._is_full is not None:
            if not is_on_loop():
                self._hold_up()
            elif self._is_driving and isinstance(data, _PLENTY):
                self._hold_up_loop()

    def _hold_up_loop(self) -> None:
        """Block an agent on a loop that sends too much without a turn for others, who wait for it all the same.

        Nor does a cancel reach it otherwise: it raises `Cancelled` from here.
        """
        if not self._hold():
            return
        if not self._is_owed_turn:
            self._is_owed_turn = True
            asyncio.get_running_loop().call_soon(self._note_turn)
            return
        if not self._token.cancelled:
            self._hold_up()
        self._token.raise_if_cancelled()

    def _note_turn(self) -> None:
        self._is_owed_turn = False

    def _hold_up(self) -> None:
        """Block a thread of the agent while too much of the run waits to be stored."""
        # Not for ever: the agent may hold a lock that the store's writer waits for, such as a logging handler's.
        for _ in range(PAUSES):
            if not self._hold():
                return
            if self._token.cancelled:  # the token no longer waits, but the run's end is stored after all that it sends
                time.sleep(PAUSE_S)
                return
            self._token.wait_sync(PAUSE_S)

    def _condense(self) -> None:
        """Keep a digest of what was streamed, and the last character: it is in the log, and may be of any length."""
        text = "".join(self._texts)
        if self._digest is None:
            self._digest = hashlib.blake2b()
        self._digest.update(_encoded(text[:-1]))
        self._digested += len(text) - 1
        self._texts = [text[-1:]]

    def _is_streamed(self, output: object) -> bool:
        """Return whether an output is what was streamed; then it is in the log already."""
        if output is None or type(output) is not str:
            return output is None
        rest = "".join(self._texts)
        if self._digest is None:
            return output == rest
        if len(output) != self._digested + len(rest):
            return False
        digest = hashlib.blake2b()
        for at in range(0, self._digested, PIECES_HELD):
            digest.update(_encoded(output[at : min(at + PIECES_HELD, self._digested)]))
        return output.endswith(rest) and digest.digest() == self._digest.digest()

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
        if (known := self._budget) is not None:  # asked for several times in each model call
            return known
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
    def journal(self) -> Journal | None:
        """What the run's model calls are answered from, and where their answers are kept."""
        attempt, known = self._attempt, self._journal
        if known is not None or attempt.journals is None:
            return known
        with guarded(), self._lock:
            if self._journal is None:
                restored = attempt.restored or Restored()
                self._journal = Journal(
                    attempt.journals, attempt.run_id, attempt.number, restored.journal, restored.before,
                    restored.journal_of, restored.speed,
                )  # fmt: skip
            return self._journal

    def call_when_stored(self, function: Callable[[], object], *, is_urgent: bool = False) -> None:
        """Call `function` when all that was sent is on disk, or can't be put there; on any thread, or at once."""
        when_stored = self._attempt.when_stored
        if when_stored is None:
            function()
        else:
            when_stored(function, is_urgent=is_urgent)

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
                self._is_full = self._sink((event,))
                self._n += 1  # now: where an agent has no stack left, it was not taken
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
        cancel: CallbackHandle | None = None
        timer: asyncio.TimerHandle | None = None
        output: object = None
        error: BaseException | None = None
        try:
            cancel = self._token.add_first(self._note_cancel)
            timer = self._start_timer()
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
        kept: _Kept | None = None
        try:
            left = await self._rest_ended(error)
            self._returned_at = self._clock.now()
            if timer is not None:
                timer.cancel()
            if packages.has_figures(self.run):
                await self._keep_figures()
            kept = await self._keep(output, error)
            left += await self._looks_ended()
        except Exception as mistake:  # ours, or of something foreign that was looked at: it costs no run its end
            self.report(ev.Log(f"the end of this run was disturbed: {brief(mistake)}", "error"))
            _log.exception("the end of %s was disturbed", self._attempt.run_id)
        finally:
            if cancel is not None:
                cancel.remove()
            if timer is not None:
                timer.cancel()
            self._finished.set()
            self._end(output, error, left, kept)
        if left:
            self._thread.spawn(self._detached_ended(), f"nbrun-detached-{self._attempt.run_id}")
        else:
            self._leave()
        try:
            if error is not None and issubclass(type(error), asyncio.CancelledError):
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
                guard.leave()
                try:
                    item = ev.checked(item)
                finally:
                    guard.enter()
                self.emit(item)
                # Never a blocking wait here: other runs are on this loop.
                while pause_s := self._hold():  # noqa: ASYNC110 - nobody reports it
                    await asyncio.sleep(pause_s)
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
        """Return how long the agent must wait before it is asked again; 0 if the store has caught up."""
        is_full = self._is_full  # replaced by whoever sends
        return PAUSE_S if is_full is not None and is_full() else 0.0

    async def _rest_ended(self, error: BaseException | None) -> tuple[str, ...]:
        """Return when all that the agent has started has ended, then its child runs, whose ends come before this one's.

        What does not end in time is left, and its names returned; in a cancelled run the escalation decides that.
        """
        left: tuple[str, ...] = ()
        rest = Belongings(self.run)
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
        await Belongings(self.run).ended()
        self._end(None, None)
        self._leave()

    # --- the end ---------------------------------------------------------------------------------

    async def _keep(self, output: object, error: BaseException | None) -> _Kept:
        """Return what is stored of an output or an error, and keep what is kept beside the log.

        All that may run code of their own is done in a thread, within a time: other runs are on this loop, and a run
        must have its end, whatever its output or its error does.
        """
        info: ev.ErrorInfo | None = None
        if error is not None and not (_is_signal(error) and self._token.cancelled):
            # Not for a requested cancel: a traceback takes as long as a run.
            describing = partial(describe, error, self._thread.moved_by)
            if is_plain(error):
                info = describing()
            else:
                look = await self._look(describing, "the text of its error", LOOK_LIMIT_S)
                info = look.result() if _has_result(look) else undescribed(error)
        if is_simple(output):
            kept = _Kept(*sized(output), info)
        else:
            encoded = await self._look(partial(sized, output), "the code of its output", LOOK_LIMIT_S)
            if not _has_result(encoded):
                self.warn("the output is not stored in full: its own code failed, or took too long")
                return _Kept(*sized(output, no_code="its own code failed, or took too long"), info)
            kept = _Kept(*encoded.result(), info)
        if error is None and not self._token.cancelled:
            await self._keep_output(output)
        return kept

    async def _keep_output(self, output: object) -> None:
        """Keep the output's rendering, and the object if asked to.

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
        keep = partial(artifact_writer.keep_output, output, keep_object)
        limit_s = PICKLE_LIMIT_S if keep_object else FORMAT_LIMIT_S
        kept = await self._look(keep, "the code of its output", limit_s, in_cancel_s=0.0)
        for data in kept.result() if _has_result(kept) else ():
            self.report(data)
        self._warn_if_lost(kept, "the output's rendering was not kept", limit_s)

    async def _keep_figures(self) -> None:
        """Keep the figures that pyplot has open for the run, however it ends."""
        draw = partial(packages.keep_figures, self.run)
        kept = await self._look(draw, "the drawing of its figures", FORMAT_LIMIT_S, in_cancel_s=None)
        self._warn_if_lost(kept, "figures were not kept", FORMAT_LIMIT_S)

    def _warn_if_lost(self, look: asyncio.Future[Any], what: str, limit_s: float) -> None:
        if not look.cancelled():
            if (error := look.exception()) is not None:  # a SystemExit, say, of its own code
                self.warn(f"{what} ({brief(error)})")
        else:
            why = "the run was cancelled" if self._token.cancelled else f"it took more than {limit_s:g} s"
            self.warn(f"{what}: {why}")

    async def _look(
        self, function: Callable[[], T], name: str, limit_s: float, in_cancel_s: float | None = LAST_S
    ) -> asyncio.Future[T]:
        """Call what may run code of the agent's in a thread; return its outcome, cancelled if it took too long.

        Parameters
        ----------
        name : what still runs, if it does not stop.
        limit_s : its time, which begins again while it imports a package.
        in_cancel_s : its time once the run is cancelled; None for what is left of the grace period, or a moment.
        """
        loop = self._thread.loop
        work = Worker(self._attempt.run_id, function, copy_context(), name=name)
        try:
            over = asyncio.wrap_future(work.start(), loop=loop)
        except RuntimeError as no_thread:
            over = loop.create_future()
            over.set_exception(no_thread)
            return over
        self.run.add_work(work)
        self._looks = (*self._looks, work)
        fired = loop.create_future()
        # Cancelled, not set: its result isn't used, and cancelling it twice does no harm.
        note = self._token.add_first(lambda _request: self._thread.call(fired.cancel))
        try:
            for _ in range(IMPORT_LIMITS):
                await asyncio.wait({over, fired}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
                if over.done() or fired.done() or not work.is_importing():
                    break
            if fired.done() and not over.done():
                if in_cancel_s is None:
                    in_cancel_s = max(LAST_S, self._fired_at + self._attempt.grace_s - self._clock.monotonic())
                await asyncio.wait({over}, timeout=in_cancel_s)
        finally:
            note.remove()
            fired.cancel()
            if over.done():
                self.run.drop_work(work)
            elif work.is_importing():  # it is left alone, and ends soon
                self.run.drop_work(work)
                over.cancel()
            else:
                work.interrupt()
                over.cancel()
        return over

    async def _looks_ended(self) -> tuple[str, ...]:
        """Give what took too long a moment to stop; return the names of what still runs."""
        works = {work for work in self._looks if work in self.run.work}
        if not works:
            return ()
        await asyncio.wait([self._thread.spawn(work.ended(), "nbrun-look") for work in works], timeout=LAST_S)
        for work in works:
            if not work.is_alive():
                self.run.drop_work(work)
        names = tuple(dict.fromkeys(work.name for work in works if work.is_alive()))
        if names:
            self.report(ev.Log(f"still running: {', '.join(names)}", "warning"))
        return names

    def _leave(self) -> None:
        """Drop all references to this driver, so that an ended run is freed without the garbage collector."""
        with self._lock:
            self.task = self._escalation = self._children = None
            self._approvals = self._inbox = self._budget = None
            self._looks = ()
        self.run.leave()

    def _end(
        self, output: object, error: BaseException | None, detached: tuple[str, ...] = (), kept: _Kept | None = None
    ) -> None:
        """Send the one end event, after the ends of open tools; if it was sent, report the end of detached work.

        It runs no code of the agent's: what that has left is `kept` by now, or only in part.
        """
        safely(self.run.flush_lines, None)
        while self._halves:
            (kind, tool_id), half = self._halves.popitem()
            escape = f"\\u{ord(half):x}"  # as `clean_text` writes one that stays alone
            self.emit(kind(tool_id, escape) if tool_id else kind(escape))
        # Streamed text is already in the log: a record that ends without an output of its own uses that text.
        is_streamed = self._is_streamed(output)
        text = "".join(self._texts) if self._digest is None else ""
        if is_streamed and (output is None or self._digest is not None):
            output = text or None  # not held a second time
        is_signal = _is_signal(error)
        if kept is None:  # something has disturbed the end
            info = None if error is None or (is_signal and self._token.cancelled) else undescribed(error)
            kept = _Kept(*sized(output, no_code="the end of the run was disturbed"), info)
        stored, size, info = (None, len(text), kept.error) if is_streamed else kept
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
                self._attempt, self._adapter, self.run, self._thread, self._finished,
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
        return safely(lambda: self._adapter.label(self._attempt.agent), "the agent")

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
        threads = Belongings(self.run).work()
        was_raised = any([self._guard.interrupt(), *(work.interrupt() for work in threads)])
        if self._stop_until is None:
            self._stop_until = now + LAST_S
            if was_raised:
                names = ", ".join(work.name for work in threads) or self.label
                self.report(ev.CancelEscalated(Rung.THREAD, names))
        elif now >= self._stop_until:
            self._detach(tuple(work.name for work in threads) or (self.label,))


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _has_result(look: asyncio.Future[Any]) -> bool:
    return not look.cancelled() and look.exception() is None


def _is_signal(error: BaseException | None) -> bool:
    return issubclass(type(error), Cancelled | asyncio.CancelledError)  # not by its class, which may be code


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
