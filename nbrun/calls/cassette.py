"""Cassettes: the answers to a run's model calls in a file of JSON lines, which other runs are answered from.

The first line says what the file is. Then comes a line for each call, with its request in short, followed by a line
for each piece of the answer's body. Requests are there as hashes, so a prompt can be recognised and not read.

A cassette may be a stranger's: it is data of a bounded size, and nothing in it is run.
"""

from __future__ import annotations

import base64
import codecs
import io
import os
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from nbrun.calls.journal import Answer
from nbrun.core import BadRecording, Entry, shown, size_words
from nbrun.core.journal import CALL, MAX_ANSWER, MAX_JOURNAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FORMAT, VERSION = "nbrun-cassette", 1
KEPT = "content-type"
"""The only header of an answer that is written, and read."""
MAX_CALLS = 10_000
MAX_LINES = 1_000_000
MAX_WAIT_MS = 3_600_000.0


class _Head(msgspec.Struct, omit_defaults=True):
    format: str
    version: int = 0


class _Line(msgspec.Struct, omit_defaults=True):
    """A call, if it has a `request`; otherwise a piece of the answer to the last one."""

    request: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] = ""
    address: str = ""
    fields: dict[str, Any] = {}
    status: Annotated[int, msgspec.Meta(ge=200, le=299)] = 200
    content_type: Annotated[str, msgspec.Meta(pattern="^[ -~]{0,200}$")] = ""
    ms: Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_MS)] = 0.0
    text: str | None = None
    base64: str | None = None


_line = msgspec.json.Decoder(_Line)
_encode = msgspec.json.Encoder().encode
_answer = msgspec.msgpack.Decoder(Answer)


def dump(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Yield the lines of a cassette of these calls; everything else among the entries is left out."""
    yield _encode({"format": FORMAT, "version": VERSION}) + b"\n"
    for entry in entries:
        if entry.kind != CALL:
            continue
        answer = _answer.decode(entry.answer)
        address, fields = msgspec.msgpack.decode(entry.outline)
        kind = next((value for name, value in answer.headers if name == KEPT), "")
        short = {name: _written(value) for name, value in fields.items()}
        yield _encode(_Line(entry.request.hex(), address, short, answer.status, kind)) + b"\n"
        for ms, piece in _readable(answer.pieces):
            text = {"text": piece} if isinstance(piece, str) else {"base64": base64.b64encode(piece).decode()}
            yield _encode({"ms": round(ms, 1), **text}) + b"\n"


def _written(value: Any) -> Any:
    """Return a field of an outline in JSON, where hashes are text."""
    if isinstance(value, list):
        return [part.hex() for part in value]
    return {"": value[""].hex()} if isinstance(value, dict) else value


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [bytes.fromhex(part) for part in value]
    return {"": bytes.fromhex(value.get("", ""))} if isinstance(value, dict) else value


def _readable(pieces: list[tuple[float, bytes]]) -> Iterator[tuple[float, str | bytes]]:
    """Yield the pieces as text, if it is text as a whole: a character that is cut in two comes with its end."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        texts = [(ms, decoder.decode(piece)) for ms, piece in pieces]
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        yield from pieces
        return
    yield from ((ms, text) for ms, text in texts if text)


def load(path: str) -> tuple[Entry, ...]:
    """Return the calls of a cassette; raises `BadRecording` if the file isn't one, or can't be read."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not os.path.isfile(path):
                raise BadRecording(f"{path} is not a file")
            data = file.read(MAX_JOURNAL + 1)
    except OSError as error:
        raise BadRecording(f"the cassette {path} can't be read ({error.strerror})") from None
    if len(data) > MAX_JOURNAL:
        raise BadRecording(f"the cassette {path} is larger than {size_words(MAX_JOURNAL)}")
    try:
        return tuple(_entries(io.BytesIO(data)))
    except (msgspec.MsgspecError, IndexError, OverflowError, RecursionError, TypeError, ValueError) as error:
        why = shown(str(error), 200)
        raise BadRecording(f"{os.path.basename(path)} is not a cassette: {why}") from None


def _entries(lines: Iterator[bytes]) -> Iterator[Entry]:
    """Yield the calls of these lines; raises any of the errors above if they are not a cassette's."""
    head = msgspec.json.decode(next(lines, b""), type=_Head)
    if head.format != FORMAT:
        raise ValueError(f"its format is {head.format}")
    if head.version > VERSION:
        raise ValueError("a newer nbrun wrote it; update nbrun")
    calls: list[tuple[_Line, list[tuple[float, bytes]]]] = []
    size = 0
    for number, text in enumerate(lines):
        line = _line.decode(text)
        if line.request:
            calls.append((line, []))
            size = 0
        else:
            piece = line.text.encode() if line.text is not None else base64.b64decode(line.base64 or "", validate=True)
            calls[-1][1].append((line.ms, piece))
            size += len(piece)
        if size > MAX_ANSWER or len(calls) > MAX_CALLS or number > MAX_LINES:
            raise ValueError("it is too large")
    for at, (line, pieces) in enumerate(calls):
        headers = [(KEPT, line.content_type)] if line.content_type else []
        outline = line.address, {name: _read(value) for name, value in line.fields.items()}
        answer = msgspec.msgpack.encode(Answer(line.status, headers, pieces))
        yield Entry(CALL, bytes.fromhex(line.request), float(at), answer, msgspec.msgpack.encode(outline))
