"""What nbrun hangs on a run of pydantic-ai: its budget, its usage, its memory, what people say, and its threads.

Imported when a run begins, for it imports the framework.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelRequest, UserPromptPart
from pydantic_graph import End

from nbrun.agents import RunContext, Worker, call_soon

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from pydantic_ai import RunContext as FrameworkContext
    from pydantic_ai.capabilities import (
        AgentNode,
        NodeResult,
        ValidatedToolArgs,
        WrapToolExecuteHandler,
    )
    from pydantic_ai.messages import ModelResponse, ToolCallPart
    from pydantic_ai.models import ModelRequestContext
    from pydantic_ai.tools import ToolDefinition
    from pydantic_ai.usage import RunUsage

    from nbrun.agents.pydantic_ai.resume import Memory

T = TypeVar("T")

_tool: ContextVar[str] = ContextVar("nbrun_tool", default="a function of the agent")


class Hooks(AbstractCapability[Any]):
    """Asks the run's budget before each model request, and tells what has been used after it.

    There it also hands on what people have said, and keeps what the run can be gone on from.

    Threads: the loop that the agent runs on.
    """

    def __init__(self, run: RunContext, meter: Meter, memory: Memory) -> None:
        self._run = run
        self._meter = meter
        self._memory = memory

    async def before_model_request(
        self, ctx: FrameworkContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Let the request through if something is left for it.

        Raises
        ------
        Cancelled
            Nothing is: no model is called.
        """
        self._run.begin_turn()
        said = self._deliver(ctx)
        # What is handed on comes to the messages after this.
        received = [ModelRequest(parts=[UserPromptPart(text) for text in said])] if said else []
        self._memory.keep([*ctx.messages, *received])
        return request_context

    async def after_model_request(
        self,
        ctx: FrameworkContext[Any],
        *,
        request_context: ModelRequestContext,
        response: ModelResponse,
    ) -> ModelResponse:
        """Tell what has been used, and keep what is to be done; an answer without calls is the end."""
        self._meter.report(ctx.usage)
        if response.tool_calls:
            self._memory.keep([*ctx.messages, response])
        return response

    async def after_node_run(
        self, ctx: FrameworkContext[Any], *, node: AgentNode[Any], result: NodeResult[Any]
    ) -> NodeResult[Any]:
        """Have the model go on when it would end and somebody has as_messages meanwhile."""
        if isinstance(result, End):
            self._deliver(ctx)
        return result

    def _deliver(self, ctx: FrameworkContext[Any]) -> list[str]:
        said = self._run.inbox.take()
        for text in said:
            ctx.enqueue(text)
        return said

    async def wrap_tool_execute(
        self,
        ctx: FrameworkContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: ValidatedToolArgs,
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """Have threads that are started within go by the tool's name."""
        token = _tool.set(call.tool_name)
        try:
            return await handler(args)
        finally:
            _tool.reset(token)


class Meter:
    """Adds to a run's usage what is new in the framework's totals; a tool may add its own beside it.

    Threads: the host's loop.
    """

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._reported = (0, 0, 0, 0, 0)
        self._cost: float | None = None

    def report(self, usage: RunUsage) -> None:
        """Take the totals."""
        totals = (
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_tokens,
            usage.details.get("reasoning_tokens", 0),
            usage.requests,
        )
        # Source: pydantic-ai adds up the prices of the responses, and leaves None where it knows none.
        cost = None if usage.cost is None else float(usage.cost)
        if totals == self._reported and cost == self._cost:
            return
        new = [max(0, now - told) for now, told in zip(totals, self._reported, strict=True)]
        cost_usd = None if cost is None else max(0.0, cost - (self._cost or 0.0))
        self._reported, self._cost = totals, cost
        self._run.usage(
            input_tokens=new[0], output_tokens=new[1], cache_read_tokens=new[2], reasoning_tokens=new[3],
            requests=new[4], cost_usd=cost_usd,
        )  # fmt: skip


class ToolThreads(Executor):
    """Runs each sync function of an agent in a thread of its own, which a cancel of the run reaches, and names.

    Threads: `submit()` on the host's loop.
    """

    def __init__(self, run: RunContext, loop: asyncio.AbstractEventLoop) -> None:
        self._run = run
        self._loop = loop

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Begin it."""
        context = copy_context()
        # Source: pydantic-ai submits `context.run(call)`, with a copy of this very context. The call is taken out
        # of it, so that what guards the thread is set where the call sees it.
        owner = getattr(fn, "__self__", None)
        if isinstance(owner, Context):
            context, fn, args = owner, args[0], args[1:]
        name = _tool.get()
        worker = Worker(self._run.run_id, partial(fn, *args, **kwargs), context, name=name)
        self._run.add_work(worker)
        future = worker.start()
        drop = partial(self._run.drop_work, worker)
        future.add_done_callback(lambda _future: call_soon(self._loop, drop))
        return future
