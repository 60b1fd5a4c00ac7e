"""A recorded run as an agent: it does again what the record tells, with no model and no key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nbrun.agents import NO_NATIVE_CANCEL, Lacks, Output, RunContext, events as ev, shown
from nbrun.core.recording import MAX_SPEED, RecordedError, Replay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


BREATH = 50
"""Events that may follow one another before other runs have their turn."""

_OF_THE_HOST = frozenset(
    cls.TYPE
    for cls in (
        ev.RunCreated, ev.RunStarted, ev.RunWaiting, ev.RunResumed, ev.CancelRequested, ev.CancelEscalated,
        ev.DetachedFinished, ev.SteerReady, ev.SteerTaken,
    )
)  # fmt: skip
"""What the host of the replay says itself, or what has no meaning in one."""


class ReplayAdapter:
    """Drives a `Replay`."""

    name = "replay"
    lacks = Lacks(
        functions="its tools are shown, not run",
        approvals="it asks nobody again",
        steering="what it does is recorded",
        native_cancel=NO_NATIVE_CANCEL,
        resume="it shows a run, which can be gone on with itself",
    )

    def match(self, agent: object) -> bool:
        """Return whether it is a replay."""
        return isinstance(agent, Replay)

    def check(self, agent: object) -> None:
        """Accept it: a recording was checked when it was read."""

    def label(self, agent: object) -> str:
        """Return the name of the agent that was recorded."""
        return (agent.header.agent if isinstance(agent, Replay) else "") or self.name

    async def events(
        self, agent: object, prompt: str, run: RunContext
    ) -> AsyncIterator[ev.EventData | Output]:
        """Yield what was recorded, each thing when its time has come, and end as the recorded run did."""
        assert isinstance(agent, Replay)  # noqa: S101 - match() said so
        pace, usage = _Pace(agent.speed), ev.Usage()
        for event in agent.events:
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
        raise RecordedError(ev.ErrorInfo("Unfinished", "the recording ends before its run does"))


class _Pace:
    """When the next event is due. While a person was waited for, the time stood still."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._last: float | None = None
        self._waits = False
        self._count = 0

    async def wait_for(self, event: ev.RunEvent) -> None:
        """Return when it is due."""
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
    """Return what a replay sends for an event; nobody is asked again, so what people said becomes a line."""
    match event.data:
        case ev.ApprovalRequested(message=message):
            return ev.Log(f"asked: {shown(message, 200)}")
        case ev.ApprovalResolved(decision=decision, by=by):
            return ev.Log(f"answered: {shown(decision, 80)}{by and f' (by {shown(by, 40)})'}")
        case ev.Steer(text=text):
            return ev.Log(f"was told: {shown(text, 200)}")
        case ev.Log() if event.attempt == 0:  # a notice of the session that ran it
            return None
        case data:
            return None if event.type in _OF_THE_HOST else data


async def _end(
    data: ev.EventData, told: ev.Usage, run: RunContext
) -> AsyncIterator[ev.EventData | Output]:
    """End as the recorded run did."""
    usage = getattr(data, "usage", None)
    if isinstance(usage, ev.Usage) and usage != told:
        yield usage
    match data:
        case ev.RunCompleted(output=output):
            yield Output(output)
        case ev.RunFailed(error=error):
            raise RecordedError(error)
        case ev.RunCancelled(cause=cause, reason=reason, output=output, error=error):
            yield Output(output)
            # So it ends cancelled, whatever comes now.
            run.token.cancel(reason, cause, patience_s=0.0)
            if error is not None:
                raise RecordedError(error)
        case _:  # no replay loses its kernel
            raise RecordedError(ev.ErrorInfo("RunLost", "here the kernel of the recorded run died"))


ADAPTER = ReplayAdapter()
