"""The checkpoint of a run of a LangGraph graph: the thread of its checkpointer, or else its messages.

A graph without a checkpointer gets a temporary one, because LangGraph needs one to continue after an `interrupt()`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from copy import copy
from typing import TYPE_CHECKING, Any

from langchain_core import messages as msg
from langchain_core.runnables.config import merge_configs
from langgraph.checkpoint.memory import InMemorySaver

from nbrun.agents import INTERRUPTED, USER, NotResumable, RunContext, State, Turn, args_of, plain, result_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Messages = Sequence[msg.BaseMessage]


DEPTH = 4
"""How deep the containers in a checkpoint are copied."""


class _Objects:
    """Stores any objects, not serialized; copies only their containers, as LangGraph changes those afterwards."""

    def dumps_typed(self, obj: Any) -> tuple[str, Any]:
        return "object", _copied(obj, DEPTH)

    def loads_typed(self, data: tuple[str, Any]) -> Any:
        return _copied(data[1], DEPTH)


def _copied(value: Any, depth: int) -> Any:
    if depth == 0 or type(value) not in (dict, defaultdict, list):
        return value
    made = copy(value)
    for key in range(len(made)) if isinstance(made, list) else list(made):
        made[key] = _copied(made[key], depth - 1)
    return made


class Checkpoint:
    """Saves the thread of a run, or its messages.

    Threads: `begin_tool()`, `pause_tool()` and `keep_result()` on any of the graph's, the rest on its loop.
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
        self._messages: list[msg.BaseMessage] = []
        self._begun: tuple[str, ...] = ()
        self._results: tuple[msg.ToolMessage, ...] = ()

    def config(self, *callbacks: Any) -> Any:
        """Return the configuration of the run, merged with the graph's own."""
        mine = {"configurable": {"thread_id": self._thread}, "callbacks": list(callbacks)}
        return merge_configs(self.graph.config, mine)  # type: ignore[arg-type]

    def save_thread(self) -> None:
        """Save the thread before anything happens in it."""
        if self._is_kept:
            self.run.checkpoint({"thread": self._thread})

    def keep(self, messages: Any) -> None:
        """Save all messages, after a step of the graph."""
        if self._is_kept or not isinstance(messages, list):
            return
        self._messages = msg.convert_to_messages(messages)
        self._begun, self._results = (), ()
        self._save()

    def begin_tool(self, tool_id: str) -> None:
        """Save that a tool has started: from here on, how far it got is unknown."""
        self._begun = (*self._begun, tool_id)
        self._save()

    def pause_tool(self, tool_id: str) -> None:
        """Save that a tool waits for the user: it starts again with the answer."""
        self._begun = tuple(begun for begun in self._begun if begun != tool_id)
        self._save()

    def keep_result(self, result: Any) -> None:
        """Add the result of a tool while other calls of the same response are open."""
        if isinstance(result, msg.ToolMessage):
            self._results = (*self._results, result)
            self._save()

    def _save(self) -> None:
        if self._is_kept or not self._messages:
            return
        messages = [*self._messages, *self._results]
        text = json.dumps([plain(msg.message_to_dict(message)) for message in messages])
        self.run.checkpoint({"messages": text, "begun": list(self._begun)})

    async def restore(self, state: State) -> Any:
        """Return the input to resume with: None for a thread of the graph's checkpointer.

        Raises `NotResumable` if the checkpointer doesn't have the thread, or the messages can't be read.
        """
        kept: Any = state
        try:
            if "thread" in kept:
                self._thread = str(kept["thread"])
                return await self._check_thread()
            messages = msg.messages_from_dict(json.loads(kept["messages"]))
            whole = without_open_calls(messages, set(kept["begun"]))
        except (LookupError, TypeError, ValueError, AttributeError):
            raise NotResumable(
                "its checkpoint was made by another version of LangGraph; retry starts it again"
            ) from None
        while whole and isinstance(whole[-1], msg.AIMessage):  # it is asked for again, and answered by the journal
            whole.pop()
        return {"messages": whole}

    async def _check_thread(self) -> None:
        snapshot = None
        if self._is_kept:
            snapshot = await self.graph.aget_state({"configurable": {"thread_id": self._thread}})
        if snapshot is None or snapshot.created_at is None:
            raise NotResumable(
                f"the graph's checkpointer has no thread {self._thread} (an in-memory one is lost with "
                "its kernel); retry starts it again"
            )


def without_open_calls(messages: Messages, begun: set[str]) -> list[msg.BaseMessage]:
    """Return the messages without open tool calls, so that no tool is called without approval.

    A call that had begun gets an interrupted result. One that had not is removed: the model has to call it again.
    """
    done = {message.tool_call_id for message in messages if isinstance(message, msg.ToolMessage)}
    whole: list[msg.BaseMessage] = []
    for message in messages:
        if not isinstance(message, msg.AIMessage):
            whole.append(message)
            continue
        calls = [call for call in message.tool_calls if call["id"] in done | begun]
        if len(calls) < len(message.tool_calls):
            if not calls and not message.text:
                continue
            # A new message, because the content may include the calls in the provider's own form.
            message = msg.AIMessage(message.text, tool_calls=calls, id=message.id)
        whole.append(message)
        whole += [
            msg.ToolMessage(INTERRUPTED, tool_call_id=str(call["id"]), name=call["name"])
            for call in calls
            if call["id"] not in done
        ]
    return whole


def user_messages(texts: Iterable[str]) -> list[msg.HumanMessage]:
    """Return the user's texts as messages."""
    return [msg.HumanMessage(text) for text in texts]


def as_messages(history: Sequence[Turn]) -> list[msg.BaseMessage]:
    """Return the conversation of earlier runs, of any agent, as messages."""
    messages: list[msg.BaseMessage] = []
    for turn in history:
        if turn.role == USER:
            messages.append(msg.HumanMessage(turn.text))
            continue
        if turn.calls:
            calls = [{"name": c.name, "id": c.id, "args": args_of(c)} for c in turn.calls]
            messages.append(msg.AIMessage("", tool_calls=calls))
            messages += [msg.ToolMessage(result_of(c), tool_call_id=c.id, name=c.name) for c in turn.calls]
        if turn.text:
            messages.append(msg.AIMessage(turn.text))
    return messages
