"""The client of aiohttp, which some providers' packages use where it is installed.

Its calls are counted, limited and closed as those of `transports`, and wait with them. They are not in the journal: a
response of aiohttp can't be made without a request but by its private parts, which change with its versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.agents import watched_run
from nbrun.calls.call import Call
from nbrun.calls.forms import find_target

if TYPE_CHECKING:
    from collections.abc import Callable


def instrument(package: Any) -> Callable[[], None]:
    """Have the package's sessions report the calls of runs; return what undoes it."""
    session, seen = package.ClientSession, _make_reader(package)
    request = session._request  # Source: all of a session's requests come through it, with their redirects

    async def seen_request(self: Any, method: str, address: Any, **options: Any) -> Any:
        run = watched_run()
        if run is None:
            return await request(self, method, address, **options)
        url = self._build_url(address)
        target = find_target(method.upper(), url.host or "", url.path, _content(options))
        call = Call(run, target, None)  # the cancel of the task closes the connection
        with call.failing():
            place = url.host or "" if url.is_default_port() else f"{url.host}:{url.port}"
            content = repr((options.get("data"), options.get("json"))).encode(errors="replace")
            await call.wait_turn_async(place, self._prepare_headers(options.get("headers")), content)
            response = await request(self, method, address, **options)
        headers = {name.lower(): value for name, value in response.headers.items()}
        call.answered(response.status, headers | {"content-encoding": ""})  # it is decompressed already
        if type(response.content) is package.StreamReader:
            response.content.__class__ = seen
            response.content.begin(call)
        else:  # there is no body
            call.closed()
        return response

    def undo() -> None:
        session._request = request

    session._request = seen_request
    return undo


def _content(options: dict[str, Any]) -> bytes | None:
    """Return a request's body, as far as its target is found by it."""
    data = options.get("data")
    if data is None and isinstance(body := options.get("json"), dict):
        data = msgspec.json.encode({"model": str(body.get("model", ""))})
    return data.encode() if isinstance(data, str) else data if isinstance(data, bytes) else None


def _make_reader(package: Any) -> Any:
    """Return the class of a body's reader that shows a call what is read; a reader is given it when it is there."""
    calls: dict[int, Call] = {}  # by the reader's id, which has no room for more

    class SeenReader(package.StreamReader):  # type: ignore[misc]  # known only when the package is
        __slots__ = ()

        def begin(self, call: Call) -> None:
            calls[id(self)] = call
            self.on_eof(self._end)

        def _end(self) -> None:
            """End the call when all has come and is read."""
            if self._eof and not self._buffer and (call := calls.pop(id(self), None)) is not None:
                call.closed()

        def _read_nowait_chunk(self, size: int) -> bytes:
            piece: bytes = super()._read_nowait_chunk(size)
            if (call := calls.get(id(self))) is not None:
                with call.failing():
                    call.take(piece)
                self._end()
            return piece

        def set_exception(self, error: BaseException, *cause: Any) -> None:
            super().set_exception(error, *cause)
            if (call := calls.pop(id(self), None)) is None:
                return
            if type(error) is package.ClientConnectionError:  # it was closed before its end
                call.closed()
            else:
                call.broke(error)

        def __del__(self) -> None:
            if (call := calls.pop(id(self), None)) is not None:
                call.closed()

    return SeenReader
