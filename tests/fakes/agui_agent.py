"""Agents that speak AG-UI, on the protocol's own package, and follow a script; and a server of them."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any

from ag_ui.core import (
    BaseEvent,
    Interrupt,
    RunAgentInput,
    RunErrorEvent,
    RunFinishedEvent,
    RunFinishedInterruptOutcome,
    RunStartedEvent,
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    ToolCallArgsEvent,
    ToolCallEndEvent,
    ToolCallResultEvent,
    ToolCallStartEvent,
)
from ag_ui.encoder import EventEncoder

from tests.agents.conformance.script import Call, Script, Turn, call_id, filled

APPROVAL = {
    "type": "object",
    "properties": {"approved": {"type": "boolean"}, "editedArgs": {"type": "object"}},
    "required": ["approved"],
}


class Poet:
    """Follows a script; a tool that asks interrupts its run, and the next run on its thread continues."""

    name = "poet"

    def __init__(self, script: Script) -> None:
        self._script = script
        self._threads: dict[str, tuple[int, list[object]]] = {}  # the turn it has come to, and the results so far

    async def run(self, input: RunAgentInput) -> AsyncIterator[BaseEvent]:
        """Yield the events of one run."""
        ids: Any = {"thread_id": input.thread_id, "run_id": input.run_id}
        yield RunStartedEvent(**ids)
        first, results = self._threads.get(input.thread_id, (0, []))
        answers = {each.interrupt_id: each for each in input.resume or ()}
        for number in itertools.count(first):
            self._threads[input.thread_id] = number, results
            turn = self._script.turns[number]
            message_id = f"{input.run_id}-{number}"
            if not answers:
                async for event in _said(turn, message_id, results):
                    yield event
            if turn.stalls:
                await asyncio.Event().wait()
            if turn.fails:
                yield RunErrorEvent(message=turn.fails)
                return
            asked: list[Interrupt] = []
            for place, call in enumerate(turn.calls):
                tool_id = call_id(number, place)
                answer = answers.get(tool_id)
                if answer is None:
                    yield ToolCallStartEvent(tool_call_id=tool_id, tool_call_name=call.name)
                    for piece in json.dumps(call.args).partition(":"):
                        if piece:
                            yield ToolCallArgsEvent(tool_call_id=tool_id, delta=piece)
                    yield ToolCallEndEvent(tool_call_id=tool_id)
                if call.asks and answer is None:
                    message = f"May I {call.name}?"
                    asked.append(
                        Interrupt(id=tool_id, reason="tool_call", message=message, tool_call_id=tool_id,
                                  response_schema=APPROVAL)
                    )  # fmt: skip
                    continue
                try:
                    results.append(await _used(call, None if answer is None else answer.payload))
                except ValueError as error:
                    yield RunErrorEvent(message=str(error))
                    return
                message_id = f"{message_id}-{place}"
                yield ToolCallResultEvent(message_id=message_id, tool_call_id=tool_id, content=str(results[-1]))
            if asked:
                yield RunFinishedEvent(**ids, outcome=RunFinishedInterruptOutcome(interrupts=asked))
                return
            answers = {}
            if not turn.calls:
                yield RunFinishedEvent(**ids)
                return


async def _said(turn: Turn, message_id: str, results: list[object]) -> AsyncIterator[BaseEvent]:
    if turn.words:
        yield TextMessageStartEvent(message_id=message_id, role="assistant")
        for word in turn.words:
            yield TextMessageContentEvent(message_id=message_id, delta=filled(word, results, ()))
        if not (turn.stalls or turn.fails):
            yield TextMessageEndEvent(message_id=message_id)


async def _used(call: Call, payload: Any) -> object:
    """Use a tool of this agent's own, like those of the suite."""
    args = call.args
    if payload is not None:
        if not payload["approved"]:
            return payload.get("reason", "no")
        args = payload.get("editedArgs", args)
    match call.name:
        case "add":
            return args["a"] + args["b"]
        case "delete":
            return f"deleted {args['path']}"
        case "breaks":
            raise ValueError("the cup is broken")
        case _:
            await asyncio.Event().wait()
    return None


class AguiServer:
    """Poets at addresses of this machine: each request is a run of AG-UI, and its end ends the poet.

    Threads: a loop of its own, as long as the process. `requests` is written there, and read by tests.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.hung_up = threading.Event()
        self._poets: list[Any] = []

    def address_of(self, poet: Any) -> str:
        """Return where this agent is; of bytes, the address of a server that sends just these."""
        self._poets.append(poet)
        return f"http://127.0.0.1:{self._port}/{len(self._poets) - 1}"

    @cached_property
    def _port(self) -> int:
        started: list[int] = []
        is_ready = threading.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
            started.append(server.sockets[0].getsockname()[1])
            is_ready.set()
            await server.serve_forever()

        threading.Thread(target=lambda: asyncio.run(serve()), name="agui-server", daemon=True).start()
        is_ready.wait()
        return started[0]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        (length,) = [line.partition(":")[2] for line in head.splitlines() if line.lower().startswith("content-length")]
        body = await reader.readexactly(int(length))
        self.headers.append(head)
        self.requests.append(json.loads(body))
        answering = asyncio.ensure_future(self._say(self._poets[int(path[1:])], body, writer))
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            self.hung_up.set()
        for task in (answering, gone):
            task.cancel()
        await asyncio.wait({answering, gone})
        writer.close()

    async def _say(self, poet: Any, body: bytes, writer: asyncio.StreamWriter) -> None:
        if isinstance(poet, bytes):
            writer.write(poet)
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        async for event in poet.run(RunAgentInput.model_validate_json(body)):
            writer.write(EventEncoder().encode(event).encode())
            await writer.drain()
