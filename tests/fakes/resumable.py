"""Agents of six kinds that call a provider on this machine, in processes that somebody kills, and resumes.

`python -m tests.fakes.resumable KIND` imports what the kind needs, and makes a process of its own for each line that it
reads: {"do": "start" or "resume", "url": …, "store": …}. It writes a line with its pid, and one with what it returns.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from nbrun import NotebookSession
from nbrun.core.errors import NotResumable

MODEL, KEY = "gpt-4o", "none is needed here"
PROMPT = "Look it up, then tell."
LIMIT_S = 60.0


def look_up(number: int) -> str:
    """Look something up.

    Args:
        number: Which one.
    """
    return f"entry {number}"


def plain_sync() -> Callable[[str], Any]:
    """Return a maker of an agent that uses the provider's package as it is."""
    import openai

    def make(url: str) -> Any:
        def plain(prompt: str) -> str:
            client = openai.OpenAI(base_url=url, api_key=KEY)
            messages: list[Any] = [{"role": "user", "content": prompt}]
            while True:
                answer = client.chat.completions.create(model=MODEL, messages=messages).choices[0].message
                if not answer.tool_calls:
                    return str(answer.content)
                messages += _after(answer)

        return plain

    return make


def plain_async() -> Callable[[str], Any]:
    """The same with its async client, streamed."""
    import openai

    def make(url: str) -> Any:
        async def plain(prompt: str) -> str:
            client = openai.AsyncOpenAI(base_url=url, api_key=KEY)
            text, number = "", 0
            messages: list[Any] = [{"role": "user", "content": prompt}]
            while True:
                text, calls = "", []
                stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
                async for chunk in stream:
                    for choice in chunk.choices:
                        text += choice.delta.content or ""
                        calls += choice.delta.tool_calls or []
                if not calls:
                    return text
                number += 1
                messages.append({"role": "assistant", "content": f"look {number}"})
                messages.append({"role": "user", "content": look_up(number)})

        return plain

    return make


def _after(answer: Any) -> list[Any]:
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": look_up(**json.loads(call.function.arguments))}
        for call in answer.tool_calls
    ]
    return [answer.model_dump(exclude_none=True), *results]


def pydantic_ai() -> Callable[[str], Any]:
    """Return a maker of an agent of pydantic-ai."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return lambda url: Agent(
        OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=url, api_key=KEY)), name="kind", tools=[look_up]
    )


def openai_agents() -> Callable[[str], Any]:
    """Return a maker of an agent of OpenAI's Agents SDK."""
    from agents import Agent, function_tool, set_tracing_disabled
    from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    tools: list[Any] = [function_tool(look_up)]
    return lambda url: Agent(
        name="kind", model=OpenAIChatCompletionsModel(MODEL, AsyncOpenAI(base_url=url, api_key=KEY)), tools=tools
    )


def langgraph() -> Callable[[str], Any]:
    """Return a maker of a graph of LangGraph."""
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition
    from pydantic import SecretStr

    tools = [tool(look_up)]

    def make(url: str) -> Any:
        model = ChatOpenAI(model=MODEL, base_url=url, api_key=SecretStr(KEY), stream_usage=True).bind_tools(tools)

        async def agent(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await model.ainvoke(state["messages"])]}

        builder = StateGraph(MessagesState)
        builder.add_node("agent", agent)
        builder.add_node("tools", ToolNode(tools))
        builder.add_edge(START, "agent")
        builder.add_conditional_edges("agent", tools_condition)
        builder.add_edge("tools", "agent")
        return builder.compile()

    return make


def smolagents() -> Callable[[str], Any]:
    """Return a maker of an agent of smolagents."""
    from smolagents import OpenAIServerModel, ToolCallingAgent, tool

    tools = [tool(look_up)]
    return lambda url: ToolCallingAgent(
        tools=tools, model=OpenAIServerModel(MODEL, api_base=url, api_key=KEY), verbosity_level=0
    )


KINDS = {
    "plain_sync": plain_sync,
    "plain_async": plain_async,
    "pydantic_ai": pydantic_ai,
    "openai_agents": openai_agents,
    "langgraph": langgraph,
    "smolagents": smolagents,
}


def work(asked: dict[str, str], make: Callable[[str], Any]) -> str:
    """Start a run, or resume the newest; return what it has returned."""
    session = NotebookSession(store=asked["store"])
    try:
        agent = make(asked["url"])
        if asked["do"] == "start":
            return str(session.start(agent, PROMPT).result(LIMIT_S))
        last = session.get("last")
        if last.status == "completed":  # it was killed after its end
            return str(last.result())
        try:
            run = last.resume(agent=agent)
        except NotResumable:  # it was killed before it had asked anything
            run = last.retry(agent=agent)
        return str(run.result(LIMIT_S))
    finally:
        session.close()


def main(kind: str) -> None:
    """Make the processes."""
    make = KINDS[kind]()
    print(json.dumps({"is": "ready"}), flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                output = work(json.loads(line), make)
                print(json.dumps({"is": "done", "output": output}), flush=True)
            except BaseException as error:
                print(json.dumps({"is": "failed", "error": f"{type(error).__name__}: {error}"}), flush=True)
            finally:
                os._exit(0)
        print(json.dumps({"is": "forked", "pid": pid}), flush=True)
        os.waitpid(pid, 0)
        print(json.dumps({"is": "gone"}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
