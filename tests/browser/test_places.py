"""The live card in the place of the static one that a notebook's file holds, with a fake notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.browser.card_page import NOW, CardPage
from tests.browser.test_card import make_run

if TYPE_CHECKING:
    from playwright.sync_api import Locator

PLACE = '<div class="nbrun-place nbrun-at-1"><div class="nbrun-static">Was running</div></div>'
OTHER = PLACE.replace("at-1", "at-12")
ENDED = '<div class="nbrun-static">Completed in 2 s</div>'


class PlacePage(CardPage):
    """A page with the static cards of a notebook, and the model of one of them."""

    def initialize(self, run: dict[str, Any], html: list[str]) -> None:
        """Load the harness, stop its clock and make the model."""
        self.page.goto(self.address)
        self.page.wait_for_function("() => window.harness")
        self.page.clock.pause_at(NOW + 60)
        self.page.clock.set_system_time(NOW)
        self.page.evaluate("([run, html]) => harness.initialize(run, html)", [run, html])
        self.pass_ms(20)

    def output(self, at: int) -> Locator:
        """Return one of the notebook's outputs."""
        return self.page.locator("#output > div").nth(at)

    @property
    def sent(self) -> list[str]:
        """What the page has sent by widget message."""
        return [content["op"] for content in self.ask("harness.model.sent")]


def test_the_live_card_stands_over_its_static_one(card: CardPage) -> None:
    """Wherever the page shows that, and nowhere else; the kernel is told, and the card's clicks reach it."""
    page = PlacePage(card.page, card.address)
    page.initialize(make_run(), [PLACE, OTHER, PLACE])
    for at in (0, 2):
        expect(page.output(at).locator(".nbrun-card")).to_be_visible()
        expect(page.output(at).locator(".nbrun-static")).to_be_hidden()
        expect(page.output(at)).not_to_have_class("jp-RenderedHTMLCommon")
    expect(page.output(1)).to_have_text("Was running")
    assert page.sent == ["placed"]
    page.output(2).get_by_role("button", name="Cancel").click()
    assert page.sent == ["placed", "cancel"]


def test_a_place_that_is_drawn_anew_gets_its_card_again(card: CardPage) -> None:
    """A front end redraws outputs when it likes; one that is gone holds nothing, and the last gives way to the end."""
    page = PlacePage(card.page, card.address)
    page.initialize(make_run(), [PLACE])
    before = page.ask("harness.model.listeners.length")
    draw = "(html) => { document.getElementById('output').children[0].innerHTML = html; }"
    page.page.evaluate(draw, PLACE)
    expect(page.output(0).locator(".nbrun-card")).to_be_visible()  # before the page is painted
    assert page.ask("harness.model.listeners.length") == before
    page.page.evaluate(draw, ENDED)
    page.pass_ms(40)
    expect(page.output(0)).to_have_text("Completed in 2 s")
    expect(page.output(0)).to_have_class("jp-RenderedHTMLCommon")


DRAW = "document.getElementById('output').children[0].innerHTML"
MEANWHILE = {
    "drawn again": f"(html) => {{ {DRAW} = html; }}",
    "not yet drawn again": f"(html) => {{ {DRAW} = ''; setTimeout(() => {{ {DRAW} = html; }}, 100); }}",
    "taken out and put back": (
        "() => { const place = document.querySelector('.nbrun-place'); const { parentNode } = place;"
        " place.remove(); parentNode.append(place); }"
    ),
    "moved down": "() => { document.getElementById('output').style.marginTop = '300px'; }",
}


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_a_press_counts_whatever_becomes_of_its_button(card: CardPage, meanwhile: str) -> None:
    """The browser makes no click of it; one that is released elsewhere is none, and one click is one."""
    page = PlacePage(card.page, card.address)
    page.initialize(make_run(), [PLACE])
    mouse, button = page.page.mouse, page.output(0).get_by_role("button", name="Cancel")

    def press_and_release(*, down_by: float = 0, redraws: bool = True) -> None:
        box = button.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        mouse.move(x, y)
        mouse.down()
        if redraws:
            page.page.evaluate(MEANWHILE[meanwhile], PLACE)
        mouse.move(x, y + down_by)
        mouse.up()
        page.pass_ms(200)

    press_and_release(down_by=400)
    assert page.sent == ["placed"]
    page.page.evaluate("() => { document.getElementById('output').style.marginTop = ''; }")
    press_and_release()
    assert page.sent == ["placed", "cancel"]
    page.initialize(make_run(), [PLACE])
    press_and_release(redraws=False)
    assert page.sent == ["placed", "cancel"]


@pytest.mark.parametrize("has_end", [False, True], ids=["live", "ended"])
def test_what_a_person_does_on_a_card_outlives_a_redrawing_of_its_output(card: CardPage, has_end: bool) -> None:
    """As a question or the run's end makes one: the focus, a message, folds, scroll boxes and buttons stay."""
    page = PlacePage(card.page, card.address)
    log: dict[str, Any] = {"log": [f"line {n}" for n in range(100)], "log_count": 100}
    ended = {"status": "completed", "words": "Completed", "live": False, "ended_at": NOW, "result": "Done."}
    page.initialize(make_run(text="Done.", steer={"can": True, "messages": []}, **log), [PLACE])
    line, lines = card.page.get_by_role("textbox", name="Message the agent"), card.part("log-lines")
    card.part("log-title").click()
    lines.evaluate("(box) => { box.scrollTop = 40; }")
    line.press_sequentially("half a mess")
    line.press("ArrowLeft")
    if has_end:
        page.update(**ended)
    html = PLACE.replace('at-1"', 'at-1 nbrun-final"').replace("Was running", "Completed") if has_end else PLACE
    draw = (
        "(html) => harness.model.widget_manager.context.model.cells.get(1).outputs.set(0, {data: {'text/html': html}})"
    )
    page.page.evaluate(draw, html)
    expect(page.output(0).locator(".nbrun-static")).to_be_hidden()
    expect(line).to_be_focused()
    card.page.keyboard.type("!")
    expect(line).to_have_value("half a mes!s")
    expect(lines).to_be_visible()
    assert lines.evaluate("(box) => box.scrollTop") == 40
    expect(page.output(0).get_by_role("button", name="Copy result" if has_end else "Copy text so far")).to_be_visible()
    page.pass_ms(1200)
    assert page.sent == ["placed"]  # nobody asks for the end that is there


def test_the_file_gets_an_end_that_the_page_has_missed(card: CardPage) -> None:
    """Where the output is not replaced by the kernel's update, as after a reload, the page asks and replaces it."""
    page = PlacePage(card.page, card.address)
    page.initialize(make_run(), [PLACE, OTHER])
    page.update(**make_run("completed"))
    page.pass_ms(500)
    assert page.sent == ["placed"]
    page.pass_ms(600)
    assert page.sent == ["placed", "static"]
    message = {"op": "static", "data": {"text/html": ENDED}}
    page.page.evaluate("(message) => harness.model.tell('msg:custom', message)", message)
    page.pass_ms(40)
    assert page.ask("harness.outputs[0].data['text/html']") == ENDED
    assert page.ask("harness.outputs[1].data['text/html']") == OTHER
    expect(page.output(0)).to_have_text("Completed in 2 s")
    page.update(notices=["retried as #5"])
    page.pass_ms(1100)
    assert page.sent == ["placed", "static"]


def test_a_model_that_is_closed_leaves_the_static_card(card: CardPage) -> None:
    """Nothing listens any more, and the page shows what its file has."""
    page = PlacePage(card.page, card.address)
    page.initialize(make_run(), [PLACE])
    page.ask("harness.cleanup()")
    expect(page.output(0).locator(".nbrun-static")).to_be_visible()
    expect(page.output(0).locator(".nbrun-card")).to_have_count(0)
    expect(page.output(0)).to_have_class("jp-RenderedHTMLCommon")
    assert page.ask("harness.model.listeners.length") == 0


def test_a_page_that_has_another_kernel_draws_no_card_of_the_first(card: CardPage) -> None:
    """Nobody would bring it up to date. After a restart it says so itself; drawn anew it is the static one."""
    page = PlacePage(card.page, card.address)
    page.initialize(make_run(), [PLACE])
    page.ask("harness.model.widget_manager.kernel.slots.forEach((slot) => slot(null, 'restarting'))")
    page.pass_ms(40)
    expect(page.output(0).locator(".nbrun-card")).to_contain_text("Connection to the run lost")
    page.page.evaluate("(html) => { document.getElementById('output').children[0].innerHTML = html; }", PLACE)
    page.pass_ms(40)
    expect(page.output(0)).to_have_text("Was running")
    page.initialize(make_run(), [PLACE])
    page.ask("harness.model.widget_manager.kernel.ends.forEach((slot) => slot())")
    page.pass_ms(40)
    expect(page.output(0)).to_have_text("Was running")
    expect(page.output(0).locator(".nbrun-card")).to_have_count(0)


def test_a_page_of_another_kind_is_left_alone(card: CardPage) -> None:
    """Where no notebook is found the output stays the widget, and nothing is promised to the kernel."""
    page = PlacePage(card.page, card.address)
    page.open(make_run())
    page.ask("(() => { harness.model.state.place = 'nbrun-at-1'; })()")
    page.page.evaluate(
        """async (html) => {
            const { default: card } = await import("/static/card.js");
            document.getElementById("output").insertAdjacentHTML("beforeend", html);
            card.initialize({ model: harness.model });
        }""",
        PLACE,
    )
    page.pass_ms(40)
    expect(page.page.locator(".nbrun-static")).to_be_visible()
    expect(page.page.locator(".nbrun-card")).to_have_count(1)
    assert page.sent == []
