"""Tools of pydantic-ai that require approval: a person is asked, all of a response at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from nbrun.agents import RunContext, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.messages import ToolCallPart
    from pydantic_ai.tools import (
        DeferredToolRequests,
        DeferredToolResults,
        ToolApproved,
        ToolDenied,
    )

    from nbrun.agents.pydantic_ai.resume import Memory


def arguments_of(part: Any) -> Any:
    """Return the arguments that a model has written for a tool."""
    try:
        return plain(part.args_as_dict())
    except (ValueError, AssertionError):  # the model wrote no JSON; its text is the truth
        return plain(part.args)


def approvals(run: RunContext, memory: Memory) -> AbstractCapability[Any]:
    """Return the capability by which they ask; the run's memory knows of it meanwhile."""
    from pydantic_ai.capabilities import HandleDeferredToolCalls

    async def ask(_context: object, requests: DeferredToolRequests) -> DeferredToolResults | None:
        if not requests.approvals:  # what else is deferred is the business of who has deferred it
            return None
        memory.keep_asking([call.tool_call_id for call in requests.approvals])
        answers = await ask_for_approvals(run, requests.approvals)
        memory.keep_asking(())
        return requests.build_results(approvals=answers)

    return HandleDeferredToolCalls(handler=ask)


async def ask_for_approvals(
    run: RunContext, calls: Sequence[ToolCallPart]
) -> dict[str, bool | ToolApproved | ToolDenied]:
    """Return what a person says to each of these calls, by its id."""
    answers = await asyncio.gather(*(_approval(run, call) for call in calls))
    return {call.tool_call_id: answer for call, answer in zip(calls, answers, strict=True)}


async def _approval(run: RunContext, call: Any) -> ToolApproved | ToolDenied:
    from pydantic_ai.tools import ToolApproved, ToolDenied

    args = arguments_of(call)
    answer = await run.ask(
        f"Use {call.tool_name}?", args=args, tool_id=call.tool_call_id, tool=call.tool_name
    )
    if not answer:
        return ToolDenied(answer.text or ToolDenied().message)
    if answer.args is args:
        return ToolApproved()
    if not isinstance(answer.args, dict):
        return ToolDenied("The edited arguments aren't a JSON object.")
    return ToolApproved(override_args=answer.args)
