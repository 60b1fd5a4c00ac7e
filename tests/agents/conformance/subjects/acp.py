"""A program that speaks the Agent Client Protocol, on the protocol's own package."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from nbrun.agents import AcpAgent
from tests.agents.conformance.script import Script
from tests.agents.conformance.subject import Subject

ROOT = Path(__file__).parents[4]
SESSIONS = Path(tempfile.gettempdir()) / "nbrun-test-acp"
"""Where its sessions are, for another process finds them again."""


class Acp(Subject):
    """An agent in a process of its own."""

    name = "acp"
    crowd = 6  # each is a process that imports for a second

    def agent(self, script: Script) -> Any:
        """Return the program, with the script as its argument."""
        SESSIONS.mkdir(exist_ok=True)
        turns = [
            {
                "words": list(turn.words), "stalls": turn.stalls, "fails": turn.fails,
                "calls": [{"name": c.name, "args": c.args, "asks": c.asks} for c in turn.calls],
            }
            for turn in script.turns
        ]  # fmt: skip
        command = [sys.executable, "-m", "tests.fakes.acp_agent", json.dumps(turns), str(SESSIONS)]
        return AcpAgent(command, cwd=ROOT, name="poet")


SUBJECTS = (Acp(),)
