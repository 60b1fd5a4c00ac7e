"""Several attempts at one run: its process dies, and it goes on from its checkpoint in another one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
from collections.abc import Sequence

import pytest

from nbrun import NotebookSession, Run, RunContext, RunStatus
from nbrun.core import CancelCause, RunRecord, events as ev, fold
from nbrun.core.errors import BadOption
from tests.fakes.agents import BOUND_S

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no run has a process of its own there")

STEPS = 5


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


async def steps(prompt: str, run: RunContext) -> str:
    """Say, do, ask and use something in each step, and save after it."""
    first = run.restored or 0
    assert isinstance(first, int)
    for step in range(first, STEPS):
        run.text(f"[{step}")
        with run.tool("count", {"step": step}) as tool:
            run.usage(input_tokens=1)
            run.text(":")
            tool.finish(step)
        await run.ask(f"Step {step}?")
        run.text("]")
        run.checkpoint(step + 1)
    return "done"


TEXT = "".join(f"[{step}:]" for step in range(STEPS))


class Killer:
    """Kills the process of a run when so many of its events have become public, once for each number."""

    def __init__(self, run: Run, after: Sequence[int]) -> None:
        self._left = sorted(after)
        self._seen = 0
        assert run.live is not None
        run.live.listen(self._note)
        self._process = 0

    def _note(self, _record: RunRecord, events: Sequence[ev.RunEvent]) -> None:
        for event in events:
            if isinstance(event.data, ev.RunStarted):
                self._process = int(event.data.host.rpartition("-")[2])
        self._seen += len(events)
        if self._process and self._left and self._seen >= self._left[0]:
            del self._left[0]
            process, self._process = self._process, 0
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(process, signal.SIGKILL)


def check(run: Run) -> None:
    """Check that the log is whole, and that what the record says follows from it."""
    log = list(run.events())
    assert [event.seq for event in log] == list(range(len(log)))
    record = run.whole_record
    assert fold(log).text == record.text
    attempts = [event.attempt for event in log if event.attempt]
    assert attempts == sorted(attempts)
    asked = [event.data.id for event in log if isinstance(event.data, ev.ApprovalRequested)]
    assert len(asked) == len(set(asked))
    assert record.pending == ()
    assert not [tool for tool in record.tools if tool.status == "running"]
    used = [event.data.input_tokens for event in log if isinstance(event.data, ev.Usage)]
    assert used == sorted(used)
    assert record.usage.input_tokens == max(used, default=0)
    assert record.attempt == len(record.lost_attempts) + 1


def killed_at_random(session: NotebookSession, seed: int) -> None:
    """Run it with two kills at random moments, and check all of it."""
    chosen = random.Random(seed)  # noqa: S311 - no secret
    run = session.start(steps, on="process", retries=2, approve="auto")
    Killer(run, [chosen.randrange(2, 50) for _ in range(2)])
    ended(run)
    assert run.status is RunStatus.COMPLETED, run.error
    assert (run.text, run.record.output) == (TEXT, "done")
    check(run)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_whose_process_is_killed_goes_on(session: NotebookSession, seed: int) -> None:
    """No event twice, nothing wrong in text, output, usage or tools."""
    killed_at_random(session, seed)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_hundred_kills(session: NotebookSession) -> None:
    """The same fifty times, with two kills each."""
    for seed in range(100, 150):
        killed_at_random(session, seed)


async def dies(prompt: str, run: RunContext) -> None:
    """Wait to be killed."""
    run.text("before")
    await run.ask("Still there?")


def kill_when_asked(run: Run) -> None:
    """Kill the run's process when it has asked."""
    assert run.live is not None
    assert run.live.wait_until(lambda record: bool(record.pending), BOUND_S)
    host = next(event.data.host for event in reversed(list(run.events())) if isinstance(event.data, ev.RunStarted))
    os.kill(int(host.rpartition("-")[2]), signal.SIGKILL)


def test_a_run_fails_when_no_attempt_is_left(session: NotebookSession) -> None:
    """Two attempts, two deaths: it has failed, with the reason."""
    run = session.start(dies, on="process", retries=1)
    for attempt in (1, 2):
        assert run.live is not None
        assert run.live.wait_until(lambda record, n=attempt: record.attempt == n and bool(record.pending), BOUND_S)  # type: ignore[misc]
        kill_when_asked(run)
    ended(run)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.type == "ProcessDied"
    assert run.text == "before"
    assert run.record.attempt == 2


def test_a_question_of_the_second_attempt_can_be_answered(session: NotebookSession) -> None:
    """The first one's is gone."""
    run = session.start(dies, on="process", retries=1)
    kill_when_asked(run)
    assert run.live is not None
    assert run.live.wait_until(lambda record: record.attempt == 2 and bool(record.pending), BOUND_S)
    run.approve()
    assert ended(run).status is RunStatus.COMPLETED


def test_a_cancel_before_the_next_attempt_gets_through(session: NotebookSession) -> None:
    """It comes when the death is public and before the next attempt starts: that one is never entered."""
    run = session.start(dies, on="process", retries=1)
    assert run.live is not None
    seen = threading.Event()

    def cancel(_record: RunRecord, events: Sequence[ev.RunEvent]) -> None:
        if any(isinstance(event.data, ev.AttemptLost) for event in events):
            run.cancel("enough")
            seen.set()

    run.live.listen(cancel)
    kill_when_asked(run)
    assert seen.wait(BOUND_S)
    ended(run)
    assert (run.status, run.cause, run.reason) == (RunStatus.CANCELLED, CancelCause.USER, "enough")
    assert [event.data.TYPE for event in run.events()].count("run.started") == 1


def test_retries_need_a_process(session: NotebookSession) -> None:
    """One clear line."""
    with pytest.raises(BadOption, match="on='process'"):
        session.start(dies, retries=1)


class Unreadable:
    """An agent that its process can't make."""

    async def run(self, prompt: str, run: RunContext) -> None:
        """Never come here."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return int, ("no number",)


def test_an_attempt_that_was_never_entered_is_one(session: NotebookSession) -> None:
    """Its process can't make the agent: it is tried again, and then the run has failed."""
    run = ended(session.start(Unreadable().run, on="process", retries=1))
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.type == "ValueError"
    assert [lost.number for lost in run.whole_record.lost_attempts] == [1]
