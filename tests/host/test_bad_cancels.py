"""Agents that take a cancel badly: each run ends within the grace and a second, and the one beside it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from nbrun import NotebookSession, Run, RunContext, RunStatus
from nbrun.core import events as ev
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held

MakeSession = Callable[..., NotebookSession]

GRACE_S = 0.2
"""A starved machine gets one second more."""

_DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"


class Rogues:
    """One agent for each way to take a cancel badly; all are let go at the end.

    Threads: `entered` and `gate` are of all; the rest is written by the agents.
    """

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.pid: int | None = None

    async def swallows(self, prompt: str, run: RunContext) -> None:
        """Eat every CancelledError."""
        self.entered.set()
        while not self.gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    def spins(self, prompt: str, run: RunContext) -> None:
        """Compute in a thread, and eat every `Exception`."""
        self.entered.set()
        while True:
            with contextlib.suppress(Exception):
                continue

    def sleeps_in_c(self, prompt: str, run: RunContext) -> None:
        """Sleep in one call outside of Python."""
        self.entered.set()
        self.gate.wait(BOUND_S)

    async def raises_in_finally(self, prompt: str, run: RunContext) -> None:
        """Fail in the cleanup."""
        try:
            self.entered.set()
            await asyncio.Event().wait()
        finally:
            raise OSError("the cleanup failed")

    async def waits_for_a_deaf_process(self, prompt: str, run: RunContext) -> None:
        """Ask a process to end that does not listen, and wait for it."""
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", _DEAF, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        self.pid = process.pid
        await process.stdout.readline()
        self.entered.set()
        try:
            await process.wait()
        finally:
            process.terminate()
            await process.wait()

    async def leaves_a_thread(self, prompt: str, run: RunContext) -> None:
        """Start a thread that goes on talking."""

        def talk() -> None:
            while not self.gate.wait(0.005):
                run.text("still here ")

        threading.Thread(target=talk, daemon=True).start()
        self.entered.set()
        await asyncio.Event().wait()

    async def leaves_a_deaf_thread(self, prompt: str, run: RunContext) -> None:
        """Start a thread that goes on talking, and eats every exception."""

        def talk() -> None:
            while not self.gate.is_set():
                with contextlib.suppress(BaseException):
                    self.gate.wait(0.005)
                    run.text("still here ")
            run.text("late")

        threading.Thread(target=talk, daemon=True).start()
        self.entered.set()
        await asyncio.Event().wait()

    async def exits(self, prompt: str, run: RunContext) -> None:
        """Answer a cancel by `SystemExit`."""
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise SystemExit(3) from None

    async def hangs_in_a_hook(self, prompt: str, run: RunContext) -> None:
        """Hang what does not return on the token."""
        run.token.add_callback(lambda _request: self.gate.wait(BOUND_S))
        self.entered.set()
        await asyncio.Event().wait()

    async def yields_on(self, prompt: str, run: RunContext) -> AsyncIterator[str]:
        """Go on talking after the cancel."""
        self.entered.set()
        while not self.gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.005)
            yield "more "

    async def yields_in_finally(self, prompt: str, run: RunContext) -> AsyncIterator[str]:
        """Have a last word where none may be."""
        try:
            self.entered.set()
            yield "first "
            await asyncio.Event().wait()
        finally:
            yield "last"

    def let_go(self) -> None:
        """Let all end."""
        self.gate.set()
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def rogues() -> Iterator[Rogues]:
    """Agents that take a cancel badly, let go at the end."""
    made = Rogues()
    yield made
    made.let_go()


def wait_for_detached(run: Run) -> None:
    """Return when it was told that what a run had left behind has ended."""
    ended = threading.Event()
    assert run.live is not None

    def look(*_: object) -> None:
        if run.events()[-1].type == ev.DetachedFinished.TYPE:
            ended.set()

    remove = run.live.listen(look)
    look()
    assert ended.wait(BOUND_S)
    remove()


@pytest.mark.parametrize(
    ("name", "is_detached", "error"),
    [
        ("swallows", True, None),
        ("spins", False, None),
        ("sleeps_in_c", True, None),
        ("raises_in_finally", False, "OSError"),
        ("waits_for_a_deaf_process", False, None),
        ("leaves_a_thread", False, None),
        ("exits", False, "SystemExit"),
        ("hangs_in_a_hook", False, None),
        ("yields_on", True, None),
        ("yields_in_finally", False, None),
    ],
)
def test_a_cancel_ends_it_in_time_and_disturbs_nobody(
    make_session: MakeSession, rogues: Rogues, held: Held, name: str, is_detached: bool, error: str | None
) -> None:
    """It is cancelled, by its name where it does not stop, with what it raised; nothing follows its end."""
    session = make_session(cancel_grace_s=GRACE_S)
    beside = session.start(held)
    assert held.entered.wait(BOUND_S)
    run = session.start(getattr(rogues, name))
    assert rogues.entered.wait(BOUND_S)
    # From a thread: what an agent hangs on its token is called by who cancels.
    canceller = threading.Thread(target=run.cancel, daemon=True)
    canceller.start()
    assert run.wait(BOUND_S)
    assert run.status is RunStatus.CANCELLED
    assert run.record.detached == ((name,) if is_detached else ())
    assert (run.error.type if run.error else None) == error
    record, count = run.record, len(run.events())
    assert session.start(agents.instant, "tea").result(BOUND_S) == "done: tea"
    assert beside.status is RunStatus.RUNNING
    held.let_go()
    assert beside.result(BOUND_S) == "held"
    rogues.let_go()
    canceller.join(BOUND_S)
    if is_detached:
        wait_for_detached(run)
    assert len(run.events()) == count + is_detached
    assert (run.text, run.output, run.status) == (record.text, record.output, record.status)


def test_what_a_thread_says_after_the_end_is_refused(session: NotebookSession, rogues: Rogues) -> None:
    """A thread that the agent has left talks on; it is named, and no word of it comes into the log after the end."""
    run = session.start(rogues.leaves_a_deaf_thread)
    assert rogues.entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert run.record.detached == ("talk",)
    events = run.events()
    rogues.let_go()
    wait_for_detached(run)
    *before, last = run.events()
    assert before == events
    assert isinstance(last.data, ev.DetachedFinished)
    assert (last.data.name, last.data.refused > 0) == ("talk", True)
    assert "late" not in run.text
