"""How agents are driven: the adapter protocol, and finding an agent's adapter by its class, without its framework.

Third parties register theirs under the entry-point group `nbrun.agents`: a name and an `AgentAdapter`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import lru_cache
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, cast, runtime_checkable

import msgspec

from nbrun.agents.context.approvals import ALLOW, DENY, Answer, Approvals
from nbrun.agents.context.budget import Budget
from nbrun.agents.context.inbox import Inbox
from nbrun.agents.context.processes import Process, below
from nbrun.agents.context.run_context import ChildRun, RunContext, current, current_run, watched_run
from nbrun.agents.context.threads import ThreadCall, Work, Worker, call_here, is_quiet
from nbrun.core import (
    Action,
    AgentNotFound,
    BadOption,
    Cancelled,
    CancelToken,
    Clock,
    Fix,
    NbrunError,
    NotResumable,
    PackageMissing,
    Plain,
    Replay,
    State,
    Turn,
    call_soon,
    clean_text,
    events,
    guarded,
    plain,
    shown,
    type_name,
)
from nbrun.core.checkpoint import USER
from nbrun.core.events import EventData

if TYPE_CHECKING:
    from nbrun.agents.acp.command import AcpAgent
    from nbrun.agents.agui import AguiAgent
    from nbrun.core.checkpoint import Call

# What adapters need, all in one import (`pricing` and `provider_retries` are modules of this package), and what the
# other rooms need.
__all__ = [
    "ALLOW", "DENY", "NO_NATIVE_CANCEL", "USER", "AcpAgent", "Action", "AgentAdapter", "AgentNotFound", "AguiAgent",
    "Answer", "Approvals", "BadOption", "Budget", "CancelToken", "Cancelled", "ChildRun", "Clock", "EventData", "Fix",
    "Framework", "Inbox", "Limitations", "NbrunError", "NotResumable", "Output", "PackageMissing", "Plain", "Process",
    "Replay", "RunContext", "State", "ThreadCall", "Turn", "Work", "Worker", "agent", "asks_first", "below",
    "call_here", "call_soon", "clean_text", "current", "current_run", "events", "guarded", "is_installed", "is_quiet",
    "needs_approval", "plain", "shown", "type_name", "watched_run",
]  # fmt: skip

ENTRY_POINTS = "nbrun.agents"
PROGRAM = "acp:"
"""The prefix of a program that speaks ACP, as in `acp:gemini --acp`."""
ADDRESS = "agui:"
"""The prefix of an address that speaks AG-UI, as in `agui:http://localhost:8000`."""

NO_NATIVE_CANCEL = "by cancelling the asyncio task"


class Output(msgspec.Struct, frozen=True):
    """The agent's return value: if there is one, the last thing that an adapter yields."""

    value: object


class Limitations(msgspec.Struct, frozen=True):
    """What a kind of agent can't do: each field says why, and is empty if it can.

    `%agentrun agents` shows it, and tests/agents/conformance checks every adapter against it, both ways.
    """

    text: str = ""  # streamed text
    tools: str = ""  # its tools are shown
    functions: str = ""  # Python functions of this process as tools
    sync_tools: str = ""  # a cancel stops a sync function; else the log names it
    approvals: str = ""  # the user is asked before a tool is used
    edited_args: str = ""  # and may edit its arguments
    steering: str = ""  # messages reach it while it runs
    usage: str = ""  # tokens and requests are reported
    native_cancel: str = ""  # its framework's own cancel; else how it is cancelled
    resume: str = ""  # from where it was cancelled or failed
    resume_elsewhere: str = ""  # in another kernel, if it can be resumed at all
    thread: str = ""  # `--thread`
    process: str = ""  # `--on process`


Lacks = Limitations  # its earlier name


class Framework(msgspec.Struct, frozen=True):
    """The package whose objects an adapter drives."""

    package: str  # as it is imported
    extra: str  # of this distribution, which installs it

    @property
    def install_hint(self) -> str | None:
        """The command that installs it; None if it is installed."""
        return None if is_installed(self.package) else f'pip install "jupyter-nbrun[{self.extra}]"'


def is_installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of google.genai, if there is no google
        return False


@runtime_checkable
class AgentAdapter(Protocol):
    """Drives one kind of agent. Derive from it to inherit the defaults of `check()` and `label()`.

    The host, not the adapter, sends `run.started`, the one end event, the ends of open tools and the usage
    of a cancelled run. Optional members:

    * `async def cancel(self, run)`: the framework's native cancel, called on the host's loop once the token has
      fired; the driving task is then cancelled only after the grace period.
    * `def resume(self, agent, state, run)`: as in `Resuming`.
    * `limitations`, a `Limitations`, and `framework`, a `Framework`: shown to the user.
    * `def environment(self, agent)`: the environment variables that the agent gets, in which there may be keys.
    """

    name: str

    def match(self, agent: object) -> bool:
        """Return whether this adapter drives `agent`; looks at its class only."""
        ...

    def check(self, agent: object) -> None:
        """Raise `UserError` for an agent that can't be run."""
        return

    def label(self, agent: object) -> str:
        """Return the agent's name, as cards show it."""
        return str(getattr(agent, "name", "") or self.name)

    def events(self, agent: object, prompt: str, run: RunContext) -> AsyncIterator[EventData | Output]:
        """Yield what the agent does; raise what it raises."""
        ...


class NativeCancel(Protocol):
    """An adapter whose framework can stop its agent."""

    async def cancel(self, run: RunContext) -> None:
        """Stop the agent; called on the host's loop."""


@runtime_checkable
class Resuming(Protocol):
    """An adapter that can resume from a state; without it, an agent looks at `run.restored` itself."""

    def resume(self, agent: object, state: State, run: RunContext) -> AsyncIterator[EventData | Output]:
        """Yield what the agent does from there on; `state` is what was last given to `run.checkpoint()`."""
        ...


def as_native(adapter: AgentAdapter) -> NativeCancel | None:
    """Return the adapter if it has a native cancel."""
    # Not by isinstance(): for a protocol it takes 50 µs, at every cancel.
    return cast("NativeCancel", adapter) if hasattr(adapter, "cancel") else None


def environment_of(adapter: AgentAdapter, agent: object) -> Mapping[str, str]:
    """Return the environment variables that an agent gets in addition to the kernel's."""
    environment = getattr(adapter, "environment", None)
    return {} if environment is None else dict(environment(agent))


def limitations_of(adapter: AgentAdapter) -> Limitations | None:
    """Return what the adapter says it can't do; None if it doesn't say."""
    limitations = getattr(adapter, "limitations", None) or getattr(adapter, "lacks", None)
    return limitations if isinstance(limitations, Limitations) else None


def framework_of(adapter: AgentAdapter) -> Framework | None:
    """Return the package that the adapter needs, if any."""
    framework = getattr(adapter, "framework", None)
    return framework if isinstance(framework, Framework) else None


# In the order in which they are asked; functions come last, because that adapter takes any callable.
_BUILT_IN = (
    "python_cell", "scripted", "replay", "builtin", "pydantic_ai.adapter", "openai_agents.adapter",
    "langgraph.adapter", "llama_index.adapter", "smolagents.adapter", "claude_agent.adapter", "google_adk.adapter",
    "acp.adapter", "agui", "functions",
)  # fmt: skip


@lru_cache(maxsize=1)
def _adapters() -> tuple[AgentAdapter, ...]:
    return tuple(importlib.import_module(f"nbrun.agents.{name}").ADAPTER for name in _BUILT_IN)


class ThirdParty(msgspec.Struct, frozen=True):
    """The adapters of other packages, by entry point, and those that could not be loaded, with the reason."""

    adapters: tuple[AgentAdapter, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()  # name, reason


@lru_cache(maxsize=1)
def third_party() -> ThirdParty:
    """Return the adapters of other packages; `third_party.cache_clear()` makes the next call look again."""
    from importlib.metadata import entry_points

    adapters: list[AgentAdapter] = []
    broken: list[tuple[str, str]] = []
    for point in entry_points(group=ENTRY_POINTS):
        dist = "" if point.dist is None else f" of {point.dist.name}"
        try:
            adapters.append(_loaded(point.load()))
        except (Exception, SystemExit) as error:  # someone else's code must not break these runs
            words = f"{type(error).__name__}: {error}".partition("\n")[0]
            broken.append((point.name, f"{point.value}{dist} can't be used: {words}"))
    return ThirdParty(tuple(adapters), tuple(broken))


def _loaded(made: object) -> AgentAdapter:
    adapter = made() if isinstance(made, type) else made
    if not isinstance(adapter, AgentAdapter):
        parts = ("name", "match", "check", "label", "events")
        missing = [part for part in parts if not hasattr(adapter, part)]
        raise TypeError(f"not an adapter; missing: {', '.join(missing)}")
    return adapter


def adapters() -> tuple[AgentAdapter, ...]:
    """Return all adapters, in the order in which they are asked."""
    *frameworks, plain = _adapters()
    return (*frameworks, *third_party().adapters, plain)


def _matches(adapter: AgentAdapter, agent: object) -> bool:
    try:
        return bool(adapter.match(agent))
    except Exception:  # an error of one adapter must not affect other kinds of agents
        return False


def find_adapter(agent: object) -> AgentAdapter:
    """Return the adapter that drives `agent`; raises `AgentNotFound` if none does."""
    if isinstance(agent, FunctionType):  # most agents, and never an object of a framework
        return _adapters()[-1]
    for adapter in adapters():
        if _matches(adapter, agent):
            return adapter
    raise AgentNotFound(
        f"{type(agent).__name__} can't be used as an agent: give a function (async or not, or a generator) "
        "or an agent of a supported framework"
    )


_registered: dict[str, object] = {}

F = TypeVar("F", bound=Callable[..., object])
_NEEDS_APPROVAL = "needs_approval"


def agent(function: F) -> F:
    """Register a function as an agent under its name, for `%%agentrun NAME` in any notebook cell."""
    _registered[function.__name__] = function
    return function


def needs_approval(tool: F) -> F:
    """Make the built-in agent ask the user before it uses this function."""
    setattr(tool, _NEEDS_APPROVAL, True)
    return tool


def asks_first(tool: Callable[..., object]) -> bool:
    """Return whether a function was marked with `@needs_approval`."""
    return bool(getattr(tool, _NEEDS_APPROVAL, False))


def by_name(name: str) -> object:
    """Return the agent registered by this name, or that of `acp:COMMAND` or `agui:ADDRESS`; None if there is none.

    Raises `BadOption` if the command or the address is invalid.
    """
    if name.startswith(PROGRAM):
        from nbrun.agents.acp.command import AcpAgent

        return AcpAgent(name.removeprefix(PROGRAM))
    if name.startswith(ADDRESS):
        from nbrun.agents.agui import AguiAgent

        return AguiAgent(name.removeprefix(ADDRESS))
    return _registered.get(name)


def __getattr__(name: str) -> object:
    """Import on first use what few need."""
    if name == "AcpAgent":
        from nbrun.agents.acp.command import AcpAgent

        return AcpAgent
    if name == "AguiAgent":
        from nbrun.agents.agui import AguiAgent

        return AguiAgent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def registered() -> dict[str, object]:
    """Return the registered agents by name."""
    return dict(_registered)


# --- what the adapters of frameworks share -----------------------------------------------------------

Items = AsyncIterator[events.EventData | Output]

# The result of a call that was cut off, and the prompt for an agent that resumes from its conversation.
INTERRUPTED = "The tool call was interrupted; how far it got is unknown."
CONTINUE = "You were interrupted. Continue where you stopped."
MAX_ID = 1_000  # characters of a session's id


class FrameworkAdapter(AgentAdapter):
    """Matches agents by the name of a class among their bases, so that matching imports no framework.

    The framework is imported with the first run, which may take seconds: the other modules of an adapter's folder are
    imported then. A cancelled run ends at once in a model's text, in an async tool, and while a question is open, which
    is withdrawn. A sync tool ends after the grace period, by an exception in its thread; else the log names it.
    """

    agent_class: ClassVar[tuple[str, ...]]  # module or package, then its classes
    default_label: ClassVar[str] = "agent"

    def match(self, agent: object) -> bool:
        """Return whether the agent is an instance of the framework's agent class."""
        package, *names = self.agent_class
        return any(
            base.__name__ in names and f"{base.__module__}.".startswith(f"{package}.") for base in type(agent).__mro__
        )

    def label(self, agent: Any) -> str:
        """Return the agent's name."""
        return str(getattr(agent, "name", None) or self.default_label)


class Tools:
    """The running tools by id, and the events of their start and end. Threads: any; one at a time for each id."""

    def __init__(self, clock: Clock) -> None:
        self.began: dict[str, float] = {}
        self._clock = clock

    def start(self, tool_id: str, name: str, args: object, kind: str = "function") -> list[events.EventData]:
        """Return the start of a tool; nothing if it is running already."""
        if tool_id in self.began:
            return []
        self.began[tool_id] = self._clock.monotonic()
        return [events.ToolStarted(tool_id, name, kind, plain(args))]

    def finish(self, tool_id: str, status: str, result: object) -> events.ToolFinished:
        """Return the end of a tool, with its duration."""
        now = self._clock.monotonic()
        ms = (now - self.began.pop(tool_id, now)) * 1000
        return events.ToolFinished(tool_id, status, plain(result), round(ms, 3))


def args_of(call: Call) -> dict[str, Any]:
    """Return the arguments of an earlier call, as an object."""
    return call.args if isinstance(call.args, dict) else {"value": call.args}


def result_of(call: Call) -> str:
    """Return the result of an earlier call, as text for a model."""
    if call.status in ("interrupted", "cancelled"):
        return INTERRUPTED
    return call.result if isinstance(call.result, str) else json.dumps(call.result)


def prompt_of(history: Sequence[Turn], prompt: str) -> str:
    """Return the prompt, after the conversation of earlier runs."""
    if not history:
        return prompt
    said = "\n\n".join(f"{turn.role}: {turn.text}" for turn in history)
    return f"Earlier conversation:\n\n{said}\n\nuser: {prompt}"


def session_of(state: State) -> str:
    """Return the id of the session in a checkpoint; raise `NotResumable` if there is none."""
    known = state.get("session") if isinstance(state, dict) else None
    if not (isinstance(known, str) and 0 < len(known) <= MAX_ID and known.isprintable()):
        raise NotResumable("its checkpoint doesn't name a session; retry starts it again")
    return known


def unreadable(error: Exception) -> NotResumable:
    """Return the error for a checkpoint that a framework can't read."""
    why = str(error).partition("\n")[0] or type(error).__name__
    return NotResumable(f"its checkpoint cannot be read ({why}); retry starts it again")


def json_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that a text is, if it is one."""
    try:
        value = json.loads(text)
    except (RecursionError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def part_of(value: Any, name: str) -> Any:
    """Return a field of an object or a dict; None if it is missing."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)
