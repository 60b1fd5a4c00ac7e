"""A session in a world of one thread, in which chance says who goes next; and what must then hold."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from nbrun import CancelCause, NotebookSession, RunContext, SequentialIds
from nbrun.core import events as ev
from nbrun.core.cancellation import CancelOutcome
from nbrun.core.errors import Cancelled, NbrunError
from nbrun.core.redaction import SecretRegistry
from nbrun.host.attempt import HostEvent, IsFull
from nbrun.host.driver import Driver
from nbrun.host.host import LocalExecutor, RunHost
from nbrun.sessions.intake import Intake
from nbrun.sessions.live_run import LiveRun
from nbrun.store import Committed
from tests.fakes.actor import Actor, agent, current_actor
from tests.fakes.model import ENDS, Account, after, check_log
from tests.fakes.virtual import VirtualClock, VirtualFlag, VirtualLock, VirtualStore, VirtualThread

GRACE_S = 2.0
MAX_RUNS = 4
LIMIT = 2
"""How many runs may be under way at once."""

_MIX = 0.12
"""How often another thread has its turn where it could."""


class WatchedIntake(Intake):
    """The intake, with the model at its door and behind it."""

    world: World

    def put(self, events: Sequence[HostEvent]) -> IsFull | None:
        """Take events of a host."""
        expect = self.world.expect
        for event in events:
            account, kind = self.world.accounts[event.run_id], event.data.TYPE
            expect(not account.has_ended or kind == "detached.finished", f"{kind} after the end")
            if kind in ENDS:
                account.has_ended = True
                self._check_children(event)
                account.take_end(event.data)
            elif kind == "run.started":
                expect(not account.live.token.cancelled, "entered although cancelled")
        self.world.sent.extend(events)
        return super().put(events)

    def _check_children(self, end: HostEvent) -> None:
        """Check that the child runs have ended first, unless what still runs is named."""
        live = [
            child_id
            for child_id, account in self.world.accounts.items()
            if account.parent_id == end.run_id and account.end is None
        ]
        is_detached = isinstance(end.data, ev.RunCancelled) and bool(end.data.detached)
        self.world.expect(is_detached or not live, f"{end.run_id} ended before {live}")

    def repeat(self, event: HostEvent) -> None:
        """Take an event that was taken before, or as an older attempt would send it."""
        super().put([event])

    def open(self, live: LiveRun, created: ev.RunCreated) -> bool:
        """Let a run in."""
        live.is_created, live.is_ended = (VirtualFlag(self.world.pause) for _ in range(2))
        account = Account(current_actor.get(), live, created.parent_id)
        self.world.accounts[live.run_id] = account
        self.world.expect(live.token.cancelled or not self.world.is_fired, "born quiet")
        return super().open(live, created)

    def emit(self, live: LiveRun, data: ev.EventData) -> None:
        """Take an event of the session."""
        account = self.world.accounts[live.run_id]
        if data.TYPE in ENDS:
            account.was_cut = account.end is None
            account.take_end(data)
        super().emit(live, data)

    def request_cancel(self, live: LiveRun, request: ev.CancelRequested) -> CancelOutcome:
        """Take a request."""
        expected = self.world.accounts[live.run_id].request(request, self.world.clock.passed_s)
        outcome = super().request_cancel(live, request)
        self.world.expect(outcome is expected, f"{live.run_id}: {outcome}, not {expected}")
        return outcome

    def publish(self, committed: list[Committed]) -> None:
        """Make public what was committed, and compare."""
        for item in committed:
            account = self.world.accounts[item.run_id]
            account.events.extend(item.events)
            for event in item.events:
                account.status = after(account.status, event.type)
            assert item.record.status == account.status, f"{item.run_id}: {item.record.status}"
            account.record = item.record
        super().publish(committed)


class VirtualSession(NotebookSession):
    """A session whose locks and flags give others their turn."""

    def __init__(self, world: World) -> None:
        super().__init__(
            store=world.store, ids=SequentialIds(), clock=world.clock, max_concurrent=LIMIT, cancel_grace_s=GRACE_S
        )
        parts, inner = self.parts, partial(world.lock, "inner")
        parts.intake.__class__ = WatchedIntake
        assert isinstance(parts.intake, WatchedIntake)
        parts.intake.world, parts.intake._keyring = world, SecretRegistry({})
        self.intake = parts.intake
        parts.lock = world.lock("session")  # type: ignore[assignment]  # all that is used of it
        parts.intake._lock = inner()  # type: ignore[assignment]
        parts.scheduler._queue._lock = inner()  # type: ignore[assignment]
        self.token._lock = inner()  # type: ignore[assignment]


class World:
    """One session, its agents, its threads, and the order in which chance lets them go."""

    def __init__(self, seed: int, make_thread: list[VirtualThread]) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - chance, no secret
        self.trace: list[str] = []
        self.clock = VirtualClock()
        self.held: Counter[str] = Counter()
        self.accounts: dict[str, Account] = {}
        self.actors: list[Actor] = []
        self.sent: list[HostEvent] = []
        self.problems: list[str] = []
        self.is_released = False
        self.is_closing = False
        self.is_fired = False
        self._depth = 0
        self.thread = VirtualThread(self.clock)
        make_thread[:] = [self.thread]
        self.store = VirtualStore(self.clock, self.pause, self.thread)
        self.session = VirtualSession(self)

    def lock(self, name: str) -> VirtualLock:
        """Return a lock at whose end others may have their turn."""
        return VirtualLock(name, self.held, self.pause)

    # --- who goes next -----------------------------------------------------------------------------

    def pause(self, until: Callable[[], bool] | None = None, timeout_s: float | None = None) -> None:
        """Give others their turn: perhaps, or until something holds or the time is over."""
        if self.held["inner"] or self.is_released:
            if until is None:
                return
        elif until is None and (self._depth > 1 or self.rng.random() > _MIX):
            return
        running, is_stepping = asyncio._get_running_loop(), self.thread.is_stepping
        asyncio._set_running_loop(None)
        self.thread.is_stepping = False
        self._depth += 1
        try:
            if until is None:
                self.step()
            else:
                ends_at = self.clock.passed_s + (timeout_s or 0.0)
                while not until() and self.clock.passed_s < ends_at:
                    if not self.step() or self.rng.random() < 0.05:
                        self.pass_time(ends_at)
        finally:
            self._depth -= 1
            self.thread.is_stepping = is_stepping
            asyncio._set_running_loop(running)

    def step(self) -> bool:
        """Do one thing that can be done now; return whether there was one."""
        writer, held = self.store.writer, self.held
        is_writing = writer is not None and writer.is_busy
        can: list[Callable[[], object]] = []
        many = 1 if self.is_closing else 2
        if self.can_loop and not self.thread.is_busy and not held["drive"]:
            can += [self.step_loop] * 4
        if writer is not None and not is_writing and not writer.is_closed:
            if writer.is_pending:
                can += [self.publish] * 2
            elif writer.has_news:
                can += [self.commit] * 2
        if not self.is_released:
            if len(self.actors) < MAX_RUNS and not held["session"]:
                can += [self.start] * many
            waiting = [actor for actor in self.actors if actor.gate and not actor.gate.done()]
            can += [actor.go for actor in waiting] * many
            if self.accounts:
                can.append(self.cancel)
            if self.rng.random() < 0.02:
                can.append(self.fire)
            if self.sent and self.rng.random() < 0.2:
                can.append(self.repeat)
            if not held["drive"]:
                can += [actor.say for actor in self.actors if actor.run]
            if self.rng.random() < 0.02 and not (held["session"] or self.thread.is_busy or is_writing):
                can.append(self.close)
        if can:
            contextvars.Context().run(self.rng.choice(can))
        return bool(can)

    @property
    def can_loop(self) -> bool:
        """Whether the host's loop has something to do."""
        return not self.thread.is_closed and self.thread.loop.is_ready

    def step_loop(self) -> None:
        """Let the host's loop run one callback."""
        self.thread.step()
        for driver in self.drivers():
            if not isinstance(driver._lock, VirtualLock):  # made by this callback, and not used yet
                driver._lock = self.lock("drive")  # type: ignore[assignment]  # all that is used

    def host(self) -> RunHost | None:
        """Return the host, when there is one."""
        hosts = self.session.parts.scheduler._hosts
        executor = hosts[-1].executor if hosts else None
        return executor._host if isinstance(executor, LocalExecutor) else None

    def drivers(self) -> list[Driver]:
        """Return the drivers that have not ended."""
        host = self.host()
        return [] if host is None else list(host.drivers.values())

    def commit(self) -> None:
        """Let the writer take what waits; now and then the disk is full."""
        self.note("commit")
        assert self.store.writer is not None
        self.store.writer.commit("full" if self.rng.random() < 0.05 else None)

    def publish(self) -> None:
        """Let the writer make it public."""
        self.note("publish")
        assert self.store.writer is not None
        self.store.writer.publish()

    def pass_time(self, until: float | None = None) -> None:
        """Go to the next timer, or to `until` if that is sooner."""
        now = self.clock.passed_s
        later = [at for at in (self.thread.loop.next_at, until) if at is not None and at > now]
        self.clock.passed_s = min(later, default=now)

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call on the host's loop, if it is there."""
        self.thread.call(function)

    def expect(self, holds: bool, what: str) -> None:
        """Note what does not hold, also where nbrun isolates what is raised: in agents, in callbacks."""
        if not holds:
            self.problems.append(what)

    def note(self, what: str) -> None:
        """Write down a step."""
        self.trace.append(f"{'  ' * self._depth}{what}")

    # --- what users do -----------------------------------------------------------------------------

    def start(self, *, is_inner: bool = False, parent: RunContext | None = None) -> None:
        """Start a run."""
        rng = self.rng
        actor = Actor(self, f"a{len(self.actors)}", is_inner=is_inner)
        actor.key = rng.choice((None, None, "cell"))
        how: Any = rng.choice(("queue", "replace", "reject"))
        self.note(f"start {actor.script} {actor.end} {actor.on_cancel} {actor.key} {how}")
        self.actors.append(actor)
        actor.began_at = len(self.trace)
        current_actor.set(actor)
        try:
            start = self.session.start if parent is None else parent.start_child
            start(
                agent, actor.name, cell_id=actor.key, if_running=how,
                timeout_s=rng.choice((None, None, 0.5)),
                id="fixed" if rng.random() < 0.1 and not is_inner else None,
            )  # fmt: skip
        except (Cancelled, NbrunError) as error:
            self.note(f"no start: {error}")
        else:
            actor.queued_at = len(self.trace)

    def cancel(self, run_id: str | None = None) -> None:
        """Cancel a run, or all; what the receipt says must be what the model says."""
        current = self.session.current_run
        is_own = current is None or self.accounts[current.id].parent_id is None
        self.expect(is_own, f"{current and current.id} is a child, and no current run")
        found = self.session.own(run_id or self.rng.choice(list(self.accounts)))
        if found is None or self.rng.random() < 0.1:  # it cannot be found before it is created
            self.note("cancel all")
            self.session.cancel_all("all")
            return
        self.note(f"cancel {found.id}")
        account = self.accounts[found.id]
        token, was_fired = account.live.token, account.live.token.cancelled
        expected = replace(account).request(ev.CancelRequested(CancelCause.USER), 0.0)
        outcome = found.cancel("enough").outcome
        self.expect(outcome is expected, f"{found.id}: {outcome}, not {expected}")
        must_fire = was_fired or outcome is not CancelOutcome.ALREADY_FINISHED
        is_right = self.is_fired or token.cancelled is must_fire
        self.expect(is_right, f"{found.id}: {outcome}, fired {token.cancelled}")

    def fire(self) -> None:
        """Fire the token of all runs."""
        self.note("fire")
        self.is_fired = True
        self.session.token.cancel("the root")

    def repeat(self) -> None:
        """Send an old event once more: nothing may come of it."""
        event = self.rng.choice(self.sent)
        live = self.accounts[event.run_id].live
        if self.rng.random() < 0.5:  # the right number, of an older attempt
            event = msgspec.structs.replace(event, attempt=0, n=live.next_n)
        self.note(f"repeat {event.n} {event.data.TYPE} of attempt {event.attempt}")
        self.session.intake.repeat(event)

    def close(self) -> None:
        """Close the session."""
        self.note("close")
        self.is_closing = True
        asked = [account for account in self.accounts.values() if account.cancel]
        self.session.close()
        for account in self.accounts.values():
            if account not in asked and account.cancel and account.cancel.cause == "shutdown":
                self.expect(account.cancel.by == "shutdown", f"fired first: {account.cancel}")

    def note_entry(self, actor: Actor) -> None:
        """Note that an agent was entered; no more than may be, and of a cell one at a time."""
        self.note(f"entered {actor.name}")
        inside = [
            account.actor
            for account in self.accounts.values()
            if account.actor.is_in and not account.actor.is_inner and account.end is None
        ]
        self.expect(len(inside) <= LIMIT, f"{len(inside)} at once")
        keys = [other.key for other in inside if other.key is not None]
        self.expect(len(set(keys)) == len(keys), f"two of one cell at once: {keys}")
        ahead = [
            account.actor.name
            for account in self.accounts.values()
            if account.end is None
            and account.actor.key == actor.key
            and not (account.actor.is_inner or account.actor.is_in)
            and account.actor.queued_at < actor.began_at
        ]
        self.expect(actor.key is None or actor.is_inner or not ahead, f"went before {ahead}")

    # --- the end -----------------------------------------------------------------------------------

    def play(self, steps: int) -> None:
        """Play, let time pass, then let everybody come to an end."""
        contextvars.Context().run(self.start)
        for _ in range(steps):
            if not self.step() or self.rng.random() < 0.05:
                self.pass_time()
            for run_id, account in self.accounts.items():  # nobody is in the middle of a call now
                is_told = account.cancel is not None or account.end is not None
                assert is_told or not account.live.token.cancelled, f"{run_id}: fired, not told"
            if self.is_closing:
                break
        self.is_released = True  # nobody does anything new; who hangs goes on hanging
        self.run_until(self.clock.passed_s + GRACE_S + 1.5)
        self.check_cancelled()
        for actor in self.actors:
            actor.is_interrupted = False
            actor.go()
        self.run_until(self.clock.passed_s + 60.0)

    def run_until(self, moment: float) -> None:
        """Do all that there is to do, up to a moment."""
        while self.step() or self.clock.passed_s < moment:
            if not self.can_loop:
                self.pass_time(moment)

    def check_cancelled(self) -> None:
        """Check that no cancel was lost: who was asked has ended, whatever its agent does, or its children's."""
        self.check_loop()  # what has broken there may be why
        for run_id, account in self.accounts.items():
            parent = self.accounts.get(account.parent_id or "")
            if parent is not None and parent.cancel is not None:
                assert account.cancel or account.end, f"{run_id}: its parent was cancelled, it was not"
            had_time = self.clock.passed_s > account.cancelled_at + GRACE_S + 0.9
            if (account.cancel is not None and had_time) or account.actor.has_failed:
                assert account.status in ENDS.values(), f"{run_id} is {account.status}: lost cancel"

    def check(self) -> None:
        """Check all that must hold when everybody has come to an end."""
        for run_id, account in self.accounts.items():
            check_log(run_id, account, is_closed=self.is_closing)
        assert not self.problems, "; ".join(self.problems)
        self.check_loop()
        if not self.is_closing:
            self.check_leaks()
            contextvars.Context().run(self.close)
        assert all(account.status in ENDS.values() for account in self.accounts.values())

    def check_loop(self) -> None:
        """Check that no callback of the host's loop has failed."""
        problems = self.thread.loop.problems
        assert not problems, f"on the loop: {problems}"

    def end(self) -> None:
        """Let what outlived its session come to its end too, so that nothing is collected half-way."""
        self.is_released = True
        self.thread.is_closed = False
        for actor in self.actors:
            actor.go()
        while self.thread.loop.is_ready or self.thread.loop.next_at is not None:
            if self.thread.loop.is_ready:
                self.thread.step()
            else:
                self.pass_time()
        self.thread.loop.close()

    def check_leaks(self) -> None:
        """Check that nothing of a run is left behind."""
        session, host = self.session, self.host()
        line = session.parts.scheduler._queue
        left = (
            [run.id for run in session.live_runs], line._under_way, line._waiting,
            session.parts.scheduler.attempts, [task.get_name() for task in self.thread.tasks],
            host.drivers if host else {}, session.token._children,
        )  # fmt: skip
        assert not any(left), f"left behind: {left}"
        assert not any(self.held.values())
