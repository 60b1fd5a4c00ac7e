"""What a process has once stays apart in a real kernel: figures, input, output, and handlers made in the first cell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.cells import loaded, run_ok, value, wait_for_status
from tests.kernel.driver import Kernel

IMPORTS = """\
import contextlib, io, logging, os, subprocess, sys
from getpass import getpass
logging.basicConfig(level=logging.INFO, format="%(message)s")
log = logging.getLogger("tea")
"""

PAINTERS = """\
drawn, go_on = threading.Event(), threading.Event()

async def painter(prompt, run):
    import matplotlib.pyplot as plt
    plt.plot([1, 2, 3])
    drawn.set()
    while not go_on.is_set():
        await asyncio.sleep(0.01)
    plt.title("done")
    plt.savefig(picture := io.BytesIO(), format="png")
    run.artifact("plot.png", picture.getvalue())
    return f"{len(plt.gca().lines)} lines"

def logged(run, level):
    return [e.data.text for e in run.events() if e.type == "log" and e.data.level == level]
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel as a user has it, with its imports in a first cell, before nbrun."""
    with Kernel(tmp_path_factory.mktemp("globals"), env={"KETTLE_TOKEN": "tea-0123456789abcdef"}) as kernel:
        run_ok(kernel, IMPORTS)
        loaded(kernel)
        run_ok(kernel, PAINTERS)
        yield kernel


def test_no_cell_sees_a_runs_figure(kernel: Kernel) -> None:
    """Two painters, of which one imports pyplot first of all; cells end meanwhile, and draw something of their own."""
    run_ok(kernel, "one, two = nbrun.start(painter), nbrun.start(painter); drawn.wait(30)")
    cell = run_ok(kernel, "import matplotlib.pyplot as plt\nfigure, axes = plt.subplots(); axes.plot([3, 2])")
    images = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(images) == 1  # its own
    cell = run_ok(kernel, "plt.figure(); plt.close('all'); go_on.set(); one.wait(30), two.wait(30)")
    assert [output for output in cell.outputs if "image/png" in output.get("data", {})] == []
    assert value(kernel, "[(run.output, [a.name for a in run.artifacts]) for run in (one, two)]") == repr(
        [("1 lines", ["plot.png", "figure-1.png"])] * 2
    )
    assert value(kernel, "(len(axes.lines), plt.get_fignums())") == "(1, [])"


def test_input_is_a_question_while_the_kernel_is_idle_and_while_it_is_busy(kernel: Kernel) -> None:
    """Never a box under some cell, nor the end of the input; `getpass` from the imports cell included."""
    run_ok(
        kernel,
        "def asks(prompt): return input('Name: ')\n"
        "def asks_secretly(prompt): return len(getpass('Password: '))\n"
        "idle = nbrun.start(asks, name='idle')",
    )
    wait_for_status(kernel, "idle", "waiting")
    cell = run_ok(
        kernel,
        "busy, secret = nbrun.start(asks), nbrun.start(asks_secretly)\n"
        "while not (busy.pending and secret.pending): time.sleep(0.01)\n"
        "asked = [(run.pending[0].message, run.pending[0].input) for run in (idle, busy, secret)]\n"
        "for run in (idle, busy): run.approve(text=run.name)\n"
        "secret.approve(text='swordfish')\n"
        "asked + [run.result(30) for run in (idle, busy, secret)]",
    )
    expected = [("Name:", "text"), ("Name:", "text"), ("Password:", "secret"), "idle", "asks", 9]
    assert eval(cell.result or "") == expected  # noqa: S307 - of a kernel of ours
    assert value(kernel, "'swordfish' in str(secret.events())") == "False"


def test_an_agents_output_is_in_its_log_however_it_gets_there(kernel: Kernel) -> None:
    """By a handler of the imports cell, under `%%capture` of another cell; what only the system sees is explained."""
    run_ok(
        kernel,
        "begun, end = threading.Event(), threading.Event()\n"
        "def logs(prompt, run):\n"
        "    begun.set(); end.wait(30)\n"
        "    log.info('logged: tea-0123456789abcdef'); print('printed')\n"
        "    subprocess.run(['echo', 'from a subprocess'])\n"
        "    while len(logged(run_of_it, 'info')) < 1: run.sleep(0.01)\n"
        "run_of_it = nbrun.start(logs); begun.wait(30)",
    )
    cell = run_ok(kernel, "%%capture captured\nprint('the cell')\nend.set()\nassert run_of_it.wait(30)")
    assert (cell.stdout, cell.stderr) == ("from a subprocess\n", "")
    assert value(kernel, "captured.stdout") == repr("the cell\n")
    assert value(kernel, "(logged(run_of_it, 'stderr'), logged(run_of_it, 'stdout'))") == repr(
        (["logged: [KETTLE_TOKEN]"], ["printed"])
    )
    (note,) = eval(value(kernel, "logged(run_of_it, 'info')"))  # noqa: S307 - of a kernel of ours
    assert "with --on process it goes into the log of its run" in note


def test_an_agents_print_is_no_output_of_a_cell_in_its_history(kernel: Kernel) -> None:
    """IPython keeps there what is written to the streams while a cell runs."""
    run_ok(kernel, "async def prints(prompt): print('the agent')")
    cell = run_ok(kernel, "print('the cell'); nbrun.start(prints).result(30)")
    assert cell.stdout == "the cell\n"
    run_ok(kernel, "kept = str(get_ipython().history_manager.outputs)")
    assert value(kernel, "('the cell' in kept, 'the agent' in kept)") == "(True, False)"


def test_everything_is_the_kernels_again_after_an_unload(kernel: Kernel) -> None:
    """Within the cell that unloads it, and after it."""
    run_ok(kernel, "%unload_ext nbrun\nassert type(input).__name__ == 'method'")
    run_ok(kernel, "assert type(input).__name__ == 'method'")
    assert value(kernel, "type(get_ipython().kernel._sys_raw_input).__name__") == "'builtin_function_or_method'"
    assert value(kernel, "type(getpass).__name__") == "'method'"
