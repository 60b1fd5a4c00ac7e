"""What is said of an agent's exception: every error in a group, no frame of nbrun's, and a hint where one helps."""

from __future__ import annotations

import asyncio
import contextlib
import html
import signal
import sqlite3
import traceback
from collections.abc import Callable

import pytest

from nbrun import NotebookSession, Run, RunContext
from nbrun.core.errors import RunFailed
from nbrun.render.static_card import bundle, plain_text, whole_markdown
from tests.fakes.agents import BOUND_S


async def fails(what: Exception) -> None:
    """Raise in a task of its own."""
    await asyncio.sleep(0)
    raise what


async def grouped(prompt: str) -> None:
    """Fail twice at once, once in a group within the group."""

    async def inner() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails(KeyError("milk")))

    async with asyncio.TaskGroup() as group:
        group.create_task(fails(ValueError("the kettle is empty")))
        group.create_task(inner())


async def calls_a_thread(prompt: str, run: RunContext) -> None:
    """Fail in a thread, called through nbrun."""
    await run.in_thread(fails_at_once)


def fails_at_once() -> None:
    """Raise in a plain function."""
    raise ValueError("no luck")


def failed(session: NotebookSession, agent: Callable[..., object]) -> Run:
    """Return a run of the agent that has failed."""
    run = session.start(agent)
    assert run.wait(BOUND_S)
    assert run.status == "failed"
    return run


def test_the_errors_in_a_group_are_named_everywhere(session: NotebookSession) -> None:
    """In the cell's error and in each form of the run, nested groups included, in one line."""
    run = failed(session, grouped)
    with pytest.raises(RunFailed) as caught:
        run.result()
    card = bundle(run.record)
    for text in (str(caught.value), plain_text(run.record), whole_markdown(run.record), card["text/html"]):
        said = " ".join(html.unescape(text).replace("\\", "").split())
        assert "(2 sub-exceptions): ValueError: the kettle is empty; KeyError: 'milk'" in said


@pytest.mark.parametrize("agent", [grouped, calls_a_thread])
def test_no_frame_of_nbrun_is_shown(session: NotebookSession, agent: Callable[..., object]) -> None:
    """Neither at the top nor in between, nor in the errors of a group; the agent's own frames are all there."""
    error = failed(session, agent).error
    assert error is not None
    assert "/nbrun/host/" not in error.traceback
    assert "/nbrun/agents/" not in error.traceback
    assert "/nbrun/core/" not in error.traceback
    assert f"in {agent.__name__}" in error.traceback
    assert "raise what" in error.traceback or 'raise ValueError("no luck")' in error.traceback


def test_a_failed_run_raises_from_the_agents_own_exception(session: NotebookSession) -> None:
    """`__cause__` is the very object, without nbrun's frames; IPython's error shows the lines of the agent."""
    error = ValueError("no luck")

    async def unlucky(prompt: str) -> None:
        raise error

    with pytest.raises(RunFailed) as caught:
        failed(session, unlucky).result()
    assert caught.value.__cause__ is error
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)] == ["unlucky"]
    lines = caught.value._render_traceback_()
    assert lines[-1] == "RunFailed: run #1 (unlucky) failed: ValueError: no luck"
    assert "in unlucky" in lines[-3]
    assert lines[-2].strip() == "raise error"


def test_what_a_failed_run_had_said_is_still_its_output(session: NotebookSession) -> None:
    """The exception is kept beside it, not in its place."""

    async def talks(prompt: str, run: RunContext) -> None:
        run.text("so far")
        raise ValueError("no luck")

    assert failed(session, talks).output == "so far"


def handles_signals(prompt: str) -> None:
    """Set a signal handler in a thread."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


async def adds_a_signal_handler(prompt: str) -> None:
    """Set one on a loop that is not on the main thread."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)


def asks_for_a_loop(prompt: str) -> None:
    """Want a loop where there is none."""
    asyncio.get_event_loop()


async def enters_the_loop_again(prompt: str) -> None:
    """Run a coroutine where a loop is running."""
    work = asyncio.sleep(0)
    try:
        asyncio.run(work)
    finally:
        work.close()


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (handles_signals, "run it with --on process"),
        (adds_a_signal_handler, "run it with --on process"),
        (asks_for_a_loop, "use asyncio.run(…), or make the agent async"),
        (enters_the_loop_again, "run it with --thread"),
    ],
)
def test_what_is_bound_to_a_thread_gets_a_hint(
    session: NotebookSession, agent: Callable[..., object], words: str
) -> None:
    """One line below what Python says, as Python says it."""
    error = failed(session, agent).error
    assert error is not None
    _, hint = error.message.splitlines()
    assert words in hint


def test_a_connection_of_a_cell_gets_a_hint(session: NotebookSession) -> None:
    """It can only be used on the cell's thread; also where the error is in a group."""
    connection = sqlite3.connect(":memory:")

    def reads(prompt: str) -> None:
        connection.execute("SELECT 1")

    async def reads_in_a_group(prompt: str, run: RunContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(run.in_thread(reads, prompt))

    for agent in (reads, reads_in_a_group):
        error = failed(session, agent).error
        assert error is not None
        assert "connect inside the agent" in error.message.splitlines()[-1]
    connection.close()


def test_a_client_of_a_sync_agent_that_has_met_another_loop_gets_a_hint(session: NotebookSession) -> None:
    """As with a second `Runner.run_sync()`: each run of a sync agent starts a loop of its own."""
    free = asyncio.Event()

    async def use() -> None:
        async with asyncio.timeout(0.01):
            await free.wait()

    def runs_sync(prompt: str) -> None:
        with contextlib.suppress(TimeoutError):
            asyncio.run(use())

    first = session.start(runs_sync)
    assert first.wait(BOUND_S)
    assert first.status == "completed"
    error = failed(session, runs_sync).error
    assert error is not None
    _, hint = error.message.splitlines()
    assert hint.startswith("a sync agent starts a new event loop in each run")


def test_what_was_handled_gives_no_hint(session: NotebookSession) -> None:
    """Code that makes a loop where there is none has met that error, and it isn't the one that it fails with."""

    def makes_a_loop(prompt: str) -> None:
        try:
            asyncio.get_event_loop()
        except RuntimeError:
            raise ValueError("no luck")  # noqa: B904 - as code does that goes on in the handler

    error = failed(session, makes_a_loop).error
    assert error is not None
    assert error.message == "no luck"
