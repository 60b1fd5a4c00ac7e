"""Agents, observers and handlers at their worst: every run gets its end, and no other run suffers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbrun import CancelToken, NotebookSession, Run, RunContext
from nbrun.core import events as ev
from nbrun.core.cancellation import CancelOutcome
from nbrun.core.errors import BadOption, Cancelled, StoreError
from nbrun.host import driver
from nbrun.host.driver import Driver
from nbrun.sessions.intake import COMMIT_BYTES, MOST
from nbrun.sessions.live_run import LiveRun
from nbrun.sessions.scheduler import RunQueue
from nbrun.store import writer
from nbrun.store.rows import FileWriter
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held

MakeSession = Callable[..., NotebookSession]


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


class Exits:
    """A value that cannot even be looked at."""

    def __repr__(self) -> str:
        """Leave."""
        raise SystemExit(3)


class Unsayable(Exception):
    """An error whose text is another error."""

    def __str__(self) -> str:
        """Interrupt."""
        raise KeyboardInterrupt


async def returns_exits(prompt: str) -> object:
    """Return what cannot be shown."""
    return Exits()


async def raises_unsayable(prompt: str) -> None:
    """Raise what cannot be said."""
    raise Unsayable


async def sends_no_text(prompt: str, run: RunContext) -> None:
    """Send a text that is a number."""
    run.send(ev.TextDelta(5))  # type: ignore[arg-type]


async def sends_a_lie(prompt: str, run: RunContext) -> None:
    """Send what calls itself a text delta and is none."""
    run.send(ev.Unknown("text.delta", {"text": 5}))


@pytest.mark.parametrize(
    ("agent", "status"),
    [(returns_exits, "completed"), (raises_unsayable, "failed"), (sends_no_text, "failed"), (sends_a_lie, "completed")],
)
def test_every_run_gets_its_end(make_session: MakeSession, agent: object, status: str) -> None:
    """Whatever an agent gives back, raises or sends, its run ends, and the next in line begins."""
    session = make_session(max_concurrent=1)
    run, following = session.start(agent), session.start(agents.instant, "tea")
    assert ended(run).status == status
    assert ended(following).output == "done: tea"
    assert [event.seq for event in run.events()] == list(range(run.record.event_count))


def test_what_cannot_be_stored_is_stood_in_for(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value above SQLite's limit costs itself: the log has no gap, the run its true status, others nothing."""
    monkeypatch.setattr("nbrun.store.connection.MAX_VALUE_BYTES", 300_000)
    session = make_session()

    async def big(prompt: str, run: RunContext) -> str:
        run.emit("big", "x" * 400_000)
        return "y" * 400_000

    run = ended(session.start(big))
    other = ended(session.start(agents.instant, "tea"))
    assert (run.status, run.problem, other.problem) == ("completed", None, None)
    assert run.output == "y" * 400_000  # here it is the agent's own
    session.close()
    later = make_session().get(1)
    assert (later.status, [event.type for event in later.events()]) == (
        "completed",
        ["run.created", "run.started", "log", "run.completed"],
    )
    assert "could not be stored" in str(later.output)


def test_a_prompt_that_cannot_be_stored_costs_only_itself(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has its name, its agent gets all of the prompt, and the log begins with the run's creation."""
    monkeypatch.setattr("nbrun.store.connection.MAX_VALUE_BYTES", 300_000)
    session = make_session()

    async def reads(prompt: str) -> int:
        return len(prompt)

    run = ended(session.start(reads, "x" * 400_000, name="reader", tags={"kind": "long"}))
    assert (run.name, run.status, run.problem, run.output) == ("reader", "completed", None, 400_000)
    session.close()
    later = make_session().get("reader")
    assert [event.type for event in later.events()] == ["run.created", "run.started", "run.completed"]
    assert (later.status, later.record.tags["kind"]) == ("completed", "long")
    assert later.record.prompt.startswith("xxx")
    assert later.record.prompt.endswith("could not be stored: string or blob too big)")


def test_an_observer_that_cannot_be_asked_costs_no_place_in_line(make_session: MakeSession) -> None:
    """An observer that raises where it is looked at is reported, one that hangs is left, and the runs in line go on."""
    gate = threading.Event()

    class Prickly:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError(name)

    class Hangs:
        def __getattr__(self, name: str) -> object:
            gate.wait()
            raise RuntimeError(name)

        def __repr__(self) -> str:
            gate.wait()
            return "hangs"

    reported = threading.Event()

    class Reports(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "cannot be asked" in record.getMessage():
                reported.set()

    session, handler = make_session(max_concurrent=1, observers=[Prickly(), Hangs()]), Reports()
    logging.getLogger("nbrun").addHandler(handler)
    try:
        runs = [session.start(agents.instant, "tea") for _ in range(3)]
        assert [ended(run).status for run in runs] == ["completed"] * 3
        assert reported.wait(BOUND_S)
    finally:
        logging.getLogger("nbrun").removeHandler(handler)
        gate.set()


def test_a_refused_session_does_not_end_the_store_of_another(make_session: MakeSession) -> None:
    """One store serves one session; closing the other leaves its writer alone."""
    owner = make_session()
    ended(owner.start(agents.instant, "tea"))
    refused = make_session(store=owner.store)
    with pytest.raises(StoreError, match="in use"):
        refused.start(agents.instant, "tea")
    refused.close()
    assert ended(owner.start(agents.instant, "more")).output == "done: more"


def test_an_id_is_no_name(session: NotebookSession) -> None:
    """A start with an id finds the run of that id, also where another run has it for a name."""
    first = ended(session.start(agents.instant, "tea", id="nightly"))
    ended(session.start(agents.instant, "coffee", name="nightly"))
    assert session.start(agents.instant, "tea", id="nightly") == first
    assert len(session.runs()) == 2


def test_a_cancel_in_a_signal_handler_gets_through(session: NotebookSession, held: Held) -> None:
    """A handler that cancels while its thread holds the line's lock does not stand in its own way."""
    line = RunQueue(1)
    first, second = (LiveRun(name, session.token.child()) for name in ("a", "b"))
    line.join(first)
    line.join(second)
    seen: list[bool] = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: seen.append(line.pass_by(second)))
    try:
        with line._lock:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert seen == [True]
    assert line.leave(first) == []


def test_a_coroutine_from_a_sync_function_is_cancelled(make_session: MakeSession) -> None:
    """A cancel that came while the function ran also ends what the function gave back."""
    session = make_session(cancel_grace_s=0.1)
    is_in, go_on, was_cancelled = threading.Event(), threading.Event(), threading.Event()

    async def inner() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise

    def outer(prompt: str) -> Any:
        is_in.set()
        go_on.wait(BOUND_S)
        return inner()

    run = session.start(outer)
    assert is_in.wait(BOUND_S)
    receipt = run.cancel()
    go_on.set()
    assert receipt.wait(BOUND_S)
    assert was_cancelled.wait(BOUND_S)
    assert (receipt.outcome, run.status) == (CancelOutcome.REQUESTED, "cancelled")


@pytest.mark.parametrize("option", [{"prompt": 5}, {"name": 5}])
def test_a_text_that_is_none_is_one_line(session: NotebookSession, option: dict[str, Any]) -> None:
    """A prompt or name of another type is refused before anything is begun."""
    with pytest.raises(BadOption, match="must be a str"):
        session.start(agents.instant, **option)
    assert session.runs() == []


def test_a_damaged_run_does_not_break_the_list(make_session: MakeSession, store_path: Path) -> None:
    """A run whose log has a gap is listed, and says of itself that it is damaged."""
    import sqlite3

    session = make_session()
    for prompt in ("tea", "coffee"):
        ended(session.start(agents.instant, prompt))
    session.close()
    connection = sqlite3.connect(store_path)
    connection.execute("DELETE FROM events WHERE run = 1 AND seq = 1")
    connection.commit()
    connection.close()
    later = make_session()
    assert "coffee" in repr(later.runs())
    assert "damaged" in later.get(1).record.notices[0]
    assert later.get(1).status == "completed"


def test_a_hook_that_hangs_holds_up_nobody_who_cancels(session: NotebookSession) -> None:
    """What an agent hangs on its token goes on by itself: a click, a cell and a close do not wait for it."""
    gate, is_in = threading.Event(), threading.Event()

    async def hooked(prompt: str, run: RunContext) -> None:
        run.token.add_callback(lambda _request: gate.wait(BOUND_S * 3))
        is_in.set()
        await asyncio.Event().wait()

    other = session.start(agents.waits_for_cancel)
    run = session.start(hooked)
    assert is_in.wait(BOUND_S)
    try:
        assert run.cancel().wait(BOUND_S)  # without patience it would hang for longer than that
        assert (run.status, run.record.detached) == ("cancelled", ())
        assert other.cancel().wait(BOUND_S)
    finally:
        gate.set()


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_flood_is_held_up_while_the_store_writes(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch, is_async: bool, is_cancelled: bool
) -> None:
    """An agent waits once its share is full, and a cancel ends that; what it has sent is stored, all and in order."""
    is_held, gate, piece, pieces = threading.Event(), threading.Event(), "x" * 200_000, 60
    hold, write = Driver._hold, FileWriter.write

    def watched_hold(driver: Driver) -> float:
        pause_s = hold(driver)
        if pause_s:
            is_held.set()
        return pause_s

    def held_write(*args: Any, **kwargs: Any) -> Any:
        assert gate.wait(BOUND_S)
        return write(*args, **kwargs)

    session = make_session()
    ended(session.start(agents.instant))
    monkeypatch.setattr(Driver, "_hold", watched_hold)
    sent: list[int] = []

    def floods(prompt: str, run: RunContext) -> None:
        monkeypatch.setattr(FileWriter, "write", held_write)  # from here on: what began the run is stored before
        for number in range(pieces):
            run.token.raise_if_cancelled()
            run.text(piece)
            sent.append(number)

    async def floods_on_the_loop(prompt: str, run: RunContext) -> None:
        monkeypatch.setattr(FileWriter, "write", held_write)
        for number in range(pieces):
            run.text(piece)
            sent.append(number)
            await asyncio.sleep(0)

    run = session.start(floods_on_the_loop if is_async else floods)
    assert is_held.wait(BOUND_S)
    assert run.live is not None
    assert run.live.sent_bytes - run.live.taken_bytes <= MOST + 2 * len(piece)
    if is_cancelled:
        run.cancel()
    gate.set()
    assert run.wait(BOUND_S)
    assert run.status == ("cancelled" if is_cancelled else "completed")
    assert len(run.text) == len(piece) * len(sent)
    assert (len(sent) < pieces) is is_cancelled
    assert [event.seq for event in run.events()] == list(range(run.record.event_count))


@pytest.mark.parametrize("is_async", [False, True])
def test_a_flood_of_large_lines_is_held_back(make_session: MakeSession, is_async: bool) -> None:
    """Whoever writes faster than can be stored is paused: memory stays small, and others come through."""
    session, line = make_session(), "x" * 64_000
    sent: list[int] = []

    def floods(prompt: str, run: RunContext) -> None:
        while True:
            run.log(line)
            sent.append(1)

    async def floods_on_the_loop(prompt: str, run: RunContext) -> None:
        while True:
            run.log(line)
            sent.append(1)
            await asyncio.sleep(0)

    flood = session.start(floods_on_the_loop if is_async else floods)
    others = [session.start(agents.instant, str(number)) for number in range(5)]
    assert [ended(run).output for run in others] == [f"done: {number}" for number in range(5)]
    waiting = len(sent) - flood.record.log_count
    assert waiting * len(line) < 100_000_000
    assert flood.cancel().wait(BOUND_S)
    assert flood.record.detached == ()


def with_stack(left: int, function: Callable[[], object]) -> None:
    """Call a function where the stack has room for so many calls."""
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]

    def dive(calls: int) -> None:
        if calls > 0:
            dive(calls - 1)
        else:
            function()

    with contextlib.suppress(RecursionError):
        dive(sys.getrecursionlimit() - depth - left)


DEEP: dict[str, Callable[[RunContext, NotebookSession], object]] = {
    "text": lambda run, _: run.text("x"),
    "log": lambda run, _: run.log("x"),
    "print": lambda run, _: print("x"),
    "tool": lambda run, _: run.send(ev.ToolStarted("x", "x")),
    "child": lambda run, _: run.start_child(agents.instant, "x"),
    "cancel": lambda run, _: run.start_child(agents.instant, "x").cancel(),
    "start": lambda _, session: session.start(agents.instant, "x"),
}


@pytest.mark.parametrize("way", DEEP)
def test_a_recursion_error_anywhere_costs_no_run_its_end(session: NotebookSession, way: str) -> None:
    """It may be raised in the middle of what nbrun does for the agent: nothing is left half done."""

    def recurses(prompt: str, run: RunContext) -> str:
        for left in (*range(3, 90, 2), *range(90, 260, 30)):
            with_stack(left, lambda: DEEP[way](run, session))
        return "back"

    run = ended(session.start(recurses))
    assert (run.status, run.output) == ("completed", "back")
    assert run.live is not None
    assert run.live.refused == 0
    assert all(ended(other).status in ("completed", "cancelled") for other in session.runs())


class Flood:
    """Sends text on the loop of all runs, and gives nobody else a turn there."""

    def __init__(self) -> None:
        self.sent = 0
        self.raised: BaseException | None = None

    async def __call__(self, prompt: str, run: RunContext) -> None:
        """Until the run is cancelled, or it has sent far too much."""
        try:
            while self.sent < 20 * MOST:
                run.text("x" * 100_000)
                self.sent += 100_000
        except BaseException as error:
            self.raised = error
            raise


def test_text_without_a_turn_for_others_is_bounded_and_hears_a_cancel(
    session: NotebookSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An async agent that never awaits is held up while the store is slow; a cancel is raised where it sends text."""
    gate, is_held, flood = threading.Event(), threading.Event(), Flood()
    write, wait_sync = FileWriter.write, CancelToken.wait_sync

    def held_write(*args: Any, **options: Any) -> Any:
        assert not flood.sent or gate.wait(BOUND_S)
        return write(*args, **options)

    def watched_wait(token: CancelToken, timeout_s: float | None = None) -> bool:
        is_held.set()
        return wait_sync(token, timeout_s)

    monkeypatch.setattr(writer, "HANG_S", 2 * BOUND_S)
    monkeypatch.setattr(FileWriter, "write", held_write)
    monkeypatch.setattr(CancelToken, "wait_sync", watched_wait)
    monkeypatch.setattr(driver, "PAUSES", 1_000_000)
    run = session.start(flood, "")
    try:
        assert is_held.wait(BOUND_S)
        assert flood.sent <= MOST + 2 * COMMIT_BYTES
        run.cancel()
    finally:
        gate.set()
    assert ended(run).status == "cancelled"
    assert type(flood.raised) is Cancelled
