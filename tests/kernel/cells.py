"""Cells that several of these tests run, and a look at the store from another process."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from nbrun.core.events import RunEvent
from nbrun.core.record import RunRecord
from nbrun.store import queries as reader
from tests.kernel.driver import Execution, Kernel

LOAD = "%load_ext nbrun"
SOON_S = 3.0
"""What a click takes to be in the store: some 50 ms, and more on a starved machine."""

AGENTS = """\
import asyncio, os, threading, time
import nbrun

async def say(prompt):
    return prompt

async def soon(prompt):
    await asyncio.sleep(0.5)  # long enough for its card to be shown while it is live
    return prompt

async def endless(prompt, run):
    run.text("begun ")
    await asyncio.Event().wait()

async def broken(prompt):
    raise ValueError("the kettle is empty")

freed = threading.Event()  # lets the two that mind no cancel go

async def tidy(prompt, run):
    try:
        run.text("begun ")
        await asyncio.Event().wait()
    finally:
        while not freed.is_set():
            await asyncio.sleep(0.01)

def stubborn(prompt, run):
    run.text("begun ")
    while not freed.is_set():
        try:
            freed.wait(0.05)
        except BaseException:
            pass

def nbrun_threads():
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("nbrun-"))

def nbrun_threads_left():
    # One that was asked to stop may not have had a core since: the unload waits for it for a moment only.
    for thread in threading.enumerate():
        if thread.name.startswith("nbrun-"):
            thread.join(10)
    return nbrun_threads()
"""


def loaded(kernel: Kernel) -> Kernel:
    """Return the kernel with nbrun loaded and the agents above defined."""
    for code in (LOAD, AGENTS):
        cell = kernel.run(code)
        assert cell.error is None, cell.error
    return kernel


def renewed(kernel: Kernel) -> Kernel:
    """Return the kernel as after its start, loaded: no run, file, name, setting or message of an earlier test."""
    cell = kernel.run("%unload_ext nbrun\n%reset -f\n!rm -rf .nbrun\nget_ipython().config.pop('NbRun', None);")
    assert cell.error is None, cell.error
    kernel.comms.clear()
    return loaded(kernel)


def run_ok(kernel: Kernel, code: str, *, headless: bool = False, cell_id: str | None = None) -> Execution:
    """Run a cell that must not fail."""
    cell = kernel.run(code, headless=headless, cell_id=cell_id)
    assert cell.error is None, "\n".join(cell.error["traceback"]) or cell.error["evalue"]
    return cell


def value(kernel: Kernel, expression: str) -> str:
    """Return the `repr` of an expression's value, as a cell shows it."""
    result = run_ok(kernel, f"print(repr({expression}))").stdout
    return result.removesuffix("\n")


def error_line(cell: Execution) -> str:
    """Return the one line with which a cell ended; fails if it is none, or more than one."""
    error = cell.error
    assert error is not None, f"no error, but: {cell.stdout}{cell.outputs}"
    lines = [line for part in error["traceback"] for line in str(part).splitlines()]
    assert len(lines) == 1, "\n".join(lines)
    assert "\x1b" not in lines[0]
    return lines[0]


def store_file(folder: Path) -> Path:
    """Return where a kernel that runs in this folder, and knows no notebook, keeps its runs."""
    return folder / ".nbrun" / "session.db"


def stored(folder: Path, name: str) -> RunRecord | None:
    """Return the newest stored run with this name, whole, as another process sees it; None if none is."""
    with _reading(folder) as connection:
        found = None if connection is None else reader.find_run(connection, name)
        if connection is None or found is None:
            return None
        return reader.read_record(connection, found.number)


def stored_events(folder: Path, name: str) -> list[RunEvent]:
    """Return the stored events of the newest run with this name, as another process sees them."""
    with _reading(folder) as connection:
        found = None if connection is None else reader.find_run(connection, name)
        if connection is None or found is None:
            return []
        return reader.read_events(connection, found.number)


@contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection | None]:
    path = store_file(folder)
    if not path.exists():
        yield None
        return
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        # All tables are made in one transaction: the file may be there, and still be empty.
        has_tables = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'events'")
        yield connection if has_tables.fetchone() else None


def wait_for_status(kernel: Kernel, name: str, status: str, timeout_s: float = 10) -> RunRecord:
    """Return the stored run once the store says so; the kernel may be blocked meanwhile."""
    kernel.wait_until(lambda: _has_status(kernel.folder, name, status), timeout_s)
    record = stored(kernel.folder, name)
    assert record is not None
    return record


def wait_for_text(kernel: Kernel, name: str, timeout_s: float = 10) -> None:
    """Return once text of this run is in the store: its agent is under way, and has shown something."""
    kernel.wait_until(lambda: _has_text(kernel.folder, name), timeout_s)


def _has_status(folder: Path, name: str, status: str) -> bool:
    record = stored(folder, name)
    return record is not None and record.status == status


def _has_text(folder: Path, name: str) -> bool:
    record = stored(folder, name)
    return record is not None and bool(record.text)
