"""Workflows of LlamaIndex, its agents among them: what they write to their stream, and their steps, as events.

`%%agentrun workflow` takes any `Workflow`. The prompt is the `user_msg` of its start event, or its only field, or
`input` where it names none; a JSON object gives several. The result of its stop event is the output.

| Where it is | What you do | How it ends |
| --- | --- | --- |
| in an async step or tool, or in a model's text | any cancel of the run | at once: the workflow cancels its steps |
| in a sync step or tool | the same | after the grace period, by an exception in its thread, or named |
| in a step that does not take its cancel | the same | LlamaIndex lets go of it after half a second, unnamed |
| at an `InputRequiredEvent`, while a question is open | the same | at once: the question is withdrawn |

What LlamaIndex's agents write to their stream (`AgentStream`, `ToolCall`, `ToolCallResult`, `AgentOutput`) is shown as
text, tools and usage; any other event as one of the workflow's own. A workflow's model may also tell by
`nbrun.current()` what it does.

An `InputRequiredEvent` asks: its `prefix` or `msg` is the question, `tool_kwargs` or else its other fields are what is
to be allowed, `tool_id` the tool that it is about. The answer is the `HumanResponseEvent` that the workflow waits for,
with the same fields and: `response` ("yes" or what the person wrote, and "" when it is denied), `approved`, `args`
(as the person may have changed them) and `reason`. A workflow's own `timeout`, of 45 s unless it says otherwise, goes
on meanwhile.

A run that stopped goes on from the workflow's context: a step that was under way begins anew, as LlamaIndex has it,
and whatever a person had said is asked again. Of an agent's memory, LlamaIndex keeps none there; its usual one, a
`ChatMemoryBuffer`, is kept beside. A message into a running workflow has no place, unless a step looks at `run.inbox`.

Matched by class name; the framework is imported with the first run.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from nbrun.agents import (
    BadOption,
    Framework,
    Limitations,
    Output,
    RunContext,
    State,
    Turn,
    events as ev,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from nbrun.agents.llama_index.resume import Memory

    Items = AsyncIterator[ev.EventData | Output]

PACKAGE = "workflows"
CANCEL_S = 0.3
"""How long a workflow may take to end by itself before its tasks are cancelled."""
LOOK_S = 0.5
"""How often a silent workflow is checked for being alive."""


class LlamaIndexAdapter:
    """Drives a `workflows.Workflow`.

    Threads: of the loop that the workflow is on; `_handlers` holds what each run that is under way is cancelled by.
    """

    name = "llama-index"
    framework = Framework(PACKAGE, "llama-index")
    limitations = Limitations(
        steering="workflows don't take messages; a step can read run.inbox itself",
        process="a workflow holds its runtime, which can't be pickled; create it inside an async function",
    )

    def __init__(self) -> None:
        self._handlers: dict[str, tuple[Any, Memory]] = {}

    def match(self, agent: object) -> bool:
        """Return whether the object is a workflow."""
        return any(
            base.__module__ == "workflows.workflow" and base.__name__ == "Workflow"
            for base in type(agent).__mro__
        )

    def check(self, agent: object) -> None:
        """Accept any; LlamaIndex itself reports what its steps lack."""

    def label(self, agent: Any) -> str:
        """Return the workflow's name."""
        return str(getattr(agent, "name", None) or agent.workflow_name.rpartition(".")[2])

    def events(self, agent: Any, prompt: str, run: RunContext) -> Items:
        """Yield what the workflow does, after what was said in the runs that this one continues."""
        return self._driven(agent, run, start=_start(agent, prompt, run.history))

    async def resume(self, agent: Any, state: State, run: RunContext) -> Items:
        """Yield what the workflow does from there on; a person is asked again about what was answered, too."""
        from nbrun.agents.llama_index.resume import restore

        context, requests = restore(agent, state)
        run.checkpoint(state)  # in case it stops before it has a checkpoint of its own
        async for item in self._driven(agent, run, start={"ctx": context}, asked=requests):
            yield item

    async def _driven(
        self, agent: Any, run: RunContext, start: dict[str, Any], asked: Any = ()
    ) -> Items:
        from workflows.errors import WorkflowCancelledByUser

        from nbrun.agents.llama_index.resume import Memory
        from nbrun.agents.llama_index.stream import StreamMapper

        handler = agent.run(**start)
        memory = Memory(run, agent, handler, asked)
        watch = StreamMapper(run, handler, memory)
        self._handlers[run.run_id] = handler, memory
        watch.ask_again(asked)
        try:
            async with aclosing(_stream(handler)) as stream:
                async for event in stream:
                    for item in watch.mapped(event):
                        yield item
            yield Output(watch.output(await handler))
        except WorkflowCancelledByUser:
            run.token.raise_if_cancelled()
            watch.raise_error()
            raise
        finally:
            self._handlers.pop(run.run_id, None)
            await watch.close()
            if not handler.is_done():  # cancelling who reads its stream leaves it running
                await asyncio.wait((_cancelled(handler),))

    async def cancel(self, run: RunContext) -> None:
        """Cancel the workflow, with what it has under way."""
        if run.run_id in self._handlers:
            handler, memory = self._handlers[run.run_id]
            memory.save(is_last=True)
            _cancelled(handler)


ADAPTER = LlamaIndexAdapter()


def _cancelled(handler: Any) -> asyncio.Task[None]:
    """Cancel a workflow; return the task that ends when nothing of it runs any more.

    A task of its own, for it takes no cancel itself while it waits for a step that does not stop.
    """
    task: asyncio.Task[None] = asyncio.create_task(handler.cancel_run(timeout=CANCEL_S))
    _ending.add(task)
    task.add_done_callback(_ending.discard)
    return task


_ending: set[asyncio.Task[None]] = set()  # else the loop alone holds them, and weakly


async def _stream(handler: Any) -> AsyncGenerator[Any, None]:
    """Yield a workflow's events, to their end, or until it has died without a last one."""
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
    """Return what the workflow's start event is made of."""
    fields = workflow.start_event_class.model_fields
    # LlamaIndex's agents take what their start event does not declare.
    is_agent = any(c.__name__ == _AGENTS for c in workflow.start_event_class.__mro__)
    names = {*fields, *((USER_MSG, "chat_history") if is_agent else ())}
    given = _object(prompt)
    if given is not None and (not names or set(given) <= names):
        start = {name: value for name, value in given.items() if name not in _NO_FIELDS}
    else:
        required = [name for name, field in fields.items() if field.is_required()]
        if USER_MSG in names:
            name = USER_MSG
        elif len(required) == 1 or len(fields) == 1:
            name = (required or list(fields))[0]
        elif not required:
            name = "input"
        else:
            words = ", ".join(fields)
            raise BadOption(
                f"this workflow takes {words}: give a JSON object with these as the prompt"
            )
        start = {name: prompt}
    if "chat_history" in names and "chat_history" not in start:
        start["chat_history"] = [{"role": t.role, "content": t.text} for t in history if t.text]
    return start


USER_MSG = "user_msg"
_AGENTS = "AgentWorkflowStartEvent"
_NO_FIELDS = ("ctx", "run_id", "start_event")


def _object(prompt: str) -> dict[str, Any] | None:
    try:
        given = json.loads(prompt)
    except ValueError:
        return None
    return given if isinstance(given, dict) else None
