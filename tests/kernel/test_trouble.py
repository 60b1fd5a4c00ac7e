"""A store in trouble under a real kernel: card, saved output and doctor tell it, and stop telling it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from tests.kernel.cells import run_ok, store_file
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
        part.unlink()
    cell = run_ok(kernel, "%%agentrun say -n third\nhi")
    kernel.wait_until(lambda: "Completed" in drawn(cell), 10)
    assert "was deleted or moved" in drawn(cell)
    assert "• note     store: " in doctor(kernel)
    shown = run_ok(kernel, "%agentrun list").outputs[0]["data"]["text/plain"]
    assert [name in shown for name in ("first", "second", "third")] == [True] * 3
