"""Every model call of a run, whatever code makes it: counted, limited, and closed by a cancel."""

from __future__ import annotations

import asyncio
import gzip
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal

import brotli
import httpx
import httpx2
import openai
import pytest
import zstandard

from nbrun import NotebookSession, Run, RunContext, events as ev
from nbrun.calls import transports
from nbrun.calls.call import Call
from nbrun.calls.forms import MAX_INFLATED, BodyReader, find_target
from nbrun.core.errors import RunCancelled
from tests.conftest import MakeSession
from tests.fakes.agents import BOUND_S
from tests.fakes.provider import ASKED, FORMS, Provider

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
PACKAGES = [pytest.param(package, id=package.__name__) for package in (httpx, httpx2)]


@pytest.fixture
def provider() -> Iterator[Provider]:
    """Return a provider that has been started."""
    with Provider() as provider:
        yield provider


def url_of(provider: Provider, form: str, *, stream: bool) -> str:
    """Return where a form's requests go."""
    path = FORMS[form].path
    if form == "google":
        path = f"{path}?alt=sse" if stream else path.replace("streamG", "g")
    return provider.url + path


def body(*, stream: bool) -> dict[str, Any]:
    """Return a request."""
    return {"model": "gpt-4o", "stream": stream, "messages": MESSAGES}


def ask(client: Any, url: str, *, stream: bool = True) -> bytes:
    """Make a call as a provider's package does, and return its body."""
    with client.stream("POST", url, json=body(stream=stream)) as response:
        return b"".join(response.iter_bytes())


async def ask_async(client: Any, url: str, *, stream: bool = True) -> bytes:
    """Do the same with an async client."""
    async with client.stream("POST", url, json=body(stream=stream)) as response:
        return b"".join([piece async for piece in response.aiter_bytes()])


def calls_of(run: Run) -> list[ev.CallFinished]:
    """Return the ends of a run's calls."""
    return [event.data for event in run.events() if isinstance(event.data, ev.CallFinished)]


def finish(run: Run) -> Run:
    """Wait for a run's end."""
    assert run.wait(BOUND_S)
    return run


def test_a_call_belongs_to_the_tool_that_makes_it(session: NotebookSession, provider: Provider) -> None:
    """The innermost one of its own run, also in a thread that the tool waits for; then to none again."""
    url = url_of(provider, "chat", stream=False)

    def call() -> None:
        with httpx.Client() as client:
            ask(client, url, stream=False)

    async def asks(run: RunContext) -> None:
        with run.tool("outer"):
            with run.tool("inner"):
                await run.in_thread(call)
            await run.in_thread(call)
            await run.start_child(call)
        await run.in_thread(call)

    run = finish(session.start(asks))
    started = [event.data for event in run.events() if isinstance(event.data, ev.CallStarted)]
    assert [call.parent for call in started] == ["tool-2", "tool-1", ""]
    [child] = [one for one in session.runs() if one.parent_id is not None]
    assert [event.data.parent for event in child.events() if isinstance(event.data, ev.CallStarted)] == [""]


@pytest.mark.parametrize("on", ["local", "process"])
def test_calls_are_not_seen_where_that_is_switched_off(
    make_session: MakeSession, provider: Provider, on: Literal["local", "process"]
) -> None:
    """In a process of its own, too; it applies to the runs that are started after it."""
    url, asked = url_of(provider, "chat", stream=False), body(stream=False)

    def asks() -> int:
        import httpx

        return httpx.post(url, json=asked).status_code

    session = make_session(watch_calls=False)
    unseen = finish(session.start(asks, on=on))
    assert (unseen.output, unseen.calls, unseen.usage) == (200, [], ev.Usage())
    session.watch_calls = True
    seen = finish(session.start(asks, on=on))
    assert (seen.output, [call.model for call in seen.calls], seen.usage.input_tokens) == (200, ["gpt-4o"], ASKED)


def test_clients_are_as_they_were_after_the_last_session(make_session: MakeSession, provider: Provider) -> None:
    """Nothing of nbrun is left in them; with two sessions they are changed once, so that no call is counted twice."""
    names = ("handle_request", "handle_async_request")
    owners = [owner for package in (httpx, httpx2) for owner in (package.HTTPTransport, package.AsyncHTTPTransport)]
    before = [vars(owner).get(name) for owner in owners for name in names]
    url = url_of(provider, "chat", stream=False)
    sessions = [make_session(path=f"{name}.ipynb") for name in ("one", "two")]
    for session in sessions:
        run = finish(session.start(lambda: httpx.post(url, json=body(stream=False)).status_code))
        assert len(run.calls) == 1
    for session in sessions:
        session.close()
    assert [vars(owner).get(name) for owner in owners for name in names] == before


def test_a_run_has_its_calls_also_in_a_later_kernel(make_session: MakeSession, provider: Provider) -> None:
    """Each with what is known of it, whoever looks."""
    url = url_of(provider, "chat", stream=True)
    provider.refusals.append(429)

    def asks() -> None:
        with httpx.Client() as client:
            ask(client, url)
            ask(client, url)

    session = make_session()
    run = finish(session.start(asks))
    refused, answered = run.calls
    assert (refused.status, refused.error, refused.usage) == ("error", "HTTP 429", None)
    assert (answered.id, answered.provider, answered.model, answered.status) == ("call-2", "127.0.0.1", "gpt-4o", "ok")
    assert answered.usage is not None
    assert answered.usage == ev.Usage(
        ASKED, 4, FORMS["chat"].cached, FORMS["chat"].reasoned, 1, answered.usage.cost_usd
    )
    assert answered.started_at >= refused.started_at >= run.created_at
    assert answered.first_ms is not None
    assert answered.ms is not None
    assert 0 < answered.first_ms <= answered.ms
    calls = run.calls
    session.close()
    assert make_session().get(run.id).calls == calls


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("package", PACKAGES)
def test_the_tokens_of_every_form_are_counted(
    session: NotebookSession, provider: Provider, package: ModuleType, form: str, stream: bool, is_async: bool
) -> None:
    """What the provider says that it was paid for is the run's usage, once."""
    url = url_of(provider, form, stream=stream)

    async def asks() -> None:
        if is_async:
            async with package.AsyncClient(verify=False) as client:
                await ask_async(client, url, stream=stream)
        else:
            with package.Client(verify=False) as client:
                ask(client, url, stream=stream)

    run = finish(session.start(asks))
    expected = ev.Usage(ASKED, provider.words or 0, FORMS[form].cached, FORMS[form].reasoned, requests=1)
    assert run.status == "completed"
    assert run.usage == expected
    [call] = calls_of(run)
    assert (call.status, call.usage) == ("ok", expected)
    [started] = [event.data for event in run.events() if isinstance(event.data, ev.CallStarted)]
    assert started.model == "gpt-4o"


def test_a_compressed_answer_is_read(session: NotebookSession, provider: Provider) -> None:
    """Providers compress what they send whole."""
    provider.is_gzipped = True
    with httpx2.Client(verify=False) as client:
        run = finish(session.start(lambda: ask(client, url_of(provider, "chat", stream=False), stream=False)))
    assert run.usage.input_tokens == ASKED


def test_what_the_agent_reports_too_is_not_counted_twice(session: NotebookSession, provider: Provider) -> None:
    """An adapter announces the call and reports its usage; both are about the same call."""

    def asks(prompt: str, run: Any) -> None:
        with httpx2.Client(verify=False) as client:
            for _ in range(2):
                run.begin_turn()
                ask(client, url_of(provider, "chat", stream=True))
                run.usage(input_tokens=ASKED, output_tokens=4, requests=1)

    run = finish(session.start(asks))
    assert (run.usage.input_tokens, run.usage.output_tokens, run.usage.requests) == (2 * ASKED, 8, 2)


def test_other_requests_are_not_recorded(session: NotebookSession, provider: Provider) -> None:
    """A page that an agent reads is no model call."""

    def reads() -> str:
        with httpx2.Client(verify=False) as client:
            return str(client.get(provider.url).text)

    run = finish(session.start(reads))
    assert run.result() == "ok"
    assert calls_of(run) == []


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("when", ["before the head", "in the body", "in another request"])
def test_a_cancel_closes_the_call_of_a_sync_agent(
    make_session: MakeSession, provider: Provider, package: ModuleType, when: str
) -> None:
    """The thread that reads leaves at once, without the grace period, and the provider stops."""
    provider.words = None
    provider.hold = None if when == "in the body" else threading.Event()
    left: list[str] = []

    def asks() -> None:
        with package.Client(verify=False) as client:
            try:
                if when == "in another request":
                    client.get(provider.url)
                else:
                    ask(client, url_of(provider, "chat", stream=True))
            except Exception as error:  # an SDK would try again
                left.append(f"tried again after {error!r}")
            except BaseException as error:
                left.append(type(error).__name__)
                raise

    run = make_session(cancel_grace_s=2 * BOUND_S).start(asks)  # so it isn't the grace period that ends it
    assert (provider.spoke if when == "in the body" else provider.arrived).acquire(timeout=BOUND_S)
    run.cancel()
    assert provider.hung_up.acquire(timeout=BOUND_S)
    finish(run)
    assert run.status == "cancelled"
    assert left == ["Cancelled"]
    assert [call.status for call in calls_of(run)] == ([] if when == "in another request" else ["cancelled"])


def test_a_cancel_closes_the_call_of_an_async_agent(session: NotebookSession, provider: Provider) -> None:
    """Here the cancel of the task does it, and the record says so."""
    provider.words = None

    async def asks() -> None:
        async with httpx2.AsyncClient(verify=False) as client:
            await ask_async(client, url_of(provider, "chat", stream=True))

    run = session.start(asks)
    assert provider.spoke.acquire(timeout=BOUND_S)
    run.cancel()
    assert provider.hung_up.acquire(timeout=BOUND_S)
    assert [call.status for call in calls_of(finish(run))] == ["cancelled"]


def test_a_cancel_leaves_other_calls_of_the_same_client_alone(session: NotebookSession, provider: Provider) -> None:
    """Another run and the notebook itself share the client and its pool: a hundred cancels disturb neither."""
    provider.words = None
    is_over = threading.Event()
    with httpx2.Client(verify=False) as client:
        url = url_of(provider, "chat", stream=True)

        def asks() -> int:
            count = 0
            with client.stream("POST", url, json=body(stream=True)) as response:
                for _ in response.iter_bytes():
                    count += 1
                    if is_over.is_set():
                        break
            return count

        beside: list[int] = []
        cell = threading.Thread(target=lambda: beside.append(asks()))
        cell.start()
        other = session.start(asks)
        for _ in range(100):
            while provider.spoke.acquire(blocking=False):
                pass
            run = session.start(asks)
            assert provider.arrived.acquire(timeout=BOUND_S)
            for _ in range(4):
                assert provider.spoke.acquire(timeout=BOUND_S)
            run.cancel()
            assert finish(run).status == "cancelled"
        is_over.set()
        cell.join(BOUND_S)
        assert finish(other).status == "completed"
    assert beside
    assert beside[0] > 0


@pytest.mark.parametrize("package", PACKAGES)
def test_a_cancel_that_comes_late_leaves_the_next_call_of_the_connection_alone(
    session: NotebookSession, provider: Provider, package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred times: it is under way when its call ends, and another run has the connection when it cuts."""
    cuts, is_read, may_end, may_cut = (threading.Semaphore(0) for _ in range(4))
    found: list[bool] = []
    complete, cut = Call.complete, transports.cut
    late: list[Call] = []

    def complete_late(call: Call) -> None:
        if not late:
            late.append(call)
            is_read.release()
            assert may_end.acquire(timeout=BOUND_S)
        complete(call)

    def cut_late(transport: Any, extensions: object) -> bool:
        cuts.release()
        assert may_cut.acquire(timeout=BOUND_S)
        found.append(cut(transport, extensions))
        return found[-1]

    monkeypatch.setattr(Call, "complete", complete_late)
    monkeypatch.setattr(transports, "cut", cut_late)
    url = url_of(provider, "chat", stream=False)
    with package.Client(verify=False, limits=package.Limits(max_connections=1), timeout=BOUND_S) as client:
        for _ in range(100):
            late.clear()
            provider.hold = None
            first = session.start(lambda: ask(client, url, stream=False))
            assert is_read.acquire(timeout=BOUND_S)
            cancel = threading.Thread(target=first.cancel)
            cancel.start()
            assert cuts.acquire(timeout=BOUND_S)
            assert provider.arrived.acquire(timeout=BOUND_S)
            provider.hold = threading.Event()
            may_end.release()
            second = session.start(lambda: ask(client, url, stream=False))
            assert provider.arrived.acquire(timeout=BOUND_S)
            may_cut.release()
            cancel.join(BOUND_S)
            provider.hold.set()
            assert finish(second).status == "completed"
            assert finish(first).status == "cancelled"
    assert found == [False] * 100


@pytest.mark.parametrize("package", PACKAGES)
def test_a_cancel_of_a_call_that_waits_for_a_connection_leaves_the_pool_whole(
    session: NotebookSession, provider: Provider, package: ModuleType
) -> None:
    """It ends at once, and its place in the pool is free for others."""
    provider.hold = threading.Event()
    url = url_of(provider, "chat", stream=False)
    with package.Client(verify=False, limits=package.Limits(max_connections=1), timeout=BOUND_S) as client:
        pool, waits = client._transport._pool, threading.Event()
        assign = pool._assign_requests_to_connections

        def assigned() -> Any:
            if len(pool._requests) == 2:
                waits.set()
            return assign()

        pool._assign_requests_to_connections = assigned
        first = session.start(lambda: ask(client, url, stream=False))
        assert provider.arrived.acquire(timeout=BOUND_S)
        second = session.start(lambda: ask(client, url, stream=False))
        assert waits.wait(BOUND_S)
        second.cancel()
        assert finish(second).status == "cancelled"
        assert second.record.detached == ()
        provider.hold.set()
        assert finish(first).status == "completed"
        assert ask(client, url, stream=False)


def test_a_limit_of_calls_holds_for_a_plain_function(session: NotebookSession, provider: Provider) -> None:
    """No call is begun beyond it."""

    def asks() -> None:
        with httpx2.Client(verify=False) as client:
            while True:
                ask(client, url_of(provider, "chat", stream=False), stream=False)

    run = finish(session.start(asks, max_turns=3))
    assert (run.status, len(provider.requests), run.usage.requests) == ("cancelled", 3, 3)
    with pytest.raises(RunCancelled, match="max_turns 3"):
        run.result()


# The second call reaches each of these: one takes 11 tokens, and about $0.00006.
LIMITS: dict[str, Any] = {"max_turns": 2, "max_tokens": 20, "max_cost": 0.0001}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("package", [httpx, httpx2, openai], ids=lambda package: str(package.__name__))
@pytest.mark.parametrize("limit", LIMITS)
def test_no_call_is_begun_beyond_a_limit(
    session: NotebookSession,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    package: Any,
    is_async: bool,
    stream: bool,
) -> None:
    """Whatever is limited, a plain function that would ask for ever makes two calls, and ends."""
    for name in ("HTTP_PROXY", "http_proxy"):  # the provider is asked as one whose prices are known
        monkeypatch.setenv(name, provider.url)
    options: Any = {"api_key": "none", "base_url": "http://api.openai.com/v1"}
    url = f"{options['base_url']}/chat/completions"

    def asks() -> None:
        if package is openai:
            with openai.OpenAI(**options) as client:
                while True:
                    answer: Any = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=stream)
                    assert not stream or list(answer)
        with package.Client(verify=False) as client:
            while True:
                ask(client, url, stream=stream)

    async def asks_async() -> None:
        if package is openai:
            async with openai.AsyncOpenAI(**options) as client:
                while True:
                    answer: Any = await client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=stream)
                    assert not stream or [piece async for piece in answer]
        async with package.AsyncClient(verify=False) as client:
            while True:
                await ask_async(client, url, stream=stream)

    run = finish(session.start(asks_async if is_async else asks, **{limit: LIMITS[limit]}))
    assert (run.status, run.cause) == ("cancelled", "budget")
    assert (len(provider.requests), run.usage.requests) == (2, 2)


def test_a_limit_of_tokens_closes_a_stream(session: NotebookSession, provider: Provider) -> None:
    """A provider that reports usage as it goes is stopped where the limit is."""
    provider.words = None

    def asks() -> None:
        with httpx2.Client(verify=False) as client:
            ask(client, url_of(provider, "google", stream=True))

    run = finish(session.start(asks, max_tokens=ASKED + 10))
    assert provider.hung_up.acquire(timeout=BOUND_S)
    assert run.status == "cancelled"
    assert run.usage.output_tokens == 11


def test_a_refused_request_is_the_same_call_tried_again(session: NotebookSession, provider: Provider) -> None:
    """An SDK's own retries are seen, and are not counted against the limit."""
    provider.refusals.extend([429, 503])

    def asks() -> None:
        with httpx2.Client(verify=False) as client:
            for _ in range(3):
                ask(client, url_of(provider, "chat", stream=True))

    run = finish(session.start(asks, max_turns=1))
    assert run.status == "completed"
    assert [(call.status, call.error) for call in calls_of(run)] == [
        ("error", "HTTP 429"), ("error", "HTTP 503"), ("ok", ""),
    ]  # fmt: skip
    assert run.usage.requests == 1


USED = b'{"usage": {"prompt_tokens": 7, "completion_tokens": 4}'
READABLE = {
    "a fraction": USED.replace(b"7", b"7.0") + b"}",
    "null a second time": USED + b', "usage" : null}',
    "a text where a message was": USED + b', "message": "hello"}',
    "a number where a message was": USED + b', "message": 5, "response": [1]}',
    "a broken part": USED + b', "message": {"usage": {"input_tokens": -1}}, "usageMetadata": {"promptTokenCount": -1}}',
    "an event": b": beat\r\n\r\ndata: " + USED + b"}\r\n\r\ndata: [DONE]\r\n\r\n",
    "an event without its end": b"data: {}\n\ndata: " + USED + b"}",
    "lines": b'{"done": false}\n' + USED + b"}\n",
}


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream", "text/html"])
@pytest.mark.parametrize("content", READABLE.values(), ids=READABLE)
def test_an_odd_body_keeps_its_usage(content: bytes, content_type: str) -> None:
    """One field that is wrong hides no other, and neither does a wrong content type."""
    reader = BodyReader(content_type, "")
    reader.feed(content)
    reader.close()
    assert reader.usage == ev.Usage(7, 4)


def test_bedrock_is_a_form() -> None:
    """Its clients use urllib3; the model is in the address, with its colon quoted."""
    found = find_target(
        "POST", "bedrock-runtime.eu-west-1.amazonaws.com", "/model/amazon.nova-pro-v1%3A0/converse", b"{}"
    )
    assert found == ("aws", "amazon.nova-pro-v1:0")
    reader = BodyReader("application/json", "")
    reader.feed(b'{"usage": {"inputTokens": 5, "outputTokens": 4, "totalTokens": 11, "cacheReadInputTokens": 2}}')
    reader.close()
    assert reader.usage == ev.Usage(7, 4, 2)


HOSTILE = {
    "not JSON": b"usage: {{{",
    "negative tokens": b'{"usage": {"prompt_tokens": -5, "completion_tokens": 1}}',
    "text for numbers": b'{"usage": {"prompt_tokens": "7"}}',
    "deep": b'{"usage": ' + b"[" * 100_000,
    "not UTF-8": b'{"usage": "\xff\xfe"}',
    "huge number": b'{"usage": {"prompt_tokens": 1' + b"0" * 5000 + b"}}",
    "a list of nothing": b'[1, null, {"usage": []}]',
}


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream", "text/html"])
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_broken_body_loses_its_usage_and_nothing_else(
    session: NotebookSession, provider: Provider, content: bytes, content_type: str
) -> None:
    """The agent gets every byte."""
    provider.body = b"data: " + content if content_type.endswith("stream") else content
    provider.content_type = content_type
    with httpx2.Client(verify=False) as client:
        run = finish(session.start(lambda: ask(client, url_of(provider, "chat", stream=True)) == provider.body))
    assert run.result() is True
    [call] = calls_of(run)
    assert (call.status, call.usage) == ("ok", None)


TOO_MUCH = {
    "what comes after a compressed body": ([gzip.compress(b"data: x\n"), *[b"junk" * 16_000] * 40], "gzip"),
    "a body in tiny pieces": ([b"ab"] * 200_000, ""),
    "a gigabyte": ([b'{"usage": {"prompt_tokens": 7}, "text": "', *[b"x" * 1_000_000] * 1000, b'"}'], ""),
    "a list of very many": ([b'[{"usage":{"prompt_tokens":3}}', b",{}" * 500_000, b"]"], ""),
}


@pytest.mark.parametrize(("pieces", "encoding"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_body_takes_little_more_memory_than_its_size(pieces: list[bytes], encoding: str) -> None:
    """Whoever answers chooses what is sent."""
    reader = BodyReader("application/json", encoding)
    tracemalloc.start()
    try:
        for piece in pieces:
            reader.feed(bytes(bytearray(piece)))
        kept, _ = tracemalloc.get_traced_memory()
        reader.close()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2_000_000
    assert most < 50_000_000
    assert reader.usage is None


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: gzip.compress(body, 1),
    "br": lambda body: brotli.compress(body, quality=1),
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("encoding", COMPRESSIONS)
def test_a_compressed_stream_is_read_up_to_a_size(encoding: str) -> None:
    """A few kilobytes can be blown up to gigabytes, which would hold up the loop of all runs."""
    used = b'data: {"usage": {"prompt_tokens": 7}}\n'
    long, short = (COMPRESSIONS[encoding](size * b"x" + b"\n" + used) for size in (MAX_INFLATED, 10))
    tracemalloc.start()
    try:
        assert not BodyReader("text/event-stream", encoding).feed(long)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 50_000_000
    assert BodyReader("text/event-stream", encoding).feed(short)
    assert not BodyReader("text/event-stream", encoding).feed(b"no such thing")


def test_zstandard_of_python_is_used_where_the_other_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients have a choice of two packages."""
    compressed = zstandard.compress(b'data: {"usage": {"prompt_tokens": 7}}\n')
    monkeypatch.setitem(sys.modules, "zstandard", None)
    reader = BodyReader("text/event-stream", "zstd")
    assert reader.feed(compressed)
    assert not reader.feed(b"more")


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
def test_lines_are_found_wherever_a_stream_is_cut(size: int) -> None:
    """Pieces end anywhere, and a line between two others reports as they do."""
    lines = [
        b"",
        b"",
        b"{}",
        *(b'data: {"usage":{"prompt_tokens":%d}}' % count for count in (1, 2)),
        b"data: x",
        b"",
        b"x",
    ]
    lines[4:4] = [b'"usage":{', b""]
    stream, reader = b"\r\n".join(lines), BodyReader("text/event-stream", "")
    for at in range(0, len(stream), size):
        reader.feed(stream[at : at + size])
    reader.close()
    assert reader.usage == ev.Usage(2)


def test_a_request_can_be_sent_again(session: NotebookSession, provider: Provider) -> None:
    """The cancel of a run ends its own requests, not those of whoever sends the same object afterwards."""
    provider.words = 1
    with httpx2.Client(verify=False) as client:
        request = client.build_request("POST", url_of(provider, "chat", stream=False), json=body(stream=False))
        extensions = request.extensions
        sent = threading.Event()

        def asks(prompt: str, run: Any) -> None:
            client.send(request)
            sent.set()
            run.token.wait_sync(BOUND_S)

        first = session.start(asks)
        assert sent.wait(BOUND_S)
        first.cancel()
        assert finish(first).status == "cancelled"
        again = finish(session.start(lambda: [client.send(request).status_code for _ in range(3)]))
        assert again.result() == [200, 200, 200]
        assert client.send(request).status_code == 200
        assert request.extensions is extensions


def test_a_call_that_has_ended_takes_no_more_usage(session: NotebookSession) -> None:
    """One thread closes a response while another one reads it."""

    def asks(prompt: str, run: RunContext) -> None:
        call = run.begin_call("openai", "gpt-4o")
        run.end_call(ev.CallFinished(call, "ok", 1.0))
        run.note_call(call, ev.Usage(7, 4, requests=1))

    run = finish(session.start(asks))
    assert (run.status, run.usage.input_tokens) == ("completed", 0)


def test_a_refusal_that_nobody_reads_is_a_refusal(session: NotebookSession, provider: Provider) -> None:
    """A client looks at the status only."""
    provider.refusals.append(429)

    def asks() -> None:
        with httpx2.Client(verify=False) as client:
            for _ in range(2):
                with client.stream("POST", url_of(provider, "chat", stream=True), json=body(stream=True)):
                    pass

    run = finish(session.start(asks, max_turns=1))
    assert [(call.status, call.error) for call in calls_of(run)] == [("error", "HTTP 429"), ("ok", "")]


def test_outside_of_a_run_nothing_is_changed(session: NotebookSession, provider: Provider) -> None:
    """A request of the notebook's goes to the transport as it is."""
    finish(session.start(lambda: None))
    with httpx2.Client(verify=False) as client:
        request = client.build_request("POST", url_of(provider, "chat", stream=False), json=body(stream=False))
        extensions = request.extensions
        response = client.send(request)
    assert request.extensions is extensions
    assert "nbrun" not in type(response.stream).__module__
    assert session.runs()[0].usage.requests == 0


def test_a_closed_session_leaves_the_clients_as_they_were(session: NotebookSession) -> None:
    """What was changed is changed back."""
    finish(session.start(lambda: asyncio.sleep(0)))
    assert httpx2.HTTPTransport.handle_request.__module__.startswith("nbrun")
    session.close()
    assert httpx2.HTTPTransport.handle_request.__module__.startswith("httpx2")
