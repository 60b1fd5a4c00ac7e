"""Parrots as agents: an example of a framework's adapter in a package of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from nbrun.agents import (
    NO_NATIVE_CANCEL,
    AgentAdapter,
    AgentNotFound,
    EventData,
    Limitations,
    Output,
    RunContext,
    events,
)


class Parrot:
    """Says what it hears, word by word."""

    def __init__(self, name: str, *, is_alive: bool = True) -> None:
        self.name, self.is_alive = name, is_alive


class ParrotAdapter(AgentAdapter):
    """Drives a `Parrot`."""

    name = "parrot"
    limitations = Limitations(
        tools="it has none", functions="it has none", approvals="it asks nothing", steering="it has no inbox",
        usage="it calls no model", native_cancel=NO_NATIVE_CANCEL, resume="it saves no checkpoints",
    )  # fmt: skip

    def match(self, agent: object) -> bool:
        """Return whether it is a parrot."""
        return isinstance(agent, Parrot)

    def check(self, agent: object) -> None:
        """Refuse one that says nothing more."""
        if not getattr(agent, "is_alive", False):
            raise AgentNotFound(f"{self.label(agent)} can't be used: it is an ex-parrot")

    async def events(self, agent: object, prompt: str, run: RunContext) -> AsyncIterator[EventData | Output]:
        """Yield the prompt's words, then the whole."""
        for word in prompt.split(" "):
            yield events.TextDelta(f"{word} ")
            await asyncio.sleep(0)
        yield events.Message("assistant", f"{prompt} ")
        yield Output(prompt)
