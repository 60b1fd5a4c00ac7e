"""A store in trouble under a real kernel: card, saved output and doctor tell it, and stop telling it."""

from __future__ import annotations

import ast
import sqlite3
from contextlib import closing

from tests.kernel.cells import run_ok, store_file, value
from tests.kernel.driver import Execution, Kernel


def drawn(cell: Execution) -> str:
    """Return what a notebook file would keep of the card as it is now."""
    return str(cell.outputs[-1]["data"]["text/html"])


def doctor(kernel: Kernel) -> str:
    """Return doctor's lines."""
    return str(run_ok(kernel, "%agentrun doctor").outputs[0]["data"]["text/plain"])


def test_a_locked_and_then_deleted_file_is_told_and_the_card_is_drawn_again(loaded_kernel: Kernel) -> None:
    """While another process holds the file the ended card says "not saved"; saved, it does not. Then it is deleted."""
    kernel = loaded_kernel
    run_ok(kernel, "%%agentrun say -n first\nhi")
    run_ok(kernel, "%agentrun wait")
    path = store_file(kernel.folder)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        cell = run_ok(kernel, "%%agentrun say -n second\nhi")
        why = "Not saved: the file is locked by another program"
        kernel.wait_until(lambda: "Completed" in drawn(cell) and why in drawn(cell), 10)
        found = doctor(kernel)
        assert "✘ problem  store: can't be written: the file is locked by another program" in found
        other.execute("ROLLBACK")
    kernel.wait_until(lambda: "Not saved" not in drawn(cell), 10)
    assert "Completed" in drawn(cell)
    assert "problem" not in doctor(kernel)
    for part in path.parent.glob(f"{path.name}*"):
        if part.is_file():
            part.unlink()
    cell = run_ok(kernel, "%%agentrun say -n third\nhi")
    kernel.wait_until(lambda: "Completed" in drawn(cell), 10)
    assert "was deleted or moved" in drawn(cell)
    assert "• note     store: " in doctor(kernel)
    shown = run_ok(kernel, "%agentrun list").outputs[0]["data"]["text/plain"]
    assert [name in shown for name in ("first", "second", "third")] == [True] * 3


FORKS = """
import multiprocessing
def work(prompt):
    run = nbrun.start(say, prompt)
    return run.result(10), run.record.log_count, nbrun.session().is_inherited
async def say(prompt):
    print("in the worker")
    return prompt.upper()
with multiprocessing.get_context("fork").Pool(1) as pool:
    answer = pool.map_async(work, ["tea"]).get(20)
"""


def test_workers_that_are_forked_in_a_cell_have_a_session_of_their_own(loaded_kernel: Kernel) -> None:
    """An evaluation spread over processes: runs work there, with their prints; the notebook's own go on."""
    kernel = loaded_kernel
    run_ok(kernel, "%%agentrun say -n before\nhi\n")
    run_ok(kernel, "%agentrun wait")
    run_ok(kernel, FORKS)
    (answer,) = ast.literal_eval(value(kernel, "answer"))
    assert answer[0] == "TEA"
    assert answer[1] >= 1
    assert answer[2] is False
    run_ok(kernel, "%%agentrun say -n after\nhi")
    run_ok(kernel, "%agentrun wait")
    assert value(kernel, "[run.name for run in nbrun.runs()]") == "['after', 'before']"
