"""What it costs that model calls are seen: `python -m tests.bench.calls`.

A transport that answers at once is used as it is and changed, in turn; the medians of their differences in CPU time
are printed. Many calls are under way at once, and are answered a little later than they are made: no provider answers
sooner than a commit takes. `a piece` is one of a stream, `outside` a whole call that no run makes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2

import nbrun
from nbrun.calls.transports import instrument

PAIRS = 9
CALLS = 600
AT_ONCE = 50
ANSWER_S = 0.06
STREAMS = 50
PIECES = 200

PIECE = (
    b'data: {"id":"c-1","object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o","choices":[{"index":0,'
    b'"delta":{"content":"word "},"finish_reason":null}],"usage":null}\n\n'
)
LAST = b'data: {"id":"c-1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":4}}\n\n'
ASKED = {"model": "gpt-4o", "messages": [{"role": "user", "content": "How warm is the tea? " * 50}]}


class Body(httpx2.SyncByteStream):
    """A body that is there already."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)


def make(pieces: Sequence[bytes], *, is_seen: bool) -> Any:
    """Return a transport that answers with these pieces."""

    class Transport:
        def handle_request(self, _request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(pieces))

    package = SimpleNamespace(
        HTTPTransport=Transport,
        AsyncHTTPTransport=type("Unused", (), {"handle_async_request": None}),
        SyncByteStream=httpx2.SyncByteStream,
        AsyncByteStream=httpx2.AsyncByteStream,
    )
    if is_seen:
        instrument(package)
    return Transport()


def cost_us(pieces: Sequence[bytes], count: int) -> float:
    """Return what a call costs more when it is seen, in microseconds."""
    bare, seen = make(pieces, is_seen=False), make(pieces, is_seen=True)
    return statistics.median(measure_us(seen, count) - measure_us(bare, count) for _ in range(PAIRS))


def measure_us(transport: Any, count: int) -> float:
    """Return the CPU time of a call on this thread."""
    request = httpx2.Request("POST", "https://api.openai.com/v1/chat/completions", json=ASKED)
    began = time.thread_time()
    for _ in range(count // AT_ONCE):
        responses = [transport.handle_request(request) for _ in range(AT_ONCE)]
        time.sleep(ANSWER_S)
        for response in responses:
            for _piece in response.stream:
                pass
            response.stream.close()
    return (time.thread_time() - began) / count * 1e6


def main() -> None:
    """Measure, and print what was found."""
    found: dict[str, float] = {}

    def calls() -> None:
        found["a call"] = cost_us([LAST], CALLS)
        found["a piece"] = (cost_us([PIECE] * PIECES + [LAST], STREAMS) - found["a call"]) / PIECES

    with tempfile.TemporaryDirectory() as folder:
        session = nbrun.NotebookSession(store=Path(folder) / ".nbrun" / "bench.db")
        session.start(calls).result()
        session.close()
    found["outside"] = cost_us([LAST], CALLS)
    for name, us in found.items():
        print(f"{name:<8} {us:8.2f} us")


if __name__ == "__main__":
    main()
