"""Agents that speak the Agent Client Protocol (ACP): programs such as coding agents, over their input and output.

```
%%agentrun "acp:gemini --experimental-acp"
Why does the last cell fail?
```

Or, with a folder and a name, by which a later kernel finds it again: `coder = nbrun.agents.AcpAgent("gemini --acp",
cwd="project")`, and `%%agentrun coder`.

| Where it is | What you do | How it ends |
| --- | --- | --- |
| anywhere in its answer | any cancel of the run | it is asked to stop (`session/cancel`) |
| it goes on all the same | the same | after the grace period its process and all that it has started are killed |
| while a question is open | the same | at once: the question is withdrawn, and the agent told |

Its text, thoughts, tools, plan and cost are on the card; what it writes to its standard error is in the log. It asks
for permission as any agent of nbrun does; other arguments cannot be given, and *always* holds for the run. An agent
that can load a session goes on from there, also in a later kernel. It works with files and commands by itself:
nbrun offers it none. The program is started for each run, in a process group of its own, which is gone when
the run is over.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nbrun.agents import (
    Framework,
    Limitations,
    NbrunError,
    Output,
    PackageMissing,
    RunContext,
    State,
    events as ev,
)
from nbrun.agents.acp.command import AcpAgent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from nbrun.agents.acp.session import AcpSession

    Items = AsyncIterator[ev.EventData | Output]

FRAMEWORK = Framework("acp", "acp")
LONGEST_ID = 1_000


class AcpAdapter:
    """Starts the program, and leads one session with it.

    Threads: the host's loop; `_sessions` holds the session of each run that is under way.
    """

    name = "acp"
    framework = FRAMEWORK
    limitations = Limitations(
        functions="it uses its own tools, in its own process",
        edited_args="an ACP agent runs a tool with its own arguments only",
        steering="an ACP agent accepts no message until it has answered",
        usage="some ACP agents report tokens and cost; none reports requests",
    )

    def __init__(self) -> None:
        self._sessions: dict[str, AcpSession] = {}

    def match(self, agent: object) -> bool:
        """Return whether it is such a program."""
        return isinstance(agent, AcpAgent)

    def check(self, agent: object) -> None:
        """Raise where there is no such program or folder, or the protocol's package is not installed."""
        if (lack := FRAMEWORK.install_hint) is not None:
            raise PackageMissing(f"ACP agents need the protocol's package: {lack}")
        if isinstance(agent, AcpAgent):
            agent.check()

    def label(self, agent: object) -> str:
        """Return its name."""
        return agent.label if isinstance(agent, AcpAgent) else self.name

    def environment(self, agent: object) -> Mapping[str, str]:
        """Return the variables that it is given beside the kernel's."""
        return (agent.env or {}) if isinstance(agent, AcpAgent) else {}

    def events(self, agent: object, prompt: str, run: RunContext) -> Items:
        """Yield what the agent does."""
        from nbrun.agents.acp.session import prompt_of

        return self._driven(agent, run, prompt_of(run.history, prompt))

    def resume(self, agent: object, state: State, run: RunContext) -> Items:
        """Yield what the agent does in the session that it had."""
        from nbrun.agents.acp.session import GO_ON

        kept = state if isinstance(state, dict) else {}
        known = kept.get("session")
        if (
            not isinstance(known, str)
            or not 0 < len(known) <= LONGEST_ID
            or not known.isprintable()
        ):
            raise NbrunError("the checkpoint doesn't name a session; retry the run")
        return self._driven(agent, run, GO_ON, known, kept.get("used"))

    async def _driven(
        self,
        agent: object,
        run: RunContext,
        text: str,
        known: str | None = None,
        used: object = None,
    ) -> Items:
        from nbrun.agents.acp.client import Watch
        from nbrun.agents.acp.process import AcpProcess
        from nbrun.agents.acp.session import AcpSession, converse

        assert isinstance(agent, AcpAgent)  # noqa: S101 - match() said so
        watch = Watch(run, agent.label)
        watch.go_on_from(used)
        process = watch.process = await AcpProcess.start(agent, run, watch.take)
        is_done = False
        try:
            session = self._sessions[run.run_id] = AcpSession(agent, watch, process)
            name = f"nbrun-acp-session-{run.run_id}"
            work = asyncio.create_task(converse(session, watch, known, text), name=name)
            session.work = work
            try:
                async for event in watch.items():
                    yield event
                await work
            finally:
                watch.abandon()
                work.cancel()
                await asyncio.wait({work})
                await session.close()
            is_done = (
                True  # also where it has received a cancel: it gets a moment to save its session
            )
        finally:
            self._sessions.pop(run.run_id, None)
            await process.end(at_once=not is_done)
        run.token.raise_if_cancelled()
        yield Output(watch.answer or None)

    async def cancel(self, run: RunContext) -> None:
        """Ask the agent to stop."""
        session = self._sessions.get(run.run_id)
        if session is not None:
            await session.cancel()


ADAPTER = AcpAdapter()
