"""A list of runs: a table in a terminal, in a notebook and as a DataFrame."""

from __future__ import annotations

import re

import pytest

from nbrun import NotebookSession, RunContext, RunList
from tests.fakes import agents
from tests.fakes.agents import BOUND_S


def test_the_table_has_a_row_a_run(session: NotebookSession) -> None:
    """Number, name, status, agent, start and what came out, newest first; nobody has told of tokens."""
    session.start(agents.instant, "tea", name="first").wait(BOUND_S)
    session.start(agents.failing, "tea", name="second").wait(BOUND_S)
    header, second, first = repr(session.runs()).splitlines()
    assert header.split() == ["Run", "Name", "Status", "Agent", "Started", "Output"]
    assert first.startswith("#1")
    assert "Completed in" in first
    assert first.endswith("done: tea")
    assert "Failed after" in second
    assert "ValueError: " in second


def test_a_table_is_as_wide_as_the_terminal(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is cut, with a sign; an agent that is called like its run is not named twice."""
    session.start(agents.instant, "x" * 200).wait(BOUND_S)
    monkeypatch.setenv("COLUMNS", "80")
    header, row = repr(session.runs()).splitlines()
    assert "Agent" not in header
    assert row.count("instant") == 1
    assert "…" in row
    assert "Completed in" in row
    assert re.search(r" \d\d-\d\d \d\d:\d\d ", row)  # the year and the seconds are left out
    session.start(agents.talking, "tea", name="a name that is long " * 9).wait(BOUND_S)
    assert max(map(len, repr(session.runs()).splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "400")
    assert "a name that is long " * 9 in repr(session.runs())


def test_what_a_run_is_called_and_how_it_ended_stays_in_a_narrow_terminal(
    session: NotebookSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it comes from and how long it took are whole at 80 columns; tokens and agent give way."""

    async def counted(prompt: str, run: RunContext) -> str:
        run.usage(input_tokens=123_456, output_tokens=7_890)
        return "a text that is rather long"

    first = session.start(counted, "tea", name="shopkeeper")
    assert first.wait(BOUND_S)
    assert first.retry().wait(BOUND_S)
    monkeypatch.setenv("COLUMNS", "80")
    header, again, _ = repr(session.runs()).splitlines()
    assert header.split() == ["Run", "Name", "Status", "Started", "Output"]
    assert "shopkeeper (retry of #1)" in again
    assert re.search(r"Completed in \d+ ms  ", again)
    monkeypatch.setenv("COLUMNS", "160")
    assert "123,456 in · 7,890 out" in repr(session.runs())


def test_the_html_table_holds_no_html_of_an_agent(session: NotebookSession) -> None:
    """Names and outputs are text: nothing in them becomes a tag."""
    session.start(agents.instant, "<img src=x onerror=alert(1)>", name="<b>x</b>").wait(BOUND_S)
    html = session.runs()._repr_html_()
    assert "<img" not in html
    assert "<b>" not in html
    assert "&lt;img" in html


def test_an_empty_list_says_so() -> None:
    """No runs is no empty table."""
    assert repr(RunList()) == "no runs"
    assert RunList()._repr_html_() == "<p>no runs</p>"


def test_runs_become_a_data_frame(session: NotebookSession) -> None:
    """One row a run, times as UTC, seconds as floats; an empty list is an empty frame."""
    session.start(agents.talking, "tea", name="poem").wait(BOUND_S)
    frame = session.runs().to_pandas()
    assert list(frame["name"]) == ["poem"]
    assert list(frame["output"]) == ["one two three"]
    assert list(frame["status"]) == ["completed"]
    assert str(frame["ended_at"].dtype).endswith("UTC]")
    assert frame["elapsed_s"][0] >= 0
    assert list(frame["events"]) == [6]
    assert RunList().to_pandas().empty
