"""The events of a run that are public but not in the file, because that can't be written now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from nbrun.core import events as ev
from nbrun.store.payloads import PER_ROW

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

HELD_BYTES = 64 * 1024 * 1024  # how much is kept in memory for all runs together

_EVENT_BYTES = 300  # of an event besides its data
# Few per run, and the status follows from them.
_REQUIRED = ev.END_TYPES | {
    cls.TYPE
    for cls in (
        ev.RunCreated, ev.RunStarted, ev.AttemptLost, ev.Checkpoint, ev.RunWaiting, ev.RunResumed,
        ev.CancelRequested, ev.CancelEscalated, ev.DetachedFinished, ev.ApprovalRequested, ev.ApprovalResolved,
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dropped:
    """Consecutive events that were dropped. Their numbers stay taken, so the log has no gap.

    The text that the agent produced in them is the part of the record's text from character `start` to `end`.
    """

    run_id: str
    seq: int
    count: int
    ts: float
    attempt: int
    why: str
    start: int = 0
    end: int = 0

    def events(self, text: str) -> Iterator[ev.RunEvent]:
        """Yield what replaces them: a warning, the text, and as many empty deltas as are needed."""
        part = text[self.start : self.end]
        if self.count == 1 and part:  # nothing was lost
            yield self._event(0, ev.TextDelta(part))
            return
        yield self._event(0, ev.Log(f"{self.count} events were not kept: {self.why}", "warning"))
        for place in range(1, self.count):
            yield self._event(place, ev.TextDelta(part if place == 1 else ""))

    def parts(self, text: str) -> Iterator[list[ev.RunEvent]]:
        """Yield the same a few at a time: there may be millions."""
        part: list[ev.RunEvent] = []
        for event in self.events(text):
            part.append(event)
            if len(part) == 64 * PER_ROW:
                yield part
                part = []
        yield part

    def _event(self, place: int, data: ev.EventData) -> ev.RunEvent:
        return ev.RunEvent(self.seq + place, self.ts, self.run_id, self.attempt, data)


class Backlog:
    """The events of a run that are public but not in the file; by seq, no gaps.

    Threads: the writer's only.
    """

    def __init__(self, items: Iterable[ev.RunEvent | Dropped] = ()) -> None:
        self._items = list(items)
        self._dropped = 0
        self.size = 0  # in bytes, about

    def __len__(self) -> int:
        """Return how many entries there are; events that were dropped together are one."""
        return len(self._items)

    def __iter__(self) -> Iterator[ev.RunEvent | Dropped]:
        return iter(self._items)

    @property
    def has_dropped(self) -> bool:
        """Whether a part of it was dropped."""
        return self._dropped > 0

    def whole(self) -> Sequence[ev.RunEvent]:
        """Return the events that were not dropped."""
        return [item for item in self._items if not isinstance(item, Dropped)] if self._items else ()

    def pieces(self) -> Iterator[Backlog | Dropped]:
        """Yield what was kept and what was dropped, in order."""
        for is_dropped, items in groupby(self._items, lambda item: isinstance(item, Dropped)):
            if is_dropped:
                yield from (item for item in items if isinstance(item, Dropped))
            else:
                yield Backlog(items)

    @property
    def first_seq(self) -> int | None:
        """The number of its first event."""
        return self._items[0].seq if self._items else None

    def add(self, events: list[ev.RunEvent], text_at: int, checkpoint_at: int, room: int, why: str) -> None:
        """Add events, before which the record's text has `text_at` characters; at its checkpoint, `checkpoint_at`.

        Beyond `room` bytes only required events are added; `why` is the reason given for those that are dropped.
        """
        for event in events:
            start = text_at
            if isinstance(event.data, ev.TextDelta):
                text_at += len(event.data.text)
            elif isinstance(event.data, ev.Checkpoint):
                checkpoint_at = text_at
            elif isinstance(event.data, ev.AttemptLost):
                text_at = min(text_at, checkpoint_at)
                self._cut_text(text_at)
            weight = _weight(event)
            if event.type in _REQUIRED or weight <= room:
                self._items.append(event)
                self.size += weight
                room -= weight
            else:
                self._drop(event, start, text_at, why)

    def _drop(self, event: ev.RunEvent, start: int, end: int, why: str) -> None:
        self._dropped += 1
        last = self._items[-1] if self._items else None
        if isinstance(last, Dropped) and last.attempt == event.attempt:
            self._items[-1] = replace(last, count=last.count + 1, end=end)
            return
        self._items.append(Dropped(event.run_id, event.seq, 1, event.ts, event.attempt, why, start, end))
        self.size += _EVENT_BYTES

    def _cut_text(self, end: int) -> None:
        """Note that the record's text was cut to so many characters: what was dropped has no more of it."""
        self._items = [
            replace(item, start=min(item.start, end), end=min(item.end, end)) if isinstance(item, Dropped) else item
            for item in self._items
        ]

    def copy(self) -> Backlog:
        """Return another with the same events."""
        other = Backlog(self._items)
        other._dropped, other.size = self._dropped, self.size
        return other

    def cut(self, seq: int, text_at: int) -> None:
        """Remove what comes before event `seq`, where the record's text has `text_at` characters: it is written."""
        items, self._items, self._dropped, self.size = self._items, [], 0, 0
        for item in items:
            if not isinstance(item, Dropped):
                if item.seq >= seq:
                    self._items.append(item)
                    self.size += _weight(item)
            elif item.seq + item.count > seq:
                over = max(0, seq - item.seq)
                start = max(item.start, text_at) if over else item.start
                rest = replace(item, seq=item.seq + over, count=item.count - over, start=start)
                self._items.append(rest)
                self._dropped += rest.count
                self.size += _EVENT_BYTES

    def waiting(self, text: str) -> Waiting:
        """Return what waits now, to be read by any thread; `text` is that of the record."""
        return Waiting(tuple(self._items), text)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The events that waited at one moment, and the record's text then."""

    items: tuple[ev.RunEvent | Dropped, ...]
    text: str

    def __iter__(self) -> Iterator[ev.RunEvent]:
        for item in self.items:
            if isinstance(item, Dropped):
                yield from item.events(self.text)
            else:
                yield item


def _weight(event: ev.RunEvent) -> int:
    """Return about how many bytes an event takes."""
    data = event.data
    if isinstance(data, ev.TextDelta | ev.ReasoningDelta | ev.Log) and isinstance(data.text, str):
        return _EVENT_BYTES + len(data.text)
    try:
        return _EVENT_BYTES + len(ev.encode_data(data))
    except (TypeError, ValueError, OverflowError):  # it cannot be written, and will be replaced
        return _EVENT_BYTES
