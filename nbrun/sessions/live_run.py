"""A run while it lives: what its session knows of it, ahead of the store and public."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nbrun.core import events as ev
from nbrun.core.latches import Latch
from nbrun.core.record import RunRecord, RunStatus

if TYPE_CHECKING:
    import asyncio

    from nbrun.agents.context.budget import Budget
    from nbrun.core.cancellation import CancelToken
    from nbrun.core.redaction import StreamRedactor

# One for all runs: it is held for a moment, and each lock costs memory.
_listening = threading.RLock()

Listener = Callable[[RunRecord, Sequence[ev.RunEvent]], object]


@dataclass(slots=True, eq=False)
class LiveRun:
    """What the session knows of a run while it lives, and for a while after.

    Who writes: the intake's lock guards `cancel` and `has_end`; the writer's thread alone writes the numbers
    and what is public (`record`, `problem`, `output`). Everybody reads.
    """

    run_id: str
    token: CancelToken
    attempt: int = 1
    key: str | None = None  # what `if_running` compares: the cell, or the name that was given
    is_child: bool = False
    agent: object = None  # what a retry of it runs
    loop: asyncio.AbstractEventLoop | None = None  # that it is on, where it is not the host's
    budget: Budget | None = None  # where it, or a run above it, has limits

    # under the intake's lock
    cancel: ev.CancelRequested | None = None
    has_end: bool = False

    # the writer's thread: the state at intake, ahead of what is public
    status: RunStatus = RunStatus.QUEUED
    next_seq: int = 0
    next_n: int = 0
    last_ts: float = 0.0
    refused: int = 0
    streams: dict[str, StreamRedactor] | None = (
        None  # with the first text of a session that has secrets
    )
    pending_output: object = None

    # public
    record: RunRecord = field(default_factory=RunRecord)
    problem: str | None = None
    output: object = None
    is_refused: bool = False  # its id is taken: it never was
    is_created: Latch = field(default_factory=Latch)
    is_ended: Latch = field(default_factory=Latch)
    unsaved: Iterable[ev.RunEvent] = ()
    listeners: tuple[Listener, ...] = ()  # replaced, never changed: they may be walked right now

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Have `listener(record, events)` called on the writer's thread; return what ends that."""
        with _listening:
            self.listeners = (*self.listeners, listener)

        def remove() -> None:
            with _listening:
                self.listeners = tuple(known for known in self.listeners if known is not listener)

        return remove
