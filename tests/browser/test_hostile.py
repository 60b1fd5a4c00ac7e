"""Hostile texts in every field, in a real Chromium: nothing of them runs, loads, hides or breaks out of its box."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output

from nbrun import Run, RunRecord
from nbrun.render.static_card import bundle, whole_html
from nbrun.ui.cards.markdown_blocks import Blocks
from nbrun.ui.cards.view import view
from nbrun.ui.panel import table as runs_table
from nbrun.ui.panel.page import Row
from tests.browser.pictures import SCREENSHOTS
from tests.fakes.hostile import FLOOD, GROUPS, PAYLOADS
from tests.fakes.hostile_runs import AT, runs_with

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Dialog, Page

WIDTHS = (320, 900)
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\u3164\ufeff\uffa0"
    "\ufff9-\ufffb\U000e0000-\U000e01ef]"
)
"""Characters that nobody sees, or that move or hide others."""

WATCH = """
window.hits = 0;
window.hit = () => { window.hits += 1; };
window.alert = window.prompt = window.confirm = window.hit;
"""

# Of each card what sticks out of its box to the right or left, or lies outside of it though it is its part; its text.
BOXES = """(cards) => cards.map((root) => {
  const box = root.getBoundingClientRect();
  const clipped = (node) => {
    for (let at = node.parentElement; at && at !== root.parentElement; at = at.parentElement) {
      if (getComputedStyle(at).overflowX !== "visible") return true;
    }
    return false;
  };
  const outside = [...root.querySelectorAll("*")]
    .filter((node) => {
      const one = node.getBoundingClientRect();
      const isOut = one.left < box.left - 1 || one.right > box.right + 1;
      return one.width && isOut && !clipped(node);
    })
    .map((node) => `${node.tagName}.${node.className}: ${node.textContent.slice(0, 60)}`);
  return [outside, root.textContent];
})"""
CARDS = ".nbrun-card, .nbrun-panel, .nbrun-static"


class Watched:
    """A page of which it is known what it has asked for, and whether something in it has run."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        page.add_init_script(WATCH)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", self._dismiss)
        self.address = address

    def _dismiss(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def open(self) -> None:
        """Load the harness."""
        self.page.goto(self.address)
        self.page.wait_for_function("() => window.harness")
        self.requests.clear()

    def unfold(self) -> None:
        """Open all that can be unfolded."""
        self.page.evaluate("() => document.querySelectorAll('#output details').forEach((node) => (node.open = true))")

    def check_at_widths(self, what: object) -> int:
        """Check the page and its cards in a narrow and in a wide window; return how many cards there are."""
        counts = set()
        for width in WIDTHS:
            self.page.set_viewport_size({"width": width, "height": 900})
            self.check(what)
            counts.add(self.check_boxes(what))
        (count,) = counts
        return count

    def check(self, what: object) -> None:
        """Nothing has run, nothing was asked for, and the page is no wider than its window."""
        self.page.wait_for_timeout(50)  # what loads in the background has asked by now
        assert self.page.evaluate("() => window.hits") == 0, what
        assert self.dialogs == [], what
        assert [url for url in self.requests if not url.startswith(("data:", "blob:"))] == [], what
        overflow = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert self.page.evaluate(overflow) <= 0, what

    def check_boxes(self, what: object) -> int:
        """Each card stays within its box, and shows every character that it has; return how many there are."""
        boxes = self.page.eval_on_selector_all(CARDS, BOXES)
        for outside, text in boxes:
            assert outside == [], what
            assert not UNSEEN.search(text), (what, UNSEEN.findall(text)[:5])
        assert self.elements(MADE) == [], what
        return len(boxes)

    def elements(self, selector: str) -> list[str]:
        """Return what elements there are that a text could only have made itself."""
        found: list[str] = self.page.eval_on_selector_all(
            selector, "nodes => nodes.map(node => node.outerHTML.slice(0, 200))"
        )
        return found


@pytest.fixture
def watched(browser: Browser, harness: str) -> Iterator[Watched]:
    """A page that is watched."""
    page = browser.new_page(viewport={"width": 900, "height": 900})
    yield Watched(page, harness)
    page.close()


MADE = (
    "#output :is(script, style, iframe, object, embed, img, svg, math, video, audio, base, meta, link, "
    "form:not(.nbrun-card__say), "
    "marquee, template, frameset, picture, source)"
)
"""Elements that neither a card nor a panel makes."""


def records_of(group: str) -> list[RunRecord]:
    """Return a run for each payload of a group: one that asks, has failed, was cancelled, has completed, in turn."""
    return [runs_with(one, at)[at % 4] for at, one in enumerate(GROUPS[group])]


@pytest.mark.parametrize("group", GROUPS)
def test_live_cards(watched: Watched, group: str) -> None:
    """The card's own module, fed with what the kernel sends of such runs, at two widths."""
    states = [view(record, AT + 30, blocks=Blocks()) for record in records_of(group)]
    watched.open()
    watched.page.evaluate("states => states.forEach(run => harness.mount(run))", states)
    watched.unfold()
    assert watched.check_at_widths(group) == len(states)
    SCREENSHOTS.mkdir(exist_ok=True)
    watched.page.screenshot(path=SCREENSHOTS / f"hostile-{group}.png", full_page=group != "large")


def test_a_flood_is_cut(watched: Watched) -> None:
    """More than 5 MB in every field: the card is small, and so is its page."""
    watched.open()
    for record in runs_with(FLOOD):
        state = view(record, AT + 30, blocks=Blocks())
        watched.page.evaluate("run => harness.mount(run)", state)
        saved = bundle(record)
        assert len(saved["text/html"]) < 100_000
    watched.check("flood")
    watched.check_boxes("flood")
    assert watched.page.evaluate("() => document.querySelectorAll('#output *').length") < 4 * 500


def test_panels(watched: Watched) -> None:
    """The table of runs, live and as it is saved."""
    records = [runs_with(one, number)[number % 4] for number, one in enumerate(PAYLOADS, 1)]
    unused: Any = object()  # a row is drawn from its record alone
    rows = [runs_table.page_row(Row(Run(unused, record, store=unused), record), "session") for record in records]
    for start in range(0, len(rows), 50):
        watched.open()
        page = rows[start : start + 50]
        panel = {
            "id": "panel", "columns": runs_table.COLUMNS, "rows": page, "live": 1, "stored": len(rows), "status": "",
            "text": PAYLOADS[start], "page": 50, "has_more": True, "has_newer": False, "open": "", "answered": "",
            "problem": "", "is_over": False, "is_stale": False, "now": AT,
        }  # fmt: skip
        watched.page.evaluate("panel => harness.mountPanel(panel)", panel)
        watched.check_at_widths(start)
    html = runs_table.bundle(records, len(records), AT)["text/html"]
    watched.open()
    watched.page.evaluate("html => { document.getElementById('output').innerHTML = html }", html)
    watched.check("static panel")
    watched.check_boxes("static panel")


def test_static_cards(watched: Watched) -> None:
    """What a notebook file keeps, put into a page as it is: nobody has to clean it before."""
    for group in GROUPS:
        html = "".join(bundle(record)["text/html"] for record in records_of(group))
        watched.open()
        watched.page.evaluate("html => { document.getElementById('output').innerHTML = html }", html)
        watched.unfold()
        watched.check_at_widths(group)


def test_saved_notebooks_and_exports(watched: Watched, tmp_path: Any) -> None:
    """Nbconvert's page of a notebook with such cards, Markdown included; and our own export."""
    records = [record for group in GROUPS for record in records_of(group)]
    bundles = [bundle(record) for record in records]
    outputs = [new_output("display_data", one) for one in bundles]
    # Once more without the HTML: then its Markdown is drawn.
    outputs += [new_output("display_data", {k: v for k, v in one.items() if k != "text/html"}) for one in bundles]
    exporter: Any = HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="lab", mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url=""
    )
    baseline = _loaded(watched, exporter, new_notebook(cells=[new_code_cell("1")]))
    asked = _loaded(watched, exporter, new_notebook(cells=[new_code_cell("1", outputs=outputs)]))
    assert asked == baseline
    assert watched.page.evaluate("() => window.hits") == 0
    watched.requests.clear()
    watched.page.set_content("".join(whole_html(record) for record in records))
    assert watched.page.evaluate("() => window.hits") == 0
    assert watched.requests == []


def _loaded(watched: Watched, exporter: Any, notebook: nbformat.NotebookNode) -> set[str]:
    """Return what the page of a notebook asks for."""
    html, _resources = exporter.from_notebook_node(notebook)
    watched.requests.clear()
    watched.page.goto("about:blank")
    watched.page.set_content(html)
    watched.page.wait_for_timeout(200)
    return set(watched.requests) - {"about:blank"}


@pytest.mark.parametrize("group", GROUPS)
def test_texts_for_terminals(group: str) -> None:
    """Plain text and Markdown have no character that a terminal obeys or that nobody sees."""
    for record in records_of(group):
        for form in ("text/plain", "text/markdown"):
            text = bundle(record)[form]
            assert not UNSEEN.search(text), (form, UNSEEN.findall(text)[:5])
