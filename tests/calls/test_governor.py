"""The calls of all runs wait together when a provider asks to wait, and go at a pace that it takes."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import partial
from typing import Any

import httpx2
import openai
import pytest

from nbrun import NotebookSession, Run, RunContext, events as ev
from nbrun.calls.governor import GOVERNOR, MAX_WAIT_S, Limits, Line, Pace, Reply, Turn, read_rates, read_refusal
from nbrun.render.words import call_words, group_words
from tests.conftest import MakeSession
from tests.fakes.agents import BOUND_S
from tests.fakes.clock import NOON
from tests.fakes.people import until
from tests.fakes.provider import FORMS, Limiter, Provider

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
LONG_S = "120"
INSECURE: Any = {"verify": False}  # no certificates are loaded, which takes long


@pytest.fixture
def provider() -> Iterator[Provider]:
    """Return a provider that has been started."""
    with Provider() as provider:
        yield provider


def ask(provider: Provider, key: str = "sk-one", *, model: str = "gpt-4o") -> int:
    """Make a call without a package's retries; return the status."""
    with httpx2.Client(verify=False) as client:
        body = {"model": model, "messages": MESSAGES}
        url = provider.url + FORMS["chat"].path
        return client.post(url, json=body, headers={"Authorization": f"Bearer {key}"}).status_code


async def ask_async(provider: Provider, key: str = "sk-one") -> int:
    """Do the same with an async client."""
    async with httpx2.AsyncClient(verify=False) as client:
        url = provider.url + FORMS["chat"].path
        headers = {"Authorization": f"Bearer {key}"}
        return (await client.post(url, json={"model": "gpt-4o", "messages": MESSAGES}, headers=headers)).status_code


def refuse(session: NotebookSession, provider: Provider, **headers: str) -> Run:
    """Have the provider refuse a run's call."""
    provider.refusals.append(429)
    provider.headers = {name.replace("_", "-"): value for name, value in headers.items()}
    run = session.start(lambda: ask(provider))
    assert run.wait(BOUND_S)
    assert provider.arrived.acquire(timeout=BOUND_S)
    return run


def waiting(run: Run) -> str:
    """Return what a call of the run waits for, as soon as its card says it."""
    record = until(run, lambda record: any(call.waits_for for group in record.call_groups for call in group.last))
    return record.call_groups[-1].last[-1].waits_for


@pytest.fixture
def one_call() -> Iterator[None]:
    """Let each key make one call a minute, until the block ends or `release()`."""
    GOVERNOR.set_limits(Limits(requests=1))
    yield
    release()


def release() -> None:
    """Let all calls go."""
    GOVERNOR.set_limits(Limits())


def finished(run: Run) -> list[ev.CallFinished]:
    """Return the ends of a run's calls."""
    return [event.data for event in run.events() if isinstance(event.data, ev.CallFinished)]


# --- all runs wait -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("is_async", "retry_after"), [(False, "1"), (True, None)], ids=["sync", "async"])
def test_no_run_fails_where_a_provider_takes_few_calls(
    make_session: MakeSession, provider: Provider, is_async: bool, retry_after: str | None
) -> None:
    """The plain package tries three times; that is enough if the calls come at the pace that is allowed."""
    provider.limiter = Limiter(20, burst=10)
    provider.headers = {} if retry_after is None else {"Retry-After": retry_after}
    options: Any = {"base_url": f"{provider.url}/v1", "api_key": "sk-no", "timeout": BOUND_S}

    def asks() -> None:
        with openai.OpenAI(**options, http_client=httpx2.Client(**INSECURE)) as client:
            client.chat.completions.create(model="gpt-4o", messages=MESSAGES)

    async def asks_async() -> None:
        async with openai.AsyncOpenAI(**options, http_client=httpx2.AsyncClient(**INSECURE)) as client:
            await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)

    session = make_session(max_concurrent=45)
    runs = [session.start(asks_async if is_async else asks) for _ in range(45)]
    for run in runs:
        assert run.wait(BOUND_S)
    assert {run.status for run in runs} == {"completed"}
    assert len(provider.served) == 45


@pytest.mark.parametrize("kind", ["sync", "async", "own loop"])
def test_all_runs_wait_and_a_cancel_gets_through(session: NotebookSession, provider: Provider, kind: str) -> None:
    """The card says why and until when; the run ends without the request."""
    first = refuse(session, provider, Retry_After=LONG_S)
    assert [(call.status, call.retry_after) for call in finished(first)] == [("error", 120.0)]
    left: list[str] = []

    def asks() -> None:
        try:
            asyncio.run(ask_async(provider)) if kind == "own loop" else ask(provider)
        except BaseException as error:
            left.append(type(error).__name__)
            raise

    async def asks_async() -> None:
        await ask_async(provider)

    run = session.start(asks_async if kind == "async" else asks)
    assert waiting(run) == "127.0.0.1 refused a call (HTTP 429)"
    run.cancel()
    assert run.wait(BOUND_S)
    assert run.status == "cancelled"
    assert run.record.detached == ()
    assert kind != "sync" or left == ["Cancelled"]
    [call] = finished(run)
    assert call.status == "cancelled"
    assert call.waited_ms > 0
    assert len(provider.requests) == 1


def test_other_keys_do_not_wait(session: NotebookSession, provider: Provider) -> None:
    """The limit is that of a key; and what is outside of a run is left alone."""
    refuse(session, provider, Retry_After=LONG_S)
    assert session.start(lambda: ask(provider, "sk-two")).result(BOUND_S) == 200
    assert ask(provider) == 200


def test_a_key_is_kept_nowhere(session: NotebookSession, provider: Provider) -> None:
    """Lines are known by a digest with a secret of this process."""
    session.start(lambda: ask(provider, "sk-very-secret")).result(BOUND_S)
    assert "sk-very-secret" not in repr(GOVERNOR._lines) + repr([vars(line) for line in GOVERNOR._lines.values()])


def test_the_row_of_a_call_says_why_it_waits(session: NotebookSession, provider: Provider) -> None:
    """In the list of calls, and in the line above it; not once it is sent."""
    refuse(session, provider, Retry_After=LONG_S)
    run = session.start(lambda: ask(provider))
    waiting(run)
    [group] = run.record.call_groups
    [call] = run.calls
    for words in (group_words(group), call_words(call)):
        assert "waiting until about " in words
        assert words.endswith(": 127.0.0.1 refused a call (HTTP 429)")
    run.cancel()
    assert run.wait(BOUND_S)
    [call] = run.calls
    assert (call.waits_for, call.waits_until) == ("", 0.0)


@pytest.mark.parametrize("value", ["1e9", "inf", "-5", "nan", "soon", "9" * 400])
def test_an_odd_retry_after_is_bounded_and_said(session: NotebookSession, provider: Provider, value: str) -> None:
    """It holds up nobody for longer than the longest wait, and the log says so."""
    run = refuse(session, provider, Retry_After=value)
    [line] = [event.data for event in run.events() if isinstance(event.data, ev.Log)]
    assert line.level == "warning"
    assert line.text.startswith("127.0.0.1 refused a call (HTTP 429), and ")
    [call] = finished(run)
    assert call.retry_after in (None, MAX_WAIT_S)
    assert (call.retry_after is None) == ("can't be read" in line.text)


@pytest.mark.usefixtures("one_call")
def test_the_limit_of_a_user_holds_back_calls(session: NotebookSession, provider: Provider) -> None:
    """The card names the setting; without it the calls go."""
    assert session.start(lambda: ask(provider)).result(BOUND_S) == 200
    run = session.start(lambda: ask(provider))
    assert waiting(run) == "requests_per_minute 1"
    release()
    assert run.result(BOUND_S) == 200
    [call] = finished(run)
    assert call.waited_ms > 0


def test_headers_without_a_refusal_hold_back_calls(session: NotebookSession, provider: Provider) -> None:
    """What has none left is not asked."""
    provider.headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2m0s"}
    assert session.start(lambda: ask(provider)).result(BOUND_S) == 200
    run = session.start(lambda: ask(provider))
    assert waiting(run) == "127.0.0.1 has no requests left"
    run.cancel()
    assert run.wait(BOUND_S)


@pytest.mark.usefixtures("one_call")
def test_a_blocked_loop_holds_up_no_others(session: NotebookSession, provider: Provider) -> None:
    """Its call may go, and goes when the loop is free."""
    assert session.start(lambda: ask(provider)).result(BOUND_S) == 200
    is_blocked, is_free = threading.Event(), threading.Event()

    async def asks_and_blocks(prompt: str, run: RunContext) -> None:
        call = asyncio.ensure_future(ask_async(provider))
        while not is_any_waiting():  # noqa: ASYNC110 - there is nothing that could be awaited
            await asyncio.sleep(0)
        is_blocked.set()
        assert is_free.wait(BOUND_S)
        await call

    blocked = session.start(asks_and_blocks, thread=True)
    assert is_blocked.wait(BOUND_S)
    behind = session.start(lambda: ask(provider))
    waiting(behind)
    release()
    assert behind.result(BOUND_S) == 200
    is_free.set()
    assert blocked.wait(BOUND_S)
    assert blocked.status == "completed"


def is_any_waiting() -> bool:
    """Return whether a call waits."""
    return any(line.turns for line in GOVERNOR._lines.values())


# --- what is read ------------------------------------------------------------------------------------


def in_s(seconds: float) -> str:
    """Return an HTTP date."""
    return formatdate(NOON + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (429, {"retry-after": "7"}, (7.0, True)),
        (429, {"retry-after": "7", "retry-after-ms": "250"}, (0.25, True)),
        (429, {"retry-after": in_s(9)}, (9.0, True)),
        (429, {"retry-after": in_s(9), "date": in_s(4)}, (5.0, True)),
        (429, {"retry-after": in_s(-9)}, (0.0, True)),
        (429, {}, (None, True)),
        (429, {"x-should-retry": "false"}, (None, False)),
        (503, {"retry-after": "1"}, (1.0, True)),
        (503, {}, (None, False)),
        (529, {"retry-after": "1"}, (1.0, True)),
        (200, {"retry-after": "1"}, (1.0, False)),
        (429, {"retry-after": "1e9"}, (MAX_WAIT_S, True)),
        (429, {"retry-after": in_s(1e9)}, (MAX_WAIT_S, True)),
    ],
)
def test_refusals_are_read(status: int, headers: dict[str, str], expected: tuple[float | None, bool]) -> None:
    """In seconds, in milliseconds, and as a date."""
    assert read_refusal(status, headers, NOON)[:2] == expected


@pytest.mark.parametrize(
    ("headers", "need", "wait_s"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 1, 300.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30.5s"}, 1, 90.5),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "120ms"}, 1, 0.12),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "6m0s"}, 1, 0.0),
        (
            {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "60s",
             "x-ratelimit-limit-requests": "120"}, 1, 0.5,
        ),
        (
            {"x-ratelimit-remaining-tokens": "100", "x-ratelimit-reset-tokens": "1s",
             "x-ratelimit-limit-tokens": "1100"}, 600, 0.5,
        ),
        (
            {"anthropic-ratelimit-requests-remaining": "0",
             "anthropic-ratelimit-requests-reset": "2026-09-21T14:13:30Z"}, 1, 10.0,
        ),
        ({"x-ratelimit-remaining-requests": "x", "x-ratelimit-reset-requests": "1s"}, 1, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "later"}, 1, 0.0),
        ({"x-ratelimit-remaining-requests": "-3", "x-ratelimit-reset-requests": "1s"}, 1, 0.0),
        ({"x-ratelimit-remaining-requests": "nan", "x-ratelimit-reset-requests": "1s"}, 1, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s" * 100_000}, 1, 0.0),
    ],
)  # fmt: skip
def test_rates_are_read(headers: dict[str, str], need: float, wait_s: float) -> None:
    """Those of OpenAI and Anthropic, which fill up continuously."""
    assert math.isclose(sum(rate.wait_s(need) for rate in read_rates(headers, NOON)), wait_s, abs_tol=1e-6)


# --- the pace and the line, without time -------------------------------------------------------------


def test_what_was_taken_before_the_first_refusal_is_the_pace() -> None:
    """Not all at once when the wait is over."""
    pace = Pace()
    calls = [pace.go(0.01 * number) for number in range(30)]
    for call in calls[20:]:
        pace.refuse(call, 0.4, 1.0)
    assert pace.due(0, 0.5) == 1.4
    assert pace.due(0, 1.4) == 1.4
    pace.go(1.4)
    assert math.isclose(pace.due(0, 1.4), 1.7)  # by then it is known whether the first one was refused
    pace.go(1.7)
    assert math.isclose(pace.due(0, 1.7), 1.7 + 1 / 20, abs_tol=0.01)
    assert pace.due(2, 1.7) > pace.due(0, 1.7)  # it would not be tried again


def test_a_pace_grows_until_it_is_refused() -> None:
    """And is lower then."""
    pace = Pace()
    pace.refuse(pace.go(0.0), 0.1, 1.0)
    now = 1.1
    for _ in range(200):
        now = max(now, pace.due(0, now))
        last = pace.go(now)
    assert pace.rate is not None
    fast = pace.rate
    assert fast > 10
    pace.refuse(last, now + 0.01, 1.0)
    assert pace.rate < fast


def test_a_lone_call_is_tried_at_twice_the_time() -> None:
    """As long as nothing is taken, however long that is."""
    pace, now, waits = Pace(), 0.0, []
    for _ in range(20):
        sent = pace.go(now)
        now += 0.01
        pace.refuse(sent, now, 0.0)
        waits.append(pace.due(0, now) - now)
        now += waits[-1]
    assert waits[:3] == pytest.approx([0.005, 0.01, 0.02])
    assert waits[-1] == pytest.approx(30.0)


class Clients:
    """Makes many calls at once through a line to a provider, by a clock of its own, and tries each three times.

    Parameters
    ----------
    trip_s : from a call to its answer, give or take a tenth.
    """

    def __init__(self, per_second: float, burst: int, retry_after: str | None, trip_s: float) -> None:
        self._line = Line("openai")
        self._now = 0.0
        self._limiter = Limiter(per_second, burst, lambda: self._now)
        self._headers = {} if retry_after is None else {"retry-after": retry_after}
        self._trip_s = trip_s
        self._chance = random.Random(1)  # noqa: S311 - to be the same each time
        self._todo: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.failed = 0
        self.served: list[float] = []

    def run(self, calls: int) -> None:
        """Make so many calls, one a millisecond."""
        for number in range(calls):
            self._in(number / 1000, partial(self._enter, number))
        while self._todo:
            self._now, _, do = heapq.heappop(self._todo)
            do()
            going, at = self._line.let_go(Limits(), self._now)
            for turn in going:
                self._in(self._trip_s / 2 * self._chance.uniform(0.9, 1.1), partial(self._arrive, turn))
            if at < math.inf:
                self._in(at - self._now, lambda: None)

    def _in(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._todo, (self._now + seconds, next(self._order), do))

    def _enter(self, number: int) -> None:
        self._line.add(Turn(self._line, RunContext.__new__(RunContext), "", ("run", number), 0))

    def _arrive(self, turn: Turn) -> None:
        status = self._limiter.ask()
        if status == 200:
            self.served.append(self._now)
        self._in(self._trip_s / 2 * self._chance.uniform(0.9, 1.1), partial(self._answer, turn, status))

    def _answer(self, turn: Turn, status: int) -> None:
        reply = read_refusal(status, self._headers, NOON)
        if not reply.is_refusal:
            self._line.take(turn, self._now)
            return
        self._line.refuse(turn, self._now, reply)
        if turn.refusals == 2:
            self.failed += 1
        else:
            self._in(reply.retry_after or 0.5 * 2**turn.refusals, partial(self._enter, turn.request[1]))


@pytest.mark.parametrize("trip_s", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("retry_after", [None, "1", "0.2"])
@pytest.mark.parametrize("burst", [20, 1])
def test_most_of_what_is_allowed_is_used(burst: int, retry_after: str | None, trip_s: float) -> None:
    """And no call fails, however late refusals come; a provider that saves up nothing refuses what is a bit early."""
    clients = Clients(20, burst, retry_after, trip_s)
    clients.run(200)
    assert clients.failed == 0
    assert len(clients.served) == 200
    if burst > 1 or (trip_s < 0.05 and retry_after != "0.2"):
        assert 200 / (burst + 20 * clients.served[-1]) >= 0.85


def test_tokens_of_the_last_minute_count(session: NotebookSession) -> None:
    """One call may always go, and the next when enough of them are older than a minute."""
    line, limits = Line("openai"), Limits(tokens=1000)

    def turn(size: int) -> Turn:
        return Turn(line, RunContext.__new__(RunContext), "call-1", ("", 0), size)

    big = turn(40_000)
    assert line.due(big, limits, 0.0)[0] <= 0.0
    line.go(big, 0.0)
    small = turn(4)
    assert line.due(small, limits, 1.0) == (60.0, "tokens_per_minute 1,000")
    line.use(big, 300)
    assert line.due(small, limits, 1.0)[0] <= 1.0
    line.go(small, 1.0)
    line.use(small, 600)
    assert line.due(turn(4), limits, 2.0) == (60.0, "tokens_per_minute 1,000")


def test_a_call_that_is_tried_again_keeps_its_place() -> None:
    """Others came while it was refused."""
    line = Line("openai")
    run = RunContext.__new__(RunContext)
    first = Turn(line, run, "call-1", ("run", 1), 0)
    line.go(first, 0.0)
    line.refuse(first, 0.1, Reply(1.0, True))
    other = Turn(line, run, "call-2", ("run", 2), 0)
    line.add(other)
    again = Turn(line, run, "call-3", ("run", 1), 0)
    line.add(again)
    assert line.turns == [again, other]
    assert again.refusals == 1


def order_of(line: Line, now: float) -> list[Turn]:
    """Return who goes when, one at a time."""
    went: list[Turn] = []
    while line.turns:
        going, at = line.let_go(Limits(), now)
        assert at > now
        assert len(going) <= 1
        went += going
        now = at
    return went


def test_calls_go_in_order() -> None:
    """At the pace, one by one; who was refused twice doesn't try whether calls are taken again."""
    line, run = Line("openai"), RunContext.__new__(RunContext)
    turns = [Turn(line, run, f"call-{number}", ("run", number), 0) for number in range(4)]
    line.go(turns[0], 0.0)
    line.refuse(turns[0], 0.1, Reply(1.0, True))
    for turn in reversed(turns[1:]):
        line.add(turn)
    assert line.let_go(Limits(), 1.0) == ([], 1.1)
    assert order_of(line, 1.1) == turns[1:]


def test_the_last_try_is_not_the_probe() -> None:
    """Whether calls are taken again is found out by one that would be tried again."""
    line, run = Line("openai"), RunContext.__new__(RunContext)
    line.refused["run", 1] = (2, -1)
    last, other = (Turn(line, run, f"call-{number}", ("run", number), 0) for number in (1, 2))
    line.go(other, 0.0)
    line.refuse(other, 0.1, Reply(None, True))
    again = Turn(line, run, "call-3", ("run", 2), 0)
    line.add(last)
    line.add(again)
    assert order_of(line, 0.1) == [again, last]


def limits_there() -> tuple[int | None, int | None]:
    """Return the limits of the process that this runs in."""
    return GOVERNOR.limits


def test_the_limits_hold_in_the_process_of_a_run(session: NotebookSession) -> None:
    """Its governor is another one, with the same limits."""
    GOVERNOR.set_limits(Limits(60, 9000))
    try:
        assert session.start(limits_there, on="process").result(BOUND_S) == [60, 9000]
    finally:
        GOVERNOR.set_limits(Limits())
