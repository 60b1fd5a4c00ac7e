"""Observers of runs, each called on a thread of its own, so that none can hold up a run or another."""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Protocol

from nbrun.core import RunEvent, RunRecord, events as ev

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_log = logging.getLogger("nbrun")

LIMIT_S = 5.0
"""How long one call of an observer may take before that is reported."""
BACKLOG = 10_000
"""How many calls may wait for an observer that hangs, before it is no longer called."""


class Observer(Protocol):
    """Is called about runs, on a thread of nbrun's, one call at a time; all methods are optional."""

    def on_created(self, record: RunRecord) -> None:
        """Take a new run."""
        ...

    def on_event(self, record: RunRecord, event: RunEvent) -> None:
        """Take a committed event; `record` is the state after its batch."""
        ...

    def on_cancelled(self, record: RunRecord, reason: str | None) -> None:
        """Take a run that was asked to stop; once, however often it was asked."""
        ...

    def on_ended(self, record: RunRecord) -> None:
        """Take a run that has ended; once."""
        ...


class ObserverThread:
    """Calls one observer, in order.

    Threads: `publish()` from the writer's thread; the observer is called on `nbrun-observer`, started with the
    first call. `close()` from any thread.
    """

    def __init__(self, observer: object) -> None:
        self._observer = observer
        self._calls: queue.SimpleQueue[tuple[str, tuple[object, ...]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_given_up = False

    def publish(self, record: RunRecord, events: Sequence[RunEvent]) -> None:
        """Have the observer called for what was committed."""
        if self._is_given_up:
            return
        for event in events:
            if isinstance(event.data, ev.RunCreated):
                self._queue("on_created", record)
            self._queue("on_event", record, event)
            if isinstance(event.data, ev.CancelRequested):
                self._queue("on_cancelled", record, event.data.reason)
        if events and not record.is_live and any(event.type.startswith("run.") for event in events):
            self._queue("on_ended", record)

    def close(self, timeout_s: float) -> None:
        """Let the observer see what waits for it, within the time."""
        if self._thread is not None:
            self._calls.put(None)
            if threading.current_thread() is not self._thread:
                self._thread.join(timeout_s)

    def _queue(self, method: str, *args: object) -> None:
        if not callable(getattr(self._observer, method, None)):
            return
        if self._calls.qsize() >= BACKLOG:
            self._is_given_up = True
            _log.error("observer %r hangs and won't be called again", self._observer)
            return
        self._calls.put((method, args))
        if self._thread is None:
            thread = threading.Thread(target=self._main, name="nbrun-observer", daemon=True)
            thread.start()
            self._thread = thread

    def _main(self) -> None:
        while (call := self._calls.get()) is not None:
            method, args = call
            timer = threading.Timer(LIMIT_S, self._report_slow, (method,))
            timer.name, timer.daemon = "nbrun-observer-limit", True
            timer.start()
            try:
                function: Callable[..., object] = getattr(self._observer, method)
                function(*args)
            except Exception:  # isolated: an observer never changes a run
                _log.exception("observer %r failed in %s", self._observer, method)
            finally:
                timer.cancel()

    def _report_slow(self, method: str) -> None:
        _log.warning("observer %r has been in %s for %s s; runs don't wait for it", self._observer, method, LIMIT_S)
