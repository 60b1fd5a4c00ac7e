"""A run's events as those of AG-UI, the protocol of web front ends for agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.core import PackageMissing, events as ev, readable

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterator

    from ag_ui.core import BaseEvent

CUSTOM = "nbrun."
"""The names of events that AG-UI has no type for begin with this, as in `nbrun.progress`."""


async def to_agui(run: AsyncIterable[ev.RunEvent]) -> AsyncIterator[BaseEvent]:
    """Yield a run's events as those of AG-UI: from its beginning, also of a run that has ended, and live to its end.

    Text, reasoning, tools, steps and the ending have AG-UI's own types; everything else, such as questions to the user
    and progress, is a custom event: its name is `nbrun.` and the type, its value the event's data.

    Raises `PackageMissing` without `ag-ui-protocol`.
    """
    try:
        import ag_ui.core as agui
    except ImportError:
        raise PackageMissing('nbrun.to_agui() needs AG-UI\'s package: pip install "jupyter-nbrun[ag-ui]"') from None
    writer = _Writer(agui)
    async for event in run:
        for made in writer.events(event):
            made.timestamp = round(event.ts * 1000)
            yield made


class _Writer:
    """Keeps what AG-UI has open: its messages and tool calls are pairs of a start and an end."""

    def __init__(self, agui: Any) -> None:
        self._agui = agui
        self._message = self._reasoning = ""  # the id of the one that is open
        self._has_text = False  # in this message
        self._said = False  # in this run
        self._tools: dict[str, bool] = {}  # those that run: whether their arguments are complete
        self._steps: dict[str, None] = {}
        self._usage = ev.Usage()
        self._number = 0

    def events(self, event: ev.RunEvent) -> Iterator[Any]:
        """Yield what one event becomes."""
        agui, data = self._agui, event.data
        if event.seq == 0:
            yield agui.RunStartedEvent(thread_id=event.run_id, run_id=event.run_id)
        if event.parent is not None:  # part of a tool or a child run, not of the answer
            yield self._custom(event)
            return
        match data:
            case ev.TextDelta(text=text):
                if not self._message:
                    yield from self._close_texts()
                    self._message = self._new_id("message")
                    yield agui.TextMessageStartEvent(message_id=self._message, role="assistant")
                self._has_text = self._said = True
                yield agui.TextMessageContentEvent(message_id=self._message, delta=text)
            case ev.ReasoningDelta(text=text):
                if not self._reasoning:
                    yield from self._close_texts()
                    self._reasoning = self._new_id("reasoning")
                    yield agui.ReasoningStartEvent(message_id=self._reasoning)
                    yield agui.ReasoningMessageStartEvent(message_id=self._reasoning)
                yield agui.ReasoningMessageContentEvent(message_id=self._reasoning, delta=text)
            case ev.Message(role="assistant", text=text):
                if not self._has_text:
                    yield from self._whole(text)
                yield from self._close_texts()
                self._has_text = False
            case ev.ToolStarted(id=tool_id, name=name, args=args):
                yield from self._begin_tool(tool_id, name)
                if args is not None:
                    yield agui.ToolCallArgsEvent(tool_call_id=tool_id, delta=msgspec.json.encode(args).decode())
                    yield from self._end_args(tool_id)
            case ev.ToolArgsDelta(id=tool_id, text=text):
                if self._tools.get(tool_id) is False:
                    yield agui.ToolCallArgsEvent(tool_call_id=tool_id, delta=text)
            case ev.ToolFinished(id=tool_id, status=status, result=result):
                yield from self._begin_tool(tool_id, tool_id)  # an end without its start
                yield from self._end_args(tool_id)
                del self._tools[tool_id]
                content = status if result is None else readable(result)
                made_id = self._new_id("result")
                yield agui.ToolCallResultEvent(message_id=made_id, tool_call_id=tool_id, content=content)
            case ev.StepStarted(name=name) if name not in self._steps:
                self._steps[name] = None
                yield agui.StepStartedEvent(step_name=name)
            case ev.StepFinished(name=name) if name in self._steps:
                del self._steps[name]
                yield agui.StepFinishedEvent(step_name=name)
            case ev.Custom(name=name, value=value):
                yield agui.CustomEvent(name=name, value=value)
            case ev.Raw(source=source, payload=payload):
                yield agui.RawEvent(event=payload, source=source)
            case ev.RunCompleted() | ev.RunFailed() | ev.RunCancelled() | ev.RunLost():
                yield from self._end(data, event.run_id)
            case ev.AttemptLost():
                yield from self._close_texts()
                for tool_id in tuple(self._tools):
                    yield from self._end_args(tool_id)
                self._tools.clear()
                self._has_text = False
                yield self._custom(event)
            case ev.DetachedFinished():
                return  # nothing follows an end
            case _:
                if isinstance(data, ev.Usage):
                    self._usage = data
                yield from self._end_args(getattr(data, "tool_id", None) or "")
                yield self._custom(event)

    def _new_id(self, kind: str) -> str:
        self._number += 1
        return f"{kind}-{self._number}"

    def _custom(self, event: ev.RunEvent) -> Any:
        value = msgspec.to_builtins(event.data)
        if event.parent is not None:
            value = {"parent": event.parent, "data": value}
        return self._agui.CustomEvent(name=f"{CUSTOM}{event.type}", value=value)

    def _whole(self, text: str) -> Iterator[Any]:
        if text:
            self._said = True
            message_id = self._new_id("message")
            yield self._agui.TextMessageStartEvent(message_id=message_id, role="assistant")
            yield self._agui.TextMessageContentEvent(message_id=message_id, delta=text)
            yield self._agui.TextMessageEndEvent(message_id=message_id)

    def _close_texts(self) -> Iterator[Any]:
        if self._message:
            yield self._agui.TextMessageEndEvent(message_id=self._message)
        if self._reasoning:
            yield self._agui.ReasoningMessageEndEvent(message_id=self._reasoning)
            yield self._agui.ReasoningEndEvent(message_id=self._reasoning)
        self._message = self._reasoning = ""

    def _begin_tool(self, tool_id: str, name: str) -> Iterator[Any]:
        if tool_id not in self._tools:
            yield from self._close_texts()
            self._tools[tool_id] = False
            yield self._agui.ToolCallStartEvent(tool_call_id=tool_id, tool_call_name=name)

    def _end_args(self, tool_id: str) -> Iterator[Any]:
        if self._tools.get(tool_id) is False:
            self._tools[tool_id] = True
            yield self._agui.ToolCallEndEvent(tool_call_id=tool_id)

    def _end(self, data: ev.EventData, run_id: str) -> Iterator[Any]:
        agui, used, output = self._agui, getattr(data, "usage", None) or self._usage, getattr(data, "output", None)
        yield from self._close_texts()
        for tool_id in [*self._tools]:  # a lost run had no time to end them
            yield from self._end_args(tool_id)
        for name in self._steps:
            yield agui.StepFinishedEvent(step_name=name)
        if output is not None and not self._said:
            yield from self._whole(readable(output))
        usage = [
            agui.TokenUsage(
                input_tokens=used.input_tokens,
                output_tokens=used.output_tokens,
                cached_input_tokens=used.cache_read_tokens,
                reasoning_tokens=used.reasoning_tokens,
            )
        ]
        match data:
            case ev.RunFailed(error=error):
                yield agui.RunErrorEvent(message=error.message, code=error.type, usage=usage)
            case ev.RunLost(reason=reason):
                yield agui.RunErrorEvent(message=f"The run was lost: {reason}", code="lost", usage=usage)
            case ev.RunCancelled():
                outcome = agui.RunFinishedCancelledOutcome()
                yield agui.RunFinishedEvent(thread_id=run_id, run_id=run_id, outcome=outcome, usage=usage)
            case _:
                done = agui.RunFinishedSuccessOutcome()
                yield agui.RunFinishedEvent(thread_id=run_id, run_id=run_id, result=output, outcome=done, usage=usage)
