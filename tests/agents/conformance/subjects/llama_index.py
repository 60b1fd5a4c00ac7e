"""LlamaIndex's workflows: an agent of three steps that streams what LlamaIndex's own agents do.

Their events come with a package of its own, which is large; these have their names and fields.
"""

from __future__ import annotations

import asyncio
from typing import Any

from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from tests.agents.conformance.script import Script, call_id, filled
from tests.agents.conformance.subject import Subject


class Begin(StartEvent):
    """What is asked."""

    user_msg: str


class AgentInput(Event):
    """A model is about to be called."""


class AgentStream(Event):
    """A word of a model's."""

    delta: str


class AgentOutput(Event):
    """A model's answer."""

    response: dict[str, Any]
    raw: dict[str, Any]


class ToolCall(Event):
    """A tool is about to be used."""

    tool_name: str
    tool_kwargs: dict[str, Any]
    tool_id: str


class ToolCallResult(ToolCall):
    """It was."""

    tool_output: dict[str, Any]


class Turn(Event):
    """The next turn of the model, with what the tools have given."""

    number: int
    results: list[str]


class Use(Event):
    """The next of a turn's calls."""

    number: int
    place: int
    results: list[str]


class Ask(InputRequiredEvent):
    """A person has to allow a tool."""

    prefix: str
    tool_id: str
    tool_kwargs: dict[str, Any]
    call: dict[str, Any]


RAW = {"model": "script", "usage": {"prompt_tokens": 10, "completion_tokens": 5}}


class Poet(Workflow):
    """An agent."""

    def __init__(self, script: Script) -> None:
        super().__init__(timeout=None)
        self._script = script

    @step
    async def begin(self, ev: Begin) -> Turn:
        """Ask the model."""
        return Turn(number=0, results=[])

    @step
    async def model(self, ctx: Context, ev: Turn) -> Use | StopEvent:
        """Say what the turn says."""
        ctx.write_event_to_stream(AgentInput())
        turn = self._script.turns[ev.number]
        words = [filled(word, ev.results, ()) for word in turn.words]
        for word in words:
            ctx.write_event_to_stream(AgentStream(delta=word))
            await asyncio.sleep(0)
        if turn.stalls:
            await asyncio.Event().wait()
        if turn.fails:
            raise ValueError(turn.fails)
        said = "".join(words)
        ctx.write_event_to_stream(AgentOutput(response={"content": said}, raw=RAW))
        if not turn.calls:
            return StopEvent(result=said)
        return Use(number=ev.number, place=0, results=ev.results)

    @step
    async def use(self, ctx: Context, ev: Use) -> Use | Turn | Ask:
        """Use a tool, or ask first."""
        calls = self._script.turns[ev.number].calls
        if ev.place == len(calls):
            return Turn(number=ev.number + 1, results=ev.results)
        call, tool_id = calls[ev.place], call_id(ev.number, ev.place)
        self._tell(ctx, ToolCall(tool_name=call.name, tool_kwargs=call.args, tool_id=tool_id))
        if call.asks:
            words = f"Use {call.name}?"
            return Ask(prefix=words, tool_id=tool_id, tool_kwargs=call.args, call=ev.model_dump())
        return await self._used(ctx, ev, call.args)

    @step
    async def allowed(self, ctx: Context, ev: HumanResponseEvent) -> Use:
        """Use it as the person has said."""
        use = Use(**ev.call)
        if ev.approved:
            return await self._used(ctx, use, ev.args)
        return self._ended(ctx, use, {}, ev.reason or "denied")

    async def _used(self, ctx: Context, ev: Use, args: dict[str, Any]) -> Use:
        call = self._script.turns[ev.number].calls[ev.place]
        try:
            made = call.tool(**args) if call.is_async else asyncio.to_thread(call.tool, **args)
            return self._ended(ctx, ev, args, await made)
        except ValueError as error:
            return self._ended(ctx, ev, args, error, is_error=True)

    def _ended(self, ctx: Context, ev: Use, args: dict[str, Any], result: object, is_error: bool = False) -> Use:
        call = self._script.turns[ev.number].calls[ev.place]
        output = {"content": str(result), "is_error": is_error}
        tool_id = call_id(ev.number, ev.place)
        told = ToolCallResult(tool_name=call.name, tool_kwargs=args, tool_id=tool_id, tool_output=output)
        self._tell(ctx, told)
        return Use(number=ev.number, place=ev.place + 1, results=[*ev.results, str(result)])

    def _tell(self, ctx: Context, event: Event) -> None:
        ctx.write_event_to_stream(event)


class LlamaIndex(Subject):
    """A workflow."""

    name = "llama-index"

    def agent(self, script: Script) -> Any:
        """Return an agent that follows the script."""
        return Poet(script)


SUBJECTS = (LlamaIndex(),)
