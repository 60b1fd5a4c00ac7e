"""Requests of pages: each is done once, however late its second copy arrives."""

from __future__ import annotations

from typing import Any

import pytest

from nbrun import NotebookSession
from nbrun.ui.kernel.requests import Requests
from tests.fakes.agents import BOUND_S, waits_for_cancel

MANY = 300
"""Requests between the two copies of one."""


@pytest.mark.parametrize("op", ["look", "open", "keep"])
def test_a_late_copy_is_not_done_again(op: str) -> None:
    """Other requests, also looks of a page that is scrolled, don't make a click be forgotten."""
    done: list[str] = []

    def ask(content: dict[str, Any]) -> dict[str, Any]:
        done.append(content["nonce"])
        return {"outcome": "sent"}

    with NotebookSession() as session:
        requests = Requests(session)
        requests.ask_panel = ask
        first = requests.answer({"op": "keep", "nonce": "click"})
        for number in range(MANY):
            requests.answer({"op": op, "nonce": f"other-{number}"})
        assert requests.answer({"op": "keep", "nonce": "click"}) == first
    assert (done.count("click"), len(done)) == (1, MANY + 1)


def test_a_late_copy_of_cancel_all_spares_newer_runs() -> None:
    """The page sent it before they began."""
    with NotebookSession() as session:
        requests = Requests(session)
        click = {"op": "cancel_all", "session_id": session.id, "nonce": "click"}
        old = session.start(waits_for_cancel, "old")
        assert requests.answer(click)["count"] == 1
        assert old.wait(BOUND_S)
        for number in range(MANY):
            requests.answer({**click, "nonce": f"other-{number}"})
        new = [session.start(waits_for_cancel, name) for name in ("new", "newer")]
        assert requests.answer(click)["count"] == 1  # as the first time: it would be 2
        assert [str(run.cancel(by="card").outcome) for run in new] == ["requested", "requested"]
