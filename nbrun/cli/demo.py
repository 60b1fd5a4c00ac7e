"""`nbrun demo`: the first notebook, executed in a kernel of its own or opened in JupyterLab."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbrun.cli.output import CommandError, relative, say, say_table
from nbrun.cli.runs import opened
from nbrun.core import SystemClock, duration, printable, shown
from nbrun.store import store_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import SimpleNamespace

    from nbformat import NotebookNode


DEMO_FOLDER = "nbrun-demo"
FIRST_NOTEBOOK = "01_first_run.ipynb"
DEMO_EXTRA = 'pip install "jupyter-nbrun[demo]"'
INSTALLER = [sys.executable, "-P", "-c", "from nbrun.agents.local_model.install import main; exit(main())"]
"""Not by `-m`: runpy warns of a module that its own package has imported already."""

CELL_TIMEOUT_S = 300
"""No cell of the demo takes this long, however slow the machine."""
TITLE_WIDTH = 60


def run_demo(options: SimpleNamespace) -> int:
    """Run the first notebook and show its runs, or open it in JupyterLab; return the exit code."""
    if options.lab_options and not options.lab:
        raise CommandError(f"'{options.lab_options[0]}' is an option of JupyterLab: add --lab")
    needed = ("jupyterlab",) if options.lab else ("nbclient", "nbformat")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise CommandError(f"The demo needs {' and '.join(missing)}: {DEMO_EXTRA}")
    _ensure_model()
    if options.lab:
        return _open_lab(_demo_notebook(reuse=True), options.lab_options)
    return _run_headless(_demo_notebook(reuse=False))


def _ensure_model() -> None:
    """Install the local model if it is missing; say in one line what the notebook will run on."""
    check = _run_installer("--check")
    if check.returncode:
        say("Downloading the local model (102 MB, only once) …")
        check = _run_installer()
    if check.returncode:
        why = " ".join(check.stdout.split()) or "its installation failed."
        say(f"{why} The notebook runs on the scripted agent instead, and its cards say so.")
    else:
        say("The local model is installed: 135 million parameters, running on this machine's CPU.")


def _run_installer(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own words and this interpreter's path, no shell
        [*INSTALLER, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )


def _notebooks_folder() -> Path:
    """Return where the example notebooks are: in the package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if (folder / FIRST_NOTEBOOK).is_file():
            return folder
    raise CommandError(f"The example notebooks are missing from {package}; reinstall nbrun")


def _demo_notebook(*, reuse: bool) -> Path:
    """Return the first notebook, in a new folder of the demo or, with `reuse`, in the last one, maybe changed."""
    folder = Path.cwd() / DEMO_FOLDER
    if not reuse:
        names = chain([DEMO_FOLDER], (f"{DEMO_FOLDER}-{number}" for number in count(2)))
        folder = next(path for name in names if not (path := Path.cwd() / name).exists())
    folder.mkdir(exist_ok=reuse)
    for source in sorted(_notebooks_folder().glob("*.ipynb")):
        if not (folder / source.name).exists():
            shutil.copyfile(source, folder / source.name)
    return folder / FIRST_NOTEBOOK


def _open_lab(notebook: Path, options: Sequence[str]) -> int:
    # The file is what the browser opens; the default address is what is printed where there is no browser.
    address = f"--LabApp.default_url=/lab/tree/{notebook.name}"
    command = [sys.executable, "-m", "jupyterlab", str(notebook), address, *options]
    say(f"Opening {relative(notebook)} in JupyterLab; press Ctrl-C here to stop it.")
    if os.name == "posix":
        os.execv(sys.executable, command)  # noqa: S606 - this process becomes the server, and gets its signals
    return subprocess.run(command, check=False).returncode  # noqa: S603 - the user's own options of their server


def _run_headless(path: Path) -> int:
    import nbformat

    say(f"Running {relative(path)} in its own kernel, from top to bottom:\n")
    notebook = nbformat.read(path, as_version=4)
    problem = _execute(notebook, path)
    nbformat.write(notebook, path)
    file = store_path(path)
    if file.exists():
        with opened(file) as store:
            records = [store.record(run.number) for run in reversed(store.runs())]
        models = dict.fromkeys(record.model for record in records if record.model)
        say(f"\nThe runs in the notebook's store. Model: {', '.join(models)}\n")
        say_table(records)
    if problem is not None:
        raise CommandError(f"The notebook stopped: {problem}. Its outputs so far are in {path}")
    say(f"The notebook, with its outputs: {path}")
    say(f"The store, with every event:    {file}\n")
    say(f"Next: jupyter lab {relative(path)}    or: nbrun show last {relative(path)}")
    return 0


def _execute(notebook: NotebookNode, path: Path) -> str | None:
    """Execute the notebook in place, a line for each cell; return what stopped it, or None."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    # With no folder to look in there is only the native kernel, which is this interpreter: a "python3" that
    # somebody has installed may be another one, without nbrun.
    specs = KernelSpecManager(kernel_dirs=[])
    progress = _Progress(notebook)
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs),
        timeout=CELL_TIMEOUT_S,
        record_timing=False,
        # Else it warns that connections within this machine are not encrypted.
        extra_arguments=["--log-level=CRITICAL"],
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_execute=progress.begin,
        on_cell_executed=progress.end,
    )
    # An interrupted nbclient leaves a task that stumbles over the kernel's being gone; asyncio would print its
    # traceback whenever the task is collected.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        # The session takes its store's place from the name that Jupyter Server would have given.
        client.execute(cleanup_kc=True, env={**os.environ, "JPY_SESSION_NAME": str(path)})
    except CellExecutionError as error:
        return printable(f"{error.ename}: {error.evalue}")
    except CellTimeoutError:
        progress.stop("too slow")
        return f"a cell took longer than {CELL_TIMEOUT_S} s"
    except (DeadKernelError, RuntimeError, AssertionError) as error:
        progress.stop("stopped")
        # nbclient takes Ctrl-C for itself, ends the kernel, and then stumbles over its being gone.
        if hasattr(client, "_async_cleanup_kernel_future"):
            raise KeyboardInterrupt from None
        return f"its kernel died ({error})"
    return None


class _Progress:
    """Prints a line for each code cell: its first line, and how long it took."""

    def __init__(self, notebook: NotebookNode) -> None:
        self._clock = SystemClock()
        self._total = sum(cell.cell_type == "code" for cell in notebook.cells)
        self._number = 0
        self._began = 0.0
        self._is_open = False

    def begin(self, cell: NotebookNode, cell_index: int) -> None:
        self._number += 1
        self._began = self._clock.monotonic()
        self._is_open = True
        lines = (line.strip() for line in str(cell.source).splitlines())
        title = shown(" · ".join(line for line in lines if line), TITLE_WIDTH)
        count = f"{self._number}/{self._total}"
        print(f"{count:>7}  {title:<{TITLE_WIDTH}}", end="  ", flush=True)

    def end(self, cell: NotebookNode, cell_index: int, execute_reply: dict[str, Any]) -> None:
        is_ok = execute_reply["content"]["status"] == "ok"
        self.stop(duration(self._clock.monotonic() - self._began) if is_ok else "failed")

    def stop(self, word: str) -> None:
        """End the line, if one was started."""
        if self._is_open:
            self._is_open = False
            say(word)
