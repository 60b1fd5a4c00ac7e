"""Words: how a run's state reads, everywhere the same."""

from __future__ import annotations

import msgspec
import pytest

from nbrun import CancelCause, RunRecord, RunStatus
from nbrun import events as ev
from nbrun.wording import UNLOAD, duration, status_words, tokens_words


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
)  # fmt: skip
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
        (CancelCause.SHUTDOWN, "Cancelled by the kernel's shutdown after 1 min 30 s"),
    ],
)
def test_each_cause_of_a_cancel_has_its_words(cause: CancelCause, words: str) -> None:
    """Why it was cancelled, and after how long; before its start, that."""
    record = msgspec.structs.replace(
        RECORD, status=RunStatus.CANCELLED, cause=cause, started_at=100.0, ended_at=190.0
    )
    assert status_words(record) == words
    if cause is CancelCause.SHUTDOWN:
        unloaded = msgspec.structs.replace(record, cancelled_by=UNLOAD)
        assert status_words(unloaded) == "Cancelled because nbrun was unloaded after 1 min 30 s"
    unentered = msgspec.structs.replace(record, started_at=None)
    assert status_words(unentered).endswith(" before it began")


def test_what_still_runs_is_named() -> None:
    """A cancelled run that left work behind does not look as if all had stopped."""
    record = msgspec.structs.replace(
        RECORD, status=RunStatus.CANCELLED, cause=CancelCause.USER, started_at=1.0, ended_at=2.0,
        detached=("search", "fetch"),
    )  # fmt: skip
    assert status_words(record) == "Cancelled by you after 1.0 s; still running: search, fetch"


def test_tokens_are_shown_where_they_were_told() -> None:
    """Without usage nothing is said; a lower bound says that it is one."""
    assert tokens_words(RECORD) == ""
    exact = tokens_words(msgspec.structs.replace(RECORD, usage=ev.Usage(1200, 34)))
    assert "1,200" in exact
    assert "34" in exact
    assert "≥" not in exact
    bound = tokens_words(msgspec.structs.replace(RECORD, usage=ev.Usage(1200, 34, exact=False)))
    assert "≥ 1,200" in bound
    assert "34 out" in bound
