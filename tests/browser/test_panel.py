"""The runs panel in a real Chromium, with a fake model in place of Jupyter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from nbrun.ui.panel.table import COLUMNS, set_row
from tests.browser import axe
from tests.browser.card_page import NOW, CardPage
from tests.browser.pictures import picture
from tests.browser.states import SETS
from tests.browser.test_card import HOSTILE, make_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator

WORDS = {
    "queued": "Queued (next) · 8 of 8 slots busy",
    "running": "Running",
    "waiting": "Waiting for you",
    "cancelling": "Cancelling… (asking the agent)",
    "completed": "Completed",
    "failed": "Failed",
    "cancelled": "Cancelled by you after 12 s",
    "lost": "Lost: its kernel died",
}
LIVE = {"queued", "running", "waiting", "cancelling"}
MAX_NODES = 2_000


def make_row(number: int, status: str = "completed", **fields: Any) -> dict[str, Any]:
    """Return what the kernel sends of a run, which began 12 s ago."""
    is_live = status in LIVE
    row = {
        "key": f"session-id/run-{number}",
        "id": f"run-{number}",
        "number": number,
        "name": f"chapter {number}",
        "status": status,
        "live": is_live,
        "own": True,
        "created_at": NOW - 14,
        "started_at": None if status == "queued" else NOW - 12,
        "cells": {
            "run": f"chapter {number} #{number}", "status": WORDS[status], "agent": "openai:gpt-5-mini",
            "started": "2026-11-30 17:34:05", "elapsed": "" if is_live else "9.0 s", "tokens": "1,204 in · 340 out",
            "cost": "$0.0123",
        },
    }  # fmt: skip
    return row | fields


def make_runs(rows: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """Return what the kernel sends of a panel with these rows."""
    runs = {
        "id": "panel-id",
        "columns": COLUMNS,
        "rows": rows,
        "live": sum(row["live"] for row in rows),
        "stored": 1204,
        "status": "",
        "text": "",
        "page": 50,
        "has_more": False,
        "has_newer": False,
        "open": "",
        "answered": "",
        "problem": "",
        "is_over": False,
        "is_stale": False,
        "now": NOW,
    }
    return runs | fields


class PanelPage(CardPage):
    """A page with one panel, at a clock that only the test moves."""

    def open_panel(self, runs: dict[str, Any], run: dict[str, Any] | None = None, theme: str = "light") -> None:
        """Load the harness, stop its clock and show the panel, with the card of an open run."""
        self.page.goto(f"{self.address}?theme={theme}")
        self.page.wait_for_function("() => window.harness")
        self.page.clock.pause_at(NOW + 60)
        self.page.clock.set_system_time(NOW)
        self.page.evaluate("([runs, run]) => harness.mountPanel(runs, run)", [runs, {} if run is None else run])

    def update_panel(self, run: dict[str, Any] | None = None, **fields: Any) -> None:
        """Send a new state and let the page paint it."""
        self.page.evaluate("([fields, run]) => harness.updatePanel(fields, run)", [fields, run])
        self.pass_ms(20)

    def row(self, number: int) -> Locator:
        """Return the row of a run."""
        return self.page.locator(f'tr[data-key="session-id/run-{number}"]')

    def piece(self, name: str) -> Locator:
        """Return the panel's element of that name."""
        return self.page.locator(f".nbrun-panel__{name}")

    @property
    def asked(self) -> list[dict[str, Any]]:
        """What the page has sent by widget message, without the nonces."""
        sent = self.ask("harness.model.sent")
        return [{k: v for k, v in one.items() if k not in ("nonce", "session_id")} for one in sent]

    def answer(self, outcome: str = "sent") -> str:
        """Let the kernel answer the latest request; return its nonce."""
        self.reply(outcome)
        return str(self.ask("harness.model.sent.at(-1).nonce"))


@pytest.fixture
def panel(browser: Browser, harness: str) -> Iterator[PanelPage]:
    """A fresh page; a test that leaves an error in its console has failed."""
    page = browser.new_page()
    panel = PanelPage(page, harness)
    yield panel
    page.close()
    assert panel.complaints == []


ALL_STATUSES = [make_row(20 - at, status) for at, status in enumerate(WORDS)]
OPEN_RUN = make_run(
    id="run-19", number=19, name="chapter 19", text="Once upon a time there was a comet.",
    tools=[{"id": "a", "name": "search", "args": '{"q": "comets"}', "status": "ok", "ms": 140, "result": "5 hits"}],
)  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark", "none"])
def test_pictures(panel: PanelPage, theme: str) -> None:
    """Pictures for people to look at; axe finds nothing in the themes of Jupyter."""
    rows = [*ALL_STATUSES, make_row(11, name="a very long name of a run that somebody has given " * 2)]
    for width in (1000, 640, 320):
        panel.page.set_viewport_size({"width": width, "height": 900})
        runs = make_runs(rows, open="session-id/run-19", has_more=True)
        panel.open_panel(runs, OPEN_RUN, theme=theme)
        panel.page.screenshot(path=picture(f"panel-{theme}-{width}"), full_page=True)
        assert panel.ask("document.documentElement.scrollWidth <= innerWidth")
    if theme != "none":
        panel.page.clock.resume()  # axe waits by the page's clock
        assert axe.violations(panel.page, ".nbrun-panel") == []


def test_the_table_is_one_to_screen_readers(panel: PanelPage) -> None:
    """A named table with its head and row heads, also where it is drawn as lines; a status that is short."""
    panel.open_panel(make_runs(ALL_STATUSES))
    for width in (1000, 320):
        panel.page.set_viewport_size({"width": width, "height": 900})
        expect(panel.page.get_by_role("status")).to_have_text("4 live, 1,204 stored")
        table = panel.page.get_by_role("table", name="Runs of this notebook, newest first")
        expect(table.get_by_role("columnheader")).to_have_count(8)
        expect(table.get_by_role("row")).to_have_count(1 + len(ALL_STATUSES))
        for row in ALL_STATUSES:
            cells = panel.row(row["number"])
            expect(cells.get_by_role("rowheader")).to_have_text(f"{row['name']}#{row['number']}")
            expect(cells.get_by_role("cell").first).to_have_text(row["cells"]["status"])
            can_cancel = row["live"] and row["status"] != "cancelling"
            button = cells.get_by_role("button", name=f"Cancel {row['name']}", exact=True)
            expect(button).to_have_count(int(can_cancel))
    expect(panel.row(19)).to_contain_text("12 s1,204 in · 340 out$0.0123")
    expect(panel.row(16)).to_contain_text("9.0 s")


def test_rows_stay_where_they_are(panel: PanelPage) -> None:
    """A new run comes on top and what ends changes its words: no other row is made anew or loses the focus."""
    panel.open_panel(make_runs([make_row(3, "running"), make_row(2, "running"), make_row(1)]))
    panel.row(2).get_by_role("button", name="Cancel").focus()
    panel.page.evaluate("() => { for (const tr of document.querySelectorAll('tbody tr')) tr.known = true; }")
    rows = [make_row(4, "running"), make_row(3), make_row(2, "running"), make_row(1)]
    panel.update_panel(**make_runs(rows))
    names = panel.piece("open").all_text_contents()
    assert names == ["chapter 4", "chapter 3", "chapter 2", "chapter 1"]
    known = "[...document.querySelectorAll('tbody tr')].map((tr) => Boolean(tr.known))"
    assert panel.ask(known) == [False, True, True, True]
    expect(panel.row(2).get_by_role("button", name="Cancel")).to_be_focused()
    # When its button goes, the keyboard is still on the row.
    panel.update_panel(**make_runs([rows[0], rows[1], make_row(2, "cancelled"), rows[3]]))
    expect(panel.row(2).get_by_role("button", name="chapter 2")).to_be_focused()
    panel.update_panel(**make_runs(rows[1:2]))
    assert panel.piece("open").all_text_contents() == ["chapter 3"]


def test_only_what_is_live_ticks(panel: PanelPage) -> None:
    """Elapsed times go on by the second, and the rest of the page does not change."""
    panel.open_panel(make_runs([make_row(2, "running"), make_row(1)]))
    panel.page.evaluate(
        """() => {
          window.changed = new Set();
          const note = (all) => all.forEach((one) => changed.add(one.target.className));
          const options = { subtree: true, childList: true, characterData: true, attributes: true };
          new MutationObserver(note).observe(document.querySelector(".nbrun-panel"), options);
        }"""
    )
    panel.pass_ms(2_000)
    expect(panel.row(2)).to_contain_text("14 s")
    expect(panel.row(1)).to_contain_text("9.0 s")
    assert panel.ask("[...changed]") == ["nbrun-panel__elapsed nbrun-panel__figure"]


def test_filters_and_pages_ask_the_kernel(panel: PanelPage) -> None:
    """A choice at once, typing when it rests, a page by its button: one request each, and the answer ends the wait."""
    panel.open_panel(make_runs([make_row(9)], has_more=True))
    panel.page.get_by_label("Status").select_option("live")
    look = {"op": "look", "panel": "panel-id", "page": "newest"}
    assert panel.asked == [look | {"status": "live", "text": ""}]
    expect(panel.piece("busy")).to_have_text("Searching…")
    nonce = panel.answer()
    expect(panel.piece("busy")).to_have_text("Searching…")  # heard, and under way
    panel.update_panel(answered=nonce, status="live", rows=[], has_more=False)
    expect(panel.piece("busy")).to_be_hidden()
    expect(panel.page.get_by_text("No runs match.")).to_be_visible()

    panel.page.get_by_label("Search").press_sequentially("tea")
    panel.pass_ms(250)
    assert len(panel.asked) == 1
    panel.pass_ms(100)
    assert panel.asked[1:] == [look | {"status": "live", "text": "tea"}]
    panel.update_panel(answered=panel.answer(), text="tea", rows=[make_row(9)], has_more=True)
    expect(panel.page.get_by_label("Search")).to_be_focused()
    panel.page.get_by_role("button", name="50 more").click()
    assert panel.asked[2:] == [look | {"status": "live", "text": "tea", "page": "more"}]
    expect(panel.page.get_by_role("button", name="50 more")).to_be_disabled()
    panel.update_panel(answered=panel.answer(), has_more=False, has_newer=True)
    expect(panel.page.get_by_role("button", name="50 more")).to_be_hidden()
    panel.page.get_by_role("button", name="50 newer").click()
    assert panel.asked[3]["page"] == "newer"
    panel.pass_ms(1_600)  # no answer by any channel
    expect(panel.page.get_by_role("alert").first).to_contain_text("No answer from the kernel yet")
    # Another page of the same notebook has looked for something else.
    panel.page.get_by_label("Search").blur()
    panel.update_panel(answered="another", status="failed", text="")
    expect(panel.page.get_by_label("Status")).to_have_value("failed")
    expect(panel.page.get_by_label("Search")).to_have_value("")


def test_cancel_takes_both_channels(panel: PanelPage) -> None:
    """Of one run and of all: by widget message and control channel; the rows tell what comes of it."""
    rows = [make_row(3, "running"), make_row(2, "waiting"), make_row(1, "running", own=False)]
    panel.open_panel(make_runs(rows, live=2))
    expect(panel.row(1).get_by_role("button", name="Cancel")).to_be_hidden()  # of another kernel
    panel.row(3).get_by_role("button", name="Cancel").click()
    one = {"op": "cancel", "run_id": "run-3", "by": "panel"}
    assert panel.asked == [one]
    expect(panel.row(3).get_by_role("button", name="Cancelling…")).to_be_disabled()
    panel.answer("requested")
    expect(panel.row(3).get_by_role("button", name="Cancelling…")).to_be_disabled()
    panel.page.get_by_role("button", name="Cancel all 2").click()
    assert panel.asked == [one, {"op": "cancel_all"}]
    by_comm, by_control = panel.ask("harness.model.sent"), panel.ask("harness.kernel.sent")
    assert by_comm == [message["content"] for message in by_control]
    expect(panel.page.get_by_role("button", name="Cancelling…").first).to_be_disabled()
    panel.answer("requested")
    rows[0], rows[1] = make_row(3, "cancelled"), make_row(2, "running", name="quick")
    panel.update_panel(**make_runs(rows, live=1))
    expect(panel.page.get_by_role("button", name="Cancel all 1")).to_be_enabled()
    expect(panel.row(2).get_by_role("button", name="Cancel quick")).to_be_enabled()
    panel.row(2).get_by_role("button", name="Cancel quick").click()
    panel.answer("not_found")
    expect(panel.page.get_by_role("alert").first).to_contain_text("doesn't have this run")
    expect(panel.row(2).get_by_role("button", name="Cancel quick")).to_be_enabled()


def test_a_row_unfolds_to_the_card_of_its_run(panel: PanelPage) -> None:
    """By keyboard; the card lives, keeps what is typed in it when rows come, and goes when it is folded."""
    rows = [make_row(20), make_row(19, "running"), make_row(18)]
    panel.open_panel(make_runs(rows))
    button = panel.row(19).get_by_role("button", name="chapter 19", expanded=False)
    button.focus()
    panel.page.keyboard.press("Enter")
    assert panel.asked == [{"op": "open", "panel": "panel-id", "key": "session-id/run-19"}]
    question: dict[str, Any] = {"id": "q", "message": "Go on?", "args": "", "options": [], "deadline": None}
    run = OPEN_RUN | {"questions": [question]}
    panel.update_panel(run, open="session-id/run-19")
    card = panel.piece("card").locator(".nbrun-card")
    expect(card).to_contain_text("Once upon a time")
    expect(panel.row(19).get_by_role("button", expanded=True)).to_be_focused()
    card.get_by_role("textbox").fill("a word")
    panel.update_panel(run | {"text": "Once upon a time, twice"}, rows=[make_row(21), *rows])
    expect(card).to_contain_text("twice")
    expect(card.get_by_role("textbox")).to_be_focused()
    expect(card.get_by_role("textbox")).to_have_value("a word")
    order = "[...document.querySelectorAll('tbody tr')].map((tr) => tr.dataset.key ?? 'card')"
    keys = [f"session-id/run-{number}" for number in (21, 20, 19)]
    assert panel.ask(order) == [*keys, "card", "session-id/run-18"]
    card.get_by_role("button", name="Cancel").click()
    assert panel.asked[-1] == {"op": "cancel", "run_id": "run-19"}
    # Another run's card in its place, and none at last.
    panel.update_panel(make_run("failed", id="run-20", error="no tea"), open="session-id/run-20")
    expect(card).to_contain_text("no tea")
    assert panel.ask(order)[:3] == [*keys[:2], "card"]
    panel.row(20).get_by_role("button", name="chapter 20").click()
    assert panel.asked[-1] == {"op": "open", "panel": "panel-id", "key": ""}
    panel.update_panel(open="")
    expect(card).to_have_count(0)
    panel.update_panel(open="session-id/run-999")  # of a page that is not shown
    expect(card).to_have_count(0)


def test_a_panel_whose_kernel_is_gone_shows_nothing_as_live(panel: PanelPage) -> None:
    """After a restart it says that it is not followed, its live rows too, and nothing can be clicked."""
    panel.open_panel(make_runs(ALL_STATUSES, open="session-id/run-19", has_more=True), OPEN_RUN)
    panel.page.evaluate("() => harness.kernel.slots.forEach((slot) => slot(null, 'restarting'))")
    panel.pass_ms(20)
    expect(panel.page.get_by_role("status").first).to_have_text("Not updating")
    expect(panel.page.get_by_role("alert").first).to_contain_text("Run %agentrun for the current state")
    for row in ALL_STATUSES:
        words = "Connection to the run lost" if row["live"] else row["cells"]["status"]
        expect(panel.row(row["number"]).get_by_role("cell").first).to_have_text(words)
    expect(panel.piece("card")).to_contain_text("Connection to the run lost")
    expect(panel.page.locator("button:visible:enabled").filter(has_text="Cancel")).to_have_count(0)
    for name in ("50 more", "Cancel all"):
        expect(panel.page.get_by_role("button", name=name)).to_be_hidden()
    expect(panel.page.get_by_label("Search")).to_be_disabled()
    panel.pass_ms(3_000)
    assert panel.asked == []


def test_the_file_is_asked_to_keep_what_is_shown_when_nobody_is_at_it(panel: PanelPage) -> None:
    """Once all runs have ended, and the keyboard is elsewhere: the page draws its output anew then."""
    panel.open_panel(make_runs([make_row(1, "running")], is_stale=True))
    panel.pass_ms(5_000)
    assert panel.asked == []
    panel.page.get_by_label("Search").focus()
    panel.update_panel(**make_runs([make_row(1)], is_stale=True))
    panel.pass_ms(2_000)
    assert panel.asked == []
    panel.page.get_by_label("Search").blur()
    panel.pass_ms(2_000)
    assert panel.asked == [{"op": "keep", "panel": "panel-id"}]
    panel.pass_ms(5_000)  # no answer: nothing that its reader has to know
    expect(panel.page.get_by_role("alert").first).to_be_hidden()


def test_hostile_rows_stay_text(panel: PanelPage) -> None:
    """Names, agents, words, ids and the open card make no tag and no request."""
    cells = {column["key"]: HOSTILE for column in COLUMNS}
    row = make_row(1, "running", key=HOSTILE, id=HOSTILE, name=HOSTILE, cells=cells)
    runs = make_runs([row], text=HOSTILE, problem=HOSTILE, open=HOSTILE)
    panel.open_panel(runs, make_run(name=HOSTILE, text=HOSTILE))
    loaded = len(panel.requests)
    panel.update_panel(status="failed")
    assert panel.piece("open").text_content() == HOSTILE
    assert panel.page.locator("#output :is(img, script)").count() == 0
    assert len(panel.requests) == loaded
    assert panel.ask("document.documentElement.scrollWidth <= innerWidth")


def test_a_full_page_with_a_long_card_is_small(panel: PanelPage) -> None:
    """Fifty rows and a card with all that a card shows: at most 2,000 nodes, texts and comments counted too."""
    tool = {"id": "a", "name": "search", "args": "{}", "status": "ok", "ms": 140, "result": "5 hits"}
    child = {"title": "helper #5", "status": "completed", "words": "completed"}
    run = make_run(id="run-50", tools=[tool] * 20, children=[child] * 20, log=["line"] * 20, log_count=20)
    rows = [make_row(50 - at, "running") for at in range(50)]
    panel.open_panel(make_runs(rows, open="session-id/run-50", has_more=True, has_newer=True), run)
    count = """(() => {
      const walker = document.createTreeWalker(document.getElementById("output"), NodeFilter.SHOW_ALL);
      let nodes = 0;
      while (walker.nextNode()) nodes += 1;
      return nodes;
    })()"""
    assert 1_000 < panel.ask(count) <= MAX_NODES
    panel.update_panel(**make_runs([]))
    assert panel.ask(count) < 100
    panel.page.evaluate("() => harness.cleanup()")
    assert panel.ask("document.getElementById('output').childNodes.length") == 0
    assert panel.ask("harness.model.listeners.length + harness.kernel.slots.size") == 0


def make_set_row(name: str = "running") -> dict[str, Any]:
    """Return what the kernel sends of a set."""
    return set_row(SETS[name], is_own=True)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_set_is_a_row_that_opens_its_runs(panel: PanelPage, theme: str) -> None:
    """A click has its runs searched for, and another one all again; Cancel names the set. Both looks have a picture."""
    rows = [make_row(9), make_set_row(), make_row(8), make_set_row("cancelled") | {"key": "set-3", "set": 3}]
    panel.page.set_viewport_size({"width": 1_000, "height": 400})
    panel.open_panel(make_runs(rows, set=0), theme=theme)
    panel.page.screenshot(path=picture(f"panel-sets-{theme}"), full_page=True)
    row = panel.page.locator('tr[data-key="set-12"]')
    panel.page.clock.resume()  # axe waits by the page's clock
    assert axe.violations(panel.page, ".nbrun-card") == []
    expect(row).to_contain_text("Running: 3,805 of 10,000 ended, 140 failed, 2 waiting for you")
    row.get_by_role("button", name="graded set #12", exact=True).click()
    assert panel.ask("harness.model.sent.map(({ op, text }) => [op, text])") == [["look", "set-12"]]
    panel.update_panel(rows=[make_set_row(), make_row(7)], text="set-12", set=12)
    expect(panel.page.get_by_label("Search")).to_have_value("set-12")
    name = row.get_by_role("button", name="graded set #12", exact=True)
    expect(name).to_have_attribute("aria-expanded", "true")
    row.get_by_role("button", name="Cancel").click()
    sent = panel.ask("harness.model.sent.slice(1).map(({ op, set, by, run_id }) => [op, set, by, run_id ?? null])")
    assert sent == [["cancel", 12, "panel", None]]
    name.click()
    assert panel.ask("harness.model.sent.at(-1).text") == ""
    panel.page.set_viewport_size({"width": 420, "height": 400})
    panel.page.screenshot(path=picture(f"panel-sets-narrow-{theme}"), full_page=True)
    assert panel.ask("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
