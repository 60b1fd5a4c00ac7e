"""What a run resumes from: the state of its agent, as bytes and back, and the conversation before it.

States are no pickles, so reading one runs no code. A conversation is read from the logs of earlier runs, whatever
agents they had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nbrun.core import events as ev
from nbrun.core.errors import NotResumable
from nbrun.core.journal import Entry
from nbrun.core.record import standing
from nbrun.core.values import Plain, as_object, plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nbrun.core.redaction import Redactor

USER, ASSISTANT = "user", "assistant"


class Call(msgspec.Struct, frozen=True):
    """A tool call on the way to an answer."""

    id: str
    name: str
    args: Plain = None
    result: Plain = None
    status: str = "ok"

    __repr__ = ev.visible_repr


class Turn(msgspec.Struct, frozen=True):
    """One message of a conversation; an agent's may come with the tool calls before it."""

    role: str  # USER or ASSISTANT
    text: str
    calls: tuple[Call, ...] = ()

    __repr__ = ev.visible_repr


def turns_of(prompt: str | None, events: Iterable[ev.RunEvent], answer: str) -> list[Turn]:
    """Return the turns of one run.

    `prompt` is None if it is that of the run before; `answer` is the text of an agent that sends no whole messages.
    """
    turns = [] if prompt is None else [Turn(USER, prompt)]
    calls: dict[str, Call] = {}
    pieces: dict[str, list[str]] = {}  # of arguments
    answers = 0
    for event in standing(events):
        match event.data:
            case ev.ToolStarted(id=tool_id, name=name, args=args):
                calls[tool_id] = Call(tool_id, name, args, status="interrupted")
            case ev.ToolArgsDelta(id=tool_id, text=text) if tool_id in calls:
                pieces.setdefault(tool_id, []).append(text)
            case ev.ToolFinished(id=tool_id, status=status, result=result) if tool_id in calls:
                call = calls[tool_id]
                args = as_object("".join(pieces.pop(tool_id, ()))) if call.args is None else call.args
                calls[tool_id] = msgspec.structs.replace(call, args=args or None, result=result, status=status)
            case ev.Message(role="assistant", text=text):
                turns.append(Turn(ASSISTANT, text, tuple(calls.values())))
                calls, answers = {}, answers + 1
            case _:
                pass
    if calls or not answers:
        turns.append(Turn(ASSISTANT, "" if answers else answer, tuple(calls.values())))
    return turns


State = Plain | bytes
"""What a checkpoint gives back: JSON-like data, or the bytes that it was made of."""

VERSION = 1
MAX_BYTES = 64 * 1024 * 1024
"""The largest state that is kept."""


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """A state as it is stored."""

    version: int
    state: msgspec.Raw


class Restored(msgspec.Struct, frozen=True):
    """What a run resumes from: a packed state with what was used before it, or a conversation.

    `journal` has what earlier runs, `journal_of` in words, were answered since that state, and `before` what they were
    answered until then. With a `speed` it is a cassette, and nothing else answers: so many times as fast as it was
    recorded.
    """

    state: bytes | None = None
    usage: ev.Usage = ev.Usage()
    tools: int = 0
    history: tuple[Turn, ...] = ()
    journal: tuple[Entry, ...] = ()
    journal_of: str = ""
    speed: float | None = None
    before: tuple[Entry, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Kept)


def pack(state: object) -> bytes:
    """Return a state as bytes: bytes as they are, everything else as JSON-like data."""
    body = _encoder.encode(bytes(state) if isinstance(state, _BYTES) else plain(state))
    return _encoder.encode(_Kept(VERSION, msgspec.Raw(body)))


def unpack(blob: bytes) -> State:
    """Return the state; raises `NotResumable` if a newer nbrun wrote it, or it is damaged."""
    try:
        kept = _decoder.decode(blob)
        if kept.version > VERSION:
            raise NotResumable("its checkpoint was written by a newer nbrun; update nbrun")
        state: State = msgspec.msgpack.decode(kept.state)
    except (msgspec.MsgspecError, RecursionError, TypeError, ValueError):
        raise NotResumable("its checkpoint is damaged; retry the run to start over") from None
    return state


def stand_ins(state: State) -> list[str]:
    """Return the types of the parts of a state that could not be saved, and come back as their `repr`."""
    match state:
        case {"$type": str(name), "$repr": str(), **others} if not others:
            return [name]
        case dict():
            return [name for part in state.values() for name in stand_ins(part)]
        case list():
            return [name for part in state for name in stand_ins(part)]
        case _:
            return []


def redacted(blob: bytes, redactor: Redactor) -> bytes:
    """Return a packed state with every known secret in it replaced, as everywhere in the store."""
    if not redactor.concerns(blob):
        return blob
    state = unpack(blob)
    return pack(redactor.raw(state) if isinstance(state, bytes) else redactor.data(state))


_BYTES = (bytes, bytearray, memoryview)
