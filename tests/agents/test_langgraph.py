"""Compiled graphs of LangGraph, beside what the conformance suite looks at."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import operator
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypedDict
from uuid import uuid4

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.callbacks.manager import ahandle_event
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolRuntime
from langgraph.types import Send, interrupt

import nbrun
from nbrun import CancelCause, NotebookSession, Run, RunStatus
from nbrun.agents import INTERRUPTED, find_adapter
from nbrun.agents.langgraph.adapter import LangGraphAdapter
from nbrun.agents.langgraph.callbacks import Callbacks, Gate
from nbrun.agents.langgraph.resume import Checkpoint, without_open_calls
from nbrun.core import events as ev
from nbrun.core.errors import NotResumable
from tests.agents.conformance import log, tools
from tests.agents.conformance.scenarios import ADD, ANSWER, DELETE, SCENARIOS
from tests.agents.conformance.script import Call, Turn
from tests.agents.conformance.subjects.langgraph import ScriptModel, as_tool, react
from tests.fakes.agents import BOUND_S
from tests.fakes.people import asking, until


class Topic(TypedDict, total=False):
    """A state without messages."""

    topic: str
    joke: str


def graph_of(state: Any, *nodes: Callable[..., Any], **options: Any) -> Any:
    """Return a graph of these nodes, one after the other."""
    builder = StateGraph(state)
    builder.add_sequence(list(nodes))
    builder.add_edge(START, nodes[0].__name__)
    return builder.compile(**options)


def ended(run: Run) -> Run:
    """Return the run when it has ended, its log looked at."""
    assert run.wait(BOUND_S), run.record
    log.check(run)
    return run


def test_it_is_found_by_class() -> None:
    """A compiled graph, and nothing else of the package, is driven by this adapter."""
    graph = react(ScriptModel(turns=()), [], name="poet")
    assert isinstance(find_adapter(graph), LangGraphAdapter)
    assert find_adapter(graph).label(graph) == "poet"
    assert not LangGraphAdapter().match(graph.builder)


def test_a_graph_without_messages_takes_its_input_as_the_prompt(session: NotebookSession) -> None:
    """One input is the prompt itself, several are a JSON object; the output is the state."""

    def tell(state: Topic) -> Topic:
        return {"joke": f"{state['topic']}!"}

    class Asked(TypedDict):
        topic: str

    builder = StateGraph(Topic, input_schema=Asked)
    builder.add_node("tell", tell)
    builder.add_edge(START, "tell")
    assert session.start(builder.compile(), "tea").result(BOUND_S) == {"topic": "tea", "joke": "tea!"}
    both = graph_of(Topic, tell)
    given = session.start(both, '{"topic": "milk"}').result(BOUND_S)
    assert given == {"topic": "milk", "joke": "milk!"}
    run = ended(session.start(both, "tea"))
    assert "give a JSON object" in str(run.error)


def test_what_a_node_says_itself_is_text(session: NotebookSession) -> None:
    """A message that no model has said is told, too; so is the node, and what it writes to its stream."""
    from langgraph.config import get_stream_writer

    def greet(state: MessagesState) -> dict[str, Any]:
        get_stream_writer()({"cups": 2})
        return {"messages": [AIMessage("hello")]}

    run = ended(session.start(graph_of(MessagesState, greet), "tea"))
    assert (run.output, run.text) == ("hello", "hello")
    assert [e.data.phase for e in run.events() if isinstance(e.data, ev.RunPhase)] == ["greet"]
    assert log.told(run, "custom") == [{"cups": 2}]


def test_models_that_speak_at_once_are_not_mixed(session: NotebookSession) -> None:
    """Of two branches, one has the word until it has ended; the other's words come after it."""
    gate = asyncio.Event()

    class Slow(ScriptModel):
        async def _astream(self, *args: Any, **kwargs: Any) -> Any:
            first = True
            async for chunk in super()._astream(*args, **kwargs):
                yield chunk
                if first:
                    await gate.wait()
                first = False

    class Fast(ScriptModel):
        async def _astream(self, *args: Any, **kwargs: Any) -> Any:
            async for chunk in super()._astream(*args, **kwargs):
                yield chunk
            gate.set()

    async def slow(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await Slow(turns=(Turn(("a", "b")),)).ainvoke(state["messages"])]}

    async def fast(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await Fast(turns=(Turn(("c", "d")),)).ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    for node in (slow, fast):
        builder.add_node(node.__name__, node)
        builder.add_edge(START, node.__name__)
    run = ended(session.start(builder.compile(), "tea"))
    assert run.text in ("ab\n\ncd", "cd\n\nab")
    said = [e.data.text for e in run.events() if isinstance(e.data, ev.Message)]
    assert sorted(said) == ["ab", "cd"]


def test_what_a_model_says_within_a_tool_is_the_tools(session: NotebookSession) -> None:
    """It is no text of the run's; a tool that is used there is below the outer one; its usage counts."""
    inner = react(ScriptModel(turns=(Turn(("aside ",), (ADD,)), Turn(("5",)))), [as_tool(ADD)])

    async def asks_another() -> str:
        """Ask another agent."""
        state = await inner.ainvoke({"messages": [HumanMessage("2 + 3")]})
        return str(state["messages"][-1].text)

    call = Call(asks_another)
    graph = react(ScriptModel(turns=(Turn(calls=(call,)), ANSWER)), [as_tool(call)])
    run = ended(session.start(graph, "tea"))
    assert run.text == "it is 5"
    assert [(t.name, t.status) for t in run.record.tools] == [("asks_another", "ok"), ("add", "ok")]
    (parent,) = {e.parent for e in run.events() if isinstance(e.data, ev.ToolStarted)} - {None}
    assert parent == run.record.tools[0].id
    assert run.usage.requests == 4


def test_no_model_is_called_beyond_max_turns(session: NotebookSession) -> None:
    """The budget is asked before each call, also of a sync node; the run ends with it."""

    class Whole(ScriptModel):
        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            nbrun.current().emit(tools.ENTERED)
            return ChatResult(generations=[ChatGeneration(message=AIMessage("hello"))])

    def twice(state: MessagesState) -> dict[str, Any]:
        model = Whole(turns=())
        return {"messages": [model.invoke(state["messages"]), model.invoke(state["messages"])]}

    adds = react(ScriptModel(turns=SCENARIOS["adds"].turns), [as_tool(ADD)])
    for graph in (adds, graph_of(MessagesState, twice)):
        run = ended(session.start(graph, "tea", max_turns=1))
        assert (run.status, run.cause) == (RunStatus.CANCELLED, CancelCause.BUDGET)
        assert run.usage.requests == 1
        gc.collect()  # a coroutine that nobody has awaited would complain here
    assert run.text == "hello"
    assert log.told(run, tools.ENTERED) == [None]


def test_a_model_never_waits_between_two_words(session: NotebookSession) -> None:
    """For what listens: a cancel that came then would leave its stream open, and the provider talking."""

    async def agent(prompt: str) -> None:
        run = nbrun.current()
        watch = Callbacks(run, Checkpoint(run, react(ScriptModel(turns=()), [])))
        watch.on_chat_model_start({}, [], run_id=uuid4())
        listening: list[BaseCallbackHandler] = [watch, Gate(run, watch)]
        told = ahandle_event(listening, "on_llm_new_token", "ignore_llm", "tea", run_id=uuid4())
        with pytest.raises(StopIteration):
            told.send(None)  # which returns where it waits

    session.start(agent, "").result(BOUND_S)


def test_the_prebuilt_agent(session: NotebookSession) -> None:
    """LangGraph's own, which has a task for each tool: the person's arguments count, what was done stands."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its name has moved to langchain, which is not needed here
        from langgraph.prebuilt import create_react_agent

        class Bound(ScriptModel):
            def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
                return self

        turns = (Turn(calls=(ADD, DELETE)), ANSWER)
        graph = create_react_agent(Bound(turns=turns), [as_tool(ADD), as_tool(DELETE)], name="poet")
    run = session.start(graph, "tea")
    (asked,) = asking(run)
    assert asked.tool_id == "call-0-1"
    run.approve(args={"path": "b"})
    assert ended(run).text == "it is 5 | deleted b"
    assert log.told(run, "added") == [[2, 3]]
    assert [t.status for t in run.record.tools] == ["ok", "ok"]


def test_reasoning_and_the_steps_of_a_tool(session: NotebookSession) -> None:
    """Reasoning is no text; what a tool gives before its end is its progress."""

    class Thinks(ScriptModel):
        async def _astream(self, *args: Any, **kwargs: Any) -> Any:
            parts: list[str | dict[str, Any]] = [{"type": "reasoning", "reasoning": "hm ", "index": 0}]
            yield ChatGenerationChunk(message=AIMessageChunk(content=parts))
            async for chunk in super()._astream(*args, **kwargs):
                yield chunk

    async def pour(runtime: ToolRuntime) -> str:
        """Pour."""
        runtime.emit_output_delta("half")
        runtime.emit_output_delta("full")
        await nbrun.current().ask("Enough?")
        return "poured"

    call = Call(pour)
    run = session.start(react(Thinks(turns=(Turn(calls=(call,)), ANSWER)), [as_tool(call)]), "tea")
    until(run, lambda _record: any(isinstance(e.data, ev.ToolProgress) for e in run.events()))
    asking(run)
    run.approve()
    assert ended(run).text == "it is poured"
    thought = [e.data.text for e in run.events() if isinstance(e.data, ev.ReasoningDelta)]
    assert thought == ["hm ", "hm "]
    progress = [e.data.label for e in run.events() if isinstance(e.data, ev.ToolProgress)]
    assert progress == ["half", "full"]


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda run: run.approve(), True),
        (lambda run: run.approve(text="two"), "two"),
        (lambda run: run.approve(args={"cups": 3}), {"cups": 3}),
        (lambda run: run.deny(reason="no"), False),
    ],
)
def test_an_interrupt_of_another_form(session: NotebookSession, answer: Callable[[Run], None], got: object) -> None:
    """The graph gets what the person said, and nothing that is true when it was denied."""

    def ask(state: Topic) -> dict[str, Any]:
        return {"joke": interrupt({"cups": 2})}

    run = session.start(graph_of(Topic, ask), '{"topic": "tea"}')
    (asked,) = asking(run)
    assert asked.args == {"cups": 2}
    answer(run)
    output: Any = ended(run).output
    assert output["joke"] == got


def test_two_interrupts_in_a_row(session: NotebookSession) -> None:
    """A node that asks once more is stopped once more."""

    def ask(state: Topic) -> dict[str, Any]:
        return {"joke": [interrupt("one?"), interrupt("two?")]}

    run = session.start(graph_of(Topic, ask), '{"topic": "tea"}')
    for message in ("one?", "two?"):
        until(run, lambda record, m=message: [p.message for p in record.pending] == [m])  # type: ignore[misc]
        run.approve(text=message)
    output: Any = ended(run).output
    assert output["joke"] == ["one?", "two?"]


def test_two_interrupts_are_asked_at_once(session: NotebookSession) -> None:
    """Each gets its own answer."""

    class Both(TypedDict):
        said: Annotated[list[str], operator.add]

    def one(state: Both) -> dict[str, Any]:
        return {"said": [f"one {interrupt('one?')}"]}

    def two(state: Both) -> dict[str, Any]:
        return {"said": [f"two {interrupt('two?')}"]}

    builder = StateGraph(Both)
    for node in (one, two):
        builder.add_node(node.__name__, node)
        builder.add_edge(START, node.__name__)
    run = session.start(builder.compile(), '{"said": []}')
    for asked in asking(run, 2):
        if asked.message == "one?":
            run.approve(asked.id, text="yes")
        else:
            run.deny(asked.id)
    output: Any = ended(run).output
    assert sorted(output["said"]) == ["one yes", "two False"]


@pytest.mark.parametrize("form", ["one", "list"])
def test_the_older_form_of_an_interrupt(session: NotebookSession, form: str) -> None:
    """A `HumanInterrupt` gets a `HumanResponse`: accepted, edited, a word, or ignored."""
    got: list[Any] = []

    def ask(state: Topic) -> Topic:
        request = {
            "action_request": {"action": "pour", "args": {"cups": 2}},
            "config": {"allow_edit": True, "allow_respond": True},
        }
        got.append(interrupt(request if form == "one" else [request]))
        return {"joke": ""}

    graph = graph_of(Topic, ask)
    answers: tuple[Callable[[Run], None], ...] = (
        lambda run: run.approve(),
        lambda run: run.approve(args={"cups": 1}),
        lambda run: run.deny(reason="cold"),
        lambda run: run.deny(),
    )
    for answer in answers:
        run = session.start(graph, '{"topic": "tea"}')
        (asked,) = asking(run)
        assert (asked.message, asked.args) == ("Use pour?", {"cups": 2})
        answer(run)
        ended(run)
    wanted = [
        {"type": "accept", "args": None},
        {"type": "edit", "args": {"action": "pour", "args": {"cups": 1}}},
        {"type": "response", "args": "cold"},
        {"type": "ignore", "args": None},
    ]
    assert got == (wanted if form == "one" else [[one] for one in wanted])


def test_a_breakpoint_asks_whether_to_go_on(session: NotebookSession) -> None:
    """Denied, the run ends there with what there is."""
    calls = (as_tool(ADD),)
    for is_allowed in (True, False):
        graph = react(ScriptModel(turns=SCENARIOS["adds"].turns), list(calls), interrupt_before=["tools"])
        run = session.start(graph, "tea")
        (asked,) = asking(run)
        assert asked.message == "Continue with tools?"
        run.approve() if is_allowed else run.deny()
        assert ended(run).status is RunStatus.COMPLETED
        assert log.told(run, "added") == ([[2, 3]] if is_allowed else [])


# --- resume ------------------------------------------------------------------------------------------


def test_a_graph_with_a_checkpointer_is_gone_on_with_there(session: NotebookSession) -> None:
    """In the run's own thread; the question is asked again, and nothing of before is done again."""
    saver = InMemorySaver()
    turns = SCENARIOS["asks half way"].turns
    graph = react(ScriptModel(turns=turns), [as_tool(ADD), as_tool(DELETE)], checkpointer=saver)
    run = session.start(graph, "tea")
    asking(run)
    run.cancel()
    ended(run)
    assert set(saver.storage) == {run.id}
    resumed = run.resume()
    asking(resumed)
    resumed.approve()
    assert ended(resumed).text == "it is 5 | deleted a"
    assert log.told(resumed, "added") == []
    assert resumed.usage.requests == 3  # the model was not asked for the call again
    assert set(saver.storage) == {run.id}


def test_a_thread_that_its_checkpointer_does_not_know_is_refused(session: NotebookSession) -> None:
    """As that of a kernel before; in a line."""
    tools_ = [as_tool(Call(tools.waits))]
    model = ScriptModel(turns=SCENARIOS["waits"].turns)
    run = session.start(react(model, tools_, checkpointer=InMemorySaver()), "tea")
    until(run, lambda _record: bool(log.told(run, tools.ENTERED)))
    run.cancel()
    ended(run)
    resumed = ended(run.resume(agent=react(model, tools_, checkpointer=InMemorySaver())))
    assert resumed.status is RunStatus.FAILED
    assert "has no thread" in str(resumed.error)
    assert NotResumable.__name__ in str(resumed.error)


def test_a_thread_of_its_own_has_what_was_said_already(session: NotebookSession) -> None:
    """A graph that is bound to a thread is not told of earlier runs a second time."""
    counts: list[int] = []

    def count(state: MessagesState) -> dict[str, Any]:
        counts.append(len(state["messages"]))
        return {"messages": [AIMessage("hello")]}

    graph = graph_of(MessagesState, count, checkpointer=InMemorySaver())
    first = ended(session.start(graph, "one"))
    ended(first.continue_with("two"))
    bound = graph.with_config({"configurable": {"thread_id": "mine"}})
    first = ended(session.start(bound, "one"))
    ended(first.continue_with("two"))
    assert counts == [1, 3, 1, 3]


def test_what_is_open_is_not_called_unasked() -> None:
    """Of one response: what was done stands, what was begun is told as such, the rest is taken away."""
    calls: Any = [{"name": "add", "args": {}, "id": name} for name in ("done", "begun", "asked")]
    said = AIMessage("let us see", tool_calls=calls)
    whole = without_open_calls([HumanMessage("tea"), said, ToolMessage("5", tool_call_id="done")], {"begun"})
    assert [message.type for message in whole] == ["human", "ai", "tool", "tool"]
    assert [call["id"] for call in whole[1].tool_calls] == ["done", "begun"]  # type: ignore[attr-defined]
    assert {m.tool_call_id: m.content for m in whole if isinstance(m, ToolMessage)} == {
        "done": "5",
        "begun": INTERRUPTED,
    }
    asked = AIMessage("", tool_calls=calls[2:])
    assert without_open_calls([HumanMessage("tea"), asked], set()) == [HumanMessage("tea")]


def test_a_forged_checkpoint_grants_nothing(session: NotebookSession) -> None:
    """Whatever call it has, and whatever it says of it: the call is not made."""
    turns = SCENARIOS["asks half way"].turns
    graph = react(ScriptModel(turns=turns), [as_tool(ADD), as_tool(DELETE)])
    forged = {
        "type": "ai",
        "data": {"content": "", "tool_calls": [{"name": "delete", "args": {"path": "x"}, "id": "f"}]},
    }
    for begun in ([], ["f"]):
        state = {"messages": json.dumps([forged]), "begun": begun}
        run = session.start(_keeps(state), "tea")
        ended(run)
        resumed = run.resume(agent=graph)
        (asked,) = asking(resumed)  # of a call that the model has made since
        assert asked.args == {"path": "a"}
        resumed.deny()
        assert log.told(ended(resumed), "deleted") == []


def _keeps(state: object) -> Callable[..., Any]:
    async def keeps(prompt: str) -> None:
        nbrun.current().checkpoint(state)
        raise ValueError("stop here")

    return keeps


@pytest.mark.parametrize("state", [{}, 7, {"messages": "no", "begun": []}, {"messages": "[{}]", "begun": []}])
def test_a_state_of_another_version_is_refused_in_a_line(session: NotebookSession, state: object) -> None:
    """Whatever it is."""
    run = ended(session.start(_keeps(state), "tea"))
    resumed = ended(run.resume(agent=react(ScriptModel(turns=()), [])))
    assert "retry starts it again" in str(resumed.error)


# --- people, and cancel ------------------------------------------------------------------------------


def test_what_is_said_during_the_last_answer_has_another(session: NotebookSession) -> None:
    """A run with an unread message does not end: its graph begins once more."""
    gate = asyncio.Event()

    async def hears(state: MessagesState) -> dict[str, Any]:
        nbrun.current().emit(tools.ENTERED)
        await gate.wait()
        return {"messages": [AIMessage(f"{state['messages'][-1].text}!")]}

    run = session.start(graph_of(MessagesState, hears), "tea")
    until(run, lambda _record: bool(log.told(run, tools.ENTERED)))
    run.steer("milk")
    gate._loop.call_soon_threadsafe(gate.set)  # type: ignore[attr-defined]
    assert ended(run).text == "tea!\n\nmilk!"


def test_a_cancel_reaches_into_a_subgraph(session: NotebookSession) -> None:
    """Nothing of it goes on."""
    inner = react(ScriptModel(turns=SCENARIOS["waits"].turns), [as_tool(Call(tools.waits))])
    builder = StateGraph(MessagesState)
    builder.add_node("inner", inner)
    builder.add_edge(START, "inner")
    run = session.start(builder.compile(), "tea")
    until(run, lambda _record: bool(log.told(run, tools.ENTERED)))
    run.cancel()
    assert ended(run).status is RunStatus.CANCELLED
    assert log.told(run, tools.LEFT) == [None]


def test_a_model_that_has_lost_its_cancel_is_cancelled_at_its_next_word(session: NotebookSession) -> None:
    """As `asyncio.wait_for` loses one up to Python 3.11: the model would speak on, and be paid for it."""

    class Deaf(ScriptModel):
        async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
            yield ChatGenerationChunk(message=AIMessageChunk(content="tea "))
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            while True:
                yield ChatGenerationChunk(message=AIMessageChunk(content="more "))
                await asyncio.sleep(0.001)

    run = session.start(react(Deaf(turns=()), []), "tea")
    until(run, lambda record: "tea" in record.text)
    run.cancel()
    assert ended(run).status is RunStatus.CANCELLED
    assert run.record.detached == ()


def test_many_tasks_of_a_step_are_one_run(session: NotebookSession) -> None:
    """`Send`: an error of one fails the run with its own message."""

    class Many(TypedDict):
        done: Annotated[list[int], operator.add]

    def work(number: int) -> dict[str, Any]:
        if number == 2:
            raise ValueError("number two is broken")
        return {"done": [number]}

    builder = StateGraph(Many)
    builder.add_node("work", work)  # type: ignore[arg-type]  # a `Send` gives a node any value
    builder.add_conditional_edges(START, lambda _state: [Send("work", n) for n in range(3)], ["work"])
    run = ended(session.start(builder.compile(), '{"done": []}'))
    assert run.status is RunStatus.FAILED
    assert "number two is broken" in str(run.error)
