"""What can be run here: agents of the notebook, registered ones, kinds of agents and models; what each is missing."""

from __future__ import annotations

import inspect
import os
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING

from nbrun.agents import (
    AgentAdapter,
    adapters,
    builtin,
    find_adapter,
    framework_of,
    functions,
    limitations_of,
    registered,
    third_party,
)
from nbrun.core import UserError, visible

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence


_ABILITIES = {
    "text": "streamed text", "tools": "tools shown", "functions": "functions as tools",
    "sync_tools": "stopping sync tools", "approvals": "approvals", "edited_args": "edited arguments",
    "steering": "steering", "usage": "usage", "resume": "resume",
    "resume_elsewhere": "resume in another kernel", "thread": "--thread", "process": "--on process",
}  # fmt: skip
"""The fields of `Limitations`, in words; `native_cancel` has a line of its own."""

_PLAIN = (FunctionType, MethodType, BuiltinFunctionType, partial)


def agents_in(namespace: Mapping[str, object], hidden: Container[str]) -> dict[str, object]:
    """Return the agents of a namespace by name; only classes are looked at, and none of their code runs."""
    known: dict[type, bool] = {}
    found = {}
    for name, value in dict(namespace).items():  # another thread may be adding to it
        if name.startswith("_") or name in hidden:
            continue
        kind = type(value)
        if kind not in known:
            known[kind] = _can_run(value, kind)
        if known[kind]:
            found[name] = value
    return found


def agents_text(namespace: Mapping[str, object], hidden: Container[str], model: str) -> str:
    """Return what `%agentrun agents` prints; `model` is the one that the settings name, or nothing."""
    third_party.cache_clear()  # something may have been installed since
    named = registered()
    own = {
        name: value
        for name, value in agents_in(namespace, hidden).items()
        if all(value is not other for other in named.values())
    }
    chosen = model or builtin.configured(os.environ)
    return "\n".join(
        [
            "In this notebook, for %%agentrun NAME:",
            *_agent_lines(own, "none: a function of one argument, the prompt, is an agent"),
            "Registered by @nbrun.agent:",
            *_agent_lines(named, "none"),
            "Kinds of agents, and what they can't do:",
            *_kind_lines(),
            "Models, for %%agentrun --model MODEL (any provider:name of pydantic-ai is one):",
            *_model_lines(),
            f"Default model: {visible(chosen) if chosen else 'none; name an agent, or add --model'}",
        ]
    )


def _agent_lines(agents: Mapping[str, object], none: str) -> list[str]:
    rows = [(name, *_agent_words(name, agents[name])) for name in sorted(agents)]
    return _aligned(rows) if rows else [f"  {none}"]


def _agent_words(name: str, agent: object) -> tuple[str, str | None]:
    """Return what an agent is and, if it can't be run, why."""
    adapter = find_adapter(agent)
    if not isinstance(agent, FunctionType):  # to look closer might run its code
        words = functions.ADAPTER.describe(agent) if adapter is functions.ADAPTER else ""
        return f"{adapter.name}, {words or type(agent).__name__}", None
    try:
        adapter.check(agent)
    except UserError as error:
        return adapter.name, str(error).removeprefix(f"{name}() ")
    said = (agent.__doc__ or "").strip().partition("\n")[0]
    return f"{adapter.name}: {said}" if said else adapter.name, None


def _kind_lines() -> list[str]:
    rows: list[tuple[str, str, str | None]] = []
    for adapter in adapters():
        framework = framework_of(adapter)
        missing = None if framework is None else framework.install_hint
        first, *others = [missing] if missing else _limitation_lines(adapter)
        rows.append((str(adapter.name), first, missing))
        rows += [("", words, None) for words in others]
    return _aligned([*rows, *((name, "", words) for name, words in third_party().broken)])


def _limitation_lines(adapter: AgentAdapter) -> list[str]:
    """Return what an adapter can't do, one line for each reason, and how it is cancelled."""
    limitations = limitations_of(adapter)
    if limitations is None:
        return ["its limitations are not known"]
    reasons: dict[str, list[str]] = {}
    for field, words in _ABILITIES.items():
        if why := getattr(limitations, field):
            reasons.setdefault(why, []).append(words)
    lines = [f"no {', '.join(what)}: {why}" for why, what in reasons.items()]
    if limitations.native_cancel:
        lines.append(f"Cancel: {limitations.native_cancel}")
    return lines or ["no limitations"]


def _model_lines() -> list[str]:
    choices = builtin.model_choices(os.environ)
    return _aligned([(choice.model, choice.description, choice.problem) for choice in choices])


def _aligned(rows: Sequence[tuple[str, str, str | None]]) -> list[str]:
    """Return rows of a name, words and a problem as lines; one without a name belongs to the row before."""
    from nbrun.store.diagnosis import MARKS, Sign  # imported here to keep loading quick

    width = min(40, max(len(name) for name, _words, _problem in rows))
    marks = [MARKS[Sign.PROBLEM if problem else Sign.OK] if name else " " for name, _, problem in rows]
    return [
        f"  {mark} {visible(name):<{width}}  {visible(problem or words)}"
        for mark, (name, words, problem) in zip(marks, rows, strict=True)
    ]


def _can_run(value: object, kind: type) -> bool:
    """Return whether an adapter takes objects of this class."""
    if issubclass(kind, _PLAIN):
        return True
    if issubclass(kind, type) or kind.__module__ == "builtins" or _acts_when_looked_at(kind):
        return False
    try:
        find_adapter(value)
    except UserError:
        return False
    return True


def _acts_when_looked_at(kind: type) -> bool:
    """Return whether even `isinstance()` runs code of this class, such as a lazy import or a proxy."""
    return (
        inspect.getattr_static(kind, "__getattribute__") is not object.__getattribute__
        or inspect.getattr_static(kind, "__class__") is not object.__dict__["__class__"]
    )
