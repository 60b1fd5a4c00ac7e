"""Doctor's lines of the page, in JupyterLab: both channels of a cancel are tried from where it would be clicked."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import expect

from tests.browser.lab import LabNotebook


def test_the_page_writes_what_reached_the_kernel(open_notebook: Callable[..., LabNotebook]) -> None:
    """A line for each channel, with its time; they stay as a static output, and the saved file has no widget."""
    notebook = open_notebook(["%load_ext nbrun", "%agentrun doctor"])
    notebook.run_and_wait(0)
    notebook.run_and_wait(1)
    output = notebook.output(1)
    expect(output).to_contain_text("page: reached the kernel by widget message in ")
    expect(output).to_contain_text("page: reached the kernel by control channel in ")
    expect(output.locator("[data-sign=problem]")).to_have_count(0)
    found = output.locator(".nbrun-doctor").last
    expect(found.locator("strong")).to_have_count(2)  # drawn by the kernel, from what the page has told
    print(found.inner_text())
    saved = notebook.save()
    kinds = [set(out.data) for out in saved.cells[1].outputs]
    assert kinds == [{"text/html", "text/plain"}] * 2
