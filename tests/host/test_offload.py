"""Agents on the loop of the cells (`loop="kernel"`): what works there, and what it costs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

import nbrun
from nbrun import NotebookSession, RunContext, RunStatus
from nbrun.core import events as ev
from nbrun.core.errors import BadOption, NbrunError, RunFailed
from tests.fakes import agents
from tests.fakes.agents import BOUND_S
from tests.fakes.late import late_event

T = TypeVar("T")


def in_cell(code: Coroutine[Any, Any, T]) -> T:
    """Return what a cell's code gives that awaits."""
    return asyncio.run(asyncio.wait_for(code, BOUND_S))


def test_it_is_on_the_loop_and_thread_of_its_cell(session: NotebookSession) -> None:
    """There the run is the current one, prints go to its log, and tasks that it makes are its own."""
    cells: asyncio.AbstractEventLoop | None = None

    async def looks(prompt: str) -> tuple[bool, bool]:
        print("looking")
        await asyncio.create_task(notes())
        return asyncio.get_running_loop() is cells, threading.current_thread() is here

    async def notes() -> None:
        nbrun.current().phase("looking")

    async def cell() -> nbrun.Run:
        nonlocal cells
        cells = asyncio.get_running_loop()
        run = session.start(looks, loop="kernel")
        assert await run == (True, True)
        assert await session.start(looks) == (False, False)
        return run

    here = threading.current_thread()
    run = in_cell(cell())
    assert run.phase == "looking"
    assert run.record.log == ("looking",)
    assert run.record.options["loop"] == "kernel"


def test_an_error_of_its_own_fails_it(session: NotebookSession) -> None:
    """As anywhere else, a CancelledError that nobody asked for included."""

    async def gives_up(prompt: str) -> None:
        raise asyncio.CancelledError

    async def cell() -> None:
        with pytest.raises(RunFailed, match="no luck"):
            await session.start(agents.failing, "it", loop="kernel")
        with pytest.raises(RunFailed, match="was not cancelled"):
            await session.start(gives_up, loop="kernel")

    in_cell(cell())


def test_a_cell_that_waits_for_it_is_told_not_to(session: NotebookSession) -> None:
    """A blocking wait would wait for ever; that of another run, or for no time, is none of its business."""

    async def cell() -> None:
        run = session.start(agents.talking, loop="kernel")
        for wait in (run.wait, run.result, lambda: run.wait(5)):
            with pytest.raises(NbrunError, match=r"is on the kernel's loop.*use: await run"):
                wait()
        assert run.wait(0) is False
        assert session.start(agents.instant).wait(BOUND_S)
        assert await run == "one two three"
        assert run.wait()

    in_cell(cell())


def test_it_is_only_where_there_is_such_a_loop(session: NotebookSession) -> None:
    """Not outside of one, not in an agent on nbrun's own loop, and not with another place as well."""
    with pytest.raises(BadOption, match="needs the kernel's event loop"):
        session.start(agents.instant, loop="kernel")
    with pytest.raises(BadOption, match="use host or kernel"):
        session.start(agents.instant, loop="mine")  # type: ignore[arg-type]  # wrong on purpose

    async def cell() -> None:
        with pytest.raises(BadOption, match="can't be combined with on='process'"):
            session.start(agents.instant, loop="kernel", on="process")
        with pytest.raises(BadOption, match="can't be combined with thread=True"):
            session.start(agents.instant, loop="kernel", thread=True)

    async def begins(prompt: str, run: RunContext) -> None:
        await run.start_child(agents.instant, loop="kernel")

    in_cell(cell())
    with pytest.raises(RunFailed, match="needs the kernel's event loop"):
        session.start(begins).result(BOUND_S)


def test_a_cancel_waits_for_a_busy_cell_and_says_so(session: NotebookSession) -> None:
    """While the cell blocks, the agent is named as still running; it ends when the loop is free."""
    left = threading.Event()

    async def waits(prompt: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async def cell() -> nbrun.Run:
        run = session.start(waits, loop="kernel")
        async for event in run:
            if event.type == ev.RunStarted.TYPE:
                break
        await asyncio.sleep(0)
        run.cancel()
        until_ended = time.monotonic() + BOUND_S
        while not run.done() and time.monotonic() < until_ended:
            time.sleep(0.01)  # noqa: ASYNC251 - the point: a cell that blocks
        assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ("waits",))
        assert not left.is_set()
        await asyncio.to_thread(late_event, run, ev.DetachedFinished)
        assert left.is_set()
        return run

    in_cell(cell())


def test_it_goes_on_there_when_it_is_resumed(session: NotebookSession) -> None:
    """Where it is asked for again: where a run goes comes from no record."""
    cells: asyncio.AbstractEventLoop | None = None

    async def counts(prompt: str, run: RunContext) -> bool:
        run.checkpoint(1)
        if run.restored is None:
            raise ValueError("over")
        return asyncio.get_running_loop() is cells

    async def cell() -> object:
        nonlocal cells
        cells = asyncio.get_running_loop()
        run = session.start(counts, loop="kernel")
        with pytest.raises(RunFailed):
            await run
        return await run.resume(loop="kernel")  # where a run is driven never comes from a record

    assert in_cell(cell()) is True


class Client:
    """What a framework's client is like that cells await as well: bound to the loop that it was first used on."""

    def __init__(self) -> None:
        self._free = asyncio.Event()

    async def use(self, prompt: str = "") -> str:
        """Wait for what somebody else has in use, and wrap what goes wrong, as frameworks do."""
        asyncio.get_running_loop().call_later(0.01, self._free.set)
        try:
            await self._free.wait()
        except RuntimeError as error:
            raise ConnectionError("the client failed") from error
        self._free.clear()
        return "used"


@pytest.mark.parametrize("thread", [False, True])
def test_an_error_of_a_foreign_loop_names_the_mend(session: NotebookSession, *, thread: bool) -> None:
    """A client that cells have used fails on any other loop; the error says what to do, and that works."""

    async def cell() -> str:
        client = Client()
        assert await client.use() == "used"
        with pytest.raises(RunFailed) as failed:
            await session.start(client.use, thread=thread)
        assert await session.start(client.use, loop="kernel") == "used"
        assert await client.use() == "used"
        return str(failed.value)

    assert "run it with --loop kernel" in in_cell(cell())
