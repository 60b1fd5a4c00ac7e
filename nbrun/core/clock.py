"""Time and ids: the only module that reads the clock or makes an identity."""

from __future__ import annotations

import base64
import itertools
import os
import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Where every time in a session comes from."""

    def now(self) -> float:
        """Return the moment in epoch seconds (UTC)."""
        ...

    def monotonic(self) -> float:
        """Return seconds that only go forward, for measuring durations."""
        ...


class SystemClock:
    """The machine's clock, held so that a session's times never go back."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Return the moment in epoch seconds (UTC)."""
        held, wall = self._offset + time.monotonic(), time.time()
        # A wall clock that is set back is not followed: events must stay in order. One that jumps ahead
        # is, because the monotonic clock stops while a laptop sleeps.
        if wall > held + 1.0:
            self._offset += wall - held
            return wall
        return held

    monotonic = staticmethod(time.monotonic)


class IdGenerator(Protocol):
    """Where every id in a session comes from."""

    def next_id(self) -> str:
        """Return an id that this generator has never returned before."""
        ...


class SequentialIds:
    """Gives `seq-0`, `seq-1` …: for teaching, tests and exact replays."""

    def __init__(self, prefix: str = "seq") -> None:
        self._prefix = prefix
        self._numbers = itertools.count()

    def next_id(self) -> str:
        """Return the next id."""
        return f"{self._prefix}-{next(self._numbers)}"


# Crockford's base 32, whose digits are in order, as the alphabet of `base64` is.
_DIGITS = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUV", b"abcdefghjkmnpqrstvwxyz")


class TimeOrderedIds:
    """Gives unique ids that sort by time: in base 32, 48 bits of milliseconds (10 characters), 60 random (12)."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._last = 0

    def next_id(self) -> str:
        """Return the next id."""
        with self._lock:  # in order also within one millisecond, and if the clock stops
            self._last = max(self._last + 1, int(self._clock.now() * 1000))
            moment = self._last
        value = (moment & (1 << 50) - 1) << 60 | int.from_bytes(os.urandom(8), "big") >> 4
        return base64.b32hexencode(value.to_bytes(15, "big")).translate(_DIGITS)[2:].decode()
