"""The connections of urllib3, through which `requests` and `boto3` make their requests.

Their calls are counted, limited and closed as those of `transports`; they wait with them and are in the journal.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from nbrun.agents import watched_run
from nbrun.calls.call import Call, begin_call
from nbrun.calls.forms import find_target
from nbrun.calls.journal import Asked, Pieces
from nbrun.core import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nbrun.core.journal import Journal


def instrument(package: Any) -> Callable[[], None]:
    """Have the package's connections report the calls of runs; return what undoes it."""
    pool, plain = package.connectionpool.HTTPConnectionPool, package.response.HTTPResponse
    decode = partial(_decoded, package)
    if not hasattr(plain, "_raw_read"):  # urllib3 1
        return lambda: None
    # Source: one attempt of one request, on a connection that it has to itself until its response gives it back.
    make_request, seen = pool._make_request, _make_response(plain)

    def seen_request(self: Any, conn: Any, method: str, url: str, body: Any = None, *args: Any, **options: Any) -> Any:
        run = watched_run()
        if run is None:
            return make_request(self, conn, method, url, body, *args, **options)
        address = urlsplit(url)  # a whole one where a proxy is asked
        content = (
            body.encode() if isinstance(body, str) else bytes(body) if isinstance(body, bytes | bytearray) else None
        )
        line = _Line(conn)
        target = find_target(method.upper(), address.hostname or self.host, address.path, content)
        is_default = self.port in (None, 80 if self.scheme == "http" else 443)
        place = address.netloc or (self.host if is_default else f"{self.host}:{self.port}")

        def ask(journal: Journal, content: bytes) -> Asked:
            whole = f"{address.scheme or self.scheme}://{place}{address.path}"
            return Asked(method, whole, parse_qsl(address.query, keep_blank_values=True), content, journal)

        call = begin_call(run, target, line.cut, content, ask, decode)
        if call.answer is not None:
            line.leave()
            if (given := options.get("response_conn")) is not None:  # the response would give it back
                self._put_conn(given)
            kept = _Kept(iter(Pieces(call.answer.pieces, run)))
            response = plain(kept, call.answer.headers, call.answer.status, preload_content=False, request_url=url)
            response.retries = options.get("retries")
            call.answered(call.answer.status, _read(response.headers))
            response.__class__ = seen
            response.begin(call, line)
            return response
        with call.failing():
            call.wait_turn(place, _read(options.get("headers") or {}), content)
            if call.waited_ms and conn.proxy is None and not conn.is_connected:
                conn.close()  # its server may have closed it meanwhile: it is opened again
            response = make_request(self, conn, method, url, body, *args, **options)
        if type(response) is plain and not options.get("preload_content", True):
            if options.get("response_conn") is None:  # it is given back already
                line.leave()
            call.answered(response.status, _read(response.headers))
            response.__class__ = seen
            response.begin(call, line)
            return response
        line.leave()
        is_decoded = options.get("decode_content", True)
        call.answered(response.status, _read(response.headers) | ({"content-encoding": ""} if is_decoded else {}))
        call.take(response.data)
        call.complete()
        return response

    def undo() -> None:
        pool._make_request = make_request

    pool._make_request = seen_request
    return undo


def _read(headers: Any) -> dict[str, str]:
    """Return headers by their names in lower case."""
    return {
        name.lower(): value.decode("latin-1") if isinstance(value, bytes) else str(value)
        for name, value in headers.items()
    }


def _decoded(package: Any, encoding: str, pieces: list[bytes], limit: int) -> list[bytes]:
    """Return the decoded pieces of a body, by the package's own decoders; raises `StoreError` if that fails."""
    body = io.BytesIO(b"".join(pieces))
    response = package.response.HTTPResponse(body, {"content-encoding": encoding}, preload_content=False)
    try:
        decoded: list[bytes] = []
        size = 0
        for piece in response.stream(decode_content=True):
            decoded.append(piece)
            size += len(piece)
            if size > limit:
                raise StoreError("it is too large")
    except package.exceptions.HTTPError as error:
        raise StoreError(f"it can't be decoded ({error})") from error
    return decoded


class _Kept(io.RawIOBase):
    """The body of an answer that is there already."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        """Return whether it can be read: it can."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Give the rest of a piece, or the next one; it is closed at the end, as the body of a request is."""
        self._rest = self._rest or next(self._pieces, b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        if not size:
            self.close()
        return size

    def isclosed(self) -> bool:
        """Return whether all of it was read."""
        return self.closed


class _Line:
    """The connection of one request, until it is given back.

    Threads: any calls `cut`, the one that reads the response calls `leave`.
    """

    def __init__(self, conn: Any) -> None:
        self._conn = conn
        self._lock = threading.Lock()

    def cut(self) -> None:
        """Shut it down: a read that blocks on it ends at once."""
        with self._lock:
            if self._conn is not None and (raw := self._conn.sock) is not None:
                # Not by the method of an SSLSocket, which takes its TLS state from under the thread that reads. It may
                # be closed already, or TLS within TLS.
                with contextlib.suppress(OSError, TypeError):
                    socket.socket.shutdown(raw, socket.SHUT_RDWR)

    def leave(self) -> None:
        """Note that the request has no connection any more."""
        with self._lock:
            self._conn = None


def _make_response(base: Any) -> Any:
    """Return the class of a response that shows a call what is read of it."""

    class SeenResponse(base):  # type: ignore[misc]  # known only when the package is
        _call: Call
        _line: _Line
        _is_reading = False

        def begin(self, call: Call, line: _Line) -> None:
            self._call, self._line = call, line

        def _raw_read(self, *args: Any, **options: Any) -> bytes:
            self._is_reading = True  # the connection may be given back before its last piece is here
            try:
                piece: bytes = self._seen(super()._raw_read, *args, **options)
            finally:
                self._is_reading = False
            if self._fp is None or self._fp.isclosed():
                self._call.complete()
            return piece

        def _handle_chunk(self, *args: Any) -> bytes:
            piece: bytes = self._seen(super()._handle_chunk, *args)
            return piece

        def _update_chunk_length(self) -> None:
            self._seen(super()._update_chunk_length)
            if self.chunk_left == 0:  # that was the last one
                self._call.complete()

        def _seen(self, read: Callable[..., Any], *args: Any, **options: Any) -> Any:
            with self._call.failing():
                if piece := read(*args, **options):
                    self._call.take(piece)
            return piece

        def release_conn(self) -> None:
            self._line.leave()
            super().release_conn()
            if not self._is_reading:
                self._call.closed()

        def close(self) -> None:
            self._line.leave()
            super().close()
            self._call.closed()

    return SeenResponse
