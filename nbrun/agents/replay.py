"""A recorded run as an agent: it repeats the recording, without a model or a key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nbrun.agents import NO_NATIVE_CANCEL, AgentAdapter, Limitations, Output, RunContext, events as ev, shown
from nbrun.core.record import standing
from nbrun.core.recording import MAX_SPEED, RecordedError, Replay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


BREATH = 50
"""How many events may follow one another before other runs get their turn."""

_LEFT_OUT = frozenset(
    cls.TYPE
    for cls in (
        ev.RunCreated, ev.RunStarted, ev.RunWaiting, ev.RunResumed, ev.CancelRequested, ev.CancelEscalated,
        ev.DetachedFinished, ev.SteerReady, ev.SteerTaken,
    )
)  # fmt: skip
"""What the replay's host sends itself, or what means nothing in a replay."""


class ReplayAdapter(AgentAdapter):
    """Drives a `Replay`."""

    name = "replay"
    limitations = Limitations(
        functions="its tools are shown, not run",
        approvals="it doesn't ask again",
        steering="the recording is fixed",
        native_cancel=NO_NATIVE_CANCEL,
        resume="resume the recorded run itself",
    )

    def match(self, agent: object) -> bool:
        """Return whether it is a replay."""
        return isinstance(agent, Replay)

    def label(self, agent: object) -> str:
        """Return the recorded agent's name."""
        return (agent.header.agent if isinstance(agent, Replay) else "") or self.name

    async def events(self, agent: object, prompt: str, run: RunContext) -> AsyncIterator[ev.EventData | Output]:
        """Yield what was recorded, at the recorded pace, and end as the recorded run did."""
        assert isinstance(agent, Replay)  # noqa: S101 - match() said so
        pace, usage = _Pace(agent.speed), ev.Usage()
        for event in standing(agent.events):
            if isinstance(event.data, ev.Usage):
                usage = event.data
            if event.type in ev.END_TYPES:
                await pace.wait_for(event)
                async for item in _end(event.data, usage, run):
                    yield item
                return
            data = _again(event)
            await pace.wait_for(event)
            if data is not None:
                yield data
        raise RecordedError(ev.ErrorInfo("Unfinished", "the recording ends before its run has ended"))


class _Pace:
    """When the next event is due; the time spent waiting for an answer is left out."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._last: float | None = None
        self._waits = False
        self._count = 0

    async def wait_for(self, event: ev.RunEvent) -> None:
        gap_s = 0.0 if self._last is None or self._waits else max(0.0, event.ts - self._last)
        self._last = event.ts
        if event.type == ev.RunWaiting.TYPE:
            self._waits = True
        elif event.type in (ev.RunResumed.TYPE, *ev.END_TYPES):
            self._waits = False
        self._count += 1
        if self._speed < MAX_SPEED and gap_s > 0:
            await asyncio.sleep(gap_s / self._speed)
        elif self._count % BREATH == 0:
            await asyncio.sleep(0)


def _again(event: ev.RunEvent) -> ev.EventData | None:
    """Return what a replay sends for an event; questions, answers and messages become lines of its log."""
    match event.data:
        case ev.ApprovalRequested(message=message):
            return ev.Log(f"asked: {shown(message, 200)}")
        case ev.ApprovalResolved(decision=decision, by=by):
            return ev.Log(f"answered: {shown(decision, 80)}{by and f' (by {shown(by, 40)})'}")
        case ev.Steer(text=text):
            return ev.Log(f"message: {shown(text, 200)}")
        case ev.AttemptLost(number=number, error=error):
            return ev.Log(f"attempt {number} was lost: {shown(str(error), 200)}", "warning")
        case ev.Log() if event.attempt == 0:  # a notice of the session that ran it
            return None
        case data:
            return None if event.type in _LEFT_OUT else data


async def _end(data: ev.EventData, reported: ev.Usage, run: RunContext) -> AsyncIterator[ev.EventData | Output]:
    usage = getattr(data, "usage", None)
    if isinstance(usage, ev.Usage) and usage != reported:
        yield usage
    match data:
        case ev.RunCompleted(output=output):
            yield Output(output)
        case ev.RunFailed(error=error):
            raise RecordedError(error)
        case ev.RunCancelled(cause=cause, reason=reason, output=output, error=error):
            yield Output(output)
            # So it ends cancelled, whatever follows.
            run.token.cancel(reason, cause, patience_s=0.0)
            if error is not None:
                raise RecordedError(error)
        case _:  # a replay does not end its kernel
            raise RecordedError(ev.ErrorInfo("RunLost", "the kernel of the recorded run died here"))


ADAPTER = ReplayAdapter()
