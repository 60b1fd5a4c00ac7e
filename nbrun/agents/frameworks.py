"""What the adapters of agent frameworks share. No framework is imported here.

A cancelled run ends at once in a model's text, in an async tool, and while a question is open, which is withdrawn. A
sync tool ends after the grace period, by an exception in its thread; if that fails, the log names the tool.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, ClassVar

from nbrun.agents import AgentAdapter, Clock, NotResumable, Output, events as ev, plain

if TYPE_CHECKING:
    from nbrun.core.checkpoint import Call

Items = AsyncIterator[ev.EventData | Output]

# The result of a call that was cut off, and the prompt for an agent that resumes from its conversation.
INTERRUPTED = "The tool call was interrupted; how far it got is unknown."
CONTINUE = "You were interrupted. Continue where you stopped."


class FrameworkAdapter(AgentAdapter):
    """Matches agents by the name of a class among their bases, so that matching imports no framework.

    The framework is imported with the first run, which may take seconds: the other modules of an adapter's folder are
    imported then.
    """

    agent_class: ClassVar[tuple[str, str]]  # module or package, class
    default_label: ClassVar[str] = "agent"

    def match(self, agent: object) -> bool:
        """Return whether the agent is an instance of the framework's agent class."""
        package, name = self.agent_class
        return any(
            base.__name__ == name and f"{base.__module__}.".startswith(f"{package}.") for base in type(agent).__mro__
        )

    def label(self, agent: Any) -> str:
        """Return the agent's name."""
        return str(getattr(agent, "name", None) or self.default_label)


class Tools:
    """The tools that are running, by id, and the events of their start and end.

    Threads: any; each id is used by one thread at a time.
    """

    def __init__(self, clock: Clock) -> None:
        self.began: dict[str, float] = {}
        self._clock = clock

    def start(self, tool_id: str, name: str, args: object, kind: str = "function") -> list[ev.EventData]:
        """Return the start of a tool; nothing if it is running already."""
        if tool_id in self.began:
            return []
        self.began[tool_id] = self._clock.monotonic()
        return [ev.ToolStarted(tool_id, name, kind, plain(args))]

    def finish(self, tool_id: str, status: str, result: object) -> ev.ToolFinished:
        """Return the end of a tool, with its duration."""
        now = self._clock.monotonic()
        ms = (now - self.began.pop(tool_id, now)) * 1000
        return ev.ToolFinished(tool_id, status, plain(result), round(ms, 3))


def args_of(call: Call) -> dict[str, Any]:
    """Return the arguments of an earlier call, as an object."""
    return call.args if isinstance(call.args, dict) else {"value": call.args}


def result_of(call: Call) -> str:
    """Return the result of an earlier call, as text for a model."""
    if call.status in ("interrupted", "cancelled"):
        return INTERRUPTED
    return call.result if isinstance(call.result, str) else json.dumps(call.result)


def unreadable(error: Exception) -> NotResumable:
    """Return the error for a checkpoint that a framework can't read."""
    why = str(error).partition("\n")[0] or type(error).__name__
    return NotResumable(f"its checkpoint cannot be read ({why}); retry starts it again")


def json_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that a text is, if it is one."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def part_of(value: Any, name: str) -> Any:
    """Return a field of an object or a dict; None if it is missing."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)
