"""Agents that speak AG-UI, on the protocol's own package: in this process, and at an address."""

from __future__ import annotations

from typing import Any

from nbrun.agents import AguiAgent
from tests.agents.conformance.script import Script
from tests.agents.conformance.subject import Subject
from tests.fakes.agui_agent import AguiServer, Poet

SERVER = AguiServer()


class Agui(Subject):
    """An object whose `run` yields AG-UI's events."""

    name = "ag-ui"

    def agent(self, script: Script) -> Any:
        """Return it."""
        return Poet(script)


class AguiAddress(Subject):
    """An address that such events come from."""

    name = "ag-ui-address"
    crowd = 20

    def agent(self, script: Script) -> Any:
        """Return the address, with a name."""
        return AguiAgent(SERVER.address_of(Poet(script)), name="poet")


SUBJECTS = (Agui(), AguiAddress())
