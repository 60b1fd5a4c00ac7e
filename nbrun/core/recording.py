"""A run as a file: JSON lines, the first for the run itself, then one for each event; and that file as an agent.

    {"nbrun": "run", "version": 1, "run": {"run_id": "run-seq-0", "name": "poet", …}}
    {"seq": 0, "ts": 1700000000.0, "attempt": 0, "parent": null, "type": "run.created", "data": {…}}

UTF-8. Values that JSON lacks are written as an object with one key: `{"$float": "nan"}` (also `inf` and `-inf`),
`{"$bytes": base64}`. A file may hold several runs, one after another. Reading runs no code from the file and trusts
nothing in it.

The same as one JSON document is an array of `{"nbrun": "run", "version": 1, "run": …, "record": …, "events": […]}`;
`record` is the fold of the events, for other readers; it is not read back.
"""

from __future__ import annotations

import base64
import binascii
import functools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nbrun.core import events as ev
from nbrun.core.errors import BadOption, BadRecording
from nbrun.core.record import RunRecord, fold
from nbrun.core.values import Plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from nbrun.core.artifacts import Artifact

VERSION = 1
MAX_LINE = 64 * 1024 * 1024
"""Bytes of one line: longer ones are not events of nbrun."""
MAX_RUN = 256 * 1024 * 1024
"""Bytes of one run, and of a document."""
MAX_DEPTH = 64
MAX_TYPE = 200
"""Characters of an event's type."""

_FLOAT, _BYTES = "$float", "$bytes"
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a recording: the run as a whole."""

    run_id: str
    number: int | None = None
    name: str = ""
    agent: str = ""
    model: str | None = None
    prompt: str = ""
    tags: dict[str, str] = {}
    options: dict[str, Plain] = {}
    session_id: str = ""
    created_at: float = 0.0


MAX_SPEED = math.inf


class Replay:
    """A recorded run, to be run as an agent: `nbrun.start(Replay("poet.jsonl"))` shows it once more.

    Parameters
    ----------
    source : a recording, which `run.save_recording()` writes, or what `load()` returned.
    speed : how much faster than it was: 1, 10 …; "max" leaves no time between its events.

    Raises
    ------
    BadRecording
        The file is not a valid recording.
    BadOption
        The speed is invalid.
    """

    def __init__(self, source: str | Path | tuple[Header, Sequence[ev.RunEvent]], speed: float | str = 1.0) -> None:
        self.speed = read_speed(speed)
        self.header, self.events = source if isinstance(source, tuple) else read(Path(source))


def read_speed(speed: float | str) -> float:
    """Return a speed as a number; raises `BadOption` if it isn't one greater than zero."""
    try:
        number = MAX_SPEED if speed == "max" else float(speed)
    except (TypeError, ValueError):
        number = 0.0
    if not number > 0:
        raise BadOption(f"speed must be 'max' or a number greater than 0, such as 10, not {speed!r}")
    return number


class _First(msgspec.Struct, frozen=True):
    """The first line."""

    nbrun: str
    version: int
    run: Any = None


class _Line(msgspec.Struct, frozen=True):
    """Every other line."""

    seq: int
    ts: float
    attempt: int
    parent: str | None
    type: str
    data: Any = None


class _Entry(msgspec.Struct, frozen=True):
    """A run in a document."""

    run: msgspec.Raw
    events: list[msgspec.Raw]
    nbrun: str = "run"
    version: int = VERSION


_encoder = msgspec.json.Encoder()
_first = msgspec.json.Decoder(_First)
_line = msgspec.json.Decoder(_Line)
_document = msgspec.json.Decoder(list[_Entry])


def header(record: RunRecord) -> Header:
    """Return the header of a run's recording."""
    return Header(**{name: getattr(record, name) for name in Header.__struct_fields__})


def dump(record: RunRecord, events: Iterable[ev.RunEvent]) -> Iterator[bytes]:
    """Yield the lines of a recording, each with its end; `events` are all of the run, by seq."""
    run = _written(msgspec.to_builtins(header(record), builtin_types=(bytes,)))
    yield _encoder.encode(_First("run", VERSION, run)) + b"\n"
    for event in events:
        body = event.data.body if isinstance(event.data, ev.Unknown) else event.data
        data = _written(msgspec.to_builtins(body, builtin_types=(bytes,), str_keys=True))
        line = _Line(event.seq, event.ts, event.attempt, event.parent, event.type, data)
        yield _encoder.encode(line) + b"\n"


def dump_entry(record: RunRecord, events: Iterable[ev.RunEvent]) -> Iterator[bytes]:
    """Yield the parts of a run's entry in a document; parameters as those of `dump`."""
    lines = dump(record, events)
    record = msgspec.structs.replace(record, is_unsigned=False)  # of the reader here, not of the run
    whole = _written(msgspec.to_builtins(record, builtin_types=(bytes,), str_keys=True))
    yield next(lines).rstrip(b"}\n") + b'},"record":' + _encoder.encode(whole) + b',"events":[\n'
    for number, line in enumerate(lines):
        yield (b"," if number else b"") + line
    yield b"]}"


def _line_number(number: int) -> str:
    return f"line {number}"


def load(lines: Iterable[bytes], place: Callable[[int], str] = _line_number) -> tuple[Header, list[ev.RunEvent]]:
    """Return the content of a recording: its header, and the events by seq, without a gap.

    An event of an unknown type, or one that does not fit its type, is `Unknown`, with everything that was written.
    The events can be folded: `fold(events)` does not raise.

    Parameters
    ----------
    place : what error messages call the line with this number, counted from 1.

    Raises
    ------
    BadRecording
        The file is not a valid recording, or a newer nbrun made it.
    """
    numbered = enumerate(lines, 1)
    found = _read_header(place(1), next(numbered, (1, b""))[1])
    events: list[ev.RunEvent] = []
    for number, line in numbered:
        if line.strip():
            events.append(_read_event(found.run_id, place(number), line))
    if not events or not isinstance(events[0].data, ev.RunCreated):
        raise BadRecording("the recording does not begin with the creation of its run; export it again")
    try:
        fold(events)
    except (TypeError, ValueError) as error:
        raise BadRecording(f"the recording is inconsistent: {error}") from None
    if any(event.type == ev.RunCreated.TYPE for event in events[1:]):
        raise BadRecording("the recording creates its run twice")
    return found, events


_HEADER = re.compile(rb'\s*\{\s*"nbrun"\s*:')


def load_all(lines: Iterable[bytes]) -> Iterator[tuple[Header, list[ev.RunEvent]]]:
    """Yield the content of several recordings in one file; see `load`."""
    block: list[bytes] = []
    first, size = 1, 0

    def loaded() -> tuple[Header, list[ev.RunEvent]]:
        return load(block, lambda number: _line_number(first + number - 1))

    for number, line in enumerate(lines, 1):
        if block and _HEADER.match(line):
            yield loaded()
            block, size = [], 0
        if not block:
            if not line.strip():
                continue
            first = number
        block.append(_bounded(_line_number(number), line))
        size += len(line)
        if size > MAX_RUN:
            raise BadRecording(f"the run of {_line_number(first)} is longer than {MAX_RUN:,} bytes")
    yield loaded()


def load_document(document: bytes) -> Iterator[tuple[Header, list[ev.RunEvent]]]:
    """Yield the content of the recordings in a JSON document; see `load`."""
    if len(document) > MAX_RUN:
        raise BadRecording(f"the document is longer than {MAX_RUN:,} bytes; export it as jsonl")
    try:
        entries = _document.decode(document)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise BadRecording(f"not a document of recorded runs: {error}") from None
    for number, entry in enumerate(entries, 1):
        first = _encoder.encode(_First(entry.nbrun, entry.version, entry.run))
        yield load([first, *map(bytes, entry.events)], functools.partial(_entry_part, number))


def _entry_part(run: int, line: int) -> str:
    return f"run {run}" if line == 1 else f"event {line - 2} of run {run}"


def read(path: Path) -> tuple[Header, list[ev.RunEvent]]:
    """Return the content of the recording in this file; raises `BadRecording` if it is missing or not valid."""
    try:
        with path.open("rb") as file:
            return load(iter(lambda: file.readline(MAX_LINE + 1), b""))
    except OSError as error:
        raise BadRecording(f"{path} cannot be read: {error.strerror or error}") from None
    except BadRecording as error:
        raise BadRecording(f"{path}: {error}") from None


def _read_header(place: str, line: bytes) -> Header:
    try:
        first = _first.decode(_bounded(place, line))
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        first = None
    if first is None or first.nbrun != "run":
        raise BadRecording(f'not a valid recording: its first line is not {{"nbrun": "run", …}} ({place})')
    if first.version != VERSION:
        raise BadRecording(f"the recording has version {first.version}, this nbrun reads {VERSION}; update nbrun")
    try:
        return msgspec.convert(_read(first.run), Header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRecording(f"{place} does not describe a run: {error}") from None


def _read_event(run_id: str, place: str, line: bytes) -> ev.RunEvent:
    try:
        read = _line.decode(_bounded(place, line))
        data = _data(read.type, _read(read.data))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRecording(f"{place} is not a valid event: {error}") from None
    if not 0 <= read.attempt < 2**31 or not 0 <= read.ts < 1e11 or not 0 < len(read.type) <= MAX_TYPE:
        raise BadRecording(f"{place} is not a valid event: attempt, time or type is out of range")
    return ev.RunEvent(read.seq, read.ts, run_id, read.attempt, data, read.parent)


def _bounded(place: str, line: bytes) -> bytes:
    if len(line) > MAX_LINE:
        raise BadRecording(f"{place} is longer than {MAX_LINE:,} bytes")
    return line


def _data(kind: str, body: Plain) -> ev.EventData:
    cls = ev.TYPES.get(kind)
    if cls is None:
        return ev.Unknown(kind, body)
    try:
        return msgspec.convert(body, cls)
    except msgspec.ValidationError:
        if kind in ev.DELTA_TYPES:  # a store keeps many of them in one row, and only their text
            raise
        return ev.Unknown(kind, body)


# --- values that JSON lacks --------------------------------------------------------------------------


def _written(value: Any) -> Any:
    """Return data as JSON can hold it."""
    match value:
        case float() if not math.isfinite(value):
            return {_FLOAT: str(value)}
        case bytes():
            return {_BYTES: base64.b64encode(value).decode()}
        case dict():
            return {str(key): _written(part) for key, part in value.items()}
        case list() | tuple():
            return [_written(part) for part in value]
        case _:
            return value


def _read(value: Any, depth: int = 0) -> Any:
    """Return the value that was written; raises ValueError for what no store can hold."""
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    match value:
        case bool():
            return value
        case int() if not -(2**63) <= value < 2**64:
            raise ValueError("a number in it is too large")
        case {"$float": str(word)} if len(value) == 1 and word in _FLOATS:
            return _FLOATS[word]
        case {"$bytes": str(word)} if len(value) == 1:
            try:
                return base64.b64decode(word, validate=True)
            except binascii.Error as error:
                raise ValueError(f"bytes in it cannot be read ({error})") from None
        case dict():
            return {key: _read(part, depth + 1) for key, part in value.items()}
        case list():
            return [_read(part, depth + 1) for part in value]
        case _:
            return value


class RecordedError(Exception):
    """An error of a recorded run: its replay fails in the same way."""

    def __init__(self, info: ev.ErrorInfo) -> None:
        super().__init__(str(info))
        self.info = info


class Exported(NamedTuple):
    """A run: its whole record, all of its events by seq, and its artifacts."""

    record: RunRecord
    events: Iterable[ev.RunEvent]
    artifacts: Sequence[Artifact] = ()
