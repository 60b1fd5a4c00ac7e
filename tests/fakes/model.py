"""What a run must do, told once more and apart: section 4 of the design, in a few lines."""

from __future__ import annotations

from dataclasses import dataclass, field

from nbrun import RunRecord
from nbrun.core import events as ev
from nbrun.core.cancellation import CancelOutcome
from nbrun.sessions.live_run import LiveRun
from tests.fakes.actor import Actor

ENDS = {"run.completed": "completed", "run.failed": "failed", "run.cancelled": "cancelled", "run.lost": "lost"}


def after(status: str, kind: str) -> str:
    """Return the status after an event, by the drawing in the design."""
    if status in ENDS.values():
        return status
    if kind in ENDS:
        return ENDS[kind]
    if kind == "cancel.requested" or status == "cancelling":
        return "cancelling"
    if (status, kind) in (("queued", "run.started"), ("waiting", "run.resumed")):
        return "running"
    if (status, kind) == ("running", "run.waiting"):
        return "waiting"
    return status


@dataclass
class Account:
    """What the model knows of a run: what came through the door, in order, and what became public."""

    actor: Actor
    live: LiveRun
    parent_id: str | None = None
    cancel: ev.CancelRequested | None = None
    cancelled_at: float = 0.0
    has_ended: bool = False  # its host has said so
    was_cut: bool = False  # its session has ended it, without its host
    end: str | None = None  # the status that the first of a cancel and an end decides
    events: list[ev.RunEvent] = field(default_factory=list)
    status: str = "queued"
    record: RunRecord | None = None

    def request(self, request: ev.CancelRequested, now: float) -> CancelOutcome:
        """Take a request; return what must come of it."""
        if self.end is not None:
            return CancelOutcome.ALREADY_FINISHED
        if self.cancel is not None:
            return CancelOutcome.ALREADY_REQUESTED
        self.cancel, self.cancelled_at = request, now
        return CancelOutcome.REQUESTED

    def take_end(self, data: ev.EventData) -> None:
        """Take an end; only the first counts."""
        if self.end is None:
            if self.cancel is None and isinstance(data, ev.RunCancelled):
                self.cancel = ev.CancelRequested(data.cause, data.reason, "its token")
            self.end = "cancelled" if self.cancel is not None else ENDS[data.TYPE]


def check_log(run_id: str, account: Account, *, is_closed: bool) -> None:
    """Check the log of one run against what came through the door."""
    events, record, actor = account.events, account.record, account.actor
    kinds = [event.type for event in events]
    told = f"{run_id}: {kinds}"
    assert [event.seq for event in events] == list(range(len(events))), told
    assert kinds[0] == "run.created", told
    ends = [index for index, kind in enumerate(kinds) if kind in ENDS]
    assert len(ends) == 1, told
    assert kinds[ends[0] + 1 :] in ([], ["detached.finished"]), told
    assert record is not None
    assert record.status == account.end, told
    assert kinds.count("cancel.requested") == (account.cancel is not None), told
    assert ("run.started" in kinds) is actor.is_in, told
    if record.status == "cancelled":
        assert account.cancel is not None, f"{told} ended cancelled, and nobody had asked"
        assert record.cause == account.cancel.cause, told
        assert record.reason == account.cancel.reason, told
        assert record.cancelled_by == account.cancel.by, told
    if not (account.was_cut or is_closed):
        assert kinds.count("detached.finished") == bool(record.detached), told
    tools = [kinds.count("tool.started"), kinds.count("tool.finished")]
    if not account.was_cut:
        assert tools[0] == tools[1], told
        assert record.text == actor.text, told
