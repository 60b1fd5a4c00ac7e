"""Child runs: of their own log, cancelled with their parent, ended before it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from nbrun import NotebookSession, Run, RunContext, RunRecord, RunStatus
from nbrun.core import events as ev
from nbrun.core.errors import RunCancelled, RunFailed, RunRejected
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held, Stubborn


def children_of(run: Run, session: NotebookSession) -> list[Run]:
    """Return the handles of a run's children, oldest first."""
    found = [session.own(child.run_id) for child in run.record.children]
    return [child for child in found if child is not None]


def ended_order(session: NotebookSession) -> list[str]:
    """Return the names of all ended runs, in the order in which their endings were given out."""
    ends = [(event.ts, run.name) for run in session.runs() for event in run.events() if event.type in ev.END_TYPES]
    return [name for _ts, name in sorted(ends)]


def test_a_child_is_a_run_of_its_own(session: NotebookSession) -> None:
    """It has its number, its log and its output; its parent's log tells of it, and its record names it."""

    async def parent(prompt: str, run: RunContext) -> object:
        return await run.start_child(agents.instant, "tea", name="helper")

    run = session.start(parent)
    assert run.result(BOUND_S) == "done: tea"
    (child,) = children_of(run, session)
    assert (child.parent_id, child.name, child.output) == (run.id, "helper", "done: tea")
    (summary,) = run.record.children
    assert (summary.name, summary.number, summary.status) == ("helper", child.number, "completed")
    types = [event.type for event in run.events()]
    assert types == ["run.created", "run.started", "child.started", "child.finished", "run.completed"]
    assert "run.created" in [event.type for event in child.events()]
    assert session.start(agents.instant).wait(BOUND_S)


def test_a_parent_that_returns_waits_for_its_children(session: NotebookSession, held: Held) -> None:
    """The run has not ended while a child of it is live, awaited or not."""

    async def parent(prompt: str, run: RunContext) -> str:
        run.start_child(held)
        return "early"

    run = session.start(parent)
    assert held.entered.wait(BOUND_S)
    (child,) = session.live_runs[:1]
    assert not run.done()
    held.let_go()
    assert run.result(BOUND_S) == "early"
    assert child.done()
    assert ended_order(session) == ["Held", "parent"]


def test_a_cancel_flows_down(session: NotebookSession, held: Held) -> None:
    """Parent, child and grandchild end, the youngest first; the cause below is `parent`."""

    async def middle(prompt: str, run: RunContext) -> object:
        return await run.start_child(held, name="youngest")

    async def eldest(prompt: str, run: RunContext) -> object:
        return await run.start_child(middle, name="middle")

    run = session.start(eldest, name="eldest")
    assert held.entered.wait(BOUND_S)
    assert run.cancel("enough").wait(BOUND_S)
    causes = {found.name: found.cause for found in session.runs()}
    assert causes == {"eldest": "user", "middle": "parent", "youngest": "parent"}
    assert all(found.status is RunStatus.CANCELLED for found in session.runs())
    assert ended_order(session) == ["youngest", "middle", "eldest"]
    assert session.get("youngest").reason == "enough"


def test_a_cancelled_child_leaves_its_parent_alone(session: NotebookSession, held: Held) -> None:
    """The parent hears of it where it awaits the child, and goes on."""
    started: list[Any] = []

    async def parent(prompt: str, run: RunContext) -> str:
        child = run.start_child(held, name="child")
        started.append(child)
        try:
            await child
        except RunCancelled:
            return "went on"
        return "did not hear"

    run = session.start(parent)
    assert held.entered.wait(BOUND_S)
    assert started[0].cancel().wait(BOUND_S)
    assert run.result(BOUND_S) == "went on"
    assert session.get("child").cause == "user"


def test_a_child_that_fails_is_raised_where_it_is_awaited(session: NotebookSession) -> None:
    """An unawaited failure changes nothing; an awaited one is the parent's to handle."""

    async def awaits(prompt: str, run: RunContext) -> object:
        return await run.start_child(agents.failing, "x")

    async def ignores(prompt: str, run: RunContext) -> str:
        run.start_child(agents.failing, "x")
        return "fine"

    with pytest.raises(RunFailed):
        session.start(awaits).result(BOUND_S)
    run = session.start(ignores)
    assert run.result(BOUND_S) == "fine"
    assert [child.status for child in run.record.children] == ["failed"]


def test_a_failed_parent_cancels_its_children(session: NotebookSession, held: Held) -> None:
    """Nobody waits for them any more; they end first."""

    async def parent(prompt: str, run: RunContext) -> None:
        run.start_child(held, name="child")
        await asyncio.to_thread(held.entered.wait, BOUND_S)
        raise ValueError("lost")

    run = session.start(parent, name="parent")
    assert run.wait(BOUND_S)
    assert run.status is RunStatus.FAILED
    child = session.get("child")
    assert (child.status, child.cause) == (RunStatus.CANCELLED, "parent")
    assert ended_order(session) == ["child", "parent"]


def test_a_sync_agent_starts_children_too(session: NotebookSession) -> None:
    """In its thread it may wait for them."""

    def parent(prompt: str, run: RunContext) -> list[object]:
        started = [run.start_child(agents.instant, str(number)) for number in range(3)]
        return [child.result(BOUND_S) for child in started]

    run = session.start(parent)
    assert run.result(BOUND_S) == ["done: 0", "done: 1", "done: 2"]
    assert len(run.record.children) == 3


def test_children_wait_for_no_place(make_session: Any) -> None:
    """A parent holds the one place there is, and its child runs all the same."""
    session = make_session(max_concurrent=1)

    async def parent(prompt: str, run: RunContext) -> object:
        return await run.start_child(agents.instant, "tea")

    assert session.start(parent).result(BOUND_S) == "done: tea"


def test_a_child_that_does_not_stop_is_named_by_itself(session: NotebookSession) -> None:
    """Its own log says what still runs; it ends before its parent."""
    stubborn = Stubborn()

    async def parent(prompt: str, run: RunContext) -> object:
        return await run.start_child(stubborn, name="child")

    run = session.start(parent, name="parent")
    assert stubborn.entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    child = session.get("child")
    assert (child.status, child.record.detached) == (RunStatus.CANCELLED, ("Stubborn",))
    assert ended_order(session) == ["child", "parent"]
    stubborn.let_go()


def test_no_child_of_a_run_that_has_ended(session: NotebookSession) -> None:
    """A thread that outlives its run is refused, and nothing is started."""
    kept: list[RunContext] = []

    async def leaks(prompt: str, run: RunContext) -> None:
        kept.append(run)

    run = session.start(leaks)
    assert run.wait(BOUND_S)
    count = len(session.runs())
    with pytest.raises(Exception, match="ended"):
        kept[0].start_child(agents.instant)
    with pytest.raises(RunRejected):
        session.start(agents.instant, parent=run)
    assert len(session.runs()) == count


def test_no_child_of_a_run_that_was_cancelled(session: NotebookSession) -> None:
    """An agent that was asked to stop, and goes on, starts nothing new."""
    is_in, go_on = threading.Event(), threading.Event()

    def stubborn(prompt: str, run: RunContext) -> None:
        is_in.set()
        assert go_on.wait(BOUND_S)
        run.start_child(agents.instant, name="child")

    run = session.start(stubborn)
    assert is_in.wait(BOUND_S)
    receipt = run.cancel()
    go_on.set()
    assert receipt.wait(BOUND_S)
    assert run.record.children == ()
    assert [found.name for found in session.runs()] == ["stubborn"]


def test_the_current_run_is_no_child(session: NotebookSession, held: Held) -> None:
    """`cancel_current()` means the run that the user started."""

    async def parent(prompt: str, run: RunContext) -> object:
        return await run.start_child(held)

    run = session.start(parent)
    assert held.entered.wait(BOUND_S)
    assert session.current_run == run
    assert session.cancel_current().wait(BOUND_S)
    assert run.status is RunStatus.CANCELLED


def test_a_child_is_granted_no_more_than_its_parent(session: NotebookSession) -> None:
    """An agent that must not be allowed anything cannot have a child that may."""

    async def child(prompt: str, run: RunContext) -> bool:
        return bool(await run.ask("May I?"))

    async def parent(prompt: str, run: RunContext) -> object:
        return await run.start_child(child, approve="auto")

    assert session.start(parent, approve="deny").result(BOUND_S) is False
    assert session.start(parent, approve="auto").result(BOUND_S) is True


def test_a_run_of_somebody_else_is_no_child(session: NotebookSession, held: Held) -> None:
    """An id that names another's run is refused: that run is not cancelled with this one."""
    other = session.start(held, id="taken")

    async def parent(prompt: str, run: RunContext) -> object:
        return await run.start_child(held, id="taken")

    run = session.start(parent)
    assert run.wait(BOUND_S)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.type == "IdConflict"
    assert not other.done()
    held.let_go()
    assert other.result(BOUND_S) == "held"


def family_of(session: NotebookSession) -> set[str]:
    """Return the statuses of all runs, each of which must have ended."""
    runs = session.runs()
    assert all(run.wait(BOUND_S) for run in runs)
    return {str(run.status) for run in session.runs()}


@pytest.mark.parametrize("is_sync", [False, True])
def test_an_agent_that_starts_itself_ends_with_an_error(
    session: NotebookSession, is_sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The innermost one is refused and says why; each run around it has its end."""
    monkeypatch.setattr("nbrun.sessions.start.MAX_NESTED", 12)

    async def again(prompt: str, run: RunContext) -> object:
        return await run.start_child(again)

    def again_in_a_thread(prompt: str, run: RunContext) -> object:
        return run.start_child(again_in_a_thread).result(BOUND_S)

    run = session.start(again_in_a_thread if is_sync else again)
    assert run.wait(BOUND_S)
    assert family_of(session) == {"failed"}
    assert len(session.runs()) == 13
    (innermost,) = session.runs(limit=1)
    assert innermost.error is not None
    assert "nested 12 deep" in innermost.error.message


@pytest.mark.parametrize("is_child", [False, True])
def test_agents_that_multiply_are_stopped(
    session: NotebookSession, is_child: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As children, and as runs of their own, which no cancel of the first would reach."""
    monkeypatch.setattr("nbrun.sessions.start.MAX_FAMILY", 40)
    refused, seen = threading.Event(), [0]

    def listener(record: RunRecord, _events: object) -> None:
        seen[0] = max(seen[0], len(session.live_runs))
        if record.error is not None and record.error.type == "RunRejected":
            assert "40 runs" in record.error.message
            refused.set()

    async def multiply(prompt: str, run: RunContext) -> None:
        start = run.start_child if is_child else session.start
        for _ in range(3):
            start(multiply)
        await asyncio.Event().wait()

    session.listen(listener)
    session.start(multiply)
    try:
        assert refused.wait(BOUND_S)
    finally:
        while session.cancel_all():
            family_of(session)
    assert family_of(session) <= {"cancelled", "failed"}
    assert seen[0] <= 41
    assert session.start(agents.instant, "tea").result(BOUND_S) == "done: tea"


def test_runs_that_follow_one_another_are_not_nested(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each starts the next one, when the one before has ended: that may go on for ever."""
    monkeypatch.setattr("nbrun.sessions.start.MAX_NESTED", 3)
    monkeypatch.setattr("nbrun.sessions.start.MAX_FAMILY", 4)
    done = threading.Event()

    def follower(generation: int, before: str) -> Any:
        async def follow(prompt: str, run: RunContext) -> None:
            assert await asyncio.to_thread(session.get(before).wait, BOUND_S)
            if generation == 9:
                done.set()
            else:
                session.start(follower(generation + 1, run.run_id))

        return follow

    session.start(follower(0, session.start(agents.instant).id))
    assert done.wait(BOUND_S)
