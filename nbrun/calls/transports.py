"""The transports of httpx and httpx2, through which the providers' packages make their requests."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from nbrun.agents import RunContext, watched_run
from nbrun.calls.call import Call, begin_call
from nbrun.calls.forms import find_target
from nbrun.calls.journal import Asked, Pieces
from nbrun.core import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from nbrun.calls.journal import Decode
    from nbrun.core.journal import Journal


def instrument(package: Any) -> Callable[[], None]:
    """Have the package's transports report the calls of runs; return what undoes it."""
    transport, async_transport = package.HTTPTransport, package.AsyncHTTPTransport
    send, send_async = transport.handle_request, async_transport.handle_async_request

    body, async_body = _make_bodies(package)
    decode = partial(_decoded, package)

    def handle_request(self: Any, request: Any) -> Any:
        run = watched_run()
        if run is None:
            return send(self, request)
        # A dict of its own, by which its connection is found in the pool, in a request of its own: the client's may
        # be sent again, by another run, too.
        extensions = {**request.extensions, "trace": _Steps(run, request.extensions.get("trace"))}
        call = _begin(run, request, lambda: cut(self, extensions), decode)
        if call.answer is not None:
            return _respond(package, call, body)
        sent = object.__new__(type(request))
        vars(sent).update(vars(request), extensions=extensions)
        with call.failing():
            call.wait_turn(*_place(request))
            response = send(self, sent)
        call.answered(response.status_code, _read(response.headers))
        response.stream = body(response.stream, call)
        return response

    def handle_async_request(self: Any, request: Any) -> Coroutine[Any, Any, Any]:
        run = watched_run()
        answer: Coroutine[Any, Any, Any] = send_async(self, request)
        return answer if run is None else watched(run, request, answer)

    async def watched(run: RunContext, request: Any, answer: Coroutine[Any, Any, Any]) -> Any:
        # No socket is closed here: the cancel of the task closes the connection.
        try:
            call = _begin(run, request, None, decode)
        except BaseException:
            answer.close()
            raise
        if call.answer is not None:
            answer.close()
            return _respond(package, call, async_body)
        with call.failing():
            try:
                await call.wait_turn_async(*_place(request))
            except BaseException:
                answer.close()
                raise
            response = await answer
        call.answered(response.status_code, _read(response.headers))
        response.stream = async_body(response.stream, call)
        return response

    def undo() -> None:
        transport.handle_request, async_transport.handle_async_request = send, send_async

    transport.handle_request, async_transport.handle_async_request = handle_request, handle_async_request
    return undo


def _make_bodies(package: Any) -> tuple[Any, Any]:
    """Return the classes of a response's body, sync and async, that show a call what passes."""

    class Body(package.SyncByteStream):  # type: ignore[misc]  # known only when the package is
        def __init__(self, stream: Any, call: Call) -> None:
            self._stream, self._call = stream, call

        def __iter__(self) -> Iterator[bytes]:
            with self._call.failing():
                for piece in self._stream:
                    self._call.take(piece)
                    yield piece
            self._call.complete()

        def close(self) -> None:
            try:
                self._stream.close()
            finally:
                self._call.closed()

    class AsyncBody(package.AsyncByteStream):  # type: ignore[misc]
        __init__ = Body.__init__

        async def __aiter__(self) -> AsyncIterator[bytes]:
            with self._call.failing():
                async for piece in self._stream:
                    self._call.take(piece)
                    yield piece
            await self._call.complete_async()

        async def aclose(self) -> None:
            try:
                await self._stream.aclose()
            finally:
                await self._call.closed_async()

    return Body, AsyncBody


class _Steps:
    """Ends a request between two of its steps, where it has no connection yet that `cut()` could find."""

    def __init__(self, run: RunContext, trace: Callable[[str, Any], object] | None) -> None:
        self._run, self._trace = run, trace

    def __call__(self, step: str, info: Any) -> None:
        if self._trace is not None:
            self._trace(step, info)
        if step.endswith(".started") and not step.endswith("response_closed.started"):
            self._run.token.raise_if_cancelled()


def _begin(run: RunContext, request: Any, cut: Callable[[], object] | None, decode: Decode) -> Call:
    """Begin the call that a request makes."""
    url, content = request.url, _content(request)
    target = find_target(request.method, url.host, url.path, content)

    def ask(journal: Journal, content: bytes) -> Asked:
        address = f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}{url.path}"
        return Asked(request.method, address, url.params.multi_items(), content, journal)

    return begin_call(run, target, cut, content, ask, decode)


def _content(request: Any) -> bytes | None:
    try:
        content: bytes = request.content
    except RuntimeError:  # its body is an iterator, which isn't read twice
        return None
    return content


def _place(request: Any) -> tuple[str, dict[str, str], bytes | None]:
    """Return by what a request finds its place in a line."""
    return request.url.netloc.decode("ascii", "replace"), _read(request.headers), _content(request)


def _read(headers: Any) -> dict[str, str]:
    """Return headers by their names in lower case: the package walks through all of them for each that is asked for."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers.raw}


def _respond(package: Any, call: Call, body: Any) -> Any:
    """Return the response to a call that is answered without a request."""
    answer = call.answer
    assert answer is not None  # noqa: S101 - the caller has looked
    stream = body(Pieces(answer.pieces, call.run), call)
    response = package.Response(answer.status, headers=answer.headers, stream=stream)
    call.answered(answer.status, _read(response.headers))
    return response


def _decoded(package: Any, encoding: str, pieces: list[bytes], limit: int) -> list[bytes]:
    """Return the decoded pieces of a body, by the package's own decoders; raises `StoreError` if that fails."""
    response = package.Response(200, headers={"content-encoding": encoding}, content=iter(pieces))
    decoded: list[bytes] = []
    size = 0
    try:
        for piece in response.iter_bytes():
            decoded.append(piece)
            size += len(piece)
            if size > limit:
                raise StoreError("it is too large")
    except package.HTTPError as error:
        raise StoreError(f"it can't be decoded ({error})") from error
    return decoded


def cut(transport: Any, extensions: object) -> bool:
    """Shut down the connection that a request uses; return whether there was one. Threads: any.

    Source: httpcore's pool lists a request with its connection until its response is closed, and takes both out under
    the lock that is held here, so the connection can't be another request's meanwhile. A read that blocks on it ends
    at once. A request that was interrupted while it waits for a connection would keep a place in the pool for good.
    One that other requests share (HTTP/2) is left alone: its request ends with the next bytes. httpcore resets no
    stream, so a provider may go on there.
    """
    pool: Any = getattr(transport, "_pool", None)
    try:
        with pool._optional_thread_lock:
            requests = list(pool._requests)
            found = next((item for item in requests if item.request.extensions is extensions), None)
            if found is None:
                return False
            if (connection := found.connection) is None:  # it waits for one: woken, it fails as it finds none
                found.assign_to_connection(None)
                return True
            if sum(item.connection is connection for item in requests) > 1:
                return False
            while (inner := getattr(connection, "_connection", None)) is not None:  # one more behind a proxy
                connection = inner
            connection._connection_error = True  # of HTTP/2: it takes no other request from here on
            raw = connection._network_stream.get_extra_info("socket")
            # Not the method of an SSLSocket, which takes its TLS state from under the thread that reads.
            socket.socket.shutdown(raw, socket.SHUT_RDWR)
    except (AttributeError, OSError, TypeError):  # not connected yet, closed already, or another httpcore
        return False
    return True
