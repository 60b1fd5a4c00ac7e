"""The built-in agent, on a provider of this machine that follows the script: over HTTP, as on any other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

from nbrun.agents import needs_approval
from nbrun.agents.builtin import ModelAgent
from nbrun.core.options import RunOptions
from tests.agents.conformance.script import Script, call_id, filled
from tests.agents.conformance.subject import PROMPT, Subject
from tests.fakes.openai_server import MODEL, Broken, OpenAIServer


class Provider:
    """Follows scripts, of which the model's name says which: how far each is, is told by the messages."""

    def __init__(self) -> None:
        self._scripts: list[Script] = []
        self.server = OpenAIServer(self._reply)

    def model_for(self, script: Script) -> str:
        """Return the name of the model that follows a script."""
        if script not in self._scripts:
            self._scripts.append(script)
        return f"{MODEL}-{self._scripts.index(script)}"

    async def _reply(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        script = self._scripts[int(request["model"].rpartition("-")[2])]
        messages = request["messages"]
        results = [one["content"] for one in messages if one["role"] == "tool"]
        said = [one["content"] for one in messages if one["role"] == "user"]
        number = sum(one["role"] == "assistant" for one in messages)
        turn = script.turns[number]
        for word in turn.words:
            yield {"content": filled(word, results, [text for text in said if text != PROMPT])}
        if turn.stalls:
            await asyncio.Event().wait()
        if turn.fails:
            raise Broken(turn.fails)
        for place, call in enumerate(turn.calls):
            function = {"name": call.name, "arguments": json.dumps(call.args)}
            made = {"index": place, "id": call_id(number, place), "type": "function"}
            yield {"tool_calls": [{**made, "function": function}]}


@cache
def provider() -> Provider:
    """Return the one of this process; it ends with it."""
    made = Provider()
    made.server.start()
    return made


class Builtin(Subject):
    """`--model` with `--tools`."""

    name = "builtin"
    crowd = 8  # what a session runs at once: each makes a client, which takes 30 ms of the interpreter

    @property
    def environ(self) -> dict[str, str]:
        """Where the provider is."""
        return {"OPENAI_BASE_URL": provider().server.url, "OPENAI_API_KEY": "none is needed here"}

    def agent(self, script: Script) -> ModelAgent:
        """Return the built-in agent on a model that follows the script."""
        calls = script.calls.values()
        tools = [needs_approval(call.tool) if call.asks else call.tool for call in calls]
        model = f"openai-chat:{provider().model_for(script)}"
        return ModelAgent(model, "poet", RunOptions(tools=tuple(tools)))


SUBJECTS = (Builtin(),)
