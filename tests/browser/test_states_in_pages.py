"""What every state looks like in JupyterLab and in Notebook 7, light and dark: real runs, looked at on a whole page."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.lab import LabNotebook, LabServer
from tests.browser.notebook7 import Notebook7
from tests.browser.pictures import SCREENSHOTS

pytestmark = pytest.mark.timeout(60)

SETUP = '''get_ipython().config.NbRun.max_concurrent = 4
%load_ext nbrun
%config NbRun.cancel_grace_s = 1.5
import asyncio, threading
import nbrun

async def writer(prompt, run):
    """Use a tool, and write Markdown."""
    with run.tool("search", {"for": prompt}) as tool:
        tool.result = ["Emma", "Persuasion"]
    run.usage(input_tokens=1200, output_tokens=340, cost_usd=0.0042)
    run.text("# Two books\\n\\nThe *first* is **Emma**:\\n\\n")
    run.text("| book | year |\\n|---|---|\\n| Emma | 1815 |\\n")

async def failing(prompt):
    raise ValueError("no such book")

async def worker(prompt, run):
    """Work on, with tools."""
    run.phase("reading")
    with run.tool("fetch", {"page": 1}) as tool:
        tool.result = "page one"
    run.progress(1, 3, "pages")
    with run.tool("fetch", {"page": 2}):
        await asyncio.Event().wait()

async def asker(prompt, run):
    await run.approve_tool("delete", {"paths": ["a.txt", "b.txt"]})

def stubborn(prompt):
    """Wait where no exception gets to, for as long as the page is looked at."""
    threading.Event().wait()

async def parent(prompt, run):
    run.start_child(writer, "one", name="left")
    await run.start_child(worker, "two", name="right")
'''
CELLS = [
    SETUP,
    "%%agentrun writer\nBooks.",
    "%%agentrun failing\nBooks.",
    "%%agentrun worker --timeout 0.3s --name late\nBooks.",
    "%%agentrun worker --name working\nBooks.",
    "%%agentrun asker\nTidy up.",
    "%%agentrun parent\nTwo at once.",
    "%%agentrun stubborn\nWait.",
    "%%agentrun writer --name later\nAnd more books.",
    "%agentrun cancel stubborn --reason 'it is enough'",
    "nbrun.panel()",
]
WORDS = {
    1: "Completed in", 2: "ValueError: no such book", 3: "Timed out after", 4: "Running",
    5: "Waiting for you", 6: "right", 8: "Queued", 10: "Running",
}  # fmt: skip
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
CHANGE_THEME = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"


@pytest.mark.parametrize("front_end", [LabNotebook, Notebook7], ids=["lab", "notebook7"])
def test_every_state_on_one_page(browser: Browser, lab: LabServer, front_end: type[LabNotebook]) -> None:
    """Each card says how its run stands, in both themes, and the last two states of a cancel follow each other."""
    SCREENSHOTS.mkdir(exist_ok=True)
    with lab.open(browser, CELLS, page=front_end) as notebook:
        notebook.page.set_viewport_size({"width": 1100, "height": 3000})
        for at in range(len(CELLS)):
            notebook.run_and_wait(at)
        for at, words in WORDS.items():
            expect(notebook.output(at)).to_contain_text(words)
        stubborn = notebook.output(7)
        name = "lab" if front_end is LabNotebook else "notebook7"
        for theme, title in THEMES.items():
            notebook.page.evaluate(CHANGE_THEME, title)
            expect(notebook.page.locator("body")).to_have_attribute(
                "data-jp-theme-light", str(theme == "light").lower()
            )
            if theme == "light":
                notebook.page.screenshot(path=SCREENSHOTS / f"states-{name}-cancelling.png")
            expect(stubborn).to_contain_text("still running: stubborn")
            notebook.page.screenshot(path=SCREENSHOTS / f"states-{name}-{theme}.png")
        notebook.page.evaluate(CHANGE_THEME, THEMES["light"])  # the server remembers it for others
        expect(notebook.page.locator("body")).to_have_attribute("data-jp-theme-light", "true")
