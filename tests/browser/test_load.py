"""Ten cards that stream at once, in JupyterLab: what their page receives, and what it holds when they have ended."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.gauges import Gauges, Wire, busiest_second
from tests.browser.lab import LabNotebook
from tests.browser.test_journeys import OpenNotebook, shoot

CARDS = 10
LOAD = f"""get_ipython().config.NbRun.max_concurrent = {CARDS}
%load_ext nbrun
import asyncio, nbrun
from pathlib import Path
from nbrun.ui.cards import board
board.KEEP_ENDED = {CARDS}  # so that a second wave takes the place of the first
async def stream(prompt, run):
    words = "A text that **streams** into its card, on and on. ".split(" ")
    at = 0
    while not Path("end").exists():
        for at in range(at, at + 4):  # 200 a second
            run.text(words[at % 10] + ("\\n\\n" if at % 50 == 49 else " "))
        at += 1
        await asyncio.sleep(0.02)
"""
START = f"""for n in range({CARDS}):
    nbrun.start(stream, name=f"stream{{n}}").display()"""
KEPT = 100_000
"""Bytes that a page keeps of a card that has come and gone, at most; a widget that does nothing has 20,000."""


def end_wave(notebook: LabNotebook) -> None:
    """Let all runs end, and wait until their outputs are static, too."""
    end = notebook.path.parent / "end"
    end.touch()
    output = notebook.output(1)
    expect(output.locator(".nbrun-final .nbrun-card")).to_have_count(CARDS)
    expect(output.locator(".nbrun-static").filter(has_text="Completed in")).to_have_count(CARDS)
    end.unlink()


def test_ten_streaming_cards_leave_the_page_free(open_notebook: OpenNotebook) -> None:
    """At most 20 messages a second, endings included, while a person types; a second wave leaves nothing behind."""
    notebook = open_notebook([LOAD, START, ""])
    gauges, wire = Gauges(notebook.page), Wire(notebook.page)
    notebook.run_and_wait(0)
    notebook.run_and_wait(1)
    cards = notebook.output(1).locator(".nbrun-place .nbrun-card")
    expect(cards.filter(has_text="streams")).to_have_count(CARDS)

    notebook.select(2)
    notebook.page.keyboard.press("Enter")
    wire.frames.clear()
    notebook.page.keyboard.type("typed while they stream", delay=100)
    expect(notebook.cell(2).locator(".cm-content")).to_have_text("typed while they stream")
    shoot(notebook, "load-streaming")
    streamed = list(wire.frames)
    assert {frame.kind for frame in streamed} == {"update"}  # and not one of another kind
    assert len({frame.model_id for frame in streamed}) == CARDS
    notebook.page.keyboard.press("Escape")
    end_wave(notebook)
    assert wire.kinds()["update_display_data"] == CARDS
    assert busiest_second(wire.of_cards()) <= 20

    notebook.select(1)  # first: Lab itself keeps something of each change
    before, nodes_before = gauges.held(), gauges.count_nodes("body")
    wire.frames.clear()
    notebook.run_and_wait(1)
    expect(cards.filter(has_text="streams")).to_have_count(CARDS)
    end_wave(notebook)
    opened = [frame for frame in wire.frames if frame.kind == "comm_open"]
    assert len(opened) == 2 * CARDS  # with their layouts
    assert max(frame.size for frame in opened) < 16_000  # what they are drawn by was there
    after, nodes = gauges.held(), gauges.count_nodes("body")
    # A card that was held had some 300 nodes and 40 listeners; Lab makes a menu, or lets go of one, when it likes.
    assert (after["Nodes"] - nodes) - (before["Nodes"] - nodes_before) < 30 * CARDS
    assert after["JSEventListeners"] - before["JSEventListeners"] < 20 * CARDS
    assert after["JSHeapUsedSize"] - before["JSHeapUsedSize"] < KEPT * CARDS
