"""Workflows of LlamaIndex, its agents among them: what they write to their stream, and their steps, as events.

`%%agentrun workflow` takes any `Workflow`. The prompt becomes the field `user_msg` of its start event, or its only
field, or `input` if it declares none; a JSON object sets several. The result of its stop event is the output.

A step that ignores a cancel is abandoned by LlamaIndex after half a second, and not named in the log.

The events of LlamaIndex's agents (`AgentStream`, `ToolCall`, `ToolCallResult`, `AgentOutput`) are shown as text, tools
and usage, any other as a custom event. A step can also report through `nbrun.current()`.

An `InputRequiredEvent` asks the user: its `prefix` or `msg` is the question, `tool_kwargs` or its other fields are the
arguments, `tool_id` names the tool. The answer is the `HumanResponseEvent` that the workflow waits for, with the same
fields and: `response` ("yes" or the user's text, "" if denied), `approved`, `args` (edited or not) and `reason`. The
workflow's own `timeout`, 45 s by default, keeps running meanwhile.

A run resumes from the workflow's context: a step that was running starts again, and every question is asked again,
answered or not. LlamaIndex leaves an agent's memory out of the context; its usual one, a `ChatMemoryBuffer`, is added.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from nbrun.agents import (
    BadOption,
    Framework,
    FrameworkAdapter,
    Items,
    Limitations,
    Output,
    RunContext,
    State,
    Turn,
    json_object,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from nbrun.agents.llama_index import resume

CANCEL_S = 0.3  # for a workflow to end by itself before its tasks are cancelled
LOOK_S = 0.5  # between two checks whether a silent workflow is alive


class LlamaIndexAdapter(FrameworkAdapter):
    """Drives a `workflows.Workflow`."""

    name = "llama-index"
    agent_class = ("workflows.workflow", "Workflow")
    framework = Framework("workflows", "llama-index")
    limitations = Limitations(
        steering="workflows don't take messages; a step can read run.inbox itself",
        process="a workflow holds its runtime, which can't be pickled; create it inside an async function",
    )

    def __init__(self) -> None:
        self._running: dict[str, tuple[Any, resume.Checkpoint]] = {}  # by run id, on the host's loop

    def label(self, agent: Any) -> str:
        """Return the workflow's name."""
        return str(getattr(agent, "name", None) or agent.workflow_name.rpartition(".")[2])

    def events(self, agent: Any, prompt: str, run: RunContext) -> Items:
        """Yield what the workflow does, with the conversation of earlier runs before the prompt."""
        return self._driven(agent, run, start=_start(agent, prompt, run.history))

    async def resume(self, agent: Any, state: State, run: RunContext) -> Items:
        """Yield what the workflow does from there on; all questions are asked again."""
        from nbrun.agents.llama_index import resume

        context, questions = resume.restore(agent, state)
        run.checkpoint(state)  # in case it stops before it saves its own
        async for item in self._driven(agent, run, start={"ctx": context}, questions=questions):
            yield item

    async def _driven(self, agent: Any, run: RunContext, start: dict[str, Any], questions: Any = ()) -> Items:
        from workflows.errors import WorkflowCancelledByUser

        from nbrun.agents.llama_index import resume
        from nbrun.agents.llama_index.stream import StreamMapper

        handler = agent.run(**start)
        checkpoint = resume.Checkpoint(run, agent, handler, questions)
        mapper = StreamMapper(run, agent, handler, checkpoint)
        self._running[run.run_id] = handler, checkpoint
        for question in questions:
            mapper.ask(*question)
        try:
            async with aclosing(_stream(handler)) as stream:
                async for event in stream:
                    for item in mapper.map(event):
                        yield item
            yield Output(mapper.output(await handler))
        except WorkflowCancelledByUser as error:
            run.token.raise_if_cancelled()
            raise mapper.error or error from None
        finally:
            self._running.pop(run.run_id, None)
            await mapper.close()
            if not handler.is_done():  # it runs on if only the reader of its stream is cancelled
                await asyncio.wait((_cancelled(handler),))

    async def cancel(self, run: RunContext) -> None:
        """Cancel the workflow with its steps."""
        if run.run_id in self._running:
            handler, checkpoint = self._running[run.run_id]
            checkpoint.save(is_last=True)
            _cancelled(handler)


ADAPTER = LlamaIndexAdapter()
_cancelling: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly


def _cancelled(handler: Any) -> asyncio.Task[None]:
    """Return a task that cancels a workflow and ends with it; separate, as it can't be cancelled at a stuck step."""
    task: asyncio.Task[None] = asyncio.create_task(handler.cancel_run(timeout=CANCEL_S))
    _cancelling.add(task)
    task.add_done_callback(_cancelling.discard)
    return task


async def _stream(handler: Any) -> AsyncGenerator[Any, None]:
    """Yield a workflow's events until the last one, or until the workflow has died without it."""
    stream = handler.stream_events(expose_internal=True)
    while True:
        coming = asyncio.ensure_future(anext(stream, None))
        try:
            while not coming.done() and not handler.is_done():
                await asyncio.wait({coming}, timeout=LOOK_S)
            if not coming.done():
                await asyncio.sleep(0)  # its last event may be on its way
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait({coming})
        if coming.cancelled() or (event := coming.result()) is None:
            return
        yield event


def _start(workflow: Any, prompt: str, history: tuple[Turn, ...]) -> dict[str, Any]:
    """Return the fields of the workflow's start event."""
    start_class = workflow.start_event_class
    fields = start_class.model_fields
    # LlamaIndex's agents take fields that their start event doesn't declare.
    is_agent = any(c.__name__ == "AgentWorkflowStartEvent" for c in start_class.__mro__)
    names = {*fields, *(("user_msg", "chat_history") if is_agent else ())}
    given = json_object(prompt)
    if given is not None and (not names or set(given) <= names):
        reserved = ("ctx", "run_id", "start_event")
        start = {name: value for name, value in given.items() if name not in reserved}
    else:
        required = [name for name, field in fields.items() if field.is_required()]
        if "user_msg" in names:
            name = "user_msg"
        elif len(required) == 1 or len(fields) == 1:
            name = (required or list(fields))[0]
        elif not required:
            name = "input"
        else:
            raise BadOption(f"this workflow takes {', '.join(fields)}: give a JSON object with these as the prompt")
        start = {name: prompt}
    if "chat_history" in names and "chat_history" not in start:
        start["chat_history"] = [{"role": t.role, "content": t.text} for t in history if t.text]
    return start
