"""Agents that speak the Agent Client Protocol (ACP), such as coding agents: programs that nbrun talks to over pipes.

Given as `acp:COMMAND`, or as an `AcpAgent` of the notebook, which has a folder and a name to be found by again.

A cancel asks the agent to stop (`session/cancel`) and withdraws open questions; if it doesn't stop, its process group
is killed after the grace period.

The card shows its text, thoughts, tools, plan and cost, the log its standard error. It asks the user for permission;
arguments can't be edited, and *always* holds for the run. A run resumes if the agent can load sessions, in a later
kernel too. The agent works with files and commands itself. Each run starts the program in its own process group, which
is killed when the run ends.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nbrun.agents import (
    CONTINUE,
    Framework,
    Items,
    Limitations,
    Output,
    PackageMissing,
    RunContext,
    State,
    prompt_of,
    session_of,
)
from nbrun.agents.acp.command import AcpAgent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbrun.agents.acp.session import AcpSession

FRAMEWORK = Framework("acp", "acp")


class AcpAdapter:
    """Starts the program and runs one session with it."""

    name = "acp"
    framework = FRAMEWORK
    limitations = Limitations(
        functions="it uses its own tools, in its own process",
        edited_args="an ACP agent runs a tool with its own arguments only",
        steering="an ACP agent accepts no message until it has answered",
        usage="some ACP agents report tokens and cost; none reports requests",
    )

    def __init__(self) -> None:
        self._sessions: dict[str, AcpSession] = {}  # by run id, on the host's loop

    def match(self, agent: object) -> bool:
        """Return whether the agent is an `AcpAgent`."""
        return isinstance(agent, AcpAgent)

    def check(self, agent: object) -> None:
        """Raise if the program, its folder or the protocol's package is missing."""
        if (hint := FRAMEWORK.install_hint) is not None:
            raise PackageMissing(f"ACP agents need the protocol's package: {hint}")
        if isinstance(agent, AcpAgent):
            agent.check()

    def label(self, agent: object) -> str:
        """Return the agent's name."""
        return agent.label if isinstance(agent, AcpAgent) else self.name

    def environment(self, agent: object) -> Mapping[str, str]:
        """Return the variables that the agent gets beside the kernel's."""
        return (agent.env or {}) if isinstance(agent, AcpAgent) else {}

    def events(self, agent: object, prompt: str, run: RunContext) -> Items:
        """Yield what the agent does, with the conversation of earlier runs before the prompt."""
        return self._driven(agent, run, prompt_of(run.history, prompt))

    def resume(self, agent: object, state: State, run: RunContext) -> Items:
        """Yield what the agent does in the session of the checkpoint."""
        used = state.get("used") if isinstance(state, dict) else None
        return self._driven(agent, run, CONTINUE, session_of(state), used)

    async def _driven(
        self, agent: object, run: RunContext, text: str, known: str | None = None, used: object = None
    ) -> Items:
        from nbrun.agents.acp.process import AcpProcess
        from nbrun.agents.acp.session import AcpSession, Client, converse

        assert isinstance(agent, AcpAgent)  # noqa: S101 - match() checked it
        client = Client(run, agent.label)
        client.restore_usage(used)
        process = client.process = await AcpProcess.start(agent, run, client.take)
        is_done = False
        try:
            session = self._sessions[run.run_id] = AcpSession(agent, client, process)
            name = f"nbrun-acp-session-{run.run_id}"
            work = asyncio.create_task(converse(session, client, known, text), name=name)
            session.work = work
            try:
                async for event in client.items():
                    yield event
                await work
            finally:
                client.abandon()
                work.cancel()
                await asyncio.wait({work})
                await session.connection.close()
            is_done = True  # also after a cancel: the agent gets a moment to save its session
        finally:
            self._sessions.pop(run.run_id, None)
            await process.end(at_once=not is_done)
        run.token.raise_if_cancelled()
        yield Output(client.answer or None)

    async def cancel(self, run: RunContext) -> None:
        """Ask the agent to stop."""
        session = self._sessions.get(run.run_id)
        if session is not None:
            await session.cancel()


ADAPTER = AcpAdapter()
