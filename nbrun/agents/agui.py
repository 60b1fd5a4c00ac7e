"""Agents that speak AG-UI, the protocol between agents and web pages: objects of this process, or an address.

An object is found by its `run(input: RunAgentInput)`, as those of AG-UI's bridges to frameworks have it. An address is
given as `agui:https://…`, or as an `AguiAgent`, which has headers and a name; each run is a request to it.

The card shows its text, reasoning, tools and steps. Its interrupts are questions to the user, whose answers begin
the next of AG-UI's runs; arguments can be edited if the agent says so. A cancel ends the request. What comes from an
address is checked and bounded: anything else than AG-UI's events fails the run.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from nbrun.agents import (
    DENY,
    NO_NATIVE_CANCEL,
    Answer,
    BadOption,
    Framework,
    Items,
    Limitations,
    NbrunError,
    Output,
    PackageMissing,
    Plain,
    RunContext,
    Tools,
    Turn,
    args_of,
    clean_text,
    events as ev,
    is_installed,
    json_object,
    plain,
    result_of,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping

T = TypeVar("T")

FRAMEWORK = Framework("ag_ui", "ag-ui")
MAX_EVENT = 8_000_000
"""The largest event of an address, in bytes: they may hold a whole conversation."""
MAX_ARGS = 1_000_000  # characters of arguments of the tools that run
MAX_OPEN = 1_000  # tools that run, or questions
MAX_ID = 200


@dataclass(frozen=True)
class AguiAgent:
    """An agent that speaks AG-UI.

    Raises `BadOption` if the address isn't one of http or https, or has a password in it.

    Parameters
    ----------
    source : its address; or an object whose `run(input)` yields AG-UI's events.
    headers : of each request to the address, such as its key.
    name : the name of its runs; None: its host, or its class.
    """

    source: object
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str):
            return
        try:
            parts = urlsplit(self.source)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            is_address = False
        if not is_address:
            raise BadOption("'agui:' needs an address, for example agui:http://localhost:8000/agent")
        if "@" in parts.netloc:
            raise BadOption("pass a password as a header: nbrun.agents.AguiAgent(address, headers={…})")

    @property
    def label(self) -> str:
        """The name of its runs."""
        own = urlsplit(self.source).netloc if isinstance(self.source, str) else _label(self.source)
        return self.name or own


def _label(agent: object) -> str:
    name = getattr(agent, "name", None)
    return name if isinstance(name, str) and name else type(agent).__name__


class AguiAdapter:
    """Follows AG-UI's runs until one ends without an interrupt."""

    name = "ag-ui"
    framework = FRAMEWORK
    limitations = Limitations(
        functions="an AG-UI agent uses its own tools",
        steering="an AG-UI agent accepts no message until it has answered",
        usage="an AG-UI agent reports tokens at its end, if at all, and no requests",
        native_cancel=NO_NATIVE_CANCEL,
        resume="AG-UI can't continue a run that was cut off",
    )

    def match(self, agent: object) -> bool:
        """Return whether it is an `AguiAgent`, or its `run` is annotated with AG-UI's input."""
        notes = getattr(getattr(type(agent), "run", None), "__annotations__", None)
        return isinstance(agent, AguiAgent) or (notes is not None and "RunAgentInput" in str(notes))

    def check(self, agent: object) -> None:
        """Raise if a package is missing."""
        needed = "httpx" if isinstance(agent, AguiAgent) and isinstance(agent.source, str) else "ag_ui"
        if not is_installed(needed):
            raise PackageMissing(f"AG-UI agents need {needed}: pip install 'jupyter-nbrun[{FRAMEWORK.extra}]'")

    def label(self, agent: object) -> str:
        """Return the agent's name."""
        return agent.label if isinstance(agent, AguiAgent) else _label(agent)

    async def events(self, agent: object, prompt: str, run: RunContext) -> Items:
        """Yield what the agent does, with the conversation of earlier runs before the prompt."""
        talk = _Talk(run, self.label(agent))
        body: dict[str, Any] = {
            "threadId": run.run_id, "runId": run.run_id, "state": {}, "tools": [], "context": [],
            "forwardedProps": {}, "messages": [*_messages(run.history), *_messages((Turn("user", prompt),), "prompt")],
        }  # fmt: skip
        for number in range(1, 1_000_000):
            async with aclosing(_said(agent, talk.label, body)) as said:
                async for event in said:
                    for data in talk.take(event):
                        yield data
                    if talk.is_over:
                        break
            if not talk.is_over:
                raise NbrunError(f"{talk.label} stopped before its run was finished")
            if not talk.interrupts:
                break
            body |= {"runId": f"{run.run_id}-{number}", **talk.kept, "resume": await talk.answers()}
            for data in talk.next_round():
                yield data
        for data in talk.message():
            yield data
        yield Output(talk.result)


async def _said(agent: object, label: str, body: dict[str, Any]) -> AsyncGenerator[_Event]:
    source, headers = (agent.source, agent.headers) if isinstance(agent, AguiAgent) else (agent, None)
    given = _from_address(source, headers, body) if isinstance(source, str) else _from_object(source, body)
    async with aclosing(given) as said:
        async for event in said:
            yield _read(event, _Event, label)


def _read(data: object, kind: type[T], label: str) -> T:
    """Return data, or JSON, as what it is; raises `NbrunError` if it is something else."""
    try:
        return msgspec.convert(msgspec.json.decode(data) if isinstance(data, bytes) else data, kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise NbrunError(f"{label} sent something that is not AG-UI: {shown(str(error), 200)}") from None


async def _from_object(agent: Any, body: dict[str, Any]) -> AsyncGenerator[object]:
    from ag_ui.core import RunAgentInput

    if callable(clone := getattr(agent, "clone", None)):  # some keep the state of a run in themselves
        agent = clone()
    made = agent.run(RunAgentInput.model_validate(body))
    made = await made if inspect.isawaitable(made) else made
    try:
        async for event in made:
            yield event if isinstance(event, dict) else event.model_dump(mode="json", by_alias=True)
    finally:
        if (close := getattr(made, "aclose", None)) is not None:
            await close()


async def _from_address(url: str, headers: Mapping[str, str] | None, body: dict[str, Any]) -> AsyncGenerator[object]:
    """Yield the data of the server's events, as they come."""
    import httpx

    host = urlsplit(url).netloc
    own = {"accept": "text/event-stream", "accept-encoding": "identity", **(headers or {})}
    try:
        async with (
            httpx.AsyncClient(timeout=httpx.Timeout(30.0, read=None)) as client,
            client.stream("POST", url, json=body, headers=own) as response,
        ):
            kind = response.headers.get("content-type", "").partition(";")[0].strip()
            if response.status_code != httpx.codes.OK:
                raise NbrunError(f"{host} answered {response.status_code} {shown(response.reason_phrase, 100)}")
            if kind != "text/event-stream" or "content-encoding" in response.headers:
                raise NbrunError(f"{host} sent {shown(kind or 'nothing', 100)}, not a stream of events")
            data = bytearray()
            async for line in _lines(response.aiter_raw()):
                if line.startswith(b"data:"):
                    data += line[5:].removeprefix(b" ") + b"\n"
                elif not line and data:
                    yield bytes(data)
                    data.clear()
                if len(data) > MAX_EVENT:
                    raise NbrunError(f"{host} sent an event of more than {MAX_EVENT:,} bytes")
    except httpx.HTTPError as error:
        raise NbrunError(f"{host}: {shown(str(error), 200) or type(error).__name__}") from error


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = bytearray()
    async for chunk in chunks:
        looked = len(rest)
        rest += chunk
        while (end := rest.find(b"\n", looked)) >= 0:
            yield bytes(rest[:end].removesuffix(b"\r"))
            del rest[: end + 1]
            looked = 0
        if len(rest) > MAX_EVENT:
            raise NbrunError(f"a line of more than {MAX_EVENT:,} bytes was sent")


def _messages(turns: tuple[Turn, ...], name: str = "turn") -> Iterator[dict[str, Any]]:
    """Yield a conversation as AG-UI's messages."""
    for number, turn in enumerate(turns):
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(args_of(call))}}
            for call in turn.calls
        ]
        if calls:
            yield {"id": f"{name}-{number}-calls", "role": "assistant", "toolCalls": calls}
        for call in turn.calls:
            result_id = f"{name}-{number}-{call.id}"
            yield {"id": result_id, "role": "tool", "toolCallId": call.id, "content": result_of(call)}
        if turn.text or not calls:
            yield {"id": f"{name}-{number}", "role": turn.role, "content": turn.text}


class _Event(msgspec.Struct, rename="camel"):
    """The parts of all of AG-UI's events that are looked at."""

    type: str
    message_id: str | None = None
    role: str | None = None
    delta: Any = None  # text, or a patch of the state
    tool_call_id: str | None = None
    tool_call_name: str | None = None
    content: Any = None
    step_name: str | None = None
    name: str | None = None
    value: Any = None
    message: str | None = None
    result: Any = None
    outcome: Any = None
    usage: Any = None
    messages: Any = None
    snapshot: Any = None
    subagent_run_id: str | None = None


class _Interrupt(msgspec.Struct, rename="camel"):
    id: str
    reason: str = ""
    message: str | None = None
    tool_call_id: str | None = None
    response_schema: dict[str, Any] | None = None


class _Outcome(msgspec.Struct):
    type: str = "success"
    interrupts: Annotated[list[_Interrupt], msgspec.Meta(max_length=MAX_OPEN)] = []


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Usage(msgspec.Struct, rename="camel"):
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    cached_input_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


class _Talk:
    """What an agent has said, over all of AG-UI's runs of one run. Of its task."""

    def __init__(self, run: RunContext, label: str) -> None:
        self.label = label
        self.is_over = False
        self.interrupts: list[_Interrupt] = []
        self.kept: dict[str, Any] = {}  # what the agent wants to get back: state and messages
        self.result: Plain = None
        self._run = run
        self._tools = Tools(run.clock)
        self._args: dict[str, list[str]] = {}  # of the tools that run
        self._names: dict[str, str] = {}
        self._args_size = 0
        self._denied: dict[str, str] = {}
        self._text: list[str] = []
        self._message_id: str | None = None

    def message(self) -> list[ev.EventData]:
        """Return the message that is over now, if there is one."""
        text, self._text = "".join(self._text), []
        return [ev.Message("assistant", text)] if text else []

    def next_round(self) -> list[ev.EventData]:
        """Begin another of AG-UI's runs; return the ends of tools that were denied."""
        self.is_over, self.interrupts = False, []
        return [self._ended(tool_id, reason) for tool_id, reason in self._denied.items() if tool_id in self._args]

    def take(self, event: _Event) -> list[ev.EventData]:
        """Return what an event means."""
        text = event.delta if isinstance(event.delta, str) else ""
        match event.type:
            case "TEXT_MESSAGE_CONTENT" | "TEXT_MESSAGE_CHUNK" if text and not event.subagent_run_id:
                before = self.message() if self._message_id != event.message_id else []
                self._message_id = event.message_id
                self._text.append(text)
                return [*before, ev.TextDelta(text)]
            case "TEXT_MESSAGE_END":
                return self.message()
            case "REASONING_MESSAGE_CONTENT" | "REASONING_MESSAGE_CHUNK" | "THINKING_TEXT_MESSAGE_CONTENT" if text:
                return [ev.ReasoningDelta(text)]
            case "TOOL_CALL_START" | "TOOL_CALL_ARGS" | "TOOL_CALL_CHUNK" if event.tool_call_id:
                return [*self.message(), *self._tool(_short(event.tool_call_id), event.tool_call_name, text)]
            case "TOOL_CALL_RESULT" if event.tool_call_id and _short(event.tool_call_id) in self._args:
                return [self._ended(_short(event.tool_call_id), plain(event.content))]
            case "STEP_STARTED" if event.step_name:
                return [ev.StepStarted(clean_text(event.step_name))]
            case "STEP_FINISHED" if event.step_name:
                return [ev.StepFinished(clean_text(event.step_name))]
            case "CUSTOM" if event.name:
                return [ev.Custom(clean_text(event.name), plain(event.value))]
            case "STATE_SNAPSHOT":
                self.kept["state"] = event.snapshot
            case "MESSAGES_SNAPSHOT":
                self.kept["messages"] = event.messages
            case "RUN_FINISHED":
                self._finish(event)
            case "RUN_ERROR":
                raise NbrunError(shown(event.message or "the agent failed", 500))
        return []

    def _tool(self, tool_id: str, name: str | None, delta: str) -> list[ev.EventData]:
        begun: list[ev.EventData] = []
        if tool_id not in self._args:
            if not name:
                return []  # it has ended
            self._args[tool_id], self._names[tool_id] = [], clean_text(name)
            begun = self._tools.start(tool_id, self._names[tool_id], None)
        self._args_size += len(delta)
        if self._args_size > MAX_ARGS or len(self._args) > MAX_OPEN:
            raise NbrunError(f"{self.label} has too many tools running, or too much in their arguments")
        if not delta:
            return begun
        self._args[tool_id].append(delta)
        return [*begun, ev.ToolArgsDelta(tool_id, delta)]

    def _ended(self, tool_id: str, result: Plain) -> ev.EventData:
        self._args_size -= sum(map(len, self._args.pop(tool_id)))
        self._names.pop(tool_id)
        status = "denied" if tool_id in self._denied else "ok"
        return self._tools.finish(tool_id, status, result)

    def _finish(self, event: _Event) -> None:
        outcome = _read(event.outcome, _Outcome, self.label) if isinstance(event.outcome, dict) else _Outcome()
        if outcome.type == "cancelled":
            raise NbrunError(f"{self.label} cancelled itself")
        self.is_over, self.interrupts, self.result = True, outcome.interrupts, plain(event.result)
        for used in _read(event.usage or [], list[_Usage], self.label):
            self._run.usage(
                input_tokens=used.input_tokens or 0,
                output_tokens=used.output_tokens or 0,
                cache_read_tokens=used.cached_input_tokens or 0,
                reasoning_tokens=used.reasoning_tokens or 0,
            )

    async def answers(self) -> list[dict[str, Any]]:
        """Ask the user what the agent wants to know."""
        answers = await asyncio.gather(*map(self._answer, self.interrupts))
        return [{"interruptId": each.id, **answer} for each, answer in zip(self.interrupts, answers, strict=True)]

    async def _answer(self, asked: _Interrupt) -> dict[str, Any]:
        tool_id = _short(asked.tool_call_id or "")
        schema = asked.response_schema or {}
        fields = schema.get("properties")
        fields = fields if isinstance(fields, dict) else {}
        is_form = not tool_id and bool(fields) and "approved" not in fields
        args = dict.fromkeys(fields) if is_form else json_object("".join(self._args.get(tool_id, ())))
        name = self._names.get(tool_id, "")
        message = clean_text(asked.message or (f"Use {name}?" if name else asked.reason) or "Continue?")
        answer: Answer = await self._run.ask(
            message if not name or name in message else f"{name}: {message}",
            args=args,
            tool=name,
            tool_id=tool_id or None,
            editable=is_form or "editedArgs" in fields,
        )
        if answer.decision == DENY:
            self._denied[tool_id] = answer.text
            if is_form:
                return {"status": "cancelled"}
            return {
                "status": "resolved",
                "payload": {"approved": False, **({"reason": answer.text} if answer.text else {})},
            }
        if is_form:
            return {"status": "resolved", "payload": answer.args}
        edited = {"editedArgs": answer.args} if "editedArgs" in fields and answer.args != args else {}
        return {"status": "resolved", "payload": {"approved": True, **edited}}


def _short(tool_id: str) -> str:
    return clean_text(tool_id)[:MAX_ID]


ADAPTER = AguiAdapter()
