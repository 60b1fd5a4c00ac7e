"""The cancel ladder: asks an agent to stop, ever more firmly, and says at the end whether it has."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nbrun import events as ev
from nbrun.agents import NativeCancel
from nbrun.cancellation import Rung

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.agents import AgentAdapter
    from nbrun.clock import Clock
    from nbrun.context import RunContext

LAST_S = 0.5
"""Seconds that the last rung gets, after the grace, before what still runs is named."""

_AGAIN_S = 0.02


class Ladder:
    """The rungs between a fired token and an agent that has ended.

    Threads: of the host's loop.

    Parameters
    ----------
    finished : set when the drive of the agent is over.
    cancel_task : cancels the driving task.
    grace_s : seconds that cleanup code gets.
    """

    def __init__(
        self,
        adapter: AgentAdapter,
        run: RunContext,
        finished: asyncio.Event,
        cancel_task: Callable[[], object],
        grace_s: float,
        clock: Clock,
    ) -> None:
        self._adapter = adapter
        self._run = run
        self._finished = finished
        self._cancel_task = cancel_task
        self._grace_s = grace_s
        self._clock = clock

    async def climb(self) -> bool:
        """Use one rung after the other; return whether the agent has ended."""
        grace_s = self._grace_s
        if isinstance(self._adapter, NativeCancel):
            self._tell(Rung.NATIVE)
            await self._native(self._adapter)
            if await self._has_finished(grace_s):
                return True
            grace_s = LAST_S  # the native cancel has used the grace up
        if self._run.work:  # a sync agent, which may look at its token, or be about to return
            if await self._has_finished(grace_s):
                return True
            if self._run.work:
                return await self._thread()
            # Its thread has ended, and gave a coroutine that has not: one rung more for that.
        self._tell(Rung.TASK)
        self._cancel_task()
        return await self._has_finished(grace_s)

    async def _native(self, adapter: NativeCancel) -> None:
        try:
            async with asyncio.timeout(self._grace_s):
                await adapter.cancel(self._run)
        except Exception as error:  # the ladder goes on: the next rung does not need this one
            self._run.log(f"native cancel failed: {type(error).__name__}: {error}", "error")

    async def _thread(self) -> bool:
        """Raise `Cancelled` in the worker threads; again while one is inside nbrun's own code."""
        alive = [work for work in self._run.work if work.is_alive()]
        self._tell(Rung.THREAD, ", ".join(work.name for work in alive))
        until = self._clock.monotonic() + LAST_S
        while self._clock.monotonic() < until:
            for work in alive:
                if work.is_alive():
                    work.interrupt()
            if await self._has_finished(_AGAIN_S):
                return True
        return False

    def _tell(self, rung: Rung, note: str = "") -> None:
        self._run.send(ev.CancelEscalated(rung, note))

    async def _has_finished(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._finished.wait()
        except TimeoutError:
            return False
        return True
