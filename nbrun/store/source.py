"""What the store's writer asks of where events come from, and what it tells it in return."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nbrun.core.events import RunEvent
    from nbrun.core.record import RunRecord
    from nbrun.store.attachments import Checkpointed


class Committed(NamedTuple):
    """What became public of one run: its record, and the events that led there from the last one.

    `problem` says why it is not on disk, if it is not; `waiting` is then all that is not.
    """

    run_id: str
    record: RunRecord
    events: Sequence[RunEvent]
    problem: str | None = None
    waiting: Iterable[RunEvent] = ()


class Source(Protocol):
    """Where the writer gets events from; its methods are called on the writer's thread only.

    `checkpoints` are states that drained events tell of, by run: the writer takes them out once they are stored.
    """

    checkpoints: dict[str, Checkpointed]

    def drain(self) -> list[RunEvent]:
        """Return all events that wait: numbered, redacted, in order."""
        ...

    def record(self, run_id: str) -> RunRecord | None:
        """Return what is public of a run."""
        ...

    def known(self) -> list[RunRecord]:
        """Return what is public of all runs that are in memory."""
        ...

    def publish(self, committed: list[Committed]) -> None:
        """Make this public."""
        ...

    def warn(self, text: str) -> bool:
        """Tell all live runs of something; return whether there were any."""
        ...

    def refuse(self, run_id: str) -> None:
        """Take back a run that was not begun: its id is taken."""
        ...
