"""LangGraph's compiled graphs: a model node and a tool node, on a chat model that streams a script."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import interrupt
from pydantic import SecretStr

from tests.agents.conformance.script import Call, Script, Turn, call_id, filled
from tests.agents.conformance.subject import PROMPT, Subject


class ScriptModel(BaseChatModel):
    """Follows a script: which turn it is, is told by how often it has answered."""

    turns: tuple[Turn, ...]

    @property
    def _llm_type(self) -> str:
        return "script"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError  # the adapter streams

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        results = [m.content for m in messages if isinstance(m, ToolMessage)]
        said = [str(m.content) for m in messages if isinstance(m, HumanMessage)]
        heard = [text for text in said if text != PROMPT]
        number = sum(isinstance(message, AIMessage) for message in messages)
        turn = self.turns[number]
        for word in turn.words:
            yield _chunk(content=filled(word, results, heard))
        if turn.stalls:
            await asyncio.Event().wait()
        if turn.fails:
            raise ValueError(turn.fails)
        for place, call in enumerate(turn.calls):
            part = {"name": call.name, "args": json.dumps(call.args), "id": call_id(number, place), "index": place}
            yield _chunk(content="", tool_call_chunks=[part])
        usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
        yield _chunk(content="", usage_metadata=usage, chunk_position="last")


def _chunk(**parts: Any) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(**parts))


def as_tool(call: Call) -> StructuredTool:
    """Return a tool of a script as one of LangChain's; one that asks does so as the middleware of LangChain does."""
    tool = asks_first(call.tool) if call.asks else call.tool
    if call.is_async:
        return StructuredTool.from_function(coroutine=tool, name=call.name)
    return StructuredTool.from_function(tool, name=call.name)


def asks_first(tool: Callable[..., Any]) -> Callable[..., Any]:
    """Return an async function that asks before it is entered."""

    @functools.wraps(tool)
    async def asks(**args: Any) -> Any:
        decision = interrupt(request(tool.__name__, args))["decisions"][0]
        if decision["type"] == "reject":
            return decision.get("message", "denied")
        if decision["type"] == "edit":
            args = decision["edited_action"]["args"]
        return await tool(**args)

    return asks


def request(name: str, args: dict[str, Any]) -> dict[str, Any]:
    """Return what LangChain's middleware interrupts with."""
    return {
        "action_requests": [{"name": name, "args": args}],
        "review_configs": [{"action_name": name, "allowed_decisions": ["approve", "edit", "reject"]}],
    }


def react(model: Any, tools: list[Any], **options: Any) -> Any:
    """Return a graph in which a model calls tools until it has an answer."""

    async def agent(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("agent", agent)
    builder.add_edge(START, "agent")
    if tools:
        builder.add_node("tools", ToolNode(tools, handle_tool_errors=True))
        builder.add_conditional_edges("agent", tools_condition)
        builder.add_edge("tools", "agent")
    return builder.compile(**options)


class LangGraph(Subject):
    """A graph without a checkpointer of its own."""

    name = "langgraph"
    has_http = True

    def __init__(self) -> None:
        self._clients: dict[int, httpx.AsyncClient] = {}

    def agent(self, script: Script) -> Any:
        """Return a graph whose model streams the script."""
        tools = [as_tool(call) for call in script.calls.values()]
        return react(ScriptModel(turns=script.turns), tools)

    def over_http(self, url: str, model: str) -> Any:
        """Return a graph on LangChain's model of chat completions."""
        client = httpx.AsyncClient()
        key = SecretStr("none is needed here")
        made = ChatOpenAI(model=model, base_url=url, api_key=key, stream_usage=True, http_async_client=client)
        graph = react(made, [])
        self._clients[id(graph)] = client
        return graph

    async def awaited(self, agent: Any, prompt: str) -> str:
        """Await it."""
        state = await agent.ainvoke({"messages": [HumanMessage(prompt)]})
        return str(state["messages"][-1].text)

    async def hang_up(self, agent: Any) -> None:
        """Close the model's client."""
        await self._clients[id(agent)].aclose()


SUBJECTS = (LangGraph(),)
