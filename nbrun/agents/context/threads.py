"""A worker thread for a sync agent, into which a cancel can be raised."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nbrun.core import InterruptGuard, current_guard

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

T = TypeVar("T")


_main_thread: list[Callable[[Callable[[], object]], object]] = []


def drive_by(call: Callable[[Callable[[], object]], object]) -> None:
    """Have the next sync agent driven by what `call` hands over to the main thread, where it can handle signals."""
    _main_thread.append(call)


class Worker(Generic[T]):
    """Runs one function in a daemon thread of its own and returns its result to whoever waits for it.

    A thread of asyncio's default executor would delay the exit of the kernel. `is_driver` is true for a sync agent
    itself, not for something beside it; see `drive_by()`. Threads: any method, from any thread and any event loop.
    """

    def __init__(
        self, run_id: str, function: Callable[[], T], context: Context, *, name: str = "", is_driver: bool = False
    ) -> None:
        self.name = name or run_id
        self.is_driver = is_driver
        self._function = function
        self._context = context
        self._over: Future[None] = _begun()
        self._guard = InterruptGuard()
        self._thread: threading.Thread | None = None
        self._run_id = run_id

    def start(self) -> Future[T]:
        """Start the thread; return what the function will return or raise."""
        outcome: Future[T] = _begun()
        if self.is_driver and _main_thread:
            self._thread = threading.main_thread()
            _main_thread.pop()(partial(self._main, outcome))
            return outcome
        name = f"nbrun-agent-{self._run_id}"
        self._thread = threading.Thread(target=self._main, args=(outcome,), name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system has no more threads: it has ended before it began
            self._over.set_result(None)
            raise
        return outcome

    async def result(self) -> T:
        """Start the thread and wait for its result; a cancel leaves the thread to the host's escalation."""
        return await asyncio.wrap_future(self.start())

    def is_alive(self) -> bool:
        """Return whether the agent's code still runs."""
        return not self._over.done()

    async def ended(self) -> None:
        """Return when the agent's code has ended there."""
        await asyncio.wrap_future(self._over)

    def interrupt(self) -> bool:
        """Raise `Cancelled` in the thread at its next bytecode.

        While it is in nbrun's own code, return False; it is raised when that is over.
        """
        is_started = self._thread is not None and self._thread.ident is not None
        return is_started and self._guard.interrupt(later=True)

    def is_importing(self) -> bool:
        """Return whether the thread is within an import; interrupted there, it may leave half a package behind."""
        frame = sys._current_frames().get((self._thread and self._thread.ident) or 0)
        while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
            frame = frame.f_back
        return frame is not None

    def _main(self, outcome: Future[T]) -> None:
        try:
            result = self._context.run(self._run_guarded)
        except StopIteration:  # a future refuses this one: it would end the waiting coroutine
            self._over.set_result(None)
            outcome.set_exception(RuntimeError("the agent raised StopIteration"))
        except BaseException as error:  # carried to the host, which fails this run only
            self._over.set_result(None)
            outcome.set_exception(error)
        else:
            self._over.set_result(None)
            outcome.set_result(result)
        finally:
            del outcome  # it leads to the error, and that to this frame: see `Steps.throw()`

    def _run_guarded(self) -> T:
        guard = self._guard
        guard.bind()
        current_guard.set(guard)
        guard.leave()
        try:
            return self._function()
        finally:
            guard.enter()


def _begun() -> Future[Any]:
    """Return a future that looks started: cancelling the wait for it does not cancel it."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future
