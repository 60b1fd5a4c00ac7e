"""The Agents SDK's `Agent`, on a model of its own interface."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, Model, ModelResponse, Runner, function_tool, set_tracing_disabled
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from openai import AsyncOpenAI
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseUsage,
)
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from tests.agents.conformance.script import Script, call_id, filled
from tests.agents.conformance.subject import PROMPT, Subject

set_tracing_disabled(True)  # else each run is sent to the provider


class ScriptModel(Model):
    """Follows a script: which turn it is, is told by how often it has answered."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Do nothing: the adapter streams."""
        raise NotImplementedError

    async def stream_response(
        self, system_instructions: str | None, input: Any, *args: Any, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Say what the turn says."""
        items = [{"role": "user", "content": input}] if isinstance(input, str) else list(input)
        results = [i["output"] for i in items if i.get("type") == "function_call_output"]
        said = [i["content"] for i in items if i.get("role") == "user"]
        heard = [text for text in said if text != PROMPT]
        # A turn of the script is one message, or calls; those of one turn have its number in their ids.
        called = {i["call_id"].split("-")[1] for i in items if i.get("type") == "function_call"}
        number = len(called)
        turn = self._script.turns[number]
        words = [filled(word, results, heard) for word in turn.words]
        for place, word in enumerate(words):
            yield ResponseTextDeltaEvent(
                type="response.output_text.delta", delta=word, content_index=0, item_id="m", logprobs=[],
                output_index=0, sequence_number=place,
            )  # fmt: skip
        if turn.stalls:
            await asyncio.Event().wait()
        if turn.fails:
            raise ValueError(turn.fails)
        output: list[Any] = []
        if words:
            text = ResponseOutputText(type="output_text", text="".join(words), annotations=[])
            output.append(
                ResponseOutputMessage(
                    id=f"m-{number}", content=[text], role="assistant", status="completed", type="message"
                )
            )
        output += [
            ResponseFunctionToolCall(
                arguments=json.dumps(call.args), call_id=call_id(number, place), name=call.name, type="function_call"
            )
            for place, call in enumerate(turn.calls)
        ]
        yield ResponseCompletedEvent(type="response.completed", sequence_number=99, response=_response(output))


def _response(output: list[Any]) -> Response:
    usage = ResponseUsage(
        input_tokens=10, output_tokens=5, total_tokens=15,
        input_tokens_details=InputTokensDetails(cached_tokens=0, cache_write_tokens=0),
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
    )  # fmt: skip
    return Response(
        id="r", created_at=0, model="script", object="response", output=output, tool_choice="auto", tools=[],
        parallel_tool_calls=True, usage=usage,
    )  # fmt: skip


class OpenAIAgents(Subject):
    """An `Agent` of the Agents SDK."""

    name = "openai-agents"
    has_http = True

    def agent(self, script: Script) -> Any:
        """Return an agent whose model streams the script."""
        tools: list[Any] = [function_tool(call.tool, needs_approval=call.asks) for call in script.calls.values()]
        return Agent(name="poet", model=ScriptModel(script), tools=tools)

    def over_http(self, url: str, model: str) -> Any:
        """Return an agent on the SDK's model of chat completions."""
        client = AsyncOpenAI(base_url=url, api_key="none is needed here")
        return Agent(name="poet", model=OpenAIChatCompletionsModel(model, client))

    async def awaited(self, agent: Any, prompt: str) -> str:
        """Await its runner."""
        return str((await Runner.run(agent, prompt)).final_output)

    async def hang_up(self, agent: Any) -> None:
        """Close the model's client."""
        await agent.model._client.close()


SUBJECTS = (OpenAIAgents(),)
