"""The writer's bell: it wakes the writer, and has it wait a moment so that many events share one commit."""

from __future__ import annotations

import contextlib
import queue
from enum import Enum, auto

SOON_S = 0.005
"""How long the writer gathers events before it commits; endings and new runs are not kept waiting."""
LINGER_S = 0.045
"""How much longer it gathers while there is only text."""


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
        self._has_news = self._is_urgent = self._has_more_than_text = False

    def ring(self, *, is_text: bool = False, is_urgent: bool = False) -> None:
        """Say that the source has events; urgent ones are committed without waiting for more."""
        if not is_text:
            self._has_more_than_text = True
        if is_urgent:
            self._is_urgent = True
        self._has_news = True
        # Said first, then looked: the writer sets its state first, then looks at what was said.
        state = self._state
        if state is _State.IDLE or is_urgent or (state is _State.LINGERING and not is_text):
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
        if not self._is_urgent and not self._has_more_than_text:
            self._listen(LINGER_S)
        self._state = _State.BUSY
        # Cleared before the source is drained: what comes after that is news again.
        is_urgent = self._is_urgent
        self._has_news = self._is_urgent = self._has_more_than_text = False
        while not self._queue.empty():
            self._queue.get()
        return is_urgent

    def _listen(self, timeout_s: float | None) -> None:
        with contextlib.suppress(queue.Empty):
            self._queue.get(timeout=timeout_s)
