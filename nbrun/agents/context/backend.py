"""What stands behind a run's context: the contracts that its host and its session keep for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from nbrun.agents.context.approvals import Questions
from nbrun.agents.context.budget import Budget
from nbrun.agents.context.inbox import Inbox
from nbrun.core.errors import NbrunError
from nbrun.core.options import RunOptions

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextvars import Context

    from nbrun.core import events as ev
    from nbrun.core.artifacts import ArtifactWriter
    from nbrun.core.cancellation import CancelCause, CancelToken
    from nbrun.core.clock import Clock

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Work(Protocol):
    """A thread that a run has started; it may go on when the task that waits for it is cancelled."""

    name: str
    is_driver: bool
    """Whether it is the agent itself, a sync one, and not something beside it."""

    def is_alive(self) -> bool:
        """Return whether the agent's code still runs there."""
        ...

    async def ended(self) -> None:
        """Return when it does not; on the host's loop."""
        ...

    def interrupt(self) -> bool:
        """Raise `Cancelled` in it; return False where that is not possible at this moment."""
        ...


class Thread(Work, Protocol[T_co]):
    """Work that somebody waits for."""

    async def result(self) -> T_co:
        """Start it, and return what its function returns."""
        ...


class ChildRun(Protocol):
    """What a run has of a child run that it has started: the handle that users hold."""

    @property
    def id(self) -> str:
        """The child run's id."""
        ...

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def number(self) -> int | None:
        """Its short number in the store."""
        ...

    @property
    def status(self) -> str:
        """Where it stands."""
        ...

    @property
    def usage(self) -> ev.Usage:
        """The tokens and requests that it has used so far."""
        ...

    def cancel(self, reason: str | None = None, cause: CancelCause = ...) -> object:
        """Ask it to stop; its parent goes on."""
        ...

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until it has ended: for sync agents, in their threads."""
        ...

    def result(self, timeout_s: float | None = None) -> object:
        """Return its output, after waiting for it: for sync agents, in their threads."""
        ...

    def when_created(self, function: Callable[[], object]) -> None:
        """Call `function` when its name and number can be read."""
        ...

    def when_ended(self, function: Callable[[], object]) -> None:
        """Call `function` when it has ended."""
        ...

    def __await__(self) -> Generator[object, None, object]:
        """Wait for its end and return its output; raises as `result()` does."""
        ...


class Backend(Protocol):
    """What an agent's context stands on: the host's side of its run.

    Threads: any member, from any thread of the agent. What few agents use is made when it is first asked for.
    """

    @property
    def budget(self) -> Budget:
        """What the run, and its child runs, may use up."""
        ...

    @property
    def questions(self) -> Questions:
        """What the run asks of people."""
        ...

    @property
    def inbox(self) -> Inbox:
        """What people say to the agent."""
        ...

    def emit(self, data: ev.EventData, parent: str | None = None) -> None:
        """Take an event of the agent."""
        ...

    def start_child(self, agent: object, prompt: str, options: dict[str, Any]) -> ChildRun:
        """Start a child run; raises `NbrunError` where that cannot be."""
        ...

    @property
    def keeper(self) -> ArtifactWriter:
        """What keeps files beside the log; raises `NbrunError` where that cannot be."""
        ...

    def make_thread(
        self, run_id: str, function: Callable[[], T], context: Context, *, name: str
    ) -> Thread[T]:
        """Return a thread that runs a function in a context; it is not started."""
        ...


StartChild = Callable[[object, str, "dict[str, Any]"], ChildRun]
"""Starts a child run: agent, prompt, options of `nbrun.start()`."""


class EndedBackend:
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
        return Budget(RunOptions(), self._token)

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
    def keeper(self) -> ArtifactWriter:
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
