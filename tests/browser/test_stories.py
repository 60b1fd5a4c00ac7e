"""What becomes of a card when its page, its kernel or its notebook does not stay: each test is one story, in Lab."""

from __future__ import annotations

import nbformat
from playwright.sync_api import expect

from tests.browser.lab import LabNotebook
from tests.browser.test_journeys import CHATTY, OpenNotebook, shoot

PATIENT = """%load_ext nbrun
import asyncio, nbrun
from pathlib import Path
async def patient(prompt):
    for n in range(10_000):
        yield f"word{n} "
        await asyncio.sleep(0.02)
        if Path("end").exists():
            yield "**the end**"
            return
"""
"""An agent that ends when the test puts a file beside the notebook, whether or not a page is open."""

LOST_WIDGET = "Error displaying widget"


def saved_html(saved: nbformat.NotebookNode, index: int) -> str:
    """Return the HTML of a cell's one output, which is no widget."""
    (output,) = saved.cells[index].outputs
    assert "application/vnd.jupyter.widget-view+json" not in output.data
    return str(output.data["text/html"])


def shoot_dark(notebook: LabNotebook, name: str) -> None:
    """Keep a picture of the page in Lab's dark theme, and one in its light."""
    shoot(notebook, name)
    change = "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme }).then(() => null)"
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        notebook.page.evaluate(change, theme)
        light = "true" if theme.endswith("Light") else "false"
        expect(notebook.page.locator("body")).to_have_attribute("data-jp-theme-light", light)
        if light == "false":
            shoot(notebook, f"{name}-dark")


def test_a_reload_keeps_the_card_to_its_end(open_notebook: OpenNotebook) -> None:
    """After a reload the live card is back and Cancel works; the end stays on the page and comes into the file."""
    notebook = open_notebook([CHATTY, "%%agentrun chatty\nTalk."])
    notebook.run_and_wait(0)
    notebook.run_and_wait(1)
    card = notebook.output(1)
    expect(card).to_contain_text("word5 ")
    # The page has said that the file needs no widget.
    expect(card.locator(".nbrun-place .nbrun-card")).to_be_visible()
    assert "when the notebook was saved" in saved_html(notebook.save(), 1)
    notebook.reload()
    expect(card.locator(".nbrun-card")).to_contain_text("Running")
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_contain_text("Cancelled by you")
    expect(card).to_contain_text("word5 ")
    expect(card.locator(".nbrun-static")).to_contain_text("Cancelled by you")
    expect(card.locator(".nbrun-final .nbrun-card")).to_be_visible()  # over the end that the file has
    assert "Cancelled by you" in saved_html(notebook.save(), 1)


LISTENER = """%load_ext nbrun
import asyncio, nbrun
from pathlib import Path
async def listener(prompt, run):
    run.phase("Listening")
    run.progress(2, 5, "pages")
    for n in range(50):
        print("line", n)
    for n in range(40):
        yield f"Part {n}, which goes on for a while.\\n\\n"
    while not Path(prompt).exists():
        run.inbox.take()
        await asyncio.sleep(0.02)
"""
TOPS = """() => {
  const nodes = ".jp-Notebook .jp-Cell, .nbrun-card__text, .nbrun-card__log, .nbrun-card__copies";
  return [...document.querySelectorAll(nodes)].map((node) => Math.round(node.getBoundingClientRect().top));
}"""
LINE_PX = 20


def test_the_end_of_a_run_moves_nothing_and_takes_nothing_away(open_notebook: OpenNotebook) -> None:
    """The focus, a half-typed message, what is scrolled and unfolded, and the buttons stay; so do the cells below."""
    cells = [LISTENER, "%%agentrun listener\nend", "%%agentrun listener\nother", "print('below\\n' * 50)"]
    notebook = open_notebook(cells)
    for index in range(4):
        notebook.run_and_wait(index)
    for index, name, typed in ((1, "end", "half a message"), (2, "other", "")):
        card = notebook.output(index).locator(".nbrun-place .nbrun-card")
        expect(card).to_contain_text("Part 39")
        log, line = card.locator(".nbrun-card__log-lines"), card.get_by_label("Message the agent")
        card.locator(".nbrun-card__log-title").click()
        log.evaluate("(box) => { box.scrollTop = 33; }")
        line.click()
        notebook.page.keyboard.type(typed)
        expect(card.get_by_role("button", name="Cancel")).to_be_visible()
        before = notebook.page.evaluate(TOPS)
        (notebook.path.parent / name).touch()
        expect(notebook.output(index).locator(".nbrun-final .nbrun-card")).to_contain_text("Completed in")
        after = notebook.page.evaluate(TOPS)
        assert len(before) == len(after)
        assert max(abs(now - then) for now, then in zip(after, before, strict=True)) <= LINE_PX
        assert log.evaluate("(box) => box.scrollTop") == 33
        if typed:
            expect(line).to_be_focused()
            expect(line).to_have_value(typed)
        else:
            expect(card.get_by_label("Details of listener")).to_be_focused()
        for button in ("Copy result", "Copy id", "Copy as Python"):
            expect(card.get_by_role("button", name=button)).to_be_visible()
    notebook.select(3)
    expect(notebook.output(1).get_by_label("Message the agent")).to_have_value("half a message")


def test_a_run_that_ends_while_its_page_is_closed_is_shown_with_its_end(open_notebook: OpenNotebook) -> None:
    """Opened again, the page shows the end of one run and goes on with the other, and `show` draws either anywhere."""
    cells = [
        PATIENT,
        "%%agentrun patient\nTalk.",
        "%%agentrun patient\nTalk on.",
        "%agentrun show 1",
        "%agentrun show 2",
    ]
    endless = cells[0].replace('Path("end")', 'Path("end" if prompt == "Talk." else "never")')
    notebook = open_notebook([endless, *cells[1:]])
    for index in range(3):
        notebook.run_and_wait(index)
        if index:
            expect(notebook.output(index).locator(".nbrun-place .nbrun-card")).to_be_visible()
    notebook.save()
    notebook.leave()
    (notebook.path.parent / "end").touch()
    notebook.come_back()
    ended, live = notebook.output(1), notebook.output(2)
    expect(ended.locator(".nbrun-static")).to_contain_text("Completed in")
    expect(ended.locator("strong").last).to_have_text("the end")
    expect(live.locator(".nbrun-card")).to_contain_text("Running")
    saved = notebook.save()
    assert "Completed in" in saved_html(saved, 1)
    assert "when the notebook was saved" in saved_html(saved, 2)
    for index, words in ((3, "Completed in"), (4, "Running")):
        notebook.run_and_wait(index)
        expect(notebook.output(index)).to_contain_text(words)
    shoot_dark(notebook, "story-closed-and-opened-again")
    notebook.output(4).get_by_role("button", name="Cancel").click()
    for index in (2, 4):
        expect(notebook.output(index).locator(".nbrun-static")).to_contain_text("Cancelled by you")


def test_a_restart_leaves_a_card_that_says_what_is_known(open_notebook: OpenNotebook) -> None:
    """No card of the old kernel says running; a reload shows what the file has, and `show` has the end."""
    notebook = open_notebook([CHATTY, "%%agentrun chatty\nTalk.", "%load_ext nbrun\n%agentrun show 1"])
    notebook.run_and_wait(0)
    notebook.run_and_wait(1)
    card = notebook.output(1)
    expect(card).to_contain_text("word5 ")
    expect(card.locator(".nbrun-place .nbrun-card")).to_be_visible()
    notebook.restart()
    expect(card).not_to_contain_text("Running")
    shoot(notebook, "story-restarted")
    assert "when the notebook was saved" in saved_html(notebook.save(), 1)
    notebook.reload()
    expect(card).to_contain_text("when the notebook was saved")
    expect(card).to_contain_text("Run %agentrun show #1 to see how it ended")
    notebook.run_and_wait(2)
    expect(notebook.output(2)).to_contain_text("Cancelled by kernel shutdown")
    expect(notebook.panel).not_to_contain_text(LOST_WIDGET)
    shoot_dark(notebook, "story-restarted-and-reloaded")


def test_a_notebook_that_is_saved_under_another_name_has_runs_of_its_own(open_notebook: OpenNotebook) -> None:
    """It gets a kernel and a store of its own, and its cards claim nothing; the old file still shows the live run."""
    notebook = open_notebook([CHATTY, "%%agentrun chatty\nTalk.", "%load_ext nbrun\n%agentrun list"])
    notebook.run_and_wait(0)
    notebook.run_and_wait(1)
    card = notebook.output(1)
    expect(card.locator(".nbrun-place .nbrun-card")).to_contain_text("word5 ")
    notebook.save()
    original = notebook.path
    notebook.save_as("copy.ipynb")
    expect(card).to_contain_text("when the notebook was saved")
    expect(card.locator(".nbrun-card")).to_have_count(0)
    notebook.run_and_wait(2)
    expect(notebook.output(2)).to_contain_text("no runs")
    shoot(notebook, "story-saved-as-copy")
    with notebook.second_page(original) as beside:
        expect(beside.output(1).locator(".nbrun-card")).to_contain_text("Running")
        beside.run_and_wait(2)
        expect(beside.output(2)).to_contain_text("Running")
        beside.output(1).get_by_role("button", name="Cancel").click()
        expect(beside.output(1).locator(".nbrun-static")).to_contain_text("Cancelled by you")
    expect(card).to_contain_text("when the notebook was saved")


def test_a_notebook_that_is_renamed_keeps_its_runs(open_notebook: OpenNotebook) -> None:
    """After a restart, too: its kernel then knows the new name only."""
    notebook = open_notebook([CHATTY, "%%agentrun chatty --timeout 1s\nTalk.", "%agentrun list"])
    for index in range(2):
        notebook.run_and_wait(index)
    expect(notebook.output(1)).to_contain_text("Timed out after 1")
    notebook.save()
    notebook.rename("renamed.ipynb")
    notebook.restart()
    for index in (0, 1, 2):
        notebook.run_and_wait(index)
    expect(notebook.output(1)).to_contain_text("this notebook was renamed: its runs are in")
    expect(notebook.output(2)).to_contain_text("#1")
    expect(notebook.output(2)).to_contain_text("#2")


def test_two_pages_of_one_notebook_both_show_the_end(open_notebook: OpenNotebook) -> None:
    """Cancel in one tab is seen in both, and both hold it for the file, whichever of them the kernel can tell."""
    notebook = open_notebook([CHATTY, "%%agentrun chatty\nTalk.", "nbrun.session().live_runs"])
    notebook.run_and_wait(0)
    notebook.run_and_wait(1)
    card = notebook.output(1)
    expect(card.locator(".nbrun-place .nbrun-card")).to_contain_text("word5 ")
    notebook.save()
    with notebook.second_page() as other:
        beside = other.output(1)
        expect(beside.locator(".nbrun-card")).to_contain_text("Running")
        beside.get_by_role("button", name="Cancel").click()
        for output in (card, beside):
            expect(output.locator(".nbrun-static")).to_contain_text("Cancelled by you")
            expect(output.locator(".nbrun-final .nbrun-card")).to_contain_text("word5 ")
        shoot(other, "story-second-page")


def test_a_saved_notebook_shows_the_run_without_its_kernel(open_notebook: OpenNotebook) -> None:
    """After a restart and a reload the output is the static card: words, name and text."""
    notebook = open_notebook([CHATTY, "%%agentrun chatty --timeout 1s\nTalk."])
    notebook.run_and_wait(0)
    notebook.run_and_wait(1)
    expect(notebook.output(1)).to_contain_text("Timed out after 1")
    expect(notebook.output(1).locator(".nbrun-final")).to_have_count(1)  # the output has its end, too
    notebook.save()
    notebook.restart()
    notebook.reload()
    expect(notebook.output(1).locator(".nbrun-static")).to_be_visible()
    expect(notebook.output(1).locator(".nbrun-card")).to_have_count(0)
    expect(notebook.output(1)).to_contain_text("Timed out after 1")
    expect(notebook.output(1)).to_contain_text("word5 ")
    shoot(notebook, "story-saved")
