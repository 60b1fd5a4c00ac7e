"""smolagents' `ToolCallingAgent`, on a model of its own interface."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Coroutine, Iterator
from typing import Any

from smolagents import Model, Tool, ToolCallingAgent
from smolagents.models import ChatMessageStreamDelta, ChatMessageToolCallFunction, ChatMessageToolCallStreamDelta
from smolagents.monitoring import TokenUsage

import nbrun
from tests.agents.conformance.script import Call, Script, call_id, filled
from tests.agents.conformance.subject import PROMPT, Subject

TICK_S = 0.01


class ScriptModel(Model):  # type: ignore[misc]  # the package has no types
    """Follows a script: which turn it is, is told by how often tools have answered, or failed."""

    def __init__(self, script: Script) -> None:
        super().__init__(model_id="script")
        self._script = script

    def generate_stream(self, messages: list[Any], **_more: Any) -> Iterator[ChatMessageStreamDelta]:
        """Say what the turn says."""
        texts = [(str(m.role.value), part["text"]) for m in messages for part in m.content]
        number = sum(role == "tool-response" for role, _ in texts)
        seen = [t.removeprefix("Observation:\n") for role, t in texts if role == "tool-response"]
        said = [t.removeprefix("New task:\n") for role, t in texts if role == "user"]
        heard = [text for text in said if text != PROMPT]
        turn = self._script.turns[number]
        words = [filled(word, seen, heard) for word in turn.words]
        for word in words:
            yield ChatMessageStreamDelta(content=word)
        while turn.stalls:
            time.sleep(TICK_S)  # as a model that thinks
        if turn.fails:
            raise ValueError(turn.fails)
        calls = [(call.name, call.args) for call in turn.calls]
        if not calls:
            calls = [("final_answer", {"answer": "".join(words)})]
        for place, (name, args) in enumerate(calls):
            function = ChatMessageToolCallFunction(name=name, arguments=json.dumps(args))
            call = ChatMessageToolCallStreamDelta(
                index=place, id=call_id(number, place), type="function", function=function
            )
            yield ChatMessageStreamDelta(tool_calls=[call])
        yield ChatMessageStreamDelta(token_usage=TokenUsage(10, 5))


class ScriptTool(Tool):  # type: ignore[misc]  # the package has no types
    """A tool of the suite as one of the framework."""

    skip_forward_signature_validation = True
    output_type = "any"

    def __init__(self, call: Call) -> None:
        self.name, self.description = call.name, call.tool.__doc__ or call.name
        names = inspect.signature(call.tool).parameters
        self.inputs = {name: {"type": "any", "description": name} for name in names}
        super().__init__()
        self._call = call

    def forward(self, **kwargs: Any) -> Any:
        """Use it; the framework has sync tools only."""
        made = self._call.tool(**kwargs)
        return asyncio.run(_ticking(made)) if self._call.is_async else made


async def _ticking(work: Coroutine[Any, Any, Any]) -> Any:
    """Wait in small steps: into a thread that sleeps no exception is raised."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait({task}, timeout=TICK_S)
    return task.result()


class Smolagents(Subject):
    """A `ToolCallingAgent`."""

    name = "smolagents"

    def agent(self, script: Script) -> Any:
        """Return an agent whose model streams the script."""
        tools = [ScriptTool(call) for call in script.calls.values()]
        for tool in tools:
            if tool._call.asks:
                nbrun.needs_approval(tool)
        return ToolCallingAgent(tools, ScriptModel(script), stream_outputs=True, name="poet")


SUBJECTS = (Smolagents(),)
