"""Interrupts at random moments of a waiting cell: whatever they hit, nothing is left behind."""

from __future__ import annotations

import ast
import random
import time
from collections import Counter
from typing import Any

import pytest

from tests.kernel.cells import run_ok, value
from tests.kernel.driver import Execution, Kernel

WIDGET = "application/vnd.jupyter.widget-view+json"
STORMS = 50
STEPS_S = 0.15
"""Starting, showing and beginning to wait take some 50 ms; later an interrupt hits the wait."""
AGAIN_S = 1.0

OPEN_FILES = 4
"""IPython opens its history's journal when it likes, and ØMQ an eventfd for a thread that first sends."""

COUNTS = """\
import gc, psutil
from comm import get_comm_manager
def counts():
    get_ipython().nbrun_extension.presenter.close_widgets()  # of the widgets of cards that were on display
    tasks = [o for o in gc.get_objects() if isinstance(o, asyncio.Task) and not o.done()]
    return {
        'threads': sorted(thread.name for thread in threading.enumerate()),
        'tasks': sorted(task.get_coro().__qualname__ for task in tasks),
        'files': psutil.Process().num_fds(),
        'comms': len(get_comm_manager().comms),
    }
"""


def storm(kernel: Kernel, cell: Execution, moment_s: float) -> None:
    """Interrupt a cell that long after its beginning, and again while it has not ended."""
    kernel.wait_until(lambda: bool(cell.messages))  # its "busy"
    due = time.monotonic() + moment_s
    while not cell.is_done:
        kernel.wait_until(lambda: cell.is_done or time.monotonic() > due)  # noqa: B023 - at once
        if not cell.is_done:
            kernel.interrupt()
        due = time.monotonic() + AGAIN_S


def wait_for_end_on_card(kernel: Kernel, cell: Execution) -> None:
    """Wait until the card that is on display, if one is, has been told how its run ended."""
    for output in cell.outputs:
        if view := output.get("data", {}).get(WIDGET):
            kernel.wait_until(lambda: knows_end(kernel, view["model_id"]))


def knows_end(kernel: Kernel, comm_id: str) -> bool:
    """Return whether the kernel has sent this card a state that is an end."""
    sent = [m["content"]["data"] for m in kernel.comms if m["content"]["comm_id"] == comm_id]
    runs = [data.get("state", {}).get("run") for data in sent]
    return any(run is not None and not run["live"] for run in runs)


def counts(kernel: Kernel) -> dict[str, Any]:
    """Return the kernel's threads and tasks by name, and how many files and comms it has open."""
    found: dict[str, Any] = ast.literal_eval(value(kernel, "counts()"))
    return found


@pytest.mark.parametrize("kernel", ["python3", "6.30"], indirect=True)
def test_interrupts_at_any_moment_leave_nothing_behind(loaded_kernel: Kernel) -> None:
    """After 50 of them: no run is live, no thread, task, file or comm is more, every card shows an end."""
    kernel = loaded_kernel
    run_ok(kernel, COUNTS)
    wait_for_end_on_card(kernel, run_ok(kernel, "%%agentrun soon -b\nhi"))
    run_ok(kernel, "%agentrun")
    before = counts(kernel)
    for seed in range(STORMS):
        cell = kernel.start(f"%%agentrun endless -b -n storm{seed}\nhi")
        storm(kernel, cell, random.Random(seed).uniform(0, STEPS_S))  # noqa: S311 - no secret
        assert cell.error is not None
        assert value(kernel, "len(nbrun.session().live_runs)") == "0", f"seed {seed}"
        wait_for_end_on_card(kernel, cell)
    after = counts(kernel)
    assert after.pop("files") <= before.pop("files") + OPEN_FILES  # a leak would be of 50
    assert after["comms"] <= before["comms"]
    for kind in ("threads", "tasks"):  # the kernel's own come and go: none may have come to stay
        assert not Counter(after[kind]) - Counter(before[kind]), kind
    assert run_ok(kernel, "6 * 7").result == "42"
