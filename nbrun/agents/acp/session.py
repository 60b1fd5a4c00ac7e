"""A session with an ACP agent: its updates as events, its permission requests as questions to the user."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from acp import PROTOCOL_VERSION, RequestError
from acp.client.connection import ClientSideConnection
from acp.helpers import text_block
from acp.schema import AllowedOutcome, ClientCapabilities, DeniedOutcome, Implementation, RequestPermissionResponse
from pydantic import ValidationError

from nbrun.agents import (
    ALLOW,
    DENY,
    Cancelled,
    NbrunError,
    Plain,
    RunContext,
    Tools,
    clean_text,
    events as ev,
    plain,
    shown,
)
from nbrun.agents.acp.process import AcpProcess, as_dict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from acp.schema import PermissionOption, ToolCallUpdate

    from nbrun.agents.acp.command import AcpAgent

WAITING = 100  # events that may wait for the run's log before the agent is paused
# The highest totals that are plausible.
MAX_TOTALS = {
    "cost_usd": 1e6, "input_tokens": 1e12, "output_tokens": 1e12, "cache_read_tokens": 1e12,
    "reasoning_tokens": 1e12,
}  # fmt: skip
MAX_NAME = 80  # characters of a tool name that can be always allowed

_STATUS = {"completed": "ok", "failed": "error"}


class Client:
    """The client of the protocol: gets the updates and permission requests of one run."""

    def __init__(self, run: RunContext, label: str) -> None:
        self.run = run
        self.process: AcpProcess | None = None
        self.session_id = ""  # if the session can be loaded again
        self.is_replaying = False  # while the agent repeats the updates of an earlier run
        self._label = label
        self._items: asyncio.Queue[ev.EventData | asyncio.Event | None] = asyncio.Queue(WAITING)
        self._is_over = False
        self._tools = Tools(run.clock)
        self._known: dict[str, tuple[str, Plain]] = {}  # name and arguments of the running tools
        self._ended: set[str] = set()
        self._denied: dict[str, str] = {}
        self._text: list[str] = []
        self._reported: dict[str, float] = {}  # totals of the session
        self.answer = ""  # the last complete message

    # --- updates ---------------------------------------------------------------------------------

    async def items(self) -> AsyncIterator[ev.EventData]:
        """Yield the events until `finish()`."""
        while (item := await self._items.get()) is not None:
            if isinstance(item, asyncio.Event):
                item.set()
            else:
                yield item

    async def finish(self) -> None:
        """Make `items()` end after the events so far."""
        for event in self._message():
            await self._put(event)
        await self._put(None)

    def abandon(self) -> None:
        """Drop all events. `items()` has no reader any more, so adding another event would block forever."""
        self._is_over = True
        while not self._items.empty():
            self._items.get_nowait()

    async def _put(self, item: ev.EventData | asyncio.Event | None) -> None:
        if not self._is_over:
            await self._items.put(item)

    async def take(self, params: object) -> None:
        """Take an update of the agent, whose parts may have any type."""
        if not self.is_replaying:
            for event in self._events(as_dict(as_dict(params).get("update"))):
                await self._put(event)

    async def _caught_up(self) -> None:
        """Wait until all earlier events are in the log."""
        mark = asyncio.Event()
        await self._put(mark)
        await mark.wait()

    def _events(self, update: dict[str, Any]) -> Iterable[ev.EventData]:
        match update.get("sessionUpdate"):
            case "agent_message_chunk":
                if text := _text(update.get("content")):
                    self._text.append(text)
                    return [ev.TextDelta(text)]
            case "agent_thought_chunk":
                if text := _text(update.get("content")):
                    return [ev.ReasoningDelta(text)]
            case "tool_call" | "tool_call_update":
                return self._tool(update)
            case "plan":
                return _plan(update.get("entries"))
            case "usage_update":
                cost = as_dict(update.get("cost"))  # of the whole session, in any currency
                if cost.get("currency") == "USD":
                    self.count(cost_usd=cost.get("amount"))
        return []

    def _message(self) -> list[ev.EventData]:
        text, self._text = "".join(self._text), []
        if not text:
            return []
        self.answer = text
        return [ev.Message("assistant", text)]

    def _tool(self, update: dict[str, Any]) -> list[ev.EventData]:
        tool_id = clean_text(str(update.get("toolCallId")))[:200]
        events: list[ev.EventData] = []
        if tool_id not in self._known:
            if update.get("sessionUpdate") == "tool_call_update" and tool_id in self._ended:
                return []  # too late
            name = clean_text(str(update.get("title") or update.get("kind") or "tool"))
            args = plain(update.get("rawInput"))
            self._known[tool_id] = name, args
            kind = clean_text(str(update.get("kind") or "other"))
            events = [*self._message(), *self._tools.start(tool_id, name, args, kind)]
        elif "rawInput" in update:  # the model was still writing them when the tool was reported
            self._known[tool_id] = self._known[tool_id][0], plain(update["rawInput"])
        status = _STATUS.get(str(update.get("status")))
        if status is None:
            return events
        del self._known[tool_id]
        self._ended.add(tool_id)
        result = update.get("rawOutput")
        result = plain(result) if result is not None else _contents(update.get("content"))
        if (reason := self._denied.pop(tool_id, None)) is not None:
            if status == "ok":
                self.run.log(f"{self._label} has used a tool that was denied: {tool_id}", "warning")
            else:
                status, result = "denied", reason or None
        return [*events, self._tools.finish(tool_id, status, result)]

    def count(self, **totals: object) -> None:
        """Report what is new in the session's totals; implausible ones are skipped."""
        new: dict[str, float] = {}
        for name, total in totals.items():
            before = self._reported.get(name, 0)
            if isinstance(total, int | float) and before < total < MAX_TOTALS[name]:
                new[name], self._reported[name] = total - before, total
        if new:
            self.run.usage(**new)  # type: ignore[arg-type]  # by their names
            self.keep_session()

    def keep_session(self) -> None:
        """Save the session's id and its usage so far."""
        if self.session_id:
            self.run.checkpoint({"session": self.session_id, "used": self._reported})

    def restore_usage(self, used: object) -> None:
        """Take the usage of the session that an earlier run has reported."""
        for name, total in as_dict(used).items():
            if name in MAX_TOTALS and isinstance(total, int | float) and 0 < total < MAX_TOTALS[name]:
                self._reported[name] = total

    # --- questions -------------------------------------------------------------------------------

    async def request_permission(
        self, session_id: str, tool_call: ToolCallUpdate, options: list[PermissionOption], **_: Any
    ) -> RequestPermissionResponse:
        """Ask the user; if the run is cancelled, so is the request, as the protocol requires."""
        if self.run.token.cancelled:
            return _CANCELLED
        await self._caught_up()
        tool_id = clean_text(tool_call.tool_call_id)[:200]
        known_as, known_args = self._known.get(tool_id, ("", None))
        name = clean_text(tool_call.title or "") or known_as
        args = known_args if tool_call.raw_input is None else plain(tool_call.raw_input)
        # A title is the agent's own words, perhaps the same for another command.
        known_by = f"{name} {json.dumps(args, ensure_ascii=False)}" if name and args else name
        named = _named(options)
        is_plain = {"allow_once", "reject_once"} <= {option.kind for option in options}
        try:
            answer = await self.run.ask(
                f"Use {shown(name or 'a tool', 200)}?",
                args=args,
                # "Always allow" goes by this name; a long one is shortened, and others could be shortened to the same.
                tool=known_by if len(known_by) <= MAX_NAME else "",
                tool_id=tool_id if tool_id in self._known else None,
                editable=False,
                options=() if is_plain else list(named),
            )
        except Cancelled:
            if not self.run.token.cancelled:
                raise
            return _CANCELLED
        is_denied = answer.decision == DENY
        self._denied.pop(tool_id, None)
        if is_denied:
            self._denied[tool_id] = answer.text
        kinds = ("reject_once", "reject_always") if is_denied else ("allow_once",)
        by_kind = {option.kind: option for option in reversed(options)}
        chosen = named.get(answer.decision) if not is_plain else None
        chosen = chosen or next((by_kind[kind] for kind in kinds if kind in by_kind), None)
        if chosen is None:
            return _CANCELLED
        outcome = AllowedOutcome(outcome="selected", option_id=chosen.option_id)
        # The protocol has no other place for the user's text.
        meta = {"reason": answer.text} if answer.text else None
        return RequestPermissionResponse(outcome=outcome, field_meta=meta)


_CANCELLED = RequestPermissionResponse(outcome=DeniedOutcome(outcome="cancelled"))


def _named(options: Sequence[PermissionOption]) -> dict[str, PermissionOption]:
    """Return the options by a unique name, as the user reads it; `allow_once` comes first."""
    named: dict[str, PermissionOption] = {}
    for option in sorted(options, key=lambda option: option.kind != "allow_once"):
        name = shown(option.name.strip(), 80) or option.kind
        if name in named or name in (ALLOW, DENY):
            name = f"{shown(name, 70)} ({len(named) + 1})"
        named[name] = option
    return named


# --- the parts of an update, which may have any type ---------------------------------------------------


def _text(content: object) -> str:
    text = as_dict(content).get("text")
    return clean_text(text) if isinstance(text, str) else ""


def _contents(parts: object) -> str | None:
    """Return a tool's output as text: its own, and the files that it changed."""
    texts = []
    for part in parts[:100] if isinstance(parts, list) else []:
        match as_dict(part):
            case {"type": "content", "content": content}:
                texts.append(_text(content))
            case {"type": "diff", "path": str(path)}:
                texts.append(f"changed {clean_text(path)}")
    return "\n".join(text for text in texts if text) or None


def _plan(entries: object) -> list[ev.EventData]:
    """Return the progress of a plan, and its current step."""
    listed = [as_dict(entry) for entry in entries] if isinstance(entries, list) else []
    if not listed:
        return []
    done = sum(entry.get("status") == "completed" for entry in listed)
    events: list[ev.EventData] = [ev.Progress(float(done), float(len(listed)), "steps of its plan")]
    now = next((entry for entry in listed if entry.get("status") == "in_progress"), None)
    if now is not None and isinstance(now.get("content"), str):
        events.append(ev.RunPhase(shown(clean_text(now["content"]), 200)))
    return events


# --- the session ---------------------------------------------------------------------------------------

_REASONS = {
    "max_tokens": "the answer was cut off at the agent's token limit",
    "max_turn_requests": "the agent stopped at its limit of model requests",
}


class AcpSession:
    """A session with an agent: created or loaded, prompted, cancelled."""

    def __init__(self, agent: AcpAgent, client: Client, process: AcpProcess) -> None:
        self._agent = agent
        self._client = client
        # The client has no methods for files and terminals.
        self.connection = ClientSideConnection(client, process)  # type: ignore[arg-type]
        self.label = agent.label
        self.id = ""
        self.work: asyncio.Task[None] | None = None  # the task of `converse()`

    async def start(self, known: str | None) -> None:
        """Create a session, or load a known one; save its id if the agent can load it again."""
        client, agent, connection = self._client, self._agent, self.connection
        try:
            async with asyncio.timeout(agent.start_timeout_s):
                answer = await connection.initialize(
                    protocol_version=PROTOCOL_VERSION,
                    client_capabilities=ClientCapabilities(),  # no files, no terminals
                    client_info=Implementation(name="nbrun", version="1"),
                )
                can = answer.agent_capabilities
                can_load = bool(can is not None and can.load_session)
                folder = str(agent.folder)
                if known is None:
                    session = await connection.new_session(cwd=folder, mcp_servers=[])
                    self.id = session.session_id
                elif can_load:
                    client.is_replaying = True
                    await connection.load_session(cwd=folder, session_id=known, mcp_servers=[])
                    client.is_replaying = False
                    self.id = known
                else:
                    raise NbrunError(f"{agent.label} can no longer load sessions; retry the run")
        except TimeoutError:
            how_long = f"has not answered for {agent.start_timeout_s:g} s"
            raise NbrunError(f"{agent.label} {how_long}; was it started as an ACP agent?") from None
        if can_load:
            client.session_id = self.id
            client.keep_session()

    async def prompt(self, text: str) -> None:
        """Send a message to the agent; return when it has answered and everything is reported."""
        answer = await self.connection.prompt(session_id=self.id, prompt=[text_block(text)])
        if (usage := answer.usage) is not None:
            self._client.count(
                input_tokens=usage.input_tokens, output_tokens=usage.output_tokens,
                cache_read_tokens=usage.cached_read_tokens, reasoning_tokens=usage.thought_tokens,
            )  # fmt: skip
        reason = answer.stop_reason
        if message := _REASONS.get(reason):
            self._client.run.log(message, "warning")
        elif reason == "refusal":
            raise NbrunError(f"{self._agent.label} refused to continue")
        elif reason == "cancelled" and not self._client.run.token.cancelled:
            raise NbrunError(f"{self._agent.label} cancelled itself")

    async def cancel(self) -> None:
        """Ask the agent to stop; before the session exists, cancel its start."""
        if self.id:
            await self.connection.cancel(session_id=self.id)
        elif self.work is not None:
            self.work.cancel()


async def converse(session: AcpSession, client: Client, known: str | None, text: str) -> None:
    """Run the session to its end, then make `client.items()` end.

    Raises `NbrunError` with the agent's own message if it died, failed or refused.
    """
    try:
        await session.start(known)
        client.run.token.raise_if_cancelled()  # during the start
        await session.prompt(text)
    except RequestError as error:
        detail = "" if error.data is None else f": {shown(plain(error.data), 500)}"
        raise NbrunError(f"{shown(str(error), 500)}{detail}") from None
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        words = f"{session.label} sent a response that doesn't follow the protocol"
        raise NbrunError(f"{words} ({shown(where, 80)}: {shown(wrong['msg'], 200)})") from None
    except ConnectionError:
        process = client.process
        raise NbrunError(await process.fate() if process else "the agent has exited") from None
    finally:
        await client.finish()
