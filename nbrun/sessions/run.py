"""The handle of a run, which users hold, and the parts of a session behind all handles."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.agents import ALLOW, DENY, current_run
from nbrun.core import (
    Action,
    Artifact,
    ArtifactWriter,
    BadOption,
    CancelCause,
    CancelOutcome,
    CancelReceipt,
    CancelToken,
    Clock,
    Entry,
    Fix,
    Journals,
    ModelCall,
    NbrunError,
    NoResult,
    NotPending,
    Plain,
    RunCancelled,
    RunFailed,
    RunLost,
    RunNotFinished,
    RunNotFound,
    RunRecord,
    RunStatus,
    SecretRegistry,
    SessionClosed,
    events as ev,
    fold,
    has_placeholder,
    model_calls,
    printable,
    recording,
    revived,
    shown,
)
from nbrun.core.commands import CASSETTE
from nbrun.core.journal import CALL
from nbrun.render.results import load_object, view_of
from nbrun.render.words import opening, queued_words, run_ref, status_words, title
from nbrun.sessions.live_run import NOTHING, LiveRun, each_event, poll, poll_softly
from nbrun.store import Query, ReadOnlyStore, SessionStore, is_in_file, restored, whole, whole_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator

    from nbrun.sessions.control import Control
    from nbrun.sessions.intake import Intake
    from nbrun.sessions.scheduler import Scheduler

_log = logging.getLogger("nbrun")

_OUTCOME_WORDS = {
    CancelOutcome.REQUESTED: ": cancel requested",
    CancelOutcome.ALREADY_REQUESTED: " was already asked to stop",
    CancelOutcome.FOREIGN: " belongs to another kernel; cancel it there",
}


CREATION_S = 2.0
"""How long who asks about a run that was just started waits for its creation to be saved."""


@dataclass(slots=True, kw_only=True)
class Parts:
    """What a session is made of. `lock` makes starts and the close follow one another."""

    session_id: str
    notebook: Path | None
    clock: Clock
    cancel_grace_s: float
    watch_calls: bool
    store: SessionStore
    keyring: SecretRegistry
    artifact_writer: ArtifactWriter
    journals: Journals
    intake: Intake
    scheduler: Scheduler
    control: Control
    display: Callable[[Any], object]  # shows the card of a run
    follow: Callable[..., Any]  # `NotebookSession.follow()`
    close: Callable[[], object]
    lend: Callable[[], object] | None = None  # runs what agents wait to have done on the main thread, if it only waits
    token: CancelToken = field(default_factory=CancelToken)
    lock: threading.RLock = field(default_factory=threading.RLock)
    is_begun: bool = False  # whether its threads run
    is_closed: bool = False
    why_closed: str = "this session is closed; run %reload_ext nbrun"
    is_inherited: bool = False  # whether this process was forked from the one that the session belongs to

    def refuse_child(self) -> None:
        """Raise `SessionClosed` in a child process: what would be waited for or changed is its parent's."""
        if self.is_inherited:
            raise SessionClosed(self.why_closed)

    def await_creation(self, live: LiveRun) -> None:
        """Block until a run's creation is public, for a moment at most; not where nothing could happen meanwhile."""
        if live.is_created.is_set() or self.is_inherited or self.intake.is_publishing or self.scheduler.is_on_loop:
            return
        live.is_created.wait(CREATION_S)


class Run:
    """One tracked execution of an agent on a prompt.

    A run of this session is followed live; one of an earlier session, or of another kernel on the same
    notebook, is read from the store.

    Threads: any method, from any thread; `await run` and `async for` from any event loop.
    """

    def __init__(
        self, parts: Parts, record: RunRecord, live: LiveRun | None = None, store: SessionStore | None = None
    ) -> None:
        self._parts = parts
        self._stored = NOTHING if live is not None else record  # as read from the store, if that was needed
        # For nbrun itself: the live side, if this kernel runs it or has done so, and the store that it is read from.
        self.live = live
        self.store = parts.store if store is None else store

    # --- what its record says --------------------------------------------------------------------

    @property
    def record(self) -> RunRecord:
        """The state of the run: the fold of its committed events."""
        in_memory = self._in_memory
        if in_memory is not None and not in_memory.is_brief:
            return in_memory
        known = self._stored
        if in_memory is not None and not known.run_id:  # memory keeps it no longer
            known = in_memory
        if known.is_brief or known.is_live:
            assert known.number is not None  # noqa: S101 - a stored run has its number
            found = self.store.record(known.number)
            if not found.run_id:  # the store is closed, or the run was removed: what is known stays
                return known
            self._stored = known = found
        return known

    @property
    def whole_record(self) -> RunRecord:
        """The record with all of its text and tools, read from the store if memory keeps only a part of them."""
        record = self.record
        if not record.text_cut and not record.tools_cut:
            return record
        from nbrun.render import export

        try:
            whole = fold(export.paged(self.events))
        except ValueError:  # the log is damaged
            return record
        if len(whole.text) < record.text_cut + len(record.text):  # the store is closed: what is known stays
            return record
        output = whole.output if record.output is None else record.output
        parts = {"text": whole.text, "text_cut": 0, "text_head": "", "output": output}
        return msgspec.structs.replace(record, **parts, tools=whole.tools, tools_cut=0)

    @property
    def _in_memory(self) -> RunRecord | None:
        """What is public of a run of this kernel, None of any other; of a new one, once its creation is on disk."""
        if self.live is None:
            return None
        self._parts.await_creation(self.live)
        return self.live.record

    @property
    def glance(self) -> RunRecord:
        """The record, perhaps brief: enough for everything that is short, and cheap to have."""
        in_memory = self._in_memory
        if in_memory is not None:
            return in_memory
        return self.record if self._stored.is_live else self._stored

    def fits(self, query: Query) -> bool:
        """Return whether it is one of the runs that are asked for."""
        record = self.glance
        if not query.fits(record):
            return False
        is_found = query.finds(record)
        return bool(query.finds(self.whole_record) if is_found is None else is_found)

    @property
    def number(self) -> int | None:
        """The run's short number in its store, or None while it is not saved."""
        return self.glance.number

    @property
    def name(self) -> str:
        """The run's name: the one that was given, or its agent's."""
        return self.glance.name

    @property
    def status(self) -> RunStatus:
        """The run's status."""
        return self.glance.status

    @property
    def cause(self) -> CancelCause | None:
        """Why the run was cancelled or failed, or is being cancelled."""
        return self.glance.cause

    @property
    def reason(self) -> str | None:
        """The reason that was given with the cancel."""
        return self.glance.reason

    @property
    def pending(self) -> tuple[ev.ApprovalRequested, ...]:
        """The questions of the run, oldest first: `approve()` or `deny()` them."""
        return self.record.pending

    @property
    def phase(self) -> str | None:
        """What the agent is doing, in its own words."""
        return self.glance.phase

    @property
    def text(self) -> str:
        """All that was streamed so far; where a part of it can't be read any more, a line says how much.

        Memory keeps the beginning and the end of a very long text, and a store in memory is gone when it is closed.
        """
        record = self.whole_record
        if not (lost := record.text_cut - len(record.text_head)):
            return record.text
        return f"{record.text_head}\n[… {lost:,} characters can't be read any more …]\n{record.text}"

    @property
    def error(self) -> ev.ErrorInfo | None:
        """What the agent raised."""
        return self.record.error

    @property
    def usage(self) -> ev.Usage:
        """Tokens and requests so far."""
        return self.glance.usage

    @property
    def created_at(self) -> float:
        """When the run was created, in epoch seconds (UTC)."""
        return self.glance.created_at

    @property
    def started_at(self) -> float | None:
        """When its agent was entered, in epoch seconds (UTC)."""
        return self.glance.started_at

    @property
    def ended_at(self) -> float | None:
        """When the run ended, in epoch seconds (UTC)."""
        return self.glance.ended_at

    @property
    def parent_id(self) -> str | None:
        """The id of the run that started this one as its child."""
        return self.glance.parent_id

    @property
    def resumed_from(self) -> str | None:
        """The id of the run that this one resumes."""
        return self.glance.resumed_from

    @property
    def id(self) -> str:
        """The run's id, `run-…`."""
        return self.live.run_id if self.live else self._stored.run_id

    def status_words(self) -> str:
        """Return the status in words; of a queued run also its place in the queue."""
        record = self.glance
        place = None
        if self.live is not None and record.status is RunStatus.QUEUED:
            place = queue_words(self._parts, self.live)
        return place or status_words(record)

    @property
    def is_unknown(self) -> bool:
        """Whether its status is unknown: it seems to be in progress, but its kernel can't be reached from here."""
        return self.live is None and self.glance.is_unknown

    @property
    def why_read_only(self) -> str | None:
        """Why the file that the run is read from is read-only; None if it can be written."""
        return self.store.problem if isinstance(self.store, ReadOnlyStore) else None

    @property
    def output(self) -> object:
        """What the agent returned, or its text; what there was when it was cancelled or failed.

        In the kernel that ran it this is the agent's own object, as long as memory keeps it: of the newest 100 ended
        runs, or fewer if they take more than 500 MB. Later it is its JSON-like form, and if that isn't the whole
        object, a warning is logged. None while the run is live.
        """
        if self.live is not None and self._has_live_output:
            return self.live.output
        record = self.whole_record if self.done() else self.record
        stored: Plain = record.output
        stored = whole(stored, self.artifacts) if is_in_file(stored) else stored
        if record.session_id == self._parts.session_id and has_placeholder(stored):
            _log.warning(
                "What %s returned is not in memory, and only a repr of it was stored. Keep a reference to an output "
                "that you need later, or start the run with keep_object=True.",
                title(record),
            )
        return revived(stored)

    @property
    def _has_live_output(self) -> bool:
        live = self.live
        if live is None or self.status is RunStatus.FAILED:  # then it is what the agent has raised
            return False
        return live.is_ended.is_set() and live.output is not None

    @property
    def problem(self) -> str | None:
        """Why the run is not saved, or None when it is."""
        return self.live.problem if self.live else None

    # --- waiting ---------------------------------------------------------------------------------

    def done(self) -> bool:
        """Return whether the run has ended."""
        return self.live.is_ended.is_set() if self.live else self.status.is_terminal

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the run has ended, at most `timeout_s` seconds; return whether it has.

        Never raises for how the run ended. An unknown run may never be seen to end: without a `timeout_s` it is
        not waited for.

        Raises
        ------
        NbrunError
            Called inside an async agent, which would block the loop of all runs, or on the loop that this run is on.
        SessionClosed
            This process was forked from the one where the run is in progress.
        """
        if self._parts.scheduler.is_on_loop and not self.done():
            raise NbrunError("a blocking wait inside an async agent would block all runs; use: await run")
        if self._is_on_this_loop and timeout_s != 0 and not self.done():
            raise NbrunError(
                f"{title(self.glance)} is on the kernel's loop, which a blocking wait would block; use: await run"
            )
        if self.live is not None:
            self._refuse_child()
            return self.live.wait_ended(timeout_s, self._lend)
        if timeout_s is None and self.is_unknown:
            return False
        return poll(self.done, timeout_s)

    @property
    def _lend(self) -> Callable[[], object] | None:
        """What a wait does meanwhile, if it is a cell's: an agent's own wait is in the way of nobody."""
        is_in_cell = threading.current_thread() is threading.main_thread() and current_run.get() is None
        return self._parts.lend if is_in_cell else None

    def _refuse_child(self) -> None:
        """Raise `SessionClosed` in a forked child, where nothing of the run would ever be heard."""
        if not self.done():
            self._parts.refuse_child()

    @property
    def _is_on_this_loop(self) -> bool:
        live = self.live
        return live is not None and live.loop is not None and live.loop is asyncio._get_running_loop()

    def wait_created(self, timeout_s: float | None = None) -> bool:
        """Block until the run's creation is public, `CREATION_S` at most if no time is given; return whether it is."""
        return self.live is None or self.live.is_created.wait(CREATION_S if timeout_s is None else timeout_s)

    def result(self, timeout_s: float | None = None) -> object:
        """Return the run's output, after waiting for it at most `timeout_s` seconds.

        Raises
        ------
        RunNotFinished
            The time is up; the run continues.
        RunFailed, RunCancelled, RunLost
            The run ended so.
        """
        if not self.wait(timeout_s):
            self._refuse_unknown()
            raise RunNotFinished(f"{title(self.glance)} has not finished after {timeout_s} s; it continues")
        return self._result()

    def _refuse_unknown(self) -> None:
        """Raise `RunNotFinished` for a run that may never be seen to end here."""
        if self.is_unknown:
            raise RunNotFinished(f"{self!r}; if you know that it has ended, call run.mark_lost()")

    def _result(self) -> object:
        match self.status:
            case RunStatus.COMPLETED:
                return self.output
            case RunStatus.FAILED:
                cause = self.live.output if self.live is not None else None
                raised = cause if isinstance(cause, BaseException) else None
                raise RunFailed(f"{title(self.glance)} failed: {self.error}") from raised
            case RunStatus.CANCELLED:
                reason = f": {self.reason}" if self.reason else ""
                raise RunCancelled(f"{title(self.glance)}: {status_words(self.record)}{reason}")
            case RunStatus.LOST:
                raise RunLost(f"{title(self.glance)} was lost: its kernel died. Its events are kept: run.events()")
            case status:
                raise NoResult(f"{title(self.glance)} is {status}")

    def when_created(self, function: Callable[[], object]) -> None:
        """Call `function` when the run is public, with its number and name; at once if it is."""
        self._when(lambda live: live.is_created.is_set(), function)

    def when_ended(self, function: Callable[[], object]) -> None:
        """Call `function` when a run of this session ends, on nbrun's own thread; at once if it has ended."""
        self._when(lambda live: live.is_ended.is_set(), function)

    def _when(self, is_so: Callable[[LiveRun], bool], function: Callable[[], object]) -> None:
        if self.live is not None:
            self.live.call_once(is_so, function)
        elif self.done():
            function()

    def follow_end(self, function: Callable[[], object]) -> None:
        """Call `function` when a run of this session ends, on nbrun's own thread; at once if it has ended.

        It is called again when the run has been saved, and when detached work has ended.
        """
        if self.live is not None:
            self.live.call_from_end_on(function)

    async def settled(self) -> None:
        """Return when the run has ended; from any event loop. Cancelling the waiter leaves the run alive."""
        if self.live is None:
            await poll_softly(self.done)
        else:
            self._refuse_child()
            await self.live.ended(self._lend)

    def __await__(self) -> Generator[object, None, object]:
        """Wait for the end and return the output; raises as `result()` does."""
        self._refuse_unknown()
        yield from self.settled().__await__()
        return self._result()

    # --- events ----------------------------------------------------------------------------------

    def events(self, after: int = -1, limit: int | None = None) -> list[ev.RunEvent]:
        """Return the run's public events that come after seq `after`, by seq, at most `limit`.

        Raises
        ------
        RunNotFound
            The run was removed from the store.
        """
        # Looked at first: what is saved in this moment is then read from the store, and not missed in both.
        unsaved = self.live.unsaved if self.live is not None else ()
        number = self.number
        record_count = self.glance.event_count
        found = [] if number is None else self.store.events(number, after, limit)
        if self.live is not None:
            # Committed events become public a moment later: show none before its card does.
            found = [event for event in found if event.seq < record_count]
            last = found[-1].seq if found else after
            found += [event for event in unsaved if event.seq > last]
        if not found and number is not None and record_count > after + 1 and limit != 0:
            self._refuse_removed(number)
        return found if limit is None else found[:limit]

    def _refuse_removed(self, number: int) -> None:
        if self.store.is_removed(number):
            raise RunNotFound(f"{title(self.glance)} was removed, and its events with it")

    @property
    def calls(self) -> list[ModelCall]:
        """The model calls of the run, oldest first; of those in progress, `status` is `running`.

        Raises
        ------
        RunNotFound
            The run was removed from the store.
        """
        from nbrun.render import export

        status = self.status  # looked at first: a run that ends meanwhile has calls in progress, not lost ones
        return model_calls(export.paged(self.events), status)

    @property
    def artifacts(self) -> list[Artifact]:
        """The files that the run has made, oldest first; `artifact.read()` gives what is in one."""
        number = self.number
        return [] if number is None else self.store.artifacts(number)

    def result_view(self) -> object:
        """Return what Jupyter shows of the output: the object itself, or of an earlier kernel's what it looked like."""
        if self._has_live_output:
            return self.output
        artifacts = self.artifacts
        return view_of(whole(self.whole_record.output, artifacts), artifacts)

    def load_object(self, *, trusted: bool = False) -> object:
        """Return the output itself, of a run that was started with `keep_object`, in a later kernel.

        Parameters
        ----------
        trusted : must be True, since loading runs whatever code the store's author has put there.

        Raises
        ------
        BadOption, NoResult, ArtifactLost, NbrunError
            `trusted` is not True; no object was kept; its file is gone; it cannot be loaded here.
        """
        return load_object(title(self.glance), self.artifacts, trusted=trusted)

    def __aiter__(self) -> AsyncIterator[ev.RunEvent]:
        """Yield the run's events, stored and live, in order, no gap and no duplicate, to the end."""
        self._refuse_child()
        return each_event(self.live, lambda: self.done() or self.is_unknown, self.events, self._lend)

    def export(self, path: str | Path, form: str | None = None) -> Path:
        """Write the run to a file, and return its path.

        Parameters
        ----------
        form : `jsonl` or `json`, which `nbrun import` reads, `html` or `md`; None: as the file's name ends. Or
            `cassette`: the answers to its model calls, for `start(cassette=path)`.

        Raises
        ------
        BadOption, OSError
            The form is unknown, the run has no answers for a cassette, or the file cannot be written.
        """
        from nbrun.render import export

        path = Path(path)
        if form == CASSETTE:
            from nbrun.calls import cassette  # with the first

            if not (entries := self._answers()):
                raise BadOption(f"{self!r} has no model calls that were kept, so it can't be a cassette")
            export.write_lines(path, cassette.dump(entries))
            return path
        run = whole_run(self.whole_record, export.paged(self.events), self.artifacts)
        export.write(path, export.read_form(form, path), [run])
        return path

    # --- doing -----------------------------------------------------------------------------------

    def cancel(
        self, reason: str | None = None, cause: CancelCause = CancelCause.USER, *, by: str = "python"
    ) -> CancelReceipt:
        """Ask the run to stop; never blocks, never raises for a run that has ended. Every way to cancel leads here.

        Parameters
        ----------
        by : who asks, for the log.
        """
        if self.live is not None and not self._parts.is_inherited:
            outcome = self._parts.control.cancel(self.live, reason, cause, by)
        else:
            outcome = CancelOutcome.ALREADY_FINISHED if self.done() else CancelOutcome.FOREIGN
        record = self.glance if self.live is None else self.live.record  # without a wait for its creation
        who = opening(record) if record.run_id else f"Run {self.id}"
        if outcome is CancelOutcome.ALREADY_FINISHED:
            words = f" has already ended ({status_words(record)})"
        else:
            words = _OUTCOME_WORDS[outcome]
        gone = "if that kernel is gone, mark the run as lost"
        is_foreign = outcome is CancelOutcome.FOREIGN
        fixes = (Fix(Action.LOST, run_ref(record), purpose=gone),) if is_foreign else ()
        return CancelReceipt(outcome, self.id, printable(f"{who}{words}"), self, fixes)

    def mark_lost(self) -> None:
        """Mark the run as lost: it seems to be in progress, but its kernel can't be reached (`is_unknown`).

        Raises
        ------
        NotPending, StoreReadOnly
            It has ended, or its kernel lives; the file that it is in must not be written to.
        """
        record = self.glance
        if self.done():
            raise NotPending(f"{opening(record)} has already ended; there is nothing to give up.")
        if self.live is not None or self.number is None:
            fix = Fix(Action.CANCEL, run_ref(record))
            raise NotPending(f"{opening(record)} belongs to this kernel", fixes=[fix])
        self.store.give_up(self.number)

    def display(self) -> None:
        """Show the run's card here."""
        self._parts.display(self)

    def steer(self, text: str, *, by: str = "python", id: str | None = None) -> str:
        """Send a message to the running agent, which reads it from its `run.inbox`; return the message's id.

        `record.steered` shows whether the agent has read it; one that never looks there never does.

        Raises
        ------
        NotPending, BadOption
            The run has ended or has not started, too many messages wait, or this one is too long.
        """
        return self._parts.control.steer(self._running(), text, by=by, id=id)

    def answer(
        self,
        call: str | None,
        decision: str,
        *,
        args: object = None,
        text: str | None = None,
        always: bool = False,
        by: str = "python",
    ) -> ev.ApprovalRequested:
        """Answer a question of the run, and return the question. Every way to answer leads here.

        Parameters
        ----------
        decision : `allow`, `deny`, or one of the question's options; the others as in `approve()`.
        by : who answers, for the log.

        Raises
        ------
        NotPending, BadOption
            Nothing of this kind can be answered; the message says what can.
        """
        return self._parts.control.answer(self._running(), call, decision, args=args, text=text, always=always, by=by)

    def _running(self) -> LiveRun:
        """Return the live side of the run, to send something to."""
        if self.live is not None:
            self._refuse_child()
            self._parts.await_creation(self.live)
            return self.live
        what = "has already ended." if self.done() else "belongs to another kernel; answer it there."
        raise NotPending(f"{opening(self.glance)} {what}")

    def approve(
        self,
        call: str | None = None,
        *,
        args: object = None,
        text: str | None = None,
        choice: str | None = None,
        always: bool = False,
    ) -> None:
        """Allow what the run asks for.

        Parameters
        ----------
        call : the question's id; None where exactly one question is pending, see `pending`.
        args : replace the agent's arguments; of the same kind, if it had any.
        text : a message to the agent.
        choice : the option to take, where the question has options.
        always : allow its tool for the rest of this run (not in its child runs), without asking again.

        Raises
        ------
        NotPending, BadOption
            Nothing of this kind is asked; the message says what is.
        """
        self.answer(call, choice or ALLOW, args=args, text=text, always=always)

    def deny(self, call: str | None = None, reason: str | None = None) -> None:
        """Refuse what the run asks for; `call` as in `approve()`.

        Raises
        ------
        NotPending
            Nothing of this kind is asked; the message says what is.
        """
        self.answer(call, DENY, text=reason)

    def resume(self, *, agent: object = None, **options: Any) -> Run:
        """Resume a failed, cancelled or lost run from its checkpoint, in a new run; return that.

        Without a checkpoint, its agent runs again from the beginning. The model calls that were answered since are
        answered from the run's journal, for free; its log says which is the first that isn't known. The usage of this
        run counts there, too. The checkpoint stays until the new run has completed.

        Parameters
        ----------
        agent : what to run; None for this run's own agent, found by name where another kernel had started it. A run
            that this user's nbrun hasn't signed needs one, and is resumed from its history only.
        options : those of `nbrun.start()` that should differ from this run's. What a run may do (`approve`, `on`,
            `loop`, and the built-in agent's `tools` and the like) is never taken over, except `approve="deny"`.

        Raises
        ------
        NotResumable, AgentNotFound, BadOption
            It is still running or has completed, has no checkpoint and no journal, or its budget is used up; its agent
            isn't found; an option is invalid.
        """
        return self._follow(ev.RESUME, agent, **options)

    def retry(self, *, agent: object = None, **options: Any) -> Run:
        """Run the same inputs again, in a new run; return that. Parameters as in `resume()`.

        With `reuse=True`, the model calls that this run has made are answered from its journal, for free.

        Raises
        ------
        NotResumable, AgentNotFound, BadOption
            It is still running; its agent isn't found; an option is invalid; there are no answers to reuse.
        """
        return self._follow(ev.RETRY, agent, **options)

    def continue_with(self, prompt: str, *, agent: object = None, **options: Any) -> Run:
        """Continue the conversation of this run in a new run; return that. Parameters as in `resume()`.

        The messages of this run, and of those that it continues, are the new one's history: an agent of a framework
        gets them as its messages, any other finds them in `run.history`.

        Raises
        ------
        NotResumable, AgentNotFound, BadOption
            It is still running; its agent isn't found; an option is invalid.
        """
        return self._follow(ev.CONTINUE, agent, prompt=prompt, **options)

    def replay(self, speed: float | str = 1.0, **options: Any) -> Run:
        """Replay this run in a new run that needs no agent and no key; return that.

        Parameters
        ----------
        speed : how much faster: 1, 10 …, or "max".

        Raises
        ------
        NotResumable, BadOption
            It is still running; the speed is invalid.
        """
        return self._follow(ev.REPLAY, speed=speed, **options)

    def _follow(self, kind: str, agent: object = None, **options: Any) -> Run:
        following: Run = self._parts.follow(kind, self, agent, **options)
        return following

    def save_recording(self, path: str | Path) -> Path:
        """Write the run to a file that `nbrun.agents.Replay` can replay in any notebook; return its path."""
        target, record = Path(path), self.record
        with target.open("wb") as file:
            file.writelines(recording.dump(record, self.recorded_events()))
        return target

    def recorded_events(self) -> list[ev.RunEvent]:
        """Return the events for a replay: each is whole, wherever its payload is kept."""
        artifacts = self.artifacts
        return [restored(event, artifacts) for event in self.events()]

    def _answers(self) -> list[Entry]:
        """Return the answers to the model calls of the run and its child runs, as far as they were kept."""
        numbers = [] if self.number is None else [self.number]
        for number in numbers:  # it grows; a child has a greater number than its parent
            children = self.store.record(number).children
            numbers += [child.number for child in children if child.number is not None and child.number > number]
        found = (entry for number in dict.fromkeys(numbers) for entry in self.store.journal(number))
        return [entry for entry in found if entry.kind == CALL]

    @property
    def signed(self) -> RunRecord | ev.RunCreated | None:
        """What it was started with: as this kernel knows it, or as signed in its store; None: it may be anybody's."""
        in_memory = self._in_memory
        if in_memory is not None and not in_memory.is_brief:
            return in_memory
        number = self.number
        return None if number is None else self.store.signed(number)

    @property
    def followups(self) -> list[tuple[int, str]]:
        """The number and the kind (`resume`, `retry`, `replay`) of each run that comes from this one."""
        number = self.number
        return [] if number is None else self.store.followups(number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and (self.id, self._session_id) == (other.id, other._session_id)

    def __hash__(self) -> int:
        return hash((self.id, self._session_id))

    @property
    def _session_id(self) -> str:
        return self._stored.session_id if self.live is None else self._parts.session_id

    def __repr__(self) -> str:
        number = "" if self.number is None else f"#{self.number} "
        return printable(f"<Run {number}{shown(self.name, 120)}: {shown(self.status_words(), 300)}>")


def queue_words(parts: Parts, live: LiveRun) -> str | None:
    """Return what a queued run waits for, in words; None if it does not wait."""
    place = parts.scheduler.place(live)
    if place is None:
        return None
    if (first := parts.scheduler.predecessor(live)) is not None:
        return f"Queued · waiting for run #{first.record.number} of this cell to finish"
    asking = sum(one.record.status is RunStatus.WAITING for one in parts.intake.live())
    return queued_words(*place, asking)
