"""The adapter of the Claude Agent SDK, beside what holds of every adapter: limits, cost, and the end of its process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from nbrun import CancelCause, NotebookSession, Run, RunStatus
from nbrun.core import events as ev
from nbrun.core.cancellation import Rung
from nbrun.core.errors import BadOption
from tests.agents.conformance.scenarios import SCENARIOS
from tests.agents.conformance.script import RESULTS, Call, Turn, script
from tests.agents.conformance.subjects.claude_agent import ClaudeAgent
from tests.fakes import claude_cli
from tests.fakes.agents import BOUND_S
from tests.fakes.people import asking, until

pytestmark = pytest.mark.packages


def agent(scenario: str, **changed: Any) -> Any:
    """Return options for a scenario."""
    options = ClaudeAgent().agent(SCENARIOS[scenario])
    changed["env"] = {**options.env, **changed.pop("env", {})}
    return dataclasses.replace(options, **changed)


def programs() -> list[psutil.Process]:
    """Return the running programs that stand for Claude Code."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if claude_cli.__file__ in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    ]


def rungs(run: Run) -> list[Rung]:
    """Return the steps of the cancel that were taken."""
    return [e.data.rung for e in run.events() if isinstance(e.data, ev.CancelEscalated)]


def test_usage_and_cost_are_those_of_the_process(session: NotebookSession) -> None:
    """Counted once, though the messages report them as well; with what was read from the cache."""
    run = session.start(agent("adds"), "a poem")
    assert run.wait(BOUND_S)
    usage = run.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.requests) == (20, 10, 6, 2)
    assert usage.cost_usd == 0.5


def test_no_call_is_begun_beyond_a_limit(session: NotebookSession) -> None:
    """Claude Code gets the run's limit, and ends there."""
    run = session.start(agent("adds"), "a poem", max_turns=1)
    assert run.wait(BOUND_S)
    assert (run.status, run.cause) == (RunStatus.CANCELLED, CancelCause.BUDGET)
    assert run.reason is not None
    assert run.reason.startswith("max_turns 1: ")
    assert run.usage.requests == 1


def test_a_limit_of_its_own_is_an_error(session: NotebookSession) -> None:
    """It isn't the run's."""
    run = session.start(agent("adds", max_turns=1), "a poem")
    assert run.wait(BOUND_S)
    assert run.status is RunStatus.FAILED
    assert "Reached maximum number of turns" in str(run.error)


def test_a_cancel_interrupts_and_leaves_no_process(make_session: Callable[..., NotebookSession]) -> None:
    """By the native step alone."""
    run = make_session(cancel_grace_s=BOUND_S).start(agent("stalls"), "a poem")
    until(run, lambda record: bool(record.text))
    assert len(programs()) == 1
    run.cancel()
    assert run.wait(BOUND_S)
    assert (run.status, rungs(run), run.record.detached) == (RunStatus.CANCELLED, [Rung.NATIVE], ())
    assert programs() == []


def test_a_process_that_ignores_a_cancel_is_killed(session: NotebookSession) -> None:
    """Neither an interrupt, nor the end of its input, nor SIGTERM ends it."""
    run = session.start(agent("stalls", env={"NBRUN_STUBBORN": "end"}), "a poem")
    until(run, lambda record: bool(record.text))
    run.cancel()
    assert run.wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())
    assert programs() == []


def test_a_cancel_while_it_starts_gets_through(session: NotebookSession) -> None:
    """It has not answered yet, so it cannot be asked."""
    run = session.start(agent("hello", env={"NBRUN_STUBBORN": "start"}), "a poem")
    until(run, lambda record: record.started_at is not None)
    run.cancel()
    assert run.wait(BOUND_S)
    assert (run.status, run.error, run.record.detached) == (RunStatus.CANCELLED, None, ())
    assert programs() == []


def test_a_tool_that_is_allowed_is_not_asked_about(session: NotebookSession) -> None:
    """And no warning says that it isn't."""
    run = session.start(agent("adds", allowed_tools=["mcp__poet__add"]), "a poem")
    assert run.result(BOUND_S) == "it is 5"
    assert run.record.notices == ()


def test_permissions_of_its_own_stay(session: NotebookSession) -> None:
    """Options that bring a callback are asked nothing by nbrun."""
    from claude_agent_sdk import PermissionResultAllow

    async def allow(name: str, args: dict[str, Any], context: Any) -> Any:
        return PermissionResultAllow(updated_input={"path": "c"})

    run = session.start(agent("asks", can_use_tool=allow), "a poem")
    assert run.result(BOUND_S) == "it is deleted c"
    assert not any(isinstance(e.data, ev.ApprovalRequested) for e in run.events())


async def AskUserQuestion(questions: list[dict[str, Any]]) -> str:
    """Stand for Claude's own tool, by its name."""
    raise NotImplementedError


def test_what_claude_asks_is_answered(session: NotebookSession) -> None:
    """One question after the other, by choice, with what the user says to it; a denial ends it."""
    questions = [
        {"question": f"{what}?", "options": [{"label": "Green"}, {"label": "Black"}]} for what in ("Tea", "Cup")
    ]
    call = Call(AskUserQuestion, {"questions": questions}, asks=True)
    asks = ClaudeAgent().agent(script(Turn(calls=(call,)), Turn((RESULTS,))))
    run = session.start(asks, "a poem")
    (asked,) = asking(run)
    assert (asked.message, asked.options) == ("Tea?", ("Green", "Black"))
    run.approve(choice="Black")
    until(run, lambda record: bool(record.pending) and record.pending[0].message == "Cup?")
    run.approve(choice="Green", text="a big one")
    assert json.loads(str(run.result(BOUND_S))) == {"Tea?": "Black", "Cup?": "Green: a big one"}
    run = session.start(asks, "a poem")
    asking(run)
    run.deny(reason="no time")
    assert run.result(BOUND_S) == "no time"
    assert [tool.status for tool in run.record.tools] == ["denied"]


def test_a_client_is_taken_for_its_options(session: NotebookSession) -> None:
    """One with a connection of its own is not."""
    from claude_agent_sdk import ClaudeSDKClient

    client = ClaudeSDKClient(agent("hello"))
    assert session.start(client, "a poem").result(BOUND_S) == "Steam from the cup"
    client._query = object()
    with pytest.raises(BadOption, match="give its ClaudeAgentOptions"):
        session.start(client, "a poem")


def test_what_it_writes_to_its_standard_error_is_in_the_log(session: NotebookSession) -> None:
    """A program that isn't Claude Code says so there."""
    run = session.start(agent("hello", env={"NBRUN_SCRIPT": "no script"}), "a poem")
    assert run.wait(BOUND_S)
    assert run.status is RunStatus.FAILED
    text = "\n".join(e.data.text for e in run.events() if isinstance(e.data, ev.Log))
    assert "JSONDecodeError" in text
