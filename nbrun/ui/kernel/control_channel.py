"""Cancel by the kernel's control channel: heard on its own thread, whatever the main thread does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

REQUEST = "nbrun_request"
REPLY = "nbrun_reply"

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def install(kernel: Any, answer: Answer) -> None:
    """Have `answer(content)` called for every `nbrun_request` on the control channel.

    It runs on the thread `Control`, so it may fire tokens and must touch no widget.

    Source: ipykernel looks custom message types up in `kernel.control_handlers`, a dict, and awaits what the
    handler returns (measured on 6.30 to 7.4).
    """

    async def on_request(stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        content = parent.get("content")
        reply = answer(content if isinstance(content, dict) else {})
        kernel.session.send(stream, REPLY, reply, parent, ident)

    kernel.control_handlers[REQUEST] = on_request


def remove(kernel: Any) -> None:
    """Take the handler away."""
    kernel.control_handlers.pop(REQUEST, None)
