"""The connections of urllib3, through which `requests` and `boto3` make their requests.

Their calls are counted, limited and closed as those of `transports`, and wait with them.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nbrun.agents import watched_run
from nbrun.calls.call import Call
from nbrun.calls.forms import find_target

if TYPE_CHECKING:
    from collections.abc import Callable


def instrument(package: Any) -> Callable[[], None]:
    """Have the package's connections report the calls of runs; return what undoes it."""
    pool, plain = package.connectionpool.HTTPConnectionPool, package.response.HTTPResponse
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
        call = Call(run, target, line.cut)
        with call.failing():
            is_default = self.port in (None, 80 if self.scheme == "http" else 443)
            place = address.netloc or (self.host if is_default else f"{self.host}:{self.port}")
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
            if self._original_response is None or self._original_response.isclosed():
                self._call.complete()
            return piece

        def _handle_chunk(self, *args: Any) -> bytes:
            piece: bytes = self._seen(super()._handle_chunk, *args)
            return piece

        def _update_chunk_length(self) -> None:
            self._seen(super()._update_chunk_length)

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
