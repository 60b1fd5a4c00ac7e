"""`%agentrun logs`: what a run printed and logged."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from nbrun.core import events as ev
from nbrun.core.quantities import moment
from nbrun.core.text import visible
from nbrun.render.words import opening

if TYPE_CHECKING:
    from nbrun.sessions.run import Run

SHOWN_LINES = 200
"""How many lines are shown by default."""
_PAGE = 2_000

_UNMARKED = frozenset({"stdout", "info"})


def log_text(run: Run, count: int) -> str:
    """Return the last lines of a run's log, the newest last, below the number of those left out."""
    lines: deque[str] = deque(maxlen=count)
    total, after = 0, -1
    until = run.glance.event_count  # a live run may log faster than this reads
    while after < until - 1 and (page := run.events(after, _PAGE)):
        after = page[-1].seq
        for event in page:
            if isinstance(event.data, ev.Log):
                found = _lines(event.ts, event.data)
                lines.extend(found)
                total += len(found)
    if not total:
        return f"{opening(run.record)} has logged nothing."
    left_out = total - len(lines)
    head = [f"… {left_out:,} earlier lines; -n {total} shows all"] if left_out else []
    return "\n".join([*head, *lines])


def _lines(at: float, log: ev.Log) -> list[str]:
    time = moment(at, "%H:%M:%S")
    mark = "" if log.level in _UNMARKED else f"{visible(log.level)}: "
    return [f"{time}  {mark}{visible(line)}" for line in log.text.splitlines() or [""]]
