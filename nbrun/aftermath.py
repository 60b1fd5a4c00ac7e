"""What the context of a run stands on when the run is over."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

from nbrun.budget import NO_LIMITS, Budget
from nbrun.errors import NbrunError
from nbrun.inbox import Inbox
from nbrun.questions import Questions

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from nbrun import events as ev
    from nbrun.backstage import ChildRun, Thread
    from nbrun.cancellation import CancelToken
    from nbrun.clock import Clock
    from nbrun.keeper import Keeper

T = TypeVar("T")


class EndedStage:
    """What the context of a run stands on that is over, for who still holds it: refuses everything.

    Threads: any member, from any thread.
    """

    __slots__ = ("_clock", "_token")

    def __init__(self, token: CancelToken, clock: Clock) -> None:
        self._token = token
        self._clock = clock

    @property
    def budget(self) -> Budget:
        """A budget in which nothing is counted."""
        return Budget(NO_LIMITS, self._token)

    @property
    def questions(self) -> Questions:
        """What denies all that it is asked."""
        questions = Questions(self._token, self.emit, threading.RLock(), self._clock)
        questions.close()
        return questions

    @property
    def inbox(self) -> Inbox:
        """An inbox that stays empty."""
        return Inbox(self._token, self.emit, threading.RLock())

    @property
    def keeper(self) -> Keeper:
        """Refuse."""
        raise NbrunError("this run has ended")

    def emit(self, data: ev.EventData, parent: str | None = None) -> None:
        """Refuse an event."""

    def start_child(self, agent: object, prompt: str, options: dict[str, Any]) -> ChildRun:
        """Refuse."""
        raise NbrunError("this run has ended; it starts no child runs")

    def make_thread(
        self, run_id: str, function: Callable[[], T], context: Context, *, name: str
    ) -> Thread[T]:
        """Refuse."""
        raise NbrunError("this run has ended; it starts no threads")
