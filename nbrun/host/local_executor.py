"""The local executor: one host, in this process, on the session's host thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbrun.host.host import RunHost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.core.clock import Clock
    from nbrun.host.attempt import Attempt, Sink
    from nbrun.host.executor import OnHost
    from nbrun.host.loops import LoopThread

NAME = "local"


class LocalExecutor:
    """Runs attempts in this process.

    Its tokens are the session's own, so a cancel needs no message; and a host that lives as long as the
    process cannot be killed. One whose event loop an agent blocks is told as gone: it should get no more
    attempts, and goes on with those it has when the block ends.
    """

    def __init__(self, thread: LoopThread, clock: Clock) -> None:
        self._thread = thread
        self._clock = clock
        self._host: RunHost | None = None

    @property
    def live(self) -> int:
        """How many attempts are under way here."""
        return self._host.live if self._host is not None else 0

    async def open(self, sink: Sink, on_host: OnHost) -> None:
        """Make the host."""
        self._host = RunHost(
            self._thread, sink, self._clock, NAME, on_blocked=lambda: on_host(NAME, False)
        )
        on_host(NAME, True)

    async def submit(self, attempts: Sequence[Attempt]) -> None:
        """Start the attempts."""
        if self._host is None:
            raise RuntimeError("the local executor is not open")
        for attempt in attempts:
            self._host.begin(attempt)

    async def control(self, host: str, op: str, body: dict[str, object]) -> dict[str, object]:
        """Hand it to the host; a cancel goes by the token."""
        if self._host is None:
            return {"op": op, "outcome": "not_found"}
        return self._host.control(op, body)

    async def release(self, attempts: Sequence[Attempt]) -> None:
        """Nothing to release: an attempt is never run again here."""

    async def kill_host(self, host: str) -> None:
        """Refuse: the host is this process."""
        raise RuntimeError("the local host cannot be killed: it is this process")

    async def close(self) -> None:
        """Forget the host."""
        self._host = None
