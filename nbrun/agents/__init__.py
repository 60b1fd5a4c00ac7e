"""How agents are driven: the adapter protocol, and finding the adapter of an object.

An adapter is found by the object's class, without importing its framework. Third parties register theirs
under the entry-point group `nbrun.agents`: a name and an object that keeps the `AgentAdapter` protocol.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import AsyncIterator, Callable, Mapping
from functools import lru_cache
from types import FunctionType
from typing import TYPE_CHECKING, Protocol, TypeVar, cast, runtime_checkable

import msgspec

from nbrun.agents.context.approvals import ALLOW, DENY, Answer, Approvals
from nbrun.agents.context.budget import Budget
from nbrun.agents.context.inbox import Inbox
from nbrun.agents.context.run_context import ChildRun, RunContext, current, current_run
from nbrun.agents.context.threads import Worker
from nbrun.core import events
from nbrun.core.cancellation import CancelToken, call_soon
from nbrun.core.checkpoint import USER, State, Turn
from nbrun.core.clock import Clock
from nbrun.core.errors import (
    Action,
    AgentNotFound,
    BadOption,
    Cancelled,
    Fix,
    NbrunError,
    NotResumable,
    PackageMissing,
)
from nbrun.core.events import EventData
from nbrun.core.interrupt_guard import guarded
from nbrun.core.recording import Replay
from nbrun.core.text import clean_text
from nbrun.core.values import Plain, plain, shown, type_name

if TYPE_CHECKING:
    from nbrun.agents.acp.command import AcpAgent

# What adapters need, all in one import (`pricing` and `provider_retries` are modules of this package), and what the
# other rooms need.
__all__ = [
    "ALLOW", "DENY", "NO_NATIVE_CANCEL", "USER", "AcpAgent", "Action", "AgentAdapter", "AgentNotFound", "Answer",
    "Approvals", "BadOption", "Budget", "CancelToken", "Cancelled", "ChildRun", "Clock", "EventData", "Fix",
    "Framework", "Inbox", "Lacks", "NbrunError", "NotResumable", "Output", "PackageMissing", "Plain", "Replay",
    "RunContext", "State", "Turn", "Worker", "agent", "call_soon", "clean_text", "current", "current_run",
    "events", "guarded", "is_installed", "plain", "shown", "type_name",
]  # fmt: skip

ENTRY_POINTS = "nbrun.agents"
PROGRAM = "acp:"
"""How a target begins that is a program speaking ACP: `acp:gemini --acp`."""

NO_NATIVE_CANCEL = "its task is cancelled"


class Output(msgspec.Struct, frozen=True):
    """What an agent returned: the last thing that an adapter yields, if it yields one."""

    value: object


class Lacks(msgspec.Struct, frozen=True):
    """What a kind of agent cannot do: each field says why in a line, and is empty where it can.

    People read it in `%agentrun agents`; tests/agents/conformance holds every adapter to it, both ways.
    """

    text: str = ""  # to be seen while it is written
    tools: str = ""  # to show which tools it uses
    functions: str = ""  # to have Python functions, called in this process, as tools
    sync_tools: str = ""  # to be stopped in a sync function; else what runs on is named
    approvals: str = ""  # to ask a person before a tool is used
    edited_args: str = ""  # to use it then with other arguments, which the person gives
    steering: str = ""  # to hear what people say to it while it runs
    usage: str = ""  # to tell tokens and requests
    native_cancel: str = ""  # to be cancelled by its framework, before its task is
    resume: str = ""  # to go on from where it was cancelled or failed
    resume_elsewhere: str = ""  # to do so in another kernel, where it can at all
    thread: str = ""  # `--thread`
    process: str = ""  # `--on process`


class Framework(msgspec.Struct, frozen=True):
    """The package that an adapter drives the objects of."""

    package: str  # as it is imported
    extra: str  # of this distribution, which brings it

    @property
    def lack(self) -> str | None:
        """What is to be installed before it can be used; None where it is there."""
        return None if is_installed(self.package) else f'pip install "jupyter-nbrun[{self.extra}]"'


def is_installed(package: str) -> bool:
    """Return whether a package can be imported; it is not."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of google.genai, where there is no google
        return False


@runtime_checkable
class AgentAdapter(Protocol):
    """Drives one kind of agent.

    The host, not the adapter, sends `run.started`, the one end event, the ends of open tools and the usage
    of a cancelled run. An adapter may also have `async def cancel(self, run)`: its framework's native
    cancel, called on the host's loop once the token has fired; the driving task is then cancelled only
    after the grace. And it may have `lacks`, a `Lacks`, and `framework`, a `Framework`: for people to read.
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


def environment_of(adapter: AgentAdapter, agent: object) -> Mapping[str, str]:
    """Return the environment variables that an agent is given beside the kernel's: there may be keys among them."""
    environment = getattr(adapter, "environment", None)
    return {} if environment is None else dict(environment(agent))


def lacks_of(adapter: AgentAdapter) -> Lacks | None:
    """Return what the adapter says that it cannot do; None where it says nothing of that."""
    lacks = getattr(adapter, "lacks", None)
    return lacks if isinstance(lacks, Lacks) else None


def framework_of(adapter: AgentAdapter) -> Framework | None:
    """Return the package that the adapter says it needs."""
    framework = getattr(adapter, "framework", None)
    return framework if isinstance(framework, Framework) else None


@runtime_checkable
class Resuming(Protocol):
    """An adapter that can go on from a state; without it, an agent looks at `run.restored` itself."""

    def resume(
        self, agent: object, state: State, run: RunContext
    ) -> AsyncIterator[EventData | Output]:
        """Yield what the agent does from there on; `state` as the adapter gave it to `run.checkpoint()`."""
        ...


# In the order in which they are asked; functions come last, because they take any callable.
_BUILT_IN = (
    "python_cell",
    "scripted",
    "replay",
    "builtin.adapter",
    "pydantic_ai.adapter",
    "openai_agents.adapter",
    "langgraph.adapter",
    "llama_index.adapter",
    "smolagents.adapter",
    "acp.adapter",
    "functions",
)


@lru_cache(maxsize=1)
def _adapters() -> tuple[AgentAdapter, ...]:
    return tuple(importlib.import_module(f"nbrun.agents.{name}").ADAPTER for name in _BUILT_IN)


class ThirdParty(msgspec.Struct, frozen=True):
    """What other packages have registered, by entry point: adapters, and what could not be had, with why."""

    adapters: tuple[tuple[str, AgentAdapter], ...] = ()
    broken: tuple[tuple[str, str], ...] = ()


@lru_cache(maxsize=1)
def third_party() -> ThirdParty:
    """Return what other packages have registered; `third_party.cache_clear()` has it read anew."""
    from importlib.metadata import entry_points

    adapters: list[tuple[str, AgentAdapter]] = []
    broken: list[tuple[str, str]] = []
    for point in entry_points(group=ENTRY_POINTS):
        dist = "" if point.dist is None else f" of {point.dist.name}"
        try:
            adapters.append((point.name, _loaded(point.load())))
        except (Exception, SystemExit) as error:  # a stranger's code must not break others' runs
            words = f"{type(error).__name__}: {error}".partition("\n")[0]
            broken.append((point.name, f"{point.value}{dist} cannot be used: {words}"))
    return ThirdParty(tuple(adapters), tuple(broken))


def _loaded(made: object) -> AgentAdapter:
    adapter = made() if isinstance(made, type) else made
    if not isinstance(adapter, AgentAdapter):
        missing = [part for part in _PARTS if not hasattr(adapter, part)]
        raise TypeError(f"it is no adapter: it has no {', '.join(missing)}")
    return adapter


_PARTS = ("name", "match", "check", "label", "events")


def adapters() -> tuple[AgentAdapter, ...]:
    """Return all adapters, in the order in which they are asked."""
    *frameworks, plain = _adapters()
    return (*frameworks, *(adapter for _name, adapter in third_party().adapters), plain)


def _matches(adapter: AgentAdapter, agent: object) -> bool:
    try:
        return bool(adapter.match(agent))
    except Exception:  # a stranger's mistake is not that of whoever has another kind of agent
        return False


def find_adapter(agent: object) -> AgentAdapter:
    """Return the adapter that drives `agent`.

    Raises
    ------
    AgentNotFound
        Nothing here can run it.
    """
    if isinstance(agent, FunctionType):  # by far the most, and surely no framework's object
        return _adapters()[-1]
    for adapter in adapters():
        if _matches(adapter, agent):
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


def by_name(name: str) -> object:
    """Return the agent of this name: a registered one, or the program of `acp:COMMAND`; None where there is none.

    Raises
    ------
    BadOption
        The command cannot be read.
    """
    if name.startswith(PROGRAM):
        from nbrun.agents.acp.command import AcpAgent

        return AcpAgent(name.removeprefix(PROGRAM))
    return _registered.get(name)


def __getattr__(name: str) -> object:
    """Return what few need, so that it costs nobody else anything."""
    if name == "AcpAgent":
        from nbrun.agents.acp.command import AcpAgent

        return AcpAgent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def registered() -> dict[str, object]:
    """Return the registered agents by name."""
    return dict(_registered)
