"""nbrun in a Jupyter server: shows and cancels runs without a notebook page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Return where Jupyter Server finds the extension."""
    return [{"module": "nbrun.server"}]


def _load_jupyter_server_extension(server: ServerApp) -> None:
    """Add nbrun's routes to a server."""
    from nbrun.server import kernel_client, routes

    server.web_app.add_handlers(".*$", routes.routes(server.base_url))
    # A kernel sends its status with each answer on its control channel. Tracked, it would count as the shell's: the
    # server would think that a kernel which runs a cell is idle, and might cull it.
    kernels = server.kernel_manager
    kernels.untracked_message_types = [*kernels.untracked_message_types, kernel_client.REQUEST, kernel_client.REPLY]
    server.log.info("nbrun: list and cancel runs at %snbrun/api/", server.base_url)
