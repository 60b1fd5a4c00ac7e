"""The built-in agent, put together: its model, its tools, its instructions, the type of its output.

Imported when a run begins, for it imports the framework.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from pydantic_ai import Agent, Tool
from pydantic_ai.exceptions import UserError

from nbrun.agents import shown, type_name
from nbrun.agents.builtin.options import asks_first

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic_ai.models import Model
    from pydantic_ai.toolsets import AbstractToolset

    from nbrun.core.options import RunOptions

MCP_EXTRA = 'pip install "jupyter-nbrun[mcp]"'


def assemble(model: str, setup: RunOptions, warn: Callable[[str], None]) -> Agent[None, object]:
    """Return the agent; a tool that cannot be described to a model is left out, with a warning that says why.

    Raises
    ------
    pydantic_ai.exceptions.UserError
        An MCP server is wanted, and the package for it is not installed.
    """
    return Agent(
        _model(model),
        tools=[tool for tool in (_tool(function, warn) for function in setup.tools or ()) if tool],
        instructions=setup.system,
        output_type=setup.output_type or str,
        toolsets=[_server(server) for server in setup.mcp or ()],
        model_settings=setup.settings,  # type: ignore[arg-type]  # of any provider: it checks them
    )


def _model(model: str) -> Model | str:
    provider, _, path = model.partition(":")
    if provider != "local":
        return model
    from nbrun.agents.builtin.options import local_file
    from nbrun.agents.local_model.model import LocalModel

    return LocalModel(local_file(path) if path else None)


def _tool(function: Callable[..., object], warn: Callable[[str], None]) -> Tool[Any] | None:
    try:
        return Tool(function, requires_approval=asks_first(function))
    except Exception as error:  # whatever an annotation of the user's raises when it is looked at
        name = getattr(function, "__name__", type_name(function))
        warn(
            f"the tool {name} is left out, for it cannot be described to a model: {shown(str(error), 200)}"
        )
        return None


def _server(server: str) -> AbstractToolset[Any]:
    """Return the tools of an MCP server: at a URL, or of a command that is started with the run and ends with it."""
    try:
        from fastmcp.client import Client
        from fastmcp.client.transports import StdioTransport
        from pydantic_ai.mcp import MCPToolset
    except ImportError as error:
        raise UserError(f"an MCP server needs its client: {MCP_EXTRA} ({error})") from None
    if server.startswith(("http://", "https://")):
        return MCPToolset(server)
    command, *args = shlex.split(server)
    # Kept alive, its process would outlast the run.
    return MCPToolset(Client(StdioTransport(command, args, keep_alive=False)))
