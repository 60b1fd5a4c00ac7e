"""The writer's bell: it wakes the writer, and has it wait a moment so that many events share one commit."""

from __future__ import annotations

import contextlib
import queue
import time
from enum import Enum, auto

SOON_S = 0.005
"""How long the writer gathers events before it commits; endings and new runs are not kept waiting."""
LINGER_S = 0.045
"""How much longer it gathers while there is only what can wait: text, and the wish that a run stops."""
CROWD, CROWD_S = 100, 0.003
"""After so many rings, of many runs that end together mostly, it gathers for so long, urgent or not: what is about
to end then is written once, and not twice."""


class _State(Enum):
    """What the writer does: ringing its bell is needed only while it listens."""

    IDLE = auto()
    GATHERING = auto()
    LINGERING = auto()
    BUSY = auto()


class Bell:
    """Wakes the writer when there is something to write.

    Threads: `ring()` from any thread, a signal handler too; `gather()` is the writer's. The flags are set by who
    rings and cleared by the writer, which alone writes the state.
    """

    def __init__(self) -> None:
        # A queue of C: ringing it can be interrupted, or entered again by a signal handler, at any point without
        # leaving a lock behind.
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._state = _State.BUSY
        self._has_news = self._is_urgent = self._has_more = False
        self._rings = 0  # about: two who ring at once may count as one

    def ring(self, *, can_wait: bool = False, is_urgent: bool = False) -> None:
        """Say that the source has events; urgent ones are committed at once, those that can wait a little later."""
        if not can_wait:
            self._has_more = True
        if is_urgent:
            self._is_urgent = True
        self._has_news = True
        self._rings += 1
        # Said first, then looked: the writer sets its state first, then looks at what was said.
        state = self._state
        if state is _State.BUSY:
            return
        if state is _State.IDLE or is_urgent or (state is _State.LINGERING and not can_wait):
            self._queue.put(None)

    def gather(self, at_most_s: float | None) -> bool:
        """Wait for events, then a moment more, so that many share one commit; return whether one is urgent.

        Parameters
        ----------
        at_most_s : how long it waits for the first of them; None for as long as it takes.
        """
        self._state = _State.IDLE
        if not self._has_news:
            self._listen(at_most_s)
        self._state = _State.GATHERING
        if not self._is_urgent:
            self._listen(SOON_S)
        self._state = _State.LINGERING
        if not self._is_urgent and not self._has_more:
            self._listen(LINGER_S)
        self._state = _State.BUSY
        if self._rings > CROWD:
            time.sleep(CROWD_S)
        # Cleared before the source is drained: what comes after that is news again.
        is_urgent = self._is_urgent
        self._has_news = self._is_urgent = self._has_more = False
        self._rings = 0
        while not self._queue.empty():
            self._queue.get()
        return is_urgent

    def _listen(self, timeout_s: float | None) -> None:
        with contextlib.suppress(queue.Empty):
            self._queue.get(timeout=timeout_s)
