"""What a run of a LangGraph graph is gone on from: the thread of its checkpointer, or else its messages.

A graph without a checkpointer gets one for the time of its run, which keeps the very objects: without any, LangGraph
could not go on after an `interrupt()`.

Imported when a run begins, for it imports the framework.
"""

from __future__ import annotations

import json
from collections import defaultdict
from copy import copy
from typing import TYPE_CHECKING, Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    ToolMessage,
    convert_to_messages,
    message_to_dict,
    messages_from_dict,
)
from langchain_core.runnables.config import merge_configs
from langgraph.checkpoint.memory import InMemorySaver

from nbrun.agents import USER, NotResumable, RunContext, State, Turn, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


INTERRUPTED = "The tool call was interrupted; how far it got is unknown."


class _Objects:
    """Keeps what a checkpointer is given as it is: nothing has to be writable, and nothing is read from bytes.

    But for what holds it: LangGraph changes a checkpoint that it has given away.
    """

    def dumps_typed(self, obj: Any) -> tuple[str, Any]:
        return "object", _copied(obj, DEPTH)

    def loads_typed(self, data: tuple[str, Any]) -> Any:
        return _copied(data[1], DEPTH)


DEPTH = 4
"""How deep values are stored in a checkpoint."""


def _copied(value: Any, depth: int) -> Any:
    if depth == 0 or type(value) not in (dict, defaultdict, list):
        return value
    made = copy(value)
    for key in range(len(made)) if isinstance(made, list) else list(made):
        made[key] = _copied(made[key], depth - 1)
    return made


class Memory:
    """Keeps a run's thread, or its messages, as its checkpoint.

    Threads: `begin_tool()`, `keep_result()` from any of the graph's; the rest of the loop that it is on.
    """

    def __init__(self, run: RunContext, graph: Any) -> None:
        self.run = run
        bound = (graph.config or {}).get("configurable", {}).get("thread_id")
        self.has_own_thread = bool(bound and graph.checkpointer)
        self._is_kept = bool(graph.checkpointer)
        self._thread = str(bound) if self.has_own_thread else run.run_id
        if not self._is_kept:
            graph = graph.copy({"checkpointer": InMemorySaver(serde=_Objects())})
        self.graph = graph
        self._messages: list[BaseMessage] = []
        self._begun: tuple[str, ...] = ()
        self._results: tuple[ToolMessage, ...] = ()

    def config(self, *callbacks: Any) -> Any:
        """Return the configuration of the run, with what the graph has of its own."""
        mine = {"configurable": {"thread_id": self._thread}, "callbacks": list(callbacks)}
        return merge_configs(self.graph.config, mine)  # type: ignore[arg-type]

    def begin(self) -> None:
        """Take note of the thread, before anything is done in it."""
        if self._is_kept:
            self.run.checkpoint({"thread": self._thread})

    def keep(self, messages: Any) -> None:
        """Take all messages there are, after a step of the graph."""
        if self._is_kept or not isinstance(messages, list):
            return
        self._messages = convert_to_messages(messages)
        self._begun, self._results = (), ()
        self._save()

    def begin_tool(self, tool_id: str) -> None:
        """Take that a tool is entered: from here on nobody knows how far it came."""
        self._begun = (*self._begun, tool_id)
        self._save()

    def pause_tool(self, tool_id: str) -> None:
        """Take that a tool waits for a person: it begins anew when there is an answer."""
        self._begun = tuple(begun for begun in self._begun if begun != tool_id)
        self._save()

    def keep_result(self, result: Any) -> None:
        """Take the result of a tool, where others of the same response are still to come."""
        if isinstance(result, ToolMessage):
            self._results = (*self._results, result)
            self._save()

    def _save(self) -> None:
        if self._is_kept or not self._messages:
            return
        messages = [*self._messages, *self._results]
        text = json.dumps([plain(message_to_dict(message)) for message in messages])
        self.run.checkpoint({"messages": text, "begun": list(self._begun)})

    async def restore(self, state: State) -> Any:
        """Return what to go on with: None for a thread that the checkpointer knows.

        Raises
        ------
        NotResumable
            It does not, or another version of LangGraph has kept the messages.
        """
        kept: Any = state
        try:
            if "thread" in kept:
                self._thread = str(kept["thread"])
                return await self._known_thread()
            messages = messages_from_dict(json.loads(kept["messages"]))
            begun = set(kept["begun"])
            return {"messages": closed(messages, begun)}
        except (LookupError, TypeError, ValueError, AttributeError):
            raise NotResumable(
                "its checkpoint was made by another version of LangGraph; retry starts it again"
            ) from None

    async def _known_thread(self) -> None:
        snapshot = None
        if self._is_kept:
            snapshot = await self.graph.aget_state({"configurable": {"thread_id": self._thread}})
        if snapshot is None or snapshot.created_at is None:
            raise NotResumable(
                f"the graph's checkpointer has no thread {self._thread} (an in-memory one is lost with "
                "its kernel); retry starts it again"
            )


def closed(messages: Sequence[BaseMessage], begun: set[str]) -> list[BaseMessage]:
    """Return messages in which no call is open, so that nothing is called unasked.

    What was begun is told as interrupted. What was not, because a person was asked or the run ended before, is
    taken away: the model has to call it again.
    """
    done = {message.tool_call_id for message in messages if isinstance(message, ToolMessage)}
    whole: list[BaseMessage] = []
    for message in messages:
        if not isinstance(message, AIMessage):
            whole.append(message)
            continue
        calls = [call for call in message.tool_calls if call["id"] in done | begun]
        if len(calls) < len(message.tool_calls):
            if not calls and not message.text:
                continue
            # Anew, for a provider's own form of the calls may be among its content.
            message = AIMessage(message.text, tool_calls=calls, id=message.id)
        whole.append(message)
        whole += [
            ToolMessage(INTERRUPTED, tool_call_id=str(call["id"]), name=call["name"])
            for call in calls
            if call["id"] not in done
        ]
    return whole


def last_is_open(messages: Any) -> bool:
    """Return whether the last message calls tools, whose results have to come next."""
    return bool(messages and getattr(messages[-1], "tool_calls", None))


def received(texts: Iterable[str]) -> list[HumanMessage]:
    """Return what people have said as messages."""
    return [HumanMessage(text) for text in texts]


def as_messages(history: Sequence[Turn]) -> list[BaseMessage]:
    """Return what was said in earlier runs, of whatever agents, as messages."""
    messages: list[BaseMessage] = []
    for turn in history:
        if turn.role == USER:
            messages.append(HumanMessage(turn.text))
            continue
        if turn.calls:
            calls = [
                {"name": c.name, "id": c.id, "args": c.args if isinstance(c.args, dict) else {"value": c.args}}
                for c in turn.calls
            ]  # fmt: skip
            messages.append(AIMessage("", tool_calls=calls))
            for call in turn.calls:
                result = call.result if isinstance(call.result, str) else json.dumps(call.result)
                text = INTERRUPTED if call.status in ("interrupted", "cancelled") else result
                messages.append(ToolMessage(text, tool_call_id=call.id, name=call.name))
        if turn.text:
            messages.append(AIMessage(turn.text))
    return messages
