"""What was said in earlier runs, for one that goes on talking: read from their logs, whatever agents they had."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nbrun.core import events as ev
from nbrun.core.values import Plain

if TYPE_CHECKING:
    from collections.abc import Iterable

USER, ASSISTANT = "user", "assistant"


class Call(msgspec.Struct, frozen=True):
    """A tool that was used on the way to an answer."""

    id: str
    name: str
    args: Plain = None
    result: Plain = None
    status: str = "ok"


class Turn(msgspec.Struct, frozen=True):
    """What one side said; an agent's words may come with the tools that it used before them."""

    role: str  # USER or ASSISTANT
    text: str
    calls: tuple[Call, ...] = ()


def turns_of(prompt: str | None, events: Iterable[ev.RunEvent], said: str) -> list[Turn]:
    """Return the turns of one run.

    Parameters
    ----------
    prompt : None where it is that of the run before.
    said : the agent's text, for an agent that sends no whole messages.
    """
    turns = [] if prompt is None else [Turn(USER, prompt)]
    calls: dict[str, Call] = {}
    answers = 0
    for event in events:
        match event.data:
            case ev.ToolStarted(id=tool_id, name=name, args=args):
                calls[tool_id] = Call(tool_id, name, args, status="interrupted")
            case ev.ToolFinished(id=tool_id, status=status, result=result) if tool_id in calls:
                calls[tool_id] = msgspec.structs.replace(
                    calls[tool_id], result=result, status=status
                )
            case ev.Message(role="assistant", text=text):
                turns.append(Turn(ASSISTANT, text, tuple(calls.values())))
                calls, answers = {}, answers + 1
            case _:
                pass
    if calls or not answers:
        turns.append(Turn(ASSISTANT, "" if answers else said, tuple(calls.values())))
    return turns
