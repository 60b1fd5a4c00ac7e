"""The stream of a LlamaIndex workflow as events, and its questions to the user.

Events of LlamaIndex's agents are matched by name: they come from another, large package, which workflows don't need.
"""

from __future__ import annotations

import asyncio
from typing import Any

from workflows.events import InputRequiredEvent, InternalDispatchEvent, StepState, StepStateChanged, StopEvent

from nbrun.agents import RunContext, Tools, events as ev, part_of, plain, pricing
from nbrun.agents.llama_index.resume import ANSWER, Checkpoint, Fields, fields_of, response_class

_MESSAGES = ("prefix", "msg", "message", "prompt", "question")


class StreamMapper:
    """Turns a workflow's events into nbrun's, and asks the user its questions."""

    def __init__(self, run: RunContext, workflow: Any, handler: Any, checkpoint: Checkpoint) -> None:
        self._run = run
        self._workflow = workflow
        self._handler = handler
        self._checkpoint = checkpoint
        self._text: list[str] = []
        self._tools = Tools(run.clock)
        self._names: dict[str, str] = {}
        self._denied: set[str] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self.error: Exception | None = None  # that stopped a question

    def map(self, event: Any) -> list[ev.EventData]:
        """Return nbrun's events for one of the framework's; raise `Cancelled` if the budget is used up."""
        if isinstance(event, StepStateChanged):
            return self._step(event)
        if isinstance(event, InternalDispatchEvent | StopEvent):
            return []
        if isinstance(event, InputRequiredEvent):
            question = type(event).__name__, fields_of(event)
            if self._checkpoint.begin_asking(*question):  # a step that starts again asks again
                self.ask(*question)
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
        """Return a workflow's result; for an agent, its answer."""
        if type(result).__name__ != "AgentOutput":
            return result
        structured = getattr(result, "structured_response", None)
        return _text(result) if structured is None else structured

    def _step(self, event: StepStateChanged) -> list[ev.EventData]:
        if event.step_state is StepState.NOT_RUNNING:
            self._checkpoint.save()
            return []
        return [ev.RunPhase(event.name)] if event.step_state is StepState.RUNNING else []

    def _delta(self, event: Any) -> list[ev.EventData]:
        events: list[ev.EventData] = []
        if thought := getattr(event, "thinking_delta", None):
            events.append(ev.ReasoningDelta(thought))
        if event.delta:
            self._text.append(event.delta)
            events.append(ev.TextDelta(event.delta))
        return events

    def _message(self, event: Any) -> list[ev.EventData]:
        self._report_usage(getattr(event, "raw", None))
        streamed, self._text = "".join(self._text), []
        if streamed:
            return [ev.Message("assistant", streamed)]
        text = _text(event)
        return [ev.TextDelta(text), ev.Message("assistant", text)] if text else []

    def _report_usage(self, raw: object) -> None:
        usage = part_of(raw, "usage")
        used = _count(usage, "prompt_tokens", "input_tokens")
        made = _count(usage, "completion_tokens", "output_tokens")
        model = "" if usage is None else str(part_of(raw, "model") or "")
        cost = pricing.cost_usd(model, input_tokens=used, output_tokens=made) if model else None
        self._run.usage(input_tokens=used, output_tokens=made, requests=1, cost_usd=cost)

    def _started(self, event: Any) -> list[ev.EventData]:
        self._names[str(event.tool_id)] = str(event.tool_name)
        return self._tools.start(str(event.tool_id), event.tool_name, event.tool_kwargs)

    def _finished(self, event: Any) -> list[ev.EventData]:
        tool_id = str(event.tool_id)
        started = self._started(event)  # nothing, unless it started in the run before
        status = "error" if part_of(event.tool_output, "is_error") else "ok"
        status = "denied" if tool_id in self._denied else status
        result = part_of(event.tool_output, "content")
        return [*started, self._tools.finish(tool_id, status, result)]

    # --- questions -------------------------------------------------------------------------------

    def ask(self, name: str, fields: Fields) -> None:
        """Ask a question in the background."""
        task = asyncio.create_task(self._answer(name, fields), name=f"nbrun-ask-{self._run.run_id}")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _answer(self, name: str, fields: Fields) -> None:
        try:
            response = await self._response(name, fields)
            self._checkpoint.end_asking(name, fields)
            self._handler.ctx.send_event(response)
        except Exception as error:  # the workflow would wait forever
            self.error = error
            await self._handler.cancel_run()

    async def _response(self, name: str, fields: Fields) -> Any:
        rest = dict(fields)
        messages = [str(rest.pop(key)) for key in _MESSAGES if rest.get(key)]
        tool_id = rest.pop("tool_id", None)
        args = plain(rest.pop("tool_kwargs", rest or None))
        running = self._tools.began
        if tool_id is None and len(running) == 1:  # LlamaIndex's tools ask without their id
            tool_id = next(iter(running))
        known = tool_id if tool_id in running else None
        answer = await self._run.ask(
            messages[0] if messages else f"{name}?", args=args, tool_id=known,
            tool=self._names.get(str(known), ""), editable=args is not None,
        )  # fmt: skip
        if not answer and tool_id is not None:
            self._denied.add(str(tool_id))
        response = answer.text or "yes" if answer else ""
        added = zip(ANSWER, (response, bool(answer), answer.args, answer.text), strict=True)
        return response_class(self._workflow, self._handler)(**{**fields, **dict(added)})

    async def close(self) -> None:
        """Withdraw the open questions."""
        asking = list(self._asking)
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking)


def _text(output: Any) -> str:
    return str(part_of(getattr(output, "response", None), "content") or "")


def _count(usage: Any, *names: str) -> int:
    return next((int(count) for name in names if (count := part_of(usage, name))), 0)
