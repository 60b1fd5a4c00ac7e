"""Every kind of agent, through the real session and host: the same things hold of all, but for what is declared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from nbrun import CancelCause, NotebookSession, Run, RunStatus
from nbrun.core import events as ev
from nbrun.core.cancellation import CancelOutcome, Rung
from nbrun.core.errors import AgentNotFound, BadOption, NbrunError, NotResumable, RunCancelled
from nbrun.core.record import RunRecord
from tests.agents.conformance import log, tools
from tests.agents.conformance.elsewhere import IMPORTS_S, Elsewhere
from tests.agents.conformance.scenarios import NO_LUCK, SCENARIOS
from tests.agents.conformance.subject import Subject, subjects
from tests.fakes.agents import BOUND_S
from tests.fakes.people import asking, until

SUBJECTS = subjects()


@pytest.fixture(params=list(SUBJECTS))
def subject(request: pytest.FixtureRequest, session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """One kind of agent after the other, in its environment, of which a session has taken all keys before."""
    found = SUBJECTS[request.param]
    for name, value in found.environ.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    """Another process."""
    other = Elsewhere()
    yield other
    other.close()


def start(session: NotebookSession, subject: Subject, scenario: str, **options: object) -> Run:
    """Start an agent of this kind that does this."""
    return subject.start(session, SCENARIOS[scenario], **options)


def ended(run: Run, bound_s: float = BOUND_S) -> Run:
    """Return the run when it has ended, its log looked at."""
    assert run.wait(bound_s), f"{run!r} has not ended: {run.record}"
    log.check(run)
    return run


def completed(run: Run, bound_s: float = BOUND_S) -> Run:
    """Return the run when it has come to its end."""
    assert ended(run, bound_s).status is RunStatus.COMPLETED, run.error
    return run


def rungs(run: Run) -> list[Rung]:
    """Return the rungs of the cancel ladder that were used."""
    return [e.data.rung for e in run.events() if isinstance(e.data, ev.CancelEscalated)]


def warnings(run: Run) -> str:
    """Return what the run's card warns of."""
    return "\n".join(run.record.notices)


def is_running(tool: str) -> Callable[[RunRecord], bool]:
    """Return what says whether a tool of this name runs."""
    return lambda record: any(t.name == tool and t.status == "running" for t in record.tools)


def told(run: Run, subject: Subject, name: str, values: list[object]) -> bool:
    """Return whether the tools have told just this of themselves; nothing, where they are not in this process."""
    return log.told(run, name) == ([] if subject.limitations.functions else values)


def has_entered(run: Run, subject: Subject, tool: str) -> None:
    """Return when a tool runs, and its function is entered where it has one."""
    until(run, is_running(tool))
    if not subject.limitations.functions:
        until(run, lambda _record: bool(log.told(run, tools.ENTERED)))


# --- to the end --------------------------------------------------------------------------------------


def test_text_and_tools_come_while_it_runs(session: NotebookSession, subject: Subject) -> None:
    """Deltas as they are said, a tool with its arguments and result, one end; the text is the output."""
    limitations = subject.limitations
    run = completed(start(session, subject, "adds"))
    assert str(run.output).endswith("it is 5")
    deltas = [e.data.text for e in run.events() if isinstance(e.data, ev.TextDelta)]
    if limitations.text:
        assert deltas == []
    else:
        assert "".join(deltas) == "let us see it is 5"
    if limitations.tools:
        assert run.record.tools == ()
    else:
        (tool,) = run.record.tools
        assert (tool.name, tool.args, tool.status) == ("add", {"a": 2, "b": 3}, "ok")
        assert str(tool.result) == "5"
        assert tool.ms is not None
    assert told(run, subject, "added", [[2, 3]])


def test_text_is_seen_before_the_end(session: NotebookSession, subject: Subject) -> None:
    """What was said is there while the model has not ended."""
    if subject.limitations.text:
        run = completed(start(session, subject, "hello"))
        assert not any(isinstance(e.data, ev.TextDelta) for e in run.events())
        return
    run = start(session, subject, "stalls")
    until(run, lambda record: record.text == "half a ")
    assert run.status is RunStatus.RUNNING
    run.cancel()
    ended(run)


def test_usage_is_told(session: NotebookSession, subject: Subject) -> None:
    """Requests and tokens of a run that has completed, exactly."""
    usage = completed(start(session, subject, "adds")).usage
    if subject.limitations.usage:
        assert usage == ev.Usage()
    else:
        assert usage.requests == 2
        assert usage.input_tokens > 0
        assert usage.output_tokens > 0
        assert usage.exact


def test_a_tool_that_fails_is_shown_as_failed(session: NotebookSession, subject: Subject) -> None:
    """Whether the agent goes on or fails with it is the framework's own way."""
    run = ended(start(session, subject, "breaks"))
    if not subject.limitations.tools:
        assert [tool.status for tool in run.record.tools] == ["error"]
    if run.status is not RunStatus.COMPLETED:
        assert run.status is RunStatus.FAILED
        assert "the cup is broken" in str(run.error)


def test_a_model_that_fails_fails_the_run(session: NotebookSession, subject: Subject) -> None:
    """With its own message, and what was said before."""
    run = ended(start(session, subject, "fails"))
    assert run.status is RunStatus.FAILED
    assert NO_LUCK in str(run.error)
    if not subject.limitations.text:
        assert run.text == "half "


# --- cancel ------------------------------------------------------------------------------------------


def test_a_cancel_in_the_middle_of_a_text(session: NotebookSession, subject: Subject) -> None:
    """It ends cancelled once, with what was said, and the usage as a lower bound; a second cancel changes nothing."""
    limitations = subject.limitations
    run = start(session, subject, "stalls")
    until(run, lambda record: bool(record.text) or bool(limitations.text and record.started_at))
    assert run.cancel("enough").outcome is CancelOutcome.REQUESTED
    assert run.cancel("more than enough").outcome in (CancelOutcome.ALREADY_REQUESTED, CancelOutcome.ALREADY_FINISHED)
    ended(run)
    assert (run.status, run.cause, run.reason) == (RunStatus.CANCELLED, CancelCause.USER, "enough")
    assert run.error is None
    assert run.record.detached == ()
    assert [e.type for e in run.events()].count(ev.CancelRequested.TYPE) == 1
    assert run.cancel().outcome is CancelOutcome.ALREADY_FINISHED
    if not limitations.text:
        assert run.text.startswith("half ")
    if not limitations.usage:
        assert run.usage.requests == 1
        assert not run.usage.exact
    assert (Rung.NATIVE in rungs(run)) is not bool(limitations.native_cancel)


def test_a_cancel_in_an_async_tool(session: NotebookSession, subject: Subject) -> None:
    """The tool is left before the run has ended, and no later turn is entered."""
    if subject.limitations.tools:
        pytest.skip(subject.limitations.tools)
    run = start(session, subject, "waits")
    has_entered(run, subject, "waits")
    run.cancel()
    ended(run)
    assert run.status is RunStatus.CANCELLED
    assert run.record.detached == ()
    assert [tool.status for tool in run.record.tools] == ["cancelled"]
    assert "it is" not in run.text
    if not subject.limitations.functions:
        assert log.told(run, tools.LEFT) == [None]


def test_a_cancel_in_a_sync_tool(session: NotebookSession, subject: Subject) -> None:
    """Python code in a thread is stopped after the grace, or named where that is declared."""
    limitations = subject.limitations
    if limitations.functions:
        pytest.skip(limitations.functions)
    run = start(session, subject, "spins")
    has_entered(run, subject, "spins")
    run.cancel()
    ended(run)
    assert run.status is RunStatus.CANCELLED
    assert (run.record.detached != ()) is bool(limitations.sync_tools)
    if not limitations.sync_tools:
        assert log.told(run, tools.LEFT) == [None]
    assert "it is" not in run.text


# --- people ------------------------------------------------------------------------------------------


def test_an_approval_that_is_allowed(session: NotebookSession, subject: Subject) -> None:
    """A person is asked with the tool's name and arguments; then it is used."""
    limitations = subject.limitations
    run = start(session, subject, "asks")
    if limitations.approvals:
        assert not any(isinstance(e.data, ev.ApprovalRequested) for e in ended(run).events())
        return
    (asked,) = asking(run)
    assert "delete" in asked.message
    assert asked.args == {"path": "a"}
    assert log.told(run, "deleted") == []
    run.approve()
    assert str(completed(run).output).endswith("it is deleted a")
    assert [tool.status for tool in run.record.tools] == ["ok"]


def test_an_approval_that_is_denied(session: NotebookSession, subject: Subject) -> None:
    """The tool is not used, and the model hears why."""
    if subject.limitations.approvals:
        pytest.skip(subject.limitations.approvals)
    run = start(session, subject, "asks")
    asking(run)
    run.deny(reason="keep it")
    completed(run)
    assert log.told(run, "deleted") == []
    assert {tool.status for tool in run.record.tools} <= {"denied"}
    assert "keep it" in run.text


def test_an_approval_with_other_arguments(session: NotebookSession, subject: Subject) -> None:
    """Those of the person count; where that cannot be, nobody is offered to change them, and it is told who tries."""
    limitations = subject.limitations
    if limitations.approvals:
        pytest.skip(limitations.approvals)
    run = start(session, subject, "asks")
    (asked,) = asking(run)
    assert asked.editable is not bool(limitations.edited_args)
    if limitations.edited_args:
        with pytest.raises(BadOption, match="can't be changed"):
            run.approve(args={"path": "b"})
        run.approve()
        completed(run)
        assert told(run, subject, "deleted", ["a"])
    else:
        run.approve(args={"path": "b"})
        completed(run)
        assert told(run, subject, "deleted", ["b"])
        assert run.text.endswith("it is deleted b")


def test_a_tool_that_is_allowed_always(session: NotebookSession, subject: Subject) -> None:
    """The question names its tool, and the record what was allowed for the rest of the run."""
    if subject.limitations.approvals:
        pytest.skip(subject.limitations.approvals)
    run = start(session, subject, "asks")
    (asked,) = asking(run)
    run.approve(always=True)
    completed(run)
    assert asked.tool
    assert run.record.always == (asked.tool,)


def test_an_approval_that_nobody_gives_in_time(session: NotebookSession, subject: Subject) -> None:
    """The run's time limit ends it, with cause `deadline`; the tool is not used."""
    if subject.limitations.approvals:
        pytest.skip(subject.limitations.approvals)
    for timeout_s in (0.4, 2.0, 8.0):  # a starved machine may not have come to ask by then
        run = ended(start(session, subject, "asks", timeout_s=timeout_s))
        assert (run.status, run.cause) == (RunStatus.CANCELLED, CancelCause.DEADLINE)
        assert log.told(run, "deleted") == []
        answers = [e.data for e in run.events() if isinstance(e.data, ev.ApprovalResolved)]
        if answers:
            break
    assert [answer.decision for answer in answers] == ["deny"]


def test_a_cancel_while_a_person_is_asked(session: NotebookSession, subject: Subject) -> None:
    """The question is withdrawn, and the tool is not used."""
    if subject.limitations.approvals:
        pytest.skip(subject.limitations.approvals)
    run = start(session, subject, "asks")
    asking(run)
    run.cancel()
    ended(run)
    assert (run.status, run.error) == (RunStatus.CANCELLED, None)
    assert log.told(run, "deleted") == []
    assert [t.status for t in run.record.tools if t.status == "ok"] == []


def test_what_people_say_is_heard(session: NotebookSession, subject: Subject) -> None:
    """A message into a running agent is before the model at its next turn; one that nobody reads is told of."""
    limitations = subject.limitations
    if limitations.approvals and limitations.functions:
        run = start(session, subject, "stalls")
        until(run, lambda record: bool(record.text))
        run.steer("more sugar")
        until(run, lambda record: record.steers == 1)  # it has arrived
        run.cancel()
        assert "before its agent read a message" in warnings(ended(run))
        assert limitations.steering
        return
    run = start(session, subject, "listens" if limitations.approvals else "asks and hears")
    asking(run)
    run.steer("more sugar")
    run.approve()
    completed(run)
    if limitations.steering:
        assert "before its agent read a message" in warnings(run)
    else:
        assert run.text.endswith("you said: more sugar")


# --- resume ------------------------------------------------------------------------------------------


def half_way(session: NotebookSession, subject: Subject) -> Run:
    """Return a run that was cancelled in its second tool, or in its text where there are no tools."""
    run = start(session, subject, "stops half way")
    tool = "waits_at_first"
    until(run, is_running(tool))
    if not subject.limitations.functions:
        until(run, lambda _record: bool(log.told(run, tools.ENTERED)))
    run.cancel()
    return ended(run)


def test_a_cancelled_run_is_gone_on_with(session: NotebookSession, subject: Subject) -> None:
    """What was done is not done again, and the model knows of it."""
    limitations = subject.limitations
    run = half_way(session, subject)
    if limitations.resume:
        with pytest.raises(NotResumable) as refused:
            run.resume()
        assert "\n" not in str(refused.value)
        reason = str(refused.value)
        assert "Run it again" in reason or "resume or retry the run that it shows" in reason
        return
    resumed = completed(run.resume())
    assert resumed.text.startswith("it is 5")
    assert told(run, subject, "added", [[2, 3]])
    assert log.told(resumed, "added") == []
    assert resumed.record.resumed_from == run.id
    if not limitations.usage:
        assert resumed.usage.requests > run.usage.requests


def test_a_question_is_asked_again(session: NotebookSession, subject: Subject) -> None:
    """A run that was cancelled while it asked asks once more when it is gone on with."""
    limitations = subject.limitations
    if limitations.approvals or limitations.resume:
        pytest.skip(limitations.approvals or limitations.resume)
    run = start(session, subject, "asks half way")
    asking(run)
    run.cancel()
    resumed = ended(run).resume()
    (asked,) = asking(resumed)
    assert asked.args == {"path": "a"}
    resumed.approve()
    assert completed(resumed).text.endswith("it is 5 | deleted a")
    assert told(resumed, subject, "deleted", ["a"])


@pytest.mark.timeout(2 * IMPORTS_S)
def test_another_process_goes_on_with_it(session: NotebookSession, subject: Subject, elsewhere: Elsewhere) -> None:
    """From what is in the store; where that cannot be, one line says why."""
    run = half_way(session, subject)
    path = session.store.path
    assert path is not None
    session.close()
    answer = elsewhere.resume(path, run.id, subject.name, "stops half way")
    if subject.limitations.resume or subject.limitations.resume_elsewhere:
        assert answer["refused"]
        assert "\n" not in answer["refused"]
    else:
        assert (answer["status"], answer["error"]) == ("completed", "")
        assert answer["text"].startswith("it is 5")
        assert "added" not in answer["told"]


# --- many, and elsewhere -----------------------------------------------------------------------------


def test_a_crowd_runs_at_once(make_session: Callable[..., NotebookSession], subject: Subject) -> None:
    """Fifty runs of one agent; each has its own log and output."""
    session = make_session(max_concurrent=subject.crowd)
    agent, prompt = subject.agent(SCENARIOS["adds"]), subject.prompt(SCENARIOS["adds"])
    runs = [session.start(agent, prompt) for _ in range(subject.crowd)]
    for run in runs:
        assert str(completed(run).output).endswith("it is 5")


def test_it_runs_in_a_thread_of_its_own(session: NotebookSession, subject: Subject) -> None:
    """`--thread`: the same text, and the same prompt cancel."""
    if subject.limitations.thread:
        with pytest.raises(BadOption, match="thread"):
            start(session, subject, "adds", thread=True)
        return
    assert str(completed(start(session, subject, "adds", thread=True)).output).endswith("it is 5")
    run = start(session, subject, "stalls", thread=True)
    until(run, lambda record: bool(record.text) or bool(subject.limitations.text and record.started_at))
    run.cancel()
    assert ended(run).status is RunStatus.CANCELLED
    assert run.record.detached == ()


def test_it_runs_on_the_loop_of_the_cells(session: NotebookSession, subject: Subject) -> None:
    """`--loop kernel`: the same text, and the same prompt cancel, while the cells' loop is free."""

    async def cell() -> tuple[Run, Run]:
        whole = start(session, subject, "adds", loop="kernel")
        assert str(await whole).endswith("it is 5")
        cut = start(session, subject, "stalls", loop="kernel")
        async for event in cut:
            is_text = isinstance(event.data, ev.TextDelta)
            if is_text or (subject.limitations.text and event.type == ev.RunStarted.TYPE):
                break
        cut.cancel()
        with pytest.raises(RunCancelled):
            await cut
        return whole, cut

    whole, cut = asyncio.run(asyncio.wait_for(cell(), BOUND_S))
    completed(whole)
    assert ended(cut).status is RunStatus.CANCELLED
    assert cut.record.detached == ()


@pytest.mark.timeout(2 * IMPORTS_S)
def test_it_runs_in_a_process_of_its_own(session: NotebookSession, subject: Subject) -> None:
    """`--on process`: the same text; where it cannot go there, the start says so."""
    if subject.limitations.process:
        with pytest.raises(NbrunError) as refused:
            start(session, subject, "adds", on="process")
        assert isinstance(refused.value, AgentNotFound | BadOption)
        assert "\n" not in str(refused.value)
        return
    run = completed(start(session, subject, "adds", on="process"), IMPORTS_S)
    assert str(run.output).endswith("it is 5")
