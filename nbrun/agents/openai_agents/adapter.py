"""Agents of OpenAI's Agents SDK: text, reasoning, tools and usage as events; its `cancel()` as native cancel.

| Where it is | What you do | How it ends |
| --- | --- | --- |
| in its text, or an async tool | any cancel of the run | at once: the stream is closed, its tasks are cancelled |
| in a sync tool | the same | after the grace period, by an exception in its thread, or named |
| while a question is open | the same | at once: the question is withdrawn |

A tool with `needs_approval` asks as any agent of nbrun does; other arguments cannot be given. A run that stopped
goes on from its items: what had been called and not answered is told to the model as interrupted. An agent that
hands off goes on with the agent that the run began with.

Matched by class name; the framework is imported with the first run, which takes seconds. Its package is
called `agents`, as are many people's own modules; those have no `Runner`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbrun.agents import (
    Clock,
    Framework,
    Limitations,
    Output,
    RunContext,
    State,
    events as ev,
    plain,
    provider_retries,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agents import RunResultStreaming

    from nbrun.agents.openai_agents.hooks import Hooks, Memory

    Items = AsyncIterator[ev.EventData | Output]

PACKAGE = "agents"
NO_EDIT = "OpenAI's Agents SDK runs a tool with the model's arguments only"


class OpenAIAgentsAdapter:
    """Drives an `agents.Agent`.

    Threads: the host's loop; `_streams` holds the stream of each run that is under way.
    """

    name = "openai-agents"
    framework = Framework(PACKAGE, "openai-agents")
    limitations = Limitations(edited_args=NO_EDIT)

    def __init__(self) -> None:
        self._streams: dict[str, RunResultStreaming] = {}

    def match(self, agent: object) -> bool:
        """Return whether the object's class comes from the SDK and is an agent."""
        return any(
            base.__module__.partition(".")[0] == PACKAGE and base.__name__ == "AgentBase"
            for base in type(agent).__mro__
        )

    def check(self, agent: object) -> None:
        """Accept any; the SDK itself reports what its model lacks."""

    def label(self, agent: object) -> str:
        """Return the agent's name."""
        return str(getattr(agent, "name", None) or "agent")

    async def events(self, agent: Any, prompt: str, run: RunContext) -> Items:
        """Yield what the agent does, after what was said in the runs that this one continues."""
        from nbrun.agents.openai_agents.hooks import Hooks, Memory, as_messages

        begin = [*as_messages(run.history), {"role": "user", "content": prompt}]
        async for item in self._driven(agent, begin, Hooks(run, Memory(run))):
            yield item

    async def resume(self, agent: Any, state: State, run: RunContext) -> Items:
        """Yield what the agent does from there on; a person is asked again about what was not answered."""
        from nbrun.agents.openai_agents.hooks import Hooks, Memory, restore

        begin, received = await restore(agent, state)
        run.checkpoint(state)  # in case it stops before it has a checkpoint of its own
        async for item in self._driven(agent, begin, Hooks(run, Memory(run, received))):
            yield item

    async def _driven(self, agent: Any, begin: Any, watch: Hooks) -> Items:
        """Yield what the agent does, in as many streams as there are stops for people."""
        from agents import RunConfig, Runner, RunState

        provider_retries.listen()
        run, memory = watch.run, watch.memory
        mapper = _Mapper(run.clock, memory, watch)
        config = RunConfig(
            call_model_input_filter=watch.filter_input, tool_error_formatter=watch.note_error
        )
        options: dict[str, Any] = {"hooks": watch, "run_config": config}
        if run.budget.limits.max_turns is not None:  # else the SDK's own limit stands
            options["max_turns"] = None
        while True:
            if isinstance(begin, RunState) and begin.get_interruptions():
                await watch.ask(begin)
            watch.begin_stream(is_new=not isinstance(begin, RunState))
            stream = self._streams[run.run_id] = Runner.run_streamed(agent, begin, **options)
            try:
                async for event in stream.stream_events():
                    for mapped in mapper.map(event):
                        yield mapped
            finally:
                self._streams.pop(run.run_id, None)
            # Source: a cancelled stream ends as one that has come to its end.
            run.token.raise_if_cancelled()
            if stream.interruptions:
                begin = stream.to_state()
            elif said := run.inbox.take():
                begin = [*stream.to_input_list(), *({"role": "user", "content": s} for s in said)]
            else:
                yield Output(stream.final_output)
                return

    async def cancel(self, run: RunContext) -> None:
        """Cancel the stream and what it has begun."""
        stream = self._streams.get(run.run_id)
        if stream is not None:
            stream.cancel("immediate")


class _Mapper:
    """Turns the SDK's events into ours; remembers when tools began."""

    def __init__(self, clock: Clock, memory: Memory, watch: Hooks) -> None:
        self._clock = clock
        self._memory = memory
        self._watch = watch
        self._began: dict[str, float] = {}

    def map(self, event: Any) -> list[ev.EventData]:
        if event.type == "raw_response_event":
            return _delta(event.data)
        if event.type != "run_item_stream_event":
            return []
        match event.name:
            case "message_output_created":
                text = "".join(
                    part.text for part in event.item.raw_item.content if hasattr(part, "text")
                )
                return [ev.Message("assistant", text)] if text else []
            case "tool_called":
                return self._started(event.item.raw_item)
            case "tool_output":
                return self._finished(event.item)
            case "handoff_occured":
                return [ev.RunPhase(str(event.item.target_agent.name))]
            case _:
                return []

    def _started(self, call: Any) -> list[ev.EventData]:
        tool_id = str(_part(call, "call_id") or _part(call, "id"))
        if tool_id in self._began:  # told before, and asked about since
            return []
        self._began[tool_id] = self._clock.monotonic()
        name = str(_part(call, "name") or _part(call, "type"))
        from nbrun.agents.openai_agents.hooks import arguments_of

        return [ev.ToolStarted(tool_id, name, "function", arguments_of(_part(call, "arguments")))]

    def _finished(self, item: Any) -> list[ev.EventData]:
        tool_id = str(_part(item.raw_item, "call_id"))
        self._memory.keep_result(item.to_input_item())
        if tool_id not in self._began:
            return []
        ms = (self._clock.monotonic() - self._began.pop(tool_id)) * 1000
        status = self._watch.status_of(tool_id)
        return [ev.ToolFinished(tool_id, status, plain(item.output), round(ms, 3))]


ADAPTER = OpenAIAgentsAdapter()


def _part(raw: Any, name: str) -> Any:
    """Return a part of an item, which is an object or a dict."""
    return raw.get(name) if isinstance(raw, dict) else getattr(raw, name, None)


_DELTAS = {
    "response.output_text.delta": ev.TextDelta,
    "response.reasoning_text.delta": ev.ReasoningDelta,
    "response.reasoning_summary_text.delta": ev.ReasoningDelta,
}


def _delta(data: Any) -> list[ev.EventData]:
    kind = _DELTAS.get(data.type)
    return [kind(data.delta)] if kind is not None and data.delta else []
