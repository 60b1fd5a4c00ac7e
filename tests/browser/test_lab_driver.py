"""The driver of the Lab journeys, on a notebook that needs no nbrun."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import expect

from tests.browser.lab import LabNotebook


def test_a_notebook_runs_saves_and_comes_back(open_notebook: Callable[..., LabNotebook]) -> None:
    """A cell's output can be read while the next one runs, and is there again after a reload."""
    # Lab shows [*] before the kernel has begun, when it would ignore an interrupt.
    blocks = "import time; print('in', flush=True)\nfor _ in range(60): time.sleep(1)"
    notebook = open_notebook(["1 + 1", blocks])
    assert notebook.run_and_wait(0) == 1
    assert notebook.outputs(0) == ["2"]

    notebook.run_cell(1)
    expect(notebook.output(1)).to_contain_text("in")
    expect(notebook.prompt(1)).to_have_text("[*]:")
    assert notebook.outputs(0) == ["2"]
    notebook.interrupt()
    assert notebook.wait_cell(1) == 2
    expect(notebook.output(1)).to_contain_text("KeyboardInterrupt")

    assert notebook.save().cells[0].outputs[0].data["text/plain"] == "2"
    notebook.reload()
    assert notebook.outputs(0) == ["2"]


def test_another_ipykernel_can_be_chosen_and_restarted(open_notebook: Callable[..., LabNotebook]) -> None:
    """A notebook opens on the ipykernel it asks for; a restart counts from one and keeps the version."""
    asks = "import ipykernel, nbrun; ipykernel.__version__"
    notebook = open_notebook([asks], kernel_name="6.30")
    assert notebook.run_and_wait(0) == 1
    assert notebook.run_and_wait(0) == 2
    notebook.restart()
    assert notebook.run_and_wait(0) == 1
    assert notebook.outputs(0)[0].startswith("'6.30.")
    assert notebook.add_cell("'added'") == 1
    assert notebook.run_and_wait(1) == 2
    assert notebook.outputs(1) == ["'added'"]
