"""The code of a cell as an agent: async Python in the notebook's namespace (`--python`)."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any

from nbrun.agents import NO_NATIVE_CANCEL, AgentAdapter, BadOption, EventData, Limitations, Output, RunContext

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


TARGET = "--python"
"""The target of a run whose agent is its cell's code."""
_FILENAME = "<agent cell>"


class PythonCell:
    """The namespace in which to run the prompt as code; the output is the value of its last expression.

    It runs on the host's loop, so top-level `await` works and the kernel stays free.
    """

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace


class CellAdapter(AgentAdapter):
    """Drives a `PythonCell`; the prompt is its code."""

    name = "python"
    limitations = Limitations(native_cancel=NO_NATIVE_CANCEL)

    def match(self, agent: object) -> bool:
        """Return whether it is a cell."""
        return isinstance(agent, PythonCell)

    async def events(self, agent: object, prompt: str, run: RunContext) -> AsyncIterator[EventData | Output]:
        """Run the code; yield the value of its last expression."""
        assert isinstance(agent, PythonCell)  # noqa: S101 - match() said so
        namespace = agent.namespace
        tree = ast.parse(prompt, _FILENAME)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        await _run(compile(tree, _FILENAME, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), namespace)
        if isinstance(last, ast.Expr):
            code = compile(ast.Expression(last.value), _FILENAME, "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            yield Output(await _run(code, namespace))


async def _run(code: Any, namespace: dict[str, Any]) -> object:
    value = eval(code, namespace)  # noqa: S307 - the user's own cell, as any cell is run
    return await value if code.co_flags & inspect.CO_COROUTINE else value


def check_code(code: str) -> None:
    """Raise `BadOption` for invalid Python, before a run is created."""
    try:
        compile(code, _FILENAME, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as error:
        raise BadOption(f"the cell is not valid Python (line {error.lineno}: {error.msg})") from None


ADAPTER = CellAdapter()
