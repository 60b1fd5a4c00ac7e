"""The session: starts, finds, cancels, queues and closes runs."""

from __future__ import annotations

import asyncio
import gc
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nbrun
from nbrun import CancelCause, NotebookSession, Run, RunContext, RunStatus, SequentialIds
from nbrun.core import events as ev
from nbrun.core.cancellation import CancelOutcome
from nbrun.core.errors import (
    AgentNotFound,
    BadOption,
    IdConflict,
    RunCancelled,
    RunNotFound,
    RunRejected,
    SessionClosed,
    StoreError,
)
from nbrun.core.record import RunRecord
from nbrun.sessions import catalog
from nbrun.store import writer
from nbrun.store.rows import FileWriter
from nbrun.store.writer import Writer
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Blocking, BlockingLoop, Held, Stubborn
from tests.fakes.clock import NOON, FakeClock
from tests.fakes.observer import Notes

MakeSession = Callable[..., NotebookSession]


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


# --- starting ----------------------------------------------------------------------------------------


def test_ids_come_from_the_injected_generator(session: NotebookSession) -> None:
    """The first run of a `SequentialIds` session is `run-seq-0`, the second `run-seq-1`; numbers are short."""
    first, second = session.start(agents.instant), session.start(agents.instant)
    assert (first.id, second.id) == ("run-seq-0", "run-seq-1")
    assert (first.number, second.number) == (1, 2)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that answers once this is set; nobody gives up waiting for it."""
    answers, write = threading.Event(), FileWriter.write

    def slow(*args: Any, **options: Any) -> Any:
        assert answers.wait(BOUND_S)
        return write(*args, **options)

    monkeypatch.setattr(writer, "HANG_S", 2 * BOUND_S)
    monkeypatch.setattr(FileWriter, "write", slow)
    yield answers
    answers.set()


def test_start_waits_for_no_commit_but_the_agents_first_line_does(
    make_session: MakeSession, held: Held, disk: threading.Event
) -> None:
    """A run is on disk before its agent is entered, and before its number is seen; whoever starts it goes on."""
    session = make_session()
    run = session.start(held, "tea")
    for _ in range(50):  # turns of the loop, which has nothing else to do
        assert None not in session.ping_hosts(BOUND_S)
    assert (run.wait_created(0), held.prompts, run.done()) == (False, [], False)
    disk.set()
    assert run.wait_created(BOUND_S)
    assert (run.number, run.name, run.record.prompt) == (1, "Held", "tea")
    assert held.entered.wait(BOUND_S)


def test_a_cancel_before_the_commit_of_the_creation_waits_for_nothing(
    make_session: MakeSession, held: Held, disk: threading.Event
) -> None:
    """The receipt is there at once, and the run ends unentered, with all that was asked in its log."""
    run = make_session().start(held)
    receipt = run.cancel("enough")
    assert (receipt.outcome, str(receipt)) == (CancelOutcome.REQUESTED, f"Run {run.id}: cancel requested")
    assert not run.wait_created(0)
    disk.set()
    assert (ended(run).status, run.reason, held.prompts) == (RunStatus.CANCELLED, "enough", [])
    assert [event.type for event in run.events()] == ["run.created", "cancel.requested", "run.cancelled"]


def test_runs_that_start_together_share_commits_and_keep_their_order(
    make_session: MakeSession, disk: threading.Event
) -> None:
    """None of them waits for the one before it; numbers and entries are in the order of the starts."""
    session, entered = make_session(max_concurrent=1), []

    async def enters(prompt: str) -> None:
        entered.append(prompt)

    runs = [session.start(enters, str(index)) for index in range(20)]
    assert not any(run.wait_created(0) for run in runs)
    disk.set()
    assert [ended(run).number for run in runs] == list(range(1, 21))
    assert entered == [str(index) for index in range(20)]


def test_a_run_is_found_as_soon_as_it_is_started(make_session: MakeSession) -> None:
    """Whoever looks for it, by any reference or in a list, need not know that its creation is not public yet."""
    session = make_session(max_concurrent=100)
    for number in range(1, 11):
        run = session.start(agents.waits_for_cancel, "tea", name=f"pot-{number}")
        assert session.get(run.name) == session.get(number) == session.get("last") == session.get(run.id) == run
        assert session.runs(name=run.name) == [run]
        assert session.count_runs() == len(session.runs()) == number
        assert session.live_runs[0].record.prompt == "tea"


def test_a_run_that_is_started_where_runs_become_public_is_not_waited_for(make_session: MakeSession) -> None:
    """A listener that starts a run sees no number yet: it would wait for itself."""
    session, seen = make_session(), queue.SimpleQueue[int | None]()

    def starts_another(record: RunRecord, _events: object) -> None:
        if record.name == "first" and record.status is RunStatus.QUEUED:
            seen.put(session.start(agents.instant, name="second").number)

    session.listen(starts_another)
    session.start(agents.instant, name="first")
    assert seen.get(timeout=BOUND_S) is None
    assert ended(session.get("second")).number == 2


def test_whoever_listens_hears_of_a_run_before_its_agent_is_entered(make_session: MakeSession, held: Held) -> None:
    """A run goes to its host when its creation is public, and those who listen have been called."""
    session, seen = make_session(), queue.SimpleQueue[list[str]]()

    def hears(record: RunRecord, _events: object) -> None:
        if record.status is RunStatus.QUEUED:
            for _ in range(50):  # turns of the loop
                session.ping_hosts(BOUND_S)
            seen.put(list(held.prompts))

    session.listen(hears)
    session.start(held)
    assert seen.get(timeout=BOUND_S) == []
    assert held.entered.wait(BOUND_S)


def test_every_time_comes_from_the_injected_clock(make_session: MakeSession) -> None:
    """No event, and no time of a record, is stamped by another clock (W19)."""
    clock = FakeClock()
    session = make_session(clock=clock)
    run = ended(session.start(agents.talking))
    assert {event.ts for event in run.events()} == {NOON}
    assert (run.created_at, run.started_at, run.ended_at) == (NOON, NOON, NOON)
    clock.move(60.0)
    assert ended(session.start(agents.instant)).created_at == NOON + 60.0


def test_equal_inputs_clock_and_ids_give_equal_events(make_session: MakeSession, tmp_path: Path) -> None:
    """Two sessions with the same clock and ids write the same log, the session's own id apart (W19)."""
    logs = []
    for name in ("a", "b"):
        session = make_session(clock=FakeClock(), store=tmp_path / name / "x.db")
        events = ended(session.start(agents.talking, "tea")).events()
        logs.append([(e.seq, e.ts, e.run_id, e.attempt, e.type) for e in events])
        assert events[-1].data == ev.RunCompleted()  # its output is its text, which is stored once
    assert logs[0] == logs[1]


def test_a_registered_agent_is_found_by_its_name(session: NotebookSession) -> None:
    """`@nbrun.agent` registers a function, and `start` takes its name."""

    @nbrun.agent
    async def registered_for_this_test(prompt: str) -> str:
        return prompt.upper()

    run = session.start("registered_for_this_test", "tea")
    assert (run.name, run.result(BOUND_S)) == ("registered_for_this_test", "TEA")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"agent": "nobody"}, AgentNotFound, "no agent is registered as 'nobody'"),
        ({"agent": 42}, AgentNotFound, "int can't be used as an agent"),
        ({"agent": Held}, AgentNotFound, "can't be used as an agent"),
        ({"agent": lambda a, b, c: None}, AgentNotFound, "it also requires 'b', 'c'"),
        ({"approve": "maybe"}, BadOption, "use ask, auto or deny"),
        ({"if_running": "panic"}, BadOption, "use queue, reject or replace"),
        ({"on": "mars"}, BadOption, "on='mars' is invalid"),
        ({"prompt": None}, BadOption, "prompt must be a str, not NoneType"),
        ({"name": ""}, BadOption, "name is empty"),
        ({"id": " "}, BadOption, "id is empty"),
        ({"id": 3}, BadOption, "id must be a str"),
        ({"timeout_s": 0}, BadOption, "give seconds above 0, for example 90"),
        ({"timeout_s": float("nan")}, BadOption, "give seconds above 0"),
        *(({"name": ref}, BadOption, "give another name") for ref in ("last", "#3", "3", "-1", " 3 ")),
        ({"model": "local"}, BadOption, "give an agent or a model, not both"),
        ({"agent": None, "model": "openai:gpt"}, BadOption, "set OPENAI_API_KEY"),
    ],
)
def test_a_mistake_starts_nothing_and_leaves_nothing(
    session: NotebookSession, store_path: Path, options: dict[str, object], error: type[Exception], words: str
) -> None:
    """A bad argument raises one line that names the mend; no id is used up, no run and no file is made."""
    arguments: dict[str, object] = {"agent": agents.instant, **options}
    with pytest.raises(error, match=words):
        session.start(**arguments)  # type: ignore[arg-type]  # some are wrong on purpose
    assert session.runs() == []
    assert not store_path.exists()
    assert session.start(agents.instant).id == "run-seq-0"


def test_a_store_of_another_session_refuses_every_run(make_session: MakeSession) -> None:
    """Not the first one only: the next would wait for ever. The other session keeps what it prints, too."""
    first = make_session()
    ended(first.start(agents.instant))
    second = make_session(store=first.store)
    for _ in range(2):
        with pytest.raises(StoreError, match="another session"):
            second.start(agents.instant)
    captured = sys.stdout
    second.close()
    assert sys.stdout is captured
    assert ended(first.start(agents.instant)).status is RunStatus.COMPLETED


def test_start_returns_while_the_agent_goes_on(session: NotebookSession, held: Held) -> None:
    """The handle is there before the agent has done anything; the run is live."""
    run = session.start(held, "tea", name="teatime", tags={"topic": "tea"})
    assert run.status.is_live
    assert not run.done()
    assert (run.name, run.record.prompt, run.record.tags) == ("teatime", "tea", {"topic": "tea"})


# --- finding -----------------------------------------------------------------------------------------


def test_a_run_is_found_by_number_name_id_and_place(session: NotebookSession) -> None:
    """`#2`, `2`, `last`, `-1`, `-2`, a name and an id all name a run; a run names itself."""
    first = ended(session.start(agents.instant, name="first"))
    second = ended(session.start(agents.instant, name="second"))
    for ref in ("#2", "2", 2, "last", "-1", -1, "second", "run-seq-1", " last ", second):
        assert session.get(ref) == second
    for ref in ("#1", 1, "-2", "first", "run-seq-0"):
        assert session.get(ref) == first


def test_last_is_the_newest_run_that_somebody_started(make_session: MakeSession) -> None:
    """Places from the end count no child runs, in memory and in the file; a child is found by number, name or id."""

    async def editor(prompt: str, run: RunContext) -> str:
        return str(await run.start_child(agents.instant, "chapter one", name="writer"))

    with make_session() as before:
        first = ended(before.start(editor, "a book", name="editor"))
        second = ended(before.start(editor, "a sequel", name="sequel"))
        for ref in ("last", "-1", -1):
            assert before.get(ref) == second
        assert before.get(-2) == first
        child = before.get("writer")
        assert child.parent_id == second.id
        assert before.get(child.id) == before.get(f"#{child.number}") == child
        before.store.close(1.0)
    with make_session() as after:
        assert (after.get("last").number, after.get(-2).number) == (second.number, first.number)
        third = ended(after.start(editor, "a third", name="third"))
        assert (after.get("last"), after.get(-3).number) == (third, first.number)
        with pytest.raises(RunNotFound):
            after.get(-4)


@pytest.mark.parametrize(
    "ref", ["", "#", "#9", 0, "-0", "-3", "--1", "nobody", "#99999999999999999999999", "last!", "²"]
)
def test_an_unknown_reference_is_one_line(session: NotebookSession, ref: str | int) -> None:
    """What names no run raises `RunNotFound`, whatever it looks like."""
    ended(session.start(agents.instant))
    with pytest.raises(RunNotFound, match="No run"):
        session.get(ref)


def test_of_equal_names_the_newest_is_meant(session: NotebookSession) -> None:
    """A name that was used again names the latest run."""
    ended(session.start(agents.instant, "one", name="tea"))
    newest = ended(session.start(agents.instant, "two", name="tea"))
    assert session.get("tea") == newest


def test_runs_are_filtered_and_newest_first(session: NotebookSession) -> None:
    """Status, name, agent and tag narrow the list; `limit` cuts it after that."""
    for number in range(3):
        ended(session.start(agents.instant, str(number), name=f"n{number}", tags={"n": str(number)}))
    ended(session.start(agents.failing, "x", name="broken"))
    assert [run.number for run in session.runs()] == [4, 3, 2, 1]
    assert [run.name for run in session.runs(status="completed", limit=2)] == ["n2", "n1"]
    assert [run.name for run in session.runs(tag="n=1")] == ["n1"]
    assert [run.name for run in session.runs(agent="failing")] == ["broken"]
    assert [run.number for run in session.runs(name="n0")] == [1]
    assert session.runs(status="lost") == []


def test_live_runs_are_those_that_have_not_ended(session: NotebookSession, held: Held) -> None:
    """Newest first, and none that has ended."""
    first = session.start(held)
    ended(session.start(agents.instant))
    second = session.start(agents.waits_for_cancel)
    assert list(session.live_runs) == [second, first]


def test_ended_runs_are_not_kept_in_memory_for_ever(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old ended runs are let go of, outputs and all, and read from the store; live ones stay."""
    monkeypatch.setattr(catalog, "KEEP_ENDED", 3)
    outputs: list[weakref.ref[object]] = []

    class Thing:
        """Something to return."""

        def __repr__(self) -> str:
            return "a thing"

    async def returns_a_thing(prompt: str) -> object:
        thing = Thing()
        outputs.append(weakref.ref(thing))
        return thing

    waiting = session.start(agents.waits_for_cancel)
    for _ in range(10):
        ended(session.start(returns_a_thing))
    gc.collect()
    assert [output() is not None for output in outputs[:5]] == [False] * 5
    assert "a thing" in str(session.get("#2").output)
    assert session.current_run == waiting


# --- cancelling --------------------------------------------------------------------------------------


def test_cancel_all_stops_every_live_run(session: NotebookSession, held: Held) -> None:
    """Each run gets its own receipt; the ended one gets none."""
    ended(session.start(agents.instant))
    live = [session.start(held), session.start(agents.waits_for_cancel)]
    receipts = session.cancel_all("closing time")
    assert [receipt.run_id for receipt in receipts] == ["run-seq-2", "run-seq-1"]
    assert all(receipt.wait(BOUND_S) for receipt in receipts)
    assert {run.reason for run in live} == {"closing time"}


def test_cancel_never_raises_for_a_callback_of_the_agent(session: NotebookSession) -> None:
    """What an agent hangs on its token cannot break `cancel()` for whoever calls it."""
    ready = threading.Event()

    async def hangs_a_trap(prompt: str, run: RunContext) -> None:
        def trap(request: object) -> None:
            raise ValueError("trap")

        run.token.add_callback(trap)
        ready.set()
        await asyncio.Event().wait()

    run = session.start(hangs_a_trap)
    assert ready.wait(BOUND_S)
    receipt = run.cancel()
    assert receipt.outcome is CancelOutcome.REQUESTED
    assert receipt.wait(BOUND_S)
    assert run.status is RunStatus.CANCELLED


def test_a_trap_on_one_token_does_not_stop_the_close(make_session: MakeSession, held: Held) -> None:
    """A close goes on to the next run whatever a callback raises."""
    ready = threading.Event()

    async def hangs_a_trap(prompt: str, run: RunContext) -> None:
        def trap(request: object) -> None:
            raise ValueError("trap")

        run.token.add_callback(trap)
        ready.set()
        await asyncio.Event().wait()

    session = make_session()
    runs = [session.start(hangs_a_trap), session.start(held)]
    assert ready.wait(BOUND_S)
    session.close()
    assert [run.status for run in runs] == [RunStatus.CANCELLED] * 2


# --- the line ----------------------------------------------------------------------------------------


def test_no_more_than_max_concurrent_are_under_way(make_session: MakeSession) -> None:
    """The rest is queued, visibly, and entered in order as places become free."""
    session = make_session(max_concurrent=2)
    holders = [Held(), Held()]
    try:
        running = [session.start(agent) for agent in holders]
        queued = [session.start(agents.instant, str(number)) for number in range(3)]
        for agent in holders:
            assert agent.entered.wait(BOUND_S)
        assert [run.status for run in queued] == [RunStatus.QUEUED] * 3
        holders[0].let_go()
        assert [run.result(BOUND_S) for run in queued] == ["done: 0", "done: 1", "done: 2"]
        starts = [run.started_at or 0.0 for run in queued]
        assert starts == sorted(starts)
        assert running[1].status is RunStatus.RUNNING
    finally:
        for agent in holders:
            agent.let_go()


def test_a_higher_limit_lets_queued_runs_in(make_session: MakeSession) -> None:
    """`max_concurrent` can be changed at any time: more are let in at once, and a lower limit ends nobody's run."""
    session = make_session(max_concurrent=1)
    holders = [Held() for _ in range(3)]
    moved = threading.Semaphore(0)
    try:
        runs = [session.start(agent) for agent in holders]
        assert holders[0].entered.wait(BOUND_S)
        assert [run.status for run in runs[1:]] == [RunStatus.QUEUED] * 2
        session.on_queue_moved = moved.release
        session.max_concurrent = 2
        assert holders[1].entered.wait(BOUND_S)
        assert moved.acquire(timeout=BOUND_S)
        assert runs[2].status_words() == "Queued (next) · 2 of 2 slots busy"
        session.max_concurrent = 1
        holders[0].let_go()
        assert ended(runs[0]).status is RunStatus.COMPLETED
        assert not holders[2].entered.is_set()
        holders[1].let_go()
        assert holders[2].entered.wait(BOUND_S)
        with pytest.raises(BadOption, match="at least 1"):
            session.max_concurrent = 0
        assert session.max_concurrent == 1
    finally:
        for agent in holders:
            agent.let_go()


def test_a_queued_run_says_what_it_waits_for(make_session: MakeSession, held: Held) -> None:
    """Its place is told by its handle and in lists, moves up when others end, and whoever draws it hears of that."""
    session = make_session(max_concurrent=1)
    moved = threading.Semaphore(0)
    session.on_queue_moved = moved.release
    holder, other = session.start(held), Held()
    second, third = session.start(other), session.start(agents.instant)
    assert second.status_words() == "Queued (next of 2) · 1 of 1 slots busy"
    assert repr(third).endswith("Queued (2nd of 2) · 1 of 1 slots busy>")
    assert "2nd of 2" in repr(session.runs())
    held.let_go()
    assert moved.acquire(timeout=BOUND_S)
    assert third.status_words() == "Queued (next) · 1 of 1 slots busy"
    other.let_go()
    assert ended(holder).status_words().startswith("Completed in")
    assert ended(third).status_words().startswith("Completed in")


def test_a_queued_run_says_that_the_others_wait_for_a_person(make_session: MakeSession) -> None:
    """When one of them begins to ask and when it is answered, whoever draws the line hears of that."""
    session = make_session(max_concurrent=1)
    moved = threading.Semaphore(0)
    session.on_queue_moved = moved.release

    async def asks(prompt: str, run: RunContext) -> None:
        await run.ask("may I?")
        await run.ask("and now?")

    asking, queued = session.start(asks), session.start(agents.instant)
    assert moved.acquire(timeout=BOUND_S)
    assert queued.status_words() == "Queued (next) · 1 of 1 slots busy, 1 waiting for you"
    assert "Waiting for you" in repr(session.runs())
    asking.approve()
    assert moved.acquire(timeout=BOUND_S)
    asking.cancel()
    assert ended(queued).status_words().startswith("Completed")


def test_an_end_is_told_again_when_what_was_left_running_has_ended(make_session: MakeSession) -> None:
    """Whoever shows an ended run hears once of its end, and once more when nothing of it goes on."""
    session, stubborn = make_session(cancel_grace_s=0.05), Stubborn()
    run = session.start(stubborn)
    assert stubborn.entered.wait(BOUND_S)
    told: queue.SimpleQueue[tuple[str, ...]] = queue.SimpleQueue()
    run.follow_end(lambda: told.put(run.record.still_running))
    run.cancel()
    assert told.get(timeout=BOUND_S) == ("Stubborn",)
    stubborn.let_go()
    assert told.get(timeout=BOUND_S) == ()
    assert run.record.is_settled


def test_a_changed_grace_applies_to_new_runs(make_session: MakeSession) -> None:
    """What does not stop is let go of after the new grace period."""
    session, stubborn = make_session(cancel_grace_s=3600.0), Stubborn()
    session.cancel_grace_s = 0.05
    run = session.start(stubborn)
    assert stubborn.entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert run.record.still_running == ("Stubborn",)
    stubborn.let_go()


def test_max_concurrent_must_allow_something(make_session: MakeSession) -> None:
    """No runs at all is a mistake, told at once."""
    with pytest.raises(BadOption, match="at least 1"):
        make_session(max_concurrent=0)


def test_a_second_run_of_a_cell_waits_and_says_so(session: NotebookSession, held: Held) -> None:
    """`if_running="queue"`: it is entered after the first has ended, and only until then says so; other cells go on."""
    first = session.start(held, cell_id="cell-1")
    second = session.start(agents.instant, "second", cell_id="cell-1")
    assert session.start(agents.instant, "other", cell_id="cell-2").result(BOUND_S) == "done: other"
    assert second.status is RunStatus.QUEUED
    assert not second.wait(0.0)
    third = session.start(agents.instant, "third", cell_id="cell-1")
    assert second.status_words() == f"Queued · waiting for run #{first.number} of this cell to finish"
    assert third.status_words() == f"Queued · waiting for run #{second.number} of this cell to finish"
    held.let_go()
    assert second.result(BOUND_S) == "done: second"
    assert second.record.notices == ()
    assert second.status_words().startswith("Completed")
    logged = [event.data.text for event in second.events() if isinstance(event.data, ev.Log)]
    assert logged == [f"Waiting for run #{first.number} of this cell to finish"]
    assert (second.started_at or 0) >= (first.ended_at or 0)


def test_a_second_run_of_a_cell_can_be_refused(session: NotebookSession, held: Held) -> None:
    """`if_running="reject"` raises, starts nothing, and leaves the first alone."""
    first = session.start(held, name="tea")
    with pytest.raises(RunRejected, match="Run #1 of this cell is still running"):
        session.start(agents.instant, name="tea", if_running="reject")
    assert list(session.runs()) == [first]
    held.let_go()
    assert ended(first).status is RunStatus.COMPLETED
    assert session.start(agents.instant, name="tea", if_running="reject").result(BOUND_S)


def test_a_second_run_of_a_cell_can_replace_the_first(session: NotebookSession, held: Held) -> None:
    """`if_running="replace"` cancels the first, with that cause, and then runs."""
    first = session.start(held, cell_id="cell-1")
    assert held.entered.wait(BOUND_S)
    second = session.start(agents.instant, "second", cell_id="cell-1", if_running="replace")
    assert second.result(BOUND_S) == "done: second"
    assert (first.status, first.cause) == (RunStatus.CANCELLED, CancelCause.REPLACED)
    assert "Replaced by a newer run" in repr(first)


def test_runs_without_a_cell_and_a_name_do_not_wait_for_each_other(session: NotebookSession, held: Held) -> None:
    """Two starts of one function are two runs at once."""
    session.start(held)
    other = Held()
    session.start(other)
    assert other.entered.wait(BOUND_S)
    other.let_go()


# --- cancel between created and started --------------------------------------------------------------


def test_a_cancel_in_line_never_enters_the_agent(make_session: MakeSession, held: Held) -> None:
    """A run that is cancelled while queued ends cancelled at once, and its agent is never reached (W2)."""
    session = make_session(max_concurrent=1)
    session.start(held)
    never = Held()
    run = session.start(never, "never read")
    assert run.cancel("changed my mind").wait(BOUND_S)  # although the only place is still taken
    assert (run.status, run.cause) == (RunStatus.CANCELLED, CancelCause.USER)
    assert "before it started" in repr(run)
    held.let_go()
    ended(session.start(agents.instant, "next"))  # the line has moved past it
    assert never.prompts == []
    assert [e.type for e in run.events()] == ["run.created", "cancel.requested", "run.cancelled"]


def test_a_cancel_on_the_way_to_the_host_never_enters_the_agent(session: NotebookSession) -> None:
    """With the loop of all runs held up, a run is created, cancelled, and then not entered (W2)."""
    blocker = BlockingLoop()
    session.start(blocker)
    assert blocker.entered.wait(BOUND_S)
    never = Held()
    run = session.start(never)
    receipt = run.cancel()
    assert receipt.outcome is CancelOutcome.REQUESTED
    blocker.gate.set()
    assert receipt.wait(BOUND_S)
    assert run.status is RunStatus.CANCELLED
    ended(session.start(agents.instant))
    assert never.prompts == []


def test_a_cancel_from_the_creation_hook_never_enters_the_agent(make_session: MakeSession, held: Held) -> None:
    """As soon as anybody can hear of a run, its cancel works: the token is there before the run (W2)."""
    heard = threading.Event()

    class Nervous:
        """Cancels every run that it hears of."""

        def on_created(self, record: nbrun.RunRecord) -> None:
            """Cancel it."""
            if record.name == "unwanted":
                outcomes.append(session.cancel(record.run_id).outcome)
                heard.set()

    outcomes: list[CancelOutcome] = []
    session = make_session(max_concurrent=1, observers=[Nervous()])
    session.start(held)
    never = Held()
    run = session.start(never, name="unwanted")
    assert heard.wait(BOUND_S)
    assert ended(run).status is RunStatus.CANCELLED
    assert outcomes == [CancelOutcome.REQUESTED]
    assert never.prompts == []


# --- ids ---------------------------------------------------------------------------------------------


def test_the_same_id_and_inputs_give_the_same_run(session: NotebookSession) -> None:
    """A start with an id runs once, while it is live and after; the second answer is the first run."""
    held = Held()
    first = session.start(held, "tea", id="nightly")
    again = session.start(held, "tea", id="nightly")
    assert again == first
    held.let_go()
    ended(first)
    assert session.start(held, "tea", id="nightly").output == "held"
    assert held.prompts == ["tea"]
    assert [run.id for run in session.runs()] == ["nightly"]


def test_an_option_that_is_none_is_left_out(session: NotebookSession) -> None:
    """Nor does it change the inputs: the same start, with and without it, is one run."""
    first = ended(session.start(agents.instant, id="nightly"))
    nothing: dict[str, Any] = {"thread": None, "keep_object": None, "timeout_s": None}
    assert session.start(agents.instant, id="nightly", **nothing) == first
    assert first.record.options == {ev.ONCE: True}


def test_the_same_id_is_not_run_again_in_a_later_session(make_session: MakeSession) -> None:
    """Idempotence holds in the store's file, not only in one session."""
    first = make_session()
    ended(first.start(agents.instant, "tea", id="nightly"))
    first.close()
    second = make_session()
    run = second.start(agents.instant, "tea", id="nightly")
    assert (run.status, run.output) == (RunStatus.COMPLETED, "done: tea")
    assert len(second.runs()) == 1


@pytest.mark.parametrize("changed", [{"prompt": "coffee"}, {"agent": agents.sync}, {"timeout_s": 5.0}])
def test_the_same_id_with_other_inputs_is_a_conflict(session: NotebookSession, changed: dict[str, object]) -> None:
    """Another prompt, agent or option under a known id is refused, and nothing is executed."""
    ended(session.start(agents.instant, "tea", id="nightly"))
    arguments: dict[str, object] = {"agent": agents.instant, "prompt": "tea", **changed}
    with pytest.raises(IdConflict, match="nightly"):
        session.start(**arguments, id="nightly")  # type: ignore[arg-type]  # of the right types
    assert len(session.runs()) == 1


def test_one_of_many_racing_starts_creates_the_run(session: NotebookSession) -> None:
    """Of 16 threads that start one id at once, one enters the agent and all get its run."""
    held, barrier = Held(), threading.Barrier(16)
    runs: list[Run] = []

    def start() -> None:
        barrier.wait(BOUND_S)
        runs.append(session.start(held, "tea", id="nightly"))

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    held.let_go()
    assert {ended(run).number for run in runs} == {1}
    assert len(runs) == 16
    assert held.prompts == ["tea"]


def test_an_id_is_idempotent_also_where_the_prompt_holds_a_secret(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs are compared as they are stored: a replaced secret does not make them differ."""
    make_session()  # cleans the environment
    monkeypatch.setenv("TEA_API_KEY", "sk-test-0123456789")
    session = make_session()
    first = ended(session.start(agents.instant, "use sk-test-0123456789", id="nightly"))
    assert session.start(agents.instant, "use sk-test-0123456789", id="nightly") == first
    session.close()
    assert make_session().start(agents.instant, "use sk-test-0123456789", id="nightly") == first


# --- sessions on one store ---------------------------------------------------------------------------


def test_a_later_session_shows_the_finished_run_whole(make_session: MakeSession) -> None:
    """Result, text and every event of a run are there after its session has closed."""
    first = make_session()
    run = ended(first.start(agents.talking, "tea", name="poem"))
    events = run.events()
    first.close()
    second = make_session()
    found = second.get("poem")
    assert found == run
    assert (found.status, found.output, found.text) == (RunStatus.COMPLETED, "one two three", "one two three")
    assert found.events() == events
    assert found.record == run.record
    assert found.result(0) == "one two three"


def test_numbers_go_on_and_ids_may_repeat_in_a_later_session(make_session: MakeSession) -> None:
    """`#n` is unique in a file; `run-seq-0` may exist once per session, and this session's is meant first."""
    first = make_session()
    ended(first.start(agents.instant, "old"))
    first.close()
    second = make_session()
    assert second.get("run-seq-0").output == "done: old"
    new = ended(second.start(agents.instant, "new"))
    assert (new.id, new.number) == ("run-seq-0", 2)
    assert second.get("run-seq-0").output == "done: new"
    assert second.get("#1").output == "done: old"


def test_a_live_run_of_another_session_is_read_only_here(make_session: MakeSession, held: Held) -> None:
    """A cancel from beside answers `foreign`, fires nothing, and the run goes on."""
    first, second = make_session(), make_session()
    run = first.start(held)
    assert held.entered.wait(BOUND_S)
    seen = second.get("#1")
    receipt = seen.cancel()
    assert receipt.outcome is CancelOutcome.FOREIGN
    assert not receipt
    assert run.status.is_live
    assert run.cause is None
    held.let_go()
    ended(run)
    assert seen.wait(BOUND_S)
    assert seen.cancel().outcome is CancelOutcome.ALREADY_FINISHED
    assert seen.status is RunStatus.COMPLETED


def test_the_notebooks_path_chooses_the_file(make_session: MakeSession, tmp_path: Path) -> None:
    """`NotebookSession(path)` keeps runs in `.nbrun/<name>.db` beside the notebook."""
    session = make_session(path=tmp_path / "tea.ipynb")
    ended(session.start(agents.instant))
    assert session.store.path == tmp_path / ".nbrun" / "tea.db"


def test_jupyters_name_for_the_notebook_is_taken(
    make_session: MakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a path, the notebook that `JPY_SESSION_NAME` names chooses the file."""
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "named.ipynb"))
    session = make_session(path=None)
    ended(session.start(agents.instant))
    assert session.store.path == tmp_path / ".nbrun" / "named.db"


# --- the end -----------------------------------------------------------------------------------------


def test_a_closed_session_refuses_runs_and_still_shows_them(session: NotebookSession) -> None:
    """After the close nothing starts; what there was can be read."""
    run = ended(session.start(agents.talking))
    session.close()
    with pytest.raises(SessionClosed, match="closed"):
        session.start(agents.instant)
    assert session.get("last").output == "one two three"
    assert len(run.events()) == 6
    assert run.cancel().outcome is CancelOutcome.ALREADY_FINISHED


def test_close_cancels_what_is_live_and_says_why(session: NotebookSession, held: Held) -> None:
    """Live and queued runs end cancelled by the shutdown; the request stands in the log before the end."""
    run = session.start(held, cell_id="c")
    queued = session.start(agents.instant, cell_id="c")
    assert held.entered.wait(BOUND_S)
    session.close()
    assert held.left.is_set()
    for one in (run, queued):
        assert (one.status, one.cause) == (RunStatus.CANCELLED, CancelCause.SHUTDOWN)
        kinds = [event.type for event in one.events()]
        assert kinds.index("cancel.requested") < kinds.index("run.cancelled")
    assert session.live_runs == []


def test_close_is_idempotent_and_may_come_from_anywhere(session: NotebookSession) -> None:
    """A second close, another thread's close, and a close of a session that never ran do nothing more."""
    ended(session.start(agents.instant))
    threads = [threading.Thread(target=session.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    session.close()
    assert session.is_closed


@pytest.mark.parametrize("kind", [Stubborn, Blocking, BlockingLoop])
def test_close_is_bounded_whatever_the_agents_do(make_session: MakeSession, kind: type[Stubborn | Blocking]) -> None:
    """A close waits for no agent and no grace; what still runs is named in the stored record."""
    session, agent = make_session(cancel_grace_s=60.0), kind()
    run = session.start(agent)
    assert agent.entered.wait(BOUND_S)
    closer = threading.Thread(target=session.close)
    closer.start()
    closer.join(BOUND_S)
    try:
        assert not closer.is_alive()
        assert session.store.close(BOUND_S)  # which waits for a slow disk, as a bounded close does not
        assert (run.status, run.cause) == (RunStatus.CANCELLED, CancelCause.SHUTDOWN)
        assert run.record.detached
        stored = make_session().get("#1")
        assert (stored.status, stored.record.detached) == (run.status, run.record.detached)
    finally:
        if isinstance(agent, Stubborn):
            agent.let_go()
        else:
            agent.gate.set()


def test_a_close_from_inside_an_agent_ends(make_session: MakeSession) -> None:
    """An agent that closes its own session does not hang it."""
    session, closed = make_session(), threading.Event()

    async def closes(prompt: str) -> None:
        session.close()
        closed.set()

    run = session.start(closes)
    assert closed.wait(BOUND_S)
    assert ended(run).status is RunStatus.CANCELLED


def test_a_start_that_races_the_close_leaves_no_live_run(make_session: MakeSession) -> None:
    """Each racing start either raises `SessionClosed` or its run ends; nothing stays live or is left out."""
    session, barrier = make_session(), threading.Barrier(9)
    runs: list[Run] = []
    refused: list[SessionClosed] = []

    def start() -> None:
        barrier.wait(BOUND_S)
        try:
            runs.append(session.start(agents.waits_for_cancel))
        except SessionClosed as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    barrier.wait(BOUND_S)
    session.close()
    for thread in threads:
        thread.join(BOUND_S)
    assert len(runs) + len(refused) == 8
    assert all(run.wait(BOUND_S) for run in runs)
    assert {run.status for run in make_session().runs()} <= {RunStatus.CANCELLED}


def test_a_session_is_a_context_manager(store_path: Path) -> None:
    """It closes at the end of the block, and its live runs end."""
    with NotebookSession(store=store_path, ids=SequentialIds()) as session:
        run = session.start(agents.waits_for_cancel)
    assert session.is_closed
    assert run.status is RunStatus.CANCELLED
    with pytest.raises(RunCancelled, match="shutdown"):
        run.result(0)


def test_all_threads_are_daemons_with_names(session: NotebookSession, held: Held) -> None:
    """Nothing of nbrun's holds up the exit of the kernel."""
    session.start(held)
    session.start(agents.spinning, timeout_s=0.5)
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("nbrun-")]
    assert {thread.name.split("-")[1] for thread in ours} >= {"host", "writer"}
    assert all(thread.daemon for thread in ours)


def test_threads_end_with_their_session(make_session: MakeSession) -> None:
    """After the close, the loop's and the writer's threads are gone."""
    before = set(threading.enumerate())
    session = make_session(observers=[Notes()])
    ended(session.start(agents.sync))
    own = set(threading.enumerate()) - before
    session.close()
    for thread in own:
        thread.join(BOUND_S)
    assert not [thread.name for thread in own if thread.is_alive()]


def test_of_many_who_start_one_id_one_does(make_session: MakeSession) -> None:
    """Eight threads in four sessions on one file: the agent is entered once, and all hold the same run."""
    sessions = [make_session(ids=None) for _ in range(4)]
    entered: list[str] = []
    start = threading.Barrier(8)
    found: list[Run] = []

    async def agent(prompt: str) -> str:
        entered.append(prompt)
        return prompt

    def race(session: NotebookSession) -> None:
        start.wait(BOUND_S)
        run = session.start(agent, "once", id="only")
        assert run.wait(BOUND_S)
        found.append(run)

    threads = [threading.Thread(target=race, args=(session,)) for session in sessions * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert entered == ["once"]
    assert len(found) == 8
    assert {(run.id, run.number, run.output) for run in found} == {("only", 1, "once")}
    assert len(sessions[0].runs()) == 1
    assert all(not session.live_runs for session in sessions)


def test_of_two_who_start_one_id_with_other_inputs_one_is_refused(make_session: MakeSession, held: Held) -> None:
    """The second kernel looked before the first had written; the insert decides, and nothing is left behind."""
    first, second = make_session(ids=None), make_session(ids=None)
    second.start(agents.instant).wait(BOUND_S)  # its writer is there
    looked = second._catalog.with_id
    run = first.start(held, "mine", id="only")

    def sees_nothing_once(run_id: str) -> Run | None:
        second._catalog.with_id = looked  # type: ignore[method-assign]
        return None

    second._catalog.with_id = sees_nothing_once  # type: ignore[method-assign]
    with pytest.raises(IdConflict):
        second.start(held, "other", id="only")
    assert held.prompts in ([], ["mine"])
    assert second.live_runs == []
    held.let_go()
    assert ended(run).output == "held"
    assert held.prompts == ["mine"]


def test_a_message_that_did_not_arrive_is_reported(
    session: NotebookSession, held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was still on its way to the run's host when the run was cancelled is named in a warning."""
    run = session.start(held, name="poet")
    assert held.entered.wait(BOUND_S)
    assert run.live is not None
    assert run.live.wait_until(lambda record: record.status is RunStatus.RUNNING, BOUND_S)
    monkeypatch.setattr(session.parts.scheduler, "control", lambda *_: None)
    noted = threading.Event()
    session.listen(lambda record, _events: None if record.is_live else noted.set())
    run.steer("hurry")
    run.cancel()
    assert noted.wait(BOUND_S)
    assert "Run #1 (poet) ended before 1 message to its agent arrived" in caplog.text


def test_a_close_writes_all_that_waits(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit takes only so much: there are as many as it needs, also after the writer was asked to stop."""
    monkeypatch.setattr("nbrun.sessions.intake.COMMIT_BYTES", 2_000)
    monkeypatch.setattr("nbrun.sessions.intake.TURN_BYTES", 500)
    monkeypatch.setattr("nbrun.sessions.session.CLOSE_S", 0.0)
    entered, go, sent, stopping = (threading.Event() for _ in range(4))
    close, write = Writer.close, FileWriter.write

    def noted_close(writer: Writer, timeout_s: float) -> bool:
        writer._is_stopping = True
        stopping.set()
        return close(writer, timeout_s)

    def held_write(*args: Any, **kwargs: Any) -> Any:
        assert stopping.wait(BOUND_S)
        return write(*args, **kwargs)

    def agent(prompt: str, run: RunContext) -> None:
        entered.set()
        assert go.wait(BOUND_S)
        for _ in range(100):
            run.text("x" * 300)
        sent.set()

    session = make_session()
    run = session.start(agent)
    assert entered.wait(BOUND_S)
    monkeypatch.setattr(Writer, "close", noted_close)
    monkeypatch.setattr(FileWriter, "write", held_write)
    go.set()
    assert sent.wait(BOUND_S)
    session.close()
    assert session.store._writer is not None
    session.store._writer._thread.join(BOUND_S)
    monkeypatch.undo()
    found = make_session().get(run.id)
    assert (len(found.text), found.record.is_live) == (30_000, False)
