"""Cells that wait for their run: when they do, how they end, and what ■ Interrupt reaches."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator

import pytest

from tests.kernel.cells import error_line, run_ok, stored, value, wait_for_status, wait_for_text
from tests.kernel.driver import Execution, Kernel

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def kernel(shared_kernel: Kernel) -> Iterator[Kernel]:
    """The module's kernel; afterwards nothing is live in it."""
    yield shared_kernel
    run_ok(shared_kernel, "nbrun.session().cancel_all()\nfor run in nbrun.runs(): run.wait(5)")


def interrupt(kernel: Kernel, cell: Execution) -> float:
    """Interrupt, wait for the cell's end and return how long that took, in seconds."""
    began = time.monotonic()
    kernel.interrupt()
    cell.wait()
    return time.monotonic() - began


def test_a_headless_cell_waits_and_keeps_only_what_stays_in_the_file(kernel: Kernel) -> None:
    """Asked as nbclient asks, the cell ends with its run; its output is static and final."""
    cell = run_ok(kernel, "%%agentrun say -n waited\nhi", headless=True)
    record = stored(kernel.folder, "waited")
    assert record is not None
    assert record.status == "completed"  # in the store when the cell's reply was sent
    (output,) = cell.outputs
    assert WIDGET not in output["data"]
    assert "Completed" in output["data"]["text/plain"]
    assert "hi" in output["data"]["text/html"]


def test_a_headless_failure_makes_the_cell_fail(kernel: Kernel) -> None:
    """The cell raises in one line, after it has shown the run: an executor must not go on as if all were well."""
    cell = kernel.run("%%agentrun broken\nhi", headless=True)
    line = error_line(cell)
    assert line.startswith("RunFailed: ")
    assert "ValueError: the kettle is empty" in line
    assert "Failed" in cell.outputs[0]["data"]["text/plain"]
    late = kernel.run("%%agentrun endless --timeout 200ms\nhi", headless=True)
    assert error_line(late).startswith("RunCancelled: ")
    assert "Timed out" in error_line(late)


def test_noblock_and_the_environment_decide_over_the_front_end(kernel: Kernel) -> None:
    """`NBRUN_BLOCK` 1 and 0 force waiting and not waiting; `-a` and `-b` stand above it."""
    try:
        run_ok(kernel, "os.environ['NBRUN_BLOCK'] = '1'")
        assert "Completed" in str(run_ok(kernel, "%%agentrun say -o run\nhi").outputs)
        assert value(kernel, "run.done()") == "True"
        run_ok(kernel, "%%agentrun endless -a -o run\nhi")
        assert value(kernel, "run.done()") == "False"
        run_ok(kernel, "os.environ['NBRUN_BLOCK'] = '0'")
        run_ok(kernel, "%%agentrun endless -o run\nhi", headless=True)
        assert value(kernel, "run.done()") == "False"
        run_ok(kernel, "%%agentrun say -b -o run\nhi")
        assert value(kernel, "run.done()") == "True"
    finally:
        run_ok(kernel, "os.environ.pop('NBRUN_BLOCK', None)")
    run_ok(kernel, "%%agentrun endless -a -o run\nhi", headless=True)
    assert value(kernel, "run.done()") == "False"


def test_block_waits_behind_a_live_card(kernel: Kernel) -> None:
    """`--block` shows the live card and waits; a failed run makes the cell fail, in one line."""
    cell = run_ok(kernel, "%%agentrun soon --block -n seen\nhi")
    assert WIDGET in cell.outputs[0]["data"]
    record = stored(kernel.folder, "seen")
    assert record is not None
    assert record.status == "completed"
    assert error_line(kernel.run("%%agentrun broken --block\nhi")).startswith("RunFailed: ")


@pytest.mark.parametrize("headless", [False, True], ids=["notebook", "headless"])
def test_an_interrupt_cancels_the_waited_run_only(kernel: Kernel, headless: bool) -> None:
    """The cell ends at once with `KeyboardInterrupt`, its run as cancelled; the run beside it goes on."""
    run_ok(kernel, "%%agentrun endless -n beside -o beside\nhi")
    wait_for_text(kernel, "beside")
    cell = kernel.start(f"%%agentrun endless --block -n waited-{headless}\nhi", headless=headless)
    wait_for_text(kernel, f"waited-{headless}")
    assert not cell.is_done
    took_s = interrupt(kernel, cell)
    print(f"interrupt of a blocking cell: {took_s * 1000:.0f} ms")
    assert cell.error is not None
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert f"(waited-{headless}): Interrupted after " in error_line(cell)  # and no traceback of ours
    record = stored(kernel.folder, f"waited-{headless}")
    assert record is not None
    assert (record.status, record.cause) == ("cancelled", "interrupt")
    assert run_ok(kernel, "6 * 7").result == "42"
    assert value(kernel, "(str(beside.status), beside.cause)") == "('running', None)"


def test_an_interrupt_leaves_the_cell_with_its_agents_end(kernel: Kernel) -> None:
    """`KeyboardInterrupt` comes after the agent's end, however long its cleaning up took."""
    run_ok(
        kernel,
        "left = []\n"
        "async def cleans(prompt, run):\n"
        "    run.text('begun ')\n"
        "    try:\n"
        "        await asyncio.Event().wait()\n"
        "    finally:\n"
        "        await asyncio.sleep(0.4)\n"
        "        left.append(time.monotonic())\n"
        # In place of IPython's traceback, which may take longer to draw than all the rest.
        "def note(shell, kind, error, traceback, tb_offset=None):\n"
        "    left.append(time.monotonic())\n"
        "get_ipython().set_custom_exc((KeyboardInterrupt,), note)",
    )
    run_ok(kernel, "%%agentrun endless -n beside -o beside\nhi")
    cell = kernel.start("%%agentrun cleans --block -n cleans -o cleans_run\nhi")
    wait_for_text(kernel, "cleans")
    kernel.interrupt()
    cell.wait()
    run_ok(kernel, "get_ipython().set_custom_exc((), None)")
    agent_left_at, cell_left_at = ast.literal_eval(value(kernel, "left"))
    print(f"the interrupt after the agent's end: {(cell_left_at - agent_left_at) * 1000:.0f} ms")
    assert agent_left_at < cell_left_at
    assert value(kernel, "(str(cleans_run.status), cleans_run.record.detached)") == ("('cancelled', ())")
    assert value(kernel, "(str(beside.status), beside.cause)") == "('running', None)"


def test_an_interrupted_run_gets_its_grace(kernel: Kernel) -> None:
    """A run that does not stop holds the cell for its grace and no longer, and is named as still running."""
    run_ok(kernel, "freed.clear()")
    cell = kernel.start("%%agentrun stubborn --block -n mule\nhi")
    wait_for_text(kernel, "mule")
    took_s = interrupt(kernel, cell)
    assert took_s >= 2.0  # its grace, and its agent goes on
    assert cell.error is not None
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert "(mule): Interrupted after " in error_line(cell)
    record = wait_for_status(kernel, "mule", "cancelled")
    assert record.cause == "interrupt"
    assert record.detached
    run_ok(kernel, "freed.set()")


def test_an_interrupt_of_an_awaiting_cell_leaves_the_run_alive(kernel: Kernel) -> None:
    """`await run` ends promptly, though an interrupt acts only when the loop wakes; the run goes on."""
    run_ok(kernel, "%%agentrun endless -o long -n awaited\nhi")
    wait_for_text(kernel, "awaited")
    cell = kernel.start("print('waiting', flush=True)\nawait long")
    kernel.wait_until(lambda: "waiting" in cell.stdout)
    took_s = interrupt(kernel, cell)
    print(f"interrupt of `await run`: {took_s * 1000:.0f} ms")
    assert cell.error is not None
    assert cell.error["ename"] in ("KeyboardInterrupt", "CancelledError")
    assert value(kernel, "(str(long.status), long.cause)") == "('running', None)"
    run_ok(kernel, "long.cancel()\ntry:\n    await long\nexcept nbrun.errors.RunCancelled:\n    pass")


@pytest.mark.parametrize("code", ["%agentrun wait", "one.wait()", "one.result()"])
def test_an_interrupt_of_a_wait_leaves_the_runs_alive(kernel: Kernel, code: str) -> None:
    """Only the waiting ends, also where several runs are waited for."""
    for name in ("one", "two"):
        run_ok(kernel, f"%%agentrun endless -n {name} -o {name}\nhi")
    cell = kernel.start(f"print('waiting')\n{code}")  # seen 0.2 s later: it is in its wait by then
    kernel.wait_until(lambda: "waiting" in cell.stdout)
    took_s = interrupt(kernel, cell)
    print(f"interrupt of {code}: {took_s * 1000:.0f} ms")
    assert cell.error is not None
    assert cell.error["ename"] == "KeyboardInterrupt"
    if code.startswith("%"):
        assert error_line(cell).startswith("KeyboardInterrupt: 2 runs are still in progress")
    assert value(kernel, "(one.wait(0.2), two.done(), one.cause, two.cause)") == ("(False, False, None, None)")


def test_awaiting_gives_the_output_or_raises(kernel: Kernel) -> None:
    """`await run` in a cell gives the agent's own object, or shows the line of the agent, and how the run failed."""
    run_ok(kernel, "thing = object()\nasync def give(prompt): return thing")
    assert run_ok(kernel, "await nbrun.start(give) is thing").result == "True"
    error = kernel.run("await nbrun.start(broken)").error
    assert error is not None
    *_, line, reason = error["traceback"]
    assert line.strip() == 'raise ValueError("the kettle is empty")'
    assert reason.startswith("RunFailed: ")
    assert reason.endswith("ValueError: the kettle is empty")


def test_a_run_on_the_kernels_loop_is_never_waited_for_by_its_cell(kernel: Kernel) -> None:
    """`--loop kernel`: it goes on between cells, also headless; to wait by a block is refused, awaiting it works."""
    run_ok(
        kernel,
        "async def where(prompt):\n"
        "    await asyncio.sleep(0)\n"
        "    return threading.current_thread() is threading.main_thread()",
    )
    for headless in (False, True):
        run_ok(kernel, "%%agentrun where --loop kernel -o run\nhi", headless=headless)
        assert value(kernel, "await run") == "True"
    refused = error_line(kernel.run("%%agentrun where --loop kernel --block\nhi"))
    assert refused.startswith("BadOption: ")
    assert "leave out --block, and await the run" in refused
    run_ok(kernel, "%%agentrun endless --loop kernel -o run\nhi")
    assert "use: await run" in error_line(kernel.run("run.wait()"))
    assert "use: await run" in error_line(kernel.run("%agentrun wait"))
    run_ok(kernel, "%agentrun cancel")
    run_ok(kernel, "await run.cancel().settled()")
    assert value(kernel, "str(run.status)") == "'cancelled'"
