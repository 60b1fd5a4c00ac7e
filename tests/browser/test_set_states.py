"""The card of a set in every state: what it says, how it looks, whom it shuts out, and what its controls send."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from nbrun.render import static_card
from tests.browser import axe
from tests.browser.card_page import NOW, CardPage
from tests.browser.pictures import picture
from tests.browser.states import HOSTILE, SETS, set_state, state

THEMES = ("light", "dark")


def show(card: CardPage, name: str, run: dict[str, Any] | None = None, **fields: Any) -> None:
    """Show the card of the set of that name."""
    card.page.evaluate("() => harness.cleanup?.()")
    card.page.evaluate("([set, run]) => harness.mountSet(set, run)", [set_state(name) | fields, run or {}])


def take(card: CardPage, name: str) -> None:
    """Take a picture of the card."""
    card.page.screenshot(path=picture(name), full_page=True, animations="disabled")


@pytest.mark.parametrize("theme", THEMES)
def test_every_state_of_a_set_shuts_nobody_out(card: CardPage, theme: str) -> None:
    """Axe finds nothing in any state, with its parts and a run's card open; each has its picture, saved ones too."""
    card.page.set_viewport_size({"width": 1_000, "height": 300})
    card.open(state("queued"), theme=theme)
    card.page.clock.resume()  # axe waits by the page's clock
    found: list[str] = []
    for name in SETS:
        show(card, name)
        take(card, f"set-{theme}-{name}")
        found += [f"{name}: {one}" for one in axe.violations(card.page, ".nbrun-card")]
    show(card, "running", state("completed") | {"number": 4_801}, open=4_801)
    card.page.evaluate("() => document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
    take(card, f"set-{theme}-open")
    found += [f"open: {one}" for one in axe.violations(card.page, ".nbrun-card")]
    assert found == []
    card.page.evaluate("() => harness.cleanup()")
    saved = [static_card.set_bundle(seen)["text/html"] for seen in SETS.values()]
    card.page.evaluate("(html) => (document.getElementById('output').innerHTML = html)", "<br>".join(saved))
    take(card, f"set-{theme}-saved")


@pytest.mark.parametrize("width", [320, 420, 1_400])
def test_nothing_of_a_set_sticks_out(card: CardPage, width: int) -> None:
    """In a narrow page and a wide one, with long names, keys and errors, live and saved."""
    card.page.set_viewport_size({"width": width, "height": 300})
    card.open(state("queued"))
    for name in SETS:
        show(card, name)
        card.page.evaluate("() => document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
        take(card, f"set-{width}-{name}")
        assert card.ask("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, name
        outside = card.ask("""[...document.querySelectorAll(".nbrun-card *")].filter((node) => {
          const inner = node.getBoundingClientRect(), outer = node.closest(".nbrun-card").getBoundingClientRect();
          return inner.width && (inner.right > outer.right + 1 || inner.left < outer.left - 1);
        }).map((node) => node.className)""")
        clipped = [one for one in outside if "stretch" not in one]
        assert clipped == [], name


def test_hostile_texts_of_a_set_are_text(card: CardPage) -> None:
    """A name, an agent, a key, an error or an output makes no element, and hides nothing."""
    card.open(state("queued"))
    show(card, "hostile")
    assert card.page.locator(".nbrun-set img, .nbrun-set strong").count() == 0
    assert card.part("name").first.text_content() == (HOSTILE * 9).strip()[:199].replace("\u202e", "\\u202e") + "…"
    assert card.requests == [one for one in card.requests if one.startswith(card.address)]


def test_a_pace_is_shown_only_as_long_as_runs_end(card: CardPage) -> None:
    """When the next end is overdue, the page takes it away by itself."""
    card.open(state("queued"))
    show(card, "running")
    expect(card.page.locator(".nbrun-set")).to_contain_text("10,000 runs · 61/s · about 9 min left")
    card.page.clock.set_system_time(NOW + 6)
    card.pass_ms(1_100)
    expect(card.page.locator(".nbrun-set")).not_to_contain_text("61/s")
    expect(card.page.locator(".nbrun-set")).to_contain_text("10,000 runs")


def test_a_set_is_controlled_by_the_keyboard(card: CardPage) -> None:
    """Each control is reached with Tab, and sends what it says, once; Cancel says at once that it was heard."""
    card.open(state("queued"))
    show(card, "running")
    card.page.locator(".nbrun-card__cancel").last.focus()
    card.page.keyboard.press("Enter")
    expect(card.page.locator(".nbrun-card__cancel").last).to_have_text("Cancelling…")
    card.page.keyboard.press("Enter")
    card.page.get_by_role("button", name="Pause").focus()
    card.page.keyboard.press("Space")
    card.page.get_by_role("button", name="#41", exact=True).focus()
    card.page.keyboard.press("Enter")
    sent = card.ask("harness.model.sent.map(({ op, set, number }) => [op, set ?? number])")
    assert sent == [["cancel", 12], ["pause", 12], ["open", 41]]
    show(card, "cancelled")
    card.page.get_by_role("button", name="Retry 118").focus()
    card.page.keyboard.press("Enter")
    sent = card.ask("harness.model.sent.map(({ op, set, error }) => [op, set, error])")
    assert sent == [["retry", 12, "RateLimitError: 429, try again in 2 s"]]


def test_questions_that_ask_the_same_are_answered_together(card: CardPage) -> None:
    """Only those that were shown, and not at once: what was pressed then was meant for something else."""
    card.open(state("queued"))
    show(card, "asking")
    groups = card.page.locator(".nbrun-set__asked-row")
    expect(groups.first).to_contain_text("40 runs ask the same:Delete the old file?38 × ")
    expect(groups.last).to_contain_text("Open a run to answer it there.")
    expect(groups.last.get_by_role("button")).to_have_text(["#72", "#73"])
    allow = groups.first.get_by_role("button", name="Allow all 40")
    allow.click()
    assert card.ask("harness.model.sent.length") == 0
    card.pass_ms(800)
    allow.click()
    expect(allow).to_have_attribute("aria-disabled", "true")
    card.page.keyboard.press("Enter")
    groups.nth(1).get_by_role("button", name="Deny").click()
    sent = card.ask("harness.model.sent.map(({ op, set, digest }) => [op, set, digest])")
    assert sent == [["approve", 12, "d1"], ["deny", 12, "d2"]]
    assert card.page.locator(".nbrun-set img").count() == 0
