"""What a model call is answered from, and what is kept of its answer: the journal of its run.

A request is known by its method, its address without secrets and its body, in which the order of keys doesn't matter.
Of an answer, the status, a few harmless headers and the body are kept, decoded, in the pieces that came. Nothing is
kept of the request's headers, and of the body only enough to say what differs in another one.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.agents import RunContext, clean_text
from nbrun.core import StoreError, counted, shown, size_words
from nbrun.core.journal import CALL, MAX_ANSWER, Entry, Journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from nbrun.core import Redactor

HEADERS = ("content-type", "x-request-id", "request-id")
"""The headers of an answer that are kept."""
_SECRET_PARAMETER = re.compile(
    r"key|token|secret|passw|passphrase|pwd|credential|auth|signature|(?:^|[_-])sig$|^code$", re.IGNORECASE
)
"""Parameters that are left out: better one too many than a key in a file that is passed on."""

# Where the body of a stream is complete though its connection was not read to the end, and where it tells an error.
_IS_OVER = re.compile(
    rb'^data: ?\[DONE\]|"type": ?"(?:message_stop|response\.(?:completed|incomplete))"|"done": ?true', re.MULTILINE
)
_HAS_FAILED = re.compile(rb'^(?:event: ?error\b|(?:data: ?)?\{"(?:type": ?"error"|error": ?[{"]))', re.MULTILINE)
_TAIL = 4_000
_ENCODED = frozenset({"", "identity"})

_SHORT = 80  # characters of a field's name, and of the model's, that an outline keeps
_LINE = 500  # characters of what is said of a difference: one of the two may be from a cassette
_sorted = msgspec.json.Encoder(order="sorted").encode
_pack = msgspec.msgpack.Encoder().encode


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a model call; each piece of its body comes with its time, in milliseconds since the request."""

    status: int
    headers: list[tuple[str, str]]
    pieces: list[tuple[float, bytes]]


class Pieces:
    """The body of an answer that is there already; that of a cassette comes in its time."""

    def __init__(self, pieces: list[tuple[float, bytes]], run: RunContext) -> None:
        self._pieces, self._run = pieces, run
        self._began = run.clock.monotonic()
        self._speed = math.inf if (journal := run.journal) is None or journal.speed is None else journal.speed

    def _wait_s(self, ms: float) -> float:
        return self._began + ms / 1000 / self._speed - self._run.clock.monotonic()

    def __iter__(self) -> Iterator[bytes]:
        for ms, piece in self._pieces:
            if (wait_s := self._wait_s(ms)) > 0:
                self._run.sleep(wait_s)
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for ms, piece in self._pieces:
            if (wait_s := self._wait_s(ms)) > 0:
                await asyncio.sleep(wait_s)
            yield piece

    def close(self) -> None:
        """Do nothing: no connection is held."""

    async def aclose(self) -> None:
        """Do nothing."""


class _Outline(msgspec.Struct, frozen=True, array_like=True):
    """A request in short: its address, and each field as a number, the model's name or a hash; of a list, its parts."""

    address: str
    fields: dict[str, Any]


_answers = msgspec.msgpack.Decoder(Answer)
_outlines = msgspec.msgpack.Decoder(_Outline)


class Asked:
    """A request to a model, as a journal knows it."""

    __slots__ = ("_body", "address", "digest")

    def __init__(
        self, method: str, address: str, parameters: Iterable[tuple[str, str]], body: bytes, journal: Journal
    ) -> None:
        """Read a request; `parameters` are those of its address."""
        redactor = journal.redactor
        shown = "&".join(f"{name}={value}" for name, value in sorted(parameters) if not _SECRET_PARAMETER.search(name))
        self.address = redactor.text(f"{method} {address}?{shown}" if shown else f"{method} {address}")
        self._body, canonical = _canonical(body)
        if redactor.concerns(canonical):
            self._body, canonical = _canonical(redactor.raw(canonical))
        self.digest = hashlib.sha256(self.address.encode(errors="replace") + b"\n" + canonical).digest()

    @property
    def outline(self) -> _Outline:
        """The request in short."""
        body = self._body if isinstance(self._body, dict) else {"body": self._body}
        return _Outline(self.address, {clean_text(name)[:_SHORT]: _brief(name, value) for name, value in body.items()})


def _canonical(body: bytes) -> tuple[Any, bytes]:
    """Return what a body holds, and the bytes that are the same for the same."""
    try:
        value = msgspec.json.decode(body)
        return value, _sorted(value)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):  # no JSON: then as it is
        return body.hex(), body


def _brief(name: str, value: Any) -> Any:
    """Return a field so that another one can be told from it: its text could be a prompt, or a key."""
    if isinstance(value, list):
        return [_hash(part) for part in value]
    if name == "model" and isinstance(value, str):
        return value[:_SHORT]
    is_number = isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)  # no greater one is packed
    return value if value is None or is_number else {"": _hash(value)}


def _hash(value: Any) -> bytes:
    return hashlib.sha256(_sorted(value)).digest()[:8]


def difference(known: bytes, asked: Asked) -> str:
    """Return what differs in a request from a known one, given its packed outline, in a few words."""
    try:
        before = _outlines.decode(known)
    except (msgspec.MsgspecError, RecursionError):
        return "another request"
    now = asked.outline
    if before.address != now.address:
        return shown(f"{now.address} instead of {before.address}", _LINE)
    found: list[str] = []
    for name in sorted(before.fields.keys() | now.fields.keys(), key=_by_interest):
        one, other = before.fields.get(name), now.fields.get(name)
        if one == other:
            continue
        if isinstance(one, list) and isinstance(other, list):
            found.append(_difference_of_lists(name, one, other))
        elif isinstance(one, dict | list) or isinstance(other, dict | list):
            found.append(f"{name} differs")
        else:
            found.append(f"{name} is {other!r} instead of {one!r}")
    return shown(", ".join(found[:3]), _LINE) or "the same request once more"


def _by_interest(name: str) -> tuple[bool, bool, str]:
    return name != "model", name not in ("messages", "input", "contents", "system", "tools"), name


def _difference_of_lists(name: str, one: list[Any], other: list[Any]) -> str:
    at = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if at is not None:
        return f"{name}[{at}] differs"
    more = len(other) - len(one)
    return f"{name} has {counted(abs(more), 'item')} {'more' if more > 0 else 'less'}"


def find_answer(journal: Journal, asked: Asked, run: RunContext) -> Answer | None:
    """Return what the journal answers to a request, None if its provider has to; the log says where that begins."""
    had_answers = journal.is_answering
    entry = journal.find(CALL, asked.digest)
    if entry is not None:
        try:
            return _answers.decode(entry.answer)
        except (msgspec.MsgspecError, RecursionError):  # signed, so it is of another version
            run.log(f"an answer in the journal of {journal.source} can't be read; the model is asked again", "warning")
            return None
    if journal.speed is not None:
        return _refused(journal, asked, run)
    if (had_answers or journal.given or journal.is_cut) and not journal.has_diverged:
        journal.has_diverged = True
        unused = journal.unused(CALL)
        given = f"{counted(journal.given, 'answer')} came from the journal of {journal.source}"
        if unused:
            run.log(f"{given}; this request is not in it: {difference(unused[0].outline, asked)}", "warning")
        elif journal.is_cut:
            run.log(f"{given}, which is incomplete; from here on the model is asked", "warning")
        else:
            run.log(f"{given}, which was all of it; from here on the model is asked")
    return None


def _refused(journal: Journal, asked: Asked, run: RunContext) -> Answer:
    """Return an error in place of an answer that a cassette hasn't: no client tries again after it."""
    unused = journal.unused(CALL)
    what = difference(unused[0].outline, asked) if unused else "all of its answers were given"
    line = f"this request is not in {journal.source}: {what}"
    run.log(line, "warning")
    error = {"type": "invalid_request_error", "code": 400, "status": "INVALID_ARGUMENT", "message": line}
    body = msgspec.json.encode({"type": "error", "error": error})
    return Answer(400, [("content-type", "application/json")], [(0.0, body)])


Decode = Callable[[str, list[bytes], int], list[bytes]]
"""Returns the pieces of a body with this content encoding, decoded; raises `StoreError` if that fails, or they are
more than so many bytes."""


class Tape:
    """Records the answer to one call of a run. Threads: of whoever reads the answer.

    Parameters
    ----------
    decode : decodes the pieces of a compressed body.
    """

    __slots__ = ("_asked", "_decode", "_encoding", "_head", "_journal", "_pieces", "_run", "_size")

    def __init__(self, journal: Journal, asked: Asked, run: RunContext, decode: Decode) -> None:
        self._journal, self._asked, self._run, self._decode = journal, asked, run, decode
        self._head: tuple[int, list[tuple[str, str]]] = (0, [])
        self._encoding = ""
        self._pieces: list[tuple[float, bytes]] = []
        self._size = 0

    def begin(self, status: int, headers: Any, encoding: str) -> None:
        """Note the head of the answer."""
        self._encoding = encoding.strip().lower()
        self._head = status, [(name, headers[name]) for name in HEADERS if name in headers]

    def add(self, ms: float, piece: bytes) -> None:
        """Note a piece of the body, so many milliseconds after the request."""
        self._size += len(piece)
        if self._size <= MAX_ANSWER:
            self._pieces.append((ms, piece))
        else:
            self._pieces.clear()

    @property
    def is_over(self) -> bool:
        """Whether the body says that it is complete; its reader may then leave the rest."""
        tail = b"".join(piece for _, piece in self._pieces[-8:])[-_TAIL:]
        return _IS_OVER.search(tail) is not None

    def keep(self) -> None:
        """Keep the answer, which is complete."""
        if not self._journal.keeps:
            return
        if self._size > MAX_ANSWER:
            self._run.log(f"the answer to a model call is not kept: it has {size_words(self._size)}", "warning")
            return
        try:
            redactor = self._journal.redactor
            pieces, whole = self._clean(redactor)
            if b"error" not in whole or not _HAS_FAILED.search(whole):  # nearly none has that word
                status, headers = self._head
                kept = [(name, redactor.text(clean_text(value))) for name, value in headers]
                answer = _pack(Answer(status, kept, pieces))
                outline = _pack(self._asked.outline)
                self._journal.keep(Entry(CALL, self._asked.digest, self._run.clock.now(), answer, outline))
        except (OSError, StoreError) as error:
            self._run.log(f"the answer to a model call is not kept: {error}", "warning")

    def _clean(self, redactor: Redactor) -> tuple[list[tuple[float, bytes]], bytes]:
        """Return the pieces, decoded, without secrets; and all of them in one."""
        pieces = self._pieces
        if self._encoding not in _ENCODED:
            last = pieces[-1][0] if pieces else 0.0
            decoded = self._decode(self._encoding, [piece for _, piece in pieces], MAX_ANSWER)
            pieces = [(last, piece) for piece in decoded]
        whole = b"".join([piece for _, piece in pieces])
        if not redactor.concerns(whole) or (clean := redactor.raw(whole)) == whole:
            return pieces, whole
        return [(pieces[-1][0], clean)], clean  # a secret may have come in two pieces
