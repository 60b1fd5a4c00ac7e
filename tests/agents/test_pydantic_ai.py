"""pydantic-ai agents: what they do becomes events, and a cancel goes through their own token."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext as FrameworkContext, Tool
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.models.test import TestModel

import nbrun
from nbrun import CancelCause, NotebookSession, Run, RunStatus
from nbrun.agents import INTERRUPTED, find_adapter
from nbrun.agents.context.budget import NO_PRICE
from nbrun.agents.pydantic_ai.adapter import PydanticAIAdapter
from nbrun.core import events as ev
from nbrun.core.cancellation import Rung
from nbrun.core.errors import BadOption
from tests.agents.conformance import log
from tests.agents.conformance.scenarios import SCENARIOS
from tests.agents.conformance.subjects.pydantic_ai import PydanticAI
from tests.fakes.agents import BOUND_S
from tests.fakes.late import late_event
from tests.fakes.people import about, asking, until

MakeSession = Callable[..., NotebookSession]
Calls = dict[int, DeltaToolCall]
Stream = Callable[[list[ModelMessage], AgentInfo], AsyncIterator[str | Calls]]


def agent_on(stream: Stream, **options: object) -> Agent[None, str]:
    """Return an agent whose model streams this."""
    return Agent(FunctionModel(stream_function=stream), name="poet", **options)  # type: ignore[call-overload, no-any-return]


async def says_tea(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
    """Stream four words."""
    for word in ("Steam ", "from ", "the ", "cup"):
        yield word


def test_it_is_found_by_class() -> None:
    """An agent object, and nothing else of the package, is driven by this adapter."""
    agent = Agent(TestModel(), name="poet")
    assert isinstance(find_adapter(agent), PydanticAIAdapter)
    assert find_adapter(agent).label(agent) == "poet"
    assert not PydanticAIAdapter().match(TestModel())
    assert not PydanticAIAdapter().match(Agent)


def test_text_is_streamed_and_is_the_output(session: NotebookSession) -> None:
    """Deltas join to the output; the whole message comes once, and usage is told."""
    run = session.start(agent_on(says_tea), "tea")
    assert run.result(BOUND_S) == "Steam from the cup"
    assert (run.name, run.text) == ("poet", "Steam from the cup")
    kinds = [event.type for event in run.events()]
    assert kinds.count("text.delta") >= 4
    assert kinds.count("message") == 1
    assert run.usage.requests == 1
    assert run.usage.output_tokens > 0


def test_tools_are_shown_with_arguments_and_results(session: NotebookSession) -> None:
    """A tool call is a row with its name, arguments, result and time."""

    async def uses_a_tool(
        messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        if any(isinstance(part, ToolReturnPart) for part in messages[-1].parts):
            yield "it is warm"
        else:
            yield {0: DeltaToolCall("temperature", '{"of": "tea"}', tool_call_id="call-1")}

    async def temperature(of: str) -> dict[str, object]:
        """Tell the temperature."""
        return {"of": of, "celsius": 80}

    run = session.start(agent_on(uses_a_tool, tools=[temperature]), "how warm?")
    assert run.result(BOUND_S) == "it is warm"
    (tool,) = run.record.tools
    assert (tool.id, tool.name, tool.status) == ("call-1", "temperature", "ok")
    assert (tool.args, tool.result) == ({"of": "tea"}, {"of": "tea", "celsius": 80})
    assert tool.ms is not None


def test_a_cancel_goes_through_its_own_token_and_keeps_text_and_usage(session: NotebookSession) -> None:
    """The native rung is the only one used; what was said and paid for is kept, as a lower bound."""
    said, cleaned = threading.Event(), threading.Event()

    async def never_ends(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        try:
            yield "half a "
            yield "sentence "
            said.set()
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    run = session.start(agent_on(never_ends), "tea")
    assert said.wait(BOUND_S)
    assert run.cancel("enough").wait(BOUND_S)
    assert run.status is RunStatus.CANCELLED
    assert run.error is None
    assert "half a" in run.text
    rungs = [e.data.rung for e in run.events() if isinstance(e.data, ev.CancelEscalated)]
    assert rungs == [Rung.NATIVE]
    assert run.usage.requests == 1
    assert run.usage.exact is False
    assert cleaned.wait(BOUND_S)


def test_a_model_that_fails_fails_the_run(session: NotebookSession) -> None:
    """What the model raises is the run's error."""

    async def breaks(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        yield "half"
        raise ValueError("model is gone")

    run = session.start(agent_on(breaks), "tea")
    assert run.wait(BOUND_S)
    assert run.status is RunStatus.FAILED
    assert "model is gone" in str(run.error)
    assert run.text == "half"


def test_one_agent_may_have_two_runs_at_once(session: NotebookSession) -> None:
    """Each run has its own native token: one is cancelled, the other goes on."""
    waiting = threading.Semaphore(0)
    gates: list[Callable[[], object]] = []

    async def waits(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        loop, gate = asyncio.get_running_loop(), asyncio.Event()
        gates.append(lambda: loop.call_soon_threadsafe(gate.set))
        yield "waiting "
        waiting.release()
        await gate.wait()
        yield "done"

    agent = agent_on(waits)
    first, second = session.start(agent, "one"), session.start(agent, "two")
    for _ in range(2):
        assert waiting.acquire(timeout=BOUND_S)
    assert first.cancel().wait(BOUND_S)
    for gate in gates:
        gate()
    assert second.result(BOUND_S) == "waiting done"
    assert first.status is RunStatus.CANCELLED


# --- budgets ------------------------------------------------------------------------------------------


class Caller:
    """A model that wants a tool at each of its calls, so that the agent would go on for ever; counts them."""

    def __init__(self, tool: str = "look", model: str | None = None, calls: int = 1000) -> None:
        self.calls = 0
        self._tool = tool
        self._wanted = calls
        self.model = FunctionModel(stream_function=self.stream, model_name=model)

    async def stream(
        self, messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        """Ask for the tool, or answer once it was called often enough."""
        self.calls += 1
        if self.calls > self._wanted:
            yield "enough"
        else:
            yield {0: DeltaToolCall(self._tool, "{}", tool_call_id=f"call-{self.calls}")}


async def look() -> str:
    """Look around."""
    return "nothing new"


def test_no_model_is_called_beyond_max_turns(session: NotebookSession) -> None:
    """The model is called twice and never a third time; what was paid for is told."""
    caller = Caller()
    run = session.start(Agent(caller.model, tools=[look]), "go", max_turns=2)
    assert run.wait(BOUND_S)
    assert (run.status, run.cause) == (RunStatus.CANCELLED, CancelCause.BUDGET)
    assert run.reason == "max_turns 2: 2 model calls made, another was due"
    assert caller.calls == 2
    assert run.usage.requests == 2
    assert [tool.status for tool in run.record.tools] == ["ok", "ok"]


def test_a_limit_that_was_given_replaces_the_frameworks_own(session: NotebookSession) -> None:
    """pydantic-ai stops at 50 requests by itself; who asks for 60 gets them."""
    caller = Caller(calls=55)
    run = session.start(Agent(caller.model, tools=[look]), "go", max_turns=60)
    assert run.result(BOUND_S) == "enough"
    assert caller.calls == 56


def test_usage_is_told_after_every_response(session: NotebookSession) -> None:
    """Not only at the end: a limit on tokens stops an agent between two calls."""
    caller = Caller(calls=3)
    run = session.start(Agent(caller.model, tools=[look]), "go")
    assert run.result(BOUND_S) == "enough"
    usages = [event.data for event in run.events() if isinstance(event.data, ev.Usage)]
    # Each call is told of as well before it is made, when there are no new tokens.
    tokens = list(dict.fromkeys(usage.input_tokens for usage in usages if usage.input_tokens))
    assert len(tokens) == 4
    assert tokens == sorted(tokens)
    assert run.usage.requests == caller.calls == 4

    caller = Caller()
    stopped = session.start(Agent(caller.model, tools=[look]), "go", max_tokens=tokens[1])
    assert stopped.wait(BOUND_S)
    assert stopped.cause is CancelCause.BUDGET
    assert caller.calls == 2


def test_the_price_of_a_known_model_is_held_to(session: NotebookSession) -> None:
    """Its responses are priced offline; an unknown one is told on the card, once."""
    caller = Caller(model="gpt-4o")
    run = session.start(Agent(caller.model, tools=[look]), "go", max_cost=0.0003)
    assert run.wait(BOUND_S)
    assert run.usage.cost_usd is not None
    assert run.usage.cost_usd >= 0.0003
    assert str(run.reason).startswith("max_cost $0.0003: $")
    assert run.record.notices == ()
    unknown = session.start(Agent(Caller(calls=3).model, tools=[look]), "go", max_cost=0.0003)
    assert unknown.result(BOUND_S) == "enough"
    assert unknown.usage.cost_usd is None
    assert unknown.record.notices == (NO_PRICE,)


def test_what_a_tool_reports_comes_on_top(session: NotebookSession) -> None:
    """A tool that calls a model itself adds to the usage, and is held to the budget with the rest."""

    async def asks_a_model(run: FrameworkContext[None]) -> str:
        """Ask another model."""
        nbrun.current().begin_turn()
        nbrun.current().usage(input_tokens=1_000_000, requests=1)
        return "it says hello"

    run = session.start(Agent(Caller("asks_a_model", calls=1).model, tools=[asks_a_model]), "go")
    assert run.result(BOUND_S) == "enough"
    assert run.usage.requests == 3
    assert run.usage.input_tokens > 1_000_000


# --- sync tools ---------------------------------------------------------------------------------------


def rungs_of(run: Run) -> list[tuple[Rung, str]]:
    """Return the rungs that the ladder used, with what it says of them."""
    return [(e.data.rung, e.data.note) for e in run.events() if isinstance(e.data, ev.CancelEscalated)]


def test_a_sync_tool_has_a_thread_of_its_own(session: NotebookSession) -> None:
    """There the run is the current one, prints go to its log, and its thread is nbrun's."""

    def measure() -> str:
        """Measure."""
        print("measuring")
        run = nbrun.current()
        run.phase("measuring")
        return threading.current_thread().name

    run = session.start(Agent(Caller("measure", calls=1).model, tools=[measure]), "go")
    assert run.result(BOUND_S) == "enough"
    (tool,) = run.record.tools
    assert (tool.status, tool.result) == ("ok", f"nbrun-agent-{run.id}")
    assert run.phase == "measuring"
    logs = [event.data.text for event in run.events() if isinstance(event.data, ev.Log)]
    assert logs == ["measuring"]


def test_a_sync_tool_that_fails_fails_as_ever(session: NotebookSession) -> None:
    """Its error is the run's."""

    def breaks() -> str:
        """Break."""
        raise ValueError("no luck")

    run = session.start(Agent(Caller("breaks").model, tools=[breaks]), "go")
    assert run.wait(BOUND_S)
    assert run.status is RunStatus.FAILED
    assert "no luck" in str(run.error)


def test_a_cancel_stops_a_sync_tool_that_computes(session: NotebookSession) -> None:
    """After the grace `Cancelled` is raised in its thread; the run has ended only then, with nothing left behind."""
    entered, left = threading.Event(), threading.Event()

    def spins() -> None:
        """Compute for ever."""
        try:
            entered.set()
            while True:
                pass
        finally:
            left.set()

    run = session.start(Agent(Caller("spins").model, tools=[spins]), "go")
    assert entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert left.is_set()
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())
    assert rungs_of(run)[-1] == (Rung.THREAD, "spins")


def test_a_sync_tool_that_looks_at_its_token_needs_no_force(session: NotebookSession) -> None:
    """`sleep()` wakes at the cancel, and no thread is raised into."""
    entered = threading.Event()

    def waits() -> None:
        """Wait for long."""
        entered.set()
        nbrun.current().sleep(60)

    run = session.start(Agent(Caller("waits").model, tools=[waits]), "go")
    assert entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())
    assert rungs_of(run) == [(Rung.NATIVE, "")]


def test_a_sync_tool_that_does_not_stop_is_named(session: NotebookSession) -> None:
    """The run ends cancelled with the tool's name, and the log says when the tool has ended."""
    entered, gate = threading.Event(), threading.Event()

    def blocks() -> str:
        """Wait where Python cannot raise."""
        entered.set()
        gate.wait(BOUND_S * 2)
        return "at last"

    run = session.start(Agent(Caller("blocks").model, tools=[blocks]), "go")
    assert entered.wait(BOUND_S)
    try:
        assert run.cancel().wait(BOUND_S)
        assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ("blocks",))
        assert not any(event.type == ev.DetachedFinished.TYPE for event in run.events())
    finally:
        gate.set()
    assert late_event(run, ev.DetachedFinished).name == "blocks"
    assert run.status is RunStatus.CANCELLED


async def calls_delete(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
    """Call the tool twice at once, then say what came of it."""
    if returned := [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]:
        yield " | ".join(str(part.content) for part in returned)
    else:
        yield {
            number: DeltaToolCall("delete", f'{{"path": "{name}"}}', tool_call_id=f"call-{name}")
            for number, name in enumerate(("a", "b"))
        }


def deleting(deleted: list[str]) -> Agent[None, str]:
    """Return an agent with a tool that requires approval."""

    async def delete(path: str) -> str:
        """Delete a file."""
        deleted.append(path)
        return f"deleted {path}"

    return agent_on(calls_delete, tools=[Tool(delete, requires_approval=True)])


def test_a_tool_that_requires_approval_asks_a_person(session: NotebookSession) -> None:
    """One is denied with a word to the model, one is allowed with other arguments; both are rows of tools."""
    deleted: list[str] = []
    run = session.start(deleting(deleted), "clean up")
    asked = asking(run, 2)
    assert [(one.message, one.tool_id, one.args) for one in asked] == [
        ("Use delete?", "call-a", {"path": "a"}),
        ("Use delete?", "call-b", {"path": "b"}),
    ]
    run.deny(about(run, "call-a"), "keep that one")
    run.approve(about(run, "call-b"), args={"path": "c"})
    assert run.result(BOUND_S) == "keep that one | deleted c"
    assert deleted == ["c"]
    assert [(tool.id, tool.status) for tool in run.record.tools] == [("call-a", "denied"), ("call-b", "ok")]


def test_a_policy_answers_for_the_tools_of_a_model(session: NotebookSession) -> None:
    """`--approve auto` uses them all, `--approve deny` none."""
    deleted: list[str] = []
    assert session.start(deleting(deleted), "", approve="deny").wait(BOUND_S)
    assert deleted == []
    run = session.start(deleting(deleted), "", approve="auto")
    assert run.result(BOUND_S) == "deleted a | deleted b"
    assert sorted(deleted) == ["a", "b"]


def test_a_cancel_while_a_model_waits_for_approval(session: NotebookSession) -> None:
    """The native cancel is enough, and nothing is used."""
    deleted: list[str] = []
    run = session.start(deleting(deleted), "clean up")
    asking(run, 2)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.error, deleted) == (RunStatus.CANCELLED, None, [])
    rungs = [e.data.rung for e in run.events() if isinstance(e.data, ev.CancelEscalated)]
    assert rungs == [Rung.NATIVE]
    assert {tool.status for tool in run.record.tools} <= {"cancelled", "error"}


def test_no_clear_arguments_are_no_permission(session: NotebookSession) -> None:
    """What a person gave is no object: that is told at once, and the tool is not used."""
    deleted: list[str] = []
    run = session.start(deleting(deleted), "clean up")
    asking(run, 2)
    with pytest.raises(BadOption, match="must stay an object"):
        run.approve(about(run, "call-a"), args="everything")
    run.deny(about(run, "call-a"))
    run.deny(about(run, "call-b"))
    assert run.wait(BOUND_S)
    assert deleted == []


def test_a_tool_of_a_model_is_allowed_for_the_rest_of_its_run(session: NotebookSession) -> None:
    """It is asked for no more, by the name that the model calls it."""
    deleted: list[str] = []
    run = session.start(deleting(deleted), "clean up")
    asking(run, 2)
    run.approve(about(run, "call-b"), always=True)
    assert run.result(BOUND_S) == "deleted a | deleted b"
    assert run.record.always == ("delete",)


# --- going on with it ---------------------------------------------------------------------------------


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended: {run.record}"
    return run


def returned(messages: list[ModelMessage]) -> dict[str, tuple[str, str]]:
    """Return what each call has given, as the model sees it: outcome and content."""
    parts = [part for message in messages for part in message.parts]
    return {part.tool_call_id: (part.outcome, str(part.content)) for part in parts if isinstance(part, ToolReturnPart)}


class Busy:
    """An agent whose model calls several tools at once; each is at another point when its run is cancelled."""

    def __init__(self) -> None:
        self.seen: list[list[ModelMessage]] = []
        self.cleaned: list[str] = []
        self.entered = threading.Event()
        tools: list[Any] = [self.quick, self.endless, Tool(self.clean, requires_approval=True)]
        model = FunctionModel(stream_function=self.stream)
        self.agent = Agent(model, name="busy", tools=tools, system_prompt="be brief")

    async def stream(
        self, messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        """Call the tools, then say that all is done."""
        self.seen.append(messages)
        if len(messages) > 1:
            yield "done"
            return
        for number, (tool, args) in enumerate(
            (("quick", "{}"), ("clean", '{"what": "a"}'), ("clean", '{"what": "b"}'))
        ):
            yield {number: DeltaToolCall(tool, args, tool_call_id=f"call-{number}")}
        if messages[0].parts[-1].content == "endless":  # type: ignore[union-attr]
            yield {3: DeltaToolCall("endless", "{}", tool_call_id="call-3")}

    async def quick(self) -> object:
        """Return at once what is no data."""
        return {"lock": threading.Lock()}

    async def endless(self) -> None:
        """Wait for ever."""
        self.entered.set()
        await asyncio.Event().wait()

    async def clean(self, what: str) -> str:
        """Clean."""
        self.cleaned.append(what)
        return f"cleaned {what}"


def test_what_was_open_is_asked_again_or_told_as_interrupted(session: NotebookSession) -> None:
    """Of one response: a result that was there, two questions that were open; nothing is called twice."""
    busy = Busy()
    run = session.start(busy.agent, "tidy up")
    asking(run, 2)
    run.cancel()
    assert ended(run).status is RunStatus.CANCELLED
    again = run.resume()
    asking(again, 2)
    again.cancel()
    assert (ended(again).status, again.error) == (RunStatus.CANCELLED, None)
    resumed = again.resume()
    assert [one.args for one in asking(resumed, 2)] == [{"what": "a"}, {"what": "b"}]
    resumed.deny(about(resumed, "call-1"), "leave it")
    resumed.approve(about(resumed, "call-2"), args={"what": "c"})
    assert resumed.result(BOUND_S) == "done"
    assert busy.cleaned == ["c"]
    assert len(busy.seen) == 2
    results = returned(busy.seen[-1])
    assert results["call-0"][0] == "success"
    assert results["call-1"] == ("denied", "leave it")
    assert results["call-2"] == ("success", "cleaned c")
    system = [part for message in busy.seen[-1] for part in message.parts if part.part_kind == "system-prompt"]
    assert len(system) == 1
    assert [(t.id, t.status) for t in resumed.record.tools] == [("call-1", "denied"), ("call-2", "ok")]


def test_a_call_that_was_cut_off_is_not_made_again(session: NotebookSession) -> None:
    """The model hears that it was interrupted; a result of the same response is kept beside it."""
    busy = Busy()
    run = session.start(busy.agent, "endless")
    assert busy.entered.wait(BOUND_S)
    until(run, lambda record: any(t.id == "call-0" and t.status == "ok" for t in record.tools))
    run.cancel()
    resumed = ended(run).resume()
    assert resumed.result(BOUND_S) == "done"
    results = returned(busy.seen[-1])
    assert results["call-0"][0] == "success"
    for tool_id in ("call-1", "call-2", "call-3"):
        assert results[tool_id] == ("interrupted", INTERRUPTED)
    assert busy.cleaned == []
    assert [tool.id for tool in resumed.record.tools] == []


def test_a_state_of_another_version_is_refused_in_a_line(session: NotebookSession) -> None:
    """The run fails with what to do instead, and not with what a validator has to say."""
    run = ended(session.start(agent_on(breaks_at_once), "go"))
    resumed = run.resume(agent=agent_on(says_tea))
    assert resumed.result(BOUND_S) == "Steam from the cup"

    async def keeps_another(prompt: str, run: nbrun.RunContext) -> None:
        run.checkpoint({"messages": "[{}]", "open": [], "asking": []})
        raise ValueError("over")

    run = ended(session.start(keeps_another))
    failed = ended(run.resume(agent=agent_on(says_tea)))
    assert failed.status is RunStatus.FAILED
    assert "another version of pydantic-ai; retry starts it again" in str(failed.error)


async def breaks_at_once(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
    """Raise."""
    raise ValueError("model is gone")
    yield ""


def test_what_is_said_during_the_last_answer_has_another(session: NotebookSession) -> None:
    """The model would end; a message that came meanwhile makes it go on, and both answers are there."""
    gates: list[Callable[[], object]] = []

    async def answers(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        if len(messages) > 1:
            yield f"and {messages[-1].parts[-1].content}"  # type: ignore[union-attr]
            return
        loop, gate = asyncio.get_running_loop(), asyncio.Event()
        gates.append(lambda: loop.call_soon_threadsafe(gate.set))
        yield "tea "
        await gate.wait()

    run = session.start(agent_on(answers), "what?")
    until(run, lambda record: record.text == "tea ")
    run.steer("sugar")
    until(run, lambda record: record.steers == 1)
    gates[0]()
    assert run.result(BOUND_S) == "and sugar"
    assert run.text == "tea \n\nand sugar"
    assert run.record.steers_taken == 1


def test_what_was_said_is_not_lost_by_a_cancel(session: NotebookSession) -> None:
    """A message that the model had before it when its run was cancelled is there for the one that goes on."""
    answering = threading.Event()

    async def answers(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | Calls]:
        if len(messages) == 1:
            yield {0: DeltaToolCall("listens", "{}", tool_call_id="call-1")}
            return
        said = [p.content for m in messages for p in m.parts if p.part_kind == "user-prompt"]
        if nbrun.current().restored is None:
            answering.set()
            await asyncio.Event().wait()
        yield f"{said}"

    async def listens() -> None:
        await nbrun.current().ask("Go on?")

    run = session.start(agent_on(answers, tools=[listens]), "tea?")
    asking(run)
    run.steer("sugar")
    run.approve()
    assert answering.wait(BOUND_S)
    run.cancel()
    assert ended(run).resume().result(BOUND_S) == "['tea?', 'sugar']"


def test_a_question_outlives_its_kernel(make_session: MakeSession, store_path: Path) -> None:
    """The kernel is killed while it asks; here the run goes on, asks once more and uses the tool once."""
    store_path.parent.mkdir(parents=True)
    kernel = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.killed_asking", str(store_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with kernel:
        assert kernel.stdout is not None
        assert kernel.stdout.readline() == "asking\n"
        kernel.kill()
    session = make_session()
    lost = session.get("run-killed-0")
    assert lost.status is RunStatus.LOST
    resumed = lost.resume(agent=PydanticAI().agent(SCENARIOS["asks half way"]))
    (asked,) = asking(resumed)
    assert asked.args == {"path": "a"}
    resumed.approve()
    assert resumed.result(BOUND_S) == "it is 5 | deleted a"
    assert log.told(resumed, "added") == []
    assert log.told(resumed, "deleted") == ["a"]
