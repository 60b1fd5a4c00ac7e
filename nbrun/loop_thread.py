"""An event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from nbrun.cancellation import call_soon
from nbrun.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context


class LoopThread:
    """An event loop on a daemon thread, which keeps the tasks that it is given.

    Threads: `spawn()` only on the loop; everything else from any thread. `_tasks` is of the loop.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task and keep it until it ends."""
        task = self.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def call(self, function: Callable[[], object], context: Context | None = None) -> bool:
        """Call `function` on the loop, in `context`; False when the loop has been closed."""
        return call_soon(self.loop, function, context)

    @property
    def is_current(self) -> bool:
        """Whether this code runs on the loop's thread, where a blocking wait would stop every run."""
        return threading.current_thread() is self._thread

    def close(self, timeout_s: float) -> bool:
        """Stop the loop; return whether its thread has ended within the time."""
        self._is_stopping = True
        call_soon(self.loop, self.loop.stop)
        if not self.is_current:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._is_stopping:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt, Cancelled):
                # asyncio lets these out of a task that an agent has started on the side. They end
                # that task; they must not end the loop of everybody's runs.
                continue
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))  # lets each see its CancelledError once
        self.loop.close()
