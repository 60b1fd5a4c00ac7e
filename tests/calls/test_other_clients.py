"""Clients for HTTP that aren't httpx: their calls are the run's, too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3

from nbrun import NotebookSession, Run, events as ev
from nbrun.calls import CLIENTS, GOVERNOR, Limits
from nbrun.core.errors import NotResumable
from tests.conftest import MakeSession
from tests.fakes.agents import BOUND_S
from tests.fakes.people import until
from tests.fakes.provider import ASKED, FORMS, Provider


@pytest.fixture
def provider() -> Iterator[Provider]:
    """Return a provider that has been started."""
    with Provider() as provider:
        yield provider


def body(*, stream: bool) -> dict[str, Any]:
    """Return a request."""
    return {"model": "gpt-4o", "stream": stream, "messages": [{"role": "user", "content": "Hello"}]}


def calls_of(run: Run) -> list[ev.CallFinished]:
    """Return the ends of a run's calls."""
    return [event.data for event in run.events() if isinstance(event.data, ev.CallFinished)]


async def _read(response: aiohttp.ClientResponse) -> None:
    await response.read()


async def _read_json(response: aiohttp.ClientResponse) -> None:
    await response.json(content_type=None)


async def _read_lines(response: aiohttp.ClientResponse) -> None:
    async for _ in response.content:
        pass


async def _read_chunks(response: aiohttp.ClientResponse) -> None:
    async for _ in response.content.iter_chunks():
        pass


async def _read_any(response: aiohttp.ClientResponse) -> None:
    async for _ in response.content.iter_any():
        pass


async def _read_sized(response: aiohttp.ClientResponse) -> None:
    async for _ in response.content.iter_chunked(7):
        pass


READERS: dict[str, tuple[bool, Callable[[aiohttp.ClientResponse], Awaitable[None]]]] = {
    "whole": (False, _read),
    "as JSON": (False, _read_json),
    "a stream, whole": (True, _read),
    "lines": (True, _read_lines),
    "chunks": (True, _read_chunks),
    "as it comes": (True, _read_any),
    "of a size": (True, _read_sized),
}


@pytest.mark.parametrize("is_gzipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("stream", "read"), READERS.values(), ids=READERS)
def test_the_tokens_of_aiohttp_are_counted(
    session: NotebookSession, provider: Provider, stream: bool, read: Any, is_gzipped: bool
) -> None:
    """In whatever way its answer is read."""
    provider.is_gzipped = is_gzipped

    async def asks() -> None:
        url = provider.url + FORMS["chat"].path
        async with aiohttp.ClientSession() as client, client.post(url, json=body(stream=stream)) as response:
            await read(response)

    run = session.start(asks)
    assert run.wait(BOUND_S)
    run.result()
    used = ev.Usage(ASKED, provider.words or 0, FORMS["chat"].cached, FORMS["chat"].reasoned, requests=1)
    assert run.usage == used
    [call] = calls_of(run)
    assert (call.status, call.usage) == ("ok", used)


def test_an_answer_of_aiohttp_that_is_left_is_a_call_that_has_ended(
    session: NotebookSession, provider: Provider
) -> None:
    """Its client has read enough."""
    provider.words = None

    async def asks() -> None:
        url = provider.url + FORMS["google"].path + "?alt=sse"
        async with aiohttp.ClientSession() as client, client.post(url, data="{}") as response:
            await response.content.readline()

    run = session.start(asks)
    assert run.wait(BOUND_S)
    assert [call.status for call in calls_of(run)] == ["ok"]
    assert provider.hung_up.acquire(timeout=BOUND_S)


def test_a_refusal_to_aiohttp_is_tried_again_as_the_same_call(session: NotebookSession, provider: Provider) -> None:
    """An SDK's own retries are seen, and are not counted against the limit."""
    provider.refusals.append(429)

    async def asks() -> None:
        url = provider.url + FORMS["chat"].path
        async with aiohttp.ClientSession() as client:
            for _ in range(3):
                async with client.post(url, json=body(stream=False)) as response:
                    await response.read()

    run = session.start(asks, max_turns=1)
    assert run.wait(BOUND_S)
    assert run.status == "cancelled"
    assert [(call.status, call.error) for call in calls_of(run)] == [("error", "HTTP 429"), ("ok", "")]


@pytest.mark.parametrize("way", ["async", "own loop", "own thread"])
@pytest.mark.parametrize("when", ["before the head", "in the body", "in another request"])
def test_a_cancel_closes_the_call_of_aiohttp(
    make_session: MakeSession, provider: Provider, when: str, way: str
) -> None:
    """On the loop of the agent, and on a loop that it has made."""
    provider.words = None
    provider.hold = None if when == "in the body" else threading.Event()

    async def asks() -> None:
        async with aiohttp.ClientSession() as client:
            if when == "in another request":
                await client.get(provider.url)
            async with client.post(provider.url + FORMS["chat"].path, json=body(stream=True)) as response:
                await _read_lines(response)

    def in_thread() -> None:
        thread = threading.Thread(target=lambda: asyncio.run(asks()))
        thread.start()
        thread.join()

    agents: dict[str, Callable[[], object]] = {
        "async": asks,
        "own loop": lambda: asyncio.run(asks()),
        "own thread": in_thread,
    }
    run = make_session(cancel_grace_s=2 * BOUND_S).start(agents[way])  # so it isn't the grace period that ends it
    assert (provider.spoke if when == "in the body" else provider.arrived).acquire(timeout=BOUND_S)
    run.cancel()
    assert provider.hung_up.acquire(timeout=BOUND_S)
    assert run.wait(BOUND_S)
    assert run.status == "cancelled"
    assert [call.status for call in calls_of(run)] == ([] if when == "in another request" else ["cancelled"])


def _whole(url: str, *, stream: bool) -> None:
    urllib3.request("POST", url, json=body(stream=stream))


def _streamed(url: str, *, stream: bool) -> None:
    response = urllib3.request("POST", url, json=body(stream=stream), preload_content=False)
    for _ in response.stream(7):
        pass
    response.release_conn()


def _requested(url: str, *, stream: bool) -> None:
    with requests.Session() as client:
        client.post(url, json=body(stream=stream), timeout=BOUND_S)


def _lines_requested(url: str, *, stream: bool) -> None:
    with (
        requests.Session() as client,
        client.post(url, json=body(stream=stream), stream=True, timeout=BOUND_S) as answer,
    ):
        for _ in answer.iter_lines(chunk_size=7):
            pass


SYNC = {
    "urllib3, whole": _whole,
    "urllib3, streamed": _streamed,
    "requests, whole": _requested,
    "requests, lines": _lines_requested,
}


@pytest.mark.parametrize("is_gzipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("asks", SYNC.values(), ids=SYNC)
def test_the_tokens_of_urllib3_are_counted(
    session: NotebookSession, provider: Provider, stream: bool, asks: Any, is_gzipped: bool
) -> None:
    """In whatever way its answer is read."""
    provider.is_gzipped = is_gzipped
    run = session.start(lambda: asks(provider.url + FORMS["chat"].path, stream=stream))
    assert run.wait(BOUND_S)
    run.result()
    used = ev.Usage(ASKED, provider.words or 0, FORMS["chat"].cached, FORMS["chat"].reasoned, requests=1)
    assert run.usage == used
    [call] = calls_of(run)
    assert (call.status, call.usage) == ("ok", used)


@pytest.mark.parametrize("when", ["before the head", "in the body", "in another request"])
def test_a_cancel_closes_the_call_of_urllib3(make_session: MakeSession, provider: Provider, when: str) -> None:
    """Each time, at once, and its client can be used again; another call of the same client goes on."""
    provider.words = None
    provider.hold = None if when == "in the body" else threading.Event()
    session = make_session(cancel_grace_s=2 * BOUND_S)  # so it isn't the grace period that ends it
    url, is_over = provider.url + FORMS["chat"].path, threading.Event()
    with requests.Session() as client:

        def asks() -> None:
            if when == "in another request":
                client.get(provider.url, timeout=BOUND_S)
            with client.post(url, json=body(stream=True), stream=True, timeout=BOUND_S) as response:
                for _ in response.iter_content(None):
                    if is_over.is_set():
                        break

        beside = session.start(asks)
        assert provider.arrived.acquire(timeout=BOUND_S)
        for _ in range(20):
            while provider.spoke.acquire(blocking=False):
                pass
            run = session.start(asks)
            assert provider.arrived.acquire(timeout=BOUND_S)
            for _ in range(4 if when == "in the body" else 0):  # one of them is the other's, at least
                assert provider.spoke.acquire(timeout=BOUND_S)
            run.cancel()
            assert provider.hung_up.acquire(timeout=BOUND_S)
            assert run.wait(BOUND_S)
            assert (run.status, run.record.detached) == ("cancelled", ())
            assert [call.status for call in calls_of(run)] == ([] if when == "in another request" else ["cancelled"])
        is_over.set()
        if provider.hold is not None:
            provider.hold.set()
        assert beside.wait(BOUND_S)
        assert beside.status == "completed"


def test_a_refusal_to_requests_is_tried_again_as_the_same_call(session: NotebookSession, provider: Provider) -> None:
    """Also where it is urllib3 that tries again."""
    provider.refusals.extend([429, 503])
    retries = urllib3.Retry(3, status_forcelist=[429, 503], allowed_methods=None, respect_retry_after_header=False)

    def asks() -> None:
        with requests.Session() as client:
            client.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries))
            client.post(provider.url + FORMS["chat"].path, json=body(stream=False), timeout=BOUND_S)

    run = session.start(asks, max_turns=1)
    assert run.wait(BOUND_S)
    run.result()
    assert [(call.status, call.error) for call in calls_of(run)] == [
        ("error", "HTTP 429"), ("error", "HTTP 503"), ("ok", ""),
    ]  # fmt: skip


def test_urllib3_is_left_alone_outside_of_a_run_and_afterwards(session: NotebookSession, provider: Provider) -> None:
    """A request of the notebook's is as before, and a closed session changes it back."""
    assert session.start(lambda: None).wait(BOUND_S)
    url = provider.url + FORMS["chat"].path
    response = urllib3.request("POST", url, json=body(stream=True), preload_content=False)
    response.drain_conn()
    assert type(response) is urllib3.HTTPResponse
    pool = urllib3.HTTPConnectionPool
    assert pool._make_request.__module__.startswith("nbrun")
    session.close()
    assert pool._make_request.__module__.startswith("urllib3")


def test_aiohttp_is_left_alone_outside_of_a_run_and_afterwards(session: NotebookSession, provider: Provider) -> None:
    """A request of the notebook's is as before, and a closed session changes it back."""
    assert session.start(lambda: None).wait(BOUND_S)

    async def asks() -> type:
        url = provider.url + FORMS["chat"].path
        async with aiohttp.ClientSession() as client, client.post(url, json=body(stream=True)) as response:
            await response.read()
            return type(response.content)

    assert asyncio.run(asks()) is aiohttp.StreamReader
    assert aiohttp.ClientSession._request.__module__.startswith("nbrun")
    session.close()
    assert aiohttp.ClientSession._request.__module__.startswith("aiohttp")


def _whole_text(url: str, asked: dict[str, Any]) -> str:
    return urllib3.request("POST", url, json=asked).data.decode()


def _streamed_text(url: str, asked: dict[str, Any]) -> str:
    response = urllib3.request("POST", url, json=asked, preload_content=False)
    text = b"".join(response.stream(7)).decode()
    response.release_conn()
    return text


def _requested_text(url: str, asked: dict[str, Any]) -> str:
    return requests.post(url, json=asked, timeout=BOUND_S).text


def _requested_lines(url: str, asked: dict[str, Any]) -> str:
    with requests.post(url, json=asked, stream=True, timeout=BOUND_S) as response:
        return "\n".join(line.decode() for line in response.iter_lines(chunk_size=7))


@pytest.mark.parametrize("is_gzipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("asks", [_whole_text, _streamed_text, _requested_text, _requested_lines])
def test_an_answer_to_urllib3_is_kept_and_not_paid_again(
    session: NotebookSession, provider: Provider, stream: bool, asks: Callable[..., str], is_gzipped: bool
) -> None:
    """The same text comes from the journal, with the same usage; the first other request is made."""
    provider.is_gzipped = is_gzipped
    url, questions = provider.url + FORMS["chat"].path + "?key=sk-secret", ["one"]

    def agent(prompt: str) -> list[str]:
        return [
            asks(url, {**body(stream=stream), "messages": [{"role": "user", "content": question}]})
            for question in questions
        ]

    first: Run = session.start(agent, "hi")
    text: Any = first.result(BOUND_S)
    assert text[0]
    questions.append("two")
    again = first.retry(reuse=True)
    answers: Any = again.result(BOUND_S)
    assert answers[:1] == text
    assert [call.source for call in calls_of(again)] == ["journal", "live"]
    assert calls_of(again)[0].usage is not None
    assert [request["messages"][0]["content"] for request in provider.requests] == ["one", "two"]


def test_a_stream_of_urllib3_that_is_cut_is_not_kept(session: NotebookSession, provider: Provider) -> None:
    """Whatever its reader had of it: it may not be its end."""
    url = provider.url + FORMS["chat"].path
    provider.words = None

    def agent(prompt: str) -> str:
        response = urllib3.request("POST", url, json=body(stream=True), preload_content=False, retries=False)
        try:
            for _ in response.stream():
                provider.drop()
        except urllib3.exceptions.ProtocolError:
            return "cut"
        return "whole"

    first = session.start(agent, "hi")
    assert first.result(BOUND_S) == "cut"
    with pytest.raises(NotResumable, match="has no answers that were kept"):
        first.retry(reuse=True)


@pytest.mark.parametrize("way", ["aiohttp", "urllib3"])
def test_calls_wait_together_with_those_of_httpx(session: NotebookSession, provider: Provider, way: str) -> None:
    """After a refusal to one client, the others' calls with the same key wait; a cancel gets through."""
    url, asked = provider.url + FORMS["chat"].path, body(stream=False)
    keys = {"Authorization": "Bearer sk-one"}

    async def asks_async(headers: dict[str, str]) -> int:
        async with aiohttp.ClientSession(headers=headers) as client, client.post(url, json=asked) as response:
            return response.status

    def asks(headers: dict[str, str]) -> int:
        return requests.post(url, json=asked, headers=headers, timeout=BOUND_S).status_code

    agent = asks_async if way == "aiohttp" else asks
    provider.refusals.append(429)
    provider.headers = {"Retry-After": "120"}
    first = session.start(lambda: agent(keys))
    assert first.result(BOUND_S) == 429
    assert [call.retry_after for call in calls_of(first)] == [120.0]
    provider.headers = {}
    assert session.start(lambda: agent({"Authorization": "Bearer sk-two"})).result(BOUND_S) == 200
    waiting = [
        session.start(lambda: agent(keys)),
        session.start(lambda: httpx2.post(url, json=asked, headers=keys).status_code),
    ]
    for run in waiting:
        until(run, lambda record: any(call.waits_for for group in record.call_groups for call in group.last))
        run.cancel()
        assert run.wait(BOUND_S)
        assert [call.status for call in calls_of(run)] == ["cancelled"]
    assert len(provider.requests) == 2


def test_a_connection_that_was_closed_during_the_wait_is_opened_again(
    session: NotebookSession, provider: Provider
) -> None:
    """A pool gives it away before the wait."""
    url, asked = provider.url + FORMS["chat"].path, body(stream=False)
    GOVERNOR.set_limits(Limits(requests=1))
    try:
        with requests.Session() as client:

            def asks() -> int:
                return client.post(url, json=asked, timeout=BOUND_S).status_code

            assert session.start(asks).result(BOUND_S) == 200
            run = session.start(asks)
            until(run, lambda record: any(call.waits_for for group in record.call_groups for call in group.last))
            provider.drop()
            GOVERNOR.set_limits(Limits())
            assert run.result(BOUND_S) == 200
    finally:
        GOVERNOR.set_limits(Limits())


@pytest.mark.parametrize("client", list(CLIENTS))
def test_no_client_is_seen_where_that_is_switched_off(
    make_session: MakeSession, provider: Provider, client: str
) -> None:
    """Each that is changed asks whether the run's calls are watched."""
    url, asked = provider.url + FORMS["chat"].path, body(stream=False)

    async def asks() -> int:
        async with aiohttp.ClientSession() as session, session.post(url, json=asked) as response:
            return response.status

    agents: dict[str, Callable[[], object]] = {
        "httpx": lambda: httpx.post(url, json=asked).status_code,
        "httpx2": lambda: httpx2.post(url, json=asked).status_code,
        "aiohttp": asks,
        "urllib3": lambda: requests.post(url, json=asked, timeout=BOUND_S).status_code,
    }
    run = make_session(watch_calls=False).start(agents[client])
    assert run.result(BOUND_S) == 200
    assert (run.calls, run.usage) == ([], ev.Usage())
