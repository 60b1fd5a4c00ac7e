"""What travels between a session and its hosts: attempts there, events back, by an executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from nbrun.agents.context.approvals import NOBODY
from nbrun.core import ArtifactWriter, CancelToken, Journals, Restored, RunOptions, events as ev

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from contextvars import Context

    from nbrun.agents import Budget, ChildRun


class WhenStored(Protocol):
    """Calls back when all that a run's host has sent is on disk, or can't be put there; from any thread, on any."""

    def __call__(self, function: Callable[[], object], *, is_urgent: bool = False) -> None:
        """Call `function` then; urgent is what somebody waits for."""
        ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a run on a host.

    `number` is a fence: it grows with each try, and the session refuses events of older ones. `context` is a copy of
    the starting cell's context variables, so that what the agent prints and imports behaves as in that cell.
    """

    run_id: str
    number: int
    agent: object
    prompt: str
    token: CancelToken
    context: Context
    options: RunOptions
    answerable: bool = True  # whether there is a person to ask
    grace_s: float = 2.0
    start_child: Callable[[object, str, dict[str, Any]], ChildRun] | None = None
    pickled: bytes = b""  # the agent, for a host in another process
    budget: Budget | None = None  # the session's; None: the host makes one of the options
    reentrant_loop: bool = False  # of a host that is made for this attempt
    restored: Restored | None = None  # what the run resumes from
    artifact_writer: ArtifactWriter | None = None  # a host in another process has its own
    loop: AbstractEventLoop | None = None  # where the agent is driven; None: on the host's own
    watch_calls: bool = True  # whether its model calls are seen
    journals: Journals | None = None  # where the run's journal is kept; None: nowhere
    when_stored: WhenStored | None = None  # None: nothing is stored
    add_secrets: Callable[[Mapping[str, str]], None] | None = None  # takes those that the run's own process names

    @property
    def approve(self) -> str:
        """The policy that answers the agent's questions."""
        policy = self.options.approve
        return NOBODY if policy == "ask" and not self.answerable else policy


class HostEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as a host sends it: `n` counts per attempt, without gaps.

    `live` is the output itself, or what the agent has raised, with an end event; it travels only within a process.
    `size` is about how many bytes an output takes, with its stored form.
    """

    run_id: str
    attempt: int
    n: int
    ts: float
    data: ev.EventData
    parent: str | None = None
    live: object = None
    size: int = 0


IsFull = Callable[[], bool]
"""Returns whether too much of a run waits to be stored; from any thread."""

Sink = Callable[[Sequence[HostEvent]], IsFull | None]
"""Takes events of a run's host, in order, from any thread; the agent should pause while what it returns is true."""

OnHost = Callable[[str, bool], None]
"""Called with a host's name and whether it has come up (True) or gone (False)."""


class Executor(Protocol):
    """Hands attempts to hosts and brings their events back, all on the loop of the session's host thread."""

    async def open(self, sink: Sink, on_host: OnHost) -> None:
        """Begin; `sink` takes the events of all hosts, `on_host` is called when one comes up or goes."""
        ...

    async def submit(self, attempts: Sequence[Attempt]) -> None:
        """Hand attempts to hosts."""
        ...

    async def control(self, host: str, op: str, body: dict[str, object]) -> dict[str, object]:
        """Send `cancel`, `steer`, `answer`, `ack`, `resend` or `ping` to a host; return its reply."""
        ...

    async def release(self, attempts: Sequence[Attempt]) -> None:
        """Make sure that the engine never runs these again."""
        ...

    async def kill_host(self, host: str) -> None:
        """Kill a host that does not answer."""
        ...

    async def close(self) -> None:
        """Let go of all hosts."""
        ...
