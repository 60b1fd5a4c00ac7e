"""What is taken from a row that somebody else may have written: nothing of a wrong kind, too deep or out of bounds."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

import msgspec

from nbrun.core import events as ev

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nbrun.core.record import RunRecord

MAX_SEQ = 2**53
"""Event numbers end here: what reads them as JSON knows no greater ones."""
LATEST_S = 253_402_300_799
"""Moments end with the year 9999: no calendar goes further."""
LATEST = LATEST_S * 1_000_000

MAX_DEPTH = 64
"""How deep a stored value may be nested; ours are half as deep, and what shows them goes down by calling itself."""
MAX_PLAIN_BYTES = 16 * 1024 * 1024
MAX_HEADERS = 2_000_000
"""Above so many bytes a value may hold so many lists and objects: of one byte there they take a hundred here."""
PAGE_BYTES = 256 * 1024 * 1024
"""What one page of events may hold; it ends early where there is more."""
LOG_EVENTS = 5_000_000
"""The longest log that is folded at once."""
LOG_OPEN = 1_000
"""How many questions and loose ends a log may have at a time: each is looked at with each that follows."""

# The first bytes of maps and lists, as MessagePack writes them; a text may hold them as well.
_HEADERS = bytes(range(0x80, 0xA0)) + b"\xdc\xdd\xde\xdf"
_OTHERS = bytes(code for code in range(256) if code not in _HEADERS)

_MOMENTS = (
    "created_at",
    "started_at",
    "cancel_requested_at",
    "ended_at",
    "last_event_at",
    "detached_finished_at",
)
_moments = attrgetter(*_MOMENTS)

Row = tuple[int, int, int, int, str | None, str, bytes | None]
"""Of an event: seq, count, ts, attempt, parent, type, data; the data is None where it is too large or no blob."""


def text(value: object) -> str:
    """Return what stands in a column of text, whatever it is."""
    if isinstance(value, str):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def is_sound(row: Row) -> bool:
    """Return whether a row of an event holds in its columns what we write there."""
    seq, count, ts, attempt, parent, kind, _ = row
    return (
        type(seq) is type(count) is type(ts) is type(attempt) is int
        and type(kind) is str
        and (parent is None or type(parent) is str)
        and 0 <= seq < MAX_SEQ
        and 0 <= ts <= LATEST
    )


def repaired(row: Row) -> Row:
    """Return a row as it may be meant; one without a number of its own is empty, and comes before all others."""
    seq, count, ts, attempt, parent, kind, blob = row
    if type(seq) is not int or not 0 <= seq < MAX_SEQ:
        return (-1, 0, 0, 0, None, "", None)
    is_moment = type(ts) is int and 0 <= ts <= LATEST
    return (
        seq, count if type(count) is int else 1, ts if is_moment else 0, attempt if type(attempt) is int else 0,
        None if parent is None else text(parent), text(kind), blob,
    )  # fmt: skip


def moment(micros: int, otherwise: int) -> float:
    """Return microseconds as epoch seconds; those of `otherwise` where no calendar has such a moment."""
    return (micros if 0 <= micros <= LATEST else otherwise) / 1_000_000


def data(kind: str, blob: bytes | None) -> ev.EventData:
    """Return the data of an event; what was never written by us comes back marked as damaged."""
    if blob is None:
        return damaged(kind, blob)
    if len(blob) <= MAX_DEPTH:
        return ev.decode_data(kind, blob)
    headers = len(blob.translate(None, _OTHERS))
    if len(blob) > MAX_PLAIN_BYTES and headers > MAX_HEADERS:
        return damaged(kind, blob)
    found = ev.decode_data(kind, blob)
    return damaged(kind, blob) if headers > MAX_DEPTH and is_deep(found) else found


def damaged(kind: str, blob: bytes | None) -> ev.Unknown:
    """Return what stands for the data of an event that cannot be read."""
    return ev.Unknown(kind, {"$damaged": 0 if blob is None else len(blob)})


def is_deep(value: object) -> bool:
    """Return whether a value is nested deeper than any of ours."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [part for whole in level for part in _parts(whole)]
        if not level:
            return False
    return True


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, msgspec.Struct):
        return [getattr(value, name) for name in value.__struct_fields__]
    return ()


def sound(record: RunRecord) -> RunRecord:
    """Return a record without moments that no calendar has."""
    wrong = [
        name
        for name, at in zip(_MOMENTS, _moments(record), strict=True)
        if at is not None and not 0 <= at <= LATEST_S  # also what is no number
    ]
    if not wrong:
        return record
    nothing = {name: 0.0 if name in ("created_at", "last_event_at") else None for name in wrong}
    return msgspec.structs.replace(record, **nothing)


def sound_brief(record: RunRecord, number: int, session_id: object) -> RunRecord:
    """Return a brief record as a list of runs shows it, with nothing in it that is the reader's to say."""
    record = sound(record)
    values = (record.output, record.options, record.pending)
    is_plain = not record.options and not record.pending
    if not (is_plain and isinstance(record.output, str | None)) and any(map(is_deep, values)):
        record = msgspec.structs.replace(record, output=None, options={}, pending=())
    # Brief whatever it says: it is as of the last change of status, and the log may have gone on. And whose it is
    # the row says: an imported run tells of another session.
    return msgspec.structs.replace(
        record, number=number, session_id=text(session_id), is_brief=True, unseen=""
    )


def foldable(events: Iterable[ev.RunEvent]) -> Iterator[ev.RunEvent]:
    """Yield the events of a log while it is one that can be folded in a reasonable time.

    Raises
    ------
    ValueError
        It is longer, or leaves more open at a time, than any run does.
    """
    opened = 0
    for count, event in enumerate(events):
        what = event.data
        if isinstance(what, ev.ApprovalRequested | ev.DetachedFinished):
            opened += 1
        elif isinstance(what, ev.ApprovalResolved):
            opened -= 1
        if opened > LOG_OPEN or count >= LOG_EVENTS:
            raise ValueError(f"{event.run_id}: its log is out of all bounds at event {event.seq}")
        yield event
