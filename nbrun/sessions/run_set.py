"""The handle of a set: many runs of one agent, in the order of their inputs; and finding and starting sets."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import math
import re
import sqlite3
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from nbrun.agents import Worker, current_run
from nbrun.core import (
    Action,
    BadOption,
    CancelCause,
    CancelOutcome,
    CancelReceipt,
    Fix,
    NbrunError,
    NotResumable,
    PackageMissing,
    RunNotFound,
    RunOptions,
    RunRecord,
    RunStatus,
    StoreUnavailable,
    call_soon,
    clean_text,
    counted,
    events as ev,
    guarded,
    printable,
    shown,
)
from nbrun.core.options import trusted
from nbrun.render.set_view import SetView, ended_as
from nbrun.sessions.live_run import TICK_S, poll, wait_briefly
from nbrun.sessions.live_set import Inputs, LiveSet, RetryIf, SetOptions, Story, status_of
from nbrun.sessions.run import CREATION_S, Parts, Run
from nbrun.sessions.run_list import RunList
from nbrun.sessions.scoring import Scores, SetItem, Tally, mean_lines, named, stored
from nbrun.store import sets

if TYPE_CHECKING:
    from array import array
    from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping

    import pandas as pd

    from nbrun.core import Plain
    from nbrun.sessions.catalog import Catalog
    from nbrun.sessions.start import MemberPlan, Starter

_REF = re.compile(r"set[- ]#?(\d{1,15})")
EXAMPLES = 3
"""How many runs `errors()` names for each error."""


@dataclass(slots=True)
class _Loaded:
    """What the store says of the inputs of a set that this kernel does not run."""

    states: bytearray
    numbers: array[int]
    attempts: bytearray


class RunSet:
    """Many runs of one agent: one for each input, in the order of the inputs.

    Threads: any method, from any thread; `await` and `async for` from any event loop.
    """

    def __init__(self, owner: Sets, number: int) -> None:
        self._sets = owner
        self._parts = owner.parts
        self.number = number

    # --- what it is ------------------------------------------------------------------------------

    @property
    def _live(self) -> LiveSet | None:
        return self._sets.live.get(self.number)

    @property
    def row(self) -> sets.StoredSet:
        """What the store has of it; for nbrun itself."""
        found = self._sets.row(self.number)
        if found is None:
            raise RunNotFound(f"set #{self.number} was removed")
        return found

    @property
    def id(self) -> str:
        """The id that the set was started with; by default `set-` and its number."""
        return self.row.set_id

    @property
    def name(self) -> str:
        """What its runs are called."""
        return str(self.row.header.get("name", ""))

    @property
    def agent(self) -> str:
        """The agent's label."""
        return str(self.row.header.get("agent", ""))

    @property
    def status(self) -> str:
        """`running`, `paused` or `cancelling`; then `completed`, `cancelled`, `failed` or `lost`.

        It has completed when every input has been run, whatever came of it; it has failed if an error or
        `max_failures` stopped it; it is lost if its kernel died.
        """
        live = self._live
        if live is not None and not live.is_over.is_set():
            return live.status
        row = self.row
        if row.ended_at is None:
            return "running" if row.is_here and row.session_id != self._parts.session_id else "lost"
        return ended_as(row.stopped)

    @property
    def stopped(self) -> str | None:
        """Why the inputs that have not begun won't be run; None if nothing stopped them."""
        return self.row.stopped

    @property
    def counts(self) -> dict[str, int]:
        """How many inputs there are of each status that occurs; those that have not begun are `queued`."""
        live = self._live
        if live is not None:
            found = live.counts()
        else:
            found = dict.fromkeys(RunStatus, 0)
            rest = RunStatus.QUEUED if self.stopped is None else RunStatus.CANCELLED
            for code in self._known().states:
                found[status_of(code) or rest] += 1
        return {str(status): found[status] for status in RunStatus if found[status]}

    @property
    def usage(self) -> ev.Usage:
        """Tokens, requests and cost of all attempts that have ended."""
        live = self._live
        return self._sets.usage(self.number) if live is None else live.usage

    def __len__(self) -> int:
        live = self._live
        return self.row.size if live is None else live.size

    @property
    def is_live(self) -> bool:
        """Whether this kernel is running it."""
        live = self._live
        return live is not None and not live.is_over.is_set()

    def done(self) -> bool:
        """Return whether nothing of it is in progress, or will be."""
        live = self._live
        if live is not None:
            return live.is_over.is_set()
        return self.status != "running"

    def _known(self) -> LiveSet | _Loaded:
        live = self._live
        return self._sets.load(self.row) if live is None else live

    # --- its runs --------------------------------------------------------------------------------

    def __getitem__(self, at: int | str) -> Run:
        """Return the newest run of an input, by its position or its key.

        Raises
        ------
        IndexError, KeyError
            There is no such input.
        RunNotFound
            It has not begun.
        """
        place = self._place(at)
        run = self._run(place, self._known())
        if run is None:
            raise RunNotFound(f"input {place} of set #{self.number} has not begun")
        return run

    def _place(self, at: int | str) -> int:
        """Return the position of an input, by it or its key."""
        if isinstance(at, str):
            key = at
            found = self._parts.store.ask(lambda db: sets.find_key(db, self.number, key), None)
            if found is None:
                raise KeyError(f"set #{self.number} has no input with the key '{printable(at)}'")
            at = found
        size, live = len(self), self._live
        if live is not None and at >= len(live.states):  # it was given, and is stored in a moment
            self._wait_until(lambda: at < len(live.states) or live.is_whole, CREATION_S)
        if not -size <= at < size:
            raise IndexError(f"set #{self.number} has {counted(size, 'input')}; there is no number {at}")
        return at % size

    def _run(self, at: int, known: LiveSet | _Loaded) -> Run | None:
        """Return the newest run of an input; of one that was never begun, and won't be, a cancelled one."""
        if isinstance(known, LiveSet):
            live = known.live.get(at) or known.unsaved.get(at)
            if live is not None:
                return self._sets.catalog.run(live)
        if at >= len(known.states):
            return None
        if number := known.numbers[at]:
            return self._sets.catalog.get(number)
        if isinstance(known, LiveSet) and (live := known.live.get(at)) is not None:  # it began in between
            return self._sets.catalog.run(live)
        is_left_out = status_of(known.states[at]) is RunStatus.CANCELLED
        if not is_left_out and (known.states[at] or self.stopped is None):
            return None
        items = self._parts.store.ask(lambda db: sets.read_items(db, self.number, at, 1), list[sets.Item]())
        item = items[0] if items and items[0].position == at else sets.Item(at, None, "")
        record = RunRecord(
            session_id=self._parts.session_id, name=self.name, agent=self.agent, prompt=item.prompt,
            member=ev.Member(self.number, at, item.key), status=RunStatus.CANCELLED, cause=CancelCause.PARENT,
            reason=self.stopped,
        )  # fmt: skip
        return Run(self._parts, record)

    def _runs(self) -> list[Run | None]:
        """Return the newest run of each input, None where it has not begun."""
        known = self._known()
        size = len(self) if isinstance(known, LiveSet) else len(known.states)
        return [self._run(at, known) for at in range(size)]

    def _is_ended(self, at: int) -> bool:
        live = self._live
        return self.done() if live is None else live.is_ended(at)

    def _is_past(self, at: int) -> bool:
        return at >= len(self) and (self.done() or ((live := self._live) is not None and live.is_whole))

    def __iter__(self) -> Iterator[Run]:
        """Yield the run of each input in order, each when it has ended."""
        at = 0
        while True:
            self._wait_until(lambda: self._is_past(at) or self._is_ended(at), None)  # noqa: B023 - called at once
            if at >= len(self):
                return
            yield self[at]
            at += 1

    async def __aiter__(self) -> AsyncIterator[Run]:
        """Yield the run of each input in order, each when it has ended."""
        at = 0
        while True:
            await self._until(lambda: self._is_past(at) or self._is_ended(at))  # noqa: B023 - called at once
            if at >= len(self):
                return
            yield self[at]
            at += 1

    def as_completed(self) -> Iterator[Run]:
        """Yield the runs as they end, whatever the order of their inputs."""
        at, live = 0, self._live
        if live is None:
            yield from self
            return
        while True:
            self._wait_until(lambda: at < len(live.order) or live.is_over.is_set(), None)  # noqa: B023 - called at once
            if at >= len(live.order):
                return
            yield self[live.order[at]]
            at += 1

    def outputs(self, missing: object = None) -> list[Any]:
        """Return the output of each input in order; `missing` for what has not completed, or not yet."""
        return [missing if run is None or run.status is not RunStatus.COMPLETED else run.output for run in self._runs()]

    @property
    def failed(self) -> RunList:
        """The runs that failed, in the order of their inputs."""
        known = self._known()
        places = [at for at, code in enumerate(known.states) if status_of(code) is RunStatus.FAILED]
        return RunList(run for at in places if (run := self._run(at, known)) is not None)

    def items(self) -> list[SetItem]:
        """Return the inputs: the position, the key, if it has one, and the prompt of each, as they are stored."""
        size = len(self._known().states)
        found = self._parts.store.ask(lambda db: sets.read_items(db, self.number, 0, size), list[sets.Item]())
        return [SetItem(*item) for item in found if item.position < size]

    @property
    def scores(self) -> Scores:
        """How each output was scored, in the order of the inputs; `scores.means` has the mean of each name."""
        live = self._live
        if live is not None:
            size, found, means = len(live.states), live.scored.copy(), live.tally.means()
        else:
            newest = self._parts.store.ask(lambda db: sets.read_newest(db, self.number), list[sets.Newest]())
            found = {one.position: scored for one in newest if (scored := stored(one.score)) is not None}
            size, tally = len(self), Tally()
            for scored in found.values():
                if scored.value is not None:
                    tally.add(scored.value)
            means = tally.means()
        values = [None if (scored := found.get(at)) is None else scored.value for at in range(size)]
        return Scores(values, means, Counter(scored.error for scored in found.values() if scored.error))

    def errors(self) -> list[tuple[int, str, list[Run]]]:
        """Return each error of a failed run: how many have it, its text, and some of them; the most frequent first."""
        groups: dict[str, list[Run]] = {}
        for run in self.failed:
            groups.setdefault(str(run.glance.error), []).append(run)
        found = sorted(groups.items(), key=lambda group: -len(group[1]))
        return [(len(runs), error, runs[:EXAMPLES]) for error, runs in found]

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame with a row for each input, in order; seconds and US dollars are floats.

        Raises
        ------
        PackageMissing
            pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise PackageMissing("to_pandas() needs pandas, which is not installed: pip install pandas") from None

        known, rows = self._known(), []
        size = len(known.states)
        items = self._parts.store.ask(lambda db: sets.read_items(db, self.number, 0, size), list[sets.Item]())
        rest = RunStatus.QUEUED if self.stopped is None else RunStatus.CANCELLED
        for item in items:
            if item.position >= size:  # somebody else has put it there
                break
            run = self._run(item.position, known)
            record = RunRecord(status=rest) if run is None else run.whole_record
            ended = status_of(known.states[item.position])
            rows.append(
                {
                    "index": item.position, "key": item.key, "prompt": item.prompt,
                    "status": str(ended or record.status),
                    "output": record.output, "error": None if record.error is None else str(record.error),
                    "attempts": known.attempts[item.position],
                    "seconds": record.elapsed_s(record.ended_at or record.last_event_at),
                    "input_tokens": record.own_usage.input_tokens, "output_tokens": record.own_usage.output_tokens,
                    "cost_usd": record.own_usage.cost_usd, "number": record.number,
                }
            )  # fmt: skip
        frame = pd.DataFrame(rows, columns=[*_TYPES]).astype(_TYPES)
        scores = self.scores
        for name in scores.means:
            values = [math.nan if value is None else named(value).get(name, math.nan) for value in scores[: len(rows)]]
            frame[f"score.{name}" if name else "score"] = values
        return frame

    # --- waiting ---------------------------------------------------------------------------------

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the set is done, at most `timeout_s` seconds; return whether it is.

        Raises
        ------
        NbrunError
            Called inside an async agent, which would block the loop of all runs.
        """
        return self._wait_until(self.done, timeout_s)

    def _wait_until(self, is_so: Callable[[], bool], timeout_s: float | None) -> bool:
        if self._parts.scheduler.is_on_loop and not is_so():
            raise NbrunError("a blocking wait inside an async agent would block all runs; use: await set")
        if not is_so():
            self._parts.refuse_child()
        live = self._live
        if live is None:
            return poll(is_so, timeout_s)
        is_cell = threading.current_thread() is threading.main_thread() and current_run.get() is None
        lend = self._parts.lend if is_cell else None
        changed = threading.Event()
        remove = live.listen(changed.set)
        until = None if timeout_s is None else self._parts.clock.monotonic() + timeout_s
        try:
            while not is_so():
                left_s = None if until is None else until - self._parts.clock.monotonic()
                if left_s is not None and left_s <= 0:
                    return False
                if lend is not None:
                    lend()
                changed.wait(TICK_S if left_s is None else min(TICK_S, left_s))
                changed.clear()
        finally:
            remove()
        return True

    async def _until(self, is_so: Callable[[], bool]) -> None:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        live = self._live
        remove: Callable[[], None] = lambda: None  # noqa: E731 - nothing to remove where nothing is live
        if live is not None:
            remove = live.listen(lambda: call_soon(loop, changed.set))
        try:
            while not is_so():
                await wait_briefly(changed, None)
                changed.clear()
        finally:
            remove()

    def listen(self, listener: Callable[[], object]) -> Callable[[], None]:
        """Call `listener()` on a thread of the set after it has changed, while it runs here; return what ends that."""
        live = self._live
        return (lambda: None) if live is None else live.listen(listener)

    async def settled(self) -> None:
        """Return when the set is done; from any event loop."""
        await self._until(self.done)

    async def _awaited(self) -> RunSet:
        await self.settled()
        return self

    def __await__(self) -> Generator[Any, None, RunSet]:
        """Return the set when it is done; a run that failed is a result like any other."""
        return self._awaited().__await__()

    # --- changing it -----------------------------------------------------------------------------

    def cancel(
        self, reason: str | None = None, *, item: int | str | None = None, by: str = "python",
        cause: CancelCause = CancelCause.USER,
    ) -> CancelReceipt:  # fmt: skip
        """Begin no further run, and ask those in progress to stop; returns at once.

        With an `item`, by position or key, only its run is cancelled, and if it has not begun, it won't.

        Raises
        ------
        IndexError, KeyError
            There is no such item.
        """
        if item is not None:
            return self._cancel_item(item, reason, by)
        # Its id isn't looked up: a cancel doesn't wait for the store.
        live, title, ref = self._live, f"set #{self.number}", f"set-{self.number}"
        if live is None or live.is_over.is_set():
            if self.done():
                return CancelReceipt(CancelOutcome.ALREADY_FINISHED, ref, f"{title} has already ended")
            return CancelReceipt(CancelOutcome.FOREIGN, ref, f"{title} belongs to another kernel; cancel it there")
        request = ev.CancelRequested(cause, None if reason is None else clean_text(reason), by)
        if live.cancel(request):
            return CancelReceipt(CancelOutcome.REQUESTED, ref, f"{title}: cancel requested", self)
        return CancelReceipt(CancelOutcome.ALREADY_REQUESTED, ref, f"{title} was already asked to stop", self)

    def _cancel_item(self, item: int | str, reason: str | None, by: str) -> CancelReceipt:
        at, live = self._place(item), self._live
        title, ref = f"input {at} of set #{self.number}", f"set-{self.number}"
        if live is None or live.is_ended(at):
            if self._is_ended(at):
                return CancelReceipt(CancelOutcome.ALREADY_FINISHED, ref, f"{title} has already ended")
            return CancelReceipt(CancelOutcome.FOREIGN, ref, f"{title} belongs to another kernel; cancel it there")
        live.drop(at, ev.CancelRequested(CancelCause.USER, None if reason is None else clean_text(reason), by))
        return CancelReceipt(CancelOutcome.REQUESTED, ref, f"{title}: cancel requested", _OneInput(self, at))

    def wait_for(self, at: int, timeout_s: float | None) -> bool:
        """Block until an input has ended; return whether it has. For nbrun itself."""
        return self._wait_until(lambda: self._is_ended(at), timeout_s)

    async def settled_at(self, at: int) -> None:
        """Return when an input has ended; from any event loop. For nbrun itself."""
        await self._until(lambda: self._is_ended(at))

    def answer(self, digest: str, decision: str, *, by: str = "python") -> int:
        """Answer the questions of a group of its `view` that are still asked; return how many. For nbrun itself.

        Raises
        ------
        NotPending
            None of them is asked any more.
        """
        return self._running().answer(digest, decision, by)

    def pause(self) -> None:
        """Begin no further run until `unpause()`; those in progress continue."""
        self._running().pause(True)

    def unpause(self) -> None:
        """Go on after `pause()`."""
        self._running().pause(False)

    def _running(self) -> LiveSet:
        live = self._live
        if live is None or live.is_over.is_set():
            raise NotResumable(f"set #{self.number} is not in progress here: it is {self.status}")
        return live

    def resume(self, agent: object = None, **options: Any) -> RunSet:
        """Run the inputs that have no ending: those that never began, and those whose kernel ended under them.

        Parameters
        ----------
        agent : what to run; None for the agent that this session has started the set with.
        options : those of `nbrun.map()` that should differ from what the set was started with.

        Raises
        ------
        NotResumable
            It is in progress, or nothing is left to run, or the agent must be named.
        """
        return self._sets.begin_again(self, agent, lambda one: one.is_cut, options, is_whole=True)

    def retry(
        self, agent: object = None, *, error: str | None = None, keys: list[int | str] | None = None, **options: Any
    ) -> RunSet:
        """Run again the inputs whose run failed, in this set; also those that have no ending, unless it was stopped.

        What a cancel or `max_failures` has kept from beginning begins with `resume()` only.

        Parameters
        ----------
        agent : what to run; None for the agent that this session has started the set with.
        error : only those whose error contains this text.
        keys : only these inputs, by key or position, however their runs have ended.
        options : as of `resume()`.

        Raises
        ------
        NotResumable
            It is in progress, or nothing fits, or the agent must be named.
        """
        if keys is not None:
            wanted = {at if isinstance(at, int) else cast("ev.Member", self[at].glance.member).index for at in keys}
        else:
            wanted = {
                run.glance.member.index
                for run in self.failed
                if run.glance.member is not None and (error is None or error in str(run.glance.error))
            }
        if not wanted:
            raise NotResumable(f"no failed run of set #{self.number} fits; there is nothing to retry")
        is_whole = self.stopped is None
        return self._sets.begin_again(
            self, agent, lambda one: (is_whole and one.is_cut) or one.position in wanted, options, is_whole=is_whole
        )

    # --- shown -----------------------------------------------------------------------------------

    @property
    def view(self) -> SetView:
        """What a card shows of it; for nbrun itself. Of a set that this kernel has run, nothing is read from disk."""
        live = self._live
        if live is None:
            return self._stored_view()
        story = live.story
        slowest = [record for _, _, record in sorted(story.slowest, key=lambda one: -one[0])]
        return SetView(
            number=self.number, name=live.plan.name, agent=live.plan.agent, status=live.status, stopped=live.stopped,
            began_at=story.began_at, ended_at=story.ended_at, size=live.size, is_whole=live.is_whole,
            is_sized=live.is_sized,
            counts=live.counts(), usage=live.usage, errors=story.groups(), newest=tuple(story.newest)[::-1],
            slowest=slowest,
            scores=mean_lines(live.tally.means()), scored=len(live.scored),
            left_behind=tuple(story.left_behind), asked=live.asked_of if live.status == "cancelling" else 0,
            stopping=live.stopping() if live.status == "cancelling" else (), questions=live.asks(),
        )  # fmt: skip

    @property
    def glance(self) -> SetView:
        """What a list shows of it; of another kernel's set no errors, scores and usage, which take long to read."""
        if self._live is not None:
            return self.view
        row = self.row
        return SetView(
            number=self.number, name=self.name, agent=self.agent, status=self.status, stopped=row.stopped,
            began_at=row.created_at, ended_at=row.ended_at, size=len(self), is_whole=row.is_whole,
            counts={RunStatus(status): count for status, count in self.counts.items()}, usage=ev.Usage(),
        )  # fmt: skip

    def _stored_view(self) -> SetView:
        story, scores = Story(0.0), self.scores
        for one in self._parts.store.ask(lambda db: sets.read_newest(db, self.number), list[sets.Newest]()):
            if one.status is RunStatus.FAILED:
                story.note_error(one.position, one.error, one.number)
        return msgspec.structs.replace(
            self.glance, usage=self.usage, errors=story.groups(), scores=mean_lines(scores.means),
            scored=sum(value is not None for value in scores),
        )  # fmt: skip

    def _words(self) -> str:
        counts = ", ".join(f"{count:,} {status}" for status, count in self.counts.items()) or "no inputs yet"
        status, row = self.status, self.row
        why = f" ({row.stopped})" if status == "failed" else ""
        if status == "lost" and not row.is_whole:
            why = " (before all inputs were read: start the others as another set)"
        return printable(f"set #{self.number} · {self.name} · {status}{why} · {counted(len(self), 'run')}: {counts}")

    def __repr__(self) -> str:
        return self._words()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        from nbrun.render import static_card  # with the first that is shown

        return static_card.set_bundle(self.view)


_TYPES = {
    "index": "int64", "key": "string", "prompt": "string", "status": "string", "output": "object", "error": "string",
    "attempts": "int64", "seconds": "float64", "input_tokens": "int64", "output_tokens": "int64",
    "cost_usd": "float64", "number": "Int64",
}  # fmt: skip
"""The columns of a set's DataFrame, and the type of each."""


@dataclass(frozen=True, slots=True)
class _OneInput:
    """What the receipt of a cancel waits for, where one input of a set is cancelled."""

    found: RunSet
    at: int

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until it has ended; return whether it has."""
        return self.found.wait_for(self.at, timeout_s)

    async def settled(self) -> None:
        """Return when it has ended."""
        await self.found.settled_at(self.at)


class Sets:
    """The sets of a session and of its store. Threads: any; `live` is changed under the session's lock."""

    def __init__(
        self, parts: Parts, starter: Starter, catalog: Catalog, on_begun: Callable[[int], object] = lambda number: None
    ) -> None:
        self.parts = parts
        self._on_begun = on_begun
        self.catalog = catalog
        self.live: dict[int, LiveSet] = {}  # also those that have ended, by number
        self._starter = starter

    def map(self, agent: object, inputs: object, options: Mapping[str, Any]) -> RunSet:
        """Start a set; see `NotebookSession.map()`."""
        read = Inputs(inputs, options.get("template"), options.get("key"))
        set_id = _read_id(options.get("id"))
        own, given = self._split({**options, "id": None}, {})
        plan = self._starter.plan(agent, given)
        of_runs: dict[str, Plain] = trusted(plan.options.recorded())  # no others are ever taken from there
        of_set: dict[str, Plain] = {
            name: value for name, value in options.items() if name in _RECORDED and value is not None
        }
        header: dict[str, Plain] = {"name": plan.name, "agent": plan.agent, "options": of_runs, "set": of_set}
        header = {name: self.parts.keyring.look().data(value) for name, value in header.items()}
        if set_id is not None:
            header[IDENTITY] = _identity(plan)
            if (known := self.with_id(set_id)) is not None:
                return self._go_on(known, plan, own, header, read)
        now, session_id = self.parts.clock.now(), self.parts.session_id
        with guarded():  # a cancel of the agent that calls this must not leave a set that nobody runs
            try:
                number = self.parts.store.change(lambda db: sets.insert_set(db, session_id, set_id, header, now))
            except StoreUnavailable as error:
                if set_id is None or not isinstance(error.__cause__, sqlite3.IntegrityError):
                    raise
                raise NotResumable(f"another kernel has just started a set with the id '{set_id}'") from None
            seal = sets.Seal(self.parts.store.signer, number, header)
            self._begin(LiveSet(self.parts, self._starter, plan, own, number, read, seal))
        return RunSet(self, number)

    def _go_on(
        self, found: RunSet, plan: MemberPlan, own: SetOptions, header: dict[str, Plain], read: Inputs
    ) -> RunSet:
        """Run what has no ending of a set that was started before with this id, and what is new or has changed."""
        if found.is_live:
            return found
        number, store, row = found.number, self.parts.store, found.row
        title = f"set #{number} ('{printable(row.set_id)}')"
        if not found.done():
            raise NotResumable(f"{title} is in progress in another kernel; wait for it there, or use another id")
        if not store.ask(lambda db: sets.is_signed(db, row, store.signer), False):
            raise BadOption(f"your nbrun hasn't signed {title}, so its results can't be gone on from; use another id")
        live = LiveSet(self.parts, self._starter, plan, own, number)
        old = store.ask(lambda db: sets.read_items(db, number, 0, row.size), list[sets.Item]())
        items = [live.storable(at, item) for at, item in enumerate(_in_place(title, old, _whole(read)))]
        is_same = row.header.get(IDENTITY) == header[IDENTITY]
        changed = {at for at, item in enumerate(old) if not is_same or items[at].prompt != item.prompt}
        newest = store.ask(lambda db: sets.read_newest(db, number), list[sets.Newest]())
        live.take_up(len(items), newest, lambda one: one.is_cut or one.position in changed, None)
        if not live.pending:
            return found
        live.usage = self.usage(number)
        seal = sets.Seal(store.signer, number, header)
        seal.take(items)

        def begin(db: Any) -> bool:
            if not sets.begin_again(db, row, self.parts.session_id, None):
                return False
            sets.replace_items(db, number, items, seal.header)
            return True

        with guarded():  # as above
            if not store.change(begin):
                raise NotResumable(f"another kernel is already resuming {title}")
            self._begin(live)
        return found

    def _begin(self, live: LiveSet) -> None:
        with self.parts.lock:
            self.live[live.number] = live
            live.begin()
        self._on_begun(live.number)

    def _split(self, options: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[SetOptions, dict[str, Any]]:
        """Return the options of the set, and those of its runs."""
        for name in ("id", "if_running", "loop"):
            if options.get(name) is not None:
                raise BadOption(f"{name} isn't an option of a set")
        merged = {**before, **options}
        concurrency = merged.get("concurrency")
        if concurrency is None:
            concurrency = self.parts.scheduler.limit
        retries, most = merged.get("retries") or 0, merged.get("max_failures")
        if not _is_count(concurrency) or concurrency < 1:
            raise BadOption(f"concurrency={concurrency!r} is invalid; give a whole number, 1 or more")
        if not _is_count(retries):
            raise BadOption(f"retries={retries!r} is invalid; give a whole number, 0 or more")
        if most is not None and not (_is_count(most) or (isinstance(most, float) and 0 <= most < 1)):
            raise BadOption(f"max_failures={most!r} is invalid; give a number of runs, or a share such as 0.05")
        limits = RunOptions(max_cost=merged.get("max_cost"), max_tokens=merged.get("max_tokens"))
        retry_if: RetryIf | None = merged.get("retry_if")
        if retry_if is not None and not callable(retry_if):
            raise BadOption("retry_if must be a function of an error")
        score = merged.get("score")
        if score is not None and not callable(score):
            raise BadOption("score must be a function of an output and its item")
        own = SetOptions(
            concurrency=concurrency, interval_s=_interval_s(merged.get("rate")), retries=retries, retry_if=retry_if,
            max_failures=most, limits=limits, score=score,
        )  # fmt: skip
        given = {name: value for name, value in options.items() if name not in _OWN and value is not None}
        return own, {"approve": "deny", **given}

    def begin_again(
        self, found: RunSet, agent: object, again: Callable[[sets.Newest], bool], options: Mapping[str, Any], *,
        is_whole: bool,
    ) -> RunSet:  # fmt: skip
        """Run a part of a set's inputs again, and if it `is_whole` those that never began."""
        number, title = found.number, f"set #{found.number}"
        if not found.done():
            raise NotResumable(f"{title} is still in progress; wait for it, or cancel it")
        row, ended = found.row, self.live.get(number)
        ask = self.parts.store.ask
        if ask(lambda db: sets.count_items(db, number, row.size), 0) != row.size:
            raise NotResumable(f"{title} can't be run again: some of its inputs are no longer in the store")
        is_ours = ask(lambda db: sets.is_signed(db, row, self.parts.store.signer), False)
        header = row.header if is_ours else {}
        stored = header.get("set")
        before = stored if isinstance(stored, dict) else {}
        own, given = self._split(options, before if ended is None else {"score": ended.options.score, **before})
        plan: MemberPlan
        if agent is None and ended is not None and not given.keys() - {"approve"}:
            plan = ended.plan
        elif agent is None and ended is None:
            fix = Fix(Action.RESUME, found.id, agent="NAME")
            raise NotResumable(
                f"{title} was started by another kernel; name its agent, as in: resume(my_agent)", fixes=[fix]
            )
        else:
            recorded = header.get("options")
            kept = trusted(recorded) if isinstance(recorded, dict) else {}
            what = ended.plan.plan.agent if agent is None and ended is not None else agent
            plan = self._starter.plan(what, {**kept, "name": header.get("name"), **given})
        with self.parts.lock:
            if (current := self.live.get(number)) is not None and not current.is_over.is_set():
                raise NotResumable(f"{title} is still in progress; wait for it, or cancel it")
            newest = self.parts.store.ask(lambda db: sets.read_newest(db, number), list[sets.Newest]())
            live = LiveSet(self.parts, self._starter, plan, own, number)
            live.take_up(row.size, newest, again, None if is_whole else row.stopped)
            if not live.pending:
                raise NotResumable(f"{title} has nothing left to run")
            live.secret = {} if ended is None else ended.secret
            live.usage = self.usage(number)
            live.story.began_at = row.created_at
            if not self.parts.store.change(lambda db: sets.begin_again(db, row, self.parts.session_id, live.left_out)):
                raise NotResumable(f"another kernel is already resuming {title}")
            if not is_ours:
                self.parts.store.report(
                    f"Your nbrun hasn't signed {title}: its inputs are taken from it, and nothing else"
                )
            self._begin(live)
        return found

    def find(self, ref: object) -> RunSet | None:
        """Return the set that `ref` names, as `set-12`."""
        match = _REF.fullmatch(str(ref).strip().lower())
        return self.numbered(int(match[1])) if match else None

    def with_id(self, set_id: str) -> RunSet | None:
        """Return the set that was started with this id."""
        found = self.parts.store.ask(lambda db: sets.read_sets(db, set_id), list[sets.StoredSet]())
        return RunSet(self, found[0].number) if found else None

    def numbered(self, number: int) -> RunSet | None:
        """Return the set with this number."""
        return RunSet(self, number) if number in self.live or (number and self.row(number) is not None) else None

    def all(self) -> list[RunSet]:
        """Return the sets of this notebook, newest first."""
        return [RunSet(self, row.number) for row in self.parts.store.ask(sets.read_sets, list[sets.StoredSet]())]

    def in_progress(self) -> list[RunSet]:
        """Return the sets that this session runs, newest first."""
        live = sorted(self.live.items(), reverse=True)
        return [RunSet(self, number) for number, one in live if not one.is_over.is_set()]

    def row(self, number: int) -> sets.StoredSet | None:
        """Return the row of a set."""
        found = self.parts.store.ask(lambda db: sets.read_sets(db, number), list[sets.StoredSet]())
        return found[0] if found else None

    def usage(self, number: int) -> ev.Usage:
        """Return what the runs of a set have used, as far as they have ended."""
        return self.parts.store.ask(lambda db: sets.read_usage(db, number), ev.Usage())

    def load(self, row: sets.StoredSet) -> _Loaded:
        """Return what the store says of a set's inputs."""
        ask, size = self.parts.store.ask, row.size
        if size > sets.MANY:
            size = ask(lambda db: sets.count_items(db, row.number, row.size), 0)
        newest = ask(lambda db: sets.read_newest(db, row.number), list[sets.Newest]())
        return _Loaded(*sets.laid_out(size, newest))

    def wake(self) -> None:
        """Have the threads of the sets see that the session was closed."""
        for live in tuple(self.live.values()):
            live.wake()

    def wait_idle(self, left_s: Callable[[], float]) -> None:
        """Wait for these threads, for so long at most: afterwards they write nothing."""
        for live in tuple(self.live.values()):
            live.is_over.wait(left_s())


_OWN = (
    "concurrency", "rate", "retries", "retry_if", "max_failures", "max_cost", "max_tokens", "template", "key", "score",
)  # fmt: skip
_RECORDED = tuple(name for name in _OWN if name not in ("retry_if", "template", "key", "score"))
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(s|sec|min|h|hour)\s*")
_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "hour": 3600.0}


IDENTITY = "identity"
"""Where the header of a set with an id has what its runs depend on besides their prompts, as a digest."""
MAX_ID = 200


def _read_id(set_id: object) -> str | None:
    if set_id is None:
        return None
    if not isinstance(set_id, str):
        raise BadOption(f"id must be a str, not {type(set_id).__name__}")
    if not set_id.strip() or len(set_id) > MAX_ID or set_id != clean_text(set_id):
        raise BadOption(f"id must have 1 to {MAX_ID} characters, none of them hidden")
    if _REF.fullmatch(set_id.strip().lower()):
        raise BadOption(f"id='{set_id}' is how a set is called by its number; use another id")
    return set_id


def _identity(plan: MemberPlan) -> str:
    """Return a digest of the agent's label, its model and options; never of the agent itself."""
    parts = [plan.agent, plan.options.model, plan.options.recorded()]
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def _whole(read: Inputs) -> list[sets.Item]:
    """Return all inputs; on a thread, since an async generator of them needs a loop that isn't running."""
    return Worker("inputs", lambda: list(read), contextvars.copy_context()).start().result()


def _in_place(title: str, old: list[sets.Item], new: list[sets.Item]) -> list[sets.Item]:
    """Return the new inputs in the places that they had before, by their keys if all have some, and then the others."""
    if not all(item.key is not None for item in (*old, *new)):
        if len(new) < len(old):
            raise BadOption(f"{title} has {counted(len(old), 'input')}; give as many at least, or use another id")
        return new
    given = {item.key: item for item in new}
    gone = [item.key for item in old if item.key not in given]
    if gone:
        raise BadOption(f"{title} also has the input '{shown(gone[0], 60)}'; give it too, or use another id")
    known = {item.key for item in old}
    return [*(given[item.key] for item in old), *(item for item in new if item.key not in known)]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _interval_s(rate: object) -> float:
    if rate is None:
        return 0.0
    match = _RATE.fullmatch(rate) if isinstance(rate, str) else None
    if match is None or not float(match[1]):
        raise BadOption(f"rate={rate!r} is invalid; use for example 600/min or 5/s")
    return _SECONDS[match[2]] / float(match[1])
