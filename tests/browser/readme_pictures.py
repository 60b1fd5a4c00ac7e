"""The README's pictures, taken anew in JupyterLab: `python -m tests.browser.readme_pictures`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Locator, expect, sync_playwright

from tests.browser import chromium
from tests.browser.lab import LabNotebook, LabServer

FOLDER = Path(__file__).resolve().parents[2] / ".github"
MARGIN = 8

DEFINE = """\
%load_ext nbrun
import asyncio

async def tidy(prompt, run):
    with run.tool("find_copies", {"folder": "data"}) as tool:
        await asyncio.sleep(0.4)
        tool.result = ["tea (copy).csv", "cups (copy).csv"]
    yield "I found two copies that nobody has changed. May I delete them?"
    if answer := await run.approve_tool("delete", {"paths": tool.result}):
        yield f" Deleted: {answer.args['paths']}"\
"""
CARD = [DEFINE, "%%agentrun tidy\nRemove duplicate files from data.", "import time\ntime.sleep(30)"]

RUNS = """\
import nbrun

async def write(prompt, run):
    run.text(f"## {prompt.title()}\\n\\nOnce upon a time there was a comet. It came back every 76 years.")
    run.usage(input_tokens=1204, output_tokens=340, cost_usd=0.0123)
    await asyncio.sleep(600 if "long" in prompt else 0.8)
    if "spell" in prompt:
        raise ValueError("no such spell")

for name in ["chapter 1", "a bad spell", "chapter 2", "a long poem", "a long chapter"]:
    run = nbrun.start(write, name, name=name)
    await asyncio.sleep(1)
nbrun.get("a long poem").cancel("too long").wait()
_ = nbrun.start(tidy, "Remove duplicate files from data.")\
"""
PANEL = [DEFINE, RUNS, "%agentrun"]


def main() -> None:
    """Take both pictures."""
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        LabServer(Path(folder) / "lab") as lab,
    ):
        executable = chromium.find_or_install()
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=list(chromium.ARGS))
        take_card(browser, lab)
        take_panel(browser, lab)
        browser.close()


def take_card(browser: Browser, lab: LabServer) -> None:
    """Take the card of a run that asks, while another cell blocks the kernel."""
    with lab.open(browser, CARD, scale=2) as notebook:
        prepare(notebook)
        for index in (0, 1):
            notebook.run_and_wait(index)
        card = notebook.output(1)
        expect(card.get_by_role("button", name="Deny")).to_be_visible()
        notebook.run_cell(2)
        expect(notebook.prompt(2)).to_have_text("[*]:")
        save(notebook, notebook.cell(0), notebook.cell(2), "card.png")


def take_panel(browser: Browser, lab: LabServer) -> None:
    """Take the table of runs in several states, one of them open."""
    with lab.open(browser, PANEL, scale=2) as notebook:
        prepare(notebook)
        for index in (0, 1, 2):
            notebook.run_and_wait(index)
        panel = notebook.output(2)
        expect(panel.get_by_role("row")).to_have_count(7)
        panel.get_by_role("row").filter(has_text="chapter 2").get_by_role("button").first.click()
        expect(panel.get_by_text("Once upon a time")).to_be_visible()
        save(notebook, panel, panel, "panel.png")


def prepare(notebook: LabNotebook) -> None:
    """Leave the page to the notebook."""
    notebook.execute("application:toggle-left-area")
    notebook.page.set_viewport_size({"width": 1000, "height": 1400})


def save(notebook: LabNotebook, first: Locator, last: Locator, name: str) -> None:
    """Save what is between the top of one part and the bottom of another."""
    top, bottom = first.bounding_box(), last.bounding_box()
    if top is None or bottom is None:
        raise RuntimeError(f"what {name} is to show is not on the page")
    notebook.page.screenshot(
        path=FOLDER / name,
        clip={
            "x": top["x"],
            "y": top["y"] - MARGIN,
            "width": top["width"],
            "height": bottom["y"] + bottom["height"] - top["y"] + 2 * MARGIN,
        },
        animations="disabled",
    )
    print(FOLDER / name)


if __name__ == "__main__":
    main()
