"""Plain functions as agents: async or not, returning or yielding.

An agent takes `()`, `(prompt)`, `(prompt, run)` or `(run)`; the argument named `run` gets the `RunContext`.
Sync functions run in a worker thread of their own, with the context copied, so that `nbrun.current()`,
prints and the token work there. A cancel reaches them three ways: they may look at `run.token.cancelled`,
`run.sleep()` wakes, and after the grace `Cancelled` is raised in the thread at its next bytecode.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import aclosing
from contextvars import copy_context
from types import FunctionType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import msgspec

from nbrun.agents import (
    NO_NATIVE_CANCEL,
    AgentNotFound,
    EventData,
    Lacks,
    Output,
    RunContext,
    Worker,
    clean_text,
    events,
    type_name,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


_RUN = "run"  # the argument that gets the context
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class PlainAdapter:
    """Drives any callable."""

    name = "function"
    lacks = Lacks(native_cancel=NO_NATIVE_CANCEL)

    def match(self, agent: object) -> bool:
        """Return whether it can be called; a class is no agent, its instance may be."""
        return callable(agent) and not inspect.isclass(agent)

    def check(self, agent: object) -> None:
        """Raise `AgentNotFound` for a function that wants more than a prompt and a run."""
        _wants(agent)

    def label(self, agent: object) -> str:
        """Return the function's name."""
        target = _function(agent)
        own = getattr(agent, "__name__", None)
        return str(
            own or (type(agent).__name__ if target.__name__ == "__call__" else target.__name__)
        )

    async def events(
        self, agent: object, prompt: str, run: RunContext
    ) -> AsyncIterator[EventData | Output]:
        """Yield what the function yields as text, then what it returns."""
        call = _bind(agent, prompt, run)
        if is_async(agent):
            result = call()
        else:
            drive = functools.partial(_call_sync, call, run)
            worker = Worker(
                run.run_id, drive, copy_context(), name=self.label(agent), is_driver=True
            )
            run.add_work(worker)
            result = await worker.result()
            run.drop_work(worker)  # so that a cancel from here on is none of a thread
        # A decorator or a lambda around an async function is a plain function that returns one of these.
        if inspect.isasyncgen(result):
            async with aclosing(result) as items:
                async for item in items:
                    yield _item(item)
        else:
            yield Output(await result if inspect.iscoroutine(result) else result)


def _call_sync(call: Callable[[], Any], run: RunContext) -> object:
    result = call()
    if not inspect.isgenerator(result):
        return result
    while True:
        try:
            item = next(result)
        except StopIteration as end:
            return end.value
        run.send(_item(item))


def _item(item: object) -> EventData:
    """Return what a generator's item is in the log: a `str` is text, an event itself."""
    match item:
        case str():
            return events.TextDelta(clean_text(item))
        case EventData():
            return item
        case _:
            raise TypeError(
                f"an agent yields text (str), not {type_name(item)}; use run.emit(name, value) for data"
            )


def is_async(agent: object) -> bool:
    """Return whether calling it makes a coroutine or an async generator."""
    kind = _function(agent)
    return inspect.isasyncgenfunction(kind) or inspect.iscoroutinefunction(kind)


def _function(agent: object) -> Callable[..., Any]:
    """Return what decides the kind of a callable: below partials, and an object's `__call__`."""
    while isinstance(agent, functools.partial):
        agent = agent.func
    if inspect.isroutine(agent):
        return agent
    call: Callable[..., Any] = type(agent).__call__
    return call


class _Wants(msgspec.Struct, frozen=True):
    """What a function asks for."""

    prompt: bool
    run: inspect._ParameterKind | None


# A signature costs 50 µs to read.
_known: WeakKeyDictionary[FunctionType, _Wants] = WeakKeyDictionary()


def _wants(agent: object) -> _Wants:
    """Return what a callable asks for.

    Raises
    ------
    AgentNotFound
        It asks for more than a prompt and a run.
    """
    if not callable(agent):
        raise AgentNotFound(f"{type_name(agent)} cannot be run: it is no function")
    if isinstance(agent, FunctionType) and (known := _known.get(agent)):
        return known
    try:
        parameters = list(inspect.signature(agent).parameters.values())
    except (TypeError, ValueError):  # some builtins have none: the prompt is the best guess
        return _Wants(prompt=True, run=None)
    others = [p for p in parameters if p.name != _RUN]
    positional = [p for p in others if p.kind in _POSITIONAL]
    keywords = [p for p in others if p.kind is p.KEYWORD_ONLY]
    missing = [p.name for p in (*positional[1:], *keywords) if p.default is p.empty]
    if missing:
        raise AgentNotFound(
            f"{getattr(agent, '__name__', type_name(agent))}() cannot be run: it wants {', '.join(missing)}; "
            "an agent takes (prompt), (prompt, run) or nothing. Give the rest with functools.partial"
        )
    wants = _Wants(
        prompt=bool(positional) or any(p.kind is p.VAR_POSITIONAL for p in others),
        run=next((p.kind for p in parameters if p.name == _RUN), None),
    )
    if isinstance(agent, FunctionType):
        _known[agent] = wants
    return wants


def _bind(agent: Any, prompt: str, run: RunContext) -> Callable[[], Any]:
    """Return the call of `agent` with what it asks for."""
    wants = _wants(agent)
    args: list[object] = [prompt] if wants.prompt else []
    if wants.run is None:
        return functools.partial(agent, *args)
    if wants.run is inspect.Parameter.POSITIONAL_ONLY:
        return functools.partial(agent, *args, run)
    return functools.partial(agent, *args, **{_RUN: run})


ADAPTER = PlainAdapter()
