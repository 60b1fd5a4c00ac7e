"""Live cards: one widget a run, drawn from its record, all of them updated by one thread."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

import anywidget
import ipywidgets
import msgspec
import traitlets

from nbrun.core.record import RunStatus
from nbrun.render.static_card import bundle
from nbrun.render.words import opening, question_lines, with_followups
from nbrun.sessions.run import queue_words
from nbrun.ui.cards.esm import page_module, page_style
from nbrun.ui.cards.markdown_blocks import Blocks
from nbrun.ui.cards.view import TOOL_LIMIT, view

if TYPE_CHECKING:
    from nbrun.core.record import RunRecord
    from nbrun.sessions.live_run import LiveRun
    from nbrun.sessions.session import NotebookSession

_log = logging.getLogger("nbrun")

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
SLOT_S = 0.05
"""A slot is one message, endings included: at most 20 a second of all cards together. What was drawn in a slot is not
drawn anew in the next one, so there are at most 10 updates a second of one card."""

KEEP_ENDED = 100
"""How many widgets of ended runs stay open, for pages in which no static output has taken their place."""

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class CardCode(ipywidgets.Widget):  # type: ignore[misc]  # it has no types
    """What the cards of a kernel are drawn by: a page has it once, and not with each of them, as anywidget has it."""

    text = traitlets.Unicode(page_module("card.js")).tag(sync=True)
    style = traitlets.Unicode(page_style("card.css", "people.css")).tag(sync=True)


class CardWidget(anywidget.AnyWidget):
    """The card in the page. One trait carries all it shows; `CardBoard`'s thread is its one writer."""

    _esm = page_module("code.js")
    code_id = traitlets.Unicode().tag(sync=True)
    run = traitlets.Dict().tag(sync=True)
    place = traitlets.Unicode().tag(sync=True)
    kernel_id = traitlets.Unicode().tag(sync=True)
    session_id = traitlets.Unicode().tag(sync=True)
    notify_after = traitlets.Float().tag(sync=True)

    def close(self) -> None:
        """Close it together with its layout, a widget of its own that would stay."""
        layout = self.layout
        super().close()
        layout.close()


class Turn(IntEnum):
    """Who is drawn first."""

    ENDED = 0
    LIVE = 1
    IN_LINE = 2  # of a long line each place changes with every run that begins


class Drawn(Protocol):
    """What the board's thread draws, in the context of the cell that it is in."""

    context: contextvars.Context

    @property
    def turn(self) -> Turn:
        """What it is to its reader, which says when it is drawn."""
        ...

    def draw(self) -> bool:
        """Send one message that brings the page up to date; return whether another has to follow. Raises nothing."""
        ...


class _Card:
    """A card on display: its widget, its output, and the context of the cell that it is in.

    `is_placed`: the page draws the widget over the static card that its output is. Else the output is the widget,
    of which a notebook file keeps a name that nobody finds again.
    """

    def __init__(
        self,
        live: LiveRun,
        widget: CardWidget,
        handle: Any,
        draw: Callable[[_Card], bool],
        is_placed: bool,
    ) -> None:
        self.live = live
        self._draw = draw
        self.widget = widget
        self.handle = handle
        self.blocks = Blocks()
        # A bare thread would send into whichever cell ran last.
        self.context = contextvars.copy_context()
        self.remove: Callable[[], None] = lambda: None
        self.followups: Sequence[tuple[int, str]] = ()
        self.says_asking = (
            False  # whether what a notebook file has of the run says that it asks something
        )
        self.is_placed = is_placed
        self._drawn_placed = is_placed
        self.is_end_due = False  # its state has been sent, and not yet the output in its place

    @property
    def turn(self) -> Turn:
        """Whether its run has ended, goes on or waits in line."""
        status = self.live.record.status
        if status is RunStatus.QUEUED:
            return Turn.IN_LINE
        return Turn.LIVE if status.is_live else Turn.ENDED

    def draw(self) -> bool:
        """Have its board draw it."""
        return self._draw(self)

    def bundle(self) -> dict[str, Any]:
        """Return the output as a page shows it, and as a notebook file keeps it for eyes without a kernel."""
        record = self.live.record
        self.says_asking = bool(record.pending)
        self._drawn_placed = self.is_placed
        data = self._in_place(bundle(record, self.live.problem))
        if self._drawn_placed:
            return data
        view = {"version_major": 2, "version_minor": 1, "model_id": self.widget.model_id}
        return {WIDGET_VIEW: view, **data}

    def is_outdated(self) -> bool:
        """Return whether the output of a live run is another by now; what the widget shows is no part of it."""
        asks = bool(self.live.record.pending)
        return asks != self.says_asking or self.is_placed != self._drawn_placed

    def static(self) -> dict[str, Any]:
        """Return the output of an ended run, for a page that asks; one that may change has its place still."""
        record, problem = self.live.record, self.live.problem
        data = bundle(with_followups(record, self.followups), problem)
        return data if problem is None and record.is_settled else self._in_place(data)

    def _in_place(self, data: dict[str, Any]) -> dict[str, Any]:
        html = f'<div class="nbrun-place {self.widget.place}">{data["text/html"]}</div>'
        return {**data, "text/html": html}


class CardBoard:
    """Shows cards and keeps them current.

    Threads: `show()` on the main thread; the listeners mark cards as changed on the writer's thread; the
    thread `nbrun-cards` alone writes traits and outputs after the first display. `_lock` guards the lists.

    Parameters
    ----------
    answer : does what a page asks for; called on whichever thread the kernel handles the message.
    notify_after : returns after how many seconds a run's end is told by the browser; looked at with each new card.
    """

    def __init__(
        self,
        session: NotebookSession,
        kernel_id: str,
        answer: Answer,
        notify_after: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._session = session
        self._notify_after = notify_after
        self._kernel_id = kernel_id
        self._answer = answer
        self._lock = threading.RLock()
        self._changed: list[Drawn] = []
        self._begun: Drawn | None = None  # of `nbrun-cards` alone: it has another message to send
        self._live: list[_Card] = []
        self._ended: deque[_Card] = deque()
        self._shown = 0
        self._code: CardCode | None = None
        self._is_placed = False  # whether the page has said that it draws cards in their places
        self._wake = threading.Event()
        self._is_closing = False
        self._slots = 0
        self._thread: threading.Thread | None = None

    def show(self, live: LiveRun) -> None:
        """Display a live card in the cell that is being run; when its run ends, the output becomes static."""
        from IPython.display import DisplayHandle, display

        self._shown += 1
        if self._code is None or self._code.comm is None:  # closed, as by `Widget.close_all()`
            self._code = CardCode()
        widget = CardWidget(
            code_id=self._code.model_id,
            run=self._view(live),
            kernel_id=self._kernel_id,
            session_id=self._session.id,
            place=f"nbrun-at-{self._session.id}-{self._shown}",
            notify_after=self._notify_after() or 0.0,
        )
        card = _Card(live, widget, handle := DisplayHandle(), self._draw, self._is_placed)
        widget.on_msg(lambda _widget, content, _buffers: self._on_message(card, content))
        display(card.bundle(), raw=True, display_id=handle.display_id)
        with self._lock:
            self._live.append(card)
        card.remove = live.listen(lambda _record, _events: self.mark(card))
        self.mark(card)  # it may have moved on, or ended, before we listened

    def redraw_queued(self) -> None:
        """Bring the cards up to date on which a change of other runs shows: their place in line, a child that asks."""
        with self._lock:
            records = [(card, card.live.record) for card in self._live]
        for card, record in records:
            if record.status is RunStatus.QUEUED or record.children:
                self.mark(card)

    def note_followups(self, live: LiveRun, followups: Sequence[tuple[int, str]]) -> None:
        """Have the card of an ended run say which runs come from it."""
        with self._lock:
            cards = [card for card in (*self._live, *self._ended) if card.live is live]
        for card in cards:
            card.followups = followups
            self.mark(card)

    def close(self, timeout_s: float) -> None:
        """Draw what has changed and stop."""
        self._is_closing = True
        self._wake.set()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def close_widgets(self) -> None:
        """Close all widgets; where one is all that a page shows of its run, the page then shows nothing.

        So not before the kernel ends: what pages show should stay.
        """
        with self._lock:
            cards, self._live, self._ended = [*self._live, *self._ended], [], deque()
        for card in cards:
            card.remove()
            # In a copy: the card may be being drawn in its context at this moment.
            card.context.copy().run(card.widget.close)
        if self._code is not None:
            self._code.close()

    def mark(self, drawn: Drawn) -> None:
        """Have this drawn soon, once; from any thread."""
        with self._lock:
            if drawn not in self._changed:
                self._changed.append(drawn)
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="nbrun-cards", daemon=True)
                self._thread.start()
        self._wake.set()

    def _main(self) -> None:
        pause = threading.Event()
        drawn: Drawn | None = None
        is_last = False
        while not is_last:
            self._wake.wait()
            self._wake.clear()
            is_last = self._is_closing
            # One empty slot at the end: what changes now may be what was just drawn.
            while self._has_more() or drawn is not None:
                is_last = self._is_closing  # then all at once
                drawn = self._take(None if is_last else drawn)
                if drawn is not None and drawn.context.run(drawn.draw):
                    self._begun = drawn
                if not is_last:
                    pause.wait(SLOT_S)  # never set: a pause that a fake clock does not shorten

    def _has_more(self) -> bool:
        with self._lock:
            return bool(self._begun or self._changed)

    def _take(self, last: Drawn | None) -> Drawn | None:
        """Return what is drawn next: what was begun, then by its turn, then what changed first; not the last.

        Every fourth slot is of what changed first, whatever it is: nothing waits for ever.
        """
        with self._lock:
            begun, self._begun = self._begun, None
            if begun is not None:
                return begun
            self._slots += 1
            is_by_turn = self._slots % 4 > 0
            rested = [drawn for drawn in self._changed if drawn is not last]
            drawn = min(rested, key=lambda drawn: drawn.turn if is_by_turn else 0, default=None)
            if drawn is not None:
                self._changed.remove(drawn)
            return drawn

    def _draw(self, card: _Card) -> bool:
        is_end, card.is_end_due = card.is_end_due, False
        try:
            if is_end:
                self._draw_end(card)
                return False
            # Not with each question: the page draws the card anew, and somebody may be typing in it. So before its
            # state, too, which tells them that they can.
            if card.live.record.is_live and card.is_outdated():
                card.handle.update(card.bundle(), raw=True)
                return True
            card.widget.run = self._view(card.live, card.followups, card.blocks)
            card.is_end_due = not card.widget.run["live"]
        except Exception:  # a page that is gone must not end the drawing of the others
            _log.exception("the card of %s could not be drawn", card.live.run_id)
        return card.is_end_due

    def _draw_end(self, card: _Card) -> None:
        live, problem = (
            card.live,
            card.live.problem,
        )  # what clears it meanwhile marks the card again
        card.handle.update(bundle(with_followups(live.record, card.followups), problem), raw=True)
        # Else it is drawn again: when the run has been saved, or what it left running has ended.
        if problem is None and live.record.is_settled:
            card.remove()
        self._close_oldest(card)

    def _close_oldest(self, card: _Card) -> None:
        """Note that a card's run has ended; close the widget that has been of no use for the longest time."""
        with self._lock:
            if card not in self._live:  # it was drawn with its end before
                return
            self._live.remove(card)
            self._ended.append(card)
            oldest = self._ended.popleft() if len(self._ended) > KEEP_ENDED else None
        if oldest is not None:
            oldest.context.run(oldest.widget.close)

    def _view(
        self,
        live: LiveRun,
        followups: Sequence[tuple[int, str]] = (),
        blocks: Blocks | None = None,
    ) -> dict[str, Any]:
        """Return what the card shows; without `blocks`, which take their time, its text is as it came."""
        record = with_followups(live.record, followups)
        is_queued = record.status is RunStatus.QUEUED
        words = queue_words(self._session.parts, live) if is_queued else None
        now, children = self._session.clock.now(), self._live_children(record)
        if asking := [line for child in children.values() for line in _asking_words(child)]:
            record = msgspec.structs.replace(record, notices=(*record.notices, *asking))
        return view(record, now, live.problem, words, blocks=blocks, children=children)

    def _live_children(self, record: RunRecord) -> dict[str, RunRecord]:
        running = [c.run_id for c in record.children[-TOOL_LIMIT:] if c.ended_at is None]
        runs = [run for run in map(self._session.own, running) if run is not None]
        return {run.id: run.record for run in runs if not run.done()}

    def _on_message(self, card: _Card, content: object) -> None:
        """Answer what came over the comm, such as a click; on whichever thread the kernel handles it."""
        if not isinstance(content, dict):
            return
        match content.get("op"):
            case "placed":
                self._is_placed = card.is_placed = True
                with self._lock:
                    is_shown = card in self._live
                if is_shown:  # else an update would come before the output that it is for
                    self.mark(card)
            case "code":  # of a page whose widget manager does not give it
                if code := self._code:
                    card.widget.send({"op": "code", "text": code.text, "style": code.style})
            case "static":  # a page that was loaded after the cell ran cannot be told by its output
                if not card.live.record.is_live:
                    card.widget.send({"op": "static", "data": card.static()})
            case _:
                card.widget.send(self._answer(content))


def _asking_words(child: RunRecord) -> list[str]:
    """Return what a child run asks, each with the line that answers it: it has no card of its own."""
    return [f"{opening(child)}: {line}" for line in question_lines(child)]
