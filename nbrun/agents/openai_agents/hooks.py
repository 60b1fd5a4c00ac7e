"""The hooks and events of a run of OpenAI's Agents SDK: budget, usage, messages, questions, tools."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from agents import RunHooks, RunState, Usage

from nbrun.agents import RunContext, Tools, events as ev, part_of, plain, pricing

if TYPE_CHECKING:
    from agents import Agent, ModelResponse, RunContextWrapper, Tool, ToolApprovalItem
    from agents.run_config import CallModelData, ModelInputData, ToolErrorFormatterArgs

    from nbrun.agents.openai_agents.resume import Checkpoint


class Hooks(RunHooks[Any]):
    """Checks the budget, delivers messages and saves a checkpoint before each model call; reports usage after it.

    An agent used as another one's tool shares the run configuration but not the hooks: its model calls count, but it
    gets no messages and has no checkpoint.
    """

    def __init__(self, run: RunContext, checkpoint: Checkpoint) -> None:
        self.run = run
        self.checkpoint = checkpoint
        self.statuses: dict[str, str] = {}  # of tools that failed or were denied
        self._task: asyncio.Task[Any] | None = None  # in which the stream calls its model
        # The stream's tokens so far; None if the total of an earlier stream isn't known.
        self._reported: Counter[str] | None = None
        self._tool_models: set[str] = set()  # of agents used as tools

    def begin_stream(self, *, is_new: bool) -> None:
        """Prepare for another stream; one that isn't new continues from a state."""
        self._task = None
        if is_new:
            self._reported = Counter()

    def filter_input(self, data: CallModelData[Any]) -> ModelInputData:
        """Return the model's input, with the user's messages; raise `Cancelled` if the budget is used up."""
        self.run.begin_turn()
        # The first call of a stream is never a tool's, and a tool has a task of its own.
        self._task = self._task or asyncio.current_task()
        if asyncio.current_task() is self._task:
            data.model_data.input = self.checkpoint.with_received(data.model_data.input)
            self.checkpoint.keep(data.model_data.input)
        else:
            self._tool_models.add(_model_of(data.agent))
        return data.model_data

    async def on_llm_end(self, context: RunContextWrapper[Any], agent: Agent[Any], response: ModelResponse) -> None:
        """Report usage and save the response."""
        # The total includes this response, and the usage of tools that failed.
        self._report(context.usage, response.usage, _model_of(agent), requests=1)
        self.checkpoint.keep_response([dict(item) for item in response.to_input_items()])

    async def on_tool_end(self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool, result: object) -> None:
        """Report the usage of agents used as tools."""
        if models := self._tool_models:
            model = next(iter(models)) if len(models) == 1 else ""
            self._report(context.usage, Usage(), model)

    def _report(self, total: Usage, newest: Usage, model: str, *, requests: int = 0) -> None:
        """Report what is new in a total; if the total before it isn't known, the newest usage."""
        whole = _tokens(total)
        used = _tokens(newest) if self._reported is None else whole - self._reported
        self._reported = whole
        priced = {n: used[n] for n in ("input_tokens", "output_tokens", "cache_read_tokens")}
        cost = pricing.cost_usd(model, provider="openai", **priced) if model else None
        if used or requests:
            self.run.usage(**used, requests=requests, cost_usd=cost)

    def note_error(self, error: ToolErrorFormatterArgs[Any]) -> str | None:
        """Remember that a tool failed or was denied; the model gets the SDK's own message."""
        self.statuses[error.call_id] = "denied" if error.kind == "approval_rejected" else "error"
        return None

    async def ask(self, state: RunState[Any]) -> None:
        """Ask the user about everything that the state waits for, all at once."""
        self.checkpoint.keep_state(state)
        await asyncio.gather(*(self._ask(state, item) for item in state.get_interruptions()))

    async def _ask(self, state: RunState[Any], item: ToolApprovalItem) -> None:
        answer = await self.run.ask(
            f"Use {item.tool_name}?", args=_arguments(item.arguments), tool_id=item.call_id,
            tool=item.tool_name or "", editable=False,
        )  # fmt: skip
        if answer:
            state.approve(item)
        else:
            state.reject(item, rejection_message=answer.text or None)
            self.statuses[str(item.call_id)] = "denied"


class Mapper:
    """Turns the SDK's events into nbrun's."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._tools = Tools(hooks.run.clock)

    def map(self, event: Any) -> list[ev.EventData]:
        """Return nbrun's events for one of the SDK's."""
        if event.type == "raw_response_event":
            kind = _DELTAS.get(event.data.type)
            return [kind(event.data.delta)] if kind is not None and event.data.delta else []
        if event.type != "run_item_stream_event":
            return []
        raw: Any = getattr(event.item, "raw_item", None)
        match event.name:
            case "message_output_created":
                text = "".join(part.text for part in raw.content if hasattr(part, "text"))
                return [ev.Message("assistant", text)] if text else []
            case "tool_called":
                tool_id = str(part_of(raw, "call_id") or part_of(raw, "id"))
                name = str(part_of(raw, "name") or part_of(raw, "type"))
                return self._tools.start(tool_id, name, _arguments(part_of(raw, "arguments")))
            case "tool_output":
                tool_id = str(part_of(raw, "call_id"))
                self._hooks.checkpoint.keep_result(event.item.to_input_item())
                if tool_id in self._tools.began:
                    status = self._hooks.statuses.pop(tool_id, "ok")
                    return [self._tools.finish(tool_id, status, event.item.output)]
            case "handoff_occured":
                return [ev.RunPhase(str(event.item.target_agent.name))]
        return []


_DELTAS = {
    "response.output_text.delta": ev.TextDelta,
    "response.reasoning_text.delta": ev.ReasoningDelta,
    "response.reasoning_summary_text.delta": ev.ReasoningDelta,
}


def _tokens(usage: Usage) -> Counter[str]:
    return Counter(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens,
        cache_read_tokens=usage.input_tokens_details.cached_tokens or 0,
        reasoning_tokens=usage.output_tokens_details.reasoning_tokens or 0,
    )  # fmt: skip


def _model_of(agent: Any) -> str:
    """Return the name of an agent's model, as its provider knows it; "" if it has none."""
    model = getattr(agent.model, "model", agent.model)
    return model if isinstance(model, str) else ""


def _arguments(arguments: object) -> Any:
    """Return the arguments that a model wrote for a tool; as text if they aren't JSON."""
    if not isinstance(arguments, str):
        return plain(arguments)
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
