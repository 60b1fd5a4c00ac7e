"""An ACP agent on the protocol's own package, that follows a script: `python -m tests.fakes.acp_agent SCRIPT FOLDER`.

It keeps its sessions in the folder, and can load them again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import acp
from acp import helpers
from acp.schema import (
    AgentCapabilities,
    AllowedOutcome,
    InitializeResponse,
    LoadSessionResponse,
    NewSessionResponse,
    PermissionOption,
    PromptResponse,
    ToolCallUpdate,
)

OPTIONS = [
    PermissionOption(option_id="once", name="Allow", kind="allow_once"),
    PermissionOption(option_id="always", name="Always allow", kind="allow_always"),
    PermissionOption(option_id="no", name="Reject", kind="reject_once"),
]


class Poet:
    """Says what the script has it say, and uses tools of its own."""

    def __init__(self, turns: list[dict[str, Any]], folder: Path) -> None:
        self._turns = turns
        self._folder = folder
        self._client: Any = None
        self._stop = asyncio.Event()
        self._is_loaded = False

    def on_connect(self, conn: acp.Client) -> None:
        """Know who is at the other end."""
        self._client = conn

    async def initialize(self, protocol_version: int, *_args: Any, **_more: Any) -> InitializeResponse:
        """Say what it can."""
        can = AgentCapabilities(load_session=True)
        return InitializeResponse(protocol_version=protocol_version, agent_capabilities=can)

    async def new_session(self, cwd: str, *_args: Any, **_more: Any) -> NewSessionResponse:
        """Begin."""
        name = uuid.uuid4().hex
        self._keep(name, [])
        return NewSessionResponse(session_id=name)

    async def load_session(self, cwd: str, session_id: str, *_args: Any, **_more: Any) -> LoadSessionResponse:
        """Go on, after telling once more what was said."""
        self._is_loaded = True
        await self._say(session_id, "an old word")
        return LoadSessionResponse()

    async def prompt(self, prompt: list[Any], session_id: str, *_args: Any, **_more: Any) -> PromptResponse:
        """Follow the script, from the turn on that it has come to."""
        results = json.loads(self._file(session_id).read_text(encoding="utf-8"))
        for number in itertools.count(len(results)):
            turn = self._turns[number]
            for word in turn["words"]:
                await self._say(session_id, word.replace("{results}", " | ".join(results)))
            if turn["stalls"]:
                await self._stop.wait()
            if turn["fails"]:
                raise acp.RequestError(-32603, turn["fails"])
            for place, call in enumerate(turn["calls"]):
                result = await self._use(session_id, f"call-{number}-{place}", **call)
                if result is not None:
                    results.append(result)
            if self._stop.is_set():
                return PromptResponse(stop_reason="cancelled")
            self._keep(session_id, results)
            if not turn["calls"]:
                return PromptResponse(stop_reason="end_turn")
        raise AssertionError

    async def cancel(self, session_id: str, **_more: Any) -> None:
        """Stop."""
        self._stop.set()

    async def _say(self, session_id: str, word: str) -> None:
        await self._client.session_update(session_id, helpers.update_agent_message_text(word))

    async def _use(self, session_id: str, call_id: str, name: str, args: dict[str, Any], asks: bool) -> str | None:
        """Use a tool; return what the model is told of it, None where it was cancelled."""
        start = helpers.start_tool_call(call_id, name, kind="other", status="pending", raw_input=args)
        await self._client.session_update(session_id, start)
        if asks:
            call = ToolCallUpdate(tool_call_id=call_id, title=name, raw_input=args)
            answer = await self._client.request_permission(session_id=session_id, tool_call=call, options=OPTIONS)
            outcome = answer.outcome
            if not isinstance(outcome, AllowedOutcome):
                return None
            if outcome.option_id == "no":
                reason = (answer.field_meta or {}).get("reason", "no")
                await self._done(session_id, call_id, "failed", reason)
                return str(reason)
        try:
            result = await self._tool(name, args)
        except ValueError as error:
            await self._done(session_id, call_id, "failed", str(error))
            return str(error)
        if self._stop.is_set():
            return None
        await self._done(session_id, call_id, "completed", result)
        return str(result)

    async def _done(self, session_id: str, call_id: str, status: Any, result: Any) -> None:
        update = helpers.update_tool_call(call_id, status=status, raw_output=result)
        await self._client.session_update(session_id, update)

    async def _tool(self, name: str, args: dict[str, Any]) -> Any:
        match name:
            case "add":
                return args["a"] + args["b"]
            case "delete":
                return f"deleted {args['path']}"
            case "breaks":
                raise ValueError("the cup is broken")
            case "waits_at_first" if self._is_loaded:
                return "went on"
            case _:
                await self._stop.wait()
        return None

    def _file(self, session_id: str) -> Path:
        return self._folder / f"{session_id}.json"

    def _keep(self, session_id: str, results: list[str]) -> None:
        self._file(session_id).write_text(json.dumps(results), encoding="utf-8")


def _made(turns: list[dict[str, Any]], folder: Path) -> acp.Agent:
    poet: Any = Poet(turns, folder)  # of the protocol's methods it has those that are called
    return poet  # type: ignore[no-any-return]


if __name__ == "__main__":
    asyncio.run(acp.run_agent(_made(json.loads(sys.argv[1]), Path(sys.argv[2]))))
