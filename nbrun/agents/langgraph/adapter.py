"""Compiled graphs of LangGraph: the text of their models, tools, nodes and usage, as events.

`%%agentrun graph` takes any compiled graph whose state has `messages`: the prompt is a human message, and the text of
the last message is the output. If the graph has another single input, the prompt is that input; if it has several,
the prompt is a JSON object. The output is then the graph's state.

`interrupt(value)` asks the user. If the value has the form of LangChain's human-in-the-loop middleware
(`action_requests`) or of a `HumanInterrupt`, so has the answer; otherwise the answer is the edited arguments, the
user's text, or True, and False if denied. A breakpoint of the graph asks whether to continue.

With a checkpointer, a run resumes in its own thread: LangGraph starts the node that was stopped again. Without one,
it starts over from the messages: a tool that was stopped is reported to the model as interrupted, and the model has
to ask again for what the user had not answered. Messages to the run are added between two nodes.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from nbrun.agents import (
    NO_NATIVE_CANCEL,
    BadOption,
    Framework,
    FrameworkAdapter,
    Items,
    Limitations,
    Output,
    RunContext,
    State,
    json_object,
    provider_retries,
)

MESSAGES = "messages"
# In the mode `messages`, all models stream; their text comes through the callbacks.
_MODES = ["messages", "tools", "custom", "values"]


class LangGraphAdapter(FrameworkAdapter):
    """Drives a `CompiledStateGraph`."""

    name = "langgraph"
    agent_class = ("langgraph.graph.state", "CompiledStateGraph")
    default_label = "graph"
    framework = Framework("langgraph", "langgraph")
    limitations = Limitations(
        native_cancel=NO_NATIVE_CANCEL, process="a compiled graph can't be pickled; compile it inside an async function"
    )

    async def events(self, agent: Any, prompt: str, run: RunContext) -> Items:
        """Yield what the graph does, with the conversation of earlier runs before the prompt."""
        from nbrun.agents.langgraph import resume

        checkpoint = resume.Checkpoint(run, agent)
        names = list(agent.builder.schemas.get(agent.builder.input_schema, {}))
        if MESSAGES in names:
            before = [] if checkpoint.has_own_thread else resume.as_messages(run.history)
            graph_input: Any = {MESSAGES: [*before, *resume.user_messages([prompt])]}
        else:
            graph_input = _object(names, prompt)
        checkpoint.save_thread()
        async for item in _driven(graph_input, checkpoint):
            yield item

    async def resume(self, agent: Any, state: State, run: RunContext) -> Items:
        """Yield what the graph does from there on; open questions are asked again."""
        from nbrun.agents.langgraph import resume

        checkpoint = resume.Checkpoint(run, agent)
        graph_input = await checkpoint.restore(state)
        run.checkpoint(state)  # in case it stops before it saves its own
        async for item in _driven(graph_input, checkpoint):
            yield item


ADAPTER = LangGraphAdapter()


async def _driven(graph_input: Any, checkpoint: Any) -> Items:
    """Yield what the graph does; after each stop for the user or for messages, in another stream."""
    from langgraph.errors import GraphDrained
    from langgraph.runtime import RunControl

    from nbrun.agents.langgraph import interrupts, resume
    from nbrun.agents.langgraph.callbacks import Callbacks, Gate

    provider_retries.listen()
    run, graph = checkpoint.run, checkpoint.graph
    callbacks = Callbacks(run, checkpoint)
    config = checkpoint.config(callbacks, Gate(run, callbacks))
    takes_messages = _adds_messages(graph)
    while True:
        is_drained = False
        snapshot = await graph.aget_state(config) if graph_input is None else None
        if snapshot is not None and snapshot.interrupts:
            graph_input = await interrupts.answered(run, snapshot.interrupts, callbacks)
        callbacks.control = RunControl() if takes_messages else None
        try:
            stream = graph.astream(graph_input, config, stream_mode=_MODES, control=callbacks.control)
            async with aclosing(stream) as parts:
                async for mode, part in parts:
                    for item in callbacks.map(mode, part):
                        yield item
        except GraphDrained:  # by the callbacks, because there is a message
            is_drained = True
        graph_input, snapshot = None, await graph.aget_state(config)
        if snapshot.interrupts:
            continue
        if is_drained:
            messages = snapshot.values.get(MESSAGES)
            # After a message that calls tools, their results must come first.
            if not (messages and getattr(messages[-1], "tool_calls", None)):
                added = {MESSAGES: resume.user_messages(run.inbox.take())}
                await graph.aupdate_state(config, added, as_node=callbacks.node)
        elif snapshot.next:
            if not await run.ask(f"Continue with {', '.join(snapshot.next)}?"):
                yield Output(_output(graph, snapshot.values))
                return
        elif takes_messages and (texts := run.inbox.take()):
            graph_input = {MESSAGES: resume.user_messages(texts)}
        else:
            yield Output(_output(graph, snapshot.values))
            return


def _object(names: list[str], prompt: str) -> Any:
    given = json_object(prompt)
    if given is not None and set(given) <= set(names):
        return given
    if len(names) == 1:
        return {names[0]: prompt}
    words = ", ".join(names)
    raise BadOption(f"this graph takes {words}: give a JSON object with these as the prompt")


def _adds_messages(graph: Any) -> bool:
    """Return whether messages can be added to the graph's; without a reducer, they would replace them."""
    channel = graph.channels.get(MESSAGES)
    return hasattr(channel, "operator") or hasattr(channel, "reducer")


def _output(graph: Any, values: Any) -> object:
    found = {name: values[name] for name in graph.output_channels if name in values}
    if not found.get(MESSAGES):
        return found
    if found.get("structured_response") is not None:
        return found["structured_response"]
    return str(found[MESSAGES][-1].text)
