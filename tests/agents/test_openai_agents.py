"""Agents of OpenAI's SDK that work with others: handed over to, or used as tools."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, Model, ModelResponse
from agents.tool import function_tool
from agents.usage import Usage
from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)

from nbrun import NotebookSession, Run, RunStatus
from tests.agents.conformance import log
from tests.agents.conformance.subjects.openai_agents import _response as response
from tests.fakes.agents import BOUND_S
from tests.fakes.people import until

_numbers = itertools.count()


class Speaker(Model):
    """Says one thing after the other: a text, a call, or nothing for ever. Each costs 10 tokens in, and 5 out."""

    def __init__(self, *turns: str | tuple[str, dict[str, object]] | None) -> None:
        self._turns = list(turns)
        self.heard: list[Any] = []

    async def get_response(
        self, system_instructions: str | None, input: Any, *args: Any, **kwargs: Any
    ) -> ModelResponse:
        """Say the next, at once."""
        output = await self._next(input)
        usage = Usage(requests=1, input_tokens=10, output_tokens=5, total_tokens=15)
        return ModelResponse(output=output, usage=usage, response_id=None)

    async def stream_response(
        self, system_instructions: str | None, input: Any, *args: Any, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Say the next, without a delta."""
        made = response(await self._next(input))
        yield ResponseCompletedEvent(type="response.completed", sequence_number=1, response=made)

    async def _next(self, input: Any) -> list[Any]:
        self.heard.append(input)
        turn, number = self._turns.pop(0), next(_numbers)
        if turn is None:
            await asyncio.Event().wait()
        if isinstance(turn, str):
            text = ResponseOutputText(type="output_text", text=turn, annotations=[])
            message = ResponseOutputMessage(
                id=f"m-{number}", content=[text], role="assistant", status="completed", type="message"
            )
            return [message]
        name, args = turn or ("", {})
        call = ResponseFunctionToolCall(
            arguments=json.dumps(args), call_id=f"call-{number}", name=name, type="function_call"
        )
        return [call]


def brew(tea: str) -> str:
    """Brew tea."""
    return f"a cup of {tea}"


def helper(*turns: Any, asks: bool = False) -> Agent[Any]:
    """Return an agent that can brew."""
    return Agent("helper", tools=[function_tool(brew, needs_approval=asks)], model=Speaker(*turns))


def with_tool(tool: Agent[Any]) -> tuple[Agent[Any], Speaker]:
    """Return an agent that uses another one as its tool, and its model."""
    model = Speaker(("ask_helper", {"input": "Sencha."}), "served")
    return Agent("boss", tools=[tool.as_tool("ask_helper", "Brews.")], model=model), model


def ended(run: Run) -> Run:
    """Return the run when it has ended, its log looked at."""
    assert run.wait(BOUND_S), run.record
    log.check(run)
    return run


BREWS = ("brew", {"tea": "sencha"})


def test_an_agent_that_is_handed_over_to_is_a_phase(session: NotebookSession) -> None:
    """Its tools are rows, its answer is the output, its calls count."""
    boss = Agent("boss", handoffs=[helper(BREWS, "a cup")], model=Speaker(("transfer_to_helper", {})))
    run = ended(session.start(boss, "Some tea."))
    assert (run.output, run.phase) == ("a cup", "helper")
    assert [(t.name, t.status, t.result) for t in run.record.tools] == [("brew", "ok", "a cup of sencha")]
    assert (run.usage.requests, run.usage.input_tokens, run.usage.output_tokens) == (3, 30, 15)


def test_an_agent_that_is_a_tool_counts(session: NotebookSession) -> None:
    """Its calls and tokens are the run's, and so they are under its budget."""
    run = ended(session.start(with_tool(helper(BREWS, "a cup"))[0], "Some tea."))
    assert run.output == "served"
    assert [(t.name, t.status, t.result) for t in run.record.tools] == [("ask_helper", "ok", "a cup")]
    assert (run.usage.requests, run.usage.input_tokens, run.usage.output_tokens) == (4, 40, 20)
    over = ended(session.start(with_tool(helper(BREWS, "a cup"))[0], "Some tea.", max_turns=2))
    assert (over.status, over.cause, over.usage.requests) == (RunStatus.CANCELLED, "budget", 2)
    dear = ended(session.start(with_tool(helper(BREWS, "a cup"))[0], "Some tea.", max_tokens=40))
    assert (dear.status, dear.cause) == (RunStatus.CANCELLED, "budget")
    assert dear.usage.requests < 4


def test_a_tool_of_an_agent_that_is_a_tool_asks(session: NotebookSession) -> None:
    """Nothing is used unasked, and nothing is counted twice by the stop for it."""
    run = session.start(with_tool(helper(BREWS, "a cup", asks=True))[0], "Some tea.")
    until(run, lambda record: bool(record.pending))
    run.approve()
    assert ended(run).output == "served"
    assert (run.usage.requests, run.usage.input_tokens, run.usage.output_tokens) == (4, 40, 20)


def test_what_an_agent_that_is_a_tool_says_is_no_part_of_the_conversation(session: NotebookSession) -> None:
    """A run that was cut while it worked goes on as the one that uses it, and hears what was said to that."""
    cut = session.start(with_tool(helper(None))[0], "Some tea.")
    until(cut, lambda record: record.usage.requests == 2)
    cut.steer("with milk")
    cut.cancel()
    ended(cut)
    boss, model = with_tool(helper(BREWS, "a cup"))
    run = ended(cut.resume(agent=boss))
    assert run.output == "served"
    first = model.heard[0]
    assert [item.get("content", item.get("name")) for item in first if "output" not in item] == [
        "Some tea.", "ask_helper",
    ]  # fmt: skip
    assert "interrupted" in first[-1]["output"]
