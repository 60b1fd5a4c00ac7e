"""A clock that stands until it is moved."""

from __future__ import annotations

import threading
import time

NOON = 1_790_000_000.0
"""A moment in 2026."""


class FakeClock:
    """Tells the time it was set to; durations are real, since real threads wait by them.

    Threads: any.
    """

    def __init__(self, now: float = NOON) -> None:
        self._now = now
        self._lock = threading.Lock()

    def now(self) -> float:
        """Return the moment that was set."""
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        """Return real seconds."""
        return time.monotonic()

    def move(self, seconds: float) -> None:
        """Go forward."""
        with self._lock:
            self._now += seconds
