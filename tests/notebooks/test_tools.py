"""The tools that execute notebooks with nobody looking on, as people start them: `jupyter nbconvert` and papermill."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter, MarkdownExporter

from nbrun.render.static_card import MIME
from tests.notebooks.headless import NOTEBOOKS, environment, execute

pytestmark = pytest.mark.timeout(180)

NBCONVERT = ("-m", "nbconvert", "--to", "notebook", "--execute", "--inplace")
PAPERMILL = (
    "-c",
    "import sys, pathlib, papermill\n"
    "for path in map(pathlib.Path, sys.argv[1:]):\n"
    "    papermill.execute_notebook(path, path, cwd=path.parent, kernel_name='python3', progress_bar=False)",
)

UNLUCKY = [
    "%load_ext nbrun\nasync def unlucky(prompt):\n    yield 'I *try*'\n    raise ValueError('no luck')",
    "%%agentrun unlucky\nTry.",
    "print('never reached')",
]
REASON = "RunFailed: run #1 (unlucky) failed: ValueError: no luck"


@contextmanager
def started(tool: tuple[str, ...], paths: list[Path], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a tool on notebooks, in one process for all; it is over when it is left."""
    with subprocess.Popen(
        [sys.executable, *tool, *map(str, paths)],
        env=environment(folder),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def copies(sources: list[Path], folder: Path) -> list[Path]:
    """Return copies of notebooks, each in a folder of its own, as each has a store beside it."""
    paths = [folder / source.stem / source.name for source in sources]
    for source, path in zip(sources, paths, strict=True):
        path.parent.mkdir(parents=True)
        shutil.copy(source, path)
        if (cassettes := source.parent / "cassettes").is_dir():
            shutil.copytree(cassettes, path.parent / "cassettes")
    return paths


@pytest.mark.parametrize(
    ("tool", "notebooks"), [(NBCONVERT, NOTEBOOKS[::2]), (PAPERMILL, NOTEBOOKS[1::2])], ids=["nbconvert", "papermill"]
)
def test_a_tool_executes_notebooks(tool: tuple[str, ...], notebooks: list[Path], tmp_path: Path) -> None:
    """It ends with success, every cell has been executed, and no card says that its run is still running."""
    paths = copies(notebooks, tmp_path)
    with started(tool, paths, tmp_path) as process:
        printed, _ = process.communicate(timeout=170)
        assert process.returncode == 0, printed[-3000:]
    for path in paths:
        assert_executed(nbformat.read(path, as_version=4))


def assert_executed(notebook: nbformat.NotebookNode) -> None:
    """Fail unless its code cells have been executed in order, and its cards show ends."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    data = [out.data for cell in cells for out in cell.outputs if "data" in out]
    ends = [bundle[MIME]["status"] for bundle in data if MIME in bundle]
    assert ends
    assert set(ends) <= {"completed", "failed", "cancelled", "lost"}


def test_a_failed_run_fails_whoever_executes_the_notebook(tmp_path: Path) -> None:
    """The tool's own exit says so, its last words name the run and the error, and no later cell is executed."""
    source = tmp_path / "unlucky.ipynb"
    cells = [nbformat.v4.new_code_cell(text) for text in UNLUCKY]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), source)
    folders = [tmp_path / "nbconvert", tmp_path / "papermill", tmp_path / "nbclient"]
    (by_nbconvert,), (by_papermill,), _ = [copies([source], folder) for folder in folders]
    with started(NBCONVERT, [by_nbconvert], folders[0]) as one, started(PAPERMILL, [by_papermill], folders[1]) as other:
        with pytest.raises(CellExecutionError, match="no luck") as caught:
            execute(source, folders[2])
        assert str(caught.value).rstrip().endswith(REASON)
        for process in (one, other):
            printed, _ = process.communicate(timeout=60)
            assert process.returncode == 1
            assert printed.rstrip().splitlines()[-1] == REASON
    left = nbformat.read(by_papermill, as_version=4)  # which keeps what it has until then
    [*_, failed, after] = [cell for cell in left.cells if cell.cell_type == "code"]
    card, error = failed.outputs
    assert "I <em>try</em>" in card.data["text/html"]
    assert card.data[MIME]["status"] == "failed"
    assert (error.ename, error.traceback) == ("RunFailed", [REASON])
    assert not after.outputs


def test_a_converted_notebook_shows_the_card(tmp_path: Path) -> None:
    """HTML and Markdown have it whole, in one block, with no word of a widget."""
    notebook = nbformat.read(NOTEBOOKS[1], as_version=4)
    pages = [exporter().from_notebook_node(notebook)[0] for exporter in (HTMLExporter, MarkdownExporter)]
    for page in pages:
        for words in ("Cancelled by you after", "the printer was quicker", "Timed out after", "Get it in Python"):
            assert words in page
        assert "widget-view" not in page
    blocks = [line for line in pages[1].splitlines() if "nbrun-static" in line]
    assert len(blocks) == 4
    assert all(line.count("<div") == line.count("</div>") for line in blocks)
