"""From a started run to its executor: which ones go at once, which are queued, and the threads they go to."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbrun.core import Clock, Latch
from nbrun.host.host import NAME, LocalExecutor
from nbrun.host.loops import LoopThread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.host.attempt import Attempt, Executor, Sink
    from nbrun.host.process.executor import ProcessExecutor
    from nbrun.sessions.live_run import LiveRun


class RunQueue:
    """Lets at most `limit` runs be in progress at once. Threads: any method, from any thread, under one lock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.RLock()  # entered again by a signal handler that cancels
        self._under_way: dict[LiveRun, None] = {}  # a set that keeps the order
        self._waiting: list[LiveRun] = []

    def join(self, live: LiveRun) -> bool:
        """Put a run in the queue; return whether it may be entered at once."""
        with self._lock:
            if self._may_go(live, self._waiting):
                self._under_way[live] = None
                return True
            self._waiting.append(live)
            return False

    def leave(self, live: LiveRun) -> list[LiveRun]:
        """Take out a run that has ended; return those that may be entered now."""
        with self._lock:
            self._under_way.pop(live, None)
            _discard(self._waiting, live)
            return self._let_in()

    def allow(self, limit: int) -> list[LiveRun]:
        """Change the limit; return the runs that may be entered now. Those in progress continue."""
        with self._lock:
            self._limit = limit
            return self._let_in()

    def _let_in(self) -> list[LiveRun]:
        going: list[LiveRun] = []
        # One at a time, and in place: what a handler does in between is kept.
        while (following := self._next()) is not None:
            self._under_way[following] = None
            _discard(self._waiting, following)
            going.append(following)
        return going

    def _next(self) -> LiveRun | None:
        waiting = tuple(self._waiting)
        for index, live in enumerate(waiting):
            if self._may_go(live, waiting[:index]):
                return live
        return None

    def pass_by(self, live: LiveRun) -> bool:
        """Let a run out of turn: it was cancelled, and its host will end it unentered. False if it was not waiting."""
        with self._lock:
            return _discard(self._waiting, live)

    def position(self, live: LiveRun) -> int | None:
        """Return how many runs wait before this one, or None if it does not wait."""
        with self._lock:
            return self._waiting.index(live) if live in self._waiting else None

    def predecessor(self, live: LiveRun) -> LiveRun | None:
        """Return the run of the same key that a queued one waits for."""
        with self._lock:
            if live.key is None or live not in self._waiting:
                return None
            ahead = (*self._under_way, *self._waiting[: self._waiting.index(live)])
            return next((other for other in reversed(ahead) if other.key == live.key), None)

    @property
    def load(self) -> tuple[int, int, int]:
        """How many runs are queued, how many are in progress, and how many may be."""
        return (len(self._waiting), len(self._under_way), self._limit)

    def _may_go(self, live: LiveRun, ahead: Sequence[LiveRun]) -> bool:
        if len(self._under_way) >= self._limit:
            return False
        return live.key is None or all(other.key != live.key for other in (*self._under_way, *ahead))


def _discard(runs: list[LiveRun], live: LiveRun) -> bool:
    """Take a run out of a list; return whether it was there."""
    is_there = live in runs
    if is_there:
        runs.remove(live)
    return is_there


MakeLoop = Callable[[], asyncio.AbstractEventLoop]
PROCESS = "process"


class Scheduler:
    """Hands attempts to the executor, each once; at most `limit` runs are in progress at once.

    Threads: any method, from any thread; `_send_out()` on a host's loop. An attempt is taken out of
    `attempts` in one step, so that only one of two that want to send it gets it; `_outgoing` likewise.
    """

    # A run in a process of its own has its host there. Its executor has a loop of its own as well, which no agent
    # can block.

    def __init__(self, limit: int, clock: Clock) -> None:
        self._queue = RunQueue(limit)
        self._clock = clock
        self._make_loop: MakeLoop = asyncio.new_event_loop
        self.attempts: dict[str, Attempt] = {}  # not sent yet, by run; a start puts them here
        self._outgoing: deque[Attempt] = deque()
        self._is_closed = False
        self._hosts: list[_Host] = []  # the last one takes attempts; those before it are blocked
        self._process_host: _Host | None = None  # with the first run that wants it
        self._processes: ProcessExecutor | None = None
        self._process_lock = threading.Lock()
        self._sink: Sink = lambda _events: False
        self._places: dict[str, _Host] = {}

    @property
    def is_on_loop(self) -> bool:
        """Whether this code runs on a loop that drives runs."""
        ident = threading.get_ident()
        return any(host.thread.ident == ident for host in self._hosts)

    @property
    def limit(self) -> int:
        """How many runs may be in progress at once; runs that are queued are let in when it grows."""
        return self._queue.load[2]

    @limit.setter
    def limit(self, limit: int) -> None:
        for following in self._queue.allow(limit):
            self._submit(following)

    def begin(self, sink: Sink) -> None:
        """Start the host's thread and open the executor on it."""
        self._sink = sink
        self._open_host(sink)

    def use_loops(self, make_loop: MakeLoop) -> None:
        """Drive runs that start from now on on such a loop; the others stay where they are."""
        self._make_loop = make_loop
        if self._hosts and not self._is_closed:
            self._open_host(self._sink)

    def _open_host(self, sink: Sink) -> None:
        thread = LoopThread("nbrun-host", self._make_loop)
        host = _Host(thread, LocalExecutor(thread, self._clock))
        self._hosts.append(host)

        def note_host(_name: str, is_up: bool) -> None:
            # An agent blocks the loop: new runs must not wait for it.
            if not is_up and host is self._hosts[-1] and not self._is_closed:
                self._open_host(sink)
                self._hosts[-1].thread.call(self._send_out)

        thread.call(lambda: thread.spawn(host.executor.open(sink, note_host), "nbrun-open"))

    def queue(self, live: LiveRun, *, at_once: bool) -> None:
        """Hand the run's attempt to the executor when its turn has come, or without waiting for it."""
        # A cancelled one goes out of turn: its host ends it without entering the agent.
        if at_once or self._queue.join(live) or live.token.cancelled:
            self._queue.pass_by(live)
            self._submit(live)

    def let_pass(self, live: LiveRun) -> None:
        """Let a queued run go out of turn, because it was cancelled; no other one."""
        if self._queue.pass_by(live):
            self._submit(live)

    def place(self, live: LiveRun) -> tuple[int, int, int, int] | None:
        """Return how many runs are queued before this one, and the load; None if it is not queued."""
        ahead = self._queue.position(live)
        return None if ahead is None else (ahead, *self._queue.load)

    def predecessor(self, live: LiveRun) -> LiveRun | None:
        """Return the run of the same cell or name that a queued one waits for."""
        return self._queue.predecessor(live)

    def note_end(self, live: LiveRun) -> None:
        """Give the place of a run that has ended to those who wait."""
        self.attempts.pop(live.run_id, None)
        self._places.pop(live.run_id, None)
        for following in self._queue.leave(live):
            self._submit(following)
        for host in self._hosts[:-1]:
            host.thread.call(functools.partial(self._retire, host))

    def _retire(self, host: _Host) -> None:
        """Let go of a host that was blocked and has nothing left to do; on its loop, which answers again."""
        if isinstance(host.executor, LocalExecutor) and not host.executor.live:
            if host in self._hosts[:-1]:
                self._hosts.remove(host)
            host.thread.close(0.0)

    def control(self, live: LiveRun, op: str, body: dict[str, object]) -> None:
        """Send something to the host of a run; the outcome comes back as events."""
        host = self._places.get(live.run_id)
        if host is None:  # it is queued, or has ended
            return
        thread, executor = host.thread, host.executor
        whole = {**body, "run_id": live.run_id, "attempt": live.attempt}
        thread.call(lambda: thread.spawn(executor.control(NAME, op, whole), f"nbrun-control-{live.run_id}"))

    def ping(self, timeout_s: float) -> list[float | None]:
        """Return after how many seconds each host's loop has answered, the newest last; None if it has not."""
        began = self._clock.monotonic()
        asked = [_Ping(Latch(), []) for _ in self._hosts]
        for host, ping in zip(self._hosts, asked, strict=False):  # another may be opened just now
            host.thread.call(functools.partial(ping.answer, self._clock))
        for ping in asked:
            ping.flag.wait(max(0.0, began + timeout_s - self._clock.monotonic()))
        return [ping.answered_at[0] - began if ping.flag.is_set() else None for ping in asked]

    def hurry(self) -> None:
        """Have what can be killed end within the time of a close, whatever its grace."""
        if self._processes is not None and self._process_host is not None:
            self._process_host.thread.call(self._processes.hurry)

    def close(self, timeout_s: float) -> None:
        """Let go of the hosts and stop their threads."""
        self._is_closed = True
        hosts = [host for host in (self._process_host, *self._hosts) if host is not None]
        closed = [threading.Event() for _ in hosts]
        for host, event in zip(hosts, closed, strict=True):
            host.thread.call(functools.partial(_begin_close, host, event))
        self._wait(hosts, timeout_s, lambda at, left_s: closed[at].wait(left_s))
        for host in hosts:
            host.thread.close(0.0)
        self._wait(hosts, timeout_s, lambda at, left_s: hosts[at].thread.close(left_s))

    def _wait(self, hosts: list[_Host], timeout_s: float, wait: Callable[[int, float], object]) -> None:
        """Wait for something of each host, for all together within the time; not for the one that this runs on."""
        until = self._clock.monotonic() + timeout_s
        for at, host in enumerate(hosts):
            if not host.thread.is_current:
                wait(at, max(0.0, until - self._clock.monotonic()))

    def _submit(self, live: LiveRun) -> None:
        attempt = self.attempts.pop(live.run_id, None)
        if attempt is None:
            return
        # A cancelled one is never entered, so it needs no process for its end.
        if attempt.options.on == PROCESS and not attempt.token.cancelled:
            self._submit_to_process(attempt)
        elif self._hosts:
            self._outgoing.append(attempt)
            self._hosts[-1].thread.call(self._send_out)

    def _submit_to_process(self, attempt: Attempt) -> None:
        host = self._places[attempt.run_id] = self._opened_process_host()
        host.thread.call(lambda: host.thread.spawn(host.executor.submit([attempt]), "nbrun-submit"))

    def _opened_process_host(self) -> _Host:
        with self._process_lock:
            if self._process_host is None:
                from nbrun.host.process.executor import ProcessExecutor

                thread, executor = LoopThread("nbrun-processes"), ProcessExecutor(self._clock)
                opening = executor.open(self._sink, lambda _host, _is_up: None)
                thread.call(lambda: thread.spawn(opening, "nbrun-open"))
                self._processes, self._process_host = executor, _Host(thread, executor)
            return self._process_host

    def _send_out(self) -> None:
        """Submit all that waits to go out, in one batch, to the host on whose loop this runs."""
        ident = threading.get_ident()
        host = next((host for host in self._hosts if host.thread.ident == ident), None)
        if host is None:  # it was let go of; another was called as well
            return
        attempts: list[Attempt] = []
        while self._outgoing:
            attempt = self._outgoing.popleft()
            self._places[attempt.run_id] = host
            attempts.append(attempt)
        if attempts:
            host.thread.spawn(host.executor.submit(attempts), "nbrun-submit")


@dataclass(frozen=True, slots=True)
class _Host:
    """A host's thread, and the executor that lives on it."""

    thread: LoopThread
    executor: Executor


@dataclass(frozen=True, slots=True)
class _Ping:
    """A question to a loop, and when it was answered."""

    flag: Latch
    answered_at: list[float]

    def answer(self, clock: Clock) -> None:
        """Note the time; called on the loop."""
        self.answered_at.append(clock.monotonic())
        self.flag.set()


def _begin_close(host: _Host, closed: threading.Event) -> None:
    task = host.thread.spawn(host.executor.close(), "nbrun-close")
    task.add_done_callback(lambda _task: closed.set())
