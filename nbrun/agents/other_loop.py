"""Any agent on a loop that nbrun does not own: the kernel's, for agents that cells await as well (`--loop kernel`).

What it costs: the agent goes on only while the kernel is idle or awaits, so a cell that blocks holds it up, its
cancel too; and what it blocks, it blocks for the whole notebook.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from nbrun.agents import Output, as_native, find_adapter
from nbrun.agents.outer import OuterAdapter
from nbrun.cancellation import call_soon
from nbrun.gate import current_guard

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from nbrun.agents import AgentAdapter
    from nbrun.agents.outer import Items
    from nbrun.context import RunContext

    Hold = Callable[[], float]


class LoopAdapter(OuterAdapter):
    """Drives an agent by its own adapter on another loop; on the host's it is only waited for.

    Parameters
    ----------
    hold : returns the seconds that the agent is to be held, because what it sends cannot be stored as fast.
    """

    name = "loop"

    def __init__(self, inner: AgentAdapter, loop: asyncio.AbstractEventLoop, hold: Hold) -> None:
        super().__init__(inner)
        self._loop = loop
        self._hold = hold

    async def _driven(self, _agent: object, items: Items, run: RunContext) -> Items:
        work = _Elsewhere(self._loop, drained(items, run, self._hold), f"nbrun-run-{run.run_id}")
        over = asyncio.wrap_future(work.over)
        try:
            output = await asyncio.shield(over)
        except asyncio.CancelledError:
            if over.done():
                raise  # the agent's own
            work.stop()
            await asyncio.wait({over})
            output = over.result()  # which raises what it has raised
        yield Output(output)


class NativeLoopAdapter(LoopAdapter):
    """The same, for a framework that can stop its agent; it is asked on the agent's loop."""

    async def cancel(self, run: RunContext) -> None:
        """Stop the agent."""
        native = as_native(self._inner)
        assert native is not None  # noqa: S101 - see `on_loop()`
        asked = _Elsewhere(self._loop, native.cancel(run), f"nbrun-cancel-{run.run_id}")
        await asyncio.shield(asyncio.wrap_future(asked.over))


def on_loop(agent: object, loop: asyncio.AbstractEventLoop, hold: Hold) -> LoopAdapter:
    """Return the adapter that drives `agent` on that loop."""
    inner = find_adapter(agent)
    kind = LoopAdapter if as_native(inner) is None else NativeLoopAdapter
    return kind(inner, loop, hold)


async def drained(items: Items, run: RunContext, hold: Hold) -> object:
    """Send to the run what an adapter yields, on this loop; return the output."""
    output: object = None
    async with aclosing(items) as closing:  # type: ignore[type-var]  # adapters are async generators
        async for item in closing:
            if isinstance(item, Output):
                output = item.value
                continue
            run.send(item)
            if pause_s := hold():
                await asyncio.sleep(pause_s)
    return output


class _Elsewhere:
    """A task on another loop, in a copy of the context of whoever makes it.

    Threads: made, stopped and waited for on any; `_task` is of its loop.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], name: str
    ) -> None:
        self.over: Future[Any] = Future()
        self.over.set_running_or_notify_cancel()  # giving up the wait for it does not cancel it
        self._loop = loop
        self._work = work
        self._name = name
        self._task: asyncio.Task[Any] | None = None
        try:
            loop.call_soon_threadsafe(self._begin)
        except RuntimeError:  # it is closed
            work.close()
            raise

    def stop(self) -> None:
        """Cancel the task, when its loop comes to that."""
        call_soon(self._loop, lambda: self._task is not None and self._task.cancel())

    def _begin(self) -> None:
        current_guard.set(None)  # that of the thread where it was made
        self._task = self._loop.create_task(self._work, name=self._name)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._task = None  # it leads back here
        if task.cancelled():
            self.over.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.over.set_exception(error)
        else:
            self.over.set_result(task.result())
