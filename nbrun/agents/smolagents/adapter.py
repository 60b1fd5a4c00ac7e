"""Agents of smolagents: text, tools, code and usage as events; a sync framework, run in a thread of its own.

| Where it is | What you do | How it ends |
| --- | --- | --- |
| between two steps | any cancel of the run | at once, by the framework's `interrupt()` |
| in a tool, its code or its model's text | the same | after the grace period, by an exception in its thread, or named |
| while a question is open | the same | at once: the question is withdrawn |

A tool under `nbrun.needs_approval` asks a person first, who may change its arguments. Text is streamed where the
agent has `stream_outputs=True`. An agent that it manages is a tool with tools of its own, under the same budget. Each
run has a copy of the agent, so many may run at once; afterwards the agent's `memory` is that of the last one. A run
that stopped goes on from its last whole step, a `CodeAgent` without its variables.

Matched by class name; the framework is imported with the first run, which takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbrun.agents import (
    Framework,
    Limitations,
    Output,
    RunContext,
    State,
    events as ev,
    provider_retries,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nbrun.agents.smolagents.instrument import Instrument

    Items = AsyncIterator[ev.EventData | Output]

PACKAGE = "smolagents"


class SmolagentsAdapter:
    """Drives a `MultiStepAgent`.

    Threads: the host's loop; `_watches` holds what drives each run that is under way.
    """

    name = PACKAGE
    framework = Framework(PACKAGE, PACKAGE)
    limitations = Limitations(
        process="a smolagents agent holds a console, which can't be sent to another process"
    )

    def __init__(self) -> None:
        self._watches: dict[str, Instrument] = {}

    def match(self, agent: object) -> bool:
        """Return whether the object's class comes from the framework and is an agent."""
        return any(
            base.__module__.partition(".")[0] == PACKAGE and base.__name__ == "MultiStepAgent"
            for base in type(agent).__mro__
        )

    def check(self, agent: object) -> None:
        """Accept any; the framework itself reports what its model lacks."""

    def label(self, agent: object) -> str:
        """Return the agent's name, or its class's."""
        return str(getattr(agent, "name", None) or type(agent).__name__)

    def events(self, agent: Any, prompt: str, run: RunContext) -> Items:
        """Yield what the agent returns; the rest is told from its thread."""

        def begin() -> Callable[[Instrument], object]:
            from nbrun.agents.smolagents.resume import as_messages

            return lambda watch: watch.drive(prompt, as_messages(run.history))

        return self._driven(agent, run, begin)

    def resume(self, agent: Any, state: State, run: RunContext) -> Items:
        """Yield what the agent returns when it goes on."""

        def begin() -> Callable[[Instrument], object]:
            from nbrun.agents.smolagents.resume import go_on, unpacked

            run.checkpoint(state)  # in case it stops before it has a checkpoint of its own
            return lambda watch: watch.drive(go_on(agent), unpacked(state))

        return self._driven(agent, run, begin)

    async def _driven(
        self, agent: Any, run: RunContext, begin: Callable[[], Callable[[Instrument], object]]
    ) -> Items:
        def drive() -> object:
            from nbrun.agents.smolagents.instrument import Instrument

            provider_retries.listen()
            work = begin()
            watch = self._watches[run.run_id] = Instrument(agent, run)
            return work(watch)

        try:
            yield Output(await run.in_thread(drive))
        finally:
            self._watches.pop(run.run_id, None)

    async def cancel(self, run: RunContext) -> None:
        """Have the agent stop before its next step."""
        watch = self._watches.get(run.run_id)
        if watch is not None:
            watch.interrupt()


ADAPTER = SmolagentsAdapter()
