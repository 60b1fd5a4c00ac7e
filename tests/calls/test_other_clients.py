"""Clients for HTTP that aren't httpx: their calls are the run's, too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from nbrun import NotebookSession, Run, events as ev
from tests.conftest import MakeSession
from tests.fakes.agents import BOUND_S
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
