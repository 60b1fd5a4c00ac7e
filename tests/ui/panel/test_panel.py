"""A panel without a page: what it shows where the store cannot be read, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from nbrun import NotebookSession
from nbrun.core.errors import StoreError
from nbrun.ui.cards.board import CardBoard
from nbrun.ui.panel.panel import Panel, Panels, PanelWidget
from tests.fakes import agents


def shown(panel: Panel) -> dict[str, Any]:
    """Look for the runs and draw them; return what the page gets."""
    assert panel.refresh(lambda: False)
    panel.draw()
    table: dict[str, Any] = panel.widget.panel
    return table


def test_a_store_in_trouble_leaves_what_is_known(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows stay, the reason is told, runs of this kernel still come; what was asked for is read when it clears."""
    session.start(agents.instant, "tea", name="before").wait(10)
    panel = Panel(session, PanelWidget(), None)
    assert [row["name"] for row in shown(panel)["rows"]] == ["before"]

    def fail() -> int:
        raise StoreError("the file is locked")

    with monkeypatch.context() as locked:
        locked.setattr(session, "count_runs", fail)
        session.start(agents.instant, "tea", name="meanwhile").wait(10)
        panel.ask({"op": "look", "status": "", "text": "befo", "page": "newest", "nonce": "n"})
        table = shown(panel)
        assert table["problem"] == "the file is locked"
        assert [row["name"] for row in table["rows"]] == ["meanwhile", "before"]
    table = shown(panel)
    assert (table["problem"], table["answered"]) == ("", "n")
    assert [row["name"] for row in table["rows"]] == ["before"]
    panel.close()


@pytest.mark.parametrize(
    "wish",
    [
        {"status": "odd", "text": ""}, {"status": [], "text": ""}, {"status": "", "text": 7},
        {"status": "", "text": "x" * 501}, {},
    ],
    ids=["status", "status type", "text type", "text length", "nothing"],
)  # fmt: skip
def test_a_wish_that_makes_no_sense_is_refused(session: NotebookSession, wish: dict[str, object]) -> None:
    """With the reason, and the table stays as it is."""
    session.start(agents.instant, "tea").wait(10)
    panel = Panel(session, PanelWidget(), None)
    before = shown(panel)["rows"]
    reply = panel.ask({"op": "look", "page": "more", **wish})
    assert reply["outcome"] == "refused"
    assert "status" in reply["message"]
    for key in ("no such run", None, ["x"]):
        assert panel.ask({"op": "open", "key": key}) == {"outcome": "sent"}
        assert shown(panel)["open"] == ""
    assert shown(panel)["rows"] == before
    panel.close()


def test_the_panel_follows_a_set_to_its_end(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause and an end, which change no run, are drawn too; nothing of its runs is but their counts."""
    monkeypatch.setattr("IPython.display.display", lambda data, **_: None)
    monkeypatch.setattr("IPython.display.DisplayHandle.update", lambda _handle, data, **_: None)
    board = CardBoard(session, "kernel", lambda _content: {})
    panels = Panels(session, board, "kernel", lambda _content: {})
    agent = agents.Held()
    found = session.map(agent, ["a", "b"], concurrency=2, name="graded")
    assert found._wait_until(lambda: found.counts.get("running") == 2, 10)
    panels.show("cell")
    (widget,) = [panel.widget for panel in panels._panels]
    changed = threading.Event()
    widget.observe(lambda _change: changed.set(), "panel")
    steps: list[tuple[Callable[[], object], str]] = [
        (found.pause, "Paused: 0 of 2 ended"), (found.unpause, "Running: 0 of 2 ended"),
        (agent.let_go, "Completed: 2 completed"),
    ]  # fmt: skip
    for step, words in steps:
        step()
        while not _is_shown(widget, words):
            assert changed.wait(10), widget.panel
            changed.clear()
    panels.close()
    board.close(5)
    panels.close_widgets()


def _is_shown(widget: PanelWidget, words: str) -> bool:
    """Return whether the one row is a set with this status."""
    rows = widget.panel["rows"]
    return len(rows) == 1 and rows[0]["cells"]["status"].startswith(words)
