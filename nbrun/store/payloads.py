"""Payloads in rows: several deltas share one, and what is too large for a row is kept in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from nbrun.core import (
    REPR_KEY,
    Artifact,
    ArtifactFiles,
    ArtifactLost,
    Exported,
    Plain,
    RunRecord,
    events as ev,
    shown,
    type_name,
)
from nbrun.core.values import TYPE_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


LIMIT = 1_000_000  # the size in bytes of an event above which its payload goes to a file
HEAD = 2_000  # how many characters of it stay in the event
PER_ROW = 16  # how many deltas share a row
LONG = 250_000
"""A delta with more characters is the last in its row: SQLite bounds the size of a row."""
ARTIFACT_KEY = "$artifact"
TEXT, PACKED = "text/plain", "application/vnd.msgpack"

# Not of unknown types, which are stored as they came, nor questions, which must be shown whole.
_FIELDS: dict[type[ev.EventData], str] = {
    ev.ToolStarted: "args",
    ev.ToolFinished: "result",
    ev.Custom: "value",
    ev.Raw: "payload",
    ev.RunCompleted: "output",
    ev.RunFailed: "output",
    ev.RunCancelled: "output",
    ev.Message: "text",
    ev.Log: "text",
}
_TEXTS = (ev.Message, ev.Log)


def moved_to_file(event: ev.RunEvent, files: ArtifactFiles) -> tuple[ev.RunEvent, ev.Artifact] | None:
    """Return the event with the head of its payload only, and the file's event; None if the payload is not large.

    Raises `StoreError` or `OSError` if the file cannot be written.
    """
    name = _FIELDS.get(type(event.data))
    if name is None:
        return None
    value: Plain = getattr(event.data, name)
    is_text = isinstance(value, str)
    blob = value.encode() if isinstance(value, str) else msgspec.msgpack.encode(value)
    if len(blob) < LIMIT // 2:
        return None
    sha256, size = files.keep(blob)
    made = ev.Artifact(_id_of(event), f"{event.type} {name}", size, "", TEXT if is_text else PACKED, sha256)
    head = f"{shown(value[: 2 * HEAD] if isinstance(value, str) else value, HEAD)} ({size:,} bytes)"
    short: Plain = {TYPE_KEY: type_name(value), REPR_KEY: head, ARTIFACT_KEY: made.id}
    if isinstance(event.data, _TEXTS):
        short = f"{head}: artifact {made.id}"
    data = msgspec.structs.replace(event.data, **{name: short})
    return msgspec.structs.replace(event, data=data), made


def restored(event: ev.RunEvent, artifacts: Sequence[Artifact]) -> ev.RunEvent:
    """Return an event with its payload from its file; unchanged if it has no file, or the file can't be read."""
    name = _FIELDS.get(type(event.data))
    kept = next((made for made in artifacts if made.id == _id_of(event)), None)
    if name is None or kept is None:
        return event
    value = _read(kept)
    if value is None:
        return event
    return msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, **{name: value}))


def whole_run(record: RunRecord, events: Iterable[ev.RunEvent], artifacts: Sequence[Artifact]) -> Exported:
    """Return a run with its payloads from files back in place."""
    output = whole(record.output, artifacts)
    record = msgspec.structs.replace(record, output=output)
    return Exported(record, (restored(event, artifacts) for event in events), artifacts)


def _id_of(event: ev.RunEvent) -> str:
    return f"event-{event.seq}"


def is_in_file(value: Plain) -> bool:
    """Return whether a value was moved to a file."""
    return isinstance(value, dict) and ARTIFACT_KEY in value


def whole(value: Plain, artifacts: Sequence[Artifact]) -> Plain:
    """Return a value from its file; unchanged if it is not in one or that cannot be read."""
    if not isinstance(value, dict) or ARTIFACT_KEY not in value:
        return value
    kept = next((made for made in artifacts if made.id == value[ARTIFACT_KEY]), None)
    found = None if kept is None else _read(kept)
    return value if found is None else found


def _read(kept: Artifact) -> Plain:
    """Return the value in a file; None if the file is lost or can't be read."""
    try:
        if kept.media_type == TEXT:
            return kept.read().decode()
        return msgspec.msgpack.decode(kept.read()) if kept.media_type == PACKED else None
    except (ArtifactLost, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


_CLASSES: dict[str, type[ev.TextDelta] | type[ev.ReasoningDelta]] = {
    ev.TextDelta.TYPE: ev.TextDelta,
    ev.ReasoningDelta.TYPE: ev.ReasoningDelta,
}


class DeltaRow(msgspec.Struct, array_like=True):
    """The data of a row of deltas: lengths in characters, steps in microseconds after the row's `ts`."""

    text: str
    # Longer lists than ours are not even decoded.
    lengths: Annotated[list[int], msgspec.Meta(max_length=PER_ROW)]
    steps: Annotated[list[int], msgspec.Meta(max_length=PER_ROW)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DeltaRow)


def encode(texts: list[str], steps: list[int]) -> bytes:
    """Return the row's data."""
    return _encoder.encode(DeltaRow("".join(texts), [len(text) for text in texts], steps))


def decode(event_type: str, blob: bytes, ts: int) -> list[tuple[int, ev.EventData]]:
    """Return (time, data) of each delta of a row, in order; raises `DecodeError` for what `encode` did not make."""
    row = _decoder.decode(blob)
    made: list[tuple[int, ev.EventData]] = []
    start = 0
    for length, step in zip(row.lengths, row.steps, strict=True):
        made.append((ts + step, _CLASSES[event_type](row.text[start : start + length])))
        start += length
    return made
