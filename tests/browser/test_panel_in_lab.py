"""The runs panel as a person has it in JupyterLab: three runs, a filter, a card, Cancel all, the saved file."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import expect

from tests.browser.lab import LabNotebook
from tests.browser.test_journeys import CHATTY, shoot

OpenNotebook = Callable[..., LabNotebook]

START = """import nbrun
for topic in ("comets", "tea", "trains"):
    nbrun.start(chatty, f"Talk of {topic}.", name=topic)"""


def test_three_runs_are_found_and_cancelled_from_the_panel(open_notebook: OpenNotebook) -> None:
    """The table fills as runs start, a search leaves one, its card streams; Cancel all stops them while a cell blocks.

    Then the file has a static table, which a new kernel's page shows; until the page is reloaded, it says that it is
    not followed. A new one has all runs.
    """
    notebook = open_notebook([CHATTY, "%agentrun", START, "for _ in range(60): time.sleep(1)", "%agentrun"])
    for at in (0, 1, 2):
        notebook.run_and_wait(at)
    panel = notebook.output(1)
    rows = panel.locator("tr[data-key]")
    expect(rows).to_have_count(3)
    expect(panel.get_by_role("status")).to_have_text("3 live, 3 stored")
    expect(rows.first).to_contain_text("Running")
    assert panel.locator(".nbrun-panel__open").all_text_contents() == ["trains", "tea", "comets"]

    panel.get_by_label("Search").fill("of tea")  # it is in a prompt
    expect(rows).to_have_count(1)
    panel.get_by_role("button", name="tea", exact=True).click()
    card = panel.locator(".nbrun-panel__card")
    expect(card).to_contain_text("word5 ")
    shoot(notebook, "journey-panel")
    panel.get_by_label("Search").fill("")
    expect(rows).to_have_count(3)
    panel.get_by_label("Status").select_option("live")
    expect(rows).to_have_count(3)

    notebook.run_cell(3)
    panel.get_by_role("button", name="Cancel all 3").click()
    expect(rows).to_have_count(0)  # none is live, as was asked for
    expect(card).to_have_count(0)
    panel.get_by_label("Status").select_option("cancelled")
    expect(rows.filter(has_text="Cancelled by you")).to_have_count(3)
    expect(notebook.prompt(3)).to_have_text("[*]:")
    notebook.interrupt()
    notebook.wait_cell(3)

    # The page has the file keep what is shown, once the keyboard is elsewhere.
    notebook.select(0)
    expect(panel.locator(".nbrun-panel__row")).to_have_count(3)
    shoot(notebook, "journey-panel-cancelled")
    saved = notebook.save().cells[1].outputs[0].data
    while "trains" not in saved["text/html"]:
        saved = notebook.save().cells[1].outputs[0].data
    assert set(saved) == {"text/html", "text/markdown", "text/plain"}
    assert saved["text/html"].count("Cancelled by you") == 3
    assert "<script" not in saved["text/html"]
    notebook.restart()
    expect(panel.get_by_role("status")).to_have_text("Not updating")
    expect(panel.get_by_label("Search")).to_be_disabled()
    shoot(notebook, "journey-panel-restarted")
    notebook.save()
    notebook.reload()
    expect(panel.get_by_role("table")).to_be_visible()
    expect(panel).to_contain_text("Run %agentrun for the current state")
    expect(panel.locator(".nbrun-panel")).to_have_count(0)
    expect(notebook.panel).not_to_contain_text("Error displaying widget")
    shoot(notebook, "journey-panel-reopened")
    notebook.run_and_wait(0)
    notebook.run_and_wait(4)
    expect(notebook.output(4).locator("tr[data-key]")).to_have_count(3)
    expect(notebook.output(4).get_by_role("status")).to_have_text("0 live, 3 stored")
