"""The adapter of Google's ADK, beside what holds of every adapter: what is named, what a tool asks itself, limits."""

from __future__ import annotations

from typing import Any

import pytest

from nbrun import CancelCause, NotebookSession, RunStatus
from tests.agents.conformance.scenarios import SCENARIOS
from tests.agents.conformance.script import Call, Turn, script
from tests.agents.conformance.subject import PROMPT
from tests.agents.conformance.subjects.google_adk import GoogleAdk
from tests.fakes.agents import BOUND_S
from tests.fakes.people import asking
from tests.fakes.provider import ASKED, CACHED, Provider

pytestmark = pytest.mark.packages


def agent(scenario: str) -> Any:
    """Return an agent for a scenario."""
    return GoogleAdk().agent(SCENARIOS[scenario])


def test_an_app_and_a_runner_can_be_named(session: NotebookSession) -> None:
    """Of a runner, the run uses the services and a session of its own."""
    from google.adk.apps.app import App
    from google.adk.runners import InMemoryRunner

    app = App(name="poems", root_agent=agent("adds"))
    run = session.start(app, PROMPT)
    assert (run.result(BOUND_S), run.name) == ("it is 5", "poems")
    runner = InMemoryRunner(app=app)
    runs = [session.start(runner, PROMPT) for _ in range(2)]
    for run in runs:
        assert (run.result(BOUND_S), run.name) == ("it is 5", "poems")
    sessions = runner.session_service.list_sessions_sync(app_name="poems", user_id="nbrun").sessions
    assert {found.id for found in sessions} == {run.id for run in runs}
    events = [event for run in runs for event in _events(runner, run.id)]
    assert [event.author for event in events] == ["user", "poet", "poet", "poet"] * 2
    assert app.plugins == []


def _events(runner: Any, session_id: str) -> Any:
    found = runner.session_service.get_session_sync(app_name="poems", user_id="nbrun", session_id=session_id)
    return found.events


def test_usage_is_counted_once(session: NotebookSession) -> None:
    """Of complete responses, whose text came in pieces before."""
    run = session.start(agent("adds"), PROMPT)
    assert run.wait(BOUND_S)
    assert (run.usage.input_tokens, run.usage.output_tokens, run.usage.requests) == (20, 10, 2)
    assert run.text.count("it is 5") == 1


def test_no_call_is_begun_beyond_a_limit(session: NotebookSession) -> None:
    """Before each call the budget is asked."""
    run = session.start(agent("adds"), PROMPT, max_turns=1)
    assert run.wait(BOUND_S)
    assert (run.status, run.cause, run.usage.requests) == (RunStatus.CANCELLED, CancelCause.BUDGET, 1)


def test_calls_of_gemini_are_counted_once(session: NotebookSession) -> None:
    """The calls say what they have used, and so does ADK; its text comes in pieces, and then as a whole."""
    import httpx
    from google.adk.agents import LlmAgent
    from google.adk.models.google_llm import Gemini
    from google.genai import Client, types

    with Provider() as provider:
        http = httpx.AsyncClient()
        options = types.HttpOptions(base_url=provider.url, httpx_async_client=http)
        client = Client(api_key="none is needed here", http_options=options)
        run = session.start(LlmAgent(name="poet", model=Gemini(model="gpt-4o", client=client)), PROMPT)
        assert run.result(BOUND_S) == "word word word word "
        session.start(lambda: http.aclose()).result(BOUND_S)
    assert run.text == "word word word word "
    assert [call.usage.output_tokens for call in run.calls if call.usage] == [4]
    usage = run.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.requests) == (ASKED, 4, CACHED, 1)


async def orders(cups: int, tool_context: Any) -> str:
    """Order cups."""
    if tool_context.tool_confirmation is None:
        tool_context.request_confirmation(hint="How many cups?", payload={"cups": cups})
        return "asked"
    return f"ordered {tool_context.tool_confirmation.payload['cups']}"


def test_what_a_tool_asks_itself_is_a_question(session: NotebookSession) -> None:
    """ADK ends the invocation for it; the edited payload is the tool's. A run that was cancelled asks again."""
    from google.adk.tools.tool_context import ToolContext

    orders.__annotations__["tool_context"] = ToolContext
    buys = script(Turn(calls=(Call(orders, {"cups": 2}),)), Turn(("it is ", "{results}")))
    run = session.start(GoogleAdk().agent(buys), PROMPT)
    asking(run)
    run.cancel()
    assert run.wait(BOUND_S)
    resumed = run.resume()
    (asked,) = asking(resumed)
    assert (asked.message, asked.args) == ("How many cups?", {"cups": 2})
    resumed.approve(args={"cups": 3})
    assert "ordered 3" in str(resumed.result(BOUND_S))


@pytest.mark.filterwarnings("ignore:The `plugins` argument:DeprecationWarning")  # ADK's own use of it
def test_an_agent_as_a_tool_counts_and_shows_its_tools(session: NotebookSession) -> None:
    """It has a runner of its own, which has the plugin as well."""
    from google.adk.tools.agent_tool import AgentTool

    inner = agent("adds")
    inner.name = inner.description = "clerk"
    inner.model.prefix = "inner"
    outer = GoogleAdk().agent(script(Turn(calls=(Call(clerk, {"request": "two and three"}),)), Turn(("done",))))
    outer.tools = [AgentTool(inner)]
    run = session.start(outer, PROMPT)
    assert run.result(BOUND_S) == "done"
    assert [(tool.name, tool.status) for tool in run.record.tools] == [("clerk", "ok"), ("add", "ok")]
    assert run.usage.requests == 4


async def clerk(request: str) -> str:
    """Stand for an agent, by its name."""
    raise NotImplementedError
