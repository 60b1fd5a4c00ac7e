"""Observers for tests."""

from __future__ import annotations

import threading

from nbrun import RunEvent, RunRecord

BOUND_S = 10.0


class Notes:
    """Writes down what it hears.

    Threads: written on the observer's thread; read after `wait_for_end()`.
    """

    def __init__(self) -> None:
        self.created: list[RunRecord] = []
        self.events: list[RunEvent] = []
        self.cancelled: list[tuple[str, str | None]] = []
        self.ended: list[RunRecord] = []
        self._has_ended = threading.Semaphore(0)

    def on_created(self, record: RunRecord) -> None:
        """Note it."""
        self.created.append(record)

    def on_event(self, record: RunRecord, event: RunEvent) -> None:
        """Note it."""
        self.events.append(event)

    def on_cancelled(self, record: RunRecord, reason: str | None) -> None:
        """Note it."""
        self.cancelled.append((record.run_id, reason))

    def on_ended(self, record: RunRecord) -> None:
        """Note it."""
        self.ended.append(record)
        self._has_ended.release()

    def wait_for_end(self) -> None:
        """Return when one more run has ended."""
        assert self._has_ended.acquire(timeout=BOUND_S), "no run has ended"
