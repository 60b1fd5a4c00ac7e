"""Paging: any page of a stored log is that slice of it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from nbrun import CancelCause, RunRecord
from nbrun.core import events as ev
from nbrun.core.record import fold
from nbrun.store import Checkpointed, Committed, open_for_writing, queries as reader
from nbrun.store.writer import Writer
from tests.fakes.agents import BOUND_S
from tests.fakes.clock import NOON, FakeClock


class Given:
    """A source that hands over one batch of events a commit."""

    checkpoints: dict[str, Checkpointed] = {}  # noqa: RUF012 - there are none

    def __init__(self, batches: list[list[ev.RunEvent]]) -> None:
        self._batches = batches
        self.writer: Writer | None = None
        self.done = threading.Event()
        self.problems: list[str] = []

    @property
    def has_waiting(self) -> bool:
        """Whether there are more batches."""
        return bool(self._batches)

    def drain(self) -> list[ev.RunEvent]:
        """Return the next batch."""
        return self._batches.pop(0) if self._batches else []

    def record(self, run_id: str) -> RunRecord | None:
        """Return nothing: no run of these ends before its last event."""
        return None

    def known(self) -> list[RunRecord]:
        """Return nothing, for the same reason."""
        return []

    def warn(self, text: str) -> bool:
        """Note it: nothing befalls a store in memory."""
        self.problems.append(text)
        return True

    def refuse(self, run_id: str) -> None:
        """Note it: none of these has an id that is taken."""
        self.problems.append(f"{run_id} was refused")

    def publish(self, committed: list[Committed]) -> None:
        """Ask to be called again while there is more."""
        self.problems += [item.problem for item in committed if item.problem is not None]
        if self._batches:
            assert self.writer is not None
            self.writer.wake(is_urgent=True)
        else:
            self.done.set()


def written(batches: list[list[ev.RunEvent]]) -> sqlite3.Connection:
    """Return a store in memory after these batches were committed, one by one."""
    connection = open_for_writing(None)
    source = Given(list(batches))
    source.writer = Writer(connection, threading.RLock(), source, session_id="s", notebook=None, clock=FakeClock())
    source.writer.wake(is_urgent=True)
    assert source.done.wait(BOUND_S)
    assert source.problems == []
    # Not close(): that closes the connection, and this store is in memory.
    copy = sqlite3.connect(":memory:", check_same_thread=False)
    with source.writer._file._lock:
        connection.backup(copy)
    assert source.writer.close(BOUND_S)
    return copy


DATA = st.one_of(
    st.text(max_size=5).map(ev.TextDelta),
    st.text(max_size=5).map(ev.TextDelta),
    st.text(max_size=5).map(ev.ReasoningDelta),
    st.text(max_size=5).map(ev.Log),
    st.just(ev.RunPhase("p")),
    st.just(ev.Unknown("oracle.spoke", {"x": [1]})),
)
ITEM = st.tuples(DATA, st.integers(1, 2), st.sampled_from([None, "tool-1"]), st.integers(0, 2_000_000))


@given(
    items=st.lists(ITEM, max_size=60),
    cuts=st.lists(st.integers(0, 62), max_size=8),
    pages=st.lists(st.tuples(st.integers(-2, 65), st.none() | st.integers(0, 70)), max_size=8),
)
@settings(max_examples=80, deadline=None)
def test_any_page_is_that_slice_of_the_log(
    items: list[tuple[ev.EventData, int, str | None, int]], cuts: list[int], pages: list[tuple[int, int | None]]
) -> None:
    """However the log was committed, what is read after any seq with any limit is exactly the slice."""
    data: list[tuple[ev.EventData, int, str | None, int]] = [
        (ev.RunCreated(session_id="s", name="n", agent="a", prompt="p"), 0, None, 0),
        *items,
        (ev.RunCancelled(CancelCause.USER), 1, None, 0),
    ]
    moment, log = NOON, []
    for seq, (item, attempt, parent, step) in enumerate(data):
        moment = round((moment + step / 1_000_000) * 1_000_000) / 1_000_000
        log.append(ev.RunEvent(seq, moment, "run-1", attempt, item, parent))
    edges = [0, *sorted(min(cut, len(log)) for cut in cuts), len(log)]
    batches = [log[start:end] for start, end in pairwise(edges) if start < end]
    connection = written(batches)
    try:
        everything = reader.read_events(connection, 1)
        numbered = ev.RunCreated(session_id="s", name="n", agent="a", prompt="p", number=1)
        assert everything[0].data == numbered
        assert everything[1:] == log[1:]
        for after, limit in pages:
            expected = [event for event in everything if event.seq > after][:limit]
            assert reader.read_events(connection, 1, after, limit) == expected
        assert reader.read_record(connection, 1) == fold(everything)
    finally:
        connection.close()


@pytest.fixture
def many() -> Iterator[sqlite3.Connection]:
    """A store in memory with seven runs."""
    batches = [
        [
            ev.RunEvent(0, NOON, f"run-{number}", 0, ev.RunCreated(session_id="s", name="n", agent="a")),
            ev.RunEvent(1, NOON, f"run-{number}", 1, ev.RunCompleted(number)),
        ]
        for number in range(1, 8)
    ]
    connection = written(batches)
    yield connection
    connection.close()


def test_runs_are_paged_newest_first(many: sqlite3.Connection) -> None:
    """Walking by `before` gives every run once, newest first."""
    walked: list[int] = []
    while page := reader.read_runs(many, 3, walked[-1] if walked else None):
        walked += [stored.number for stored in page]
    assert walked == [7, 6, 5, 4, 3, 2, 1]
    assert reader.read_runs(many, 0) == []


def test_an_unknown_run_has_no_events(many: sqlite3.Connection) -> None:
    """A number that no run has gives nothing, and no error."""
    assert reader.read_events(many, 99) == []
    assert reader.read_run(many, 99) is None
    assert reader.find_run(many, "nobody") is None


@pytest.mark.parametrize("blob", [b"", b"\xc1", b"\x93\xa1x\x91\x02\x90"])
def test_a_damaged_row_keeps_its_numbers(many: sqlite3.Connection, blob: bytes) -> None:
    """What cannot be read is marked, and opens no gap before what comes after it."""
    many.execute(
        "INSERT INTO events (run, seq, count, ts, attempt, parent, type, data)"
        " VALUES (1, 2, 3, 0, 1, NULL, 'text.delta', ?)",
        (blob,),
    )
    events = reader.read_events(many, 1)
    assert [event.seq for event in events] == [0, 1, 2, 3, 4]
    assert all(isinstance(event.data, ev.Unknown) for event in events[2:])
