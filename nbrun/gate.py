"""The gate: whether an agent's own code is on a thread, so that a cancel may be raised into it."""

from __future__ import annotations

import ctypes
import threading
from contextlib import ContextDecorator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Generic, TypeVar

from nbrun.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator

T = TypeVar("T")


class Gate:
    """Lets `Cancelled` into a thread only while the agent's own code runs there.

    It is shut at first, and counts: what was entered twice is open after two calls of `leave()`.

    Threads: `enter()` and `leave()` by the guarded thread; a thread that the agent has started may call them
    too, which keeps the gate shut meanwhile. `interrupt()` and `is_open` from any thread. `_depth` and
    `_is_raised` are written under `_lock`.
    """

    __slots__ = (
        "_depth",
        "_is_raised",
        "_lock",
        "_thread_id",
    )

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 1  # how often nbrun's own code was begun and not ended; 0 is the agent's
        self._is_raised = False
        self._thread_id: int | None = None

    def bind(self) -> None:
        """Guard the thread that calls this."""
        self._thread_id = threading.get_ident()

    @property
    def is_open(self) -> bool:
        """Whether the agent's own code is on the thread."""
        return self._depth == 0

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
        """End nbrun's own code."""
        with self._lock:
            self._depth -= 1

    def interrupt(self) -> bool:
        """Raise `Cancelled` in the thread at its next bytecode, once; False while the gate is shut.

        A call into C sees it only when it returns.
        """
        with self._lock:
            if self._depth or self._is_raised or self._thread_id is None:
                return self._is_raised
            self._is_raised = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread_id), ctypes.py_object(Cancelled)
            )
            return True


class Stepped(Generic[T]):
    """Awaits what it is given, with the gate open for as long as that is on the thread.

    So it is known, from any thread, whose code an event loop is in.
    """

    __slots__ = ("_awaited", "_gate")

    def __init__(self, awaited: Awaitable[T], gate: Gate) -> None:
        self._awaited = awaited
        self._gate = gate

    def __await__(self) -> Generator[object, object, T]:
        steps, gate = self._awaited.__await__(), self._gate
        sent: object = None
        raised: BaseException | None = None
        while True:
            try:
                gate.leave()
                try:
                    waits_for = steps.send(sent) if raised is None else steps.throw(raised)
                finally:
                    gate.enter()
            except StopIteration as end:
                value: T = end.value
                return value
            except Cancelled as cancelled:
                if raised is cancelled:
                    raise
                # It may have surfaced here, at the very end of a step, and the code has yet to hear of it.
                raised = cancelled
                continue
            except RuntimeError as error:
                # Python says so of a coroutine that is over: it had heard of the cancel.
                if isinstance(raised, Cancelled) and "already awaited" in str(error):
                    raise raised from None
                raise
            try:
                sent, raised = (yield waits_for), None
            except BaseException as error:  # handed on: the awaited code decides what becomes of it
                raised = error


current_guard: ContextVar[Gate | None] = ContextVar("nbrun_guard", default=None)


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
