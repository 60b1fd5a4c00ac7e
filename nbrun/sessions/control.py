"""Cancels, answers and messages to live runs: checked here, so that mistakes are reported, and sent to their hosts."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

from nbrun.agents import ALLOW
from nbrun.agents.context import approvals, inbox
from nbrun.core import (
    REPR_KEY,
    ApprovalRequested,
    BadOption,
    CancelCause,
    CancelOutcome,
    NotPending,
    Plain,
    RunRecord,
    RunStatus,
    SecretRegistry,
    clean_text,
    counted,
    events as ev,
    need_stack,
    plain,
    shown,
)
from nbrun.render.words import opening, title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.sessions.intake import Intake
    from nbrun.sessions.live_run import LiveRun
    from nbrun.sessions.scheduler import Scheduler


_log = logging.getLogger("nbrun")

HOOKS_S = 0.1
"""How long an agent's cancel callbacks may hold up whoever cancels its run: a click, a cell, a close."""

_BY = {CancelCause.DEADLINE: "its time limit", CancelCause.BUDGET: "its budget", CancelCause.PARENT: "its parent"}
"""Who asked, where a token was fired that nobody called `cancel()` for."""


class Control:
    """Cancels, answers and messages, on their way to live runs.

    A cancel is recorded first, then fires the run's token: were it the other way round, an agent that sees its token
    could end the run before the log knows why. Whether an answer counts is decided by the run's host; a second one
    is already refused here, since the outcome of the first may not be public yet.

    Threads: any method, from any thread. `_lock` guards `_answered` and `_sent`, which are kept per live run.
    """

    def __init__(self, intake: Intake, scheduler: Scheduler, keyring: SecretRegistry) -> None:
        self._intake = intake
        self._scheduler = scheduler
        self._keyring = keyring
        self._lock = threading.RLock()
        self._answered: dict[str, set[str]] = {}
        self._sent: dict[str, int] = {}

    def cancel(self, live: LiveRun, reason: str | None, cause: CancelCause, by: str) -> CancelOutcome:
        """Ask a run of this session to stop."""
        need_stack()
        request = ev.CancelRequested(cause, None if reason is None else clean_text(reason), by)
        outcome = self._intake.request_cancel(live, request)
        if outcome is not CancelOutcome.ALREADY_FINISHED:
            # Also if it was requested before: that call may have been interrupted before this line.
            live.token.cancel(request.reason, request.cause, patience_s=HOOKS_S)
        return outcome

    def cancel_together(self, lives: Sequence[LiveRun], cause: CancelCause, by: str) -> None:
        """Ask all of these to stop; all the requests first, so that they are on disk in any event."""
        request = ev.CancelRequested(cause, None, by)
        for live in lives:
            self._intake.request_cancel(live, request)
        for live in lives:
            live.token.cancel(cause=cause, patience_s=0.0)

    def note_fired(self, live: LiveRun, _request: object) -> None:
        """Log the cancel if something else fired the token: a deadline, the agent, a parent."""
        token = live.token
        if live.cancel is None:  # else it is logged already
            cause = token.cause or CancelCause.USER
            if live.is_child and token.is_inherited:
                cause = CancelCause.PARENT
            request = ev.CancelRequested(cause, token.reason, _BY.get(cause, "its token"))
            self._intake.request_cancel(live, request)
        self._scheduler.let_pass(live)

    def answer(
        self,
        live: LiveRun,
        call: str | None,
        decision: str,
        *,
        args: object = None,
        text: str | None = None,
        always: bool = False,
        by: str,
    ) -> ApprovalRequested:
        """Send the answer to a pending question and return that question.

        Parameters
        ----------
        call : the question's id; None where exactly one question is pending.
        decision : `allow`, `deny`, or one of the question's options.
        always : allow the tool that it is about for the rest of the run; of this run alone, no child's.

        Raise `NotPending` or `BadOption` if it isn't pending or doesn't take this decision; nothing was sent then.
        """
        _check_live(live)
        edited = None if args is None else plain(args)
        body: dict[str, object] = {"args": edited, "by": by, "always": always}
        body["text"] = clean_text(str(text or ""))
        with self._lock:
            answered = self._answered.setdefault(live.run_id, set())
            asked = _find(live.record, call, answered)
            if decision not in approvals.choices(asked):
                words = ", ".join(approvals.choices(asked)[:-1])
                raise BadOption(f"'{shown(asked.message, 80)}' needs a choice: {words}")
            if always and (decision != ALLOW or not asked.tool):
                raise BadOption(f"'{shown(asked.message, 80)}' can't be allowed for the whole run; leave out always")
            if edited is not None:
                check_edited(asked, edited)
                body["seen"] = asked.args
            answered.add(asked.id)
            choice = approvals.choices(asked).index(decision)  # its words may hold a secret, and are hidden here
        if asked.input == approvals.SECRET:
            with contextlib.suppress(BadOption):  # so short that it would be found in ordinary words
                self._keyring.add(str(body["text"]), "getpass")
        self._scheduler.control(live, "answer", {**body, "id": asked.id, "choice": choice})
        return asked

    def steer(self, live: LiveRun, text: str, *, by: str, id: str | None = None) -> str:
        """Send a message into the running agent; return the id by which its record reports the outcome.

        Raise `NotPending` or `BadOption` if the run takes no messages, or not this one; nothing was sent then.
        """
        if not isinstance(text, str) or not text.strip():
            raise BadOption("The message is empty; give the agent some text")
        text = clean_text(text)
        if (size := len(text.encode())) > inbox.MAX_BYTES:
            raise BadOption(
                f"The message has {size:,} bytes, but only {inbox.MAX_BYTES:,} are allowed; send a file path instead"
            )
        _check_live(live)
        record = live.record
        if record.status is RunStatus.QUEUED:
            raise NotPending(f"{opening(record)} hasn't started yet; send the message when it runs")
        if record.status is RunStatus.CANCELLING:
            raise NotPending(f"{opening(record)} is being cancelled and takes no messages")
        with self._lock:
            sent = self._sent.get(live.run_id, 0)
            if sent - record.steers_taken >= inbox.MAX_WAITING:
                raise NotPending(
                    f"{inbox.MAX_WAITING} messages to {title(record)} are still unread; send more when it has read them"
                )
            self._sent[live.run_id] = sent + 1
        steer_id = id or f"say-{sent + 1}"
        self._scheduler.control(live, "steer", {"text": text, "by": by, "id": steer_id})
        return steer_id

    def forget(self, live: LiveRun) -> None:
        """Keep nothing of a run that has ended."""
        if self._answered or self._sent:  # most runs ask nothing
            with self._lock:
                self._answered.pop(live.run_id, None)
                sent = self._sent.pop(live.run_id, 0)
            if (lost := sent - live.record.steers) > 0:  # on their way to its host when it ended there
                _log.warning("%s ended before %s to its agent arrived", opening(live.record), counted(lost, "message"))


_KINDS: dict[type, str] = {
    dict: 'an object, such as {"path": "x"}',
    list: 'a list, such as ["x"]',
    str: 'a text, such as "x"',
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def check_edited(asked: ApprovalRequested, edited: Plain) -> None:
    """Raise `BadOption` for arguments that can't replace those that were asked about."""
    what = f"The arguments of '{shown(asked.message, 80)}'"
    if not asked.editable:
        raise BadOption(f"{what} can't be changed; allow them as they are, or deny")
    if asked.args is None or (isinstance(asked.args, dict) and REPR_KEY in asked.args):
        return  # there were none, or they could only be stored as text
    if (kind := _KINDS[type(asked.args)]) != _KINDS[type(edited)]:
        raise BadOption(f"{what} must stay {kind}")


def _check_live(live: LiveRun) -> None:
    if live.has_end or not live.record.is_live:
        raise NotPending(f"{opening(live.record)} has already ended.")


def _find(record: RunRecord, call: str | None, answered: set[str]) -> ApprovalRequested:
    """Return the pending question that `call` names, or the only one."""
    pending = [asked for asked in record.pending if asked.id not in answered]
    run = opening(record)
    if call is None and len(pending) == 1:
        return pending[0]
    listed = ", ".join(f"{asked.id} (“{shown(asked.message, 60)}”)" for asked in pending)
    if call is None:
        raise NotPending(
            f"{run} asks {len(pending)} questions; name one: {listed}"
            if pending
            else f"{run} isn't waiting for an answer."
        )
    for asked in pending:
        if call == asked.id:
            return asked
    if call in answered:
        raise NotPending(f"{call} of {title(record)} has already been answered; the first answer counts")
    raise NotPending(f"{run} doesn't ask '{shown(call, 60)}'; it asks: {listed or 'nothing'}")
