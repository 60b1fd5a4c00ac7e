"""What nbrun hangs on a run of OpenAI's Agents SDK: its budget, its usage, its memory, and what people say.

Imported when a run begins, for it imports the framework.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from agents import RunHooks, RunState, Usage

from nbrun.agents import USER, NotResumable, RunContext, State, Turn, plain, pricing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents import Agent, ModelResponse, RunContextWrapper, Tool, ToolApprovalItem
    from agents.run_config import CallModelData, ModelInputData, ToolErrorFormatterArgs


Item = dict[str, Any]

INTERRUPTED = "The tool call was interrupted; how far it got is unknown."


class Memory:
    """Keeps the items of a run as its checkpoint.

    Threads: the loop that the agent runs on.

    Parameters
    ----------
    received : what people have said so far, each with its place among the items.
    """

    def __init__(self, run: RunContext, received: Sequence[tuple[int, str]] = ()) -> None:
        self._run = run
        self._received = [(int(place), str(text)) for place, text in received]
        self._items: list[Any] = []
        self._open: set[str] = set()

    def with_received(self, items: list[Any]) -> list[Any]:
        """Return the items of a model's input with what people have said; what is new comes at the end."""
        self._received += [(len(items), text) for text in self._run.inbox.take()]
        whole = list(items)
        for place, text in reversed(self._received):
            whole.insert(place, {"role": "user", "content": text})
        return whole

    def keep(self, items: Sequence[Any]) -> None:
        """Take all items there are, before a model is called."""
        self._items, self._open = list(items), set()
        self._save()

    def keep_response(self, items: Sequence[Item]) -> None:
        """Take what the model has said; the tools that it calls are open then."""
        self._items += items
        self._open = {item["call_id"] for item in items if item.get("type") == "function_call"}
        if self._open:
            self._save()

    def keep_result(self, item: Any) -> None:
        """Take the result of a tool."""
        result = plain(item)
        if not isinstance(result, dict) or result.get("call_id") not in self._open:
            return
        self._open.discard(str(result["call_id"]))
        self._items.append(result)
        self._save()

    def keep_state(self, state: RunState[Any]) -> None:
        """Take a state in which a person is asked."""
        self._run.checkpoint({"state": state.to_json(), "heard": self._received})

    def _save(self) -> None:
        kept = {"items": plain(self._items), "open": sorted(self._open), "heard": self._received}
        self._run.checkpoint(kept)


class Hooks(RunHooks[Any]):
    """Asks the run's budget before each model call, and tells what has been used after it.

    There it also hands on what people have said, and keeps what the run can be gone on from. An agent that is another
    one's tool is asked for by the same configuration, but has no hooks: its calls count, its talk is its own.

    Threads: the loop that the agent runs on.
    """

    def __init__(self, run: RunContext, memory: Memory) -> None:
        self.run = run
        self.memory = memory
        self._statuses: dict[str, str] = {}  # of tools that were not simply used
        self._task: asyncio.Task[Any] | None = None  # that a stream calls its model from
        # Tokens of the stream; None where what was used before is not known.
        self._reported: Counter[str] | None = None
        self._models_within: set[str] = set()  # of agents that are tools

    def begin_stream(self, *, is_new: bool) -> None:
        """Expect the calls of another stream, which goes on from a state if it is not new."""
        self._task = None
        if is_new:
            self._reported = Counter()

    def status_of(self, tool_id: str) -> str:
        """Return how a tool has ended."""
        return self._statuses.pop(tool_id, "ok")

    def filter_input(self, data: CallModelData[Any]) -> ModelInputData:
        """Let the call through if something is left for it, with what people have said.

        Raises
        ------
        Cancelled
            Nothing is: no model is called.
        """
        self.run.begin_turn()
        # The first call of a stream is never that of a tool, and a tool has a task of its own.
        self._task = self._task or asyncio.current_task()
        if asyncio.current_task() is self._task:
            data.model_data.input = self.memory.with_received(data.model_data.input)
            self.memory.keep(data.model_data.input)
        else:
            self._models_within.add(_model_of(data.agent))
        return data.model_data

    async def on_llm_end(
        self, context: RunContextWrapper[Any], agent: Agent[Any], response: ModelResponse
    ) -> None:
        """Tell what has been used, and keep what is to be done."""
        # The total has this response, and what a tool that has failed had used.
        self._report(context.usage, response.usage, _model_of(agent), requests=1)
        self.memory.keep_response([dict(item) for item in response.to_input_items()])

    async def on_tool_end(
        self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool, result: object
    ) -> None:
        """Tell what agents within a tool have used."""
        if models := self._models_within:
            model = next(iter(models)) if len(models) == 1 else ""
            self._report(context.usage, Usage(), model)

    def _report(self, total: Usage, newest: Usage, model: str, *, requests: int = 0) -> None:
        """Tell what of a total was not told before; of an unknown one, the newest."""
        whole = _tokens(total)
        used = _tokens(newest) if self._reported is None else whole - self._reported
        self._reported = whole
        priced = {
            name: used[name] for name in ("input_tokens", "output_tokens", "cache_read_tokens")
        }
        cost = pricing.cost_usd(model, provider="openai", **priced) if model else None
        if used or requests:
            self.run.usage(**used, requests=requests, cost_usd=cost)

    def note_error(self, told: ToolErrorFormatterArgs[Any]) -> str | None:
        """Take note that a tool has failed or was refused; the words for the model are the SDK's."""
        self._statuses[told.call_id] = "denied" if told.kind == "approval_rejected" else "error"
        return None

    async def ask(self, state: RunState[Any]) -> None:
        """Have a person answer what the state waits for, all of it at once."""
        self.memory.keep_state(state)
        await asyncio.gather(*(self._ask(state, item) for item in state.get_interruptions()))

    async def _ask(self, state: RunState[Any], item: ToolApprovalItem) -> None:
        args = arguments_of(item.arguments)
        answer = await self.run.ask(
            f"Use {item.tool_name}?", args=args, tool_id=item.call_id, tool=item.tool_name or "",
            editable=False,
        )  # fmt: skip
        if answer:
            state.approve(item)
            return
        state.reject(item, rejection_message=answer.text or None)
        self._statuses[str(item.call_id)] = "denied"


def _tokens(usage: Usage) -> Counter[str]:
    return Counter(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens,
        cache_read_tokens=usage.input_tokens_details.cached_tokens or 0,
        reasoning_tokens=usage.output_tokens_details.reasoning_tokens or 0,
    )  # fmt: skip


def _model_of(agent: Any) -> str:
    """Return the name of an agent's model, as its provider knows it; "" where it has none."""
    model = getattr(agent.model, "model", agent.model)
    return model if isinstance(model, str) else ""


async def restore(agent: Agent[Any], state: State) -> tuple[Any, list[tuple[int, str]]]:
    """Return what to go on from, and what people had said.

    Raises
    ------
    NotResumable
        Another version of the SDK has kept it, or the agent is another now.
    """
    kept: Any = state
    try:
        received = list(kept["heard"])
        if "state" in kept:
            whole = kept["state"]
            # Whoever wrote the file may have granted what no person has: it is asked for again.
            whole.get("context", {}).pop("approvals", None)
            return await RunState.from_json(agent, whole), received
        items, still_open = list(kept["items"]), list(kept["open"])
    except Exception as error:  # of whatever kind: it is the SDK's to judge
        why = str(error).partition("\n")[0] or type(error).__name__
        raise NotResumable(
            f"its checkpoint cannot be read ({why}); retry starts it again"
        ) from None
    outputs = (
        {"type": "function_call_output", "call_id": call, "output": INTERRUPTED}
        for call in still_open
    )
    # What was received is among the items already.
    return [*items, *outputs], []


def as_messages(history: Sequence[Turn]) -> list[Item]:
    """Return what was said in earlier runs, of whatever agents, as items."""
    items: list[Item] = []
    for turn in history:
        for call in turn.calls:
            args = json.dumps(call.args if isinstance(call.args, dict) else {"value": call.args})
            items.append(
                {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": args}
            )
        for call in turn.calls:
            result = call.result if isinstance(call.result, str) else json.dumps(call.result)
            output = INTERRUPTED if call.status in ("interrupted", "cancelled") else result
            items.append({"type": "function_call_output", "call_id": call.id, "output": output})
        if turn.text:
            items.append(
                {"role": "user" if turn.role == USER else "assistant", "content": turn.text}
            )
    return items


def arguments_of(arguments: object) -> Any:
    """Return the arguments that a model has written for a tool."""
    if not isinstance(arguments, str):
        return plain(arguments)
    try:
        return json.loads(arguments)
    except ValueError:  # no JSON; its text is the truth
        return arguments
