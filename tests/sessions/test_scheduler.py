"""The line: at most so many at once, one at a time of each cell, in the order they came."""

from __future__ import annotations

import random

import pytest

from nbrun import CancelToken
from nbrun.sessions.live_run import LiveRun
from nbrun.sessions.scheduler import RunQueue


def run(name: str, key: str | None = None) -> LiveRun:
    """Return a run to stand in line."""
    return LiveRun(name, CancelToken(), key=key)


def test_as_many_go_as_the_limit_allows() -> None:
    """The next waits, and goes when one has left."""
    line, (a, b, c) = RunQueue(2), (run("a"), run("b"), run("c"))
    assert [line.join(live) for live in (a, b, c)] == [True, True, False]
    assert line.position(c) == 0
    assert line.position(a) is None
    assert line.leave(a) == [c]
    assert line.leave(c) == []


def test_of_one_key_only_one_goes_at_a_time() -> None:
    """The second of a cell waits for the first, and another cell passes it by."""
    line = RunQueue(8)
    first, second, other = run("1", "cell"), run("2", "cell"), run("3", "other")
    assert line.join(first)
    assert not line.join(second)
    assert line.join(other)
    assert line.leave(other) == []
    assert line.leave(first) == [second]


def test_the_order_within_a_key_is_kept() -> None:
    """A third of a cell does not overtake the second, however many places are free."""
    line = RunQueue(8)
    first, second, third = (run(str(number), "cell") for number in range(3))
    for live in (first, second, third):
        line.join(live)
    assert [line.position(live) for live in (second, third)] == [0, 1]
    assert line.leave(first) == [second]
    assert line.leave(second) == [third]


def test_a_newcomer_does_not_overtake_one_of_its_key_that_waits_for_a_place() -> None:
    """When the place comes free, the one that waited longer has it."""
    line, holder = RunQueue(1), run("holder")
    line.join(holder)
    second, third = run("2", "cell"), run("3", "cell")
    line.join(second)
    line.join(third)
    assert line.leave(holder) == [second]
    assert not line.join(run("4", "cell"))


def test_a_cancelled_run_is_let_past_once() -> None:
    """It leaves the line without taking a place, and only if it was waiting."""
    line, holder, waiting = RunQueue(1), run("a"), run("b")
    line.join(holder)
    line.join(waiting)
    assert line.pass_by(waiting)
    assert not line.pass_by(waiting)
    assert not line.pass_by(holder)
    assert line.leave(waiting) == []
    assert line.join(run("c")) is False


def test_leaving_twice_frees_one_place() -> None:
    """Whoever has left cannot free somebody else's place."""
    line, (a, b, c) = RunQueue(1), (run("a"), run("b"), run("c"))
    for live in (a, b, c):
        line.join(live)
    assert line.leave(a) == [b]
    assert line.leave(a) == []


class PlainQueue:
    """The same rules, as they are told: whoever came first and may go, goes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.under_way: list[LiveRun] = []
        self.waiting: list[LiveRun] = []

    def let_in(self) -> list[LiveRun]:
        """Return those that may be entered, one after the other."""
        going: list[LiveRun] = []
        while (following := self.next()) is not None:
            self.waiting.remove(following)
            self.under_way.append(following)
            going.append(following)
        return going

    def next(self) -> LiveRun | None:
        """Return the first that may go."""
        if len(self.under_way) >= self.limit:
            return None
        for at, live in enumerate(self.waiting):
            ahead = {other.key for other in (*self.under_way, *self.waiting[:at])}
            if live.key is None or live.key not in ahead:
                return live
        return None

    def predecessor(self, live: LiveRun) -> LiveRun | None:
        """Return the last of its key before a run that waits."""
        if live.key is None or live not in self.waiting:
            return None
        ahead = [*self.under_way, *self.waiting[: self.waiting.index(live)]]
        return next((other for other in reversed(ahead) if other.key == live.key), None)


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_calls_follows_the_rules(seed: int) -> None:
    """Joins, ends, cancels and new limits by chance: the same runs go, in the same order, as by the plain rules."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    limit = chance.randint(1, 4)
    queue, plain = RunQueue(limit), PlainQueue(limit)
    runs: list[LiveRun] = []
    for number in range(300):
        known = chance.choice(runs) if runs else run("none")
        match chance.randrange(5):
            case 0 | 1:
                live = run(str(number), chance.choice([None, None, "", "a", "b"]))
                runs.append(live)
                plain.waiting.append(live)
                went = queue.join(live)
                assert plain.let_in() == ([live] if went else [])
            case 2:
                gone = chance.choice(plain.under_way) if plain.under_way else known
                plain.under_way = [live for live in plain.under_way if live is not gone]
                plain.waiting = [live for live in plain.waiting if live is not gone]
                assert queue.leave(gone) == plain.let_in()
            case 3:
                was_waiting = known in plain.waiting
                if was_waiting:
                    plain.waiting.remove(known)
                assert queue.pass_by(known) == was_waiting
                assert queue.leave(known if was_waiting else run("none")) == plain.let_in()
            case 4:
                plain.limit = chance.randint(1, 4)
                assert queue.allow(plain.limit) == plain.let_in()
        assert queue.load == (len(plain.waiting), len(plain.under_way), plain.limit)
        assert [queue.position(live) for live in plain.waiting] == [*range(len(plain.waiting))]
        assert [queue.predecessor(live) for live in runs] == [plain.predecessor(live) for live in runs]
