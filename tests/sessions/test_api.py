"""The public API: every name is there, with the arguments that it is documented to take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nbrun
from nbrun import CancelToken, NotebookSession, Observer, Run, RunContext, SequentialIds
from tests.fakes import agents
from tests.fakes.agents import BOUND_S

START: dict[str, object] = {
    "name": None, "id": None, "model": None, "timeout_s": None, "max_turns": None, "max_tokens": None,
    "max_cost": None, "approve": "ask", "if_running": "queue", "on": "local", "thread": False, "tags": None,
    "tools": None,
}  # fmt: skip


def parameters(function: Callable[..., Any]) -> dict[str, object]:
    """Return a function's parameters with their defaults, `self` left out."""
    found = inspect.signature(function).parameters
    return {
        name: (... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in found.items()
        if name != "self"
    }


@pytest.mark.parametrize("start", [nbrun.start, NotebookSession.start])
def test_start_takes_what_is_documented(start: Callable[..., Any]) -> None:
    """Agent and prompt by position, everything else by name, with these defaults."""
    found = parameters(start)
    assert found["prompt"] == ""
    assert {name: found[name] for name in START} == START
    kinds = inspect.signature(start).parameters
    assert all(kinds[name].kind is inspect.Parameter.KEYWORD_ONLY for name in START)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (nbrun.get, {"ref": ...}),
        (nbrun.current, {}),
        (nbrun.session, {}),
        (nbrun.panel, {}),
        (NotebookSession.get, {"ref": ...}),
        (NotebookSession.cancel, {"ref": ..., "reason": None}),
        (NotebookSession.close, {}),
        (Run.done, {}),
        (Run.wait, {"timeout_s": None}),
        (Run.result, {"timeout_s": None}),
        (Run.events, {"after": -1, "limit": None}),
        (Run.cancel, {"reason": None}),
        (Run.steer, {"text": ...}),
        (Run.approve, {"call": None, "args": None, "text": None}),
        (Run.deny, {"call": None, "reason": None}),
        (Run.display, {}),
        (CancelToken.child, {}),
        (CancelToken.cancel, {"reason": None, "cause": nbrun.CancelCause.USER}),
        (CancelToken.add_callback, {"callback": ...}),
        (CancelToken.wait_sync, {"timeout_s": None}),
        (CancelToken.raise_if_cancelled, {}),
        (SequentialIds, {"prefix": "seq"}),
        (
            NotebookSession,
            {
                "path": None, "store": None, "ids": None, "clock": None, "observers": (), "max_concurrent": 8,
                "cancel_grace_s": 2.0,
            },
        ),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)  # fmt: skip
def test_functions_take_what_is_documented(function: Callable[..., Any], expected: dict[str, object]) -> None:
    """More may be added behind; what is documented keeps its name, place and default."""
    found = parameters(function)
    assert list(found)[: len(expected)] == list(expected)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (
            nbrun,
            "start get runs current session agent panel RunStatus CancelCause CancelToken CancelReceipt RunEvent "
            "RunRecord RunContext errors NotebookSession Run SequentialIds Observer",
        ),
        (NotebookSession, "start get runs current_run live_runs cancel cancel_current cancel_all close"),
        (
            Run,
            "id number name status cause reason phase output error usage calls record created_at started_at ended_at "
            "parent_id done wait result events cancel steer approve deny resume retry display __await__ __aiter__",
        ),
        (CancelToken, "child cancel cancelled reason cause raise_if_cancelled add_callback wait wait_sync deadline"),
        (
            RunContext,
            "text tool progress phase begin_turn usage log emit ask ask_sync inbox checkpoint restored "
            "start_child deadline",
        ),
        (Observer, "on_created on_event on_cancelled on_ended"),
        (
            nbrun.errors,
            "NbrunError UserError BadOption AgentNotFound RunNotFound IdConflict NoResult RunNotFinished RunFailed "
            "RunCancelled RunLost StoreError StoreReadOnly StoreTooNew StoreDamaged SessionClosed Cancelled",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_documented_name_is_there(owner: object, names: str) -> None:
    """Nothing that is documented is missing."""
    assert [name for name in names.split() if not hasattr(owner, name)] == []


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder for the session that is made on first use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    yield tmp_path
    nbrun.session().close()
    nbrun.session().store.close(1.0)


def test_outside_of_a_kernel_a_session_is_made_on_first_use(in_a_folder: Path) -> None:
    """The functions of the package work on it; once closed, the next use makes another."""
    run = nbrun.start(agents.instant, "tea", name="first")
    assert run.result(BOUND_S) == "done: tea"
    assert nbrun.get("first") == run
    assert list(nbrun.runs()) == [run]
    first = nbrun.session()
    assert nbrun.session() is first
    assert (in_a_folder / ".nbrun" / "session.db").exists()
    first.close()
    assert nbrun.session() is not first
    assert nbrun.get("first").output == "done: tea"


def test_without_a_page_the_panel_is_printed(in_a_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`panel()` prints the newest runs where nothing can show them."""
    nbrun.start(agents.instant, "tea", name="first").wait(BOUND_S)
    nbrun.panel()
    assert capsys.readouterr().out == f"{nbrun.runs()!r}\n"


def test_users_mistakes_are_one_line_in_ipython() -> None:
    """Each error of nbrun's renders itself as its name and message, without a traceback."""
    error = nbrun.errors.RunNotFound("no run '7' here")
    assert error._render_traceback_() == ["RunNotFound: no run '7' here"]
