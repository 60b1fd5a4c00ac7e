"""A session of Claude Code: its messages as events, its permission requests as questions to the user."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import claude_agent_sdk as sdk

from nbrun.agents import (
    ALLOW,
    Answer,
    Cancelled,
    Items,
    NbrunError,
    Output,
    Process,
    RunContext,
    Tools,
    events as ev,
    plain,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

# How a session is chosen: options of the user's that a resumed one must not keep.
_RESUMED = {"continue_conversation": False, "session_id": None, "fork_session": False, "resume_session_at": None}
QUESTIONS = "AskUserQuestion"  # the tool by which Claude asks something
_BACKGROUND = ("local_agent", "local_workflow")  # tasks whose end begins another turn
_ENDED = ("completed", "failed", "stopped", "killed")
_STREAMED = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
_TOTALS = ("inputTokens", "cacheCreationInputTokens", "cacheReadInputTokens", "outputTokens")


class Session:
    """One run of Claude Code. Threads: of the host's loop."""

    def __init__(self, run: RunContext, options: Any, known: str | None) -> None:
        self._run = run
        self._tools = Tools(run.clock)
        self._denied: dict[str, str] = {}
        self._text = self._thoughts = ""  # streamed, and not complete yet
        self._session_id = known
        self._usage = Usage(run)
        self._unheard: set[str] = set()  # ids of our messages that no turn has taken in
        self._has_ids = False  # whether this Claude Code reports which ones a turn has taken in
        self._background: set[str] = set()
        self._say_lock = asyncio.Lock()
        self._process: Process | None = None  # once it has answered
        self._connecting: asyncio.Task[None] | None = None
        servers = options.mcp_servers if isinstance(options.mcp_servers, dict) else {}
        # Functions of this process, which go by their own names on the card.
        self._own = [f"mcp__{name}__" for name, server in servers.items() if server.get("type") == "sdk"]
        changed: dict[str, Any] = {"include_partial_messages": True, **_limits(run, options)}
        if known is not None:
            changed |= _RESUMED | {"resume": known}
        if options.can_use_tool is None and options.permission_prompt_tool_name is None:
            changed["can_use_tool"] = self._may_use
            # Tools that the options allow aren't asked about, which is no surprise here.
            warnings.filterwarnings("ignore", category=sdk.CanUseToolShadowedWarning)
        if options.stderr is None:
            changed["stderr"] = lambda line: run.write(f"{line}\n", "stderr")
        self._client = sdk.ClaudeSDKClient(dataclasses.replace(options, **changed))

    async def items(self, prompt: str) -> Items:
        """Yield what the agent does from this prompt on, and its output."""
        run, client, result = self._run, self._client, None
        listener: asyncio.Task[None] | None = None
        try:
            await self._connect()
            await self._say([prompt])
            listener = asyncio.create_task(self._listen(), name=f"nbrun-claude-{run.run_id}")
            async for message in client.receive_messages():
                for event in self._map(message):
                    yield event
                if isinstance(message, sdk.ResultMessage) and await self._is_over(message):
                    result = message
                    break
        except sdk.ClaudeSDKError:
            run.token.raise_if_cancelled()  # it was ended by the cancel
            raise
        finally:
            if listener is not None:
                listener.cancel()
                await asyncio.wait({listener})
            if result is None and self._process is not None:
                self._process.stop()  # it would finish its answer first
            closing = asyncio.create_task(client.disconnect(), name=f"nbrun-claude-end-{run.run_id}")
            await _settled(closing, self._kill)
        run.token.raise_if_cancelled()
        if result is None:
            raise NbrunError("Claude Code has exited before it had answered")
        if _has_failed(result):
            self._raise(result)
        yield Output(result.result if result.structured_output is None else result.structured_output)

    async def cancel(self) -> None:
        """Interrupt the agent; before it has answered for the first time, kill its process."""
        if self._process is not None:
            await self._client.interrupt()
        else:
            self._stop_connecting()

    async def _connect(self) -> None:
        """Start the process, which becomes the run's: a cancel kills it if it doesn't end, and names it if it can't."""
        name = f"nbrun-claude-start-{self._run.run_id}"
        connecting = self._connecting = asyncio.create_task(self._client.connect(), name=name)
        await _settled(connecting, self._stop_connecting)
        if connecting.cancelled():
            self._run.token.raise_if_cancelled()
        self._process = self._find_process()
        if self._process is not None:
            self._run.add_work(self._process)

    def _stop_connecting(self) -> None:
        if self._connecting is not None and not self._connecting.done():
            if (process := self._find_process()) is not None:
                process.interrupt()  # else the SDK would wait for its end
            self._connecting.cancel()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.interrupt()

    def _find_process(self) -> Process | None:
        import psutil

        # Nothing public gives the process; without it, the SDK itself ends it, in up to 15 s.
        started = getattr(getattr(self._client, "_transport", None), "_process", None)
        with contextlib.suppress(psutil.Error):  # it has ended already
            return started and Process(psutil.Process(started.pid), "claude")
        return None

    def _raise(self, result: sdk.ResultMessage) -> None:
        limit = self._run.budget.limits.max_turns
        if result.subtype == "error_max_turns" and limit is not None and self._run.budget.begun >= limit:
            self._run.begin_turn()  # which the run's own limit refuses
        raise NbrunError("; ".join(result.errors or ()) or result.result or result.subtype)

    # --- to the agent ----------------------------------------------------------------------------

    async def _say(self, texts: Iterable[str]) -> None:
        """Send messages, and those that wait in the inbox, in their order."""

        async def messages() -> AsyncIterator[dict[str, Any]]:
            for text in [*texts, *self._run.inbox.take()]:
                message_id = str(uuid.uuid4())
                self._unheard.add(message_id)
                said = {"role": "user", "content": text}
                yield {"type": "user", "message": said, "parent_tool_use_id": None, "uuid": message_id}

        async with self._say_lock:
            await self._client.query(messages())

    async def _listen(self) -> None:
        with contextlib.suppress(Cancelled, sdk.ClaudeSDKError):  # the run's end is noted elsewhere
            while True:
                await self._say([await self._run.inbox.get()])

    async def _is_over(self, result: sdk.ResultMessage) -> bool:
        """Return whether no other turn follows this one: for a message, or for work in the background."""
        if _has_failed(result) or self._run.token.cancelled:
            return True
        heard = result.user_message_uuids or ()
        self._has_ids = self._has_ids or bool(heard)
        self._unheard.difference_update(heard if self._has_ids else self._unheard.copy())
        await self._say([])
        return not self._unheard and not self._background

    async def _may_use(self, name: str, args: dict[str, Any], context: sdk.ToolPermissionContext) -> Any:
        """Ask the user: about a tool, or what Claude itself wants to know."""
        tool_id, shown_name = context.tool_use_id or "", self._name(name)
        for event in self._tools.start(tool_id, shown_name, args):
            self._run.send(event)
        try:
            if name == QUESTIONS:
                answer = await self._ask(tool_id, args)
            else:
                answer = await self._run.ask(f"Use {shown_name}?", args=args, tool_id=tool_id, tool=name)
        except Cancelled:
            if not self._run.token.cancelled:
                raise
            return sdk.PermissionResultDeny(message="The run was cancelled.", interrupt=True)
        await self._say([])  # so that it hears first what was said before the answer
        if answer and isinstance(answer.args, dict):
            return sdk.PermissionResultAllow(updated_input=answer.args)
        self._denied[tool_id] = answer.text
        reason = "The edited arguments aren't a JSON object." if answer else answer.text
        return sdk.PermissionResultDeny(message=reason or "The user did not allow this.")

    async def _ask(self, tool_id: str, args: dict[str, Any]) -> Answer:
        """Ask Claude's questions one by one, and return their answers as the arguments; the first denial ends it."""
        answers: dict[str, str] = {}
        for asked in args["questions"]:
            options = [option["label"] for option in asked["options"]]
            answer = await self._run.ask(asked["question"], options=options, tool_id=tool_id)
            if not answer:
                return answer
            answers[asked["question"]] = f"{answer.decision}: {answer.text}" if answer.text else answer.decision
        return Answer(ALLOW, {**args, "answers": answers})

    # --- from the agent --------------------------------------------------------------------------

    def _map(self, message: object) -> Iterable[ev.EventData]:
        match message:
            case sdk.StreamEvent(parent_tool_use_id=None, event=event):
                return self._stream(event)
            case sdk.AssistantMessage(content=blocks, parent_tool_use_id=parent):
                return [event for block in blocks for event in self._block(block, is_own=parent is None)]
            case sdk.UserMessage(content=list(blocks)):
                return [event for block in blocks for event in self._block(block, is_own=False)]
            case sdk.TaskStartedMessage(task_id=task, task_type=kind) if kind in _BACKGROUND:
                self._background.add(task)
            case sdk.TaskNotificationMessage(task_id=task):
                self._background.discard(task)
            case sdk.TaskUpdatedMessage(task_id=task, status=status) if status in _ENDED:
                self._background.discard(task)
            case sdk.SystemMessage(subtype="init", data={"session_id": str(known)}) if known != self._session_id:
                self._session_id = known
                self._run.checkpoint({"session": known})
            case sdk.ResultMessage():
                self._usage.end(message)
        return []

    def _stream(self, event: dict[str, Any]) -> Iterable[ev.EventData]:
        match event:
            case {"type": "message_start", "message": message}:
                self._run.begin_turn()
                self._usage.note(message.get("usage") or {}, is_new=True)
            case {"type": "message_delta", "usage": dict(usage)}:
                self._usage.note(usage)
            case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": str(text)}} if text:
                self._text += text
                return [ev.TextDelta(text)]
            case {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": str(text)}} if text:
                self._thoughts += text
                return [ev.ReasoningDelta(text)]
        return []

    def _block(self, block: object, *, is_own: bool) -> Iterable[ev.EventData]:
        """Return the events of a complete block; the text of a subagent isn't the run's."""
        match block:
            case sdk.TextBlock(text=text) if is_own and text:
                streamed, self._text = self._text, ""
                return [*(() if streamed else [ev.TextDelta(text)]), ev.Message("assistant", streamed or text)]
            case sdk.ThinkingBlock(thinking=text) if is_own and text:
                streamed, self._thoughts = self._thoughts, ""
                return () if streamed else [ev.ReasoningDelta(text)]
            case sdk.ToolUseBlock(id=tool_id, name=name, input=args):
                return self._tools.start(tool_id, self._name(name), args)
            case sdk.ServerToolUseBlock(id=tool_id, name=name, input=args):
                return self._tools.start(tool_id, str(name), args, "server")
            case sdk.ToolResultBlock(tool_use_id=tool_id, content=content, is_error=is_error):
                return self._finish(tool_id, content, "error" if is_error else "ok")
            case sdk.ServerToolResultBlock(tool_use_id=tool_id, content=content):
                return self._finish(tool_id, content, "ok")
        return ()

    def _finish(self, tool_id: str, content: object, status: str) -> Iterable[ev.EventData]:
        if tool_id not in self._tools.began:
            return ()
        if tool_id in self._denied:
            return [self._tools.finish(tool_id, "denied", self._denied.pop(tool_id) or None)]
        if status == "error" and self._run.token.cancelled:
            status = "cancelled"
        if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
            content = "\n".join(str(part["text"]) for part in content)
        return [self._tools.finish(tool_id, status, plain(content))]

    def _name(self, name: str) -> str:
        return next((name.removeprefix(own) for own in self._own if name.startswith(own)), name)


async def _settled(work: asyncio.Task[None], stop: Callable[[], None]) -> None:
    """Wait for a task; if this wait is cancelled, stop what it waits for first, so that its pipes are closed."""
    try:
        await asyncio.wait({work})
    finally:
        if not work.done():
            stop()
            await asyncio.wait({work})
        failed = None if work.cancelled() else work.exception()
    if failed is not None:
        raise failed


class Usage:
    """The tokens and the cost of a run: by the model's messages while it runs, exactly at a turn's end.

    The process makes the calls, so they aren't counted anywhere else. Its totals grow from one turn to the next.
    """

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._done: Counter[str] = Counter()  # by earlier messages
        self._now: Counter[str] = Counter()  # by this one
        self._reported: Counter[str] = Counter()
        self._cost = 0.0

    def note(self, usage: dict[str, Any], *, is_new: bool = False) -> None:
        """Take the totals of a message so far."""
        if is_new:
            self._done, self._now = self._done + self._now, Counter()
        self._now |= _tokens(usage, *_STREAMED)
        # The cost is known at a turn's end; without one, a limit would be said to be unenforceable.
        self._report(self._done + self._now, None if self._run.budget.limits.max_cost is None else self._cost)

    def end(self, result: sdk.ResultMessage) -> None:
        """Take the totals of the process: with those of subagents, and of small models that it uses besides."""
        totals: Counter[str] = Counter()
        for usage in (result.model_usage or {}).values():
            totals += _tokens(dict(usage), *_TOTALS)
        self._report(totals or self._done + self._now, result.total_cost_usd)

    def _report(self, totals: Counter[str], cost: float | None) -> None:
        new, cost_usd = totals - self._reported, None
        if cost is not None:
            cost_usd, self._cost = max(0.0, cost - self._cost), max(cost, self._cost)
        if new or cost_usd:
            self._run.usage(**new, cost_usd=cost_usd)
        self._reported |= totals


def _tokens(usage: dict[str, Any], fresh: str, written: str, read: str, output: str) -> Counter[str]:
    """Return tokens by nbrun's names; Claude's input tokens are without those read from a cache or written to it."""
    counts = {name: value for name, value in usage.items() if isinstance(value, int) and value > 0}
    whole = sum(counts.get(name, 0) for name in (fresh, written, read))
    return Counter(input_tokens=whole, output_tokens=counts.get(output, 0), cache_read_tokens=counts.get(read, 0))


def _has_failed(result: sdk.ResultMessage) -> bool:
    return bool(result.is_error or result.subtype != "success")


def _limits(run: RunContext, options: Any) -> dict[str, Any]:
    """Return the run's limits as options, so that no call is begun beyond them."""
    limits, budget, found = run.budget.limits, run.budget, {}
    if limits.max_turns is not None:
        left = max(1, limits.max_turns - budget.begun)
        found["max_turns"] = min(left, options.max_turns or left)
    if limits.max_cost is not None:
        left_usd = max(0.0, limits.max_cost - budget.used.cost)
        found["max_budget_usd"] = min(left_usd, options.max_budget_usd or left_usd)
    return found
