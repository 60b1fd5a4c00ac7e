"""The host: drives attempts on an event loop of its own, and sees to it that each has exactly one end."""

from __future__ import annotations

import asyncio
import threading
import traceback
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from nbrun import events as ev
from nbrun.agents import NativeCancel, Output, find_adapter
from nbrun.agents.plain import ThreadedAdapter
from nbrun.attempt import Attempt, HostEvent, Sink
from nbrun.cancellation import CancelCause, Rung, call_soon
from nbrun.context import RunContext, current_guard, current_run
from nbrun.encoding import clean_text, plain
from nbrun.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType

    from nbrun.clock import Clock

LAST_S = 0.5
"""Seconds that the last rung gets, after the grace, before what still runs is named."""

_TRACEBACK_LIMIT = 20_000

_NOT_FOR_AGENTS = ev.END_TYPES | {ev.RunCreated.TYPE, ev.CancelRequested.TYPE}
"""What only the host or the session may say of a run."""


class LoopThread:
    """An event loop on a daemon thread of its own.

    Threads: `spawn()` only on the loop; everything else from any thread. `_tasks` is of the loop.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task and keep it until it ends."""
        task = self.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def call(self, function: Callable[[], object]) -> bool:
        """Call `function` on the loop; False when the loop has been closed."""
        return call_soon(self.loop, function)

    def close(self, timeout_s: float) -> bool:
        """Stop the loop; return whether its thread has ended within the time."""
        self._stopping = True
        call_soon(self.loop, self.loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._stopping:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                # asyncio lets these two out of a task that an agent has started on the side. They end
                # that task; they must not end the loop of everybody's runs.
                continue
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(
            asyncio.sleep(0)
        )  # lets each of them see its CancelledError once
        self.loop.close()


class RunHost:
    """Drives attempts: `run.started` first, then what the agent does, then one end event.

    Threads: `begin()` on the loop, where the drives live; `sink` is called from the loop and
    from the worker threads of sync agents.
    """

    def __init__(self, thread: LoopThread, sink: Sink, clock: Clock, name: str = "local") -> None:
        self.name = name
        self.clock = clock
        self.sink = sink
        self.thread = thread
        self._drives: dict[tuple[str, int], Drive] = {}

    @property
    def live(self) -> int:
        """How many attempts have not ended."""
        return len(self._drives)

    def begin(self, attempt: Attempt) -> None:
        """Start an attempt."""
        drive = Drive(self, attempt)
        key = (attempt.run_id, attempt.number)
        self._drives[key] = drive
        # In the context of the cell that started the run, whatever started the loop's thread.
        task = attempt.context.run(self.thread.spawn, drive.main(), f"nbrun-run-{attempt.run_id}")
        drive.task = task
        task.add_done_callback(
            lambda _task: self._drives.pop(key, None)
        )  # an end is in the log by now


class Drive:
    """One attempt under way.

    Threads: `emit()` from any thread of the agent; everything else on the loop. `_lock` guards the numbers
    and the end: nothing is sent after the end but `detached.finished`.
    """

    def __init__(self, host: RunHost, attempt: Attempt) -> None:
        self._host = host
        self._attempt = attempt
        self._token = attempt.token
        self._adapter = ThreadedAdapter() if attempt.thread else find_adapter(attempt.agent)
        self._context = RunContext(
            attempt.run_id, attempt.prompt, attempt.token, self.emit, host.clock
        )
        self._lock = threading.Lock()
        self._n = 0
        self._is_ended = False
        self._refused = 0
        self._open_tools: dict[str, float] = {}
        self._usage: ev.Usage | None = None
        self._texts: list[str] = []
        self._is_entered = False
        self._finished = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def emit(self, data: ev.EventData, parent: str | None = None) -> None:
        """Send an event of the agent; refused and counted when the attempt has ended."""
        now = self._host.clock.now()
        with self._lock:
            if self._is_ended:
                self._refused += 1
                return
            if isinstance(data, ev.TextDelta):
                self._texts.append(data.text)
            elif isinstance(data, ev.ToolStarted):
                self._open_tools[data.id] = now
            elif isinstance(data, ev.ToolFinished):
                self._open_tools.pop(data.id, None)
            elif isinstance(data, ev.Usage):
                self._usage = data
            elif ev.type_of(data) in _NOT_FOR_AGENTS:
                raise ValueError(f"an agent cannot send {ev.type_of(data)}: it returns or raises")
            self._send(data, now, parent)

    def _send(
        self, data: ev.EventData, now: float, parent: str | None = None, live: object = None
    ) -> None:
        """Hand one event over; the caller holds the lock."""
        attempt = self._attempt
        event = HostEvent(attempt.run_id, attempt.number, self._n, now, data, parent, live)
        self._n += 1
        self._host.sink((event,))

    async def main(self) -> None:
        """Drive the agent to its end, whatever it raises."""
        current_run.set(self._context)
        current_guard.set(
            None
        )  # the context is a copy of the starter's, which may be a sync agent's thread
        cancel = self._token.add_callback(
            lambda _request: self._host.thread.call(self._start_ladder)
        )
        timer = self._start_timer()
        output: object = None
        error: BaseException | None = None
        try:
            # A cancel between "created" and "started" ends here: the agent is never entered.
            if not self._token.cancelled:
                self._is_entered = True
                self.emit(ev.RunStarted(self._host.name))
                output = await self._drive()
        except BaseException as raised:
            error = raised
        finally:
            cancel.remove()
            if timer is not None:
                timer.cancel()
            self._finished.set()
        self._end(output, error, ())
        if isinstance(error, asyncio.CancelledError):
            raise error  # recorded above; the task itself must still end as cancelled

    async def _drive(self) -> object:
        returned: Output | None = None
        attempt = self._attempt
        async with aclosing(
            self._adapter.events(attempt.agent, attempt.prompt, self._context)
        ) as events:  # type: ignore[type-var]  # adapters are async generators
            async for item in events:
                if isinstance(item, Output):
                    returned = item
                else:
                    self.emit(item)
        return None if returned is None else returned.value

    # --- the end ---------------------------------------------------------------------------------

    def _end(self, output: object, error: BaseException | None, detached: tuple[str, ...]) -> None:
        """Send the one end event, after the ends of open tools; a second call tells of detached work."""
        self._context.flush_lines()
        now = self._host.clock.now()
        with self._lock:
            if self._is_ended:
                self._send(ev.DetachedFinished(self._attempt.run_id, self._refused), now)
                return
            for tool_id, since in self._open_tools.items():
                status = "cancelled" if self._token.cancelled or error is None else "error"
                self._send(
                    ev.ToolFinished(tool_id, status, None, round((now - since) * 1000, 3)), now
                )
            text = "".join(self._texts)
            if output is None and text:
                output = text
            self._is_ended = True
            self._send(self._classify(output, error, detached), now, live=output)

    def _classify(
        self, output: object, error: BaseException | None, detached: tuple[str, ...]
    ) -> ev.EventData:
        """Return the end event, by the token and by what was raised; never by the text of a result."""
        stored = plain(output)
        if self._token.cancelled:
            is_signal = isinstance(error, Cancelled | asyncio.CancelledError)
            usage = self._usage
            if usage is not None and (error is not None or detached):
                usage = ev.Usage(**{**_fields(usage), "exact": False})  # its last report never came
            return ev.RunCancelled(
                cause=self._token.cause or CancelCause.USER,
                reason=self._token.reason,
                output=stored,
                error=None if error is None or is_signal else describe(error),
                usage=usage,
                detached=detached,
            )
        if error is not None:
            return ev.RunFailed(describe(error), stored, self._usage)
        return ev.RunCompleted(stored, self._usage)

    # --- the ladder ------------------------------------------------------------------------------

    def _start_timer(self) -> asyncio.TimerHandle | None:
        """Have the token fire at its deadline."""
        now = self._host.clock.now()
        if self._attempt.timeout_s is not None:
            self._token.set_deadline(now + self._attempt.timeout_s)
        deadline = self._token.deadline
        if deadline is None:
            return None
        delay = max(0.0, deadline - now)
        return self._host.thread.loop.call_later(
            delay, lambda: self._token.cancel(None, CancelCause.DEADLINE)
        )

    def _start_ladder(self) -> None:
        if not self._finished.is_set() and self._is_entered:
            self._host.thread.spawn(self._climb(), f"nbrun-cancel-{self._attempt.run_id}")

    async def _climb(self) -> None:
        """Ask the agent to stop, ever more firmly; name at the end what has not stopped."""
        grace_s = self._attempt.grace_s
        if isinstance(self._adapter, NativeCancel):
            self.emit(ev.CancelEscalated(Rung.NATIVE))
            await self._native_cancel(self._adapter, grace_s)
            if await self._has_finished(grace_s):
                return
        if self._context.work:  # a sync agent, which may be polling its token, or just about to hand its result over
            if await self._has_finished(grace_s):
                return
            alive = [work for work in self._context.work if work.is_alive()]
            self.emit(ev.CancelEscalated(Rung.THREAD, ", ".join(work.name for work in alive)))
            if await self._interrupted(LAST_S):
                return
        else:
            self.emit(ev.CancelEscalated(Rung.TASK))
            self._cancel_task()
            # Cleanup code gets the grace, except where a native cancel has used it up.
            if await self._has_finished(
                LAST_S if isinstance(self._adapter, NativeCancel) else grace_s
            ):
                return
        names = tuple(work.name for work in self._context.work if work.is_alive())
        self._end(None, None, names or (self._adapter.label(self._attempt.agent),))
        self._cancel_task()  # frees the task that waits for a thread; the thread is named

    async def _native_cancel(self, adapter: NativeCancel, grace_s: float) -> None:
        try:
            async with asyncio.timeout(grace_s):
                await adapter.cancel(self._context)
        except Exception as error:  # the ladder goes on: the next rung does not need this one
            self.emit(ev.Log(f"native cancel failed: {type(error).__name__}: {error}", "error"))

    async def _interrupted(self, timeout_s: float) -> bool:
        """Raise `Cancelled` in the worker threads; again while one is inside nbrun's own code."""
        deadline = self._host.clock.monotonic() + timeout_s
        while self._host.clock.monotonic() < deadline:
            for work in self._context.work:
                if work.is_alive():
                    work.interrupt()
            if await self._has_finished(0.02):
                return True
        return False

    async def _has_finished(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._finished.wait()
        except TimeoutError:
            return False
        return True

    def _cancel_task(self) -> None:
        if self.task is not None:
            self.task.cancel()


def _fields(usage: ev.Usage) -> dict[str, Any]:
    return {name: getattr(usage, name) for name in usage.__struct_fields__}


def describe(error: BaseException) -> ev.ErrorInfo:
    """Return an exception as text, with its traceback cut to a readable size."""
    try:
        message = str(error)
    except Exception as broken:  # somebody's __str__; the run must get its end all the same
        message = f"<str failed: {type(broken).__name__}>"
    if isinstance(error, asyncio.CancelledError):
        message = message or "the agent raised CancelledError, but nobody had cancelled the run"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace.tb_frame):
        trace = trace.tb_next  # how we got to the agent tells its author nothing
    lines = "".join(traceback.format_exception(type(error), error, trace))
    return ev.ErrorInfo(
        type(error).__name__, clean_text(message), clean_text(lines[-_TRACEBACK_LIMIT:])
    )


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == __package__
