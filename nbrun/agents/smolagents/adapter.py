"""Agents of smolagents: text, tools, code and usage as events; a sync framework, run in a thread of its own.

A cancel ends the run between two steps by the framework's `interrupt()`; a model's text, a tool and code are ended
like any sync tool, after the grace period.

A tool marked with `nbrun.needs_approval` asks the user first, who may edit its arguments. Text is streamed if the
agent has `stream_outputs=True`. A managed agent is shown as a tool with tools of its own, under the same budget. Each
run has a copy of the agent, so several can run at once; the agent's `memory` is that of the last one. A run resumes
from its last complete step, a `CodeAgent` without its variables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbrun.agents import Framework, FrameworkAdapter, Items, Limitations, Output, RunContext, State, provider_retries

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.agents.smolagents.instrument import Instrument

PACKAGE = "smolagents"


class SmolagentsAdapter(FrameworkAdapter):
    """Drives a `MultiStepAgent`."""

    name = PACKAGE
    agent_class = (PACKAGE, "MultiStepAgent")
    framework = Framework(PACKAGE, PACKAGE)
    limitations = Limitations(process="a smolagents agent holds a console, which can't be sent to another process")

    def __init__(self) -> None:
        self._instruments: dict[str, Instrument] = {}  # by run id, on the host's loop

    def label(self, agent: object) -> str:
        """Return the agent's name, or its class's."""
        return str(getattr(agent, "name", None) or type(agent).__name__)

    def events(self, agent: Any, prompt: str, run: RunContext) -> Items:
        """Yield the agent's answer; everything else is sent from its thread."""

        def begin() -> tuple[str | None, list[Any]]:
            from nbrun.agents.smolagents.resume import as_messages

            return prompt, as_messages(run.history)

        return self._driven(agent, run, begin)

    def resume(self, agent: Any, state: State, run: RunContext) -> Items:
        """Yield the answer of an agent that resumes."""

        def begin() -> tuple[str | None, list[Any]]:
            from nbrun.agents.smolagents.resume import continuation, restore

            run.checkpoint(state)  # in case it stops before it saves its own
            return continuation(agent, run.journal), restore(state)

        return self._driven(agent, run, begin)

    async def _driven(self, agent: Any, run: RunContext, begin: Callable[[], tuple[str | None, list[Any]]]) -> Items:
        def drive() -> object:
            from nbrun.agents.smolagents.instrument import Instrument

            provider_retries.listen()
            task, past = begin()
            instrument = self._instruments[run.run_id] = Instrument(agent, run)
            return instrument.drive(task, past)

        try:
            yield Output(await run.in_thread(drive))
        finally:
            self._instruments.pop(run.run_id, None)

    async def cancel(self, run: RunContext) -> None:
        """Make the agent stop before its next step."""
        instrument = self._instruments.get(run.run_id)
        if instrument is not None:
            instrument.interrupt()


ADAPTER = SmolagentsAdapter()
