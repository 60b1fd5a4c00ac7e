"""The checkpoint of a run of OpenAI's Agents SDK: its items, or its state while the user is asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agents import RunState

from nbrun.agents import INTERRUPTED, USER, RunContext, State, Turn, args_of, plain, result_of, unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents import Agent

Item = dict[str, Any]


class Checkpoint:
    """Saves the items of a run, and the user's messages so far with their places among the items."""

    def __init__(self, run: RunContext, received: Sequence[tuple[int, str]] = ()) -> None:
        self._run = run
        self._received = [(int(place), str(text)) for place, text in received]
        self._items: list[Any] = []
        self._open: set[str] = set()

    def with_received(self, items: list[Any]) -> list[Any]:
        """Return the items of a model's input with the user's messages; new ones come last."""
        self._received += [(len(items), text) for text in self._run.inbox.take()]
        whole = list(items)
        for place, text in reversed(self._received):
            whole.insert(place, {"role": "user", "content": text})
        return whole

    def keep(self, items: Sequence[Any]) -> None:
        """Save all items, before a model call."""
        self._items, self._open = list(items), set()
        self._save()

    def keep_response(self, items: Sequence[Item]) -> None:
        """Add a model's response, with the tool calls that it opens."""
        self._items += items
        self._open = {item["call_id"] for item in items if item.get("type") == "function_call"}
        if self._open:
            self._save()

    def keep_result(self, item: Any) -> None:
        """Add the result of a tool."""
        result = plain(item)
        if isinstance(result, dict) and result.get("call_id") in self._open:
            self._open.discard(str(result["call_id"]))
            self._items.append(result)
            self._save()

    def keep_state(self, state: RunState[Any]) -> None:
        """Save a state in which the user is asked."""
        self._run.checkpoint({"state": state.to_json(), "heard": self._received})

    def _save(self) -> None:
        kept = {"items": plain(self._items), "open": sorted(self._open), "heard": self._received}
        self._run.checkpoint(kept)


async def restore(agent: Agent[Any], state: State) -> tuple[Any, list[tuple[int, str]]]:
    """Return the input to resume with and the messages to add to it; raise `NotResumable` if it can't be read."""
    kept: Any = state
    try:
        received = list(kept["heard"])
        if "state" in kept:
            whole = kept["state"]
            # The store may have been edited: approvals in it don't count, the user is asked again.
            whole.get("context", {}).pop("approvals", None)
            restored = await RunState.from_json(agent, whole)
            if restored.get_interruptions():  # else the SDK would make the calls in it at once
                return restored, received
        items, still_open = list(kept["items"]), list(kept["open"])
    except Exception as error:  # whatever the SDK raises
        raise unreadable(error) from None
    outputs = ({"type": "function_call_output", "call_id": call, "output": INTERRUPTED} for call in still_open)
    return [*items, *outputs], []  # the items include the messages


def as_messages(history: Sequence[Turn]) -> list[Item]:
    """Return the conversation of earlier runs, of any agent, as items."""
    items: list[Item] = []
    for turn in history:
        items += [
            {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": json.dumps(args_of(call))}
            for call in turn.calls
        ]
        items += [
            {"type": "function_call_output", "call_id": call.id, "output": result_of(call)} for call in turn.calls
        ]
        if turn.text:
            role = "user" if turn.role == USER else "assistant"
            items.append({"role": role, "content": turn.text})
    return items
