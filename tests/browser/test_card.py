"""The card in a real Chromium, with a fake model in place of Jupyter."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from playwright.sync_api import expect

from nbrun import CancelCause, RunRecord, RunStatus
from nbrun.core import events as ev
from nbrun.core.record import ToolCall
from nbrun.render.static_card import bundle
from tests.browser import axe
from tests.browser.card_page import NOW, CardPage
from tests.browser.pictures import SCREENSHOTS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

STATUSES = {
    "queued": "Queued",
    "running": "Running",
    "waiting": "Waiting for you",
    "cancelling": "Cancelling",
    "completed": "Completed",
    "failed": "Failed after 12 s",
    "cancelled": "Cancelled by you after 12 s",
    "lost": "Lost: the kernel died",
}
LIVE = {"queued", "running", "waiting", "cancelling"}
HOSTILE = "<img src=/stolen onerror=\"fetch('/stolen')\"><script>fetch('/stolen')</script>"


def make_run(status: str = "running", **fields: Any) -> dict[str, Any]:
    """Return what the kernel sends for a run of that status, 12 s after its start."""
    is_live = status in LIVE
    run = {
        "id": "run-1",
        "number": 3,
        "name": "my_agent",
        "agent": "my_agent",
        "status": status,
        "words": STATUSES[status],
        "live": is_live,
        "phase": None,
        "created_at": NOW - 14,
        "started_at": None if status == "queued" else NOW - 12,
        "ended_at": None if is_live else NOW,
        "now": NOW,
        "usage": "",
        "text": "",
        "text_cut": 0,
        "tools": [],
        "tools_cut": 0,
        "progress": None,
        "log": [],
        "log_count": 0,
        "error": None,
        "notices": [],
    }
    return run | fields


def make_tool(name: str = "search", status: str = "ok", **fields: Any) -> dict[str, Any]:
    """Return one tool call as the kernel sends it."""
    is_open = status == "running"
    tool = {
        "id": f"call-{name}",
        "name": name,
        "args": '{"query": "comets", "limit": 5}',
        "kind": "function",
        "status": status,
        "started_at": NOW - 12,
        "ms": None if is_open else 140,
        "result": "" if is_open else "5 hits",
    }
    return tool | fields


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_is_a_word_and_a_shape(card: CardPage, status: str) -> None:
    """Each status is said in words, to screen readers too, and has a shape that these do not hear of."""
    card.open(make_run(status))
    expect(card.page.get_by_role("status")).to_have_text(STATUSES[status])
    expect(card.part("shape")).to_be_visible()
    expect(card.part("shape")).to_have_attribute("aria-hidden", "true")
    expect(card.cancel).to_be_visible(visible=status in LIVE)


def test_shapes_differ_without_colour(card: CardPage) -> None:
    """In black and standing still, no two statuses look the same."""
    card.open(make_run())
    card.page.emulate_media(reduced_motion="reduce")
    card.page.add_style_tag(content=".nbrun-card__shape { color: black !important }")
    pictures = set()
    for status in STATUSES:
        card.update(status=status)
        pictures.add(card.part("shape").screenshot())
    assert len(pictures) == len(STATUSES)


def test_the_head_names_the_run(card: CardPage) -> None:
    """Name, number, another agent's label, time and tokens stand in the head; a lower bound is marked."""
    card.open(make_run(agent="pydantic-ai", usage="≥ 1,204 in · 340 out tokens"))
    expect(card.part("facts")).to_have_text("Runningmy_agent#3pydantic-ai12 s≥ 1,204 in · 340 out tokens")
    card.update(number=None, agent="my_agent", usage="1,204 in · 340 out tokens")
    expect(card.part("number")).to_be_hidden()
    expect(card.part("agent")).to_be_hidden()
    expect(card.part("usage")).to_have_text("1,204 in · 340 out tokens")


def test_text_streams_by_its_suffix(card: CardPage) -> None:
    """New text is appended to the one text node; a tail that has moved on replaces it and says what is missing."""
    card.open(make_run(text="Once"))
    card.page.evaluate(
        """() => {
          window.changes = [];
          const watch = (all) => all.forEach((one) => changes.push([one.type, one.oldValue]));
          const options = { subtree: true, childList: true, characterData: true, characterDataOldValue: true };
          new MutationObserver(watch).observe(document.querySelector(".nbrun-card"), options);
          window.textNode = document.querySelector(".nbrun-card__stream").firstChild;
          getSelection().setBaseAndExtent(textNode, 0, textNode, 4);
        }"""
    )
    card.update(text="Once upon a time")
    expect(card.part("text")).to_have_text("Once upon a time")
    assert card.ask("changes") == [["characterData", "Once"]]
    assert card.ask("getSelection().toString()") == "Once"  # replaced text would be unselected
    card.update(text="a time\n  there was", text_cut=1234)
    expect(card.page.get_by_text("… 1,234 earlier characters")).to_be_visible()
    assert card.part("text").inner_text() == "a time\n  there was"
    assert card.ask("textNode === document.querySelector('.nbrun-card__stream').firstChild")


def test_updates_are_drawn_once_a_frame(card: CardPage) -> None:
    """A hundred updates between two frames are one change of the page."""
    card.open(make_run(text="."))
    card.page.evaluate(
        """() => {
          window.changes = 0;
          const options = { subtree: true, characterData: true, childList: true };
          const count = (all) => (changes += all.length);
          new MutationObserver(count).observe(document.querySelector(".nbrun-card"), options);
          for (let n = 2; n <= 101; n++) harness.update({ text: ".".repeat(n) });
        }"""
    )
    card.pass_ms(20)
    expect(card.part("text")).to_have_text("." * 101)
    assert card.ask("changes") == 1


def test_the_text_follows_its_end_unless_scrolled_up(card: CardPage) -> None:
    """A growing text stays at its end; a reader who has scrolled up is left alone."""
    card.open(make_run(text="line\n" * 100))
    distance = "box.scrollHeight - box.scrollTop - box.clientHeight"
    card.page.evaluate("() => { window.box = document.querySelector('.nbrun-card__text') }")
    assert card.ask(distance) <= 1
    card.update(text="line\n" * 150)
    assert card.ask(distance) <= 1
    card.page.evaluate("() => { box.scrollTop = 40 }")
    card.update(text="line\n" * 200)
    assert card.ask("box.scrollTop") == 40


def test_hostile_strings_stay_text(card: CardPage) -> None:
    """Markup in any field is shown as it is: no element comes of it, and no request leaves the page."""
    card.open(make_run())
    elements = "document.querySelectorAll('img, script:not([src]), a, iframe').length"
    requests = len(card.requests)
    tool = make_tool(HOSTILE, id=HOSTILE, kind=HOSTILE, args=HOSTILE, status=HOSTILE, result=HOSTILE)
    fields = ("words", "name", "agent", "status", "phase", "text", "error")
    card.update(tools=[tool], notices=[HOSTILE], **dict.fromkeys(fields, HOSTILE))
    card.update(log=[HOSTILE], log_count=1, progress={"part": 0.5, "words": HOSTILE})
    for part in ("words", "name", "phase", "notice", "text", "error", "log-lines", "done"):
        expect(card.part(part)).to_have_text(HOSTILE)
    for part in ("tool-kind", "tool-name", "tool-args", "tool-all-args", "tool-status", "tool-result"):
        expect(card.part(part)).to_have_text(HOSTILE)
    assert card.ask(elements) == 0
    assert card.requests[requests:] == []


def test_tool_rows(card: CardPage) -> None:
    """A call shows kind, name, arguments, status and time; it is open while it runs or where it failed.

    What its reader opens or closes stays so.
    """
    names = ("running", "ok", "error", "denied", "cancelled")
    card.open(make_run(tools=[make_tool(f"tool_{name}", name) for name in names], tools_cut=2))
    expect(card.part("cut").first).to_have_text("… 2 earlier tool calls")
    expect(card.part("tool")).to_have_count(5)
    expect(card.part("tool-status")).to_have_text(list(names))
    expect(card.part("tool-line").nth(1)).to_have_text('function tool_ok {"query": "comets", "limit": 5}ok140 ms')
    are_open = "[...document.querySelectorAll('.nbrun-card__tool details')].map(d => d.open)"
    assert card.ask(are_open) == [True, False, True, False, False]
    expect(card.part("tool-result").nth(1)).to_be_hidden()
    expect(card.part("tool-result").nth(2)).to_have_text("5 hits")
    card.part("tool-line").nth(1).click()
    card.part("tool-line").nth(2).click()
    card.update(tools=[make_tool(f"tool_{name}", name) for name in ("ok", *names[1:])])
    assert card.ask(are_open) == [False, True, False, False, False]
    card.part("tool-line").nth(2).press("Enter")
    later = [make_tool("tool_error", "error"), make_tool("tool_new", "running")]
    card.update(tools=later, tools_cut=4)
    expect(card.part("tool-name")).to_have_text(["tool_error", "tool_new"])
    assert card.ask(are_open) == [True, True]


def make_calls(place: int, words: str = "openai gpt-4o · 7 in · 4 out", **fields: Any) -> dict[str, Any]:
    """Return a group of model calls as the kernel sends it, before the tool at that place."""
    calls = {
        "place": place,
        "status": "ok",
        "words": words,
        "nested": False,
        "started_at": 0.0,
        "ms": 812.0,
        "lines": ["7 in (2 cached) · 4 out · 0.8 s"],
        "lines_cut": 0,
    }
    return calls | fields


def test_model_calls_are_thin_rows_between_the_tools(card: CardPage) -> None:
    """In order; one that runs shows for how long, and unfolded all of them are listed. None is ever markup."""
    card.open(make_run(calls=[make_calls(0, HOSTILE, status="running", started_at=NOW - 3, ms=None, lines=[HOSTILE])]))
    expect(card.part("calls-words")).to_have_text(HOSTILE)
    expect(card.part("calls-ms")).to_have_text("3 s")
    expect(card.part("idle")).to_be_hidden()
    assert card.ask("document.querySelectorAll('.nbrun-card img').length") == 0
    several = make_calls(2, "12 model calls · openai gpt-4o", ms=None, lines=["4 out", "5 out"], lines_cut=10)
    tools, calls = [make_tool("first"), make_tool("second")], [make_calls(0), make_calls(1), several]
    card.update(tools=tools, calls=calls)
    rows = ["openai gpt", "function first", "openai gpt", "function second", "12 model calls"]
    expect(card.page.locator(".nbrun-card__tools > li")).to_have_text([re.compile(row) for row in rows])
    tall, thin = (card.part(part).first.bounding_box() for part in ("tool-line", "calls-line"))
    assert tall is not None
    assert thin is not None
    assert thin["height"] < tall["height"]
    expect(card.part("calls-lines").nth(2)).to_be_hidden()
    card.part("calls-line").nth(2).click()
    expect(card.part("calls-cut").nth(2)).to_have_text("… 10 earlier model calls")
    expect(card.part("calls-lines").nth(2).get_by_role("listitem")).to_have_text(["4 out", "5 out"])
    card.update(tools=tools[1:], tools_cut=1, calls=calls[1:], calls_cut=1)
    expect(card.part("cut").first).to_have_text("… 1 earlier tool call and 1 earlier model call")
    expect(card.page.locator(".nbrun-card__tools > li")).to_have_text([re.compile(row) for row in rows[2:]])
    expect(card.part("calls-lines").nth(1)).to_be_visible()
    card.update(tools=[], tools_cut=0, calls=[], calls_cut=0)
    expect(card.part("tools")).to_be_hidden()


def test_a_silent_agent_is_waited_for_aloud(card: CardPage) -> None:
    """Until the first text the card says that it waits, and for how long; a tool at work speaks for itself."""
    card.open(make_run(started_at=NOW - 3))
    expect(card.part("idle")).to_have_text("waiting for the agent… 3 s")
    card.update(tools=[make_tool(status="running")])
    expect(card.part("idle")).to_be_hidden()
    card.update(tools=[make_tool()])
    expect(card.part("idle")).to_be_visible()
    for telling in ("phase", "text"):
        card.update(**{telling: "Hello"})
        expect(card.part("idle")).to_be_hidden()
        card.update(**{telling: ""})
        expect(card.part("idle")).to_be_visible()
    card.update(progress={"part": 0.0, "words": "0 of 12"})
    expect(card.part("idle")).to_be_hidden()


def test_progress_is_a_bar_and_words(card: CardPage) -> None:
    """A part of a whole fills the bar, without a whole it moves, and after the end only the words are left."""
    card.open(make_run())
    expect(card.part("progress")).to_be_hidden()
    card.update(progress={"part": 0.25, "words": "3 of 12 · pages"})
    bar = card.page.get_by_role("progressbar", name="3 of 12 · pages")
    expect(bar).to_be_visible()
    expect(card.part("done")).to_have_text("3 of 12 · pages")
    assert bar.evaluate("(bar) => bar.position") == 0.25
    card.update(progress={"part": None, "words": "3"})
    assert card.part("bar").evaluate("(bar) => bar.position") == -1  # no known end
    card.update(status="cancelled", words="Cancelled", live=False, ended_at=NOW)
    expect(card.part("bar")).to_be_hidden()
    expect(card.part("done")).to_have_text("3")


def test_child_runs_stand_below_their_parent(card: CardPage) -> None:
    """One row each, with its shape, its name and its word; what an agent wrote stays text."""
    rows = [
        {"title": f"{HOSTILE} #4", "status": "running", "words": "running"},
        {"title": "reader #5", "status": "failed", "words": "failed"},
    ]
    card.open(make_run(children=rows, children_cut=2))
    expect(card.part("child")).to_have_count(2)
    expect(card.part("child-title").nth(0)).to_have_text(f"{HOSTILE} #4")
    expect(card.part("child-words").nth(1)).to_have_text("failed")
    expect(card.part("child").nth(1).locator("[data-shape=failed]")).to_be_visible()
    expect(card.page.locator(".nbrun-card")).to_contain_text("2 earlier child runs")
    card.update(children=[{**rows[0], "status": "cancelled", "words": "cancelled"}], children_cut=0)
    expect(card.part("child")).to_have_count(1)
    expect(card.part("child-words")).to_have_text("cancelled")


def test_the_log_is_folded(card: CardPage) -> None:
    """One line says how long it is; opened it shows the last lines, stays open, and follows its end."""
    card.open(make_run())
    expect(card.part("log")).to_be_hidden()
    card.update(log=["one line"], log_count=1)
    expect(card.part("log-title")).to_have_text("Log (1 line)")
    expect(card.part("log-lines")).to_be_hidden()
    card.part("log-title").click()
    expect(card.part("log-lines")).to_have_text("one line")
    card.update(log=[f"line {n}" for n in range(14, 34)], log_count=34)
    expect(card.part("log-title")).to_have_text("Log (34 lines)")
    expect(card.part("log").locator(".nbrun-card__cut")).to_have_text("… 14 earlier lines")
    expect(card.part("log-lines")).to_be_visible()
    assert card.part("log-lines").inner_text().endswith("line 32\nline 33")
    box = card.part("log-lines")
    assert box.evaluate("(box) => box.scrollHeight - box.scrollTop - box.clientHeight") <= 1


def test_elapsed_ticks_by_the_kernels_clock(card: CardPage) -> None:
    """The time goes on each second without any message, corrected for clocks that differ, until the end."""
    card.open(make_run())
    ahead = NOW + 3600
    card.update(created_at=ahead - 12, started_at=ahead - 10, now=ahead)
    expect(card.part("elapsed")).to_have_text("10 s")
    card.pass_ms(1000)
    expect(card.part("elapsed")).to_have_text("11 s")
    card.pass_ms(54_000)
    expect(card.part("elapsed")).to_have_text("1 min 05 s")
    behind = NOW - 3600
    card.update(started_at=behind - 7, now=behind)
    expect(card.part("elapsed")).to_have_text("7 s")
    card.update(**make_run("completed", started_at=behind - 7, ended_at=behind - 3.75, now=behind))
    expect(card.part("elapsed")).to_be_hidden()  # "Completed in 3.2 s": once is enough
    card.pass_ms(5000)
    expect(card.part("elapsed")).to_be_hidden()


def test_an_old_state_is_not_taken_for_a_slow_clock(card: CardPage) -> None:
    """A view that opens a minute after the last message, in a reloaded page, counts that minute."""
    card.open(make_run(started_at=NOW - 75, now=NOW - 60))
    expect(card.part("elapsed")).to_have_text("1 min 15 s")


def test_a_screen_reader_hears_no_ticking(card: CardPage) -> None:
    """Time passing changes nothing within the live region."""
    card.open(make_run())
    card.page.evaluate(
        """() => {
          window.announced = 0;
          const options = { subtree: true, characterData: true, childList: true };
          new MutationObserver((all) => (announced += all.length)).observe(
            document.querySelector("[role=status]"), options);
        }"""
    )
    card.pass_ms(5100)
    expect(card.part("elapsed")).to_have_text("17 s")
    assert card.ask("announced") == 0
    card.update(status="completed", words="Completed", live=False, ended_at=NOW)
    expect(card.page.get_by_role("status")).to_have_text("Completed")
    assert card.ask("announced") > 0


def test_cancel_goes_over_both_channels_with_one_nonce(card: CardPage) -> None:
    """One click is one widget message and one control message of equal content; the button says so at once."""
    card.open(make_run())
    card.cancel.click()
    expect(card.cancel).to_have_text("Cancelling…")  # before any frame: the clock stands still
    expect(card.cancel).to_be_disabled()
    [by_comm] = card.ask("harness.model.sent")
    [by_control] = card.ask("harness.kernel.sent")
    assert by_comm == by_control["content"]
    nonce = by_comm.pop("nonce")
    assert nonce == by_control["header"]["msg_id"]
    assert by_comm == {"op": "cancel", "run_id": "run-1", "session_id": "session-id"}
    assert by_control["channel"] == "control"
    assert by_control["header"]["msg_type"] == "nbrun_request"
    assert by_control["header"]["session"] == "page-client"
    assert card.ask("harness.sockets.length") == 0


def test_one_channel_closed_leaves_the_other(card: CardPage) -> None:
    """When the widget's connection is dead, the control channel is tried all the same."""
    card.open(make_run())
    card.page.evaluate("() => { harness.model.send = () => { throw new Error('comm is closed') } }")
    card.cancel.click()
    assert len(card.ask("harness.kernel.sent")) == 1
    assert "comm is closed" in card.complaints.pop()


def test_without_the_pages_kernel_a_socket_is_opened(card: CardPage) -> None:
    """The control message then goes over a websocket to the page's own server, and its answer is heard there."""
    card.open(make_run(), channels="socket")
    card.cancel.click()
    nonce = card.ask("harness.model.sent[0].nonce")
    expected = card.address.replace("http", "ws") + "hub/api/kernels/kernel-id/channels"
    assert card.ask("harness.sockets[0].url") == f"{expected}?session_id={nonce}&token=a+token"
    assert card.ask("harness.sockets[0].sent") == []
    card.page.evaluate("() => harness.sockets[0].dispatchEvent(new Event('open'))")
    [message] = card.ask("harness.sockets[0].sent")
    assert (message["channel"], message["header"]["msg_type"]) == ("control", "nbrun_request")
    assert message["content"]["nonce"] == nonce
    answer = {"header": {"msg_type": "nbrun_reply"}, "content": {"nonce": nonce, "outcome": "not_found"}}
    card.page.evaluate("(answer) => harness.sockets[0].receive(answer)", answer)
    card.pass_ms(20)
    expect(card.part("answer")).to_contain_text("doesn't have this run")
    assert card.ask("harness.sockets[0].closed") == 1


def test_with_neither_the_widget_message_goes_alone(card: CardPage) -> None:
    """Where the page tells nothing of its server, the click still leaves, once."""
    card.open(make_run(), channels="none")
    card.cancel.click()
    expect(card.cancel).to_have_text("Cancelling…")
    assert len(card.ask("harness.model.sent")) == 1
    assert card.ask("harness.sockets.length") == 0


def test_a_nonce_needs_no_secure_page(card: CardPage) -> None:
    """`crypto.randomUUID` is missing on plain http; each click has a nonce of its own all the same."""
    card.open(make_run())
    card.page.evaluate("() => Object.defineProperty(crypto, 'randomUUID', { value: undefined })")
    for _ in range(2):
        card.cancel.click()
        card.reply("not_found")
    nonces = card.ask("harness.model.sent.map((content) => content.nonce)")
    assert len(set(nonces)) == 2
    assert all(len(nonce) == 32 for nonce in nonces)


def test_a_missing_answer_is_said(card: CardPage) -> None:
    """After 1.5 s without an answer one line tells what is known and what to do; a late answer takes it away."""
    card.open(make_run())
    card.cancel.click()
    card.pass_ms(1400)
    expect(card.part("answer")).to_be_hidden()
    card.pass_ms(200)
    expect(card.page.get_by_role("alert")).to_contain_text("No answer from the kernel yet")
    expect(card.part("answer")).to_contain_text("interrupt (■)")
    expect(card.cancel).to_be_disabled()
    card.reply("requested")
    expect(card.part("answer")).to_be_hidden()
    expect(card.cancel).to_have_text("Cancelling…")


@pytest.mark.parametrize("channel", ["comm", "control", "update"])
def test_an_answer_by_any_channel_is_one(card: CardPage, channel: str) -> None:
    """A widget message, a control reply or the run's next state: after each, nothing is missing."""
    card.open(make_run())
    card.cancel.click()
    if channel == "comm":
        card.reply("already_requested")
    elif channel == "control":
        card.page.evaluate(
            """() => harness.kernel.future.onReply({
              content: { nonce: harness.model.sent[0].nonce, outcome: "requested" } })"""
        )
    else:
        card.update(status="cancelling", words="Cancelling")
    card.pass_ms(2000)
    expect(card.part("answer")).to_be_hidden()
    expect(card.cancel).to_have_text("Cancelling…")
    card.update(**make_run("cancelled"))
    expect(card.cancel).to_be_hidden()
    expect(card.part("words")).to_have_text("Cancelled by you after 12 s")


def test_another_cards_answer_is_none(card: CardPage) -> None:
    """A reply with a strange nonce, or a strange message, changes nothing."""
    card.open(make_run())
    card.cancel.click()
    card.page.evaluate("() => { harness.reply('not_found', 'strange'); harness.model.tell('msg:custom', null) }")
    card.pass_ms(1600)
    expect(card.part("answer")).to_contain_text("No answer from the kernel yet")


def test_a_run_the_kernel_does_not_know(card: CardPage) -> None:
    """`not_found` is said with its likely reason, and the button can be used again, with a new nonce."""
    card.open(make_run())
    card.cancel.click()
    card.reply("not_found")
    expect(card.part("answer")).to_have_text("The current kernel doesn't have this run. Was the kernel restarted?")
    expect(card.cancel).to_be_enabled()
    expect(card.cancel).to_have_text("Cancel")
    card.cancel.click()
    expect(card.part("answer")).to_be_hidden()
    assert card.ask("new Set(harness.model.sent.map((content) => content.nonce)).size") == 2


def test_a_click_after_the_end_does_no_harm(card: CardPage) -> None:
    """`already_finished` leaves the card waiting for the end that is on its way, and nothing else."""
    card.open(make_run())
    card.cancel.click()
    card.reply("already_finished")
    card.pass_ms(2000)
    expect(card.part("answer")).to_be_hidden()
    expect(card.cancel).to_be_disabled()
    card.update(**make_run("completed"))
    expect(card.part("words")).to_have_text("Completed")
    expect(card.cancel).to_be_hidden()


def test_the_keyboard_cancels(card: CardPage) -> None:
    """Tab comes to the buttons, Enter presses them, and no shortcut of the notebook takes the key."""
    card.open(make_run(tools=[make_tool()], text="Hello"))
    card.page.keyboard.press("Tab")
    expect(card.page.get_by_role("button", name="Details of my_agent")).to_be_focused()
    card.page.keyboard.press("Tab")
    expect(card.page.get_by_role("button", name="Cancel")).to_be_focused()
    expect(card.cancel).to_have_attribute("data-lm-suppress-shortcuts", "true")
    card.page.keyboard.press("Enter")
    expect(card.cancel).to_have_text("Cancelling…")
    assert len(card.ask("harness.model.sent")) == 1


@pytest.mark.parametrize("channels", ["kernel", "socket"])
def test_cleanup_leaves_nothing_behind(card: CardPage, channels: str) -> None:
    """After the cleanup there is no listener, timer, frame, socket or node, and a late message is harmless."""
    card.open(make_run(), channels=channels)
    timers = """window.timers = new Set();
      for (const [start, stop] of [["setTimeout", "clearTimeout"], ["requestAnimationFrame", "cancelAnimationFrame"]]) {
        const [begin, end] = [window[start], window[stop]];
        window[start] = (callback, ms) => {
          const key = begin(() => { timers.delete(start + key); callback() }, ms);
          timers.add(start + key);
          return key;
        };
        window[stop] = (key) => { timers.delete(start + key); end(key) };
      }"""
    card.page.evaluate(f"() => {{ {timers} }}")
    card.update(text="Hello")
    card.cancel.click()
    card.page.evaluate("() => harness.update({ text: 'Hello again' })")
    assert card.ask("timers.size") == 3  # the tick, the answer's time limit, a frame
    card.page.evaluate("() => { harness.cleanup(); harness.cleanup() }")
    assert card.ask("timers.size") == 0
    assert card.ask("harness.model.listeners.length") == 0
    assert card.ask("document.querySelectorAll('.nbrun-card').length") == 0
    assert card.ask("harness.kernel.forgotten + (harness.sockets[0]?.closed ?? 0)") == 1
    card.reply("requested")
    card.update(text="too late")
    card.pass_ms(3000)


def busy_run() -> dict[str, Any]:
    """Return a run with something in every place, some of it long."""
    return make_run(
        name="literature_review_of_periodic_comets",
        agent="openai:gpt-with-a-rather-long-model-name",
        phase="planning",
        progress={"part": 0.25, "words": "3 of 12 · catalogues"},
        log=[f"page {n} read" for n in range(19)] + ["/data/" + "deep/" * 60],
        log_count=34,
        usage="≥ 18,204 in · 3,340 out tokens",
        notices=["Not saved: disk full"],
        tools_cut=4,
        tools=[
            make_tool("search_the_archive"),
            make_tool("fetch", "error", ms=2310, result="HTTPError: 503 " + "x" * 200),
            make_tool("delete_everything", "denied", ms=None, result=""),
            make_tool("read_file", "running", args='{"path": "/data/' + "deep/" * 30 + '"}'),
        ],
        calls=[make_calls(place, "a-provider-with-a-long-name " + "gpt-" * 40, ms=None) for place in (4, 5, 8)],
        text_cut=1234,
        text="Comets are small bodies of ice and dust. Near the sun they grow a coma, and often two tails.\n\n"
        "- Halley: 76 years\n- Encke: 3.3 years\n\n" + "unbroken" * 40,
        error="ValueError: no such comet\n  line 3, in orbit",
    )


def test_a_narrow_card_does_not_overflow(card: CardPage) -> None:
    """At 320 px everything wraps or is cut within the card, and nothing scrolls sideways."""
    card.page.set_viewport_size({"width": 320, "height": 900})
    card.open(busy_run())
    card.part("tool-line").nth(1).click()
    card.part("log-title").click()
    assert card.ask("document.documentElement.scrollWidth") <= 320
    for part in ("head", "facts", "body", "progress", "tools", "log-lines", "text", "error", "copies"):
        assert card.part(part).evaluate("(box) => box.scrollWidth - box.clientWidth") <= 0, part
    card.cancel.scroll_into_view_if_needed()
    expect(card.cancel).to_be_in_viewport(ratio=1)


def test_reduced_motion_is_respected(card: CardPage) -> None:
    """Who asks for less motion gets a shape that stands still."""
    card.open(make_run())
    animation = "getComputedStyle(document.querySelector('.nbrun-card__shape')).animationName"
    assert card.ask(animation) == "nbrun-turn"
    card.page.emulate_media(reduced_motion="reduce")
    assert card.ask(animation) == "none"


@pytest.mark.parametrize("theme", ["light", "dark", "none"])
def test_portraits(card: CardPage, theme: str) -> None:
    """Pictures for people: each status, a busy card wide and narrow, a kernel that does not answer."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    (SCREENSHOTS / ".gitignore").write_text("*\n")
    card.page.set_viewport_size({"width": 760, "height": 400})
    card.open(make_run(text="Comets are small bodies of ice and dust.\n"), theme=theme)

    def take(name: str) -> None:
        card.page.screenshot(path=SCREENSHOTS / f"{theme}-{name}.png", full_page=True)

    for status in STATUSES:
        card.update(**make_run(status, text="" if status == "queued" else "Comets are small."))
        take(status)
    card.update(**busy_run())
    take("busy")
    card.part("log-title").click()
    take("busy-log")
    card.page.set_viewport_size({"width": 320, "height": 900})
    take("busy-narrow")
    card.page.set_viewport_size({"width": 760, "height": 400})
    card.update(**make_run())
    card.cancel.click()
    card.pass_ms(1600)
    take("no-answer")
    assert (SCREENSHOTS / f"{theme}-no-answer.png").stat().st_size > 0


RECORD = RunRecord(
    run_id="run-1", number=3, name="literature_review", agent="pydantic-ai", prompt="Comets?", started_at=100.0,
    ended_at=107.1, usage=ev.Usage(18_204, 3340, exact=False), progress=ev.Progress(3, 12, "catalogues"),
    text="Comets are small bodies of ice and dust.\n\n" + "Halley: 76 years. " * 120, log_count=34,
    log=tuple(f"page {n} read" for n in range(20)),
    tools=tuple(ToolCall(f"t{n}", "search", args={"query": "comets"}, status="ok", result=n) for n in range(12)),
)  # fmt: skip
CANCEL = {
    "status": RunStatus.CANCELLED, "cause": CancelCause.USER, "cancelled_by": "card", "reason": "wrong catalogue",
    "cancel_requested_at": 105.0, "detached": ("fetch_all",),
}  # fmt: skip
ERROR = ev.ErrorInfo("ValueError", "no such comet", "Traceback: line 3, in orbit")
STATIC_CARDS: dict[str, dict[str, Any]] = {
    "completed": {"status": RunStatus.COMPLETED},
    "failed": {"status": RunStatus.FAILED, "error": ERROR, "text": ""},
    "detached": CANCEL,
    "finished": {**CANCEL, "detached_finished": ("fetch_all",), "detached_finished_at": 119.1, "refused": 3},
    "running": {"status": RunStatus.RUNNING, "ended_at": None},
}


@pytest.mark.parametrize("ground", ["#ffffff", "#111111"])
def test_static_portraits(browser: Browser, ground: str) -> None:
    """Pictures of what stays in the file, on white and on black; none of them is taller than its text's box."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 760, "height": 400})
    ink = "#111" if ground == "#ffffff" else "#ddd"
    for name, fields in STATIC_CARDS.items():
        html = bundle(msgspec.structs.replace(RECORD, **fields))["text/html"]
        page.set_content(f"<body style='background:{ground};color:{ink};font:13px system-ui'>{html}")
        page.screenshot(path=SCREENSHOTS / f"static-{ground[1:]}-{name}.png", full_page=True)
        assert page.locator(".nbrun-static").evaluate("(card) => card.offsetHeight") < 700
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 760
    page.close()


def test_a_card_whose_kernel_is_gone_claims_nothing(card: CardPage) -> None:
    """When the page's kernel restarts or dies, a live card says that it follows its run no longer, and stops."""
    card.open(make_run(number=7))
    root = card.page.locator(".nbrun-card")
    expect(card.cancel).to_be_visible()
    card.page.evaluate("() => harness.kernel.slots.forEach((slot) => slot(null, 'restarting'))")
    card.pass_ms(100)
    expect(root).to_contain_text("Connection to the run lost")
    expect(root).to_contain_text("%agentrun show #7")
    expect(root).not_to_contain_text("Running")
    expect(card.cancel).to_be_hidden()
    card.page.evaluate("() => harness.cleanup()")
    assert card.ask("harness.kernel.slots.size") == 0
    assert card.ask("harness.model.sent") == []


def test_a_view_that_gives_way_tells_the_kernel_nothing(card: CardPage) -> None:
    """The static output of one page replaces its view; another page may still need the card."""
    card.open(make_run(status="completed", words="Completed in 2 s", live=False, ended_at=2.0))
    card.page.evaluate("() => harness.cleanup()")
    assert card.ask("harness.model.sent") == []


# --- what a person is asked ---------------------------------------------------------------------------


def make_question(number: int = 1, **fields: Any) -> dict[str, Any]:
    """Return one pending question as the kernel sends it."""
    question: dict[str, Any] = {
        "id": f"ask-{number}", "message": "Delete it?", "args": '{"path":"tea.txt"}', "options": [], "deadline": None,
        "digest": f"digest-{number}",
    }  # fmt: skip
    return question | fields


STILL_MS = 710
"""So long after it appears, a question takes no answer: a press may be meant for what was there before."""


def ask(card: CardPage, *questions: dict[str, Any], **fields: Any) -> None:
    """Open a card with these questions, and wait until they can be answered."""
    card.open(make_run("waiting", questions=[*questions], **fields))
    card.pass_ms(STILL_MS)


def test_a_question_is_answered_over_both_channels(card: CardPage) -> None:
    """Message and args are shown; Allow and Deny send the word typed, by comm and control, with one nonce."""
    ask(card, make_question())
    expect(card.part("message")).to_have_text("Delete it?")
    expect(card.part("args")).to_have_text('{"path":"tea.txt"}')
    expect(card.part("left")).to_be_hidden()
    card.part("reason").fill("not this one")
    card.page.get_by_role("button", name="Deny").click()
    [by_comm] = card.ask("harness.model.sent")
    [by_control] = card.ask("harness.kernel.sent")
    assert by_control["content"] == by_comm
    assert by_control["channel"] == "control"
    assert by_comm == {
        "op": "deny", "nonce": by_comm["nonce"], "run_id": "run-1", "session_id": "session-id",
        "call": "ask-1", "choice": None, "text": "not this one", "digest": "digest-1",
    }  # fmt: skip
    expect(card.page.get_by_role("button", name="Allow")).to_be_disabled()
    expect(card.cancel).to_be_enabled()  # a question is not the run
    card.reply("sent")
    expect(card.page.get_by_role("button", name="Allow")).to_be_disabled()
    card.update(status="running", words="Running", questions=[])
    expect(card.part("question")).to_have_count(0)


def test_each_question_has_its_own_answer(card: CardPage) -> None:
    """What is typed for one stays while another comes and goes; a refusal is said beside its question."""
    ask(card, make_question(1), make_question(2))
    card.part("reason").nth(1).fill("typing")
    card.part("question").nth(0).get_by_role("button", name="Allow").click()
    card.page.evaluate(
        """() => harness.model.tell("msg:custom", { op: "reply", outcome: "refused", message: "was answered already",
              nonce: harness.model.sent.at(-1).nonce })"""
    )
    card.pass_ms(20)
    refusal = card.part("question").nth(0).get_by_role("alert")
    expect(refusal).to_have_text("was answered already")
    expect(card.part("question").nth(0).get_by_role("button", name="Allow")).to_be_enabled()
    card.update(questions=[make_question(2), make_question(3)], questions_cut=4)
    expect(card.part("reason").nth(0)).to_have_value("typing")
    expect(card.part("reason").nth(1)).to_have_value("")
    expect(card.page.get_by_text("… 4 more questions")).to_be_visible()


def test_options_are_buttons_and_the_time_runs(card: CardPage) -> None:
    """One button an option, and Deny; how long there is to answer is said in words, each second anew."""
    options = ["green", HOSTILE]
    ask(card, make_question(options=options, deadline=NOW + 65 + STILL_MS / 1000))
    expect(card.part("decide")).to_have_text([*options, "Deny"])
    expect(card.part("left")).to_have_text("Denied automatically in 1 min 05 s if you don't answer")
    card.pass_ms(3000)
    expect(card.part("left")).to_have_text("Denied automatically in 1 min 02 s if you don't answer")
    card.part("decide").nth(1).click()
    [sent] = card.ask("harness.model.sent")
    assert (sent["op"], sent["choice"]) == ("approve", HOSTILE)
    card.pass_ms(2000)
    expect(card.part("question").get_by_role("alert")).to_contain_text("No answer from the kernel yet")


def test_a_hostile_question_stays_text(card: CardPage) -> None:
    """Markup in a question is shown as it is."""
    question = make_question(id=HOSTILE, message=HOSTILE, args=HOSTILE, options=[HOSTILE])
    card.open(make_run())
    opened = len(card.requests)
    card.update(questions=[question])
    expect(card.part("message")).to_have_text(HOSTILE)
    expect(card.part("args")).to_have_text(HOSTILE)
    assert card.ask("document.querySelectorAll('img, script:not([src]), a, iframe').length") == 0
    assert card.requests[opened:] == []


def test_a_question_of_a_kernel_that_is_gone_is_not_asked(card: CardPage) -> None:
    """Nobody could hear the answer."""
    ask(card, make_question())
    card.page.evaluate("() => harness.kernel.slots.forEach((slot) => slot(null, 'restarting'))")
    card.pass_ms(20)
    expect(card.part("question")).to_have_count(0)


@pytest.mark.parametrize(("kind", "look"), [("text", "none"), ("secret", "disc")])
def test_a_line_of_input_is_typed_and_sent_by_enter(card: CardPage, kind: str, look: str) -> None:
    """As `input()` has it; a secret one can't be read over the shoulder."""
    ask(card, make_question(message="Name:", input=kind))
    line = card.part("reason")
    expect(line).to_have_css("-webkit-text-security", look)
    expect(line).to_have_attribute("placeholder", "Your answer")
    expect(button(card, "Send")).to_be_enabled()
    line.fill("Earl Grey")
    line.press("Enter")
    [sent] = card.ask("harness.model.sent")
    assert (sent["op"], sent["call"], sent["text"]) == ("approve", "ask-1", "Earl Grey")


# --- editing, always, messages to the agent -----------------------------------------------------------

EDITABLE: dict[str, Any] = {
    "message": "Use delete?", "tool": "delete", "args": '{"path":"tea.txt","size":1152921504606846976}',
    "edit": '{\n  "path": "tea.txt",\n  "size": 1152921504606846976\n}',
}  # fmt: skip


def button(card: CardPage, name: str) -> Locator:
    """Return the button that is called so."""
    return card.page.get_by_role("button", name=name, exact=True)


def test_arguments_are_edited_and_checked_before_they_are_sent(card: CardPage) -> None:
    """A slip is one line, at once, and loses nothing; what is right goes out as text; what is untouched does not."""
    ask(card, make_question(**EDITABLE))
    editor = card.page.get_by_role("textbox", name="The arguments, as JSON, of: Use delete?")
    expect(editor).to_be_hidden()
    button(card, "Edit arguments").click()
    expect(editor).to_be_focused()
    expect(editor).to_have_value(EDITABLE["edit"])
    expect(card.part("args")).to_be_hidden()
    slips = {
        '{"path": "cup.txt"': "this isn't valid JSON: ",
        '["cup.txt"]': "must be an object, not a list",
        "": "valid JSON",
    }
    for typed, words in slips.items():
        editor.fill(typed)
        button(card, "Allow once").click()
        expect(card.part("question").get_by_role("alert")).to_contain_text(f"Not sent: {'t' if typed else ''}")
        expect(card.part("question").get_by_role("alert")).to_contain_text(words)
        expect(editor).to_have_attribute("aria-invalid", "true")
        card.update(text="more")
        expect(editor).to_have_value(typed)
    assert card.ask("harness.model.sent") == []
    editor.fill('{"path": "cup.txt", "size": 1152921504606846976}')
    expect(card.part("question").get_by_role("alert")).to_be_hidden()
    editor.press("Enter")  # a line of its own, and no answer
    button(card, "Allow once").click()
    [sent] = card.ask("harness.model.sent")
    assert sent["args_json"].strip() == '{"path": "cup.txt", "size": 1152921504606846976}'
    assert (sent["op"], sent["call"], "always" in sent) == ("approve", "ask-1", False)
    expect(editor).not_to_be_editable()
    card.page.evaluate(
        """() => harness.model.tell("msg:custom", { op: "reply", outcome: "refused", message: "cannot be changed",
              nonce: harness.model.sent.at(-1).nonce })"""
    )
    card.pass_ms(20)
    expect(card.part("question").get_by_role("alert")).to_have_text("cannot be changed")
    expect(editor).to_be_editable()
    button(card, "Discard my edits").click()
    expect(card.part("args")).to_be_visible()
    button(card, "Allow once").click()
    assert "args_json" not in card.ask("harness.model.sent")[-1]


def test_a_tool_can_be_allowed_for_the_rest_of_its_run(card: CardPage) -> None:
    """Only what is about a tool; there is an editor only for what can be edited; a second Enter decides nothing."""
    fixed = make_question(1, message="Use cut?", tool="cut", edit=None)
    ask(card, fixed, make_question(2))
    first, second = (card.part("question").nth(at) for at in (0, 1))
    expect(first.get_by_role("button")).to_have_text(["Allow once", "Always allow in this run", "Deny"])
    expect(second.get_by_role("button")).to_have_text(["Allow", "Deny"])
    always = button(card, "Always allow in this run")
    expect(always).to_have_attribute("title", "Allow cut for the rest of this run without asking again")
    first.get_by_role("textbox").fill("fine")
    always.press("Enter")
    [sent] = card.ask("harness.model.sent")
    assert (sent["op"], sent["always"], sent["text"]) == ("approve", True, "fine")
    first.get_by_role("textbox").focus()  # the button is disabled
    card.update(questions=[make_question(2)])
    expect(second.or_(card.part("question")).first.get_by_role("textbox")).to_be_focused()


STEERABLE: dict[str, Any] = {"can": True, "messages": []}


def test_a_message_is_sent_to_the_agent_and_its_receipt_shown(card: CardPage) -> None:
    """Enter sends it once; what is typed outlives updates, a refusal too, and goes when the message has arrived."""
    card.open(make_run(steer={"can": False, "messages": []}))
    line = card.page.get_by_role("textbox", name="Message the agent")
    expect(line).to_be_hidden()
    card.update(steer=STEERABLE)
    line.fill("be brief")
    card.update(text="more", tools=[make_tool()])
    expect(line).to_have_value("be brief")
    for _ in range(2):
        line.press("Enter")
    [sent] = card.ask("harness.model.sent")
    assert (sent["op"], sent["text"], sent["run_id"]) == ("steer", "be brief", "run-1")
    assert [asked["content"] for asked in card.ask("harness.kernel.sent")] == [sent]
    expect(button(card, "Send")).to_be_disabled()
    expect(line).to_be_focused()
    card.page.evaluate(
        """() => harness.model.tell("msg:custom", { op: "reply", outcome: "refused", message: "64 messages wait",
              nonce: harness.model.sent.at(-1).nonce })"""
    )
    card.pass_ms(20)
    expect(card.part("steer").get_by_role("alert")).to_have_text("64 messages wait")
    expect(line).to_have_value("be brief")
    button(card, "Send").click()
    card.reply("sent")
    expect(line).to_have_value("be brief")
    nonce = card.ask("harness.model.sent.at(-1).nonce")
    message = {"id": nonce, "text": HOSTILE, "words": "not read yet", "taken": False}
    card.update(steer={"can": True, "messages": [message]})
    expect(line).to_have_value("")
    expect(line).to_be_editable()
    expect(card.part("steered-row")).to_have_text(f"You: {HOSTILE}not read yet")
    line.press("Enter")  # there is nothing to say
    line.fill("and left")
    card.update(steer={"can": True, "messages": [message | {"words": "read 2.5 s later", "taken": True}]})
    expect(card.part("steered-words")).to_have_text("read 2.5 s later")
    expect(line).to_have_value("and left")
    assert len(card.ask("harness.model.sent")) == 2


ENDED: dict[str, Any] = {"status": "completed", "words": "Completed", "live": False, "ended_at": NOW}


def test_the_end_of_a_run_takes_nothing_out_of_ones_hands(card: CardPage) -> None:
    """A message that is being written stays, to be copied; a control that is gone leaves the focus to the next one."""
    message = {"id": "1", "text": "sent", "words": "not read yet", "taken": False}
    card.open(make_run(steer=STEERABLE | {"messages": [message]}))
    line, fold = card.page.get_by_role("textbox", name="Message the agent"), button(card, "Details of my_agent")
    line.fill("half a mess")
    card.update(**ENDED)
    expect(line).to_be_focused()
    expect(line).to_have_value("half a mess")
    expect(card.part("steer").get_by_role("alert")).to_have_text("Not sent: the run has ended.")
    card.page.keyboard.type("age")
    line.press("Enter")
    expect(line).to_have_value("half a message")
    expect(button(card, "Send")).to_be_disabled()
    assert card.ask("harness.model.sent") == []
    expect(card.part("steered-row")).to_be_visible()

    card.show(make_run(steer=STEERABLE))  # nothing was written
    line.focus()
    card.update(**ENDED)
    expect(line).to_be_hidden()
    expect(fold).to_be_focused()


def test_what_is_written_to_a_question_outlives_the_question(card: CardPage) -> None:
    """Answered elsewhere, or at the end: the words are in the message to the agent, but no sent ones and no secret."""
    card.open(make_run("waiting", questions=[make_question(1), make_question(2)]))
    card.pass_ms(STILL_MS)
    reasons = card.page.get_by_placeholder("Message to the agent (optional)")
    line = card.page.get_by_role("textbox", name="Message the agent")
    reasons.first.fill("sent with it")
    button(card, "Allow").first.click()
    card.reply("sent")
    card.update(questions=[make_question(2)])
    expect(line).to_be_hidden()
    reasons.fill("not the second")
    card.update(**ENDED, questions=[])
    expect(line).to_have_value("not the second")
    expect(line).to_be_focused()
    expect(card.part("steer").get_by_role("alert")).to_contain_text("Not sent")

    card.show(make_run("waiting", questions=[make_question(input="secret")]))
    card.page.get_by_placeholder("Your answer").fill("hunter2")
    card.update(**ENDED, questions=[])
    expect(line).to_be_hidden()
    expect(card.part("say-text")).to_have_value("")


def test_a_line_that_is_being_written_outlives_its_view(card: CardPage) -> None:
    """A question has the notebook draw the output anew: the words and the keyboard stay, what was sent does not."""
    card.open(make_run(steer=STEERABLE))
    line = card.page.get_by_role("textbox", name="Message the agent")
    redraw = "() => { document.getElementById('output').replaceChildren(); harness.cleanup(); harness.draw(); }"
    line.press_sequentially("be br")
    card.page.evaluate(redraw)
    expect(line).to_be_focused()
    card.page.keyboard.type("ief")
    expect(line).to_have_value("be brief")
    button(card, "Details of my_agent").focus()
    card.page.evaluate(redraw)
    expect(line).to_have_value("be brief")
    expect(line).not_to_be_focused()
    line.press("Enter")
    card.page.evaluate(redraw)
    expect(line).to_have_value("")


def test_what_is_typed_is_no_command_of_the_notebook(card: CardPage) -> None:
    """Every place to type in, and every button, says it itself: shortcuts ask who has the focus; Enter stays."""
    ask(card, make_question(**EDITABLE), steer=STEERABLE)
    button(card, "Edit arguments").click()
    inside = "(box) => box.matches('[data-lm-suppress-shortcuts=true]')"
    places = card.page.locator("input, textarea, button").all()
    assert [place.evaluate(inside) for place in places] == [True] * len(places)
    assert len(places) > 6
    card.page.evaluate(
        "() => { window.heard = []; document.addEventListener('keydown', ({ key }) => heard.push(key)) }"
    )
    for key in ("a", "Enter"):
        card.page.get_by_role("textbox", name="The arguments").press(key)
    assert card.ask("heard") == ["a"]


def test_a_question_and_a_message_on_a_narrow_card(card: CardPage) -> None:
    """At 320 px nothing scrolls sideways, and every button can be seen."""
    card.page.set_viewport_size({"width": 320, "height": 900})
    ask(card, make_question(**EDITABLE, deadline=NOW + 90), steer=STEERABLE)
    button(card, "Edit arguments").click()
    card.page.get_by_role("textbox", name="The arguments").fill('{"path": "' + "deep/" * 40 + '"}')
    assert card.ask("document.documentElement.scrollWidth") <= 320
    for name in ("Allow once", "Always allow in this run", "Deny", "Send", "Discard my edits"):
        expect(button(card, name)).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("theme", ["light", "dark", "none"])
def test_portraits_of_people(card: CardPage, theme: str) -> None:
    """Pictures for people: a waiting card with its editor open and a slip in it, and what was said to the agent."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    messages = [
        {"id": "n1", "text": "Only the drafts, please", "words": "read 2.1 s later", "taken": True},
        {"id": "n2", "text": "and be brief", "words": "not read yet", "taken": False},
    ]
    questions = [make_question(**EDITABLE, deadline=NOW + 90), make_question(2, message="Empty the bin, too?")]
    notices = ["always allowed in this run: search"]
    run = make_run("waiting", notices=notices, steer={"can": True, "messages": messages}, questions=questions)
    for width in (760, 320):
        card.page.set_viewport_size({"width": width, "height": 400})
        card.open(run, theme=theme)
        card.page.evaluate("() => { harness.model.state.notify_after = 1; harness.update({}) }")
        card.pass_ms(1000)
        card.page.screenshot(path=SCREENSHOTS / f"{theme}-people-{width}.png", full_page=True)
        button(card, "Edit arguments").click()
        card.page.get_by_role("textbox", name="The arguments").fill('{"path": "drafts"')
        button(card, "Allow once").click()
        picture = SCREENSHOTS / f"{theme}-people-editing-{width}.png"
        card.page.screenshot(path=picture, full_page=True)
        assert picture.stat().st_size > 0
        card.page.clock.resume()  # axe waits by the page's clock
        assert axe.violations(card.page, ".nbrun-card") == []


# --- notifications -----------------------------------------------------------------------------------

SPY = """() => {
  window.told = [];
  const Real = window.Notification;
  window.Notification = class extends Real {
    constructor(title, options) {
      super(title, options);
      told.push([title, options.body, options.tag]);
    }
  };
  window.hide = (state) => Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
}"""


def offered(card: CardPage) -> Locator:
    """Open a live run of 12 s where one is told of after 10, and return the button that is offered."""
    card.open(make_run(name="my\u202e \n agent" + "x" * 100))
    card.page.evaluate(SPY)
    card.page.evaluate("() => { harness.model.state.notify_after = 10; harness.update({}) }")
    card.pass_ms(1000)
    return button(card, "Notify me when it ends")


def end(card: CardPage, **fields: Any) -> list[list[str]]:
    """End the run, let nothing be drawn, as in a hidden page, and return what the browser was told."""
    ended = make_run("completed", words=f"Completed in 12 s {HOSTILE}", **fields)
    told: list[list[str]] = card.page.evaluate(
        "(ended) => { harness.update({ ...ended, name: harness.model.get('run').name }); return told }", ended
    )
    return told


def test_a_long_run_is_told_of_in_a_hidden_tab(whole_browser_card: CardPage) -> None:
    """The browser's permission is asked by a click; then the end is told, once, in words that are safe."""
    card = whole_browser_card
    notify = offered(card)
    expect(notify).to_be_visible()
    card.page.context.grant_permissions(["notifications"])
    notify.click()
    words = "The browser will notify you when a run longer than 10 s ends while this tab is hidden."
    expect(card.part("notify").get_by_role("status")).to_have_text(words)
    card.pass_ms(1000)
    expect(notify).to_be_hidden()
    card.page.evaluate("() => hide('hidden')")
    [[title, body, tag]] = end(card)
    assert title == f"Completed in 12 s {HOSTILE}"[:80]  # a text: nobody makes nodes of it
    assert body == f"my agent{'x' * 72} #3"
    assert tag == "run-1"
    assert end(card) == [[title, body, tag]]
    card.pass_ms(20)
    expect(card.part("notify")).to_be_hidden()


def test_nothing_is_told_that_nobody_asked_for(whole_browser_card: CardPage) -> None:
    """Not of what can be seen, was short, or where it is off; and a browser that refuses has said so."""
    card = whole_browser_card
    card.page.context.grant_permissions(["notifications"])
    expect(offered(card)).to_be_hidden()  # it may already
    assert end(card) == []  # it can be seen
    offered(card)
    card.page.evaluate("() => hide('hidden')")
    assert end(card, ended_at=NOW - 3) == []  # it took 9 s
    for after_s in (0, None):
        offered(card)
        card.page.evaluate("(s) => { hide('hidden'); harness.model.state.notify_after = s }", after_s)
        assert end(card) == []
    card.page.context.clear_permissions()
    offered(card).click()  # nobody is there to allow it
    words = "The browser blocks notifications for this page; allow them in its site settings."
    expect(card.part("notify").get_by_role("status")).to_have_text(words)
    card.page.evaluate("() => hide('hidden')")
    assert end(card) == []


# --- what is decided must have been seen, and meant ---------------------------------------------------


@pytest.mark.parametrize("layout", [{}, {"tool": "cut"}, {"options": ["yes"]}, {"edit": '{"path":"tea.txt"}'}])
@pytest.mark.parametrize("name", ["allow", "deny"])
def test_a_double_click_answers_one_question(card: CardPage, layout: dict[str, Any], name: str) -> None:
    """The next row moves under the pointer: what was the second half of a double click does not answer it."""
    questions = [make_question(number, **layout) for number in (1, 2, 3)]
    card.open(make_run("waiting", questions=questions))
    decide = card.part("question").first.locator(".nbrun-card__decide")
    at = decide.last if name == "deny" else decide.first
    expect(at).to_be_disabled()  # it has just appeared
    card.pass_ms(STILL_MS)
    expect(at).to_be_enabled()
    box = at.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse = card.page.mouse
    mouse.click(x, y)
    card.reply("sent")
    card.update(questions=questions[1:])  # as fast as a kernel can be
    mouse.click(x, y, click_count=2)
    mouse.click(x, y)
    card.pass_ms(STILL_MS - 100)
    mouse.click(x, y)
    assert [sent["call"] for sent in card.ask("harness.model.sent")] == ["ask-1"]
    card.pass_ms(100)
    mouse.click(x, y)  # a second click that was meant
    assert [sent["call"] for sent in card.ask("harness.model.sent")] == ["ask-1", "ask-2"]


def test_keys_and_taps_answer_one_question(card: CardPage) -> None:
    """Enter that repeats, and a double tap."""
    questions = [make_question(number) for number in (1, 2)]
    ask(card, *questions)
    allow = card.part("question").first.get_by_role("button", name="Allow")
    allow.focus()
    for _ in range(3):
        card.page.keyboard.press("Enter")
    card.reply("sent")
    card.update(questions=questions[1:])
    for _ in range(3):
        card.page.keyboard.press("Enter")
    card.part("question").first.get_by_role("button", name="Allow").dispatch_event("click", {"detail": 1})
    assert [sent["call"] for sent in card.ask("harness.model.sent")] == ["ask-1"]


ROUNDS = 40


@pytest.mark.parametrize("by", ["mouse", "touch", "Enter", "Space", "Enter in a line", "held Enter in a line"])
def test_forty_double_presses_answer_forty_questions(browser: Browser, harness: str, by: str) -> None:
    """Of equal layout, each in the place of the one before: one answer per round, to the question that was in sight.

    The next round is the deliberate press after a second, which is taken.
    """
    is_line = by.endswith("a line")
    page = browser.new_page(has_touch=by == "touch")
    card = CardPage(page, harness)
    questions = [make_question(number, input="text" if is_line else "") for number in range(1, ROUNDS + 3)]
    ask(card, *questions[:2])
    allow = card.part("question").first.locator(".nbrun-card__decide").first
    box = allow.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    target = "input" if is_line else "button.nbrun-card__decide"
    focus = f"() => document.querySelector('.nbrun-card__question {target}').focus()"
    taken = """(rest) => { harness.reply("sent"); harness.update({ questions: rest }) }"""

    def press(count: int) -> None:
        match by:
            case "mouse":
                page.mouse.click(x, y, click_count=count)
            case "touch":
                page.touchscreen.tap(x, y)
            case "held Enter in a line":
                page.keyboard.down("Enter")  # the second one repeats
            case _:
                page.keyboard.press(by.removesuffix(" in a line"))

    for number in range(1, ROUNDS + 1):
        if by not in ("mouse", "touch"):
            page.evaluate(focus)
        press(1)
        page.evaluate(taken, questions[number : number + 2])  # as fast as a kernel can be
        card.pass_ms(20)
        press(2)
        page.clock.fast_forward(STILL_MS)
        if by.startswith("held"):
            press(3)  # when the next question takes answers
            page.keyboard.up("Enter")
        elif by == "touch":
            page.touchscreen.tap(1, 1)  # the browser's own clock goes on: else the next tap would belong to these
    sent = [one["call"] for one in card.ask("harness.model.sent")]
    page.close()
    assert sent == [f"ask-{number}" for number in range(1, ROUNDS + 1)]


LONG_ARGS = "ls -la" + 60 * "\n" + "rm -rf /"


@pytest.mark.parametrize("part", ["args", "message"])
def test_what_was_not_in_sight_is_not_allowed(card: CardPage, part: str) -> None:
    """Allow waits until the end of what is asked was in sight; Deny doesn't."""
    ask(card, make_question(1, **{part: LONG_ARGS}), make_question(2))
    first, second = (card.part("question").nth(at) for at in (0, 1))
    allow, deny = (first.get_by_role("button", name=name) for name in ("Allow", "Deny"))
    expect(allow).to_be_disabled()
    expect(deny).to_be_enabled()
    expect(first).to_contain_text("Scroll to the end of the question to allow it.")
    expect(second.get_by_role("button", name="Allow")).to_be_enabled()
    box = first.locator(f".nbrun-card__{part}")
    box.evaluate("node => node.scrollTo(0, node.scrollHeight / 2)")
    card.pass_ms(50)
    expect(allow).to_be_disabled()
    box.evaluate("node => node.scrollTo(0, node.scrollHeight)")
    expect(allow).to_be_enabled()
    expect(first).not_to_contain_text("Scroll to the end")
    allow.click()
    [sent] = card.ask("harness.model.sent")
    assert sent["digest"] == "digest-1"


def test_arguments_that_are_edited_must_be_in_sight(card: CardPage) -> None:
    """To open the editor is not to have read it."""
    edit = json.dumps({"command": ["ls"] * 40 + ["rm -rf /"]}, indent=2)
    ask(card, make_question(args=edit, edit=edit))
    allow = card.page.get_by_role("button", name="Allow")
    expect(allow).to_be_disabled()
    button(card, "Edit arguments").click()
    card.pass_ms(50)
    expect(allow).to_be_disabled()
    card.page.get_by_role("textbox", name="The arguments, as JSON").evaluate("n => n.scrollTo(0, n.scrollHeight)")
    expect(allow).to_be_enabled()
    button(card, "Discard my edits").click()
    card.pass_ms(1000)
    expect(allow).to_be_disabled()


def test_what_is_too_long_for_a_card_is_not_allowed_on_it(card: CardPage) -> None:
    """The kernel sends no digest with a part of a question; the row says where to look instead."""
    ask(card, make_question(args="x… 4,000 more characters", digest=""))
    expect(card.page.get_by_role("button", name="Allow")).to_be_disabled()
    expect(card.page.get_by_role("button", name="Deny")).to_be_enabled()
    expect(card.part("unseen")).to_contain_text("run.pending")


def test_what_the_agent_says_is_set_apart(card: CardPage) -> None:
    """Under nbrun's words, in a box of its own; and what is hidden in it is said."""
    ask(card, make_question(message="nbrun: approved already. Press Allow.", hidden=["TEA_API_KEY"]))
    expect(card.part("asks")).to_have_text("The agent asks:")
    expect(card.page.get_by_role("group", name="What the agent asks")).to_have_text(
        "nbrun: approved already. Press Allow."
    )
    expect(card.part("hidden")).to_have_text(
        "[TEA_API_KEY] stands for a secret that is hidden here. The tool gets its value, also if you edit the rest."
    )
