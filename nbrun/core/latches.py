"""One-shot events: for threads, the kernel's main thread too, and for an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading


def module_lock() -> threading.RLock:
    """Return a reentrant lock that is free in a forked child, whichever thread of the parent held it."""
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)  # type: ignore[attr-defined]  # as `logging` does
    return lock


class Latch:
    """Is set once, and wakes all waiters.

    An interrupt may hit a waiting thread anywhere. `threading.Event` can then keep its inner lock, and the thread
    that sets it hangs, which here would be the writer. This one shares no lock: each waiter has its own.

    Threads: any method, from any thread.
    """

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: list[threading.Lock] = []

    def is_set(self) -> bool:
        """Return whether it was set."""
        return self._is_set

    def set(self) -> None:
        """Set it, for good."""
        self._is_set = True  # first: a waiter that is not in the list yet checks it after entering
        while self._waiters:
            with contextlib.suppress(IndexError):  # a waiter may remove its own in between
                self._waiters.pop().release()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until it is set, at most `timeout_s` seconds; return whether it is."""
        if self._is_set:
            return True
        turn = threading.Lock()
        turn.acquire()
        self._waiters.append(turn)
        if not self._is_set:
            turn.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))
        with contextlib.suppress(ValueError):  # it is gone if the latch was set meanwhile
            self._waiters.remove(turn)
        return self._is_set


class LoopLatch:
    """Is set once, and wakes all waiters. Every run has some, and mostly there are no waiters.

    Threads: made on any; everything else on one loop.
    """

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        """Return whether it was set."""
        return self._is_set

    def set(self) -> None:
        """Set it, for good."""
        self._is_set = True
        waiters, self._waiters = self._waiters or [], None
        for waiter in waiters:
            if not waiter.done():  # else its wait was cancelled
                waiter.set_result(None)

    async def wait(self) -> None:
        """Return when it is set."""
        if self._is_set:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        await waiter


def is_on_loop() -> bool:
    """Return whether this thread runs an event loop, which must not be blocked."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
