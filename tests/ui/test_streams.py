"""What the front ends put in place of the streams takes nothing of what runs print, at no moment."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator

import pytest
from IPython.utils.capture import capture_output
from rich.console import Console
from rich.live import Live

from nbrun import NotebookSession, Run
from nbrun.core import events as ev
from nbrun.ui.kernel import waiting
from nbrun.ui.terminal.live_line import show_until_end
from tests.fakes.agents import BOUND_S

LetGo = Callable[[], None]


@pytest.fixture
def printing(session: NotebookSession) -> Iterator[tuple[Run, LetGo]]:
    """A run that is about to print, and what lets it; that waits for its end."""
    begun, go_on = threading.Event(), threading.Event()

    def prints(prompt: str) -> None:
        begun.set()
        assert go_on.wait(BOUND_S)
        print("the agent's")

    def let_go() -> None:
        go_on.set()
        assert run.wait(BOUND_S)

    run = session.start(prints)
    assert begun.wait(BOUND_S)
    yield run, let_go
    go_on.set()


def printed(run: Run) -> list[str]:
    """Return the lines of the run's log."""
    return [event.data.text for event in run.events() if isinstance(event.data, ev.Log)]


def after(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, do: LetGo) -> None:
    """Have something done right after each call of a method."""
    method = getattr(owner, name)

    def call(*args: object) -> object:
        result = method(*args)
        do()
        return result

    monkeypatch.setattr(owner, name, call)


def test_a_captured_cell(printing: tuple[Run, LetGo], monkeypatch: pytest.MonkeyPatch) -> None:
    """`%%capture` has the cell's prints and no others, from the moment at which it begins."""
    run, let_go = printing
    after(monkeypatch, capture_output, "__enter__", let_go)
    undo = waiting.wrap_capture()
    try:
        with capture_output() as captured:
            print("the cell's")
    finally:
        undo()
    assert printed(run) == ["the agent's"]
    assert captured.stdout == "the cell's\n"


def test_the_line_of_a_terminal(
    session: NotebookSession, printing: tuple[Run, LetGo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that is drawn while a run is waited for: neither it nor its control codes are in the log."""
    run, let_go = printing
    shown = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=shown, force_terminal=True))
    after(monkeypatch, Live, "_enable_redirect_io", let_go)
    show_until_end(run, session)
    assert printed(run) == ["the agent's"]
    assert "Log (1 line):\n  | the agent's" in shown.getvalue()
