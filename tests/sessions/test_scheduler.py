"""The line: at most so many at once, one at a time of each cell, in the order they came."""

from __future__ import annotations

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
