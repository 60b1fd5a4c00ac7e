"""A run's state in words and signs, for every place that shows it."""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from nbrun.core import (
    UNLOAD,
    Action,
    CallGroup,
    CancelCause,
    ChildSummary,
    Fix,
    ModelCall,
    Plain,
    Rung,
    RunRecord,
    RunStatus,
    Steered,
    counted,
    duration,
    events as ev,
    is_whole,
    moment,
    money,
    printable,
    readable,
    shown,
    size_words,
    visible,
)
from nbrun.core.options import POLICIES
from nbrun.core.record import ANSWERED

if TYPE_CHECKING:
    from collections.abc import Sequence

SOON_S = 0.5
"""If a run takes longer than this to stop, both times are shown: of the cancel and of its end."""
SHOWN_QUESTIONS = 3
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

_RUNGS = {
    Rung.TOKEN: "asking the agent", Rung.NATIVE: "asking the agent", Rung.TASK: "cancelling its task",
    Rung.THREAD: "stopping its thread", Rung.PROCESS: "killing its process",
}  # fmt: skip
_BY_CAUSE = {
    CancelCause.BUDGET: "by its budget", CancelCause.INTERRUPT: "by an interrupt", CancelCause.PARENT: "by its parent"
}  # fmt: skip
_BY = {
    "": "by someone", "card": "from the card", "panel": "from the runs panel", "python": "from Python",
    "server": "from the Jupyter server", "terminal": "from the terminal", "shutdown": "by kernel shutdown",
    UNLOAD: "by unloading nbrun",
}  # fmt: skip
_CANCELLED = {
    CancelCause.DEADLINE: "Timed out", CancelCause.BUDGET: "Over budget", CancelCause.INTERRUPT: "Interrupted",
    CancelCause.REPLACED: "Replaced by a newer run", CancelCause.PARENT: "Cancelled with its parent",
    CancelCause.SHUTDOWN: "Cancelled by kernel shutdown",
}  # fmt: skip
_RESUMABLE = (RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.LOST)


# --- names -----------------------------------------------------------------------------------------


def run_ref(record: RunRecord) -> str:
    """Return what a command calls the run: `#3`, or its id while it has no number."""
    return record.run_id if record.number is None else f"#{record.number}"


def title(record: RunRecord) -> str:
    """Return what a sentence calls the run: `run #3 (poet)`."""
    number = "" if record.number is None else f" #{record.number}"
    return printable(f"run{number} ({shown(record.name, 120)})")


def opening(record: RunRecord) -> str:
    """Return how a sentence about the run begins: `Run #3 (poet)`."""
    return f"R{title(record)[1:]}"


def name_and_number(run: RunRecord | ChildSummary) -> str:
    """Return what a card or a row calls the run: `poet #3`."""
    return run.name if run.number is None else f"{run.name} #{run.number}"


def shape(record: RunRecord) -> tuple[str, str]:
    """Return the sign of the run's status, and its colour."""
    return SHAPES[RunStatus.LOST if record.is_unknown else record.status]


# --- its status ------------------------------------------------------------------------------------


def status_words(record: RunRecord) -> str:
    """Return the run's status in words: `Running`, `Timed out after 90 s` …, with what still runs after its end."""
    left = f"; still running: {', '.join(record.still_running)}" if record.still_running else ""
    return _status_words(record) + left


def _status_words(record: RunRecord) -> str:
    if record.is_unknown:
        return f"Unknown: {record.unseen}"
    took = _took(record)
    match record.status:
        case RunStatus.QUEUED:
            return "Queued"
        case RunStatus.RUNNING:
            return "Running"
        case RunStatus.WAITING:
            return "Waiting for you"
        case RunStatus.CANCELLING:
            rung = record.started_at is not None and _RUNGS.get(record.rung or Rung.TOKEN)
            return f"Cancelling… ({rung})" if rung else "Cancelling…"
        case RunStatus.COMPLETED:
            return f"Completed in {took}" if took else "Completed"
        case RunStatus.FAILED:
            return f"Failed after {took}" if took else "Failed"
        case RunStatus.LOST:
            return f"Lost: {shown(record.reason or 'its kernel died', 200)}"
        case RunStatus.CANCELLED:
            return _cancelled_words(record, took)


def _took(record: RunRecord) -> str:
    if record.started_at is None or record.ended_at is None:
        return ""
    return duration(record.ended_at - record.started_at)


def _cancelled_words(record: RunRecord, took: str) -> str:
    what = "Cancelled by you" if record.cause is None else _CANCELLED.get(record.cause, "Cancelled by you")
    if record.cause is CancelCause.SHUTDOWN and record.cancelled_by == UNLOAD:
        what = "Cancelled by unloading nbrun"
    when = _limit_words(record) or (f" after {took}" if took else " before it started")
    return f"{what}{when}"


def _limit_words(record: RunRecord) -> str:
    """Return the time limit that stopped the run, and how long it took if that was longer."""
    limit_s = record.options.get("timeout_s")
    if record.cause is not CancelCause.DEADLINE or not isinstance(limit_s, int | float):
        return ""
    if record.started_at is None or record.ended_at is None:
        return ""
    late = record.ended_at - record.started_at - limit_s > SOON_S
    return f" after {_round_duration(limit_s)}" + (f" (ended after {_took(record)})" if late else "")


def _round_duration(seconds: float) -> str:
    """Return a duration that someone chose: `2 s`, `1 min 30 s`, `10 min`."""
    if seconds < 60:
        return f"{seconds:g} s"
    return duration(seconds).removesuffix(" 0 s").removesuffix(" 0 min")


def queued_words(ahead: int, queued: int, busy: int, slots: int, waiting: int = 0) -> str:
    """Return what a queued run waits for: `Queued (3rd of 4) · 8 of 8 slots busy, 1 waiting for you`.

    Of the `queued` runs, `ahead` come first; `waiting` ones wait for an answer, and take a slot as well.
    """
    place = "next" if ahead == 0 else _ordinal(ahead + 1)
    of = f" of {queued:,}" if queued > 1 else ""
    asking = f", {waiting:,} waiting for you" if waiting else ""
    return f"Queued ({place}{of}) · {busy:,} of {slots:,} slots busy{asking}"


def _ordinal(number: int) -> str:
    teen = number % 100 in (11, 12, 13)
    return f"{number:,}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def attempt_words(record: RunRecord) -> str:
    """Return which attempt this is, and why: `Attempt 2 of 3 · its process was killed …`; empty for the first."""
    if not record.lost_attempts:
        return ""
    retries = record.options.get("retries")
    of = f" of {retries + 1}" if isinstance(retries, int) else ""
    lost = record.lost_attempts[-1].error
    why = lost.message if lost.type == ev.PROCESS_DIED else str(lost)
    return f"Attempt {record.attempt}{of} · {shown(visible(why), 200)}"


def cancel_notes(record: RunRecord) -> list[str]:
    """Return the details of a cancel: its reason, its times, what it left running."""
    if record.status not in (RunStatus.CANCELLING, RunStatus.CANCELLED):
        return []
    reason = f"“{record.reason}”" if record.reason else ""
    return [note for note in (reason, _times_words(record), _finished_words(record)) if note]


def _times_words(record: RunRecord) -> str:
    """Return who requested the cancel and when, and how much later the run stopped, if that took long."""
    asked_at, ended_at = record.cancel_requested_at, record.ended_at
    if asked_at is None or ended_at is None or record.cause is CancelCause.DEADLINE:
        return ""  # for a time limit, the status says it
    if ended_at - asked_at <= SOON_S:
        return ""
    by = (record.cause and _BY_CAUSE.get(record.cause)) or _by(record.cancelled_by)
    late = duration(ended_at - asked_at)
    return f"Cancel requested {by} at {moment(asked_at, '%H:%M:%S')}; stopped {late} later"


def _by(who: str) -> str:
    if who == "magic":
        command = Fix(Action.CANCEL).command
        return f"with {command}" if command else "with a command"
    return _BY.get(who) or f"by {who}"


def _finished_words(record: RunRecord) -> str:
    """Return when the code that a cancel left running ended; empty if it hasn't."""
    finished_at, ended_at = record.detached_finished_at, record.ended_at
    if finished_at is None or ended_at is None:
        return ""
    names = ", ".join(record.detached_finished)
    words = f"{names} ended {duration(max(0.0, finished_at - ended_at))} after the run"
    return f"{words}; {counted(record.refused, 'late event')} refused" if record.refused else words


# --- what it does ----------------------------------------------------------------------------------


def progress_words(progress: ev.Progress | None) -> str:
    """Return how far a run has come: `3 of 12 · pages`; empty if it has not reported any progress."""
    if progress is None:
        return ""
    total = "" if progress.total is None else f" of {_amount(progress.total)}"
    label = f" · {shown(progress.label, 100)}" if progress.label else ""
    return f"{_amount(progress.done)}{total}{label}"


def _amount(number: float) -> str:
    if not abs(number) < 1e15:  # also NaN
        return f"{number:g}"
    return f"{number:,.2f}".rstrip("0").rstrip(".")


def result_of(record: RunRecord) -> str:
    """Return what the run returned, as text; empty if that is only what it streamed."""
    return "" if record.output is None or record.output == record.text else readable(record.output)


def answer_of(record: RunRecord) -> str:
    """Return all that the run gave: what it streamed, and below it what it returned, if that is something else."""
    result = result_of(record)
    return f"{record.text.rstrip()}\n\n{RETURNED}\n{result}" if record.text and result else record.text or result


RETURNED = "Return value:"


def question_lines(record: RunRecord) -> list[str]:
    """Return the run's questions, quoted, each with the command that answers it if the line has all of the question."""
    approve, show = (Fix(action, run_ref(record)).command for action in (Action.APPROVE, Action.SHOW))
    lines = []
    for asked in record.pending[:SHOWN_QUESTIONS]:
        args = "" if asked.args is None else readable(asked.args)
        told = _quoted(shown(args, 150)) if isinstance(asked.args, str) else visible(shown(args, 150))
        line = f"Waiting for you: {_quoted(shown(asked.message, 150))}{args and ' '}{told}"
        is_all = asked.message == shown(asked.message, 150) and args == shown(args, 150) and not record.is_brief
        if approve and is_all and is_whole(asked.args):
            choose = f" --choose {shown('|'.join(asked.options), 80)}" if asked.options else ""
            line += visible(f" – {approve} {asked.id}{choose}")  # by its id: it may be another one's turn by then
        elif show:
            line += f" – see all of it: {show}"
        lines.append(line)
    hidden = len(record.pending) - SHOWN_QUESTIONS
    return [*lines, f"… {counted(hidden, 'more question')}"] if hidden > 0 else lines


def _quoted(text: str) -> str:
    """Return what an agent says in quotes that it can't close, to go on in nbrun's own words."""
    inner = visible(text).replace("“", '"').replace("”", '"')
    return f"“{inner}”"


def always_words(record: RunRecord) -> str:
    """Return which tools are allowed for the rest of the run; empty if none."""
    tools = ", ".join(shown(tool, 60) for tool in record.always[:5])
    more = " …" if len(record.always) > 5 else ""
    return visible(f"Always allowed in this run: {tools}{more}") if tools else ""


def steer_words(record: RunRecord) -> str:
    """Return one line about the messages to the agent, and whether it has read them; empty if none."""
    if not record.steers:
        return ""
    last = f"“{visible(shown(record.steered[-1].text, 100))}”" if record.steered else ""
    if record.steers == 1 and record.steered:
        return f"Message to the agent: {last} ({receipt_words(record.steered[0], record)})"
    unread = record.steers - record.steers_taken
    what = "all read" if unread <= 0 else f"{unread:,} {_unread_words(record)}"
    return f"{counted(record.steers, 'message')} to the agent{last and f', the last {last}'} ({what})"


def receipt_words(message: Steered, record: RunRecord) -> str:
    """Return what became of a message to the agent: `read after 2.5 s`, `not read yet`."""
    if message.taken_at is None:
        return _unread_words(record)
    return f"read after {duration(max(0.0, message.taken_at - message.at))}"


def _unread_words(record: RunRecord) -> str:
    return "not read yet" if record.is_live else "never read"


def resolution_words(resolved: ev.ApprovalResolved, limit_s: float | None, cause: CancelCause | None) -> str:
    """Return how a question was answered, if not from here: `denied: no answer in 3 s`.

    It could be answered for `limit_s` seconds; `cause` is why the run is being cancelled, if it is.
    """
    decision = {"allow": "allowed", "deny": "denied"}.get(resolved.decision, resolved.decision)
    match resolved.by:
        case "deadline":
            late = "in time" if limit_s is None else f"in {_round_duration(round(limit_s, 1))}"
            return f"{decision}: no answer {late}"
        case "cancel" if cause is CancelCause.DEADLINE:
            return f"{decision}: the run timed out"
        case "cancel":
            return f"{decision}: the run is being cancelled"
        case "always":
            return f"{decision}: its tool is always allowed in this run"
        case "agent":
            return f"{decision}: the agent no longer waits for it"
        case by:
            return visible(f"{shown(decision, 80)} {_by(by)}")


def files_words(record: RunRecord) -> str:
    """Return the agent's files, only the last of many, and how to get them; empty if none."""
    if not record.file_count:
        return ""
    named = [f"{shown(made.name, 80)} ({size_words(made.size)})" for made in record.files[-5:]]
    more = "…, " if record.file_count > len(named) else ""
    files = f"{counted(record.file_count, 'file')}: {more}{', '.join(named)}"
    return f"{files} · {python_call(record)}.artifacts"


def python_call(record: RunRecord) -> str:
    """Return the Python call that gets the run."""
    return f'nbrun.get("{record.run_id}")'


# --- related runs ----------------------------------------------------------------------------------

AGENT = "NAME"
"""Stands for the agent that the user has to name."""
SHOWN_UNSIGNED = 20
"""How many runs are described one by one before they are trusted, with their prompts; the others by what they name."""
_TRUSTING = (
    "Not signed by your nbrun: recorded before it signed runs, on another computer, or by somebody else. "
    "Once trusted, resume and retry run what they name:"
)
_UNSIGNED = "your nbrun hasn't signed this run; name an agent to continue from its history"
_NAMED = ("agent", "prompt", *POLICIES)
_UNPROMPTED = ("agent", *POLICIES)
_ORIGIN = {ev.RESUME: "resumed from", ev.RETRY: "retry of", ev.REPLAY: "replay of", ev.CONTINUE: "continues"}
_BECAME = {ev.RESUME: "resumed as", ev.RETRY: "retried as", ev.REPLAY: "replayed as", ev.CONTINUE: "continued as"}


def named_by(made: RunRecord | ev.RunCreated, *names: str) -> str:
    """Return what a run that may be anybody's names: its agent, prompt and policies, or only these, in one line."""
    named: dict[str, Plain] = {"agent": made.model or made.target or made.agent, "prompt": made.prompt, **made.options}
    return "; ".join(f"{name}: {shown(named[name], 100)}" for name in names or _NAMED if name in named)


def trust_words(runs: Sequence[tuple[int, ev.RunCreated, bool]]) -> tuple[str, str]:
    """Return what a person is told before runs are trusted, and the question.

    Parameters
    ----------
    runs : the number of each, what it was started with, and whether it has a checkpoint.
    """
    ends = [
        named_by(made, *(() if at < SHOWN_UNSIGNED else _UNPROMPTED)) + ("; with a checkpoint" if has_state else "")
        for at, (_, made, has_state) in enumerate(runs)
    ]
    lines = [f"#{number} ({shown(made.name, 80)}): " for number, made, _ in runs[:SHOWN_UNSIGNED]]
    lines = [line + end for line, end in zip(lines, ends, strict=False)]
    # The others together, but nothing that they name is left out: it is decided about, too.
    others = Counter(ends[SHOWN_UNSIGNED:])
    lines += [f"… and {count:,} more: {end}" for end, count in others.items()]
    what = "this run" if len(runs) == 1 else f"these {len(runs):,} runs"
    return printable("\n".join([_TRUSTING, *lines])), f"Trust {what}? [y/N] "


def origin_words(record: RunRecord) -> str:
    """Return which run this one comes from: `resumed from #3`; empty if from no other."""
    origin = record.origin
    if origin is None:
        return ""
    where = "a recorded run" if origin.kind == ev.REPLAY else "a run in another store"
    ref = f"{where} ({origin.name})" if origin.number is None else f"#{origin.number}"
    return f"{_ORIGIN.get(origin.kind, 'comes from')} {ref}"


def with_followups(record: RunRecord, followups: Sequence[tuple[int, str]]) -> RunRecord:
    """Return the record with the runs that come from this one."""
    return msgspec.structs.replace(record, followups=tuple(followups)) if followups else record


def followup_notes(record: RunRecord) -> list[str]:
    """Return where a run comes from, which runs come from it, and how to resume it."""
    named = [f"{_BECAME.get(kind, 'followed by')} #{number}" for number, kind in record.followups]
    notes = [attempt_words(record), origin_words(record), ", ".join(named if len(named) <= 5 else ["…", *named[-5:]])]
    is_resumed = any(kind == ev.RESUME for _, kind in record.followups)
    has_state = record.checkpoint is not None or record.resumed_from is not None
    if has_state and not record.is_replay and not is_resumed and record.status in _RESUMABLE:
        purpose, agent = (_UNSIGNED, AGENT) if record.is_unsigned else ("", "")
        notes.append(str(Fix(Action.RESUME, run_ref(record), purpose=purpose, agent=agent)))
    return [sentence(note) for note in notes if note]


def sentence(text: str) -> str:
    """Return a text that begins with a capital."""
    return text[:1].upper() + text[1:]


# --- what it used ----------------------------------------------------------------------------------


def tokens_words(usage: ev.Usage) -> str:
    """Return `≥ 1,204 in · 340 out`, with `≥` where a stream was cut; empty if none were reported."""
    if not usage.input_tokens and not usage.output_tokens:
        return ""
    return f"{_bound(usage)}{usage.input_tokens:,} in · {usage.output_tokens:,} out"


def cost_words(usage: ev.Usage) -> str:
    """Return the cost so far, with `≥` where a stream was cut; empty if none was reported."""
    cost = money(usage.cost_usd)
    return cost and f"{_bound(usage)}{cost}"


def usage_words(usage: ev.Usage) -> str:
    """Return what was used, for a sentence: `1,204 in · 340 out tokens · $0.0123`; empty if nothing was."""
    tokens = tokens_words(usage)
    return " · ".join(filter(None, [tokens and f"{tokens} tokens", cost_words(usage)]))


def call_words(call: ModelCall, *, is_named: bool = True) -> str:
    """Return all that is known of a model call: `openai gpt-4o · 1,204 in (1,000 cached) · 340 out · 2.1 s …`.

    `is_named` is whether its provider and model are named.
    """
    usage = call.usage or ev.Usage()
    cached = f" ({usage.cache_read_tokens:,} cached)" if usage.cache_read_tokens else ""
    thought = f" ({usage.reasoning_tokens:,} reasoning)" if usage.reasoning_tokens else ""
    tokens = f"{usage.input_tokens:,} in{cached} · {usage.output_tokens:,} out{thought}" if call.usage else ""
    took = "" if call.ms is None else duration(call.ms / 1000)
    is_streamed = call.ms is not None and call.first_ms is not None and call.first_ms < 0.9 * call.ms
    first = f" (first token after {duration((call.first_ms or 0.0) / 1000)})" if is_streamed else ""
    ended = "" if call.status in ("ok", "running") or call.error else call.status
    again = "" if call.retry_after is None else f"retry after {duration(call.retry_after)}"
    facts = [
        _asked(call.provider, call.model) if is_named else "",
        tokens,
        "" if call.source in ANSWERED else cost_words(usage),
        f"{took}{first}",
        *_sourced(call.source, call.waited_ms),
        _waits(call),
        ended,
    ]
    line = " · ".join(fact for fact in (*facts, call.error and shown(call.error, 120), again) if fact)
    return line or call.status


def call_lines(group: CallGroup, count: int) -> list[str]:
    """Return the last `count` model calls of a group, a line each; a model is named where there are several."""
    is_named = len({(call.provider, call.model) for call in group.last}) > 1
    return [call_words(call, is_named=is_named) for call in group.last[-count:]]


def group_words(group: CallGroup) -> str:
    """Return the model calls of a group in one line: `8 model calls · openai gpt-4o · 9,120 in · 610 out · 1 failed`.

    A group of one is that call, in brief.
    """
    usage, last = group.usage, group.last
    asked = list({_asked(call.provider, call.model): None for call in last})
    facts = [counted(group.count, "model call")] if group.count > 1 else []
    facts += [", ".join(asked[:2]) + (" …" if len(asked) > 2 else ""), tokens_words(usage), cost_words(usage)]
    if group.count == 1:
        facts += _sourced(last[0].source if last else "live", group.waited_ms)
        facts += [_waits(call) for call in last]
        facts += [shown(call.error, 80) or call.status for call in last if call.status not in ("ok", "running")]
        return " · ".join(filter(None, facts)) or "model call"
    ended = group.count - group.running
    facts += [f"{duration(group.ms / ended / 1000)} each" if ended else "", *_sourced("live", group.waited_ms)]
    source = next((call.source for call in reversed(last) if call.source in ANSWERED), ANSWERED[0])
    counts = {"running": group.running, "failed": group.failed, f"from the {source}": group.answered}
    facts += [f"{count:,} {what}" for what, count in counts.items() if count]
    facts += [words for call in last[::-1] if (words := _waits(call))][:1]
    return " · ".join(filter(None, facts))


@functools.lru_cache(100)  # a run asks few, and a card says it for each of its calls
def _asked(provider: str, model: str) -> str:
    return shown(f"{provider} {model}", 80).strip()


def _sourced(source: str, waited_ms: float) -> list[str]:
    """Return how long calls had to wait for their turn, and where their answers come from."""
    waited = f"waited {duration(waited_ms / 1000)}" if waited_ms >= 100 else ""
    return [waited, f"from the {source}" if source in ANSWERED else ""]


def _waits(call: ModelCall) -> str:
    """Return until when a call waits for its turn, and why; empty if it doesn't."""
    if not call.waits_for:
        return ""
    return f"waiting until about {moment(call.waits_until, '%H:%M:%S')}: {shown(call.waits_for, 80)}"


def _bound(usage: ev.Usage) -> str:
    return "" if usage.exact else "≥ "
