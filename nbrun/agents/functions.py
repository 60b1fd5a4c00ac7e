"""Plain functions as agents: async or not, returning or yielding.

An agent takes `()`, `(prompt)`, `(prompt, run)` or `(run)`; the argument named `run` gets the `RunContext`.
Sync functions run in a worker thread of their own, with the context copied, so `nbrun.current()`, prints and the
token work there. A cancel reaches them in three ways: they may check `run.token.cancelled`, `run.sleep()` wakes,
and after the grace period `Cancelled` is raised in the thread at its next bytecode.
"""

from __future__ import annotations

import functools
import inspect
import re
from contextlib import aclosing
from contextvars import copy_context
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nbrun.agents import (
    NO_NATIVE_CANCEL,
    AgentAdapter,
    AgentNotFound,
    EventData,
    Limitations,
    Output,
    RunContext,
    Worker,
    events,
    type_name,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


_ASYNC_NAME = re.compile(r"a?(run|call|invoke|stream|chat|forward|kickoff|query|generate|predict)(_\w+)?")
_RUN = "run"  # the argument that gets the context
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class PlainAdapter(AgentAdapter):
    """Drives any callable."""

    name = "function"
    limitations = Limitations(native_cancel=NO_NATIVE_CANCEL)

    def match(self, agent: object) -> bool:
        """Return whether it can be called; a class is not an agent, its instance may be."""
        return callable(agent) and not inspect.isclass(agent)

    def check(self, agent: object) -> None:
        """Raise `AgentNotFound` for a function that requires more than a prompt and a run."""
        _accepted(agent)

    def describe(self, agent: object) -> str:
        """Return how an object is run that isn't a function: a framework's, say, for which there is no adapter."""
        while isinstance(agent, functools.partial):
            agent = agent.func
        if inspect.isroutine(agent) or is_async(agent):
            return ""
        kind = type(agent)
        methods = [name for name in dir(kind) if _ASYNC_NAME.fullmatch(name) and _is_async_method(kind, name)]
        words = f"there is no adapter for {kind.__name__}: it is run as a sync function, by its __call__()"
        if not methods:
            return words
        return f"{words}; it also has {' and '.join(methods[:3])}, and an async function around it is cancelled at once"

    def label(self, agent: object) -> str:
        """Return the function's name."""
        name = getattr(agent, "__name__", "") or _function(agent).__name__
        return str(type(agent).__name__ if name == "__call__" else name)

    async def events(self, agent: object, prompt: str, run: RunContext) -> AsyncIterator[EventData | Output]:
        """Yield what the function yields as text, then what it returns."""
        call = _bind(agent, prompt, run)
        if is_async(agent):
            result = call()
        else:
            drive, label = functools.partial(_call_sync, call, run), self.label(agent)
            worker = Worker(run.run_id, drive, copy_context(), name=label, is_driver=True)
            run.add_work(worker)
            if words := self.describe(agent):
                run.log(words)
            result = await worker.result()
            run.drop_work(worker)  # a cancel from here on does not interrupt that thread
        # A decorator or a lambda around an async function is a plain function that returns one of these.
        # By their types: asking for the class of what it returns may run code of its own.
        if issubclass(type(result), AsyncGeneratorType):
            async with aclosing(result) as items:
                async for item in items:
                    yield _item(item)
        else:
            yield Output(await result if issubclass(type(result), CoroutineType) else result)


def _call_sync(call: Callable[[], Any], run: RunContext) -> object:
    result = call()
    if not issubclass(type(result), GeneratorType):
        return result
    while True:
        try:
            item = next(result)
        except StopIteration as end:
            return end.value
        run.send(_item(item))
        if run.token.cancelled:  # left here, as a cancel leaves an async one; its cleanup has the grace period
            result.close()
            run.token.raise_if_cancelled()


def _item(item: object) -> EventData:
    """Return a generator's item as an event: a `str` is text."""
    kind = type(item)
    if issubclass(kind, str):
        return events.TextDelta(item)  # type: ignore[arg-type]  # its type is known
    if issubclass(kind, EventData):
        return item  # type: ignore[return-value]
    raise TypeError(f"an agent must yield str, not {type_name(item)}; use run.emit(name, value) for data")


def is_async(agent: object) -> bool:
    """Return whether a call returns a coroutine or an async generator."""
    kind = _function(agent)
    return inspect.isasyncgenfunction(kind) or inspect.iscoroutinefunction(kind)


def _is_async_method(kind: type, name: str) -> bool:
    method = inspect.getattr_static(kind, name)
    is_named_so = name.startswith("a") or name.endswith("_async")  # a decorator may hide that it is
    return callable(method) and (is_named_so or is_async(method))


def _function(agent: object) -> Callable[..., Any]:
    """Return the function behind partials, or an object's `__call__`."""
    while isinstance(agent, functools.partial):
        agent = agent.func
    if inspect.isroutine(agent):
        return agent
    call: Callable[..., Any] = type(agent).__call__
    return call


# A signature costs 50 µs to read.
_known: WeakKeyDictionary[FunctionType, tuple[bool, object]] = WeakKeyDictionary()


def _accepted(agent: object) -> tuple[bool, object]:
    """Return whether it takes a prompt, and the kind of its `run` or None; `AgentNotFound` if it requires more."""
    if not callable(agent):
        raise AgentNotFound(f"{type_name(agent)} can't be used as an agent: it is not a function")
    if isinstance(agent, FunctionType) and (known := _known.get(agent)):
        return known
    try:
        parameters = list(inspect.signature(agent).parameters.values())
    except (TypeError, ValueError):  # some builtins have none: the prompt is the best guess
        return True, None
    others = [p for p in parameters if p.name != _RUN]
    positional = [p for p in others if p.kind in _POSITIONAL]
    keywords = [p for p in others if p.kind is p.KEYWORD_ONLY]
    missing = [p.name for p in (*positional[1:], *keywords) if p.default is p.empty]
    if missing:
        name = getattr(agent, "__name__", type_name(agent))
        raise AgentNotFound(
            f"{name}() can't be used as an agent: it also requires {', '.join(map(repr, missing))}. An agent takes "
            "(prompt), (prompt, run) or no arguments; bind the rest with functools.partial."
        )
    has_prompt = bool(positional) or any(p.kind is p.VAR_POSITIONAL for p in others)
    accepted = has_prompt, next((p.kind for p in parameters if p.name == _RUN), None)
    if isinstance(agent, FunctionType):
        _known[agent] = accepted
    return accepted


def _bind(agent: Any, prompt: str, run: RunContext) -> Callable[[], Any]:
    """Return the call of `agent` with the arguments that it accepts."""
    has_prompt, run_kind = _accepted(agent)
    args: list[object] = [prompt] if has_prompt else []
    if run_kind is None:
        return functools.partial(agent, *args)
    if run_kind is inspect.Parameter.POSITIONAL_ONLY:
        return functools.partial(agent, *args, run)
    return functools.partial(agent, *args, **{_RUN: run})


ADAPTER = PlainAdapter()
