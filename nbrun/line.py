"""The line in which runs wait: at most so many at once, one at a time of each cell, in the order they came."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.live_run import LiveRun


class Line:
    """Says which runs may be entered.

    Threads: any method, from any thread, under one lock.

    Parameters
    ----------
    limit : how many runs may be under way at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.RLock()  # entered again by a signal handler that cancels
        self._under_way: dict[LiveRun, None] = {}  # a set that keeps the order
        self._waiting: list[LiveRun] = []

    def join(self, live: LiveRun) -> bool:
        """Put a run in the line; return whether it may be entered at once."""
        with self._lock:
            if self._may_go(live, self._waiting):
                self._under_way[live] = None
                return True
            self._waiting.append(live)
            return False

    def leave(self, live: LiveRun) -> list[LiveRun]:
        """Take out a run that has ended; return those that may be entered now."""
        with self._lock:
            self._under_way.pop(live, None)
            _discard(self._waiting, live)
            going: list[LiveRun] = []
            # One at a time, and in place: what a handler does in between stands.
            while (following := self._next()) is not None:
                self._under_way[following] = None
                _discard(self._waiting, following)
                going.append(following)
            return going

    def _next(self) -> LiveRun | None:
        waiting = tuple(self._waiting)
        for index, live in enumerate(waiting):
            if self._may_go(live, waiting[:index]):
                return live
        return None

    def pass_by(self, live: LiveRun) -> bool:
        """Let a run out of turn: it was cancelled, and its host will end it unentered. False if it was not waiting."""
        with self._lock:
            return _discard(self._waiting, live)

    def position(self, live: LiveRun) -> int | None:
        """Return how many runs wait before this one, or None if it does not wait."""
        with self._lock:
            return self._waiting.index(live) if live in self._waiting else None

    @property
    def under_way(self) -> int:
        """How many runs have been let in and have not ended."""
        return len(self._under_way)

    def _may_go(self, live: LiveRun, ahead: Sequence[LiveRun]) -> bool:
        if len(self._under_way) >= self._limit:
            return False
        return live.key is None or all(
            other.key != live.key for other in (*self._under_way, *ahead)
        )


def _discard(runs: list[LiveRun], live: LiveRun) -> bool:
    """Take a run out of a list; return whether it was there."""
    is_there = live in runs
    if is_there:
        runs.remove(live)
    return is_there
