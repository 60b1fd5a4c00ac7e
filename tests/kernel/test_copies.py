"""Folders that were copied, and stores of a newer version, in a real kernel."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.kernel.cells import error_line, loaded, run_ok, value, wait_for_text
from tests.kernel.driver import Kernel


def put_copy_in_place(folder: Path) -> None:
    """Put a copy of a folder where the folder was."""
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)


def test_a_run_in_a_copied_folder_is_unknown_until_it_is_given_up(loaded_kernel: Kernel) -> None:
    """The list and the card say so and name the way out; `%agentrun lost` is that way."""
    kernel = loaded_kernel
    run_ok(kernel, "%%agentrun endless -n long -o long\nhi")
    wait_for_text(kernel, "long")
    kernel.kill()
    put_copy_in_place(kernel.folder / ".nbrun")
    kernel.restart()

    loaded(kernel)
    words = "Unknown: its kernel cannot be seen from here (this file is a copy"
    assert words in str(run_ok(kernel, "%agentrun list").outputs)
    card = str(run_ok(kernel, "%agentrun show long").outputs)
    assert words in card
    assert "%agentrun lost #1" in card
    assert "Was running" not in card
    assert "Unknown" in error_line(kernel.run("%agentrun wait long"))
    assert "needs REF" in error_line(kernel.run("%agentrun lost"))
    assert "given up by hand" in run_ok(kernel, "%agentrun lost long").stdout
    assert value(kernel, "str(nbrun.get('long').status)") == "'lost'"
    assert "has already ended" in error_line(kernel.run("%agentrun lost long"))


def test_a_newer_store_is_listed_and_new_runs_say_where_they_are(start_kernel: Callable[..., Kernel]) -> None:
    """Its runs are there to see, numbers go on above them, the card and doctor say why nothing is written to it."""
    first = loaded(start_kernel())
    run_ok(first, "nbrun.start(say, 'tea', name='old').result(10)")
    first.shutdown()
    (store,) = (first.folder / ".nbrun").glob("*.db")
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = store.read_bytes()

    kernel = loaded(start_kernel())
    assert value(kernel, "nbrun.get('old').output") == "'tea'"
    cell = run_ok(kernel, "%%agentrun say -n new --block\nmilk")
    assert "made by a newer nbrun" in str(cell.outputs)
    assert value(kernel, "[(r.number, r.name) for r in nbrun.runs()]") == "[(2, 'new'), (1, 'old')]"
    assert "the runs in it can be read" in str(run_ok(kernel, "%agentrun doctor").outputs)
    kernel.shutdown()
    assert store.read_bytes() == before
