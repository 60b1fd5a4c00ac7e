"""The forms in which providers take requests and report usage: one table, and one reader of bodies.

A body is hostile input. It is parsed into the few fields that are needed, within limits; one that is broken, too large
or in an unknown encoding loses its usage and nothing else.
"""

from __future__ import annotations

import re
import sys
import zlib
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import unquote

import msgspec

from nbrun.core import clean_text
from nbrun.core.events import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_REQUEST = 32_000_000
MAX_BODY = 16_000_000
MAX_LINE = 1_000_000
MAX_INFLATED = 100_000_000
MAX_OBJECTS = 200_000  # in a body that is a list
_PIECE = 1_000_000  # bytes that are decompressed at a time
_SLICE = 256  # bytes of zstd that are decompressed at a time: 4 of them may make 128 KiB
_WINDOW = 2**23  # bytes that zstd may look back

_Count = Annotated[float, msgspec.Meta(ge=0, le=1e12)]  # some servers write 7.0


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
    # Bedrock; its streams are not text, so their usage is unknown.
    Form(re.compile(r"/model/(?P<model>[^/]+)/(?:converse|invoke)(?:-stream|-with-response-stream)?$"), "aws"),
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
    inputTokens: _Count | None = None  # Bedrock
    outputTokens: _Count | None = None
    cacheReadInputTokens: _Count | None = None
    cacheWriteInputTokens: _Count | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None

    def tokens(self) -> _Tokens:
        # Input tokens of Anthropic and Bedrock are without those that are read from a cache, or written to it.
        cache_read = self.cache_read_input_tokens or self.cacheReadInputTokens or 0
        cache_written = self.cache_creation_input_tokens or self.cacheWriteInputTokens or 0
        read = self.prompt_tokens_details or self.input_tokens_details or _Details()
        written = self.completion_tokens_details or self.output_tokens_details or _Details()
        return _tokens(
            (self.prompt_tokens or self.input_tokens or self.inputTokens or 0) + cache_read + cache_written,
            self.completion_tokens or self.output_tokens or self.outputTokens,
            cache_read or read.cached_tokens,
            written.reasoning_tokens,
            cache_written,
        )


class _GoogleUsed(msgspec.Struct):
    promptTokenCount: _Count | None = None
    toolUsePromptTokenCount: _Count | None = None
    candidatesTokenCount: _Count | None = None
    cachedContentTokenCount: _Count | None = None
    thoughtsTokenCount: _Count | None = None

    def tokens(self) -> _Tokens:
        thoughts = self.thoughtsTokenCount or 0
        return _tokens(
            (self.promptTokenCount or 0) + (self.toolUsePromptTokenCount or 0),
            (self.candidatesTokenCount or 0) + thoughts,
            self.cachedContentTokenCount,
            thoughts,
        )


class _OllamaUsed(msgspec.Struct):
    prompt_eval_count: _Count | None = None
    eval_count: _Count | None = None

    def tokens(self) -> _Tokens:
        return _tokens(self.prompt_eval_count, self.eval_count)


class _Tokens(NamedTuple):
    input: int = 0
    output: int = 0
    cache_read: int = 0
    reasoning: int = 0
    cache_write: int = 0


def _tokens(*counts: float | None) -> _Tokens:
    return _Tokens(*(int(count or 0) for count in counts))


class _Body(msgspec.Struct):
    """The fields in which usage is reported, read one by one: one that is broken hides no other."""

    usage: msgspec.Raw = msgspec.Raw()  # OpenAI, Anthropic
    message: msgspec.Raw = msgspec.Raw()  # Anthropic, at the begin of a stream
    response: msgspec.Raw = msgspec.Raw()  # OpenAI's responses, streamed
    usageMetadata: msgspec.Raw = msgspec.Raw()


def _find_tokens(text: bytes) -> Iterator[_Tokens]:
    """Yield what a body, or a line of one, reports."""
    found: list[Any] = []
    if b'eval_count"' in text:
        found.append(_decode(_ollama_used, text))
    bodies = _decode(_bodies, _NULL.sub(b'"":null', text))
    for body in bodies if isinstance(bodies, list) else [bodies] if bodies else []:
        parts = (_decode(_bodies, part) for part in (body.message, body.response))
        raws = [body.usage, *(part.usage for part in parts if isinstance(part, _Body))]
        found += [_decode(_used, raw) for raw in raws]
        found.append(_decode(_google_used, body.usageMetadata))
    return (used.tokens() for used in found if used)


def _decode(decoder: msgspec.json.Decoder[Any], text: msgspec.Raw | bytes) -> Any:
    """Return what was read; None if there is nothing that can be."""
    try:
        return decoder.decode(text) if text else None
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return None


_asked = msgspec.json.Decoder(_Asked)
_bodies = msgspec.json.Decoder(_Body | list[_Body])  # Gemini streams a list, if it isn't asked for events
_used, _google_used, _ollama_used = map(msgspec.json.Decoder, (_Used | None, _GoogleUsed | None, _OllamaUsed))
_USED = re.compile(rb'"usage(?:Metadata)?"\s*:\s*\{|"(?:prompt_)?eval_count"')
_NULL = re.compile(rb'"usage"\s*:\s*null')  # it may come a second time; only a key has a colon after it
_LIST = re.compile(rb"\s*\[")
_STREAMS = ("text/event-stream", "application/x-ndjson", "application/jsonl", "application/stream+json")


def _make_inflate(encoding: str) -> Callable[[bytes], Iterator[bytes]] | None:
    """Return what decompresses a body, in pieces of a bounded size; None if it can't be decompressed here."""
    if encoding in ("gzip", "x-gzip", "deflate"):
        return partial(_unzip, zlib.decompressobj(47))
    try:
        if encoding == "br":
            import brotli

            return partial(_unbrotli, brotli.Decompressor())
        if encoding == "zstd":
            return partial(_unzstd, _make_unzstd())
    except ImportError:  # then most clients don't ask for it
        pass
    return None


def _make_unzstd() -> Any:
    try:
        from zstandard import ZstdDecompressor
    except ImportError:  # newer clients use this one
        name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
        return import_module(name).ZstdDecompressor()
    return ZstdDecompressor(max_window_size=_WINDOW).decompressobj()


def _unzip(state: Any, piece: bytes) -> Iterator[bytes]:
    while piece and not state.eof:  # it would keep all that comes after the end
        yield state.decompress(piece, _PIECE)
        piece = state.unconsumed_tail


def _unbrotli(state: Any, piece: bytes) -> Iterator[bytes]:
    while more := state.process(piece, output_buffer_limit=_PIECE):
        yield more
        piece = b""


def _unzstd(state: Any, piece: bytes) -> Iterator[bytes]:
    for at in range(0, len(piece), _SLICE):
        if not state.eof:
            yield state.decompress(piece[at : at + _SLICE])


class BodyReader:
    """Reads the usage out of a response's body, piece by piece. Threads: one at a time."""

    __slots__ = ("_inflate", "_inflated", "_is_lines", "_is_lost", "_kept", "_size", "_tokens", "usage")

    def __init__(self, content_type: str, encoding: str) -> None:
        self.usage: Usage | None = None
        """The totals that were reported so far; None if none were."""
        self._tokens = _Tokens()
        self._is_lines = content_type.partition(";")[0].strip().lower() in _STREAMS
        encoding = encoding.strip().lower()
        self._inflate = _make_inflate(encoding)
        self._is_lost = self._inflate is None and encoding not in ("", "identity")
        self._kept = bytearray()
        self._size = self._inflated = 0

    @property
    def cache_write_tokens(self) -> int:
        """The input tokens that were written to a cache; `usage` has them among its input."""
        return self._tokens.cache_write

    def feed(self, piece: bytes) -> bool:
        """Take a piece of the body; return whether more usage was reported in it."""
        if self._is_lost:
            return False
        if self._is_lines and self._inflate is None and not self._size and piece.endswith(b"\n"):  # nearly all of them
            start = 0 if b'eval_count"' in piece else piece.find(b'"usage')
            if start < 0 or _USED.search(piece, start) is None:
                return False
        before = self.usage
        if self._inflate is None:
            self._take(piece)
            return self.usage is not before
        try:
            for more in self._inflate(piece):
                self._inflated += len(more)
                if self._inflated > MAX_INFLATED:
                    self._lose()
                if self._is_lost:
                    break
                self._take(more)
        except Exception:  # each of the packages has an error of its own
            self._lose()
        return self.usage is not before

    def close(self) -> bool:
        """Read what is left at the body's end; return whether usage was reported in it."""
        before = self.usage
        if not self._is_lost and self._kept:
            kept, self._kept, self._size = bytes(self._kept), bytearray(), 0
            self._read(kept)
            if self.usage is None and not self._is_lines:  # of another type than it says
                self._is_lines = True
                self._take_lines(kept + b"\n")
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
        for tokens in _find_tokens(text.removeprefix(b"data:") if self._is_lines else text):
            merged = _Tokens(*map(max, tokens, self._tokens))  # a stream reports totals, some of them once only
            if self.usage is None or merged != self._tokens:
                self._tokens, self.usage = merged, Usage(*merged[:4])
