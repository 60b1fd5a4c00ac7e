"""The record of a run, and the one table of its statuses."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.core import events as ev
from nbrun.core.cancellation import CancelCause, Rung
from nbrun.core.values import Plain, shown

if TYPE_CHECKING:
    from collections.abc import Sequence


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

AFTER_END = frozenset({ev.DetachedFinished.TYPE})
"""The events that may follow an ending; they change neither status nor output."""


def next_status(status: RunStatus, event_type: str) -> RunStatus:
    """Return the status after an event of this type."""
    return TRANSITIONS[status].get(event_type, status)


def is_admitted(status: RunStatus, event_type: str) -> bool:
    """Return whether the log of a run in this status takes an event of this type."""
    return status not in TERMINAL or event_type in AFTER_END


BRIEF_HEAD = 300
"""Characters of its long fields that a brief record holds."""
BRIEF_PENDING = 3
"""Questions that a brief record holds."""


def between(said: Sequence[str], text: str) -> str:
    """Return what parts the text of a new message from what was said before, in pieces: an empty line, or nothing."""
    last = next((piece for piece in reversed(said) if piece), "")
    is_apart = not last or last.endswith("\n") or text.startswith("\n")
    return "" if is_apart else "\n\n"


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One use of a tool, as far as it has come."""

    id: str
    name: str
    kind: str = "function"
    args: Plain = None
    status: str = "running"
    result: Plain = None
    started_at: float = 0.0
    ms: float | None = None
    progress: ev.Progress | None = None


class ChildSummary(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A child run, as its parent's log tells of it."""

    run_id: str
    name: str
    number: int | None = None
    status: str = "queued"
    started_at: float | None = None
    ended_at: float | None = None
    usage: ev.Usage | None = None  # told with its end


class Steered(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A message of a person's to the agent: the `number`-th, its beginning, and when the agent has read it."""

    number: int
    text: str
    by: str = ""
    id: str = ""
    at: float = 0.0
    taken_at: float | None = None


class FileMade(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A file that the agent has kept with its run; `size` is in bytes."""

    name: str
    size: int = 0


UNLOAD = "unload"


GIVEN_UP = "given up by hand, because its kernel could not be seen"


class RunRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False, kw_only=True):
    """The state of a run, frozen: the fold of its events up to `event_count`.

    Times are epoch seconds (UTC). `text` is all that was streamed, its messages a paragraph each; `output` is what
    the agent returned, as JSON-like data, or the text where it returned nothing. `reasoning` is the tail of
    `reasoning_count` characters; it is no part of an answer, and models write much of it. `detached` names what a
    cancelled run has left running, `detached_finished` those of them that have ended since. `log` is the tail of
    `log_count` lines, `steered` that of `steers` messages, `files` that of `file_count` files.
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
    target: str | None = None
    origin: ev.Origin | None = None  # the run that this one comes from
    checkpoint: ev.Checkpoint | None = None  # the last one; the store keeps its state
    created_at: float = 0.0
    started_at: float | None = None
    cancel_requested_at: float | None = None
    rung: Rung | None = None  # the last step of the cancel ladder that was used
    ended_at: float | None = None
    last_event_at: float = 0.0
    text: str = ""
    is_between: bool = False  # messages: the last is complete, and what comes next is another
    reasoning: str = ""
    reasoning_count: int = 0
    output: Plain = None
    error: ev.ErrorInfo | None = None
    usage: ev.Usage = ev.Usage()
    usage_before: ev.Usage = (
        ev.Usage()
    )  # of the runs that this one goes on from; a part of its usage
    tools: tuple[ToolCall, ...] = ()
    children: tuple[ChildSummary, ...] = ()
    pending: tuple[ev.ApprovalRequested, ...] = ()  # what a person is being asked, oldest first
    always: tuple[str, ...] = ()  # tools that a person has allowed for the rest of the run
    steers: int = 0  # messages that came in,
    steers_taken: int = 0  # and those that the agent has read
    steered: tuple[Steered, ...] = ()
    is_steerable: bool = False  # whether the agent has ever looked for messages
    progress: ev.Progress | None = None
    notices: tuple[str, ...] = ()  # what the run's card has to tell besides its status
    log: tuple[str, ...] = ()
    log_count: int = 0
    files: tuple[FileMade, ...] = ()
    file_count: int = 0
    detached: tuple[str, ...] = ()
    detached_finished: tuple[str, ...] = ()
    detached_finished_at: float | None = None
    refused: int = 0  # what detached work still sent after the end
    event_count: int = 0
    sequels: tuple[
        tuple[int, str], ...
    ] = ()  # runs that come from it: told by its store, not its log
    is_brief: bool = False  # long fields are cut; the whole is in the log
    unseen: str = (
        ""  # why nobody here can say how it stands: a reader's word, neither folded nor stored
    )

    @property
    def is_live(self) -> bool:
        """Whether the run has not ended."""
        return self.status.is_live

    @property
    def resumed_from(self) -> str | None:
        """The id of the run that this one goes on from."""
        origin = self.origin
        return origin.run_id if origin is not None and origin.kind == ev.RESUME else None

    @property
    def is_replay(self) -> bool:
        """Whether it only shows another run once more."""
        return self.origin is not None and self.origin.kind == ev.REPLAY

    @property
    def own_usage(self) -> ev.Usage:
        """What this run has used itself: not what the runs before it had, and nothing if it only shows another."""
        if self.is_replay:
            return ev.Usage()
        return self.usage.without(self.usage_before)

    @property
    def tool_count(self) -> int:
        """How many tools were called, by the runs that this one goes on from too; of a whole record."""
        return len(self.tools) + (0 if self.origin is None else self.origin.tools)

    @property
    def is_unknown(self) -> bool:
        """Whether it looks live, and its kernel cannot be seen from here."""
        return self.is_live and bool(self.unseen)

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

    def brief(self, head: int = BRIEF_HEAD) -> RunRecord:
        """Return the record with its long fields cut to `head` characters: what a list of runs needs."""
        cut: dict[
            str, Any
        ] = {}  # only what has to be: most runs are small, and all come through here
        if len(self.prompt) > head:
            cut["prompt"] = self.prompt[:head]
        if len(self.text) > head:
            cut["text"] = self.text[:head]
        if not _is_small(self.output, head):
            cut["output"] = shown(self.output, head)
        if self.pending:
            asked = self.pending[:BRIEF_PENDING]
            cut["pending"] = tuple(_brief_question(one, head // 2) for one in asked)
        if self.error is not None:
            cut["error"] = ev.ErrorInfo(self.error.type, self.error.message[:head])
        lists = (self.tools, self.children, self.log, self.files, self.steered)
        if not (cut or self.reasoning or any(lists)):
            return self
        cut.update(tools=(), children=(), log=(), files=(), reasoning="", steered=(), is_brief=True)
        return msgspec.structs.replace(self, **cut)


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
