"""The fold: from a run's events to its record. Nothing else decides a status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.core import events as ev
from nbrun.core.cancellation import CancelCause
from nbrun.core.record import (
    TERMINAL,
    TRANSITIONS,
    ChildSummary,
    FileMade,
    RunRecord,
    RunStatus,
    Steered,
    ToolCall,
    between,
    is_admitted,
)
from nbrun.core.text import printable
from nbrun.core.values import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LOG_LINES = 20
"""How many of its last log lines a record holds; all of them are in the log."""
LOG_WIDTH = 300
"""Characters that it holds of each of them."""
FILES = 10
"""How many of the last files that the agent has made."""
STEERED = 5
"""How many of the last messages to the agent."""
REASONING_TAIL = 4_000
"""Characters that it holds of the end of a model's reasoning."""

_CUT_SHORT = frozenset({RunStatus.CANCELLED, RunStatus.LOST})
_EMPTY = RunRecord()


def fold(events: Iterable[ev.RunEvent], record: RunRecord = _EMPTY) -> RunRecord:
    """Return the record after `events`, which are by seq and go on where `record` stands.

    Raises
    ------
    ValueError
        An event does not come next, or follows an ending. The intake lets neither through.
    """
    draft = _Draft(record)
    for event in events:
        draft.apply(event)
    return draft.finish()


class _Draft:
    """A record while a batch of events is folded into it: one copy per batch, not per event."""

    __slots__ = (
        "changes",
        "children",
        "is_between",
        "last_event_at",
        "logs",
        "next_seq",
        "reasoning",
        "record",
        "status",
        "text",
        "tools",
        "warnings",
    )

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.changes: dict[str, Any] = {}
        self.status = record.status
        self.next_seq = record.event_count
        self.last_event_at = record.last_event_at
        self.text: list[str] = []
        self.is_between = record.is_between
        self.reasoning: list[str] = []
        self.warnings: list[str] = []
        self.logs: list[str] = []
        self.tools: dict[str, ToolCall] | None = None
        self.children: dict[str, ChildSummary] | None = None

    def apply(self, event: ev.RunEvent) -> None:
        if event.seq != self.next_seq:
            raise ValueError(
                f"{event.run_id}: event {event.seq} came where {self.next_seq} was due"
            )
        data, status = event.data, self.status
        kind = data.TYPE or ev.type_of(data)
        if not is_admitted(status, kind):
            raise ValueError(f"{event.run_id}: {kind} came after the run was {status}")
        self.next_seq += 1
        self.last_event_at = event.ts
        if isinstance(data, ev.TextDelta):  # by far the most
            if self.is_between and data.text:
                self.text.append(between((self.record.text, *self.text), data.text))
                self.is_between = False
            self.text.append(data.text)
            return
        self.status = TRANSITIONS[status].get(kind, status)
        fold_one = _FOLDS.get(type(data))
        if fold_one is not None:
            fold_one(self, data, event)

    def value(self, name: str) -> Any:
        """Return a field as it stands."""
        return self.changes[name] if name in self.changes else getattr(self.record, name)

    def take_usage(self, usage: ev.Usage | None) -> None:
        if usage is not None:
            self.changes["usage"] = usage

    def known_tools(self) -> dict[str, ToolCall]:
        if self.tools is None:
            self.tools = {tool.id: tool for tool in self.record.tools}
        return self.tools

    def known_children(self) -> dict[str, ChildSummary]:
        if self.children is None:
            self.children = {child.run_id: child for child in self.record.children}
        return self.children

    def _close_parts(self, status: RunStatus) -> None:
        """Let nothing run on in a run that was ended from outside: its host had no time to say so.

        What a lost run's tool did nobody knows; nobody has cancelled it. A child run goes with its parent's kernel.
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
            self._close_parts(status)
        if self.text:
            changes["text"] = record.text + "".join(self.text)
        changes["is_between"] = self.is_between and status not in TERMINAL
        if self.reasoning:
            more = "".join(self.reasoning)
            changes["reasoning"] = (record.reasoning + more[-REASONING_TAIL:])[-REASONING_TAIL:]
            changes["reasoning_count"] = record.reasoning_count + len(more)
        if self.tools is not None:
            changes["tools"] = tuple(self.tools.values())
        if self.children is not None:
            changes["children"] = tuple(self.children.values())
        if self.warnings:
            changes["notices"] = (*record.notices, *self.warnings)[-5:]
        if self.logs:
            changes["log"] = (*record.log, *_last_lines(self.logs))[-LOG_LINES:]
            changes["log_count"] = record.log_count + sum(t.count("\n") + 1 for t in self.logs)
        if status in TERMINAL:
            changes["pending"] = ()
            if self.value("output") is None:
                changes["output"] = self.value("text") or None
        changes.update(last_event_at=self.last_event_at, event_count=self.next_seq)
        return msgspec.structs.replace(record, status=status, **changes)


# --- what each type of event does to a record, status apart -------------------------------------------


def _created(draft: _Draft, data: ev.RunCreated, event: ev.RunEvent) -> None:
    fields = {name: getattr(data, name) for name in data.__struct_fields__}
    draft.changes.update(fields, run_id=event.run_id, created_at=event.ts, usage_before=data.usage)


def _started(draft: _Draft, _data: ev.RunStarted, event: ev.RunEvent) -> None:
    # A new attempt knows nothing of what an older one had asked, or was allowed.
    draft.changes.update(started_at=event.ts, attempt=event.attempt, pending=(), always=())


def _completed_message(draft: _Draft, _data: ev.Message, _event: ev.RunEvent) -> None:
    draft.is_between = True


def _reasoned(draft: _Draft, data: ev.ReasoningDelta, _event: ev.RunEvent) -> None:
    draft.reasoning.append(data.text)


def _phase(draft: _Draft, data: ev.RunPhase, _event: ev.RunEvent) -> None:
    draft.changes["phase"] = data.phase


def _cancel_requested(draft: _Draft, data: ev.CancelRequested, event: ev.RunEvent) -> None:
    draft.changes.update(
        cause=data.cause, reason=data.reason, cancelled_by=data.by, cancel_requested_at=event.ts
    )


def _cancel_escalated(draft: _Draft, data: ev.CancelEscalated, _event: ev.RunEvent) -> None:
    draft.changes["rung"] = data.rung


def _completed(draft: _Draft, data: ev.RunCompleted, event: ev.RunEvent) -> None:
    draft.changes.update(ended_at=event.ts, output=data.output, cause=None, reason=None)
    draft.take_usage(data.usage)


def _failed(draft: _Draft, data: ev.RunFailed, event: ev.RunEvent) -> None:
    draft.changes.update(
        ended_at=event.ts, error=data.error, output=data.output, cause=CancelCause.ERROR
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


def _used(draft: _Draft, data: ev.Usage, _event: ev.RunEvent) -> None:
    draft.changes["usage"] = data


def _progress(draft: _Draft, data: ev.Progress, _event: ev.RunEvent) -> None:
    draft.changes["progress"] = data


def _checkpoint(draft: _Draft, data: ev.Checkpoint, _event: ev.RunEvent) -> None:
    draft.changes["checkpoint"] = data


def _artifact(draft: _Draft, data: ev.Artifact, _event: ev.RunEvent) -> None:
    if data.id.startswith(ev.FILE_ID):
        made = (*draft.value("files"), FileMade(data.name, data.size))
        draft.changes.update(files=made[-FILES:], file_count=draft.value("file_count") + 1)


def _log(draft: _Draft, data: ev.Log, event: ev.RunEvent) -> None:
    if data.level == "warning":
        draft.warnings.append(data.text)
    if event.attempt > 0:  # a notice of the session's is no line of the agent's
        draft.logs.append(data.text)


def _detached_finished(draft: _Draft, data: ev.DetachedFinished, event: ev.RunEvent) -> None:
    detached, known = draft.value("detached"), draft.value("detached_finished")
    # One of them, or all together: their host then names them as it likes.
    names = (data.name,) if data.name in detached else detached or (data.name,)
    draft.changes.update(
        detached_finished=(*known, *(name for name in names if name not in known)),
        detached_finished_at=event.ts,
        refused=data.refused,  # a total
    )


def _tool_started(draft: _Draft, data: ev.ToolStarted, event: ev.RunEvent) -> None:
    tool = ToolCall(data.id, data.name, data.kind, data.args, started_at=event.ts)
    draft.known_tools()[data.id] = tool


def _tool_progress(draft: _Draft, data: ev.ToolProgress, _event: ev.RunEvent) -> None:
    tools = draft.known_tools()
    known = tools.get(data.id)
    if known is not None and known.status == "running":
        progress = ev.Progress(data.done, data.total, data.label)
        tools[data.id] = msgspec.structs.replace(known, progress=progress)


def _tool_finished(draft: _Draft, data: ev.ToolFinished, event: ev.RunEvent) -> None:
    tools = draft.known_tools()
    # An end without its start is tolerated: some frameworks tell only ends.
    known = tools.get(data.id) or ToolCall(data.id, data.id, started_at=event.ts)
    tools[data.id] = msgspec.structs.replace(
        known, status=data.status, result=data.result, ms=data.ms
    )


def _child_started(draft: _Draft, data: ev.ChildStarted, event: ev.RunEvent) -> None:
    child = ChildSummary(data.run_id, data.name, data.number, str(RunStatus.RUNNING), event.ts)
    draft.known_children()[data.run_id] = child


def _child_finished(draft: _Draft, data: ev.ChildFinished, event: ev.RunEvent) -> None:
    children = draft.known_children()
    known = children.get(data.run_id) or ChildSummary(data.run_id, data.run_id)  # as with tools
    children[data.run_id] = msgspec.structs.replace(
        known, status=data.status, ended_at=event.ts, usage=data.usage
    )


def _asked(draft: _Draft, data: ev.ApprovalRequested, _event: ev.RunEvent) -> None:
    others = (asked for asked in draft.value("pending") if asked.id != data.id)
    draft.changes["pending"] = (*others, data)


def _answered(draft: _Draft, data: ev.ApprovalResolved, _event: ev.RunEvent) -> None:
    pending, always = draft.value("pending"), draft.value("always")
    draft.changes["pending"] = tuple(asked for asked in pending if asked.id != data.id)
    if data.always:
        tools = (asked.tool for asked in pending if asked.id == data.id)
        draft.changes["always"] = (*always, *(tool for tool in tools if tool not in always))


def _steer_ready(draft: _Draft, _data: ev.SteerReady, _event: ev.RunEvent) -> None:
    draft.changes["is_steerable"] = True


def _steered(draft: _Draft, data: ev.Steer, event: ev.RunEvent) -> None:
    number = draft.value("steers") + 1
    message = Steered(number, shown(data.text, LOG_WIDTH), data.by, data.id, event.ts)
    draft.changes["steers"] = number
    draft.changes["steered"] = (*draft.value("steered"), message)[-STEERED:]


def _steer_taken(draft: _Draft, data: ev.SteerTaken, event: ev.RunEvent) -> None:
    taken = draft.value("steers_taken") + data.count  # the oldest first
    draft.changes["steers_taken"] = taken
    draft.changes["steered"] = tuple(
        msgspec.structs.replace(one, taken_at=event.ts)
        if one.taken_at is None and one.number <= taken
        else one
        for one in draft.value("steered")
    )


_FOLDS: dict[type[ev.EventData], Callable[[_Draft, Any, ev.RunEvent], None]] = {
    ev.RunCreated: _created,
    ev.Message: _completed_message,
    ev.RunStarted: _started,
    ev.RunPhase: _phase,
    ev.ReasoningDelta: _reasoned,
    ev.RunCompleted: _completed,
    ev.RunFailed: _failed,
    ev.RunCancelled: _cancelled,
    ev.RunLost: _lost,
    ev.CancelRequested: _cancel_requested,
    ev.CancelEscalated: _cancel_escalated,
    ev.DetachedFinished: _detached_finished,
    ev.ToolStarted: _tool_started,
    ev.ToolProgress: _tool_progress,
    ev.ToolFinished: _tool_finished,
    ev.ApprovalRequested: _asked,
    ev.ApprovalResolved: _answered,
    ev.Steer: _steered,
    ev.SteerReady: _steer_ready,
    ev.SteerTaken: _steer_taken,
    ev.ChildStarted: _child_started,
    ev.ChildFinished: _child_finished,
    ev.Usage: _used,
    ev.Progress: _progress,
    ev.Checkpoint: _checkpoint,
    ev.Artifact: _artifact,
    ev.Log: _log,
}
"""What is not listed, and what is of an unknown type, is in the log only."""


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
