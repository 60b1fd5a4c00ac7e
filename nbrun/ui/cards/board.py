"""Live cards: one widget per run, drawn from its record, all of them updated by one thread."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets
import msgspec
import traitlets

from nbrun.core import RunRecord, RunStatus
from nbrun.render import static_card, words
from nbrun.sessions import LiveRun, NotebookSession, queue_words
from nbrun.ui.cards import esm, view
from nbrun.ui.cards.markdown_blocks import Blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbrun.ui.kernel.requests import Answer

_log = logging.getLogger("nbrun")

SLOT_S = 0.05
"""A slot is one message, endings included: at most 20 a second for all cards together. What was drawn in one slot
isn't drawn again in the next, so one card gets at most 10 updates a second."""

KEEP_ENDED = 100
"""How many widgets of ended runs stay open, for pages that haven't replaced them by static output."""


class CardCode(ipywidgets.Widget):  # type: ignore[misc]  # it has no types
    """The code that draws the cards of a kernel: a page gets it once, where anywidget would send it with each card."""

    text = traitlets.Unicode(esm.page_module("card.js")).tag(sync=True)
    style = traitlets.Unicode(esm.page_style("card.css", "questions.css")).tag(sync=True)


class CardWidget(anywidget.AnyWidget):
    """The card in the page. One trait carries all it shows; only `CardBoard`'s thread writes it."""

    _esm = esm.page_module("code.js")
    code_id = traitlets.Unicode().tag(sync=True)
    run = traitlets.Dict().tag(sync=True)
    place = traitlets.Unicode().tag(sync=True)
    kernel_id = traitlets.Unicode().tag(sync=True)
    session_id = traitlets.Unicode().tag(sync=True)
    notify_after = traitlets.Float().tag(sync=True)

    def close(self) -> None:
        """Close it together with its layout, which is a widget of its own and would stay."""
        layout = self.layout
        super().close()
        layout.close()

    def output(self, data: dict[str, Any], *, is_placed: bool) -> dict[str, Any]:
        """Return the output that shows this widget in a page, and `data` where there is no kernel."""
        if is_placed:
            return self.in_place(data)
        view = {"version_major": 2, "version_minor": 1, "model_id": self.model_id}
        return {"application/vnd.jupyter.widget-view+json": view, **data}

    def in_place(self, data: dict[str, Any], *, is_final: bool = False) -> dict[str, Any]:
        """Return `data` as the place over which the page draws this widget for as long as it has it."""
        mark = " nbrun-final" if is_final else ""
        return {**data, "text/html": f'<div class="nbrun-place {self.place}{mark}">{data["text/html"]}</div>'}


class Priority(IntEnum):
    """What is drawn first."""

    ENDED = 0
    LIVE = 1
    QUEUED = 2  # with a long queue, each place in it changes with every run that starts


class Drawable:
    """Something on display that the board's thread keeps current."""

    priority = Priority.LIVE

    def __init__(self) -> None:
        # Of its cell: a bare thread would send into whichever cell ran last.
        self.context = contextvars.copy_context()

    def draw(self) -> bool:
        """Send one message that brings the page up to date; return whether another one has to follow."""
        raise NotImplementedError


class _Card(Drawable):
    """A card on display: its widget, its output, and the runs that were started from its run.

    `is_placed`: the page draws the widget over the static card in the output. Otherwise the output is the widget, and
    a notebook file keeps only a name of it that nobody can resolve later.
    """

    def __init__(self, live: LiveRun, widget: CardWidget, board: CardBoard, is_placed: bool) -> None:
        from IPython.display import DisplayHandle

        super().__init__()
        self.live = live
        self.widget = widget
        self.handle = DisplayHandle()
        self.blocks = Blocks()
        self.remove: Callable[[], None] = lambda: None
        self.followups: Sequence[tuple[int, str]] = ()
        self.is_placed = is_placed
        self.is_final_in_file = True  # of a notebook that a program executes; only the main thread uses this
        self._board = board
        self._in_output: tuple[bool, bool] | None = None  # what the output depends on, as drawn
        self._is_end_due = False  # the last state has been sent, but not yet the static output

    @property
    def priority(self) -> Priority:  # type: ignore[override]  # it changes with the run
        """Whether its run has ended, is running or queued."""
        status = self.live.record.status
        if status is RunStatus.QUEUED:
            return Priority.QUEUED
        return Priority.LIVE if status.is_live else Priority.ENDED

    def output(self) -> dict[str, Any]:
        """Return the output for a page, and for a notebook file that is read without a kernel."""
        record = self.live.record
        self._in_output = bool(record.pending), self.is_placed
        return self.widget.output(static_card.bundle(record, self.live.problem), is_placed=self.is_placed)

    def static(self) -> dict[str, Any]:
        """Return the output of an ended run; a page that draws its card over it asks again for what may change."""
        problem = self.live.problem
        data = static_card.bundle(self._record(), problem)
        is_final = problem is None and self.live.record.is_settled
        return self.widget.in_place(data, is_final=is_final) if self.is_placed else data

    def draw_static_here(self) -> None:
        """Send the static output from the running cell, until one is final."""
        if self.is_final_in_file:
            return
        self.is_final_in_file = self.live.problem is None and self.live.record.is_settled
        self.handle.update(self.static(), raw=True)

    def _record(self) -> RunRecord:
        return words.with_followups(self._board.record(self.live), self.followups)

    def draw(self) -> bool:
        """Send the run's state; before it the output, if that has changed, and at the end the static output."""
        is_end, self._is_end_due = self._is_end_due, False
        if is_end:
            self._draw_end()
            return False
        # A new output makes the page redraw the card, in which somebody may be typing. So only if it has changed, and
        # before the state, which shows the question that they would answer.
        is_outdated = self._in_output != (bool(self.live.record.pending), self.is_placed)
        if self.live.record.is_live and is_outdated:
            self.handle.update(self.output(), raw=True)
            return True
        self.widget.run = self._board.state(self.live, self.followups, self.blocks)
        self._is_end_due = not self.widget.run["live"]
        return self._is_end_due

    def _draw_end(self) -> None:
        problem = self.live.problem  # if it is solved meanwhile, the card is marked again
        self.handle.update(self.static(), raw=True)
        self.blocks.release()
        # Else it is drawn again: when the run has been saved, or what it left running has ended.
        if problem is None and self.live.record.is_settled:
            self.remove()
        self._board.note_ended(self)


class CardBoard:
    """Shows cards and keeps them current.

    Threads: `show()` on the main thread; the listeners mark cards as changed on the writer's thread; only the thread
    `nbrun-cards` writes traits and outputs after the first display; `answer` does what a page asks for, on whichever
    thread the kernel handles the message. `_lock` guards the lists. `notify_after`, read for each new card, returns
    after how many seconds the browser reports a run's end.
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
        self._changed: list[Drawable] = []
        self._unfinished: Drawable | None = None  # it has another message to send; only `nbrun-cards` uses this
        self._live: list[_Card] = []
        self._ended: deque[_Card] = deque()
        self._shown = 0
        self._code: CardCode | None = None
        self.is_placed = False  # whether the page has said that it draws widgets in their places
        self._wake = threading.Event()
        self._is_closing = False
        self._slots = 0
        self._thread: threading.Thread | None = None

    def show(self, live: LiveRun, *, is_executed: bool = False) -> None:
        """Display a live card in the running cell, which a program may execute; its file gets the run's end."""
        from IPython.display import display

        self._shown += 1
        if self._code is None or self._code.comm is None:  # closed, as by `Widget.close_all()`
            self._code = CardCode()
        widget = CardWidget(
            code_id=self._code.model_id,
            run=self.state(live),
            kernel_id=self._kernel_id,
            session_id=self._session.id,
            place=f"nbrun-at-{self._session.id}-{self._shown}",
            notify_after=self._notify_after() or 0.0,
        )
        card = _Card(live, widget, self, self.is_placed)
        card.is_final_in_file = not is_executed
        widget.on_msg(lambda _widget, content, _buffers: self._on_message(card, content))
        display(card.output(), raw=True, display_id=card.handle.display_id)
        with self._lock:
            self._live.append(card)
        card.remove = live.listen(lambda _record, _events: self.mark(card))
        self.mark(card)  # the run may have changed or ended before we listened

    def redraw_queued(self) -> None:
        """Update the cards that show other runs' changes: a place in the queue, a child run's question."""
        with self._lock:
            records = [(card, card.live.record) for card in self._live]
        for card, record in records:
            if record.status is RunStatus.QUEUED or record.children:
                self.mark(card)

    def note_followups(self, live: LiveRun, followups: Sequence[tuple[int, str]]) -> None:
        """Have the card of an ended run name the runs that were started from it."""
        with self._lock:
            cards = [card for card in (*self._live, *self._ended) if card.live is live]
        for card in cards:
            card.followups = followups
            self.mark(card)

    def draw_ended_here(self) -> None:
        """Update the outputs of ended runs from the running cell, the only one whose updates are kept in a file."""
        with self._lock:
            cards = [card for card in (*self._live, *self._ended) if not card.live.record.is_live]
        for card in cards:
            card.draw_static_here()

    def close(self, timeout_s: float) -> None:
        """Draw what has changed and stop."""
        self._is_closing = True
        self._wake.set()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def close_widgets(self) -> None:
        """Close all widgets; only for the kernel's end, since a page may show nothing else of a run."""
        with self._lock:
            cards, self._live, self._ended = [*self._live, *self._ended], [], deque()
        for card in cards:
            card.remove()
            # In a copy: `nbrun-cards` may be in the card's context at this moment.
            card.context.copy().run(card.widget.close)
        if self._code is not None:
            self._code.close()

    # --- drawing ---------------------------------------------------------------------------------

    def mark(self, drawable: Drawable) -> None:
        """Have this drawn soon, once; from any thread."""
        with self._lock:
            if drawable not in self._changed:
                self._changed.append(drawable)
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="nbrun-cards", daemon=True)
                self._thread.start()
        self._wake.set()

    def _main(self) -> None:
        pause = threading.Event()
        last: Drawable | None = None
        is_closing = False
        while not is_closing:
            self._wake.wait()
            self._wake.clear()
            is_closing = self._is_closing
            # One empty slot at the end: what changes now may be what was just drawn.
            while self._has_more() or last is not None:
                is_closing = self._is_closing  # then all at once
                last = self._take(None if is_closing else last)
                if last is not None:
                    self._draw(last)
                if not is_closing:
                    pause.wait(SLOT_S)  # never set: a pause that a fake clock does not shorten

    def _draw(self, drawable: Drawable) -> None:
        try:
            if drawable.context.run(drawable.draw):
                self._unfinished = drawable
        except Exception:  # a page that is gone must not end the drawing of the others
            _log.exception("a card or panel could not be drawn")

    def _has_more(self) -> bool:
        with self._lock:
            return bool(self._unfinished or self._changed)

    def _take(self, last: Drawable | None) -> Drawable | None:
        """Return what is drawn next: the unfinished one, else by priority and age; never the last one again.

        Every fourth slot goes by age alone, so that nothing waits for ever.
        """
        with self._lock:
            unfinished, self._unfinished = self._unfinished, None
            if unfinished is not None:
                return unfinished
            self._slots += 1
            by_priority = self._slots % 4 > 0
            rested = [one for one in self._changed if one is not last]
            drawable = min(rested, key=lambda one: one.priority if by_priority else 0, default=None)
            if drawable is not None:
                self._changed.remove(drawable)
            return drawable

    def note_ended(self, card: _Card) -> None:
        """Note that a card's run has ended; of too many such widgets, close the oldest."""
        with self._lock:
            if card not in self._live:  # its end was drawn before
                return
            self._live.remove(card)
            self._ended.append(card)
            oldest = self._ended.popleft() if len(self._ended) > KEEP_ENDED else None
        if oldest is not None:
            oldest.context.run(oldest.widget.close)

    def state(
        self, live: LiveRun, followups: Sequence[tuple[int, str]] = (), blocks: Blocks | None = None
    ) -> dict[str, Any]:
        """Return what the card shows; without `blocks`, which take time to draw, its text isn't rendered."""
        record = words.with_followups(self.record(live), followups)
        is_queued = record.status is RunStatus.QUEUED
        waits_for = queue_words(self._session.parts, live) if is_queued else None
        now, children = self._session.clock.now(), self._live_children(record)
        # A child run has no card of its own, so its parent's shows its questions, with the lines that answer them.
        asking = [
            f"{words.opening(child)}: {line}" for child in children.values() for line in words.question_lines(child)
        ]
        if asking:
            record = msgspec.structs.replace(record, notices=(*record.notices, *asking))
        return view.view(record, now, live.problem, waits_for, blocks=blocks, children=children)

    def record(self, live: LiveRun) -> RunRecord:
        """Return the record of a run; of one that ended long ago, from the store."""
        run = self._session.own(live.run_id) if live.record.is_brief else None
        return live.record if run is None else run.record

    def _live_children(self, record: RunRecord) -> dict[str, RunRecord]:
        running = [c.run_id for c in record.children[-view.TOOL_LIMIT :] if c.ended_at is None]
        runs = [run for run in map(self._session.own, running) if run is not None]
        return {run.id: run.record for run in runs if not run.done()}

    def _on_message(self, card: _Card, content: object) -> None:
        """Answer what came over the comm, such as a click; on whichever thread the kernel handles it."""
        if not isinstance(content, dict):
            return
        match content.get("op"):
            case "placed":
                self.is_placed = card.is_placed = True
                with self._lock:
                    is_shown = card in self._live
                if is_shown:  # else an update would come before the output that it updates
                    self.mark(card)
            case "code":  # from a page whose widget manager can't give it
                if code := self._code:
                    card.widget.send({"op": "code", "text": code.text, "style": code.style})
            case "static":  # a page loaded after the cell ran gets no updates of the output
                if not card.live.record.is_live:
                    card.widget.send({"op": "static", "data": card.static()})
            case _:
                card.widget.send(self._answer(content))
