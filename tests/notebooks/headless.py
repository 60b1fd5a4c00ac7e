"""The example notebooks, executed as a program executes them: from top to bottom, nobody looking on.

`python -m tests.notebooks.headless` executes them and saves them with their outputs, for those who read
them on the web. What is of this machine and this moment is taken out.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CASSETTES = FOLDER / "cassettes"
CELL_TIMEOUT_S = 60

_NO_NETWORK = dict.fromkeys(
    ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
    "http://127.0.0.1:9",  # nothing listens there
)
_CELL_FILE = re.compile(r"[\w:.\\/~-]*ipykernel_\d+[\\/]+\d+\.py")


def execute(source: Path, folder: Path, *, waits: bool = True) -> nbformat.NotebookNode:
    """Execute a copy of a notebook in `folder` and return it; its store is in `folder` as well.

    Parameters
    ----------
    waits : whether cells wait for their runs; False as in a front end where somebody runs all cells.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell raised.
    """
    path = Path(shutil.copy(source, folder))
    if not (cassettes := folder / CASSETTES.name).exists() and source.parent == FOLDER:
        shutil.copytree(CASSETTES, cassettes)
    notebook: nbformat.NotebookNode = nbformat.read(path, as_version=4)
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=CELL_TIMEOUT_S,
        extra_arguments=["--log-level=ERROR"],
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    own = {"JPY_SESSION_NAME": str(path)} | ({} if waits else {"NBRUN_BLOCK": "0"})
    client.execute(cleanup_kc=True, env=environment(folder) | own)
    return notebook


def environment(folder: Path) -> dict[str, str]:
    """Return an environment without the user's settings, keys and network."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JUPYTER", "JPY_", "NBRUN_", "OLLAMA_", "PYTEST_"))
        and not name.endswith(("_KEY", "_TOKEN"))
    }
    own = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    folders = {name: str(folder / f".{name.lower()}") for name in own}
    return kept | folders | _NO_NETWORK


def save_with_outputs(path: Path) -> None:
    """Execute a notebook, and write it back with its outputs."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(path, Path(folder))
    notebook.metadata["language_info"] = {"name": "python"}
    text = _CELL_FILE.sub("this notebook", nbformat.writes(notebook))
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    for each in NOTEBOOKS:
        save_with_outputs(each)
        print(each.name, flush=True)
