"""Events that come after a run's end, which nothing waits for by itself."""

from __future__ import annotations

import threading
from typing import TypeVar

from nbrun import Run
from nbrun.core import events as ev
from tests.fakes.agents import BOUND_S

E = TypeVar("E", bound=ev.EventData)


def late_event(run: Run, kind: type[E]) -> E:
    """Return the run's first event of this kind, waiting for it."""
    assert run.live is not None
    came = threading.Event()
    remove = run.live.listen(lambda _record, _events: came.set())
    try:
        while True:
            found = [event.data for event in run.events() if isinstance(event.data, kind)]
            if found:
                return found[0]
            assert came.wait(BOUND_S), f"no {kind.TYPE} came"
            came.clear()
    finally:
        remove()
