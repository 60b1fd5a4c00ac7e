"""Agents of Google's Agent Development Kit (ADK): text, thoughts, tools and usage as events.

`%%agentrun agent` takes an agent, a workflow, an `App` or a `Runner`; of a runner, each run uses the services, and a
session of its own. Sync functions run in threads, so that they don't hold up other runs.

A tool with `require_confirmation` asks the user first, who may edit its arguments; one that asks with
`request_confirmation()` gets the edited payload. Messages are delivered before the next model call. A run resumes from
the events of its session, in another kernel too: a call that was cut off is reported to the model as interrupted.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from nbrun.agents import (
    CONTINUE,
    NO_NATIVE_CANCEL,
    Framework,
    FrameworkAdapter,
    Items,
    Limitations,
    Output,
    RunContext,
    State,
    provider_retries,
)


class GoogleAdkAdapter(FrameworkAdapter):
    """Drives an agent with a `Runner` of the run's own."""

    name = "google-adk"
    agent_class = ("google.adk", "BaseAgent", "BaseNode", "App", "Runner")
    framework = Framework("google.adk", "google-adk")
    limitations = Limitations(
        native_cancel=NO_NATIVE_CANCEL, process="an agent of ADK can't be pickled; create it inside an async function"
    )

    def label(self, agent: Any) -> str:
        """Return the agent's name; of an app or a runner, the app's."""
        return str(getattr(agent, "name", None) or getattr(agent, "app_name", None) or self.default_label)

    async def events(self, agent: Any, prompt: str, run: RunContext) -> Items:
        """Yield what the agent does, with the conversation of earlier runs before the prompt."""
        from nbrun.agents.google_adk.session import Session

        async for item in _driven(Session(run, agent), prompt, [], []):
            yield item

    async def resume(self, agent: Any, state: State, run: RunContext) -> Items:
        """Yield what the agent does from there on; open questions are asked again."""
        from nbrun.agents.google_adk.session import Session, restore

        events, asked = restore(state)
        run.checkpoint(state)  # in case it stops before it saves its own
        async for item in _driven(Session(run, agent), CONTINUE, events, asked):
            yield item


async def _driven(session: Any, prompt: str, events: list[Any], asked: list[Any]) -> Items:
    """Yield what the agent does; after each stop for the user or for messages, in another invocation."""
    provider_retries.listen()
    run: RunContext = session.run
    await session.begin(events)
    message = await session.answers(asked) if asked else session.message([prompt])
    while True:
        async with aclosing(session.invoke(message)) as stream:
            async for event in stream:
                for item in session.map(event):
                    yield item
        run.token.raise_if_cancelled()
        if session.asked:
            message = await session.answers(session.asked)
        elif texts := run.inbox.take():
            message = session.message(texts)
        else:
            break
    yield Output(session.result())


ADAPTER = GoogleAdkAdapter()
