"""Validation of rows that somebody else may have written: nothing of a wrong type, too deep or out of bounds."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

import msgspec

from nbrun.core import RunRecord, events as ev

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


MAX_SEQ = 2**53  # event numbers end here: JavaScript has no greater ones
LATEST_S = 253_402_300_799  # times end with the year 9999, as in `datetime`
LATEST = LATEST_S * 1_000_000

MAX_DEPTH = 64
"""How deep a stored value may be nested: ours are half as deep, and rendering is recursive."""
MAX_PLAIN_BYTES = 16 * 1024 * 1024
MAX_HEADERS = 2_000_000
"""How many lists and objects a value above that size may have: each takes a byte there and a hundred here."""
PAGE_BYTES = 256 * 1024 * 1024  # the largest page of events; it ends early if there is more
LOG_EVENTS = 5_000_000  # the longest log that is folded at once
LOG_OPEN = 1_000
"""How many questions and detached tasks may be open at a time: folding each event visits them all."""

# The first bytes of maps and lists in MessagePack; a text may contain them as well.
_HEADERS = bytes(range(0x80, 0xA0)) + b"\xdc\xdd\xde\xdf"
_OTHERS = bytes(code for code in range(256) if code not in _HEADERS)

_MOMENTS = ("created_at", "started_at", "cancel_requested_at", "ended_at", "last_event_at", "detached_finished_at")
_moments = attrgetter(*_MOMENTS)

Row = tuple[int, int, int, int, str | None, str, bytes | None]
"""Of an event: seq, count, ts, attempt, parent, type, data; the data is None where it is too large or no blob."""


def text(value: object) -> str:
    """Return the text in a column, whatever is there."""
    if isinstance(value, str):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def is_sound(row: Row) -> bool:
    """Return whether the columns of an event are as we write them."""
    seq, count, ts, attempt, parent, kind, _ = row
    return (
        type(seq) is type(count) is type(ts) is type(attempt) is int
        and type(kind) is str
        and (parent is None or type(parent) is str)
        and 0 <= seq < MAX_SEQ
        and 0 <= ts <= LATEST
    )


def repaired(row: Row) -> Row:
    """Return a row with valid columns; one without a valid number is empty, and comes before all others."""
    seq, count, ts, attempt, parent, kind, blob = row
    if type(seq) is not int or not 0 <= seq < MAX_SEQ:
        return (-1, 0, 0, 0, None, "", None)
    is_moment = type(ts) is int and 0 <= ts <= LATEST
    return (
        seq, count if type(count) is int else 1, ts if is_moment else 0, attempt if type(attempt) is int else 0,
        None if parent is None else text(parent), text(kind), blob,
    )  # fmt: skip


def moment(micros: int, otherwise: int) -> float:
    """Return microseconds as epoch seconds; `otherwise` is used for what is out of range."""
    return (micros if 0 <= micros <= LATEST else otherwise) / 1_000_000


def data(kind: str, blob: bytes | None) -> ev.EventData:
    """Return the data of an event; what we would never write is marked as damaged."""
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
    """Return what replaces the data of an event that cannot be read."""
    return ev.Unknown(kind, {"$damaged": 0 if blob is None else len(blob)})


def is_deep(value: object) -> bool:
    """Return whether a value is nested too deep."""
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
    """Return a record without times that are out of range."""
    wrong = [
        name
        for name, at in zip(_MOMENTS, _moments(record), strict=True)
        if at is not None and not 0 <= at <= LATEST_S  # also NaN
    ]
    if not wrong:
        return record
    nothing = {name: 0.0 if name in ("created_at", "last_event_at") else None for name in wrong}
    return msgspec.structs.replace(record, **nothing)


def sound_brief(record: RunRecord, number: int, session_id: object) -> RunRecord:
    """Return a valid brief record, without what only the reader can say."""
    record = sound(record)
    values = (record.output, record.options, record.pending)
    is_plain = not record.options and not record.pending
    if not (is_plain and isinstance(record.output, str | None)) and any(map(is_deep, values)):
        record = msgspec.structs.replace(record, output=None, options={}, pending=())
    # Always brief: it is as of the last change of status, and the log may have more. The session comes from the row:
    # an imported run names another one.
    return msgspec.structs.replace(
        record,
        number=number,
        session_id=text(session_id),
        is_brief=True,
        text_cut=0,
        text_head="",
        tools_cut=0,
        unseen="",
        is_unsigned=False,
    )


def foldable(events: Iterable[ev.RunEvent]) -> Iterator[ev.RunEvent]:
    """Yield a log's events; raise `ValueError` where it is longer, or has more open at a time, than any real run."""
    opened = 0
    for count, event in enumerate(events):
        what = event.data
        if isinstance(what, ev.ApprovalRequested | ev.DetachedFinished):
            opened += 1
        elif isinstance(what, ev.ApprovalResolved):
            opened -= 1
        if opened > LOG_OPEN or count >= LOG_EVENTS:
            raise ValueError(f"{event.run_id}: its log exceeds all limits at event {event.seq}")
        yield event
