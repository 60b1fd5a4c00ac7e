"""The toolset `notebook` in a real kernel: what an agent sees of the notebook, and code that it runs there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.cells import error_line, run_ok, stored, value, wait_for_status
from tests.kernel.driver import Kernel
from tests.kernel.test_cancel import ask

# Uses a tool as the built-in agent does: from a thread of the run's, once the person has allowed it.
AGENT = """
tools = {tool.__name__: tool for tool in get_ipython().nbrun_extension.presenter.toolset("notebook")}

async def uses(prompt, run):
    name, _, value = prompt.partition(" ")
    with run.tool(name, value) as scope:
        given = [int(value)] if name == "read_cell" else [value] if value else []
        scope.result = await run.in_thread(tools[name], *given)
    return scope.result
"""


@pytest.fixture
def notebook(renewed_kernel: Kernel) -> Kernel:
    """A kernel with an agent that uses the tools."""
    run_ok(renewed_kernel, AGENT)
    return renewed_kernel


def call(kernel: Kernel, prompt: str) -> str:
    """Return what a tool tells the agent."""
    run_ok(kernel, f"%%agentrun uses -o used --no-interpolate\n{prompt}")
    return str(eval(value(kernel, "used.result(20)")))  # noqa: S307 - our own kernel's repr of a text


def test_an_agent_looks_at_the_notebook(notebook: Kernel) -> None:
    """Variables by name, type and size; a table by its schema and head; a cell by its code and output."""
    run_ok(notebook, "import pandas as pd\ncups, note = [1, 2], 'x' * 9_000")
    made = run_ok(notebook, "teas = pd.DataFrame({'tea': ['sencha', 'assam'], 'grams': [2, 3]})\nteas")
    assert made.reply is not None
    listed = call(notebook, "list_variables")
    assert "cups: list of length 2" in listed
    assert "teas: pandas.DataFrame of shape (2, 2)" in listed
    assert "asyncio" not in listed  # modules and functions are no data
    described = call(notebook, "describe_variable teas")
    assert "grams: int64" in described
    assert "sencha" in described
    assert len(call(notebook, "describe_variable note")) < 5_000
    assert "variable gone not found" in call(notebook, "describe_variable gone")
    cell = call(notebook, f"read_cell {made.reply['execution_count']}")
    assert cell.startswith("teas = pd.DataFrame(")
    assert "assam" in cell
    assert call(notebook, "read_cell 999") == "cell [999] not found"


def test_code_runs_in_the_namespace_between_cells(notebook: Kernel) -> None:
    """It waits for the cell that runs, says so, and then works on the notebook's own names, on the main thread."""
    run_ok(notebook, "import threading, time\ncups = 2")
    busy = notebook.start(
        "run = nbrun.start(uses, 'run_python cups += 1\\nthreading.current_thread()')\ntime.sleep(1.5)\nseen = cups"
    )
    busy.wait()
    assert busy.error is None
    assert "MainThread" in value(notebook, "run.result(20)")
    assert value(notebook, "(seen, cups)") == "(2, 3)"
    assert "waiting for the running cell to finish" in value(notebook, "run.record.log")


def test_what_code_shows_becomes_artifacts_and_its_error_is_told(notebook: Kernel) -> None:
    """A figure is kept with the run; what was printed and what went wrong reach the agent."""
    run_ok(notebook, "get_ipython().display_formatter.formatters['image/png'].for_type(complex, lambda _: b'\\x89PNG')")
    assert "shown to the user as figure-1.png" in call(notebook, "run_python 1j")
    assert value(notebook, "[made.name for made in used.artifacts]") == "['figure-1.png']"
    answer = call(notebook, "run_python print('steam')\n1 / 0")
    assert answer.startswith("steam")
    assert "ZeroDivisionError: division by zero" in answer
    assert "can't run top-level await" in call(notebook, "run_python await asyncio.sleep(0)")
    run_ok(notebook, "print('the kernel goes on')")


def test_a_cancel_interrupts_that_code_only(notebook: Kernel) -> None:
    """An endless loop of the agent's ends with its run; the cell after it is not touched."""
    code = "%%agentrun uses -n loops -o loops\nrun_python going = True\nwhile going: pass"
    run_ok(notebook, code)
    notebook.wait_until(lambda: bool((found := stored(notebook.folder, "loops")) and found.tools))
    # The main thread is in the agent's code now; a control message gets through all the same.
    record = stored(notebook.folder, "loops")
    assert record is not None
    click = {"op": "cancel", "nonce": "1", "run_id": record.run_id, "session_id": record.session_id}
    assert ask(notebook, click)["outcome"] == "requested"
    assert wait_for_status(notebook, "loops", "cancelled").detached == ()
    cell = run_ok(notebook, "import time\ntime.sleep(0.3)\nprint('untouched')")
    assert cell.stdout == "untouched\n"


@pytest.mark.parametrize(
    "waits",
    [
        "assert run.result() == '42'",
        "assert run.wait(20) and run.output == '42'",
        "assert await run == '42'",
        "assert (await asyncio.gather(run, asyncio.sleep(0)))[0] == '42'",
        "async for _ in run: pass",
        "%agentrun wait {run.number} --timeout 20",
    ],
)
def test_a_cell_that_waits_lends_its_thread(notebook: Kernel, waits: str) -> None:
    """In a cell that only waits for the run, its code runs at once; nobody would ever see its end else."""
    # In one cell with the start, so that the code can't run before the wait.
    run_ok(notebook, "import asyncio\ncups = 2\nrun = nbrun.start(uses, 'run_python cups * 21')\n" + waits)
    assert value(notebook, "run.output") == "'42'"


def test_a_blocking_cell_lends_its_thread(notebook: Kernel) -> None:
    """As a cell that waits for the run afterwards."""
    run_ok(notebook, "cups = 2")
    cell = run_ok(notebook, "%%agentrun uses -b -o used\nrun_python cups * 21")
    assert cell.error is None
    assert value(notebook, "used.output") == "'42'"


@pytest.mark.parametrize("waits", ["run.result()", "await run", "await asyncio.gather(run, asyncio.sleep(0))"])
def test_an_interrupt_of_that_code_ends_the_cell(notebook: Kernel, waits: str, tmp_path: Path) -> None:
    """■ is meant for the cell, too; the kernel goes on, and the agent is told."""
    begun = tmp_path / "begun"
    code = f"run_python open({str(begun)!r}, 'w').close()\nwhile True: time.sleep(0.05)"
    cell = notebook.start(f"import asyncio, time\nrun = nbrun.start(uses, {code!r})\n{waits}")
    notebook.wait_until(begun.exists)
    notebook.interrupt()
    cell.wait()
    assert cell.error is not None
    assert "KeyboardInterrupt" in value(notebook, "run.result(20)")


def test_the_toolset_is_named_and_others_are_refused(notebook: Kernel) -> None:
    """`--tools notebook` names four functions; one that is not there is one line."""
    run_ok(notebook, "%%agentrun --model local --tools notebook,say -o mine\nhello")
    run_ok(notebook, "mine.cancel(); mine.wait(20)")
    assert value(notebook, "mine.record.options['tools']") == (
        "['list_variables', 'describe_variable', 'read_cell', 'run_python', 'say']"
    )
    assert "no function of this name" in error_line(notebook.run("%%agentrun --model local --tools gone\nhi"))
    assert "no class of this name" in error_line(notebook.run("%%agentrun --model local --output Gone\nhi"))
