"""Holds back the model calls of all runs while a provider asks to wait: one governor per process.

After a refusal, whoever calls the same provider with the same key waits in one line. When the wait is over, calls go
one by one, at a pace that is learned from what the provider takes and refuses: all at once would be refused again, and
the providers' packages try only two or three times.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import operator
import os
import threading
import time
from collections import OrderedDict, deque
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple

from nbrun.agents import events, guarded, shown
from nbrun.core import Latch, duration, end_cancelled_wait, module_lock, wait_for_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nbrun.agents import RunContext

MAX_WAIT_S = 300.0
"""The longest wait for what a provider asks, in seconds; then one call tries."""

SHOWN_S = 0.25  # a shorter wait isn't shown
FIRST_RATE = 200.0  # calls per second, at which it is first tried whether calls are taken again
MIN_RATE = 1 / 30
PART = 0.85  # of the rate that was refused, after the refusal
FEW = 10  # calls, from which no rate is learned
MAX_TRIP_S = 1.0  # a loop that is busy may notice a refusal much later
MINUTE_S = 60.0
MAX_LINES = 1_000  # of calls, by provider and key
MAX_REFUSED = 10_000  # requests of one line that may be tried again

_KEYS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
_secret = os.urandom(16)  # so that a digest says nothing about a key


# --- what a provider says ----------------------------------------------------------------------------


class Reply(NamedTuple):
    """What the head of a response says about waiting: seconds, and a line for the run's log if that is odd."""

    retry_after: float | None = None
    is_refusal: bool = False
    odd: str = ""
    early_s: float = 0.0
    """How much sooner calls may be taken: whole seconds are rounded up."""


def read_refusal(status: int, headers: Mapping[str, str], now: float) -> Reply:
    """Read whether a call was refused for its rate, and for how long; `now` is in epoch seconds."""
    text = headers.get("retry-after") or ""
    exact = _number(headers.get("retry-after-ms"))
    seconds = _number(text) if exact is None else exact / 1000
    odd = ""
    early_s = 1.0 if exact is None and "." not in text else 0.0
    if seconds is None and text:
        try:
            # The server's clock and this one may differ.
            at = parsedate_to_datetime(text).timestamp()
            seconds = max(0.0, at - _date(headers.get("date"), now))
        except (ValueError, TypeError, OverflowError):
            odd = f"its Retry-After can't be read: {shown(text, 40)}"
    if seconds is not None and not 0 <= seconds <= MAX_WAIT_S:
        if seconds > MAX_WAIT_S:
            odd = f"it asks to wait {duration(seconds)}; nbrun waits {duration(MAX_WAIT_S)}, then tries"
            seconds = MAX_WAIT_S
        else:
            odd, seconds = f"its Retry-After can't be read: {shown(text, 40)}", None
    # 529 is Anthropic's. Where waiting is of no use, as when there is no money left, OpenAI says so.
    is_refusal = status == 429 or (status in (503, 529) and seconds is not None)
    if headers.get("x-should-retry") == "false":
        is_refusal = False
    return Reply(seconds, is_refusal, odd if is_refusal else "", min(early_s, seconds or 0.0))


def _number(text: str | None) -> float | None:
    """Return a number of a header; None if it isn't one."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _date(text: str | None, otherwise: float) -> float:
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        return otherwise


class Rate(NamedTuple):
    """How much a provider still allows, of what, and in how many seconds all of it is allowed again."""

    what: str  # "requests" or "tokens"
    remaining: float
    reset_s: float
    limit: float | None

    @property
    def per_second(self) -> float | None:
        """How fast what is used up is allowed again; None if that is unknown."""
        return self.limit / self.reset_s if self.limit and self.reset_s else None

    def wait_s(self, need: float) -> float:
        """Return how long it takes until so much is allowed; both providers fill up continuously."""
        if self.remaining >= need:
            return 0.0
        if self.limit is None or self.limit <= self.remaining:
            return self.reset_s
        return self.reset_s * min(1.0, (need - self.remaining) / (self.limit - self.remaining))


_RATES = tuple(
    (what, tuple(name.format(part) for part in ("remaining", "reset", "limit")))
    for what, name in (
        ("requests", "x-ratelimit-{}-requests"),
        ("tokens", "x-ratelimit-{}-tokens"),
        ("requests", "anthropic-ratelimit-requests-{}"),
        ("tokens", "anthropic-ratelimit-tokens-{}"),
        ("tokens", "anthropic-ratelimit-input-tokens-{}"),
        ("tokens", "anthropic-ratelimit-output-tokens-{}"),
    )
)


def read_rates(headers: Mapping[str, str], now: float) -> Iterator[Rate]:
    """Read the rates of OpenAI and Anthropic, and of those that use their headers; `now` is in epoch seconds."""
    for what, names in _RATES:
        if (left := headers.get(names[0])) is None or (remaining := _number(left)) is None:
            continue
        reset_s = _reset_s(headers.get(names[1]) or "", now)
        limit = _number(headers.get(names[2]))
        if reset_s is not None and remaining >= 0:
            yield Rate(what, remaining, min(reset_s, MAX_WAIT_S), limit if limit is None or limit >= 1 else None)


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _reset_s(text: str, now: float) -> float | None:
    """Return the seconds of `6m0s`, `120ms`, `1.5` or a moment; None for anything else."""
    if len(text) > 40:
        return None
    if (number := _number(text)) is not None:
        return number if number >= 0 else None
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp() - now)
    except (ValueError, OverflowError):
        pass
    total, rest = 0.0, text.strip()
    while rest:
        digits = rest.lstrip("0123456789.")
        number = _number(rest[: len(rest) - len(digits)])
        unit = "ms" if digits.startswith("ms") else digits[:1]
        if number is None or unit not in _UNITS:
            return None
        total, rest = total + number * _UNITS[unit], digits[len(unit) :]
    return total if text.strip() else None


# --- the pace ----------------------------------------------------------------------------------------


class Sent:
    """A call that was sent: when, and whether it was refused."""

    __slots__ = ("at", "is_refused")

    def __init__(self, at: float) -> None:
        self.at = at
        self.is_refused = False


class Pace:
    """Learns how fast a provider takes calls. Times are seconds of one clock. Threads: the caller holds a lock.

    Without a refusal there is no pace. After the first one, single calls find out when calls are taken again, each
    after twice the time of the one before. What was taken in the second before the refusal tells about how fast calls
    may go; if that was little, the time that a single call had to wait for. From then on a refusal lowers the pace, and
    each call that waits for it raises it: at first quickly, slowly near the pace that was refused, and beyond it
    quickly again, as TCP's CUBIC does. The longer the wait that a refusal costs, the slower it grows.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        """Calls per second; None: as many as come."""
        self.until = 0.0
        """No call goes before this."""
        self.sent: deque[Sent] = deque()  # of the last minute
        self._last = -math.inf  # when one was sent
        self._most = math.inf  # the rate that was refused; infinite until something is known
        self._base = 0.0  # the rate after that
        self._paced = 0  # calls since then that waited for the pace, without the first one
        self._refused_at = 0.0  # when the call was sent that was refused; while something is unknown, the first one
        self._learned = -math.inf  # when the last refusal was known
        self._trip = 0.0  # from a call to its refusal
        self._pause = 0.0  # what the provider has asked to wait

    @property
    def is_unsure(self) -> bool:
        """Whether the next call may well be refused."""
        return self.rate is not None and (self._is_probing or self._most == math.inf)

    @property
    def _is_probing(self) -> bool:
        """Whether the next call finds out if calls are taken again."""
        return self._last < self._learned

    def go(self, now: float) -> Sent:
        """Take note of a call that is sent now."""
        if self.rate is not None and not self._is_probing:
            if self._paced == 0 and self._most == math.inf:
                self._guess()
            if self._paced == 0 or now - self._last <= 1.6 / self.rate:
                self._paced += 1
            self._grow(now)
        self._last = now
        sent = Sent(now)
        self.sent.append(sent)
        while self.sent[0].at < now - MINUTE_S:
            self.sent.popleft()
        return sent

    def due(self, refusals: int, now: float) -> float:
        """Return when the next call may go, if it was refused so many times: the third time, its client gives up."""
        if self.rate is None:
            return self.until
        is_last_try = refusals >= 2
        gap = (3 if is_last_try else 1) / self.rate
        if self._is_probing:
            return max(self.until, self._learned + gap)
        if self._most == math.inf and (is_last_try or self._paced == 0):
            gap = max(gap, 1.5 * self._trip)  # by then it is known whether the last one was refused
        return max(self.until, self._last + gap)

    def hold(self, until: float, rate: float | None = None) -> None:
        """Let no call go before then, and no more than `rate` a second afterwards."""
        self.until = max(self.until, until)
        if rate is not None and (self.rate is None or rate < self.rate):
            self.rate = self._base = rate
            self._most = rate / PART
            self._paced = 0

    def refuse(self, sent: Sent, now: float, pause: float) -> None:
        """Take note of a refusal, and of the seconds after which its provider may take calls again."""
        sent.is_refused = True
        self.until = max(self.until, now + pause)
        if sent.at < self._learned:  # sent before the last one was known: it says nothing new about the pace
            return
        self._learned, self._pause, self._trip = now, pause, min(now - sent.at, MAX_TRIP_S)
        if self.rate is None:
            self._base = FIRST_RATE
            self._refused_at = sent.at
        elif self._paced == 0 and self._most == math.inf:
            self._base = max(self._base / 2, MIN_RATE)
        else:
            part = 0.7 if self._paced < FEW else PART  # it was much too fast if it was refused so soon
            most = self.rate
            if self._paced >= FEW and self._most < math.inf:
                # Since the refusal before, the provider has given all that it gives.
                since = max(self._refused_at, sent.at - MINUTE_S)
                most = min(most, self._taken(since, sent.at) / (sent.at - since) / PART)
            self._most = most
            self._base = max(part * self._most, MIN_RATE)
            self._refused_at = sent.at
        self._paced = 0
        self._grow(now)

    def take(self, sent: Sent, now: float) -> None:
        """Take note that a call was not refused."""
        self._trip = min(self._trip, now - sent.at)

    def _taken(self, first: float, last: float) -> int:
        """Return how many calls of this time were not refused; the newest may be refused yet."""
        return sum(first <= one.at <= last and not one.is_refused for one in self.sent)

    def _guess(self) -> None:
        """Find a first rate, as a call was taken, and it is known what was refused before it."""
        taken = self._taken(self._refused_at - 1.0, self._learned)
        if taken >= FEW:
            self._base, self._most = taken, 2 * taken
        else:
            self._base = 1 / (1 / self._base + self._trip)

    def _grow(self, now: float) -> None:
        """Let the rate grow with the calls that waited for it."""
        if self._most == math.inf:
            rate = self._base * 2 ** min(self._paced / 10, now - self._learned)
        else:
            done = self._paced / (10 + self._most * (1.5 + 10 * self._pause)) - 1
            rate = self._most + (self._most - self._base) * done**3
        self.rate = min(rate, 1e4)


# --- the lines ---------------------------------------------------------------------------------------


class Limits(NamedTuple):
    """What the user allows per minute, for each provider and key; None: anything."""

    requests: int | None = None
    tokens: int | None = None


class Turn:
    """One call's place in its line. Threads: its fields are written under the governor's lock."""

    __slots__ = (
        "call_id", "has_left", "line", "lock", "order", "refusals", "request", "run", "sent", "shown_until", "spent",
        "wake",
    )  # fmt: skip

    def __init__(self, line: Line, run: RunContext, call_id: str, request: tuple[str, int], size: int) -> None:
        self.line = line
        self.run = run
        self.call_id = call_id
        self.request = request
        self.refusals, self.order = line.refused.get(request) or (0, next(_orders))
        self.spent = [0.0, float(line.need(size))]
        """When it was sent, and the tokens that it uses, as far as they are known."""
        self.sent: Sent | None = None
        """None while it waits."""
        self.shown_until = 0.0
        self.wake: Callable[[], object] | None = None
        self.has_left = False
        self.lock = threading.Lock()  # of what its card says, which is sent outside of the governor's lock

    def show(self, reason: str, wait_s: float) -> None:
        """Have the card say why it waits, and for how many seconds from now."""
        with self.lock:
            if not self.has_left:
                self.run.send(events.CallWaiting(self.call_id, reason, self.run.clock.now() + wait_s))

    def leave(self) -> None:
        """Have the card say that it waits no longer."""
        with self.lock:
            self.has_left = True
            if self.shown_until:
                self.run.send(events.CallWaiting(self.call_id))


_orders = itertools.count()
_refusals = operator.attrgetter("refusals")


class Line:
    """The calls to one provider with one key, in order; a call that is tried again keeps its place.

    Threads: the caller holds the governor's lock.
    """

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.pace = Pace()
        self.reason = ""
        self.turns: list[Turn] = []
        self.unshown: list[Turn] = []
        """Those whose wait is new, or has become longer."""
        self.refused: OrderedDict[tuple[str, int], tuple[int, int]] = OrderedDict()
        """By run and request: how often it was refused, and its place."""
        self._spent: deque[list[float]] = deque()  # tokens of the calls of the last minute
        self._mean = 0.0  # tokens of a call

    def need(self, size: int) -> float:
        """Return about how many tokens a call takes whose request has so many bytes."""
        return max(1.0, size / 4, self._mean)

    def add(self, turn: Turn) -> None:
        """Have a call wait."""
        bisect.insort(self.turns, turn, key=lambda one: one.order)
        self.unshown.append(turn)

    def remove(self, turn: Turn) -> None:
        """Take out a call that waits no longer."""
        if turn in self.turns:
            self.turns.remove(turn)

    def go(self, turn: Turn, now: float) -> None:
        """Let a call go."""
        turn.sent = self.pace.go(now)
        turn.spent[0] = now
        self._spent.append(turn.spent)
        while self._spent[0][0] <= now - MINUTE_S:
            self._spent.popleft()

    def use(self, turn: Turn, tokens: int) -> None:
        """Take note of the tokens that a call has used."""
        turn.spent[1] = float(tokens)
        self._mean += (tokens - self._mean) / 10 if self._mean else tokens

    def take(self, turn: Turn, now: float) -> None:
        """Take note that a call was not refused."""
        assert turn.sent is not None  # noqa: S101 - it was answered
        self.pace.take(turn.sent, now)
        self.refused.pop(turn.request, None)

    def refuse(self, turn: Turn, now: float, reply: Reply) -> None:
        """Take note of a refusal."""
        assert turn.sent is not None  # noqa: S101 - it was answered
        self.pace.refuse(turn.sent, now, (reply.retry_after or 0.0) - reply.early_s)
        self.refused[turn.request] = (turn.refusals + 1, turn.order)
        self.refused.move_to_end(turn.request)
        if len(self.refused) > MAX_REFUSED:
            self.refused.popitem(last=False)
        turn.spent[1] = 0.0
        self.unshown = list(self.turns)

    def let_go(self, limits: Limits, now: float) -> tuple[list[Turn], float]:
        """Let those go whose turn has come; return them, and when the next one may."""
        going: list[Turn] = []
        while self.turns:
            # One that would fail for good isn't used to find out how fast calls may go.
            turn = min(self.turns, key=_refusals) if self.pace.is_unsure else self.turns[0]
            at, _ = self.due(turn, limits, now)
            if at > now:
                return going, at
            self.turns.remove(turn)
            self.go(turn, now)
            going.append(turn)
        return going, math.inf

    def due(self, turn: Turn, limits: Limits, now: float, place: int = 0) -> tuple[float, str]:
        """Return when a call may go if so many others go before it, and the reason for its wait."""
        pace = self.pace
        at, why = pace.due(turn.refusals, now), self.reason
        if place and pace.rate is not None:
            at = max(at, now) + place / pace.rate
        if limits.requests is not None and (before := len(pace.sent) + place - limits.requests) >= 0:
            free_at = MINUTE_S + (pace.sent[before].at if before < len(pace.sent) else now)
            if free_at > at:
                at, why = free_at, f"requests_per_minute {limits.requests:,}"
        if limits.tokens is not None and (free_at := self._free_at(turn.spent[1], limits.tokens, now)) > at:
            at, why = free_at, f"tokens_per_minute {limits.tokens:,}"
        return at, why

    def _free_at(self, need: float, limit: int, now: float) -> float:
        """Return when so many tokens may be used; one call may always go alone."""
        over, free_at = need - limit, 0.0
        recent = [(at, tokens) for at, tokens in self._spent if at > now - MINUTE_S]
        over += sum(tokens for _, tokens in recent)
        for at, tokens in recent:
            if over <= 0:
                break
            over, free_at = over - tokens, at + MINUTE_S
        return free_at

    def to_show(self, limits: Limits, now: float) -> Iterator[tuple[Turn, float, str]]:
        """Yield whose card should say how long it waits from now, and why."""
        turns, self.unshown = self.unshown, []
        places = {turn: place for place, turn in enumerate(self.turns)} if turns else {}
        for turn in turns:
            if turn in places:
                at, why = self.due(turn, limits, now, places[turn])
                if at - now >= SHOWN_S and at > turn.shown_until + 1.0:
                    turn.shown_until = at
                    yield turn, at - now, why


# --- the governor ------------------------------------------------------------------------------------


class Governor:
    """Lets the calls of all runs go when it is their turn.

    Threads: any. Its own, `nbrun-governor`, runs while calls wait: it lets them go, so that a loop that is blocked
    holds up no others, and has their cards say why they wait.
    """

    def __init__(self) -> None:
        self.limits = Limits()
        self._lock = module_lock()
        self._lines: OrderedDict[tuple[str, bytes], Line] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._changed = Latch()

    def set_limits(self, limits: Limits) -> None:
        """Hold back what goes beyond these limits from now on, also what waits already."""
        with self._lock:
            self.limits = limits
            for line in self._lines.values():
                line.unshown = list(line.turns)
            self._changed.set()

    def enter(
        self,
        run: RunContext,
        call_id: str,
        provider: str,
        address: str,
        headers: Mapping[str, str],
        content: bytes | None,
    ) -> Turn:
        """Take a place for a call to this address; it may go if its turn is `sent`, else after a wait."""
        # Never the key itself: only calls with the same one must find each other.
        key = "\n".join(headers.get(name) or "" for name in _KEYS)
        digest = hashlib.blake2b(key.encode(errors="replace"), key=_secret, digest_size=16).digest()
        with guarded(), self._lock:
            line = self._line(provider, address, digest)
            turn = Turn(line, run, call_id, (run.run_id, hash(content)), len(content or b""))
            now = time.monotonic()
            if not line.turns and line.due(turn, self.limits, now)[0] <= now:
                line.go(turn, now)
                return turn
            line.add(turn)
            if self._thread is None or not self._thread.is_alive():  # it isn't in a forked child
                self._thread = threading.Thread(target=self._main, name="nbrun-governor", daemon=True)
                self._thread.start()
            self._changed.set()
        return turn

    def _line(self, provider: str, address: str, digest: bytes) -> Line:
        line = self._lines.get((address, digest))
        if line is None:
            line = self._lines[address, digest] = Line(provider)
            if len(self._lines) > MAX_LINES:
                unused = next((key for key, one in self._lines.items() if not one.turns), None)
                if unused is not None:
                    del self._lines[unused]
        else:
            self._lines.move_to_end((address, digest))
        return line

    def wait(self, turn: Turn) -> None:
        """Block until the turn has come; raises `Cancelled` at once if the run is cancelled."""
        with guarded():
            latch = Latch()
            cancel = turn.run.token.add_first(lambda _request: latch.set())
            try:
                if self._watch(turn, latch.set):
                    latch.wait()
            finally:
                cancel.remove()
                self._leave(turn)
        turn.run.token.raise_if_cancelled()

    async def wait_async(self, turn: Turn) -> None:
        """Return when the turn has come, on any loop of asyncio's; ends at once if the run is cancelled."""
        handles = []

        def register(wake: Callable[[], object]) -> None:
            handles.append(turn.run.token.add_first(lambda _request: wake()))
            if not self._watch(turn, wake):
                wake()

        try:
            await wait_for_call(register)
        finally:
            for handle in handles:
                handle.remove()
            self._leave(turn)
        if turn.run.token.cancelled:
            await end_cancelled_wait(turn.run.token)

    def _watch(self, turn: Turn, wake: Callable[[], object]) -> bool:
        """Have `wake()` called when the turn comes; return False if it has come."""
        with self._lock:
            turn.wake = wake
            return turn.sent is None

    def _leave(self, turn: Turn) -> None:
        """Take out a call that was cancelled; one that went goes on."""
        with guarded(), self._lock:
            if turn.sent is None:
                turn.line.remove(turn)
                self._changed.set()
        turn.leave()

    def answer(self, turn: Turn, status: int, headers: Mapping[str, str]) -> float | None:
        """Learn from the head of a call's response; return how many seconds its provider asks to wait, if it does."""
        run, line = turn.run, turn.line
        reply = read_refusal(status, headers, run.clock.now())
        with guarded(), self._lock:
            now = time.monotonic()
            if reply.is_refusal:
                line.refuse(turn, now, reply)
                line.reason = f"{line.provider} refused a call (HTTP {status})"
                self._changed.set()
            else:
                line.take(turn, now)
            for rate in read_rates(headers, _date(headers.get("date"), run.clock.now())):
                wait_s = rate.wait_s(1.0 if rate.what == "requests" else line.need(0))
                if wait_s > 0 and not reply.is_refusal:
                    pace = (
                        rate.limit / rate.reset_s if rate.what == "requests" and rate.limit and rate.reset_s else None
                    )
                    line.pace.hold(now + wait_s, pace)
                    line.reason = f"{line.provider} has no {rate.what} left"
                    line.unshown = list(line.turns)
                    self._changed.set()
        if reply.odd:
            run.log(f"{line.provider} refused a call (HTTP {status}), and {reply.odd}", "warning")
        return reply.retry_after if reply.is_refusal else None

    def close(self, turn: Turn, tokens: int | None) -> None:
        """Take note of what a call has used; None if that is unknown."""
        if tokens is not None:
            with self._lock:
                turn.line.use(turn, tokens)
                if self.limits.tokens is not None:
                    self._changed.set()

    def _main(self) -> None:
        while True:
            going: list[Turn] = []
            showing: list[tuple[Turn, float, str]] = []
            next_at = math.inf
            with self._lock:
                self._changed = changed = Latch()
                now = time.monotonic()
                for line in self._lines.values():
                    if line.turns:
                        gone, at = line.let_go(self.limits, now)
                        going += gone
                        next_at = min(next_at, at)
                        showing += line.to_show(self.limits, now)
                if next_at == math.inf:
                    self._thread = None
            for turn in going:
                if (wake := turn.wake) is not None:
                    wake()
            for turn, seconds, why in showing:
                turn.show(why, seconds)
            if next_at == math.inf:
                return
            changed.wait(max(0.0, next_at - time.monotonic()))


GOVERNOR = Governor()
"""The one of this process."""
