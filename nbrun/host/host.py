"""The host: drives attempts on the event loop that it is given."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nbrun.agents.context.run_context import current_run
from nbrun.agents.context.threads import RunThreads
from nbrun.core import events as ev
from nbrun.core.interrupt_guard import Steps, current_guard
from nbrun.host.driver import Driver
from nbrun.host.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbrun.core.clock import Clock
    from nbrun.host.attempt import Attempt, OnHost, Sink
    from nbrun.host.loops import LoopThread

_log = logging.getLogger("nbrun")


class RunHost:
    """Drives attempts: `run.started` first, then what the agent does, then one end event.

    Threads: `begin()` on the loop, where the drivers live; `sink` is called from the loop, from the worker
    threads of sync agents, and from the watchdog's. The watchdog reads `_drivers` and `_owners`, copied in one step.
    """

    def __init__(
        self,
        thread: LoopThread,
        sink: Sink,
        clock: Clock,
        name: str = "local",
        on_blocked: Callable[[], object] = lambda: None,
        *,
        is_shared: bool = True,
    ) -> None:
        self.name = name
        self._on_over = self._note_over  # one object for all tasks
        self._thread = thread
        self._sink = sink
        self._clock = clock
        self._drivers: dict[asyncio.Future[Any], Driver] = {}  # by the task that drives
        # Of which run a task is that an agent has made: asyncio itself keeps no such thing.
        self._owners: WeakKeyDictionary[asyncio.Future[Any], str] = WeakKeyDictionary()
        self.watchdog = Watchdog(
            thread,
            lambda: tuple(self._drivers.values()),
            self._blocker,
            on_blocked,
            is_shared=is_shared,
        )
        thread.on_close.append(self.watchdog.close)
        thread.loop.set_default_executor(RunThreads(thread.loop))
        thread.loop.set_task_factory(self._make_task)
        thread.loop.set_exception_handler(self._on_loop_error)

    @property
    def live(self) -> int:
        """How many attempts have not ended."""
        return len(self._drivers)

    def control(self, op: str, body: dict[str, object]) -> dict[str, object]:
        """Do what the session asks for; `run_id` and `attempt` in `body` say of which run."""
        if op == "ping":
            return {"op": op, "live": self.live}
        key = (body.get("run_id"), body.get("attempt"))
        for driver in self._drivers.values():
            if driver.key == key:
                return {"op": op, "outcome": driver.control(op, body)}
        return {"op": op, "outcome": "not_found"}

    def begin(self, attempt: Attempt) -> None:
        """Start an attempt."""
        driver = Driver(attempt, self._thread, self._sink, self._clock, self.name)
        # In the context of the cell that started the run, whatever started the loop's thread.
        driver.task = task = self._thread.start(
            driver.main(), f"nbrun-run-{attempt.run_id}", attempt.context, self._on_over
        )
        self._drivers[task] = driver
        self.watchdog.begin()

    def _note_over(self, task: asyncio.Future[Any]) -> None:
        self._drivers.pop(task, None)

    # --- whose is it? ----------------------------------------------------------------------------

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any
    ) -> asyncio.Task[Any]:
        run, guard = current_run.get(), current_guard.get()
        # What an agent has begun on the side is its own code as well, and may block as well.
        if guard is not None and inspect.iscoroutine(work):
            work = Steps(work, guard)
        task = asyncio.Task(work, loop=loop, **options)
        if run is not None:
            self._owners[task] = run.run_id
        return task

    def _driver_of(self, task: asyncio.Future[Any] | None) -> Driver | None:
        if task is None:
            return None
        own = self._drivers.get(task)
        if own is not None:
            return own
        run_id = self._owners.get(task)
        drivers = tuple(self._drivers.values())
        return next((driver for driver in drivers if driver.run.run_id == run_id), None)

    def _blocker(self) -> Driver | None:
        """Return whose code is on the loop; called from outside it.

        Source: `asyncio.current_task(loop)` may be asked from another thread.
        """
        for driver in tuple(self._drivers.values()):
            if driver.is_on_thread:
                return driver
        return self._driver_of(asyncio.current_task(self._thread.loop))

    def _on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Write to the run's log what nobody has awaited: asyncio would print it into some cell."""
        driver = self._driver_of(context.get("task") or context.get("future"))
        error = context.get("exception")
        text = f"{context.get('message')}: {error!r}" if error else str(context.get("message"))
        if driver is None:
            _log.warning("on the event loop of the runs: %s", text)
        else:
            driver.tell(ev.Log(text, "error"))


NAME = "local"


class LocalExecutor:
    """Runs attempts in this process.

    Its tokens are the session's own, so a cancel needs no message; and a host that lives as long as the
    process cannot be killed. One whose event loop an agent blocks is told as gone: it should get no more
    attempts, and goes on with those it has when the block ends.
    """

    def __init__(self, thread: LoopThread, clock: Clock) -> None:
        self._thread = thread
        self._clock = clock
        self._host: RunHost | None = None

    @property
    def live(self) -> int:
        """How many attempts are under way here."""
        return self._host.live if self._host is not None else 0

    async def open(self, sink: Sink, on_host: OnHost) -> None:
        """Make the host."""
        self._host = RunHost(
            self._thread, sink, self._clock, NAME, on_blocked=lambda: on_host(NAME, False)
        )
        on_host(NAME, True)

    async def submit(self, attempts: Sequence[Attempt]) -> None:
        """Start the attempts."""
        if self._host is None:
            raise RuntimeError("the local executor is not open")
        for attempt in attempts:
            self._host.begin(attempt)

    async def control(self, host: str, op: str, body: dict[str, object]) -> dict[str, object]:
        """Hand it to the host; a cancel goes by the token."""
        if self._host is None:
            return {"op": op, "outcome": "not_found"}
        return self._host.control(op, body)

    async def release(self, attempts: Sequence[Attempt]) -> None:
        """Nothing to release: an attempt is never run again here."""

    async def kill_host(self, host: str) -> None:
        """Refuse: the host is this process."""
        raise RuntimeError("the local host cannot be killed: it is this process")

    async def close(self) -> None:
        """Forget the host."""
        self._host = None
