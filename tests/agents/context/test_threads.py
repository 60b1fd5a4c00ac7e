"""The worker thread: hands its result to a loop, and takes a cancel only in the agent's own code."""

from __future__ import annotations

import asyncio
import builtins
import importlib
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from nbrun.agents import Worker
from nbrun.core.errors import Cancelled
from nbrun.core.interrupt_guard import guarded
from nbrun.host import belongings
from tests.fakes.agents import BOUND_S


def run_worker(
    function: Callable[[], object], while_running: Callable[[Worker[object]], object] | None = None
) -> object:
    """Return what a worker's function returns; `while_running` is called on the loop meanwhile."""

    async def main() -> object:
        worker: Worker[object] = Worker("test", function, copy_context())
        task = asyncio.ensure_future(worker.result())
        await asyncio.sleep(0)
        if while_running is not None:
            while_running(worker)
        return await asyncio.wait_for(task, BOUND_S)

    return asyncio.run(main())


def spin() -> None:
    """Compute for ever."""
    while True:
        pass


def test_a_result_reaches_the_loop() -> None:
    """What the function returns is what is awaited; it ran in a daemon thread with a name."""
    thread = run_worker(threading.current_thread)
    assert isinstance(thread, threading.Thread)
    assert (thread.name, thread.daemon) == ("nbrun-agent-test", True)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, Cancelled])
def test_an_error_reaches_the_loop(error: type[BaseException]) -> None:
    """Whatever it raises is carried over, and its thread's end disturbs nobody."""

    def fail() -> None:
        raise error("oops")

    async def main() -> str:
        try:
            await Worker("test", fail, copy_context()).result()
        except BaseException as raised:  # the loop must not see it
            return f"{type(raised).__name__}: {raised}"
        return "nothing"

    assert asyncio.run(main()) == f"{error.__name__}: oops"


def test_an_interrupt_ends_a_computing_thread() -> None:
    """`Cancelled` is raised at its next bytecode, once."""
    answers: list[bool] = []

    def interrupt(worker: Worker[object]) -> None:
        deadline = threading.Event()
        while not worker.interrupt():
            deadline.wait(0.001)
        answers.append(worker.interrupt())

    with pytest.raises(Cancelled):
        run_worker(spin, interrupt)
    assert answers == [True]


def test_guarded_code_is_not_interrupted() -> None:
    """Inside nbrun's own code nothing is raised, nested or not; afterwards it may be."""
    inside, leave, torn = threading.Event(), threading.Event(), []

    def work() -> None:
        with guarded():
            with guarded():
                pass
            inside.set()
            leave.wait(BOUND_S)
        spin()

    def interrupt(worker: Worker[object]) -> None:
        assert inside.wait(BOUND_S)
        torn.append(worker.interrupt())
        leave.set()
        pause = threading.Event()
        while not worker.interrupt():
            pause.wait(0.001)

    with pytest.raises(Cancelled):
        run_worker(work, interrupt)
    assert torn == [False]


def test_an_interrupt_before_the_start_and_after_the_end_does_nothing() -> None:
    """Nothing is raised into a thread that is not there, or is somebody else's by now."""

    async def main() -> list[bool]:
        worker: Worker[int] = Worker("test", lambda: 1, copy_context())
        before = worker.interrupt()
        assert await worker.result() == 1
        return [before, worker.interrupt(), worker.is_alive()]

    assert asyncio.run(main()) == [False, False, False]


def test_giving_up_the_wait_leaves_the_thread_alive() -> None:
    """Cancelling who waits does not end the work: that is the ladder's business."""
    gate, ended = threading.Event(), threading.Event()

    def work() -> None:
        gate.wait(BOUND_S)
        ended.set()

    async def main() -> bool:
        worker: Worker[None] = Worker("test", work, copy_context())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.result(), 0.01)
        return worker.is_alive()

    assert asyncio.run(main())
    gate.set()
    assert ended.wait(BOUND_S)


@pytest.fixture
def watched() -> Iterator[None]:
    """Have event loops watched as while there is a host."""
    belongings.watch()
    yield
    belongings.unwatch()


@pytest.mark.usefixtures("watched")
def test_a_stop_cancels_what_an_event_loop_is_only_being_entered_for() -> None:
    """A stop that comes before the thread's coroutine has become a task cancels that task."""
    is_entering, is_asked = threading.Event(), threading.Event()
    problems: list[dict[str, object]] = []

    def make_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        is_entering.set()
        is_asked.wait(BOUND_S)
        return asyncio.Task(work, loop=loop, **options)

    def enter() -> object:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(make_task)
        loop.set_exception_handler(lambda _loop, context: problems.append(context))
        try:
            return loop.run_until_complete(asyncio.sleep(BOUND_S))
        finally:
            loop.close()

    def stop(worker: Worker[object]) -> None:
        assert is_entering.wait(BOUND_S)
        assert worker.stop()
        is_asked.set()

    with pytest.raises(asyncio.CancelledError):
        run_worker(enter, stop)
    assert not problems


@pytest.mark.usefixtures("watched")
def test_a_stop_cancels_the_loop_that_is_entered_at_that_moment() -> None:
    """One loop after another, and nothing when the last has been left."""
    steps: list[str] = []
    here, on = threading.Semaphore(0), threading.Semaphore(0)

    def pause() -> None:
        here.release()
        on.acquire(timeout=BOUND_S)

    def inner(name: str) -> None:
        loop = asyncio.new_event_loop()
        loop.call_soon(pause)
        try:
            loop.run_until_complete(asyncio.sleep(BOUND_S))
        except asyncio.CancelledError:
            steps.append(f"{name} cancelled")
        finally:
            loop.close()

    def work() -> None:
        inner("first")
        inner("second")
        pause()

    def stop(worker: Worker[object]) -> None:
        for is_within in (True, True, False):
            assert here.acquire(timeout=BOUND_S)
            assert worker.stop() is is_within
            on.release()

    run_worker(work, stop)
    assert steps == ["first cancelled", "second cancelled"]


def test_a_thread_is_within_an_import_while_a_module_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so of the thread that imports, also further down, and of no other; and no more when it is over."""
    (tmp_path / "slow_outer.py").write_text("import slow_inner\n")
    (tmp_path / "slow_inner.py").write_text("import builtins\nbuiltins.slow_gate()\n")
    monkeypatch.syspath_prepend(tmp_path)
    here, on, over = threading.Event(), threading.Event(), threading.Event()

    def gate() -> None:
        here.set()
        on.wait(BOUND_S)

    def work() -> None:
        importlib.import_module("slow_outer")
        here.set()
        over.wait(BOUND_S)

    monkeypatch.setattr(builtins, "slow_gate", gate, raising=False)

    def look(worker: Worker[object]) -> None:
        other: Worker[object] = Worker("other", lambda: over.wait(BOUND_S), copy_context())
        other.start()
        assert here.wait(BOUND_S)
        assert (worker.is_importing(), other.is_importing()) == (True, False)
        here.clear()
        on.set()
        assert here.wait(BOUND_S)
        assert not worker.is_importing()
        over.set()

    run_worker(work, look)
