"""Where hosts live: an executor connects the session to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from nbrun.attempt import Attempt, Sink

OnHost = Callable[[str, bool], None]
"""Called with a host's name and whether it has come up (True) or gone (False)."""


class Executor(Protocol):
    """Hands attempts to hosts and brings their events back.

    All methods run on the loop of the session's host thread.
    """

    async def open(self, sink: Sink, on_host: OnHost) -> None: ...

    async def submit(self, attempts: Sequence[Attempt]) -> None: ...

    async def control(self, host: str, op: str, body: dict[str, object]) -> dict[str, object]: ...

    async def release(self, attempts: Sequence[Attempt]) -> None: ...

    async def kill_host(self, host: str) -> None: ...

    async def close(self) -> None: ...
