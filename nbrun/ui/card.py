"""Live cards: one widget a run, drawn from its record, all of them updated by one thread."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from nbrun.ui.snapshot import bundle
from nbrun.ui.view import view

if TYPE_CHECKING:
    from nbrun.clock import Clock
    from nbrun.intake import LiveRun

_log = logging.getLogger("nbrun")
_STATIC = Path(__file__).parent / "static"

TICK_S = 0.1
PER_TICK = 2
"""With ten ticks a second: at most 10 updates a second of one card, 20 of all together."""

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class CardWidget(anywidget.AnyWidget):
    """The card in the page. One trait carries all it shows; `CardBoard`'s thread is its one writer."""

    _esm = _STATIC / "card.js"
    _css = _STATIC / "card.css"
    run = traitlets.Dict().tag(sync=True)
    kernel_id = traitlets.Unicode().tag(sync=True)
    session_id = traitlets.Unicode().tag(sync=True)


class _Card:
    """A card on display: its widget, its output, and the context of the cell that it is in."""

    def __init__(self, live: LiveRun, widget: CardWidget, handle: Any) -> None:
        self.live = live
        self.widget = widget
        self.handle = handle
        # A bare thread would send into whichever cell ran last.
        self.context = contextvars.copy_context()
        self.remove: Callable[[], None] = lambda: None


class CardBoard:
    """Shows cards and keeps them current.

    Threads: `show()` on the main thread; the listeners mark cards as changed on the writer's thread; the
    thread `nbrun-cards` alone writes traits and outputs after the first display. `_lock` guards `_changed`.
    """

    def __init__(self, clock: Clock, session_id: str, kernel_id: str, answer: Answer) -> None:
        self._clock = clock
        self._session_id = session_id
        self._kernel_id = kernel_id
        self._answer = answer
        self._lock = threading.RLock()
        self._changed: list[_Card] = []
        self._wake = threading.Event()
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def show(self, live: LiveRun) -> None:
        """Display a live card in the cell that is being run; when its run ends, the output becomes static."""
        from IPython.display import DisplayHandle, display

        widget = CardWidget(
            run=self._view(live), kernel_id=self._kernel_id, session_id=self._session_id
        )
        widget.on_msg(lambda sender, content, _buffers: self._on_message(live, sender, content))
        data = {
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2, "version_minor": 1, "model_id": widget.model_id,
            },
            **bundle(live.record, live.problem),
        }  # fmt: skip
        handle = DisplayHandle()
        display(data, raw=True, display_id=handle.display_id)
        card = _Card(live, widget, handle)
        card.remove = live.listen(lambda _record, _events: self._mark(card))
        self._mark(card)  # it may have moved on, or ended, before we listened

    def close(self, timeout_s: float) -> None:
        """Draw what has changed and stop."""
        self._is_closing = True
        self._wake.set()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _mark(self, card: _Card) -> None:
        with self._lock:
            if card not in self._changed:
                self._changed.append(card)
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="nbrun-cards", daemon=True)
                self._thread.start()
        self._wake.set()

    def _main(self) -> None:
        pause = threading.Event()
        while True:
            self._wake.wait()
            self._wake.clear()
            is_last = self._is_closing
            while cards := self._take(None if is_last else PER_TICK):
                for card in cards:
                    card.context.run(self._draw, card)
                if not is_last:
                    pause.wait(TICK_S)  # never set: a pause that a fake clock does not shorten
                    is_last = self._is_closing
            if is_last:
                return

    def _take(self, count: int | None) -> list[_Card]:
        """Return the cards that are drawn next: endings first, then in the order in which they changed."""
        with self._lock:
            ordered = sorted(self._changed, key=lambda card: card.live.record.is_live)
            taken = ordered[:count]
            self._changed = [card for card in self._changed if card not in taken]
            return taken

    def _draw(self, card: _Card) -> None:
        live = card.live
        try:
            card.widget.run = self._view(live)
            if live.record.is_live:
                return
            card.handle.update(bundle(live.record, live.problem), raw=True)
            if live.problem is None:  # else it is drawn again when the run has been saved
                card.remove()
        except Exception:  # a page that is gone must not end the drawing of the others
            _log.exception("the card of %s could not be drawn", live.run_id)

    def _view(self, live: LiveRun) -> dict[str, Any]:
        return view(live.record, self._clock.now(), live.problem)

    def _on_message(self, live: LiveRun, widget: CardWidget, content: object) -> None:
        """Answer a click that came over the comm; on whichever thread the kernel handles it."""
        if not isinstance(content, dict):
            return
        if content.get("op") != "gone":
            widget.send(self._answer(content))
        elif not live.record.is_live:
            # The page shows the static output now. Without this word the widget stays: after a reload the page
            # knows no display to update, and its widget view is all that can show the end.
            widget.close()
