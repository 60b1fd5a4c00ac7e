"""A session of Google's ADK: its runner, with a plugin that counts, shows and asks, and its events as nbrun's."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from google.adk.agents.run_config import RunConfig, StreamingMode, ToolThreadPoolConfig
from google.adk.apps.app import App
from google.adk.events.event import Event
from google.adk.plugins.base_plugin import BasePlugin
from google.adk.runners import Runner
from google.adk.sessions.in_memory_session_service import InMemorySessionService
from google.adk.tools.tool_confirmation import ToolConfirmation
from google.genai import types

from nbrun.agents import (
    INTERRUPTED,
    USER,
    NbrunError,
    RunContext,
    State,
    Tools,
    args_of,
    events as ev,
    plain,
    pricing,
    result_of,
    unreadable,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

USER_ID = "nbrun"
CONFIRM = "adk_request_confirmation"  # the call by which ADK asks for what a tool's own code wants confirmed
THREADS = 64  # for the sync functions of all runs


class Session:
    """One run in a session of its own. Threads: of the host's loop."""

    def __init__(self, run: RunContext, agent: Any) -> None:
        self.run = run
        self.asked: list[types.FunctionCall] = []  # what the last invocation has stopped for
        self._runner = _runner(agent, Plugin(run, self))
        self._events: list[Event] = []
        self._asking: set[str] = set()  # calls that the user is being asked about
        self._streamed: defaultdict[tuple[str, str | None], str] = defaultdict(str)
        self._output: object = None
        self._failure = ""

    async def begin(self, events: Sequence[Event]) -> None:
        """Create the session, with the events of an earlier one or the conversation of earlier runs."""
        service, app_name = self._runner.session_service, self._runner.app_name
        self._session = await service.create_session(app_name=app_name, user_id=USER_ID, session_id=self.run.run_id)
        for event in events or _history(self.run, self._runner.agent.name):
            await self.add(event)

    async def add(self, event: Event) -> None:
        """Add an event to the session."""
        await self._runner.session_service.append_event(self._session, event)
        self._events.append(event)

    def message(self, texts: Iterable[str]) -> types.Content:
        """Return what the user says."""
        return types.Content(role=USER, parts=[types.Part(text=text) for text in texts])

    async def answers(self, asked: Sequence[types.FunctionCall]) -> types.Content:
        """Ask the user about these calls, and return the answers."""
        parts = await asyncio.gather(*(self._answer(call) for call in asked))
        return types.Content(role=USER, parts=parts)

    async def _answer(self, asked: types.FunctionCall) -> types.Part:
        args: dict[str, Any] = asked.args or {}
        call, wanted = args.get("originalFunctionCall") or {}, args.get("toolConfirmation") or {}
        name, payload = str(call.get("name")), wanted.get("payload")
        shown = call.get("args") if payload is None else payload
        message = str(wanted.get("hint") or f"Use {name}?")
        answer = await self.run.ask(message, args=shown, tool=name, editable=payload is not None)
        given = ToolConfirmation(confirmed=bool(answer), payload=payload if payload is None else answer.args)
        response = given.model_dump(by_alias=True)
        return types.Part(function_response=types.FunctionResponse(id=asked.id, name=CONFIRM, response=response))

    def invoke(self, message: types.Content) -> AsyncGenerator[Event, None]:
        """Run the agent on a message."""
        config = RunConfig(
            streaming_mode=StreamingMode.SSE, tool_thread_pool_config=ToolThreadPoolConfig(max_workers=THREADS)
        )
        self.asked = []
        stream: AsyncGenerator[Event, None] = self._runner.run_async(
            user_id=USER_ID, session_id=self.run.run_id, new_message=message, run_config=config, yield_user_message=True
        )
        return stream

    def map(self, event: Event) -> list[ev.EventData]:
        """Return nbrun's events for one of ADK's; keep those that are complete."""
        if not event.partial:
            self._events.append(event)
            self.asked += [call for call in event.get_function_calls() if call.name == CONFIRM]
            self.save()
        if event.author == USER:
            return []
        texts = [(part.text, bool(part.thought)) for part in (event.content and event.content.parts) or () if part.text]
        key = event.author, event.branch
        if event.partial:
            self._streamed[key] += "".join(text for text, is_thought in texts if not is_thought)
            return [ev.ReasoningDelta(text) if is_thought else ev.TextDelta(text) for text, is_thought in texts]
        # The whole once more, unless the model doesn't stream.
        streamed = self._streamed.pop(key, "")
        said = streamed or "".join(text for text, is_thought in texts if not is_thought)
        if event.is_final_response():
            self._output = said if event.output is None else event.output
            code = event.error_code
            self._failure = f"{event.error_message or 'the model gave no answer'} ({code})" if code and not said else ""
        return [
            *([ev.TextDelta(said)] if said and not streamed else ()),
            *([ev.Message("assistant", said)] if said else ()),
        ]

    def result(self) -> object:
        """Return the last answer; raise `NbrunError` if there is an error in its place."""
        if self._failure:
            raise NbrunError(self._failure)
        return self._output

    def asks(self, call_id: str, *, is_open: bool) -> None:
        """Note that the user is being asked about a call, or has answered."""
        (self._asking.add if is_open else self._asking.discard)(call_id)
        self.save()

    def save(self) -> None:
        """Save the events as a checkpoint."""
        kept = [event.model_dump(mode="json", by_alias=True, exclude_none=True) for event in self._events]
        self.run.checkpoint({"events": kept, "asking": sorted(self._asking)})


class Plugin(BasePlugin):  # type: ignore[misc]  # known only where the package is
    """Counts model calls and their usage, delivers messages, asks about tools and shows them; of nested agents, too."""

    def __init__(self, run: RunContext, session: Session) -> None:
        super().__init__("nbrun")
        self._run = run
        self._session = session
        self._tools = Tools(run.clock)
        self._denied: dict[str, str] = {}

    async def before_model_callback(self, *, callback_context: Any, llm_request: Any) -> None:
        """Check the budget, and deliver messages; an agent that is a tool has a session of its own, and gets none."""
        self._run.begin_turn()
        if callback_context.session.id == self._run.run_id and (texts := self._run.inbox.take()):
            said = self._session.message(texts)
            llm_request.contents.append(said)
            invocation = callback_context.invocation_id
            await self._session.add(Event(author=USER, invocation_id=invocation, content=said))

    async def after_model_callback(self, *, callback_context: Any, llm_response: Any) -> None:
        """Report what a call has used, when its response is complete."""
        used = llm_response.usage_metadata
        if used is None or llm_response.partial:
            return
        thoughts = int(used.thoughts_token_count or 0)
        tokens: dict[str, Any] = {
            "input_tokens": used.prompt_token_count or 0,
            "output_tokens": (used.candidates_token_count or 0) + thoughts,
            "cache_read_tokens": used.cached_content_token_count or 0,
        }
        model = llm_response.model_version
        cost = pricing.cost_usd(str(model), **tokens) if model else None
        self._run.usage(**tokens, reasoning_tokens=thoughts, cost_usd=cost)

    async def before_tool_callback(self, *, tool: Any, tool_args: dict[str, Any], tool_context: Any) -> Any:
        """Show a tool, and ask the user if it needs that; return what the model gets if it is denied."""
        run, call_id = self._run, str(tool_context.function_call_id)
        # ADK's task for this call is the run's, and so are the threads that it starts for a sync function.
        if run.library_tasks is not None and (task := asyncio.current_task()) is not None:
            run.library_tasks.pop(task, None)
        for event in self._tools.start(call_id, tool.name, tool_args):
            run.send(event)
        if tool_context.tool_confirmation is not None or not await tool.check_require_confirmation(
            tool_args, tool_context
        ):
            return None
        self._session.asks(call_id, is_open=True)
        answer = await run.ask(f"Use {tool.name}?", args=tool_args, tool_id=call_id, tool=tool.name)
        self._session.asks(call_id, is_open=False)
        if answer and isinstance(answer.args, dict):  # exactly those that the user saw, or edited ones
            tool_args.clear()
            tool_args.update(answer.args)
            tool_context.tool_confirmation = ToolConfirmation(confirmed=True)
            return None
        self._denied[call_id] = answer.text
        reason = "The edited arguments aren't a JSON object." if answer else answer.text
        return {"error": reason or "The user did not allow this."}

    async def after_tool_callback(
        self, *, tool: Any, tool_args: dict[str, Any], tool_context: Any, result: Any
    ) -> None:
        """Show a tool's end."""
        call_id = str(tool_context.function_call_id)
        if call_id in self._denied:
            self._finish(call_id, "denied", self._denied.pop(call_id) or None)
        else:
            is_error = isinstance(result, dict) and bool(result.get("error"))
            whole = result["result"] if isinstance(result, dict) and list(result) == ["result"] else result
            self._finish(call_id, "error" if is_error else "ok", whole)

    async def on_tool_error_callback(
        self, *, tool: Any, tool_args: dict[str, Any], tool_context: Any, error: Exception
    ) -> None:
        """Show that a tool has failed, or was cancelled; what follows from that is up to ADK."""
        status = "cancelled" if self._run.token.cancelled else "error"
        self._finish(str(tool_context.function_call_id), status, f"{type(error).__name__}: {error}")

    def _finish(self, call_id: str, status: str, result: object) -> None:
        if call_id in self._tools.began:
            self._run.send(self._tools.finish(call_id, status, plain(result)))


def _runner(agent: Any, plugin: Plugin) -> Runner:
    """Return a runner of an agent or an app, or one with the services of a runner, that has the plugin too."""
    names = "artifact_service", "memory_service", "credential_service", "session_service"
    services: dict[str, Any] = {"session_service": InMemorySessionService()}
    if isinstance(agent, Runner):
        services = {name: getattr(agent, name) for name in names} | {"app_name": agent.app_name}
        agent = agent.app
    if not isinstance(agent, App):
        agent = App.model_construct(name=agent.name, root_agent=agent, plugins=[])
    # The first one, since a plugin that answers ends a callback.
    return Runner(app=agent.model_copy(update={"plugins": [plugin, *agent.plugins]}), **services)


def _history(run: RunContext, name: str) -> list[Event]:
    """Return the conversation of earlier runs, of any agent, as events."""
    events = []
    for turn in run.history:
        if turn.calls:
            calls = [types.FunctionCall(id=call.id, name=call.name, args=args_of(call)) for call in turn.calls]
            events.append(_event(name, [types.Part(function_call=call) for call in calls]))
            events.append(_responses(name, [(call.id, call.name, result_of(call)) for call in turn.calls]))
        if turn.text:
            events.append(_event(USER if turn.role == USER else name, [types.Part(text=turn.text)]))
    return events


def _event(author: str, parts: list[types.Part]) -> Event:
    role = USER if author == USER else "model"
    return Event(author=author, invocation_id="earlier", content=types.Content(role=role, parts=parts))


def _responses(author: str, given: Iterable[tuple[str | None, str | None, str]]) -> Event:
    made = [types.FunctionResponse(id=i, name=name, response={"result": text}) for i, name, text in given]
    event = _event(author, [types.Part(function_response=response) for response in made])
    event.content.role = USER
    return event


def restore(state: State) -> tuple[list[Event], list[types.FunctionCall]]:
    """Return the events to resume with, and what the user is asked again.

    A call that the user was being asked about is left out, so the model makes it again.
    """
    kept: Any = state
    try:
        events = [Event.model_validate(event) for event in kept["events"]]
        asking = set(kept["asking"])
    except (LookupError, TypeError, ValueError) as error:
        raise unreadable(error) from None
    done = {response.id for event in events for response in event.get_function_responses()}
    asked: list[types.FunctionCall] = []
    cut: list[types.FunctionCall] = []
    for event in list(events):
        for call in event.get_function_calls():
            if call.id in asking and call.id not in done:
                event.content.parts = [part for part in event.content.parts if part.function_call != call]
                if not event.content.parts:
                    events.remove(event)
            elif call.id not in done:
                (asked if call.name == CONFIRM else cut).append(call)
    if cut:
        author = next(event.author for event in reversed(events) if event.author != USER)
        events.append(_responses(author, [(call.id, call.name, INTERRUPTED) for call in cut]))
    return events, asked
