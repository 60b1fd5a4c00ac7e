"""`run.in_thread()`: sync code of an async agent, off the loop, where a cancel of the run reaches it."""

from __future__ import annotations

import asyncio
import threading

import pytest

import nbrun
from nbrun import CancelToken, NotebookSession, Run, RunContext, RunStatus
from nbrun.core import events as ev
from nbrun.core.cancellation import Rung
from nbrun.core.errors import Cancelled
from tests.fakes.agents import BOUND_S
from tests.fakes.backend import context_on_no_host
from tests.fakes.late import late_event


def spin(entered: threading.Event, left: threading.Event) -> None:
    """Compute for ever."""
    try:
        entered.set()
        while True:
            pass
    finally:
        left.set()


def threads_interrupted(run: Run) -> list[str]:
    """Return what the ladder says it has raised into."""
    datas = [event.data for event in run.events()]
    return [data.note for data in datas if isinstance(data, ev.CancelEscalated) and data.rung is Rung.THREAD]


@pytest.mark.parametrize("thread", [False, True], ids=["loop", "own-thread"])
def test_the_run_is_there_too(session: NotebookSession, thread: bool) -> None:
    """Arguments, result, current run and prints: as in the agent itself, in another thread."""

    def measure(what: str, *, unit: str) -> str:
        print("measuring", what)
        nbrun.current().text("80 ")
        return f"{unit} in {threading.current_thread().name}"

    async def agent(prompt: str, run: RunContext) -> str:
        mine = threading.current_thread()
        value = await run.in_thread(measure, prompt, unit="degrees")
        assert threading.current_thread() is mine
        assert run.work == () or thread
        return value

    run = session.start(agent, "tea", thread=thread)
    assert run.result(BOUND_S) == f"degrees in nbrun-agent-{run.id}"
    assert run.text == "80 "
    assert [e.data.text for e in run.events() if isinstance(e.data, ev.Log)] == ["measuring tea"]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_what_it_raises_is_raised_where_it_is_awaited(session: NotebookSession, error: type[BaseException]) -> None:
    """Whatever it is."""

    def fail() -> None:
        raise error("no luck")

    async def agent(prompt: str, run: RunContext) -> str:
        with pytest.raises(error, match="no luck"):
            await run.in_thread(fail)
        return "went on"

    assert session.start(agent).result(BOUND_S) == "went on"


@pytest.mark.parametrize("thread", [False, True], ids=["loop", "own-thread"])
def test_a_cancel_reaches_a_thread_that_computes(session: NotebookSession, thread: bool) -> None:
    """The agent hears of the cancel at once, its thread after the grace; then the run ends, nothing left behind."""
    entered, left, cleaned = threading.Event(), threading.Event(), threading.Event()

    async def agent(prompt: str, run: RunContext) -> None:
        try:
            await run.in_thread(spin, entered, left)
        finally:
            if not left.is_set():
                cleaned.set()

    run = session.start(agent, thread=thread)
    assert entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert left.is_set()
    assert cleaned.is_set()
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())
    assert threads_interrupted(run) == ["spin"]


def test_what_does_not_stop_is_named(session: NotebookSession) -> None:
    """By its function's name; the log says when it has ended."""
    entered, gate = threading.Event(), threading.Event()

    def blocks() -> None:
        entered.set()
        gate.wait(BOUND_S * 2)

    async def agent(prompt: str, run: RunContext) -> None:
        await run.in_thread(blocks)

    run = session.start(agent)
    assert entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ("blocks",))
    gate.set()
    assert late_event(run, ev.DetachedFinished).name == "blocks"


def test_a_time_limit_around_it_ends_it(session: NotebookSession) -> None:
    """The wait is over at once, `Cancelled` is raised in the thread, and the run goes on."""
    entered, left = threading.Event(), threading.Event()

    async def agent(prompt: str, run: RunContext) -> str:
        task = asyncio.create_task(run.in_thread(spin, entered, left))
        await run.in_thread(entered.wait, BOUND_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await run.in_thread(left.wait, BOUND_S)
        return "went on"

    run = session.start(agent)
    assert run.result(BOUND_S) == "went on"


def test_a_cancelled_run_calls_nothing(session: NotebookSession) -> None:
    """Cancelled before, nothing is called."""
    token = CancelToken()
    run = context_on_no_host(token=token)
    token.cancel()
    with pytest.raises(Cancelled):
        asyncio.run(run.in_thread(print))
