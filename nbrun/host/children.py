"""The child runs of a run under way: told of in its log, and ended before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbrun.core import events as ev
from nbrun.core.cancellation import CancelCause
from nbrun.core.latches import LoopFlag

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.agents.context.backend import ChildRun
    from nbrun.host.loops import LoopThread


class Children:
    """Follows the child runs of one run.

    Threads: `add()` from any thread of the agent; everything else on the host's loop.

    Parameters
    ----------
    tell : takes an event of the run.
    """

    __slots__ = (
        "_all",
        "_is_closing",
        "_tell",
        "_thread",
    )

    def __init__(self, thread: LoopThread, tell: Callable[[ev.EventData], None]) -> None:
        self._thread = thread
        self._tell = tell
        self._all: list[tuple[ChildRun, LoopFlag]] = []
        self._is_closing = False

    def add(self, child: ChildRun) -> None:
        """Follow a child run that has just been started."""
        ended = LoopFlag()
        if self._is_closing:
            child.cancel(None, CancelCause.PARENT)
        self._all.append((child, ended))
        # Not at once: what it is called is public only when its creation has been saved.
        child.when_created(lambda: self._thread.call(lambda: self._note_start(child)))
        child.when_ended(lambda: self._thread.call(lambda: self._note_end(child, ended)))

    def cancel(self) -> None:
        """Ask all that are live to stop, and any that come: the run has failed, and nobody waits for them."""
        self._is_closing = True
        for child, ended in tuple(self._all):
            if not ended.is_set():
                child.cancel(None, CancelCause.PARENT)

    async def ended(self) -> None:
        """Return when every child run has ended."""
        for _child, ended in self._all:  # grows, perhaps, while it is walked
            await ended.wait()

    def _note_start(self, child: ChildRun) -> None:
        self._tell(ev.ChildStarted(child.id, child.name, child.number))

    def _note_end(self, child: ChildRun, ended: LoopFlag) -> None:
        self._tell(ev.ChildFinished(child.id, str(child.status), child.usage))
        ended.set()
