"""Code of an agent that runs beside its task: in a thread, into which a cancel can be raised."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from nbrun.core import InterruptGuard, call_soon, current_guard

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

T = TypeVar("T")

_main_thread: list[Callable[[Callable[[], object]], object]] = []


def drive_by(call: Callable[[Callable[[], object]], object]) -> None:
    """Have the next sync agent driven by what `call` hands over to the main thread, where it can handle signals."""
    _main_thread.append(call)


class Work(Protocol):
    """Something of an agent's that runs beside its task. Threads: any method, from any thread."""

    name: str
    is_driver: bool  # whether it is the agent itself

    def is_alive(self) -> bool:
        """Return whether it still runs."""

    async def ended(self) -> None:
        """Return when it has ended."""

    def stop(self) -> bool:
        """Ask it to end, if it can be asked; return whether it was."""

    def interrupt(self) -> bool:
        """End it, if it can be ended; return whether that was tried."""


class ThreadCall:
    """One call of an agent's code in a thread, which may belong to a pool. Threads: any method, from any thread."""

    def __init__(self, name: str, *, is_driver: bool = False) -> None:
        self.name = name
        self.is_driver = is_driver  # False: something beside the agent
        self._over: Future[None] = running_future()
        self._guard = InterruptGuard()
        self._entered: tuple[asyncio.AbstractEventLoop, Any] | None = None  # written in its thread only

    def is_alive(self) -> bool:
        """Return whether the agent's code still runs."""
        return not self._over.done()

    async def ended(self) -> None:
        """Return when the agent's code has ended there."""
        await asyncio.wrap_future(self._over)

    def stop(self) -> bool:
        """Cancel what an event loop was entered for there, as by `asyncio.run()`; return whether there is one.

        It is known while there is a host, which has event loops entered by `run_until_complete()`.
        """
        entered = self._entered
        return entered is not None and call_soon(entered[0], partial(_cancel_main, *entered))

    def interrupt(self) -> bool:
        """Raise `Cancelled` in the thread at its next bytecode.

        While it is in nbrun's own code, return False; it is raised when that is over.
        """
        return self._guard.interrupt(later=True)

    def run(self, function: Callable[[], T]) -> T:
        """Call the function in this thread."""
        guard = self._guard
        guard.bind()
        before, outer = current_guard.set(guard), _here.call
        _here.call = self
        try:
            guard.leave()
            try:
                return function()
            finally:
                guard.enter()
        finally:
            _here.call = outer
            current_guard.reset(before)

    def run_until_complete(self, enter: Callable[..., T], loop: asyncio.AbstractEventLoop, work: Any) -> T:
        """Enter an event loop in this thread, by what its class has for it; meanwhile `stop()` cancels `work`."""
        outer, self._entered = self._entered, (loop, work)
        try:
            return enter(loop, work)
        finally:
            self._entered = outer

    def finish(self) -> None:
        """Note that the call has ended, or will not be made."""
        if not self._over.done():
            self._over.set_result(None)


class _Here(threading.local):
    call: ThreadCall | None = None


_here = _Here()


def call_here() -> ThreadCall | None:
    """Return the call that this thread is in."""
    return _here.call


class Worker(ThreadCall, Generic[T]):
    """Runs one function in a daemon thread of its own and returns its result to whoever waits for it.

    A thread of asyncio's default executor would delay the exit of the kernel. `is_driver` is true for a sync agent
    itself, not for something beside it; see `drive_by()`. Threads: any method, from any thread and any event loop.
    """

    def __init__(
        self, run_id: str, function: Callable[[], T], context: Context, *, name: str = "", is_driver: bool = False
    ) -> None:
        super().__init__(name or run_id, is_driver=is_driver)
        self._function = function
        self._context = context
        self._thread: threading.Thread | None = None
        self._run_id = run_id

    def start(self) -> Future[T]:
        """Start the thread; return what the function will return or raise."""
        outcome: Future[T] = running_future()
        try:
            if self.is_driver and _main_thread:
                self._thread = threading.main_thread()
                _main_thread.pop()(partial(self._main, outcome))
                return outcome
            name = f"nbrun-agent-{self._run_id}"
            self._thread = threading.Thread(target=self._main, args=(outcome,), name=name, daemon=True)
            self._thread.start()
        except RuntimeError:  # the system has no more threads, or the stack no room: it has ended before it began
            self.finish()
            raise
        return outcome

    async def result(self) -> T:
        """Start the thread and wait for its result; a cancel leaves the thread to the host's escalation."""
        return await asyncio.wrap_future(self.start())

    def interrupt(self) -> bool:
        """Raise `Cancelled` in the thread, if it has begun."""
        is_started = self._thread is not None and self._thread.ident is not None
        return is_started and super().interrupt()

    def is_importing(self) -> bool:
        """Return whether the thread is within an import; interrupted there, it may leave half a package behind.

        Source: CPython's importlib holds a lock per module, with its owner, for as long as the module's code runs.
        (Walking the frames of a thread that runs has crashed CPython 3.11.)
        """
        locks = [lock() for lock in list(getattr(sys.modules["_frozen_importlib"], "_module_locks", {}).values())]
        thread_id = self._thread and self._thread.ident
        return thread_id is not None and any(getattr(lock, "owner", None) == thread_id for lock in locks)

    def _main(self, outcome: Future[T]) -> None:
        try:
            result = self._context.run(self.run, self._function)
        except StopIteration:  # a future refuses this one: it would end the waiting coroutine
            self.finish()
            outcome.set_exception(RuntimeError("the agent raised StopIteration"))
        except BaseException as error:  # carried to the host, which fails this run only
            self.finish()
            outcome.set_exception(error)
        else:
            self.finish()
            outcome.set_result(result)
        finally:
            del outcome  # it leads to the error, and that to this frame: see `Steps.throw()`


def _cancel_main(loop: asyncio.AbstractEventLoop, work: Any) -> None:
    """Cancel what the event loop was entered for; called on it, as it makes a task of a coroutine only in there."""
    if not asyncio.isfuture(work):
        work = next((task for task in asyncio.all_tasks(loop) if task.get_coro() is work), None)
    if work is not None and is_quiet(work):
        work.cancel()


def running_future() -> Future[Any]:
    """Return a future that looks started: cancelling the wait for it does not cancel it."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def is_quiet(task: asyncio.Future[Any]) -> bool:
    """Return whether a task runs and was not asked to stop: a second cancel would hit it in its cleanup."""
    return not task.done() and not (isinstance(task, asyncio.Task) and task.cancelling())
