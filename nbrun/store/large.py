"""Payloads that are too large for a row: kept as a file, with their head and size in the event."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nbrun import events as ev
from nbrun.encoding import REPR_KEY, TYPE_KEY, Plain, shown, type_name
from nbrun.errors import ArtifactLost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.artifacts import Artifact, ArtifactFiles

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
        f"event-{event.seq}", f"{event.type} {name}", size, "", TEXT if is_text else PACKED, sha256
    )
    head = f"{shown(value[: 2 * HEAD] if isinstance(value, str) else value, HEAD)} ({size:,} bytes)"
    short: Plain = {TYPE_KEY: type_name(value), REPR_KEY: head, ARTIFACT_KEY: made.id}
    if isinstance(event.data, _TEXTS):
        short = f"{head}: artifact {made.id}"
    data = msgspec.structs.replace(event.data, **{name: short})
    return msgspec.structs.replace(event, data=data), made


def is_outsourced(value: Plain) -> bool:
    """Return whether a value stands for one in a file."""
    return isinstance(value, dict) and ARTIFACT_KEY in value


def whole(value: Plain, artifacts: Sequence[Artifact]) -> Plain:
    """Return what a value stands for; itself where its file cannot be read."""
    if not isinstance(value, dict) or ARTIFACT_KEY not in value:
        return value
    kept = next((made for made in artifacts if made.id == value[ARTIFACT_KEY]), None)
    if kept is None or kept.media_type not in (TEXT, PACKED):
        return value
    try:
        blob = kept.read()
        found: Plain = blob.decode() if kept.media_type == TEXT else msgspec.msgpack.decode(blob)
    except (ArtifactLost, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return value
    return found
