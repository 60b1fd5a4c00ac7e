"""All of a run's work is the run's: what it has started beside its own task ends with it, or is named."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import anyio.to_thread
import psutil
import pytest

from nbrun import NotebookSession, Run, RunContext, RunStatus
from nbrun.core import events as ev
from nbrun.render.words import status_words
from tests.fakes.agents import BOUND_S
from tests.fakes.late import late_event

MakeSession = Callable[..., NotebookSession]
Agent = Callable[[str], Awaitable[object]]
COUNT = 4
"""Calls in a fan-out."""


class Calls:
    """Model calls: each says that it has begun, and is made when the gate opens.

    Threads: `begun` and `made` are written by whoever makes the calls; `ready` and `gate` are of all.
    """

    def __init__(self) -> None:
        self.begun = self.made = self.cleaned = 0
        self.ready = threading.Event()
        self.gate = threading.Event()
        self._lock = threading.Lock()
        self._opened: asyncio.Event | None = None

    def begin(self) -> None:
        """Note a beginning."""
        with self._lock:
            self.begun += 1
            if self.begun >= COUNT:
                self.ready.set()

    async def call(self) -> None:
        """Make a call on the loop."""
        self._opened = self._opened or asyncio.Event()
        self.begin()
        try:
            await self._opened.wait()
            self.made += 1
        finally:
            await asyncio.sleep(0)  # a second cancel would be raised here
            await asyncio.sleep(0)
            self.cleaned += 1

    def call_in_thread(self) -> None:
        """Make a call in a thread: Python all the time."""
        self.begin()
        while not self.gate.is_set():
            pass
        self.made += 1

    def block_in_thread(self) -> None:
        """Make a call in a thread, in one call outside of Python."""
        self.begin()
        self.gate.wait(BOUND_S * 2)

    async def deaf(self) -> None:
        """Eat every cancel until the gate opens."""
        self.begin()
        while not self.gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.005)

    def open(self, session: NotebookSession) -> None:
        """Let all calls continue that are still waiting, and give them their turns."""
        self.gate.set()

        async def let_go(prompt: str) -> None:
            if self._opened is not None:
                self._opened.set()
            for _ in range(5):
                await asyncio.sleep(0)

        session.start(let_go).result(BOUND_S)


@pytest.fixture
def calls() -> Iterator[Calls]:
    """Model calls, let go at the end."""
    made = Calls()
    yield made
    made.gate.set()


def logged(run: Run) -> str:
    """Return the lines that the host has logged."""
    return "\n".join(event.data.text for event in run.events() if isinstance(event.data, ev.Log))


# --- tasks ---------------------------------------------------------------------------------------------


async def gather(calls: Calls) -> None:
    """As most do it."""
    await asyncio.gather(*[calls.call() for _ in range(COUNT)])


async def wait(calls: Calls) -> None:
    """It does not cancel what it waits for."""
    await asyncio.wait([asyncio.create_task(calls.call()) for _ in range(COUNT)])


async def as_completed(calls: Calls) -> None:
    """Nor does this."""
    for done in asyncio.as_completed([calls.call() for _ in range(COUNT)]):
        await done


async def group(calls: Calls) -> None:
    """A group does, in its own order."""
    async with asyncio.TaskGroup() as tasks:
        for _ in range(COUNT):
            tasks.create_task(calls.call())


async def anyio_group(calls: Calls) -> None:
    """And so does anyio's, which cancels a cleanup, too."""
    async with anyio.create_task_group() as tasks:
        for _ in range(COUNT):
            tasks.start_soon(calls.call)


async def shield(calls: Calls) -> None:
    """It keeps a cancel away from what it waits for."""
    await asyncio.gather(*[asyncio.shield(calls.call()) for _ in range(COUNT)])


async def limited(calls: Calls) -> None:
    """With a time limit around each."""
    await asyncio.gather(*[asyncio.wait_for(calls.call(), 3600) for _ in range(COUNT)])


async def progress_bar(calls: Calls) -> None:
    """A library fans out, and forgets what it has started."""
    from tqdm.asyncio import tqdm  # type: ignore[import-untyped]

    await tqdm.gather(*[calls.call() for _ in range(COUNT)], disable=True)


async def nested(calls: Calls) -> None:
    """A task of a task's."""
    await asyncio.wait([asyncio.create_task(wait(calls))])


FANS = [gather, wait, as_completed, group, anyio_group, shield, limited, progress_bar, nested]


@pytest.mark.parametrize("fan", FANS, ids=lambda fan: fan.__name__)
def test_a_cancel_ends_every_call_of_a_fan_out(
    session: NotebookSession, calls: Calls, fan: Callable[[Calls], Awaitable[None]]
) -> None:
    """No call is made after the end; each had its cleanup, which no second cancel has cut."""

    async def agent(prompt: str) -> None:
        await fan(calls)

    run = session.start(agent)
    assert calls.ready.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.error, run.record.detached) == (RunStatus.CANCELLED, None, ())
    assert (calls.begun, calls.cleaned) == (COUNT, 0 if fan is anyio_group else COUNT)
    calls.open(session)
    assert calls.made == 0


@pytest.mark.parametrize("fan", FANS, ids=lambda fan: fan.__name__)
def test_a_failure_ends_every_call_of_a_fan_out(
    session: NotebookSession, calls: Calls, fan: Callable[[Calls], Awaitable[None]]
) -> None:
    """As a `gather()` of which one fails: the others are not paid for."""

    async def fails() -> None:
        await asyncio.to_thread(calls.ready.wait, BOUND_S)
        raise ValueError("no luck")

    async def agent(prompt: str) -> None:
        await asyncio.gather(fails(), fan(calls))

    run = session.start(agent)
    assert run.wait(BOUND_S)
    assert (run.status, run.error.type if run.error else None) == (RunStatus.FAILED, "ValueError")
    assert run.record.detached == ()
    assert (calls.begun, calls.cleaned) == (COUNT, 0 if fan is anyio_group else COUNT)
    calls.open(session)
    assert calls.made == 0


def test_what_an_agent_leaves_running_ends_with_it(session: NotebookSession, calls: Calls) -> None:
    """What is over within the grace period is kept; what is not is cancelled, and the card says so."""
    saved = []

    async def save() -> None:
        await asyncio.sleep(0)
        saved.append("tea")

    async def agent(prompt: str, run: RunContext) -> str:
        kept.append(asyncio.create_task(save()))
        if prompt == "polls":
            kept.append(asyncio.create_task(calls.call()))
        return "tea"

    kept: list[asyncio.Task[None]] = []
    run = session.start(agent, "saves")
    assert (run.result(BOUND_S), saved, run.record.notices) == ("tea", ["tea"], ())
    run = session.start(agent, "polls")
    assert run.result(BOUND_S) == "tea"
    assert (run.status, run.record.detached) == (RunStatus.COMPLETED, ())
    assert run.record.notices == ("cancelled 0.2 s after the agent returned: Calls.call",)
    calls.open(session)
    assert calls.made == 0


@pytest.mark.parametrize("end", [RunStatus.CANCELLED, RunStatus.FAILED, RunStatus.COMPLETED])
def test_a_task_that_does_not_end_is_named(session: NotebookSession, calls: Calls, end: RunStatus) -> None:
    """By its function, however the run ends; the log says when it has ended."""

    async def agent(prompt: str, run: RunContext) -> str:
        kept.append(asyncio.create_task(calls.deaf()))
        await asyncio.sleep(0)
        calls.ready.set()
        if end is RunStatus.CANCELLED:
            await asyncio.Event().wait()
        if end is RunStatus.FAILED:
            raise ValueError("no luck")
        return "tea"

    kept: list[asyncio.Task[None]] = []
    run = session.start(agent)
    assert calls.ready.wait(BOUND_S)
    if end is RunStatus.CANCELLED:
        run.cancel()
    assert run.wait(BOUND_S)
    assert (run.status, run.record.detached) == (end, ("Calls.deaf",))
    assert "; still running: Calls.deaf" in status_words(run.record)
    calls.open(session)
    assert late_event(run, ev.DetachedFinished).name == "Calls.deaf"
    assert (run.status, run.record.is_settled) == (end, True)


def test_a_cancel_during_the_grace_period_of_a_return_is_heard(make_session: MakeSession, calls: Calls) -> None:
    """The agent has returned, its task has not: it is cancelled at once."""
    session = make_session(cancel_grace_s=BOUND_S * 2)

    async def agent(prompt: str) -> str:
        for _ in range(COUNT):
            kept.append(asyncio.create_task(calls.call()))
        return "tea"

    kept: list[asyncio.Task[None]] = []
    run = session.start(agent)
    assert calls.ready.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached, run.output) == (RunStatus.CANCELLED, (), "tea")
    assert calls.cleaned == COUNT


# --- threads ---------------------------------------------------------------------------------------------

Start = Callable[[Callable[[], None], Any], Coroutine[Any, Any, None]]


async def in_anyio(function: Callable[[], None], _pool: ThreadPoolExecutor) -> None:
    """By anyio, four at a time."""
    async with anyio.create_task_group() as tasks:
        for _ in range(COUNT):
            tasks.start_soon(functools.partial(anyio.to_thread.run_sync, function, abandon_on_cancel=True))


async def in_default_executor(function: Callable[[], None], _pool: ThreadPoolExecutor) -> None:
    """By asyncio."""
    await asyncio.gather(*[asyncio.to_thread(function) for _ in range(COUNT)])


async def in_own_executor(function: Callable[[], None], pool: ThreadPoolExecutor) -> None:
    """In a pool of the notebook's, with more calls than threads."""
    loop = asyncio.get_running_loop()
    await asyncio.gather(*[loop.run_in_executor(pool, function) for _ in range(2 * COUNT)])


async def in_pool(function: Callable[[], None], pool: ThreadPoolExecutor) -> None:
    """The same, and nobody waits for it."""
    for _ in range(2 * COUNT):
        pool.submit(function)
    await asyncio.Event().wait()


async def in_threads(function: Callable[[], None], _pool: ThreadPoolExecutor) -> None:
    """In threads."""
    for _ in range(COUNT):
        threading.Thread(target=function, daemon=True).start()
    await asyncio.Event().wait()


async def in_threads_of_thread(function: Callable[[], None], _pool: ThreadPoolExecutor) -> None:
    """A thread starts threads."""

    def start() -> None:
        for _ in range(COUNT):
            threading.Thread(target=function, daemon=True).start()

    await asyncio.to_thread(start)
    await asyncio.Event().wait()


STARTS = [in_anyio, in_default_executor, in_own_executor, in_pool, in_threads, in_threads_of_thread]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """A pool of four threads, made once in the notebook."""
    with ThreadPoolExecutor(COUNT) as made:
        yield made


@pytest.mark.parametrize("is_failure", [False, True], ids=["cancel", "failure"])
@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.__name__)
def test_threads_are_ended(
    session: NotebookSession, calls: Calls, pool: ThreadPoolExecutor, start: Start, is_failure: bool
) -> None:
    """`Cancelled` is raised in each thread; calls that wait for one are not made; the pool serves others after it."""

    async def agent(prompt: str) -> None:
        task = asyncio.create_task(start(calls.call_in_thread, pool))
        if is_failure:
            await asyncio.to_thread(calls.ready.wait, BOUND_S)
            raise ValueError("no luck")
        await task

    run = session.start(agent)
    assert calls.ready.wait(BOUND_S)
    if not is_failure:
        run.cancel()
    assert run.wait(BOUND_S)
    assert run.status is (RunStatus.FAILED if is_failure else RunStatus.CANCELLED)
    assert run.record.detached == ()
    calls.gate.set()
    assert [pool.submit(int, "7").result(BOUND_S) for _ in range(2 * COUNT)] == [7] * 2 * COUNT
    assert (calls.made, calls.begun) == (0, COUNT)


@pytest.mark.parametrize("end", [RunStatus.CANCELLED, RunStatus.FAILED, RunStatus.COMPLETED])
@pytest.mark.parametrize("start", [in_anyio, in_pool, in_threads], ids=lambda start: start.__name__)
def test_threads_that_do_not_end_are_named(
    session: NotebookSession, calls: Calls, pool: ThreadPoolExecutor, start: Start, end: RunStatus
) -> None:
    """By their function, however the run ends; the log says when they have ended."""

    async def agent(prompt: str) -> str:
        task = asyncio.create_task(start(calls.block_in_thread, pool))
        if end is not RunStatus.CANCELLED:
            await asyncio.to_thread(calls.ready.wait, BOUND_S)
        if end is RunStatus.FAILED:
            raise ValueError("no luck")
        if end is RunStatus.CANCELLED:
            await task
        return "tea"

    run = session.start(agent)
    assert calls.ready.wait(BOUND_S)
    if end is RunStatus.CANCELLED:
        run.cancel()
    assert run.wait(BOUND_S)
    assert (run.status, run.record.detached) == (end, ("block_in_thread",))
    calls.gate.set()
    assert late_event(run, ev.DetachedFinished).name == "block_in_thread"


def test_a_thread_prints_into_the_log_of_its_run(
    session: NotebookSession, capsys: pytest.CaptureFixture[str], pool: ThreadPoolExecutor
) -> None:
    """Also one that the agent has started itself; a pool's thread is the run's for the time of the call only."""

    def say() -> None:
        print("tea is ready")

    async def agent(prompt: str) -> None:
        thread = threading.Thread(target=say)
        thread.start()
        await asyncio.to_thread(thread.join)
        await asyncio.wrap_future(pool.submit(say))

    run = session.start(agent)
    run.result(BOUND_S)
    assert logged(run) == "tea is ready\ntea is ready"
    assert capsys.readouterr().out == ""
    pool.submit(say).result(BOUND_S)
    assert capsys.readouterr().out == "tea is ready\n"


@pytest.mark.parametrize("is_pooled", [False, True])
def test_asyncio_run_in_a_sync_agent_is_cancelled_at_once(
    make_session: MakeSession, calls: Calls, is_pooled: bool
) -> None:
    """What an event loop in a thread was entered for is cancelled as on the host's loop, with its cleanup."""
    session = make_session(cancel_grace_s=BOUND_S * 2)

    def agent(prompt: str) -> None:
        if not is_pooled:
            asyncio.run(gather(calls))
        else:  # as frameworks do it whose sync call drives an async client
            with ThreadPoolExecutor() as own:
                own.submit(asyncio.run, gather(calls)).result()

    run = session.start(agent)
    assert calls.ready.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.error, run.record.detached) == (RunStatus.CANCELLED, None, ())
    assert (calls.cleaned, calls.made) == (COUNT, 0)


# --- processes -------------------------------------------------------------------------------------------

DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(60)
"""


async def by_asyncio(pids: Future[int]) -> None:
    """Start a process with asyncio, and wait for it."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", DEAF, stdout=subprocess.PIPE)
    assert process.stdout is not None
    pids.set_result(int(await process.stdout.readline()))
    await process.wait()


async def by_popen(pids: Future[int]) -> None:
    """Start a process, and do something else."""
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as process:  # noqa: ASYNC220 - as some do
        assert process.stdout is not None
        pids.set_result(int(await asyncio.to_thread(process.stdout.readline)))
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(process.wait)  # in its own time


def by_subprocess_run(pids: Future[int]) -> None:
    """Run a command in a sync agent, behind a shell."""
    reader, writer = os.pipe()

    def read() -> None:
        with open(reader, "rb") as lines:
            pids.set_result(int(lines.readline()))

    threading.Thread(target=read, daemon=True).start()
    with open(writer, "wb") as out:
        subprocess.run(f"{sys.executable} -c {shlex.quote(DEAF)}; true", shell=True, stdout=out, check=False)  # noqa: S602 - our own


@pytest.mark.parametrize("start", [by_asyncio, by_popen, by_subprocess_run], ids=lambda start: start.__name__)
def test_processes_are_ended(session: NotebookSession, start: Callable[[Future[int]], Any]) -> None:
    """Asked first, then killed: nothing of them is left."""
    pids: Future[int] = Future()
    run = session.start(functools.partial(_given, start, pids))
    process = psutil.Process(pids.result(BOUND_S))
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)  # killed, it may need a moment to die


def _given(start: Callable[[Future[int]], Any], pids: Future[int], prompt: str) -> Any:
    return start(pids)


@pytest.mark.parametrize("is_failure", [False, True])
def test_a_process_is_left_by_a_return_and_named(session: NotebookSession, is_failure: bool) -> None:
    """A server, say, that the agent was to start; a failure ends it."""

    async def agent(prompt: str) -> int:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # noqa: ASYNC220
        started.append(process)
        if is_failure:
            raise ValueError("no luck")
        return process.pid

    started: list[subprocess.Popen[bytes]] = []
    run = session.start(agent)
    assert run.wait(BOUND_S)
    name = f"{Path(sys.executable).name} (process {started[0].pid})"
    assert run.record.detached == (() if is_failure else (name,))
    assert (started[0].poll() is not None) is is_failure
    if not is_failure:
        started[0].kill()
        assert late_event(run, ev.DetachedFinished).name == name
    started[0].wait(BOUND_S)


# --- what is not the run's ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [RunStatus.CANCELLED, RunStatus.FAILED, RunStatus.COMPLETED])
def test_what_a_library_keeps_is_not_ended(session: NotebookSession, library: ModuleType, end: RunStatus) -> None:
    """A client that was made once serves later runs, however the run ended that has used it first."""
    client = library.Client()
    ready = threading.Event()

    async def agent(prompt: str) -> object:
        answer = await client.ask(prompt)
        ready.set()
        if end is RunStatus.CANCELLED and prompt == "tea":
            await asyncio.Event().wait()
        if end is RunStatus.FAILED and prompt == "tea":
            raise ValueError("no luck")
        return answer

    run = session.start(agent, "tea")
    assert ready.wait(BOUND_S)
    if end is RunStatus.CANCELLED:
        run.cancel()
    assert run.wait(BOUND_S)
    assert (run.status, run.record.detached) == (end, ())
    is_named = "started by a library, and not cancelled: Client.read" in logged(run)
    assert is_named is (end is not RunStatus.COMPLETED)
    assert session.start(agent, "milk").result(BOUND_S) == "MILK"
    assert client.thread.is_alive()
    client.ended.set()


def test_an_mcp_session_outlives_the_run_that_has_opened_it(session: NotebookSession) -> None:
    """The same with a real client, of a server in this process."""
    import jsonschema  # type: ignore[import-untyped]  # noqa: F401 - the client would import it in the midst, and block the loop
    from fastmcp.client import Client
    from mcp.server import MCPServer

    server = MCPServer("shop")
    ready = threading.Event()

    @server.tool()
    def price(what: str) -> int:
        return len(what)

    client = Client(server)

    async def opens(prompt: str) -> None:
        await client.__aenter__()  # type: ignore[no-untyped-call]
        ready.set()
        await asyncio.Event().wait()

    async def asks(prompt: str) -> object:
        return (await client.call_tool("price", {"what": prompt})).structured_content

    async def closes(prompt: str) -> None:
        await client.close()  # type: ignore[no-untyped-call]

    run = session.start(opens)
    assert ready.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())
    assert session.start(asks, "tea").result(BOUND_S) == {"result": 3}
    session.start(closes).result(BOUND_S)


def test_the_standard_library_is_restored(make_session: MakeSession) -> None:
    """With the last session; while there is one, what is outside of runs is started as ever."""
    before = threading.Thread.start, ThreadPoolExecutor.submit, subprocess.Popen.__init__
    session = make_session()
    session.start(lambda prompt: None).result(BOUND_S)
    done = threading.Event()
    thread = threading.Thread(target=done.set)
    thread.start()
    thread.join(BOUND_S)
    assert done.is_set()
    assert threading.Thread.start is not before[0]
    session.close()
    assert (threading.Thread.start, ThreadPoolExecutor.submit, subprocess.Popen.__init__) == before
