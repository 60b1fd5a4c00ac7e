"""A watch over the writer: where the disk does not answer, somebody else goes on making public what there is."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.core import events as ev
    from nbrun.core.clock import Clock
    from nbrun.store.source import Committed

_log = logging.getLogger("nbrun")

HANG_S = 2.0
"""How long the disk may take before what waits for it becomes public unsaved."""
LOOK_S = 0.5
TICK_S = 0.05
"""How often what is new becomes public then."""
CLOSE_S = 0.05
"""How long a close waits for its thread, which ends at once unless somebody who is told of a run keeps it."""
_QUIET_LOOKS = 4  # without a write, after which the watch rests


@dataclass(slots=True, eq=False)
class Flight:
    """A call to the disk that is under way: what it is to write, and what came before it and is not public."""

    groups: dict[str, list[ev.RunEvent]]
    committed: list[Committed]
    began: float  # by the monotonic clock
    is_overtaken: bool = False
    is_kept: bool = False  # `groups` have become public


class Watch:
    """Takes the writer's part over while the writer waits for the disk for too long.

    What the writer else does, draining its source and publishing, is then done by the thread `nbrun-writer-watch`,
    under `_baton`; `land()` waits for it, so that the two never do it at once. Where nothing is written the thread
    rests.

    Threads: `depart()` and `land()` are the writer's.

    Parameters
    ----------
    overtake : does the writer's part once; called with the same flight again and again until it lands.
    """

    def __init__(self, overtake: Callable[[Flight], None], clock: Clock) -> None:
        self._overtake = overtake
        self._clock = clock
        self._baton = threading.Lock()
        self._flight: Flight | None = None
        self._has_flown = False
        self._is_awake = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def depart(self, groups: dict[str, list[ev.RunEvent]], committed: list[Committed]) -> None:
        """Note that the writer is about to call the disk; it touches nothing that is shared until `land()`."""
        self._flight = Flight(groups, committed, self._clock.monotonic())
        self._has_flown = True
        if not self._is_awake:
            self._is_awake = True
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._main, name="nbrun-writer-watch", daemon=True
                )
                self._thread.start()
            self._wake.set()

    def land(self) -> bool:
        """Note that the disk has answered; return whether the writer was overtaken meanwhile."""
        with self._baton:
            flight, self._flight = self._flight, None
        return flight is not None and flight.is_overtaken

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)

    def _main(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            quiet = 0
            while quiet < _QUIET_LOOKS:
                flight = self._flight
                is_late = flight is not None and flight.is_overtaken
                if self._stop.wait(TICK_S if is_late else min(LOOK_S, HANG_S / 4)):
                    return
                quiet = 0 if self._look() else quiet + 1
            self._is_awake = False
            # Said first, then looked: a departure in between has not woken anybody.
            if self._flight is not None:
                self._is_awake = True
                self._wake.set()

    def _look(self) -> bool:
        """Overtake the writer if it is late; return whether it has written anything since the last look."""
        with self._baton:
            flight, has_flown, self._has_flown = self._flight, self._has_flown, False
            if flight is None:
                return has_flown
            if self._clock.monotonic() - flight.began >= HANG_S:
                flight.is_overtaken = True
                try:
                    self._overtake(flight)
                except Exception:  # this thread serves every run: whatever comes, it goes on
                    _log.exception("the watch over the store's writer failed")
            return True
