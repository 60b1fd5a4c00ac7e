"""The checkpoint of a run of pydantic-ai: its messages, and the tool calls that the user is being asked about.

Saved with each model request, response and tool result. A resumed run keeps the results of the last response's calls
and asks again about those it was asking about. It reports the others to the model as interrupted and doesn't repeat
them, because how far they got is unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_ai import messages as msg

from nbrun.agents import INTERRUPTED, USER, NotResumable, RunContext, State, Turn, args_of, plain

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class Checkpoint:
    """Saves the messages of a run."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._messages: list[msg.ModelMessage] = []
        self._open: dict[str, msg.ToolCallPart] = {}
        self._results: list[msg.ModelRequestPart] = []
        self._asking: set[str] = set()

    def keep(self, messages: Sequence[msg.ModelMessage]) -> None:
        """Save all messages; the calls of the last one are open."""
        self._messages = list(messages)
        last = self._messages[-1] if self._messages else None
        calls = last.tool_calls if isinstance(last, msg.ModelResponse) else ()
        self._open = {call.tool_call_id: call for call in calls}
        self._results, self._asking = [], set()
        self._save()

    def keep_result(self, part: msg.ModelRequestPart) -> None:
        """Add the result of a tool while other calls of the same response are open."""
        tool_id = getattr(part, "tool_call_id", "")
        if self._open.pop(tool_id, None) is None:
            return  # the next request includes it
        self._results.append(part)
        if self._open:
            self._save()

    def keep_asking(self, tool_ids: Collection[str]) -> None:
        """Save which calls the user is being asked about."""
        self._asking = set(tool_ids)
        self._save()

    def _save(self) -> None:
        messages = self._messages
        if self._results:
            messages = [*messages, msg.ModelRequest(parts=self._results)]
        text = msg.ModelMessagesTypeAdapter.dump_json(messages, fallback=plain).decode()
        state = {"messages": text, "open": list(self._open), "asking": sorted(self._asking)}
        self._run.checkpoint(state)


def as_messages(history: Sequence[Turn]) -> list[msg.ModelMessage]:
    """Return the conversation of earlier runs, of any agent, as messages."""
    messages: list[msg.ModelMessage] = []
    for turn in history:
        if turn.role == USER:
            messages.append(msg.ModelRequest(parts=[msg.UserPromptPart(turn.text)]))
            continue
        if turn.calls:
            calls = [msg.ToolCallPart(call.name, args_of(call), call.id) for call in turn.calls]
            messages.append(msg.ModelResponse(parts=calls))
            results = [
                msg.ToolReturnPart(call.name, call.result, call.id)
                if call.status in ("ok", "error", "denied")
                else msg.ToolReturnPart(call.name, INTERRUPTED, call.id, outcome="interrupted")
                for call in turn.calls
            ]
            messages.append(msg.ModelRequest(parts=results))
        if turn.text:
            messages.append(msg.ModelResponse(parts=[msg.TextPart(turn.text)]))
    return messages


def restore(state: State) -> tuple[list[msg.ModelMessage], list[msg.ToolCallPart]]:
    """Return the messages to resume with, and the calls that the user is asked about again.

    Raises `NotResumable` if another version of pydantic-ai saved the state.
    """
    try:
        kept: Any = state
        messages = msg.ModelMessagesTypeAdapter.validate_json(kept["messages"])
        last_message = messages[-1]
        open_ids, asking = set(kept["open"]), set(kept["asking"])
    except (LookupError, TypeError, ValidationError):
        raise NotResumable("its checkpoint was made by another version of pydantic-ai; retry starts it again") from None
    parts: list[msg.ModelRequestPart] = []
    if isinstance(last_message, msg.ModelRequest):
        if not open_ids:
            return messages, []
        parts += messages.pop().parts  # type: ignore[arg-type]  # of a request
    done = {getattr(part, "tool_call_id", None) for part in parts}
    response = messages[-1] if messages else None
    calls = response.tool_calls if isinstance(response, msg.ModelResponse) else []
    parts += [
        msg.ToolReturnPart(call.tool_name, INTERRUPTED, call.tool_call_id, outcome="interrupted")
        for call in calls
        if call.tool_call_id not in asking and call.tool_call_id not in done  # the framework would execute it
    ]
    asked = [call for call in calls if call.tool_call_id in asking]
    return [*messages, msg.ModelRequest(parts=parts)] if parts else messages, asked
