"""From a started run to its executor: who goes at once, who waits in line, and the threads they go to."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from nbrun.executors.local import NAME, LocalExecutor
from nbrun.line import Line
from nbrun.loop_thread import LoopThread

if TYPE_CHECKING:
    from nbrun.attempt import Attempt, Sink
    from nbrun.clock import Clock
    from nbrun.intake import LiveRun


class Dispatcher:
    """Hands attempts to the executor, each once.

    Threads: any method, from any thread; `_send_out()` on the host's loop. An attempt is taken out of
    `_attempts` in one step, so that of two who want it to go only one has it.

    Parameters
    ----------
    limit : how many runs may be under way at once.
    """

    def __init__(self, limit: int, clock: Clock) -> None:
        self._line = Line(limit)
        self._clock = clock
        self._attempts: dict[str, Attempt] = {}
        self._outgoing: deque[Attempt] = deque()
        self._host: LoopThread | None = None
        self._executor: LocalExecutor | None = None

    @property
    def is_begun(self) -> bool:
        """Whether the host's thread was started."""
        return self._host is not None

    @property
    def is_on_loop(self) -> bool:
        """Whether this code runs on the loop that drives all runs."""
        return self._host is not None and self._host.is_current

    def begin(self, sink: Sink) -> None:
        """Start the host's thread and open the executor on it."""
        self._host = host = LoopThread("nbrun-host")
        self._executor = executor = LocalExecutor(host, self._clock)
        host.call(lambda: host.spawn(executor.open(sink, lambda _host, _up: None), "nbrun-open"))

    def add(self, attempt: Attempt) -> None:
        """Keep an attempt until it goes."""
        self._attempts[attempt.run_id] = attempt

    def queue(self, live: LiveRun, *, at_once: bool) -> None:
        """Hand the run to the executor when its turn has come, or without waiting for it."""
        # A cancelled one goes out of turn: its host ends it without entering the agent.
        if at_once or self._line.join(live) or live.token.cancelled:
            self._line.pass_by(live)
            self._submit(live)

    def let_pass(self, live: LiveRun) -> None:
        """Let a run that waits go out of turn, for it was cancelled; no other one."""
        if self._line.pass_by(live):
            self._submit(live)

    def note_end(self, live: LiveRun) -> None:
        """Give the place of a run that has ended to those who wait."""
        self._attempts.pop(live.run_id, None)
        for following in self._line.leave(live):
            self._submit(following)

    def control(self, live: LiveRun, op: str, body: dict[str, object]) -> None:
        """Send a word to the host of a run; whatever comes of it comes back as events."""
        host, executor = self._host, self._executor
        if host is not None and executor is not None:
            whole = {**body, "run_id": live.run_id, "attempt": live.attempt}
            host.call(
                lambda: host.spawn(
                    executor.control(NAME, op, whole), f"nbrun-control-{live.run_id}"
                )
            )

    def close(self, timeout_s: float) -> None:
        """Stop the host's thread."""
        if self._host is not None:
            self._host.close(timeout_s)

    def _submit(self, live: LiveRun) -> None:
        attempt = self._attempts.pop(live.run_id, None)
        if attempt is not None and self._host is not None:
            self._outgoing.append(attempt)
            self._host.call(self._send_out)

    def _send_out(self) -> None:
        """Submit all that waits to go out, in one batch."""
        attempts: list[Attempt] = []
        while self._outgoing:
            attempts.append(self._outgoing.popleft())
        if attempts and self._host is not None and self._executor is not None:
            self._host.spawn(self._executor.submit(attempts), "nbrun-submit")
