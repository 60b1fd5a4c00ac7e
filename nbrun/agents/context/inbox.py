"""The inbox of a running agent: messages that it reads at a point where it can use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbrun.agents.context.approvals import leave_to_cancel, woken
from nbrun.core import events as ev
from nbrun.core.interrupt_guard import guarded

if TYPE_CHECKING:
    from nbrun.agents.context.approvals import Lock, Tell, Waker
    from nbrun.core.cancellation import CancelToken

MAX_WAITING = 64
"""Messages that may wait for an agent."""
MAX_BYTES = 128 * 1024
"""Of one message, as UTF-8."""


class Inbox:
    """The messages that wait for an agent, oldest first; its length is how many.

    Threads: any method, from any thread or event loop. `lock` is that of whoever sends the events, and can be
    entered again.

    Parameters
    ----------
    tell : appends an event to the run's log.
    """

    __slots__ = ("_has_reader", "_lock", "_messages", "_tell", "_token", "_wakers")

    def __init__(self, token: CancelToken, tell: Tell, lock: Lock) -> None:
        self._token = token
        self._tell = tell
        self._lock = lock
        self._has_reader = False
        # Tuples, replaced and never changed: an empty one takes no room in a run that nobody speaks to.
        self._messages: tuple[str, ...] = ()
        self._wakers: tuple[Waker, ...] = ()

    def __len__(self) -> int:
        return len(self._messages)

    def note_reader(self) -> None:
        """Say once that the agent looks for messages: who would send it one can know that it is read."""
        if self._has_reader:
            return
        with guarded(), self._lock:
            if not self._has_reader:
                self._has_reader = True
                self._tell(ev.SteerReady())

    def take(self) -> list[str]:
        """Return all messages that wait, oldest first, and leave none; an empty list at once if there is none."""
        return self._take(MAX_WAITING)

    async def get(self) -> str:
        """Return the oldest message, after waiting for it.

        Raises
        ------
        Cancelled, asyncio.CancelledError
            The run was cancelled.
        """
        self._token.raise_if_cancelled()
        while not (messages := self._take(1)):
            handle = self._token.add_first(lambda _request: self._wake())
            try:
                await woken(self._on_message)
            finally:
                handle.remove()
            if self._token.cancelled:
                await leave_to_cancel(self._token)
        return messages[0]

    def put(self, body: dict[str, object]) -> str:
        """Take a message (`text`, `by`, `id`) for the agent; return `taken`, or `full`."""
        with self._lock:
            if len(self._messages) >= MAX_WAITING:
                self._tell(ev.Log(f"a message was refused: {MAX_WAITING} wait already", "warning"))
                return "full"
            steer = ev.Steer(*(str(body.get(part) or "") for part in ("text", "by", "id")))
            self._messages = (*self._messages, steer.text)
            self._tell(steer)
        self._wake()
        return "taken"

    def close(self) -> None:
        """Say what the agent has not read: the run ends."""
        with self._lock:
            count, self._messages = len(self._messages), ()
        if count:
            what = "a message" if count == 1 else f"{count} messages"
            self._tell(ev.Log(f"the run ended without having read {what}", "warning"))

    def _take(self, limit: int) -> list[str]:
        if not self._messages:  # the usual case, in the inner loop of an agent
            return []
        with guarded(), self._lock:
            taken, self._messages = self._messages[:limit], self._messages[limit:]
            if taken:
                self._tell(ev.SteerTaken(len(taken)))
        return list(taken)

    def _on_message(self, wake: Waker) -> None:
        with guarded(), self._lock:
            self._wakers = (*self._wakers, wake)
            is_there = bool(self._messages) or self._token.cancelled
        if is_there:  # it came between the look and this
            self._wake()

    def _wake(self) -> None:
        with guarded(), self._lock:
            wakers, self._wakers = self._wakers, ()
        for wake in wakers:
            wake()
