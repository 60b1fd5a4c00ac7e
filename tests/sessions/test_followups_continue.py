"""Runs that go on talking from where another has ended: with any agent, in this kernel or a later one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from nbrun import NotebookSession, Run, RunContext, RunStatus
from nbrun.core.checkpoint import ASSISTANT, USER, Call, Turn
from nbrun.core.errors import AgentNotFound, NotResumable
from nbrun.render.words import followup_notes
from nbrun.sessions.followups import conversation
from tests.fakes.agents import BOUND_S, Held

if TYPE_CHECKING:
    from tests.conftest import MakeSession


async def echo(prompt: str, run: RunContext) -> str:
    """Answer with how many turns there were before."""
    return f"{len(run.history)} before {prompt}"


async def brewer(prompt: str, run: RunContext) -> str:
    """Use a tool before the answer."""
    with run.tool("brew", {"tea": prompt}) as tool:
        tool.result = "hot"
    return f"here is {prompt}"


def ended(run: Run) -> Run:
    """Return the run once it has ended."""
    assert run.wait(BOUND_S)
    return run


def test_a_run_continues_another(session: NotebookSession) -> None:
    """It has what was said before, in order; both know of each other."""
    first = ended(session.start(echo, "one"))
    second = ended(first.continue_with("two"))
    third = ended(second.continue_with("three"))
    assert [run.output for run in (first, second, third)] == ["0 before one", "2 before two", "4 before three"]
    assert third.record.usage == session.get(third.id).usage
    assert followup_notes(third.record) == ["Continues #2"]
    assert second.followups == [(3, "continue")]
    assert [run.number for run in conversation(second, session.get)] == [1, 2, 3]


def test_what_was_done_is_part_of_it(session: NotebookSession) -> None:
    """Tools come with the answer that they led to; any agent can go on."""
    kept: list[tuple[Turn, ...]] = []

    async def looks(prompt: str, run: RunContext) -> None:
        kept.append(run.history)

    first = ended(session.start(brewer, "sencha"))
    ended(first.continue_with("and now?", agent=looks))
    call = Call("tool-1", "brew", {"tea": "sencha"}, "hot")
    assert kept == [(Turn(USER, "sencha"), Turn(ASSISTANT, "here is sencha", (call,)))]


def test_arguments_that_came_in_pieces_are_part_of_it(session: NotebookSession) -> None:
    """Whole, also where their end looked like the beginning of a secret; a tool that was left open, too."""
    session.redact("}s-e-c-r-e-t")
    kept: list[tuple[Turn, ...]] = []

    def pours(prompt: str, run: RunContext) -> str:
        tool = run.begin_tool("brew", id="call-1")
        for letter in '{"tea": "sencha"}':
            tool.args(letter)
        tool.finish("hot")
        run.begin_tool("pour", id="call-2").args('{"cup": ')
        return "here"

    def looks(prompt: str, run: RunContext) -> None:
        kept.append(run.history)

    first = ended(session.start(pours, "sencha"))
    assert [(tool.args, tool.status) for tool in first.record.tools] == [
        ({"tea": "sencha"}, "ok"),
        ('{"cup": ', "cancelled"),
    ]
    ended(first.continue_with("and now?", agent=looks))
    calls = (Call("call-1", "brew", {"tea": "sencha"}, "hot"), Call("call-2", "pour", '{"cup": ', status="cancelled"))
    assert kept == [(Turn(USER, "sencha"), Turn(ASSISTANT, "here", calls))]


def test_a_cancelled_run_can_be_continued_and_a_live_one_not(session: NotebookSession, held: Held) -> None:
    """What was said up to the cancel counts."""
    live = session.start(held, "one")
    with pytest.raises(NotResumable, match="is still running"):
        live.continue_with("two")
    live.cancel()
    ended(live)
    assert str(ended(live.continue_with("two", agent=echo)).output).endswith("before two")


def test_a_later_kernel_goes_on(make_session: MakeSession) -> None:
    """By the agent's name in the notebook, or with one that is given."""
    first = make_session()
    number = ended(first.start(echo, "one", target="echo")).id
    first.close()
    later = make_session()
    with pytest.raises(AgentNotFound, match="define echo first"):
        later.get(number).continue_with("two")
    later.find_agent = {"echo": echo}.get
    second = ended(later.get(number).continue_with("two"))
    assert second.output == "2 before two"
    assert second.record.target == "echo"


def test_a_framework_has_it_as_its_messages(session: NotebookSession) -> None:
    """pydantic-ai's model is sent the earlier prompts, calls, results and answers, then the new prompt."""
    seen: list[list[ModelMessage]] = []

    async def answers(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        seen.append(messages)
        yield "a cup"

    agent: Agent[None, str] = Agent(FunctionModel(stream_function=answers), name="poet")
    first = ended(session.start(brewer, "sencha"))
    second = ended(first.continue_with("more", agent=agent))
    assert second.status is RunStatus.COMPLETED, second.error
    [messages] = seen
    kinds = [part.part_kind for message in messages for part in message.parts]
    assert kinds == ["user-prompt", "tool-call", "tool-return", "text", "user-prompt"]
    assert isinstance(messages[1], ModelResponse)
    assert isinstance(messages[1].parts[0], ToolCallPart)
    assert messages[1].parts[0].args == {"tea": "sencha"}
    ended(second.continue_with("again"))
    assert isinstance(seen[1][-1], ModelRequest)
    assert [part.part_kind for message in seen[1] for part in message.parts][-2:] == ["text", "user-prompt"]
    assert len(seen[1]) == len(messages) + 2


def test_a_resumed_run_is_one_turn(session: NotebookSession) -> None:
    """Its prompt was said once."""

    async def stumbles(prompt: str, run: RunContext) -> str:
        if run.restored is None:
            run.checkpoint("half")
            raise ValueError("over")
        return "whole"

    failed = ended(session.start(stumbles, "one"))
    resumed = ended(failed.resume())
    after = ended(resumed.continue_with("two", agent=echo))
    assert after.output == "3 before two"  # one prompt, what was said before it failed, and after


def test_it_goes_to_a_process(session: NotebookSession) -> None:
    """A run on a process of its own has the history as well."""
    first = ended(session.start(echo, "one"))
    assert ended(first.continue_with("two", on="process")).output == "2 before two"
