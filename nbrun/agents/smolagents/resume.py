"""The checkpoint of a run of a smolagents agent: the steps of its memory, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smolagents import CodeAgent
from smolagents.memory import ActionStep, PlanningStep, TaskStep, ToolCall
from smolagents.monitoring import Timing

from nbrun.agents import CONTINUE, USER, State, Turn, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.core import Journal


def checkpoint_of(steps: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the steps as JSON-like data: tasks, plans, the model's text, calls and observations."""
    kept: list[dict[str, Any]] = []
    for step in steps:
        match step:
            case TaskStep(task=task):
                kept.append({"task": task})
            case PlanningStep(plan=plan):
                kept.append({"plan": plan})
            case ActionStep():
                calls = [[call.name, plain(call.arguments), call.id] for call in step.tool_calls or ()]
                seen = step.observations if step.error is None else f"Error: {step.error}"
                said = step.model_output if isinstance(step.model_output, str) else None
                kept.append({"said": said, "calls": calls, "seen": seen or ""})
    return kept


def restore(state: State) -> list[Any]:
    """Return the steps of a checkpoint; anything else in it is skipped."""
    steps: list[Any] = []
    for kept in state if isinstance(state, list) else []:
        match kept:
            case {"task": str(task)} | {"plan": str(task)}:
                steps.append(TaskStep(task))
            case {"said": str() | None as said, "calls": list(calls), "seen": str(seen)}:
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
    """Return the conversation of earlier runs, of any agent, as steps."""
    return [
        TaskStep(turn.text) if turn.role == USER else ActionStep(0, Timing(0.0, 0.0), model_output=turn.text)
        for turn in history
    ]


def continuation(agent: object, journal: Journal | None) -> str | None:
    """Return the prompt for an agent that resumes; None if it needs none: its next answer is known already."""
    is_code = isinstance(agent, CodeAgent)
    if journal is not None and journal.is_answering and not is_code:
        return None
    return CONTINUE + (" The variables of your earlier code are gone." if is_code else "")
