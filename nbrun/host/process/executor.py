"""The process executor: each run in a process of its own, which can be killed with all that it has started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbrun.core.values import plain
from nbrun.host.process.relay import Relay
from nbrun.host.process.supervisor import RunProcess, not_started

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.core.clock import Clock
    from nbrun.host.attempt import Attempt, Sink
    from nbrun.host.executor import OnHost

CLOSE_S = 0.1
"""How long a close waits for what it has killed to be put away."""


class ProcessExecutor:
    """Runs each attempt in a process of its own.

    Threads: the protocol's methods on a loop that no agent is on; `_processes` is written there and by the
    threads of the processes, one key each.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sink: Sink | None = None
        self._tell: OnHost = lambda _host, _is_up: None
        self._processes: dict[tuple[object, object], RunProcess] = {}

    async def open(self, sink: Sink, on_host: OnHost) -> None:
        """Keep where events go."""
        self._sink = sink
        self._tell = on_host

    async def submit(self, attempts: Sequence[Attempt]) -> None:
        """Start a process for each."""
        if self._sink is None:
            raise RuntimeError("the process executor is not open")
        for attempt in attempts:
            key = (attempt.run_id, attempt.number)

            def note(process: RunProcess, is_up: bool, key: tuple[object, object] = key) -> None:
                if not is_up:
                    self._processes.pop(key, None)
                if process.name:
                    self._tell(process.name, is_up)

            try:
                process = RunProcess(attempt, self._sink, self._clock, note)
                self._processes[key] = process
                process.begin()
            except (OSError, RuntimeError) as error:  # no file descriptor or thread is to be had
                self._processes.pop(key, None)
                Relay(attempt, self._sink, self._clock).fail(not_started(error))

    async def control(self, host: str, op: str, body: dict[str, object]) -> dict[str, object]:
        """Send it to the run's process; what comes of it comes as events."""
        if op == "ping":
            return {"op": op, "live": len(self._processes)}
        process = self._processes.get((body.get("run_id"), body.get("attempt")))
        if process is None:
            return {"op": op, "outcome": "not_found"}
        whole: Any = plain(body)
        process.control(op, whole)
        return {"op": op, "outcome": "sent"}

    async def release(self, attempts: Sequence[Attempt]) -> None:
        """Nothing to release: an attempt is never run again here."""

    async def kill_host(self, host: str) -> None:
        """Kill the process of this name."""
        for process in list(self._processes.values()):
            if process.name == host:
                process.kill()

    def hurry(self) -> None:
        """Leave every process no more time than the close of its session has; from any thread."""
        for process in list(self._processes.values()):
            process.hurry()

    async def close(self) -> None:
        """Kill every process and its group; wait a moment for that."""
        left = list(self._processes.values())
        for process in left:
            process.kill()
        until = self._clock.monotonic() + CLOSE_S
        for process in left:  # it blocks this loop, and nothing else is on it
            process.join(max(0.0, until - self._clock.monotonic()))
