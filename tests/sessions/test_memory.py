"""What ended runs hold in memory: little, and of removed ones nothing."""

from __future__ import annotations

import gc
import threading
import traceback
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nbrun import NotebookSession, Run, RunRecord
from nbrun.core.errors import RunFailed
from nbrun.core.values import sized
from nbrun.sessions import catalog
from nbrun.ui.cards.board import CardBoard
from tests.fakes.agents import BOUND_S

MB = 1_000_000


class Returns:
    """An agent that returns what it is given a way to make; `made` are weak references to that."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self.made: list[weakref.ref[object]] = []

    async def __call__(self, prompt: str) -> object:
        """Return a new one."""
        value = self._make()
        self.made.append(weakref.ref(value))
        return value

    @property
    def alive(self) -> list[int]:
        """The places of those that are still in memory."""
        gc.collect()
        return [at for at, ref in enumerate(self.made) if ref() is not None]


class Frame:
    """An object that says nothing of its size."""

    def __init__(self) -> None:
        self.data = np.zeros(4_000)


def all_ended(session: NotebookSession, agent: object, count: int) -> list[Run]:
    """Run the agent so many times, one after the other; the session has noted all their ends.

    Runs that are started together may end in another order: an output that is not simple is read in a thread.
    """
    noted = threading.Semaphore(0)

    def note(record: RunRecord, _events: object) -> None:
        if not record.is_live:
            noted.release()

    stop = session.listen(note)
    runs = []
    for _ in range(count):
        runs.append(session.start(agent))
        assert noted.acquire(timeout=BOUND_S)
    stop()
    return runs


def until(session: NotebookSession, is_met: Callable[[], bool]) -> None:
    """Return when it is met: some turns of the host's loop after the ends, on which tasks are still ending.

    What an agent has made is released on threads of its own, which are waited for.
    """
    for _ in range(100):
        if is_met():
            return
        session.ping_hosts(BOUND_S)
        for thread in threading.enumerate():
            if thread.name == "nbrun-release":
                thread.join(BOUND_S)
    raise AssertionError("it is not met")


def test_outputs_of_removed_runs_are_freed(session: NotebookSession) -> None:
    """Also where somebody has the run's handle, or it has a card; nothing of it is left in memory."""
    agent, board = Returns(Frame), CardBoard(session, "kernel", lambda _content: {})
    runs = all_ended(session, agent, 5)
    states = [board.state(run.live) for run in runs if run.live is not None]
    assert len(states) == 5
    assert [run.output is not None for run in runs] == [True] * 5
    session.remove(runs[0])
    until(session, lambda: agent.alive == [1, 2, 3, 4])
    session.remove_ended()
    until(session, lambda: agent.alive == [])
    assert "Frame" in str(runs[0].output)
    board.close(5)


@pytest.mark.parametrize("make", [lambda: b"x" * MB, lambda: "x" * MB], ids=["bytes", "str"])
def test_removed_outputs_take_no_memory(session: NotebookSession, make: Any) -> None:
    """20 outputs of 1 MB, which are stored whole as well, removed: none of that memory is held."""

    async def agent(prompt: str) -> object:
        return make()

    all_ended(session, agent, 1)
    session.remove_ended()
    tracemalloc.start(1)
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20):
            all_ended(session, agent, 1)
        session.remove_ended()

        def is_free() -> bool:
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before < MB

        until(session, is_free)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", [Frame, lambda: np.zeros(4_000), lambda: pd.DataFrame({"a": np.zeros(4_000)})])
def test_ended_runs_are_bounded_in_bytes(
    session: NotebookSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, make: Any
) -> None:
    """As many of the newest outputs stay as the limit allows; the others are read from the store, and it says so."""
    monkeypatch.setattr(catalog, "KEEP_ENDED_BYTES", 100_000)
    agent = Returns(make)
    runs = all_ended(session, agent, 10)
    until(session, lambda: agent.alive in ([7, 8, 9], [8, 9]))
    assert runs[9].output is agent.made[9]()
    assert not caplog.records
    for run in (runs[0], session.get(1)):
        caplog.clear()
        assert type(agent.made[9]()).__name__ in str(run.output)
        assert ["is not in memory, and only a repr" in record.getMessage() for record in caplog.records] == [True]


def test_the_newest_output_stays_whatever_its_size(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has just waited for a run gets what it returned."""
    monkeypatch.setattr(catalog, "KEEP_ENDED_BYTES", 1)
    agent = Returns(Frame)
    for _ in range(3):
        (run,) = all_ended(session, agent, 1)
        assert run.output is agent.made[-1]()
    until(session, lambda: agent.alive == [2])


def test_errors_hold_no_variables(session: NotebookSession) -> None:
    """Of all failed runs but the newest, the variables in the traceback are freed; its lines stay."""
    made: list[weakref.ref[object]] = []

    async def fails(prompt: str) -> None:
        frame = Frame()
        made.append(weakref.ref(frame))
        raise ValueError("no tea") from KeyError("pot")

    runs = all_ended(session, fails, 3)

    def alive() -> list[bool]:
        gc.collect()
        return [ref() is not None for ref in made]

    until(session, lambda: alive() == [False, False, True])
    with pytest.raises(RunFailed) as failure:
        runs[0].result()
    assert "raise ValueError" in "".join(traceback.format_exception(failure.value))
    session.remove_ended()
    until(session, lambda: alive() == [False, False, False])


def test_what_memory_does_not_keep_is_whole_in_the_store(
    session: NotebookSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Text and data come back as they were, from a handle of before and to a card, and no one is warned."""
    monkeypatch.setattr(catalog, "KEEP_ENDED_BYTES", 1)
    monkeypatch.setattr(catalog, "KEEP_ENDED", 1)
    words = "word " * 1_000

    async def talks(prompt: str) -> Any:
        yield words

    async def returns(prompt: str) -> object:
        return {"words": words}

    talked, returned = session.start(talks), session.start(returns)
    assert talked.wait(BOUND_S)
    assert returned.wait(BOUND_S)
    board = CardBoard(session, "kernel", lambda _content: {})
    live = talked.live
    assert live is not None
    all_ended(session, talks, 1)
    until(session, lambda: live.record.is_brief)
    assert (talked.output, talked.text) == (words, words)
    assert returned.output == {"words": words}
    assert board.state(live)["result"] == words
    assert not caplog.records


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (None, 0), ("x" * 5_000, 5_000), (b"x" * 3_000, 7_000), (np.zeros(1_000), 8_000), ([np.zeros(500)] * 3, 12_000),
        ({"a": "x" * 1_000, "b": [1, 2.5]}, 1_000), (pd.Series(np.zeros(1_000)), 8_000), (Frame(), 32_000),
        (list(range(1_000)), 16_000),
    ],
)  # fmt: skip
def test_the_size_of_an_output_is_about_right(value: object, size: int) -> None:
    """Of arrays, tables and objects that hold them, text, bytes and data: their memory, with the stored form."""
    _, found = sized(value)
    assert size <= found <= size + 300
