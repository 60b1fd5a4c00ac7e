"""A run while it lives: what its session knows of it, ahead of the store and public; and waiting for its events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nbrun.core import (
    CancelToken,
    Latch,
    RunRecord,
    RunStatus,
    StreamRedactor,
    call_soon,
    events as ev,
    is_simple,
    module_lock,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nbrun.agents import Budget
    from nbrun.core import RunSecrets
    from nbrun.host.attempt import Attempt


TICK_S = 0.1
"""How often a waiting cell looks up, so that ■ Interrupt is prompt.

Source: an interrupt of a top-level `await` acts only when the loop next wakes (ipykernel#881).
"""

PAGE = 50
"""How many events are in memory at once for one who iterates a run: each may have megabytes."""

# One for all runs: it is held for a moment, and each lock costs memory.
_listening = module_lock()

NOTHING = RunRecord()
"""What is public of a run before its creation; one for all, since each would take half a kilobyte."""

StreamName = tuple[str, str | None, str | None]
"""Which of a run's texts: the type of its events, what they belong to, and the tool's id of a tool's arguments."""

Listener = Callable[[RunRecord, Sequence[ev.RunEvent]], object]


@dataclass(slots=True, eq=False)
class LiveRun:
    """What the session knows of a run while it lives, and for a while after.

    Who writes: the intake's lock guards `cancel` and `has_end`; the writer's thread alone writes the numbers
    and what is public (`record`, `problem`, `output`). Everybody reads.
    """

    run_id: str
    token: CancelToken
    attempt: int = 1
    key: str | None = None  # what `if_running` compares: the cell, or the name that was given
    is_child: bool = False
    agent: object = None  # what a retry of it runs
    loop: asyncio.AbstractEventLoop | None = None  # that it is on, where it is not the host's
    budget: Budget | None = None  # where it, or a run above it, has limits
    queue: Any = None  # the `RunQueue` of its set, which knows this class; None: the session's
    # under the session's lock
    above: LiveRun | None = None  # the run that has started this one
    family: list[Latch] | None = None  # the ends of all that were started by this one, or with it, directly or not

    is_inner: bool = False  # started by another run, which may wait for it while it has a slot: it isn't queued

    first: Attempt | None = None  # of a run that is tried again when an attempt fails: what each is made of

    # under the intake's lock
    cancel: ev.CancelRequested | None = None
    has_end: bool = False
    retries: int = 0  # how often it may still be tried again
    losing: int = 0  # the attempt whose failure another one follows

    sent_bytes: int = 0  # by its host, about, which alone writes it
    taken_bytes: int = 0  # of them by the writer's thread

    # the writer's thread: the state at intake, ahead of what is public
    status: RunStatus = RunStatus.QUEUED
    next_seq: int = 0
    next_n: int = 0
    last_ts: float = 0.0
    refused: int = 0
    streams: dict[StreamName, StreamRedactor] | None = None  # with the first text of a session that has secrets
    secrets: RunSecrets | None = None  # that its own process has named
    state: bytes | None = None  # the last checkpoint, where another attempt may go on from it
    pending_output: object = None
    held_bytes: int = 0  # what that, its stored form and, in the end, the text take, about

    # public
    record: RunRecord = NOTHING
    problem: str | None = None
    output: object = None
    is_refused: bool = False  # its id was taken: it never existed
    is_created: Latch = field(default_factory=Latch)
    is_ended: Latch = field(default_factory=Latch)
    unsaved: Iterable[ev.RunEvent] = ()
    listeners: tuple[Listener, ...] = ()  # replaced, never changed: they may be walked right now

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Have `listener(record, events)` called on the writer's thread; return what ends that."""
        with _listening:
            self.listeners = (*self.listeners, listener)

        def remove() -> None:
            with _listening:
                self.listeners = tuple(known for known in self.listeners if known is not listener)

        return remove

    def let_go(self) -> None:
        """Release what an ended run holds; from now on it is read from the store, where that has it."""
        held = [self.output, self.pending_output]
        self.output = self.pending_output = None
        self.first = self.state = None
        if not is_simple(held):
            aside(held.clear)
        if self.problem is None and self.record.number is not None:
            self.record = self.record.brief()

    # --- waiting ---------------------------------------------------------------------------------

    def call_once(self, is_so: Callable[[LiveRun], bool], function: Callable[[], object]) -> None:
        """Call `function` when it is so, on the writer's thread; at once if it is."""
        waiting = iter([function])

        def look(*_: object) -> None:
            if is_so(self):
                for only in waiting:  # once, though two threads may see it
                    remove()
                    only()

        remove = self.listen(look)
        look()  # it may have been so before we listened

    def call_from_end_on(self, function: Callable[[], object]) -> None:
        """Call `function` when the run ends, and at each event after that, until all of it is saved and still."""

        def listener(record: RunRecord, _events: Sequence[ev.RunEvent]) -> None:
            if record.is_live:
                return
            if record.is_settled and self.problem is None:
                remove()
            function()

        remove = self.listen(listener)
        if self.is_ended.is_set():  # it may have ended before we listened
            listener(self.record, ())

    def wait_until(self, is_so: Callable[[RunRecord], bool], timeout_s: float) -> bool:
        """Block until it is so of the run's record, at most `timeout_s` seconds; return whether it is."""
        met = threading.Event()

        def look(*_: object) -> None:
            if is_so(self.record):
                met.set()

        remove = self.listen(look)
        look()  # it may have been so before we listened
        try:
            return met.wait(timeout_s)
        finally:
            remove()

    def wait_ended(self, timeout_s: float | None, lend: Callable[[], object] | None) -> bool:
        """Block until the run has ended, at most `timeout_s` seconds; return whether it has.

        `lend` is called again and again meanwhile: the run may wait for something on this thread.
        """
        left = timeout_s
        while lend is not None and not self.is_ended.is_set():
            lend()
            if left is not None and left <= TICK_S:
                break
            if self.is_ended.wait(TICK_S):
                return True
            left = None if left is None else left - TICK_S
        return self.is_ended.wait(left)

    async def ended(self, lend: Callable[[], object] | None) -> None:
        """Return when the run has ended; from any event loop. `lend` as above."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def listener(record: RunRecord, _events: Sequence[ev.RunEvent]) -> None:
            if not record.is_live:
                call_soon(loop, ended.set)

        remove = self.listen(listener)
        try:
            while not self.is_ended.is_set():
                await wait_briefly(ended, lend)
        finally:
            remove()


def aside(release: Callable[[], object]) -> None:
    """Release objects of an agent's on a thread of their own: that may run their code, which may take any time."""
    try:
        threading.Thread(target=release, name="nbrun-release", daemon=True).start()
    except RuntimeError:  # the system has no more threads
        release()


async def each_event(
    live: LiveRun | None,
    is_done: Callable[[], bool],
    events_after: Callable[[int, int], Sequence[ev.RunEvent]],
    lend: Callable[[], object] | None,
) -> AsyncIterator[ev.RunEvent]:
    """Yield a run's events in order, up to its end.

    Parameters
    ----------
    live : reports new events; None: they are looked for.
    events_after : returns those that come after a seq, at most so many.
    lend : is called again and again meanwhile.
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
            while page := events_after(seen, PAGE):
                seen = page[-1].seq
                for event in page:
                    yield event
            if was_done:
                return
            await wait_briefly(changed, lend)
    finally:
        remove()


async def wait_briefly(event: asyncio.Event, lend: Callable[[], object] | None) -> None:
    """Wait for the event, for a moment at most; `lend` is called before."""
    if lend is not None:
        try:
            lend()
        except KeyboardInterrupt:  # raised in a task, it would end the kernel's loop: ipykernel cancels a cell, too
            raise asyncio.CancelledError from None
    try:
        async with asyncio.timeout(TICK_S):
            await event.wait()
    except TimeoutError:
        return


def poll(is_done: Callable[[], bool], timeout_s: float | None) -> bool:
    """Block until another kernel's run has ended, which nobody reports here; return whether it has."""
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
    while not is_done():  # noqa: ASYNC110 - nobody reports it, so look
        await asyncio.sleep(TICK_S)
