"""What the file of an executed notebook says of runs that ended after their cells."""

from __future__ import annotations

from pathlib import Path

import nbformat

from tests.notebooks.headless import execute

AGENTS = """%load_ext nbrun
import os, threading
from collections import defaultdict
gates = defaultdict(threading.Event)
def held(prompt):
    gates[prompt].wait()
    return prompt
"""


def test_whichever_cell_runs_at_a_runs_end_brings_its_card_up_to_date(tmp_path: Path) -> None:
    """Also where it waits in Python, and where cards are live; what goes on to the end is shown as that."""
    waits = {"one": "one.wait()", "two": "two.result()", "three": "await three", "four": "four.wait()"}
    cells = [AGENTS]
    for name in (*waits, "endless"):
        cells += ["os.environ['NBRUN_BLOCK'] = '0'"] if name == "four" else []
        cells.append(f"%%agentrun held -a -n {name} -o {name}\n{name}")
    cells += [f"gates['{name}'].set()\n{wait}" for name, wait in waits.items()]
    source = tmp_path / "endings.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), source)
    folder = tmp_path / "executed"
    folder.mkdir()
    notebook = execute(source, folder)
    shown = {}
    for cell in notebook.cells:
        if cell.source.startswith("%%agentrun"):
            (output,) = cell.outputs
            shown[cell.source.rpartition("\n")[2]] = output.data
    for name in waits:
        assert "Completed" in shown[name]["text/plain"]
        assert "application/vnd.jupyter.widget-view+json" not in shown[name]
    assert "when the notebook was saved" in shown["endless"]["text/plain"]
