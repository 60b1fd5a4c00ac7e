"""Payloads that are too large for a row: kept as a file, with their head and size in the event."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nbrun import events as ev
from nbrun.encoding import REPR_KEY, TYPE_KEY, Plain, shown, type_name
from nbrun.errors import ArtifactLost

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nbrun.artifacts import Artifact, ArtifactFiles
    from nbrun.export import Exported
    from nbrun.record import RunRecord

LIMIT = 1_000_000
"""Bytes of an event beyond which its payload goes to a file."""
HEAD = 2_000
"""Characters of it that stay."""
ARTIFACT_KEY = "$artifact"
TEXT, PACKED = "text/plain", "application/vnd.msgpack"

# Not of unknown types, which are stored as they came, nor what people are asked: they must see it whole.
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


def outsourced(event: ev.RunEvent, files: ArtifactFiles) -> tuple[ev.RunEvent, ev.Artifact] | None:
    """Return the event with the head of its payload, and what tells of the file; None if that is not what is large.

    Raises
    ------
    StoreError, OSError
        The file cannot be written.
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
    made = ev.Artifact(
        _id_of(event), f"{event.type} {name}", size, "", TEXT if is_text else PACKED, sha256
    )
    head = f"{shown(value[: 2 * HEAD] if isinstance(value, str) else value, HEAD)} ({size:,} bytes)"
    short: Plain = {TYPE_KEY: type_name(value), REPR_KEY: head, ARTIFACT_KEY: made.id}
    if isinstance(event.data, _TEXTS):
        short = f"{head}: artifact {made.id}"
    data = msgspec.structs.replace(event.data, **{name: short})
    return msgspec.structs.replace(event, data=data), made


def restored(event: ev.RunEvent, artifacts: Sequence[Artifact]) -> ev.RunEvent:
    """Return an event with its payload, wherever that is kept; itself where its file cannot be read."""
    name = _FIELDS.get(type(event.data))
    kept = next((made for made in artifacts if made.id == _id_of(event)), None)
    if name is None or kept is None:
        return event
    value = _read(kept)
    if value is None:
        return event
    return msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, **{name: value}))


def whole_run(
    record: RunRecord, events: Iterable[ev.RunEvent], artifacts: Sequence[Artifact]
) -> Exported:
    """Return a run with all that is kept of it beside its log in its place."""
    from nbrun.export import Exported  # where somebody exports

    output = whole(record.output, artifacts)
    record = msgspec.structs.replace(record, output=output)
    return Exported(record, (restored(event, artifacts) for event in events), artifacts)


def _id_of(event: ev.RunEvent) -> str:
    return f"event-{event.seq}"


def is_outsourced(value: Plain) -> bool:
    """Return whether a value stands for one in a file."""
    return isinstance(value, dict) and ARTIFACT_KEY in value


def whole(value: Plain, artifacts: Sequence[Artifact]) -> Plain:
    """Return what a value stands for; itself where its file cannot be read."""
    if not isinstance(value, dict) or ARTIFACT_KEY not in value:
        return value
    kept = next((made for made in artifacts if made.id == value[ARTIFACT_KEY]), None)
    found = None if kept is None else _read(kept)
    return value if found is None else found


def _read(kept: Artifact) -> Plain:
    """Return the value in a file; None where there is none."""
    try:
        if kept.media_type == TEXT:
            return kept.read().decode()
        return msgspec.msgpack.decode(kept.read()) if kept.media_type == PACKED else None
    except (ArtifactLost, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
