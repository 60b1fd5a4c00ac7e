"""One loop for life: what clients keep stays usable, whatever another run does to the loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer
from types import ModuleType
from typing import Any

import httpx
import pytest

from nbrun import NotebookSession, RunContext, RunStatus
from nbrun.core.errors import BadOption
from nbrun.host.loops import make_reentrant
from tests.conftest import MakeSession
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, BlockingLoop, wait_for_notice
from tests.fakes.provider import QuietHandler


async def loop_of(prompt: str) -> int:
    """Return which loop it is on."""
    return id(asyncio.get_running_loop())


async def computes(prompt: str, run: RunContext) -> None:
    """Compute for ever on the loop."""
    run.phase("computing")
    while True:
        pass


class Answers(QuietHandler):
    """A server that keeps connections open."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")


@pytest.fixture
def url() -> Iterator[str]:
    """The address of such a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def hosts() -> int:
    """Return how many loops of sessions there are."""
    return sum(thread.name == "nbrun-host" for thread in threading.enumerate())


def test_clients_that_were_made_once_work_beside_a_blocked_loop_and_after_it(
    session: NotebookSession, blocks: BlockingLoop, url: str, library: ModuleType
) -> None:
    """Twenty runs of two clients, of which one was used before: none fails, and a library's own task goes on."""
    old, new = httpx.AsyncClient(trust_env=False), httpx.AsyncClient(trust_env=False)
    reader = library.Client()

    async def uses_old(prompt: str) -> str:
        assert await reader.ask("tea") == "TEA"
        return (await old.get(url)).text

    async def uses_new(prompt: str) -> str:
        return (await new.get(url)).text

    async def closes(prompt: str) -> None:
        await old.aclose()
        await new.aclose()
        reader.ended.set()

    assert session.start(uses_old).result(BOUND_S) == "ok"
    run = session.start(blocks)
    assert blocks.entered.wait(BOUND_S)
    beside = [session.start(agent) for agent in (uses_old, uses_new) for _ in range(5)]
    wait_for_notice(beside[0], "Waiting: run #2 (BlockingLoop) blocks the event loop that all runs share")
    blocks.gate.set()
    assert run.result(BOUND_S) == "unblocked"
    after = [session.start(agent) for agent in (uses_old, uses_new) for _ in range(5)]
    assert [one.result(BOUND_S) for one in beside + after] == ["ok"] * 20
    assert not reader.task.done()
    session.start(closes).result(BOUND_S)
    assert hosts() == 1


def test_a_run_that_waits_for_a_blocked_loop_can_be_cancelled(session: NotebookSession, blocks: BlockingLoop) -> None:
    """At once: its agent was never entered, and the block goes on."""
    entered: list[str] = []

    async def agent(prompt: str) -> None:
        entered.append(prompt)

    run = session.start(blocks)
    assert blocks.entered.wait(BOUND_S)
    waiting = session.start(agent, "never read")
    assert waiting.cancel("changed my mind").wait(BOUND_S)
    assert (waiting.status, waiting.reason) == (RunStatus.CANCELLED, "changed my mind")
    assert not run.done()
    blocks.gate.set()
    assert run.result(BOUND_S) == "unblocked"
    assert session.start(agents.instant).wait(BOUND_S)  # the loop has passed it
    assert entered == []


def test_a_run_with_a_thread_of_its_own_does_not_wait(session: NotebookSession, blocks: BlockingLoop) -> None:
    """It has a loop of its own, so any loop may drive it; all others stay with theirs."""
    home = session.start(loop_of).result(BOUND_S)
    run = session.start(blocks)
    assert blocks.entered.wait(BOUND_S)
    waiting = session.start(loop_of)
    assert session.start(agents.instant, "tea", thread=True).result(BOUND_S) == "done: tea"
    assert [run.done(), waiting.done()] == [False, False]
    blocks.gate.set()
    assert run.result(BOUND_S) == "unblocked"
    assert [waiting.result(BOUND_S), session.start(loop_of).result(BOUND_S)] == [home, home]


def test_a_loop_that_nothing_can_free_is_left_and_come_back_to(session: NotebookSession, blocks: BlockingLoop) -> None:
    """Its run was cancelled and goes on blocking: runs change, are told so, and change back when the loop answers."""
    client = asyncio.Event()  # as clients have them, for their connections

    async def uses(prompt: str) -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await client.wait()
        return "ok"

    home = session.start(loop_of).result(BOUND_S)
    assert session.start(uses).result(BOUND_S) == "ok"
    stuck = session.start(agents.waits_for_cancel)
    lost = session.start(blocks)
    assert blocks.entered.wait(BOUND_S)
    waiting = session.start(loop_of)
    assert lost.cancel().wait(BOUND_S)
    second = waiting.result(BOUND_S)
    assert second != home
    wait_for_notice(stuck, "blocks the loop that this run is on; start it again")
    told = "Run #4 (BlockingLoop) was cancelled but still blocks its event loop; new runs use another one"
    assert told in waiting.record.notices
    failed = session.start(uses)
    assert failed.wait(BOUND_S)
    assert failed.error is not None
    hint = failed.error.message.splitlines()[-1]
    assert hint.startswith("Run #4 (BlockingLoop) was cancelled but blocked the event loop")
    assert "create the client again" in hint
    assert failed.record.notices == ()  # said once
    blocks.gate.set()
    while (at := session.start(loop_of).result(BOUND_S)) != home:
        assert at == second


def test_loops_are_as_many_as_are_blocked_at_once(session: NotebookSession) -> None:
    """A second loop that has become free is used again, and all of them are closed with the session."""
    before = hosts()
    for _ in range(2):
        agent = BlockingLoop()
        run = session.start(agent)
        assert agent.entered.wait(BOUND_S)
        assert run.cancel().wait(BOUND_S)
        assert session.start(agents.instant).wait(BOUND_S)
        agent.gate.set()
        home = session.parts.scheduler._hosts[0]
        while home.is_lost:
            assert session.start(agents.instant).wait(BOUND_S)
    assert hosts() == before + 2
    threads = [host.thread for host in session.parts.scheduler._hosts]
    session.close()
    assert all(thread.close(BOUND_S) for thread in threads)
    assert all(thread.loop.is_closed() for thread in threads)


def test_the_option_for_reentrant_loops_changes_no_loop(session: NotebookSession) -> None:
    """Switched on and off between runs: they stay on one loop, and only those that may enter it again do."""

    async def nests(prompt: str) -> int:
        work = loop_of(prompt)
        try:
            return asyncio.run(work)
        finally:
            work.close()

    home = session.start(loop_of).result(BOUND_S)
    session.let_enter_loop(True)
    assert session.start(nests).result(BOUND_S) == home
    session.let_enter_loop(False)
    refused = session.start(nests)
    assert refused.wait(BOUND_S)
    assert refused.error is not None
    assert "cannot be called from a running event loop" in refused.error.message
    session.let_enter_loop(True)
    assert session.start(nests).result(BOUND_S) == home
    assert session.start(loop_of).result(BOUND_S) == home


def test_what_an_agent_sets_on_the_loop_is_gone_with_the_next_run(session: NotebookSession) -> None:
    """Its task factory, error handler and executor: else later runs would lose theirs for good."""

    async def sees(prompt: str) -> tuple[object, object, str]:
        loop = asyncio.get_running_loop()
        name = (await asyncio.to_thread(threading.current_thread)).name
        return loop.get_task_factory(), loop.get_exception_handler(), name.partition("run-")[0]

    async def replaces(prompt: str) -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(None)
        loop.set_exception_handler(None)
        loop.set_default_executor(ThreadPoolExecutor(1))

    before = session.start(sees).result(BOUND_S)
    assert session.start(replaces).wait(BOUND_S)
    assert session.start(sees).result(BOUND_S) == before


def test_a_loop_of_somebody_elses_kind_is_refused() -> None:
    """In one line that says what to do."""
    fast: Any = object()
    with pytest.raises(BadOption, match="don't set that event loop policy"):
        make_reentrant(fast)


def test_a_block_that_can_be_ended_costs_nobody_the_loop(make_session: MakeSession) -> None:
    """Pure Python on the loop ends by a cancel: whoever waited goes on there."""
    session = make_session()
    home = session.start(loop_of).result(BOUND_S)
    run = session.start(computes)
    while run.phase is None:
        assert not run.wait(0.01)
    waiting = session.start(loop_of)
    wait_for_notice(waiting, "Waiting: run #2 (computes) blocks the event loop")
    assert run.cancel().wait(BOUND_S)
    assert waiting.result(BOUND_S) == home
    assert hosts() == 1
