"""The Claude Agent SDK's `ClaudeAgentOptions`, with a program in place of Claude Code; functions are its MCP tools."""

from __future__ import annotations

import asyncio
import inspect
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbrun.agents import is_installed
from tests.agents.conformance.script import Call, Script
from tests.agents.conformance.subject import Subject
from tests.fakes import claude_cli

if TYPE_CHECKING or is_installed("claude_agent_sdk"):
    from claude_agent_sdk import ClaudeAgentOptions, create_sdk_mcp_server, tool

SESSIONS = Path(tempfile.gettempdir()) / "nbrun-test-claude"
"""Where its sessions are, for another process finds them again."""


class ClaudeAgent(Subject):
    """A session of Claude Code."""

    name = "claude-agent-sdk"
    crowd = 6  # each is a process

    def agent(self, script: Script) -> Any:
        """Return options that start the program with the script."""
        SESSIONS.mkdir(exist_ok=True)
        turns = [
            {
                "words": list(turn.words), "stalls": turn.stalls, "fails": turn.fails,
                "calls": [{"name": c.name, "args": c.args, "asks": c.asks} for c in turn.calls],
            }
            for turn in script.turns
        ]  # fmt: skip
        server = create_sdk_mcp_server(claude_cli.SERVER, tools=[_tool(call) for call in script.calls.values()])
        return ClaudeAgentOptions(
            cli_path=claude_cli.__file__,
            env={"NBRUN_SCRIPT": json.dumps(turns), "NBRUN_SESSIONS": str(SESSIONS)},
            mcp_servers={claude_cli.SERVER: server},
        )


def _tool(call: Call) -> Any:
    """Return a function of the suite as one of the SDK's tools."""

    async def use(args: dict[str, Any]) -> dict[str, Any]:
        made = call.tool(**args) if call.is_async else asyncio.to_thread(call.tool, **args)
        return {"content": [{"type": "text", "text": str(await made)}]}

    names = inspect.signature(call.tool).parameters
    schema = {"type": "object", "properties": {name: {} for name in names}}
    return tool(call.name, call.tool.__doc__ or call.name, schema)(use)


SUBJECTS = (ClaudeAgent(),) if is_installed("claude_agent_sdk") else ()
