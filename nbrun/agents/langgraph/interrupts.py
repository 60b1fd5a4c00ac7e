"""The interrupts of a LangGraph graph as questions to the user."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from langgraph.types import Command

from nbrun.agents import Answer, RunContext, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langgraph.types import Interrupt

    from nbrun.agents.langgraph.callbacks import Callbacks


async def answered(run: RunContext, interrupts: Sequence[Interrupt], callbacks: Callbacks) -> Command[Any]:
    """Ask about all interrupts of a step at once; return the command that resumes the graph."""
    answers = await asyncio.gather(*(_answered(run, one, callbacks) for one in interrupts))
    return Command(resume={one.id: answer for one, answer in zip(interrupts, answers, strict=True)})


async def _answered(run: RunContext, interrupt: Interrupt, callbacks: Callbacks) -> Any:
    value, tool_id = interrupt.value, callbacks.paused.get(interrupt.id)
    asking = _Asking(run, tool_id)
    if _is_request(value, "action_requests"):
        answer: Any = {"decisions": await _decisions(asking, value)}
    elif _is_request(value, "action_request"):
        answer = await _response(asking, value)
    elif isinstance(value, list) and value and _is_request(value[0], "action_request"):
        answer = [await _response(asking, request) for request in value]
    else:
        answer = await asking.ask_freely(value)
    if asking.is_denied and tool_id is not None:
        callbacks.denied.add(tool_id)
    return answer


def _is_request(value: object, key: str) -> bool:
    return isinstance(value, dict) and key in value


class _Asking:
    """Asks about a tool; remembers whether it was denied."""

    def __init__(self, run: RunContext, tool_id: str | None) -> None:
        self._run = run
        self._tool_id = tool_id
        self.is_denied = False

    async def ask(self, name: str, args: Any, message: str | None, can_edit: bool) -> Answer:
        answer = await self._run.ask(
            message or f"Use {name}?", args=plain(args), tool_id=self._tool_id, tool=name, editable=can_edit
        )
        self.is_denied = self.is_denied or not answer
        return answer

    async def ask_freely(self, value: object) -> Any:
        """Return the answer to any other value: the edited arguments, the user's text, or True; False if denied."""
        message, args = (value, None) if isinstance(value, str) else ("Continue?", plain(value))
        answer = await self._run.ask(message, args=args, tool_id=self._tool_id, editable=args is not None)
        if not answer:
            self.is_denied = True
            return False
        return answer.text or True if answer.args == args else answer.args


async def _decisions(asking: _Asking, value: Any) -> list[Any]:
    """Return the answers in the form of LangChain's human-in-the-loop middleware."""
    reviews = value.get("review_configs") or ()
    allowed = {review["action_name"]: review.get("allowed_decisions", ()) for review in reviews}
    decisions: list[Any] = []
    for request in value["action_requests"]:
        name, args = request["name"], request["args"]
        can_edit = "edit" in allowed.get(name, ())
        answer = await asking.ask(name, args, request.get("description"), can_edit)
        decisions.append(_decision(name, args, answer))
    return decisions


def _decision(name: str, args: Any, answer: Answer) -> Any:
    if not answer:
        return {"type": "reject", **({"message": answer.text} if answer.text else {})}
    if answer.args == plain(args):
        return {"type": "approve"}
    return {"type": "edit", "edited_action": {"name": name, "args": answer.args}}


async def _response(asking: _Asking, request: Any) -> Any:
    """Return the answer in the form of a `HumanResponse`."""
    action, config = request["action_request"], request.get("config") or {}
    answer = await asking.ask(
        action["action"], action["args"], request.get("description"), bool(config.get("allow_edit"))
    )
    if not answer:
        if answer.text and config.get("allow_respond"):
            return {"type": "response", "args": answer.text}
        return {"type": "ignore", "args": None}
    if answer.args == plain(action["args"]):
        return {"type": "accept", "args": None}
    return {"type": "edit", "args": {"action": action["action"], "args": answer.args}}
