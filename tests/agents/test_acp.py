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
from nbrun.agents import AcpAgent, by_name, find_adapter
from nbrun.agents.acp.process import MAX_REQUESTS, AcpProcess
from nbrun.core import events as ev
from nbrun.core.errors import AgentNotFound, BadOption
from tests.agents.conformance import log
from tests.conftest import MakeSession
from tests.fakes.agents import BOUND_S
from tests.fakes.people import until
from tests.host.process.test_process import is_gone, wait_until_gone

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "fakes" / "acp_hostile.py"


def hostile(kind: str, *more: str, **options: Any) -> AcpAgent:
    """Return an agent of this kind."""
    return AcpAgent([sys.executable, "-S", str(PROGRAM), kind, *more], name="poet", **options)


def ended(run: Run) -> Run:
    """Return the run when it has ended, its log looked at, and no process of this one left."""
    assert run.wait(BOUND_S), f"{run!r} has not ended: {run.record}"
    log.check(run)
    assert [child for child in psutil.Process().children() if is_of_these(child)] == []
    return run


def is_of_these(child: psutil.Process) -> bool:
    """Return whether a child of this process runs an agent of this kind."""
    try:
        return "acp_hostile" in str(child.cmdline())
    except psutil.ZombieProcess:  # another test's: what ran in it cannot be said
        return False


def child_of(run: Run) -> int:
    """Return the number of the program that the agent has started, which it tells first."""
    return int(until(run, lambda record: " " in record.text).text.split()[0])


# --- it does not answer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("says nothing", r"poet has not answered for 0\.5 s; was it started as an ACP agent\?"),
        ("is no agent", r"poet ended with exit code 2 before it had answered: usage: agent \[options\]"),
        ("wants a login", "Authentication required: run: agent login"),
        ("refuses", "poet refused to continue"),
        ("answers nonsense", r"poet sent a response that doesn't follow the protocol \(protocolVersion: "),
        ("answers no error", r'\["no",5\]'),
    ],
)
def test_what_is_no_agent_fails_with_a_line_that_says_why(session: NotebookSession, kind: str, message: str) -> None:
    """Silence, a usage, a login that is missing, a refusal."""
    patience_s = 0.5 if kind == "says nothing" else BOUND_S
    run = ended(session.start(hostile(kind, start_timeout_s=patience_s)))
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.type == "NbrunError"
    assert re.search(message, run.error.message), run.error.message


@pytest.mark.parametrize("kind", ["never answers", "ignores a cancel", "floods and ignores a cancel"])
def test_one_that_does_not_stop_is_killed_with_all_that_it_has_started(session: NotebookSession, kind: str) -> None:
    """After the grace; nothing of it runs on, so nothing is named."""
    run = session.start(hostile(kind))
    child = child_of(run)
    assert not is_gone(child)
    run.cancel()
    ended(run)
    assert (run.status, run.error, run.record.detached) == (RunStatus.CANCELLED, None, ())
    wait_until_gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
@pytest.mark.parametrize("way", ["setsid -f", "env -i setsid -f setsid -f"])
def test_what_has_left_its_group_ends_with_it(session: NotebookSession, tmp_path: Path, way: str) -> None:
    """A session of its own doesn't save what it has started."""
    said = tmp_path / "pid"
    line = f"{way} /bin/sh -c 'echo $$ >{said}; while :; do sleep 600; done'; while [ ! -s {said} ]; do :; done; exit 3"
    run = ended(session.start(AcpAgent(["/bin/sh", "-c", line])))
    assert "exit code 3" in str(run.error)
    wait_until_gone(int(said.read_text()))


def test_a_cancel_while_it_is_started_leaves_nothing_open() -> None:
    """Neither the lifeline nor a pipe of a program that was never spoken to."""

    async def main() -> int:
        before: int = psutil.Process().num_fds()
        starting: Any = AcpProcess.start(hostile("says nothing"), cast("Any", None), cast("Any", None))
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
    assert "poet ended with exit code 3 before it had answered: the cup is broken" in str(run.error)
    assert run.text.endswith("half a ")
    assert run.record.log == ("the cup is broken",)
    wait_until_gone(child_of(run))


def test_what_it_has_started_does_not_outlive_its_answer(session: NotebookSession) -> None:
    """An agent that ends well leaves nothing behind either."""
    run = ended(session.start(hostile("leaves a program behind")))
    assert run.status is RunStatus.COMPLETED
    wait_until_gone(child_of(run))


# --- it says too much --------------------------------------------------------------------------------


@pytest.mark.timeout(90)  # it takes as long as it goes on
def test_a_flood_is_told_whole_and_not_piled_up(session: NotebookSession) -> None:
    """100,000 updates: each is in the log, and this process has not grown by what it could not store yet."""
    ended(session.start(hostile("refuses")))  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run, told = session.start(hostile("floods")), -1
    while not run.wait(BOUND_S / 2):
        assert len(run.record.text) > told, "it does not go on"
        told = len(run.record.text)
    ended(run)
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
    assert "poet wrote more to its standard error than nbrun keeps" in logged


def test_a_line_of_50_mb_is_left_out(session: NotebookSession) -> None:
    """It is never held whole; the run goes on, and its card says so."""
    run = ended(session.start(hostile("writes a long line")))
    assert (run.status, run.text) == (RunStatus.COMPLETED, "done")
    (notice,) = run.record.notices
    assert notice == "a message of 50 MB from poet was skipped because it is too long"


def test_garbage_is_told_of_once_and_the_run_goes_on(
    session: NotebookSession, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines that are no messages, updates of any shape, files that were never offered: nothing is believed."""
    run = ended(session.start(hostile("writes garbage")))
    assert (run.status, run.text) == (RunStatus.COMPLETED, "done"), run.error
    assert run.record.notices[0] == "poet wrote a line that isn't a valid message: no json"
    assert "poet wrote 6 lines that aren't valid messages" in run.record.log
    assert [tool.status for tool in run.record.tools] == ["ok", "ok"]
    assert caplog.records == []  # nothing for the kernel's standard error
    assert run.usage.cost_usd is None


# --- it asks too late --------------------------------------------------------------------------------


def test_a_question_after_a_cancel_is_answered_at_once(session: NotebookSession, tmp_path: Path) -> None:
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
    command = [sys.executable, "-c", textwrap.dedent(KERNEL), str(tmp_path / "runs.db"), str(PROGRAM)]
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
        (lambda: AcpAgent(""), BadOption, "needs a program"),
        (lambda: AcpAgent("a 'b"), BadOption, "close the quote"),
        (
            lambda: AcpAgent("no-such-program-anywhere --acp"),
            AgentNotFound,
            "the program no-such-program-anywhere was not found",
        ),
        (
            lambda: AcpAgent([sys.executable], cwd="/no/such/folder"),
            BadOption,
            "the folder /no/such/folder .*doesn.t exist",
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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system starts the program directly")
@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("#!/no/such/interpreter\r\n", r"its first line, '#!/no/such/interpreter\\r', names no program"),
        ("garbage", "it is neither a program for this machine nor a script"),
    ],
)
def test_what_cannot_be_executed_is_named_with_the_reason(
    session: NotebookSession, tmp_path: Path, content: str, why: str
) -> None:
    """Of a script that is its interpreter; the system's error names only the script."""
    program = tmp_path / "helper"
    program.write_bytes(content.encode())
    with pytest.raises(AgentNotFound, match=r"helper may not be executed.*chmod \+x"):
        session.start(AcpAgent([str(program)]))
    program.chmod(0o700)
    run = ended(session.start(AcpAgent([str(program)])))
    assert run.error is not None
    assert re.search(f"{program} could not be started: {why}", run.error.message)


def test_a_command_is_never_taken_from_the_store(make_session: MakeSession) -> None:
    """A later kernel does not start what a record names: the store may be somebody else's."""
    first = make_session()
    agent = hostile("refuses")
    run = ended(first.start(agent, target="acp:touch planted"))
    first.close()
    with pytest.raises(AgentNotFound, match=r"isn't started from its record; pass agent=nbrun\.agents"):
        make_session().get(run.id).retry()


# --- its questions and its bill ----------------------------------------------------------------------


def question(number: int, *kinds: str, **call: object) -> dict[str, object]:
    """Return a request for permission, with an option of each kind, called as the kind is."""
    options = [{"optionId": f"{kind}-{at}", "name": kind, "kind": kind.partition(" ")[0]}
               for at, kind in enumerate(kinds or ("allow_once", "allow_always", "reject_once"))]  # fmt: skip
    params = {"sessionId": "s-1", "toolCall": {"toolCallId": "t-1", **call}, "options": options}
    return {"jsonrpc": "2.0", "id": number, "method": "session/request_permission", "params": params}


def told(**body: object) -> dict[str, object]:
    """Return an update about a tool."""
    params = {"sessionId": "s-1", "update": {"toolCallId": "t-1", **body}}
    return {"jsonrpc": "2.0", "method": "session/update", "params": params}


BASH = told(sessionUpdate="tool_call", title="Bash", rawInput={"command": "ls"})


def asked(run: Run, times: int = 1) -> ev.ApprovalRequested:
    """Return what the run asks, when it has asked so often."""

    def has_asked(record: Any) -> bool:
        count = sum(isinstance(e.data, ev.ApprovalRequested) for e in run.events())
        return count >= times and bool(record.pending)

    return until(run, has_asked).pending[0]


def following(session: NotebookSession, tmp_path: Path, *messages: object) -> tuple[Run, Path]:
    """Return a run of a program that sends these messages, and the file where it writes what it was answered."""
    script = tmp_path / "messages.json"
    script.write_text(json.dumps(messages), encoding="utf-8")
    run = session.start(hostile("does as the file says", str(script)))
    return run, tmp_path / "messages.json.answers"


@pytest.mark.parametrize("is_late", [False, True], ids=["at its beginning", "later"])
def test_a_person_sees_what_it_had_told_of_the_tool(session: NotebookSession, tmp_path: Path, is_late: bool) -> None:
    """A question may name the tool alone: its name and arguments are those that were told last."""
    empty = told(sessionUpdate="tool_call", title="Bash", rawInput={})
    written = told(sessionUpdate="tool_call_update", rawInput={"command": "ls"})
    before = [empty, written] if is_late else [BASH]
    run, answers = following(session, tmp_path, *before, question(1))
    question_ = asked(run)
    assert (question_.message, question_.tool, question_.args) == (
        "Use Bash?", 'Bash {"command": "ls"}', {"command": "ls"},
    )  # fmt: skip
    run.approve()
    ended(run)
    assert json.loads(answers.read_text()) == ["allow_once-0"]


def test_always_holds_for_the_same_command_only(session: NotebookSession, tmp_path: Path) -> None:
    """A title is in the agent's own words: the same one may come with another command."""
    first, same, other = (
        question(number, title="List files", rawInput={"command": command})
        for number, command in enumerate(("ls", "ls", "rm -rf /"), 1)
    )
    run, answers = following(session, tmp_path, first, same, other)
    asked(run)
    run.approve(always=True)
    assert asked(run, 3).args == {"command": "rm -rf /"}
    run.deny()
    ended(run)
    assert json.loads(answers.read_text()) == ["allow_once-0", "allow_once-0", "reject_once-2"]


@pytest.mark.parametrize("title", [None, "cd /a/long/way && " * 9], ids=["none", "long"])
def test_what_has_no_name_of_its_own_is_allowed_once(
    session: NotebookSession, tmp_path: Path, title: str | None
) -> None:
    """Always would hold for all that is called alike, or has the same beginning."""
    run, _ = following(session, tmp_path, question(1, title=title))
    assert asked(run).tool == ""
    with pytest.raises(BadOption, match="be allowed for the whole run"):
        run.approve(always=True)
    run.approve()
    assert ended(run).record.always == ()


def test_allow_is_never_sent_as_always(session: NotebookSession, tmp_path: Path) -> None:
    """Where it offers no other, its own words are what a person chooses from."""
    run, answers = following(session, tmp_path, question(1, "allow_always", "reject_once"))
    assert asked(run).options == ("allow_always", "reject_once")
    run.approve(choice="allow_always")
    ended(run)
    assert json.loads(answers.read_text()) == ["allow_always-0"]


def test_options_with_odd_names_are_told_apart(session: NotebookSession, tmp_path: Path) -> None:
    """Two of one name, one that is called as our own answer, one without any."""
    odd = question(1, "allow_always x", "allow_always x", "reject_always")
    options: Any = odd["params"]["options"]  # type: ignore[index]
    options.append({"optionId": "last", "name": " ", "kind": "reject_always"})
    options[2]["name"] = "deny"
    odd["params"]["_meta"] = {"tool_call": "another"}  # type: ignore[index]
    run, answers = following(session, tmp_path, odd)
    shown = asked(run).options
    assert len(set(shown)) == 4
    assert "deny" not in shown
    run.approve(choice=shown[1])
    ended(run)
    assert json.loads(answers.read_text()) == ["allow_always x-1"]
    assert "Traceback" not in "".join(run.record.log)


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_denied_tool_that_is_used_all_the_same_is_told(session: NotebookSession, tmp_path: Path, status: str) -> None:
    """Its row is true: `denied` only where it was not used; an allow takes the denial back."""
    done = told(sessionUpdate="tool_call_update", status=status, rawOutput="a secret")
    run, _ = following(session, tmp_path, BASH, question(1), done)
    asked(run)
    run.deny()
    (tool,) = ended(run).record.tools
    if status == "failed":
        assert (tool.status, tool.result) == ("denied", None)
    else:
        assert (tool.status, tool.result) == ("ok", "a secret")
        assert "was denied" in run.record.notices[0]
    again, _ = following(session, tmp_path, BASH, question(1), question(2), done)
    asked(again)
    again.deny()
    asked(again, times=2)
    again.approve()
    assert ended(again).record.tools[0].status == ("ok" if status == "completed" else "error")


def test_of_a_request_with_too_many_parts_only_some_are_read(session: NotebookSession) -> None:
    """What is wrong in each of them would be said in the answer, and take the loop's time and memory."""
    run = ended(session.start(hostile("asks too much at once")))
    assert (run.status, run.text) == (RunStatus.COMPLETED, "Invalid params")


def test_odd_requests_do_not_open_the_door_for_questions(session: NotebookSession) -> None:
    """What is no request and no answer changes nothing in how many may wait."""
    run = session.start(hostile("asks by odd requests"))
    until(run, lambda record: len(record.pending) >= MAX_REQUESTS)
    run.cancel()
    ended(run)
    assert sum(isinstance(e.data, ev.ApprovalRequested) for e in run.events()) == MAX_REQUESTS


def test_a_cancel_before_there_is_a_session_sends_no_prompt(session: NotebookSession, tmp_path: Path) -> None:
    """There is nobody to ask yet: the program is ended at once."""
    notes = tmp_path / "notes"
    run = session.start(hostile("begins late", str(notes)))
    until(run, lambda record: record.log == ("asked for a session",))
    run.cancel()
    ended(run)
    assert (run.status, run.error, run.record.detached) == (RunStatus.CANCELLED, None, ())
    assert not notes.exists()


def test_a_session_that_is_loaded_is_paid_for_once(session: NotebookSession) -> None:
    """It tells totals, which begin before the run; what no total can be is left out."""
    agent = hostile("costs")
    cut = session.start(agent)
    until(cut, lambda record: "some words" in record.text)
    cut.cancel()
    ended(cut)
    assert (cut.usage.cost_usd, cut.usage.output_tokens, cut.usage.input_tokens) == (5.0, 5, 0)
    run = ended(cut.resume(agent=agent))
    assert run.usage.cost_usd == pytest.approx(5.1)
    assert (run.usage.output_tokens, run.usage.input_tokens) == (7, 0)


def test_a_key_that_it_is_given_is_a_secret(session: NotebookSession) -> None:
    """As one of the kernel's own is, by its name."""
    run = ended(session.start(hostile("tells its key", env={"POET_API_KEY": "sesame-12345"})))
    assert run.text == "my key is [POET_API_KEY]"


def test_a_program_is_found_where_it_is_started(tmp_path: Path) -> None:
    """In its folder, and by its own PATH."""
    program = tmp_path / "agent.sh"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o700)
    AcpAgent("./agent.sh", cwd=tmp_path).check()
    AcpAgent("agent.sh", env={"PATH": str(tmp_path)}).check()
    for agent in (AcpAgent("./agent.sh"), AcpAgent("agent.sh", cwd=tmp_path)):
        with pytest.raises(AgentNotFound, match=r"the program .*agent\.sh was not found"):
            agent.check()
