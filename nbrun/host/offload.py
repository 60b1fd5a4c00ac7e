"""Drives an agent elsewhere than on the host's loop: on a thread of its own, or on the kernel's loop.

On the kernel's loop, for agents whose client cells await as well, the agent makes progress only while the kernel is
idle or awaits: a cell that blocks delays it, and its cancel too; and what it blocks, it blocks for the whole notebook.
"""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import Future
from contextlib import aclosing
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from nbrun.agents import AgentAdapter, Output, Resuming, RunContext, Worker, as_native, find_adapter
from nbrun.agents.functions import PlainAdapter, is_async
from nbrun.core import State, call_soon, current_guard, events as ev
from nbrun.host import loops

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    Hold = Callable[[], float]
    Items = AsyncIterator[ev.EventData | Output]


class WrappingAdapter:
    """Asks the agent's own adapter everything, and drives elsewhere what that yields.

    `hold` returns for how many seconds the agent must wait, because its events cannot be stored as fast.
    """

    name = "wrapping"

    def __init__(self, inner: AgentAdapter, hold: Hold) -> None:
        self._inner = inner
        self._hold = hold

    def match(self, agent: object) -> bool:
        """Return whether the inner adapter takes it."""
        return self._inner.match(agent)

    def check(self, agent: object) -> None:
        """Ask the inner adapter."""
        self._inner.check(agent)

    def label(self, agent: object) -> str:
        """Return its name."""
        return self._inner.label(agent)

    def events(self, agent: object, prompt: str, run: RunContext) -> Items:
        """Yield what the agent returns; its deltas go to the run from where it is driven."""
        items = self._inner.events(agent, prompt, run)
        if isinstance(self._inner, PlainAdapter) and not is_async(agent):
            return items  # it has a thread of its own anyway
        return self._driven(agent, items, run)

    def resume(self, agent: object, state: State, run: RunContext) -> Items:
        """Yield what the agent returns, from a saved state if its adapter can resume one."""
        if not isinstance(self._inner, Resuming):
            return self.events(agent, run.prompt, run)
        return self._driven(agent, self._inner.resume(agent, state, run), run)

    def _driven(self, agent: object, items: Items, run: RunContext) -> Items:
        """Drive it elsewhere, and yield what it returns."""
        raise NotImplementedError


class LoopAdapter(WrappingAdapter):
    """Drives an agent by its own adapter on another loop; the host's loop only waits for it."""

    name = "loop"

    def __init__(self, inner: AgentAdapter, loop: asyncio.AbstractEventLoop, hold: Hold) -> None:
        super().__init__(inner, hold)
        self._loop = loop

    async def _driven(self, _agent: object, items: Items, run: RunContext) -> Items:
        sending = _send_all(items, run, self._hold)
        work = _LoopTask(self._loop, sending, f"nbrun-run-{run.run_id}")
        over = asyncio.wrap_future(work.over)
        try:
            output = await asyncio.shield(over)
        except asyncio.CancelledError:
            if over.done():
                raise  # the agent's own
            work.stop()
            await asyncio.wait({over})
            output = over.result()  # raises what it has raised
        yield Output(output)


class NativeLoopAdapter(LoopAdapter):
    """The same, for a framework that can stop its agent, which happens on the agent's loop."""

    async def cancel(self, run: RunContext) -> None:
        """Stop the agent."""
        native = as_native(self._inner)
        assert native is not None  # noqa: S101 - see `on_loop()`
        cancel = _LoopTask(self._loop, native.cancel(run), f"nbrun-cancel-{run.run_id}")
        await asyncio.shield(asyncio.wrap_future(cancel.over))


def on_loop(agent: object, loop: asyncio.AbstractEventLoop, hold: Hold) -> LoopAdapter:
    """Return the adapter that drives `agent` on that loop."""
    inner = find_adapter(agent)
    kind = LoopAdapter if as_native(inner) is None else NativeLoopAdapter
    return kind(inner, loop, hold)


async def _send_all(items: Items, run: RunContext, hold: Hold) -> object:
    """Send to the run what an adapter yields, on this loop; return the output."""
    output: object = None
    async with aclosing(items) as closing:  # type: ignore[type-var]  # adapters are async generators
        async for item in closing:
            if isinstance(item, Output):
                output = item.value
                continue
            run.send(item)
            while pause_s := hold():  # noqa: ASYNC110 - nobody reports it
                await asyncio.sleep(pause_s)
    return output


class _LoopTask:
    """A task on another loop, in a copy of the current context. Threads: any; `_task` is of its loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], name: str) -> None:
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
        """Cancel the task, on its loop."""
        call_soon(self._loop, lambda: self._task is not None and self._task.cancel())

    def _begin(self) -> None:
        current_guard.set(None)  # it was that of the thread that made this
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


NATIVE_SHARE = 0.8
"""The share of the grace period that a framework's own cancel has before the task is cancelled."""


class ThreadedAdapter(WrappingAdapter):
    """Drives an agent by its own adapter, on a loop and thread of its own, and sends its events from there.

    There, not on the host's loop, it is also cancelled: by its framework, then as a task.
    """

    name = "thread"

    def __init__(self, agent: object, grace_s: float, hold: Hold) -> None:
        super().__init__(find_adapter(agent), hold)
        self._grace_s = grace_s

    async def _driven(self, agent: object, items: Items, run: RunContext) -> Items:
        sending = _send_all(items, run, self._hold)
        work = _on_own_loop(sending, run, self._inner, self._grace_s * NATIVE_SHARE)
        drive = functools.partial(_run_on_own_loop, work)
        worker = Worker(run.run_id, drive, copy_context(), name=self.label(agent), is_driver=True)
        run.add_work(worker)
        result = await worker.result()
        run.drop_work(worker)  # a cancel from here on no longer concerns the thread
        yield Output(result)


def _run_on_own_loop(work: Coroutine[Any, Any, object]) -> object:
    # It blocks no other run, so it may as well be entered again: `asyncio.run()` inside an agent works there.
    loops.may_enter.set(True)
    with asyncio.Runner(loop_factory=loops.new_loop) as runner:
        return runner.run(work)


async def _on_own_loop(
    sending: Coroutine[Any, Any, object], run: RunContext, adapter: AgentAdapter, native_s: float
) -> object:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None  # noqa: S101 - a coroutine that runs has one
    native = as_native(adapter)
    asked: list[asyncio.Task[None]] = []

    def stop() -> None:
        if native is None:
            task.cancel()
        else:
            asked.append(loop.create_task(native.cancel(run), name=f"nbrun-cancel-{run.run_id}"))
            loop.call_later(native_s, task.cancel)

    handle = run.token.add_first(lambda _request: call_soon(loop, stop))
    try:
        return await sending
    finally:
        handle.remove()
