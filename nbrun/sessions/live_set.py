"""A set while this kernel runs it: reads the inputs, starts a window of runs, and notes how they end."""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import logging
import queue
import sqlite3
import threading
from array import array
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from nbrun.agents import Budget
from nbrun.core import (
    BadOption,
    CancelCause,
    CancelToken,
    Latch,
    RunOptions,
    RunRecord,
    RunStatus,
    SessionClosed,
    StoreError,
    StoreUnavailable,
    clean_text,
    events as ev,
)
from nbrun.render.set_view import ErrorGroup, QuestionGroup, ended_as
from nbrun.sessions.scheduler import RunQueue
from nbrun.sessions.scoring import Score, Scored, Scorer, SetItem, Tally, encode, stored
from nbrun.sessions.set_questions import SetQuestions
from nbrun.store import sets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.sessions.live_run import LiveRun
    from nbrun.sessions.run import Parts
    from nbrun.sessions.start import MemberPlan, Starter

T = TypeVar("T")

_log = logging.getLogger("nbrun")

WINDOW = 2
"""How many runs of a set exist at once, by its places: those in progress, and as many that come next."""
READ_AHEAD = 10_000
"""How many inputs of a generator are read beyond those that have begun."""
PAGE = 2_000
"""How many inputs one transaction adds, in a few milliseconds, and how many one look reads back."""
AGAIN_S = 0.2
"""After how long the store is tried again if it could not be written."""
ERROR_CHARS, ERROR_KINDS, EXAMPLES = 200, 200, 3
"""How much of an error tells it from others, how many different ones are told apart, and how many runs each names."""
NEWEST = 5
_SHOWN = frozenset({"run.started", "approval.requested", "approval.resolved", "cancel.requested"})
"""Events that change what a card shows of a set, besides ends."""
PENDING, LIVE = 0, 1
_CODES = sets.CODES
_STATUS_OF = {code: status for status, code in _CODES.items()}

RetryIf = Callable[[ev.ErrorInfo], object]
Template = str | Callable[[Any, Any], str]
"""Makes the prompt of an input: a text with names in braces, or a function of the input and its key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOptions:
    """How a set is run; see `NotebookSession.map()`."""

    concurrency: int
    interval_s: float = 0.0  # between two starts
    retries: int = 0
    retry_if: RetryIf | None = None
    max_failures: float | None = None
    limits: RunOptions
    score: Score | None = None

    def is_too_much(self, failed: int, size: int, is_whole: bool) -> bool:
        """Return whether so many failures end the set; a share of the inputs is known once all are read."""
        most = self.max_failures
        if most is None:
            return False
        return failed > most if isinstance(most, int) else is_whole and failed > most * size


class Story:
    """What a card tells of a set besides counts. Threads: the set's thread writes, and any reads a copy."""

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self.ended_at: float | None = None
        self.errors: Counter[str] = Counter()  # of the inputs that have failed, by the beginning of their errors
        self.examples: dict[str, list[int]] = {}
        self.newest: deque[RunRecord] = deque(maxlen=NEWEST)  # that have ended
        self.slowest: list[tuple[float, int, RunRecord]] = []
        self.left_behind: Counter[str] = Counter()  # what cancelled runs could not stop
        self._error_at: dict[int, str] = {}
        self._order = itertools.count()  # of runs that took as long as another

    def note_end(self, at: int, record: RunRecord) -> None:
        """Note how an input's run has ended."""
        self.newest.append(record)
        took_s = record.elapsed_s(record.ended_at or record.last_event_at) or 0.0
        heapq.heappush(self.slowest, (took_s, next(self._order), record))
        if len(self.slowest) > NEWEST:
            heapq.heappop(self.slowest)
        self.left_behind.update(record.detached)
        if record.status is RunStatus.FAILED:
            self.note_error(at, str(record.error), record.number or 0)

    def note_error(self, at: int, error: str, number: int) -> None:
        """Note the error of an input's newest run."""
        kind = error[:ERROR_CHARS]
        if kind not in self.errors and len(self.errors) >= ERROR_KINDS:
            kind = ""  # all others
        self.errors[kind] += 1
        self._error_at[at] = kind
        examples = self.examples.setdefault(kind, [])
        if number and len(examples) < EXAMPLES:
            examples.append(number)

    def groups(self) -> list[ErrorGroup]:
        """Return the errors, the most frequent first."""
        return [ErrorGroup(n, error, self.examples.get(error, ())) for error, n in self.errors.copy().most_common()]

    def note_begin(self, at: int) -> None:
        """Note that an input is run again: it has not failed any more."""
        if (kind := self._error_at.pop(at, None)) is not None:
            self.errors[kind] -= 1
            if not self.errors[kind]:
                del self.errors[kind], self.examples[kind]


class LiveSet:
    """Runs a set, on a thread of its own.

    An input that has not begun is one byte here; its prompt is in the store, and read when its turn comes.

    Threads: `_main()`, the thread `nbrun-set-N`, alone changes what has no underscore, and reads `_news`, which the
    writer's thread fills, and `_read`, which the thread of the inputs fills. `cancel()`, `pause()` and `unpause()`
    from any thread.
    """

    def __init__(
        self, parts: Parts, starter: Starter, plan: MemberPlan, options: SetOptions, number: int,
        inputs: Inputs | None = None, seal: sets.Seal | None = None,
    ) -> None:  # fmt: skip
        self.number = number
        self.plan = plan
        self.options = options
        self.token: CancelToken = parts.token.child()
        self.states = bytearray()
        self.attempts = bytearray()
        self.numbers = array("q")  # of the newest run of each input; 0 before it is saved
        self.order = array("q")  # the inputs that have ended, by when
        self.live: dict[int, LiveRun] = {}
        self.unsaved: dict[int, LiveRun] = {}  # that ended so
        self.secret: dict[int, str] = {}  # the prompts that hold a secret, which is not stored
        self.ended = [0] * (len(RunStatus) + 2)  # how many inputs have ended how, by code
        self.pending = 0
        self.usage = ev.Usage()
        self.is_whole = inputs is None
        self.stopped: str | None = None
        self.left_out: str | None = None  # why inputs that never began aren't run, where only others are run again
        self.is_paused = False
        self.is_over = Latch()
        self._parts = parts
        self._starter = starter
        self._queue = RunQueue(options.concurrency)
        self._budget = Budget(options.limits, self.token, _log.warning) if options.limits.has_limits else None
        self._inputs = inputs
        self._seal = seal
        self._next = 0  # no input before it is waiting for its first run
        self._again: dict[int, int] = {}  # inputs that are run again, in order, and how their last run ended
        self._page: deque[sets.Item] = deque()
        self._news: queue.SimpleQueue[RunRecord] = queue.SimpleQueue()
        self._read: deque[sets.Item] = deque()
        self._has_read_all = inputs is None
        self._input_error: str | None = None
        self._unwanted: set[int] = set()
        self._dropped: queue.SimpleQueue[tuple[int, ev.CancelRequested]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._room = threading.Event()
        self._start_at = 0.0
        self._request: ev.CancelRequested | None = None
        self._listeners: tuple[Callable[[], object], ...] = ()
        self._lock = threading.Lock()  # of the listeners, and of how many inputs are live and have ended
        self.story = Story(parts.clock.now())
        self.questions = SetQuestions()
        self.scored: dict[int, Scored] = {}
        self.tally = Tally()
        self._told: queue.SimpleQueue[tuple[int, int, Scored]] = queue.SimpleQueue()
        self._scorer = (
            None if options.score is None else Scorer(options.score, number, options.concurrency, self._tell_of)
        )
        self.asked_of = 0  # how many runs were in progress when it was cancelled

    def begin(self) -> None:
        """Start its threads, which see what the caller's code sees."""
        self.token.add_callback(lambda _request: self._wake.set())
        for name, main in ((f"nbrun-set-{self.number}", self._main), (f"nbrun-inputs-{self.number}", self._read_all)):
            if main == self._main or self._inputs is not None:
                context = contextvars.copy_context()
                threading.Thread(target=context.run, args=(main,), name=name, daemon=True).start()

    # --- from any thread -------------------------------------------------------------------------

    def listen(self, listener: Callable[[], object]) -> Callable[[], None]:
        """Call `listener()` on the set's thread after something has changed; return what ends that."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def remove() -> None:
            with self._lock:
                self._listeners = tuple(known for known in self._listeners if known is not listener)

        return remove

    def cancel(self, request: ev.CancelRequested) -> bool:
        """Begin nothing any more, and cancel what is live; return whether this call was the first."""
        if self.is_over.is_set() or self.token.cancelled:
            return False
        self._request = request
        self.asked_of = sum(live.record.status is not RunStatus.QUEUED for live in tuple(self.live.values()))
        for live in tuple(self.live.values()):
            self._parts.intake.request_cancel(live, request)
        return self.token.cancel(request.reason, request.cause, patience_s=0.0)

    def drop(self, at: int, request: ev.CancelRequested) -> None:
        """Cancel the run of one input, or have it cancelled before it begins."""
        self._dropped.put((at, request))
        self._wake.set()

    def pause(self, is_paused: bool) -> None:
        """Begin nothing until it is unpaused; what is in progress continues."""
        self.is_paused = is_paused
        self._parts.scheduler.allow(self._queue, 0 if is_paused else self.options.concurrency)
        self._wake.set()

    def wake(self) -> None:
        """Have its threads look at what has changed; the session is being closed."""
        self._wake.set()
        self._room.set()

    @property
    def size(self) -> int:
        """How many inputs there are, as far as that is known."""
        expected = 0 if self._inputs is None or self.is_whole else self._inputs.size
        return max(len(self.states), expected or 0)

    def counts(self) -> dict[RunStatus, int]:
        """Return how many inputs there are of each status; those that have not begun are queued."""
        with self._lock:
            counts = dict.fromkeys(RunStatus, 0) | {status: self.ended[code] for status, code in _CODES.items()}
            lives, size, is_stopped = tuple(self.live.values()), self.size, self.stopped is not None
        for live in lives:
            status = live.record.status
            counts[status if status.is_live else RunStatus.RUNNING] += 1  # it has ended, and is not counted yet
        rest = size - sum(counts.values())
        counts[RunStatus.CANCELLED if is_stopped else RunStatus.QUEUED] += rest
        return counts

    def asks(self) -> list[QuestionGroup]:
        """Return what its runs ask, grouped."""
        return self.questions.groups(tuple(self.live.values()), self._parts.clock.monotonic())

    def answer(self, digest: str, decision: str, by: str) -> int:
        """Answer the questions of a group; return how many."""
        return self.questions.answer(digest, decision, self._parts.control, by)

    def stopping(self) -> list[tuple[int, str]]:
        """Return how many runs are in progress, by the tool that they are in, else by the agent; the most first."""
        found: Counter[str] = Counter()
        for record in [live.record for live in tuple(self.live.values())]:
            if record.is_live:
                found[next((tool.name for tool in record.tools if tool.status == "running"), self.plan.name)] += 1
        return [(count, name) for name, count in found.most_common()]

    @property
    def status(self) -> str:
        """As `RunSet.status` has it, while this kernel runs the set and until another one does."""
        if not self.is_over.is_set():
            if self.token.cancelled or self.stopped is not None:
                return "cancelling"
            return "paused" if self.is_paused else "running"
        if self.story.ended_at is None:  # its kernel was closed first
            return "lost"
        return ended_as(self.stopped)

    def is_ended(self, index: int) -> bool:
        """Return whether the input's last run has ended, or it won't have one."""
        return self.is_over.is_set() or (index < len(self.states) and self.states[index] > LIVE)

    # --- the thread of the inputs ----------------------------------------------------------------

    def _read_all(self) -> None:
        assert self._inputs is not None  # noqa: S101 - else there is no such thread
        try:
            for item in self._inputs:
                self._read.append(item)
                if not self.pending:
                    self._wake.set()
                while self._is_full and not self._reads_no_more:
                    self._wake.set()
                    self._room.wait()
                    self._room.clear()
                if self._reads_no_more:
                    break
        except Exception as error:  # the user's generator
            self._input_error = f"its inputs raised {type(error).__name__}: {error}"
            if not isinstance(error, BadOption):
                _log.exception("the inputs of set #%s ended with an error", self.number)
        self._has_read_all = True
        self._wake.set()

    @property
    def _is_full(self) -> bool:
        """Whether enough inputs were read for now."""
        return len(self._read) >= PAGE or (not self.is_sized and self.pending + len(self._read) >= READ_AHEAD)

    @property
    def is_sized(self) -> bool:
        """Whether it is known how many inputs there are, also of those that were not read yet."""
        return self._inputs is None or self._inputs.size is not None

    @property
    def _reads_no_more(self) -> bool:
        """Whether the rest of the inputs is not needed: where all of them exist, also what is cancelled is stored."""
        is_stopping = self._is_stopping and not (self.is_sized and self._input_error is None)
        return is_stopping or self.is_over.is_set() or self._parts.is_closed

    @property
    def _is_stopping(self) -> bool:
        return self.stopped is not None or self.token.cancelled or self.is_over.is_set() or self._parts.is_closed

    # --- the thread of the set -------------------------------------------------------------------

    def _main(self) -> None:
        try:
            while not self._step():
                left_s = self._start_at - self._parts.clock.monotonic()
                self._wake.wait(left_s if left_s > 0 and self.pending and not self.is_paused else None)
                self._wake.clear()
        except SessionClosed:  # what has not begun is left for a later kernel
            pass
        except Exception:
            _log.exception("set #%s cannot go on", self.number)
            self.token.cancel("an error in nbrun; see the log", CancelCause.ERROR)
        finally:
            if self._scorer is not None:
                self._scorer.close()
            self.is_over.set()
            self._room.set()
            self.token.release()
            self._tell()

    def _step(self) -> bool:
        """Do what there is to do; return whether the set is over."""
        self._note_ends()
        self._note_scores()
        self._check_stop()
        self._add_items()
        self._drop_some()
        self._start_some()
        self._room.set()
        self._tell()
        if self._parts.is_closed and not self.live:
            raise SessionClosed(self._parts.why_closed)
        is_over = self.is_whole and not self.live and (self.stopped is not None or not self.pending)
        if is_over and self._scorer is not None and not self._scorer.is_idle and not self.token.cancelled:
            return False
        if is_over and self._news.empty():
            self._write(partial(sets.end, number=self.number, now=self._parts.clock.now()))
            self.story.ended_at = self._parts.clock.now()
            self.stopped = self.stopped or self.left_out
            return True
        return False

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _write(self, change: Callable[[Any], object]) -> None:
        self._patiently(lambda: self._parts.store.change(change))

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call something of the store; while that is unavailable, the set waits for it."""
        while True:
            try:
                return call()
            except StoreUnavailable as error:
                if self._parts.is_closed:
                    raise SessionClosed(self._parts.why_closed) from None
                if isinstance(error.__cause__, sqlite3.DataError | sqlite3.IntegrityError):  # time changes nothing
                    raise
                _log.warning("set #%s waits for the store", self.number, exc_info=True)
            self._wake.wait(AGAIN_S)

    def _check_stop(self) -> None:
        if self.stopped is not None or self._parts.is_closed:
            return
        failed = self.ended[_CODES[RunStatus.FAILED]]
        if self.token.cancelled:
            request = self._request
            reason = self.token.reason if request is None else request.reason
            self._stop(f"cancelled: {reason}" if reason else "cancelled", self.token.cause or CancelCause.USER)
        elif self._input_error is not None and not self._read:  # what it gave before it failed counts
            self._stop(self._input_error, CancelCause.ERROR)
        elif self.options.is_too_much(failed, len(self.states), self.is_whole):
            self._stop(f"{failed} runs failed, more than max_failures allows", CancelCause.ERROR)

    def _stop(self, why: str, cause: CancelCause) -> None:
        """Begin nothing any more: one row says so, for however many inputs."""
        why = self._parts.intake.redactor.text(clean_text(why))
        self._write(partial(sets.stop, number=self.number, why=why))
        self.is_whole = self.is_whole or not self.is_sized or self._input_error is not None
        with self._lock:  # what does not run again has ended as it did before
            self.stopped = why
            for at, code in self._again.items():
                self.states[at] = code
                self.ended[code] += 1
                self.order.append(at)
            self.pending -= len(self._again)
            self._again.clear()
        for live in tuple(self.live.values()) if cause is not CancelCause.ERROR else ():
            if self._request is not None:
                self._parts.intake.request_cancel(live, self._request)
        if cause is CancelCause.ERROR:  # what is in progress continues; what is only queued does not begin
            request = ev.CancelRequested(CancelCause.ERROR, why, "its set")
            for live in tuple(self.live.values()):
                if live.record.status is RunStatus.QUEUED:
                    self._parts.control.cancel(live, request.reason, request.cause, request.by)

    def _note_ends(self) -> None:
        while True:
            try:
                record = self._news.get_nowait()
            except queue.Empty:
                return
            member = record.member
            live = None if member is None else self.live.get(member.index)
            if member is None or live is None or live.run_id != record.run_id:
                continue  # what its detached work has still said
            at = member.index
            self.numbers[at] = record.number or 0
            if record.number is None or live.problem is not None:
                self.unsaved[at] = live
            self.usage = self.usage.plus(record.own_usage)
            self.story.note_end(at, record)
            is_tried_again = self._is_tried_again(at, record)
            code = PENDING if is_tried_again else _CODES[record.status]
            with self._lock:
                del self.live[at]
                self.states[at] = code
                self.ended[code] += not is_tried_again
                if not is_tried_again:
                    self.order.append(at)
            if self._scorer is not None and record.status is RunStatus.COMPLETED:
                output = live.output if live.output is not None else live.pending_output
                output = record.output if output is None else output
                output = record.text if output is None else output
                item = SetItem(at, member.key, self.secret.get(at, record.prompt))
                self._scorer.put(self.numbers[at], output, item)
            if is_tried_again:
                self.pending += 1
                self._again[at] = _CODES[record.status]

    def _tell_of(self, at: int, number: int, scored: Scored) -> None:
        self._told.put((at, number, scored))
        self._wake.set()

    def _note_scores(self) -> None:
        found: list[tuple[bytes, int]] = []
        while self._scorer is not None:
            try:
                at, number, scored = self._told.get_nowait()
            except queue.Empty:
                break
            self._scorer.note_told()
            if number != self.numbers[at]:  # the input has been run again since
                continue
            if scored.error:
                scored = Scored(error=self._parts.intake.redactor.text(clean_text(scored.error)))
            self.note_score(at, scored)
            if number:
                found.append((encode(scored), number))
        if found:
            self._write(partial(sets.add_scores, scores=found))

    def note_score(self, at: int, scored: Scored | None) -> None:
        """Note how an input's output was scored; None: it isn't, any more."""
        before = self.scored.pop(at, None)
        if before is not None and before.value is not None:
            self.tally.add(before.value, -1)
        if scored is not None:
            self.scored[at] = scored
            if scored.value is not None:
                self.tally.add(scored.value)

    def _is_tried_again(self, at: int, record: RunRecord) -> bool:
        options = self.options
        if record.status is not RunStatus.FAILED or record.error is None or self._is_stopping:
            return False
        if self.attempts[at] > options.retries or at in self._unwanted:
            return False
        try:
            return options.retry_if is None or bool(options.retry_if(record.error))
        except Exception:  # the user's function
            _log.exception("retry_if failed for input %s of set #%s", at, self.number)
            return False

    def _add_items(self) -> None:
        """Add the inputs that were read to the store: then they count."""
        while not self.is_whole:
            items = [self._read.popleft() for _ in range(min(PAGE, len(self._read)))]
            is_last = not items and self._has_read_all and not self._read and self._input_error is None
            if not items and not is_last:
                if self._input_error is not None:
                    self._wake.set()  # the next step stops the set
                return None
            first = len(self.states)
            items = [self.storable(at, item) for at, item in enumerate(items, first)]
            size = first + len(items)
            assert self._seal is not None  # noqa: S101 - who gives inputs gives one
            self._seal.take(items)
            self._write(partial(sets.add_items, number=self.number, items=items, size=size, is_whole=is_last,
                                header=self._seal.header))  # fmt: skip
            self.numbers.extend([0] * len(items))
            self.attempts.extend(bytes(len(items)))
            self.states.extend(bytes(len(items)))
            self.pending += len(items)
            self.is_whole = is_last
            self._room.set()
            if self.live or first:  # the first runs go before the rest is added
                self._start_some()
            else:
                return self._wake.set()

    def storable(self, at: int, item: sets.Item) -> sets.Item:
        """Return an input without secrets; its runs get them as long as this kernel lives."""
        redacted = self._parts.intake.redactor.text
        prompt = redacted(item.prompt)
        if prompt != item.prompt:
            self.secret[at] = item.prompt
        is_key_kept = item.key is not None and redacted(item.key) == item.key  # else two could become the same
        return sets.Item(at, item.key if is_key_kept else None, prompt)

    def _start_some(self) -> None:
        window = WINDOW * self.options.concurrency
        while self.pending and len(self.live) < window and not self.is_paused and not self._is_stopping:
            now = self._parts.clock.monotonic()
            if self.options.interval_s:
                if now < self._start_at:
                    return
                is_late = self._start_at and now - self._start_at < self.options.interval_s  # by a moment: made up for
                self._start_at = (self._start_at if is_late else now) + self.options.interval_s
            self._start(self._following(), self._queue)

    def _start(self, item: sets.Item, line: RunQueue) -> LiveRun:
        at = item.position
        self.states[at] = LIVE
        self.pending -= 1
        self.attempts[at] = min(sets.ATTEMPTS, self.attempts[at] + 1)
        self.story.note_begin(at)
        self.note_score(at, None)
        member, prompt = ev.Member(self.number, at, item.key), self.secret.get(at, item.prompt)
        live = self.live[at] = self._starter.start_member(
            self.plan, prompt, member, self._origin(at), self.token, line, self._budget, self._note
        )
        self.unsaved.pop(at, None)
        return live

    def _drop_some(self) -> None:
        """Cancel the inputs that nobody wants any more: each gets a run that says so, whose agent isn't entered."""
        while not self._is_stopping:
            try:
                at, request = self._dropped.get_nowait()
            except queue.Empty:
                return
            live = self.live.get(at)
            if live is None and self.states[at] == PENDING:
                self._again.pop(at, None)
                (item,) = self._items(at, 1)
                live = self._start(item, RunQueue(0))  # which lets nobody in
            if live is not None:
                self._unwanted.add(at)  # it may have failed just now, and isn't tried again
                self._parts.control.cancel(live, request.reason, request.cause, request.by)

    def _origin(self, at: int) -> ev.Origin | None:
        """Return the run that a new one of the same input comes from."""
        number = self.numbers[at]
        if not number:
            return None
        stored = self._patiently(lambda: self._parts.store.run(number))
        if stored is None:
            return None
        return ev.Origin(ev.RETRY, stored.record.run_id, number, stored.record.name)

    def _following(self) -> sets.Item:
        """Return the next input that is to run: in order, and then those that are tried again."""
        while self._next < len(self.states):
            while self._page and self._page[0].position < self._next:
                self._page.popleft()
            if not self._page:
                self._page.extend(self._items(self._next, min(PAGE, 4 * WINDOW * self.options.concurrency)))
            item = self._page.popleft()
            self._next = item.position + 1
            if self.states[item.position] == PENDING and not self.attempts[item.position]:
                return item
        at = next(iter(self._again))
        item = self._items(at, 1)[0]
        del self._again[at]
        return item

    def _items(self, first: int, count: int) -> list[sets.Item]:
        ask = self._parts.store.ask
        found = self._patiently(
            lambda: ask(lambda db: sets.read_items(db, self.number, first, count), list[sets.Item]())
        )
        if not found:
            raise StoreError(f"input {first} of set #{self.number} is not in the store")
        return found

    def _note(self, record: RunRecord, events: Sequence[ev.RunEvent]) -> None:
        """Note that a run has ended, or that a card shows something else of it; on the writer's thread."""
        if not record.is_live:
            self._news.put(record)
            self._wake.set()
        elif self._listeners and any(event.data.TYPE in _SHOWN for event in events):
            self._wake.set()

    # --- a set that an earlier kernel has begun, or this one has ended ---------------------------------

    def take_up(
        self, size: int, newest: Iterable[sets.Newest], again: Callable[[sets.Newest], bool], left_out: str | None
    ) -> None:
        """Begin with what the store has, before the thread is started.

        `again` says which inputs are run again, and `left_out` why those that never began aren't run; None if they are.
        """
        self.left_out = left_out
        newest = list(newest)
        self.states, self.numbers, self.attempts = sets.laid_out(size, newest)
        for one in newest:
            if one.position < size and (one.status.is_live or again(one)):
                self._again[one.position] = self.states[one.position] or _CODES[RunStatus.LOST]
                self.states[one.position] = PENDING
            elif one.position < size and one.status is RunStatus.FAILED:
                self.story.note_error(one.position, one.error, one.number)
            elif one.position < size:
                self.note_score(one.position, stored(one.score))
        if left_out is not None:
            cancelled, self._next = _CODES[RunStatus.CANCELLED], size
            for at, code in enumerate(self.states):
                if code == PENDING and at not in self._again:
                    self.states[at] = cancelled
        self.pending = self.states.count(PENDING)
        for code in _STATUS_OF:
            self.ended[code] = self.states.count(code)
        self.order.extend(at for at, code in enumerate(self.states) if code != PENDING and self.numbers[at])


class _Row(dict[str, object]):
    """A row of a table, whose columns a template names as `{item.question}` too."""

    def __getattr__(self, name: str) -> object:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Inputs:
    """The inputs of a set, one by one, as they are stored; `size` is None for those of a generator."""

    def __init__(self, given: object, template: Template | None, key: str | None) -> None:
        if isinstance(given, str | bytes):
            raise BadOption("inputs must be a list of prompts, not one text; give [text]")
        if not isinstance(given, Iterable | AsyncIterator):
            raise BadOption(f"inputs must be a list, a dict or a generator of prompts, not {type(given).__name__}")
        if not (template is None or isinstance(template, str) or callable(template)):
            raise BadOption(
                f"template must be a str, or a function of an input and its key, not {type(template).__name__}"
            )
        self._given, self._template, self._key = given, template, key
        self._seen: set[str] = set()
        self.size = len(given) if isinstance(given, Sized) else None
        for at, value in enumerate(given) if isinstance(given, list) else ():
            if type(value) is not str:
                self._item(at, value)
        if self.size:
            next(iter(self))  # what is wrong with the first is mostly wrong with all

    def __iter__(self) -> Iterator[sets.Item]:
        self._seen.clear()
        return map(self._item, itertools.count(), _each(self._given))

    def _item(self, at: int, value: object) -> sets.Item:
        key: object = None
        if isinstance(value, tuple) and len(value) == 2:
            key, value = value
        fields = _Row({str(name): part for name, part in value.items()}) if isinstance(value, Mapping) else _Row()
        if self._key is not None:
            if self._key not in fields:
                raise BadOption(f"input {at} has no column '{self._key}' for its key; it has {_names(fields)}")
            key = fields[self._key]
        key = None if key is None else clean_text(str(key))
        if key is not None and key in self._seen:
            raise BadOption(f"two inputs have the key '{key}'; give each its own")
        if key is not None:
            self._seen.add(key)
        prompt = clean_text(self._prompt(at, key, fields or value, fields))
        if len(prompt) + len(key or "") > sets.MAX_PROMPT:
            raise BadOption(f"input {at} has more than {sets.MAX_PROMPT:,} characters; pass the name of a file instead")
        return sets.Item(at, key, prompt)

    def _prompt(self, at: int, key: str | None, item: object, fields: _Row) -> str:
        if callable(self._template):
            prompt = self._template(item, at if key is None else key)
            if not isinstance(prompt, str):
                raise BadOption(f"the template's function must return a str, not {type(prompt).__name__}")
            return prompt
        if self._template is not None:
            try:
                return self._template.format(**{"item": item, "key": at if key is None else key, **fields})
            except (KeyError, AttributeError, IndexError, ValueError) as error:
                names = "{item}, {key}" + "".join(f", {{{name}}}" for name in fields)
                raise BadOption(f"the template doesn't fit input {at} ({error}); it may name {names}") from None
        if isinstance(item, str):
            return item
        if fields:
            names, one = _names(fields), next(iter(fields))
            raise BadOption(f"input {at} has columns ({names}); give a template, such as '{{{one}}}'")
        raise BadOption(f"input {at} must be a str, or a pair of a key and a str, not {type(item).__name__}")


def _names(fields: _Row) -> str:
    return ", ".join(fields) or "none"


def _each(given: object) -> Iterable[object]:
    """Yield what is iterated over: of a table its rows, of an async generator what it gives on a loop of its own."""
    columns, row_tuples = getattr(given, "columns", None), getattr(given, "itertuples", None)
    if isinstance(given, Mapping):
        yield from given.items()
        return
    if columns is not None and row_tuples is not None:  # a DataFrame, whose package need not be installed
        names = [str(name) for name in columns]
        index = getattr(given, "index", None)
        labels = itertools.repeat(None) if type(index).__name__ == "RangeIndex" or index is None else index
        for label, row in zip(labels, row_tuples(index=False, name=None), strict=False):
            yield label, dict(zip(names, row, strict=True))
        return
    if not isinstance(given, AsyncIterator):
        assert isinstance(given, Iterable)  # noqa: S101 - checked before
        yield from given
        return
    with asyncio.Runner() as runner:
        while True:
            try:
                yield runner.run(anext(given))  # type: ignore[arg-type]
            except StopAsyncIteration:
                return


def status_of(code: int) -> RunStatus | None:
    """Return how an input has ended, by its code; None if it hasn't."""
    return _STATUS_OF.get(code)
