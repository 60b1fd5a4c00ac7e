"""The intake: the one door of a session. What comes through is ordered, redacted, numbered and folded."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.core import (
    CancelOutcome,
    Clock,
    Redactor,
    RunRecord,
    RunSecrets,
    SecretRegistry,
    StreamRedactor,
    checkpoint,
    clean_text,
    events as ev,
    guarded,
    is_admitted,
    next_status,
    plain,
    shown,
    size_words,
    sized,
)
from nbrun.host.attempt import HostEvent
from nbrun.sessions.live_run import LiveRun, StreamName
from nbrun.store import Checkpointed, Committed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nbrun.host.attempt import IsFull

_log = logging.getLogger("nbrun")

INTAKE_BYTES, MOST, LEAST = 64_000_000, 8_000_000, 256_000
"""How many bytes may wait, about, of all runs together; and of one run, whose share depends on how many are live.

Beyond its share a run's agent is paused; nothing is dropped.
"""
COMMIT_BYTES, TURN_BYTES = 1_000_000, 128_000
"""How many bytes one commit takes, about, and how many of one run before another has its turn."""
BACKLOG = 20_000
"""How many items may come between two looks of the writer before a start waits for its run to be saved."""

_CAN_WAIT = ev.DELTA_TYPES | {ev.CancelEscalated.TYPE, ev.CallStarted.TYPE, ev.CallFinished.TYPE, ev.Usage.TYPE}

_Call = Callable[[], object]

_Item = tuple[LiveRun, HostEvent | ev.EventData | _Call, float, int]
"""Whose, what, when, and about how many bytes it takes; 0 for the session's own, which are few and wait for nothing.

What is called stands behind what must be stored before."""


class Intake:
    """Takes events and requests, and gives them to the store's writer: those of a run in order, runs in turns.

    Threads: `put()`, `emit()` and `request_cancel()` from any thread; `drain()` and `publish()` are called by
    the writer's thread only, which makes it the one consumer. `_lock` makes "has it ended?" and "it is asked
    to stop" one decision, and guards the number of live runs. `runs` is copied in one step before it is walked.

    Parameters
    ----------
    ring : wakes the writer.
    on_publish : called on the writer's thread after what it is given became public.
    """

    def __init__(
        self, clock: Clock, keyring: SecretRegistry, on_publish: Callable[[LiveRun, Sequence[ev.RunEvent]], None]
    ) -> None:
        self._clock = clock
        self._keyring = keyring
        self._on_publish = on_publish
        self._when_stored: list[_Call] = []  # of those who drain and publish
        # Entered again by a signal handler, or a `__del__`, that cancels a run in the middle of a start.
        self._lock = threading.RLock()
        self._items: deque[_Item] = deque()  # what came since the last look
        self._lines: dict[str, deque[_Item]] = {}  # what waits, by run, in the order of their turns; the consumer's
        self._live_count = 0
        self._share = MOST  # how much of one run may wait
        self.runs: dict[str, LiveRun] = {}  # those in memory, oldest first
        self.checkpoints: dict[str, Checkpointed] = {}
        self._publisher: int | None = None  # the thread that publishes just now
        self.wake: Callable[..., None] = lambda **_: None

    def open(self, live: LiveRun, created: ev.RunCreated) -> bool:
        """Let a run in; return whether more comes than can be saved, so that whoever starts runs should wait.

        Its creation is the first of its events: it cannot be found, or cancelled, before.
        """
        now = self._clock.now()
        with self._lock:  # a start is guarded as a whole
            self.runs[live.run_id] = live
            self._count_live(1)
            self._items.append((live, created, now, 0))
        self.wake(is_urgent=True)
        return len(self._items) > BACKLOG

    @property
    def is_publishing(self) -> bool:
        """Whether this code is called by `publish()`, which must not wait for what it publishes next."""
        return self._publisher == threading.get_ident()

    @property
    def redactor(self) -> Redactor:
        """Replaces the secrets that are known now."""
        return self._keyring.redactor

    def _redactor_of(self, live: LiveRun) -> Redactor:
        """Return what replaces the secrets of one run: of the session's, and of its own process."""
        keyring = self._keyring
        return keyring.redactor if live.secrets is None else live.secrets.beside(keyring.known)

    def add_secrets(self, live: LiveRun, found: Mapping[str, str]) -> None:
        """Take secrets that a run's own process has named; before the events that may hold them."""
        secrets = live.secrets or RunSecrets()
        secrets.add(found)
        live.secrets = secrets

    def live(self) -> list[LiveRun]:
        """Return the runs that have not ended, oldest first."""
        return [live for live in tuple(self.runs.values()) if not live.is_ended.is_set()]

    def _count_live(self, change: int) -> None:
        """Note that a run is live, or no longer; the caller holds the lock."""
        self._live_count += change
        self._share = min(MOST, max(LEAST, INTAKE_BYTES // max(1, self._live_count)))

    def _note_end(self, live: LiveRun) -> None:
        """Note that a run's end has come; the caller holds the lock."""
        if not live.has_end:
            live.has_end = True
            self._count_live(-1)

    def put(self, events: Sequence[HostEvent]) -> IsFull | None:
        """Take events of one run's host, in order.

        If more of the run waits now than its share, its agent should pause while what is returned is true.
        """
        can_wait, is_urgent = True, False
        live = None
        for event in events:
            live = self.runs.get(event.run_id)
            if live is None:  # its session has forgotten it: nothing to append to
                continue
            kind = event.data.TYPE
            if kind in ev.END_TYPES and event.attempt == live.attempt:
                with self._lock:
                    if isinstance(event.data, ev.RunCancelled):
                        self._note_cancel(live, event.data, event.ts)
                    if self._is_tried_again(live, event.data):
                        live.retries, live.losing = live.retries - 1, event.attempt
                    else:
                        self._note_end(live)
                    has_output = getattr(event.data, "output", None) is not None
                    weight = ev.PLAIN_WEIGHT + (event.size if has_output else 0)
                    live.sent_bytes += weight
                    self._items.append((live, event, event.ts, weight))
                is_urgent, can_wait = True, False
            else:
                if kind not in _CAN_WAIT:  # a key that is set for a moment only
                    self._keyring.look()
                weight = ev.weight(event.data)
                self._items.append((live, event, event.ts, weight))
                live.sent_bytes += weight
                can_wait = can_wait and kind in _CAN_WAIT
        # Where more has come, its producer has rung the bell, or is about to: text needs no second ring.
        if len(self._items) <= len(events) or not can_wait:
            # What was taken must not look as if it had not been: an agent that recurses may have no stack left for
            # the ring. The next event rings, at the latest the run's end.
            with contextlib.suppress(RecursionError):
                self.wake(can_wait=can_wait, is_urgent=is_urgent)
        if live is None or live.sent_bytes - live.taken_bytes <= self._share:
            return None
        return partial(self._is_full, live)

    @staticmethod
    def _is_tried_again(live: LiveRun, end: ev.EventData) -> bool:
        """Return whether another attempt follows one that ends like this; the caller holds the lock.

        Not where something is left running: it would run twice.
        """
        is_asked = live.retries > 0 and live.cancel is None and not live.has_end
        return is_asked and isinstance(end, ev.RunFailed) and not end.detached

    def _is_full(self, live: LiveRun) -> bool:
        """Return whether more of a run waits than its share."""
        return live.sent_bytes - live.taken_bytes > self._share

    def call_when_stored(self, live: LiveRun, function: _Call, *, is_urgent: bool = False) -> None:
        """Call `function` as soon as all that has come of a run is on disk, or can't be put there; on any thread."""
        self._items.append((live, function, 0.0, 0))
        self.wake(can_wait=True, is_urgent=is_urgent)

    def emit(self, live: LiveRun, data: ev.EventData) -> None:
        """Take an event of the session itself; an end only if none is here yet."""
        now = self._clock.now()
        with guarded():
            with self._lock:
                if data.TYPE in ev.END_TYPES:
                    if live.has_end:
                        return
                    self._note_end(live)
                self._items.append((live, data, now, 0))
            self.wake(is_urgent=True)

    def request_cancel(self, live: LiveRun, request: ev.CancelRequested) -> CancelOutcome:
        """Record the request unless there was one, or the run's end was here first; fires nothing."""
        now = self._clock.now()
        with guarded():
            with self._lock:
                if live.has_end:
                    return CancelOutcome.ALREADY_FINISHED
                if live.cancel is not None:
                    return CancelOutcome.ALREADY_REQUESTED
                live.cancel = request
                self._items.append((live, request, now, 0))
            self.wake(can_wait=True)  # for the end, which mostly comes in time for the same commit
        return CancelOutcome.REQUESTED

    def _note_cancel(self, live: LiveRun, end: ev.RunCancelled, ts: float) -> None:
        """Have a host's cancelled end follow a request; the caller holds the lock.

        A token is fired before its callbacks are called. Where that was done directly, by an agent or by the
        token of all runs, the agent may have ended before the callback that records the request.
        """
        if live.cancel is None and not live.has_end:
            live.cancel = ev.CancelRequested(end.cause, end.reason, "its token")
            self._items.append((live, live.cancel, ts, 0))

    # --- the consumer ----------------------------------------------------------------------------

    @property
    def has_waiting(self) -> bool:
        """Whether there is something to drain."""
        return bool(self._items or self._lines)

    def drain(self) -> list[ev.RunEvent]:
        """Return what waits, numbered, at most one commit's; what comes after an end is refused and counted.

        Runs take turns of a bounded size: what a run sends is not held up by how much another one has sent.
        """
        events: list[ev.RunEvent] = []
        items, lines = self._items, self._lines
        room = COMMIT_BYTES
        self._keyring.look()  # an agent may have set a key just now
        self._call_stored()
        if not lines:  # nearly always, all of it fits
            room -= self._take(items, room // 2, events)
        if items:
            self._line_up()
        while lines and room > 0:
            run_id = next(iter(lines))
            line = lines.pop(run_id)
            room -= self._take(line, TURN_BYTES, events)
            if line:
                lines[run_id] = line  # behind all others
        if lines:
            self.wake(is_urgent=True)
        return events

    def _call_stored(self) -> None:
        """Call what has waited for what was drained before: that is stored by now, or kept in memory."""
        functions, self._when_stored = self._when_stored, []
        for function in functions:
            function()

    def _line_up(self) -> None:
        """Put what has come behind what waits of the same runs."""
        items, lines = self._items, self._lines
        for _ in range(len(items)):  # no more than that: producers don't wait for this
            item = items.popleft()
            line = lines.get(item[0].run_id)
            if line is None:
                line = lines[item[0].run_id] = deque()
            line.append(item)

    def _take(self, items: deque[_Item], room: int, events: list[ev.RunEvent]) -> int:
        """Admit items up to about so many bytes; return their bytes."""
        taken = 0
        while items and taken < room:
            live, item, ts, weight = items.popleft()
            if callable(item):
                self._when_stored.append(item)
                if not events:  # what came before it was drained before
                    self._call_stored()
                continue
            taken += weight
            live.taken_bytes += weight
            if live.run_id not in self.runs:  # forgotten while this waited
                continue
            try:
                if isinstance(item, HostEvent):
                    self._admit_host(live, item, events)
                else:
                    if item.TYPE in ev.END_TYPES:  # a close, and it may come after a request
                        item = self._decided(live, item)
                    self._admit(live, item, ts, 0, None, events)
            except Exception as error:  # one bad event of one agent; the others must not wait for it
                self._replace_bad(live, item, ts, error, events)
        return taken

    def _replace_bad(
        self, live: LiveRun, item: HostEvent | ev.EventData, ts: float, error: Exception, events: list[ev.RunEvent]
    ) -> None:
        """Admit a warning in place of an event that cannot be read, and a failure in place of an end."""
        data = item.data if isinstance(item, HostEvent) else item
        what = f"an event of type {type(data).__name__} was left out ({type(error).__name__}: {shown(str(error), 300)})"
        what = self._redactor_of(live).text(what)
        stand_in: ev.EventData = ev.Log(what, "warning")
        if data.TYPE in ev.END_TYPES:
            with self._lock:
                self._note_end(live)
            stand_in = self._decided(live, self._readable_end(live, data, ev.ErrorInfo(type(error).__name__, what)))
        _log.error("%s: %s", live.run_id, what, exc_info=live.secrets is None)  # else its words could be one
        self._admit(live, stand_in, ts, 0, None, events)

    def _readable_end(self, live: LiveRun, data: ev.EventData, error: ev.ErrorInfo) -> ev.EventData:
        """Return an end without the usage that an adapter got wrong; if that isn't it, a failure."""
        if isinstance(data, ev.RunCompleted | ev.RunFailed | ev.RunCancelled):
            with contextlib.suppress(Exception):
                return self.storable(msgspec.structs.replace(data, usage=None), self._redactor_of(live))
        return ev.RunFailed(error)

    def _admit_host(self, live: LiveRun, item: HostEvent, events: list[ev.RunEvent]) -> None:
        # The fence: an older try, or a repeat.
        if item.attempt != live.attempt or item.n != live.next_n:
            live.refused += 1
            return
        live.next_n += 1
        data = item.data
        parent = None if item.parent is None else self._redactor_of(live).text(clean_text(item.parent))
        if isinstance(data, ev.DELTAS):  # by far the most; they change no status
            if live.status.is_terminal:
                live.refused += 1
            else:
                data = self._redacted_delta(live, data, parent)
                self._append(live, data, item.ts, item.attempt, parent, events)
            return
        if isinstance(data, ev.Unknown):
            data = _named(data)
        if isinstance(data, ev.RunFailed) and item.attempt == live.losing:
            self._lose(live, data, item, events)
            return
        if data.TYPE in ev.END_TYPES:
            output = getattr(data, "output", None)
            # From a process of its own, an output comes in its stored form only.
            live.held_bytes = item.size or (0 if output is None else sized(output)[1])
            live.pending_output = item.live
            data = self._decided(live, data)
        elif isinstance(data, ev.Checkpoint) and data.state:
            data = self._kept(live, data, item.ts)
        self._admit(live, data, item.ts, item.attempt, parent, events)

    def _lose(self, live: LiveRun, end: ev.RunFailed, item: HostEvent, events: list[ev.RunEvent]) -> None:
        """Admit that an attempt has failed, and nothing more of it; the next is made when that is public."""
        if live.streams:
            self._flush_streams(live, item.ts, item.attempt, events, live.streams)
        self._admit(live, ev.AttemptLost(item.attempt, end.error, end.usage), item.ts, 0, None, events)
        live.attempt, live.next_n = item.attempt + 1, 0

    def _decided(self, live: LiveRun, data: ev.EventData) -> ev.EventData:
        """Return the end that intake order gives the run: a cancel that came first wins over any end."""
        cancel = live.cancel
        if cancel is None:
            return data
        match data:
            case ev.RunCompleted(output=output, usage=usage, detached=detached):
                return ev.RunCancelled(cancel.cause, cancel.reason, output, None, usage, detached)
            case ev.RunFailed(error=error, output=output, usage=usage, detached=detached):
                return ev.RunCancelled(cancel.cause, cancel.reason, output, error, usage, detached)
            case ev.RunCancelled():
                return msgspec.structs.replace(data, cause=cancel.cause, reason=cancel.reason)
            case _:
                return data

    def _kept(self, live: LiveRun, data: ev.Checkpoint, ts: float) -> ev.EventData:
        """Lay a state aside for the writer, which stores it together with its event; return that without it."""
        if not is_admitted(live.status, data.TYPE):
            return data  # refused in a moment
        if len(data.state) > checkpoint.MAX_BYTES:
            size = size_words(len(data.state))
            return ev.Log(f"a checkpoint of {size} is too large; the previous one is kept", "warning")
        if live.first is not None:
            live.state = data.state
        state = checkpoint.redacted(data.state, self._redactor_of(live))
        self.checkpoints[live.run_id] = Checkpointed(live.next_seq, round(ts * 1_000_000), state)
        return ev.Checkpoint(data.id, len(state))

    def _admit(
        self, live: LiveRun, data: ev.EventData, ts: float, attempt: int, parent: str | None, events: list[ev.RunEvent]
    ) -> None:
        kind = data.TYPE or ev.type_of(data)
        if not is_admitted(live.status, kind):
            live.refused += 1
            return
        if isinstance(data, ev.DELTAS):
            data = self._redacted_delta(live, data, parent)
        elif isinstance(data, ev.ToolArgsDelta):
            data = self._redacted_args(live, data, parent)
        else:
            if live.streams and kind in ev.END_TYPES:
                self._flush_streams(live, ts, attempt, events, live.streams)
            elif live.streams and kind == ev.Message.TYPE:
                mine = [name for name in live.streams if name[1] == parent]
                self._flush_streams(live, ts, attempt, events, mine)
            elif live.streams and isinstance(data, ev.ToolFinished):
                tool_id = self._redactor_of(live).text(clean_text(data.id))
                mine = [name for name in live.streams if name[2] == tool_id]
                self._flush_streams(live, ts, attempt, events, mine)
            data = self.storable(data, self._redactor_of(live))
            live.status = next_status(live.status, kind)
        self._append(live, data, ts, attempt, parent, events)

    def _append(
        self, live: LiveRun, data: ev.EventData, ts: float, attempt: int, parent: str | None, events: list[ev.RunEvent]
    ) -> None:
        # Whole microseconds: what is read back is then exactly what was shown. Never back: a host has a clock of
        # its own, and a clock can be set.
        ts = round(ts * 1_000_000) / 1_000_000
        if ts < live.last_ts:
            ts = live.last_ts
        live.last_ts = ts
        events.append(ev.RunEvent(live.next_seq, ts, live.run_id, attempt, data, parent))
        live.next_seq += 1

    def _redacted_delta(
        self, live: LiveRun, data: ev.TextDelta | ev.ReasoningDelta, parent: str | None
    ) -> ev.TextDelta | ev.ReasoningDelta:
        text = data.text if data.text.isascii() else clean_text(data.text)
        if self._keyring.redactor.secrets or live.secrets is not None:
            text = self._stream(live, (data.TYPE, parent, None)).feed(text)
        return data if text is data.text else type(data)(text)

    def _redacted_args(self, live: LiveRun, data: ev.ToolArgsDelta, parent: str | None) -> ev.ToolArgsDelta:
        """Return a piece of a tool's arguments; each tool has a stream of its own."""
        tool_id = self._redactor_of(live).text(clean_text(data.id))
        stream = self._stream(live, (data.TYPE, parent, tool_id))
        return ev.ToolArgsDelta(tool_id, stream.feed(clean_text(data.text)))

    def _stream(self, live: LiveRun, name: StreamName) -> StreamRedactor:
        if live.streams is None:
            live.streams = {}
        stream, redactor = live.streams.get(name), self._redactor_of(live)
        if stream is None:
            stream = live.streams[name] = StreamRedactor(redactor)
        stream.redactor = redactor  # a secret may have come since
        return stream

    def _flush_streams(
        self, live: LiveRun, ts: float, attempt: int, events: list[ev.RunEvent], names: Iterable[StreamName]
    ) -> None:
        """Append what was held of these texts: their streams are over, and it was no secret."""
        data: ev.EventData
        for kind, parent, tool_id in names:
            tail = (live.streams or {})[kind, parent, tool_id].flush()
            if tail:
                data = ev.TYPES[kind](tail) if tool_id is None else ev.ToolArgsDelta(tool_id, tail)
                self._append(live, data, ts, attempt, parent, events)

    def storable(self, data: ev.EventData, redactor: Redactor | None = None) -> ev.EventData:
        """Return data that can be written and holds no secret; of those that are known to the session, or of others."""
        redactor = self.redactor if redactor is None else redactor
        try:
            blob = ev.encode_exactly(data)
        except (TypeError, ValueError, OverflowError):  # an adapter let something through as it was
            data = _without_secrets(data, redactor)
            blob = ev.encode_exactly(data)
        if not redactor.concerns(blob):  # MessagePack keeps text as it is
            return data
        clean: ev.EventData = _without_secrets(data, redactor)
        if isinstance(clean, ev.ApprovalRequested):
            hidden = redactor.names_in(clean.message, clean.args, list(clean.options))
            clean = msgspec.structs.replace(clean, hidden=hidden)
        return clean

    def record(self, run_id: str) -> RunRecord | None:
        """Return what is public of a run."""
        live = self.runs.get(run_id)
        return None if live is None else live.record

    def known(self) -> list[RunRecord]:
        """Return what is public of all runs that are in memory."""
        return [live.record for live in tuple(self.runs.values())]

    def warn(self, text: str) -> bool:
        """Log a warning in all live runs; return whether there were any."""
        lives = [live for live in tuple(self.runs.values()) if not live.has_end]
        for live in lives:
            self.emit(live, ev.Log(text, "warning"))
        return bool(lives)

    def publish(self, committed: list[Committed]) -> None:
        """Make what was committed public: record first, then the end, then who listens."""
        self._publisher = threading.get_ident()
        for item in committed:
            live = self.runs.get(item.run_id)
            if live is None:
                continue
            # Replaced, never changed: somebody may be reading it.
            live.unsaved = item.waiting
            live.problem = item.problem
            is_live = item.record.is_live
            if not is_live and not live.is_ended.is_set():
                live.output = live.pending_output
                live.held_bytes += len(item.record.text)
            live.record = item.record
            live.is_created.set()
            if not is_live:
                live.is_ended.set()
            try:
                self._on_publish(live, item.events)
            except Exception:  # who listens to one run must not keep others from becoming public
                _log.exception("the publishing of %s failed", live.run_id)
        self._call_stored()
        self._publisher = None

    def refuse(self, run_id: str) -> None:
        """Take back a run that has not begun: the store already has its id. Whoever waits for it is released."""
        live = self.runs.pop(run_id, None)
        if live is not None:
            with self._lock:
                self._note_end(live)
            live.is_refused = True
            live.is_created.set()
            live.is_ended.set()

    def forget(self, live: LiveRun) -> None:
        """Let nothing of this run in any more."""
        self.runs.pop(live.run_id, None)
        self.checkpoints.pop(live.run_id, None)


def _named(data: ev.Unknown) -> ev.Unknown:
    """Return data of an unknown type under a name that can be stored; raises `ValueError` if its type is known."""
    if data.type in ev.TYPES:
        raise ValueError(f"not a valid event of type {data.type}")
    name = clean_text(data.type)
    return data if name == data.type else ev.Unknown(name, data.body)


def _without_secrets(value: Any, redactor: Redactor) -> Any:
    """Return a struct or a part of one with its texts redacted; fixed words stay, whatever secrets there are."""
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
        return type(value)(**{name: _without_secrets(part, redactor) for name, part in fields.items()})
    if isinstance(value, StrEnum):
        return value
    if isinstance(value, bytes):
        return redactor.raw(value)
    if isinstance(value, tuple):
        return tuple(_without_secrets(part, redactor) for part in value)
    return redactor.data(plain(value))
