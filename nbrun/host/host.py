"""The host: drives attempts on one event loop, and notices when an agent blocks that loop."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nbrun.agents import current_run
from nbrun.core import Clock, Steps, current_guard, events as ev
from nbrun.host import belongings, failures
from nbrun.host.attempt import HostEvent
from nbrun.host.driver import Driver
from nbrun.host.loops import LoopThread, RunThreads, may_enter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.host.attempt import Attempt, OnHost, Sink

_log = logging.getLogger("nbrun")

NAME = "local"
"""The name of the host in the kernel's own process."""
TICK_S = 0.25
BLOCKED_TICKS = 4
"""After so many ticks without an answer, one second, the loop counts as blocked.

Ticks are counted, not seconds: where a call into C stops the whole process, no tick goes by either, and no agent is
accused of it.
"""


OnBlocked = Callable[[str | None, bool], object]


class RunHost:
    """Drives attempts: `run.started` first, then what the agent sends, then one end event.

    Threads: `begin()` on the loop, where the drivers live; `sink` is called from the loop, from the worker threads of
    sync agents, and from the watchdog's. The watchdog reads `drivers` and `_owners`, copied in one step, and calls
    `on_blocked(run_id, is_lost)` again and again while the loop has not answered for a second: the run that blocks it,
    if known, and whether nothing can stop that any more. `is_shared` says whether many runs share the loop, so that
    blocking it is worth a warning.
    """

    def __init__(
        self,
        thread: LoopThread,
        sink: Sink,
        clock: Clock,
        name: str = NAME,
        on_blocked: OnBlocked = lambda _run_id, _is_lost: None,
        *,
        is_shared: bool = True,
    ) -> None:
        self.name = name
        self.thread = thread
        self.on_blocked = on_blocked
        self.is_shared = is_shared
        self.drivers: dict[asyncio.Future[Any], Driver] = {}  # by the driving task, oldest first
        self._sink = sink
        self._clock = clock
        self._on_end = self._note_end  # one object for all tasks
        # The run that a task belongs to which an agent has made: asyncio itself does not keep it.
        self._owners: WeakKeyDictionary[asyncio.Future[Any], str] = WeakKeyDictionary()
        self.watchdog = Watchdog(self)
        belongings.watch()
        thread.on_close += [self.watchdog.close, belongings.unwatch]
        self._run_threads = RunThreads(thread.loop)

    def control(self, op: str, body: dict[str, object]) -> dict[str, object]:
        """Carry out a request of the session; `run_id` and `attempt` in `body` name the run."""
        if op == "ping":
            return {"op": op, "live": len(self.drivers)}
        key = (body.get("run_id"), body.get("attempt"))
        for driver in self.drivers.values():
            if driver.key == key:
                return {"op": op, "outcome": driver.control(op, body)}
        return {"op": op, "outcome": "not_found"}

    def begin(self, attempt: Attempt) -> None:
        """Start an attempt; one that cannot be started ends with the reason, and the others begin all the same."""
        try:
            self._begin(attempt)
        except Exception as error:  # of its agent's code, or the system has no more threads
            _log.exception("cannot start the agent of %s", attempt.run_id)
            end = ev.RunFailed(failures.undescribed(error))
            self._sink((HostEvent(attempt.run_id, attempt.number, 0, self._clock.now(), end),))

    def _begin(self, attempt: Attempt) -> None:
        self.watchdog.begin()
        loop = self.thread.loop  # each time: an agent may have put something of its own there
        loop.set_default_executor(self._run_threads)
        loop.set_task_factory(self._make_task)
        loop.set_exception_handler(self._on_loop_error)
        driver = Driver(attempt, self.thread, self._sink, self._clock, self.name)
        attempt.context.run(may_enter.set, attempt.reentrant_loop)
        # In the context of the cell that started the run, whatever started the loop's thread.
        driver.task = task = self.thread.start(
            driver.main(), f"nbrun-run-{attempt.run_id}", attempt.context, self._on_end
        )
        self.drivers[task] = driver
        self.watchdog.watch()

    def _note_end(self, task: asyncio.Future[Any]) -> None:
        self.drivers.pop(task, None)

    # --- whose code is it? -----------------------------------------------------------------------

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        run, guard, coroutine = current_run.get(), current_guard.get(), work
        # A task that an agent starts on the side is its own code as well, and may block as well.
        if guard is not None and inspect.iscoroutine(work):
            work = Steps(work, guard)
        task = asyncio.Task(work, loop=loop, **options)
        if run is not None:
            self._owners[task] = run.run_id
            belongings.claim_task(run, task, coroutine)
        return task

    def _driver_of(self, task: asyncio.Future[Any] | None) -> Driver | None:
        if task is None:
            return None
        if (own := self.drivers.get(task)) is not None:
            return own
        run_id = self._owners.get(task)
        drivers = tuple(self.drivers.values())
        return next((driver for driver in drivers if driver.run.run_id == run_id), None)

    def blocker(self) -> Driver | None:
        """Return whose code is on the loop, if known. Source: any thread may call `asyncio.current_task(loop)`."""
        for driver in tuple(self.drivers.values()):
            if driver.is_on_thread:
                return driver
        return self._driver_of(asyncio.current_task(self.thread.loop))

    def _on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Write an error that nobody awaited to its run's log: asyncio would print it into some cell."""
        driver = self._driver_of(context.get("task") or context.get("future"))
        error, message = context.get("exception"), str(context.get("message"))

        def report(text: str) -> None:
            if driver is None:
                _log.warning("on the event loop of the runs: %s", text)
            else:
                driver.report(ev.Log(text, "error"))

        report(message) if error is None else failures.say(message, error, report)


class Watchdog:
    """Asks a host's loop for a sign of life while runs are in progress on it, or wait for it.

    Threads: `begin()` on the loop; `watch()` and `close()` from any thread; the rest is of the thread `nbrun-watchdog`,
    which starts with the first run. `_answered` is written on the loop.
    """

    def __init__(self, host: RunHost) -> None:
        self._host = host
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._asked = self._answered = self._missed = 0
        self._warned: set[Driver] = set()
        self._watcher: threading.Thread | None = None

    def begin(self) -> None:
        """Watch from now on, until nothing is under way."""
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._main, name="nbrun-watchdog", daemon=True)
            self._watcher.start()
        self._wake.set()

    def watch(self) -> None:
        """Watch what waits for the loop."""
        self._wake.set()

    def close(self) -> None:
        """Stop the thread, without waiting for it: it has nothing to lose."""
        self._stop.set()
        self._wake.set()

    def _drivers(self) -> tuple[Driver, ...]:
        return tuple(self._host.drivers.values())

    def _main(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            while (self._drivers() or self._host.thread.is_behind) and not self._stop.wait(TICK_S):
                try:
                    self._tick()
                except Exception:  # no file descriptor is left, say: the runs are watched all the same
                    _log.exception("the watchdog of a host failed")
            self._rest()

    def _tick(self) -> None:
        if self._answered == self._asked:
            self._rest()
            self._asked += 1
            asked = self._asked
            self._host.thread.call(lambda: self._answer(asked))
            return
        self._missed += 1
        for driver in reversed(self._drivers()):  # children are younger, and end first
            try:
                driver.stop_from_outside()
            except Exception:  # the others are stopped all the same
                _log.exception("the watchdog of a host failed")
        if self._missed >= BLOCKED_TICKS:
            blocker, drivers = self._host.blocker(), self._drivers()
            is_lost = bool(drivers) and all(driver.has_ended for driver in drivers)
            self._host.on_blocked(
                None if blocker is None else blocker.run.run_id, is_lost if blocker is None else blocker.has_ended
            )
            if self._host.is_shared:
                self._warn(blocker)

    def _answer(self, asked: int) -> None:
        self._answered = asked

    def _rest(self) -> None:
        self._missed = 0
        self._warned.clear()

    def _warn(self, blocker: Driver | None) -> None:
        """Warn each run once: the one that blocks, what to do about it; the others, why they wait."""
        name = "something" if blocker is None else blocker.label
        for driver in self._drivers():
            if driver in self._warned:
                continue
            self._warned.add(driver)
            if driver is blocker:
                driver.warn("blocks the event loop that all runs share; run it with --thread")
            else:
                driver.warn(f"waiting: {name} blocks the event loop; run that one with --thread")


class LocalExecutor:
    """Runs attempts in this process.

    Its tokens are the session's own, so a cancel needs no message. Its host cannot be killed: `on_blocked` is called
    while an agent blocks the loop, see `RunHost`.
    """

    def __init__(self, thread: LoopThread, clock: Clock, on_blocked: OnBlocked) -> None:
        self._thread = thread
        self._clock = clock
        self._on_blocked = on_blocked
        self._host: RunHost | None = None

    def watch(self) -> None:
        """See to it that a loop that does not answer is noticed; from any thread."""
        if self._host is not None:
            self._host.watchdog.watch()

    def make_host(self, sink: Sink) -> None:
        """Make the host; on its loop."""
        self._host = RunHost(self._thread, sink, self._clock, NAME, self._on_blocked)

    def begin(self, attempts: Sequence[Attempt]) -> None:
        """Start the attempts; on the host's loop."""
        if self._host is None:
            raise RuntimeError("the local executor is not open")
        for attempt in attempts:
            self._host.begin(attempt)

    async def open(self, sink: Sink, on_host: OnHost) -> None:
        """Make the host."""
        self.make_host(sink)
        on_host(NAME, True)

    async def submit(self, attempts: Sequence[Attempt]) -> None:
        """Start the attempts."""
        self.begin(attempts)

    async def control(self, host: str, op: str, body: dict[str, object]) -> dict[str, object]:
        """Pass it to the host; a cancel goes by the token."""
        if self._host is None:
            return {"op": op, "outcome": "not_found"}
        return self._host.control(op, body)

    async def release(self, attempts: Sequence[Attempt]) -> None:
        """Nothing to release: an attempt is never run again here."""

    async def kill_host(self, host: str) -> None:
        """Refuse: the host is this process."""
        raise RuntimeError("the local host cannot be killed: it is this process")

    async def close(self) -> None:
        """Drop the host."""
        self._host = None
