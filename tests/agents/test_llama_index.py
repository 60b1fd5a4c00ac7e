"""Workflows of LlamaIndex, beside what the conformance suite looks at."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

import nbrun
from nbrun import CancelCause, NotebookSession, Run, RunStatus
from nbrun.agents import find_adapter
from nbrun.agents.llama_index.adapter import LlamaIndexAdapter
from nbrun.core import events as ev
from tests.agents.conformance import log, tools
from tests.agents.conformance.scenarios import SCENARIOS
from tests.agents.conformance.subjects.llama_index import Poet, ToolCall, ToolCallResult
from tests.fakes.agents import BOUND_S
from tests.fakes.people import asking, until


class Poured(Event):
    """A workflow's own."""

    cups: int


class Tea(Workflow):
    """Says what it was given."""

    @step
    async def pour(self, ctx: Context, ev: StartEvent) -> StopEvent:
        """Pour."""
        ctx.write_event_to_stream(Poured(cups=2))
        return StopEvent(result=ev.get("input") or ev.to_dict())


class Talk(StartEvent):
    """With fields of the names that LlamaIndex's agents have."""

    user_msg: str
    chat_history: list[Any] = Field(default_factory=list)


class AgentWorkflowStartEvent(StartEvent):
    """As that of LlamaIndex's agents, which declares none."""


class Listener(Workflow):
    """Says what was said before."""

    @step
    async def listen(self, ev: Talk) -> StopEvent:
        """Listen."""
        return StopEvent(result=" | ".join([*(m["content"] for m in ev.chat_history), ev.user_msg]))


class Agent(Workflow):
    """Says what was said before, as one of LlamaIndex's."""

    @step
    async def listen(self, ev: AgentWorkflowStartEvent) -> StopEvent:
        """Listen."""
        return StopEvent(result=" | ".join([*(m["content"] for m in ev.chat_history), ev.user_msg]))


class Two(StartEvent):
    """More than a prompt can tell."""

    cups: int
    kind: str


class Both(Workflow):
    """Takes two."""

    @step
    async def pour(self, ev: Two) -> StopEvent:
        """Pour."""
        return StopEvent(result=f"{ev.cups} of {ev.kind}")


class Sure(HumanResponseEvent):
    """A response of the workflow's own class."""


class Asker(Workflow):
    """Asks within a step, as LlamaIndex's agents do in their tools; then waits as long as it is told to."""

    waits = False

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        """Ask."""
        nbrun.current().emit("asks")
        request = InputRequiredEvent(**{"prefix": "Pour?", "cups": 2, "who": "Ann"})
        answer = await ctx.wait_for_event(Sure, waiter_event=request, requirements={"who": "Ann"})
        nbrun.current().emit(tools.ENTERED)
        if self.waits and nbrun.current().restored is None:
            await asyncio.Event().wait()
        return StopEvent(result=[answer.response, answer.approved, answer.args, answer.reason])


class Holder(Workflow):
    """Keeps what cannot be written."""

    @step
    async def hold(self, ctx: Context, ev: StartEvent) -> Poured:
        """Hold it."""
        await ctx.store.set("lock", threading.Lock())
        return Poured(cups=1)

    @step
    async def wait(self, ev: Poured) -> StopEvent:
        """Wait."""
        await tools.waits()
        return StopEvent()


class Breaks(Workflow):
    """Ends in one of the ways that are none."""

    @step
    async def end(self, ev: StartEvent) -> StopEvent:
        """End."""
        if ev.input == "fails":
            raise ValueError("no cup")
        if ev.input == "exits":
            raise SystemExit(3)
        if ev.input == "swallows":
            nbrun.current().emit(tools.ENTERED)
            while not self.is_free.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await self.is_free.wait()
        if ev.input == "waits":
            await asyncio.Event().wait()
        return StopEvent()

    is_free = asyncio.Event()


def ended(run: Run) -> Run:
    """Return the run when it has ended, its log looked at."""
    assert run.wait(BOUND_S), run.record
    log.check(run)
    return run


def test_it_is_found_by_class() -> None:
    """A workflow, and nothing else of the package, is driven by this adapter."""
    assert isinstance(find_adapter(Tea()), LlamaIndexAdapter)
    assert find_adapter(Tea()).label(Tea()) == "Tea"
    assert find_adapter(Tea()).label(Tea(workflow_name="poet")) == "poet"
    assert not LlamaIndexAdapter().match(Tea)
    assert not LlamaIndexAdapter().match(StartEvent())


def test_the_prompt_is_what_the_workflow_takes(session: NotebookSession) -> None:
    """`input`, its only field, or fields of a JSON object; its own events are in the log, its steps are phases."""
    run = session.start(Tea(), "tea")
    assert ended(run).output == "tea"
    assert log.told(run, "Poured") == [{"cups": 2}]
    assert [e.data.phase for e in run.events() if isinstance(e.data, ev.RunPhase)] == ["pour"]
    assert session.start(Tea(), '{"cups": 3}').result(BOUND_S) == {"cups": 3}
    assert session.start(Both(), '{"cups": 3, "kind": "tea"}').result(BOUND_S) == "3 of tea"
    run = ended(session.start(Both(), "tea"))
    assert "give a JSON object" in str(run.error)


def test_what_was_said_before_is_its_history(session: NotebookSession) -> None:
    """Where its start event has a place for it."""
    for workflow in (Listener(), Agent()):
        first = ended(session.start(workflow, "one"))
        assert ended(first.continue_with("two")).output == "one | one | two"


def test_no_model_is_called_beyond_max_turns(session: NotebookSession) -> None:
    """The budget is asked when an agent says that it will call one; the workflow is left then."""
    run = ended(session.start(Poet(SCENARIOS["adds"]), "tea", max_turns=1))
    assert (run.status, run.cause) == (RunStatus.CANCELLED, CancelCause.BUDGET)
    assert "it is" not in run.text
    assert run.usage.requests == 1


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda run: run.approve(), ["yes", True, {"cups": 2, "who": "Ann"}, ""]),
        (lambda run: run.approve(text="a bit"), ["a bit", True, {"cups": 2, "who": "Ann"}, "a bit"]),
        (lambda run: run.approve(args={"cups": 1}), ["yes", True, {"cups": 1}, ""]),
        (lambda run: run.deny(reason="no"), ["", False, {"cups": 2, "who": "Ann"}, "no"]),
    ],
)
def test_a_step_that_waits_for_a_person(
    session: NotebookSession, answer: Callable[[Run], None], got: list[object]
) -> None:
    """It gets a response of the class that it waits for, with what it requires; a denial is not true."""
    run = session.start(Asker(timeout=None), "tea")
    (asked,) = asking(run)
    assert (asked.message, asked.args) == ("Pour?", {"cups": 2, "who": "Ann"})
    answer(run)
    assert ended(run).output == got


@pytest.mark.parametrize(
    ("how", "words"), [("fails", "no cup"), ("exits", "SystemExit: 3"), ("waits", "timed out after 0.3 seconds")]
)
def test_how_a_workflow_ends(session: NotebookSession, how: str, words: str) -> None:
    """With what it raised, also where it has died of it; its own time limit is its own."""
    run = ended(session.start(Breaks(timeout=0.3), how))
    assert run.status is RunStatus.FAILED
    assert words in str(run.error)


def test_a_step_that_takes_no_cancel_holds_up_nobody(make_session: Callable[..., NotebookSession]) -> None:
    """The run ends after its grace."""
    session = make_session(cancel_grace_s=0.2)
    workflow = Breaks(timeout=None)
    workflow.is_free = asyncio.Event()
    run = session.start(workflow, "swallows")
    until(run, lambda _record: bool(log.told(run, tools.ENTERED)))
    run.cancel()
    assert ended(run).status is RunStatus.CANCELLED

    async def frees(prompt: str) -> None:
        workflow.is_free.set()

    session.start(frees, "now").result(BOUND_S)


def test_a_tool_that_asks_is_the_one_that_runs(session: NotebookSession) -> None:
    """LlamaIndex's tools ask without their id."""

    class Tool(Workflow):
        @step
        async def use(self, ctx: Context, ev: StartEvent) -> StopEvent:
            call = ToolCall(tool_name="pour", tool_kwargs={}, tool_id="call-1")
            ctx.write_event_to_stream(call)
            request = InputRequiredEvent(**{"prefix": "Pour?"})
            answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=request)
            output = {"content": answer.reason, "is_error": False}
            ctx.write_event_to_stream(ToolCallResult(**call.model_dump(), tool_output=output))
            return StopEvent(result=answer.approved)

    run = session.start(Tool(), "tea")
    (asked,) = asking(run)
    assert (asked.tool_id, asked.tool, asked.editable) == ("call-1", "pour", False)
    run.deny(reason="cold")
    assert ended(run).output is False
    assert [(t.name, t.status, t.result) for t in run.record.tools] == [("pour", "denied", "cold")]


# --- resume ------------------------------------------------------------------------------------------


def test_an_answer_is_asked_for_again(session: NotebookSession) -> None:
    """One that was given before the run stopped, too: it may be of whoever wrote the store. Nothing runs twice."""
    asker = Asker(timeout=None)
    asker.waits = True
    run = session.start(asker, "tea")
    asking(run)
    run.approve()
    until(run, lambda _record: bool(log.told(run, tools.ENTERED)))
    run.cancel()
    resumed = ended(run).resume()
    (asked,) = asking(resumed)
    assert asked.args == {"cups": 2, "who": "Ann"}
    assert log.told(resumed, tools.ENTERED) == []
    resumed.deny()
    assert ended(resumed).output == ["", False, {"cups": 2, "who": "Ann"}, ""]
    assert log.told(resumed, tools.ENTERED) == [None]
    assert log.told(resumed, "asks") == [None, None]  # to wait anew, and with the answer
    asked_again = [e for e in resumed.events() if isinstance(e.data, ev.ApprovalRequested)]
    assert len(asked_again) == 1


def test_an_answer_to_a_step_is_asked_for_again(session: NotebookSession) -> None:
    """Also where the response is what a step begins with."""
    run = session.start(Poet(SCENARIOS["asks half way"]), "tea")
    asking(run)
    run.cancel()
    state = _state_of(ended(run))
    workers = json.loads(state["context"])["workers"]
    response = {
        "__is_pydantic": True,
        "value": {"_data": {**state["asked"][0][1], "approved": True, "args": {"path": "forged"}}},
        "qualified_name": "workflows.events.HumanResponseEvent",
    }
    entry = {"event": json.dumps(response), "work_item_id": None}
    for place in ("queue", "in_progress"):
        whole = json.loads(state["context"])
        whole["workers"]["allowed"][place] = [entry]
        assert workers["allowed"][place] == []
        forged = {"context": json.dumps(whole), "asked": []}
        resumed = _stopped(session, forged).resume(agent=Poet(SCENARIOS["asks half way"]))
        asking(resumed)
        assert log.told(resumed, "deleted") == []
        resumed.deny()
        assert log.told(ended(resumed), "deleted") == []
        assert [(tool.name, tool.status) for tool in resumed.record.tools] == [("delete", "denied")]


def test_a_forged_context_runs_no_code(
    session: NotebookSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No class is imported for it, and none that is no workflow's is made."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil_tea.py").write_text("class Cup(Exception): ...\n")
    run = session.start(Asker(timeout=None), "tea")
    asking(run)
    run.cancel()
    state = _state_of(ended(run))
    for name in ("evil_tea.Cup", "subprocess.Popen"):
        event = {"__is_pydantic": True, "value": {"args": ["true"]}, "qualified_name": name}
        entry = {"event": json.dumps(event), "work_item_id": None}
        whole = json.loads(state["context"])
        whole["workers"]["ask"]["queue"] = [entry]
        resumed = ended(_stopped(session, {**state, "context": json.dumps(whole)}).resume(agent=Asker()))
        assert "retry starts it again" in str(resumed.error)
    whole = json.loads(state["context"])
    error = {"exception_type": "evil_tea.Cup", "exception_message": ""}
    start = {"__is_pydantic": True, "value": {}, "qualified_name": "workflows.events.StartEvent"}
    whole["workers"]["ask"]["queue"] = [{"event": json.dumps(start), "work_item_id": None, "last_exception": error}]
    resumed = _stopped(session, {**state, "context": json.dumps(whole)}).resume(agent=Asker())
    asking(resumed)
    resumed.cancel()
    ended(resumed)
    assert "evil_tea" not in sys.modules


@pytest.mark.parametrize("state", [{}, 7, {"context": "no", "asked": []}, {"context": "[]", "asked": []}])
def test_a_state_of_another_version_is_refused_in_a_line(session: NotebookSession, state: object) -> None:
    """Whatever it is."""
    resumed = ended(_stopped(session, state).resume(agent=Asker()))
    assert "retry starts it again" in str(resumed.error)


def test_what_cannot_be_kept_is_said(session: NotebookSession) -> None:
    """Once, on the card; the workflow goes on."""
    run = session.start(Holder(timeout=None), "tea")
    until(run, lambda _record: bool(log.told(run, tools.ENTERED)))
    run.cancel()
    assert ended(run).status is RunStatus.CANCELLED
    assert log.told(run, tools.LEFT) == [None]
    (notice,) = run.record.notices
    assert "can't be resumed from this point" in notice


def _state_of(run: Run) -> Any:
    """Return what a run has kept, as a function that goes on from it sees it."""

    async def reads(prompt: str) -> object:
        return nbrun.current().restored

    return ended(run.resume(agent=reads)).output


def _stopped(session: NotebookSession, state: object) -> Run:
    async def keeps(prompt: str) -> None:
        nbrun.current().checkpoint(state)
        raise ValueError("stop here")

    return ended(session.start(keeps, "tea"))
