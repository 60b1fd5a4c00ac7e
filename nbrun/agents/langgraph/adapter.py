"""Compiled graphs of LangGraph: what their models say, their tools, nodes and usage, as events.

`%%agentrun graph` takes any compiled graph whose state has `messages`: the prompt is the human's message, and what
the last message says is the output. A graph with one other input has the prompt as that; one with several is given a
JSON object, and its output is its state.

| Where it is | What you do | How it ends |
| --- | --- | --- |
| in a model's text, or an async node or tool | any cancel of the run | at once: its tasks are cancelled |
| in a sync node or tool | the same | after the grace period, by an exception in its thread, or named |
| at an `interrupt()`, while a question is open | the same | at once: the question is withdrawn |

`interrupt(value)` asks. A value in the form of LangChain's human-in-the-loop middleware (`action_requests`), or of a
`HumanInterrupt`, gets an answer of that form; any other gets the changed arguments, what the person wrote, or True,
and False when it is denied. A breakpoint of the graph asks whether to go on.

A graph with a checkpointer is gone on with from there, in the run's own thread: LangGraph begins the node that was
stopped anew. One without goes on from its messages alone, at its beginning: a tool that was stopped is told to the
model as interrupted, and what a person had not answered is left to the model to ask for again. What people say while
it runs comes to its messages between two nodes.

Matched by class name; the framework is imported with the first run, which takes seconds.
"""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from nbrun.agents import (
    NO_NATIVE_CANCEL,
    BadOption,
    Framework,
    Limitations,
    Output,
    RunContext,
    State,
    events as ev,
    plain,
    provider_retries,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nbrun.agents.langgraph.callbacks import Callbacks

    Items = AsyncIterator[ev.EventData | Output]

PACKAGE = "langgraph"
MESSAGES = "messages"
# `messages` has models stream that are asked for a whole answer; what they say then comes by the watch.
_MODES = ["messages", "tools", "custom", "values"]


class LangGraphAdapter:
    """Drives a `CompiledStateGraph`.

    Threads: the host's loop; it keeps nothing between two calls.
    """

    name = "langgraph"
    framework = Framework(PACKAGE, "langgraph")
    limitations = Limitations(
        native_cancel=NO_NATIVE_CANCEL,
        process="a compiled graph can't be pickled; compile it inside an async function",
    )

    def match(self, agent: object) -> bool:
        """Return whether the object is a compiled graph of states."""
        return any(
            base.__module__ == "langgraph.graph.state" and base.__name__ == "CompiledStateGraph"
            for base in type(agent).__mro__
        )

    def check(self, agent: object) -> None:
        """Accept any; LangGraph itself reports what its models lack."""

    def label(self, agent: object) -> str:
        """Return the graph's name."""
        return str(getattr(agent, "name", None) or "graph")

    async def events(self, agent: Any, prompt: str, run: RunContext) -> Items:
        """Yield what the graph does, after what was said in the runs that this one continues."""
        from nbrun.agents.langgraph.resume import Memory, as_messages, received

        memory = Memory(run, agent)
        names = _inputs(agent)
        if MESSAGES in names:
            before = [] if memory.has_own_thread else as_messages(run.history)
            begin: Any = {MESSAGES: [*before, *received([prompt])]}
        else:
            begin = _object(names, prompt)
        memory.begin()
        async for item in _driven(begin, memory):
            yield item

    async def resume(self, agent: Any, state: State, run: RunContext) -> Items:
        """Yield what the graph does from there on; a person is asked again about what was not answered."""
        from nbrun.agents.langgraph.resume import Memory

        memory = Memory(run, agent)
        begin = await memory.restore(state)
        run.checkpoint(state)  # in case it stops before it has a checkpoint of its own
        async for item in _driven(begin, memory):
            yield item


ADAPTER = LangGraphAdapter()


async def _driven(begin: Any, memory: Any) -> Items:
    """Yield what the graph does, in as many streams as there are stops for people."""
    from langgraph.errors import GraphDrained
    from langgraph.runtime import RunControl

    from nbrun.agents.langgraph.callbacks import Callbacks, Gate
    from nbrun.agents.langgraph.resume import last_is_open, received

    provider_retries.listen()
    run, graph = memory.run, memory.graph
    watch = Callbacks(run, memory)
    config = memory.config(watch, Gate(run, watch))
    hears = _adds_messages(graph)
    while True:
        is_drained = False
        snapshot = await graph.aget_state(config) if begin is None else None
        if snapshot is not None and snapshot.interrupts:
            from nbrun.agents.langgraph.interrupts import answered

            begin = await answered(run, snapshot.interrupts, watch)
        watch.control = RunControl() if hears else None
        try:
            stream = graph.astream(begin, config, stream_mode=_MODES, control=watch.control)
            async with aclosing(stream) as parts:
                async for mode, part in parts:
                    for item in _mapped(mode, part, watch):
                        yield item
        except GraphDrained:  # the watch has asked for it: somebody has as_messages
            is_drained = True
        begin, snapshot = None, await graph.aget_state(config)
        if snapshot.interrupts:
            continue
        if is_drained:
            if not last_is_open(snapshot.values.get(MESSAGES)):
                said = {MESSAGES: received(run.inbox.take())}
                await graph.aupdate_state(config, said, as_node=watch.node)
        elif snapshot.next:
            if not await run.ask(f"Go on with {', '.join(snapshot.next)}?"):
                yield Output(_output(graph, snapshot.values))
                return
        elif hears and (texts := run.inbox.take()):
            begin = {MESSAGES: received(texts)}
        else:
            yield Output(_output(graph, snapshot.values))
            return


def _mapped(mode: str, part: Any, watch: Callbacks) -> list[ev.EventData]:
    """Return what of a stream's part the watch does not tell."""
    match mode:
        case "messages":
            message, _about = part
            return watch.said_by_node(message)
        case "tools" if part["event"] == "tool-output-delta":
            return watch.progress(part["tool_call_id"], part["delta"])
        case "custom":
            return [ev.Custom("custom", plain(part))]
        case "values" if isinstance(part, dict):
            watch.memory.keep(part.get(MESSAGES))
    return []


def _inputs(graph: Any) -> list[str]:
    """Return the names of what the graph takes."""
    builder = graph.builder
    return list(builder.schemas.get(builder.input_schema, {}))


def _object(names: list[str], prompt: str) -> Any:
    try:
        given = json.loads(prompt)
    except ValueError:
        given = None
    if isinstance(given, dict) and set(given) <= set(names):
        return given
    if len(names) == 1:
        return {names[0]: prompt}
    raise BadOption(
        f"this graph takes {', '.join(names)}: give a JSON object with these as the prompt"
    )


def _adds_messages(graph: Any) -> bool:
    """Return whether a message can be added to the graph's, which a channel without a reducer would replace."""
    channel = graph.channels.get(MESSAGES)
    return hasattr(channel, "operator") or hasattr(channel, "reducer")


def _output(graph: Any, values: Any) -> object:
    names = graph.output_channels
    found = {name: values[name] for name in names if name in values}
    if not found.get(MESSAGES):
        return found
    if found.get("structured_response") is not None:
        return found["structured_response"]
    return str(found[MESSAGES][-1].text)
