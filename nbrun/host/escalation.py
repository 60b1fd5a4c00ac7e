"""The steps of a cancel: asks an agent to stop, ever more firmly, and names what has not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nbrun.agents import AgentAdapter, NativeCancel, Process, RunContext, Work, Worker, as_native
from nbrun.core import LoopLatch, Rung, events as ev
from nbrun.host.belongings import Belongings
from nbrun.host.failures import say

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nbrun.host.attempt import Attempt
    from nbrun.host.loops import LoopThread

LAST_S = 0.4
"""Seconds that each step after the grace period gets, before what still runs is named."""

_AGAIN_S = 0.02


class Escalation:
    """Stops a run step by step, from its fired token until nothing of it runs any more.

    It stops the task that drives the agent, then what the agent has left running: other tasks, threads, processes.
    The driving task comes first, so that a `TaskGroup` in it ends its own tasks in its own order. A thread cannot be
    cancelled, only asked, and then have `Cancelled` raised in it. Threads: of the host's loop.

    Parameters
    ----------
    rest : what the agent has started beside its task.
    finished : set when neither the task nor any of the rest runs any more.
    cancel_task : cancels the driving task; returns False when it is over.
    report : takes an event of the host's own.
    give_up : ends the run with these names of what still runs.
    """

    __slots__ = (
        "_attempt", "_cancel_task", "_clock", "_finished", "_give_up", "_is_task_cancelled", "_native", "_report",
        "_rest", "_run", "_thread", "_timer", "_until",
    )  # fmt: skip

    def __init__(
        self,
        attempt: Attempt,
        adapter: AgentAdapter,
        run: RunContext,
        thread: LoopThread,
        finished: LoopLatch,
        cancel_task: Callable[[], bool],
        report: Callable[[ev.EventData], None],
        give_up: Callable[[tuple[str, ...]], Awaitable[None]],
    ) -> None:
        self._attempt = attempt
        self._clock = run.clock
        self._native = as_native(adapter)
        self._run = run
        self._rest = Belongings(run)
        self._thread = thread
        self._finished = finished
        self._cancel_task = cancel_task
        self._report = report
        self._give_up = give_up
        self._until = 0.0
        self._is_task_cancelled = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, fired_at: float) -> None:
        """Take the first step; `fired_at` is when the token fired, by the monotonic clock."""
        self._until = fired_at + self._attempt.grace_s
        if self._native is not None or self._has_driver():
            if self._native is None:
                self.stop_rest(processes=False)  # not yet: the agent would take it for its command's failure
            self._climb_on()
            return
        # A coroutine, as most agents are: no task is made for what is over in a moment.
        if not self._stop_task():
            self.stop_rest()
        self._timer = self._thread.loop.call_later(self._left_s(), self._climb_on, context=self._thread.context)

    def end(self) -> None:
        """Stop escalating: nothing runs any more."""
        if self._timer is not None:
            self._timer.cancel()

    def stop_rest(self, *, processes: bool = True) -> bool:
        """Cancel what the agent has left running; return whether there was anything."""
        if names := self._rest.stop(processes=processes):
            self._report(ev.CancelEscalated(Rung.TASK, ", ".join(names)))
        return bool(names)

    async def end_rest(self) -> tuple[str, ...]:
        """Stop what a failed agent has left running; return the names of what does not stop."""
        rest, until = self._rest, self._clock.monotonic() + self._attempt.grace_s
        rest.stop()
        for is_last in (False, True):
            if is_last:
                rest.stop_all_tasks()
            while rest.is_running and self._clock.monotonic() < until:
                for work in rest.work():
                    if is_last or not isinstance(work, Process):  # that one has the grace period
                        work.interrupt()
                await rest.ended(_AGAIN_S)
            until = self._clock.monotonic() + LAST_S
        return self._named()

    async def let_rest_end(self) -> tuple[str, ...]:
        """Give what an agent has left running at its return the grace period; return the names of what still runs.

        Then its tasks are cancelled, as `asyncio.run()` does. Its calls of `asyncio.to_thread()` are waited for, as
        that does, too. Its other threads and its processes may be what it was to start: they are only named.
        """
        rest = self._rest
        if await rest.ended(self._attempt.grace_s):
            return ()
        if names := rest.stop_tasks():
            took = f"{self._attempt.grace_s:g} s"
            self._report(ev.Log(f"cancelled {took} after the agent returned: {', '.join(names)}", "warning"))
            if not await rest.ended(LAST_S) and rest.stop_all_tasks():
                await rest.ended(LAST_S)
        for work in rest.work():
            if isinstance(work, Worker):
                await work.ended()
        return self._named()

    def _named(self) -> tuple[str, ...]:
        """Return the names of what still runs, after a line in the log."""
        if names := self._rest.names():
            self._report(ev.Log(f"still running: {', '.join(names)}", "warning"))
        return names

    def _climb_on(self) -> None:
        self._timer = None
        # The run's context, whoever cancels it. A copy: the agent may be in its own, and enter the loop again.
        context = self._attempt.context.copy()
        self._thread.spawn(self._climb(), f"nbrun-cancel-{self._run.run_id}", context)

    async def _climb(self) -> None:
        if not self._finished.is_set() and not await self._reaches_the_end():
            await self._give_up(self._rest.names())

    async def _reaches_the_end(self) -> bool:
        """Take one step after the other; return whether nothing runs any more."""
        if self._native is not None:
            self._report(ev.CancelEscalated(Rung.NATIVE))
            await self._ask(self._native)
        if await self._has_finished(self._left_s()):  # a sync agent may check its token, too
            return True
        if self._native is not None and self._stop_task() and await self._has_finished(LAST_S):
            return True
        alive = self._rest.work()
        if alive:
            self._report(ev.CancelEscalated(Rung.THREAD, ", ".join(work.name for work in alive)))
            if await self._interrupt(alive):
                return True
        # A sync function may have returned a coroutine, and its thread is over: that is one more step.
        was_asked = [self._stop_task(), self.stop_rest(), self._rest.stop_all_tasks()]
        return any(was_asked) and await self._has_finished(LAST_S)

    async def _ask(self, adapter: NativeCancel) -> None:
        try:
            async with asyncio.timeout(self._left_s()):
                await adapter.cancel(self._run)
        except Exception as error:  # the next step does not need this one
            say("native cancel failed", error, lambda text: self._report(ev.Log(text, "error")))

    def _stop_task(self) -> bool:
        """Cancel the driving task, once, and not while it waits for a sync agent; return whether it was."""
        if self._is_task_cancelled or self._has_driver() or not self._cancel_task():
            return False
        self._is_task_cancelled = True
        self._report(ev.CancelEscalated(Rung.TASK))
        return True

    async def _interrupt(self, alive: list[Work]) -> bool:
        """Kill processes, and raise `Cancelled` in threads; again while one is inside nbrun's own code."""
        until = self._clock.monotonic() + LAST_S
        while self._clock.monotonic() < until:
            for work in alive:
                if work.is_alive():
                    work.interrupt()
            if await self._has_finished(_AGAIN_S):
                return True
        return False

    def _has_driver(self) -> bool:
        """Return whether a thread is the agent, or was until now: its result may be on its way to the task."""
        return any(work.is_driver for work in self._run.work)

    def _left_s(self) -> float:
        return max(0.0, self._until - self._clock.monotonic())

    async def _has_finished(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._finished.wait()
        except TimeoutError:
            return self._finished.is_set()  # both may have come in one turn of the loop
        return True
