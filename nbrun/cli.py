"""The `nbrun` command: the demo, and the stored runs of a notebook from outside its kernel."""

# Another process than any kernel: it reads stores and loads nothing of the kernel side. What needs that
# side runs as a process of its own: the demo's notebook in a kernel, the model's installation as a module.

from __future__ import annotations

import argparse
import os
import shutil
import struct
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nbrun.clock import SystemClock
from nbrun.encoding import Plain, shown
from nbrun.errors import RunNotFound, UserError
from nbrun.store import FOLDER, SUFFIX, SessionStore, schema, store_path
from nbrun.wording import duration, status_words, tokens_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nbformat import NotebookNode
    from rich.console import Console
    from rich.table import Table

    from nbrun.record import RunRecord
    from nbrun.store import StoredRun

DEMO_FOLDER = "nbrun-demo"
FIRST_NOTEBOOK = "01_first_run.ipynb"
DEMO_EXTRA = 'pip install "jupyter-nbrun[demo]"'
INSTALLER = [
    sys.executable,
    "-P",
    "-c",
    "from nbrun.agents.local_install import main; exit(main())",
]
"""Not by `-m`: runpy warns of a module that its own package has imported already."""

CELL_TIMEOUT_S = 300
"""No cell of the demo takes so long, be the machine ever so slow."""
TITLE_WIDTH = 60
PLAIN_WIDTH = 110
"""Columns of a table that goes into a file or a pipe."""


class CommandError(UserError):
    """The command cannot do what was asked; one line that names the mend."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with one line, without the usage in front of it."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a console that knows no "→" still gets its table
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    parser = _parser()
    options = parser.parse_args(arguments)
    if "action" not in options:
        parser.print_help()
        return 0
    try:
        code: int = options.action(options)
        sys.stdout.flush()
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"nbrun: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nbrun: interrupted", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nbrun", description="Agent runs in notebooks: try them, find them again."
    )
    parser.add_argument(
        "--version", action="version", version=f"nbrun {metadata.version('jupyter-nbrun')}"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    about = f"run the first notebook in ./{DEMO_FOLDER} and show its runs; no key, no account"
    demo = commands.add_parser("demo", help=about, description=about.capitalize())
    demo.add_argument("--lab", action="store_true", help="open the notebook in JupyterLab instead")
    demo.add_argument(
        "lab_options", nargs="*", metavar="-- OPTION", help="with --lab: options of `jupyter lab`"
    )
    demo.set_defaults(action=_demo)

    where = "a notebook, a folder of notebooks, or a store's file; default: the working folder"
    about = "list the stored runs of notebooks, newest first"
    listing = commands.add_parser("list", help=about, description=about.capitalize())
    listing.add_argument("path", nargs="?", type=Path, default=Path(), metavar="PATH", help=where)
    listing.add_argument(
        "--limit", type=int, default=50, metavar="N", help="at most so many of each notebook (50)"
    )
    listing.set_defaults(action=_list)

    about = "show one stored run: its prompt, tools, text and error"
    show = commands.add_parser("show", help=about, description=about.capitalize())
    show.add_argument("ref", metavar="REF", help="#3, 3, last, -1, a run's name or its id")
    show.add_argument("path", nargs="?", type=Path, default=Path(), metavar="PATH", help=where)
    show.set_defaults(action=_show)

    about = "the local demo model"
    local = commands.add_parser("local", help=about, description=about.capitalize())
    verbs = local.add_subparsers(title="commands", metavar="COMMAND", required=True)
    about = "bring the local demo model here (102 MB)"
    install = verbs.add_parser("install", help=about, description=about.capitalize())
    install.set_defaults(action=_install)
    return parser


# --- demo --------------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> int:
    if options.lab_options and not options.lab:
        raise CommandError(f"'{options.lab_options[0]}' is for JupyterLab: give --lab with it")
    needed = ("jupyterlab",) if options.lab else ("nbclient", "nbformat")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise CommandError(f"the demo needs {' and '.join(missing)}: {DEMO_EXTRA}")
    _ensure_model()
    if options.lab:
        return _open_lab(_demo_notebook(reuse=True), options.lab_options)
    return _run_demo(_demo_notebook(reuse=False))


def _ensure_model() -> None:
    """See to it that the local model is here; say in one line what the notebook will run on."""
    check = _run_installer("--check")
    if check.returncode:
        _say("Bringing the local model here (102 MB, only this once) …")
        check = _run_installer()
    if check.returncode:
        why = " ".join(check.stdout.split()) or "its installation failed."
        _say(f"{why} The notebook runs on the scripted agent instead, and its cards say so.")
    else:
        _say("The local model is here: 135 million parameters, on this machine's processor.")


def _run_installer(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own words and this interpreter's path, no shell
        [*INSTALLER, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )


def _install(_options: argparse.Namespace) -> int:
    _say("Looking for the local demo model, and fetching it (102 MB) where it is missing …")
    return subprocess.run(INSTALLER, stdin=subprocess.DEVNULL, check=False).returncode  # noqa: S603 - as above


def _notebooks_folder() -> Path:
    """Return where the example notebooks lie: in the package, or beside it in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if (folder / FIRST_NOTEBOOK).is_file():
            return folder
    raise CommandError(f"the example notebooks are not in {package}: install nbrun again")


def _demo_notebook(*, reuse: bool) -> Path:
    """Return the path of the first notebook, copied with the others into a folder of the demo.

    `reuse` goes on with the notebook of an earlier demo, which may have changed since. Without it the folder
    is a fresh one, for nothing that is there may be overwritten.
    """
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
    _say(f"Opening {_relative(notebook)} in JupyterLab; Ctrl-C here ends it.")
    if os.name == "posix":
        os.execv(sys.executable, command)  # noqa: S606 - this process becomes the server, and gets its signals
    return subprocess.run(command, check=False).returncode  # noqa: S603 - the user's own options of their server


def _run_demo(path: Path) -> int:
    import nbformat

    _say(f"Running {_relative(path)} in a kernel of its own, from top to bottom:\n")
    notebook = nbformat.read(path, as_version=4)
    problem = _execute(notebook, path)
    nbformat.write(notebook, path)
    store = store_path(path)
    if store.exists():
        with _opened(store) as opened:
            records = [opened.record(run.number) for run in reversed(opened.runs())]
        models = dict.fromkeys(record.model for record in records if record.model)
        _say(f"\nWhat the notebook's store has kept. Model: {', '.join(map(_safe, models))}\n")
        _console().print(_demo_table(records))
    if problem is not None:
        raise CommandError(f"the notebook stopped: {problem}; what there is of it is in {path}")
    _say(f"The notebook, with its outputs: {path}")
    _say(f"The store, with every event:    {store}\n")
    _say(f"Next: jupyter lab {_relative(path)}    or: nbrun show last {_relative(path)}")
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
        extra_arguments=[
            "--log-level=ERROR"
        ],  # else it warns that loopback connections are not encrypted
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_execute=progress.begin,
        on_cell_executed=progress.end,
    )
    try:
        # The session takes its store's place from the name that Jupyter Server would have given.
        client.execute(cleanup_kc=True, env={**os.environ, "JPY_SESSION_NAME": str(path)})
    except CellExecutionError as error:
        return _safe(f"{error.ename}: {error.evalue}")
    except CellTimeoutError:
        progress.stop("too slow")
        return f"a cell took longer than {CELL_TIMEOUT_S} s"
    except (DeadKernelError, RuntimeError) as error:
        progress.stop("stopped")
        return f"its kernel died ({error})"
    return None


class _Progress:
    """Prints a line for each code cell: what begins it, and how long it took."""

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
        """End the line, if one is begun."""
        if self._is_open:
            self._is_open = False
            _say(word)


def _demo_table(records: Sequence[RunRecord]) -> Table:
    table = _table("run", "name", "status", "seconds", "tokens", "text")
    for record in records:
        seconds = record.elapsed_s(record.ended_at or record.last_event_at)
        table.add_row(
            *_cells(
                f"#{record.number}",
                record.name,
                str(record.status),
                "" if seconds is None else f"{seconds:.1f}",
                _tokens(record),
                _answer(record),
            )
        )
    return table


# --- list and show -----------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> int:
    if options.limit < 1:
        raise CommandError(f"--limit {options.limit}: give at least 1")
    paths = _stores(options.path)
    if not paths:
        _say(f"No runs are kept in {options.path.absolute()}.")
    for path in paths:
        with _opened(path) as store:
            runs = store.runs(options.limit + 1)
        _say(f"{_relative(path)}" if runs else f"{_relative(path)}: no runs")
        if runs:
            _console().print(_list_table(runs[: options.limit]))
        if len(runs) > options.limit:
            _say(f"There are more: --limit shows more than {options.limit}.")
    return 0


def _list_table(runs: Sequence[StoredRun]) -> Table:
    table = _table("run", "name", "status", "agent", "started", "tokens", "output")
    for run in runs:
        record = run.record
        table.add_row(
            *_cells(
                f"#{run.number}",
                record.name,
                status_words(record),
                record.agent,
                _moment(record.started_at or record.created_at),
                _tokens(record),
                shown(str(record.error) if record.error else _answer(record), 80),
            )
        )
    return table


def _show(options: argparse.Namespace) -> int:
    paths = _stores(options.path)
    if not paths:
        raise CommandError(f"no runs are kept in {options.path.absolute()}")
    if len(paths) > 1:
        names = ", ".join(path.stem for path in paths)
        raise CommandError(
            f"{options.path.absolute()} has runs of several notebooks: name one of {names}"
        )
    with _opened(paths[0]) as store:
        record = store.record(_find(store, options.ref).number)
    said = [
        ("status", status_words(record) + (f": {record.reason}" if record.reason else "")),
        ("agent", record.model or record.agent),
        ("started", _moment(record.started_at or record.created_at)),
        ("tokens", _tokens(record)),
        ("tags", ", ".join(f"{key}={value}" for key, value in record.tags.items())),
        ("id", record.run_id),
        ("events", f"{record.event_count} in {_relative(paths[0])}"),
    ]
    _say(_safe(f"#{record.number} {record.name}"))
    for word, text in said:
        if text:
            _say(_safe(f"  {word:<8} {text}"))
    for notice in record.notices:
        _say(_safe(f"  ! {notice}"))
    for tool in record.tools:
        result = "" if tool.result is None else f" → {shown(tool.result)}"
        _say(
            _safe(
                f"  tool     {tool.name}({shown(tool.args) if tool.args is not None else ''}) {tool.status}{result}"
            )
        )
    parts = [
        ("prompt", record.prompt),
        ("text" if record.text else "output", _answer(record)),
        ("error", (record.error.traceback or str(record.error)) if record.error else ""),
    ]
    for word, text in parts:
        if text:
            _say(f"\n{word}:")
            _say(_safe("\n".join(f"  {line}" for line in text.strip().splitlines())))
    return 0


def _stores(path: Path) -> list[Path]:
    """Return the store files that a notebook, a folder or a file stands for.

    Raises
    ------
    CommandError
        There is nothing at this path, or a file that is none of ours.
    """
    path = path.absolute()
    if path.is_dir():
        folder = path if path.name == FOLDER else path / FOLDER
        return [found for found in sorted(folder.glob(f"*{SUFFIX}")) if _is_store(found)]
    if path.suffix == SUFFIX and path.is_file():
        if not _is_store(path):
            raise CommandError(f"{path} is no session store of nbrun")
        return [path]
    if (store := store_path(path)).is_file() and _is_store(store):
        return [store]
    if not path.exists():
        raise CommandError(f"there is no {path}")
    return []


def _is_store(path: Path) -> bool:
    """Return whether the file's head says that nbrun made it: opening another one could change it.

    Source: the SQLite file format has the application's id at offset 68.
    """
    with path.open("rb") as file:
        head = file.read(72)
    return head[68:] == struct.pack(">I", schema.APPLICATION_ID)


@contextmanager
def _opened(path: Path) -> Iterator[SessionStore]:
    store = SessionStore([path], SystemClock())
    store.open_existing()
    if store.path is None:
        raise CommandError(f"{path} cannot be read: {store.problem}")
    try:
        yield store
    finally:
        store.close(1.0)


def _find(store: SessionStore, ref: str) -> StoredRun:
    """Return the run that a reference names: `#3`, `3`, `last`, `-1`, a name or an id."""
    digits = "-1" if ref == "last" else ref.removeprefix("#")
    found: StoredRun | None
    # SQLite takes no greater number; then it may be a name.
    if digits.removeprefix("-").isdecimal() and len(digits) < 19:
        number = int(digits)
        newest = store.runs(-number) if number < 0 else []
        found = (
            store.run(number) if number >= 0 else (newest[-1] if len(newest) == -number else None)
        )
    else:
        found = store.find(ref)
    if found is None:
        raise RunNotFound(f"no run '{ref}' in {store.path}; nbrun list shows what there is")
    return found


# --- words and tables --------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(text, flush=True)


def _safe(text: str) -> str:
    """Return text without anything that a terminal would obey: agents wrote it."""
    return "".join(c if c.isprintable() or c in "\n\t\u200d" else "\ufffd" for c in text)


def _cells(*texts: str) -> list[Any]:
    from rich.text import Text

    return [Text(_safe(text)) for text in texts]  # as Text: brackets in a plain string are markup


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.ROUNDED, show_lines=True)
    for column in columns:
        is_number = column in ("seconds", "tokens")
        table.add_column(
            column, justify="right" if is_number else "left", no_wrap=column in ("run", "started")
        )
    return table


def _console() -> Console:
    from rich.console import Console

    is_fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if is_fixed else PLAIN_WIDTH)


def _answer(record: RunRecord) -> str:
    """Return what the agent said, or else what it returned, or why there is neither."""
    if record.text or record.output is not None:
        output: Plain = record.output
        return record.text.strip() or (output if isinstance(output, str) else shown(output, 2_000))
    return "" if record.error is None else str(record.error)


def _tokens(record: RunRecord) -> str:
    return tokens_words(record).removesuffix(" tokens")  # the column's title says it


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _relative(path: Path) -> str:
    """Return the path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    sys.exit(main())
