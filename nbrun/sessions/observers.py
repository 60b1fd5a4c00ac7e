"""Observers of runs, each called on a thread of its own, so that none can hold up a run or another."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nbrun.core import RunEvent, RunRecord, events as ev, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_log = logging.getLogger("nbrun")

LIMIT_S = 5.0
"""How long one call of an observer may take before that is reported."""
BACKLOG, BACKLOG_CHARS = 10_000, 32_000_000
"""How many calls may wait for an observer, and how much text in them, before events are left out."""


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

    def on_gap(self, missed: int) -> None:
        """Take that so many calls were left out at this place: this observer was too slow, `run.events()` has them."""
        ...


class _Call(NamedTuple):
    """A call that waits, and about how many characters of memory it holds."""

    method: str
    args: tuple[object, ...]
    weight: int = 0


class ObserverThread:
    """Calls one observer, in order. One that is too slow misses events, is called about the gap, and goes on.

    Threads: `publish()` from the writer's thread; the observer is called on `nbrun-observer`, started with the
    first call; what waits is guarded by `_changed`. `close()` from any thread.
    """

    def __init__(self, observer: object) -> None:
        self._observer = observer
        self._name = type_name(observer)  # its repr is code of its own, and may fail, or take any time
        self._changed = threading.Condition()
        self._calls: deque[_Call] = deque()
        self._weight = self._missed = self._failures = 0
        self._count, self._current = 0, ""  # how many calls were made, and the method of the one that is being made
        self._is_closing = self._is_watched = False
        self._thread: threading.Thread | None = None
        self._methods: set[str] | None = None  # set by its thread, which begins with that

    def publish(self, record: RunRecord, events: Sequence[RunEvent]) -> None:
        """Have the observer called for what was committed."""
        calls: list[_Call] = []
        for event in events:
            if isinstance(event.data, ev.RunCreated):
                calls.append(_Call("on_created", (record,)))
            calls.append(_Call("on_event", (record, event), ev.weight(event.data)))
            if isinstance(event.data, ev.CancelRequested):
                calls.append(_Call("on_cancelled", (record, event.data.reason)))
        if events and not record.is_live and any(event.type.startswith("run.") for event in events):
            calls.append(_Call("on_ended", (record,)))
        known = self._methods
        if calls := [call for call in calls if known is None or call.method in known]:
            with self._changed:
                self._calls.extend(calls)
                self._weight += sum(call.weight for call in calls)
                if len(self._calls) > BACKLOG or self._weight > BACKLOG_CHARS:
                    self._leave_out()
                self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="nbrun-observer", daemon=True)
                self._thread.start()

    def _leave_out(self) -> None:
        """Drop the events that wait, and of creations and ends the oldest; the caller holds the lock."""
        kept = [call for call in self._calls if call.method not in ("on_event", "on_gap")][-BACKLOG // 2 :]
        if not self._missed:
            _log.warning("observer %s is too slow: it misses events, and on_gap(missed) says how many", self._name)
        gaps = sum(call.method == "on_gap" for call in self._calls)
        self._missed += len(self._calls) - gaps - len(kept)
        self._calls = deque([_Call("on_gap", ()), *kept])
        self._weight = 0

    def close(self, timeout_s: float) -> None:
        """Let the observer see what waits for it, within the time."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _main(self) -> None:
        try:  # here: it may raise, or take any time
            self._methods = {name for name in _METHODS if callable(getattr(self._observer, name, None))}
        except Exception:  # isolated, as below
            self._methods = set()
            _log.exception("observer %s cannot be asked for its methods", self._name)
        while True:
            with self._changed:
                self._current = ""
                self._changed.wait_for(lambda: self._calls or self._is_closing)
                if not self._calls:
                    return
                method, args, weight = self._calls.popleft()
                self._weight -= weight
                if method == "on_gap":
                    args, self._missed = (self._missed,), 0
                self._count += 1
                self._current = method
                self._watch()
            if self._methods and method in self._methods:
                self._call(method, args)

    def _call(self, method: str, args: tuple[object, ...]) -> None:
        try:
            function: Callable[..., object] = getattr(self._observer, method)
            function(*args)
        except Exception:  # isolated: an observer never changes a run
            self._failures += 1
            if self._failures.bit_count() == 1:  # the first, second, fourth … time: it may fail at each event
                times = f", {self._failures:,} times by now" if self._failures > 1 else ""
                _log.exception("observer %s failed in %s%s", self._name, method, times)

    def _watch(self) -> None:
        """Look at the current call after the limit, unless somebody does so already; the caller holds the lock."""
        if not self._is_watched:  # one timer for many calls: it is a thread
            self._is_watched = True
            timer = threading.Timer(LIMIT_S, self._look, (self._count,))
            timer.name, timer.daemon = "nbrun-observer-limit", True
            timer.start()

    def _look(self, count: int) -> None:
        with self._changed:
            self._is_watched = False
            method, is_slow = self._current, count == self._count
            if method and not is_slow:
                self._watch()
        if method and is_slow:
            words = "observer %s has been in %s for %s s; runs don't wait for it"
            _log.warning(words, self._name, method, LIMIT_S)


_METHODS = ("on_created", "on_event", "on_cancelled", "on_ended", "on_gap")
