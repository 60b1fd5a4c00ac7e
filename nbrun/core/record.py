"""The record of a run: the one table of its statuses, and the fold of its events. Nothing else decides a status."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.core import events as ev
from nbrun.core.cancellation import CancelCause, Rung
from nbrun.core.quantities import counted
from nbrun.core.text import printable
from nbrun.core.values import REPR_KEY, TYPE_KEY, Plain, as_object, shown, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class RunStatus(StrEnum):
    """The status of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing follows it."""
        return self in TERMINAL

    @property
    def is_live(self) -> bool:
        """Whether the run has not ended."""
        return self not in TERMINAL


TERMINAL = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.LOST})
LIVE = tuple(status for status in RunStatus if status not in TERMINAL)

_ENDS = {
    ev.RunCompleted.TYPE: RunStatus.COMPLETED,
    ev.RunFailed.TYPE: RunStatus.FAILED,
    ev.RunCancelled.TYPE: RunStatus.CANCELLED,
    ev.RunLost.TYPE: RunStatus.LOST,
}
_CANCEL = {ev.CancelRequested.TYPE: RunStatus.CANCELLING}
_AGAIN = {ev.AttemptLost.TYPE: RunStatus.QUEUED}

TRANSITIONS: dict[RunStatus, dict[str, RunStatus]] = {
    RunStatus.QUEUED: {ev.RunStarted.TYPE: RunStatus.RUNNING, **_CANCEL, **_ENDS},
    RunStatus.RUNNING: {ev.RunWaiting.TYPE: RunStatus.WAITING, **_AGAIN, **_CANCEL, **_ENDS},
    RunStatus.WAITING: {ev.RunResumed.TYPE: RunStatus.RUNNING, **_AGAIN, **_CANCEL, **_ENDS},
    RunStatus.CANCELLING: _ENDS,  # no way back: a late start or answer does not undo an accepted cancel
    **{status: {} for status in TERMINAL},
}
"""The one table: status → event type → status. An event type that is not listed changes nothing."""

AFTER_END = frozenset({ev.DetachedFinished.TYPE})
"""The events that may follow an ending; they change neither status nor output."""


def next_status(status: RunStatus, event_type: str) -> RunStatus:
    """Return the status after an event of this type."""
    return TRANSITIONS[status].get(event_type, status)


def is_admitted(status: RunStatus, event_type: str) -> bool:
    """Return whether a run in this status accepts an event of this type."""
    return status not in TERMINAL or event_type in AFTER_END


BRIEF_HEAD = 300
"""Characters of the long fields in a brief record."""
BRIEF_PENDING = 3
"""Questions in a brief record."""


def separator(said: Sequence[str], text: str) -> str:
    """Return what separates the text of a new message from the pieces before it: an empty line, or nothing."""
    last = next((piece for piece in reversed(said) if piece), "")
    is_apart = not last or last.endswith("\n") or text.startswith("\n")
    return "" if is_apart else "\n\n"


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One tool call."""

    id: str
    name: str
    kind: str = "function"
    args: Plain = None
    status: str = "running"
    result: Plain = None
    started_at: float = 0.0
    ms: float | None = None
    progress: ev.Progress | None = None

    __repr__ = ev.visible_repr


class ModelCall(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One model call of a run: `running`, `ok`, `error`, `cancelled`, or `unknown` if its end was not seen.

    `parent` is the id of the tool that made it, if one did. `started_at` is in epoch seconds; `ms` is how long it took
    and `first_ms` until its answer began, after it had `waited_ms` for its turn. `usage` is None if the provider has
    not reported it. `source` is where the answer comes from: `live` (the provider), `journal` or `cassette`;
    `retry_after` is how many seconds the provider asks to wait. While it waits for its turn, `waits_for` says why, and
    `waits_until` is about when it is sent, in epoch seconds.
    """

    id: str
    provider: str = ""
    model: str = ""
    parent: str = ""
    status: str = "running"
    started_at: float = 0.0
    ms: float | None = None
    first_ms: float | None = None
    waited_ms: float = 0.0
    usage: ev.Usage | None = None
    error: str = ""
    source: str = "live"
    retry_after: float | None = None
    waits_for: str = ""
    waits_until: float = 0.0

    __repr__ = ev.visible_repr


class CallGroup(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The model calls of a run between two of its tool calls: the last of them, and what all of them sum up to.

    `tools` is the number of tool calls before them; `ms`, `waited_ms` and `usage` are of those that have ended, and
    `answered` is how many of these were answered from the journal or a cassette, for free: `usage` is without them.
    """

    tools: int
    count: int = 0
    running: int = 0
    failed: int = 0
    answered: int = 0
    ms: float = 0.0
    waited_ms: float = 0.0
    usage: ev.Usage = ev.Usage()
    last: tuple[ModelCall, ...] = ()


class ChildSummary(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A child run, as its parent's log has it."""

    run_id: str
    name: str
    number: int | None = None
    status: str = "queued"
    started_at: float | None = None
    ended_at: float | None = None
    usage: ev.Usage | None = None  # reported with its end

    __repr__ = ev.visible_repr


class Steered(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A user's message to the agent: the `number`-th, its beginning, and when the agent has read it."""

    number: int
    text: str
    by: str = ""
    id: str = ""
    at: float = 0.0
    taken_at: float | None = None

    __repr__ = ev.visible_repr


class FileMade(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A file that the agent has saved with its run; `size` is in bytes."""

    name: str
    size: int = 0

    __repr__ = ev.visible_repr


class LostAttempt(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An attempt at a run that another one followed: its number, from 1, why, and when, in epoch seconds."""

    number: int
    error: ev.ErrorInfo
    at: float = 0.0

    __repr__ = ev.visible_repr


UNLOAD = "unload"


GIVEN_UP = "given up by hand, because its kernel could not be seen"


class RunRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False, kw_only=True):
    """The state of a run, frozen: the fold of its events up to `event_count`.

    Times are epoch seconds (UTC). `text` is everything streamed, each message a paragraph; of a very long one it is
    the end, before which `text_cut` characters are left out. `output` is what the agent
    returned, as JSON-like data, or the text if it returned nothing (None if that is cut). `reasoning` is the tail of
    `reasoning_count` characters; it isn't part of an answer, and models write a lot of it. `detached` names what a
    run has left running, `detached_finished` those that have ended since. `log` is the tail of
    `log_count` lines, `steered` of `steers` messages, `files` of `file_count` files. `call_groups` are its model calls,
    each group with its last ones; `run.calls` has all. Where tools take and give a lot, the first `tools_cut` of them
    have only the beginning of that. `run.whole_record` has the whole text and tools.
    """

    run_id: str = ""
    number: int | None = None
    session_id: str = ""
    name: str = ""
    agent: str = ""
    model: str | None = None
    prompt: str = ""
    status: RunStatus = RunStatus.QUEUED
    cause: CancelCause | None = None
    reason: str | None = None
    cancelled_by: str = ""
    phase: str | None = None
    attempt: int = 0  # the last one, or the one that is to come; 0 before the first is entered
    lost_attempts: tuple[LostAttempt, ...] = ()
    parent_id: str | None = None
    cell_id: str | None = None
    tags: dict[str, str] = {}
    options: dict[str, Plain] = {}
    target: str | None = None
    origin: ev.Origin | None = None  # the run that this one comes from
    member: ev.Member | None = None  # of a set
    checkpoint: ev.Checkpoint | None = None  # the last one; its state is in the store
    checkpoint_text: int = 0  # characters of text, also those left out, that stood then,
    checkpoint_between: bool = False  # and whether it was between messages
    created_at: float = 0.0
    started_at: float | None = None
    cancel_requested_at: float | None = None
    rung: Rung | None = None  # the last step of a cancel
    ended_at: float | None = None
    last_event_at: float = 0.0
    text: str = ""
    text_cut: int = 0
    text_head: str = ""  # the beginning of a text that is cut
    is_between: bool = False  # messages: the last is complete, and more text is another one
    reasoning: str = ""
    reasoning_count: int = 0
    output: Plain = None
    error: ev.ErrorInfo | None = None
    usage: ev.Usage = ev.Usage()
    usage_before: ev.Usage = ev.Usage()  # of the runs that this one resumes; a part of its usage
    tools: tuple[ToolCall, ...] = ()
    tools_cut: int = 0
    call_count: int = 0
    call_groups: tuple[CallGroup, ...] = ()
    children: tuple[ChildSummary, ...] = ()
    pending: tuple[ev.ApprovalRequested, ...] = ()  # open questions, oldest first
    always: tuple[str, ...] = ()  # tools that are allowed for the rest of the run
    steers: int = 0  # messages to the agent,
    steers_taken: int = 0  # and those that it has read
    steered: tuple[Steered, ...] = ()
    is_steerable: bool = False  # whether the agent has ever looked for messages
    progress: ev.Progress | None = None
    notices: tuple[str, ...] = ()  # warnings for the run's card
    log: tuple[str, ...] = ()
    log_count: int = 0
    files: tuple[FileMade, ...] = ()
    file_count: int = 0
    detached: tuple[str, ...] = ()
    detached_finished: tuple[str, ...] = ()
    detached_finished_at: float | None = None
    refused: int = 0  # what detached work still sent after the end
    event_count: int = 0
    followups: tuple[tuple[int, str], ...] = ()  # runs that come from it: from its store, not its log
    is_brief: bool = False  # long fields are cut; the log has everything
    unseen: str = ""  # why its status is unknown here; set by a reader, neither folded nor stored
    is_unsigned: bool = False  # nothing shows that this user's nbrun wrote it; set by a reader, as above

    __repr__ = ev.visible_repr

    @property
    def is_live(self) -> bool:
        """Whether the run has not ended."""
        return self.status.is_live

    @property
    def resumed_from(self) -> str | None:
        """The id of the run that this one resumes."""
        origin = self.origin
        return origin.run_id if origin is not None and origin.kind == ev.RESUME else None

    @property
    def is_replay(self) -> bool:
        """Whether it only shows another run once more."""
        return self.origin is not None and self.origin.kind == ev.REPLAY

    @property
    def own_usage(self) -> ev.Usage:
        """What this run has used itself, without the runs before it; nothing if it is a replay."""
        if self.is_replay:
            return ev.Usage()
        return self.usage.without(self.usage_before)

    @property
    def tool_count(self) -> int:
        """The number of tool calls, with those of the runs that this one resumes; only of a whole record."""
        return len(self.tools) + (0 if self.origin is None else self.origin.tools)

    @property
    def is_unknown(self) -> bool:
        """Whether it looks live, but its kernel cannot be reached from here."""
        return self.is_live and bool(self.unseen)

    @property
    def still_running(self) -> tuple[str, ...]:
        """The names of detached work that is not known to have ended."""
        return tuple(name for name in self.detached if name not in self.detached_finished)

    @property
    def is_settled(self) -> bool:
        """Whether it has ended and left nothing running."""
        return not self.is_live and not self.still_running

    def elapsed_s(self, now: float) -> float | None:
        """Return the seconds from start to end, or to `now` while it is live."""
        if self.started_at is None:
            return None
        return max(0.0, (self.ended_at or now) - self.started_at)

    def with_end_of_text(self) -> RunRecord:
        """Return the record with only the end of a text that is very long: whoever keeps records copies it often."""
        text, at = self.text, len(self.text) - TEXT_KEPT
        if at < TEXT_KEPT:  # it grows to twice the size before it is cut again
            return self
        is_in_code = (text.count("\n```", 0, at) + text.startswith("```")) % 2
        if is_in_code and (end := text.find("\n```", at)) >= 0:  # what is shown of it begins outside
            at = text.find("\n", end + 1) + 1 or at
        return msgspec.structs.replace(
            self,
            text=text[at:],
            text_cut=self.text_cut + at,
            text_head=self.text_head or text[:TEXT_HEAD],
            output=None if self.output == text else self.output,
        )

    def with_short_tools(self) -> RunRecord:
        """Return the record with only the beginning of what its tools took and gave, but for the last of them."""
        tools, room, at = list(self.tools), TOOLS_KEPT, len(self.tools)
        while at > 0 and room > 0:
            at -= 1
            room -= ev.size_of(tools[at].args) + ev.size_of(tools[at].result)
        if room > 0:
            return self
        for place, tool in enumerate(tools[: at + 1]):
            tools[place] = msgspec.structs.replace(tool, args=_beginning(tool.args), result=_beginning(tool.result))
        return msgspec.structs.replace(self, tools=tuple(tools), tools_cut=max(self.tools_cut, at + 1))

    def brief(self, head: int = BRIEF_HEAD) -> RunRecord:
        """Return the record with its long fields cut to `head` characters: what a list of runs needs."""
        cut: dict[str, Any] = {}  # only what is long: most runs are small
        if len(self.prompt) > head:
            cut["prompt"] = self.prompt[:head]
        if self.text_cut:
            cut.update(text=self.text_head[:head], text_cut=0, text_head="")
            if self.output is None and not self.is_live:
                cut["output"] = shown(self.text_head, head)
        elif len(self.text) > head:
            cut["text"] = self.text[:head]
        if not _is_small(self.output, head):
            cut["output"] = shown(self.output, head)
        if not all(_is_small(value, head) for value in self.options.values()):  # a system prompt may be long
            cut["options"] = {
                name: value if _is_small(value, head) else shown(value, head) for name, value in self.options.items()
            }
        if self.pending:
            asked = self.pending[:BRIEF_PENDING]
            cut["pending"] = tuple(_brief_question(one, head // 2) for one in asked)
        if self.error is not None:
            cut["error"] = _brief_error(self.error, head)
        lists = (self.tools, self.call_groups, self.children, self.log, self.files, self.steered)
        if not (cut or self.reasoning or any(lists)):
            return self
        cut.update(tools=(), call_groups=(), children=(), log=(), files=(), reasoning="", steered=())
        cut.update(tools_cut=0, is_brief=True)
        return msgspec.structs.replace(self, **cut)


def _beginning(value: Plain) -> Plain:
    """Return a value or, if it is large, a placeholder as the store has it for what it keeps in a file."""
    size = ev.size_of(value)
    if size <= 4 * TOOL_HEAD:
        return value
    head = shown(value[: 2 * TOOL_HEAD] if isinstance(value, str) else value, TOOL_HEAD)
    return {TYPE_KEY: type_name(value), REPR_KEY: f"{head} ({size:,} bytes)"}


def _brief_question(asked: ev.ApprovalRequested, head: int) -> ev.ApprovalRequested:
    args = asked.args if _is_small(asked.args, head) else shown(asked.args, head)
    options = tuple(option[:20] for option in asked.options[:5])
    tool_id = asked.tool_id and asked.tool_id[:80]
    return msgspec.structs.replace(asked, message=asked.message[:head], tool_id=tool_id, args=args, options=options)


def _brief_error(error: ev.ErrorInfo, head: int) -> ev.ErrorInfo:
    return ev.ErrorInfo(error.type, error.message[:head])


def _is_small(value: Plain, head: int) -> bool:
    return (
        value is None
        or isinstance(value, bool | int | float)
        # Not by shown(): it folds white space, and there may be a megabyte of it.
        or len(value if isinstance(value, str) else msgspec.json.encode(value)) <= head
    )


# What a record holds of what the log has in full: the last log lines and so many characters of each, the last files,
# messages to the agent and lost attempts, the last characters of a model's reasoning, the first of arguments that come
# in pieces, and the last model calls of each group.
LOG_LINES = 20
LOG_WIDTH = 300
FILES = 10
STEERED = 5
ATTEMPTS = 10
REASONING_TAIL = 4_000
ARGS_HEAD = 20_000
GROUP_CALLS = 20
ANSWERED = ("journal", "cassette")
"""Where answers come from that no provider is asked for."""
OPEN_GROUPS = 50
"""How many groups back the end of a model call is looked for: no call is open for longer than so many tools take."""
TEXT_KEPT, TEXT_HEAD = 4_000_000, 4 * BRIEF_HEAD
"""How many characters stay of a text that is cut: of its end, and of its beginning, for brief records."""

TOOLS_KEPT, TOOL_HEAD = 4_000_000, 2_000
"""How many bytes of what tools take and give stay whole once there is twice as much, and how many of each other one."""

_CUT_SHORT = frozenset({RunStatus.CANCELLED, RunStatus.LOST})


_EMPTY = RunRecord()


def fold(events: Iterable[ev.RunEvent], record: RunRecord = _EMPTY) -> RunRecord:
    """Return the record after `events`, which are by seq and continue `record`.

    Raises `ValueError` if one is not the next, or follows an ending; the intake lets neither through.
    """
    draft = _Draft(record)
    for event in events:
        draft.apply(event)
    return draft.finish()


class _Draft:
    """A record while a batch of events is folded into it: one copy per batch, not per event."""

    __slots__ = (
        "base", "changes", "children", "groups", "is_between", "last_event_at", "logs", "next_seq", "reasoning",
        "record", "status", "text", "tools", "warnings",
    )  # fmt: skip

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.changes: dict[str, Any] = {}
        self.status = record.status
        self.next_seq = record.event_count
        self.last_event_at = record.last_event_at
        self.base = record.text
        self.text: list[str] = []  # after that
        self.is_between = record.is_between
        self.reasoning: list[str] = []
        self.warnings: list[str] = []
        self.logs: list[str] = []
        self.tools: dict[str, ToolCall] | None = None
        self.groups: list[CallGroup] | None = None
        self.children: dict[str, ChildSummary] | None = None

    def apply(self, event: ev.RunEvent) -> None:
        if event.seq != self.next_seq:
            raise ValueError(f"{event.run_id}: event {event.seq} came where {self.next_seq} was due")
        data, status = event.data, self.status
        kind = data.TYPE or ev.type_of(data)
        if not is_admitted(status, kind):
            raise ValueError(f"{event.run_id}: {kind} came after the run was {status}")
        self.next_seq += 1
        self.last_event_at = event.ts
        if isinstance(data, ev.TextDelta):  # by far the most
            if self.is_between and data.text:
                self.text.append(separator((self.base, *self.text), data.text))
                self.is_between = False
            self.text.append(data.text)
            return
        self.status = TRANSITIONS[status].get(kind, status)
        fold_one = _FOLDS.get(type(data))
        if fold_one is not None:
            fold_one(self, data, event)

    def value(self, name: str) -> Any:
        """Return the current value of a field."""
        return self.changes[name] if name in self.changes else getattr(self.record, name)

    def take_usage(self, usage: ev.Usage | None) -> None:
        if usage is not None:
            self.changes["usage"] = usage

    def known_tools(self) -> dict[str, ToolCall]:
        if self.tools is None:
            self.tools = {tool.id: tool for tool in self.record.tools}
        return self.tools

    def known_groups(self) -> list[CallGroup]:
        if self.groups is None:
            self.groups = list(self.record.call_groups)
        return self.groups

    def known_children(self) -> dict[str, ChildSummary]:
        if self.children is None:
            self.children = {child.run_id: child for child in self.record.children}
        return self.children

    def text_length(self) -> int:
        """Return how much text there is by now, with what is left out."""
        return int(self.value("text_cut")) + len(self.base) + sum(map(len, self.text))

    def cut_text(self, length: int) -> None:
        """Leave only so much text, from its beginning; of a long text that may be less than what is left out."""
        left_out = self.value("text_cut")
        self.base = (self.base + "".join(self.text))[: max(0, length - left_out)]
        self.text.clear()
        if length < left_out:
            self.changes.update(text_cut=length, text_head=self.value("text_head")[:length])

    def close_calls(self, status: RunStatus) -> None:
        """Close the model calls of a run that has ended: nobody reads on, or the end was not seen."""
        how = "cancelled" if status is RunStatus.CANCELLED else "unknown"
        for at, group in enumerate(self.known_groups()):
            if group.running:
                last = tuple(_closed(call, how) for call in group.last)
                self.known_groups()[at] = msgspec.structs.replace(group, running=0, last=last)

    def close_parts(self, status: RunStatus) -> None:
        """Close tools and child runs of a run that was ended from outside: its host had no time to report their ends.

        The fate of a lost run's tools is unknown; they were not cancelled. A child run is lost with its parent.
        """
        is_lost = status is RunStatus.LOST
        tools = self.known_tools()
        for id_, tool in tools.items():
            if tool.status == "running":
                how = "unknown" if is_lost else "cancelled"
                tools[id_] = msgspec.structs.replace(tool, status=how)
        children = self.known_children() if is_lost else {}
        for id_, child in children.items():
            if child.status == RunStatus.RUNNING:
                children[id_] = msgspec.structs.replace(child, status=str(RunStatus.LOST))

    def finish(self) -> RunRecord:
        changes, record, status = self.changes, self.record, self.status
        if status in _CUT_SHORT and status is not record.status:
            self.close_parts(status)
        if status in TERMINAL and (self.groups or record.call_groups):
            self.close_calls(status)
        if self.text or self.base is not record.text:
            changes["text"] = self.base + "".join(self.text)
        changes["is_between"] = self.is_between and status not in TERMINAL
        if self.reasoning:
            more = "".join(self.reasoning)
            changes["reasoning"] = (record.reasoning + more[-REASONING_TAIL:])[-REASONING_TAIL:]
            changes["reasoning_count"] = record.reasoning_count + len(more)
        if self.tools is not None:
            changes["tools"] = tuple(self.tools.values())
        if self.groups is not None:
            changes["call_groups"] = tuple(self.groups)
        if self.children is not None:
            changes["children"] = tuple(self.children.values())
        if self.warnings:
            changes["notices"] = (*record.notices, *self.warnings)[-5:]
        if self.logs:
            changes["log"] = (*record.log, *_last_lines(self.logs))[-LOG_LINES:]
            changes["log_count"] = record.log_count + sum(t.count("\n") + 1 for t in self.logs)
        if status in TERMINAL:
            changes["pending"] = ()
            if self.value("output") is None and not record.text_cut:
                changes["output"] = self.value("text") or None
        changes.update(last_event_at=self.last_event_at, event_count=self.next_seq)
        return msgspec.structs.replace(record, status=status, **changes)


def _created(draft: _Draft, data: ev.RunCreated, event: ev.RunEvent) -> None:
    fields = {name: getattr(data, name) for name in data.__struct_fields__}
    draft.changes.update(fields, run_id=event.run_id, created_at=event.ts, usage_before=data.usage)


def _started(draft: _Draft, _data: ev.RunStarted, event: ev.RunEvent) -> None:
    # A new attempt does not know what an older one had asked, or was allowed.
    # The run takes as long as all of its attempts.
    started_at = draft.value("started_at") or event.ts
    draft.changes.update(started_at=started_at, attempt=event.attempt, pending=(), always=())


def _message(draft: _Draft, _data: ev.Message, _event: ev.RunEvent) -> None:
    draft.is_between = True


def _cancel_requested(draft: _Draft, data: ev.CancelRequested, event: ev.RunEvent) -> None:
    draft.changes.update(cause=data.cause, reason=data.reason, cancelled_by=data.by, cancel_requested_at=event.ts)


def _completed(draft: _Draft, data: ev.RunCompleted, event: ev.RunEvent) -> None:
    draft.changes.update(ended_at=event.ts, output=data.output, cause=None, reason=None, detached=data.detached)
    draft.take_usage(data.usage)


def _failed(draft: _Draft, data: ev.RunFailed, event: ev.RunEvent) -> None:
    draft.changes.update(
        ended_at=event.ts, error=data.error, output=data.output, cause=CancelCause.ERROR, detached=data.detached
    )
    draft.take_usage(data.usage)


def _cancelled(draft: _Draft, data: ev.RunCancelled, event: ev.RunEvent) -> None:
    draft.changes.update(
        ended_at=event.ts, cause=data.cause, reason=data.reason, output=data.output, error=data.error,
        detached=data.detached,
    )  # fmt: skip
    draft.take_usage(data.usage)


def _lost(draft: _Draft, data: ev.RunLost, event: ev.RunEvent) -> None:
    ended_at = data.last_event_at or event.ts
    draft.changes.update(ended_at=ended_at, cause=CancelCause.KERNEL_DIED, reason=data.reason)


def _attempt_lost(draft: _Draft, data: ev.AttemptLost, event: ev.RunEvent) -> None:
    """Go back to the checkpoint: what was said since is said again. The log keeps it all."""
    draft.cut_text(draft.value("checkpoint_text"))
    draft.is_between = draft.value("checkpoint_between")
    draft.close_parts(RunStatus.LOST)
    draft.close_calls(RunStatus.LOST)
    unread = draft.value("steers") - draft.value("steers_taken")
    if unread > 0:  # the next attempt does not get them
        what = counted(unread, "message")
        draft.warnings.append(f"attempt {data.number} ended before it read {what} to the agent; send that again")
    read = tuple(one for one in draft.value("steered") if one.taken_at is not None)
    lost = LostAttempt(data.number, _brief_error(data.error, BRIEF_HEAD), event.ts)
    draft.changes.update(
        attempt=data.number + 1, lost_attempts=(*draft.value("lost_attempts"), lost)[-ATTEMPTS:], pending=(), always=(),
        steers_taken=draft.value("steers"), steered=read, phase=None, progress=None,
    )  # fmt: skip
    draft.take_usage(data.usage)


def _checkpoint(draft: _Draft, data: ev.Checkpoint, _event: ev.RunEvent) -> None:
    draft.changes.update(checkpoint=data, checkpoint_text=draft.text_length(), checkpoint_between=draft.is_between)


def _artifact(draft: _Draft, data: ev.Artifact, _event: ev.RunEvent) -> None:
    if data.id.startswith(ev.FILE_ID):
        made = (*draft.value("files"), FileMade(data.name, data.size))
        draft.changes.update(files=made[-FILES:], file_count=draft.value("file_count") + 1)


def _log(draft: _Draft, data: ev.Log, event: ev.RunEvent) -> None:
    if data.level == "warning":
        draft.warnings.append(data.text)
    if event.attempt > 0:  # the session's own notices are not the agent's lines
        draft.logs.append(data.text)


def _detached_finished(draft: _Draft, data: ev.DetachedFinished, event: ev.RunEvent) -> None:
    detached, known = draft.value("detached"), draft.value("detached_finished")
    # One of them, or all together: then the host names them as it likes.
    names = (data.name,) if data.name in detached else detached or (data.name,)
    draft.changes.update(
        detached_finished=(*known, *(name for name in names if name not in known)),
        detached_finished_at=event.ts,
        refused=data.refused,  # a total
    )


def _tool_started(draft: _Draft, data: ev.ToolStarted, event: ev.RunEvent) -> None:
    tool = ToolCall(data.id, data.name, data.kind, data.args, started_at=event.ts)
    draft.known_tools()[data.id] = tool


def _tool_args(draft: _Draft, data: ev.ToolArgsDelta, _event: ev.RunEvent) -> None:
    tools = draft.known_tools()
    known = tools.get(data.id)
    if known is not None and known.status == "running" and (known.args is None or isinstance(known.args, str)):
        args = f"{known.args or ''}{data.text}"[:ARGS_HEAD]
        tools[data.id] = msgspec.structs.replace(known, args=args)


def _tool_progress(draft: _Draft, data: ev.ToolProgress, _event: ev.RunEvent) -> None:
    tools = draft.known_tools()
    known = tools.get(data.id)
    if known is not None and known.status == "running":
        progress = ev.Progress(data.done, data.total, data.label)
        tools[data.id] = msgspec.structs.replace(known, progress=progress)


def _tool_finished(draft: _Draft, data: ev.ToolFinished, event: ev.RunEvent) -> None:
    tools = draft.known_tools()
    # An end without its start is tolerated: some frameworks report only ends.
    known = tools.get(data.id) or ToolCall(data.id, data.id, started_at=event.ts)
    args = as_object(known.args)  # that came in pieces
    tools[data.id] = msgspec.structs.replace(known, args=args, status=data.status, result=data.result, ms=data.ms)


def _call_started(draft: _Draft, data: ev.CallStarted, event: ev.RunEvent) -> None:
    groups, tools = draft.known_groups(), len(draft.record.tools if draft.tools is None else draft.tools)
    if not groups or groups[-1].tools != tools:
        groups.append(CallGroup(tools))
    group = groups[-1]
    last = (*group.last, _begun(data, event))[-GROUP_CALLS:]
    groups[-1] = msgspec.structs.replace(group, count=group.count + 1, running=group.running + 1, last=last)
    draft.changes["call_count"] = draft.value("call_count") + 1


def _call_waiting(draft: _Draft, data: ev.CallWaiting, _event: ev.RunEvent) -> None:
    groups = draft.known_groups()
    for at in range(len(groups))[-OPEN_GROUPS:]:
        if groups[at].running:
            last = tuple(_waiting(call, data) if call.id == data.id else call for call in groups[at].last)
            groups[at] = msgspec.structs.replace(groups[at], last=last)


def _call_finished(draft: _Draft, data: ev.CallFinished, _event: ev.RunEvent) -> None:
    """Count a call's end, mostly that of the last one; of many at once, a group no longer has the first ones."""
    groups = draft.known_groups()
    opened = [at for at in range(len(groups))[-OPEN_GROUPS:] if groups[at].running]
    places = (
        (at, place)
        for at in reversed(opened)
        for place, call in reversed(list(enumerate(groups[at].last)))
        if call.id == data.id and call.status == "running"
    )
    at, place = next(places, (-1, -1))
    if at < 0:
        hiding = (at for at in opened if groups[at].running > sum(call.status == "running" for call in groups[at].last))
        at = next(hiding, -1)
    if at < 0:
        return
    group, is_free = groups[at], data.source in ANSWERED
    last = list(group.last)
    if place >= 0:
        last[place] = _ended(last[place], data)
    groups[at] = msgspec.structs.replace(
        group,
        running=group.running - 1,
        failed=group.failed + (data.status == "error"),
        answered=group.answered + is_free,
        ms=group.ms + data.ms,
        waited_ms=group.waited_ms + data.waited_ms,
        usage=group.usage if data.usage is None or is_free else group.usage.plus(data.usage),
        last=tuple(last),
    )


def _begun(data: ev.CallStarted, event: ev.RunEvent) -> ModelCall:
    return ModelCall(data.id, data.provider[:80], data.model[:200], data.parent, started_at=event.ts)


def _waiting(call: ModelCall, data: ev.CallWaiting) -> ModelCall:
    if call.status != "running":
        return call
    return msgspec.structs.replace(call, waits_for=data.reason[:LOG_WIDTH], waits_until=data.until)


def _ended(call: ModelCall, data: ev.CallFinished) -> ModelCall:
    """Return a call with its end, the first one that is reported."""
    if call.status != "running":
        return call
    fields = {name: getattr(data, name) for name in data.__struct_fields__}
    short = {"status": data.status[:20], "error": data.error[:LOG_WIDTH], "source": data.source[:20]}
    return msgspec.structs.replace(call, **fields | short, waits_for="", waits_until=0.0)


def _closed(call: ModelCall, status: str) -> ModelCall:
    if call.status != "running":
        return call
    return msgspec.structs.replace(call, status=status, waits_for="", waits_until=0.0)


def model_calls(events: Iterable[ev.RunEvent], status: RunStatus) -> list[ModelCall]:
    """Return all model calls in a log, oldest first; `status` is that of their run."""
    calls: list[ModelCall] = []
    places: dict[str, int] = {}  # a later attempt counts anew
    for event in events:
        if isinstance(event.data, ev.CallStarted):
            places[event.data.id] = len(calls)
            calls.append(_begun(event.data, event))
        elif isinstance(event.data, ev.CallWaiting) and (at := places.get(event.data.id)) is not None:
            calls[at] = _waiting(calls[at], event.data)
        elif isinstance(event.data, ev.CallFinished) and (at := places.get(event.data.id)) is not None:
            calls[at] = _ended(calls[at], event.data)
    if status in TERMINAL:
        how = "cancelled" if status is RunStatus.CANCELLED else "unknown"
        calls = [_closed(call, how) for call in calls]
    return calls


def standing(events: Iterable[ev.RunEvent]) -> list[ev.RunEvent]:
    """Return a run's events without the text that a later attempt has said again, and tool calls that were cut off."""
    kept: list[ev.RunEvent] = []
    saved = -1  # the seq of the last checkpoint
    opened: set[str] = set()
    for event in events:
        data = event.data
        if isinstance(data, ev.AttemptLost):
            kept = [e for e in kept if e.seq < saved or not isinstance(e.data, ev.TextDelta | ev.Message)]
            kept = [e for e in kept if not (isinstance(e.data, _OF_CALLS) and e.data.id in opened)]
            opened.clear()
        elif isinstance(data, ev.Checkpoint):
            saved = event.seq
        elif isinstance(data, ev.ToolStarted):
            opened.add(data.id)
        elif isinstance(data, ev.ToolFinished):
            opened.discard(data.id)
        kept.append(event)
    return kept


_OF_CALLS = (ev.ToolStarted, ev.ToolArgsDelta, ev.ToolProgress)


def _child_started(draft: _Draft, data: ev.ChildStarted, event: ev.RunEvent) -> None:
    child = ChildSummary(data.run_id, data.name, data.number, str(RunStatus.RUNNING), event.ts)
    draft.known_children()[data.run_id] = child


def _child_finished(draft: _Draft, data: ev.ChildFinished, event: ev.RunEvent) -> None:
    children = draft.known_children()
    known = children.get(data.run_id) or ChildSummary(data.run_id, data.run_id)  # as with tools
    children[data.run_id] = msgspec.structs.replace(known, status=data.status, ended_at=event.ts, usage=data.usage)


def _asked(draft: _Draft, data: ev.ApprovalRequested, _event: ev.RunEvent) -> None:
    others = (asked for asked in draft.value("pending") if asked.id != data.id)
    draft.changes["pending"] = (*others, data)


def _answered(draft: _Draft, data: ev.ApprovalResolved, _event: ev.RunEvent) -> None:
    pending, always = draft.value("pending"), draft.value("always")
    draft.changes["pending"] = tuple(asked for asked in pending if asked.id != data.id)
    if data.always:
        tools = (asked.tool for asked in pending if asked.id == data.id)
        draft.changes["always"] = (*always, *(tool for tool in tools if tool not in always))


def _steered(draft: _Draft, data: ev.Steer, event: ev.RunEvent) -> None:
    number = draft.value("steers") + 1
    message = Steered(number, shown(data.text, LOG_WIDTH), data.by, data.id, event.ts)
    draft.changes["steers"] = number
    draft.changes["steered"] = (*draft.value("steered"), message)[-STEERED:]


def _steer_taken(draft: _Draft, data: ev.SteerTaken, event: ev.RunEvent) -> None:
    taken = draft.value("steers_taken") + data.count  # the oldest first
    draft.changes["steers_taken"] = taken
    draft.changes["steered"] = tuple(
        msgspec.structs.replace(one, taken_at=event.ts) if one.taken_at is None and one.number <= taken else one
        for one in draft.value("steered")
    )


_FOLDS: dict[type[ev.EventData], Callable[[_Draft, Any, ev.RunEvent], None]] = {
    ev.RunCreated: _created,
    ev.Message: _message,
    ev.RunStarted: _started,
    ev.RunPhase: lambda draft, data, _event: draft.changes.update(phase=data.phase),
    ev.ReasoningDelta: lambda draft, data, _event: draft.reasoning.append(data.text),
    ev.RunCompleted: _completed,
    ev.RunFailed: _failed,
    ev.RunCancelled: _cancelled,
    ev.RunLost: _lost,
    ev.CancelRequested: _cancel_requested,
    ev.CancelEscalated: lambda draft, data, _event: draft.changes.update(rung=data.rung),
    ev.DetachedFinished: _detached_finished,
    ev.ToolStarted: _tool_started,
    ev.ToolArgsDelta: _tool_args,
    ev.ToolProgress: _tool_progress,
    ev.ToolFinished: _tool_finished,
    ev.CallStarted: _call_started,
    ev.CallWaiting: _call_waiting,
    ev.CallFinished: _call_finished,
    ev.ApprovalRequested: _asked,
    ev.ApprovalResolved: _answered,
    ev.Steer: _steered,
    ev.SteerReady: lambda draft, _data, _event: draft.changes.update(is_steerable=True),
    ev.SteerTaken: _steer_taken,
    ev.ChildStarted: _child_started,
    ev.ChildFinished: _child_finished,
    ev.Usage: lambda draft, data, _event: draft.changes.update(usage=data),
    ev.Progress: lambda draft, data, _event: draft.changes.update(progress=data),
    ev.Checkpoint: _checkpoint,
    ev.AttemptLost: _attempt_lost,
    ev.Artifact: _artifact,
    ev.Log: _log,
}


"""Other events, also those of unknown types, are in the log only."""


def _last_lines(texts: list[str]) -> list[str]:
    """Return the last lines of these texts, cut; what precedes them is not looked at, for it may be large."""
    lines: list[str] = []
    for text in reversed(texts):
        end = len(text)
        while end >= 0 and len(lines) < LOG_LINES:
            start = text.rfind("\n", 0, end) + 1
            lines.append(_cut_line(text[start:end]))
            end = start - 1
    return lines[::-1]


def _cut_line(line: str) -> str:
    # A terminal shows what follows the last bare return. Cut twice: escape codes disappear in between.
    line = printable(line.rstrip("\r").rpartition("\r")[2][: 4 * LOG_WIDTH])
    return line if len(line) <= LOG_WIDTH else line[: LOG_WIDTH - 1] + "…"
