"""What an agent has of a tool while it uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbrun import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable


class ToolScope:
    """One use of a tool: set `result` before its end.

    Threads: of the thread or task that opened it.
    """

    def __init__(self, send: Callable[[ev.EventData], object], tool_id: str, name: str) -> None:
        self.id = tool_id
        self.name = name
        self.result: object = None
        self._send = send

    def progress(self, done: float, total: float | None = None, label: str = "") -> None:
        """Tell how far the tool has come."""
        self._send(ev.ToolProgress(self.id, done, total, label))
