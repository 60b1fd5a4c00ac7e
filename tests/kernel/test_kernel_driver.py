"""The driver of the kernel tests, on cells that need no nbrun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.driver import Kernel


@pytest.mark.parametrize("kernel", ["python3", "6.30", "7.4"], indirect=True)
def test_cells_run_fail_and_are_interrupted(kernel: Kernel) -> None:
    """Results, prints and errors are told apart, and an interrupt ends a blocked cell."""
    cell = kernel.run("print('a'); 1 + 1")
    assert (cell.stdout, cell.result, cell.error) == ("a\n", "2", None)
    failed = kernel.run("1 / 0").error
    assert failed is not None
    assert failed["ename"] == "ZeroDivisionError"

    blocked = kernel.start("import time; print('in', flush=True)\nfor _ in range(60): time.sleep(1)")
    kernel.wait_until(lambda: "in" in blocked.stdout)
    assert kernel.control("kernel_info_request", {})["status"] == "ok"
    assert not blocked.is_done
    kernel.interrupt()
    error = blocked.wait().error
    assert error is not None
    assert error["ename"] == "KeyboardInterrupt"


def test_a_killed_kernel_is_replaced(kernel: Kernel) -> None:
    """SIGKILL and restart each leave a new process with an empty namespace, in the same folder."""
    kernel.run("x = 1; open('kept', 'w').close()")
    pids = [kernel.pid]
    kernel.kill()
    kernel.restart()
    pids.append(kernel.pid)
    kernel.restart()
    pids.append(kernel.pid)
    assert len(set(pids)) == 3
    assert kernel.run("import os; 'x' in dir(), os.path.exists('kept')").result == "(False, True)"


def test_requests_look_as_those_of_lab_or_of_nbclient(kernel: Kernel) -> None:
    """A cell has an id and standard input as in Lab, or neither, as in nbclient."""
    asks = "p = get_ipython().get_parent(); p['metadata'].get('cellId'), p['content']['allow_stdin']"
    assert kernel.run(asks, cell_id="abc").result == "('abc', True)"
    assert kernel.run(asks, headless=True).result == "(None, False)"


def test_a_version_names_its_kernel(start_kernel: Callable[..., Kernel]) -> None:
    """A kernel that is asked for by version has it, and imports nbrun from this checkout."""
    asks = "import ipykernel, nbrun; print(ipykernel.__version__, nbrun.__path__[0])"
    version, path = start_kernel("6.30").run(asks).stdout.split(maxsplit=1)
    assert version.startswith("6.30.")
    assert Path(path.strip()) == Path(__file__).parents[2] / "nbrun"
