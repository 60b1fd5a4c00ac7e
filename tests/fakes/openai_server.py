"""A model's provider on this machine: OpenAI's chat completions, streamed, and a note of who has hung up when.

It speaks as much HTTP as that takes: one request after the other on a connection, chunked answers.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from tests.fakes.agents import BOUND_S

DRIP_S = 0.01
"""Between two tokens."""

MODEL = "gpt-4o"
USAGE = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}

Reply = Callable[[dict[str, Any]], AsyncIterator[dict[str, Any]]]
"""What is answered to a request: the deltas of a message, in OpenAI's form."""


async def drips(_request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Say words for ever."""
    number = 0
    while True:
        yield {"content": f"word{number} "}
        number += 1
        await asyncio.sleep(DRIP_S)


async def says_tea(_request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Say four words."""
    for word in ("Steam ", "from ", "the ", "cup"):
        yield {"content": word}


class Broken(Exception):
    """What a reply raises to end as a provider's mistake does, in the middle of a stream."""


class OpenAIServer:
    """The provider, on a thread of its own; a context manager.

    Threads: `requests`, `hung_up_at` are written by its thread; the rest from any.
    """

    def __init__(self, reply: Reply = drips) -> None:
        self.requests: list[dict[str, Any]] = []
        self.hung_up_at: float | None = None  # by time.monotonic(), in the middle of an answer
        self.port = 0
        self.refusals = 0  # how many requests it answers by 429 first
        self.retry_after_s = 0.0
        self._reply = reply
        self._hung_up = threading.Event()
        self._is_up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._writers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._thread = threading.Thread(target=self._main, name="openai-server", daemon=True)

    def start(self) -> None:
        """Start it; it ends with its process, or with the block that it is entered for."""
        self._thread.start()
        assert self._is_up.wait(BOUND_S)

    def __enter__(self) -> OpenAIServer:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(BOUND_S)

    @property
    def url(self) -> str:
        """What a client is given as its `base_url`."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._writers)

    def wait_hung_up(self) -> float:
        """Return when a client has hung up in the middle of an answer, by `time.monotonic()`."""
        assert self._hung_up.wait(BOUND_S), "the client goes on listening"
        assert self.hung_up_at is not None
        return self.hung_up_at

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._on_client, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        await self._stop.wait()
        server.close()
        for writer in self._writers.values():
            writer.close()
        if self._writers:
            await asyncio.wait(list(self._writers))

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._writers[task] = writer
        begun = b""
        try:
            while (request := await _read(begun, reader)) is not None:
                self.requests.append(request)
                answer = asyncio.create_task(self._answer(request, writer))
                # The next request may begin before the task of this answer is over.
                next_word = asyncio.create_task(reader.read(1))
                await asyncio.wait({answer, next_word}, return_when=asyncio.FIRST_COMPLETED)
                if _is_cut(answer) or (not answer.done() and _is_end(next_word)):
                    self.hung_up_at = time.monotonic()
                    self._hung_up.set()
                    answer.cancel()
                    next_word.cancel()
                    await asyncio.wait({answer, next_word})
                    return
                await answer
                next_word.cancel()
                await asyncio.wait({next_word})
                begun = b"" if next_word.cancelled() else next_word.result()
        except ConnectionError:
            pass  # it has hung up between two answers
        finally:
            del self._writers[task]
            writer.close()

    async def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if self.refusals:
            self.refusals -= 1
            await _refuse(writer, self.retry_after_s)
            return
        if not request.get("stream"):
            await self._answer_at_once(request, writer)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            async for delta in self._reply(request):
                await _send(writer, _chunk(delta))
        except Broken as error:
            await _send(writer, {"error": {"message": str(error), "type": "server_error"}})
        else:
            reason = "tool_calls" if "tool_calls" in delta else "stop"
            await _send(writer, _chunk({}, finish=reason))
            await _send(writer, {**_chunk({}), "choices": [], "usage": USAGE})
        await _send(writer, None)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _answer_at_once(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        deltas = [delta async for delta in self._reply(request)]
        text = "".join(delta.get("content", "") for delta in deltas)
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        message = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
        choice = {"index": 0, "finish_reason": "tool_calls" if calls else "stop", "message": message}
        whole = {**_chunk({}), "object": "chat.completion", "choices": [choice], "usage": USAGE}
        body = json.dumps(whole).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()


async def _refuse(writer: asyncio.StreamWriter, retry_after_s: float) -> None:
    body = b'{"error": {"message": "slow down", "type": "rate_limit"}}'
    head = (
        f"HTTP/1.1 429 Too Many Requests\r\nRetry-After: {retry_after_s:g}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()


def _is_cut(answer: asyncio.Task[None]) -> bool:
    return answer.done() and isinstance(answer.exception(), ConnectionError)


def _is_end(next_word: asyncio.Task[bytes]) -> bool:
    """Return whether the client is gone; where it had not read all, its system says so by an error."""
    if not next_word.done():
        return False
    return isinstance(next_word.exception(), ConnectionError) or not next_word.result()


async def _read(begun: bytes, reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Return the body of the next request, of which some may have been read; None where there is none."""
    try:
        head = begun + await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = head.decode().lower().splitlines()
    assert lines[0].startswith("post /v1/chat/completions"), lines[0]
    size = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
    body: dict[str, Any] = json.loads(await reader.readexactly(size))
    return body


async def _send(writer: asyncio.StreamWriter, data: dict[str, Any] | None) -> None:
    line = f"data: {'[DONE]' if data is None else json.dumps(data)}\n\n".encode()
    writer.write(b"%x\r\n%s\r\n" % (len(line), line))
    await writer.drain()


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": finish}
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": MODEL,
        "choices": [choice],
    }  # fmt: skip
