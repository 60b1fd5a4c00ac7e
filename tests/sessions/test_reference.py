"""The seed behaviours of the run lifecycle that nbrun re-creates, one test each, by group and W-number."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from nbrun import CancelCause, NotebookSession, Run, RunContext, RunStatus
from nbrun.core import events as ev
from nbrun.core.cancellation import CancelOutcome
from nbrun.core.record import fold
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held
from tests.fakes.observer import Notes

MakeSession = Callable[..., NotebookSession]


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


# --- A: lifecycle ------------------------------------------------------------------------------------


def test_start_sets_the_current_run_and_stores_the_prompt(session: NotebookSession, held: Held) -> None:
    """A: the run that was started is current, and its record holds its prompt."""
    run = session.start(held, "make tea")
    assert session.current_run == run
    assert session.current_run is not None
    assert session.current_run.record.prompt == "make tea"


def test_cancel_with_nothing_to_cancel_changes_nothing_and_says_so(session: NotebookSession, store_path: Path) -> None:
    """A: an idle cancel is `not_found`, twice; no run, no event and no file comes of it."""
    for _ in range(2):
        receipt = session.cancel_current()
        assert receipt.outcome is CancelOutcome.NOT_FOUND
        assert "No runs in progress" in str(receipt)
    assert session.cancel_all() == []
    assert not store_path.exists()


# --- B: runs and their records -----------------------------------------------------------------------


def test_start_and_end_are_stored_with_their_text(session: NotebookSession) -> None:
    """B: start, end: completed, the text stored, the events counted."""
    run = ended(session.start(agents.instant, "tea"))
    assert (run.status, run.output, run.record.event_count) == ("completed", "done: tea", 3)
    assert len(run.events()) == 3


def test_a_handle_cancels_only_its_own_run(session: NotebookSession) -> None:
    """B: cancelling a run that is not current never touches the one that is."""
    first, second = Held(), Held()
    old, current = session.start(first), session.start(second)
    assert session.current_run == current
    assert old.cancel().wait(BOUND_S)
    assert old.status is RunStatus.CANCELLED
    assert session.current_run == current
    assert (current.status.is_live, current.cause) == (True, None)
    second.let_go()
    assert ended(current).status is RunStatus.COMPLETED


def test_a_stale_handle_cancels_nothing(session: NotebookSession, held: Held) -> None:
    """B: the handle of an ended run answers `already_finished`, and the run that is live by now goes on."""
    stale = ended(session.start(agents.instant))
    current = session.start(held)
    assert stale.cancel().outcome is CancelOutcome.ALREADY_FINISHED
    assert session.cancel(stale.id).outcome is CancelOutcome.ALREADY_FINISHED
    assert current.cause is None
    held.let_go()
    assert ended(current).status is RunStatus.COMPLETED


def test_a_failure_with_a_fired_token_is_cancelled(session: NotebookSession) -> None:
    """The token decides: an error that comes after a cancel ends the run cancelled, and is kept."""
    entered = threading.Event()

    async def breaks_when_stopped(prompt: str) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("stream closed") from None

    run = session.start(breaks_when_stopped)
    assert entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, str(run.error)) == (RunStatus.CANCELLED, "ValueError: stream closed")


def test_a_failure_with_a_quiet_token_is_failed_with_its_message(session: NotebookSession) -> None:
    """Without a cancel the same error is a failure, with the message."""
    run = ended(session.start(agents.failing, "tea"))
    assert (run.status, str(run.error)) == (RunStatus.FAILED, "ValueError: no luck with tea")


def test_ids_come_from_the_injected_generator(session: NotebookSession) -> None:
    """The first run of a sequence is `run-seq-0`: the session's own id uses no number up."""
    assert session.start(agents.instant).id == "run-seq-0"


def test_the_live_set_is_cleared_in_the_right_order(session: NotebookSession, store_path: Path, held: Held) -> None:
    """A run leaves the live set when its end is public, and that is after it is on disk."""
    run = session.start(held)
    assert run.live is not None
    states: list[tuple[bool, bool]] = []
    run.live.listen(lambda record, _events: states.append((record.is_live, session.current_run == run)))
    held.let_go()
    ended(run)
    session.close()
    assert states[-1] == (False, False)
    assert all(was_current for is_live, was_current in states if is_live)


def test_the_end_of_an_older_run_leaves_the_current_one_in_place(session: NotebookSession) -> None:
    """W24: what leaves the live set is the run that has ended, not whichever is current."""
    first, second = Held(), Held()
    old, current = session.start(first), session.start(second)
    first.let_go()
    ended(old)
    assert session.current_run == current
    second.let_go()
    ended(current)
    assert session.current_run is None


def test_late_events_do_not_change_an_end(make_session: MakeSession) -> None:
    """B: what comes after the end is refused and counted; status, output and log stay."""
    contexts: list[RunContext] = []

    async def leaks_its_context(prompt: str, run: RunContext) -> str:
        contexts.append(run)
        return "the end"

    run = ended(make_session().start(leaks_its_context))
    before = run.record
    contexts[0].text("late")
    contexts[0].phase("late")
    contexts[0].log("late")
    assert run.record == before
    assert len(run.events()) == before.event_count


# --- one a weakness ----------------------------------------------------------------------------------


def test_each_of_two_live_runs_has_its_own_token(session: NotebookSession) -> None:
    """W1: cancel the first of two live runs; the second goes on, can be cancelled itself, and says so."""
    first, second = Held(), Held()
    one, two = session.start(first), session.start(second)
    assert one.cancel("this one").wait(BOUND_S)
    assert (one.status, two.status.is_live) == (RunStatus.CANCELLED, True)
    receipt = two.cancel("and that one")
    assert receipt.outcome is CancelOutcome.REQUESTED
    assert receipt.wait(BOUND_S)
    assert (one.reason, two.reason) == ("this one", "and that one")


def test_a_cancel_between_created_and_started_is_not_lost(session: NotebookSession) -> None:
    """W2: with the host's loop held up, a run is found, cancelled, and its agent never entered."""
    blocker = agents.BlockingLoop()
    session.start(blocker)
    assert blocker.entered.wait(BOUND_S)
    never = Held()
    session.start(never)
    receipt = session.cancel_current("changed my mind")
    assert (receipt.outcome, receipt.run_id) == (CancelOutcome.REQUESTED, "run-seq-1")
    blocker.gate.set()
    assert receipt.wait(BOUND_S)
    ended(session.start(agents.instant))  # the loop has moved past it
    assert never.prompts == []


def test_a_completed_run_says_so_with_nobody_listening(session: NotebookSession) -> None:
    """W6: no consumer, no waiter, no card: the end is written from the result."""
    run = session.start(agents.talking)
    assert run.wait(BOUND_S)
    assert run.status is RunStatus.COMPLETED
    assert run.events()[-1].type == "run.completed"


def test_a_consumer_that_leaves_does_not_stop_the_run(session: NotebookSession, held: Held) -> None:
    """W6: the reader of events goes away, and the run still completes."""
    run = session.start(held)

    async def look_once() -> None:
        async for _event in run:
            return

    asyncio.run(look_once())
    held.let_go()
    assert ended(run).status is RunStatus.COMPLETED


@pytest.mark.parametrize("where", ["before a step", "between steps", "in a tool", "while leaving"])
@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_agent_may_raise_anything_anywhere(session: NotebookSession, where: str, error: type[BaseException]) -> None:
    """W9: whatever it raises, in whichever phase, its run is failed and the next one works."""

    async def raises(prompt: str, run: RunContext) -> AsyncIterator[str]:
        if where == "before a step":
            raise error("oops")
        try:
            yield "a step"
            if where == "in a tool":
                with run.tool("search"):
                    raise error("oops")
            if where == "between steps":
                raise error("oops")
            yield "another"
        finally:
            if where == "while leaving":
                raise error("oops")

    run = ended(session.start(raises))
    assert (run.status, str(run.error)) == (RunStatus.FAILED, f"{error.__name__}: oops")
    assert session.start(agents.instant, "next").result(BOUND_S) == "done: next"


def test_a_cancelled_caller_settles_nothing(session: NotebookSession, held: Held) -> None:
    """W10: the task that awaits a run is cancelled; the run goes on, and a later cancel hits it."""
    run = session.start(held)

    async def caller() -> object:
        return await run

    async def cancel_the_caller() -> None:
        task = asyncio.create_task(caller())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_the_caller())
    assert run.status.is_live
    assert run.cause is None
    receipt = run.cancel()
    assert receipt.outcome is CancelOutcome.REQUESTED
    assert receipt.wait(BOUND_S)


def test_ten_cancels_call_the_hook_once(make_session: MakeSession, held: Held) -> None:
    """W11: the first request is `requested`, the others `already_requested`; the hook hears of one."""
    notes = Notes()
    session = make_session(observers=[notes])
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    outcomes = [run.cancel(f"call {number}").outcome for number in range(10)]
    assert outcomes[0] is CancelOutcome.REQUESTED
    assert set(outcomes[1:]) <= {CancelOutcome.ALREADY_REQUESTED, CancelOutcome.ALREADY_FINISHED}
    notes.wait_for_end()
    assert notes.cancelled == [(run.id, "call 0")]
    assert len(notes.ended) == 1


def test_a_cancel_leaves_cause_reason_caller_and_times_in_the_log(session: NotebookSession, held: Held) -> None:
    """W12: why, by whom, when it was asked for and when it was over can be read from the events alone."""
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    assert session.cancel(run, "wrong prompt", by="card").wait(BOUND_S)
    record = fold(run.events())
    assert (record.cause, record.reason, record.cancelled_by) == (CancelCause.USER, "wrong prompt", "card")
    assert record.created_at <= (record.cancel_requested_at or 0) <= (record.ended_at or 0)


@pytest.mark.parametrize("kind", ["failed", "cancelled"])
def test_every_end_is_stored_with_the_same_care(make_session: MakeSession, held: Held, kind: str) -> None:
    """W13: a failed and a cancelled run are as complete in the next session as a completed one."""
    session = make_session()
    if kind == "failed":
        run = session.start(agents.failing, "tea")
    else:
        run = session.start(held, "tea")
        run.cancel("enough")
    ended(run)
    session.close()
    stored = make_session().get("last")
    assert stored.status == kind
    assert stored.record == run.record
    assert stored.events() == run.events()


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (ev.RunCompleted("x"), RunStatus.COMPLETED),
        (ev.RunFailed(ev.ErrorInfo("E", "m")), RunStatus.FAILED),
        (ev.RunCancelled(CancelCause.USER), RunStatus.CANCELLED),
        (ev.RunLost(), RunStatus.LOST),
        (ev.RunWaiting(), RunStatus.WAITING),
        (ev.CancelRequested(CancelCause.USER), RunStatus.CANCELLING),
        (ev.RunPhase("verifying"), RunStatus.RUNNING),
        (None, RunStatus.QUEUED),
    ],
)
def test_every_status_is_reachable_by_the_fold(end: ev.EventData | None, status: RunStatus) -> None:
    """W20: each status is what some log folds to, and a phase is a free label beside it."""
    data: list[ev.EventData] = [ev.RunCreated(session_id="s", name="n", agent="a")]
    data += [] if end is None else [ev.RunStarted(), end]
    record = fold(ev.RunEvent(seq, 1.0, "run-1", 1, item) for seq, item in enumerate(data))
    assert record.status is status
    assert record.phase == ("verifying" if isinstance(end, ev.RunPhase) else None)


def test_every_outcome_of_a_cancel_has_its_own_name(make_session: MakeSession, held: Held) -> None:
    """W22: nothing running, unknown, finished, requested, asked again and foreign are six different answers."""
    session, beside = make_session(), make_session()
    finished = ended(session.start(agents.instant))
    run = session.start(held)
    assert session.cancel("nobody").outcome is CancelOutcome.NOT_FOUND
    assert session.cancel(finished).outcome is CancelOutcome.ALREADY_FINISHED
    assert beside.cancel(f"#{run.number}").outcome is CancelOutcome.FOREIGN
    assert beside.cancel_current().outcome is CancelOutcome.NOT_FOUND
    blocker = agents.BlockingLoop()
    held.let_go()
    ended(run)
    busy = session.start(blocker)
    assert blocker.entered.wait(BOUND_S)
    assert session.cancel(busy).outcome is CancelOutcome.REQUESTED
    assert session.cancel(busy).outcome is CancelOutcome.ALREADY_REQUESTED
    blocker.gate.set()
    ended(busy)


@pytest.mark.parametrize("text", ["interrupted", "cancelled by user", "Error: failed", "[aborted]"])
def test_a_run_is_never_classified_by_its_text(session: NotebookSession, text: str) -> None:
    """W23: a result that talks of an interruption is a completed run's result."""

    async def says(prompt: str) -> str:
        return prompt

    run = ended(session.start(says, text))
    assert (run.status, run.output) == (RunStatus.COMPLETED, text)


def test_a_hanging_observer_holds_up_neither_cancel_nor_run(make_session: MakeSession, held: Held) -> None:
    """W18: the token fires before any hook, and a hook that hangs changes nothing."""
    gate = threading.Event()

    class Hangs:
        """Hangs at the first event."""

        def on_event(self, record: object, event: object) -> None:
            """Hang."""
            gate.wait(BOUND_S)

    session = make_session(observers=[Hangs()])
    try:
        run = session.start(held)
        assert held.entered.wait(BOUND_S)
        assert run.cancel().wait(BOUND_S)
        assert run.status is RunStatus.CANCELLED
    finally:
        gate.set()
