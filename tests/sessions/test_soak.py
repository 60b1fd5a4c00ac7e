"""Many runs in real threads, on a real file: all end as they must, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable

import psutil
import pytest

from nbrun import NotebookSession, Run, RunContext, RunStatus
from nbrun.core import events as ev
from nbrun.core.cancellation import CancelOutcome, CancelReceipt
from nbrun.core.record import fold
from nbrun.host.attempt import HostEvent
from tests.fakes import agents
from tests.fakes.agents import BOUND_S

MakeSession = Callable[..., NotebookSession]

THREADS = 8
RUNS_OF_EACH = 125
CYCLES = 30


def left_behind(session: NotebookSession) -> list[object]:
    """Return what is there of runs that are under way; nothing, where none is."""
    for _ in range(2):  # a task's last callback may come after the first answer
        session.ping_hosts(BOUND_S)
    dispatcher = session.parts.scheduler
    left = [
        *session.live_runs, *dispatcher.attempts, *dispatcher._places, *session.token._children,
        *dispatcher._queue._under_way, *dispatcher._queue._waiting,
    ]  # fmt: skip
    for host in dispatcher._hosts:
        left += [task.get_name() for task in tuple(host.thread._tasks)]
    return left


def check_stored(session: NotebookSession, run: Run, *, was_asked: bool) -> None:
    """Check that a run's log has no gap and one end, and that the file tells what memory tells."""
    number = run.number
    assert number is not None
    events = session.store.events(number)
    assert [event.seq for event in events] == list(range(len(events)))
    assert [event.type in ev.END_TYPES for event in events].count(True) == 1
    assert (run.status is RunStatus.CANCELLED) is was_asked
    assert session.store.record(number) == fold(events) == run.record


async def busy(prompt: str, run: RunContext) -> str:
    """Say so many words, with a breath between them; more than three are never enough."""
    for word in range(int(prompt)):
        run.text(f"{word} ")
        await asyncio.sleep(0)
    if int(prompt) > 3:
        await asyncio.Event().wait()
    return "done"


@pytest.mark.timeout(90)  # a thousand commits that must reach the disk
def test_eight_threads_cancel_a_thousand_runs(make_session: MakeSession) -> None:
    """Whoever starts and cancels which run when: one end each, no gap, and no cancel is lost."""
    session = make_session(max_concurrent=50)
    runs: list[Run] = []
    spared: list[Run] = []
    receipts: list[CancelReceipt] = []

    def plays(seed: int) -> None:
        rng = random.Random(seed)  # noqa: S311 - chance, no secret
        spared.append(session.start(busy, "3"))  # nobody cancels it; of the others, all may be cancelled in time
        for _ in range(RUNS_OF_EACH):
            runs.append(session.start(busy, str(rng.randrange(8))))
            for _ in range(rng.randrange(3)):
                receipts.append(rng.choice(runs[-20:]).cancel(f"by {seed}"))

    threads = [threading.Thread(target=plays, args=(seed,), daemon=True) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S * 6)
    assert len(runs) == THREADS * RUNS_OF_EACH
    receipts += [run.cancel("at the end") for run in runs]
    assert all(run.wait(BOUND_S) for run in runs)
    asked = [r.run_id for r in receipts if r.outcome is CancelOutcome.REQUESTED]
    assert len(set(asked)) == len(asked)  # of many who ask, one is told that it was the first
    for run in runs:
        check_stored(session, run, was_asked=run.id in asked)
    for run in spared:
        assert run.wait(BOUND_S)
        check_stored(session, run, was_asked=False)
    assert {run.status for run in (*runs, *spared)} == {RunStatus.COMPLETED, RunStatus.CANCELLED}
    assert left_behind(session) == []


async def uses_a_tool(prompt: str, run: RunContext) -> None:
    """Use a tool that never comes back."""
    with run.tool("search", {"query": prompt}):
        await asyncio.Event().wait()


def sync_uses_a_tool(prompt: str, run: RunContext) -> None:
    """Use a tool that never comes back, in a thread."""
    with run.tool("search", {"query": prompt}):
        while True:
            run.sleep(BOUND_S)


def wait_for_tool(run: Run) -> None:
    """Return when the run's tool is public."""
    has_begun = threading.Event()
    assert run.live is not None

    def look(*_: object) -> None:
        if run.record.tools:
            has_begun.set()

    remove = run.live.listen(look)
    look()
    assert has_begun.wait(BOUND_S)
    remove()


@pytest.mark.parametrize("agent", [uses_a_tool, sync_uses_a_tool])
def test_a_late_start_undoes_no_cancel(session: NotebookSession, agent: Callable[..., object]) -> None:
    """Thirty times start, tool, cancel, late start: all stay cancelled, numbers grow, nothing is left behind."""
    first = session.start(agents.instant)
    assert first.wait(BOUND_S)
    assert first.events()  # what is made once, a connection to read by too, is there from now on
    assert left_behind(session) == []
    threads, files = set(threading.enumerate()), psutil.Process().num_fds()
    numbers: list[int] = []
    for cycle in range(CYCLES):
        run = session.start(agent, f"cycle {cycle}", cell_id="one cell")
        wait_for_tool(run)
        assert run.cancel(f"enough of {cycle}").wait(BOUND_S)
        before = run.events()
        assert run.live is not None
        late = [ev.RunStarted("late"), ev.ToolStarted("t", "late"), ev.RunCompleted("late")]
        for n, data in enumerate(late, run.live.next_n):
            session.parts.intake.put([HostEvent(run.id, 1, n, session.clock.now(), data)])
        assert session.start(agents.instant).wait(BOUND_S)  # by now it has been looked at
        assert (run.status, run.reason) == (RunStatus.CANCELLED, f"enough of {cycle}")
        assert run.events() == before
        assert [tool.status for tool in run.record.tools] == ["cancelled"]
        numbers.append(run.number or 0)
    assert numbers == sorted(set(numbers))
    assert left_behind(session) == []
    for thread in set(threading.enumerate()) - threads:
        thread.join(BOUND_S)
    assert set(threading.enumerate()) == threads
    assert psutil.Process().num_fds() == files


@pytest.mark.parametrize("agent", [agents.instant, agents.failing, uses_a_tool, sync_uses_a_tool])
def test_an_ended_run_leaves_nothing_to_the_garbage_collector(
    session: NotebookSession, agent: Callable[..., object]
) -> None:
    """What was made for a run goes with it, at once: a kernel with many runs is not held up for it later."""
    assert session.start(agents.instant).wait(BOUND_S)
    gc.collect()
    before = made_for_runs()  # a library may keep an error of an earlier test's run, with its frames: pyparsing does
    gc.disable()
    try:
        run = session.start(agent)
        if agent in (uses_a_tool, sync_uses_a_tool):
            wait_for_tool(run)
            assert "Driver" in names_of(made_for_runs(), but=before)
            run.cancel()
        assert run.wait(BOUND_S)
        for _ in range(2):  # the end of the task, and what is called at it
            assert session.ping_hosts(BOUND_S) != [None]
        assert names_of(made_for_runs(), but=before) == []
    finally:
        gc.enable()


def made_for_runs() -> list[object]:
    """Return all there is that a host makes for one run."""
    names = {"Driver", "RunContext", "Steps", "Stepped", "Escalation", "InterruptGuard", "Worker"}
    return [item for item in gc.get_objects() if type(item).__name__ in names]


def names_of(items: list[object], *, but: list[object]) -> list[str]:
    """Return the types of those items that are not among others, too; these are kept, so no id is used twice."""
    others = set(map(id, but))  # by id: there may be thousands
    return sorted(type(item).__name__ for item in items if id(item) not in others)
