"""Any agent on a loop and thread of its own: for agents that block (`--thread`)."""

from __future__ import annotations

import asyncio
import functools
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from nbrun import reentrant
from nbrun.agents import Output, as_native, find_adapter
from nbrun.agents.other_loop import drained
from nbrun.agents.outer import OuterAdapter
from nbrun.agents.worker import Worker
from nbrun.cancellation import call_soon

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from nbrun.agents import AgentAdapter
    from nbrun.agents.other_loop import Hold
    from nbrun.agents.outer import Items
    from nbrun.context import RunContext

NATIVE_SHARE = 0.8
"""The share of the grace that a framework's own cancel has before the task is cancelled."""


class ThreadedAdapter(OuterAdapter):
    """Drives an agent by its own adapter, on a loop and thread of its own; its deltas go to the run from there.

    There, not on the host's loop, it is also cancelled: by its framework, then as a task.

    Parameters
    ----------
    grace_s : what the run has to end in after a cancel.
    hold : returns the seconds that the agent is to be held, because what it sends cannot be stored as fast.
    """

    name = "thread"

    def __init__(self, agent: object, grace_s: float, hold: Hold) -> None:
        super().__init__(find_adapter(agent))
        self._grace_s = grace_s
        self._hold = hold

    async def _driven(self, agent: object, items: Items, run: RunContext) -> Items:
        sending = drained(items, run, self._hold)
        work = _on_own_loop(sending, run, self._inner, self._grace_s * NATIVE_SHARE)
        drive = functools.partial(_run_on_own_loop, work)
        worker = Worker(run.run_id, drive, copy_context(), name=self.label(agent), is_driver=True)
        run.add_work(worker)
        result = await worker.result()
        run.drop_work(worker)  # so that a cancel from here on is none of a thread
        yield Output(result)


def _run_on_own_loop(work: Coroutine[Any, Any, object]) -> object:
    # It blocks nobody else, so it may as well be entered again: `asyncio.run()` within an agent works there.
    with asyncio.Runner(loop_factory=reentrant.new_loop) as runner:
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
