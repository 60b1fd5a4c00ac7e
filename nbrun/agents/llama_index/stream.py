"""What a LlamaIndex workflow writes to its stream, as events; and its questions to people.

Imported when a run begins, for it imports the framework. The events of LlamaIndex's agents are known by name: they
are of another, large package, which a workflow need not have.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from workflows.events import (
    InputRequiredEvent,
    InternalDispatchEvent as Internal,
    StepState,
    StepStateChanged,
    StopEvent,
)

from nbrun.agents import RunContext, events as ev, plain, pricing
from nbrun.agents.llama_index.resume import Fields, Memory, fields_of, response_class

if TYPE_CHECKING:
    from collections.abc import Iterable


_MESSAGES = ("prefix", "msg", "message", "prompt", "question")
YES, NO = "yes", ""


class StreamMapper:
    """Turns a workflow's events into ours, and asks people what it asks.

    Threads: of the loop that the workflow is on.
    """

    def __init__(self, run: RunContext, handler: Any, memory: Memory) -> None:
        self._run = run
        self._handler = handler
        self._memory = memory
        self._words: list[str] = []
        self._began: dict[str, float] = {}
        self._names: dict[str, str] = {}
        self._denied: set[str] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._error: Exception | None = None

    def mapped(self, event: Any) -> list[ev.EventData]:
        """Return what an event is to us.

        Raises
        ------
        Cancelled
            A model is about to be called, and nothing is left for it.
        """
        if isinstance(event, StepStateChanged):
            return self._step(event)
        if isinstance(event, Internal | StopEvent):
            return []
        if isinstance(event, InputRequiredEvent):
            self._ask_once(type(event).__name__, fields_of(event))
            return []
        for base in type(event).__mro__:
            match base.__name__:
                case "AgentInput":
                    self._run.begin_turn()
                    return []
                case "AgentStream":
                    return self._delta(event)
                case "AgentOutput":
                    return self._message(event)
                case "ToolCallResult":
                    return self._finished(event)
                case "ToolCall":
                    return self._started(event)
        return [ev.Custom(type(event).__name__, plain(event.model_dump()))]

    def output(self, result: Any) -> object:
        """Return a workflow's result; of an agent, what it has said."""
        if type(result).__name__ != "AgentOutput":
            return result
        structured = getattr(result, "structured_response", None)
        return _text(result) if structured is None else structured

    def _step(self, event: StepStateChanged) -> list[ev.EventData]:
        if event.step_state is StepState.NOT_RUNNING:
            self._memory.save()
            return []
        return [ev.RunPhase(event.name)] if event.step_state is StepState.RUNNING else []

    def _delta(self, event: Any) -> list[ev.EventData]:
        told: list[ev.EventData] = []
        if thought := getattr(event, "thinking_delta", None):
            told.append(ev.ReasoningDelta(thought))
        if event.delta:
            self._words.append(event.delta)
            told.append(ev.TextDelta(event.delta))
        return told

    def _message(self, event: Any) -> list[ev.EventData]:
        self._tell_usage(getattr(event, "raw", None))
        said, self._words = "".join(self._words), []
        if said:
            return [ev.Message("assistant", said)]
        text = _text(event)
        return [ev.TextDelta(text), ev.Message("assistant", text)] if text else []

    def _tell_usage(self, raw: object) -> None:
        """Tell what a model's own answer says of it."""
        usage = _part(raw, "usage")
        used = _count(usage, "prompt_tokens", "input_tokens")
        made = _count(usage, "completion_tokens", "output_tokens")
        cost = None
        if usage is not None:
            cost = pricing.cost_usd(
                str(_part(raw, "model") or ""), input_tokens=used, output_tokens=made
            )
        self._run.usage(input_tokens=used, output_tokens=made, requests=1, cost_usd=cost)

    def _started(self, event: Any) -> list[ev.EventData]:
        tool_id = str(event.tool_id)
        if tool_id in self._began:  # its step begins anew
            return []
        self._began[tool_id] = self._run.clock.monotonic()
        self._names[tool_id] = str(event.tool_name)
        return [ev.ToolStarted(tool_id, event.tool_name, "function", plain(event.tool_kwargs))]

    def _finished(self, event: Any) -> list[ev.EventData]:
        tool_id = str(event.tool_id)
        started = self._started(event)  # none, but for one that was begun in the run before
        ms = (self._run.clock.monotonic() - self._began.pop(tool_id)) * 1000
        status = "error" if _part(event.tool_output, "is_error") else "ok"
        status = "denied" if tool_id in self._denied else status
        result = _part(event.tool_output, "content")
        return [*started, ev.ToolFinished(tool_id, status, plain(result), round(ms, 3))]

    # --- people ----------------------------------------------------------------------------------

    def ask_again(self, requests: Iterable[tuple[str, Fields]]) -> None:
        """Ask what had been asked before."""
        for name, fields in requests:
            self._ask(name, fields)

    def _ask_once(self, name: str, fields: Fields) -> None:
        # A step that begins anew asks once more; a person is asked already.
        if self._memory.begin_asking(name, fields):
            self._ask(name, fields)

    def _ask(self, name: str, fields: Fields) -> None:
        task = asyncio.create_task(self._answer(name, fields), name=f"nbrun-ask-{self._run.run_id}")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _answer(self, name: str, fields: Fields) -> None:
        try:
            response = await self._asked(name, fields)
            self._memory.end_asking(name, fields)
            self._handler.ctx.send_event(response)
        except Exception as error:  # it would wait for ever
            self._error = error
            await self._handler.cancel_run()

    async def _asked(self, name: str, fields: Fields) -> Any:
        rest = dict(fields)
        words = [str(rest.pop(word)) for word in _MESSAGES if rest.get(word)]
        tool_id = rest.pop("tool_id", None)
        args = plain(rest.pop("tool_kwargs", rest or None))
        if tool_id is None and len(self._began) == 1:  # LlamaIndex's tools ask without their id
            tool_id = next(iter(self._began))
        known = tool_id if tool_id in self._began else None
        answer = await self._run.ask(
            words[0] if words else f"{name}?", args=args, tool_id=known,
            tool=self._names.get(str(known), ""), editable=args is not None,
        )  # fmt: skip
        if not answer and tool_id is not None:
            self._denied.add(str(tool_id))
        said = answer.text or YES if answer else NO
        told = {
            "response": said,
            "approved": bool(answer),
            "args": answer.args,
            "reason": answer.text,
        }
        return response_class(self._handler)(**{**fields, **told})

    def raise_error(self) -> None:
        """Raise what has kept a person from being asked, if anything has."""
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Ask nothing more."""
        asking = list(self._asking)
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking)


def _text(output: Any) -> str:
    return str(_part(getattr(output, "response", None), "content") or "")


def _part(raw: Any, name: str) -> Any:
    """Return a part of what is an object or a dict."""
    return raw.get(name) if isinstance(raw, dict) else getattr(raw, name, None)


def _count(usage: Any, *names: str) -> int:
    return next((int(count) for name in names if (count := _part(usage, name))), 0)
