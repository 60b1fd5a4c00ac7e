"""Records the cassettes of the notebooks: `python -m tests.notebooks.record_cassettes [FOLDER]`.

The agents are those of the notebook's own cells, and a provider on this machine answers them in OpenAI's place.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import nbformat

from nbrun import NotebookSession, RunStatus
from tests.fakes.agents import BOUND_S
from tests.fakes.openai_server import OpenAIServer
from tests.notebooks.headless import FOLDER

NOTEBOOK = FOLDER / "06_a_real_agent_offline.ipynb"
WORD_S = 0.04
HAIKU = "Steam from the old pot, / a robin on the sill waits / until we have poured."
ANSWER = "We have 18 teapots. At 4.50 euros each, all of them are worth 81 euros."
_RUN = re.compile(r"%%agentrun (\w+) --cassette (\S+).*\n(.*)", re.DOTALL)


async def answers(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Call each tool once, and then say the answer, a word at a time; without tools, say the haiku."""
    tools, was_asked = request.get("tools", ()), request["messages"][-1]["role"] == "tool"
    if tools and not was_asked:
        for number, tool in enumerate(tools):
            function = {"name": tool["function"]["name"], "arguments": '{"thing": "teapot"}'}
            call = {"index": number, "id": f"call_{number}", "type": "function", "function": function}
            yield {"tool_calls": [call]}
            await asyncio.sleep(WORD_S)
        return
    for word in re.findall(r"\S+\s*", ANSWER if tools else HAIKU):
        yield {"content": word}
        await asyncio.sleep(WORD_S)


def lead_to(server: OpenAIServer) -> None:
    """Have every request of this process go to the server, whatever address it is for."""
    for package in (httpx, httpx2):
        send, send_async = package.HTTPTransport.handle_request, package.AsyncHTTPTransport.handle_async_request

        def handle(self: Any, request: Any, send: Any = send) -> Any:
            request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=server.port)
            return send(self, request)

        async def handle_async(self: Any, request: Any, send: Any = send_async) -> Any:
            request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=server.port)
            return await send(self, request)

        package.HTTPTransport.handle_request = handle
        package.AsyncHTTPTransport.handle_async_request = handle_async


def record(folder: Path) -> None:
    """Record every run of the notebook that has a cassette, into this folder."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    names: dict[str, Any] = {"__name__": "__main__"}
    with OpenAIServer(answers) as server, tempfile.TemporaryDirectory() as kept:
        lead_to(server)
        with NotebookSession(store=Path(kept) / "runs.db") as session:
            for cell in cells:
                if (found := _RUN.match(cell)) is not None:
                    name, file, prompt = found.groups()
                    run = session.start(names[name], prompt)
                    assert run.wait(BOUND_S)
                    assert run.status is RunStatus.COMPLETED, run.error
                    (path := folder / file).parent.mkdir(exist_ok=True)
                    run.export(path, "cassette")
                elif re.search(r"^(?:import|from|def|\w+ = Agent\()", cell, re.MULTILINE):
                    exec(compile(cell.replace("%load_ext nbrun", ""), "cell", "exec"), names)  # noqa: S102 - a cell of this project


if __name__ == "__main__":
    record(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
