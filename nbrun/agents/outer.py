"""An adapter around another one: it drives the same agents, elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbrun.agents import Resuming
from nbrun.agents.plain import PlainAdapter, is_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nbrun.agents import AgentAdapter, Output
    from nbrun.checkpoint import State
    from nbrun.context import RunContext
    from nbrun.events import EventData

    Items = AsyncIterator[EventData | Output]


class OuterAdapter:
    """Asks the agent's own adapter about everything, and drives what that one yields."""

    name = "outer"

    def __init__(self, inner: AgentAdapter) -> None:
        self._inner = inner

    def match(self, agent: object) -> bool:
        """Return whether the inner adapter takes it."""
        return self._inner.match(agent)

    def check(self, agent: object) -> None:
        """Ask the inner adapter."""
        self._inner.check(agent)

    def label(self, agent: object) -> str:
        """Return its name."""
        return self._inner.label(agent)

    def events(self, agent: object, prompt: str, run: RunContext) -> Items:
        """Yield what the agent returns; its deltas go to the run from where it is driven."""
        items = self._inner.events(agent, prompt, run)
        if isinstance(self._inner, PlainAdapter) and not is_async(agent):
            return items  # it has a thread of its own anyway, and is on no loop
        return self._driven(agent, items, run)

    def resume(self, agent: object, state: State, run: RunContext) -> Items:
        """Yield what the agent returns, from a state on where its adapter knows how to."""
        if not isinstance(self._inner, Resuming):
            return self.events(agent, run.prompt, run)
        return self._driven(agent, self._inner.resume(agent, state, run), run)

    def _driven(self, agent: object, items: Items, run: RunContext) -> Items:
        """Drive it there, and yield what it returns."""
        raise NotImplementedError
