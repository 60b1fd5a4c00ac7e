"""From a started run to its executor: which ones go at once, which are queued, and the threads they go to."""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbrun.core import CancelCause, Clock, Latch, events as ev, guarded
from nbrun.host import failures
from nbrun.host.attempt import Attempt, Executor, HostEvent
from nbrun.host.host import NAME, LocalExecutor
from nbrun.host.loops import LoopThread, make_reentrant, new_loop
from nbrun.render.words import title

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbrun.host.process.executor import ProcessExecutor
    from nbrun.sessions.intake import Intake
    from nbrun.sessions.live_run import LiveRun


class RunQueue:
    """Lets at most `limit` runs be in progress at once, in the order they came, and one of each key at a time.

    What a run costs does not depend on how many wait, but for its `position()`. Threads: any method, from any thread,
    under one lock.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.RLock()  # entered again by a signal handler that cancels: each step below is whole
        self._count = itertools.count()
        self._under_way: dict[LiveRun, None] = {}  # a set that keeps the order
        self._waiting: dict[LiveRun, int] = {}  # and which one it was to come
        self._ready: list[tuple[int, LiveRun]] = []  # a heap of those whose key is free; some may wait no longer
        self._keys: dict[str, dict[LiveRun, None]] = {}  # the runs of each key, in progress and waiting, in order

    def join(self, live: LiveRun) -> bool:
        """Put a run in the queue; return whether it may be entered at once."""
        with self._lock:
            number, is_first = next(self._count), True
            if live.key is not None:
                of_key = self._keys.setdefault(live.key, {})
                of_key[live] = None
                is_first = len(of_key) == 1
            if is_first and len(self._under_way) < self._limit:
                self._under_way[live] = None
                return True
            self._waiting[live] = number
            if is_first:
                heapq.heappush(self._ready, (number, live))
            return False

    def leave(self, live: LiveRun) -> list[LiveRun]:
        """Take out a run that has ended; return those that may be entered now."""
        with self._lock:
            self._under_way.pop(live, None)
            self.pass_by(live)
            return self._let_in()

    def allow(self, limit: int) -> list[LiveRun]:
        """Change the limit; return the runs that may be entered now. Those in progress continue."""
        with self._lock:
            self._limit = limit
            return self._let_in()

    def _let_in(self) -> list[LiveRun]:
        going: list[LiveRun] = []
        while self._ready and len(self._under_way) < self._limit:
            _, following = heapq.heappop(self._ready)
            if self._waiting.pop(following, None) is not None:
                self._under_way[following] = None
                going.append(following)
        return going

    def pass_by(self, live: LiveRun) -> bool:
        """Let a run out of turn: it was cancelled, and its host will end it unentered. False if it was not waiting."""
        with self._lock:
            was_waiting = self._waiting.pop(live, None) is not None
            if live not in self._under_way:
                self._free_key(live)
            return was_waiting

    def _free_key(self, live: LiveRun) -> None:
        """Take a run out of those of its key; the next of them may then be entered."""
        if live.key is None or (of_key := self._keys.get(live.key)) is None:
            return
        of_key.pop(live, None)
        following = next(iter(tuple(of_key)), None)  # a copy, made in one step
        if following is None:
            self._keys.pop(live.key, None)
        elif (number := self._waiting.get(following)) is not None:
            heapq.heappush(self._ready, (number, following))

    def position(self, live: LiveRun) -> int | None:
        """Return how many runs wait before this one, or None if it does not wait."""
        with self._lock:
            own = self._waiting.get(live)
            return None if own is None else sum(number < own for number in tuple(self._waiting.values()))

    def predecessor(self, live: LiveRun) -> LiveRun | None:
        """Return the run of the same key that a queued one waits for."""
        with self._lock:
            if live.key is None or live not in self._waiting:
                return None
            of_key = tuple(self._keys[live.key])
            at = of_key.index(live)
            return of_key[at - 1] if at else None

    @property
    def load(self) -> tuple[int, int, int]:
        """How many runs are queued, how many are in progress, and how many may be."""
        return (len(self._waiting), len(self._under_way), self._limit)


PROCESS = "process"


class Scheduler:
    """Hands attempts to the executor, each once; at most `limit` runs are in progress at once.

    All runs go to one loop for the life of the session, because what an agent's clients keep (connections, locks,
    tasks) works on the loop that it was first used on and on no other. While an agent blocks the loop, runs wait for
    it. They go to a second loop only where nothing can end the block any more: its run was cancelled, and did not
    stop. When the first loop answers again, it gets the runs that come then.

    Threads: any method, from any thread; `_send_out()` on a host's loop, `_note_blocked()` on a watchdog's thread.
    An attempt is taken out of `attempts` in one step, so that only one of two that want it gets it. `_lock` guards
    which hosts there are.
    """

    # A run in a process of its own has its host there. Its executor has a loop of its own as well, which no agent
    # can block.

    def __init__(self, limit: int, clock: Clock) -> None:
        self._queue = RunQueue(limit)
        self._clock = clock
        self.is_reentrant = False  # whether agents may call `asyncio.run()` on their loop
        self.attempts: dict[str, Attempt] = {}  # not sent yet, by run; a start puts them here
        self._outgoing: deque[LiveRun] = deque()  # those whose turn has come
        self._is_closed = False
        self._lock = threading.Lock()
        self._hosts: list[_LocalHost] = []  # the first one that is not lost takes attempts
        self._process_host: _Host | None = None  # with the first run that wants it
        self._processes: ProcessExecutor | None = None
        self._intake: Intake
        self._places: dict[str, _Host] = {}
        self._notified: set[str] = set()  # runs that know why they wait
        self._moved: tuple[_LocalHost, str] | None = None  # a host given up, and the reason that later runs show

    @property
    def is_on_loop(self) -> bool:
        """Whether this code runs on a loop that drives runs."""
        ident = threading.get_ident()
        return ident in [host.thread.ident for host in self._hosts]

    @property
    def limit(self) -> int:
        """How many runs may be in progress at once; runs that are queued are let in when it grows."""
        return self._queue.load[2]

    @limit.setter
    def limit(self, limit: int) -> None:
        self.allow(self._queue, limit)

    def allow(self, queue: RunQueue, limit: int) -> None:
        """Change how many runs of this queue, the session's or a set's, may be in progress at once."""
        for following in queue.allow(limit):
            self._submit(following)

    def _queue_of(self, live: LiveRun) -> RunQueue:
        queue: RunQueue = self._queue if live.queue is None else live.queue
        return queue

    def begin(self, intake: Intake) -> None:
        """Start the host's thread and open the executor on it."""
        self._intake = intake
        with self._lock:
            self._open_host()

    def let_enter(self, is_reentrant: bool) -> None:
        """Set whether new runs may call `asyncio.run()` on their loop, which stays the same one.

        Raises
        ------
        BadOption
            The loop isn't one of asyncio's own.
        """
        with self._lock:
            for host in self._hosts if is_reentrant and not self._is_closed else ():
                host.thread.call(make_reentrant(host.thread.loop))
            self.is_reentrant = is_reentrant

    def _open_host(self) -> None:
        """Open a host; the caller holds the lock."""
        thread = LoopThread("nbrun-host", new_loop if self.is_reentrant else asyncio.new_event_loop)
        host = _LocalHost(thread, LocalExecutor(thread, self._clock, lambda *state: self._note_blocked(host, *state)))
        self._hosts.append(host)
        thread.call(functools.partial(host.executor.make_host, self._intake.put))

    # --- a loop that does not answer -----------------------------------------------------------------

    def _home(self) -> _LocalHost:
        return next((host for host in self._hosts if not host.is_lost), self._hosts[-1])

    def _note_blocked(self, host: _LocalHost, run_id: str | None, is_lost: bool) -> None:
        """Have new runs wait, and tell them for whom; or give the loop up."""
        live = self._intake.runs.get(run_id or "")
        name = "something" if live is None else title(live.record)
        if is_lost:
            self._give_up(host, name)
            return
        fix = "%reload_ext nbrun gets a new one" if live is None else "cancel that run, or start it with --thread"
        text = f"Waiting: {name} blocks the event loop that all runs share; {fix}"
        for waiting in tuple(self._outgoing) if host is self._home() else ():
            attempt = self.attempts.get(waiting.run_id)
            if attempt is not None and attempt.options.thread:  # it has a loop of its own: any may drive it
                self._send_beside(host, waiting)
            else:
                self._tell(waiting, text)

    def _tell(self, live: LiveRun, text: str) -> None:
        if live.run_id not in self._notified:
            self._notified.add(live.run_id)
            self._intake.emit(live, ev.Log(text, "warning"))

    def _send_beside(self, blocked: _LocalHost, live: LiveRun) -> None:
        with self._lock:
            if self._is_closed:
                return
            if not any(host is not blocked and not host.is_lost for host in self._hosts):
                self._open_host()
            host = next(host for host in self._hosts if host is not blocked and not host.is_lost)
        host.thread.call(functools.partial(self._send, host, [live]))

    def _give_up(self, host: _LocalHost, name: str) -> None:
        with self._lock:
            if host.is_lost or self._is_closed:
                return
            host.is_lost = True
            host.thread.call(functools.partial(setattr, host, "is_lost", False))  # when it answers again
            if all(other.is_lost for other in self._hosts):
                self._open_host()
            for other in self._hosts:
                other.thread.moved_by = name
        begins = f"{name[0].upper()}{name[1:]}"
        text = f"{begins} was cancelled but still blocks its event loop; new runs use another one"
        self._moved = host, text
        self._home().thread.call(self._send_out)
        for run_id, place in tuple(self._places.items()):
            live = self._intake.runs.get(run_id)
            if place is host and live is not None and not live.token.cancelled:
                self._intake.emit(
                    live, ev.Log(f"{begins} blocks the loop that this run is on; start it again", "warning")
                )

    def queue(self, live: LiveRun) -> None:
        """Hand the run's attempt to the executor when its turn has come; on the writer's thread, before its end."""
        queue = self._queue_of(live)
        if live.is_inner or queue.join(live) or live.token.cancelled:
            queue.pass_by(live)
            self._submit(live)

    def try_again(self, live: LiveRun, attempt: Attempt) -> None:
        """Send a run's next attempt; it has kept its place."""
        self.attempts[live.run_id] = attempt
        self._submit(live)

    def let_pass(self, live: LiveRun) -> None:
        """End a run that was cancelled, if it has not been sent: no loop has to answer for that."""
        if (attempt := self.attempts.pop(live.run_id, None)) is not None:
            self._queue_of(live).pass_by(live)
            token, restored = attempt.token, attempt.restored
            usage = None if restored is None else restored.usage
            end = ev.RunCancelled(token.cause or CancelCause.USER, token.reason, usage=usage)
            with guarded():
                self._intake.put([HostEvent(live.run_id, attempt.number, 0, self._clock.now(), end)])

    def place(self, live: LiveRun) -> tuple[int, int, int, int] | None:
        """Return how many runs are queued before this one, and the load; None if it is not queued."""
        queue = self._queue_of(live)
        ahead = queue.position(live)
        return None if ahead is None else (ahead, *queue.load)

    def predecessor(self, live: LiveRun) -> LiveRun | None:
        """Return the run of the same cell or name that a queued one waits for."""
        return self._queue_of(live).predecessor(live)

    def note_end(self, live: LiveRun) -> None:
        """Give the place of a run that has ended to those who wait."""
        self.attempts.pop(live.run_id, None)
        self._places.pop(live.run_id, None)
        self._notified.discard(live.run_id)
        for following in self._queue_of(live).leave(live):
            self._submit(following)

    def control(self, live: LiveRun, op: str, body: dict[str, object]) -> None:
        """Send something to the host of a run; the outcome comes back as events."""
        host = self._places.get(live.run_id)
        if host is None:  # it is queued, or has ended
            return
        thread, executor = host.thread, host.executor
        whole = {**body, "run_id": live.run_id, "attempt": live.attempt}
        thread.call(lambda: thread.spawn(executor.control(NAME, op, whole), f"nbrun-control-{live.run_id}"))

    def ping(self, timeout_s: float) -> list[float | None]:
        """Return after how many seconds each host's loop has answered, in order; None if it has not."""
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
        with self._lock:
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
        attempt = self.attempts.get(live.run_id)
        if attempt is None:
            return
        if attempt.token.cancelled:
            self.let_pass(live)
        elif attempt.options.on == PROCESS:
            if self.attempts.pop(live.run_id, None) is not None:
                try:
                    self._submit_to_process(attempt)
                except (RuntimeError, OSError, ImportError) as error:  # the system has no more threads or files, say
                    self._intake.emit(live, ev.RunFailed(failures.describe(error)))
        elif self._hosts:
            self._outgoing.append(live)  # first: a host that is given up looks here when another has taken its place
            home = self._home()
            home.thread.call(self._send_out)
            home.executor.watch()

    def _submit_to_process(self, attempt: Attempt) -> None:
        host = self._places[attempt.run_id] = self._opened_process_host()
        host.thread.call(lambda: host.thread.spawn(host.executor.submit([attempt]), "nbrun-submit"))

    def _opened_process_host(self) -> _Host:
        with self._lock:
            if self._process_host is None:
                from nbrun.host.process.executor import ProcessExecutor

                thread, executor = LoopThread("nbrun-processes"), ProcessExecutor(self._clock)
                opening = executor.open(self._intake.put, lambda _host, _is_up: None)
                thread.call(lambda: thread.spawn(opening, "nbrun-open"))
                self._processes, self._process_host = executor, _Host(thread, executor)
            return self._process_host

    def _send_out(self) -> None:
        """Submit all that waits to go out, in one batch, to the host on whose loop this runs."""
        ident = threading.get_ident()
        host = next(host for host in self._hosts if host.thread.ident == ident)
        lives: list[LiveRun] = []
        while self._outgoing:
            lives.append(self._outgoing.popleft())
        self._send(host, lives)

    def _send(self, host: _LocalHost, lives: Sequence[LiveRun]) -> None:
        attempts: list[Attempt] = []
        for live in lives:
            if (attempt := self.attempts.pop(live.run_id, None)) is None:  # it was cancelled, or sent
                continue
            self._places[attempt.run_id] = host
            attempts.append(attempt)
            if self._moved is not None and self._moved[0] is not host:
                self._intake.emit(live, ev.Log(self._moved[1], "warning"))
        if attempts:
            self._moved = None
            host.executor.begin(attempts)


@dataclass(slots=True, eq=False)
class _Host:
    """A host's thread, and the executor that lives on it."""

    thread: LoopThread
    executor: Executor


@dataclass(slots=True, eq=False)
class _LocalHost(_Host):
    """The same in this process; `is_lost` while nothing can stop the run that blocks its loop."""

    executor: LocalExecutor
    is_lost: bool = False


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
