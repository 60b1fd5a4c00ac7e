"""Messages between a kernel and the process of a run, and their frames on a local socket."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.calls import GOVERNOR
from nbrun.core import CancelCause, Plain, Restored, clean_text, events as ev, plain, size_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nbrun.host.attempt import Attempt, HostEvent


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The process is up, and ready for its attempt."""


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The attempt, with its agent pickled."""

    run_id: str
    number: int
    pickled: bytes
    prompt: str
    grace_s: float
    options: dict[str, Any]  # those of `RunOptions.portable()`
    answerable: bool
    host: str
    reentrant_loop: bool = False
    files: str = ""  # the folder for the run's artifacts, if there is one
    restored: Restored | None = None
    secrets: dict[str, str] = {}  # value → name, of those that are known
    secret_variables: tuple[str, ...] = ()
    session_id: str = ""
    watch_calls: bool = True
    rates: tuple[int | None, int | None] = (None, None)  # requests and tokens per minute
    journal_key: bytes = b""  # of this run's journal only; empty: none is kept


class Secrets(msgspec.Struct, frozen=True, tag=True):
    """Secrets of the process's environment, value → name; sent before any event that could hold them."""

    found: dict[str, str]


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """The run's token has fired on the sender's side; the receiver fires its own."""

    reason: str | None
    cause: CancelCause


class Control(msgspec.Struct, frozen=True, tag=True):
    """A request of the session to the host."""

    op: str
    body: dict[str, Plain]


class Sync(msgspec.Struct, frozen=True, tag=True):
    """The process asks to be told when all that it has sent is stored; `number` grows with each."""

    number: int
    is_urgent: bool = False


class Stored(msgspec.Struct, frozen=True, tag=True):
    """All that the process had sent before this `Sync` is on disk, or can't be put there."""

    number: int


class PackedEvent(msgspec.Struct, frozen=True, array_like=True):
    """An event of the host; it is numbered where it arrives, for the socket keeps the order."""

    ts: float
    type: str
    data: bytes
    parent: str | None


class Batch(msgspec.Struct, frozen=True, tag=True):
    """Events, in order."""

    events: list[PackedEvent]


Message = Ready | Begin | Secrets | Cancel | Control | Sync | Stored | Batch

MAX_BYTES = 1 << 28
"""Bytes of a message from the run's process; of a batch, `FULL` and one event more."""
FULL = 1 << 20
MAX_SECRETS = 100
"""How many secrets the process of one run may name, besides those of the session."""
_MAX_SECRET = 32_000  # characters

_NOT_FROM_A_HOST = frozenset({
    ev.RunCreated.TYPE, ev.AttemptLost.TYPE, ev.RunLost.TYPE, ev.CancelRequested.TYPE, ev.DetachedFinished.TYPE,
    ev.ChildStarted.TYPE, ev.ChildFinished.TYPE,
})  # fmt: skip
"""Events that only the session sends, or that a run in a process of its own can't have."""

_LENGTH = struct.Struct("!I")
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def begin(attempt: Attempt, host: str) -> Begin:
    """Return the message that hands an attempt to the process that is called `host`."""
    writer = attempt.artifact_writer
    folder = None if writer is None else writer.folder
    journals = attempt.journals
    session_id = "" if journals is None else journals.session_id
    key = b"" if journals is None or not journals.is_on else journals.key_of(attempt.run_id)
    known, names = ({}, ()) if writer is None else (dict(writer.keyring.known), tuple(writer.keyring.names))
    return Begin(
        attempt.run_id, attempt.number, attempt.pickled, attempt.prompt, attempt.grace_s,
        attempt.options.portable(), attempt.answerable, host, attempt.reentrant_loop,
        "" if folder is None else str(folder), attempt.restored, known, names,
        session_id, attempt.watch_calls, GOVERNOR.limits, key,
    )  # fmt: skip


def frame(message: Message) -> bytes:
    """Return a message as it goes over the socket: its length, then its bytes."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Puts messages together from the bytes of a socket; raises `ValueError` for one that is too long."""

    def __init__(self, max_bytes: int | None = None) -> None:
        self._held = bytearray()
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take what was received; yield the messages that are complete now, each before the next is decoded."""
        held = self._held
        held += data
        while len(held) >= _LENGTH.size:
            length = _LENGTH.unpack_from(held)[0]
            if self._max_bytes is not None and length > self._max_bytes:
                raise ValueError(f"it has {size_words(length)}, and {size_words(self._max_bytes)} are allowed")
            end = _LENGTH.size + length
            if len(held) < end:
                break
            body = bytes(held[_LENGTH.size : end])
            del held[:end]
            yield _decoder.decode(body)


def pack_event(event: HostEvent) -> PackedEvent:
    """Return an event as it travels: without the live object, and with every value in it JSON-like."""
    kind = ev.type_of(event.data)
    try:
        data = ev.encode_data(event.data)
    except (TypeError, ValueError, OverflowError):  # an adapter left a value as it was
        data = _encoder.encode(plain(event.data))
    return PackedEvent(event.ts, kind, data, event.parent)


def new_secrets(found: dict[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Return those that aren't known yet; raises `ValueError` if one is too long to be a secret."""
    new = {value: name for value, name in found.items() if value not in known}
    if any(len(part) > _MAX_SECRET for pair in new.items() for part in pair):
        raise ValueError(f"a secret is longer than {_MAX_SECRET:,} characters")
    return {value: clean_text(name)[:200] for value, name in new.items()}


def unpack_event(packed: PackedEvent) -> ev.EventData:
    """Return the data of an event that has arrived; raises `ValueError` if it isn't one that a host may send."""
    if packed.type in _NOT_FROM_A_HOST:
        raise ValueError(f"the process of a run can't send {packed.type}")
    if not math.isfinite(packed.ts):
        raise ValueError(f"{packed.type} has no valid time")
    return ev.decode_data(packed.type, packed.data)
