"""Google ADK's `LlmAgent`, on a model of its own interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from nbrun.agents import is_installed
from tests.agents.conformance.script import Script, filled
from tests.agents.conformance.subject import PROMPT, Subject

if TYPE_CHECKING or is_installed("google.adk"):
    from google.adk.agents import LlmAgent
    from google.adk.models.base_llm import BaseLlm
    from google.adk.models.llm_response import LlmResponse
    from google.adk.tools.function_tool import FunctionTool
    from google.genai import types

    class ScriptModel(BaseLlm):  # type: ignore[misc]  # its package is not where types are checked
        """Follows a script: which turn it is, is told by the calls of earlier ones."""

        script: Any
        prefix: str = "call"  # of its ids, unique in a run

        async def generate_content_async(self, llm_request: Any, stream: bool = False) -> AsyncIterator[LlmResponse]:
            """Say what the turn says."""
            parts = [(content.role, part) for content in llm_request.contents for part in content.parts]
            responses = [part.function_response.response for _, part in parts if part.function_response]
            results = [r.get("result", r.get("error")) for r in responses]
            said = [part.text for role, part in parts if role == "user" and part.text]
            heard = [text for text in said if text != PROMPT]
            called = {part.function_call.id.split("-")[1] for _, part in parts if part.function_call}
            turn = self.script.turns[number := len(called)]
            words = [filled(word, results, heard) for word in turn.words]
            for word in words:
                yield LlmResponse(content=types.Content(role="model", parts=[types.Part(text=word)]), partial=True)
            if turn.stalls:
                await asyncio.Event().wait()
            if turn.fails:
                raise ValueError(turn.fails)
            made = [types.Part(text="".join(words))] if words else []
            made += [
                types.Part(
                    function_call=types.FunctionCall(
                        id=f"{self.prefix}-{number}-{place}", name=call.name, args=call.args
                    )
                )
                for place, call in enumerate(turn.calls)
            ]
            usage = types.GenerateContentResponseUsageMetadata(prompt_token_count=10, candidates_token_count=5)
            yield LlmResponse(content=types.Content(role="model", parts=made), usage_metadata=usage)


class GoogleAdk(Subject):
    """An agent of ADK."""

    name = "google-adk"

    def agent(self, script: Script) -> Any:
        """Return an agent whose model streams the script."""
        tools = [FunctionTool(call.tool, require_confirmation=call.asks) for call in script.calls.values()]
        return LlmAgent(name="poet", model=ScriptModel(model="script", script=script), tools=tools)


SUBJECTS = (GoogleAdk(),) if is_installed("google.adk") else ()
