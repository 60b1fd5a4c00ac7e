"""The board without a page: in which order it draws, and how many messages it has sent in any second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from nbrun import NotebookSession
from nbrun.ui.cards.board import CardBoard, Drawable, Priority

PER_SECOND = 20
OF_ONE_CARD = 10


class Drawings:
    """What was drawn, in order, and when."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.times: list[float] = []
        self._changed = threading.Condition()

    def note(self, name: str) -> None:
        """Take one more."""
        with self._changed:
            self.times.append(time.monotonic())
            self.names.append(name)
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[str]:
        """Return the first so many names, once they are there."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.names) >= count, timeout=15)
            return self.names[:count]

    def busiest_second(self) -> int:
        """Return how many there were within any one second."""
        return max(sum(start <= at < start + 1 for at in self.times) for start in self.times)


class Sketch(Drawable):
    """Something to draw; the end of a run, which is drawn by two messages, or a run that goes on."""

    def __init__(self, name: str, drawings: Drawings, priority: Priority = Priority.LIVE) -> None:
        super().__init__()
        self.name = name
        self.priority = priority
        self.on_draw: Callable[[], object] = lambda: None
        self._drawings = drawings
        self._is_begun = False

    def draw(self) -> bool:
        """Note its name; of an end, with its output behind it."""
        self._drawings.note(self.name + (" output" if self._is_begun else ""))
        self._is_begun = not self._is_begun and self.priority is Priority.ENDED
        self.on_draw()
        return self._is_begun


@pytest.fixture
def board(session: NotebookSession) -> Iterator[CardBoard]:
    """A board, closed at the end."""
    board = CardBoard(session, "kernel", lambda _content: {})
    yield board
    board.close(5)


def test_each_is_drawn_by_priority(board: CardBoard) -> None:
    """Endings first, each finished before the next, then running runs, then queued ones; each change once.

    Every fourth slot is of what changed first, so that a wave of endings, or of words, leaves something to the others.
    """
    drawings, is_marked = Drawings(), threading.Event()
    first = Sketch("first", drawings)
    first.on_draw = is_marked.wait
    board.mark(first)
    drawings.wait_for(1)
    priorities = {"line": Priority.QUEUED, "live": Priority.LIVE, "end": Priority.ENDED}
    names = ("line 1", "line 2", "live 1", "end 1", "live 2", "live 1", "end 2", "end 3", "end 1")
    sketches = {name: Sketch(name, drawings, priorities[name[:-2]]) for name in names}
    for name in names:
        board.mark(sketches[name])
    is_marked.set()
    assert drawings.wait_for(11)[1:] == [
        "end 1", "end 1 output", "end 2", "end 2 output", "line 1", "end 3", "end 3 output",
        "live 1", "live 2", "line 2",
    ]  # fmt: skip


def test_a_change_while_the_output_is_due_is_drawn_again(board: CardBoard) -> None:
    """A card that changes between its two messages is not taken for drawn."""
    drawings = Drawings()
    ended = Sketch("end", drawings, priority=Priority.ENDED)

    def change_once() -> None:
        ended.on_draw = lambda: None
        board.mark(ended)

    ended.on_draw = change_once
    board.mark(ended)
    assert drawings.wait_for(4) == ["end", "end output", "end", "end output"]


def test_no_second_has_more_messages_than_the_budget(board: CardBoard) -> None:
    """Endings count as the two messages that they are, also in a wave of them among cards that always change."""
    drawings = Drawings()
    lives = [Sketch(f"live {n}", drawings) for n in range(5)]
    for live in lives:
        live.on_draw = partial(board.mark, live)
        board.mark(live)
    drawings.wait_for(10)
    ends = [Sketch(f"end {n}", drawings, priority=Priority.ENDED) for n in range(10)]
    for end in ends:
        board.mark(end)
    drawings.wait_for(50)
    assert drawings.busiest_second() <= PER_SECOND
    for live in lives:
        live.on_draw = lambda: None
    assert {end.name + " output" for end in ends} <= set(drawings.names)


def test_one_card_has_half_of_the_budget(board: CardBoard) -> None:
    """A run that says something all the time, alone in its notebook, is drawn ten times a second at most."""
    drawings = Drawings()
    live = Sketch("live", drawings)
    live.on_draw = lambda: board.mark(live)
    board.mark(live)
    drawings.wait_for(15)
    live.on_draw = lambda: None
    assert drawings.busiest_second() <= OF_ONE_CARD


def test_the_last_drawing_waits_for_nothing(board: CardBoard) -> None:
    """A kernel that ends has little time: all that has changed is drawn at once."""
    drawings = Drawings()
    for n in range(200):
        board.mark(Sketch(f"end {n}", drawings, priority=Priority.ENDED))
    board.close(10)  # within the budget they would take 20 seconds
    assert sum(name.endswith("output") for name in drawings.names) == 200
