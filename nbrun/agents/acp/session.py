"""A session with an ACP agent whose process runs: begun or loaded, prompted, cancelled.

Imported when a run begins, for it imports the protocol's package.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from acp import PROTOCOL_VERSION, RequestError
from acp.client.connection import ClientSideConnection
from acp.helpers import text_block
from acp.schema import ClientCapabilities, Implementation
from pydantic import ValidationError

from nbrun.agents import NbrunError, Turn, plain, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.agents.acp.client import Watch
    from nbrun.agents.acp.command import AcpAgent
    from nbrun.agents.acp.process import AcpProcess

GO_ON = "You were interrupted. Continue where you stopped."

_SAYS = {
    "max_tokens": "the answer was cut off at the agent's token limit",
    "max_turn_requests": "the agent stopped at its limit of model requests",
}


class AcpSession:
    """A session with an agent whose process runs: begun or gone on with, prompted, cancelled."""

    def __init__(self, agent: AcpAgent, watch: Watch, process: AcpProcess) -> None:
        self._agent = agent
        self._watch = watch
        self._connection = ClientSideConnection(watch, process)  # type: ignore[arg-type]  # it offers no more
        self.label = agent.label
        self.id = ""
        self.work: asyncio.Task[None] | None = None  # that leads it

    async def begin(self, known: str | None) -> None:
        """Begin a session, or load the one that is known; keep its id where the agent can load it again."""
        watch, agent = self._watch, self._agent
        try:
            async with asyncio.timeout(agent.start_timeout_s):
                answer = await self._connection.initialize(
                    protocol_version=PROTOCOL_VERSION,
                    client_capabilities=ClientCapabilities(),  # no files, no terminals: it has its own
                    client_info=Implementation(name="nbrun", version="1"),
                )
                can = answer.agent_capabilities
                can_load = bool(can is not None and can.load_session)
                folder = str(agent.folder)
                if known is None:
                    session = await self._connection.new_session(cwd=folder, mcp_servers=[])
                    self.id = session.session_id
                elif can_load:
                    watch.is_deaf = True
                    await self._connection.load_session(
                        cwd=folder, session_id=known, mcp_servers=[]
                    )
                    watch.is_deaf = False
                    self.id = known
                else:
                    raise NbrunError(f"{agent.label} can no longer load sessions; retry the run")
        except TimeoutError:
            raise NbrunError(
                f"{agent.label} has not answered for {agent.start_timeout_s:g} s; was it started as an ACP agent?"
            ) from None
        if can_load:
            watch.session_id = self.id
            watch.keep_session()

    async def prompt(self, text: str) -> None:
        """Send a message to the agent; return when it has answered and everything is reported."""
        answer = await self._connection.prompt(session_id=self.id, prompt=[text_block(text)])
        self._watch.note_usage(answer.usage)
        reason = answer.stop_reason
        if words := _SAYS.get(reason):
            self._watch.run.log(words, "warning")
        elif reason == "refusal":
            raise NbrunError(f"{self._agent.label} refused to continue")
        elif reason == "cancelled" and not self._watch.run.token.cancelled:
            raise NbrunError(f"{self._agent.label} cancelled itself")

    async def cancel(self) -> None:
        """Ask the agent to stop; while there is no session yet, there is nobody to ask."""
        if self.id:
            await self._connection.cancel(session_id=self.id)
        elif self.work is not None:
            self.work.cancel()

    async def close(self) -> None:
        """Close the connection; the process is ended by who has started it."""
        await self._connection.close()


async def converse(session: AcpSession, watch: Watch, known: str | None, text: str) -> None:
    """Lead the session to its end, and have `watch.items()` end then.

    Raises
    ------
    NbrunError
        The agent has died, failed or refused; its own words are in the message.
    """
    try:
        await session.begin(known)
        watch.run.token.raise_if_cancelled()  # it came while there was nobody to ask
        await session.prompt(text)
    except RequestError as error:
        detail = "" if error.data is None else f": {shown(plain(error.data), 500)}"
        raise NbrunError(f"{shown(str(error), 500)}{detail}") from None
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        words = f"{session.label} sent a response that doesn't follow the protocol"
        raise NbrunError(f"{words} ({shown(where, 80)}: {shown(wrong['msg'], 200)})") from None
    except ConnectionError:
        process = watch.process
        raise NbrunError(await process.fate() if process else "the agent has exited") from None
    finally:
        await watch.finish()


def prompt_of(history: Sequence[Turn], prompt: str) -> str:
    """Return what the agent is told: what was said in the runs that this one continues, and the prompt."""
    if not history:
        return prompt
    said = "\n\n".join(f"{turn.role}: {turn.text}" for turn in history)
    return f"Earlier conversation:\n\n{said}\n\nuser: {prompt}"
