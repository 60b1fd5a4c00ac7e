"""Results in a real kernel: shown after a restart as before it, and runs that are removed by the magic."""

from __future__ import annotations

import base64
import importlib.util
from typing import Any

import pytest

from tests.kernel.cells import LOAD, error_line, run_ok, value
from tests.kernel.driver import Execution, Kernel

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)

FRAME = """\
def frame(prompt):
    import pandas as pd
    return pd.DataFrame({"tea": ["sencha"], "note": ["<script>steal()</script>"]})
"""

# As matplotlib does it: a formatter of the shell's for a class that knows nothing of Jupyter.
PICTURE = """\
class Picture:
    def __repr__(self):
        return "<a picture>"

get_ipython().display_formatter.formatters["image/png"].for_type(Picture, lambda p: b"\\x89PNG of it")

def picture(prompt):
    return Picture()
"""

FIGURE = """\
def figure(prompt):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots()
    axes.plot([1, 2, 3])
    return figure
"""


def shown(cell: Execution) -> dict[str, Any]:
    """Return the forms of a cell's value."""
    (result,) = [output for output in cell.outputs if output["output_type"] == "execute_result"]
    data: dict[str, Any] = result["data"]
    return data


def run_and_restart(kernel: Kernel, agent: str, name: str) -> dict[str, Any]:
    """Run the agent, show its result, start the kernel anew and show it again; return what is shown then."""
    run_ok(kernel, agent)
    run_ok(kernel, f"%%agentrun {name} -n {name} --block\ntea")
    here = shown(run_ok(kernel, f"%agentrun result {name}"))
    kernel.restart()
    run_ok(kernel, LOAD)
    later = shown(run_ok(kernel, f"%agentrun result {name}"))
    assert later["text/plain"] == here["text/plain"]
    return later


def test_a_data_frame_is_a_table_after_a_restart(renewed_kernel: Kernel) -> None:
    """The table is there, and nothing in it that a page would run; its JSON-like form is the output."""
    later = run_and_restart(renewed_kernel, FRAME, "frame")
    assert "<td>sencha</td>" in later["text/html"]
    assert "<script" not in later["text/html"]
    run_ok(renewed_kernel, "import nbrun")
    assert "DataFrame" in value(renewed_kernel, "nbrun.get('frame').output['$type']")


def test_a_picture_is_a_picture_after_a_restart(renewed_kernel: Kernel) -> None:
    """By the formatter that the notebook had registered, which the new kernel does not know."""
    later = run_and_restart(renewed_kernel, PICTURE, "picture")
    assert base64.b64decode(later["image/png"]) == b"\x89PNG of it"


@needs_matplotlib
def test_a_figure_is_a_picture_after_a_restart(renewed_kernel: Kernel) -> None:
    """As the inline backend draws it."""
    later = run_and_restart(renewed_kernel, FIGURE, "figure")
    assert base64.b64decode(later["image/png"]).startswith(b"\x89PNG\r\n")


def test_runs_are_removed_by_the_magic(renewed_kernel: Kernel) -> None:
    """By reference, or all that have ended; a live one is refused in one line that names the mend."""
    kernel = renewed_kernel
    for name in ("one", "two", "three"):
        run_ok(kernel, f"%%agentrun say -n {name} --block\ntea")
    run_ok(kernel, "%%agentrun endless -n long\ntea")
    assert run_ok(kernel, "%agentrun rm one #2").stdout == "Removed 2 runs: #1, #2\n"
    assert "is still running; cancel it first" in error_line(kernel.run("%agentrun rm long"))
    assert "--all-ended" in error_line(kernel.run("%agentrun rm"))
    assert run_ok(kernel, "%agentrun rm --all-ended").stdout == "Removed 1 run: #3\n"
    assert value(kernel, "[run.name for run in nbrun.runs()]") == "['long']"
    assert "nothing to remove" in run_ok(kernel, "%agentrun rm --all-ended").stdout
    run_ok(kernel, "%agentrun cancel long")
