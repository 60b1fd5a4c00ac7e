"""One notebook in Notebook 7, driven as in Lab: the same cells in another frame."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.lab import CELL_TIMEOUT_S, LabNotebook

# The page's indicator says "idle" before there is a kernel; the session knows better.
_HAS_IDLE_KERNEL = """() => {
    const context = window.jupyterapp?.shell.currentWidget?.context;
    const kernel = context?.sessionContext.session?.kernel;
    return kernel?.connectionStatus === "connected" && kernel.status === "idle";
}"""


class Notebook7(LabNotebook):
    """One notebook, open in Notebook 7 on the server that serves Lab: another address, no status bar."""

    @property
    def address(self) -> str:
        """The page's path below the server's."""
        return f"notebooks/{self.path.relative_to(self.server.root).as_posix()}"

    def wait_until_idle(self, *, timeout_s: float = CELL_TIMEOUT_S) -> None:
        """Wait until the page's kernel is connected and idle."""
        expect(self.panel.locator(".jp-Cell").first).to_be_visible(timeout=timeout_s * 1000)
        self.page.wait_for_function(_HAS_IDLE_KERNEL, timeout=timeout_s * 1000)
