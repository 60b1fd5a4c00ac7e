"""The hooks and events of a run of pydantic-ai: budget, usage, messages, questions, tools and their threads."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import Executor, Future
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelRequest, UserPromptPart
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDenied
from pydantic_graph import End

from nbrun.agents import Clock, Output, RunContext, Tools, Worker, call_soon, events as ev, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic_ai import RunContext as FrameworkContext
    from pydantic_ai.capabilities import AgentNode, NodeResult
    from pydantic_ai.messages import ModelResponse, ToolCallPart
    from pydantic_ai.models import ModelRequestContext
    from pydantic_ai.usage import RunUsage

    from nbrun.agents.pydantic_ai.resume import Checkpoint

T = TypeVar("T")

_tool: ContextVar[str] = ContextVar("nbrun_tool", default="a function of the agent")


class Hooks(AbstractCapability[Any]):
    """Checks the budget, delivers messages and saves a checkpoint before each request; reports usage after it."""

    def __init__(self, run: RunContext, meter: Meter, checkpoint: Checkpoint) -> None:
        self._run = run
        self._meter = meter
        self._checkpoint = checkpoint

    async def before_model_request(
        self, ctx: FrameworkContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Deliver messages and save the conversation; raise `Cancelled` if the budget is used up."""
        self._run.begin_turn()
        texts = self._deliver(ctx)
        # The framework adds them to its messages only after this.
        received = [ModelRequest(parts=[UserPromptPart(text) for text in texts])] if texts else []
        self._checkpoint.keep([*ctx.messages, *received])
        return request_context

    async def after_model_request(
        self, ctx: FrameworkContext[Any], *, request_context: Any, response: ModelResponse
    ) -> ModelResponse:
        """Report usage, and save a response that calls tools; without calls, it's the last one."""
        self._meter.report(ctx.usage)
        if response.tool_calls:
            self._checkpoint.keep([*ctx.messages, response])
        return response

    async def after_node_run(
        self, ctx: FrameworkContext[Any], *, node: AgentNode[Any], result: NodeResult[Any]
    ) -> NodeResult[Any]:
        """Let the agent continue at its end if there are messages."""
        if isinstance(result, End):
            self._deliver(ctx)
        return result

    def _deliver(self, ctx: FrameworkContext[Any]) -> list[str]:
        texts = self._run.inbox.take()
        for text in texts:
            ctx.enqueue(text)
        return texts

    async def wrap_tool_execute(self, ctx: Any, *, call: ToolCallPart, tool_def: Any, args: Any, handler: Any) -> Any:
        """Name the threads that the tool starts after it."""
        token = _tool.set(call.tool_name)
        try:
            return await handler(args)
        finally:
            _tool.reset(token)

    async def handle_deferred_tool_calls(
        self, ctx: Any, *, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        """Ask the user about all approvals of a response at once; other deferred calls aren't nbrun's."""
        if not requests.approvals:
            return None
        self._checkpoint.keep_asking([call.tool_call_id for call in requests.approvals])
        answers = await ask_for_approvals(self._run, requests.approvals)
        self._checkpoint.keep_asking(())
        return requests.build_results(approvals=answers)


async def ask_for_approvals(
    run: RunContext, calls: Sequence[ToolCallPart]
) -> dict[str, bool | ToolApproved | ToolDenied]:
    """Return the user's answer about each of these calls, by its id."""
    answers = await asyncio.gather(*(_approval(run, call) for call in calls))
    return {call.tool_call_id: answer for call, answer in zip(calls, answers, strict=True)}


async def _approval(run: RunContext, call: ToolCallPart) -> ToolApproved | ToolDenied:
    args = _arguments(call)
    answer = await run.ask(f"Use {call.tool_name}?", args=args, tool_id=call.tool_call_id, tool=call.tool_name)
    if not answer:
        return ToolDenied(answer.text or ToolDenied().message)
    if isinstance(answer.args, dict):  # exactly those that the user saw
        return ToolApproved(override_args=answer.args)
    return ToolApproved() if answer.args == args else ToolDenied("The edited arguments aren't a JSON object.")


class Meter:
    """Adds what is new in the framework's totals to the run's usage, beside what tools add themselves."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._reported: Counter[str] = Counter()
        self._cost: float | None = None

    def report(self, usage: RunUsage) -> None:
        """Report what is new since the last call."""
        totals = Counter(
            input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, requests=usage.requests,
            cache_read_tokens=usage.cache_read_tokens, reasoning_tokens=usage.details.get("reasoning_tokens", 0),
        )  # fmt: skip
        # Source: pydantic-ai adds up the prices of the responses; None if it knows none.
        cost = None if usage.cost is None else float(usage.cost)
        if totals == self._reported and cost == self._cost:
            return
        cost_usd = None if cost is None else max(0.0, cost - (self._cost or 0.0))
        self._run.usage(**(totals - self._reported), cost_usd=cost_usd)
        self._reported, self._cost = totals, cost


class ToolThreads(Executor):
    """Runs each sync function in a thread of its own, which a cancel of the run interrupts and names.

    Threads: `submit()` on the host's loop.
    """

    def __init__(self, run: RunContext, loop: asyncio.AbstractEventLoop) -> None:
        self._run = run
        self._loop = loop

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Start a function."""
        context = copy_context()
        # Source: pydantic-ai submits `context.run(call)`, with a copy of this context. The call is unwrapped, so
        # that the worker enters the context itself and what it sets there is visible to the call.
        owner = getattr(fn, "__self__", None)
        if isinstance(owner, Context):
            context, fn, args = owner, args[0], args[1:]
        worker = Worker(self._run.run_id, partial(fn, *args, **kwargs), context, name=_tool.get())
        self._run.add_work(worker)
        future = worker.start()
        drop = partial(self._run.drop_work, worker)
        future.add_done_callback(lambda _future: call_soon(self._loop, drop))
        return future


class Mapper:
    """Turns pydantic-ai's events into nbrun's, and saves the results of tools."""

    def __init__(self, clock: Clock, checkpoint: Checkpoint) -> None:
        self._tools = Tools(clock)
        self._checkpoint = checkpoint

    def map(self, event: Any) -> list[ev.EventData | Output]:
        """Return nbrun's events for one of the framework's."""
        match event.event_kind:
            case "part_start":
                return _text(event.part.part_kind, getattr(event.part, "content", None))
            case "part_delta":
                delta = event.delta
                return _text(delta.part_delta_kind, getattr(delta, "content_delta", None))
            case "part_end" if event.part.part_kind == "text":
                return [ev.Message("assistant", event.part.content)]
            case "function_tool_call":
                part = event.part
                return [*self._tools.start(part.tool_call_id, part.tool_name, _arguments(part))]
            case "function_tool_result":
                result = event.part
                self._checkpoint.keep_result(result)
                outcome = getattr(result, "outcome", "success")
                is_error = result.part_kind == "retry-prompt" or outcome != "success"
                status = "denied" if outcome == "denied" else "error" if is_error else "ok"
                return [self._tools.finish(event.tool_call_id, status, result.content)]
            case "agent_run_result":
                return [Output(event.result.output)]
        return []


def _text(kind: str, content: object) -> list[ev.EventData | Output]:
    if not isinstance(content, str) or not content:
        return []
    if kind == "text":
        return [ev.TextDelta(content)]
    return [ev.ReasoningDelta(content)] if kind == "thinking" else []


def _arguments(part: Any) -> Any:
    """Return the arguments that a model wrote for a tool; as text if they aren't a JSON object."""
    try:
        return plain(part.args_as_dict())
    except (ValueError, AssertionError):
        return plain(part.args)
