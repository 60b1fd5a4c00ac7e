"""An agent that blocks the event loop: it is named, stopped where that can be, and others get by."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import nbrun
from nbrun import NotebookSession, RunContext, RunStatus
from nbrun.core import events as ev
from nbrun.core.cancellation import Rung
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, BlockingLoop, wait_for_notice


async def spins(prompt: str) -> None:
    """Compute for ever on the loop, and eat every `Exception`."""
    nbrun.current().phase("spinning")
    while True:
        with contextlib.suppress(Exception):
            continue


def test_who_blocks_is_named_with_the_mend(session: NotebookSession, blocks: BlockingLoop) -> None:
    """Its card says so after a second; the card of a run beside it says why that one waits."""
    is_in = asyncio.Event()

    async def beside(prompt: str) -> str:
        is_in.set()
        await asyncio.sleep(0.05)
        return "through"

    other = session.start(agents.waits_for_cancel)
    run = session.start(blocks)
    assert blocks.entered.wait(BOUND_S)
    wait_for_notice(run, "--thread")
    wait_for_notice(other, "waiting: BlockingLoop blocks the event loop")
    blocks.gate.set()
    assert run.result(BOUND_S) == "unblocked"
    assert other.cancel().wait(BOUND_S)
    assert other.record.detached == ()


def test_a_blocked_run_that_is_cancelled_ends_with_its_name(session: NotebookSession, blocks: BlockingLoop) -> None:
    """Within the grace and a second; when the block is over, that is told."""
    run = session.start(blocks)
    assert blocks.entered.wait(BOUND_S)
    receipt = run.cancel()
    assert receipt.wait(BOUND_S)
    assert not blocks.gate.is_set()  # the block goes on
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ("BlockingLoop",))
    blocks.gate.set()
    assert session.start(agents.instant).wait(BOUND_S)
    told = threading.Event()
    while not told.wait(0.01):
        if run.events()[-1].type == ev.DetachedFinished.TYPE:
            told.set()


def test_pure_python_on_the_loop_is_stopped(session: NotebookSession) -> None:
    """`while True` on the loop ends by a cancel, and the run beside it goes on as if nothing had been."""
    other = session.start(agents.waits_for_cancel)
    run = session.start(spins)
    while run.phase is None:
        assert not run.wait(0.01)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())
    rungs = [event.data.rung for event in run.events() if isinstance(event.data, ev.CancelEscalated)]
    assert rungs == [Rung.THREAD]
    assert not other.done()
    assert other.cancel().wait(BOUND_S)
    assert other.record.detached == ()


def test_a_busy_main_thread_accuses_nobody(session: NotebookSession) -> None:
    """A cell that computes slows the loop's answers, and is no agent's fault."""

    async def ticks(prompt: str, run: RunContext) -> int:
        for number in range(30):
            run.progress(number, 30)
            await asyncio.sleep(0.05)
        return 30

    run = session.start(ticks)
    number = 0
    while not run.done():
        number += 1
    assert run.result(BOUND_S) == 30
    assert run.record.notices == ()


def test_what_nobody_awaited_goes_to_the_log_of_its_run(session: NotebookSession) -> None:
    """Asyncio's complaint of a task that an agent has left behind is a line of that run's log."""

    async def leaves(prompt: str) -> None:
        async def fails() -> None:
            raise ValueError("nobody looked")

        task = asyncio.ensure_future(fails())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task

    run = session.start(leaves)
    assert run.wait(BOUND_S)
    logs = [event.data.text for event in run.events() if isinstance(event.data, ev.Log)]
    assert len(logs) == 1
    assert "never retrieved" in logs[0]
    assert "nobody looked" in logs[0]


def test_the_watch_ends_with_the_session(session: NotebookSession) -> None:
    """No thread of it is left."""
    assert session.start(agents.instant).wait(BOUND_S)
    session.close()
    for thread in threading.enumerate():
        if thread.name == "nbrun-watchdog":
            thread.join(BOUND_S)
    assert "nbrun-watchdog" not in {thread.name for thread in threading.enumerate()}


def test_a_time_limit_holds_on_a_blocked_loop(session: NotebookSession) -> None:
    """Neither the timer nor the escalation can act there: the watchdog does, for both runs on that loop."""
    calm = session.start(agents.waits_for_cancel, timeout_s=1.5)
    run = session.start(spins, timeout_s=0.3)
    assert run.wait(BOUND_S)
    assert (run.status, run.cause) == (RunStatus.CANCELLED, "deadline")
    assert calm.wait(BOUND_S)
    assert (calm.status, calm.cause) == (RunStatus.CANCELLED, "deadline")


def test_what_an_agent_began_on_the_side_is_stopped_too(session: NotebookSession) -> None:
    """Pure Python in a task of the agent's own blocks the loop as well, and ends by a cancel as well."""

    async def gathers(prompt: str) -> None:
        await asyncio.gather(spins(prompt), asyncio.sleep(3600))

    run = session.start(gathers)
    while run.phase is None:
        assert not run.wait(0.01)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())
    assert session.start(agents.instant).result(BOUND_S)


def test_threads_of_asyncio_are_stopped_or_named(session: NotebookSession) -> None:
    """`asyncio.to_thread()` in an agent: Python in it ends by a cancel, a call outside of it is named."""
    entered, gate = threading.Event(), threading.Event()

    def computes() -> None:
        nbrun.current().phase("computing")
        while True:
            pass

    def hangs() -> None:
        entered.set()
        gate.wait(BOUND_S * 2)

    async def in_python(prompt: str) -> None:
        await asyncio.to_thread(computes)

    async def outside(prompt: str) -> None:
        await asyncio.to_thread(hangs)

    run = session.start(in_python)
    while run.phase is None:
        assert not run.wait(0.01)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())
    run = session.start(outside)
    assert entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ("hangs",))
    gate.set()
