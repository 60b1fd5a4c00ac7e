"""Fixtures and order for all tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nbrun
from nbrun.sessions import run as run_module, session as session_module
from nbrun.store import writer as writer_module
from tests.fakes.agents import BOUND_S, Blocking, BlockingLoop, Held

BROWSER = Path(__file__).parent / "browser"

MakeSession = Callable[..., nbrun.NotebookSession]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script
    # What a test starts would inherit it, and no Ctrl-C would reach a kernel or a terminal.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the browser's tests last: Playwright leaves an event loop running, and `asyncio.run` minds it.

    Of these the long ones first, those in Lab: nothing long should be left to wait for at the end.
    """
    items.sort(key=lambda item: (item.path.is_relative_to(BROWSER), "lab" not in getattr(item, "fixturenames", ())))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Share the tests as is best for these ones, whatever `--dist` says."""
    from tests.pool import Pool  # only here: most runs of a few tests have no workers

    return Pool(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what took long, where the tests were shared out."""
    if terminalreporter.config.getoption("numprocesses", None):
        from tests import pool

        found = (each for some in terminalreporter.stats.values() for each in some)
        reports = [each for each in found if isinstance(each, pytest.TestReport)]
        terminalreporter.section("time of the tests: by folder, the longest, by worker")
        for line in pool.lines(reports):
            terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Collect no garbage while a failure is described, which pytest parses the test's module for.

    Python 3.11 fails to parse in two threads at once, which it does where code runs in the midst of it, and
    hypothesis has some run at each collection. Then a test that fails would end the whole run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _disk_has_time() -> Iterator[None]:
    """On a busy machine, too, what a test looks at is stored: a close, a handle and the writer wait for that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "CLOSE_STORE_S", BOUND_S)
        patch.setattr(run_module, "CREATION_S", BOUND_S)
        patch.setattr(writer_module, "HANG_S", BOUND_S)
        yield


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Where the sessions of a test keep their runs."""
    return tmp_path / "notebook" / ".nbrun" / "test.db"


@pytest.fixture
def make_session(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeSession]:
    """Makes sessions on one store, with ids in a row and a short grace; closes them at the end."""
    for name in list(os.environ):  # what a developer's shell holds is no part of a test
        if name.startswith(("NBRUN_", "OLLAMA_")) or name.endswith(("_KEY", "_TOKEN")):
            monkeypatch.delenv(name)
    made: list[nbrun.NotebookSession] = []

    def make(**options: Any) -> nbrun.NotebookSession:
        if "path" not in options:
            options.setdefault("store", store_path)
        options.setdefault("ids", nbrun.SequentialIds())
        options.setdefault("cancel_grace_s", 0.2)
        store_path.parent.parent.mkdir(exist_ok=True)
        session = nbrun.NotebookSession(**options)
        made.append(session)
        return session

    yield make
    for session in made:
        session.close()
        session.store.close(1.0)  # once more: a test may have read after the close


@pytest.fixture
def session(make_session: MakeSession) -> nbrun.NotebookSession:
    """A session whose runs are `run-seq-0`, `run-seq-1` …."""
    return make_session()


@pytest.fixture
def held() -> Iterator[Held]:
    """An agent at a gate, let go at the end."""
    agent = Held()
    yield agent
    agent.let_go()


@pytest.fixture
def blocks() -> Iterator[BlockingLoop]:
    """An async agent that blocks the loop, let go at the end."""
    agent = BlockingLoop()
    yield agent
    agent.gate.set()


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    """A sync agent that cannot be raised into, let go at the end."""
    agent = Blocking()
    yield agent
    agent.gate.set()
