"""Scores of a set's outputs: computed beside its runs, and summed up."""

from __future__ import annotations

import asyncio
import inspect
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import copy_context
from numbers import Real
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.agents import Worker
from nbrun.core import clean_text, counted, shown

if TYPE_CHECKING:
    import threading

Value = float | bool | dict[str, float | bool]
"""What a score is: a number, a yes or no, or several of them by name."""
Score = Callable[[Any, "SetItem"], Value | Awaitable[Value]]

MAX_NAMES, MAX_NAME, MAX_ERROR = 20, 60, 500
RESAMPLES, DRAWS = 2_000, 2_000_000
"""A bootstrap draws so many samples of the differences, and so many differences in all."""
_SURE = 1.96  # standard errors: 95 % of what is drawn from a normal distribution


class SetItem(msgspec.Struct, frozen=True):
    """An input of a set, as a score gets it: its position, from 0, its key, if it has one, and its prompt."""

    index: int
    key: str | None
    prompt: str


class Scored(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an output was scored, as it is stored: a value, or why there is none."""

    value: float | bool | dict[str, float | bool] | None = None
    error: str = ""


class Mean(msgspec.Struct, frozen=True):
    """A mean of so many scores, and its 95 % confidence interval; that is nan with fewer than two."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" ({_figure(self.low)} to {_figure(self.high)})"
        return f"{_figure(self.mean)}{interval}"


def _figure(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1_000 else f"{value:,.0f}"


class Tally:
    """Sums up scores by name, of which a plain value has none, as they come and go. Threads: one at a time."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}  # how many, their sum, that of their squares, how many are 0 or 1

    def add(self, value: Value, sign: int = 1) -> None:
        """Add a score; with -1 take it away again."""
        for name, number in named(value).items():
            sums = self._sums.setdefault(name, [0, 0.0, 0.0, 0])
            for at, part in enumerate((1, number, number * number, number in (0, 1))):
                sums[at] += sign * part
            if not sums[0]:
                del self._sums[name]

    def means(self) -> dict[str, Mean]:
        """Return the mean of each name."""
        return {name: _mean(*sums) for name, sums in [*self._sums.items()]}


def named(value: Value) -> dict[str, float]:
    """Return the numbers of a score by name; a plain one has the name ""."""
    values = value if isinstance(value, dict) else {"": value}
    return {name: float(number) for name, number in values.items()}


def mean_of(numbers: Iterable[float]) -> Mean:
    """Return the mean of numbers."""
    tally = Tally()
    for number in numbers:
        tally.add(number)
    return tally.means().get("", Mean(math.nan, math.nan, math.nan, 0))


def _mean(count: float, total: float, squares: float, ones: float) -> Mean:
    n, mean = int(count), total / count
    if n < 2:
        return Mean(mean, math.nan, math.nan, n)
    if ones == count:  # a share: Wilson's interval, which stays between 0 and 1
        z = _SURE * _SURE / n
        middle = (mean + z / 2) / (1 + z)
        half = _SURE * math.sqrt(max(0.0, mean * (1 - mean) / n + z / (4 * n))) / (1 + z)
        return Mean(mean, max(0.0, middle - half), min(1.0, middle + half), n)
    half = _SURE * math.sqrt(max(0.0, squares / n - mean * mean) / (n - 1))
    return Mean(mean, mean - half, mean + half, n)


def paired(differences: Sequence[float]) -> Mean:
    """Return the mean of paired differences and its bootstrap interval, the same at each call."""
    n = len(differences)
    if n < 2:
        return mean_of(differences)
    if n > DRAWS // 200:  # then the normal interval is as good
        return mean_of(differences)
    draw, times = random.Random(0), min(RESAMPLES, DRAWS // n)  # noqa: S311 - statistics, no secret
    means = sorted(sum(draw.choices(differences, k=n)) / n for _ in range(times))
    return Mean(sum(differences) / n, means[round(0.025 * (times - 1))], means[round(0.975 * (times - 1))], n)


class Scores(list[Any]):
    """The score of each input, in order; None where there is none.

    `means` has the mean of each name, "" for plain values; `errors` what the score function raised, and how often.
    """

    def __init__(self, values: Iterable[Any], means: Mapping[str, Mean], errors: Mapping[str, int]) -> None:
        super().__init__(values)
        self.means = dict(means)
        self.errors = dict(errors)

    def __repr__(self) -> str:
        scored = sum(value is not None for value in self)
        parts = [*mean_lines(self.means), f"{scored:,} of {counted(len(self), 'input')} scored"]
        parts += [f"{count:,} × {shown(error, 100)}" for error, count in self.errors.items()]
        return ", ".join(parts)


def mean_lines(means: Mapping[str, Mean]) -> list[str]:
    """Return each mean in words: `score 0.72 (0.67 to 0.77)`."""
    return [f"{shown(name, MAX_NAME) if name else 'score'} {mean}" for name, mean in means.items()]


def read_value(value: object) -> Scored:
    """Return a score as it is stored; the error says what it should have been."""
    if isinstance(value, Mapping):
        if not value or len(value) > MAX_NAMES:
            return Scored(error=f"a score must have 1 to {MAX_NAMES} values, not {len(value)}")
        values: dict[str, float | bool] = {}
        for name, part in value.items():
            number = _number(part)
            if number is None or not isinstance(name, str) or not name or len(name) > MAX_NAME:
                return Scored(
                    error=f"{shown(str(name), 60)}: a score must be a number or a bool, not {shown(repr(part), 60)}"
                )
            values[clean_text(name)] = number
        return Scored(values)
    number = _number(value)
    if number is None:
        return Scored(error=f"a score must be a number, a bool or a dict of these, not {shown(repr(value), 60)}")
    return Scored(number)


encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Scored)


def stored(blob: bytes | None) -> Scored | None:
    """Return a score from a store, whatever somebody has put there."""
    try:
        found = None if blob is None else _decoder.decode(blob)
    except (msgspec.DecodeError, RecursionError):
        return None
    if found is None or found.value is not None:
        return None if found is None else read_value(found.value)
    return Scored(error=shown(found.error, MAX_ERROR))


def _number(value: object) -> float | bool | None:
    if isinstance(value, bool):
        return value
    if type(value).__name__ == "bool_":  # numpy's, which is no Real
        return bool(value)
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


class Scorer:
    """Scores the outputs of one set, so many at once, on an event loop of its own.

    Threads: `put()` and `close()` from the set's thread; the thread `nbrun-scores-N` runs async score functions and
    reports to `tell`, and each call of a sync one has a daemon thread.
    """

    def __init__(self, score: Score, number: int, at_once: int, tell: Callable[[int, int, Scored], object]) -> None:
        self.score = score
        self._number = number
        self._at_once = at_once
        self._tell = tell
        self._open = 0  # what was put and not told; of the set's thread, see `note_told()`
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._places: asyncio.Semaphore | None = None

    @property
    def is_idle(self) -> bool:
        """Whether everything that was put has been told."""
        return not self._open

    def put(self, run: int, output: object, item: SetItem) -> None:
        """Have the output of a run scored; its number and the score are told."""
        if self._loop is None:
            self._loop = self._start()
        self._open += 1
        self._loop.call_soon_threadsafe(self._begin, run, output, item)

    def note_told(self) -> None:
        """Note that a score has arrived."""
        self._open -= 1

    def close(self) -> None:
        """Give up what is not scored yet."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _start(self) -> asyncio.AbstractEventLoop:
        import threading

        loop = asyncio.new_event_loop()
        self._places = asyncio.Semaphore(self._at_once)
        context = copy_context()
        thread: threading.Thread = threading.Thread(
            target=context.run, args=(self._main, loop), name=f"nbrun-scores-{self._number}", daemon=True
        )
        thread.start()
        return loop

    def _main(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            for task in self._tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        finally:
            loop.close()

    def _begin(self, run: int, output: object, item: SetItem) -> None:
        task = asyncio.get_running_loop().create_task(self._do(run, output, item), name=f"nbrun-score-{item.index}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do(self, run: int, output: object, item: SetItem) -> None:
        assert self._places is not None  # noqa: S101 - made before the loop's thread
        async with self._places:
            try:
                found = read_value(await self._call(output, item))
            except Exception as error:  # the user's function: the run stays as it is
                found = Scored(error=shown(f"{type(error).__name__}: {error}", MAX_ERROR))
        self._tell(item.index, run, found)

    async def _call(self, output: object, item: SetItem) -> object:
        score = self.score
        if inspect.iscoroutinefunction(score) or inspect.iscoroutinefunction(type(score).__call__):
            return await score(output, item)  # type: ignore[misc]  # it is async
        worker = Worker(f"score-{item.index}", lambda: score(output, item), copy_context())
        value = await asyncio.wrap_future(worker.start())
        return await value if inspect.isawaitable(value) else value
