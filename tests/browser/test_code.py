"""Where a card's code comes from: a page has it once, from a model of its kernel's, or else by asking the kernel."""

from __future__ import annotations

from playwright.sync_api import expect

from nbrun.ui.cards.esm import page_module, page_style
from tests.browser.card_page import CardPage
from tests.browser.test_card import make_run

CODE = {"text": page_module("card.js"), "style": page_style("card.css", "questions.css")}

_DRAW_TWO = """async ([run, code, hasModel]) => {
  const { default: own } = await import("/static/code.js");
  const Model = harness.model.constructor;
  window.asked = [];
  const get_model = async (id) => {
    asked.push(id);
    if (!hasModel) throw new Error("widget model not found");
    return new Model(code);
  };
  window.models = [0, 1].map(() => new Model({ run, code_id: "the-code" }, { get_model }));
  window.imports = 0;
  const makeUrl = URL.createObjectURL;
  URL.createObjectURL = (blob) => { imports += 1; return makeUrl(blob); };
  const el = document.getElementById("output");
  window.drawn = Promise.all(models.map(async (model) => {
    await own.initialize({ model });
    return own.render({ model, el });
  }));
}"""


def test_two_cards_share_what_they_are_drawn_by(card: CardPage) -> None:
    """It is taken from the model that has it, and made into a module and a style once; each card ends on its own."""
    card.open(make_run())
    card.ask("harness.cleanup()")
    styles = card.page.locator("head style").count()
    card.page.evaluate(_DRAW_TWO, [make_run(text="some words"), CODE, True])
    card.page.evaluate("async () => { window.ends = await drawn; }")
    expect(card.page.locator(".nbrun-card")).to_have_count(2)
    expect(card.part("stream").last).to_have_text("some words")
    assert card.ask("imports") == 1
    assert card.page.locator("head style").count() == styles + 1
    assert set(card.ask("asked")) == {"the-code"}
    assert card.ask("models.flatMap((model) => model.sent)") == []
    card.page.evaluate("() => { ends[0](); }")
    expect(card.page.locator(".nbrun-card")).to_have_count(1)


def test_the_kernel_is_asked_where_the_model_is_not_found(card: CardPage) -> None:
    """A page's widget manager may keep its models to itself; the card is drawn when the answer has come."""
    card.open(make_run())
    card.ask("harness.cleanup()")
    card.page.evaluate(_DRAW_TWO, [make_run(text="some words"), CODE, False])
    answer = "(code) => { for (const model of models) model.tell('msg:custom', { op: 'code', ...code }); }"
    for asked in (1, 2):  # as each model is made, and for its view
        card.page.wait_for_function("(count) => models.every(({ sent }) => sent.length === count)", arg=asked)
        expect(card.page.locator(".nbrun-card")).to_have_count(0)
        card.page.evaluate(answer, CODE)
    assert card.ask("models.map((model) => model.sent)") == [[{"op": "code"}] * 2] * 2
    card.page.evaluate("async () => { window.ends = await drawn; }")
    expect(card.page.locator(".nbrun-card")).to_have_count(2)
    assert card.ask("imports") == 1
    card.complaints.clear()  # it says in the console that it asks
