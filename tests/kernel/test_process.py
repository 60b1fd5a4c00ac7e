"""Runs in processes of their own, from a real kernel: a cell's agent goes there, and nothing outlives the kernel."""

from __future__ import annotations

import os
import time

import psutil

from tests.kernel.cells import error_line, run_ok, stored, value, wait_for_text
from tests.kernel.driver import Kernel


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, waited for by its parent or not."""
    try:
        return str(psutil.Process(pid).status()) == "zombie"
    except psutil.NoSuchProcess:
        return True


def test_a_cells_agent_runs_in_a_process_of_its_own(renewed_kernel: Kernel) -> None:
    """`--on process` runs a function of the notebook there, in its folder; its prints are in its own run's log."""
    kernel = renewed_kernel
    run_ok(
        kernel,
        "base = 40\n"
        "def helper(n): return base + n\n"
        "async def agent(prompt):\n"
        "    print('printed', prompt)\n"
        "    return [helper(2), os.getpid(), os.getcwd()]",
    )
    cell = run_ok(kernel, "%%agentrun agent --on process -b -o run -n there\ntea")
    assert "printed" not in cell.stdout
    record = stored(kernel.folder, "there")
    assert record is not None
    assert record.options["on"] == "process"
    pid = value(kernel, "os.getpid()")
    answer = value(kernel, "run.output")
    assert answer.startswith("[42, ")
    assert pid not in answer
    assert str(os.path.realpath(kernel.folder)) in answer
    assert "printed tea" in value(kernel, "[e.data.text for e in run.events() if e.type == 'log']")


def test_what_cannot_go_is_one_line(renewed_kernel: Kernel) -> None:
    """An agent that uses what exists only in the kernel is refused in one line that names it; no run is made."""
    kernel = renewed_kernel
    line = error_line(kernel.run("%%agentrun tidy --on process -n refused\nhi"))
    assert "'tidy' cannot go to another process: 'freed' (threading.Event) cannot be pickled" in line
    assert "leave out --on process" in line
    assert stored(kernel.folder, "refused") is None
    line = error_line(kernel.run("%%agentrun --python --on process\n1 + 1"))
    assert "leave out --on process" in line


def test_a_shutdown_takes_every_process_along(loaded_kernel: Kernel) -> None:
    """When the kernel is shut down, a process whose agent blocks it, and what it has started, end with it."""
    kernel = loaded_kernel
    run_ok(
        kernel,
        "async def blocks(prompt, run):\n"
        "    import subprocess\n"
        "    child = subprocess.Popen(['/bin/sh', '-c', 'trap \"\" TERM; sleep 600'])\n"
        "    run.text(f'{os.getpid()} {child.pid}')\n"
        "    time.sleep(600)",
    )
    run_ok(kernel, "%%agentrun blocks --on process -o run -n blocks\nhi")
    wait_for_text(kernel, "blocks")
    pids = [int(pid) for pid in value(kernel, "run.text").strip("'").split()]
    assert len(pids) == 2
    client = kernel.client
    client.control_channel.send(client.session.msg("shutdown_request", {"restart": False}))
    kernel.wait_until(lambda: not kernel.is_alive or all(map(is_gone, pids)))
    until = time.monotonic() + 5
    kernel.wait_until(lambda: all(map(is_gone, pids)) or time.monotonic() > until)
    assert all(map(is_gone, pids))
    kernel.wait_until(lambda: not kernel.is_alive)  # the end is written a moment after the kill
    record = stored(kernel.folder, "blocks")
    assert record is not None
    assert (record.status, record.cause, record.detached) == ("cancelled", "shutdown", ())
