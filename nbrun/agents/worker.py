"""A worker thread for a sync agent, into which a cancel can be raised."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import TYPE_CHECKING

from nbrun.cancellation import call_soon
from nbrun.context import current_guard
from nbrun.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
from typing import Generic, TypeVar

T = TypeVar("T")


class Worker(Generic[T]):
    """Runs one function in a daemon thread of its own and hands its result to an event loop.

    A thread of the loop's default executor would hold up the exit of the kernel; this one does not.

    Threads: constructed and awaited on the loop; `interrupt()` and `is_alive()` from any thread.
    """

    def __init__(
        self,
        run_id: str,
        function: Callable[[], T],
        context: Context,
        *,
        name: str = "",
        is_driver: bool = False,
    ) -> None:
        self.name = name or run_id
        self.is_driver = is_driver
        self._function = function
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[T] = self._loop.create_future()
        self._ended = threading.Event()
        self._settled = asyncio.Event()
        self._gate = Gate()
        self._thread = threading.Thread(
            target=self._main, name=f"nbrun-agent-{run_id}", daemon=True
        )

    async def result(self) -> T:
        """Start the thread and wait for what the function returns or raises.

        A cancel of the waiting task leaves the thread alive: ending it is the host's ladder's business.
        """
        self._thread.start()
        return await self._done

    def is_alive(self) -> bool:
        """Return whether the agent's code still runs."""
        return not self._ended.is_set()

    async def ended(self) -> None:
        """Return when the agent's code has ended there; on the loop."""
        await self._settled.wait()

    def interrupt(self) -> bool:
        """Raise `Cancelled` in the thread at its next bytecode; False while it is inside nbrun's own code."""
        return self._gate.interrupt()

    def _main(self) -> None:
        settle: Callable[[], object]
        try:
            result = self._context.run(self._run_guarded)
            settle = functools.partial(self._succeed, result)
        except BaseException as error:  # carried to the host, which fails this run only
            settle = functools.partial(self._fail, error)
        self._ended.set()
        call_soon(self._loop, settle)
        call_soon(self._loop, self._settled.set)

    def _run_guarded(self) -> T:
        gate = self._gate
        gate.bind()
        current_guard.set(gate)
        gate.leave()
        try:
            return self._function()
        finally:
            gate.enter()

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
