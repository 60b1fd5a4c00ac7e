"""Cancel tokens: which run was asked to stop, why, and what to call then; and waits that an interrupt cannot break."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from enum import StrEnum
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Protocol

import msgspec

from nbrun.core.errors import Cancelled, Fix, with_fixes
from nbrun.core.interrupt_guard import guarded, need_stack
from nbrun.core.values import type_name

if TYPE_CHECKING:
    from contextvars import Context


_log = logging.getLogger("nbrun")

_TASK_CANCEL_S = 0.1
"""How long a cancelled wait gives the cancel of its task to arrive."""


class CancelCause(StrEnum):
    """Why a run ended as it did."""

    USER = "user"
    INTERRUPT = "interrupt"
    DEADLINE = "deadline"
    BUDGET = "budget"
    PARENT = "parent"
    REPLACED = "replaced"
    SHUTDOWN = "shutdown"
    ERROR = "error"
    KERNEL_DIED = "kernel_died"


class CancelOutcome(StrEnum):
    """The outcome of a call of `cancel()`."""

    REQUESTED = "requested"
    ALREADY_REQUESTED = "already_requested"
    ALREADY_FINISHED = "already_finished"
    NOT_FOUND = "not_found"
    FOREIGN = "foreign"


class Rung(StrEnum):
    """The steps of a cancel, in the order in which they are tried."""

    TOKEN = "token"  # noqa: S105 - a rung, not a password
    NATIVE = "native"
    TASK = "task"
    THREAD = "thread"
    PROCESS = "process"
    DETACHED = "detached"


class CancelRequest(msgspec.Struct, frozen=True):
    """The first request that fired a token."""

    reason: str | None = None
    cause: CancelCause = CancelCause.USER


Callback = Callable[[CancelRequest], object]


class CallbackHandle:
    """Removes one callback from its token again."""

    __slots__ = ("_callback", "_token")

    def __init__(self, token: CancelToken, callback: Callback) -> None:
        self._token = token
        self._callback: Callback | None = callback

    def remove(self) -> None:
        """Forget the callback; a no-op when it has already run or is already removed."""
        callback, self._callback = self._callback, None
        if callback is not None:
            self._token._discard(callback)


class CancelToken:
    """Says whether a run was asked to stop; a node of the tree session → run → tool and child runs.

    Threads: any method, from any thread. `_request` is written once, under the tree's lock, and read
    without it: a fired token never becomes quiet again. Callbacks run on the firing thread, outside the lock.
    """

    __slots__ = ("__weakref__", "_callbacks", "_children", "_deadline", "_firsts", "_lock", "_parent", "_request")

    def __init__(self, *, deadline: float | None = None) -> None:
        self._parent: CancelToken | None = None
        # One for the whole tree: firing marks many nodes in one step. Entered again by a signal handler, or a
        # `__del__`, that cancels in the middle of a cancel.
        self._lock = threading.RLock()
        self._request: CancelRequest | None = None
        self._children: set[CancelToken] | tuple[()] = ()  # a set with the first: most have none
        # Tuples, replaced under the lock: most tokens have none of anybody's.
        self._firsts: tuple[Callback, ...] = ()  # nbrun's own, which are quick
        self._callbacks: tuple[Callback, ...] = ()
        self._deadline = deadline

    def child(self, *, deadline: float | None = None) -> CancelToken:
        """Return a new token below this one; below a fired token it is born fired."""
        token = CancelToken(deadline=deadline)
        token._parent = self
        token._lock = self._lock
        with self._lock:
            token._request = self._request
            if self._request is None:
                if not isinstance(self._children, set):
                    self._children = set()
                self._children.add(token)
        return token

    def cancel(
        self, reason: str | None = None, cause: CancelCause = CancelCause.USER, *, patience_s: float | None = None
    ) -> bool:
        """Fire this token and all below it; return whether this call was the first.

        What a callback raises is logged, and the other callbacks are called all the same.

        Parameters
        ----------
        patience_s : seconds that callbacks may delay the caller; then they continue on their own. None waits for them.
        """
        need_stack()
        with guarded():  # the caller may be an agent's thread: no token is left half fired
            return self._cancel(CancelRequest(reason, cause), patience_s)

    def _cancel(self, request: CancelRequest, patience_s: float | None) -> bool:
        with self._lock:  # child() takes it too: a later child is born fired
            if self._request is not None:
                return False
            fired = [token for token in self._walk() if token._request is None]
            for token in fired:
                token._request = request
            firsts = [callback for token in fired for callback in token._firsts]
            callbacks = [callback for token in fired for callback in token._callbacks]
            for token in fired:
                token._firsts = token._callbacks = ()
        # Only now, with the whole tree marked: a slow callback must not leave a child run going.
        if patience_s is None or not callbacks:
            _call_all([*firsts, *callbacks], request)
        else:
            _call_all(firsts, request)
            _call_aside(callbacks, request, patience_s)
        return True

    @property
    def cancelled(self) -> bool:
        """Whether this token has fired."""
        return self._request is not None

    @property
    def is_inherited(self) -> bool:
        """Whether a token above fired this one."""
        above = self._parent
        return above is not None and self.cancelled and above._request is self._request

    @property
    def reason(self) -> str | None:
        """The reason that the first request gave, if any."""
        return self._request.reason if self._request else None

    @property
    def cause(self) -> CancelCause | None:
        """The cause of the first request, or None while the token is quiet."""
        return self._request.cause if self._request else None

    @property
    def deadline(self) -> float | None:
        """The earliest deadline on the way to the root, in epoch seconds (UTC).

        The token only holds it; the run's host fires the token when it passes.
        """
        node: CancelToken | None = self
        found: float | None = None
        while node is not None:  # no recursion: an agent may have started agents down to any depth
            if node._deadline is not None and (found is None or node._deadline < found):
                found = node._deadline
            node = node._parent
        return found

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` if the token has fired.

        Raises
        ------
        Cancelled
            A `BaseException`: let it pass.
        """
        if self._request is not None:
            raise Cancelled(self._request.reason or f"cancelled ({self._request.cause})")

    def set_deadline(self, at: float) -> None:
        """Give this token a deadline of its own, in epoch seconds (UTC)."""
        self._deadline = at

    def add_callback(self, callback: Callback) -> CallbackHandle:
        """Have `callback(request)` called once, when the token fires; at once if it has fired.

        It runs on whichever thread fires the token, so it must be quick and thread-safe. What it raises is logged.
        """
        with self._lock:
            request = self._request
            if request is None:
                self._callbacks = (*self._callbacks, callback)
        return self._added(callback, request)

    def _added(self, callback: Callback, request: CancelRequest | None) -> CallbackHandle:
        if request is not None:
            _call_all([callback], request)
        return CallbackHandle(self, callback)

    def add_first(self, callback: Callback) -> CallbackHandle:
        """Do the same, but call it before all other callbacks: for nbrun's own, which are quick."""
        with self._lock:
            request = self._request
            if request is None:
                self._firsts = (*self._firsts, callback)
        return self._added(callback, request)

    async def wait(self) -> None:
        """Return when the token has fired; from any event loop."""
        handles: list[CallbackHandle] = []
        try:
            await wait_for_call(lambda wake: handles.append(self.add_first(lambda _request: wake())))
        finally:
            for handle in handles:
                handle.remove()

    def wait_sync(self, timeout_s: float | None = None) -> bool:
        """Block until the token has fired or `timeout_s` seconds are over; return whether it has fired."""
        fired = threading.Event()
        handle = self.add_first(lambda _request: fired.set())
        try:
            return fired.wait(timeout_s)
        finally:
            handle.remove()

    def release(self) -> None:
        """Remove a token that is no longer needed from its parent, so that sessions do not collect them."""
        if self._parent is not None:
            siblings = self._parent._children
            with self._lock:
                if isinstance(siblings, set):
                    siblings.discard(self)

    def _walk(self) -> list[CancelToken]:
        """Return this token and all below it; the caller holds the lock."""
        found = [self]
        for token in found:  # may grow during the loop
            found.extend(token._children)
        return found

    def _discard(self, callback: Callback) -> None:
        with self._lock:
            self._firsts = _without(self._firsts, callback)
            self._callbacks = _without(self._callbacks, callback)


def _without(callbacks: tuple[Callback, ...], callback: Callback) -> tuple[Callback, ...]:
    """Return them without this one, once: it may have been added twice. By identity: comparing may run its code."""
    for at, known in enumerate(callbacks):
        if known is callback:
            return (*callbacks[:at], *callbacks[at + 1 :])
    return callbacks


def _call_all(callbacks: list[Callback], request: CancelRequest) -> None:
    """Call each of them, whatever the others do; what they raise is logged."""
    interrupt: KeyboardInterrupt | None = None
    for callback in callbacks:
        try:
            callback(request)
        except BaseException as error:  # isolated: the next callback must still be called
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                interrupt = error  # Ctrl+C: of the user, not of the callback
                continue
            is_function = type(callback) is FunctionType or type(callback) is MethodType
            name = callback.__qualname__ if is_function else type_name(callback)
            _log.error("The cancel callback %s failed", name, exc_info=error)
    if interrupt is not None:
        raise interrupt


def _call_aside(callbacks: list[Callback], request: CancelRequest, patience_s: float) -> None:
    """Call each of them on one extra thread, and wait for that thread at most `patience_s`."""
    thread = threading.Thread(target=_call_all, args=(callbacks, request), name="nbrun-hooks", daemon=True)
    thread.start()
    thread.join(patience_s)


# --- waiting ---------------------------------------------------------------------------------------


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


def call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], object], context: Context | None = None) -> bool:
    """Call `callback` on `loop`, in `context`, from any thread; return False if that loop is closed.

    Whatever waited on a loop that is gone no longer waits.
    """
    try:
        loop.call_soon_threadsafe(callback, context=context)
    except RuntimeError:  # asyncio's "Event loop is closed" has no class of its own
        return False
    return True


async def wait_for_call(register: Callable[[Callable[[], object]], object], timeout_s: float | None = None) -> None:
    """Return when the callback that `register` was given has been called, from any thread, or the time is up."""
    loop = asyncio.get_running_loop()
    called: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not called.done():
            called.set_result(None)

    register(lambda: call_soon(loop, wake))
    await asyncio.wait((called,), timeout=timeout_s)


async def end_cancelled_wait(token: CancelToken) -> None:
    """End a wait in a cancelled run: by the cancel of its task, which is on its way.

    Raised here at once, that cancel would hit the agent a second time, in the middle of its cleanup. A task on
    a loop of the agent's own is cancelled by nobody, so `Cancelled` is raised in it.

    Always raises: `asyncio.CancelledError` or `Cancelled`.
    """
    await asyncio.sleep(_TASK_CANCEL_S)
    token.raise_if_cancelled()


class Settling(Protocol):
    """What a receipt needs of its run: waiting for its end."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the end; return whether it came."""
        ...

    async def settled(self) -> None:
        """Return at the end."""
        ...


class CancelReceipt(msgspec.Struct, frozen=True):
    """The answer to one call of `cancel()`. Threads: any method, from any thread or event loop."""

    outcome: CancelOutcome
    run_id: str | None = None
    message: str = ""
    run: Settling | None = None
    fixes: tuple[Fix, ...] = ()

    def __bool__(self) -> bool:
        """Return whether the run was asked to stop, by this call or an earlier one."""
        return self.outcome in (CancelOutcome.REQUESTED, CancelOutcome.ALREADY_REQUESTED)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the run has ended, at most `timeout_s` seconds; return whether it has."""
        return True if self.run is None else self.run.wait(timeout_s)

    async def settled(self) -> None:
        """Return when the run has ended; from any event loop."""
        if self.run is not None:
            await self.run.settled()

    def __str__(self) -> str:
        return with_fixes(self.message or str(self.outcome), self.fixes)
