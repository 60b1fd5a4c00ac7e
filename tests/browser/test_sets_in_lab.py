"""The card of a set as a person has it in JupyterLab: counts, an opened run, Pause, Cancel of a busy kernel, Retry."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import expect

from tests.browser.lab import LabNotebook
from tests.browser.test_journeys import shoot

OpenNotebook = Callable[..., LabNotebook]

DEFINE = """%load_ext nbrun
import asyncio, nbrun, time
busy = {3, 20}
async def grade(prompt, run):
    at = int(prompt.split()[-1])
    run.usage(input_tokens=120, output_tokens=34, cost_usd=0.0004)
    if at in busy:
        raise ValueError("429 <b>busy</b>")
    await asyncio.sleep(0 if at < 40 else 600)
    run.text(f"The square of {at} is **{at * at}**.")
questions = {f"case-{at}": f"question {at}" for at in range(60)}"""
MAP = "%%agentrun grade --map questions --concurrency 4 -o graded -n graded\n{item}"
BLOCK = "busy.clear()\nfor _ in range(60): time.sleep(1)"


def test_a_set_is_watched_paused_cancelled_and_retried_on_its_card(open_notebook: OpenNotebook) -> None:
    """Cancel stops all of it while a cell blocks; a retry runs only what failed; the file has what it ended with."""
    notebook = open_notebook([DEFINE, MAP, BLOCK, "%agentrun show set-1"])
    notebook.run_and_wait(0)
    notebook.run_and_wait(1)
    card = notebook.output(1).locator(".nbrun-set")
    counts = card.locator(".nbrun-set__part")
    expect(counts).to_have_text(["38 completed", "2 failed", "4 running", "16 queued"])
    expect(card).to_contain_text("ValueError: 429 <b>busy</b>")
    shoot(notebook, "set-running")

    card.get_by_text("Newest").click()
    card.get_by_role("button", name="#40 case-39").click()
    opened = card.locator(".nbrun-set__opened .nbrun-card")
    expect(opened).to_contain_text("The square of 39 is 1521.")
    card.get_by_role("button", name="#40 case-39").click()
    expect(opened).to_have_count(0)

    card.get_by_role("button", name="Pause").click()
    expect(card.get_by_role("status")).to_have_text("Paused")
    card.get_by_role("button", name="Continue").click()
    expect(card.get_by_role("status")).to_have_text("Running")

    notebook.run_cell(2)
    card.get_by_role("button", name="Cancel 20").click()
    expect(card.get_by_role("status")).to_contain_text("Cancelled after")
    expect(counts).to_have_text(["38 completed", "2 failed", "20 cancelled"])
    card.get_by_role("button", name="Retry 2").click()
    expect(counts).to_have_text(["40 completed", "20 cancelled"])
    expect(notebook.prompt(2)).to_have_text("[*]:")
    shoot(notebook, "set-cancelled")
    notebook.interrupt()
    notebook.wait_cell(2)

    notebook.run_and_wait(3)
    expect(notebook.output(3).locator(".nbrun-set__part")).to_have_text(["40 completed", "20 cancelled"])
    saved = notebook.save().cells[1].outputs[0].data
    assert "40 completed" in saved["text/plain"]
    assert "nbrun-final" in saved["text/html"]

    notebook.end_kernel()
    notebook.reload(wait_until_idle=False)
    expect(notebook.output(1)).to_contain_text("40 completed")
    expect(notebook.panel).not_to_contain_text("Error displaying widget")
    shoot(notebook, "set-reopened")
