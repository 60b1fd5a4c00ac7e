"""The card of a set without a page: what it sends, however many runs there are, and what its buttons do."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbrun import NotebookSession, RunContext, RunSet
from nbrun.ui.cards.board import CardBoard
from nbrun.ui.cards.set_cards import Pacer, SetCard, SetCards, SetWidget
from nbrun.ui.kernel.requests import Requests
from tests.fakes.agents import BOUND_S, Held, talking

HOSTILE = "<img src=x onerror=alert(1)>\u202e\x1b[31m"


@pytest.fixture
def requests(session: NotebookSession) -> Requests:
    """What answers clicks."""
    return Requests(session)


@pytest.fixture
def shown(session: NotebookSession, requests: Requests, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shown]:
    """Shows cards of sets, and notes what is sent to the page."""
    board = CardBoard(session, "kernel", requests.answer)
    outputs: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: outputs.append(data))
    monkeypatch.setattr("IPython.display.DisplayHandle.update", lambda _handle, data, **_: outputs.append(data))
    yield Shown(SetCards(session, board, "kernel", requests.answer), outputs)
    board.close(5)


class Shown:
    """The cards on display, and the outputs that were sent."""

    def __init__(self, cards: SetCards, outputs: list[dict[str, Any]]) -> None:
        self.cards = cards
        self.outputs = outputs

    def show(self, found: RunSet) -> SetCard:
        """Show one."""
        self.cards.show(found)
        return self.cards._cards[-1]


def until(widget: SetWidget, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the state that the page has got, once it is so."""
    arrived = threading.Event()

    def look(_change: object) -> None:
        if is_so(widget.set):
            arrived.set()

    widget.observe(look, "set")
    look(None)
    assert arrived.wait(BOUND_S), widget.set
    return dict(widget.set)


def test_a_card_follows_its_set_to_the_end_and_leaves_a_static_one(session: NotebookSession, shown: Shown) -> None:
    """Counts come as they change; then the output holds what a file keeps."""
    agent = Held()
    card = shown.show(found := session.map(agent, {"a": "tea", "b": "milk"}, concurrency=1, name="graded"))
    state = until(card.widget, lambda state: any(part["words"] == "1 running" for part in state["parts"]))
    assert (state["status"], state["rest"], state["size"]) == ("running", 2, "2 runs")
    assert "Not finished when the notebook was saved" in str(shown.outputs[0])
    agent.let_go()
    assert found.wait(BOUND_S)
    state = until(card.widget, lambda state: not state["live"])
    assert [part["words"] for part in state["parts"]] == ["2 completed"]
    assert [member["title"] for member in state["newest"]] == ["#2 b", "#1 a"]
    shown.cards._board.close(5)
    assert "Completed in" in shown.outputs[-1]["text/plain"]
    assert "widget" not in str(shown.outputs[-1].keys())


def test_a_click_cancels_the_whole_set_pauses_it_and_goes_on(
    session: NotebookSession, shown: Shown, requests: Requests
) -> None:
    """By the set's number and the session's id; a number that is none, or another session's, is not found."""
    agent = Held()
    card = shown.show(found := session.map(agent, [str(at) for at in range(50)], concurrency=2))
    assert agent.entered.wait(BOUND_S)
    click = {"set": found.number, "session_id": session.id}
    assert requests.answer({"op": "pause", **click})["outcome"] == "sent"
    assert until(card.widget, lambda state: state["status"] == "paused")["words"] == "Paused"
    assert requests.answer({"op": "unpause", **click})["outcome"] == "sent"
    until(card.widget, lambda state: state["status"] == "running")
    for other in ({"set": found.number}, {**click, "set": 99}, {**click, "set": "1"}, {**click, "session_id": "x"}):
        assert requests.answer({"op": "cancel", **other})["outcome"] == "not_found"
    assert requests.answer({"op": "cancel", **click})["outcome"] == "requested"
    assert found.wait(BOUND_S)
    assert until(card.widget, lambda state: not state["live"])["parts"][0]["words"] == "50 cancelled"
    assert requests.answer({"op": "pause", **click, "nonce": "late"})["outcome"] == "refused"


def test_a_retry_of_one_error_makes_the_card_live_again(
    session: NotebookSession, shown: Shown, requests: Requests
) -> None:
    """Once, however often the click arrives; what failed otherwise stays."""
    tries: list[str] = []

    async def picky(prompt: str) -> str:
        tries.append(prompt)
        if prompt != "fine" and len(tries) <= 4:
            raise ValueError("429" if prompt.startswith("busy") else "no such tea")
        return prompt

    card = shown.show(found := session.map(picky, ["busy 1", "busy 2", "bad", "fine"], concurrency=1))
    assert found.wait(BOUND_S)
    state = until(card.widget, lambda state: not state["live"])
    assert [(error["count"], error["words"]) for error in state["errors"]] == [
        (2, "ValueError: 429"),
        (1, "ValueError: no such tea"),
    ]
    click = {
        "op": "retry", "set": found.number, "session_id": session.id, "error": state["errors"][0]["key"], "nonce": "n"
    }  # fmt: skip
    assert [requests.answer(click)["outcome"] for _ in range(2)] == ["sent", "sent"]
    assert found.wait(BOUND_S)
    state = until(card.widget, lambda state: not state["live"] and len(state["errors"]) == 1)
    assert [part["words"] for part in state["parts"]] == ["3 completed", "1 failed"]
    assert sorted(tries) == ["bad", "busy 1", "busy 1", "busy 2", "busy 2", "fine"]


def test_a_run_of_the_set_is_opened_on_its_card(session: NotebookSession, shown: Shown) -> None:
    """Its own card is drawn there; a number that nobody has closes it."""
    card = shown.show(found := session.map(talking, ["tea"]))
    assert found.wait(BOUND_S)
    shown.cards._on_message(card, {"op": "open", "number": 1})
    state = until(card.widget, lambda state: state["open"] == 1)
    assert (card.widget.run["number"], card.widget.run["status"]) == (1, "completed")
    for odd in (0, 99, "1", None, -1, 2**70):
        shown.cards._on_message(card, {"op": "open", "number": odd})
        state = card.state()
        assert state["open"] == 0


def test_what_is_sent_is_small_and_shows_what_is_hidden(session: NotebookSession, shown: Shown) -> None:
    """Of 100,000 inputs with long hostile texts; nothing of them is markup in the static card."""

    async def hostile(prompt: str) -> str:
        if prompt.startswith("bad"):
            raise ValueError(HOSTILE + prompt)
        return HOSTILE * 1_000

    inputs = {f"{HOSTILE}{at}{'k' * 500}": f"bad {at}" if at % 2 else "good" for at in range(40)}
    inputs |= {str(at): "later" for at in range(100_000)}
    found = session.map(hostile, inputs, name=HOSTILE * 100, concurrency=4)
    card = shown.show(found)
    until(card.widget, lambda state: state["failed"] >= 10 and len(state["newest"]) == 5)
    found.pause()
    state = card.state()
    assert len(json.dumps(state)) < 16 * 1024
    drawn = {
        **state,
        "errors": [{**error, "key": ""} for error in state["errors"]],
    }  # which is sent back, and not drawn
    assert "\u202e" not in json.dumps(drawn, ensure_ascii=False)
    output = card.output()
    assert len(json.dumps(output)) < 64 * 1024
    assert "<img" not in output["text/html"]
    assert "\x1b" not in output["text/plain"]
    found.cancel()
    assert found.wait(BOUND_S)


def paced(pacer: Pacer, seconds: range, *, per_s: float, rest: int | None, before: int = 0) -> str:
    """Return the words after so many seconds at this pace."""
    words = ""
    for at in seconds:
        words = pacer.pace(before + round(per_s * (at - seconds[0])), rest, float(at), 1_000.0 + at).words
    return words


def test_the_time_left_is_given_only_while_it_is_sure() -> None:
    """Not before some have ended, where the number of inputs isn't known, or soon after the pace has changed."""
    assert paced(Pacer(), range(2), per_s=10, rest=100) == ""
    assert paced(Pacer(), range(6), per_s=1, rest=100) == ""
    assert paced(Pacer(), range(30), per_s=10, rest=None) == "10/s"
    pacer = Pacer()
    assert paced(pacer, range(30), per_s=10, rest=6_000) == "10/s · about 10 min left"
    assert paced(pacer, range(30, 60), per_s=1, rest=6_000, before=290) == "60/min"
    assert paced(pacer, range(60, 140), per_s=1, rest=600, before=320) == "60/min · about 10 min left"
    assert paced(pacer, range(140, 145), per_s=1, rest=0, before=400) == "60/min"
    assert paced(pacer, range(145, 147), per_s=1, rest=9, before=0) == ""  # some are run again


def test_ends_that_come_in_bursts_make_no_pace_of_their_own() -> None:
    """Two hundred at once, every two seconds, are a hundred a second whenever one looks."""
    pacer = Pacer()
    seen = [pacer.pace(200 * int(at / 20), None, at / 10, 0.0).words for at in range(1_000)]
    assert {int(words.removesuffix("/s")) for words in seen[400:]} <= set(range(90, 111))


def test_a_pace_holds_until_the_next_end_is_overdue() -> None:
    """At least for a few seconds, and longer where runs are slow."""
    for per_s, for_s in ((10.0, 5.0), (0.1, 50.0)):
        pacer = Pacer()
        for at in range(201):
            pace = pacer.pace(int(per_s * at), 100, float(at), 1_000.0 + at)
        assert pace.until == pytest.approx(1_200 + for_s, rel=0.01)
        later = pacer.pace(int(per_s * 200), 100, 203.0, 1_203.0)
        assert later.until == pytest.approx(1_200 + for_s, rel=0.02)


def test_a_card_is_drawn_in_every_other_slot_at_most(
    session: NotebookSession, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many runs end: the slots are a twentieth of a second, so that makes ten updates a second."""
    drawn: list[int] = []
    has_more = [False]
    draw = SetCard.draw

    def count(card: SetCard) -> bool:
        if not has_more[0]:  # else it is the output that goes with a state
            drawn.append(shown.cards._board._slots)
        has_more[0] = draw(card)
        return has_more[0]

    monkeypatch.setattr(SetCard, "draw", count)
    card = shown.show(session.map(talking, [str(at) for at in range(300)]))
    until(card.widget, lambda state: not state["live"])
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(drawn)), drawn


def test_questions_are_grouped_and_answered_as_they_were_shown(
    session: NotebookSession, shown: Shown, requests: Requests
) -> None:
    """By what they ask: what came later, or was not shown whole, is not answered with them."""
    told: list[str] = []

    async def asks(prompt: str, run: RunContext) -> str:
        message, _, path = prompt.partition(" ")
        answer = await run.ask(message, args={"path": path})
        told.append(f"{prompt} {bool(answer)}")
        return prompt

    prompts = ["delete a", "delete a", "delete b", f"send {'x' * 5_000}", "late c"]
    card = shown.show(found := session.map(asks, prompts, concurrency=9, approve="ask"))
    assert found._wait_until(lambda: found.counts.get("waiting") == 5, BOUND_S)
    found._live.questions._shown.clear()  # type: ignore[union-attr]  # as after the seconds for which they stay
    groups = {group["message"]: group for group in card.state()["questions"]}
    deletes = groups["delete"]
    assert (deletes["count"], set(deletes["runs"])) == (3, {found[0].number, found[2].number})
    assert [line[:3] for line in deletes["args"]] == ["2 ×", "1 ×"]
    assert groups["send"]["digest"] == ""
    click = {"set": found.number, "session_id": session.id}
    for digest in (None, "", "x", groups["send"]["digest"]):
        assert requests.answer({"op": "approve", **click, "digest": digest})["outcome"] == "refused"
    assert requests.answer({"op": "approve", **click, "digest": deletes["digest"], "nonce": "1"})["outcome"] == "sent"
    assert requests.answer({"op": "deny", **click, "digest": groups["late"]["digest"]})["outcome"] == "sent"
    assert found._wait_until(lambda: found.counts.get("completed") == 4, BOUND_S)
    assert requests.answer({"op": "deny", **click, "digest": deletes["digest"]})["outcome"] == "refused"
    found.cancel()
    assert found.wait(BOUND_S)
    assert sorted(told) == ["delete a True", "delete a True", "delete b True", "late c False"]
    assert card.state()["questions"] == []
