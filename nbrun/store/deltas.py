"""Consecutive text deltas in one row: their joined text, the length of each, the time of each."""

from __future__ import annotations

from typing import Annotated

import msgspec

from nbrun import events as ev

PER_ROW = 16
LONG = 250_000
"""Characters of a delta that no other follows in its row: SQLite holds only so much in one."""

_CLASSES: dict[str, type[ev.TextDelta] | type[ev.ReasoningDelta]] = {
    ev.TextDelta.TYPE: ev.TextDelta,
    ev.ReasoningDelta.TYPE: ev.ReasoningDelta,
}


class DeltaRow(msgspec.Struct, array_like=True):
    """The data of such a row: lengths in characters, steps in microseconds after the row's `ts`."""

    text: str
    # Of a row that is longer than ours not even the lists are made.
    lengths: Annotated[list[int], msgspec.Meta(max_length=PER_ROW)]
    steps: Annotated[list[int], msgspec.Meta(max_length=PER_ROW)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DeltaRow)


def encode(texts: list[str], steps: list[int]) -> bytes:
    """Return the row's data."""
    return _encoder.encode(DeltaRow("".join(texts), [len(text) for text in texts], steps))


def decode(event_type: str, blob: bytes, ts: int) -> list[tuple[int, ev.EventData]]:
    """Return (time, data) of each delta of a row; in order.

    Raises
    ------
    msgspec.DecodeError
        The row is not what `encode` makes.
    """
    row = _decoder.decode(blob)
    made: list[tuple[int, ev.EventData]] = []
    start = 0
    for length, step in zip(row.lengths, row.steps, strict=True):
        made.append((ts + step, _CLASSES[event_type](row.text[start : start + length])))
        start += length
    return made
