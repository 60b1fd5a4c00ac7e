"""The card in every state, from the events of a run to the page: what it says, how it looks, whom it shuts out."""

from __future__ import annotations

import msgspec
import pytest
from playwright.sync_api import expect

from nbrun.core import events as ev
from nbrun.core.record import ToolCall
from nbrun.ui.cards.markdown_blocks import Blocks
from nbrun.ui.cards.view import view
from tests.browser import axe
from tests.browser.card_page import NOW, CardPage
from tests.browser.pictures import picture
from tests.browser.states import ANSWER, RECORDS, state

THEMES = ("light", "dark")
WIDTH = 760


def take(card: CardPage, name: str) -> None:
    """Take a picture of the card."""
    card.page.screenshot(path=picture(name), full_page=True, animations="disabled")


@pytest.mark.parametrize("theme", THEMES)
def test_every_state_shuts_nobody_out(card: CardPage, theme: str) -> None:
    """Axe finds nothing in any state, open, folded and with all its parts open; each has its picture."""
    card.page.set_viewport_size({"width": WIDTH, "height": 300})
    card.open(state("queued"), theme=theme)
    card.page.clock.resume()  # axe waits by the page's clock
    found: list[str] = []
    for name in RECORDS:
        card.show(state(name))
        take(card, f"{theme}-{name}")
        found += [f"{name}: {one}" for one in axe.violations(card.page, ".nbrun-card")]
    card.show(state("failed") | {"questions": state("waiting")["questions"], "log": ["x"] * 20, "log_count": 99})
    card.page.evaluate("() => document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
    card.part("copy").last.click()
    take(card, f"{theme}-all-open")
    found += [f"all open: {one}" for one in axe.violations(card.page, ".nbrun-card")]
    card.part("fold").click()
    take(card, f"{theme}-folded")
    found += [f"folded: {one}" for one in axe.violations(card.page, ".nbrun-card")]
    assert found == []


@pytest.mark.parametrize("look", ["forced-colours", "narrow", "right-to-left"])
def test_other_looks(card: CardPage, look: str) -> None:
    """High contrast, 320 px and a right-to-left page: nothing sticks out or is lost, and each has its pictures."""
    card.page.set_viewport_size({"width": 320 if look == "narrow" else WIDTH, "height": 300})
    if look == "forced-colours":
        card.page.emulate_media(forced_colors="active", color_scheme="dark")
    card.open(state("queued"))
    if look == "right-to-left":
        card.page.evaluate("() => (document.documentElement.dir = 'rtl')")
    for name in ("running", "completed", "failed", "children", "calls", "waiting"):
        hebrew = {"name": "סקר כוכבי שביט", "agent": "סוכן:מודל-עם-שם-ארוך-מאוד-מאוד"}
        card.show(state(name) | (hebrew if look == "right-to-left" else {}))
        take(card, f"{look}-{name}")
        assert card.ask("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        for part in ("facts", "body", "text", "tools"):
            for box in card.part(part).all():
                assert box.evaluate("(box) => box.scrollWidth - box.clientWidth") <= 0, (name, part)


GROWN = """() => {
  window.changed = [];
  const watch = (all) => changed.push(...all.map(({ target, type }) => [type, target.className ?? "text"]));
  const options = { subtree: true, childList: true, characterData: true, attributes: true };
  new MutationObserver(watch).observe(document.querySelector(".nbrun-card__text"), options);
  const words = document.querySelector(".nbrun-card__block strong").firstChild;
  getSelection().setBaseAndExtent(words, 0, words, 10);
}"""


def test_a_closed_block_is_drawn_and_left_alone(card: CardPage) -> None:
    """Text is raw while it streams and Markdown when its block closes; a selection in what was drawn lives on."""
    record, blocks = RECORDS["running"], Blocks()
    text = ANSWER[: ANSWER.index("Both") + 30]
    card.open(view(msgspec.structs.replace(record, text=text), NOW, blocks=blocks))
    expect(card.part("block")).to_have_text("Two comets to watch")
    expect(card.part("stream")).to_have_text("Both return **this century**; ")
    card.page.evaluate(GROWN)
    for end in (60, 200, 230):
        card.update(**view(msgspec.structs.replace(record, text=ANSWER[:end]), NOW, blocks=blocks))
    expect(card.part("block").nth(1).locator("strong")).to_have_text("this century")
    assert card.ask("getSelection().toString()") == "Two comets"
    touched = {name for kind, name in card.ask("changed") if kind != "characterData"}
    assert touched == {"nbrun-card__blocks"}
    ended = msgspec.structs.replace(RECORDS["completed"], text=ANSWER)
    card.update(**view(ended, NOW, blocks=blocks))
    expect(card.part("text").locator("td")).to_have_count(6)
    expect(card.part("text").locator("ol pre")).to_have_text("orbit = fit(observations, epoch=2451545.0)")
    expect(card.part("text").get_by_role("link")).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(card.part("stream")).to_be_empty()
    assert card.ask("getSelection().toString()") == "Two comets"


HOSTILE_HTML = [
    "<img src=/hit onerror=hit()>",
    "<p onclick=hit() style='position:fixed;inset:0' class=jp-Cell id=x>words</p>",
    "<script>hit()</script><style>*{display:none}</style><link rel=stylesheet href=/hit>",
    "<svg><p onload=hit()><a xlink:href='javascript:hit()'>words</a></svg><math><mi href=/hit>words</mi></math>",
    "<a href='javascript:hit()'>words</a><a href='JaVa\tscript:hit()'>words</a><a href='data:text/html,hit'>words</a>",
    "<a href='//evil.example/hit' ping=/hit target=_self>words</a><a href='/hit'>words</a>",
    "<form action=/hit><button autofocus onfocus=hit()>words</button><input autofocus onfocus=hit()></form>",
    "<iframe srcdoc='<script>parent.hit()</script>'></iframe><object data=/hit></object><embed src=/hit>",
    "<table background=/hit><tr><td onmouseover=hit()>words</td></tr></table><base href=/hit><meta http-equiv=refresh>",
    "<template><img src=/hit onerror=hit()></template><noscript><p title='</noscript><img src=x onerror=hit()>'>",
    "<details open ontoggle=hit()>words</details><video src=/hit autoplay></video><b>words</b>",
    "<blockquote>" * 3_000 + "deep",
    "<ol start='2;hit()'><li value=/hit>words</li></ol>",
]


def test_the_page_believes_no_html(card: CardPage) -> None:
    """Whoever can send the card a message can put plain elements and words into it, and nothing else."""
    card.open(state("running"))
    card.page.evaluate("() => { window.hits = 0; window.hit = () => (hits += 1) }")
    requests = len(card.requests)
    card.update(blocks=[{"key": n, "html": html} for n, html in enumerate(HOSTILE_HTML, 100)], text="")
    expect(card.part("block")).to_have_count(len(HOSTILE_HTML))
    found = card.ask(
        """[...document.querySelectorAll(".nbrun-card__block *")].map((node) =>
          [node.tagName, ...node.getAttributeNames().sort(), node.namespaceURI].join(" "))"""
    )
    plain = {f"{tag} http://www.w3.org/1999/xhtml" for tag in ("A", "TABLE", "TBODY", "TR")}
    turning = {f"{tag} dir http://www.w3.org/1999/xhtml" for tag in ("BLOCKQUOTE", "LI", "P", "TD")}
    assert set(found) == plain | turning | {"OL dir start http://www.w3.org/1999/xhtml"}
    assert len(found) < 100
    for block in card.part("block").all()[4:5]:
        assert block.inner_text() == "wordswordswords"
    card.part("block").nth(1).hover()
    card.page.mouse.move(5, 5)
    assert card.ask("hits") == 0
    assert card.requests[requests:] == []


def test_the_card_folds_to_its_line(card: CardPage) -> None:
    """It stays folded through updates and says so to who does not see it; what a person is asked is not folded."""
    card.open(state("running"))
    fold = card.page.get_by_role("button", name="Details of comet_survey")
    expect(fold).to_have_attribute("aria-expanded", "true")
    fold.press("Enter")
    expect(fold).to_have_attribute("aria-expanded", "false")
    body = card.page.locator(f"id={fold.get_attribute('aria-controls')}")
    for name in ("running", "waiting", "failed"):
        card.update(**state(name))
        expect(body).to_be_hidden()
        expect(card.part("words")).to_be_visible()
        expect(card.part("question")).to_be_visible(visible=name == "waiting")
    assert card.page.locator(".nbrun-card").evaluate("(card) => card.offsetHeight") < 50
    card.page.evaluate("() => { harness.cleanup(); harness.draw() }")  # the output was drawn anew
    expect(card.part("error")).to_be_hidden()
    fold.press(" ")
    expect(card.part("error")).to_be_visible()


def test_cancel_does_not_flicker_nor_lose_the_focus(card: CardPage) -> None:
    """It comes after 200 ms; pressed it keeps the focus, and when it goes, that moves to what is beside it."""
    card.open(state("running") | {"created_at": NOW, "started_at": NOW})
    expect(card.cancel).to_be_hidden()
    card.pass_ms(190)
    expect(card.cancel).to_be_hidden()
    card.pass_ms(30)
    expect(card.cancel).to_be_visible()
    card.cancel.press("Enter")
    card.cancel.press("Enter")
    assert len(card.ask("harness.model.sent")) == 1
    card.update(**state("cancelling"))
    expect(card.cancel).to_be_focused()
    expect(card.cancel).to_have_text("Cancelling…")
    card.update(**state("cancelled"))
    expect(card.cancel).to_be_hidden()
    expect(card.part("words")).to_have_text("Cancelled by you after 14 s")
    expect(card.part("fold")).to_be_focused()


@pytest.mark.parametrize("page", ["https", "http"])
def test_buttons_copy(card: CardPage, page: str) -> None:
    """The result as it was written, the id, and the Python that gets it; also where the clipboard is out of reach."""
    card.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    card.open(state("completed"))
    if page == "http":
        card.page.evaluate(
            """() => {
              window.read = navigator.clipboard.readText.bind(navigator.clipboard);
              Object.defineProperty(navigator, "clipboard", { value: undefined });
            }"""
        )
    read = "read()" if page == "http" else "navigator.clipboard.readText()"
    copied = {"Copy result": ANSWER, "Copy id": "run-01k9", "Copy as Python": 'nbrun.get("run-01k9")'}
    for label, text in copied.items():
        button = card.page.get_by_role("button", name=label)
        button.press("Enter")
        expect(card.part("copied")).to_have_text("Copied")
        expect(button).to_be_focused()
        assert card.ask(read) == text
        card.pass_ms(2100)
        expect(card.part("copied")).to_be_hidden()
    expect(card.part("copied")).to_have_attribute("aria-live", "polite")
    card.update(**state("running"))
    card.page.get_by_role("button", name="Copy text so far").click()
    expect(card.part("copied")).to_have_text("Copied")
    assert card.ask(read).startswith("Two comets to watch\n")
    card.update(**state("completed") | {"result": "x" * 20_000, "result_cut": 5})
    expect(card.page.get_by_role("button", name="Copy the last 20,000 characters")).to_be_visible()


def test_the_keyboard_reaches_everything(card: CardPage) -> None:
    """Every button, fold, link and box that scrolls has its turn, each with a ring around it."""
    long = state("failed") | {"log": [f"line {n}" for n in range(20)], "log_count": 20, "text": "line\n" * 99}
    card.open(long | {"questions": state("waiting")["questions"], "reasoning": "hm", "reasoning_count": 2})
    card.page.evaluate("() => document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
    card.pass_ms(1100)
    stops = []
    for _ in range(30):
        card.page.keyboard.press("Tab")
        stop = card.ask(
            """((node, { outlineStyle }) => [node.className.replace("nbrun-card__", ""), node.tagName, outlineStyle])(
              document.activeElement, getComputedStyle(document.activeElement))"""
        )
        if stop[1] == "BODY":
            break
        stops.append(stop)
    assert [name for name, *_ in stops] == [
        "fold", "link", "reason", "decide", "decide", "tool-line", "tool-line", "reasoning-title", "text",
        "trace-title", "log-title", "log-lines", "copy", "copy", "copy",
    ]  # fmt: skip
    assert {outline for *_, outline in stops} == {"solid"}
    has_its_keys = "document.activeElement.hasAttribute('data-lm-suppress-shortcuts')"
    card.part("copy").first.focus()
    card.page.keyboard.press("Shift+Tab")
    expect(card.part("log-lines")).to_be_focused()
    assert card.ask(has_its_keys)  # an arrow scrolls
    card.part("log-lines").click()
    card.part("text").click()
    expect(card.part("text")).to_be_focused()
    assert not card.ask(has_its_keys)  # an arrow goes to the next cell


def test_a_long_run_is_a_small_page(card: CardPage) -> None:
    """100,000 deltas of Markdown and 2,000 tools: what the page gets of them stays below 2,000 nodes."""
    tools = tuple(ToolCall(f"t{n}", "search", args={"n": n}, status="error", result="x" * 900) for n in range(2_000))
    record = msgspec.structs.replace(
        RECORDS["completed"], text="- *a* `b` [c](https://d.example)\n\nwords\n\n" * 20_000, tools=tools,
        log=tuple(f"line {n}" for n in range(20)), log_count=5_000, reasoning="hm " * 1_000, reasoning_count=99_000,
        error=ev.ErrorInfo("E", "m" * 9_000, "t\n" * 9_000),
    )  # fmt: skip
    sent = view(record, NOW, blocks=Blocks())
    assert len(msgspec.json.encode(sent)) < 150_000
    card.open(sent)
    expect(card.part("tool")).to_have_count(20)
    nodes = card.ask(
        """(() => { const walk = document.createTreeWalker(document.querySelector(".nbrun-card"), NodeFilter.SHOW_ALL);
          let count = 0; while (walk.nextNode()) count += 1; return count })()"""
    )
    assert 500 < nodes < 2_000
    assert card.part("block").count() > 50
