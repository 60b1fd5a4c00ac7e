"""AG-UI, in and out: what the conformance suite does not ask of it, and what a hostile address may send."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import ag_ui.core as agui
import pytest

import nbrun
from nbrun import NotebookSession, Run, RunContext, RunStatus
from nbrun.agents import AguiAgent, find_adapter
from nbrun.agents.agui import MAX_EVENT, AguiAdapter
from nbrun.core.errors import BadOption
from tests.agents.conformance.scenarios import SCENARIOS
from tests.fakes.agents import BOUND_S
from tests.fakes.agui_agent import AguiServer, Poet
from tests.fakes.people import asking

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
SERVER = AguiServer()


class Says:
    """Yields the same events to everybody, and keeps what it was given."""

    def __init__(self, *rounds: list[Any]) -> None:
        self._rounds = list(rounds)
        self.given: list[agui.RunAgentInput] = []

    async def run(self, input: agui.RunAgentInput) -> AsyncIterator[Any]:
        """Yield the events of the next round."""
        self.given.append(input)
        for event in self._rounds[len(self.given) - 1]:
            yield event


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), run.record
    return run


def sse(*events: Any) -> bytes:
    """Return an answer of these events."""
    return HEAD + b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events)


FINISHED = {"type": "RUN_FINISHED", "threadId": "t", "runId": "r"}
TEXT = {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": "tea"}


# --- in ----------------------------------------------------------------------------------------------


def test_an_address_is_an_agent_by_its_prefix(session: NotebookSession) -> None:
    """`agui:` and where it is; each run sends the prompt, and its name is the host's."""
    address = SERVER.address_of(sse(TEXT, {**FINISHED, "result": {"cups": 2}}))
    run = ended(session.start(f"agui:{address}", "a cup"))
    assert (run.status, run.text, run.output) == (RunStatus.COMPLETED, "tea", {"cups": 2})
    assert run.name == address.split("/")[2]
    sent = SERVER.requests[-1]
    assert [message["content"] for message in sent["messages"]] == ["a cup"]
    assert sent["threadId"] == run.id
    again = ended(run.retry())
    assert again.output == {"cups": 2}


@pytest.mark.parametrize("address", ["", "localhost:8000", "ftp://a/b", "http://", "http://[", "http://u:p@h/"])
def test_a_wrong_address_is_one_line(session: NotebookSession, address: str) -> None:
    """It says how to write one; a password belongs into a header, which is not kept with the run."""
    with pytest.raises(BadOption) as refused:
        session.start(f"agui:{address}", "a cup")
    assert "\n" not in str(refused.value)
    assert ("header" if "@" in address else "for example") in str(refused.value)


def test_headers_are_sent_and_not_shown(session: NotebookSession) -> None:
    """A key is where it is needed, and nowhere else."""
    agent = AguiAgent(SERVER.address_of(sse(FINISHED)), headers={"x-key": "k-3141592653"})
    run = ended(session.start(agent, "a cup"))
    assert "x-key: k-3141592653" in SERVER.headers[-1]
    assert "k-3141592653" not in repr(agent) + repr(run.record) + repr(run.events())


def test_a_cancel_closes_the_connection(session: NotebookSession) -> None:
    """The server sees it go, and can stop."""
    SERVER.hung_up.clear()
    run = session.start(AguiAgent(SERVER.address_of(Poet(SCENARIOS["stalls"]))), "a cup")

    async def first_text() -> None:
        async for event in run:
            if event.type == "text.delta":
                return

    asyncio.run(first_text())
    run.cancel()
    assert ended(run).status is RunStatus.CANCELLED
    assert SERVER.hung_up.wait(BOUND_S)


def test_a_conversation_is_sent_as_messages(session: NotebookSession) -> None:
    """With the tools of earlier answers, as AG-UI has them."""

    def clerk(prompt: str, run: RunContext) -> str:
        with run.tool("count", {"of": "cups"}) as tool:
            tool.result = 3
        return "three"

    agent = Says([FINISHED])
    ended(ended(session.start(clerk, "how many?")).continue_with("and now?", agent=agent))
    (given,) = agent.given
    roles = [message.role for message in given.messages]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]
    calls: Any = given.messages[1]
    assert calls.tool_calls[0].function.arguments == '{"of": "cups"}'


def test_a_form_is_filled_in(session: NotebookSession) -> None:
    """A question with fields has them as arguments: what the user enters is the answer, and goes with the state."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    asks = {"id": "i-1", "reason": "input_required", "message": "Where to?", "responseSchema": schema}
    state = {"type": "STATE_SNAPSHOT", "snapshot": {"step": 1}}
    first = [state, {**FINISHED, "outcome": {"type": "interrupt", "interrupts": [asks]}}]
    agent = Says(first, [TEXT, FINISHED])
    run = session.start(agent, "book it")
    (asked,) = asking(run)
    assert (asked.message, asked.args, asked.editable) == ("Where to?", {"city": None}, True)
    run.approve(args={"city": "Ulm"})
    assert ended(run).text == "tea"
    again = agent.given[1]
    assert again.resume is not None
    assert (again.resume[0].status, again.resume[0].payload, again.state) == ("resolved", {"city": "Ulm"}, {"step": 1})
    assert again.thread_id == agent.given[0].thread_id
    assert again.run_id != agent.given[0].run_id


def test_what_it_reports_is_shown(session: NotebookSession) -> None:
    """Reasoning, steps, own events, pieces of a tool's arguments and usage; unknown types are passed over."""
    run = ended(
        session.start(
            Says(
                [
                    {"type": "REASONING_MESSAGE_CONTENT", "messageId": "r", "delta": "hm"},
                    {"type": "STEP_STARTED", "stepName": "look"},
                    {"type": "TOOL_CALL_CHUNK", "toolCallId": "c", "toolCallName": "look", "delta": '{"at": '},
                    {"type": "TOOL_CALL_CHUNK", "toolCallId": "c", "delta": "1}"},
                    {"type": "TOOL_CALL_RESULT", "messageId": "x", "toolCallId": "c", "content": "seen"},
                    {"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": "late"},
                    {"type": "TOOL_CALL_RESULT", "messageId": "x", "toolCallId": "c", "content": "late"},
                    {"type": "STEP_FINISHED", "stepName": "look"},
                    {"type": "CUSTOM", "name": "score", "value": 1},
                    {"type": "STATE_DELTA", "delta": [{"op": "add", "path": "/a", "value": 1}]},
                    {"type": "OF_A_LATER_VERSION", "delta": {"a": 1}},
                    {**TEXT, "subagentRunId": "s"},
                    TEXT,
                    {**FINISHED, "usage": [{"inputTokens": 7, "outputTokens": 2, "cachedInputTokens": 5}]},
                ]
            ),
            "tea",
        )
    )
    assert (run.status, run.text, run.record.reasoning) == (RunStatus.COMPLETED, "tea", "hm")
    (tool,) = run.record.tools
    assert (tool.name, tool.args, tool.result, tool.status) == ("look", {"at": 1}, "seen", "ok")
    assert (run.usage.input_tokens, run.usage.output_tokens, run.usage.cache_read_tokens) == (7, 2, 5)
    assert {"custom", "step.started", "step.finished"} <= {event.type for event in run.events()}


def test_only_what_takes_its_input_is_matched() -> None:
    """By the annotation of `run`, as bridges have it; everything else needs an `AguiAgent` around it."""

    class Other:
        async def run(self, prompt: str) -> str:
            return prompt

        def __call__(self, prompt: str) -> str:
            return prompt

    assert isinstance(find_adapter(Poet(SCENARIOS["hello"])), AguiAdapter)
    assert isinstance(find_adapter(AguiAgent(Other())), AguiAdapter)
    assert not isinstance(find_adapter(Other()), AguiAdapter)


# --- hostile -----------------------------------------------------------------------------------------

ARGS = {"type": "TOOL_CALL_CHUNK", "toolCallId": "c", "toolCallName": "t", "delta": "x" * 100_000}
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "not found": (lambda: b"HTTP/1.1 404 Not\x1b[31m Here\r\ncontent-length: 0\r\n\r\n", "404"),
    "another type": (lambda: b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<html>", "text/html"),
    "compressed": (
        lambda: HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n") + gzip.compress(bytes(9_000_000)),
        "not a stream of events",
    ),
    "a redirect": (lambda: b"HTTP/1.1 307 There\r\nlocation: http://127.0.0.1:9/\r\n\r\n", "307"),
    "no HTTP": (lambda: b"220 mail\r\n", "127.0.0.1"),
    "no end": (lambda: sse(TEXT), "stopped before its run was finished"),
    "no JSON": (lambda: HEAD + b"data: {tea\n\n", "not AG-UI"),
    "no text": (lambda: HEAD + b'data: {"type": "\xff\xfe"}\n\n', "not AG-UI"),
    "a list": (lambda: sse([1, 2]), "not AG-UI"),
    "no type": (lambda: sse({"delta": "tea"}), "not AG-UI"),
    "a wrong type": (lambda: sse({**TEXT, "messageId": [1]}), "not AG-UI"),
    "deep": (lambda: HEAD + b"data: " + b"[" * 100_000 + b"\n\n", "not AG-UI"),
    "negative tokens": (lambda: sse({**FINISHED, "usage": [{"inputTokens": -1}]}), "not AG-UI"),
    "usage that is none": (lambda: sse({**FINISHED, "usage": {"a": 1}}), "not AG-UI"),
    "wrong interrupts": (lambda: sse({**FINISHED, "outcome": {"type": "interrupt", "interrupts": 3}}), "not AG-UI"),
    "many interrupts": (
        lambda: sse({**FINISHED, "outcome": {"type": "interrupt", "interrupts": [{"id": "i"}] * 2_000}}),
        "not AG-UI",
    ),
    "a long line": (lambda: HEAD + b"data: " + b"x" * (MAX_EVENT + 70_000), "more than 8,000,000 bytes"),
    "a long event": (lambda: HEAD + b"data: xxxxxxxxxxxxxxxxxxxxxxxx\n" * 340_000, "more than 8,000,000 bytes"),
    "many tools": (
        lambda: sse(*({"type": "TOOL_CALL_CHUNK", "toolCallId": f"{n}", "toolCallName": "t", "delta": "{"}
                      for n in range(1_100))),
        "too many tools",
    ),
    "many tools without arguments": (
        lambda: sse(*({"type": "TOOL_CALL_START", "toolCallId": f"{n}", "toolCallName": "t"} for n in range(1_100))),
        "too many tools",
    ),
    "long arguments": (
        lambda: sse(*[ARGS] * 11),
        "too much in their arguments",
    ),
    "an error with colours": (lambda: sse({"type": "RUN_ERROR", "message": "\x1b[31mno\ntea" + "x" * 9_000}), "no tea"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_agui_fails_the_run_with_one_line(session: NotebookSession, name: str) -> None:
    """And changes nothing else: bounded, never run, and named."""
    body, words = HOSTILE[name]
    run = ended(session.start(AguiAgent(SERVER.address_of(body())), "a cup"))
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert words in run.error.message
    assert len(run.error.message) < 800
    assert "\n" not in run.error.message
    assert ended(session.start(Says([TEXT, FINISHED]), "a cup")).text == "tea"


# --- out ---------------------------------------------------------------------------------------------


async def events_of(run: Run) -> list[agui.BaseEvent]:
    """Return a run as AG-UI's events."""
    return [event async for event in nbrun.to_agui(run)]


def check(events: list[Any]) -> None:
    """Fail unless messages, reasoning, tools and steps are pairs, within one start and one end."""
    kinds = [event.type.value for event in events]
    assert kinds[0] == "RUN_STARTED"
    assert kinds[-1] in ("RUN_FINISHED", "RUN_ERROR")
    assert sum(kind.startswith(("RUN_S", "RUN_F", "RUN_E")) for kind in kinds) == 2
    opened: set[tuple[str, str]] = set()
    for event in events:
        kind = event.type.value
        for ending, is_start in (("_START", True), ("_STARTED", True), ("_END", False), ("_FINISHED", False)):
            if kind.startswith("RUN_") or not kind.endswith(ending):
                continue
            ids = [getattr(event, name, None) for name in ("message_id", "tool_call_id", "step_name")]
            key = (kind.removesuffix(ending), str(next(each for each in ids if each)))
            assert (key in opened) is not is_start, event
            opened ^= {key}
        if kind in ("TEXT_MESSAGE_CONTENT", "REASONING_MESSAGE_CONTENT"):
            assert (kind.removesuffix("_CONTENT"), event.message_id) in opened
        if kind == "TOOL_CALL_ARGS":
            assert ("TOOL_CALL", event.tool_call_id) in opened
        agui.Event.model_validate_json(event.model_dump_json(by_alias=True)) if hasattr(
            agui.Event, "model_validate_json"
        ) else None
    assert opened == set()


async def busy(prompt: str, run: RunContext) -> str:
    """Do a bit of everything."""
    run.reasoning("hm")
    run.text("let us ")
    with run.tool("add", {"a": 2}) as tool:
        run.progress(1, 2)
        tool.result = {"sum": 5}
    tool = run.begin_tool("look")
    tool.args('{"at": ')
    run.phase("looking")
    tool.args("1}")
    tool.finish(status="denied")
    run.begin_tool("left open")
    run.text("see")
    run.emit("score", 1)
    run.usage(input_tokens=7, output_tokens=2, cost_usd=0.5)
    run.checkpoint({"a": b"\xff"})
    return "let us see"


def test_a_run_is_shown_in_another_page(session: NotebookSession) -> None:
    """Of a run that has ended as while it runs: each part in AG-UI's own form, everything else under its name."""
    run = session.start(busy, "tea")
    live = asyncio.run(events_of(run))
    stored = asyncio.run(events_of(session.get(ended(run).id)))
    assert live == stored
    check(live)
    text = "".join(e.delta for e in live if isinstance(e, agui.TextMessageContentEvent))
    assert text == "let us see"
    args = "".join(e.delta for e in live if isinstance(e, agui.ToolCallArgsEvent))
    assert args == '{"a":2}{"at": 1}'
    results = [e.content for e in live if isinstance(e, agui.ToolCallResultEvent)]
    assert results == ['{"sum":5}', "denied", "cancelled"]
    names = {e.name for e in live if isinstance(e, agui.CustomEvent)}
    assert {"score", "nbrun.progress", "nbrun.run.phase", "nbrun.usage", "nbrun.checkpoint"} <= names
    last = live[-1]
    assert isinstance(last, agui.RunFinishedEvent)
    assert last.usage is not None
    assert (last.result, last.usage[0].input_tokens) == (None, 7)  # its messages are its output
    assert last.timestamp is not None


def test_each_ending_has_its_form(session: NotebookSession, held: Any) -> None:
    """An output without text is a message; a failure is an error, and a cancel its own outcome."""

    def fails(prompt: str) -> None:
        raise ValueError("no luck")

    output = asyncio.run(events_of(ended(session.start(lambda prompt: {"cups": 2}, "tea"))))
    failed = asyncio.run(events_of(ended(session.start(fails, "tea"))))
    live = session.start(held, "tea")
    live.cancel()
    cancelled = asyncio.run(events_of(ended(live)))
    for events in (output, failed, cancelled):
        check(events)
    assert [e.delta for e in output if isinstance(e, agui.TextMessageContentEvent)] == ['{"cups":2}']
    error, end = failed[-1], cancelled[-1]
    assert isinstance(error, agui.RunErrorEvent)
    assert (error.message, error.code) == ("no luck", "ValueError")
    assert isinstance(end, agui.RunFinishedEvent)
    assert isinstance(end.outcome, agui.RunFinishedCancelledOutcome)


def test_out_and_in_again_it_is_the_same_run(session: NotebookSession) -> None:
    """Text, reasoning, tools with their arguments, and usage come through both ways."""

    class Mirror:
        def __init__(self, run: Run) -> None:
            self._run = run

        def run(self, input: agui.RunAgentInput) -> AsyncIterator[agui.BaseEvent]:
            return nbrun.to_agui(self._run)

    run = ended(session.start(busy, "tea"))
    again = ended(session.start(Mirror(run), "tea"))
    assert (again.text, again.record.reasoning) == ("let us \n\nsee", "hm")  # a message of AG-UI ends before a tool
    assert [(t.name, t.args) for t in again.record.tools] == [(t.name, t.args) for t in run.record.tools]
    assert (again.usage.input_tokens, again.usage.output_tokens) == (7, 2)
