"""Budgets: a run that exceeds its limit ends and says so; invalid limits are refused."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from nbrun import CancelCause, CancelToken, NotebookSession, RunContext, RunStatus
from nbrun.agents import Budget
from nbrun.agents.context.budget import NO_PRICE
from nbrun.core import events as ev
from nbrun.core.errors import BadOption, Cancelled, IdConflict, RunCancelled
from nbrun.core.options import RunOptions
from nbrun.render.static_card import bundle, plain_text
from nbrun.ui.cards.view import view
from tests.fakes.agents import BOUND_S, instant

IN_A_PROCESS = pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
OVER = (RunStatus.CANCELLED, CancelCause.BUDGET)


def caller(calls: int, made: list[int], **usage: Any) -> Any:
    """Return an agent that wants to call a model so many times, and reports each call and its usage."""

    async def caller(prompt: str, run: RunContext) -> str:
        for call in range(calls):
            run.begin_turn()
            made.append(call)
            run.text(f"{call} ")
            run.usage(**usage)
        return "all made"

    return caller


# --- runs ---------------------------------------------------------------------------------------------


def test_no_call_is_made_beyond_max_turns(session: NotebookSession) -> None:
    """Two calls are let through, the third is not made, and what was said until then is kept."""
    made: list[int] = []
    run = session.start(caller(5, made, input_tokens=3, requests=1), max_turns=2)
    assert run.wait(BOUND_S)
    assert (run.status, run.cause) == OVER
    assert run.reason == "max_turns 2: 2 model calls made, another was due"
    assert made == [0, 1]
    assert run.output == "0 1 "
    assert (run.usage.requests, run.usage.input_tokens) == (2, 6)


def test_a_run_within_its_budget_completes(session: NotebookSession) -> None:
    """Exactly as many calls, tokens and dollars as allowed are allowed."""
    made: list[int] = []
    run = session.start(
        caller(3, made, input_tokens=1, output_tokens=1, cost_usd=0.1), max_turns=3, max_tokens=6, max_cost=0.3
    )
    assert run.result(BOUND_S) == "all made"
    assert made == [0, 1, 2]


def test_a_sync_agent_is_held_to_its_budget_too(session: NotebookSession) -> None:
    """`begin_turn()` raises in its thread; `finally` runs, `except Exception` does not hold it up."""
    seen: list[str] = []

    def stubborn(prompt: str, run: RunContext) -> None:
        try:
            while True:
                try:
                    run.begin_turn()
                except Exception:
                    seen.append("caught")
        finally:
            seen.append("finally")

    run = session.start(stubborn, max_turns=1)
    assert run.wait(BOUND_S)
    assert (run.status, run.cause) == OVER
    assert seen == ["finally"]


@pytest.mark.parametrize(
    ("limit", "usage", "reason"),
    [
        ({"max_turns": 2}, {"requests": 3}, "max_turns 2: 3 model calls made"),
        ({"max_tokens": 1000}, {"input_tokens": 1000, "output_tokens": 23}, "max_tokens 1,000: 1,023 used"),
        ({"max_cost": 0.5}, {"cost_usd": 0.5112}, "max_cost $0.50: $0.5112 spent"),
    ],
    ids=["turns", "tokens", "cost"],
)
def test_an_agent_that_only_reports_is_cancelled_by_its_report(
    session: NotebookSession, limit: dict[str, Any], usage: dict[str, Any], reason: str
) -> None:
    """At the limit it goes on, above it its token has fired before the report returns."""
    fired: list[bool] = []

    async def reports(prompt: str, run: RunContext) -> None:
        run.usage()
        fired.append(run.token.cancelled)
        run.usage(**usage)
        fired.append(run.token.cancelled)

    run = session.start(reports, **limit)
    assert run.wait(BOUND_S)
    assert fired == [False, True]
    assert (run.status, run.cause, run.reason) == (*OVER, reason)
    assert run.record.cancelled_by == "its budget"
    requests = [event for event in run.events() if event.type == ev.CancelRequested.TYPE]
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("limit", "usage", "reason"),
    [
        ({"max_tokens": 10}, {"output_tokens": 10}, "max_tokens 10: 10 used, another call was due"),
        ({"max_cost": 0.25}, {"cost_usd": 0.25}, "max_cost $0.25: $0.25 spent, another call was due"),
    ],
    ids=["tokens", "cost"],
)
def test_no_call_is_made_with_nothing_left(
    session: NotebookSession, limit: dict[str, Any], usage: dict[str, Any], reason: str
) -> None:
    """Using exactly the limit does not exceed it, but allows no further call."""
    made: list[int] = []
    run = session.start(caller(2, made, **usage), **limit)
    assert run.wait(BOUND_S)
    assert (run.status, run.cause, run.reason) == (*OVER, reason)
    assert made == [0]


def test_calls_that_are_reported_count_once_in_the_usage(session: NotebookSession) -> None:
    """Begun, reported or both: a call counts once."""

    async def counts(prompt: str, run: RunContext) -> None:
        run.begin_turn()
        run.usage(input_tokens=1)
        run.usage(requests=1)
        run.begin_turn()
        run.usage(requests=1, cache_read_tokens=4, reasoning_tokens=2)

    run = session.start(counts, max_turns=2)
    assert run.wait(BOUND_S)
    usage = run.usage
    assert run.status is RunStatus.COMPLETED
    assert (usage.requests, usage.cache_read_tokens, usage.reasoning_tokens) == (2, 4, 2)


def test_what_the_run_did_is_shown_wherever_it_is_shown(session: NotebookSession) -> None:
    """Card, static output and terminal say that it was over budget, and by what."""
    run = session.start(caller(2, [], input_tokens=7), max_tokens=5)
    assert run.wait(BOUND_S)
    record, reason = run.record, "max_tokens 5: 7 used"
    card = view(record, record.ended_at or 0.0)
    assert card["words"].startswith("Over budget after")
    assert any(reason in note for note in card["notes"])
    for text in (plain_text(record), bundle(record)["text/html"], bundle(record)["text/markdown"]):
        assert "Over budget after" in text.replace("\\", "")
        assert reason in text


def test_an_unknown_cost_is_reported_once(session: NotebookSession) -> None:
    """A limit in dollars that cannot be held does not stop the run, and is not silent."""
    made: list[int] = []
    run = session.start(caller(3, made, input_tokens=5), max_cost=0.01)
    assert run.result(BOUND_S) == "all made"
    assert run.record.notices == (NO_PRICE,)
    quiet = session.start(caller(3, made, input_tokens=5), max_turns=9)
    assert quiet.wait(BOUND_S)
    assert quiet.record.notices == ()


def test_a_cancel_by_a_person_stays_theirs(session: NotebookSession) -> None:
    """Who fired the token first is why it ended, whatever is reported afterwards."""
    began, go = threading.Event(), threading.Event()

    def reports(prompt: str, run: RunContext) -> None:
        began.set()
        go.wait(BOUND_S)
        run.usage(input_tokens=99)

    run = session.start(reports, max_tokens=1)
    assert began.wait(BOUND_S)
    run.cancel("enough")
    go.set()
    assert run.wait(BOUND_S)
    assert (run.status, run.cause, run.reason) == (RunStatus.CANCELLED, CancelCause.USER, "enough")


@IN_A_PROCESS
def test_a_run_in_another_process_is_held_to_its_limits(session: NotebookSession) -> None:
    """Only its limits travel; it makes as many calls as it may, and no more."""
    made: list[int] = []  # its copy of it grows there
    run = session.start(caller(5, made, input_tokens=1), max_turns=2, on="process")
    assert run.wait(BOUND_S)
    assert (run.status, run.cause) == OVER
    assert run.reason == "max_turns 2: 2 model calls made, another was due"
    assert run.output == "0 1 "
    assert run.usage.requests == 2


@IN_A_PROCESS
def test_a_child_in_another_process_counts_in_its_parents_budget(session: NotebookSession) -> None:
    """By what it reports: its host there does not know the limit, and its cancel comes from here."""

    async def helper(prompt: str, run: RunContext) -> None:
        run.usage(input_tokens=6)
        await run.token.wait()

    async def parent(prompt: str, run: RunContext) -> None:
        await run.start_child(helper, on="process")

    run = session.start(parent, max_tokens=5)
    assert run.wait(BOUND_S)
    assert (run.status, run.cause) == OVER
    assert run.reason == "max_tokens 5: 6 used, child runs included"
    (child,) = (one for one in session.runs() if one.parent_id == run.id)
    assert (child.status, child.cause) == (RunStatus.CANCELLED, CancelCause.PARENT)


# --- what is asked for --------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["max_turns", "max_tokens", "max_cost"])
@pytest.mark.parametrize("value", [0, -1, True, "5", float("nan"), float("inf"), [1]], ids=repr)
def test_an_invalid_limit_is_refused(session: NotebookSession, limit: str, value: object) -> None:
    """One line that names the option and the fix; nothing is started."""
    with pytest.raises(BadOption, match=rf"^{limit}=.* is invalid; give ") as caught:
        session.start(instant, **{limit: value})  # type: ignore[arg-type]  # that is the point
    assert "\n" not in str(caught.value)
    assert session.runs() == []


@pytest.mark.parametrize("limit", ["max_turns", "max_tokens"])
@pytest.mark.parametrize("value", [0.5, 2.0, 10**30])
def test_calls_and_tokens_are_whole_numbers(session: NotebookSession, limit: str, value: object) -> None:
    """Halves of them are refused, and numbers that no reader of the log takes."""
    with pytest.raises(BadOption, match="whole number"):
        session.start(instant, **{limit: value})  # type: ignore[arg-type]  # that is the point


def test_limits_belong_to_the_inputs_of_a_run(session: NotebookSession) -> None:
    """They are recorded; the same id with another limit is another run."""
    run = session.start(instant, id="nightly", max_turns=3, max_cost=2)
    assert run.result(BOUND_S) is not None
    assert {"max_turns": 3, "max_cost": 2.0}.items() <= run.record.options.items()
    assert session.start(instant, id="nightly", max_turns=3, max_cost=2.0) == run
    with pytest.raises(IdConflict):
        session.start(instant, id="nightly", max_turns=4, max_cost=2.0)


# --- a tree of runs -----------------------------------------------------------------------------------


def test_child_runs_count_in_the_budget_of_their_parent(session: NotebookSession) -> None:
    """Own usage and that of two children together are too much: all that is live is cancelled."""
    children: list[Any] = []

    async def helper(prompt: str, run: RunContext) -> None:
        run.usage(input_tokens=4, requests=1)
        await run.token.wait()

    async def parent(prompt: str, run: RunContext) -> None:
        run.usage(input_tokens=3, requests=1)
        children.extend(run.start_child(helper, name=f"helper {n}") for n in (1, 2))
        await run.token.wait()

    run = session.start(parent, max_tokens=10)
    assert run.wait(BOUND_S)
    assert (run.status, run.cause) == OVER
    assert run.reason == "max_tokens 10: 11 used, child runs included"
    assert [child.cause for child in children] == [CancelCause.PARENT] * 2
    assert run.usage.input_tokens == 3  # its own: each run's card shows what that run has used


def test_a_child_with_limits_of_its_own_ends_alone(session: NotebookSession) -> None:
    """For its parent it is like any cancelled child; the parent continues."""

    async def helper(prompt: str, run: RunContext) -> None:
        run.usage(input_tokens=4)
        await run.token.wait()

    async def parent(prompt: str, run: RunContext) -> str:
        try:
            await run.start_child(helper, max_tokens=3)
        except RunCancelled as error:
            return str(error)
        return "not cancelled"

    run = session.start(parent, max_tokens=10)
    assert "max_tokens 3: 4 used" in str(run.result(BOUND_S))


def test_what_children_use_counts_above_them() -> None:
    """Own usage and that of all children together; who is over its own limit fires its own token."""
    token = CancelToken()
    parent = Budget(RunOptions(max_tokens=10, max_turns=3), token)
    first = Budget(RunOptions(max_tokens=4), token.child(), parent=parent)
    other_token = token.child()
    other = Budget(RunOptions(), other_token, parent=parent)
    parent.note_usage(ev.Usage(input_tokens=2, requests=1))
    first.note_usage(ev.Usage(output_tokens=3, requests=1))
    first.note_usage(ev.Usage(output_tokens=4, requests=1))  # totals: one more, not four
    assert parent.used == (2, 6, 0.0)
    other.begin_turn()
    assert parent.used == (3, 6, 0.0)
    other.note_usage(ev.Usage(input_tokens=5, requests=1))
    assert token.reason == "max_tokens 10: 11 used, child runs included"
    assert other_token.cause is CancelCause.BUDGET


def test_a_child_over_its_own_budget_leaves_its_parent_alone() -> None:
    """Only its own token fires."""
    token = CancelToken()
    child_token = token.child()
    parent = Budget(RunOptions(max_tokens=100), token)
    Budget(RunOptions(max_tokens=1), child_token, parent=parent).note_usage(ev.Usage(input_tokens=5))
    assert child_token.reason == "max_tokens 1: 5 used"
    assert not token.cancelled


def test_a_child_makes_no_call_for_which_its_parent_has_nothing_left() -> None:
    """Also where the tokens are no relatives, as in another process."""
    token = CancelToken()
    parent = Budget(RunOptions(max_turns=1), token)
    child = Budget(RunOptions(), CancelToken(), parent=parent)
    child.begin_turn()
    with pytest.raises(Cancelled, match="child runs included"):
        child.begin_turn()
    assert child.begun == 1
    assert token.cause is CancelCause.BUDGET


def test_an_unknown_price_of_a_child_is_reported_where_it_matters() -> None:
    """On the card of the run that has the limit, once."""
    sent: list[str] = []
    token = CancelToken()
    parent = Budget(RunOptions(max_cost=1.0), token, lambda notice: sent.append(f"parent: {notice}"))
    child = Budget(RunOptions(), token.child(), lambda notice: sent.append(f"child: {notice}"), parent)
    for tokens in (1, 2):
        child.note_usage(ev.Usage(input_tokens=tokens))
    assert sent == [f"parent: {NO_PRICE}"]


def test_what_hangs_on_a_token_cannot_stop_who_reports() -> None:
    """A callback that fails does not fail the run whose report has fired the token."""
    token = CancelToken()

    def breaks(_request: object) -> None:
        raise ValueError("not mine")

    token.add_callback(breaks)
    Budget(RunOptions(max_tokens=1), token).note_usage(ev.Usage(input_tokens=2))
    assert token.cancelled


def test_threads_report_together() -> None:
    """Of many calls at once exactly as many are let through as the limit allows."""
    token = CancelToken()
    budget = Budget(RunOptions(max_turns=50), token)
    made: list[int] = []

    def call() -> None:
        try:
            for _ in range(20):
                budget.begin_turn()
                made.append(1)
        except Cancelled:
            return

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert len(made) == budget.used.turns == 50


@pytest.mark.parametrize("usage", [{"input_tokens": -1}, {"cost_usd": float("nan")}, {"cost_usd": -0.1}])
def test_usage_is_never_taken_back(session: NotebookSession, usage: dict[str, Any]) -> None:
    """A negative number, or none, would let a run pass its limits: it is the agent's error."""

    async def agent(prompt: str, run: RunContext) -> None:
        run.usage(**usage)

    run = session.start(agent, max_cost=1.0)
    assert run.wait(BOUND_S)
    assert run.error is not None
    assert run.error.type == "ValueError"


@IN_A_PROCESS
def test_calls_in_another_process_count_in_its_parents_budget(session: NotebookSession) -> None:
    """A child that only says that it calls a model is heard of above, and ended with its parent."""

    async def child(prompt: str, run: RunContext) -> None:
        import asyncio

        while True:
            run.begin_turn()
            await asyncio.sleep(0.01)

    async def parent(prompt: str, run: RunContext) -> object:
        return await run.start_child(child, on="process")

    run = session.start(parent, max_turns=5)
    assert run.wait(BOUND_S)
    assert (run.status, run.cause) == OVER


def test_a_run_without_children_mentions_none(session: NotebookSession) -> None:
    """Sums of cents differ in their last bit: that is no child run."""
    run = session.start(caller(50, [], input_tokens=100, cost_usd=0.01), max_tokens=500)
    assert run.wait(BOUND_S)
    assert str(run.reason).startswith("max_tokens 500: ")
    assert "child" not in str(run.reason)
