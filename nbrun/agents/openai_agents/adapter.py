"""Agents of OpenAI's Agents SDK: text, reasoning, tools and usage as events; its `cancel()` as native cancel.

A tool with `needs_approval` asks the user, who can't edit its arguments. A run resumes from its items: calls without
a result are reported to the model as interrupted. After a handoff, it resumes with the agent that it started with.

The SDK's package is called `agents`, as are many of the users' own modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbrun.agents import Framework, FrameworkAdapter, Items, Limitations, Output, RunContext, State, provider_retries

if TYPE_CHECKING:
    from agents import RunResultStreaming

    from nbrun.agents.openai_agents.hooks import Hooks


class OpenAIAgentsAdapter(FrameworkAdapter):
    """Drives an `agents.Agent`."""

    name = "openai-agents"
    agent_class = ("agents", "AgentBase")
    framework = Framework("agents", "openai-agents")
    limitations = Limitations(edited_args="OpenAI's Agents SDK runs a tool with the model's arguments only")

    def __init__(self) -> None:
        self._streams: dict[str, RunResultStreaming] = {}  # by run id, on the host's loop

    async def events(self, agent: Any, prompt: str, run: RunContext) -> Items:
        """Yield what the agent does, with the conversation of earlier runs before the prompt."""
        from nbrun.agents.openai_agents import resume
        from nbrun.agents.openai_agents.hooks import Hooks

        agent_input = [*resume.as_messages(run.history), {"role": "user", "content": prompt}]
        async for item in self._driven(agent, agent_input, Hooks(run, resume.Checkpoint(run))):
            yield item

    async def resume(self, agent: Any, state: State, run: RunContext) -> Items:
        """Yield what the agent does from there on; open questions are asked again."""
        from nbrun.agents.openai_agents import resume
        from nbrun.agents.openai_agents.hooks import Hooks

        agent_input, received = await resume.restore(agent, state)
        run.checkpoint(state)  # in case it stops before it saves its own
        async for item in self._driven(agent, agent_input, Hooks(run, resume.Checkpoint(run, received))):
            yield item

    async def _driven(self, agent: Any, agent_input: Any, hooks: Hooks) -> Items:
        """Yield what the agent does; after each stop for the user or for messages, in another stream."""
        from agents import RunConfig, Runner, RunState

        from nbrun.agents.openai_agents.hooks import Mapper

        provider_retries.listen()
        run, mapper = hooks.run, Mapper(hooks)
        config = RunConfig(call_model_input_filter=hooks.filter_input, tool_error_formatter=hooks.note_error)
        options: dict[str, Any] = {"hooks": hooks, "run_config": config}
        if run.budget.limits.max_turns is not None:  # otherwise the SDK's own limit applies
            options["max_turns"] = None
        while True:
            if isinstance(agent_input, RunState) and agent_input.get_interruptions():
                await hooks.ask(agent_input)
            hooks.begin_stream(is_new=not isinstance(agent_input, RunState))
            stream = self._streams[run.run_id] = Runner.run_streamed(agent, agent_input, **options)
            try:
                async for event in stream.stream_events():
                    for mapped in mapper.map(event):
                        yield mapped
            finally:
                self._streams.pop(run.run_id, None)
            # Source: a cancelled stream ends without an error.
            run.token.raise_if_cancelled()
            if stream.interruptions:
                agent_input = stream.to_state()
            elif texts := run.inbox.take():
                messages = [{"role": "user", "content": text} for text in texts]
                agent_input = [*stream.to_input_list(), *messages]
            else:
                yield Output(stream.final_output)
                return

    async def cancel(self, run: RunContext) -> None:
        """Cancel the stream and its tasks."""
        stream = self._streams.get(run.run_id)
        if stream is not None:
            stream.cancel("immediate")


ADAPTER = OpenAIAgentsAdapter()
