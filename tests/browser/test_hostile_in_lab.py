"""Hostile text in a real JupyterLab, which draws HTML and Markdown itself: as it was saved, and as a cell shows it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output
from playwright.sync_api import expect

from nbrun.render.static_card import bundle
from tests import kernels
from tests.browser.lab import LabNotebook
from tests.fakes.hostile import GROUPS
from tests.fakes.hostile_runs import runs_with

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext, Request

    from tests.browser.lab import LabServer

END = "the end of the outputs"
CLICKED = "javascript://%0ahit``"
"""What JupyterLab makes a link of, in plain text."""
FORMS: tuple[tuple[str, Callable[[list[str]], str]], ...] = (
    ("text/html", "".join),
    ("text/markdown", "\n\n".join),
    ("text/plain", "\n".join),
)

MADE = (
    "script, style, iframe, object, embed, img, svg, math, video, audio, form, input, button, base, meta, link, "
    "mjx-container, .MathJax, [onclick], [onerror], [onload], [style*='fixed'], [style*='url(']"
)
"""What stands in no output of ours, and formulas, which would be of MathJax's making."""

# Links that lead elsewhere than to the web, elements that have left the flow, and cards that are wider than their
# cell. In plain text Lab makes the links, whoever has printed it.
AMISS = """(area) => {
  const found = [], isPlain = area.dataset.mimeType === "text/plain";
  for (const node of area.querySelectorAll("*")) {
    if (node.href && !isPlain && !/^https?:/.test(node.href)) found.push(`link ${node.href}`);
    const position = getComputedStyle(node).position;
    if (position === "fixed" || position === "absolute") found.push(`${position} ${node.outerHTML.slice(0, 99)}`);
  }
  const room = area.getBoundingClientRect();
  for (const card of area.querySelectorAll(".nbrun-static")) {
    const box = card.getBoundingClientRect();
    if (box.left < room.left - 1 || box.right > room.right + 1) found.push(`wide ${card.textContent.slice(0, 99)}`);
    if (card.scrollWidth > card.clientWidth + 1) found.push(`over ${card.textContent.slice(0, 99)}`);
  }
  return found;
}"""


class WatchedNotebook(LabNotebook):
    """A notebook in Lab of which it is known what it has asked for, and whether a payload has run."""

    def __init__(self, server: LabServer, context: BrowserContext, path: Path, *, workspace: str) -> None:
        super().__init__(server, context, path, workspace=workspace)
        self.requests: list[str] = []
        self.page.add_init_script("window.hits = 0; window.hit = () => { window.hits += 1; };")
        context.on("request", self._note)

    def _note(self, request: Request) -> None:
        is_labs = request.url.startswith((f"{self.server.url}static/", f"{self.server.url}lab"))
        is_code = request.resource_type in ("script", "stylesheet", "fetch", "xhr", "document")
        is_labs = is_labs or (is_code and request.url.startswith(self.server.url))
        if not is_labs and not request.url.startswith(("data:", "blob:")):
            self.requests.append(f"{request.resource_type} {request.url}")

    def click(self, index: int) -> None:
        """Follow the link that Lab has made of a text."""
        link = self.output(index).locator("a", has_text=CLICKED).last
        with self.page.expect_popup() as opened:
            link.click()
        opened.value.close()

    def check(self, index: int) -> None:
        """Nothing in the outputs of a cell has run, has asked for anything or stands out of its place."""
        area = self.output(index)
        expect(area).to_contain_text(END, timeout=60_000)
        self.page.wait_for_function("() => document.readyState === 'complete'")
        outputs = area.locator(".jp-OutputArea-output")  # around them are buttons of Lab's own
        found = outputs.locator(MADE).evaluate_all("nodes => nodes.map(node => node.outerHTML.slice(0, 150))")
        assert found == []
        assert [word for one in outputs.all() for word in one.evaluate(AMISS)] == []
        assert self.page.evaluate("() => window.hits") == 0
        assert self.requests == []


def bundles() -> list[dict[str, str]]:
    """Return outputs of one form each, with the cards of a kind of payload; each payload in another state of a run."""
    found: list[dict[str, str]] = []
    for payloads in GROUPS.values():
        cards: list[dict[str, Any]] = [
            bundle(runs_with(payload, number)[number % 4]) for number, payload in enumerate(payloads)
        ]
        found += [{form: join([card[form] for card in cards])} for form, join in FORMS]
    return [*found, {"text/plain": CLICKED}, {"text/plain": END}]


def test_lab_draws_nothing_of_it(browser: Browser, lab: LabServer, tmp_path: Path) -> None:
    """Cards, Markdown and text, saved in a file that nobody has trusted, and shown by a cell, which is trusted."""
    shown = bundles()
    name = kernels.named("python3")
    show = "import json\nfor data in json.load(open('shown.json')):\n    display(data, raw=True)"
    notebook = new_notebook(
        cells=[new_code_cell("1", outputs=[new_output("display_data", data) for data in shown]), new_code_cell(show)],
        metadata={"kernelspec": {"name": name, "display_name": name}},
    )
    nbformat.write(notebook, path := tmp_path / "hostile.ipynb")
    with lab.open(browser, path, page=WatchedNotebook) as page:
        assert isinstance(page, WatchedNotebook)
        page.path.with_name("shown.json").write_text(json.dumps(shown), encoding="utf-8")
        page.check(0)
        page.run_and_wait(1)
        page.check(1)
        page.click(1)
        page.check(1)
