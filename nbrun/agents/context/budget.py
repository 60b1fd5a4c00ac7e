"""Budgets: what a run may use up, what it has used, and its end when that is too much."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, NamedTuple

from nbrun.core.cancellation import CancelCause
from nbrun.core.errors import Cancelled
from nbrun.core.quantities import counted, money

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.core.cancellation import CancelToken
    from nbrun.core.events import Usage
    from nbrun.core.options import RunOptions

_log = logging.getLogger("nbrun")

NO_PRICE = "max_cost cannot be held: the price of this model is not known"


class Used(NamedTuple):
    """What was used up: model calls, tokens, US dollars."""

    turns: int = 0
    tokens: int = 0
    cost: float = 0.0


class Budget:
    """What one run may use up, with its child runs, and what it has; fires its token when that is too much.

    Only limits travel to a host, which makes the budget there, on the token that it has.

    Threads: any method, from any thread. One lock for a whole tree of runs guards its numbers, for what a
    child uses counts above it too. Tokens are fired, and notices given, outside of it.

    Parameters
    ----------
    tell : takes the one notice that there may be, for the run's card.
    parent : the budget of the run that started this one.
    before : what the runs have used that this one goes on from; it counts.
    """

    __slots__ = (
        "_begun",
        "_has_told",
        "_is_free",
        "_is_shared",
        "_lock",
        "_own",
        "_parent",
        "_tell",
        "_token",
        "_total",
        "limits",
    )

    def __init__(
        self,
        limits: RunOptions,
        token: CancelToken,
        tell: Callable[[str], object] = lambda _notice: None,
        parent: Budget | None = None,
        before: Usage | None = None,
    ) -> None:
        self.limits = limits
        self._token = token
        self._tell = tell
        self._parent = parent
        self._lock: threading.RLock = parent._lock if parent is not None else threading.RLock()
        # Calls told of before they were made.
        self._begun = 0 if before is None else before.requests
        self._own = Used() if before is None else _used(before)
        self._total = self._own  # with what its children have used
        self._has_told = False
        self._is_shared = False  # whether child runs have used something
        self._is_free = parent is None and not limits.has_limits

    @property
    def used(self) -> Used:
        """What the run and its children have used up to now, where that is held against a limit."""
        return self._total

    def note_usage(self, usage: Usage) -> None:
        """Take the run's totals; what goes over a limit by them, of this run or one above it, is cancelled."""
        if self._is_free:  # by far the most
            return
        told = _used(usage)
        is_unpriced = usage.cost_usd is None and told.tokens > 0
        with self._lock:
            self._count(told)
            over = self._over(calls=0)
            untold = [node for node in self._line() if is_unpriced and node._is_untold()]
            for node in untold:
                node._has_told = True
        for node in untold:
            node._tell(NO_PRICE)
        for node, reason in over:
            node._fire(reason)

    def begin_turn(self) -> None:
        """Count a model call that is about to be made.

        A call that is told of here and reported as a request afterwards counts once.

        Raises
        ------
        Cancelled
            It must not be made: nothing is left for it, or the run was cancelled before.
        """
        self._token.raise_if_cancelled()
        with self._lock:
            over = [] if self._is_free else self._over(calls=1)
            if not over:
                self._begun += 1
                if not self._is_free:
                    self._count(Used(turns=self._begun))
        for node, reason in over:
            node._fire(reason)
        if over:
            raise Cancelled(over[0][1])

    @property
    def excess(self) -> str | None:
        """What is used up, in words, where that is more than there was; None while there is something left."""
        with self._lock:
            return self._excess(calls=0)

    @property
    def begun(self) -> int:
        """How many calls `begin_turn()` has let through."""
        return self._begun

    # --- the numbers; the caller holds the lock --------------------------------------------------

    def _line(self) -> list[Budget]:
        """Return this budget and those above it."""
        return [self] if self._parent is None else [self, *self._parent._line()]

    def _count(self, told: Used) -> None:
        """Add what is new in these totals, here and above; totals never fall."""
        before = self._own
        self._own = now = Used(
            max(before.turns, told.turns),
            max(before.tokens, told.tokens),
            max(before.cost, told.cost),
        )
        for node in self._line():
            node._is_shared = node._is_shared or node is not self
            total = node._total
            node._total = Used(
                total.turns + now.turns - before.turns,
                total.tokens + now.tokens - before.tokens,
                total.cost + now.cost - before.cost,
            )

    def _over(self, calls: int) -> list[tuple[Budget, str]]:
        """Return who, here or above, is over its limits once so many calls more are made, and what to say of it."""
        return [(node, reason) for node in self._line() if (reason := node._excess(calls))]

    def _excess(self, calls: int) -> str | None:
        limits, (turns, tokens, cost) = self.limits, self._total
        cost = round(cost, 9)  # a sum of cents is not to be over by the last bit of it
        words, due = None, ", another call was due" if calls else ""
        if limits.max_turns is not None and turns + calls > limits.max_turns:
            made = f"{counted(turns, 'model call')} made"
            words = f"max_turns {limits.max_turns:,}: {made}{', another was due' if calls else ''}"
        # A call uses at least one token, and some of a dollar.
        elif limits.max_tokens is not None and tokens + calls > limits.max_tokens:
            words = f"max_tokens {limits.max_tokens:,}: {tokens:,} used{due}"
        elif limits.max_cost is not None and (
            cost > limits.max_cost or (calls and cost == limits.max_cost)
        ):
            words = f"max_cost {money(limits.max_cost)}: {money(cost)} spent{due}"
        return words and f"{words}{', child runs included' if self._is_shared else ''}"

    def _is_untold(self) -> bool:
        return self.limits.max_cost is not None and not self._has_told

    # --- the end ---------------------------------------------------------------------------------

    def _fire(self, reason: str) -> None:
        """Fire the token; what somebody has hung on it cannot stop the run that happened to report."""
        try:
            self._token.cancel(reason, CancelCause.BUDGET, patience_s=0.0)
        except (Exception, Cancelled):
            _log.exception("a cancel callback failed")


def _used(usage: Usage) -> Used:
    tokens = usage.input_tokens + usage.output_tokens
    return Used(usage.requests, tokens, usage.cost_usd or 0.0)
