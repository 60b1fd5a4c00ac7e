"""Prints of an agent go to its own run's log, everybody else's where they always went."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from nbrun import NotebookSession, Run
from nbrun.core import events as ev
from nbrun.host.capture import RunStream
from tests.fakes.agents import BOUND_S


def printed(run: Run, level: str = "stdout") -> str:
    """Return what the run printed, by its log."""
    assert run.wait(BOUND_S)
    lines = [e.data.text for e in run.events() if isinstance(e.data, ev.Log) and e.data.level == level]
    return "\n".join(lines)


def test_prints_land_in_the_log(session: NotebookSession, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output and error of an async agent are log events of its run, and reach no cell."""

    async def prints(prompt: str) -> None:
        print("hello", prompt)
        print("no newline", end="")
        print("oops", file=sys.stderr)
        sys.stdout.writelines(["", ", and more"])

    run = session.start(prints, "tea")
    assert printed(run) == "hello tea\nno newline, and more"
    assert printed(run, "stderr") == "oops"
    session.close()
    out, err = capsys.readouterr()
    assert "hello" not in out
    assert "oops" not in err


def test_prints_of_a_sync_agent_land_in_its_log(session: NotebookSession) -> None:
    """Its thread knows which run it belongs to."""

    def prints(prompt: str) -> None:
        print("from a thread")

    assert printed(session.start(prints)) == "from a thread"


def test_prints_of_a_failing_agent_are_kept(session: NotebookSession) -> None:
    """What it printed before the error, the unfinished line included, is in the log before the end."""

    async def prints(prompt: str) -> None:
        print("last words", end="")
        raise ValueError("oops")

    run = session.start(prints)
    assert printed(run) == "last words"
    assert run.events()[-1].type == "run.failed"


def test_two_runs_at_once_keep_their_prints_apart(session: NotebookSession) -> None:
    """Interleaved on one loop, each line lands in the log of who printed it."""

    async def prints(prompt: str) -> None:
        for number in range(20):
            print(prompt, number)
            await asyncio.sleep(0)

    runs = [session.start(prints, name) for name in ("a", "b")]
    for run, name in zip(runs, "ab", strict=True):
        assert printed(run) == "\n".join(f"{name} {number}" for number in range(20))


def test_everybody_elses_prints_pass_through(session: NotebookSession, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell, and a thread that is nobody's agent, print as ever while runs are under way."""

    async def prints(prompt: str) -> None:
        print("the agent's")

    run = session.start(prints)
    print("the cell's")
    thread = threading.Thread(target=print, args=("the thread's",))
    thread.start()
    thread.join(BOUND_S)
    assert run.wait(BOUND_S)
    assert capsys.readouterr().out == "the cell's\nthe thread's\n"


def test_the_streams_are_given_back_at_the_close(session: NotebookSession) -> None:
    """A session stands before the streams only while it lives, and they keep their other methods."""

    async def nothing(prompt: str) -> None:
        """Do nothing."""

    before = sys.stdout
    session.start(nothing).wait(BOUND_S)
    assert isinstance(sys.stdout, RunStream)
    assert sys.stdout.encoding == before.encoding
    sys.stdout.flush()
    session.close()
    assert sys.stdout is before
