"""An MCP server over its standard streams, with one tool: `python -m tests.fakes.mcp_server FILE`.

It writes its process id into FILE.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mcp.server import MCPServer

server = MCPServer("kettle")


@server.tool()
def boil(water: str) -> str:
    """Boil water."""
    return f"boiled {water}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(str(os.getpid()), encoding="utf-8")
    server.run(transport="stdio")
