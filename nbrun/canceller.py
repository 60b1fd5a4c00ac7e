"""The one place where runs are asked to stop, whichever door the wish came through."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

from nbrun import events as ev
from nbrun.cancellation import CancelCause, CancelOutcome, CancelReceipt
from nbrun.encoding import clean_text, printable
from nbrun.errors import Cancelled
from nbrun.wording import status_words, title

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbrun.intake import Intake
    from nbrun.live_run import LiveRun
    from nbrun.run import Run

_log = logging.getLogger("nbrun")

HOOKS_S = 0.1
"""How long what an agent has hung on its token may hold up who cancels its run: a click, a cell, a close."""

_WORDS = {
    CancelOutcome.REQUESTED: "cancel requested",
    CancelOutcome.ALREADY_REQUESTED: "was asked to stop already",
    CancelOutcome.FOREIGN: "belongs to another kernel; cancel it there, or if that is gone: %agentrun lost",
}

_BY = {
    CancelCause.DEADLINE: "its time limit",
    CancelCause.BUDGET: "its budget",
    CancelCause.PARENT: "its parent",
}
"""Who asked, where a token was fired that nobody called `cancel()` for."""


class Canceller:
    """Records a request, then fires the run's token.

    In this order: were it the other way round, an agent that sees its token could end the run before the log
    knows why.

    Threads: any method, from any thread.

    Parameters
    ----------
    let_pass : lets a cancelled run that waits in line go to its end.
    """

    def __init__(self, intake: Intake, let_pass: Callable[[LiveRun], object]) -> None:
        self._intake = intake
        self._let_pass = let_pass
        self._on_fired = self._token_fired  # one object for all runs

    def watch(self, live: LiveRun) -> None:
        """See to it that whoever fires the token (a deadline, the agent, a parent), it stands in the log."""
        live.token.add_first(functools.partial(self._on_fired, live))

    def cancel_run(
        self, run: Run, reason: str | None, cause: CancelCause, by: str
    ) -> CancelReceipt:
        """Ask one run to stop, if it is live and ours, and say what came of it."""
        live = run._live
        if live is not None:
            outcome = self.cancel(live, reason, cause, by)
        else:
            outcome = CancelOutcome.ALREADY_FINISHED if run.done() else CancelOutcome.FOREIGN
        record = run.glance
        if outcome is CancelOutcome.ALREADY_FINISHED:
            words = f"has ended already ({status_words(record)})"
        else:
            words = _WORDS[outcome]
        return CancelReceipt(outcome, run.id, printable(f"{title(record)}: {words}"), run)

    def cancel(
        self, live: LiveRun, reason: str | None, cause: CancelCause, by: str
    ) -> CancelOutcome:
        """Ask a run of this session to stop."""
        request = ev.CancelRequested(cause, None if reason is None else clean_text(reason), by)
        outcome = self._intake.request_cancel(live, request)
        if outcome is not CancelOutcome.ALREADY_FINISHED:
            # Also when it was requested before: whoever did may have been interrupted before this line.
            self._fire(live, request)
        return outcome

    def cancel_together(self, lives: Sequence[LiveRun], cause: CancelCause, by: str) -> None:
        """Ask all of these to stop; all the requests first, so that they are on disk whatever comes."""
        request = ev.CancelRequested(cause, None, by)
        for live in lives:
            self._intake.request_cancel(live, request)
        for live in lives:
            self._fire(live, request, patience_s=0.0)

    def _fire(
        self, live: LiveRun, request: ev.CancelRequested, patience_s: float = HOOKS_S
    ) -> None:
        """Fire the token of a run; what its agent has hung on it cannot stop whoever cancels."""
        try:
            live.token.cancel(request.reason, request.cause, patience_s=patience_s)
        except (Exception, Cancelled):
            _log.exception("a cancel callback of %s failed", live.run_id)

    def _token_fired(self, live: LiveRun, _request: object) -> None:
        token = live.token
        if live.cancel is None:  # else it was fired by way of the log
            cause = token.cause or CancelCause.USER
            if live.is_child and token.is_inherited:
                cause = CancelCause.PARENT
            request = ev.CancelRequested(cause, token.reason, _BY.get(cause, "its token"))
            self._intake.request_cancel(live, request)
        self._let_pass(live)
