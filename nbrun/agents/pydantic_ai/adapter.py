"""pydantic-ai agents: text, reasoning, tools and usage as events; its cancellation token as native cancel.

A tool with `requires_approval=True` asks the user, who may edit its arguments. Messages are delivered before the next
model request; the agent continues for one that arrives at its end. A run resumes from its messages, in another
kernel too: an open question is asked again, and a call that was cut off is reported to the model as interrupted, not
made again. An agent that other cells await as well needs `--loop kernel`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from nbrun.agents import Framework, FrameworkAdapter, Items, Limitations, RunContext, State, provider_retries

if TYPE_CHECKING:
    from pydantic_ai import CancellationToken

FRAMEWORK = Framework("pydantic_ai", "agents")


class PydanticAIAdapter(FrameworkAdapter):
    """Drives a `pydantic_ai.Agent`."""

    name = "pydantic-ai"
    agent_class = ("pydantic_ai", "AbstractAgent")
    framework = FRAMEWORK
    limitations = Limitations(
        process="an Agent holds clients that can't be pickled; create it inside an async function"
    )

    def __init__(self) -> None:
        self._tokens: dict[str, CancellationToken] = {}  # by run id, on the host's loop

    def events(self, agent: Any, prompt: str, run: RunContext) -> Items:
        """Yield what the agent does, with the conversation of earlier runs before the prompt."""
        if not run.history:
            return self._driven(agent, run, prompt)
        from nbrun.agents.pydantic_ai import resume

        return self._driven(agent, run, prompt, message_history=resume.as_messages(run.history))

    async def resume(self, agent: Any, state: State, run: RunContext) -> Items:
        """Yield what the agent does from there on; open questions are asked again."""
        from pydantic_ai.tools import DeferredToolResults

        from nbrun.agents.pydantic_ai import hooks, resume

        messages, asked = resume.restore(state)
        run.checkpoint(state)  # in case it stops before it saves its own
        results = None
        if asked:
            results = DeferredToolResults(approvals=await hooks.ask_for_approvals(run, asked))
        history = {"message_history": messages, "deferred_tool_results": results}
        async for item in self._driven(agent, run, None, **history):
            yield item

    async def _driven(self, agent: Any, run: RunContext, prompt: str | None, **history: Any) -> Items:
        """Yield what the agent does; its `RunCancelled` becomes nbrun's if the run was cancelled."""
        from pydantic_ai import CancellationToken, UsageLimits
        from pydantic_ai.capabilities import UseThreadExecutor
        from pydantic_ai.exceptions import RunCancelled

        from nbrun.agents.pydantic_ai import hooks, resume

        provider_retries.listen()
        token = self._tokens[run.run_id] = CancellationToken()
        run.token.raise_if_cancelled()  # a cancel during the import; from here on the token gets it
        meter, checkpoint = hooks.Meter(run), resume.Checkpoint(run)
        mapper = hooks.Mapper(run.clock, checkpoint)
        threads = hooks.ToolThreads(run, asyncio.get_running_loop())
        # The framework's limit of 50 requests applies only if the run has none.
        has_limit = run.budget.limits.max_turns is not None
        try:
            async with agent.run_stream_events(
                prompt,
                cancellation_token=token,
                capabilities=[hooks.Hooks(run, meter, checkpoint), UseThreadExecutor(threads)],
                usage_limits=UsageLimits(request_limit=None) if has_limit else None,
                **history,
            ) as stream:
                try:
                    async for event in stream:
                        for mapped in mapper.map(event):
                            yield mapped
                finally:
                    meter.report(stream.usage)  # after a cancel too: it was paid for
        except RunCancelled:
            run.token.raise_if_cancelled()
            raise
        finally:
            self._tokens.pop(run.run_id, None)

    async def cancel(self, run: RunContext) -> None:
        """Cancel the native token, which drains async tools and closes the model's stream."""
        token = self._tokens.get(run.run_id)
        if token is not None:
            token.cancel()


ADAPTER = PydanticAIAdapter()
