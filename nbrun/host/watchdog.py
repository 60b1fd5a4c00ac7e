"""The watchdog of a host: notices from outside when an agent blocks the event loop that all runs share."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbrun.host.driver import Driver
    from nbrun.host.loops import LoopThread

_log = logging.getLogger("nbrun")

TICK_S = 0.25
BLOCKED_TICKS = 4
"""So many ticks without an answer, one second, and the loop counts as blocked.

Ticks are counted, not seconds: where a call into C keeps the whole process still, no tick goes by either, and
nobody is accused of it.
"""


class Watchdog:
    """Asks a loop for a sign of life while runs are under way on it.

    Threads: `begin()` and `close()` from any thread; the rest is of the thread `nbrun-watchdog`, which starts
    with the first run. `_answered` is written on the loop.

    Parameters
    ----------
    drivers : returns the attempts that are under way, oldest first.
    blocker : returns the one whose code is on the loop, as far as that can be told.
    on_blocked : called each time that the loop has not answered for a second.
    is_shared : whether the loop is one for many runs, so that to block it is worth a warning.
    """

    def __init__(
        self,
        thread: LoopThread,
        drivers: Callable[[], Sequence[Driver]],
        blocker: Callable[[], Driver | None],
        on_blocked: Callable[[], object],
        *,
        is_shared: bool = True,
    ) -> None:
        self._thread = thread
        self._drivers = drivers
        self._blocker = blocker
        self._on_blocked = on_blocked
        self._is_shared = is_shared
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._asked = 0
        self._answered = 0
        self._missed = 0
        self._told: set[Driver] = set()
        self._watcher: threading.Thread | None = None

    def begin(self) -> None:
        """Watch from now on, until nothing is under way."""
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._main, name="nbrun-watchdog", daemon=True)
            self._watcher.start()
        self._wake.set()

    def close(self) -> None:
        """Stop the thread, without waiting for it: it has nothing to lose."""
        self._stop.set()
        self._wake.set()

    def _main(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            while self._drivers() and not self._stop.wait(TICK_S):
                try:
                    self._tick()
                except (
                    Exception
                ):  # no file descriptor is left, say: the runs here are looked after all the same
                    _log.exception("the watchdog of a host failed")
            self._rest()

    def _tick(self) -> None:
        if self._answered == self._asked:
            self._rest()
            self._asked += 1
            asked = self._asked
            self._thread.call(lambda: self._answer(asked))
            return
        self._missed += 1
        for driver in reversed(self._drivers()):  # children are younger, and end first
            driver.stop_from_outside()
        if self._missed == BLOCKED_TICKS:
            self._on_blocked()
        if self._missed >= BLOCKED_TICKS and self._is_shared:
            self._tell()

    def _answer(self, asked: int) -> None:
        self._answered = asked

    def _rest(self) -> None:
        self._missed = 0
        self._told.clear()

    def _tell(self) -> None:
        """Tell it once to each run: to the one that blocks, how that is mended; to the others, why they wait."""
        blocker = self._blocker()
        name = "something" if blocker is None else blocker.label
        for driver in self._drivers():
            if driver in self._told:
                continue
            self._told.add(driver)
            if driver is blocker:
                driver.warn("blocks the event loop that all runs share; run it with --thread")
            else:
                driver.warn(f"held up: {name} blocks the event loop; run that one with --thread")
