"""What is known of a run in short, as its record says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbrun import events as ev
    from nbrun.cancellation import CancelCause
    from nbrun.record import RunRecord, RunStatus


class Facts:
    """The members of a run that say what its record says.

    Threads: any member, from any thread.
    """

    @property
    def record(self) -> RunRecord:
        """The state of the run: the fold of its committed events."""
        raise NotImplementedError

    @property
    def glance(self) -> RunRecord:
        """The record, perhaps brief: enough for everything that is short, and cheap to have."""
        raise NotImplementedError

    @property
    def number(self) -> int | None:
        """The run's short number in its store, or None while it is not saved."""
        return self.glance.number

    @property
    def name(self) -> str:
        """The run's name: the one that was given, or its agent's."""
        return self.glance.name

    @property
    def status(self) -> RunStatus:
        """Where the run stands."""
        return self.glance.status

    @property
    def cause(self) -> CancelCause | None:
        """Why the run was cancelled or failed, or is being cancelled."""
        return self.glance.cause

    @property
    def reason(self) -> str | None:
        """What was said with the cancel."""
        return self.glance.reason

    @property
    def pending(self) -> tuple[ev.ApprovalRequested, ...]:
        """What the run asks a person, oldest first: `approve()` or `deny()` it."""
        return self.record.pending

    @property
    def phase(self) -> str | None:
        """What the agent says it is doing."""
        return self.glance.phase

    @property
    def text(self) -> str:
        """All that was streamed so far."""
        return self.record.text

    @property
    def error(self) -> ev.ErrorInfo | None:
        """What the agent raised."""
        return self.record.error

    @property
    def usage(self) -> ev.Usage:
        """Tokens and requests so far."""
        return self.glance.usage

    @property
    def created_at(self) -> float:
        """When the run was created, in epoch seconds (UTC)."""
        return self.glance.created_at

    @property
    def started_at(self) -> float | None:
        """When its agent was entered, in epoch seconds (UTC)."""
        return self.glance.started_at

    @property
    def ended_at(self) -> float | None:
        """When the run ended, in epoch seconds (UTC)."""
        return self.glance.ended_at

    @property
    def parent_id(self) -> str | None:
        """The id of the run that started this one as its child."""
        return self.glance.parent_id

    @property
    def resumed_from(self) -> str | None:
        """The id of the run that this one goes on from."""
        return self.glance.resumed_from
