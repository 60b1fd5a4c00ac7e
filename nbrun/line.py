"""The line in which runs wait: at most so many at once, one at a time of each cell, in the order they came."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbrun.intake import LiveRun


class Line:
    """Says which runs may be entered.

    Threads: any method, from any thread, under one lock.

    Parameters
    ----------
    limit : how many runs may be under way at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._under_way: list[LiveRun] = []
        self._waiting: list[LiveRun] = []

    def join(self, live: LiveRun) -> bool:
        """Put a run in the line; return whether it may be entered at once."""
        with self._lock:
            if self._may_go(live, self._waiting):
                self._under_way.append(live)
                return True
            self._waiting.append(live)
            return False

    def leave(self, live: LiveRun) -> list[LiveRun]:
        """Take out a run that has ended; return those that may be entered now."""
        with self._lock:
            self._under_way = [other for other in self._under_way if other is not live]
            self._waiting = [other for other in self._waiting if other is not live]
            going: list[LiveRun] = []
            staying: list[LiveRun] = []
            for other in self._waiting:
                if self._may_go(other, staying):
                    self._under_way.append(other)
                    going.append(other)
                else:
                    staying.append(other)
            self._waiting = staying
            return going

    def pass_by(self, live: LiveRun) -> bool:
        """Let a run out of turn: it was cancelled, and its host will end it unentered. False if it was not waiting."""
        with self._lock:
            if live not in self._waiting:
                return False
            self._waiting.remove(live)
            return True

    def position(self, live: LiveRun) -> int | None:
        """Return how many runs wait before this one, or None if it does not wait."""
        with self._lock:
            return self._waiting.index(live) if live in self._waiting else None

    def _may_go(self, live: LiveRun, ahead: list[LiveRun]) -> bool:
        if len(self._under_way) >= self._limit:
            return False
        return live.key is None or all(
            other.key != live.key for other in (*self._under_way, *ahead)
        )
