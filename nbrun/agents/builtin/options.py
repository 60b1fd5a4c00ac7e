"""What the built-in agent is given besides its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nbrun.agents import BadOption, Plain, plain, type_name

Tool = Callable[..., object]
Settings = Mapping[str, object] | Callable[[Any], Mapping[str, object]]
"""Of a model: pydantic-ai's `ModelSettings`, or a function that returns them for its `RunContext`, step by step."""
F = TypeVar("F", bound=Tool)

_APPROVAL = "needs_approval"


@dataclass(frozen=True, slots=True)
class Setup:
    """Tools, instructions, the type of the output, MCP servers by command or by URL, and the model's settings."""

    tools: tuple[Tool, ...] = ()
    system: str | None = None
    output_type: type | None = None
    mcp: tuple[str, ...] = ()
    settings: Settings | None = None

    def options(self) -> dict[str, Plain]:
        """Return it as a run's record keeps it: functions and types by name, so that a later kernel can find them."""
        told: dict[str, Plain] = {}
        if self.tools:
            told["tools"] = [_name(tool) for tool in self.tools]
        if self.system is not None:
            told["system"] = self.system
        if self.output_type is not None:
            told["output_type"] = self.output_type.__name__
        if self.mcp:
            told["mcp"] = list(self.mcp)
        if isinstance(self.settings, Mapping):
            told["settings"] = plain(dict(self.settings))
        elif self.settings is not None:
            told["settings"] = _name(self.settings)
        return told


NO_SETUP = Setup()


def _name(function: Callable[..., object]) -> str:
    return str(getattr(function, "__name__", type_name(function)))


def needs_approval(tool: F) -> F:
    """Have a function ask a person before the built-in agent uses it."""
    setattr(tool, _APPROVAL, True)
    return tool


def asks_first(tool: Tool) -> bool:
    """Return whether a tool is one that asks."""
    return bool(getattr(tool, _APPROVAL, False))


def read_setup(
    tools: Sequence[Tool] | None,
    system: str | None,
    output_type: type | None,
    mcp: Sequence[str] | str | None,
    settings: Settings | None = None,
) -> Setup:
    """Return what was given, checked.

    Raises
    ------
    BadOption
        A value is none that the built-in agent can take.
    """
    for tool in tools or ():
        if not callable(tool):
            raise BadOption(f"a tool is a function, not {type(tool).__name__}; give functions")
    if system is not None and not isinstance(system, str):
        raise BadOption(f"system is a text (str), not {type(system).__name__}")
    if output_type is not None and not isinstance(output_type, type):
        raise BadOption(
            f"output_type is a class, such as a dataclass or a pydantic model, not {type(output_type).__name__}"
        )
    if not (settings is None or isinstance(settings, Mapping) or callable(settings)):
        raise BadOption(
            f"settings is a dict such as {{'temperature': 0}}, not {type(settings).__name__}"
        )
    servers = (mcp,) if isinstance(mcp, str) else tuple(mcp or ())
    for server in servers:
        if not isinstance(server, str) or not server.strip():
            raise BadOption("mcp is a command or a URL (str), or several of them")
    return Setup(tuple(tools or ()), system, output_type, servers, settings)


def local_file(path: str) -> Path:
    """Return the file of a user's own model."""
    return Path(path).expanduser().absolute()
