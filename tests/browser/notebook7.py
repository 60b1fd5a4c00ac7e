"""One notebook in Notebook 7, driven as in Lab: the same cells in another frame."""

from __future__ import annotations

from tests.browser.lab import LabNotebook


class Notebook7(LabNotebook):
    """One notebook, open in Notebook 7 on the server that serves Lab: another address, no status bar."""

    @property
    def address(self) -> str:
        """The page's path below the server's."""
        return f"notebooks/{self._server_path}"
