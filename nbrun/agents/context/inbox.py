"""The inbox of a running agent: messages that it reads when it is ready for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbrun.core import CancelToken, end_cancelled_wait, events as ev, guarded, wait_for_call

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

MAX_WAITING = 64
"""How many messages may wait for an agent."""
MAX_BYTES = 128 * 1024
"""The size of one message in UTF-8."""


class Inbox:
    """The messages waiting for an agent, oldest first; `send` appends an event to the run's log.

    Threads: any method, from any thread or event loop. `lock` is the event sender's; it must be reentrant.
    """

    __slots__ = ("_has_reader", "_lock", "_messages", "_send", "_token", "_wakers")

    def __init__(self, token: CancelToken, send: Callable[[ev.EventData], object], lock: threading.RLock) -> None:
        self._token = token
        self._send = send
        self._lock = lock
        self._has_reader = False
        # Tuples, replaced and never changed: an empty one costs a run without messages nothing.
        self._messages: tuple[str, ...] = ()
        self._wakers: tuple[Callable[[], object], ...] = ()

    def __len__(self) -> int:
        return len(self._messages)

    def note_reader(self) -> None:
        """Report, once, that the agent reads messages: whoever wants to send one can see that it works."""
        if self._has_reader:
            return
        with guarded(), self._lock:
            if not self._has_reader:
                self._has_reader = True
                self._send(ev.SteerReady())

    def take(self) -> list[str]:
        """Return all waiting messages, oldest first, without waiting for one, and empty the inbox."""
        return self._take(MAX_WAITING)

    async def get(self) -> str:
        """Wait for the oldest message; raises `Cancelled` or `asyncio.CancelledError` if the run was cancelled."""
        self._token.raise_if_cancelled()
        while not (messages := self._take(1)):
            handle = self._token.add_first(lambda _request: self._wake())
            try:
                await wait_for_call(self._on_message)
            finally:
                handle.remove()
            if self._token.cancelled:
                await end_cancelled_wait(self._token)
        return messages[0]

    def put(self, body: dict[str, object]) -> str:
        """Add a message (`text`, `by`, `id`) for the agent; return `taken` or `full`."""
        with self._lock:
            if len(self._messages) >= MAX_WAITING:
                self._send(ev.Log(f"a message was refused: {MAX_WAITING} are waiting already", "warning"))
                return "full"
            steer = ev.Steer(*(str(body.get(part) or "") for part in ("text", "by", "id")))
            self._messages = (*self._messages, steer.text)
            self._send(steer)
        self._wake()
        return "taken"

    def close(self) -> None:
        """Warn of messages that the agent has not read: the run ends."""
        with self._lock:
            count, self._messages = len(self._messages), ()
        if count:
            what = "a message" if count == 1 else f"{count} messages"
            self._send(ev.Log(f"the run ended before its agent read {what}", "warning"))

    def _take(self, limit: int) -> list[str]:
        if not self._messages:  # the usual case, in the inner loop of an agent
            return []
        with guarded(), self._lock:
            taken, self._messages = self._messages[:limit], self._messages[limit:]
            if taken:
                self._send(ev.SteerTaken(len(taken)))
        return list(taken)

    def _on_message(self, wake: Callable[[], object]) -> None:
        with guarded(), self._lock:
            self._wakers = (*self._wakers, wake)
            is_there = bool(self._messages) or self._token.cancelled
        if is_there:  # it came since the last check
            self._wake()

    def _wake(self) -> None:
        with guarded(), self._lock:
            wakers, self._wakers = self._wakers, ()
        for wake in wakers:
            wake()
