"""The main story, as a person lives it: JupyterLab, a real model, a busy kernel, a click on Cancel."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import expect

from tests.browser import axe
from tests.browser.lab import LabNotebook

OpenNotebook = Callable[..., LabNotebook]

FIRST_RUN = Path(__file__).resolve().parents[2] / "notebooks/01_first_run.ipynb"
SCREENSHOTS = Path(__file__).parent / "screenshots"

CHATTY = """%load_ext nbrun
import asyncio, time
async def chatty(prompt):
    for n in range(10_000):
        yield f"word{n} "
        await asyncio.sleep(0.02)
"""


def shoot(notebook: LabNotebook, name: str) -> None:
    """Keep a picture of the page for people to look at."""
    SCREENSHOTS.mkdir(exist_ok=True)
    notebook.page.screenshot(path=SCREENSHOTS / f"{name}.png")


def test_the_first_notebook_streams_its_model_and_cancel_stops_it(open_notebook: OpenNotebook) -> None:
    """In `01_first_run` text arrives before the run ends, and Cancel stops the model while a cell blocks."""
    notebook = open_notebook(FIRST_RUN)
    notebook.run_and_wait(1)
    notebook.run_and_wait(3)  # its first run: a haiku
    expect(notebook.output(3)).to_contain_text("Completed in", timeout=60_000)
    expect(notebook.output(3)).to_contain_text("local (135 M parameters, tiny)")
    story = notebook.add_cell("%%agentrun --model demo\nTell a very long story about a tea house.")
    block = notebook.add_cell("import time\nfor _ in range(60): time.sleep(1)")
    notebook.run_and_wait(story)
    notebook.run_cell(block)
    card = notebook.output(story)
    expect(card.locator(".nbrun-card__text")).to_contain_text(re.compile(r"\w"), timeout=60_000)
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_contain_text("Cancelled by you")
    expect(notebook.prompt(block)).to_have_text("[*]:")
    written = card.locator(".nbrun-static p, .nbrun-static pre").first
    expect(written).to_contain_text(re.compile(r"\w"))  # what the model had written is kept
    shoot(notebook, "journey-first-run-cancelled")
    notebook.interrupt()
    notebook.wait_cell(block)


def test_a_real_model_streams_and_the_answer_is_there_after_a_restart(open_notebook: OpenNotebook) -> None:
    """Text arrives before the run ends, other cells run meanwhile, and a new kernel has the answer."""
    notebook = open_notebook(
        [
            "%load_ext nbrun\nimport nbrun",
            "%%agentrun --model local --name tea\nTell a long story about a tea house in the mountains.",
            "6 * 7",
            "nbrun.get('tea').wait(60); print(len(nbrun.get('tea').output) > 50, nbrun.get('tea').status)",
            "%load_ext nbrun\nimport nbrun\nrun = nbrun.get('last')\nprint(run.name, run.status, run.output[:20])",
        ]
    )
    notebook.run_and_wait(0)
    notebook.run_and_wait(1)
    card = notebook.output(1)
    text = card.locator(".nbrun-card__text")
    expect(text).to_contain_text(re.compile(r"\w"), timeout=60_000)
    expect(card.locator(".nbrun-card")).to_contain_text("Running")  # text before the end
    shoot(notebook, "journey-local-streaming")
    notebook.run_and_wait(2)
    assert notebook.outputs(2) == ["42"]
    notebook.run_and_wait(3, timeout_s=90)
    expect(notebook.output(3)).to_contain_text("True completed")
    expect(card).to_contain_text("Completed in")
    expect(card.locator(".nbrun-static")).to_contain_text("tokens")
    shoot(notebook, "journey-local-completed")

    saved = notebook.save()
    data = saved.cells[1].outputs[0].data
    assert "application/vnd.jupyter.widget-view+json" not in data
    assert "<script" not in data["text/html"]
    notebook.restart()
    notebook.run_and_wait(4)
    expect(notebook.output(4)).to_contain_text("tea completed ")


CLEANER = """%load_ext nbrun
import time
async def cleaner(prompt, run):
    used = [(await run.approve_tool("delete", {"path": word})).args["path"] for word in ("a", "b")]
    return " ".join([*used, await run.inbox.get()])
"""


def test_a_person_is_asked_and_heard_while_a_cell_blocks(open_notebook: OpenNotebook) -> None:
    """Arguments edited, a tool allowed for the rest of the run, a message sent: keys that Lab has other uses for."""
    notebook = open_notebook([CLEANER, "%%agentrun cleaner\nTidy up.", "for _ in range(60): time.sleep(1)"])
    notebook.run_and_wait(0)
    notebook.run_and_wait(1)
    notebook.run_cell(2)
    card, keyboard = notebook.output(1), notebook.page.keyboard
    expect(card).to_contain_text("Waiting for you")
    card.get_by_role("button", name="Edit arguments").click()
    editor = card.get_by_role("textbox", name="The arguments")
    expect(editor).to_be_focused()
    keyboard.press("ControlOrMeta+a")
    keyboard.type('{"path":')
    keyboard.press("Enter")
    keyboard.type('"ddxx"}')
    expect(editor).to_have_value('{"path":\n"ddxx"}')
    shoot(notebook, "journey-editing")
    card.get_by_role("button", name="Always allow in this run").press("Enter")
    line = card.get_by_role("textbox", name="Message the agent")
    line.click()
    keyboard.type("add a brief word")
    keyboard.press("Enter")
    expect(card.locator(".nbrun-static")).to_contain_text("ddxx b add a brief word")
    expect(card).to_contain_text("Always allowed in this run: delete")
    expect(card).to_contain_text("Message to the agent: “add a brief word” (read")
    expect(notebook.prompt(2)).to_have_text("[*]:")
    assert len(notebook.save().cells) == 3
    notebook.interrupt()


WORKER = """%load_ext nbrun
import asyncio
async def survey(prompt, run):
    run.reasoning("Two comets come to mind. ")
    with run.tool("search", {"query": prompt}, kind="mcp") as tool:
        tool.result = ["1P/Halley", "109P/Swift-Tuttle"]
    yield "## Comets\\n\\nThere are **two** of them:\\n\\n- Halley\\n- Swift-Tuttle\\n\\n"
    run.progress(2, 12, "comets")
    with run.tool("fetch", {"url": "https://example.org"}) as tool:
        tool.progress(1, 4)
        while True:
            await asyncio.sleep(0.05)
            yield "and so on "
"""


def test_the_card_fits_into_lab(open_notebook: OpenNotebook) -> None:
    """Enter and Space on the card are the card's, in command mode, too; Lab's themes suit it; axe finds nothing."""
    notebook = open_notebook([WORKER, "%%agentrun survey\ncomets", "nbrun"])
    notebook.run_and_wait(0)
    notebook.run_and_wait(1)
    card = notebook.output(1).locator(".nbrun-card")
    expect(card.locator(".nbrun-card__block strong").nth(1)).to_have_text("two")
    expect(card.locator(".nbrun-card__stream")).to_contain_text("and so on and so on")
    expect(card.locator(".nbrun-card__tool-details")).to_have_count(2)
    shoot(notebook, "lab-light-card")
    fold = card.get_by_role("button", name="Details of survey")
    fold.press("Enter")
    expect(card.locator(".nbrun-card__text")).to_be_hidden()
    fold.press(" ")
    expect(card.locator(".nbrun-card__text")).to_be_visible()
    first_tool = card.locator(".nbrun-card__tool-line").first
    first_tool.press("Enter")
    expect(card.locator(".nbrun-card__tool-result").first).to_contain_text("1P/Halley")
    expect(notebook.panel.locator(".jp-mod-editMode")).to_have_count(0)  # Enter did not go into a cell
    found = axe.violations(notebook.page, ".nbrun-card")
    notebook.page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    expect(notebook.page.locator("body[data-jp-theme-light=false]")).to_have_count(1)
    expect(notebook.page.locator("#jupyterlab-splash")).to_have_count(0)
    shoot(notebook, "lab-dark-card")
    assert found + axe.violations(notebook.page, ".nbrun-card") == []
    card.get_by_role("button", name="Cancel").press("Enter")
    expect(notebook.output(1)).to_contain_text("Cancelled by you")
