"""The forms in which providers take requests and report usage: one table, and one reader of bodies.

A body is hostile input. It is parsed into the few fields that are needed, within limits; one that is broken, too large
or in an unknown encoding loses its usage and nothing else.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import unquote

import msgspec

from nbrun.core import clean_text
from nbrun.core.events import Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_REQUEST = 32_000_000
MAX_BODY = 16_000_000
MAX_LINE = 1_000_000
MAX_INFLATED = 100_000_000
MAX_OBJECTS = 200_000  # in a body that is a list
_PIECE = 1_000_000  # bytes that are decompressed at a time

_Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class Form(NamedTuple):
    """One provider's form: which requests are in it, and who is asked if the host doesn't tell."""

    path: re.Pattern[str]
    provider: str = ""


FORMS = (
    Form(re.compile(r"/chat/completions$")),
    Form(re.compile(r"/responses$")),
    Form(re.compile(r"/embeddings$")),
    Form(re.compile(r"/v1/messages$"), "anthropic"),
    Form(re.compile(r"/models/(?P<model>[^/:]+):(?:stream)?[gG]enerateContent$"), "google"),
    Form(re.compile(r"/api/(?:chat|generate|embed)$"), "ollama"),
)

_PROVIDERS = {
    "api.openai.com": "openai",
    "openai.azure.com": "azure",
    "api.anthropic.com": "anthropic",
    "googleapis.com": "google",
    "api.mistral.ai": "mistral",
    "api.groq.com": "groq",
    "api.deepseek.com": "deepseek",
    "openrouter.ai": "openrouter",
    "api.x.ai": "x-ai",
    "api.cohere.com": "cohere",
    "api.together.xyz": "together",
    "api.fireworks.ai": "fireworks",
}
"""Providers by the end of their host's name, as genai-prices calls them."""


class _Asked(msgspec.Struct):
    model: str | None = None


class Target(NamedTuple):
    """The model that a request is for."""

    provider: str
    model: str


def find_target(method: str, host: str, path: str, content: bytes | None) -> Target | None:
    """Return whom a request asks; None if it is no model call. `content` is its body, None if it isn't known."""
    if method != "POST":
        return None
    for form in FORMS:
        if found := form.path.search(path):
            break
    else:
        return None
    model = found.groupdict().get("model") or ""
    if not model and content is not None and len(content) <= MAX_REQUEST:
        try:
            model = _asked.decode(content).model or ""
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            model = ""
    known = (name for end, name in _PROVIDERS.items() if host == end or host.endswith(f".{end}"))
    provider = next(known, form.provider or host)
    return Target(clean_text(provider)[:80], clean_text(unquote(model))[:200])


class _Details(msgspec.Struct):
    cached_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


class _Used(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None

    def usage(self) -> Usage:
        # Anthropic's input tokens are without those that are read from a cache, or written to it.
        cached = (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)
        read = self.prompt_tokens_details or self.input_tokens_details
        written = self.completion_tokens_details or self.output_tokens_details
        return Usage(
            input_tokens=(self.prompt_tokens or self.input_tokens or 0) + cached,
            output_tokens=self.completion_tokens or self.output_tokens or 0,
            cache_read_tokens=self.cache_read_input_tokens or (read and read.cached_tokens) or 0,
            reasoning_tokens=(written and written.reasoning_tokens) or 0,
        )


class _GoogleUsed(msgspec.Struct):
    promptTokenCount: _Count | None = None
    candidatesTokenCount: _Count | None = None
    cachedContentTokenCount: _Count | None = None
    thoughtsTokenCount: _Count | None = None

    def usage(self) -> Usage:
        thoughts = self.thoughtsTokenCount or 0
        return Usage(
            input_tokens=self.promptTokenCount or 0,
            output_tokens=(self.candidatesTokenCount or 0) + thoughts,
            cache_read_tokens=self.cachedContentTokenCount or 0,
            reasoning_tokens=thoughts,
        )


class _Part(msgspec.Struct):
    """What the fields below are in, where a form wraps them once more."""

    usage: _Used | None = None


class _Body(msgspec.Struct):
    """The fields in which all the forms report usage; they have no name in common with two meanings."""

    usage: _Used | None = None  # OpenAI, Anthropic
    message: _Part | str | None = None  # Anthropic, at the begin of a stream
    response: _Part | str | None = None  # OpenAI's responses, streamed
    usageMetadata: _GoogleUsed | None = None
    prompt_eval_count: _Count | None = None  # Ollama
    eval_count: _Count | None = None

    def usages(self) -> Iterator[Usage]:
        for part in (self, self.message, self.response):
            if isinstance(part, _Body | _Part) and part.usage is not None:
                yield part.usage.usage()
        if self.usageMetadata is not None:
            yield self.usageMetadata.usage()
        if self.prompt_eval_count is not None or self.eval_count is not None:
            yield Usage(input_tokens=self.prompt_eval_count or 0, output_tokens=self.eval_count or 0)


_asked = msgspec.json.Decoder(_Asked)
_bodies = msgspec.json.Decoder(_Body | list[_Body])  # Gemini streams a list, if it isn't asked for events
_USED = re.compile(rb'"usage(?:Metadata)?"\s*:\s*\{|"(?:prompt_)?eval_count"')
_LIST = re.compile(rb"\s*\[")
_STREAMS = ("text/event-stream", "application/x-ndjson", "application/jsonl", "application/stream+json")


class BodyReader:
    """Reads the usage out of a response's body, piece by piece. Threads: one at a time."""

    __slots__ = ("_inflate", "_inflated", "_is_lines", "_is_lost", "_kept", "_size", "usage")

    def __init__(self, content_type: str, encoding: str) -> None:
        self.usage: Usage | None = None
        """The totals that were reported so far; None if none were."""
        self._is_lines = content_type.partition(";")[0].strip().lower() in _STREAMS
        encoding = encoding.strip().lower()
        self._inflate: Any = zlib.decompressobj(47) if encoding in ("gzip", "x-gzip", "deflate") else None
        self._is_lost = self._inflate is None and encoding not in ("", "identity")
        self._kept = bytearray()
        self._size = self._inflated = 0

    def feed(self, piece: bytes) -> bool:
        """Take a piece of the body; return whether more usage was reported in it."""
        if self._is_lost:
            return False
        before = self.usage
        if self._inflate is None:
            self._take(piece)
            return self.usage is not before
        while piece and not self._is_lost and not self._inflate.eof:  # it would keep all that comes after the end
            try:
                more = self._inflate.decompress(piece, _PIECE)
            except zlib.error:
                self._lose()
                break
            piece = self._inflate.unconsumed_tail
            self._inflated += len(more)
            if self._inflated > MAX_INFLATED:
                self._lose()
            else:
                self._take(more)
        return self.usage is not before

    def close(self) -> bool:
        """Read what is left at the body's end; return whether usage was reported in it."""
        before = self.usage
        if not self._is_lost and self._kept:
            self._read(bytes(self._kept))
        self._lose()
        return self.usage is not before

    def _lose(self) -> None:
        self._is_lost = True
        self._kept.clear()

    def _take(self, piece: bytes) -> None:
        if self._is_lines:
            self._take_lines(piece)
            return
        self._size += len(piece)
        if self._size > MAX_BODY:
            self._lose()
        else:
            self._kept += piece

    def _take_lines(self, piece: bytes) -> None:
        if not self._size and piece.endswith(b"\n") and _USED.search(piece) is None:  # nearly all of them
            return
        first, newline, rest = piece.partition(b"\n")
        if newline:
            self._read(bytes(self._kept) + first)
            self._kept, self._size = bytearray(), 0
            lines, _, rest = rest.rpartition(b"\n")
            at = 0
            while found := _USED.search(lines, at):  # not line by line: there may be a million empty ones
                start, at = lines.rfind(b"\n", at, found.start()) + 1, lines.find(b"\n", found.start())
                self._read(lines[start : None if at < 0 else at])
                if at < 0:
                    break
        else:
            rest = first
        # A line that is too long is left out; its end is looked for all the same.
        if rest and self._size <= MAX_LINE:
            self._kept += rest
        self._size += len(rest)

    def _read(self, text: bytes) -> None:
        """Read a body, or a line of one, if it is about usage."""
        if (self._is_lines and len(text) > MAX_LINE) or _USED.search(text) is None:
            return
        if _LIST.match(text) and text.count(b"{") > MAX_OBJECTS:  # each would be made, at many times its size
            return
        try:
            read = _bodies.decode(text.removeprefix(b"data:") if self._is_lines else text)
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return
        for body in read if isinstance(read, list) else (read,):
            for usage in body.usages():
                self.usage = _merged(self.usage, usage)


def _merged(before: Usage | None, usage: Usage) -> Usage:
    """Return both together: a stream reports totals, some of them once only."""
    if before is None:
        return usage
    merged = Usage(
        max(before.input_tokens, usage.input_tokens),
        max(before.output_tokens, usage.output_tokens),
        max(before.cache_read_tokens, usage.cache_read_tokens),
        max(before.reasoning_tokens, usage.reasoning_tokens),
    )
    return before if merged == before else merged
