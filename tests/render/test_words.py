"""Words: how a run's state reads, everywhere the same."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from html import escape
from typing import Any

import msgspec
import pytest

from nbrun import CancelCause, RunRecord, RunStatus
from nbrun.core import Plain, events as ev
from nbrun.core.cancellation import Rung
from nbrun.core.quantities import duration
from nbrun.core.record import UNLOAD, Steered
from nbrun.render.static_card import bundle
from nbrun.render.words import (
    always_words,
    cancel_notes,
    cost_words,
    followup_notes,
    origin_words,
    progress_words,
    queued_words,
    status_words,
    steer_words,
    tokens_words,
    trust_words,
    with_followups,
)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 ms"),
        (0.04, "40 ms"),
        (2.5, "2.5 s"),
        (12.4, "12 s"),
        (59.4, "59 s"),
        (90.0, "1 min 30 s"),
        (185.0, "3 min 5 s"),
        (7800.0, "2 h 10 min"),
    ],
)
def test_a_length_of_time_reads_as_people_say_it(seconds: float, words: str) -> None:
    """Milliseconds, seconds, minutes, hours: at most two units."""
    assert duration(seconds) == words


RECORD = RunRecord(name="tea", created_at=100.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": RunStatus.QUEUED}, "Queued"),
        ({"status": RunStatus.RUNNING}, "Running"),
        ({"status": RunStatus.WAITING}, "Waiting for you"),
        ({"status": RunStatus.CANCELLING}, "Cancelling…"),
        ({"status": RunStatus.COMPLETED, "started_at": 100.0, "ended_at": 102.5}, "Completed in 2.5 s"),
        ({"status": RunStatus.FAILED, "started_at": 100.0, "ended_at": 112.0}, "Failed after 12 s"),
        ({"status": RunStatus.LOST, "started_at": 100.0, "ended_at": 112.0}, "Lost: its kernel died"),
    ],
)
def test_each_status_has_its_words(fields: dict[str, object], words: str) -> None:
    """Live states by their name, endings with how long it took."""
    assert status_words(msgspec.structs.replace(RECORD, **fields)) == words


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (CancelCause.USER, "Cancelled by you after 1 min 30 s"),
        (CancelCause.INTERRUPT, "Interrupted after 1 min 30 s"),
        (CancelCause.DEADLINE, "Timed out after 1 min 30 s"),
        (CancelCause.BUDGET, "Over budget after 1 min 30 s"),
        (CancelCause.PARENT, "Cancelled with its parent after 1 min 30 s"),
        (CancelCause.REPLACED, "Replaced by a newer run after 1 min 30 s"),
        (CancelCause.SHUTDOWN, "Cancelled by kernel shutdown after 1 min 30 s"),
    ],
)
def test_each_cause_of_a_cancel_has_its_words(cause: CancelCause, words: str) -> None:
    """Why it was cancelled, and after how long; before its start, that."""
    record = msgspec.structs.replace(RECORD, status=RunStatus.CANCELLED, cause=cause, started_at=100.0, ended_at=190.0)
    assert status_words(record) == words
    if cause is CancelCause.SHUTDOWN:
        unloaded = msgspec.structs.replace(record, cancelled_by=UNLOAD)
        assert status_words(unloaded) == "Cancelled by unloading nbrun after 1 min 30 s"
    unentered = msgspec.structs.replace(record, started_at=None)
    assert status_words(unentered).endswith(" before it started")


def test_what_still_runs_is_named() -> None:
    """A cancelled run that left work behind does not look as if all had stopped."""
    record = msgspec.structs.replace(
        RECORD, status=RunStatus.CANCELLED, cause=CancelCause.USER, started_at=1.0, ended_at=2.0,
        detached=("search", "fetch"),
    )  # fmt: skip
    assert status_words(record) == "Cancelled by you after 1.0 s; still running: search, fetch"


def test_tokens_are_shown_where_they_were_told() -> None:
    """Without usage nothing is said; a lower bound says that it is one."""
    assert tokens_words(RECORD.usage) == ""
    exact = tokens_words(ev.Usage(1200, 34))
    assert "1,200" in exact
    assert "34" in exact
    assert "≥" not in exact
    bound = tokens_words(ev.Usage(1200, 34, exact=False))
    assert "≥ 1,200" in bound
    assert "34 out" in bound


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        (None, ""), (0.0, "$0.00"), (0.0000123, "$0.000012"), (0.0123, "$0.0123"), (1.5, "$1.50"),
        (12345.678, "$12,345.68"), (math.nan, ""), (math.inf, ""), (-1.0, ""),
    ],
)  # fmt: skip
def test_a_cost_reads_as_money(cost: float | None, words: str) -> None:
    """As exact as it matters; what is none, in somebody else's file, is not shown."""
    usage = ev.Usage(1, 2, cost_usd=cost)
    assert cost_words(usage) == words
    cut = msgspec.structs.replace(usage, exact=False)
    assert cost_words(cut) == (words and f"≥ {words}")


CANCELLED = msgspec.structs.replace(
    RECORD, status=RunStatus.CANCELLED, cause=CancelCause.USER, cancelled_by="card", started_at=100.0,
    cancel_requested_at=103.0, ended_at=105.1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("limit_s", "took_s", "words"),
    [
        (2.0, 2.04, "Timed out after 2 s"),
        (2.0, 4.5, "Timed out after 2 s (ended after 4.5 s)"),
        (0.25, 0.26, "Timed out after 0.25 s"),
        (90.0, 90.1, "Timed out after 1 min 30 s"),
        (600, 660.0, "Timed out after 10 min (ended after 11 min 0 s)"),
    ],
)
def test_a_time_limit_is_named(limit_s: float, took_s: float, words: str) -> None:
    """It timed out after what was allowed, not after what it took; that is told where it is longer."""
    record = msgspec.structs.replace(
        CANCELLED, cause=CancelCause.DEADLINE, options={"timeout_s": limit_s}, ended_at=100.0 + took_s
    )
    assert status_words(record) == words
    assert cancel_notes(record) == []


@pytest.mark.parametrize(
    ("rung", "words"),
    [
        (None, "Cancelling… (asking the agent)"),
        (Rung.NATIVE, "Cancelling… (asking the agent)"),
        (Rung.TASK, "Cancelling… (cancelling its task)"),
        (Rung.THREAD, "Cancelling… (stopping its thread)"),
        (Rung.PROCESS, "Cancelling… (killing its process)"),
        (Rung.DETACHED, "Cancelling…"),
    ],
)
def test_a_cancel_under_way_names_its_rung(rung: Rung | None, words: str) -> None:
    """Who waits for a stop sees what is being tried."""
    record = msgspec.structs.replace(RECORD, status=RunStatus.CANCELLING, started_at=100.0, rung=rung)
    assert status_words(record) == words


@pytest.mark.parametrize(
    ("cause", "by", "who"),
    [
        (CancelCause.USER, "card", "from the card"),
        (CancelCause.USER, "python", "from Python"),
        (CancelCause.USER, "magic", "with %agentrun cancel"),
        (CancelCause.USER, "server", "from the Jupyter server"),
        (CancelCause.SHUTDOWN, "shutdown", "by kernel shutdown"),
        (CancelCause.SHUTDOWN, UNLOAD, "by unloading nbrun"),
        (CancelCause.USER, "", "by someone"),
        (CancelCause.INTERRUPT, "python", "by an interrupt"),
        (CancelCause.REPLACED, "a newer run of the same cell", "by a newer run of the same cell"),
    ],
)
def test_a_slow_stop_is_told_with_its_times(cause: CancelCause, by: str, who: str) -> None:
    """Who asked, when by the clock on the wall, and how much later it stopped; nothing of it after a quick one."""
    record = msgspec.structs.replace(CANCELLED, cause=cause, cancelled_by=by)
    wall = datetime.fromtimestamp(103.0, UTC).astimezone().strftime("%H:%M:%S")
    assert cancel_notes(record) == [f"Cancel requested {who} at {wall}; stopped 2.1 s later"]
    assert cancel_notes(msgspec.structs.replace(record, ended_at=103.4)) == []


def test_a_reason_is_quoted() -> None:
    """It stands in front of the times; a run that was not cancelled has none to quote."""
    record = msgspec.structs.replace(CANCELLED, reason="too slow", ended_at=103.1)
    assert cancel_notes(record) == ["“too slow”"]
    assert cancel_notes(msgspec.structs.replace(record, status=RunStatus.LOST)) == []


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (0, "fetch ended 12 s after the run"),
        (1, "fetch ended 12 s after the run; 1 late event refused"),
        (3, "fetch ended 12 s after the run; 3 late events refused"),
    ],
)
def test_the_end_of_what_was_left_running_is_told(refused: int, words: str) -> None:
    """The status no longer says that it runs, and what it still sent is counted."""
    record = msgspec.structs.replace(
        CANCELLED, ended_at=103.1, detached=("fetch", "search"), detached_finished=("fetch",),
        detached_finished_at=115.1, refused=refused,
    )  # fmt: skip
    assert status_words(record) == "Cancelled by you after 3.1 s; still running: search"
    assert cancel_notes(record) == [words]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((0, 1, 8, 8), "Queued (next) · 8 of 8 slots busy"),
        ((0, 4, 8, 8), "Queued (next of 4) · 8 of 8 slots busy"),
        ((1, 2, 1, 8), "Queued (2nd of 2) · 1 of 8 slots busy"),
        ((2, 4, 1, 1), "Queued (3rd of 4) · 1 of 1 slots busy"),
        ((10, 30, 8, 8), "Queued (11th of 30) · 8 of 8 slots busy"),
        ((21, 30, 8, 8), "Queued (22nd of 30) · 8 of 8 slots busy"),
        ((0, 1, 8, 8, 2), "Queued (next) · 8 of 8 slots busy, 2 waiting for you"),
    ],
)
def test_a_queued_run_names_its_place(place: tuple[int, ...], words: str) -> None:
    """How many are before it, what all of them wait for, and who of these waits for a person."""
    assert queued_words(*place) == words


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (None, ""),
        (ev.Progress(3, 12, "pages"), "3 of 12 · pages"),
        (ev.Progress(1500, None), "1,500"),
        (ev.Progress(0.25, 1.0), "0.25 of 1"),
        (ev.Progress(math.nan, math.inf), "nan of inf"),
        (ev.Progress(1e300, 1e300), "1e+300 of 1e+300"),
    ],
)
def test_progress_reads_as_a_count(progress: ev.Progress | None, words: str) -> None:
    """Whole numbers without a fraction, and no number of an agent's is too much."""
    assert progress_words(progress) == words


ORIGIN = ev.Origin("resume", "run-x", 3, "tea")


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (None, ""),
        (ORIGIN, "resumed from #3"),
        (ev.Origin("retry", "run-x", 3), "retry of #3"),
        (ev.Origin("replay", "run-x", 3), "replay of #3"),
        (ev.Origin("replay", "run-x", None, "tea"), "replay of a recorded run (tea)"),
        (ev.Origin("acme", "run-x", 3), "comes from #3"),
    ],
)
def test_a_run_says_where_it_comes_from(origin: ev.Origin | None, words: str) -> None:
    """By the number in its store, or the name of a recording."""
    assert origin_words(msgspec.structs.replace(RECORD, origin=origin)) == words


@pytest.mark.parametrize("status", RunStatus)
def test_a_run_says_how_it_can_be_gone_on_with(status: RunStatus) -> None:
    """Where it has a checkpoint, or goes on from a run that has one, and has neither completed nor is live."""
    kept = msgspec.structs.replace(RECORD, status=status, number=4, checkpoint=ev.Checkpoint("c", 9))
    told = ["Resume from the last checkpoint: %agentrun resume #4"]
    can_be = status in (RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.LOST)
    assert followup_notes(kept) == (told if can_be else [])
    resumed = msgspec.structs.replace(kept, checkpoint=None, origin=ORIGIN)
    assert followup_notes(resumed) == ["Resumed from #3", *(told if can_be else [])]
    replay = msgspec.structs.replace(kept, origin=ev.Origin("replay", "run-x", 3))
    assert followup_notes(replay) == ["Replay of #3"]
    assert followup_notes(msgspec.structs.replace(kept, checkpoint=None)) == []


def test_a_run_says_what_has_come_of_it() -> None:
    """Each run that comes from it; once it is gone on with, no more how that can be done."""
    lost = msgspec.structs.replace(RECORD, status=RunStatus.LOST, number=4, checkpoint=ev.Checkpoint("c", 9))
    assert with_followups(lost, []) is lost
    retried = with_followups(lost, [(5, "retry"), (6, "replay")])
    words, how = followup_notes(retried)
    assert words == "Retried as #5, replayed as #6"
    assert how.endswith("%agentrun resume #4")
    assert followup_notes(with_followups(lost, [(5, "retry"), (7, "resume")])) == ["Retried as #5, resumed as #7"]
    many = with_followups(lost, [(number, "retry") for number in range(5, 50)])
    assert followup_notes(many)[0].startswith("…, retried as #45")


MESSAGE = Steered(1, "turn\u202e left", "card", "n1", 100.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"steers": 1, "steered": (MESSAGE,)}, "Message to the agent: “turn\\u202e left” (not read yet)"),
        (
            {"steers": 1, "steered": (MESSAGE,), "status": RunStatus.COMPLETED},
            "Message to the agent: “turn\\u202e left” (never read)",
        ),
        (
            {"steers": 1, "steers_taken": 1, "steered": (msgspec.structs.replace(MESSAGE, taken_at=102.5),)},
            "Message to the agent: “turn\\u202e left” (read after 2.5 s)",
        ),
        (
            {"steers": 3, "steers_taken": 1, "steered": (MESSAGE,)},
            "3 messages to the agent, the last “turn\\u202e left” (2 not read yet)",
        ),
        ({"steers": 3, "steers_taken": 3}, "3 messages to the agent (all read)"),  # a brief record
    ],
)
def test_what_was_said_to_an_agent_is_one_line(fields: dict[str, Any], words: str) -> None:
    """And whether it was read; it stands on the static card, in each of its forms."""
    record = msgspec.structs.replace(RECORD, **{"status": RunStatus.RUNNING, **fields})
    assert steer_words(record) == words
    for form in ("text/html", "text/markdown", "text/plain"):
        assert escape(words, quote=False) in bundle(record)[form]


def test_a_static_card_tells_what_is_always_allowed() -> None:
    """By the tools' names, and not all of very many."""
    record = msgspec.structs.replace(RECORD, always=("delete", "\u202erename"))
    assert "Always allowed in this run: delete, \\u202erename" in bundle(record)["text/plain"]
    many = msgspec.structs.replace(RECORD, always=tuple(f"tool{n}" for n in range(9)))
    assert always_words(many) == "Always allowed in this run: tool0, tool1, tool2, tool3, tool4 …"


def test_all_that_is_trusted_is_shown() -> None:
    """A run behind many others is decided about, too: only its prompt and its name are left out."""
    made = [(number, ev.RunCreated("s", "name", "poet", f"tea {number}"), False) for number in range(1, 501)]
    options: dict[str, Plain] = {"tools": ["delete"]}
    made[300] = (301, ev.RunCreated("s", "name", "x", "tea", target="os.system", options=options), True)
    text, question = trust_words(made)
    assert question == "Trust these 500 runs? [y/N] "
    assert text.splitlines()[21:] == [
        "… and 479 more: agent: poet", '… and 1 more: agent: os.system; tools: ["delete"]; with a checkpoint',
    ]  # fmt: skip
