"""Whether an agent's own code runs on a thread, so that a cancel may be raised in it."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import sys
import threading
from collections.abc import Coroutine
from contextlib import ContextDecorator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nbrun.core.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

T = TypeVar("T")


class InterruptGuard:
    """Lets `Cancelled` into a thread only while the agent's own code runs there.

    It starts out shut, and counts: after two calls of `enter()` it opens with the second `leave()`.

    Threads: `enter()` and `leave()` by the guarded thread; a thread that the agent has started may call them
    too, which keeps the guard shut meanwhile. `interrupt()` and `is_open` from any thread. `_depth` and
    `_is_raised` are written under `_lock`.
    """

    __slots__ = ("_depth", "_is_due", "_is_raised", "_lock", "_thread_id")

    def __init__(self, thread_id: int | None = None) -> None:
        self._lock = threading.RLock()
        self._depth = 1  # how often nbrun's own code was begun and not ended; 0 is the agent's
        self._is_raised = False
        self._is_due = False
        self._thread_id = thread_id  # or that of `bind()`

    def bind(self) -> None:
        """Guard the thread that calls this."""
        self._thread_id = threading.get_ident()

    @property
    def is_open(self) -> bool:
        """Whether the agent's own code runs on the thread."""
        return self._depth == 0 and not self._is_raised

    def enter(self) -> None:
        """Begin nbrun's own code: nothing is raised into the thread until `leave()`."""
        with self._lock:
            self._depth += 1
            pending = self._is_raised
        if pending:
            # Raised, but perhaps not seen yet: CPython looks at backward jumps, so it surfaces here and
            # not between two steps of the code that is guarded.
            for _ in range(100):
                pass

    def leave(self) -> None:
        """End nbrun's own code; raises `Cancelled` if that had to wait for the guard to open."""
        with self._lock:
            self._depth -= 1
            if self._depth or not self._is_due or self._thread_id != threading.get_ident():
                return
            self._is_due, self._is_raised = False, True
        raise Cancelled("cancelled")

    def interrupt(self, *, later: bool = False) -> bool:
        """Raise `Cancelled` in the thread at its next bytecode, once; False while the guard is shut.

        A call into C sees it only when it returns. With `later`, a guard that is shut raises when it opens.
        """
        with self._lock:
            if self._depth or self._is_raised or self._thread_id is None:
                self._is_due = later and not self._is_raised
                return self._is_raised
            self._is_raised = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), ctypes.py_object(Cancelled))
            return True


class Steps(Coroutine[Any, Any, T]):
    """Wraps a coroutine and opens the guard for its steps, so that any thread can tell whose code a loop is in."""

    __slots__ = ("_guard", "_work")

    def __init__(self, work: Any, guard: InterruptGuard) -> None:
        self._work = work
        self._guard = guard

    def send(self, value: Any) -> Any:
        """Go on."""
        return self._step(self._work.send, value)

    def throw(self, error: Any, value: Any = None, trace: Any = None) -> Any:
        """Go on with an error."""
        try:
            return self._step(self._work.throw, error if value is None else value)
        finally:
            # An error that comes out leads to this frame: were it also led to from here, neither would go before
            # the garbage collector comes. That would be half of what a cancelled run leaves behind.
            del error, value

    def close(self) -> None:
        """End it."""
        self._work.close()

    def __await__(self) -> Generator[Any, Any, T]:
        value: T = yield from self
        return value

    def __iter__(self) -> Steps[T]:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def __getattr__(self, name: str) -> Any:
        """Look like the coroutine: debuggers ask a task's coroutine for its state."""
        return getattr(self._work, name)

    def _step(self, step: Callable[[Any], Any], argument: Any) -> Any:
        guard = self._guard
        try:
            while True:
                try:
                    guard.leave()
                    try:
                        return step(argument)
                    finally:
                        guard.enter()
                except Cancelled as cancelled:
                    if argument is cancelled:
                        raise
                    # It may have surfaced here, at the very end of a step: then the code has not seen it yet.
                    step, argument = self._work.throw, cancelled
                except RuntimeError as error:
                    # Python says so about a coroutine that is over: it had seen the cancel.
                    if isinstance(argument, Cancelled) and "already awaited" in str(error):
                        raise argument from None
                    raise
        finally:
            del argument  # as in `throw()`


class Stepped(Generic[T]):
    """Awaits something in `Steps`; `hold` returns for how many seconds the code must wait before it is asked again."""

    __slots__ = ("_awaited", "_guard", "_hold")

    def __init__(self, awaited: Awaitable[T], guard: InterruptGuard, hold: Callable[[], float] | None = None) -> None:
        self._awaited = awaited
        self._guard = guard
        self._hold = hold

    def __await__(self) -> Generator[object, object, T]:
        steps: Steps[T] = Steps(self._awaited.__await__(), self._guard)
        sent: object = None
        raised: BaseException | None = None
        waits_for: Any = None
        try:
            while True:
                try:
                    waits_for = steps.send(sent) if raised is None else steps.throw(raised)
                except StopIteration as end:
                    value: T = end.value
                    return value
                try:
                    while self._hold is not None and (hold_s := self._hold()):
                        yield from asyncio.sleep(hold_s).__await__()
                    sent, raised = (yield waits_for), None
                except BaseException as error:  # handed on: the awaited code decides what comes of it
                    raised = error
        finally:
            raised = waits_for = None  # as in `Steps.throw()`; a future leads to its error


current_guard: ContextVar[InterruptGuard | None] = ContextVar("nbrun_guard", default=None)


class guarded(ContextDecorator):
    """Keeps the cancel of an agent out of nbrun's own code, where it would tear a lock or a number.

    A class, because a generator's context manager takes four times as long, and this is on every path.
    """

    __slots__ = ("_guard",)

    def __enter__(self) -> None:
        guard = self._guard = current_guard.get()
        if guard is not None:
            guard.enter()

    def __exit__(self, *_: object) -> None:
        if self._guard is not None:
            self._guard.leave()

    def _recreate_cm(self) -> guarded:
        return guarded()  # a decorated function may be entered by two threads


def need_stack(calls: int = 200) -> None:
    """Raise `RecursionError` now, with nothing begun, if the stack has no room for so many calls.

    An agent that recurses too deeply gets that error somewhere: it must not be in the middle of a start or a cancel.
    """
    frame, left = inspect.currentframe(), sys.getrecursionlimit() - calls
    while frame is not None and left > 0:  # of a few dozen frames, mostly
        frame, left = frame.f_back, left - 1
    if frame is not None:
        raise RecursionError("maximum recursion depth exceeded")
