"""Stand-ins for all that is a thread, a clock or a disk in a session: one thread plays them, step by step.

Whoever plays says by a `Pause` what happens in between: it is called wherever another thread could run, and
may then do anything that the other threads could do at that point.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol, TypeVarTuple

import msgspec

from nbrun import RunRecord
from nbrun.core import Latch, events as ev
from nbrun.core.record import fold
from nbrun.host.loops import LoopThread
from nbrun.store import Committed, SessionStore, StoredRun
from nbrun.store.writer import Source
from tests.fakes.clock import NOON

Ts = TypeVarTuple("Ts")


class Pause(Protocol):
    """Lets the other threads do something; `until` and `timeout_s` make it a wait."""

    def __call__(self, until: Callable[[], bool] | None = None, timeout_s: float | None = None) -> None:
        """Play others."""
        ...


class VirtualClock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now(self) -> float:
        """Return the moment."""
        return NOON + self.passed_s

    def monotonic(self) -> float:
        """Return the seconds so far."""
        return self.passed_s


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop that runs one callback at a time, when it is told to."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._virtual = clock
        self._queue: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self.problems: list[dict[str, Any]] = []

    def time(self) -> float:
        """Return virtual seconds."""
        return self._virtual.monotonic()

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Put a callback in the queue."""
        handle = asyncio.Handle(callback, args, self, context)
        self._queue.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Put a callback in the queue."""
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Put a callback among the timers."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave it in its place; it does nothing when its time comes."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what went wrong in a callback."""
        self.problems.append(context)

    @property
    def next_at(self) -> float | None:
        """When the next timer is due, or None."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    @property
    def is_ready(self) -> bool:
        """Whether there is something to run."""
        next_at = self.next_at
        return bool(self._queue) or (next_at is not None and next_at <= self.time())

    @property
    def queued(self) -> int:
        """How many callbacks wait."""
        return len(self._queue)

    def step(self) -> None:
        """Run the next callback."""
        while (next_at := self.next_at) is not None and next_at <= self.time():
            self._queue.append(heapq.heappop(self._timers)[2])
        handle = self._queue.popleft()
        if not handle.cancelled():
            asyncio._set_running_loop(self)
            try:
                handle._run()
            finally:
                asyncio._set_running_loop(None)


class VirtualThread(LoopThread):
    """A `LoopThread` without a thread: `step()` is its turn."""

    def __init__(self, clock: VirtualClock) -> None:
        self.loop: VirtualLoop = VirtualLoop(clock)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._forget = self._tasks.discard
        self._started: set[asyncio.Task[Any]] = set()
        self.context = Context()
        self._calls: deque[Callable[[], object]] = deque()
        self._is_called = False
        self.on_close: list[Callable[[], object]] = []
        self.is_busy = False  # in the middle of a callback
        self.is_stepping = False  # and not interrupted there by another thread
        self.is_closing = self.is_closed = False

    @property
    def tasks(self) -> set[asyncio.Task[Any]]:
        """The tasks that have not ended."""
        return {*self._tasks, *(task for task in self._started if not task.done())}

    def start(self, *args: Any) -> asyncio.Task[Any]:
        """Start a task that another keeps."""
        task = super().start(*args)
        self._started.add(task)
        return task

    @property
    def is_current(self) -> bool:
        """Whether this is its turn, or somebody closes it, who then does not wait for it."""
        return self.is_stepping or self.is_closing

    @property
    def ident(self) -> int:  # type: ignore[override]  # it changes
        """The thread that this is called on, where that counts as the loop's."""
        return threading.get_ident() if self.is_current else 0

    def step(self) -> None:
        """Run the next callback."""
        self.is_busy = self.is_stepping = True
        try:
            self.loop.step()
        finally:
            self.is_busy = self.is_stepping = False

    def call(self, function: Callable[[], object]) -> None:
        """Put a callback in the queue, unless it is closed."""
        if not self.is_closed:
            super().call(function)

    def close(self, timeout_s: float) -> bool:
        """Let each task see its CancelledError once, and end."""
        for _ in range(self.loop.queued):
            self.step()
        for task in self.tasks:
            task.cancel()
        for _ in range(3):  # as often as asyncio goes round for a `sleep(0)` that is waited for
            for _ in range(self.loop.queued):
                self.step()
        self.is_closed = True  # the loop itself stays, so that nothing is collected half-way
        return True


class VirtualLock:
    """A lock of one thread that plays many: others have their turn when it is given back."""

    def __init__(self, name: str, held: Counter[str], pause: Pause) -> None:
        self._name = name
        self._held = held
        self._pause = pause

    def __enter__(self) -> None:
        self._held[self._name] += 1

    def __exit__(self, *_error: object) -> None:
        self._held[self._name] -= 1
        self._pause()


class VirtualFlag(Latch):
    """A flag; while it is waited for, others have their turn."""

    __slots__ = ("_pause",)

    def __init__(self, pause: Pause) -> None:
        super().__init__()
        self._pause = pause

    def wait(self, timeout_s: float | None = None) -> bool:
        """Play others until it is set, or the virtual time is over."""
        self._pause(self.is_set, timeout_s)
        return self.is_set()


class VirtualWriter:
    """A store's writer in two steps: `commit()` takes what waits, `publish()` makes it public."""

    def __init__(self, source: Source, pause: Pause) -> None:
        self.source = source
        self.has_news = False
        self.is_closed = False
        self.is_busy = False
        self._pause = pause
        self._pending: list[Committed] | None = None
        self._unsaved: dict[str, RunRecord] = {}
        self._numbers = itertools.count(1)

    def wake(self, **_kind: bool) -> None:
        """Note that there is something to write."""
        self.has_news = True
        self._pause()

    @property
    def is_pending(self) -> bool:
        """Whether something was committed that is not public."""
        return self._pending is not None

    def commit(self, problem: str | None = None) -> None:
        """Take all that waits, and fold it."""
        self.has_news, self.is_busy = False, True
        groups: dict[str, list[ev.RunEvent]] = {}
        for event in self.source.drain():
            groups.setdefault(event.run_id, []).append(event)
        unsaved, self._unsaved = self._unsaved, {}
        for run_id in unsaved if problem is None else ():
            groups.setdefault(run_id, [])
        self._pending = []
        for run_id, events in groups.items():
            record = unsaved.get(run_id) or self.source.record(run_id)
            assert record is not None, f"{run_id} was forgotten before it was written"
            record = fold(events, record)
            if record.number is None:
                record = msgspec.structs.replace(record, number=next(self._numbers))
            if problem is not None:
                self._unsaved[run_id] = record
            self._pending.append(Committed(run_id, record, events, problem))
        self.is_busy = False

    def publish(self) -> None:
        """Make public what was committed."""
        pending, self._pending = self._pending, None
        self.is_busy = True
        self.source.publish(pending or [])
        self.is_busy = False

    def close(self) -> None:
        """Write what is there."""
        while not self.is_closed:
            if self.is_pending:
                self.publish()
            elif self.has_news or self._unsaved:
                self.commit()
            else:
                self.is_closed = True


class VirtualStore(SessionStore):
    """A store that keeps nothing: its writer's steps are all that it is."""

    def __init__(self, clock: VirtualClock, pause: Pause, thread: VirtualThread) -> None:
        super().__init__([], clock)
        self.writer: VirtualWriter | None = None
        self._thread = thread
        self._pause = pause

    def begin(self, source: Source, *, session_id: str, notebook: str | None) -> Any:
        """Return the writer."""
        self.writer = VirtualWriter(source, self._pause)
        return self.writer

    def find_id(self, run_id: str, session_id: str | None = None) -> StoredRun | None:
        """Return None: what is not in memory is nowhere."""
        return None

    def close(self, timeout_s: float, source: object = None) -> bool:
        """Write what is there."""
        if self.writer is not None:
            self.writer.close()
        self._thread.is_closing = True  # a session does that next
        return True
