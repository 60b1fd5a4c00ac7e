"""The memory of a smolagents agent as data: what is kept of it in a checkpoint, and made of it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smolagents import CodeAgent
from smolagents.memory import ActionStep, PlanningStep, TaskStep, ToolCall
from smolagents.monitoring import Timing

from nbrun.agents import USER, State, Turn, plain

if TYPE_CHECKING:
    from collections.abc import Sequence


GO_ON = "You were interrupted. Continue where you stopped."
NO_VARIABLES = " The variables of your earlier code are gone."


def packed(steps: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the memory as JSON-like data: what was asked, said, called and seen."""
    kept: list[dict[str, Any]] = []
    for step in steps:
        match step:
            case TaskStep(task=task):
                kept.append({"task": task})
            case PlanningStep(plan=plan):
                kept.append({"plan": plan})
            case ActionStep():
                calls = [
                    [call.name, plain(call.arguments), call.id] for call in step.tool_calls or ()
                ]
                seen = step.observations if step.error is None else f"Error: {step.error}"
                said = step.model_output if isinstance(step.model_output, str) else ""
                kept.append({"said": said, "calls": calls, "seen": seen or ""})
    return kept


def unpacked(state: State) -> list[Any]:
    """Return a memory from what was kept of it; what is no step of one is left out."""
    steps: list[Any] = []
    for kept in state if isinstance(state, list) else []:
        match kept:
            case {"task": str(task)} | {"plan": str(task)}:
                steps.append(TaskStep(task))
            case {"said": str(said), "calls": list(calls), "seen": str(seen)}:
                made = [
                    ToolCall(str(call[0]), call[1], str(call[2]))
                    for call in calls
                    if isinstance(call, list) and len(call) == 3
                ]
                steps.append(
                    ActionStep(
                        len(steps), Timing(0.0, 0.0), tool_calls=made or None, model_output=said,
                        observations=seen or None,
                    )
                )  # fmt: skip
    return steps


def as_messages(history: Sequence[Turn]) -> list[Any]:
    """Return what was said in earlier runs as steps of a memory."""
    return [
        TaskStep(turn.text)
        if turn.role == USER
        else ActionStep(0, Timing(0.0, 0.0), model_output=turn.text)
        for turn in history
    ]


def go_on(agent: object) -> str:
    """Return what an agent is told that goes on."""
    return GO_ON + (NO_VARIABLES if isinstance(agent, CodeAgent) else "")
