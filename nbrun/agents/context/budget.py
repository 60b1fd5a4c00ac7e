"""Budgets: what a run may use, what it has used, and its cancel when that is too much."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from nbrun.core import CancelCause, Cancelled, CancelToken, RunOptions, counted, money
from nbrun.core.events import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.core.events import CallFinished

_log = logging.getLogger("nbrun")

NO_PRICE = "max_cost can't be enforced: the price of this model is unknown"


class Used(NamedTuple):
    """What was used: model calls, tokens, US dollars."""

    turns: int = 0
    tokens: int = 0
    cost: float = 0.0


class Budget:
    """What a run and its child runs may use and have used; cancels the run when that is too much.

    The usage `before`, of the runs that this one resumes, counts. `warn` takes the one warning that there may be,
    for the run's card. Only limits travel to a host in another process, which makes the budget there, with its
    own token.

    Threads: any method, from any thread. One lock for a whole tree of runs guards the numbers, because a child's
    usage counts for its `parent` too. Tokens are fired, and warnings given, outside of it.
    """

    __slots__ = (
        "_announced", "_calls", "_has_warned", "_is_shared", "_lock", "_own", "_parent", "_token", "_warn", "begun",
        "has_limits", "limits", "used",
    )  # fmt: skip

    def __init__(
        self,
        limits: RunOptions,
        token: CancelToken,
        warn: Callable[[str], object] = lambda _text: None,
        parent: Budget | None = None,
        before: Usage | None = None,
    ) -> None:
        self.limits = limits
        self._token = token
        self._warn = warn
        self._parent = parent
        self._lock: threading.RLock = parent._lock if parent is not None else threading.RLock()
        # Model calls that were let through. Most are announced by the agent and then seen on their way, so the larger
        # number counts.
        self.begun = 0 if before is None else before.requests
        self._announced = self._calls = self.begun
        self._own = Used() if before is None else _used(before)
        self.used = self._own  # with the children's; counted only if there is a limit here or above
        self._has_warned = False
        self._is_shared = False  # whether child runs have used something
        self.has_limits = parent is not None or limits.has_limits  # here, or perhaps above

    def note_usage(self, usage: Usage) -> None:
        """Take the run's totals; cancel the runs, this one or above it, that are over a limit now."""
        if not self.has_limits:  # most runs
            return
        totals = _used(usage)
        is_unpriced = usage.cost_usd is None and totals.tokens > 0
        with self._lock:
            self._count(totals)
            over = self._over(calls=0)
            unwarned = [node for node in self._chain() if is_unpriced and node._needs_price()]
            for node in unwarned:
                node._has_warned = True
        for node in unwarned:
            node._warn(NO_PRICE)
        for node, reason in over:
            node._fire(reason)

    def begin_turn(self) -> None:
        """Count a model call that is about to be made; the request reported afterwards isn't counted again.

        Raises `Cancelled` if it must not be made: the budget is used up, or the run was cancelled.
        """
        self._begin(announced=1)

    def begin_call(self) -> None:
        """Count a request to a model that is about to be sent, unless it was announced; raises as `begin_turn()`."""
        self._begin(calls=1)

    def drop_call(self) -> None:
        """Take back a request that was refused: the next one is the same call, tried again."""
        with self._lock:
            self._calls -= 1

    def _begin(self, announced: int = 0, calls: int = 0) -> None:
        self._token.raise_if_cancelled()
        with self._lock:
            is_new = max(self._announced + announced, self._calls + calls) > self.begun
            over = self._over(calls=1) if is_new and self.has_limits else []
            if not over:
                self._announced += announced
                self._calls += calls
                self.begun += is_new
                if is_new and self.has_limits:
                    self._count(Used(turns=self.begun))
        for node, reason in over:
            node._fire(reason)
        if over:
            raise Cancelled(over[0][1])

    @property
    def excess(self) -> str | None:
        """Which limit is exceeded, in words; None if none is."""
        with self._lock:
            return self._excess(calls=0)

    # --- the numbers; the caller holds the lock --------------------------------------------------

    def _chain(self) -> list[Budget]:
        """Return this budget and those above it."""
        chain = [self]
        while (above := chain[-1]._parent) is not None:  # no recursion: runs may be nested deeply
            chain.append(above)
        return chain

    def _count(self, totals: Used) -> None:
        """Add what is new in these totals, here and above; totals never fall."""
        before = self._own
        self._own = Used(*map(max, before, totals))  # type: ignore[arg-type]  # field by field
        added = [now - then for now, then in zip(self._own, before, strict=True)]
        for node in self._chain():
            node._is_shared = node._is_shared or node is not self
            node.used = Used(*map(sum, zip(node.used, added, strict=True)))  # type: ignore[arg-type]

    def _over(self, calls: int) -> list[tuple[Budget, str]]:
        """Return which runs, here and above, exceed a limit with so many more calls, and which limit."""
        return [(node, reason) for node in self._chain() if (reason := node._excess(calls))]

    def _needs_price(self) -> bool:
        return self.limits.max_cost is not None and not self._has_warned

    def _excess(self, calls: int) -> str | None:
        limits, (turns, tokens, cost) = self.limits, self.used
        cost = round(cost, 9)  # so that rounding errors of a sum do not exceed the limit
        words, due = None, ", another call was due" if calls else ""
        if limits.max_turns is not None and turns + calls > limits.max_turns:
            made = f"{counted(turns, 'model call')} made"
            words = f"max_turns {limits.max_turns:,}: {made}{', another was due' if calls else ''}"
        # A call uses at least one token, and some of a dollar.
        elif limits.max_tokens is not None and tokens + calls > limits.max_tokens:
            words = f"max_tokens {limits.max_tokens:,}: {tokens:,} used{due}"
        elif limits.max_cost is not None and (cost > limits.max_cost or (calls and cost == limits.max_cost)):
            words = f"max_cost {money(limits.max_cost)}: {money(cost)} spent{due}"
        return words and f"{words}{', child runs included' if self._is_shared else ''}"

    def _fire(self, reason: str) -> None:
        """Fire the token; a callback that fails must not hurt the run that reported its usage."""
        try:
            self._token.cancel(reason, CancelCause.BUDGET, patience_s=0.0)
        except (Exception, Cancelled):
            _log.exception("a cancel callback failed")


def _used(usage: Usage) -> Used:
    tokens = usage.input_tokens + usage.output_tokens
    return Used(usage.requests, tokens, usage.cost_usd or 0.0)


class Calls:
    """A run's model calls, and what they have used. Threads: the caller holds the run's lock."""

    __slots__ = ("_begun", "_free", "_open", "answered", "is_unpriced", "used")

    def __init__(self) -> None:
        self.used = Usage()
        self.answered = Usage()
        """What the calls that were not paid for, since they were answered from a journal, had used once."""
        self.is_unpriced = False
        """Whether the price of some call is unknown."""
        self._begun = 0
        self._open: dict[str, Usage] = {}
        self._free: set[str] = set()

    def begin(self, *, is_free: bool) -> str:
        """Count a call and return its id."""
        self._begun += 1
        call_id = f"call-{self._begun}"
        self._open[call_id] = Usage(requests=1)
        if is_free:
            self._free.add(call_id)
        self._add(call_id, self._open[call_id])
        return call_id

    def _add(self, call_id: str, usage: Usage) -> None:
        if call_id in self._free:
            self.answered = self.answered.plus(usage)
        else:
            self.used = self.used.plus(usage)

    def note(self, call_id: str, usage: Usage) -> None:
        """Replace what a call has used; one that has ended takes no more: its body was closed while it was read."""
        before = self._open.get(call_id)
        if before is None:
            return
        self._add(call_id, usage.without(before))
        self._open[call_id] = usage

    def end(self, finished: CallFinished, *, is_refused: bool) -> None:
        """Take the end of a call."""
        usage = finished.usage
        if usage is not None and usage != self._open[finished.id]:
            self.note(finished.id, usage)
        is_free = finished.id in self._free
        self.is_unpriced = self.is_unpriced or (usage is not None and usage.cost_usd is None and not is_free)
        del self._open[finished.id]
        self._free.discard(finished.id)
        if is_refused:
            self.used = msgspec.structs.replace(self.used, requests=self.used.requests - 1)
