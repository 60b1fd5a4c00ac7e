"""The record of a run: the fold of its events. Nothing else decides a status."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun import events as ev
from nbrun.cancellation import CancelCause, Rung
from nbrun.encoding import Plain, printable, shown

if TYPE_CHECKING:
    from collections.abc import Iterable


class RunStatus(StrEnum):
    """Where a run stands."""

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
_CUT_SHORT = frozenset({RunStatus.CANCELLED, RunStatus.LOST})
LIVE = tuple(status for status in RunStatus if status not in TERMINAL)

_ENDS = {
    ev.RunCompleted.TYPE: RunStatus.COMPLETED,
    ev.RunFailed.TYPE: RunStatus.FAILED,
    ev.RunCancelled.TYPE: RunStatus.CANCELLED,
    ev.RunLost.TYPE: RunStatus.LOST,
}
_CANCEL = {ev.CancelRequested.TYPE: RunStatus.CANCELLING}

TRANSITIONS: dict[RunStatus, dict[str, RunStatus]] = {
    RunStatus.QUEUED: {ev.RunStarted.TYPE: RunStatus.RUNNING, **_CANCEL, **_ENDS},
    RunStatus.RUNNING: {ev.RunWaiting.TYPE: RunStatus.WAITING, **_CANCEL, **_ENDS},
    RunStatus.WAITING: {ev.RunResumed.TYPE: RunStatus.RUNNING, **_CANCEL, **_ENDS},
    RunStatus.CANCELLING: _ENDS,  # no way back: what was accepted is not undone by a late start or answer
    **{status: {} for status in TERMINAL},
}
"""The one table: status → event type → status. An event type that is not listed changes nothing."""

LOG_LINES = 20
"""How many of its last log lines a record holds; all of them are in the log."""
LOG_WIDTH = 300
"""Characters that it holds of each of them."""

AFTER_END = frozenset({ev.DetachedFinished.TYPE})
"""The events that may follow an ending; they change neither status nor output."""


def next_status(status: RunStatus, event_type: str) -> RunStatus:
    """Return the status after an event of this type."""
    return TRANSITIONS[status].get(event_type, status)


def is_admitted(status: RunStatus, event_type: str) -> bool:
    """Return whether the log of a run in this status takes an event of this type."""
    return status not in TERMINAL or event_type in AFTER_END


BRIEF_PENDING = 3
"""Questions that a brief record holds."""


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """One use of a tool, as far as it has come."""

    id: str
    name: str
    kind: str = "function"
    args: Plain = None
    status: str = "running"
    result: Plain = None
    started_at: float = 0.0
    ms: float | None = None


class ChildSummary(msgspec.Struct, frozen=True, omit_defaults=True):
    """A child run, as its parent's log tells of it."""

    run_id: str
    name: str
    number: int | None = None
    status: str = "queued"


class RunRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The state of a run, frozen: the fold of its events up to `event_count`.

    Times are epoch seconds (UTC). `text` is all that was streamed; `output` is what the agent returned, as
    JSON-like data, or the text where it returned nothing. `detached` names what a cancelled run has left
    running, `detached_finished` those of them that have ended since. `log` is the tail of `log_count` lines.
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
    attempt: int = 0
    parent_id: str | None = None
    cell_id: str | None = None
    tags: dict[str, str] = {}
    options: dict[str, Plain] = {}
    created_at: float = 0.0
    started_at: float | None = None
    cancel_requested_at: float | None = None
    rung: Rung | None = None  # the last step of the cancel ladder that was used
    ended_at: float | None = None
    last_event_at: float = 0.0
    text: str = ""
    output: Plain = None
    error: ev.ErrorInfo | None = None
    usage: ev.Usage = ev.Usage()
    tools: tuple[ToolCall, ...] = ()
    children: tuple[ChildSummary, ...] = ()
    pending: tuple[ev.ApprovalRequested, ...] = ()  # what a person is being asked, oldest first
    steers: int = 0  # messages that came in,
    steers_taken: int = 0  # and those that the agent has read
    progress: ev.Progress | None = None
    notices: tuple[str, ...] = ()  # what the run's card has to tell besides its status
    log: tuple[str, ...] = ()
    log_count: int = 0
    detached: tuple[str, ...] = ()
    detached_finished: tuple[str, ...] = ()
    detached_finished_at: float | None = None
    refused: int = 0  # what detached work still sent after the end
    event_count: int = 0
    is_brief: bool = False  # long fields are cut; the whole is in the log

    @property
    def is_live(self) -> bool:
        """Whether the run has not ended."""
        return self.status.is_live

    @property
    def still_running(self) -> tuple[str, ...]:
        """The names of detached work that is not known to have ended."""
        return tuple(name for name in self.detached if name not in self.detached_finished)

    @property
    def is_settled(self) -> bool:
        """Whether nothing more is to come: it has ended, and left nothing running."""
        return not self.is_live and not self.still_running

    def elapsed_s(self, now: float) -> float | None:
        """Return the seconds from the start to the end, or to `now` while it is live."""
        if self.started_at is None:
            return None
        return max(0.0, (self.ended_at or now) - self.started_at)

    def apply(self, events: Iterable[ev.RunEvent]) -> RunRecord:
        """Return the record after `events`, which are by seq and go on where this one stands.

        Raises
        ------
        ValueError
            An event does not come next, or follows an ending. The intake lets neither through.
        """
        draft = _Draft(self)
        for event in events:
            draft.apply(event)
        return draft.finish()

    def brief(self, head: int = 300) -> RunRecord:
        """Return the record with its long fields cut to `head` characters: what a list of runs needs."""
        output = self.output if _is_small(self.output, head) else shown(self.output, head)
        return msgspec.structs.replace(
            self,
            prompt=self.prompt[:head],
            text=self.text[:head],
            output=output,
            tools=(),
            children=(),
            log=(),
            pending=tuple(
                _brief_question(asked, head // 2) for asked in self.pending[:BRIEF_PENDING]
            ),
            error=None
            if self.error is None
            else ev.ErrorInfo(self.error.type, self.error.message[:head]),
            is_brief=True,
        )


def _brief_question(asked: ev.ApprovalRequested, head: int) -> ev.ApprovalRequested:
    args = asked.args if _is_small(asked.args, head) else shown(asked.args, head)
    options = tuple(option[:20] for option in asked.options[:5])
    tool_id = asked.tool_id and asked.tool_id[:80]
    return msgspec.structs.replace(
        asked, message=asked.message[:head], tool_id=tool_id, args=args, options=options
    )


def _is_small(value: Plain, head: int) -> bool:
    return (
        value is None
        or isinstance(value, bool | int | float)
        # Not by shown(): it folds white space, of which there may be a megabyte.
        or len(value if isinstance(value, str) else msgspec.json.encode(value)) <= head
    )


class _Draft:
    """A record while a batch of events is folded into it: one copy per batch, not per event."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._changes: dict[str, Any] = {}
        self._status = record.status
        self._next_seq = record.event_count
        self._text: list[str] = []
        self._warnings: list[str] = []
        self._logs: list[str] = []
        self._tools: dict[str, ToolCall] | None = None
        self._children: dict[str, ChildSummary] | None = None

    def apply(self, event: ev.RunEvent) -> None:
        if event.seq != self._next_seq:
            raise ValueError(
                f"{event.run_id}: event {event.seq} came where {self._next_seq} was due"
            )
        kind = event.type
        if not is_admitted(self._status, kind):
            raise ValueError(f"{event.run_id}: {kind} came after the run was {self._status}")
        self._next_seq += 1
        self._changes["last_event_at"] = event.ts
        self._status = next_status(self._status, kind)
        data = event.data
        if isinstance(data, ev.TextDelta):
            self._text.append(data.text)
        elif isinstance(data, ev.ToolStarted | ev.ToolFinished):
            self._tool(data, event.ts)
        elif isinstance(data, ev.ChildStarted | ev.ChildFinished):
            self._child(data)
        elif isinstance(data, ev.ApprovalRequested | ev.ApprovalResolved):
            self._question(data)
        elif isinstance(data, ev.Steer | ev.SteerTaken):
            self._steer(data)
        elif isinstance(data, ev.Log):
            self._log(data, is_own=event.attempt > 0)
        elif isinstance(data, ev.DetachedFinished):
            self._detached_finished(data, event.ts)
        else:
            self._changes.update(_changes(event))

    def _log(self, data: ev.Log, is_own: bool) -> None:
        if data.level == "warning":
            self._warnings.append(data.text)
        if is_own:  # a notice of the session's is no line of the agent's
            self._logs.append(data.text)

    def _detached_finished(self, data: ev.DetachedFinished, ts: float) -> None:
        record, changes = self._record, self._changes
        detached = changes.get("detached", record.detached)
        # One of them, or all together: their host then names them as it likes.
        names = (data.name,) if data.name in detached else detached or (data.name,)
        known = changes.get("detached_finished", record.detached_finished)
        changes["detached_finished"] = (*known, *(name for name in names if name not in known))
        changes["detached_finished_at"] = ts
        changes["refused"] = data.refused  # a total

    def _tool(self, data: ev.ToolStarted | ev.ToolFinished, ts: float) -> None:
        if self._tools is None:
            self._tools = {tool.id: tool for tool in self._record.tools}
        if isinstance(data, ev.ToolStarted):
            self._tools[data.id] = ToolCall(data.id, data.name, data.kind, data.args, started_at=ts)
        else:  # an end without its start is tolerated: some frameworks tell only ends
            known = self._tools.get(data.id) or ToolCall(data.id, data.id, started_at=ts)
            self._tools[data.id] = msgspec.structs.replace(
                known, status=data.status, result=data.result, ms=data.ms
            )

    def _child(self, data: ev.ChildStarted | ev.ChildFinished) -> None:
        if self._children is None:
            self._children = {child.run_id: child for child in self._record.children}
        if isinstance(data, ev.ChildStarted):
            self._children[data.run_id] = ChildSummary(
                data.run_id, data.name, data.number, str(RunStatus.RUNNING)
            )
        else:  # an end without its start is tolerated, as with tools
            known = self._children.get(data.run_id) or ChildSummary(data.run_id, data.run_id)
            self._children[data.run_id] = msgspec.structs.replace(known, status=data.status)

    def _question(self, data: ev.ApprovalRequested | ev.ApprovalResolved) -> None:
        pending = self._changes.get("pending", self._record.pending)
        others = tuple(asked for asked in pending if asked.id != data.id)
        is_asked = isinstance(data, ev.ApprovalRequested)
        self._changes["pending"] = (*others, data) if is_asked else others

    def _steer(self, data: ev.Steer | ev.SteerTaken) -> None:
        name, count = ("steers", 1) if isinstance(data, ev.Steer) else ("steers_taken", data.count)
        self._changes[name] = self._changes.get(name, getattr(self._record, name)) + count

    def _close_tools(self) -> None:
        """Let no tool run on in a run that was ended from outside: its host had no time to say so."""
        if self._tools is None:
            self._tools = {tool.id: tool for tool in self._record.tools}
        for id_, tool in self._tools.items():
            if tool.status == "running":
                self._tools[id_] = msgspec.structs.replace(tool, status="cancelled")

    def finish(self) -> RunRecord:
        changes = self._changes
        if self._status in _CUT_SHORT and self._status is not self._record.status:
            self._close_tools()
        if self._text:
            changes["text"] = self._record.text + "".join(self._text)
        if self._tools is not None:
            changes["tools"] = tuple(self._tools.values())
        if self._children is not None:
            changes["children"] = tuple(self._children.values())
        if self._warnings:
            changes["notices"] = (*self._record.notices, *self._warnings)[-5:]
        if self._logs:
            record = self._record
            changes["log"] = (*record.log, *_last_lines(self._logs))[-LOG_LINES:]
            changes["log_count"] = record.log_count + sum(t.count("\n") + 1 for t in self._logs)
        if self._status in TERMINAL:
            changes["pending"] = ()
        if self._status in TERMINAL and changes.get("output", self._record.output) is None:
            changes["output"] = changes.get("text", self._record.text) or None
        return msgspec.structs.replace(
            self._record, status=self._status, event_count=self._next_seq, **changes
        )


def _last_lines(texts: list[str]) -> list[str]:
    """Return the last lines of these texts, cut; what stands before them is not looked at, for it may be much."""
    lines: list[str] = []
    for text in reversed(texts):
        end = len(text)
        while end >= 0 and len(lines) < LOG_LINES:
            start = text.rfind("\n", 0, end) + 1
            lines.append(_cut_line(text[start:end]))
            end = start - 1
    return lines[::-1]


def _cut_line(line: str) -> str:
    # A terminal shows what stands behind the last bare return. Cut twice: escape codes are made nothing of.
    line = printable(line.rstrip("\r").rpartition("\r")[2][: 4 * LOG_WIDTH])
    return line if len(line) <= LOG_WIDTH else line[: LOG_WIDTH - 1] + "…"


def _changes(event: ev.RunEvent) -> dict[str, Any]:
    """Return the fields that an event sets, status and text apart."""
    ts = event.ts
    match event.data:
        case ev.RunCreated() as data:
            fields = {name: getattr(data, name) for name in data.__struct_fields__}
            return {**fields, "run_id": event.run_id, "created_at": ts}
        case ev.RunStarted():
            # A new attempt knows nothing of what an older one had asked.
            return {"started_at": ts, "attempt": event.attempt, "pending": ()}
        case ev.RunPhase(phase=phase):
            return {"phase": phase}
        case ev.CancelRequested(cause=cause, reason=reason, by=by):
            return {"cause": cause, "reason": reason, "cancelled_by": by, "cancel_requested_at": ts}
        case ev.CancelEscalated(rung=rung):
            return {"rung": rung}
        case ev.RunCompleted(output=output, usage=usage):
            return {
                "ended_at": ts,
                "output": output,
                "cause": None,
                "reason": None,
                **_usage(usage),
            }
        case ev.RunFailed(error=error, output=output, usage=usage):
            return {
                "ended_at": ts, "error": error, "output": output, "cause": CancelCause.ERROR, **_usage(usage)
            }  # fmt: skip
        case ev.RunCancelled() as data:
            fields = {
                name: getattr(data, name)
                for name in ("cause", "reason", "output", "error", "detached")
            }
            return {**fields, "ended_at": ts, **_usage(data.usage)}
        case ev.RunLost(reason=reason, last_event_at=last):
            return {"ended_at": last or ts, "cause": CancelCause.KERNEL_DIED, "reason": reason}
        case ev.Usage() as usage:
            return {"usage": usage}
        case ev.Progress() as progress:
            return {"progress": progress}
        case _:
            return {}


def _usage(usage: ev.Usage | None) -> dict[str, ev.Usage]:
    return {} if usage is None else {"usage": usage}


def fold(events: Iterable[ev.RunEvent]) -> RunRecord:
    """Return the record of a whole log."""
    return RunRecord().apply(events)
