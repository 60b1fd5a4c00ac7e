"""The handle: waits, results, events and cancels, from any thread and any event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from nbrun import NotebookSession, Run, RunContext, RunEvent, RunStatus
from nbrun.core import events as ev
from nbrun.core.cancellation import CancelOutcome
from nbrun.core.errors import NoResult, RunCancelled, RunFailed, RunNotFinished
from nbrun.sessions.live_run import PAGE
from nbrun.store import validation
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


async def follow(run: Run) -> list[RunEvent]:
    """Return all events that an iteration gives."""
    return [event async for event in run]


def test_an_iteration_reads_page_by_page_to_the_end(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much there is, few events are in memory at once, and none is left out."""
    read, sizes = Run.events, []

    def watched(run: Run, after: int = -1, limit: int | None = None) -> list[RunEvent]:
        found = read(run, after, limit)
        sizes.append(len(found))
        return found

    def says(prompt: str, run: RunContext) -> None:
        for number in range(300):
            run.text(f"{number:04}" * 300)

    run = ended(session.start(says, ""))
    monkeypatch.setattr(validation, "PAGE_BYTES", 10_000)  # of a file that anybody may have made
    monkeypatch.setattr(Run, "events", watched)
    events = asyncio.run(follow(run))
    assert [event.seq for event in events] == list(range(len(events)))
    assert events[-1].type == "run.completed"
    assert max(sizes) <= PAGE


# --- waiting and results -----------------------------------------------------------------------------


def test_wait_says_whether_the_run_has_ended(session: NotebookSession, held: Held) -> None:
    """It answers False when its time is over, and the run goes on; True after the end."""
    run = session.start(held)
    assert not run.wait(0.01)
    held.let_go()
    assert run.wait(BOUND_S)
    assert run.wait(0)


def test_a_result_that_is_not_there_yet_is_a_time_out(session: NotebookSession, held: Held) -> None:
    """`RunNotFinished` is a `TimeoutError` too, names the run, and leaves it alive."""
    run = session.start(held)
    with pytest.raises(RunNotFinished, match=r"run #1 \(Held\) has not finished") as caught:
        run.result(0.01)
    assert isinstance(caught.value, TimeoutError)
    assert run.status.is_live


def test_the_result_is_the_agents_own_object(session: NotebookSession) -> None:
    """In the session that ran it, `output` is what the agent returned, not a copy."""
    thing = object()

    async def returns_it(prompt: str) -> object:
        return thing

    run = session.start(returns_it)
    assert run.result(BOUND_S) is thing
    assert run.output is thing
    assert asyncio.run(awaited(run)) is thing


async def awaited(run: Run) -> object:
    """Return what `await run` gives."""
    return await run


def test_a_failed_run_raises_its_error_as_words(session: NotebookSession) -> None:
    """`result()` and `await` raise `RunFailed` with number, name and message; `wait()` never raises."""
    run = session.start(agents.failing, "tea")
    assert run.wait(BOUND_S)
    words = r"run #1 \(failing\) failed: ValueError: no luck with tea"
    with pytest.raises(RunFailed, match=words):
        run.result()
    with pytest.raises(RunFailed, match=words):
        asyncio.run(awaited(run))
    assert run.error is not None
    assert "agents.py" in run.error.traceback


def test_a_cancelled_run_raises_with_its_reason(session: NotebookSession, held: Held) -> None:
    """`RunCancelled` says in words how it ended and why; every such error is a `NoResult`."""
    run = session.start(held)
    run.cancel("enough")
    with pytest.raises(RunCancelled, match=r"Cancelled by you.*: enough") as caught:
        run.result(BOUND_S)
    assert isinstance(caught.value, NoResult)


def test_a_run_can_be_awaited_from_two_event_loops(session: NotebookSession, held: Held) -> None:
    """Two loops in two threads wait for one run, and both get its output."""
    run = session.start(held)
    ready, outputs = threading.Barrier(3), []

    def wait() -> None:
        ready.wait(BOUND_S)
        outputs.append(asyncio.run(awaited(run)))

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    ready.wait(BOUND_S)
    held.let_go()
    for thread in threads:
        thread.join(BOUND_S)
    assert outputs == ["held", "held"]


def test_cancelling_the_waiter_leaves_the_run_alive(session: NotebookSession, held: Held) -> None:
    """The task's end settles the run, not its caller's: a dropped `await` changes nothing (W10)."""
    run = session.start(held)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(awaited(run), 0.02)

    asyncio.run(give_up())
    assert run.status.is_live
    assert run.cause is None
    held.let_go()
    assert run.result(BOUND_S) == "held"
    assert run.live is not None
    assert run.live.listeners == ()


# --- events ------------------------------------------------------------------------------------------


def test_iterating_gives_every_event_once_and_ends(session: NotebookSession) -> None:
    """Stored and live events come in order, no gap and no duplicate, and the last is the end."""
    run = session.start(agents.chatty(500))
    events = asyncio.run(asyncio.wait_for(follow(run), BOUND_S))
    assert [event.seq for event in events] == list(range(503))
    assert events == run.events()
    assert events[-1].type == "run.completed"


def test_two_iterations_at_once_see_the_same(session: NotebookSession) -> None:
    """Each reader has its own place in the log, also one that begins later."""
    run = session.start(agents.chatty(300))

    async def both() -> tuple[list[RunEvent], list[RunEvent]]:
        first, second = await asyncio.gather(follow(run), follow(run))
        return first, second

    first, second = asyncio.run(asyncio.wait_for(both(), BOUND_S))
    assert first == second == asyncio.run(follow(run))
    assert len(first) == 303


def test_a_reader_that_leaves_does_not_hold_up_the_run(session: NotebookSession, held: Held) -> None:
    """The consumer of events goes away after the first one; the run still completes (W6)."""
    run = session.start(held)

    async def look_once() -> RunEvent:
        async for event in run:
            return event
        raise AssertionError("no event")

    assert asyncio.run(look_once()).type == "run.created"
    held.let_go()
    assert run.result(BOUND_S) == "held"
    assert run.status is RunStatus.COMPLETED


@pytest.mark.timeout(60)
def test_stored_events_are_those_that_were_sent(session: NotebookSession) -> None:
    """Of 10,000 deltas none is lost, doubled or changed, and the numbers have no gap."""
    count = 10_000
    run = session.start(agents.chatty(count))
    assert run.wait(50)
    events = run.events()
    assert [event.seq for event in events] == list(range(count + 3))
    texts = [event.data.text for event in events if isinstance(event.data, ev.TextDelta)]
    assert texts == [f"{number} " for number in range(count)]
    assert run.output == run.text == "".join(texts)
    assert run.record.event_count == count + 3


def test_events_are_paged_by_seq(session: NotebookSession) -> None:
    """`after` is exclusive, `limit` cuts, and walking page by page gives the whole log."""
    run = ended(session.start(agents.chatty(50)))
    everything = run.events()
    assert run.events(after=10, limit=5) == everything[11:16]
    assert run.events(after=52) == []
    assert run.events(limit=0) == []
    walked: list[RunEvent] = []
    while page := run.events(after=walked[-1].seq if walked else -1, limit=7):
        walked += page
    assert walked == everything


def test_nothing_is_shown_that_is_not_public(session: NotebookSession, held: Held) -> None:
    """`run.events()` never runs ahead of `run.record`, at whatever moment it is asked."""
    run = session.start(agents.chatty(2_000))
    while not run.done():
        count = len(run.events())
        assert count <= run.record.event_count
    assert len(run.events()) == 2_003


# --- cancelling --------------------------------------------------------------------------------------


def test_a_cancel_answers_at_once_and_its_receipt_waits(session: NotebookSession, held: Held) -> None:
    """The receipt says `requested`, can be waited for, and is true while the request stands."""
    run = session.start(held)
    receipt = run.cancel("enough")
    assert (receipt.outcome, receipt.run_id) == (CancelOutcome.REQUESTED, run.id)
    assert receipt
    asyncio.run(asyncio.wait_for(receipt.settled(), BOUND_S))
    assert receipt.wait(0)
    assert run.status is RunStatus.CANCELLED


def test_a_run_says_that_it_is_being_cancelled(session: NotebookSession) -> None:
    """Between request and end the status is `cancelling`: nothing shows a state that is not true (W4)."""
    blocker = agents.BlockingLoop()
    run = session.start(blocker)
    assert blocker.entered.wait(BOUND_S)
    assert run.live is not None
    run.cancel()
    assert run.live.wait_until(lambda record: record.status is RunStatus.CANCELLING, BOUND_S)
    assert not run.done()
    blocker.gate.set()
    assert ended(run).status is RunStatus.CANCELLED


def test_a_cancel_does_not_wait_for_a_busy_loop(session: NotebookSession) -> None:
    """The token has fired when the call returns, whatever the host is doing."""
    blocker = agents.BlockingLoop()
    run = session.start(blocker)
    assert blocker.entered.wait(BOUND_S)
    run.cancel()
    assert run.live is not None
    assert run.live.token.cancelled
    blocker.gate.set()


def test_a_finished_run_cannot_be_cancelled(session: NotebookSession) -> None:
    """The answer is `already_finished`; status, output and log stay as they were."""
    run = ended(session.start(agents.instant, "tea"))
    record = run.record
    receipt = run.cancel("too late")
    assert receipt.outcome is CancelOutcome.ALREADY_FINISHED
    assert not receipt
    assert receipt.wait(0)
    assert run.record == record
    assert "has already ended" in str(receipt)


def test_racing_cancels_are_recorded_once(session: NotebookSession, held: Held) -> None:
    """Of 16 threads that cancel at once, one requests, and the log holds its reason and no other."""
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    barrier, receipts = threading.Barrier(16), {}

    def cancel(name: str) -> None:
        barrier.wait(BOUND_S)
        receipts[name] = run.cancel(name).outcome

    threads = [threading.Thread(target=cancel, args=(f"by {n}",)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    ended(run)
    (winner,) = [name for name, it in receipts.items() if it is CancelOutcome.REQUESTED]
    requests = [e.data for e in run.events() if isinstance(e.data, ev.CancelRequested)]
    assert [request.reason for request in requests] == [winner]
    assert run.reason == winner


def test_a_cancel_that_races_the_end_is_decided_one_way(session: NotebookSession) -> None:
    """Either the request came first and the run is cancelled, or the end did and nothing was requested."""
    for _ in range(100):
        run = session.start(agents.instant)
        outcome = run.cancel().outcome
        ended(run)
        has_request = any(isinstance(e.data, ev.CancelRequested) for e in run.events())
        if outcome is CancelOutcome.REQUESTED:
            assert run.status is RunStatus.CANCELLED
            assert has_request
        else:
            assert outcome is CancelOutcome.ALREADY_FINISHED
            assert run.status is RunStatus.COMPLETED
            assert not has_request


# --- the rest of the handle --------------------------------------------------------------------------


def test_a_handle_is_equal_to_another_of_the_same_run(session: NotebookSession) -> None:
    """Two handles of one run are one key; its repr names number, name and state."""
    run = ended(session.start(agents.instant, name="tea"))
    assert session.get("#1") == run
    assert len({run, session.get("tea")}) == 1
    assert run != ended(session.start(agents.instant))
    assert repr(run).startswith("<Run #1 tea: Completed in ")


def test_display_goes_to_whoever_shows_cards(session: NotebookSession, capsys: pytest.CaptureFixture[str]) -> None:
    """The core knows no front end: it calls what it was given, or prints the run."""
    run = ended(session.start(agents.instant))
    run.display()
    assert "<Run #1 instant: Completed" in capsys.readouterr().out
    shown: list[Run] = []
    session.on_display = shown.append
    run.display()
    assert shown == [run]
