"""ACP agents that are not as one would wish: a clear end each time, within bounds, and no process left."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from nbrun import NotebookSession, Run, RunStatus
from nbrun import events as ev
from nbrun.agents import AcpAgent, by_name, find_adapter
from nbrun.agents.acp_process import AcpProcess
from nbrun.errors import AgentNotFound, BadOption
from tests.agents.conformance import log
from tests.conftest import MakeSession
from tests.executors.test_process import is_gone, wait_until_gone
from tests.fakes.agents import BOUND_S
from tests.fakes.people import until

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "fakes" / "acp_hostile.py"


def hostile(kind: str, *more: str, **options: Any) -> AcpAgent:
    """Return an agent of this kind."""
    return AcpAgent([sys.executable, "-S", str(PROGRAM), kind, *more], name="poet", **options)


def ended(run: Run) -> Run:
    """Return the run when it has ended, its log looked at, and no process of this one left."""
    assert run.wait(BOUND_S), f"{run!r} has not ended: {run.record}"
    log.check(run)
    assert [
        child for child in psutil.Process().children() if "acp_hostile" in str(child.cmdline())
    ] == []
    return run


def child_of(run: Run) -> int:
    """Return the number of the program that the agent has started, which it tells first."""
    return int(until(run, lambda record: " " in record.text).text.split()[0])


# --- it does not answer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("says nothing", r"poet has not answered for 0\.5 s; is it started as an ACP agent\?"),
        (
            "is no agent",
            r"poet ended with exit code 2 before it was done: usage: agent \[options\]",
        ),
        ("wants a login", "Authentication required: run: agent login"),
        ("refuses", "poet refuses to go on"),
        (
            "answers nonsense",
            r"poet gives an answer that is none of the protocol's \(protocolVersion: ",
        ),
        ("answers no error", r'\["no",5\]'),
    ],
)
def test_what_is_no_agent_fails_with_a_line_that_says_why(
    session: NotebookSession, kind: str, message: str
) -> None:
    """Silence, a usage, a login that is missing, a refusal."""
    patience_s = 0.5 if kind == "says nothing" else BOUND_S
    run = ended(session.start(hostile(kind, start_timeout_s=patience_s)))
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.type == "NbrunError"
    assert re.search(message, run.error.message), run.error.message


@pytest.mark.parametrize(
    "kind", ["never answers", "ignores a cancel", "floods and ignores a cancel"]
)
def test_one_that_does_not_stop_is_killed_with_all_that_it_has_started(
    session: NotebookSession, kind: str
) -> None:
    """After the grace; nothing of it runs on, so nothing is named."""
    run = session.start(hostile(kind))
    child = child_of(run)
    assert not is_gone(child)
    run.cancel()
    ended(run)
    assert (run.status, run.error, run.record.detached) == (RunStatus.CANCELLED, None, ())
    wait_until_gone(child)


def test_a_cancel_while_it_is_started_leaves_nothing_open() -> None:
    """Neither the lifeline nor a pipe of a program that was never spoken to."""

    async def main() -> int:
        before: int = psutil.Process().num_fds()
        starting: Any = AcpProcess.start(
            hostile("says nothing"), cast("Any", None), cast("Any", None)
        )
        task = asyncio.create_task(starting)
        await asyncio.sleep(0)  # it waits for the program to be there
        assert task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        return int(psutil.Process().num_fds() - before)

    assert asyncio.run(main()) == 0


def test_one_that_dies_in_the_middle_of_a_message(session: NotebookSession) -> None:
    """The run fails with its exit code and last words, keeps what it had said, and its children go with it."""
    run = ended(session.start(hostile("dies")))
    assert run.status is RunStatus.FAILED
    assert "poet ended with exit code 3 before it was done: the cup is broken" in str(run.error)
    assert run.text.endswith("half a ")
    assert run.record.log == ("the cup is broken",)
    wait_until_gone(child_of(run))


def test_what_it_has_started_does_not_outlive_its_answer(session: NotebookSession) -> None:
    """An agent that ends well leaves nothing behind either."""
    run = ended(session.start(hostile("leaves a program behind")))
    assert run.status is RunStatus.COMPLETED
    wait_until_gone(child_of(run))


# --- it says too much --------------------------------------------------------------------------------


def test_a_flood_is_told_whole_and_not_piled_up(session: NotebookSession) -> None:
    """100,000 updates: each is in the log, and this process has not grown by what it could not store yet."""
    ended(session.start(hostile("refuses")))  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = ended(session.start(hostile("floods")))
    assert run.status is RunStatus.COMPLETED, run.error
    assert run.text == "x" * 100_000
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 150_000


def test_a_flood_of_errors_is_cut(session: NotebookSession) -> None:
    """20 MB on its standard error: the first of it is in the log, and how it goes on is told."""
    run = ended(session.start(hostile("floods its errors")))
    assert (run.status, run.text) == (RunStatus.COMPLETED, "done")
    logged = [event.data.text for event in run.events() if isinstance(event.data, ev.Log)]
    assert logged[0].startswith("e" * 99)
    assert sum(map(len, logged)) < 1_200_000
    assert "poet wrote more to its standard error than is kept" in logged


def test_a_line_of_50_mb_is_left_out(session: NotebookSession) -> None:
    """It is never held whole; the run goes on, and its card says so."""
    run = ended(session.start(hostile("writes a long line")))
    assert (run.status, run.text) == (RunStatus.COMPLETED, "done")
    (notice,) = run.record.notices
    assert notice == "a message of 50 MB from poet is left out: it is too long"


def test_garbage_is_told_of_once_and_the_run_goes_on(
    session: NotebookSession, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines that are no messages, updates of any shape, files that were never offered: nothing is believed."""
    run = ended(session.start(hostile("writes garbage")))
    assert (run.status, run.text) == (RunStatus.COMPLETED, "done"), run.error
    assert run.record.notices[0] == "poet wrote what is no message: no json"
    assert "poet wrote 6 lines that are no messages" in run.record.log
    assert [tool.status for tool in run.record.tools] == ["ok", "ok"]
    assert caplog.records == []  # nothing for the kernel's standard error
    assert run.usage.cost_usd is None


# --- it asks too late --------------------------------------------------------------------------------


def test_a_question_after_a_cancel_is_answered_at_once(
    session: NotebookSession, tmp_path: Path
) -> None:
    """By `cancelled`, as the protocol has it; no person is asked."""
    heard = tmp_path / "heard.json"
    run = session.start(hostile("asks after a cancel", str(heard)))
    until(run, lambda record: record.text == "half ")
    run.cancel()
    ended(run)
    assert json.loads(heard.read_text(encoding="utf-8")) == {"outcome": {"outcome": "cancelled"}}
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())
    assert not any(isinstance(event.data, ev.ApprovalRequested) for event in run.events())


def test_more_questions_than_a_person_can_answer_wait(session: NotebookSession) -> None:
    """5,000 at once: some are asked, the agent is held back, and a cancel withdraws them all."""
    run = session.start(hostile("asks and asks"))
    until(run, lambda record: len(record.pending) >= 10)
    run.cancel()
    ended(run)
    assert run.status is RunStatus.CANCELLED
    assert sum(isinstance(event.data, ev.ApprovalRequested) for event in run.events()) <= 25


# --- it outlives its kernel --------------------------------------------------------------------------

KERNEL = """
import sys, nbrun
from nbrun.agents import AcpAgent
session = nbrun.NotebookSession(store=sys.argv[1])
run = session.start(AcpAgent([sys.executable, "-S", sys.argv[2], "never answers"]))
while " " not in run.text:
    run.wait(0.01)
print(run.text, flush=True)
run.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a group by itself")
@pytest.mark.timeout(40)
def test_a_killed_kernel_leaves_no_agent(tmp_path: Path) -> None:
    """SIGKILL of the kernel takes the agent along, and what that has started."""
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(KERNEL),
        str(tmp_path / "runs.db"),
        str(PROGRAM),
    ]
    kernel = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert kernel.stdout is not None
    try:
        child = int(kernel.stdout.readline())
        agent = psutil.Process(child).ppid()
        assert not is_gone(agent)
    finally:
        os.kill(kernel.pid, signal.SIGKILL)
        kernel.communicate()
    wait_until_gone(agent)
    wait_until_gone(child)


# --- how it is named ---------------------------------------------------------------------------------


def test_a_line_names_a_program() -> None:
    """`acp:COMMAND`, as a shell would read it, though none does."""
    agent = by_name("acp:gemini --model 'a b' ; rm -rf /")
    assert isinstance(agent, AcpAgent)
    assert agent.argv == ["gemini", "--model", "a b", ";", "rm", "-rf", "/"]
    assert (agent.label, find_adapter(agent).name) == ("gemini", "acp")
    assert by_name("gemini") is None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AcpAgent(""), BadOption, "acp: names no program"),
        (lambda: AcpAgent("a 'b"), BadOption, "close the quote"),
        (
            lambda: AcpAgent("no-such-program-anywhere --acp"),
            AgentNotFound,
            "there is no program no-such",
        ),
        (
            lambda: AcpAgent([sys.executable], cwd="/no/such/folder"),
            BadOption,
            "there is no folder /no/such",
        ),
    ],
)
def test_what_cannot_be_started_is_refused(
    session: NotebookSession, make: Any, error: type[Exception], message: str
) -> None:
    """In one line, before there is a run."""
    with pytest.raises(error, match=message):
        session.start(make())
    assert session.runs() == []


def test_a_command_is_never_taken_from_the_store(make_session: MakeSession) -> None:
    """A later kernel does not start what a record names: the store may be somebody else's."""
    first = make_session()
    agent = hostile("refuses")
    run = ended(first.start(agent, target="acp:touch planted"))
    first.close()
    with pytest.raises(
        AgentNotFound, match=r"is not started from its record; pass agent=nbrun\.agents"
    ):
        make_session().get(run.id).retry()
