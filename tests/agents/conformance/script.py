"""What an agent does in a scenario, told so that every kind of agent can be made to do it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

RESULTS = "{results}"
"""A word that stands for what the tools have given so far."""
HEARD = "{heard}"
"""A word that stands for what people have said to the agent while it ran."""

Tool = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """A tool that the agent calls: a function of `tools.py`, or one like it.

    Parameters
    ----------
    asks : whether a person has to allow it.
    """

    tool: Tool
    args: dict[str, Any] = field(default_factory=dict)
    asks: bool = False

    @property
    def name(self) -> str:
        """The function's name, by which a model calls it."""
        return self.tool.__name__

    @property
    def is_async(self) -> bool:
        """Whether it is an async function."""
        return inspect.iscoroutinefunction(self.tool)


@dataclass(frozen=True)
class Turn:
    """What the agent's model says at a time: words, one delta each, then its calls; the first one without is the last.

    Parameters
    ----------
    stalls : whether it then says nothing more, and does not end either.
    fails : what it raises then, if anything.
    """

    words: Sequence[str] = ()
    calls: Sequence[Call] = ()
    stalls: bool = False
    fails: str = ""


@dataclass(frozen=True)
class Script:
    """The turns of an agent, in order."""

    turns: tuple[Turn, ...]

    @property
    def calls(self) -> dict[str, Call]:
        """Its calls, one a tool, by the tool's name."""
        return {call.name: call for turn in self.turns for call in turn.calls}


def script(*turns: Turn) -> Script:
    """Return a script of these turns."""
    return Script(turns)


def filled(word: str, results: Sequence[object], heard: Sequence[str]) -> str:
    """Return a word with what it stands for."""
    return word.replace(RESULTS, " | ".join(map(str, results))).replace(HEARD, " | ".join(heard))


def call_id(turn: int, number: int) -> str:
    """Return the id by which the model calls the tool of that number in that turn."""
    return f"call-{turn}-{number}"
