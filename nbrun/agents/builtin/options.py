"""Functions that the built-in agent uses, and files of its models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Tool = Callable[..., object]
F = TypeVar("F", bound=Tool)

_APPROVAL = "needs_approval"


def needs_approval(tool: F) -> F:
    """Have a function ask a person before the built-in agent uses it."""
    setattr(tool, _APPROVAL, True)
    return tool


def asks_first(tool: Tool) -> bool:
    """Return whether a tool is one that asks."""
    return bool(getattr(tool, _APPROVAL, False))


def local_file(path: str) -> Path:
    """Return the file of a user's own model."""
    return Path(path).expanduser().absolute()
