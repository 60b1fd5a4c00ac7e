"""The backend of a run's context without a host: for tests of the context alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

from nbrun import CancelToken, RunContext
from nbrun.agents import Approvals, Budget, Inbox
from nbrun.core import events as ev
from nbrun.core.clock import Clock
from nbrun.core.errors import NbrunError
from nbrun.core.options import RunOptions
from tests.fakes.clock import FakeClock


class FakeBackend:
    """Passes on what it is given.

    Threads: of the test.
    """

    def __init__(self, sent: Callable[[ev.EventData], object], token: CancelToken, clock: Clock) -> None:
        self._sent = sent
        lock = threading.RLock()
        self.budget = Budget(RunOptions(), token)
        self.approvals = Approvals(token, self.emit, lock, clock)
        self.inbox = Inbox(token, self.emit, lock)

    def emit(self, data: ev.EventData, parent: str | None = None) -> None:
        """Pass it on."""
        self._sent(data)

    def start_child(self, agent: object, prompt: str, options: dict[str, object]) -> None:
        """Refuse."""
        raise NbrunError("no host here")


def context_on_no_host(
    sent: Callable[[ev.EventData], object] = lambda _data: None, token: CancelToken | None = None
) -> RunContext:
    """Return the context of a run that no host drives; its events are given to `sent`."""
    token, clock = token or CancelToken(), FakeClock()
    return RunContext("run-1", "tea", token, clock, FakeBackend(sent, token, clock))  # type: ignore[arg-type]  # starts no child
