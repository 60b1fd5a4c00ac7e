"""Questions to the user and messages from one: the first answer counts, and the log has all of it."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from nbrun import Answer, CancelToken, NotebookSession, Run, RunContext, RunStatus
from nbrun.agents import Approvals, Inbox
from nbrun.agents.context.approvals import Ask, Question
from nbrun.agents.context.inbox import MAX_BYTES, MAX_WAITING
from nbrun.core import events as ev
from nbrun.core.errors import BadOption, Cancelled, NbrunError, NotPending, RunFailed
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held
from tests.fakes.backend import context_on_no_host
from tests.fakes.clock import NOON, FakeClock
from tests.fakes.people import asking, until

MakeSession = Callable[..., NotebookSession]


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


def people(run: Run) -> list[str]:
    """Return the types of what stands in the log between the run's start and its end."""
    return [event.type for event in run.events()][2:-1]


def resolved(run: Run) -> list[ev.ApprovalResolved]:
    """Return what was decided, in order."""
    return [event.data for event in run.events() if isinstance(event.data, ev.ApprovalResolved)]


def ids(run: Run) -> list[str]:
    """Return the ids of the questions, in the order in which they were asked."""
    return [event.data.id for event in run.events() if isinstance(event.data, ev.ApprovalRequested)]


def assert_takes_nothing(run: Run) -> None:
    """Fail unless each way to say something to the run is refused in one line."""
    with pytest.raises(NotPending, match="has already ended"):
        run.approve()
    with pytest.raises(NotPending, match="has already ended"):
        run.deny()
    with pytest.raises(NotPending, match="has already ended"):
        run.steer("left")


async def asks(prompt: str, run: RunContext) -> Answer:
    """Ask one question, and return its answer."""
    return await run.ask(f"Delete {prompt}?", args={"path": prompt}, tool_id="call-1", timeout_s=3600)


def asks_sync(prompt: str, run: RunContext) -> Answer:
    """Ask one question from a thread, and return its answer."""
    return run.ask_sync(f"Delete {prompt}?", args={"path": prompt}, tool_id="call-1")


async def asks_twice(prompt: str, run: RunContext) -> list[str]:
    """Ask two questions at once, and return both decisions."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run.ask(word)) for word in ("first?", "second?")]
    return [task.result().decision for task in tasks]


ASKS = pytest.mark.parametrize("agent", [asks, asks_sync], ids=["async", "sync"])


# --- the answer --------------------------------------------------------------------------------------


@ASKS
def test_an_allowed_question_goes_on_with_its_own_args(session: NotebookSession, agent: object) -> None:
    """The run waits, everybody sees the question, and the answer is true and has the agent's args."""
    run = session.start(agent, "tea.txt")
    (asked,) = asking(run)
    assert run.status is RunStatus.WAITING
    assert (asked.message, asked.tool_id) == ("Delete tea.txt?", "call-1")
    assert asked.args == {"path": "tea.txt"}
    run.approve(text="go on")
    answer = run.result(BOUND_S)
    assert answer == Answer("allow", {"path": "tea.txt"}, "go on", "python")
    assert answer
    assert people(run) == ["approval.requested", "run.waiting", "approval.resolved", "run.resumed"]
    assert resolved(run) == [ev.ApprovalResolved(ids(run)[0], "allow", None, "python", "go on")]
    assert run.record.pending == ()


@ASKS
def test_a_denied_question_is_false_and_has_its_reason(session: NotebookSession, agent: object) -> None:
    """The agent goes on, and knows why not."""
    run = session.start(agent, "tea.txt")
    asking(run)
    run.deny(None, "not that one")
    answer = run.result(BOUND_S)
    assert answer == Answer("deny", {"path": "tea.txt"}, "not that one", "python")
    assert not answer
    assert run.status is RunStatus.COMPLETED


def test_edited_args_are_what_counts(session: NotebookSession) -> None:
    """The answer has the person's args, as JSON-like data; the log has both."""
    run = session.start(asks, "tea.txt")
    asking(run)
    run.approve(args={"path": ("cup.txt",)})
    answer = run.result(BOUND_S)
    assert isinstance(answer, Answer)
    assert answer.args == {"path": ["cup.txt"]}
    assert resolved(run)[0].args == {"path": ["cup.txt"]}


@pytest.mark.parametrize(
    ("args", "edited", "words"),
    [
        ({"path": "a"}, ["a"], "must stay an object"),
        (["a"], {"path": "a"}, "must stay a list"),
        ("a", 3, "must stay a text"),
        (True, 1, "must stay true or false"),
        (2.5, "2.5", "must stay a number"),
    ],
)
def test_edited_args_are_of_the_kind_that_was_asked_about(
    session: NotebookSession, args: object, edited: object, words: str
) -> None:
    """An error is raised where it was made, and the question stays open."""

    async def agent(prompt: str, run: RunContext) -> object:
        return (await run.ask("these?", args=args)).args

    run = session.start(agent)
    asking(run)
    with pytest.raises(BadOption, match=words):
        run.approve(args=edited)
    assert run.status is RunStatus.WAITING
    run.approve(args=args)
    assert run.result(BOUND_S) == args


def test_args_that_are_fixed_are_allowed_as_they_are(session: NotebookSession) -> None:
    """Where the agent says so, nobody changes them."""

    async def agent(prompt: str, run: RunContext) -> object:
        return (await run.approve_tool("delete", {"path": "a"}, editable=False)).args

    run = session.start(agent)
    assert not asking(run)[0].editable
    with pytest.raises(BadOption, match="can't be changed"):
        run.approve(args={"path": "b"})
    run.approve()
    assert run.result(BOUND_S) == {"path": "a"}


def test_own_args_that_are_not_edited_stay_the_same_object(session: NotebookSession) -> None:
    """What cannot be stored can still be asked about."""
    thing = object()

    async def agent(prompt: str, run: RunContext) -> bool:
        return (await run.ask("this?", args=thing)).args is thing

    run = session.start(agent)
    asking(run)
    run.approve()
    assert run.result(BOUND_S) is True


def test_an_option_is_chosen(session: NotebookSession) -> None:
    """Where there are options, one of them is the decision; any other word is refused, with the list."""

    async def agent(prompt: str, run: RunContext) -> Answer:
        return await run.ask("which tea?", options=("green", "black"))

    run = session.start(agent)
    asking(run)
    for choice in (None, "red"):
        with pytest.raises(BadOption, match="needs a choice: green, black"):
            run.approve(choice=choice)
    run.approve(choice="black")
    answer = run.result(BOUND_S)
    assert isinstance(answer, Answer)
    assert answer
    assert answer.decision == "black"


def test_two_questions_are_answered_in_any_order(session: NotebookSession) -> None:
    """The run waits until both are answered; one answer names its question."""
    run = session.start(asks_twice)
    asking(run, 2)
    with pytest.raises(NotPending, match=r"asks 2 questions; name one: ask-\w{8} \(“first\?”\), ask-"):
        run.approve()
    run.deny(ids(run)[1])
    asking(run, 1)
    assert run.status is RunStatus.WAITING
    run.approve()
    assert run.result(BOUND_S) == ["allow", "deny"]
    assert people(run) == [
        *("approval.requested", "run.waiting", "approval.requested"),
        *("approval.resolved", "approval.resolved", "run.resumed"),
    ]


def test_a_second_answer_changes_nothing(session: NotebookSession) -> None:
    """The second answer is refused; the first one counts."""
    run = session.start(asks_twice)
    asking(run, 2)
    run.approve(ids(run)[0])
    with pytest.raises(NotPending, match="has already been answered; the first answer counts"):
        run.deny(ids(run)[0])
    run.approve(ids(run)[1])
    assert run.result(BOUND_S) == ["allow", "allow"]
    assert len(resolved(run)) == 2


def test_racing_answers_are_decided_one_way(session: NotebookSession) -> None:
    """Of many threads that answer at once, one counts, and the others are refused."""
    run = session.start(asks, "tea.txt")
    asked = asking(run)[0].id
    barrier, outcomes = threading.Barrier(8), []

    def answer(number: int) -> None:
        barrier.wait(BOUND_S)
        try:
            run.deny(asked, str(number)) if number % 2 else run.approve(asked, text=str(number))
            outcomes.append(str(number))
        except NotPending:
            pass

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    (winner,) = outcomes
    ended(run)
    assert [decided.text for decided in resolved(run)] == [winner]


def test_an_unknown_question_is_one_line_with_what_is_asked(session: NotebookSession) -> None:
    """Nothing is sent for a name that no question has."""
    run = session.start(asks, "tea.txt")
    asking(run)
    with pytest.raises(NotPending, match=r"doesn't ask 'ask-7'; it asks: ask-\w{8} \(“Delete tea.txt\?”\)"):
        run.approve("ask-7")
    assert run.status is RunStatus.WAITING
    run.approve(ids(run)[0])
    ended(run)


def test_a_run_that_asks_nothing_cannot_be_answered(session: NotebookSession, held: Held) -> None:
    """Live, ended or of another session: one line says why not."""
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    with pytest.raises(NotPending, match="isn't waiting for an answer"):
        run.approve()
    held.let_go()
    ended(run)
    assert_takes_nothing(run)


def test_an_ended_run_of_an_earlier_session_cannot_be_answered(make_session: MakeSession) -> None:
    """A stored run takes no answers and no messages."""
    first = make_session()
    ended(first.start(agents.instant, name="early"))
    first.close()
    run = make_session().get("early")
    assert_takes_nothing(run)


@ASKS
def test_a_run_in_a_process_of_its_own_asks_and_hears_too(session: NotebookSession, agent: object) -> None:
    """Question, answer, edited args and messages cross to the process and back."""

    async def asks_and_reads(prompt: str, run: RunContext) -> list[object]:
        said = await run.inbox.get()
        answer = await run.ask("go?")
        return [said, answer.decision, answer.by]

    run = session.start(agent, "tea.txt", on="process")
    asking(run)
    assert run.status is RunStatus.WAITING
    run.approve(args={"path": "cup.txt"}, text="go on")
    assert run.result(BOUND_S) == {"decision": "allow", "args": {"path": "cup.txt"}, "text": "go on", "by": "python"}
    reader = session.start(asks_and_reads, on="process")
    until(reader, lambda record: record.status is RunStatus.RUNNING)
    reader.steer("turn left")
    asking(reader)
    reader.deny()
    assert reader.result(BOUND_S) == ["turn left", "deny", "python"]


# --- always in this run ------------------------------------------------------------------------------


async def deletes(prompt: str, run: RunContext) -> list[str]:
    """Ask for a tool twice at once, for a third use after that, and for another tool."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(use(run, path)) for path in ("a", "b")]
    used = [task.result() for task in tasks]
    used.append(await use(run, "c"))
    return [*used, str(bool(await run.approve_tool("rename")))]


async def use(run: RunContext, path: str) -> str:
    """Ask for the tool `delete`; return what was allowed, and by whom."""
    answer = await run.approve_tool("delete", {"path": path})
    assert isinstance(answer.args, dict)
    return f"{answer.decision} {answer.args['path']} {answer.by}"


async def deletes_one(prompt: str, run: RunContext) -> str:
    """Ask once."""
    return await use(run, "d")


@pytest.mark.parametrize("on", ["local", "process"])
def test_a_tool_is_allowed_for_the_rest_of_its_run(session: NotebookSession, on: Any) -> None:
    """What is asked for it, now and later, is answered by that; another tool is asked for."""
    run = session.start(deletes, on=on)
    first, _second = asking(run, 2)
    assert (first.tool, first.message) == ("delete", "Use delete?")
    run.approve(first.id, args={"path": "x"}, always=True)
    until(run, lambda record: any(asked.tool == "rename" for asked in record.pending))
    assert run.record.always == ("delete",)
    run.deny()
    assert run.result(BOUND_S) == ["allow x python", "allow b always", "allow c always", "False"]
    assert [(decided.by, decided.always) for decided in resolved(run)] == [
        ("python", True), ("always", False), ("always", False), ("python", False),
    ]  # fmt: skip
    assert people(run)[:8] == [
        *("approval.requested", "run.waiting", "approval.requested"),
        *("approval.resolved", "approval.resolved", "run.resumed"),
        *("approval.requested", "approval.resolved"),  # the run does not wait for that one
    ]


def test_a_child_run_is_asked_for_itself(session: NotebookSession) -> None:
    """A tool that is always allowed in its parent is not allowed in the child, nor the other way round."""

    async def parent(prompt: str, run: RunContext) -> list[str]:
        before = await use(run, "a")
        return [before, str(await run.start_child(deletes_one)), await use(run, "c")]

    run = session.start(parent)
    asking(run)
    run.approve(always=True)
    until(run, lambda record: record.children != ())
    child = session.get(run.record.children[0].run_id)
    asking(child)
    child.approve(always=True)
    assert run.result(BOUND_S) == ["allow a python", "allow d python", "allow c always"]
    assert (run.record.always, child.record.always) == (("delete",), ("delete",))


def test_what_is_about_no_tool_is_allowed_once(session: NotebookSession) -> None:
    """There is nothing to know the next question by; and nothing is denied for ever."""
    run = session.start(asks, "tea.txt")
    asking(run)
    with pytest.raises(BadOption, match="be allowed for the whole run; leave out always"):
        run.approve(always=True)
    run.approve()
    ended(run)
    using = session.start(deletes_one)
    asking(using)
    with pytest.raises(BadOption, match="leave out always"):
        using.answer(None, "deny", always=True)
    using.deny()
    ended(using)


def test_a_question_whose_time_is_over_is_not_allowed_by_another(make_session: MakeSession) -> None:
    """What was not answered in time is denied, though its tool is allowed a moment later."""
    clock = FakeClock()

    async def agent(prompt: str, run: RunContext) -> list[str]:
        async with asyncio.TaskGroup() as group:
            asked = [run.approve_tool("delete", timeout_s=60), run.approve_tool("delete")]
            tasks = [group.create_task(_awaited(one)) for one in asked]
        return [f"{task.result().decision} {task.result().by}" for task in tasks]

    run = make_session(clock=clock).start(agent)
    asking(run, 2)
    clock.move(60)
    run.approve(ids(run)[1], always=True)
    until(run, lambda record: len(record.pending) == 1)
    run.approve(ids(run)[0])
    assert run.result(BOUND_S) == ["deny deadline", "allow python"]


async def _awaited(asking: Question) -> Answer:
    return await asking


# --- no answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_deadline_denies(session: NotebookSession, kind: str) -> None:
    """Nobody answers in time: the agent goes on with a denial."""

    async def agent(prompt: str, run: RunContext) -> Answer:
        return await run.ask("quick?", timeout_s=0.05)

    def sync_agent(prompt: str, run: RunContext) -> Answer:
        return run.ask_sync("quick?", timeout_s=0.05)

    run = session.start(agent if kind == "async" else sync_agent)
    assert run.result(BOUND_S) == Answer("deny", None, "", "deadline")
    assert people(run)[2:] == ["approval.resolved", "run.resumed"]
    (asked,) = [e for e in run.events() if isinstance(e.data, ev.ApprovalRequested)]
    assert isinstance(asked.data, ev.ApprovalRequested)
    assert asked.data.deadline is not None
    assert asked.data.deadline == pytest.approx(asked.ts + 0.05, abs=0.01)


def test_an_answer_after_the_deadline_comes_too_late(make_session: MakeSession) -> None:
    """The clock decides, and not which of two threads was first."""
    clock = FakeClock()
    run = make_session(clock=clock).start(asks, "tea.txt")
    (asked,) = asking(run)
    assert asked.deadline == NOON + 3600
    clock.move(3600)
    run.approve()
    answer = run.result(BOUND_S)
    assert isinstance(answer, Answer)
    assert (answer.decision, answer.by) == ("deny", "deadline")


@ASKS
def test_a_cancel_ends_the_wait_and_the_run(session: NotebookSession, agent: object) -> None:
    """What is pending is rejected by the cancel, the agent goes no further, and nobody can answer any more."""
    run = session.start(agent, "tea.txt")
    asking(run)
    assert run.cancel("enough").wait(BOUND_S)
    assert (run.status, run.reason, run.error) == (RunStatus.CANCELLED, "enough", None)
    assert resolved(run) == [ev.ApprovalResolved(ids(run)[0], "deny", None, "cancel")]
    assert "run.resumed" not in people(run)
    assert (run.record.pending, run.record.detached, run.output) == ((), (), None)
    with pytest.raises(NotPending, match="has already ended"):
        run.approve()


def test_a_cancel_does_not_disturb_the_cleanup() -> None:
    """The task's own cancel comes a little after the token: the agent hears of one of them, and cleans up."""
    token = CancelToken()
    cleaned: list[str] = []

    async def agent(questions: Approvals) -> None:
        try:
            await _answer(questions)
        finally:
            for _ in range(50):
                await asyncio.sleep(0)
            cleaned.append("clean")

    async def drive() -> None:
        questions = _questions([], token)
        task = asyncio.create_task(agent(questions))
        await asyncio.sleep(0)
        token.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(drive())
    assert cleaned == ["clean"]


def test_a_task_that_is_cancelled_before_its_question_was_rejected_by_the_cancel() -> None:
    """Whichever of the two comes first, the log says that it was the cancel."""
    token, is_over = CancelToken(), threading.Event()
    sent: list[ev.EventData] = []

    async def drive() -> None:
        loop, questions = asyncio.get_running_loop(), _questions(sent, token)
        task = asyncio.create_task(_answer(questions))
        token.add_callback(lambda _request: loop.call_soon_threadsafe(task.cancel))
        token.add_callback(lambda _request: is_over.wait(BOUND_S))  # before that of the questions
        await asyncio.sleep(0)
        thread = threading.Thread(target=token.cancel)
        thread.start()
        await asyncio.wait((task,))
        is_over.set()
        thread.join(BOUND_S)

    asyncio.run(drive())
    assert isinstance(sent[0], ev.ApprovalRequested)
    assert sent[-1] == ev.ApprovalResolved(sent[0].id, "deny", None, "cancel")


def _questions(sent: list[ev.EventData], token: CancelToken) -> Approvals:
    return Approvals(token, sent.append, threading.RLock(), FakeClock())


def test_a_cancel_reaches_a_loop_of_the_agents_own(session: NotebookSession) -> None:
    """Where nobody cancels the task that asks, the question itself ends it."""

    def agent(prompt: str, run: RunContext) -> None:
        async def inner() -> None:
            await run.ask("may I?")

        asyncio.run(inner())

    run = session.start(agent)
    asking(run)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())


def test_nothing_is_asked_in_a_cancelled_run(session: NotebookSession) -> None:
    """A cancelled agent that asks all the same is ended there."""
    reached: list[str] = []

    async def agent(prompt: str, run: RunContext) -> None:
        run.token.cancel("enough")
        await run.ask("may I?")
        reached.append("on")

    run = ended(session.start(agent))
    assert (run.status, reached) == (RunStatus.CANCELLED, [])
    assert resolved(run) == []


def test_a_wait_that_the_agent_gives_up_withdraws_its_question(session: NotebookSession) -> None:
    """Nobody is asked what nobody waits for."""

    async def agent(prompt: str, run: RunContext) -> str:
        try:
            async with asyncio.timeout(0.05):
                await run.ask("quick?")
        except TimeoutError:
            return "gave up"
        return "answered"

    run = session.start(agent)
    assert run.result(BOUND_S) == "gave up"
    assert resolved(run) == [ev.ApprovalResolved(ids(run)[0], "deny", None, "agent")]
    assert people(run)[-1] == "run.resumed"


def test_what_is_asked_on_the_side_ends_with_the_run(session: NotebookSession) -> None:
    """A question that its agent has left open is denied before the end."""
    tasks = []

    async def agent(prompt: str, run: RunContext) -> str:
        tasks.append(asyncio.create_task(run.ask("anyone?")))
        await asyncio.sleep(0)
        return "done"

    run = ended(session.start(agent))
    assert run.status is RunStatus.COMPLETED
    assert resolved(run) == [ev.ApprovalResolved(ids(run)[0], "deny", None, "the run's end")]
    assert run.record.pending == ()


# --- policies ----------------------------------------------------------------------------------------


@ASKS
@pytest.mark.parametrize(("approve", "decision"), [("auto", "allow"), ("deny", "deny")], ids=["auto", "deny"])
def test_a_policy_answers_at_once(session: NotebookSession, agent: object, approve: Any, decision: str) -> None:
    """Both events are in the log, and the run is never waiting."""
    run = session.start(agent, "tea.txt", approve=approve)
    answer = run.result(BOUND_S)
    assert isinstance(answer, Answer)
    assert (answer.decision, answer.by) == (decision, f"--approve {approve}")
    assert answer.args == {"path": "tea.txt"}
    assert people(run) == ["approval.requested", "approval.resolved"]
    assert run.record.options["approve"] == approve


def test_auto_takes_the_first_option(session: NotebookSession) -> None:
    """As `ask()` says."""

    async def agent(prompt: str, run: RunContext) -> str:
        return (await run.ask("which?", options=["green", "black"])).decision

    assert session.start(agent, approve="auto").result(BOUND_S) == "green"


def test_where_nobody_can_answer_it_is_denied_and_said_once(session: NotebookSession) -> None:
    """Two questions, two denials, one notice with its fix."""

    async def agent(prompt: str, run: RunContext) -> list[str]:
        return [(await run.ask(word)).by for word in ("a?", "b?")]

    run = session.start(agent, answerable=False)
    assert run.result(BOUND_S) == ["nobody", "nobody"]
    (notice,) = run.record.notices
    assert "use --approve auto" in notice
    assert "run.waiting" not in people(run)
    auto = session.start(agent, answerable=False, approve="auto")
    assert auto.result(BOUND_S) == ["--approve auto"] * 2


def test_who_answers_for_a_run_answers_for_its_children(session: NotebookSession) -> None:
    """A child of a run that nobody is asked for does not wait for ever; its starter may say otherwise."""

    async def parent(prompt: str, run: RunContext) -> list[object]:
        children = [run.start_child(asks, "a"), run.start_child(asks, "b", approve="deny")]
        return [await child for child in children]

    decisions: dict[Any, list[str]] = {"auto": ["allow", "deny"], "deny": ["deny", "deny"]}
    for approve, expected in decisions.items():
        answers = session.start(parent, approve=approve).result(BOUND_S)
        assert isinstance(answers, list)
        assert [answer.decision for answer in answers] == expected
    alone = session.start(parent, answerable=False).result(BOUND_S)
    assert isinstance(alone, list)
    assert [answer.by for answer in alone] == ["nobody", "--approve deny"]


# --- mistakes of agents ------------------------------------------------------------------------------


def test_a_forgotten_await_allows_nothing(session: NotebookSession) -> None:
    """`if run.ask(…):` fails; it never continues as if it had been allowed."""
    deleted: list[str] = []

    def agent(prompt: str, run: RunContext) -> None:
        if run.ask("Delete all?"):
            deleted.append("all")

    run = ended(session.start(agent))
    assert (run.status, deleted) == (RunStatus.FAILED, [])
    assert "write `await run.ask" in str(run.error)


@pytest.mark.parametrize("is_sync", [True, False], ids=["sync", "async"])
def test_a_question_that_is_never_awaited_is_reported(session: NotebookSession, is_sync: bool) -> None:
    """The agent goes on as if it had asked; its log has one warning, with the fix, and nothing was asked."""

    def sync_agent(prompt: str, run: RunContext) -> str:
        run.ask("first?")
        run.ask("second?")
        return "done"

    async def agent(prompt: str, run: RunContext) -> str:
        await run.ask("this one?")
        return sync_agent(prompt, run)

    run = ended(session.start(sync_agent if is_sync else agent, approve="auto"))
    assert run.output == "done"
    (words,) = run.record.notices
    assert words.startswith("run.ask() was not awaited, 2 times, so nobody was asked; write `await")
    assert len(resolved(run)) == (0 if is_sync else 1)


def test_a_tool_that_is_approved_without_await_is_reported(session: NotebookSession) -> None:
    """To approve a tool is to ask: it has no truth before it was awaited."""
    used: list[str] = []

    async def agent(prompt: str, run: RunContext) -> None:
        run.approve_tool("delete")
        if run.approve_tool("delete"):
            used.append("delete")

    run = ended(session.start(agent))
    assert (run.status, used) == (RunStatus.FAILED, [])
    assert run.record.notices[0].startswith("run.approve_tool() was not awaited, so nobody was asked")


def test_a_blocking_question_on_the_loop_is_refused(session: NotebookSession) -> None:
    """It would hold up all runs, and could never be answered."""

    async def agent(prompt: str, run: RunContext) -> None:
        run.ask_sync("may I?")

    with pytest.raises(RunFailed, match=r"use `await run\.ask"):
        session.start(agent).result(BOUND_S)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout_s": 0}, "must be greater than 0"),
        ({"timeout_s": float("nan")}, "must be greater than 0"),
        ({"options": "yes"}, "must be a list or tuple of str"),
        ({"options": ["a", "a"]}, "must be unique"),
        ({"options": ["deny"]}, "always possible"),
        ({"options": [3]}, "an option must be a str"),
        ({"options": ["x" * 81]}, "at most 20 options of at most 80"),
    ],
    ids=str,
)
def test_a_question_that_makes_no_sense_is_not_asked(options: dict[str, object], words: str) -> None:
    """The agent gets one line that names the fix."""
    sent: list[ev.EventData] = []
    run = context_on_no_host(sent.append)
    with pytest.raises(BadOption, match=words):
        asyncio.run(_await(run.ask("may I?", **options)))  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(BadOption, match="message must be a str"):
        asyncio.run(_await(run.ask(3)))  # type: ignore[arg-type]  # wrong on purpose
    assert sent == []


async def _await(asked: object) -> object:
    return await asked  # type: ignore[misc]  # an Question


@pytest.mark.parametrize(
    "data",
    [
        ev.ApprovalResolved("ask-1", "allow"), ev.ApprovalRequested("x", "y"), ev.RunWaiting(), ev.RunResumed(),
        ev.Steer("left"), ev.SteerReady(), ev.SteerTaken(1),
    ],
    ids=ev.type_of,
)  # fmt: skip
def test_an_agent_cannot_answer_for_a_person(session: NotebookSession, data: ev.EventData) -> None:
    """What people say is said by the host alone."""

    async def agent(prompt: str, run: RunContext) -> None:
        run.send(data)

    run = ended(session.start(agent))
    assert run.status is RunStatus.FAILED
    assert "an agent cannot send" in str(run.error)


def test_a_denied_tool_is_among_the_tools(session: NotebookSession) -> None:
    """`approve_tool()` shows what was refused, with its args; what is allowed is the agent's to use."""

    async def agent(prompt: str, run: RunContext) -> None:
        if answer := await run.approve_tool("delete", {"path": prompt}):
            with run.tool("delete", answer.args):
                pass

    denied = session.start(agent, "tea.txt")
    assert asking(denied)[0].message == "Use delete?"
    denied.deny(reason="keep it")
    ended(denied)
    (tool,) = denied.record.tools
    assert (tool.name, tool.args, tool.status, tool.result) == ("delete", {"path": "tea.txt"}, "denied", "keep it")
    allowed = session.start(agent, "tea.txt")
    asking(allowed)
    allowed.approve(args={"path": "cup.txt"})
    ended(allowed)
    (tool,) = allowed.record.tools
    assert (tool.args, tool.status) == ({"path": "cup.txt"}, "ok")


# --- the host's side ---------------------------------------------------------------------------------


def test_the_host_takes_the_first_answer_and_says_what_became_of_others() -> None:
    """Unknown, wrong, second: each has its word, and none changes anything."""
    sent: list[ev.EventData] = []
    questions = Approvals(CancelToken(), sent.append, threading.RLock(), FakeClock())

    async def ask() -> Answer:
        task = asyncio.create_task(_answer(questions))
        await asyncio.sleep(0)
        assert questions.answer({"id": "ask-9", "decision": "allow"}) == "not_pending"
        assert isinstance(sent[0], ev.ApprovalRequested)
        asked_id = sent[0].id
        assert questions.answer({"id": asked_id, "decision": "perhaps"}) == "bad_decision"
        edited: dict[str, object] = {"id": asked_id, "decision": "allow", "args": {}}
        assert questions.answer(edited) == "not_editable"
        assert questions.answer({"id": asked_id, "decision": "allow", "by": "first"}) == "resolved"
        assert questions.answer({"id": asked_id, "decision": "deny"}) == "not_pending"
        return await task

    assert asyncio.run(ask()) == Answer("allow", None, "", "first")
    assert [data.TYPE for data in sent] == [*("approval.requested", "run.waiting", "approval.resolved", "run.resumed")]


async def _answer(questions: Approvals) -> Answer:
    return await questions.ask(Ask("may I?", editable=False))


# --- messages into the agent -------------------------------------------------------------------------


async def reads(prompt: str, run: RunContext) -> list[str]:
    """Wait for one message, then take all there are."""
    first = await run.inbox.get()
    return [first, *run.inbox.take()]


def test_a_message_reaches_the_agent_and_stands_in_the_log(session: NotebookSession) -> None:
    """That the agent looks for messages is logged, then each when it comes, and again when the agent reads it."""
    run = session.start(reads)
    until(run, lambda record: record.is_steerable)
    run.steer("turn left")
    assert run.result(BOUND_S) == ["turn left"]
    data = [event.data for event in run.events()][2:-1]
    assert data == [ev.SteerReady(), ev.Steer("turn left", "python", "say-1"), ev.SteerTaken(1)]
    assert (run.record.steers, run.record.steers_taken) == (1, 1)
    (message,) = run.record.steered
    assert (message.number, message.text, message.by, message.id) == (1, "turn left", "python", "say-1")
    assert message.taken_at is not None
    assert message.taken_at >= message.at


def test_all_waiting_messages_are_taken_in_order(session: NotebookSession, held: Held) -> None:
    """At a safe point the agent has them all, once."""

    async def agent(prompt: str, run: RunContext) -> list[list[str]]:
        await held(prompt, run)
        return [run.inbox.take(), run.inbox.take()]

    run = session.start(agent)
    assert held.entered.wait(BOUND_S)
    until(run, lambda record: record.status is RunStatus.RUNNING)
    for word in ("a", "b", "c"):
        run.steer(word)
    until(run, lambda record: record.steers == 3)
    held.let_go()
    assert run.result(BOUND_S) == [["a", "b", "c"], []]
    assert [e.data for e in run.events() if isinstance(e.data, ev.SteerTaken)] == [ev.SteerTaken(3)]


def test_a_sync_agent_takes_messages_too(session: NotebookSession) -> None:
    """From its own thread, between two steps."""
    is_there = threading.Event()

    def agent(prompt: str, run: RunContext) -> list[str]:
        assert is_there.wait(BOUND_S)
        return run.inbox.take()

    run = session.start(agent)
    until(run, lambda record: record.status is RunStatus.RUNNING)
    run.steer("left")
    until(run, lambda record: record.steers == 1)
    is_there.set()
    assert run.result(BOUND_S) == ["left"]


def test_what_was_not_read_is_said_before_the_end(session: NotebookSession, held: Held) -> None:
    """A message is never lost in silence."""
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    until(run, lambda record: record.status is RunStatus.RUNNING)
    run.steer("left")
    run.steer("right")
    until(run, lambda record: record.steers == 2)
    held.let_go()
    ended(run)
    assert not run.record.is_steerable
    assert [message.taken_at for message in run.record.steered] == [None, None]
    assert run.record.notices == ("the run ended before its agent read 2 messages",)
    assert run.events()[-1].type == "run.completed"


def test_a_cancel_ends_the_wait_for_a_message(session: NotebookSession) -> None:
    """The agent is not left waiting, on whichever loop."""

    def own_loop(prompt: str, run: RunContext) -> object:
        return asyncio.run(reads(prompt, run))

    for agent in (reads, own_loop):
        run = session.start(agent)
        until(run, lambda record: record.status is RunStatus.RUNNING)
        assert run.cancel().wait(BOUND_S)
        assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())


def test_too_much_is_refused_in_one_line(session: NotebookSession, held: Held) -> None:
    """A message that is too long, empty or one too many is not sent, and says so."""
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    until(run, lambda record: record.status is RunStatus.RUNNING)
    with pytest.raises(BadOption, match="only 131,072 are allowed"):
        run.steer("é" * (MAX_BYTES // 2 + 1))
    with pytest.raises(BadOption, match="message is empty"):
        run.steer("  ")
    for number in range(MAX_WAITING):
        run.steer(str(number))
    with pytest.raises(NotPending, match=r"64 messages to run #1 .Held. are still unread"):
        run.steer("one too many")
    held.let_go()
    ended(run)
    assert run.record.steers == MAX_WAITING


def test_a_run_that_has_not_begun_takes_no_messages(make_session: MakeSession, held: Held) -> None:
    """Its prompt is the place for what it should know from the start."""
    session = make_session(max_concurrent=1)
    holder = session.start(held)
    queued = session.start(reads)
    with pytest.raises(NotPending, match="hasn't started yet"):
        queued.steer("left")
    queued.cancel()
    held.let_go()
    ended(holder)


def test_a_full_inbox_refuses_at_the_host_as_well() -> None:
    """Whatever a session has counted, the host keeps no more than this many."""
    sent: list[ev.EventData] = []
    inbox = Inbox(CancelToken(), sent.append, threading.RLock())
    assert not inbox
    outcomes = {inbox.put({"text": str(number), "by": "x"}) for number in range(MAX_WAITING)}
    assert outcomes == {"taken"}
    assert inbox.put({"text": "one too many"}) == "full"
    assert len(inbox) == MAX_WAITING
    assert isinstance(sent[-1], ev.Log)
    assert inbox.take() == [str(number) for number in range(MAX_WAITING)]


def test_waiting_in_a_cancelled_run_ends_at_once() -> None:
    """The agent is ended where it asks for a message."""
    token = CancelToken()
    token.cancel("enough")
    inbox = Inbox(token, lambda _data: None, threading.RLock())
    with pytest.raises(Cancelled, match="enough"):
        asyncio.run(inbox.get())


def test_a_question_has_no_truth_before_it_is_answered() -> None:
    """Also where nobody runs it."""
    run = context_on_no_host()
    with pytest.raises(NbrunError, match="was not asked yet"):
        bool(run.ask("may I?"))


# --- what is decided about ---------------------------------------------------------------------------


def test_a_question_is_found_by_its_own_id_alone(session: NotebookSession) -> None:
    """A model chooses the ids of its calls: one that looks like a question's must not answer it, nor the next one's."""

    async def agent(prompt: str, run: RunContext) -> list[str]:
        first = run.ask("Read a file?", tool_id="ask-2")
        second = run.ask("Delete the folder?", tool_id="ask-1")
        return [answer.decision for answer in await asyncio.gather(first, second)]

    run = session.start(agent)
    first, second = asking(run, 2)
    assert len({first.id, second.id, "ask-1", "ask-2"}) == 4
    for guess in ("ask-1", "ask-2", "ask", first.id[:-1]):
        with pytest.raises(NotPending, match="doesn't ask"):
            run.approve(guess)
    run.deny(second.id)
    run.approve(first.id)
    assert run.result(BOUND_S) == ["allow", "deny"]


@dataclass
class Where:
    """Arguments that are no JSON."""

    path: str


@pytest.mark.parametrize(
    ("args", "change"),
    [
        ({"paths": ["a"]}, lambda args: args["paths"].append("b")),
        (["a", {"deep": ["b"]}], lambda args: args[1]["deep"].clear()),
        (({"in": {"a"}},), lambda args: args[0].update(more=1)),
        (Where("a"), lambda args: setattr(args, "path", "b")),
        (bytearray(b"a"), lambda args: args.extend(b"b")),
    ],
    ids=["dict", "list", "tuple", "object", "bytes"],
)
def test_what_is_allowed_is_what_was_shown(
    args: Any, change: Callable[[Any], object], session: NotebookSession
) -> None:
    """An agent that changes its arguments while the user reads them gets those that the user has read."""

    async def agent(prompt: str, run: RunContext) -> bool:
        before = copy.deepcopy(args)
        question = asyncio.gather(run.ask("this?", args=args))
        await asyncio.sleep(0)
        change(args)
        (answer,) = await question
        return bool(answer.args == before)

    run = session.start(agent)
    asking(run)
    run.approve()
    assert run.result(BOUND_S) is True


SECRET = "sk-test-0123456789"


@pytest.mark.parametrize(
    ("args", "edit", "used"),
    [
        ({"path": f"/data/{SECRET}", "n": 1}, lambda seen: {**seen, "n": 2}, {"path": f"/data/{SECRET}", "n": 2}),
        (
            {"path": f"/data/{SECRET}/a"},
            lambda seen: {"path": seen["path"].replace("/a", "/b")},
            {"path": f"/data/{SECRET}/b"},
        ),
        ({SECRET: [1]}, lambda seen: {name: [2] for name in seen}, {SECRET: [2]}),
        ([f"-k={SECRET}", "a", "b"], lambda seen: [seen[0], "c"], [f"-k={SECRET}", "c"]),
        (f"curl -H {SECRET} x y", lambda seen: seen.replace(" y", " z"), f"curl -H {SECRET} x z"),
        # A placeholder in another place is a text: nobody has seen a secret there.
        ({"a": "x", "b": SECRET}, lambda seen: {"a": "[TEA_API_KEY]", "b": ""}, {"a": "[TEA_API_KEY]", "b": ""}),
        ({"a": "[TEA_API_KEY]", "n": 1}, lambda seen: {**seen, "n": 2}, {"a": "[TEA_API_KEY]", "n": 2}),
    ],
)
@pytest.mark.parametrize("on", ["local", "process"])
def test_a_hidden_part_keeps_its_value_through_an_edit(
    args: Any,
    edit: Callable[[Any], Any],
    used: Any,
    on: Literal["local", "process"],
    session: NotebookSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The user is told what is hidden; the tool gets the secret where it was, and nowhere else."""
    monkeypatch.setenv("TEA_API_KEY", SECRET)

    async def agent(prompt: str, run: RunContext) -> bool:
        return bool((await run.ask("this?", args=args)).args == used)

    run = session.start(agent, on=on)
    (asked,) = asking(run)
    assert SECRET not in repr(asked)
    assert asked.hidden == (("TEA_API_KEY",) if "[TEA_API_KEY]" in repr(asked.args) and SECRET in repr(args) else ())
    run.approve(args=edit(asked.args))
    assert run.result(BOUND_S) is True
    assert SECRET not in repr(run.events())
