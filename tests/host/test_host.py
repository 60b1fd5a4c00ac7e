"""The host: whatever an agent does, its run has one end, and nobody else's run notices."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import nbrun
from nbrun import CancelCause, NotebookSession, Run, RunContext, RunStatus
from nbrun.core import events as ev
from nbrun.core.cancellation import Rung
from nbrun.core.errors import Cancelled, RunFailed
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Blocking, Held, Stubborn


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


def types(run: Run) -> list[str]:
    """Return the types of a run's events, by seq."""
    return [event.type for event in run.events()]


def rungs(run: Run) -> list[Rung]:
    """Return the rungs of the cancel ladder that were used."""
    return [e.data.rung for e in run.events() if isinstance(e.data, ev.CancelEscalated)]


def one_end(run: Run) -> ev.RunEvent:
    """Return the run's end event, which is the only one and the last but for detached work."""
    (end,) = [event for event in run.events() if event.type in ev.END_TYPES]
    after = run.events(after=end.seq)
    assert {event.type for event in after} <= {ev.DetachedFinished.TYPE}
    return end


def test_start_comes_first_and_one_end_last(session: NotebookSession) -> None:
    """A run's log begins with its creation and start, and ends with one end event."""
    run = ended(session.start(agents.talking))
    assert types(run) == ["run.created", "run.started", *["text.delta"] * 3, "run.completed"]
    assert run.output == "one two three"


# --- every misbehaviour ------------------------------------------------------------------------------


async def raises_system_exit(prompt: str) -> None:
    """Ask the process to end."""
    raise SystemExit(3)


async def raises_keyboard_interrupt(prompt: str) -> None:
    """Act as if the user had pressed Ctrl-C."""
    raise KeyboardInterrupt


async def raises_cancelled_unasked(prompt: str) -> None:
    """Act as if somebody had cancelled."""
    raise asyncio.CancelledError


async def raises_our_cancelled_unasked(prompt: str) -> None:
    """Act as if the token had fired."""
    raise Cancelled("not true")


async def yields_a_number(prompt: str) -> AsyncIterator[object]:
    """Yield what is no text."""
    yield 42


async def raises_in_finally(prompt: str) -> AsyncIterator[str]:
    """Fail while it cleans up after itself."""
    try:
        yield "text"
    finally:
        raise OSError("cleanup failed")


async def yields_an_ending(prompt: str) -> AsyncIterator[ev.EventData]:
    """Try to end its own run."""
    yield ev.RunCompleted("I am done, believe me")


async def raises_the_unprintable(prompt: str) -> None:
    """Raise what cannot even be printed."""

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    raise Unprintable


def sync_raises_system_exit(prompt: str) -> None:
    """Ask the process to end, from a thread."""
    raise SystemExit(3)


def sync_raises_keyboard_interrupt(prompt: str) -> None:
    """Act as if the user had pressed Ctrl-C, in a thread."""
    raise KeyboardInterrupt


def sync_raises_stop_iteration(prompt: str) -> None:
    """Raise what means something to whoever iterates."""
    raise StopIteration


def sync_raises_cancelled_unasked(prompt: str) -> None:
    """Act as if the token had fired, in a thread."""
    raise Cancelled("not true")


def sync_yields_a_number(prompt: str) -> Iterator[object]:
    """Yield what is no text, from a thread."""
    yield 42


MISBEHAVIOURS: list[tuple[object, str]] = [
    (agents.failing, "ValueError: no luck with it"),
    (raises_system_exit, "SystemExit: 3"),
    (raises_keyboard_interrupt, "KeyboardInterrupt"),
    (raises_cancelled_unasked, "the run was not cancelled"),
    (raises_our_cancelled_unasked, "Cancelled: not true"),
    (yields_a_number, "an agent must yield str, not int"),
    (raises_in_finally, "OSError: cleanup failed"),
    (yields_an_ending, "run.completed"),
    (raises_the_unprintable, "Unprintable"),
    (sync_raises_system_exit, "SystemExit: 3"),
    (sync_raises_keyboard_interrupt, "KeyboardInterrupt"),
    (sync_raises_stop_iteration, "StopIteration"),
    (sync_raises_cancelled_unasked, "Cancelled: not true"),
    (sync_yields_a_number, "an agent must yield str, not int"),
]


@pytest.mark.parametrize(("agent", "message"), MISBEHAVIOURS, ids=lambda value: getattr(value, "__name__", ""))
def test_whatever_an_agent_raises_fails_its_own_run_only(
    session: NotebookSession, held: Held, agent: object, message: str
) -> None:
    """The run is failed, with the message and a traceback; a neighbour on the same loop goes on."""
    neighbour = session.start(held)
    run = ended(session.start(agent, "it"))
    assert (run.status, run.cause) == (RunStatus.FAILED, CancelCause.ERROR)
    assert message in str(run.error)
    assert one_end(run).type == "run.failed"
    with pytest.raises(RunFailed):
        run.result()
    assert held.entered.wait(BOUND_S)
    held.let_go()
    assert ended(neighbour).status is RunStatus.COMPLETED


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_a_task_on_the_side_does_not_end_the_loop(
    session: NotebookSession, error: type[BaseException]
) -> None:
    """An event loop lets these two out; the loop of all runs goes on."""

    async def starts_a_task(prompt: str) -> str:
        async def exits() -> None:
            raise error

        task = asyncio.create_task(exits())
        with contextlib.suppress(BaseException):
            await task
        return "still here"

    assert ended(session.start(starts_a_task)).output == "still here"
    assert session.start(agents.instant, "next").result(BOUND_S) == "done: next"


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ("Let me see.", "It is 5.", "Let me see.\n\nIt is 5."),
        ("Let me see.\n", "It is 5.", "Let me see.\nIt is 5."),
        ("Let me see.", "\nIt is 5.", "Let me see.\nIt is 5."),
        ("", "It is 5.", "It is 5."),
    ],
)
def test_messages_are_paragraphs(session: NotebookSession, first: str, second: str, text: str) -> None:
    """What begins after a complete message is no part of its last word; text and output agree."""

    async def says(prompt: str, run: RunContext) -> None:
        run.text(first)
        run.send(ev.Message("assistant", first))
        run.text(second[:2])
        run.text(second[2:])

    run = ended(session.start(says))
    assert (run.text, run.output) == (text, text)


def test_partial_text_of_a_failed_run_is_its_output(session: NotebookSession) -> None:
    """What was said before the error is kept as output."""

    async def breaks_off(prompt: str) -> AsyncIterator[str]:
        yield "half a "
        yield "sentence"
        raise ValueError("and then")

    run = ended(session.start(breaks_off))
    assert (run.status, run.output) == (RunStatus.FAILED, "half a sentence")


def test_an_open_tool_is_closed_before_the_end(session: NotebookSession) -> None:
    """A tool that its agent left open is told as ended, before the run's own end."""

    async def forgets_its_tool(prompt: str, run: RunContext) -> None:
        run.send(ev.ToolStarted("t1", "search"))
        raise ValueError("oops")

    run = ended(session.start(forgets_its_tool))
    assert types(run)[-2:] == ["tool.finished", "run.failed"]
    assert [(tool.id, tool.status) for tool in run.record.tools] == [("t1", "error")]


# --- cancelling --------------------------------------------------------------------------------------


def test_a_plain_coroutine_is_cancelled_at_once(session: NotebookSession, held: Held) -> None:
    """Its task is cancelled, its `finally` runs, and the run ends as asked, long before the grace is over."""
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    assert run.cancel("enough").wait(BOUND_S)
    assert (run.status, run.cause, run.reason) == (RunStatus.CANCELLED, CancelCause.USER, "enough")
    assert held.left.is_set()
    assert rungs(run) == [Rung.TASK]
    assert run.record.detached == ()


def test_what_was_said_before_a_cancel_is_kept(session: NotebookSession) -> None:
    """Partial text is the output of a cancelled run."""
    held = Held(says="half")
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.output, run.text) == (RunStatus.CANCELLED, "half", "half")


def test_an_async_generator_is_closed_by_a_cancel(session: NotebookSession) -> None:
    """Its `finally` runs where it waits, and nothing it says later is taken."""
    entered, cleaned = threading.Event(), threading.Event()

    async def streams(prompt: str, run: RunContext) -> AsyncIterator[str]:
        try:
            yield "a"
            entered.set()
            await asyncio.Event().wait()
            yield "never"
        finally:
            run.text(" and goodbye")
            cleaned.set()

    run = session.start(streams)
    assert entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert cleaned.is_set()
    assert run.output == "a and goodbye"


def test_an_error_during_cleanup_is_kept_with_the_cancel(session: NotebookSession) -> None:
    """A late error never turns cancelled into failed, and is not lost either."""

    async def breaks_while_leaving(prompt: str, run: RunContext) -> None:
        run.phase("in")
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("cleanup failed")

    run = session.start(breaks_while_leaving)
    wait_for_phase(run, "in")
    assert run.cancel().wait(BOUND_S)
    assert run.status is RunStatus.CANCELLED
    assert str(run.error) == "OSError: cleanup failed"


def wait_for_phase(run: Run, phase: str) -> None:
    """Return when the run says that it is in this phase."""

    async def follow() -> None:
        async for event in run:
            if isinstance(event.data, ev.RunPhase) and event.data.phase == phase:
                return

    asyncio.run(asyncio.wait_for(follow(), BOUND_S))


def test_a_stubborn_agent_is_named_after_the_grace(make_session: Callable[..., NotebookSession]) -> None:
    """One that swallows its CancelledError is left behind by name; its later events are refused, its end told."""
    session, stubborn = make_session(cancel_grace_s=0.05), Stubborn()
    run = session.start(stubborn)
    assert stubborn.entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ("Stubborn",))
    assert stubborn.refusals >= 1
    output, count = run.output, run.record.event_count
    stubborn.let_go()
    last = wait_for_event(run, ev.DetachedFinished)
    assert last.seq == count
    assert (run.status, run.output) == (RunStatus.CANCELLED, output)
    assert one_end(run).type == "run.cancelled"


def wait_for_event(run: Run, kind: type[ev.EventData]) -> ev.RunEvent:
    """Return the run's first event of this kind, also when it comes after the end."""
    assert run.live is not None
    came = threading.Event()
    remove = run.live.listen(lambda _record, _events: came.set())
    try:
        deadline = time.monotonic() + BOUND_S
        while time.monotonic() < deadline:
            came.clear()
            for event in run.events():
                if isinstance(event.data, kind):
                    return event
            came.wait(0.5)
    finally:
        remove()
    raise AssertionError(f"no {kind.TYPE} came")


def test_text_of_a_detached_agent_is_refused_and_counted(make_session: Callable[..., NotebookSession]) -> None:
    """What it says after the run's end reaches neither log nor text, only the count."""
    session = make_session(cancel_grace_s=0.05)
    gate, entered = threading.Event(), threading.Event()

    async def goes_on_talking(prompt: str, run: RunContext) -> str:
        entered.set()
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.005)
        run.text("too late")
        run.phase("late")
        return "too late as well"

    run = session.start(goes_on_talking)
    assert entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    gate.set()
    last = wait_for_event(run, ev.DetachedFinished)
    assert isinstance(last.data, ev.DetachedFinished)
    assert last.data.refused >= 2
    assert (run.text, run.output, run.phase) == ("", None, None)


def test_a_spinning_thread_is_ended_by_an_exception(session: NotebookSession) -> None:
    """A sync agent that never looks at its token has `Cancelled` raised in it after the grace."""
    run = session.start(agents.spinning)
    wait_for_phase(run, "spinning")
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())
    assert rungs(run) == [Rung.THREAD]
    assert thread_is_gone(run.id)


def thread_is_gone(run_id: str) -> bool:
    """Return whether the worker thread of this run ends."""
    for thread in threading.enumerate():
        if thread.name == f"nbrun-agent-{run_id}":
            thread.join(BOUND_S)
            return not thread.is_alive()
    return True


def test_except_exception_does_not_eat_the_cancel(session: NotebookSession) -> None:
    """A loop that swallows every `Exception` is ended all the same."""

    def swallows(prompt: str, run: RunContext) -> None:
        run.phase("spinning")
        number = 0
        while True:
            try:
                number += 1
            except Exception:  # noqa: S112 - what many agents do
                continue

    run = session.start(swallows)
    wait_for_phase(run, "spinning")
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())


def test_a_polling_thread_ends_by_itself_within_the_grace(make_session: Callable[..., NotebookSession]) -> None:
    """A sync agent that looks at its token is not raised into; what it returns is kept."""
    session = make_session(cancel_grace_s=BOUND_S)

    def polls(prompt: str, run: RunContext) -> str:
        run.phase("polling")
        run.token.wait_sync(BOUND_S)
        return "tidied up"

    run = session.start(polls)
    wait_for_phase(run, "polling")
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.output) == (RunStatus.CANCELLED, "tidied up")
    assert rungs(run) == []


def test_run_sleep_wakes_at_a_cancel(make_session: Callable[..., NotebookSession]) -> None:
    """A sync agent in `run.sleep()` is out of it at once."""
    session = make_session(cancel_grace_s=BOUND_S)

    def sleeps(prompt: str, run: RunContext) -> None:
        run.phase("asleep")
        run.sleep(BOUND_S * 10)

    run = session.start(sleeps)
    wait_for_phase(run, "asleep")
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.error, rungs(run)) == (RunStatus.CANCELLED, None, [])


def test_a_thread_that_cannot_be_ended_is_named(
    make_session: Callable[..., NotebookSession], blocking: Blocking
) -> None:
    """A call that is outside of Python goes on; the run ends, says so, and tells when it is over."""
    session = make_session(cancel_grace_s=0.05)
    run = session.start(blocking)
    assert blocking.entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ("Blocking",))
    assert rungs(run) == [Rung.THREAD, Rung.DETACHED]
    blocking.gate.set()
    assert thread_is_gone(run.id)


def test_a_cancel_wins_over_a_result_that_comes_after_it(session: NotebookSession) -> None:
    """An agent that finishes although it was asked to stop is cancelled, and its result is kept."""

    async def finishes_anyway(prompt: str, run: RunContext) -> str:
        run.phase("in")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "all of it"

    run = session.start(finishes_anyway)
    wait_for_phase(run, "in")
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.output) == (RunStatus.CANCELLED, "all of it")


def test_an_agent_may_cancel_its_own_run(session: NotebookSession) -> None:
    """The token that an agent sees is its run's; who fires it stands in the log."""

    async def gives_up(prompt: str, run: RunContext) -> None:
        run.token.cancel("no point", CancelCause.BUDGET)
        await asyncio.Event().wait()

    run = ended(session.start(gives_up))
    assert (run.status, run.cause, run.reason) == (RunStatus.CANCELLED, CancelCause.BUDGET, "no point")
    assert "cancel.requested" in types(run)


# --- time limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", [agents.waits_for_cancel, agents.spinning])
def test_a_time_limit_cancels_with_its_own_words(make_session: Callable[..., NotebookSession], agent: object) -> None:
    """At the deadline the run is cancelled (cause `deadline`) and says after how long it timed out."""
    session = make_session(cancel_grace_s=0.05)
    run = ended(session.start(agent, timeout_s=0.2))
    assert (run.status, run.cause) == (RunStatus.CANCELLED, CancelCause.DEADLINE)
    assert "Timed out after " in repr(run)
    request = next(e.data for e in run.events() if isinstance(e.data, ev.CancelRequested))
    assert (request.cause, request.by) == (CancelCause.DEADLINE, "its time limit")


def test_a_time_limit_does_not_count_the_time_in_line(make_session: Callable[..., NotebookSession], held: Held) -> None:
    """The limit begins when the agent is entered: the run behind a long one does not time out in line."""
    session = make_session(max_concurrent=1)
    session.start(held)
    run = session.start(agents.instant, "patient", timeout_s=0.05)
    assert not run.wait(0.2)
    held.let_go()
    assert run.result(BOUND_S) == "done: patient"


def test_an_agent_sees_its_deadline(session: NotebookSession) -> None:
    """`run.deadline` is the start plus the limit; None without one."""

    async def tells(prompt: str, run: RunContext) -> float | None:
        return run.deadline

    timed = ended(session.start(tells, timeout_s=100.0))
    assert timed.started_at is not None
    assert timed.output == pytest.approx(timed.started_at + 100.0, abs=1.0)
    assert ended(session.start(tells)).output is None


# --- agents within agents ----------------------------------------------------------------------------


@pytest.mark.parametrize("outer_is_sync", [False, True])
def test_an_agent_may_start_agents(session: NotebookSession, *, outer_is_sync: bool) -> None:
    """A run that is started inside another is a run of its own, with a context of its own."""

    async def inner(prompt: str) -> str:
        return f"{nbrun.current().run_id} {prompt}"

    async def outer(prompt: str, run: RunContext) -> str:
        return f"{await session.start(inner, 'in')} / {nbrun.current().run_id}"

    def sync_outer(prompt: str, run: RunContext) -> str:
        return f"{session.start(inner, 'in').result(BOUND_S)} / {nbrun.current().run_id}"

    run = session.start(sync_outer if outer_is_sync else outer)
    assert run.result(BOUND_S) == "run-seq-1 in / run-seq-0"


def test_a_cancel_of_the_starter_leaves_what_it_started_alone(session: NotebookSession, held: Held) -> None:
    """A run that an agent started by `start()` has its own token: it is no child."""

    async def outer(prompt: str, run: RunContext) -> None:
        session.start(held, "inner", name="inner")
        run.phase("started")
        await asyncio.Event().wait()

    run = session.start(outer)
    wait_for_phase(run, "started")
    assert run.cancel().wait(BOUND_S)
    assert session.get("inner").status.is_live


def test_a_sync_agent_is_not_torn_out_of_a_start(make_session: Callable[..., NotebookSession]) -> None:
    """A cancel of a sync agent waits until a `start()` inside it is through: no run is left half-made."""
    torn: list[bool] = []

    class Ids(nbrun.SequentialIds):
        """Cancels the outer run while the inner one is being made."""

        def next_id(self) -> str:
            """Look whether a cancel could be raised here."""
            worker = next((work for run in outer_context for work in run.work), None)
            if worker is not None:
                torn.append(worker.interrupt())
            return super().next_id()

    outer_context: list[RunContext] = []
    session = make_session(ids=Ids())

    def outer(prompt: str, run: RunContext) -> None:
        outer_context.append(run)
        session.start(agents.instant, "inner", name="inner")

    ended(session.start(outer))
    assert torn == [False]
    assert ended(session.get("inner")).status is RunStatus.COMPLETED


def test_thread_keeps_the_loop_free_of_a_blocking_agent(session: NotebookSession) -> None:
    """With `thread`, an async agent that blocks holds up nobody; its text and its cancel work as ever."""
    blocker = agents.BlockingLoop()
    try:
        run = session.start(blocker, thread=True)
        assert blocker.entered.wait(BOUND_S)
        assert session.start(agents.instant, "free").result(BOUND_S) == "done: free"
        blocker.gate.set()
        assert run.result(BOUND_S) == "unblocked"
    finally:
        blocker.gate.set()
    assert session.start(agents.talking, thread=True).result(BOUND_S) == "one two three"
    waiting = session.start(agents.waits_for_cancel, thread=True)
    assert waiting.cancel().wait(BOUND_S)
    assert waiting.status is RunStatus.CANCELLED


@pytest.mark.parametrize("options", [{}, {"on": "process"}], ids=["local", "process"])
def test_halves_of_a_character_are_joined(session: NotebookSession, options: dict[str, Any]) -> None:
    """An emoji that arrives as two surrogates in two deltas is one; a half that stays alone is its escape."""
    run = ended(session.start(agents.halves, **options))
    assert (run.output, run.text) == ("a😀b\\ud83dc\\ud83d",) * 2
    assert "".join(event.data.text for event in run.events() if isinstance(event.data, ev.ReasoningDelta)) == "😀"
    args = [event.data.text for event in run.events() if isinstance(event.data, ev.ToolArgsDelta)]
    assert args == ["{", "😀"]
