"""A run's state in words, for every place that shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nbrun.core.cancellation import CancelCause, Rung
from nbrun.core.durations import duration
from nbrun.core.events import CONTINUE, REPLAY, RESUME, RETRY
from nbrun.core.quantities import counted, moment, money, size_words
from nbrun.core.record import GIVEN_UP, UNLOAD, ChildSummary, RunRecord, RunStatus, Steered
from nbrun.core.text import printable, visible as visible
from nbrun.core.values import readable, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.core.events import ApprovalResolved, Progress, Usage

"""Who cancels when the extension is taken out of a kernel that goes on; the cause is `shutdown` all the same."""

"""The reason of a run that somebody has declared lost."""

SOON_S = 0.5
"""A cancel that took longer from the request to the end is told with its times."""

_RUNGS = {
    Rung.TOKEN: "asking the agent",
    Rung.NATIVE: "asking the agent",
    Rung.TASK: "cancelling its task",
    Rung.THREAD: "stopping its thread",
    Rung.PROCESS: "killing its process",
}
_ASKED_BY_CAUSE = {
    CancelCause.BUDGET: "its budget",
    CancelCause.INTERRUPT: "an interrupt",
    CancelCause.PARENT: "its parent",
}
_ASKED_BY = {
    "card": "the card",
    "panel": "the runs panel",
    "python": "Python",
    "magic": "%agentrun cancel",
    "server": "the Jupyter server",
    "terminal": "the terminal",
    "shutdown": "the kernel's shutdown",
    UNLOAD: "the unloading of nbrun",
}
SHAPES = {
    RunStatus.QUEUED: ("○", "#6e6e6e"),
    RunStatus.RUNNING: ("▶", "#1565c0"),
    RunStatus.WAITING: ("?", "#a05a00"),
    RunStatus.CANCELLING: ("◼", "#a05a00"),
    RunStatus.COMPLETED: ("✔", "#2e7d32"),
    RunStatus.FAILED: ("✘", "#c62828"),
    RunStatus.CANCELLED: ("■", "#a05a00"),
    RunStatus.LOST: ("◌", "#6e6e6e"),
}
"""Each status's sign, and the colour behind it, on which white has a contrast of 4.5."""
SHOWN_QUESTIONS = 3
_RESUMABLE = (RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.LOST)


def run_ref(record: RunRecord) -> str:
    """Return what a command calls the run: `#3`, or its id while it has no number."""
    return record.run_id if record.number is None else f"#{record.number}"


def title(record: RunRecord) -> str:
    """Return what a sentence calls the run: `run #3 poet`."""
    number = "" if record.number is None else f"#{record.number} "
    return printable(f"run {number}{shown(record.name, 120)}")


def name_and_number(record: RunRecord) -> str:
    """Return what a card or a row calls the run: `poet #3`."""
    return record.name + ("" if record.number is None else f" #{record.number}")


def shape(record: RunRecord) -> tuple[str, str]:
    """Return the sign of the run's status, and its colour."""
    return SHAPES[RunStatus.LOST if record.is_unknown else record.status]


def status_words(record: RunRecord) -> str:
    """Return where the run stands, in words: `Running`, `Timed out after 90 s` …."""
    if record.is_unknown:
        return f"Unknown: {record.unseen}"
    after = _after(record)
    match record.status:
        case RunStatus.QUEUED:
            return "Queued"
        case RunStatus.RUNNING:
            return "Running"
        case RunStatus.WAITING:
            return "Waiting for you"
        case RunStatus.CANCELLING:
            return f"Cancelling…{_rung_words(record)}"
        case RunStatus.COMPLETED:
            return f"Completed{after and f' in {after}'}"
        case RunStatus.FAILED:
            return f"Failed{after and f' after {after}'}"
        case RunStatus.LOST:
            return "Lost: " + (GIVEN_UP if record.reason == GIVEN_UP else "its kernel died")
        case RunStatus.CANCELLED:
            return _cancelled_words(record, after) + _detached_words(record)


def _after(record: RunRecord) -> str:
    if record.started_at is None or record.ended_at is None:
        return ""
    return duration(record.ended_at - record.started_at)


def _rung_words(record: RunRecord) -> str:
    """Return how the agent is being stopped. Its token fired at once, so without another rung it is being asked."""
    if record.started_at is None:
        return ""
    words = _RUNGS.get(record.rung or Rung.TOKEN)
    return f" ({words})" if words else ""


def _cancelled_words(record: RunRecord, after: str) -> str:
    limit = f" after {after}" if after else " before it began"
    match record.cause:
        case CancelCause.DEADLINE:
            return f"Timed out{_limit_words(record) or limit}"
        case CancelCause.BUDGET:
            return f"Over budget{limit}"
        case CancelCause.INTERRUPT:
            return f"Interrupted{limit}"
        case CancelCause.REPLACED:
            return f"Replaced by a newer run{limit}"
        case CancelCause.PARENT:
            return f"Cancelled with its parent{limit}"
        case CancelCause.SHUTDOWN:
            is_unload = record.cancelled_by == UNLOAD
            why = "because nbrun was unloaded" if is_unload else "by the kernel's shutdown"
            return f"Cancelled {why}{limit}"
        case _:
            return f"Cancelled by you{limit}"


def _limit_words(record: RunRecord) -> str:
    """Return the time limit that a run has met, and how long it took where that is longer."""
    limit_s = record.options.get("timeout_s")
    if record.started_at is None or record.ended_at is None or not isinstance(limit_s, int | float):
        return ""
    took_s = record.ended_at - record.started_at
    limit = _round_duration(limit_s)
    if took_s - limit_s <= SOON_S:
        return f" after {limit}"
    return f" at its limit of {limit}; ended after {duration(took_s)}"


def _round_duration(seconds: float) -> str:
    """Return a length of time that a person chose: `2 s`, `1 min 30 s`, `10 min`."""
    if seconds < 60:
        return f"{seconds:g} s"
    return duration(seconds).removesuffix(" 0 s").removesuffix(" 0 min")


def _detached_words(record: RunRecord) -> str:
    if not record.still_running:
        return ""
    return f"; still running: {', '.join(record.still_running)}"


def cancel_notes(record: RunRecord) -> list[str]:
    """Return what there is to say of a cancel besides the status: its reason, its times, what it left behind."""
    if record.status not in (RunStatus.CANCELLING, RunStatus.CANCELLED):
        return []
    notes = [f"“{record.reason}”", _times_words(record), _finished_words(record)]
    return [note for note in notes[0 if record.reason else 1 :] if note]


def _times_words(record: RunRecord) -> str:
    """Return who asked when, and how much later the run stopped, where that was not at once."""
    asked_at, ended_at = record.cancel_requested_at, record.ended_at
    if asked_at is None or ended_at is None or record.cause is CancelCause.DEADLINE:
        return ""  # of a time limit the status tells all
    late_s = ended_at - asked_at
    if late_s <= SOON_S:
        return ""
    by = _ASKED_BY.get(record.cancelled_by, record.cancelled_by) or "somebody"
    if record.cause is not None:
        by = _ASKED_BY_CAUSE.get(record.cause, by)
    return f"asked by {by} at {moment(asked_at, '%H:%M:%S')}, stopped {duration(late_s)} later"


def _finished_words(record: RunRecord) -> str:
    """Return that what a cancel left behind has ended."""
    finished_at, ended_at = record.detached_finished_at, record.ended_at
    if finished_at is None or ended_at is None:
        return ""
    names = ", ".join(record.detached_finished)
    verb = "has" if len(record.detached_finished) == 1 else "have"
    words = (
        f"{names} {verb} ended by now, {duration(max(0.0, finished_at - ended_at))} after the run"
    )
    if record.refused == 1:
        return f"{words}; 1 late event was refused"
    return f"{words}; {record.refused:,} late events were refused" if record.refused else words


def queued_words(ahead: int, under_way: int, waiting: int = 0) -> str:
    """Return what a queued run waits for: `Queued: 3rd in line, 8 runs are under way, 1 of them waits for you`."""
    runs = "1 run is" if under_way == 1 else f"{under_way:,} runs are"
    line = f"Queued: {_ordinal(ahead + 1)} in line, {runs} under way"
    if not waiting:
        return line
    of_them = "and" if under_way == 1 else f"{waiting:,} of them"
    return f"{line}, {of_them} wait{'s' if waiting == 1 else ''} for you"


def _ordinal(number: int) -> str:
    ending = (
        "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    )
    return f"{number:,}{ending}"


def progress_words(progress: Progress | None) -> str:
    """Return how far a run has come: `3 of 12 · pages`; empty where it has not told."""
    if progress is None:
        return ""
    total = "" if progress.total is None else f" of {_amount(progress.total)}"
    label = f" · {shown(progress.label, 100)}" if progress.label else ""
    return f"{_amount(progress.done)}{total}{label}"


def _amount(number: float) -> str:
    if not abs(number) < 1e15:  # also what is no number
        return f"{number:g}"
    return f"{number:,.2f}".rstrip("0").rstrip(".")


def said(record: RunRecord) -> str:
    """Return what a run has given: what it streamed, and what it returned where that is something else."""
    if record.output is None or record.output == record.text:
        return record.text
    output = readable(record.output)
    return f"{record.text.rstrip()}\n\n→ {output}" if record.text else output


def question_words(record: RunRecord) -> list[str]:
    """Return what the run asks a person, each with the line that answers it."""
    ref = record.run_id if record.number is None else f"#{record.number}"
    lines = []
    for asked in record.pending[:SHOWN_QUESTIONS]:
        args = "" if asked.args is None else f" {shown(asked.args, 100)}"
        call = f" {asked.id}" if len(record.pending) > 1 else ""
        choose = f" --choose {shown('|'.join(asked.options), 80)}" if asked.options else ""
        asked_words = visible(f"{shown(asked.message, 150)}{args}")
        lines.append(f"Waiting for you: {asked_words} – %agentrun approve {ref}{call}{choose}")
    hidden = len(record.pending) - SHOWN_QUESTIONS
    return [*lines, f"… {hidden} more questions"] if hidden > 0 else lines


def always_words(record: RunRecord) -> str:
    """Return which tools a person has allowed for the rest of the run; empty where none."""
    tools = ", ".join(shown(tool, 60) for tool in record.always[:5])
    more = " …" if len(record.always) > 5 else ""
    return visible(f"always allowed in this run: {tools}{more}") if tools else ""


def steer_words(record: RunRecord) -> str:
    """Return in a line what was said to the agent, and whether it has read it; empty where nothing was."""
    if not record.steers:
        return ""
    last = f"“{visible(shown(record.steered[-1].text, 100))}”" if record.steered else ""
    if record.steers == 1 and record.steered:
        return f"said to the agent: {last}, {receipt_words(record.steered[0], record)}"
    unread = record.steers - record.steers_taken
    what = "all read" if unread <= 0 else f"{unread:,} {_unread_words(record)}"
    noun = "message" if record.steers == 1 else "messages"
    return f"{record.steers:,} {noun} to the agent{last and f', the last {last}'}: {what}"


def receipt_words(message: Steered, record: RunRecord) -> str:
    """Return what became of a message to the agent: `read 2.5 s later`, `not read yet`."""
    if message.taken_at is None:
        return _unread_words(record)
    return f"read {duration(max(0.0, message.taken_at - message.at))} later"


def _unread_words(record: RunRecord) -> str:
    return "not read yet" if record.is_live else "never read"


def resolution_words(
    resolved: ApprovalResolved, limit_s: float | None, cause: CancelCause | None
) -> str:
    """Return what came of a question, for who was asked it and did not answer: `denied: no answer in 3 s`.

    Parameters
    ----------
    limit_s : how long the question could be answered, in seconds.
    cause : why the run is being cancelled, where it is.
    """
    decision = {"allow": "allowed", "deny": "denied"}.get(resolved.decision, resolved.decision)
    match resolved.by:
        case "deadline":
            late = "in time" if limit_s is None else f"in {_round_duration(round(limit_s, 1))}"
            return f"{decision}: no answer {late}"
        case "cancel" if cause is CancelCause.DEADLINE:
            return f"{decision}: the run's time is over"
        case "cancel":
            return f"{decision}: the run is being cancelled"
        case "always":
            return f"{decision}: its tool is allowed in this run"
        case "agent":
            return f"{decision}: the agent does not wait for it any more"
        case by:
            return visible(f"{shown(decision, 80)} by {_ASKED_BY.get(by, by) or 'somebody'}")


def child_title(child: ChildSummary) -> str:
    """Return what a child run is called on its parent's card: `helper #5`."""
    return child.name if child.number is None else f"{child.name} #{child.number}"


_COMES_FROM = {
    RESUME: "resumed from", RETRY: "retry of", REPLAY: "replay of", CONTINUE: "continues"
}  # fmt: skip
_BECAME = {
    RESUME: "resumed as", RETRY: "retried as", REPLAY: "replayed as", CONTINUE: "continued as"
}  # fmt: skip


def origin_words(record: RunRecord) -> str:
    """Return which run this one comes from: `resumed from #3`; empty where it comes from none."""
    origin = record.origin
    if origin is None:
        return ""
    where = "a recorded run" if origin.kind == REPLAY else "a run of another store"
    ref = f"{where} ({origin.name})" if origin.number is None else f"#{origin.number}"
    return f"{_COMES_FROM.get(origin.kind, 'comes from')} {ref}"


def sequel_words(sequels: Sequence[tuple[int, str]]) -> str:
    """Return which runs come from this one: `retried as #5, resumed as #6`; the last ones of many."""
    named = [f"{_BECAME.get(kind, 'followed by')} #{number}" for number, kind in sequels]
    return ", ".join(named if len(named) <= 5 else ["…", *named[-5:]])


def going_on_notes(record: RunRecord) -> list[str]:
    """Return what there is to say of where a run comes from, what comes from it, and how it can be gone on with."""
    notes = [origin_words(record), sequel_words(record.sequels)]
    is_replay = record.origin is not None and record.origin.kind == REPLAY
    is_resumed = any(kind == RESUME for _, kind in record.sequels)
    has_state = record.checkpoint is not None or record.resumed_from is not None
    if has_state and not is_replay and not is_resumed and record.status in _RESUMABLE:
        ref = record.run_id if record.number is None else f"#{record.number}"
        notes.append(f"%agentrun resume {ref} goes on from its last checkpoint")
    return [note for note in notes if note]


def files_words(record: RunRecord) -> str:
    """Return which files the agent has made, the last of many, and how they are had; empty where it made none."""
    if not record.file_count:
        return ""
    named = [f"{shown(made.name, 80)} ({size_words(made.size)})" for made in record.files[-5:]]
    left_out = record.file_count - len(named)
    count = counted(record.file_count, "file")
    ref = f'"{record.run_id}"' if record.number is None else record.number
    return f"{count}: {'…, ' if left_out else ''}{', '.join(named)} · nbrun.get({ref}).artifacts"


def with_sequels(record: RunRecord, sequels: Sequence[tuple[int, str]]) -> RunRecord:
    """Return the record as it is shown once other runs come from it."""
    return msgspec.structs.replace(record, sequels=tuple(sequels)) if sequels else record


def tokens_words(usage: Usage) -> str:
    """Return `≥ 1,204 in · 340 out`, with `≥` where a stream was cut; empty where none were reported."""
    if not usage.input_tokens and not usage.output_tokens:
        return ""
    return f"{_bound(usage)}{usage.input_tokens:,} in · {usage.output_tokens:,} out"


def cost_words(usage: Usage) -> str:
    """Return the cost so far, with `≥` where a stream was cut; empty where none was reported."""
    cost = money(usage.cost_usd)
    return cost and f"{_bound(usage)}{cost}"


def usage_words(usage: Usage) -> str:
    """Return what was used, for a sentence: `1,204 in · 340 out tokens · $0.0123`; empty where nothing was."""
    tokens = tokens_words(usage)
    return " · ".join(filter(None, [tokens and f"{tokens} tokens", cost_words(usage)]))


def _bound(usage: Usage) -> str:
    return "" if usage.exact else "≥ "
