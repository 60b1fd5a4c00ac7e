"""How agents are driven: the adapter protocol, and finding the adapter of an object.

An adapter is found by the object's class, without importing its framework. Third parties register theirs
under the entry-point group `nbrun.agents`: a name and an object that keeps the `AgentAdapter` protocol.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from types import FunctionType
from typing import TYPE_CHECKING, Protocol, TypeVar, cast, runtime_checkable

import msgspec

from nbrun.errors import AgentNotFound
from nbrun.recording import Replay as Replay

if TYPE_CHECKING:
    from nbrun.checkpoint import State
    from nbrun.context import RunContext
    from nbrun.events import EventData

ENTRY_POINTS = "nbrun.agents"


class Output(msgspec.Struct, frozen=True):
    """What an agent returned: the last thing that an adapter yields, if it yields one."""

    value: object


@runtime_checkable
class AgentAdapter(Protocol):
    """Drives one kind of agent.

    The host, not the adapter, sends `run.started`, the one end event, the ends of open tools and the usage
    of a cancelled run. An adapter may also have `async def cancel(self, run)`: its framework's native
    cancel, called on the host's loop once the token has fired; the driving task is then cancelled only
    after the grace.
    """

    name: str

    def match(self, agent: object) -> bool:
        """Return whether this adapter drives `agent`; looks at its class only."""
        ...

    def check(self, agent: object) -> None:
        """Raise `UserError` for an agent that could not be entered."""
        ...

    def label(self, agent: object) -> str:
        """Return the agent's name for people."""
        ...

    def events(
        self, agent: object, prompt: str, run: RunContext
    ) -> AsyncIterator[EventData | Output]:
        """Yield what the agent does; raise what it raises."""
        ...


class NativeCancel(Protocol):
    """An adapter whose framework can stop its agent."""

    async def cancel(self, run: RunContext) -> None:
        """Stop the agent; called on the host's loop."""
        ...


def as_native(adapter: AgentAdapter) -> NativeCancel | None:
    """Return the adapter if it can stop its agent by itself."""
    # Not by isinstance(): of a protocol it takes 50 µs, and is asked at every cancel.
    return cast("NativeCancel", adapter) if hasattr(adapter, "cancel") else None


@runtime_checkable
class Resuming(Protocol):
    """An adapter that can go on from a state; without it, an agent looks at `run.restored` itself."""

    def resume(
        self, agent: object, state: State, run: RunContext
    ) -> AsyncIterator[EventData | Output]:
        """Yield what the agent does from there on; `state` as the adapter gave it to `run.checkpoint()`."""
        ...


# In the order in which they are asked; plain comes last, for it takes any callable.
_BUILT_IN = ("cell", "scripted", "replay", "builtin", "pydantic_ai", "plain")


@lru_cache(maxsize=1)
def _adapters() -> tuple[AgentAdapter, ...]:
    return tuple(importlib.import_module(f"nbrun.agents.{name}").ADAPTER for name in _BUILT_IN)


@lru_cache(maxsize=1)
def _third_party() -> tuple[AgentAdapter, ...]:
    from importlib.metadata import entry_points

    loaded = [point.load() for point in entry_points(group=ENTRY_POINTS)]
    return tuple(adapter() if isinstance(adapter, type) else adapter for adapter in loaded)


def find_adapter(agent: object) -> AgentAdapter:
    """Return the adapter that drives `agent`.

    Raises
    ------
    AgentNotFound
        Nothing here can run it.
    """
    *frameworks, plain = _adapters()
    if isinstance(agent, FunctionType):  # by far the most, and surely no framework's object
        return plain
    for adapter in (*frameworks, *_third_party(), plain):
        if adapter.match(agent):
            return adapter
    raise AgentNotFound(
        f"{type(agent).__name__} cannot be run: give a function (async or not, or a generator) "
        "or an agent of a framework that nbrun knows"
    )


_registered: dict[str, object] = {}

F = TypeVar("F", bound=Callable[..., object])


def agent(function: F) -> F:
    """Register a function as an agent under its name, for `%%agentrun NAME` in any notebook cell."""
    _registered[function.__name__] = function
    return function


def registered() -> dict[str, object]:
    """Return the registered agents by name."""
    return dict(_registered)
