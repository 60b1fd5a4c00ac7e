"""Agents for tests: small, deterministic, and each bad in one way only."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator

from nbrun import Run, RunContext
from nbrun.core import events as ev
from nbrun.core.cancellation import call_soon

BOUND_S = 10.0
"""What a starved machine gets before a test gives up."""


async def instant(prompt: str) -> str:
    """Return at once."""
    return f"done: {prompt}"


def sync(prompt: str) -> str:
    """Return at once, from a thread."""
    return f"sync: {prompt}"


async def failing(prompt: str) -> None:
    """Raise at once."""
    raise ValueError(f"no luck with {prompt}")


async def waits_for_cancel(prompt: str) -> None:
    """Go on until somebody cancels."""
    await asyncio.Event().wait()


async def talking(prompt: str) -> AsyncIterator[str]:
    """Say three words."""
    for word in ("one ", "two ", "three"):
        yield word


def counting(prompt: str) -> Generator[str, None, int]:
    """Say three words, from a thread, and return how many."""
    yield from ("a ", "b ", "c")
    return 3


def chatty(count: int) -> Callable[[str], AsyncIterator[str]]:
    """Return an agent that says `count` deltas, all different."""

    async def chatty(prompt: str) -> AsyncIterator[str]:
        for number in range(count):
            yield f"{number} "

    return chatty


def spinning(prompt: str, run: RunContext) -> None:
    """Compute for ever in a thread, and never look at the token."""
    run.phase("spinning")
    number = 0
    while True:
        number += 1


class Held:
    """An async agent that stops at a gate until it is let go.

    Threads: `entered`, `let_go()` from any; `prompts` is what it was entered with, in order.
    """

    def __init__(self, says: str = "", returns: object = "held") -> None:
        self.says = says
        self.returns = returns
        self.entered = threading.Event()
        self.left = threading.Event()
        self.prompts: list[str] = []
        self._gate = threading.Event()
        self._wakers: list[Callable[[], object]] = []

    async def __call__(self, prompt: str, run: RunContext) -> object:
        """Wait at the gate; a cancel ends the wait."""
        loop, gate = asyncio.get_running_loop(), asyncio.Event()
        self._wakers.append(lambda: call_soon(loop, gate.set))
        self.prompts.append(prompt)
        run.text(self.says)
        self.entered.set()
        try:
            if not self._gate.is_set():
                await self.at_gate(gate.wait)
        finally:
            self.left.set()
        return self.returns

    async def at_gate(self, opened: Callable[[], Awaitable[object]]) -> None:
        """Wait."""
        await opened()

    def let_go(self) -> None:
        """Open the gate."""
        self._gate.set()
        for wake in self._wakers:
            wake()


class Stubborn(Held):
    """Swallows every CancelledError: only its gate ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 0

    async def at_gate(self, opened: Callable[[], Awaitable[object]]) -> None:
        """Wait, whatever comes."""
        while not self._gate.is_set():
            try:
                await opened()
            except asyncio.CancelledError:
                self.refusals += 1


class Blocking:
    """A sync agent that waits where Python cannot raise into it; with `on_loop`, see `BlockingLoop`."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.left = threading.Event()

    def __call__(self, prompt: str) -> str:
        """Wait at the gate, outside of Python."""
        self.entered.set()
        self.gate.wait(BOUND_S * 2)
        self.left.set()
        return "unblocked"


class BlockingLoop(Blocking):
    """An async agent that blocks the loop of all runs: while it waits, nobody else is entered."""

    async def __call__(self, prompt: str) -> str:  # type: ignore[override]  # the same, on the loop
        """Wait at the gate, on the event loop's own thread."""
        return super().__call__(prompt)


def wait_for_notice(run: Run, part: str) -> None:
    """Return when the run's card has a notice with this in it."""
    seen = threading.Event()
    assert run.live is not None

    def look(*_: object) -> None:
        if any(part in notice for notice in run.record.notices):
            seen.set()

    remove = run.live.listen(look)
    look()
    assert seen.wait(BOUND_S), run.record.notices
    remove()


async def halves(prompt: str, run: RunContext) -> AsyncIterator[str]:
    """Stream characters in halves, as surrogates: in text, reasoning and a tool's arguments."""
    for half in ("\ud83d", "\ude00"):
        run.reasoning(half)
    for half in ("{\ud83d", "\ude00"):
        run.send(ev.ToolArgsDelta("tool-1", half))
    for text in ("a\ud83d", "\ude00b", "\ud83d", "c", "\ud83d"):
        yield text
