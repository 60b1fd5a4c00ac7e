"""A run's state in words, for every place that shows it."""

from __future__ import annotations

from nbrun.cancellation import CancelCause
from nbrun.encoding import readable
from nbrun.record import RunRecord, RunStatus

UNLOAD = "unload"
"""Who cancels when the extension is taken out of a kernel that goes on; the cause is `shutdown` all the same."""


def duration(seconds: float) -> str:
    """Return a length of time as people say it: `40 ms`, `2.5 s`, `12 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def title(record: RunRecord) -> str:
    """Return what a sentence calls the run: `run #3 poet`."""
    number = "" if record.number is None else f"#{record.number} "
    return f"run {number}{record.name}"


def status_words(record: RunRecord) -> str:
    """Return where the run stands, in words: `Running`, `Timed out after 90 s` …."""
    after = _after(record)
    match record.status:
        case RunStatus.QUEUED:
            return "Queued"
        case RunStatus.RUNNING:
            return "Running"
        case RunStatus.WAITING:
            return "Waiting for you"
        case RunStatus.CANCELLING:
            return "Cancelling…"
        case RunStatus.COMPLETED:
            return f"Completed{after and f' in {after}'}"
        case RunStatus.FAILED:
            return f"Failed{after and f' after {after}'}"
        case RunStatus.LOST:
            return "Lost: its kernel died"
        case RunStatus.CANCELLED:
            return _cancelled_words(record, after) + _detached_words(record)


def _after(record: RunRecord) -> str:
    if record.started_at is None or record.ended_at is None:
        return ""
    return duration(record.ended_at - record.started_at)


def _cancelled_words(record: RunRecord, after: str) -> str:
    limit = f" after {after}" if after else " before it began"
    match record.cause:
        case CancelCause.DEADLINE:
            return f"Timed out{limit}"
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


def _detached_words(record: RunRecord) -> str:
    if not record.detached:
        return ""
    return f"; still running: {', '.join(record.detached)}"


def said(record: RunRecord) -> str:
    """Return what a run has given: what it streamed, and what it returned where that is something else."""
    if record.output is None or record.output == record.text:
        return record.text
    output = readable(record.output)
    return f"{record.text.rstrip()}\n\n→ {output}" if record.text else output


def tokens_words(record: RunRecord) -> str:
    """Return the tokens so far, with `≥` where a stream was cut; empty where none were told."""
    usage = record.usage
    if not usage.input_tokens and not usage.output_tokens:
        return ""
    mark = "" if usage.exact else "≥ "
    return f"{mark}{usage.input_tokens:,} in · {usage.output_tokens:,} out tokens"
