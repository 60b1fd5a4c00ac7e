"""Agents of the Claude Agent SDK: text, thinking, tools, exact usage and cost as events; its `interrupt()` as cancel.

`%%agentrun options` takes `ClaudeAgentOptions`, or a client that isn't connected, of which only its options are used.
Each run starts Claude Code as a process of its own; if it ignores a cancel, it is killed with everything it started.

Where Claude Code would ask for permission, the user is asked, who may edit the arguments, and what Claude itself asks
(`AskUserQuestion`) is asked with its options; options that bring their own `can_use_tool` keep it. Messages reach the
agent at once. A run resumes its session, in another kernel too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbrun.agents import (
    CONTINUE,
    BadOption,
    Framework,
    FrameworkAdapter,
    Items,
    Limitations,
    RunContext,
    State,
    prompt_of,
    session_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbrun.agents.claude_agent.session import Session


class ClaudeAgentAdapter(FrameworkAdapter):
    """Runs one session of Claude Code."""

    name = "claude-agent-sdk"
    agent_class = ("claude_agent_sdk", "ClaudeAgentOptions", "ClaudeSDKClient")
    default_label = "claude"
    framework = Framework("claude_agent_sdk", "claude-agent-sdk")
    limitations = Limitations(process="ClaudeAgentOptions hold sys.stderr, which can't be sent to another process")

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}  # by run id, on the host's loop

    def check(self, agent: object) -> None:
        """Raise if a client is connected, or has a transport of its own: neither is for several runs."""
        if any(getattr(agent, part, None) is not None for part in ("_query", "_custom_transport")):
            raise BadOption("this client has a connection of its own; give its ClaudeAgentOptions to nbrun instead")

    def environment(self, agent: Any) -> Mapping[str, str]:
        """Return the variables that the agent gets beside the kernel's."""
        return dict(getattr(agent, "options", agent).env)

    def events(self, agent: Any, prompt: str, run: RunContext) -> Items:
        """Yield what the agent does, with the conversation of earlier runs before the prompt."""
        return self._driven(agent, run, prompt_of(run.history, prompt))

    def resume(self, agent: Any, state: State, run: RunContext) -> Items:
        """Yield what the agent does in the session of the checkpoint."""
        run.checkpoint(state)  # in case it stops before it saves its own
        return self._driven(agent, run, CONTINUE, session_of(state))

    async def _driven(self, agent: Any, run: RunContext, text: str, known: str | None = None) -> Items:
        from nbrun.agents.claude_agent.session import Session

        session = self._sessions[run.run_id] = Session(run, getattr(agent, "options", agent), known)
        try:
            async for item in session.items(text):
                yield item
        finally:
            self._sessions.pop(run.run_id, None)

    async def cancel(self, run: RunContext) -> None:
        """Interrupt the agent: otherwise its process would work on for seconds."""
        session = self._sessions.get(run.run_id)
        if session is not None:
            await session.cancel()


ADAPTER = ClaudeAgentAdapter()
