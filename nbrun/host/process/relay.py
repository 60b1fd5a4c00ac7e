"""The events of an attempt on a host elsewhere: numbered, and ended if that host dies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nbrun.core import CancelCause, Clock, events as ev
from nbrun.host.attempt import Attempt, HostEvent, IsFull, Sink

if TYPE_CHECKING:
    from collections.abc import Sequence


Relayed = tuple[float, ev.EventData, str | None]
"""When, what, and the tool or child that it belongs to."""


class Relay:
    """Hands the events of one attempt to the session, with exactly one end.

    It numbers them itself, so that events about a host and from that host are one sequence. Threads: of one.
    """

    def __init__(self, attempt: Attempt, sink: Sink, clock: Clock) -> None:
        self.is_entered = False
        self.is_ended = False
        self.deadline: float | None = None
        self._attempt = attempt
        self._sink = sink
        self._clock = clock
        self._next_n = 0
        self._last_ts = 0.0
        self._open_tools: dict[str, float] = {}
        self._usage: ev.Usage | None = None

    def pass_on(self, events: Sequence[Relayed]) -> IsFull | None:
        """Hand events on, unless the end was among those before; the agent should pause while the returned is true."""
        if self.is_ended or not events:
            return None
        attempt = self._attempt
        numbered: list[HostEvent] = []
        for sent_at, data, parent in events:
            # An event about a host may overtake those from that host; the log's times only go forward.
            ts = self._last_ts = max(self._last_ts, min(sent_at, self._clock.now()))
            self._note(ts, data)
            numbered.append(HostEvent(attempt.run_id, attempt.number, self._next_n, ts, data, parent))
            self._next_n += 1
        return self._sink(numbered)

    def say(self, data: ev.EventData) -> None:
        """Hand on an event about the host."""
        self.pass_on([(self._clock.now(), data, None)])

    def fail(self, error: ev.ErrorInfo) -> None:
        """End the attempt of a host that has died."""
        self._close_tools()
        self.say(ev.RunFailed(error, None, self._last_usage))

    def cancel(
        self, cause: CancelCause, reason: str | None, detached: tuple[str, ...], sent: ev.RunCancelled | None = None
    ) -> None:
        """End the attempt of a host that was killed because its run was cancelled; `sent` is what it had to say."""
        self._close_tools()
        output, error = (None, None) if sent is None else (sent.output, sent.error)
        self.say(ev.RunCancelled(cause, reason, output, error, self._last_usage, detached))

    def _close_tools(self) -> None:
        now = max(self._last_ts, self._clock.now())
        status = "cancelled" if self._attempt.token.cancelled else "error"
        for tool_id, since in list(self._open_tools.items()):
            self.say(ev.ToolFinished(tool_id, status, None, round((now - since) * 1000, 3)))

    @property
    def _last_usage(self) -> ev.Usage | None:
        """The last known usage as a lower bound: what came after was not reported."""
        usage = self._usage
        return None if usage is None else msgspec.structs.replace(usage, exact=False)

    def _note(self, ts: float, data: ev.EventData) -> None:
        """Keep what an end needs that the host may not live to send."""
        if isinstance(data, ev.RunStarted):
            self.is_entered = True
            if (timeout_s := self._attempt.options.timeout_s) is not None:
                self.deadline = ts + timeout_s
                self._attempt.token.set_deadline(self.deadline)
        elif isinstance(data, ev.ToolStarted):
            self._open_tools[data.id] = ts
        elif isinstance(data, ev.ToolFinished):
            self._open_tools.pop(data.id, None)
        elif isinstance(data, ev.Usage):
            self._usage = data
        elif data.TYPE in ev.END_TYPES:
            self.is_ended = True
