"""An agent as bytes, so that it can be driven in another process."""

from __future__ import annotations

import functools
import inspect
import pickle
import sys
from types import FunctionType, MethodType
from typing import TYPE_CHECKING

from nbrun.core import BadOption, type_name

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 8
"""How deep to look for the part of an agent that cannot be pickled."""


def pack(agent: object) -> bytes:
    """Return the agent as bytes; raise `BadOption` if it holds something that exists only in this process.

    What the notebook defines goes by value, with only the globals that it uses; what a module defines is imported
    again.
    """
    import cloudpickle  # with the first run that needs it

    try:
        return bytes(cloudpickle.dumps(agent))
    except Exception as error:  # an object's own __reduce__ or __getstate__ may raise anything
        raise BadOption(_refusal(agent, error)) from None


def unpack(pickled: bytes) -> object:
    """Return the agent; its own modules are imported here."""
    return pickle.loads(pickled)  # noqa: S301 - our own kernel has sent it, over a private socket


def _refusal(agent: object, error: Exception) -> str:
    what = _name(agent)
    culprit = _culprit(agent, what, set(), MAX_DEPTH)
    why = (
        f"{culprit} cannot be pickled"
        if culprit
        else f"it cannot be pickled ({' '.join(str(error).split()) or type_name(error)})"
    )
    return f"'{what}' cannot go to another process: {why}; make it inside the agent, or leave out --on process"


def _name(agent: object) -> str:
    """Return the name of an agent; of a method with its class, for `run` alone would say little."""
    name = getattr(agent, "__name__", None)
    if not isinstance(name, str):
        return type_name(agent)
    if not isinstance(agent, MethodType):
        return name
    owner = agent.__self__
    return f"{(owner if isinstance(owner, type) else type(owner)).__name__}.{name}"


def _culprit(value: object, path: str, seen: set[int], depth: int) -> str | None:
    """Return the name and type of the innermost part that cannot be pickled."""
    if id(value) in seen or depth == 0:
        return None
    seen.add(id(value))
    for name, part in _parts(value):
        if not _can_be_pickled(part):
            return _culprit(part, name, seen, depth - 1) or f"'{name}' ({type_name(part)})"
    return None


def _can_be_pickled(value: object) -> bool:
    import cloudpickle

    try:
        cloudpickle.dumps(value)
    except Exception:  # whatever its own code raises
        return False
    return True


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """Yield the named parts that would be pickled along with a value."""
    if isinstance(value, functools.partial):
        yield "its function", value.func
        yield from ((f"argument {number}", part) for number, part in enumerate(value.args, 1))
        yield from value.keywords.items()
    elif isinstance(value, MethodType):
        yield "self", value.__self__
    elif isinstance(value, FunctionType):
        used = inspect.getclosurevars(value)
        yield from used.nonlocals.items()
        yield from used.globals.items()
        yield from ((f"a default of {value.__name__}", part) for part in value.__defaults__ or ())
    elif isinstance(value, dict):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"item {number}", part) for number, part in enumerate(value))
    elif type(value).__module__ not in sys.stdlib_module_names:
        yield from getattr(value, "__dict__", {}).items()
