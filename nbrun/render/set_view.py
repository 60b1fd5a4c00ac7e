"""What is shown of a set of runs, in words and signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from nbrun.core import RunRecord, RunStatus, duration, events as ev, shown
from nbrun.render import words

ORDER = (
    RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.LOST,
    RunStatus.CANCELLING, RunStatus.WAITING, RunStatus.RUNNING, RunStatus.QUEUED,
)  # fmt: skip
"""How the statuses follow one another in a bar: what has ended comes first."""
_SHAPES = {
    "running": words.SHAPES[RunStatus.RUNNING],
    "paused": ("‖", words.SHAPES[RunStatus.WAITING][1]),
    "cancelling": words.SHAPES[RunStatus.CANCELLING],
    "completed": words.SHAPES[RunStatus.COMPLETED],
    "cancelled": words.SHAPES[RunStatus.CANCELLED],
    "failed": words.SHAPES[RunStatus.FAILED],
    "lost": words.SHAPES[RunStatus.LOST],
}
_COUNTED = {RunStatus.WAITING: "waiting for you"}


class ErrorGroup(msgspec.Struct, frozen=True):
    """How many inputs failed with an error that begins so, and the numbers of some of their runs."""

    count: int
    error: str
    numbers: Sequence[int]

    def words(self, limit: int = 200) -> str:
        """Return the error, for one line; without a text it stands for all the others."""
        return shown(self.error, limit) if self.error else "other errors"


class QuestionGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Questions of a set's runs that ask the same, of each different arguments how many and one of them.

    `digest` names exactly these questions, and `kind` what they have in common; `numbers` are those of some runs.
    """

    digest: str
    kind: str
    count: int
    asked: Sequence[tuple[int, ev.ApprovalRequested]]
    numbers: Sequence[int]


class SetView(msgspec.Struct, frozen=True, kw_only=True):
    """A set as it is shown; times are epoch seconds, and `asked` runs were in progress when it was cancelled."""

    number: int
    name: str
    agent: str
    status: str
    stopped: str | None
    began_at: float
    ended_at: float | None
    size: int
    is_whole: bool
    is_sized: bool = False  # how many inputs there are is known before all were read
    counts: Mapping[RunStatus, int]
    usage: ev.Usage
    errors: Sequence[ErrorGroup] = ()
    questions: Sequence[QuestionGroup] = ()
    newest: Sequence[RunRecord] = ()
    slowest: Sequence[RunRecord] = ()
    left_behind: Sequence[str] = ()
    scores: Sequence[str] = ()
    scored: int = 0
    asked: int = 0
    stopping: Sequence[tuple[int, str]] = ()
    """While it is being cancelled: how many runs are still in progress, by the tool they are in, or the agent."""

    @property
    def is_size_known(self) -> bool:
        """Whether there will be no more inputs than `size`."""
        return self.is_whole or self.is_sized

    @property
    def is_live(self) -> bool:
        """Whether something of it is in progress, or will be."""
        return self.status in ("running", "paused", "cancelling")

    @property
    def shape(self) -> tuple[str, str]:
        """The sign of its status, and the colour of that."""
        return _SHAPES.get(self.status, _SHAPES["lost"])

    @property
    def title(self) -> str:
        """What it is called: `graded set #12`."""
        return f"{self.name} set #{self.number}" if self.name else f"set #{self.number}"

    @property
    def live_count(self) -> int:
        """How many of its runs are in progress."""
        return sum(self.counts.get(status, 0) for status in _IN_PROGRESS)

    @property
    def parts(self) -> list[tuple[RunStatus, int, str]]:
        """Each status that occurs, how many inputs have it, and both in words: `131 failed`."""
        found = [(status, self.counts.get(status, 0)) for status in ORDER]
        return [(status, count, f"{count:,} {_COUNTED.get(status, status)}") for status, count in found if count]

    @property
    def status_words(self) -> str:
        """Its status in words: `Running`, `Cancelling… 797 of 800 have stopped` …."""
        took = "" if self.ended_at is None else duration(max(0.0, self.ended_at - self.began_at))
        match self.status:
            case "cancelling" if self.asked:
                return f"Cancelling… {max(0, self.asked - self.live_count):,} of {self.asked:,} have stopped"
            case "cancelling":
                return "Cancelling…"
            case "completed" if took:
                return f"Completed in {took}"
            case "cancelled" if took:
                return f"Cancelled after {took}"
            case "failed":
                return f"Stopped: {shown(self.stopped or 'an error', 200)}"
            case "lost" if not self.is_whole:
                return "Lost before all inputs were read"
            case "lost":
                return "Lost: its kernel died"
            case other:
                return other.capitalize()

    @property
    def brief_words(self) -> str:
        """Its status and what matters of its counts, for a row of a table."""
        status = self.status_words if self.status in ("cancelling", "failed", "lost") else self.status.capitalize()
        if self.status == "cancelling":
            return status
        matters = self.parts
        if self.is_live:
            ended = sum(count for status, count, _ in self.parts if not status.is_live)
            status += f": {ended:,} of {self.size:,} ended"
            matters = [part for part in self.parts if part[0] in (RunStatus.FAILED, RunStatus.WAITING)]
        counts = ", ".join(text for _, _, text in matters)
        return f"{status}{', ' if self.is_live else ': '}{counts}" if counts else status

    @property
    def record(self) -> RunRecord:
        """The set as a row of a table of runs."""
        status = {"paused": RunStatus.WAITING}.get(self.status) or RunStatus(self.status)
        return RunRecord(
            run_id=f"set-{self.number}", name=self.title, agent=self.agent, status=status, created_at=self.began_at,
            started_at=self.began_at, ended_at=self.ended_at, last_event_at=self.ended_at or self.began_at,
            usage=self.usage,
        )  # fmt: skip

    @property
    def facts(self) -> list[str]:
        """The agent, if it is called otherwise, and what its runs used."""
        agent = shown(self.agent, 100) if self.agent != self.name else ""
        return [part for part in (agent, words.usage_words(self.usage)) if part]

    @property
    def notes(self) -> list[str]:
        """What else is to be said, each in one line."""
        scores = " · ".join([*self.scores[:5], f"{self.scored:,} of {self.size:,} scored"]) if self.scored else ""
        left = ", ".join(
            [f"{count:,} × {shown(name, 60)}" for count, name in self.stopping[:5]]
            + [shown(name, 60) for name in self.left_behind[:5]]
        )
        reason = self.stopped if self.status == "cancelled" and self.stopped != "cancelled" else ""
        return [
            note for note in (scores, shown(reason, 200) if reason else "", left and f"Still running: {left}") if note
        ]


def ended_as(stopped: str | None) -> str:
    """Return the status of a set that has ended, by what stopped it."""
    if stopped is None:
        return "completed"
    return "cancelled" if stopped.startswith("cancelled") else "failed"


_IN_PROGRESS = (RunStatus.RUNNING, RunStatus.WAITING, RunStatus.CANCELLING)


def member_words(record: RunRecord, limit: int = 60) -> str:
    """Return what a row calls a run of a set: its key, or the place of its input."""
    member = record.member
    key = "" if member is None else shown(member.key, limit) if member.key is not None else f"input {member.index}"
    return f"{words.run_ref(record)} {key}".strip()


def output_words(record: RunRecord, limit: int = 160) -> str:
    """Return what a run gave, or why it failed, in one line."""
    if record.error is not None:
        return shown(str(record.error), limit)
    return shown(words.answer_of(record) or words.status_words(record), limit)
