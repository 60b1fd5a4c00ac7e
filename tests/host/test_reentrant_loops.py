"""Agents that start an event loop within an event loop: where it works, and what is said where it does not."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from nbrun import NotebookSession, RunStatus, current
from nbrun.core import events as ev
from nbrun.core.cancellation import Rung
from nbrun.host import loops
from nbrun.host.failures import describe
from tests.conftest import MakeSession
from tests.fakes.agents import BOUND_S, Held, instant

Start = Callable[[Coroutine[Any, Any, Any]], Any]


def asyncio_run(work: Coroutine[Any, Any, Any]) -> Any:
    """Do what most do; by its name at this moment."""
    return asyncio.run(work)


def run_until_complete(work: Coroutine[Any, Any, Any]) -> Any:
    """Do what old libraries do."""
    return asyncio.get_event_loop().run_until_complete(work)


STARTS = pytest.mark.parametrize("start", [asyncio_run, run_until_complete], ids=["run", "until"])


def nesting(start: Start) -> Callable[[str], Coroutine[Any, Any, str]]:
    """Return an agent that waits for a coroutine in a loop that it starts itself."""

    async def nesting(prompt: str) -> str:
        async def inner() -> str:
            await asyncio.sleep(0.001)
            current().text("within ")
            return f"nested: {prompt}"

        work = inner()
        try:
            return str(start(work))
        finally:
            work.close()

    return nesting


@STARTS
def test_without_the_option_the_error_names_it(session: NotebookSession, start: Start) -> None:
    """The run fails with Python's own words, and one line more that helps."""
    run = session.start(nesting(start), "tea")
    assert run.wait(BOUND_S)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    _said, mend = run.error.message.splitlines()
    assert "NbRun.reentrant_loop = True" in mend
    assert "--thread" in mend
    assert session.start(instant).wait(BOUND_S)


@STARTS
def test_a_thread_of_its_own_needs_no_option(session: NotebookSession, start: Start) -> None:
    """What the error says helps, helps."""
    run = session.start(nesting(start), "tea", thread=True)
    assert run.result(BOUND_S) == "nested: tea"
    assert run.text == "within "


@STARTS
def test_with_the_option_it_works_on_the_loop(make_session: MakeSession, start: Start) -> None:
    """In any of its runs, one after the other, and others go on meanwhile."""
    session = make_session(reentrant_loop=True)
    for _ in range(2):
        run = session.start(nesting(start), "tea")
        assert run.result(BOUND_S) == "nested: tea"
        assert run.text == "within "


def test_the_option_may_be_changed_between_runs(session: NotebookSession, held: Held) -> None:
    """It holds from the next run on; what is under way goes on."""
    first = session.start(held)
    assert held.entered.wait(BOUND_S)
    session.let_enter_loop(True)
    assert session.start(nesting(asyncio_run), "tea").result(BOUND_S) == "nested: tea"
    session.let_enter_loop(False)
    assert session.start(nesting(asyncio_run), "tea").wait(BOUND_S)
    assert session.get("last").status is RunStatus.FAILED
    held.let_go()
    assert first.result(BOUND_S) == "held"


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
@pytest.mark.parametrize("is_asked", [False, True])
def test_the_option_holds_in_another_process_too(make_session: MakeSession, is_asked: bool) -> None:
    """It travels with the attempt."""
    session = make_session(reentrant_loop=is_asked)
    run = session.start(nesting(asyncio_run), "tea", on="process")
    assert run.wait(BOUND_S)
    assert run.status is (RunStatus.COMPLETED if is_asked else RunStatus.FAILED)


def test_other_runs_go_on_within(make_session: MakeSession, held: Held) -> None:
    """While one agent is in its inner loop, others begin, work and end."""
    session = make_session(reentrant_loop=True)
    run = session.start(_waits_within(held))
    assert held.entered.wait(BOUND_S)
    assert session.start(instant, "tea").result(BOUND_S) == "done: tea"
    assert not run.done()
    held.let_go()
    assert run.result(BOUND_S) == "held"


@pytest.mark.parametrize("thread", [False, True], ids=["loop", "own-thread"])
def test_a_cancel_reaches_what_runs_within(make_session: MakeSession, held: Held, thread: bool) -> None:
    """At once, as a CancelledError of the inner coroutine; no thread is raised into."""
    session = make_session(reentrant_loop=not thread)
    run = session.start(_waits_within(held), thread=thread)
    assert held.entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert held.left.is_set()
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())
    rungs = [e.data.rung for e in run.events() if isinstance(e.data, ev.CancelEscalated)]
    assert Rung.THREAD not in rungs
    assert session.start(instant, "tea").result(BOUND_S) == "done: tea"


def _waits_within(held: Held) -> Callable[[str], Coroutine[Any, Any, object]]:
    async def waits_within(prompt: str) -> object:
        return asyncio.run(held(prompt, current()))

    return waits_within


def test_everybody_elses_loops_stay_as_they_are(make_session: MakeSession) -> None:
    """No other loop can be entered again, tasks stay asyncio's own, and at the end so is `asyncio.run()`."""
    before = asyncio.run, asyncio.Task, asyncio.Future, asyncio.get_event_loop
    session = make_session(reentrant_loop=True)
    assert session.start(nesting(asyncio_run), "tea").wait(BOUND_S)
    assert asyncio.run is not before[0]

    async def enters_again() -> str:
        work = asyncio.sleep(0)
        try:
            asyncio.get_running_loop().run_until_complete(work)
        except RuntimeError as error:
            return str(error)
        finally:
            work.close()
        return "entered"

    assert asyncio.run(enters_again()) == "This event loop is already running"
    assert not hasattr(asyncio.SelectorEventLoop, "_nest_patched")
    session.close()
    assert (asyncio.run, asyncio.Task, asyncio.Future, asyncio.get_event_loop) == before


def test_loops_may_be_closed_twice_and_by_any_thread() -> None:
    """`asyncio.run()` is given back with the last of them, and only then."""
    original = asyncio.run
    first, second = loops.new_loop(), loops.new_loop()
    first.close()
    first.close()
    assert asyncio.run is not original
    closer = threading.Thread(target=second.close)
    closer.start()
    closer.join(BOUND_S)
    assert asyncio.run is original


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("asyncio.run() cannot be called from a running event loop"), "--thread"),
        (RuntimeError("This event loop is already running"), "--thread"),
        (RuntimeError("Cannot run the event loop while another loop is running"), "in_thread"),
        (RuntimeError("AgentRunner.run_sync() cannot be called when an event loop is already running."), "--thread"),
        (RuntimeError("the kettle is already running"), None),
        (ValueError("This event loop is already running"), None),
    ],
)
def test_the_hint_fits_the_error(error: Exception, words: str | None) -> None:
    """One line for errors of nested loops, none for others."""
    _, _, hint = describe(error).message.partition("\n")
    assert (hint == "") if words is None else (words in hint)
