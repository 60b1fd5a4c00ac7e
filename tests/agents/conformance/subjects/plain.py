"""Plain functions, async or not, generators or not, and a cell of Python."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import nbrun
from nbrun import RunContext
from nbrun.agents.python_cell import PythonCell
from tests.agents.conformance import tools
from tests.agents.conformance.script import Call, Script, Turn, filled
from tests.agents.conformance.subject import Subject


class _Memory:
    """How far an agent has come, over the end of its run."""

    def __init__(self, run: RunContext) -> None:
        state: Any = run.restored or {"turn": 0, "results": []}
        self.turn: int = state["turn"]
        self.results: list[object] = state["results"]
        self.heard: list[str] = []
        self._run = run

    def turns(self, script: Script) -> Iterator[Turn]:
        """Yield the turns that are left; what has been done is kept when the next one is asked for."""
        for turn in script.turns[self.turn :]:
            self._run.begin_turn()
            self._run.usage(input_tokens=7, output_tokens=max(1, len(turn.words)), requests=1)
            self.heard += self._run.inbox.take()
            yield turn
            self.turn += 1
            self._run.checkpoint({"turn": self.turn, "results": self.results})

    def filled(self, word: str) -> str:
        """Return a word with what it stands for."""
        return filled(word, self.results, self.heard)


async def performed(script: Script, run: RunContext) -> AsyncIterator[str]:
    """Follow the script; yield its words."""
    memory = _Memory(run)
    for turn in memory.turns(script):
        for word in turn.words:
            yield memory.filled(word)
        if turn.stalls:
            await asyncio.Event().wait()
        if turn.fails:
            raise ValueError(turn.fails)
        for call in turn.calls:
            memory.results.append(await _called(call, run))


async def _called(call: Call, run: RunContext) -> object:
    args: Any = call.args
    if call.asks:
        answer = await run.approve_tool(call.name, args)
        if not answer:
            return f"denied: {answer.text}"
        args = answer.args
    with run.tool(call.name, args) as scope:
        if call.is_async:
            scope.result = await call.tool(**args)
        else:
            scope.result = await run.in_thread(call.tool, **args)
    return scope.result


def performed_in_thread(script: Script, run: RunContext) -> Generator[str, None, None]:
    """Follow the script in a thread; yield its words."""
    memory = _Memory(run)
    for turn in memory.turns(script):
        for word in turn.words:
            yield memory.filled(word)
        if turn.stalls:
            run.sleep(tools.FOR_EVER_S)
        if turn.fails:
            raise ValueError(turn.fails)
        for call in turn.calls:
            memory.results.append(_called_in_thread(call, run))


def _called_in_thread(call: Call, run: RunContext) -> object:
    args: Any = call.args
    if call.asks:
        answer = run.ask_sync(f"Use {call.name}?", args=args, tool=call.name)
        if not answer:
            return f"denied: {answer.text}"
        args = answer.args
    with run.tool(call.name, args) as scope:
        scope.result = _IN_THREAD.get(call.name, lambda: _at_once(call, args))()
    return scope.result


def _at_once(call: Call, args: Any) -> object:
    """Call a tool; an async one that waits for nothing."""
    result = call.tool(**args)
    if not call.is_async:
        return result
    try:
        result.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError(f"{call.name} waits, in a thread")


def _waits() -> str:
    run = nbrun.current()
    run.emit(tools.ENTERED)
    try:
        run.sleep(tools.FOR_EVER_S)
    finally:
        run.emit(tools.LEFT)
    return "waited"


def _waits_at_first() -> str:
    return "went on" if nbrun.current().restored is not None else _waits()


def _listens() -> str:
    nbrun.current().ask_sync("Go on?")
    return "listened"


_IN_THREAD: dict[str, Callable[[], str]] = {"waits": _waits, "waits_at_first": _waits_at_first, "listens": _listens}
"""What takes the place of an async tool that waits, in a thread."""


class AsyncFunction(Subject):
    """`async def agent(prompt, run)`."""

    name = "async def"

    def agent(self, script: Script) -> Any:
        """Return the function."""

        async def poet(prompt: str, run: RunContext) -> None:
            async for word in performed(script, run):
                run.text(word)

        return poet


class AsyncGenerator(Subject):
    """`async def agent(prompt, run)` that yields."""

    name = "async generator"

    def agent(self, script: Script) -> Any:
        """Return the function."""

        async def poet(prompt: str, run: RunContext) -> AsyncIterator[str]:
            async for word in performed(script, run):
                yield word

        return poet


class SyncFunction(Subject):
    """`def agent(prompt, run)`."""

    name = "sync function"

    def agent(self, script: Script) -> Any:
        """Return the function."""
        kernel = os.getpid()

        def poet(prompt: str, run: RunContext) -> None:
            # A process of its own gives it the main thread, where signals are handled.
            name = "nbrun-agent-" if os.getpid() == kernel else "MainThread"
            assert threading.current_thread().name.startswith(name)
            for word in performed_in_thread(script, run):
                run.text(word)

        return poet


class SyncGenerator(Subject):
    """`def agent(prompt, run)` that yields."""

    name = "sync generator"

    def agent(self, script: Script) -> Any:
        """Return the function."""

        def poet(prompt: str, run: RunContext) -> Iterator[str]:
            yield from performed_in_thread(script, run)

        return poet


class Cell(Subject):
    """The text of a cell, `%%agentrun --python`."""

    name = "python cell"

    def agent(self, script: Script) -> Any:
        """Return the cell, in a namespace of its own."""
        return PythonCell({"script": script})

    def prompt(self, script: Script) -> str:
        """Return its text."""
        return f"""
import nbrun
from {__name__} import performed
run = nbrun.current()
async for word in performed(script, run):
    run.text(word)
"""


SUBJECTS = (AsyncFunction(), AsyncGenerator(), SyncFunction(), SyncGenerator(), Cell())
