"""pydantic-ai agents: text, reasoning, tools and usage as events; its cancellation token as native cancel.

| Where it is | What you do | How it ends |
| --- | --- | --- |
| in its text, or an async tool | any cancel of the run | at once: its token drains tools and closes the stream |
| in a sync tool | the same | after the grace period, by an exception in its thread, or named |
| while a question is open | the same | at once: the question is withdrawn |

A tool with `requires_approval=True` asks as any agent of nbrun does, and takes other arguments. What people say
comes before the next request to the model, or makes it go on where it would have ended. A run that stopped goes on
from its messages, in another kernel too: a question that was open is asked again, and a call that was cut off is
told to the model as interrupted, and not made again. An agent cannot go to another process, for it holds clients:
make it inside an async function. One that cells await as well wants `--loop kernel`.

Matched by class name; the framework is imported with the first run, which takes a second or more.
"""

from __future__ import annotations

import asyncio
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
from nbrun.agents.pydantic_ai.approvals import arguments_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pydantic_ai import CancellationToken

    from nbrun.agents.pydantic_ai.resume import Memory

    Items = AsyncIterator[ev.EventData | Output]

PACKAGE = "pydantic_ai"
FRAMEWORK = Framework(PACKAGE, "agents")


class PydanticAIAdapter:
    """Drives a `pydantic_ai.Agent`.

    Threads: the host's loop; `_tokens` holds the native token of each run that is under way.
    """

    name = "pydantic-ai"
    framework = FRAMEWORK
    limitations = Limitations(
        process="an Agent holds clients that can't be pickled; create it inside an async function",
    )

    def __init__(self) -> None:
        self._tokens: dict[str, CancellationToken] = {}

    def match(self, agent: object) -> bool:
        """Return whether the object's class comes from pydantic-ai and is an agent."""
        return any(
            base.__module__.partition(".")[0] == PACKAGE and base.__name__ == "AbstractAgent"
            for base in type(agent).__mro__
        )

    def check(self, agent: object) -> None:
        """Accept any; pydantic-ai itself reports what its model lacks."""

    def label(self, agent: object) -> str:
        """Return the agent's name."""
        return str(getattr(agent, "name", None) or "agent")

    def events(self, agent: Any, prompt: str, run: RunContext) -> Items:
        """Yield what the agent does, after what was said in the runs that this one continues."""
        if not run.history:
            return self._driven(agent, run, prompt)
        from nbrun.agents.pydantic_ai.resume import as_messages

        return self._driven(agent, run, prompt, message_history=as_messages(run.history))

    async def resume(self, agent: Any, state: State, run: RunContext) -> Items:
        """Yield what the agent does from there on; a person is asked again about what was not answered."""
        from pydantic_ai.tools import DeferredToolResults

        from nbrun.agents.pydantic_ai.approvals import ask_for_approvals
        from nbrun.agents.pydantic_ai.resume import restore

        messages, asked = restore(state)
        run.checkpoint(state)  # in case it stops before it has a checkpoint of its own
        results = None
        if asked:
            results = DeferredToolResults(approvals=await ask_for_approvals(run, asked))
        history = {"message_history": messages, "deferred_tool_results": results}
        async for item in self._driven(agent, run, None, **history):
            yield item

    async def _driven(
        self, agent: Any, run: RunContext, prompt: str | None, **history: Any
    ) -> Items:
        """Yield what the agent does; its `RunCancelled` becomes ours when it was the run that was cancelled."""
        from pydantic_ai import CancellationToken, UsageLimits
        from pydantic_ai.capabilities import UseThreadExecutor
        from pydantic_ai.exceptions import RunCancelled

        from nbrun.agents.pydantic_ai.approvals import approvals
        from nbrun.agents.pydantic_ai.hooks import Hooks, Meter, ToolThreads
        from nbrun.agents.pydantic_ai.resume import Memory

        provider_retries.listen()
        token = self._tokens[run.run_id] = CancellationToken()
        run.token.raise_if_cancelled()  # while the framework was imported; from here on its token hears of it
        meter, memory = Meter(run), Memory(run)
        mapper = _Mapper(run.clock, memory)
        threads = ToolThreads(run, asyncio.get_running_loop())
        # The framework's own limit of 50 requests stands where no other was given.
        has_limit = run.budget.limits.max_turns is not None
        limits = UsageLimits(request_limit=None) if has_limit else None
        watching = [Hooks(run, meter, memory), UseThreadExecutor(threads), approvals(run, memory)]
        try:
            async with agent.run_stream_events(
                prompt,
                cancellation_token=token,
                capabilities=watching,
                usage_limits=limits,
                **history,
            ) as stream:
                try:
                    async for event in stream:
                        for mapped in mapper.map(event):
                            yield mapped
                finally:
                    # Also after a cancel: what was paid for is told.
                    meter.report(stream.usage)
        except RunCancelled:
            run.token.raise_if_cancelled()
            raise
        finally:
            self._tokens.pop(run.run_id, None)

    async def cancel(self, run: RunContext) -> None:
        """Fire the native token: drains async tools and closes the model's stream."""
        token = self._tokens.get(run.run_id)
        if token is not None:
            token.cancel()


class _Mapper:
    """Turns pydantic-ai's events into ours; remembers when tools began, and their results."""

    def __init__(self, clock: Clock, memory: Memory) -> None:
        self._clock = clock
        self._memory = memory
        self._began: dict[str, float] = {}

    def map(self, event: Any) -> list[ev.EventData | Output]:
        match event.event_kind:
            case "part_start":
                return _text(event.part.part_kind, getattr(event.part, "content", None))
            case "part_delta":
                return _text(
                    event.delta.part_delta_kind, getattr(event.delta, "content_delta", None)
                )
            case "part_end" if event.part.part_kind == "text":
                return [ev.Message("assistant", event.part.content)]
            case "function_tool_call":
                part = event.part
                self._began[part.tool_call_id] = self._clock.monotonic()
                return [
                    ev.ToolStarted(
                        part.tool_call_id, part.tool_name, "function", arguments_of(part)
                    )
                ]
            case "function_tool_result":
                return [self._finished(event)]
            case "agent_run_result":
                return [Output(event.result.output)]
            case _:
                return []

    def _finished(self, event: Any) -> ev.EventData:
        result, now = event.part, self._clock.monotonic()
        self._memory.keep_result(result)
        ms = (now - self._began.pop(event.tool_call_id, now)) * 1000
        outcome = getattr(result, "outcome", "success")
        is_error = result.part_kind == "retry-prompt" or outcome != "success"
        status = "denied" if outcome == "denied" else "error" if is_error else "ok"
        return ev.ToolFinished(event.tool_call_id, status, plain(result.content), round(ms, 3))


ADAPTER = PydanticAIAdapter()


def _text(kind: str, content: object) -> list[ev.EventData | Output]:
    if not isinstance(content, str) or not content:
        return []
    if kind == "text":
        return [ev.TextDelta(content)]
    return [ev.ReasoningDelta(content)] if kind == "thinking" else []
