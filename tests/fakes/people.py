"""Somebody who waits for a run to ask."""

from __future__ import annotations

import threading
from collections.abc import Callable

from nbrun import Run, RunRecord
from nbrun.core import events as ev
from tests.fakes.agents import BOUND_S


def until(run: Run, is_met: Callable[[RunRecord], bool]) -> RunRecord:
    """Return the run's record once it is so."""
    met = threading.Event()

    def look(record: RunRecord, _events: object) -> None:
        if is_met(record):
            met.set()

    assert run.live is not None
    remove = run.live.listen(look)
    look(run.record, ())
    assert met.wait(BOUND_S), f"not so: {run.record}"
    remove()
    return run.record


def asking(run: Run, count: int = 1) -> tuple[ev.ApprovalRequested, ...]:
    """Return the run's questions once there are so many."""
    return until(run, lambda record: len(record.pending) == count).pending


def about(run: Run, tool_id: str) -> str:
    """Return the id of the pending question about a tool's call."""
    return next(asked.id for asked in run.pending if asked.tool_id == tool_id)
