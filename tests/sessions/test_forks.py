"""Child processes that were forked: the session stays with its parent, and the child makes its own."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbrun
from nbrun import NotebookSession, Run
from nbrun.core import events as ev, module_lock
from nbrun.core.errors import NbrunError, SessionClosed, StoreError
from tests.conftest import MakeSession
from tests.fakes.agents import BOUND_S, Held, instant

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    # Python 3.12 warns of any fork in a process with threads; that it works is what is tested here.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


def in_child(function: Callable[[], Any]) -> Any:
    """Return what a function returns or raises in a forked child, which then ends at once as a pool's worker does."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(round(BOUND_S))  # a child that hangs is killed, and its answer is missing
        try:
            try:
                answer = function()
            except Exception as error:
                answer = error
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pickle.load(pipe)  # noqa: S301 - our own
    os.waitpid(pid, 0)
    return answer


def raised(function: Callable[[], object]) -> str:
    """Return the class and the first words of what it raises."""
    try:
        function()
    except NbrunError as error:
        return f"{type(error).__name__}: {str(error).partition(',')[0]}"
    return "nothing"


async def says(prompt: str) -> str:
    """Print, and return."""
    print(f"print of {prompt}")
    return prompt.upper()


def logs(run: Run) -> list[str]:
    """Return the lines of its log."""
    return [event.data.text for event in run.events() if isinstance(event.data, ev.Log)]


def test_an_inherited_session_is_closed(session: NotebookSession, held: Held) -> None:
    """Whatever it is asked for, it says in one line whose it is; nothing hangs, and nothing is done to the parent's."""
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    ended = session.start(instant, "tea")
    assert ended.result(BOUND_S) == "done: tea"

    def child() -> dict[str, str]:
        async def waits() -> None:
            await run

        answers = {
            "start": raised(lambda: session.start(instant)),
            "wait": raised(run.wait),
            "result": raised(run.result),
            "await": raised(lambda: asyncio.run(waits())),
            "steer": raised(lambda: run.steer("hello")),
            "events": raised(run.events),
            "runs": raised(session.runs),
            "cancel": str(run.cancel()),
            "ended": str(ended.result()),
            "closed": str(session.is_closed),
        }
        session.close()
        session.store.close(1.0)
        return answers

    whose = f"this session belongs to process {os.getpid()}"
    answers = in_child(child)
    assert answers.pop("ended") == "done: tea"
    assert answers.pop("closed") == "True"
    assert "belongs to another kernel" in answers.pop("cancel")
    assert answers.pop("events") == answers.pop("runs") == f"{StoreError.__name__}: {whose}"
    assert answers == dict.fromkeys(answers, f"{SessionClosed.__name__}: {whose}")
    held.let_go()
    assert run.result(BOUND_S) == "held"
    assert run.record.cancel_requested_at is None
    assert session.start(instant, "more").result(BOUND_S) == "done: more"


def test_a_child_has_a_session_of_its_own(
    make_session: MakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runs work, prints go to their logs, and its own file is written as any other."""
    parent = make_session()
    assert parent.start(says, "parent").result(BOUND_S) == "PARENT"

    def child() -> tuple[object, list[str], int]:
        with NotebookSession(store=tmp_path / "child.db") as own:
            run = own.start(says, "child")
            return run.result(BOUND_S), logs(run), len(own.runs())

    assert in_child(child) == ("CHILD", ["print of child"], 1)
    assert (tmp_path / "child.db").is_file()


def test_a_file_that_the_parent_has_open_is_not_opened_again(make_session: MakeSession, store_path: Path) -> None:
    """SQLite would take no locks in the child, and lose what it writes: its runs are kept in memory, told."""
    parent = make_session()
    assert parent.start(says, "parent").result(BOUND_S) == "PARENT"

    def child() -> tuple[object, list[str], list[object]]:
        with NotebookSession(store=store_path) as own:
            run = own.start(says, "child")
            return run.result(BOUND_S), logs(run), [own.store.path, len(own.runs())]

    output, said, (path, count) = in_child(child)
    assert (output, path, count) == ("CHILD", None, 1)
    assert said[0] == (
        f"runs are not saved in {store_path}: it was open in the process that this one was forked from; "
        "runs are kept in memory only"
    )
    assert said[1] == "print of child"
    assert [run.output for run in parent.runs()] == ["PARENT"]


def test_a_file_that_the_parent_has_closed_is_opened_as_ever(make_session: MakeSession, store_path: Path) -> None:
    """Nobody's connection to it is in the child."""
    parent = make_session()
    assert parent.start(says, "parent").result(BOUND_S) == "PARENT"
    parent.close()
    parent.store.close(1.0)

    def child() -> list[object]:
        with NotebookSession(store=store_path) as own:
            own.start(says, "child").result(BOUND_S)
            return [run.output for run in own.runs()]

    assert in_child(child) == ["CHILD", "PARENT"]


def test_an_agent_that_forks_has_no_run_in_its_child(session: NotebookSession) -> None:
    """There is nobody who would take its events; what it prints goes where the process prints."""

    def forks(prompt: str) -> object:
        def child() -> str:
            print("in the child")
            return raised(nbrun.current)

        return in_child(child)

    run = session.start(forks)
    assert str(run.result(BOUND_S)).startswith("NbrunError")
    assert logs(run) == []


PROGRAM = """
import os, sys, nbrun

async def says(prompt):
    print("print of", prompt)
    return prompt.upper()

session = nbrun.session()
assert session.start(says, "first").result(10) == "FIRST"
pid = os.fork()
if pid == 0:
    run = nbrun.start(says, "child")
    print(run.result(10), nbrun.session() is session)
    del run, session
    sys.exit(0)  # with all that Python does at its end
assert os.waitpid(pid, 0)[1] == 0
for prompt in ("second", "third"):  # the loop wakes up, the writer commits
    assert session.start(says, prompt).result(10)
print([run.output for run in session.runs()])
"""


def test_a_child_that_ends_as_programs_do_harms_nobody(tmp_path: Path) -> None:
    """Its end closes no loop and no connection of the parent, whose runs go on and are saved."""
    env = {**os.environ, "PYTHONWARNINGS": "ignore", "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["CHILD False", "['THIRD', 'SECOND', 'FIRST']"]
    with NotebookSession(store=tmp_path / ".nbrun" / "session.db") as later:
        assert [run.output for run in later.runs()] == ["THIRD", "SECOND", "FIRST"]
    (child,) = (tmp_path / "data" / "nbrun").glob("*/*.db")
    with NotebookSession(store=child) as later:
        assert [run.output for run in later.runs()] == ["CHILD"]


def test_a_lock_that_another_thread_held_is_free_in_the_child() -> None:
    """That thread isn't there to release it."""
    lock, is_held, is_over = module_lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            is_held.set()
            is_over.wait(BOUND_S)

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(BOUND_S)
    assert in_child(lambda: lock.acquire(timeout=0)) is True
    is_over.set()
    thread.join(BOUND_S)
