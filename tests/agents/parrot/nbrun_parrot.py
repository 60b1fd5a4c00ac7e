"""Parrots as agents: an example of a framework's adapter in a package of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from nbrun.agents import (
    NO_NATIVE_CANCEL,
    AgentNotFound,
    EventData,
    Lacks,
    Output,
    RunContext,
    events,
)


class Parrot:
    """Says what it hears, word by word."""

    def __init__(self, name: str, *, is_alive: bool = True) -> None:
        self.name, self.is_alive = name, is_alive


class ParrotAdapter:
    """Drives a `Parrot`."""

    name = "parrot"
    lacks = Lacks(
        tools="it has none", functions="it has none", approvals="it asks nobody", steering="it has no inbox",
        usage="it calls no model", native_cancel=NO_NATIVE_CANCEL, resume="it keeps no checkpoint",
    )  # fmt: skip

    def match(self, agent: object) -> bool:
        """Return whether it is a parrot."""
        return isinstance(agent, Parrot)

    def check(self, agent: object) -> None:
        """Refuse one that says nothing more."""
        if not getattr(agent, "is_alive", False):
            raise AgentNotFound(f"{self.label(agent)} cannot be run: it is an ex-parrot")

    def label(self, agent: object) -> str:
        """Return its name."""
        return str(getattr(agent, "name", self.name))

    async def events(
        self, agent: object, prompt: str, run: RunContext
    ) -> AsyncIterator[EventData | Output]:
        """Yield the prompt's words, then the whole."""
        for word in prompt.split(" "):
            yield events.TextDelta(f"{word} ")
            await asyncio.sleep(0)
        yield events.Message("assistant", f"{prompt} ")
        yield Output(prompt)
