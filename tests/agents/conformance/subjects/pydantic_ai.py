"""pydantic-ai's `Agent`, on its own `FunctionModel`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic_ai import Agent, Tool as FrameworkTool
from pydantic_ai.messages import ModelMessage, ModelResponse, RetryPromptPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.agents.conformance.script import Script, call_id, filled
from tests.agents.conformance.subject import PROMPT, Subject


class Model:
    """Follows a script: which turn it is, is told by how often it has answered."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def stream(
        self, messages: list[ModelMessage], _info: AgentInfo
    ) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        """Say what the turn says."""
        parts = [part for message in messages for part in message.parts]
        results = [part.content for part in parts if isinstance(part, ToolReturnPart | RetryPromptPart)]
        said = [str(part.content) for part in parts if isinstance(part, UserPromptPart)]
        heard = [text for text in said if text != PROMPT]
        number = sum(isinstance(message, ModelResponse) for message in messages)
        turn = self._script.turns[number]
        for word in turn.words:
            yield filled(word, results, heard)
        if turn.stalls:
            await asyncio.Event().wait()
        if turn.fails:
            raise ValueError(turn.fails)
        for place, call in enumerate(turn.calls):
            args = json.dumps(call.args)
            yield {place: DeltaToolCall(call.name, args, tool_call_id=call_id(number, place))}


class PydanticAI(Subject):
    """An `Agent` of pydantic-ai."""

    name = "pydantic-ai"
    has_http = True

    def agent(self, script: Script) -> Any:
        """Return an agent whose model streams the script."""
        tools = [FrameworkTool(call.tool, requires_approval=call.asks) for call in script.calls.values()]
        model = FunctionModel(stream_function=Model(script).stream)
        return Agent(model, name="poet", tools=tools)

    def over_http(self, url: str, model: str) -> Any:
        """Return an agent on its OpenAI model."""
        provider = OpenAIProvider(base_url=url, api_key="none is needed here")
        return Agent(OpenAIChatModel(model, provider=provider), name="poet")

    async def awaited(self, agent: Any, prompt: str) -> str:
        """Await it."""
        return str((await agent.run(prompt)).output)

    async def hang_up(self, agent: Any) -> None:
        """Close the model's client."""
        await agent.model.client.close()


SUBJECTS = (PydanticAI(),)
