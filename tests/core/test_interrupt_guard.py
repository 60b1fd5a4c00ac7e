"""The guard: a cancel is raised into the agent's own code, and never into nbrun's."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import TypeVar

import pytest

from nbrun.core.errors import Cancelled
from nbrun.core.interrupt_guard import InterruptGuard, Stepped
from tests.fakes.agents import BOUND_S

T = TypeVar("T")


async def stepped(awaited: Awaitable[T], guard: InterruptGuard) -> T:
    """Await it step by step, on this thread."""
    guard.bind()
    return await Stepped(awaited, guard)


async def spins(is_in: threading.Event) -> None:
    """Compute for ever."""
    is_in.set()
    while True:
        pass


def test_it_is_shut_at_first() -> None:
    """Nothing is raised into a thread whose agent has not been entered."""
    guard = InterruptGuard()
    guard.bind()
    assert not guard.is_open
    assert not guard.interrupt()


def test_it_is_open_while_the_awaited_code_runs_and_shut_while_it_waits() -> None:
    """Whose code is on the loop can be told."""
    guard, seen = InterruptGuard(), []

    async def looks() -> str:
        seen.append(guard.is_open)
        await asyncio.sleep(0)
        seen.append(guard.is_open)
        return "value"

    async def other() -> None:
        seen.append(guard.is_open)

    async def main() -> str:
        task = asyncio.ensure_future(stepped(looks(), guard))
        await asyncio.sleep(0)
        await other()
        return await task

    assert asyncio.run(main()) == "value"
    assert seen == [True, False, True]
    assert not guard.is_open


def test_a_block_of_pure_python_is_interrupted() -> None:
    """A loop that never awaits ends with `Cancelled`, also where it eats every `Exception`."""
    guard, is_in = InterruptGuard(), threading.Event()

    def interrupt() -> None:
        assert is_in.wait(BOUND_S)
        assert guard.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Cancelled):
        asyncio.run(stepped(spins(is_in), guard))
    thread.join(BOUND_S)


def test_what_is_entered_is_not_interrupted() -> None:
    """Nbrun's own code on the agent's thread is let through to its end, then the cancel strikes."""
    guard, is_in, was_refused = InterruptGuard(), threading.Event(), threading.Event()
    done: list[str] = []

    async def calls_ours() -> None:
        guard.enter()
        is_in.set()
        assert was_refused.wait(BOUND_S)
        done.append("whole")
        guard.leave()
        while True:
            pass

    def interrupt() -> None:
        assert is_in.wait(BOUND_S)
        assert not guard.interrupt()
        was_refused.set()
        while not guard.interrupt():
            pass

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Cancelled):
        asyncio.run(stepped(calls_ours(), guard))
    thread.join(BOUND_S)
    assert done == ["whole"]


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads that take turns after a few bytecodes."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("eager_switching")
@pytest.mark.parametrize("attempt", range(40))
def test_a_cancel_at_the_end_of_a_step_is_heard_by_the_code(attempt: int) -> None:
    """Wherever it strikes, the agent's cleanup runs, and nothing surfaces after the guard."""
    guard, steps, heard = InterruptGuard(), [], []
    start = threading.Barrier(2)

    async def short_steps() -> None:
        try:
            while True:
                steps.append(1)
                for _ in range(attempt * 5):
                    pass
                await asyncio.sleep(0)
        except Cancelled:
            heard.append(1)
            raise

    def interrupt() -> None:
        start.wait(BOUND_S)
        while len(steps) < 3 or not guard.interrupt():
            pass

    thread = threading.Thread(target=interrupt)
    thread.start()
    start.wait(BOUND_S)
    with pytest.raises(Cancelled):
        asyncio.run(stepped(short_steps(), guard))
    thread.join(BOUND_S)
    assert heard == [1]


def test_an_error_a_result_and_a_cancel_of_the_task_pass_through() -> None:
    """To the awaited code and its awaiter, there is no guard."""

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("its own")

    async def hears() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "heard"
        return "not"

    async def cancelled() -> str:
        task = asyncio.ensure_future(stepped(hears(), InterruptGuard()))
        await asyncio.sleep(0)
        task.cancel()
        return await task

    with pytest.raises(ValueError, match="its own"):
        asyncio.run(stepped(fails(), InterruptGuard()))
    assert asyncio.run(cancelled()) == "heard"


def test_an_async_generator_is_stepped_through() -> None:
    """Item by item, to its end."""

    async def three() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0)
            yield number

    async def main() -> list[int]:
        guard, items, found = InterruptGuard(), three(), []
        guard.bind()
        while True:
            try:
                found.append(await Stepped(anext(items), guard))
            except StopAsyncIteration:
                return found

    assert asyncio.run(main()) == [0, 1, 2]


def test_its_own_cancelled_is_raised_once() -> None:
    """`run.token.raise_if_cancelled()` in an agent leaves it as itself."""

    async def raises() -> None:
        await asyncio.sleep(0)
        raise Cancelled("by its token")

    with pytest.raises(Cancelled, match="by its token"):
        asyncio.run(stepped(raises(), InterruptGuard()))
