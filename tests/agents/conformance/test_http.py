"""Agents on a provider's own protocol: a cancel hangs up, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator

import msgspec
import psutil
import pytest

from nbrun import NotebookSession, RunStatus
from nbrun.agents import pricing
from nbrun.core.errors import RunFailed
from tests.agents.conformance import log
from tests.agents.conformance.subject import PROMPT, Subject, subjects
from tests.fakes.agents import BOUND_S
from tests.fakes.openai_server import MODEL, OpenAIServer, says_tea
from tests.fakes.people import until

SOON_S = 3.0
"""What a cancel takes on a starved machine, where 50 s are to be waited."""

SUBJECTS = {name: subject for name, subject in subjects().items() if subject.has_http}


@pytest.fixture(params=list(SUBJECTS))
def subject(request: pytest.FixtureRequest) -> Subject:
    """One kind of agent after the other."""
    return SUBJECTS[request.param]


async def looks_around(prompt: str) -> list[str]:
    """Return the names of the other tasks on the loop of the runs."""
    return [t.get_name() for t in asyncio.all_tasks() if t is not asyncio.current_task()]


def sockets_to(port: int) -> int:
    """Return how many sockets of this process are connected to a port."""
    found = psutil.Process().net_connections("tcp")
    return sum(bool(c.raddr) and c.raddr.port == port and c.status == "ESTABLISHED" for c in found)


def test_the_server_sees_who_hangs_up_with_words_unread() -> None:
    """Their system resets the connection then, which is no end of a stream."""
    body = json.dumps({"stream": True, "messages": []}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    with OpenAIServer() as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head + body)
        client.recv(1)
        client.close()
        server.wait_hung_up()


def test_an_answer_is_streamed(session: NotebookSession, subject: Subject) -> None:
    """Over the real client: deltas, usage and the price of the model."""
    with OpenAIServer(says_tea) as server:
        agent = subject.over_http(server.url, MODEL)
        run = session.start(agent, PROMPT)
        assert run.result(BOUND_S) == "Steam from the cup"
        session.start(lambda: subject.hang_up(agent)).result(BOUND_S)
    log.check(run)
    (request,) = server.requests
    assert PROMPT in str(request["messages"])
    assert (run.usage.input_tokens, run.usage.output_tokens) == (7, 4)
    assert run.usage.cost_usd is not None
    assert run.usage.cost_usd > 0


def test_a_cancel_hangs_up_and_leaves_nothing(session: NotebookSession, subject: Subject) -> None:
    """The provider hears of it, and no task, thread or socket is left."""
    threads = set(threading.enumerate())
    with OpenAIServer() as server:
        run = session.start(subject.over_http(server.url, MODEL), PROMPT)
        until(run, lambda record: "word5" in record.text)
        run.cancel()
        server.wait_hung_up()
        assert run.wait(BOUND_S)
        assert run.status is RunStatus.CANCELLED
        assert (run.record.detached, run.error) == ((), None)
        assert session.start(looks_around).result(BOUND_S) == []
        assert sockets_to(server.port) == 0
    log.check(run)
    left = {t.name for t in set(threading.enumerate()) - threads if not t.name.startswith("nbrun-")}
    assert left == set()
    assert not any(t.name.startswith("nbrun-agent-") for t in threading.enumerate())


def test_a_provider_that_asks_for_time_is_told_of(session: NotebookSession, subject: Subject) -> None:
    """A 429 with a time to wait: the run's card says so, and it goes on by itself afterwards."""
    with OpenAIServer(says_tea) as server:
        server.refusals, server.retry_after_s = 1, 0.05
        agent = subject.over_http(server.url, MODEL)
        run = session.start(agent, PROMPT)
        assert run.result(BOUND_S) == "Steam from the cup"
        session.start(lambda: subject.hang_up(agent)).result(BOUND_S)
    (notice,) = run.record.notices
    assert notice.startswith("the model's provider asked to wait: retrying in ")
    assert len(server.requests) == 2


def test_nothing_is_counted_twice(session: NotebookSession, subject: Subject) -> None:
    """A run's usage is that of its calls, though its framework reports the same; a refusal and its retry are one."""
    with OpenAIServer(says_tea) as server:
        server.refusals, server.retry_after_s = 1, 0.05
        agent = subject.over_http(server.url, MODEL)
        run = session.start(agent, PROMPT, max_turns=1)
        assert run.result(BOUND_S) == "Steam from the cup"
        session.start(lambda: subject.hang_up(agent)).result(BOUND_S)
    assert len(server.requests) == 2
    refused, answered = run.calls
    assert (refused.status, refused.usage) == ("error", None)
    assert (answered.status, answered.model) == ("ok", MODEL)
    assert (run.usage.requests, run.usage.input_tokens, run.usage.output_tokens) == (1, 7, 4)
    # Whose model it is, and so its price, can't be seen from this address: that is the framework's to say.
    assert msgspec.structs.replace(run.usage, cost_usd=None) == answered.usage
    assert run.usage.cost_usd == pricing.cost_usd(MODEL, provider="openai", input_tokens=7, output_tokens=4)


def test_a_cancel_gets_through_while_a_provider_has_us_wait(session: NotebookSession, subject: Subject) -> None:
    """A minute is to be waited; a cancel is prompt."""
    with OpenAIServer(says_tea) as server:
        server.refusals, server.retry_after_s = 9, 50.0
        agent = subject.over_http(server.url, MODEL)
        run = session.start(agent, PROMPT)
        until(run, lambda record: bool(record.notices))
        run.cancel()
        assert run.wait(SOON_S)
        assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())
        session.start(lambda: subject.hang_up(agent)).result(BOUND_S)


def test_an_agent_that_cells_await_as_well(session: NotebookSession, subject: Subject) -> None:
    """On the loop of the cells, its client works for them and for the run, in turns and at once."""

    async def says_tea_later(request: dict[str, object]) -> AsyncIterator[dict[str, object]]:
        await asyncio.sleep(0.05)
        async for delta in says_tea(request):
            yield delta

    async def cell() -> None:
        agent = subject.over_http(server.url, MODEL)
        for _ in range(2):
            assert await subject.awaited(agent, PROMPT) == "Steam from the cup"
            assert await session.start(agent, PROMPT, loop="kernel") == "Steam from the cup"
        beside = asyncio.create_task(subject.awaited(agent, PROMPT))
        assert await session.start(agent, PROMPT, loop="kernel") == "Steam from the cup"
        assert await beside == "Steam from the cup"
        cut = session.start(agent, PROMPT, loop="kernel")
        async for event in cut:
            if event.type == "run.started":
                break
        await cut.cancel().settled()
        assert cut.status is RunStatus.CANCELLED
        await subject.hang_up(agent)

    with OpenAIServer(says_tea_later) as server:
        asyncio.run(asyncio.wait_for(cell(), BOUND_S))


def test_an_agent_that_cells_have_used_elsewhere_says_so(session: NotebookSession, subject: Subject) -> None:
    """Where its client minds another loop, the run's error names the option; where not, it works."""

    async def cell() -> str:
        agent = subject.over_http(server.url, MODEL)
        assert await subject.awaited(agent, PROMPT) == "Steam from the cup"
        run = session.start(agent, PROMPT)
        try:
            return str(await run)
        except RunFailed as error:
            return str(error)
        finally:
            await subject.hang_up(agent)

    with OpenAIServer(says_tea) as server:
        said = asyncio.run(asyncio.wait_for(cell(), BOUND_S))
    assert said == "Steam from the cup" or "run it with --loop kernel" in said
