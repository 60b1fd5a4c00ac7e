"""Waiting for what a run does next: its creation, its events, its end."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from nbrun.core.cancellation import call_soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from nbrun.core import events as ev
    from nbrun.core.record import RunRecord
    from nbrun.sessions.live_run import LiveRun

TICK_S = 0.1
"""How often a waiting cell looks up, so that ■ Interrupt is prompt.

Source: an interrupt of a top-level `await` acts only when the loop next wakes (ipykernel#881).
"""


def poll(is_done: Callable[[], bool], timeout_s: float | None) -> bool:
    """Block until another kernel's run has ended, of which nobody tells us; return whether it has."""
    waited = threading.Event()
    left = timeout_s
    while not is_done():
        if left is not None and left <= 0:
            return False
        waited.wait(TICK_S if left is None else min(TICK_S, left))
        left = None if left is None else left - TICK_S
    return True


async def poll_softly(is_done: Callable[[], bool]) -> None:
    """Return when another kernel's run has ended; from any event loop."""
    while not is_done():  # noqa: ASYNC110 - nobody tells us, so look
        await asyncio.sleep(TICK_S)


async def end_of(live: LiveRun) -> None:
    """Return when a run has ended; from any event loop."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def listener(record: RunRecord, _events: Sequence[ev.RunEvent]) -> None:
        if not record.is_live:
            call_soon(loop, ended.set)

    remove = live.listen(listener)
    try:
        while not live.is_ended.is_set():
            await _wait_briefly(ended)
    finally:
        remove()


async def each_event(
    live: LiveRun | None,
    is_done: Callable[[], bool],
    events_after: Callable[[int], Sequence[ev.RunEvent]],
) -> AsyncIterator[ev.RunEvent]:
    """Yield a run's events in order, up to its end.

    Parameters
    ----------
    live : what tells of new events; None: they are looked for.
    events_after : returns those that come after a seq.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    remove: Callable[[], None] = lambda: None  # noqa: E731 - nothing to remove where nothing is live
    if live is not None:
        remove = live.listen(lambda _record, _events: call_soon(loop, changed.set))
    seen = -1
    try:
        while True:
            changed.clear()
            was_done = is_done()
            for event in events_after(seen):
                seen = event.seq
                yield event
            if was_done:
                return
            await _wait_briefly(changed)
    finally:
        remove()


async def _wait_briefly(event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(TICK_S):
            await event.wait()
    except TimeoutError:
        return


def call_once(
    live: LiveRun, is_so: Callable[[LiveRun], bool], function: Callable[[], object]
) -> None:
    """Call `function` when it is so, on the writer's thread; at once if it is."""
    waiting = iter([function])

    def look(*_: object) -> None:
        if is_so(live):
            for only in waiting:  # once, though two threads may see it
                remove()
                only()

    remove = live.listen(look)
    look()  # it may have been so before we listened


def wait_until(live: LiveRun, is_so: Callable[[LiveRun], bool], timeout_s: float) -> bool:
    """Block until it is so of a live run, at most `timeout_s` seconds; return whether it is."""
    met = threading.Event()

    def look(*_: object) -> None:
        if is_so(live):
            met.set()

    remove = live.listen(look)
    look()  # it may have been so before we listened
    try:
        return met.wait(timeout_s)
    finally:
        remove()


def call_from_end_on(live: LiveRun, function: Callable[[], object]) -> None:
    """Call `function` when a run ends, and at each event after that, until all of it is saved and still."""

    def listener(record: RunRecord, _events: Sequence[ev.RunEvent]) -> None:
        if record.is_live:
            return
        if record.is_settled and live.problem is None:
            remove()
        function()

    remove = live.listen(listener)
    if live.is_ended.is_set():  # it may have ended before we listened
        listener(live.record, ())
