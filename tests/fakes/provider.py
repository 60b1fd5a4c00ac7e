"""A provider of models on this machine: it speaks the forms of several, and notes when a client hangs up."""

from __future__ import annotations

import contextlib
import gzip
import json
import select
import socket
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.fakes.agents import BOUND_S

ASKED = 7
"""Tokens of every prompt, 2 of them from a cache."""
CACHED = 2
REASONED = 1
"""Tokens of an answer that are no words of it, in the forms that tell: `Form.reasoned`."""

MODEL = "gpt-4o"


class Form(NamedTuple):
    """How a provider's answer is written: a word of it, its end, all at once; the number of words is its tokens."""

    path: str
    word: Callable[[int], dict[str, Any]]
    end: Callable[[int], list[dict[str, Any]]]
    whole: Callable[[int], dict[str, Any]]
    is_events: bool = True
    cached: int = CACHED
    reasoned: int = REASONED


_REASONED = {"reasoning_tokens": REASONED}


def _chat_usage(count: int) -> dict[str, Any]:
    details = {"prompt_tokens_details": {"cached_tokens": CACHED}}
    return {"prompt_tokens": ASKED, "completion_tokens": count, **details, "completion_tokens_details": _REASONED}


def _responses_usage(count: int) -> dict[str, Any]:
    details = {"input_tokens_details": {"cached_tokens": CACHED}, "output_tokens_details": _REASONED}
    return {"input_tokens": ASKED, "output_tokens": count, **details}


def _anthropic_usage(count: int) -> dict[str, Any]:
    return {"input_tokens": ASKED - CACHED, "cache_read_input_tokens": CACHED, "output_tokens": count}


def _google(count: int) -> dict[str, Any]:
    used = {"promptTokenCount": ASKED, "cachedContentTokenCount": CACHED, "candidatesTokenCount": count - REASONED}
    used["thoughtsTokenCount"] = REASONED
    parts = [{"text": "word "}]
    return {"candidates": [{"content": {"role": "model", "parts": parts}}], "usageMetadata": used}


def _ollama(count: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": ""}
    return {"model": MODEL, "message": message, "done": True, "prompt_eval_count": ASKED, "eval_count": count}


def _choice(**fields: Any) -> dict[str, Any]:
    shared = {"id": "c-1", "created": 1700000000, "model": MODEL}
    return {**shared, "choices": [{"index": 0, "finish_reason": None, **fields}]}


FORMS = {
    "chat": Form(
        "/v1/chat/completions",
        lambda _n: {**_choice(delta={"role": "assistant", "content": "word "}), "object": "chat.completion.chunk"},
        lambda n: [{**_choice(delta={}, finish_reason="stop"), "object": "chat.completion.chunk"},
                   {"id": "c-1", "model": MODEL, "object": "chat.completion.chunk", "created": 1, "choices": [],
                    "usage": _chat_usage(n)}],
        lambda n: {**_choice(message={"role": "assistant", "content": "word " * n}, finish_reason="stop"),
                   "object": "chat.completion", "usage": _chat_usage(n)},
    ),
    "responses": Form(
        "/v1/responses",
        lambda _n: {"type": "response.output_text.delta", "delta": "word "},
        lambda n: [{"type": "response.completed", "response": {"id": "r-1", "usage": _responses_usage(n)}}],
        lambda n: {"id": "r-1", "object": "response", "output": [], "usage": _responses_usage(n)},
    ),
    "anthropic": Form(
        "/v1/messages",
        lambda n: ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "word "}} if n else
                   {"type": "message_start", "message": {"model": MODEL, "usage": _anthropic_usage(1)}}),
        lambda n: [{"type": "message_delta", "delta": {}, "usage": {"output_tokens": n}}, {"type": "message_stop"}],
        lambda n: {"type": "message", "model": MODEL, "content": [], "stop_reason": "end_turn",
                   "usage": _anthropic_usage(n)},
        reasoned=0,
    ),
    "google": Form(
        "/v1beta/models/gpt-4o:streamGenerateContent",
        lambda n: _google(n + 1),
        lambda _n: [],
        _google,
    ),
    "ollama": Form(
        "/api/chat",
        lambda _n: {"model": MODEL, "message": {"role": "assistant", "content": "word "}, "done": False},
        lambda n: [_ollama(n)],
        _ollama,
        is_events=False, cached=0, reasoned=0,
    ),
}  # fmt: skip


class Limiter:
    """A bucket of requests that fills up continuously. Threads: any."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = self._left = float(burst)
        self._clock = clock
        self._at = clock()
        self._lock = threading.Lock()

    def ask(self) -> int:
        """Return the status of one more request: 200, or 429 if the bucket is empty."""
        with self._lock:
            now = self._clock()
            self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
            self._at = now
            if self._left < 1:
                return 429
            self._left -= 1
            return 200


class QuietHandler(BaseHTTPRequestHandler):
    """Serves connections that stay open and that a client may drop, and logs nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it holds a body back for 40 ms

    def handle(self) -> None:
        """Serve a connection."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    """Takes many connections at once: with the default of 5, a client tries again a second later."""

    request_queue_size = 1024
    daemon_threads = True


class Provider:
    """The provider; a context manager. Threads: its own write its lists, a test reads them after what it waits for."""

    def __init__(self) -> None:
        self.words: int | None = 4
        """Tokens of an answer; None: they never end."""
        self.hold: threading.Event | None = None
        """If set, an answer begins only when this is."""
        self.refusals: deque[int] = deque()
        """The statuses of the next answers that are refusals."""
        self.limiter: Limiter | None = None
        """If set, it says which requests are refused."""
        self.headers: dict[str, str] = {}
        """Sent with every answer that is not streamed."""
        self.is_gzipped = False
        self.body: bytes | None = None
        """Sent in place of an answer."""
        self.content_type = "application/json"
        self.requests: list[dict[str, Any]] = []
        self.served: list[float] = []
        """When the requests came that were not refused."""
        self.refused = 0
        self.connections: list[socket.socket] = []
        self.arrived = threading.Semaphore(0)
        """Released with each request."""
        self.spoke = threading.Semaphore(0)
        """Released with each word."""
        self.hung_up = threading.Semaphore(0)
        """Released when a client has closed its connection in the middle of an answer."""
        self._server = _Server(("127.0.0.1", 0), self._make_handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="provider", daemon=True)

    def __enter__(self) -> Provider:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(BOUND_S)

    @property
    def url(self) -> str:
        """The address without a path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def drop(self) -> None:
        """Close the connections that clients keep open, and return when they are closed."""
        connections, self.connections = self.connections, []
        for connection in connections:
            with contextlib.suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self

        class Handler(QuietHandler):
            """Answers one connection's requests."""

            def setup(self) -> None:
                """Note the connection."""
                provider.connections.append(self.request)
                super().setup()

            def do_POST(self) -> None:
                """Answer in the form that the path asks for."""
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
                provider.requests.append({"path": self.path, **body})
                provider.arrived.release()
                try:
                    provider.answer(self, body)
                except ConnectionError:
                    self.close_connection = True
                    provider.hung_up.release()

            def do_GET(self) -> None:
                """Answer what is no model call: at once, or when `hold` is set."""
                provider.arrived.release()
                try:
                    provider.wait(self.connection)
                except ConnectionError:
                    self.close_connection = True
                    provider.hung_up.release()
                    return
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

        return Handler

    def wait(self, connection: socket.socket) -> None:
        """Wait until the answer may begin; raises `ConnectionError` if the client hangs up."""
        while self.hold is not None and not self.hold.is_set():
            _listen(connection, 0.01)

    def answer(self, handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        """Write the answer to one request; raises `ConnectionError` when the client has hung up."""
        self.wait(handler.connection)
        status = self.refusals.popleft() if self.refusals else 200 if self.limiter is None else self.limiter.ask()
        if status != 200:
            self.refused += 1
            _send(handler, status, "application/json", b'{"error": {"message": "not now"}}', headers=self.headers)
            return
        self.served.append(time.monotonic())
        if self.body is not None:
            _send(handler, 200, self.content_type, self.body)
            return
        path = urlsplit(handler.path).path  # of the whole address, where it is asked as a proxy
        name = "google" if path.endswith("enerateContent") else ""
        form = FORMS.get(name) or next(form for form in FORMS.values() if form.path == path)
        if not (asked.get("stream") or "alt=sse" in handler.path):
            body = json.dumps(form.whole(self.words or 0)).encode()
            _send(handler, 200, "application/json", body, is_gzipped=self.is_gzipped, headers=self.headers)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream" if form.is_events else "application/x-ndjson")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        spoken = 0
        while self.words is None or spoken < self.words:
            _write(handler, form, form.word(spoken))
            self.spoke.release()
            spoken += 1
            _listen(handler.connection, 0.002)
        for last in form.end(spoken):
            _write(handler, form, last)
        handler.wfile.write(b"0\r\n\r\n")


def _listen(connection: socket.socket, seconds: float) -> None:
    """Wait; raises `ConnectionError` if the client has hung up meanwhile."""
    readable, _, _ = select.select([connection], [], [], seconds)
    if readable and not connection.recv(1, socket.MSG_PEEK):
        raise ConnectionError


def _write(handler: BaseHTTPRequestHandler, form: Form, data: dict[str, Any]) -> None:
    text = json.dumps(data).encode()
    name = b"event: %s\n" % data["type"].encode() if "type" in data else b""
    line = b"%sdata: %s\n\n" % (name, text) if form.is_events else text + b"\n"
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
    handler.wfile.flush()


def _send(
    handler: BaseHTTPRequestHandler,
    status: int,
    content_type: str,
    body: bytes,
    *,
    is_gzipped: bool = False,
    headers: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Type", content_type)
    if is_gzipped:
        body = gzip.compress(body)
        handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
