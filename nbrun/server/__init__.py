"""nbrun in a Jupyter server: runs can be seen and cancelled without a notebook page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Return where Jupyter Server finds the extension."""
    return [{"module": "nbrun.server"}]


def _load_jupyter_server_extension(server: ServerApp) -> None:
    """Add nbrun's routes to a server."""
    from nbrun.server import kernel_client as kernel_call, routes

    server.web_app.add_handlers(".*$", routes.routes(server.base_url))
    # Else the status with which a kernel frames each answer on its control channel counts as the shell's: the
    # server would take a kernel for idle that runs a cell, and its culler might end it.
    kernels = server.kernel_manager
    kernels.untracked_message_types = [
        *kernels.untracked_message_types,
        kernel_call.REQUEST,
        kernel_call.REPLY,
    ]
    server.log.info("nbrun: runs can be seen and cancelled at %snbrun/api/", server.base_url)
