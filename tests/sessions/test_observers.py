"""Observers: each is told of everything, in order, on a thread of its own, and can hold up nobody."""

from __future__ import annotations

import logging
import threading
import tracemalloc
from collections.abc import Callable

import pytest

from nbrun import NotebookSession, Run, RunRecord, RunStatus
from nbrun.core import events as ev
from nbrun.sessions.observers import ObserverThread
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held, Stubborn
from tests.fakes.observer import Notes

MakeSession = Callable[..., NotebookSession]


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


def test_an_observer_hears_of_creation_events_and_end(make_session: MakeSession) -> None:
    """Every committed event comes once, in order, between one creation and one end."""
    notes = Notes()
    session = make_session(observers=[notes])
    run = session.start(agents.talking, "tea")
    notes.wait_for_end()
    assert [record.run_id for record in notes.created] == [run.id]
    assert notes.events == run.events()
    assert [record.status for record in notes.ended] == ["completed"]
    assert notes.ended[0].output == "one two three"
    assert notes.cancelled == []


def test_all_methods_are_optional(make_session: MakeSession) -> None:
    """An observer of endings only is an observer; so is an object that hears nothing."""
    heard = threading.Event()

    class Ends:
        """Hears of endings."""

        def on_ended(self, record: RunRecord) -> None:
            """Hear of one."""
            heard.set()

    session = make_session(observers=[object(), Ends()])
    assert session.start(agents.instant).result(BOUND_S)
    assert heard.wait(BOUND_S)


def test_a_failing_observer_is_reported_and_isolated(
    make_session: MakeSession, caplog: pytest.LogCaptureFixture
) -> None:
    """It changes no run, keeps no other observer from hearing, and stands in the log with its method."""

    class Fails:
        """Fails whenever it is told of anything."""

        def on_event(self, record: RunRecord, event: ev.RunEvent) -> None:
            """Fail."""
            raise ValueError("broken hook")

    notes = Notes()
    session = make_session(observers=[Fails(), notes])
    with caplog.at_level(logging.ERROR, "nbrun"):
        run = session.start(agents.talking)
        notes.wait_for_end()
        session.close()
    assert run.status == "completed"
    assert len(notes.events) == 6
    assert "failed in on_event" in caplog.text
    assert "broken hook" in caplog.text


def test_an_observer_is_called_on_its_own_thread(make_session: MakeSession) -> None:
    """Neither the loop of the agents nor the writer of the store runs a hook."""
    names: list[str] = []
    heard = threading.Event()

    class Where:
        """Notes the thread."""

        def on_ended(self, record: RunRecord) -> None:
            """Note it."""
            names.append(threading.current_thread().name)
            heard.set()

    session = make_session(observers=[Where()])
    ended(session.start(agents.instant))
    assert heard.wait(BOUND_S)
    assert names == ["nbrun-observer"]


def test_a_slow_observer_is_reported(
    make_session: MakeSession, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call that takes longer than the limit stands in the log, while it still goes on."""
    monkeypatch.setattr("nbrun.sessions.observers.LIMIT_S", 0.02)
    gate, reported = threading.Event(), threading.Event()

    class Slow:
        """Waits to be reported."""

        def on_created(self, record: RunRecord) -> None:
            """Wait."""
            gate.wait(BOUND_S)

    class Ear(logging.Handler):
        """Hears the report."""

        def emit(self, record: logging.LogRecord) -> None:
            """Hear it."""
            if "has been in on_created" in record.getMessage():
                reported.set()

    ear = Ear()
    logging.getLogger("nbrun").addHandler(ear)
    try:
        session = make_session(observers=[Slow()])
        assert session.start(agents.instant).result(BOUND_S) == "done: "
        assert reported.wait(BOUND_S)
    finally:
        gate.set()
        logging.getLogger("nbrun").removeHandler(ear)


class Hangs:
    """Hangs at its first event."""

    def __init__(self) -> None:
        self.gate, self.entered = threading.Event(), threading.Event()
        self.heard: list[object] = []

    def on_event(self, record: RunRecord, event: ev.RunEvent) -> None:
        """Hang, or hear it."""
        self.entered.set()
        self.gate.wait(BOUND_S)
        self.heard.append(event.seq)

    def on_gap(self, missed: int) -> None:
        """Hear of a gap."""
        self.heard.append(f"{missed} missed")

    def on_ended(self, record: RunRecord) -> None:
        """Hear of an end."""
        self.heard.append(record.run_id)


def _event(seq: int, data: ev.EventData | None = None) -> ev.RunEvent:
    return ev.RunEvent(seq, 1.0, "run-1", 1, data or ev.RunPhase("p"))


def test_a_hanging_observer_misses_events_and_comes_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits for it is bounded; it hears of the gap at its place, of every end, and of all that comes later."""
    monkeypatch.setattr("nbrun.sessions.observers.BACKLOG", 10)
    hangs = Hangs()
    thread = ObserverThread(hangs)
    ended = RunRecord(run_id="run-2", status=RunStatus.COMPLETED)
    with caplog.at_level(logging.WARNING, "nbrun"):
        for seq in range(100):
            thread.publish(RunRecord(), [_event(seq)])
            assert hangs.entered.wait(BOUND_S)
            if seq == 50:
                thread.publish(ended, [_event(0, ev.RunCompleted())])
    hangs.gate.set()
    thread.close(BOUND_S)
    assert caplog.text.count("is too slow") == 1
    assert hangs.heard[0] == 0
    (gap,) = [heard for heard in hangs.heard if isinstance(heard, str) and heard.endswith("missed")]
    later = [heard for heard in hangs.heard[1:] if isinstance(heard, int)]
    assert "run-2" in hangs.heard
    assert hangs.heard.index(gap) == 1
    assert later == [*range(100 - len(later), 100)]
    assert int(gap.split()[0]) + len(later) + 1 == 101  # the event of the other run's end, too


def test_what_waits_for_an_observer_is_bounded_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few but large events are memory as well."""
    monkeypatch.setattr("nbrun.sessions.observers.BACKLOG_CHARS", 1_000_000)
    hangs = Hangs()
    thread = ObserverThread(hangs)
    thread.publish(RunRecord(), [_event(0)])
    assert hangs.entered.wait(BOUND_S)
    tracemalloc.start()
    for seq in range(1, 41):
        text = f"{seq}" * 100_000
        thread.publish(
            RunRecord(), [_event(seq, ev.TextDelta(text) if seq % 2 else ev.ToolFinished("t", "ok", [text]))]
        )
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1_500_000
    hangs.gate.set()
    thread.close(BOUND_S)
    assert sum(int(heard.split()[0]) if isinstance(heard, str) else 1 for heard in hangs.heard) == 41


def test_an_observer_that_always_fails_is_reported_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    """A flood of one run is no flood of the log."""

    class Fails:
        """Fails at each event."""

        def on_event(self, record: RunRecord, event: ev.RunEvent) -> None:
            """Fail."""
            raise ValueError("broken hook")

    thread = ObserverThread(Fails())
    with caplog.at_level(logging.ERROR, "nbrun"):
        for seq in range(1_000):
            thread.publish(RunRecord(), [_event(seq)])
        thread.close(BOUND_S)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 10
    assert "512 times by now" in lines[-1]


def test_an_end_is_told_once_although_detached_work_ends_later(make_session: MakeSession) -> None:
    """The end of what a cancelled run left behind is an event, not a second end."""
    notes, stubborn = Notes(), Stubborn()
    session = make_session(observers=[notes], cancel_grace_s=0.02)
    run = session.start(stubborn)
    assert stubborn.entered.wait(BOUND_S)
    run.cancel("enough")
    notes.wait_for_end()
    stubborn.let_go()
    assert stubborn.left.wait(BOUND_S)
    ended(session.start(agents.instant))
    notes.wait_for_end()
    assert [record.run_id for record in notes.ended] == ["run-seq-0", "run-seq-1"]
    assert notes.cancelled == [("run-seq-0", "enough")]


def test_an_observer_may_use_the_session(make_session: MakeSession, held: Held) -> None:
    """A hook that cancels, lists and reads runs is not in anybody's way."""
    sessions: list[NotebookSession] = []
    outputs: list[object] = []
    heard = threading.Event()

    class Busy:
        """Reads the run that has ended, and cancels whatever else is live."""

        def on_ended(self, record: RunRecord) -> None:
            """Do both."""
            if record.name == "first":
                outputs.append(sessions[0].get("first").output)
                sessions[0].cancel_all("first is done")
                heard.set()

    session = make_session(observers=[Busy()])
    sessions.append(session)
    other = session.start(held)
    session.start(agents.instant, "tea", name="first")
    assert heard.wait(BOUND_S)
    assert ended(other).reason == "first is done"
    assert outputs == ["done: tea"]
