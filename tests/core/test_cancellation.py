"""Cancel tokens: a tree that fires once, from any thread, and tells everybody."""

from __future__ import annotations

import asyncio
import threading

import pytest

from nbrun import CancelCause, CancelReceipt, CancelToken
from nbrun.core.cancellation import CancelOutcome, CancelRequest
from nbrun.core.errors import Cancelled
from tests.fakes.agents import BOUND_S


def test_a_new_token_is_quiet() -> None:
    """A token that nobody fired has no cause and no reason, and lets code pass."""
    token = CancelToken()
    token.raise_if_cancelled()
    assert (token.cancelled, token.cause, token.reason, token.deadline) == (False, None, None, None)


def test_the_first_request_is_kept() -> None:
    """Only the call that fired the token answers True, and only its words are kept."""
    token = CancelToken()
    assert token.cancel("enough", CancelCause.BUDGET)
    assert not token.cancel("again", CancelCause.USER)
    assert (token.cancelled, token.reason, token.cause) == (True, "enough", CancelCause.BUDGET)


def test_raise_if_cancelled_raises_what_except_exception_lets_by() -> None:
    """`Cancelled` is no `Exception`, and says the reason."""
    token = CancelToken()
    token.cancel("enough")
    with pytest.raises(Cancelled, match="enough"):
        token.raise_if_cancelled()
    assert not issubclass(Cancelled, Exception)


def test_firing_goes_down_and_not_up() -> None:
    """All tokens below fire with the same words; those above and beside stay quiet."""
    root = CancelToken()
    run, neighbour = root.child(), root.child()
    tool = run.child().child()
    run.cancel("enough", CancelCause.DEADLINE)
    assert (tool.cancelled, tool.reason, tool.cause) == (True, "enough", CancelCause.DEADLINE)
    assert not root.cancelled
    assert not neighbour.cancelled


def test_a_child_of_a_fired_token_is_born_fired() -> None:
    """Whoever comes late is told all the same."""
    token = CancelToken()
    token.cancel("enough")
    assert token.child().child().reason == "enough"


def test_a_child_that_fired_first_keeps_its_own_words() -> None:
    """The parent's request does not overwrite the child's, nor call its callbacks a second time."""
    heard: list[CancelRequest] = []
    root = CancelToken()
    child = root.child()
    child.add_callback(heard.append)
    child.cancel("mine")
    root.cancel("everybody")
    assert child.reason == "mine"
    assert [request.reason for request in heard] == ["mine"]


def test_callbacks_are_called_once_with_the_whole_tree_marked() -> None:
    """When a callback runs, every token below has fired already."""
    root = CancelToken()
    child = root.child()
    seen: list[bool] = []
    root.add_callback(lambda _request: seen.append(child.cancelled))
    root.cancel()
    root.cancel()
    assert seen == [True]


def test_a_callback_on_a_fired_token_is_called_at_once() -> None:
    """Asking late is as good as asking early."""
    token = CancelToken()
    heard: list[str | None] = []
    token.cancel("enough")
    token.add_callback(lambda request: heard.append(request.reason))
    assert heard == ["enough"]


def test_a_removed_callback_is_not_called() -> None:
    """A handle takes its callback off, once or more often."""
    token = CancelToken()
    heard: list[CancelRequest] = []
    handle = token.add_callback(heard.append)
    handle.remove()
    handle.remove()
    token.cancel()
    assert heard == []


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(1), Cancelled("broken"), asyncio.CancelledError()])
@pytest.mark.parametrize("patience_s", [None, BOUND_S])
def test_a_failing_callback_stops_nobody(
    error: BaseException, patience_s: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are called, the token has fired, and its error is logged with its name; `cancel()` raises nothing."""
    token = CancelToken()
    heard: list[CancelRequest] = []

    def fails(request: CancelRequest) -> None:
        raise error

    token.add_callback(fails)
    token.add_callback(heard.append)
    assert token.cancel(patience_s=patience_s)
    assert len(heard) == 1
    assert token.cancelled
    token.add_callback(fails)  # called at once
    assert [record.exc_info and record.exc_info[1] for record in caplog.records] == [error, error]
    assert all("fails" in record.getMessage() for record in caplog.records)


def test_an_interrupt_in_a_callback_is_the_user_s(caplog: pytest.LogCaptureFixture) -> None:
    """Ctrl+C on the main thread is raised when all the others have been called."""
    token = CancelToken()
    heard: list[CancelRequest] = []

    def is_interrupted(request: CancelRequest) -> None:
        raise KeyboardInterrupt

    token.add_callback(is_interrupted)
    token.add_callback(heard.append)
    with pytest.raises(KeyboardInterrupt):
        token.cancel()
    assert len(heard) == 1
    assert not caplog.records


def test_one_of_many_racing_calls_wins() -> None:
    """Of 32 threads that fire at once, exactly one is told that it was the first."""
    token, barrier = CancelToken(), threading.Barrier(32)
    answers: list[bool] = []

    def fire() -> None:
        barrier.wait(BOUND_S)
        answers.append(token.cancel())

    threads = [threading.Thread(target=fire) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert sorted(answers) == [False] * 31 + [True]


def test_no_child_is_missed_while_the_tree_grows() -> None:
    """Children made while another thread fires are all fired: marked in the tree, or born so."""
    root, children = CancelToken(), []
    begun = threading.Event()

    def grow() -> None:
        for _ in range(2_000):
            children.append(root.child())
            begun.set()

    grower = threading.Thread(target=grow)
    grower.start()
    assert begun.wait(BOUND_S)
    root.cancel()
    grower.join(BOUND_S)
    assert len(children) == 2_000
    assert all(child.cancelled for child in children)


def test_wait_sync_wakes_when_the_token_fires() -> None:
    """A thread that waits is woken by another that fires; without that it answers False in time."""
    token = CancelToken()
    assert not token.wait_sync(0.0)
    answers: list[bool] = []
    waiter = threading.Thread(target=lambda: answers.append(token.wait_sync(BOUND_S)))
    waiter.start()
    token.cancel()
    waiter.join(BOUND_S)
    assert answers == [True]


def test_wait_returns_on_every_loop() -> None:
    """Two event loops in two threads wait for one token, and both go on."""
    token, waiting = CancelToken(), threading.Barrier(3)
    done: list[bool] = []

    async def wait() -> None:
        task = asyncio.create_task(token.wait())
        await asyncio.sleep(0)
        waiting.wait(BOUND_S)
        await asyncio.wait_for(task, BOUND_S)
        done.append(True)

    threads = [threading.Thread(target=lambda: asyncio.run(wait())) for _ in range(2)]
    for thread in threads:
        thread.start()
    waiting.wait(BOUND_S)
    token.cancel()
    for thread in threads:
        thread.join(BOUND_S)
    assert done == [True, True]


def test_a_wait_that_is_given_up_leaves_no_callback() -> None:
    """Cancelling the waiter takes its callback off, so that a long session does not collect them."""

    async def give_up() -> CancelToken:
        token = CancelToken()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(token.wait(), 0.001)
        return token

    assert asyncio.run(give_up())._callbacks == ()


def test_firing_after_the_waiters_loop_has_closed_is_no_error() -> None:
    """Who waited on a loop that is gone does not wait any more."""
    token = CancelToken()
    loop = asyncio.new_event_loop()
    task = loop.create_task(token.wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.call_soon(loop.stop)
    loop.run_forever()
    callbacks = list(token._callbacks)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
    for callback in callbacks:
        token.add_callback(callback)
    assert token.cancel()


def test_the_earliest_deadline_above_counts() -> None:
    """A token's deadline is the earliest on the way to its root."""
    root = CancelToken(deadline=200.0)
    assert root.child().deadline == 200.0
    assert root.child(deadline=100.0).deadline == 100.0
    late = root.child(deadline=300.0)
    assert late.deadline == 200.0
    late.set_deadline(50.0)
    assert late.deadline == 50.0


def test_a_released_token_is_no_longer_held_by_its_parent() -> None:
    """A run that has ended leaves the session's tree, and is not fired with it."""
    root = CancelToken()
    child = root.child()
    child.release()
    root.cancel()
    assert not child.cancelled
    assert not root._children


@pytest.mark.parametrize(
    ("outcome", "stands"),
    [
        (CancelOutcome.REQUESTED, True),
        (CancelOutcome.ALREADY_REQUESTED, True),
        (CancelOutcome.ALREADY_FINISHED, False),
        (CancelOutcome.NOT_FOUND, False),
        (CancelOutcome.FOREIGN, False),
    ],
)
def test_a_receipt_is_true_while_a_request_stands(outcome: CancelOutcome, *, stands: bool) -> None:
    """Each outcome has a name of its own, and those without a request are false."""
    receipt = CancelReceipt(outcome)
    assert bool(receipt) is stands
    assert str(receipt) == outcome.value


def test_a_receipt_of_no_run_has_settled() -> None:
    """Where there is nothing to wait for, waiting is over at once."""
    receipt = CancelReceipt(CancelOutcome.NOT_FOUND, message="no run 'x' here")
    assert receipt.wait(0.0)
    asyncio.run(receipt.settled())
    assert str(receipt) == "no run 'x' here"


def test_a_callback_that_hangs_holds_nobody_up_for_long() -> None:
    """Who cancels with patience goes on; nbrun's own callbacks were called before, the others in the end."""
    token, gate, called = CancelToken(), threading.Event(), threading.Event()
    order: list[str] = []

    def hangs(_request: object) -> None:
        assert gate.wait(10)
        order.append("hung")

    def last(_request: object) -> None:
        order.append("last")
        called.set()

    token.add_callback(hangs)
    token.add_callback(last)
    token.add_first(lambda _request: order.append("ours"))
    assert token.cancel("why", patience_s=0.0)
    assert order == ["ours"]
    gate.set()
    assert called.wait(10)
    assert order == ["ours", "hung", "last"]


def test_a_deadline_is_found_at_any_depth() -> None:
    """Runs may be nested more deeply than Python's stack allows; a cancel goes all the way down, too."""
    root = CancelToken(deadline=5.0)
    token = root
    for _ in range(5_000):
        token = token.child(deadline=9.0)
    assert token.deadline == 5.0
    root.cancel("enough")
    assert (token.cancelled, token.reason) == (True, "enough")


class Prickly:
    """A callback whose code is not to be run."""

    def __call__(self, _request: object) -> None:
        """Fail."""
        raise ValueError("called")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared under the lock of all tokens")

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)

    __hash__ = None  # type: ignore[assignment]


def test_callbacks_are_known_by_identity() -> None:
    """Removing one compares none, and one that cannot even be named doesn't keep the next from being called."""
    token = CancelToken()
    called: list[object] = []
    handle = token.add_callback(Prickly())
    token.add_callback(Prickly())
    token.add_callback(called.append)
    handle.remove()
    token.cancel()
    assert len(called) == 1
