"""pydantic-ai agents: what they do becomes events, and a cancel goes through their own token."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.models.test import TestModel

from nbrun import NotebookSession, RunStatus
from nbrun import events as ev
from nbrun.agents import find_adapter
from nbrun.agents.pydantic_ai import PydanticAIAdapter
from nbrun.cancellation import Rung
from tests.fakes.agents import BOUND_S

Stream = Callable[[list[ModelMessage], AgentInfo], AsyncIterator[str | dict[int, DeltaToolCall]]]


def agent_on(stream: Stream, **options: object) -> Agent[None, str]:
    """Return an agent whose model streams this."""
    return Agent(FunctionModel(stream_function=stream), name="poet", **options)  # type: ignore[call-overload, no-any-return]


async def says_tea(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
    """Stream four words."""
    for word in ("Steam ", "from ", "the ", "cup"):
        yield word


def test_it_is_found_by_class() -> None:
    """An agent object, and nothing else of the package, is driven by this adapter."""
    agent = Agent(TestModel(), name="poet")
    assert isinstance(find_adapter(agent), PydanticAIAdapter)
    assert find_adapter(agent).label(agent) == "poet"
    assert not PydanticAIAdapter().match(TestModel())
    assert not PydanticAIAdapter().match(Agent)


def test_text_is_streamed_and_is_the_output(session: NotebookSession) -> None:
    """Deltas join to the output; the whole message comes once, and usage is told."""
    run = session.start(agent_on(says_tea), "tea")
    assert run.result(BOUND_S) == "Steam from the cup"
    assert (run.name, run.text) == ("poet", "Steam from the cup")
    kinds = [event.type for event in run.events()]
    assert kinds.count("text.delta") >= 4
    assert kinds.count("message") == 1
    assert run.usage.requests == 1
    assert run.usage.output_tokens > 0


def test_tools_are_shown_with_arguments_and_results(session: NotebookSession) -> None:
    """A tool call is a row with its name, arguments, result and time."""

    async def uses_a_tool(
        messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        if any(isinstance(part, ToolReturnPart) for part in messages[-1].parts):
            yield "it is warm"
        else:
            yield {0: DeltaToolCall("temperature", '{"of": "tea"}', tool_call_id="call-1")}

    async def temperature(of: str) -> dict[str, object]:
        """Tell the temperature."""
        return {"of": of, "celsius": 80}

    run = session.start(agent_on(uses_a_tool, tools=[temperature]), "how warm?")
    assert run.result(BOUND_S) == "it is warm"
    (tool,) = run.record.tools
    assert (tool.id, tool.name, tool.status) == ("call-1", "temperature", "ok")
    assert (tool.args, tool.result) == ({"of": "tea"}, {"of": "tea", "celsius": 80})
    assert tool.ms is not None


def test_a_cancel_goes_through_its_own_token_and_keeps_text_and_usage(
    session: NotebookSession,
) -> None:
    """The native rung is the only one used; what was said and paid for is kept, as a lower bound."""
    said, cleaned = threading.Event(), threading.Event()

    async def never_ends(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        try:
            yield "half a "
            yield "sentence "
            said.set()
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    run = session.start(agent_on(never_ends), "tea")
    assert said.wait(BOUND_S)
    assert run.cancel("enough").wait(BOUND_S)
    assert run.status is RunStatus.CANCELLED
    assert run.error is None
    assert "half a" in run.text
    rungs = [e.data.rung for e in run.events() if isinstance(e.data, ev.CancelEscalated)]
    assert rungs == [Rung.NATIVE]
    assert run.usage.requests == 1
    assert run.usage.exact is False
    assert cleaned.wait(BOUND_S)


def test_a_model_that_fails_fails_the_run(session: NotebookSession) -> None:
    """What the model raises is the run's error."""

    async def breaks(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        yield "half"
        raise ValueError("model is gone")

    run = session.start(agent_on(breaks), "tea")
    assert run.wait(BOUND_S)
    assert run.status is RunStatus.FAILED
    assert "model is gone" in str(run.error)
    assert run.text == "half"


def test_one_agent_may_have_two_runs_at_once(session: NotebookSession) -> None:
    """Each run has its own native token: one is cancelled, the other goes on."""
    waiting = threading.Semaphore(0)
    gates: list[Callable[[], object]] = []

    async def waits(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        loop, gate = asyncio.get_running_loop(), asyncio.Event()
        gates.append(lambda: loop.call_soon_threadsafe(gate.set))
        yield "waiting "
        waiting.release()
        await gate.wait()
        yield "done"

    agent = agent_on(waits)
    first, second = session.start(agent, "one"), session.start(agent, "two")
    for _ in range(2):
        assert waiting.acquire(timeout=BOUND_S)
    assert first.cancel().wait(BOUND_S)
    for gate in gates:
        gate()
    assert second.result(BOUND_S) == "waiting done"
    assert first.status is RunStatus.CANCELLED
