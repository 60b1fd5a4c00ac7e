"""Where hosts live: an executor connects the session to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nbrun.host.attempt import Attempt, Sink

OnHost = Callable[[str, bool], None]
"""Called with a host's name and whether it has come up (True) or gone (False)."""


class Executor(Protocol):
    """Hands attempts to hosts and brings their events back.

    All methods run on the loop of the session's host thread.
    """

    async def open(self, sink: Sink, on_host: OnHost) -> None:
        """Begin; `sink` takes the events of all hosts, `on_host` hears of their coming and going."""
        ...

    async def submit(self, attempts: Sequence[Attempt]) -> None:
        """Hand attempts to hosts."""
        ...

    async def control(self, host: str, op: str, body: dict[str, object]) -> dict[str, object]:
        """Send `cancel`, `steer`, `answer`, `ack`, `resend` or `ping` to a host; return its reply."""
        ...

    async def release(self, attempts: Sequence[Attempt]) -> None:
        """See to it that the engine never runs these again."""
        ...

    async def kill_host(self, host: str) -> None:
        """End a host that does not answer."""
        ...

    async def close(self) -> None:
        """Let go of all hosts."""
        ...
