"""A session with an ACP agent: its updates as events, its requests for permission as questions to a person."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from acp.schema import (
    AllowedOutcome,
    DeniedOutcome,
    RequestPermissionResponse,
)

from nbrun.agents import (
    ALLOW,
    DENY,
    Cancelled,
    Plain,
    RunContext,
    clean_text,
    events as ev,
    plain,
    shown,
)
from nbrun.agents.acp.process import AcpProcess, as_dict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from acp.schema import PermissionOption, ToolCallUpdate


WAITING = 100
"""How many events may wait for the run's log before the agent is paused."""
MOST = {
    "cost_usd": 1e6, "input_tokens": 1e12, "output_tokens": 1e12, "cache_read_tokens": 1e12,
    "reasoning_tokens": 1e12,
}  # fmt: skip
"""The highest totals that count as plausible: US dollars, and tokens."""
MAX_NAME = 80
"""The longest tool name, in characters, that can be always allowed."""

_STATUS = {"completed": "ok", "failed": "error"}


class Watch:
    """What the agent tells and asks, for one run.

    Threads: of one event loop.
    """

    def __init__(self, run: RunContext, label: str) -> None:
        self.run = run
        self.process: AcpProcess | None = None
        self.session_id = ""  # of one that can be loaded again
        self.is_deaf = False  # while it tells once more what is in an earlier run's log
        self._label = label
        self._items: asyncio.Queue[ev.EventData | asyncio.Event | None] = asyncio.Queue(WAITING)
        self._is_over = False
        self._tools: dict[str, tuple[str, float, Plain]] = {}  # name, when it began, arguments
        self._ended: set[str] = set()
        self._denied: dict[str, str] = {}
        self._text: list[str] = []
        self._reported: dict[str, float] = {}  # what its session has used in all
        self.answer = ""  # the last whole message

    # --- what it tells ---------------------------------------------------------------------------

    async def items(self) -> AsyncIterator[ev.EventData]:
        """Yield the events until `finish()`."""
        while (item := await self._items.get()) is not None:
            if isinstance(item, asyncio.Event):
                item.set()
            else:
                yield item

    async def finish(self) -> None:
        """Have `items()` end, after what was told."""
        for event in self._message():
            await self._put(event)
        await self._put(None)

    def abandon(self) -> None:
        """Let go of what waits for `items()`, which nobody reads any more: it would be waited for without an end."""
        self._is_over = True
        while not self._items.empty():
            self._items.get_nowait()

    async def _put(self, item: ev.EventData | asyncio.Event | None) -> None:
        if not self._is_over:
            await self._items.put(item)

    async def take(self, params: object) -> None:
        """Take an update; whatever it is, it comes from a program that we do not know."""
        update = as_dict(as_dict(params).get("update"))
        if self.is_deaf:
            return
        for event in self._events(update):
            await self._put(event)

    async def _caught_up(self) -> None:
        """Return when all that was told before is in the log."""
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
                self._note_cost(as_dict(update.get("cost")))
        return []

    def _message(self) -> list[ev.EventData]:
        """Return the message that has become whole, if there is one."""
        text, self._text = "".join(self._text), []
        if not text:
            return []
        self.answer = text
        return [ev.Message("assistant", text)]

    def _tool(self, update: dict[str, Any]) -> list[ev.EventData]:
        tool_id = clean_text(str(update.get("toolCallId")))[:200]
        events: list[ev.EventData] = []
        if tool_id not in self._tools:
            if update.get("sessionUpdate") == "tool_call_update" and tool_id in self._ended:
                return []  # what else it has to say comes too late
            name = clean_text(str(update.get("title") or update.get("kind") or "tool"))
            args = plain(update.get("rawInput"))
            self._tools[tool_id] = name, self.run.clock.monotonic(), args
            kind = clean_text(str(update.get("kind") or "other"))
            events = [*self._message(), ev.ToolStarted(tool_id, name, kind, args)]
        elif "rawInput" in update:  # it is told of while its model still writes them
            name, began, _ = self._tools[tool_id]
            self._tools[tool_id] = name, began, plain(update["rawInput"])
        status = _STATUS.get(str(update.get("status")))
        if status is None:
            return events
        _, began, _ = self._tools.pop(tool_id)
        self._ended.add(tool_id)
        result = update.get("rawOutput")
        result = plain(result) if result is not None else _contents(update.get("content"))
        if (reason := self._denied.pop(tool_id, None)) is not None:
            if status == "ok":
                self.run.log(f"{self._label} has used a tool that was denied: {tool_id}", "warning")
            else:
                status, result = "denied", reason or None
        ms = round((self.run.clock.monotonic() - began) * 1000, 3)
        return [*events, ev.ToolFinished(tool_id, status, result, ms)]

    def _note_cost(self, cost: dict[str, Any]) -> None:
        """Count what the session has cost; it tells totals, in any currency."""
        if cost.get("currency") == "USD":
            self._count(cost_usd=cost.get("amount"))

    def note_usage(self, usage: Any) -> None:
        """Count the tokens of the session, where the agent tells of them."""
        if usage is not None:
            self._count(
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cache_read_tokens=usage.cached_read_tokens,
                reasoning_tokens=usage.thought_tokens,
            )

    def _count(self, **totals: object) -> None:
        """Tell what of the session's totals is new; what no total can be is left out."""
        new: dict[str, float] = {}
        for name, total in totals.items():
            before = self._reported.get(name, 0)
            if isinstance(total, int | float) and before < total < MOST[name]:
                new[name], self._reported[name] = total - before, total
        if new:
            self.run.usage(**new)  # type: ignore[arg-type]  # by their names
            self.keep_session()

    def keep_session(self) -> None:
        """Keep what the session can be gone on with, and what it had used by then."""
        if self.session_id:
            self.run.checkpoint({"session": self.session_id, "used": self._reported})

    def go_on_from(self, used: object) -> None:
        """Know what a session that is loaded had used before, and an earlier run has told."""
        for name, total in as_dict(used).items():
            if name in MOST and isinstance(total, int | float) and 0 < total < MOST[name]:
                self._reported[name] = total

    # --- what it asks ----------------------------------------------------------------------------

    async def request_permission(
        self, session_id: str, tool_call: ToolCallUpdate, options: list[PermissionOption], **_: Any
    ) -> RequestPermissionResponse:
        """Ask a person; once the run is cancelled, that is the answer, as the protocol has it."""
        if self.run.token.cancelled:
            return _CANCELLED
        await self._caught_up()
        tool_id = clean_text(tool_call.tool_call_id)[:200]
        known_as, _began, known_args = self._tools.get(tool_id, ("", 0.0, None))
        name = clean_text(tool_call.title or "") or known_as
        named = _named(options)
        is_plain = {"allow_once", "reject_once"} <= {option.kind for option in options}
        try:
            answer = await self.run.ask(
                f"Use {shown(name or 'a tool', 200)}?",
                args=known_args if tool_call.raw_input is None else plain(tool_call.raw_input),
                # By this it is known when a person allows it always: not where others would be called the same.
                tool=name if len(name) <= MAX_NAME else "",
                tool_id=tool_id if tool_id in self._tools else None,
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
        # The protocol has no place for a person's words but this one.
        meta = {"reason": answer.text} if answer.text else None
        return RequestPermissionResponse(outcome=outcome, field_meta=meta)


_CANCELLED = RequestPermissionResponse(outcome=DeniedOutcome(outcome="cancelled"))


def _named(options: Sequence[PermissionOption]) -> dict[str, PermissionOption]:
    """Return the options by what a person reads, each by a name of its own; what is granted once comes first."""
    named: dict[str, PermissionOption] = {}
    for option in sorted(options, key=lambda option: option.kind != "allow_once"):
        name = shown(option.name.strip(), 80) or option.kind
        if name in named or name in (ALLOW, DENY):
            name = f"{name[:70]} ({len(named) + 1})"
        named[name] = option
    return named


# --- an update's parts, of which any may be of any type ------------------------------------------------


def _text(content: object) -> str:
    text = as_dict(content).get("text")
    return clean_text(text) if isinstance(text, str) else ""


def _contents(parts: object) -> str | None:
    """Return what a tool shows, as text: its words, and the names of the files that it changes."""
    texts = []
    for part in parts[:100] if isinstance(parts, list) else []:
        match as_dict(part):
            case {"type": "content", "content": content}:
                texts.append(_text(content))
            case {"type": "diff", "path": str(path)}:
                texts.append(f"changed {clean_text(path)}")
    return "\n".join(text for text in texts if text) or None


def _plan(entries: object) -> list[ev.EventData]:
    """Return how far a plan has come, and what is being done of it."""
    listed = [as_dict(entry) for entry in entries] if isinstance(entries, list) else []
    if not listed:
        return []
    done = sum(entry.get("status") == "completed" for entry in listed)
    events: list[ev.EventData] = [ev.Progress(float(done), float(len(listed)), "steps of its plan")]
    now = next((entry for entry in listed if entry.get("status") == "in_progress"), None)
    if now is not None and isinstance(now.get("content"), str):
        events.append(ev.RunPhase(shown(clean_text(now["content"]), 200)))
    return events
