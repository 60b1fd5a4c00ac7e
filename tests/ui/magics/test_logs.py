"""`%agentrun logs`: the lines of a run's log, live or stored, newest last."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import pytest

from nbrun import NotebookSession, RunContext
from nbrun.ui.magics import magics
from nbrun.ui.magics.magics import log_text
from tests.fakes.agents import BOUND_S, instant

MakeSession = Callable[..., NotebookSession]


async def logs(prompt: str, run: RunContext) -> None:
    """Print, note and stream."""
    print("one\ntwo")
    run.text("no line of the log")
    run.log("three", "warning")
    run.log("four \x1b[31m")


def lines_of(text: str) -> list[str]:
    """Return the lines without their times, which are there."""
    lines = text.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d  |… ", line) for line in lines)
    return [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in lines]


ALL = ["one", "two", "warning: three", "four \\u001b[31m"]


def test_the_log_of_a_run_is_shown(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was printed and noted, one line each, in the kernel that ran it and in a later one, in pages."""
    session = make_session()
    run = session.start(logs, "x")
    assert run.wait(BOUND_S)
    assert lines_of(log_text(run, 10)) == ALL
    session.close()
    monkeypatch.setattr(magics, "_PAGE", 2)
    stored = make_session().get(1)
    assert stored.live is None
    assert lines_of(log_text(stored, 10)) == ALL


def test_the_last_lines_are_shown_and_the_others_counted(session: NotebookSession) -> None:
    """As many as were asked for, and how to have all."""
    run = session.start(logs, "x")
    assert run.wait(BOUND_S)
    assert lines_of(log_text(run, 2)) == ["… 2 earlier lines; -n 4 shows all", *ALL[2:]]


def test_the_log_of_a_live_run_is_what_there_is(session: NotebookSession) -> None:
    """It does not wait for more."""

    async def goes_on(prompt: str, run: RunContext) -> None:
        print("begun")
        run.text("begun")
        await asyncio.Event().wait()

    run = session.start(goes_on, "x")
    while not run.text:
        assert not run.wait(0.01)
    assert lines_of(log_text(run, 10)) == ["begun"]


def test_a_run_without_a_log_says_so(session: NotebookSession) -> None:
    """Rather than print nothing."""
    run = session.start(instant, "x", name="mute")
    assert run.wait(BOUND_S)
    assert log_text(run, 10) == "Run #1 (mute) has logged nothing."
