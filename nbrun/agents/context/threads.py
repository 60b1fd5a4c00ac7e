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
    from types import FrameType

T = TypeVar("T")

_ENTERING = asyncio.BaseEventLoop.run_until_complete.__code__

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
        self._thread_id: int | None = None

    def is_alive(self) -> bool:
        """Return whether the agent's code still runs."""
        return not self._over.done()

    async def ended(self) -> None:
        """Return when the agent's code has ended there."""
        await asyncio.wrap_future(self._over)

    def stop(self) -> bool:
        """Cancel what an event loop was entered for there, as by `asyncio.run()`; return whether there is one."""
        frame = _frame_of(self._thread_id)
        while frame is not None and frame.f_code is not _ENTERING:
            frame = frame.f_back
        if frame is None:
            return False
        loop = frame.f_locals["self"]
        # Still alive: so those frames were of this call, and not of a pool's next one.
        return self.is_alive() and call_soon(loop, partial(_cancel_main, frame))

    def interrupt(self) -> bool:
        """Raise `Cancelled` in the thread at its next bytecode.

        While it is in nbrun's own code, return False; it is raised when that is over.
        """
        return self._guard.interrupt(later=True)

    def run(self, function: Callable[[], T]) -> T:
        """Call the function in this thread."""
        guard = self._guard
        self._thread_id = threading.get_ident()
        guard.bind()
        before = current_guard.set(guard)
        try:
            guard.leave()
            try:
                return function()
            finally:
                guard.enter()
        finally:
            current_guard.reset(before)

    def finish(self) -> None:
        """Note that the call has ended, or will not be made."""
        if not self._over.done():
            self._over.set_result(None)


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
        """Return whether the thread is within an import; interrupted there, it may leave half a package behind."""
        frame = None if self._thread is None else _frame_of(self._thread.ident)
        while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
            frame = frame.f_back
        return frame is not None

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


def _frame_of(thread_id: int | None) -> FrameType | None:
    """Return what a thread is in at this moment."""
    return None if thread_id is None else sys._current_frames().get(thread_id)


def _cancel_main(entered: FrameType) -> None:
    """Cancel what an event loop was entered for; called on it, as it makes a task of a coroutine only in there."""
    task = entered.f_locals["future"]
    if is_quiet(task):
        task.cancel()


def running_future() -> Future[Any]:
    """Return a future that looks started: cancelling the wait for it does not cancel it."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def is_quiet(task: asyncio.Future[Any]) -> bool:
    """Return whether a task runs and was not asked to stop: a second cancel would hit it in its cleanup."""
    return not task.done() and not (isinstance(task, asyncio.Task) and task.cancelling())
