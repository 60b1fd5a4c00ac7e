"""A worker thread for a sync agent, into which a cancel can be raised."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import threading
from typing import TYPE_CHECKING

from nbrun.cancellation import call_soon
from nbrun.context import current_guard
from nbrun.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
from typing import Generic, TypeVar

T = TypeVar("T")


class Worker(Generic[T]):
    """Runs one function in a daemon thread of its own and hands its result to an event loop.

    A thread of the loop's default executor would hold up the exit of the kernel; this one does not.

    Threads: constructed and awaited on the loop; `interrupt()` and `is_alive()` from any thread; `enter()`
    and `leave()` only by the worker thread itself. `_guards` and `_raised` are written under `_lock`.
    """

    def __init__(self, name: str, function: Callable[[], T], context: Context) -> None:
        self.name = name
        self._function = function
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[T] = self._loop.create_future()
        self._ended = threading.Event()
        self._lock = threading.RLock()
        self._guards = (
            1  # how often nbrun's own code was begun and not ended; 0 is the agent's code
        )
        self._raised = False
        self._thread = threading.Thread(target=self._main, name=f"nbrun-agent-{name}", daemon=True)

    async def result(self) -> T:
        """Start the thread and wait for what the function returns or raises.

        A cancel of the waiting task leaves the thread alive: ending it is the host's ladder's business.
        """
        self._thread.start()
        return await self._done

    def is_alive(self) -> bool:
        """Return whether the agent's code still runs."""
        return not self._ended.is_set()

    def interrupt(self) -> bool:
        """Raise `Cancelled` in the thread at its next bytecode; False while it is inside nbrun's own code.

        A call into C sees it only when it returns.
        """
        with self._lock:
            if self._guards or self._raised or self._thread.ident is None:
                return self._raised
            self._raised = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident), ctypes.py_object(Cancelled)
            )
            return True

    def enter(self) -> None:
        """Begin nbrun's own code: nothing is raised into the thread until `leave()`."""
        with self._lock:
            self._guards += 1
            pending = self._raised
        if pending:
            # Raised, but perhaps not seen yet: CPython looks at backward jumps, so it surfaces here and
            # not between two steps of the code that is guarded.
            for _ in range(100):
                pass

    def leave(self) -> None:
        """End nbrun's own code."""
        with self._lock:
            self._guards -= 1

    def _main(self) -> None:
        settle: Callable[[], object]
        try:
            result = self._context.run(self._run_guarded)
            settle = functools.partial(self._succeed, result)
        except BaseException as error:  # carried to the host, which fails this run only
            settle = functools.partial(self._fail, error)
        self._ended.set()
        call_soon(self._loop, settle)

    def _run_guarded(self) -> T:
        current_guard.set(self)
        self.leave()
        try:
            return self._function()
        finally:
            self.enter()

    def _succeed(self, result: T) -> None:
        if not self._done.done():  # else its waiter was cancelled
            self._done.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if self._done.done():
            return
        # A future refuses this one: it would end the waiting coroutine.
        if isinstance(error, StopIteration):
            error = RuntimeError("the agent raised StopIteration")
        self._done.set_exception(error)
