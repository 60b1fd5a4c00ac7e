"""A cell's own text as an agent: async Python in the notebook's namespace."""

from __future__ import annotations

import pytest

import nbrun
from nbrun import NotebookSession, RunStatus
from nbrun.agents.python_cell import PythonCell, check_code
from nbrun.core.errors import BadOption
from tests.fakes.agents import BOUND_S


def test_the_value_is_that_of_the_last_expression(session: NotebookSession) -> None:
    """Names of the notebook are seen, `await` works at the top, and what is set stays set."""
    namespace = {"nbrun": nbrun, "base": 40}
    code = "import asyncio\nawait asyncio.sleep(0)\nadded = base + 2\nadded"
    run = session.start(PythonCell(namespace), code)
    assert run.result(BOUND_S) == 42
    assert namespace["added"] == 42
    assert run.name == "python"


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("", None),
        ("x = 1", None),
        ("1\n2", 2),
        ("await nbrun.session_like()", "awaited"),
        ("nbrun.current().run_id", "run-seq-0"),
        ("# only a comment", None),
    ],
)
def test_small_cells(session: NotebookSession, code: str, output: object) -> None:
    """Without a last expression there is no output."""

    class Space:
        """Stands for the package in the cell."""

        current = staticmethod(nbrun.current)

        @staticmethod
        async def session_like() -> str:
            """Be awaited."""
            return "awaited"

    assert session.start(PythonCell({"nbrun": Space}), code).result(BOUND_S) == output


def test_an_error_in_a_cell_fails_the_run(session: NotebookSession) -> None:
    """With its message and a traceback that names the cell."""
    run = session.start(PythonCell({}), "x = 1\nx / 0")
    assert run.wait(BOUND_S)
    assert (run.status, run.error and run.error.type) == (RunStatus.FAILED, "ZeroDivisionError")
    assert run.error is not None
    assert "<agent cell>" in run.error.traceback


def test_a_cell_can_be_cancelled(session: NotebookSession) -> None:
    """It runs as a task: a cancel ends it where it awaits."""
    run = session.start(PythonCell({}), "import asyncio\nawait asyncio.Event().wait()")
    assert run.cancel().wait(BOUND_S)
    assert run.status is RunStatus.CANCELLED


def test_bad_code_is_one_line_before_a_run_is_made() -> None:
    """The message names the line."""
    check_code("await thing()\nx = 1")
    with pytest.raises(BadOption, match="not valid Python \\(line 2"):
        check_code("x = 1\nx = = 2")
