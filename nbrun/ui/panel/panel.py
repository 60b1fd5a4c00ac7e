"""The runs panel: a live table of a notebook's runs, drawn by the thread that draws the cards."""

from __future__ import annotations

import contextvars
import logging
import threading
from typing import TYPE_CHECKING, Any

import traitlets

from nbrun.core.errors import NbrunError
from nbrun.ui.cards.board import WIDGET_VIEW, CardWidget, Turn
from nbrun.ui.cards.esm import page_module, page_style
from nbrun.ui.cards.markdown_blocks import Blocks
from nbrun.ui.cards.view import view
from nbrun.ui.panel.page import PAGE, STATUSES, Row, RunsPage, Wanted, newest, read_page, refreshed
from nbrun.ui.panel.table import COLUMNS, bundle, key_of, page_row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbrun.core.events import RunEvent
    from nbrun.core.record import RunRecord
    from nbrun.sessions.session import NotebookSession
    from nbrun.ui.cards.board import Answer, CardBoard

_log = logging.getLogger("nbrun")

OPS = frozenset({"look", "open", "keep"})
"""What a page may ask of its panel: other runs, a run's card, that the notebook file gets what it shows."""
KEEP_PANELS = 4
"""How many panels are live; the oldest of more becomes a static table."""
KEPT_ROWS = 20
"""Runs that a notebook file keeps of a panel."""
TEXT_LIMIT = 500
REST_S = 0.2
"""What lies at least between two looks for runs."""
POLL_S = 5.0
"""How often is looked how the runs of other kernels stand, where some are shown that are live."""

JOIN_S = 0.1
"""What a close waits for a look that is under way."""
CLOSED = "This table no longer updates. Run %agentrun again."

_SEEN = ("run.", "cancel.", "detached.", "usage")
"""The types of events, by their beginnings, that change what a row shows."""


class PanelWidget(CardWidget):
    """The panel in the page: the table in a trait of its own, and in the card's traits the run that is open."""

    _esm = page_module("panel.js")
    _css: Any = page_style("card.css", "people.css", "panel.css")
    panel = traitlets.Dict().tag(sync=True)


class Panel:
    """One panel on display.

    Threads: `ask()` and `end()` from any thread; `look()` on the thread of its `Panels`, and once on the main
    thread, before it is on display; `draw()` on the cards' thread, which alone writes the traits from then on.
    `_lock` guards what is wanted; `_page` and `_opened` are replaced, never changed.
    """

    def __init__(self, session: NotebookSession, widget: PanelWidget, cell: str | None) -> None:
        from IPython.display import DisplayHandle

        self.cell = cell
        self.widget = widget
        self.context = (
            contextvars.copy_context()
        )  # a bare thread would send into whichever cell ran last
        self._handle = DisplayHandle()
        self._session = session
        self._lock = threading.Lock()
        self._wanted = Wanted()
        self._asked = ""  # the nonce of the latest wish for other runs,
        self._answered = ""  # and of the one that the page answers
        self._is_read = False  # whether what is wanted was read from the store
        self._page = RunsPage(self._wanted)
        self._stored = 0
        self._problem = ""
        self._open_key = ""
        self._opened: Row | None = None
        self._blocks = Blocks()  # of whichever run is open: their keys never come twice
        self._on_opened: Callable[[], None] = lambda: (
            None
        )  # called when the run that is open has changed
        self._unlisten: Callable[[], None] = lambda: None
        self._newest: list[Row] = []
        self._kept: list[object] = []  # what a notebook file has of it
        self._is_to_keep = False
        self._drawn: dict[str, Any] = {}
        self._is_over = False
        self._is_output_due = False  # the last state has been sent
        self._closes = False

    @property
    def is_live(self) -> bool:
        """Whether it follows its runs."""
        return not self._is_over

    @property
    def turn(self) -> Turn:
        """Its end comes first, as that of a run."""
        return Turn.LIVE if self.is_live else Turn.ENDED

    @property
    def polls(self) -> bool:
        """Whether runs are shown of whose changes nobody tells."""
        return self.is_live and self._page.is_of_others

    # --- what a page asks ------------------------------------------------------------------------

    def ask(self, content: dict[str, Any]) -> dict[str, Any]:
        """Take a wish of the page; it is met by the next look and the next drawing."""
        if self._is_over:
            return {"outcome": "refused", "message": CLOSED}
        match content.get("op"):
            case "look":
                return self._want(content)
            case "open":
                key = content.get("key")
                self._open_key = key if isinstance(key, str) else ""
            case _:
                self._is_to_keep = True
        return {"outcome": "sent"}

    def _want(self, content: dict[str, Any]) -> dict[str, Any]:
        status, text, nonce = (content.get(name) for name in ("status", "text", "nonce"))
        if (
            not isinstance(status, str)
            or status not in STATUSES
            or not isinstance(text, str)
            or len(text) > TEXT_LIMIT
        ):
            message = f"A status is one of these: {', '.join(STATUSES[1:])}; a text is short."
            return {"outcome": "refused", "message": message}
        text = text.strip()
        with self._lock:
            shown = self._page
            before: tuple[int, ...] = ()
            if (status, text) == (shown.wanted.status, shown.wanted.text):
                before = _turned(shown, content.get("page"))
            self._wanted = Wanted(status=status, text=text, before=before)
            self._asked = nonce if isinstance(nonce, str) else ""
            self._is_read = False
        return {"outcome": "sent"}

    # --- looking ---------------------------------------------------------------------------------

    def forget(self) -> None:
        """Have the next look read the store anew."""
        with self._lock:
            self._is_read = False

    def look(self, is_closing: Callable[[], bool]) -> bool:
        """Find the runs that are wanted; return whether there is something to draw."""
        with self._lock:
            wanted, asked, is_read = self._wanted, self._asked, self._is_read
            self._is_read = True

        def is_given_up() -> bool:
            return is_closing() or self._is_over or self._asked != asked

        try:
            self._stored = self._session.count_runs()
            known = None if is_read else read_page(self._session, wanted, is_given_up)
            self._problem = ""
        except NbrunError as error:  # the store is in trouble: what is known stays
            self.forget()
            self._problem, known = str(error), None
        if is_given_up():
            return False
        self._page = refreshed(self._session, self._page if known is None else known)
        self._answered = asked
        self._newest = newest(self._session, self._newest or self._page.rows, KEPT_ROWS)
        self._follow(self._open_key)
        return True

    def _follow(self, key: str) -> None:
        """Follow the run whose card is open, if it is on the page."""
        row = next((row for row in self._page.rows if key_of(row.record) == key), None)
        if row is not None and self._opened is not None and self._opened.run == row.run:
            return
        self._unlisten()
        self._unlisten = lambda: None
        if row is not None and row.run.live is not None:
            self._unlisten = row.run.live.listen(lambda _record, _events: self._on_opened())
        elif row is not None:
            row = Row(row.run, row.run.record)  # all of it, read here and not while cards are drawn
        self._opened = row
        if row is None:
            self._open_key = ""

    # --- drawing ---------------------------------------------------------------------------------

    def show(self, on_opened: Callable[[], None]) -> None:
        """Display it in the cell that is being run."""
        from IPython.display import display

        self._on_opened = on_opened
        self.look(lambda: False)
        data = self._bundle()
        self._drawn = self._state()
        self.widget.panel = {**self._drawn, "now": self._session.clock.now()}
        display(data, raw=True, display_id=self._handle.display_id)

    def end(self, *, closes: bool) -> None:
        """Have the next drawing be the last one; it leaves a static table, and `closes` the widget."""
        self._is_over, self._closes = True, closes

    def close(self) -> None:
        """Close the widget."""
        self._unlisten()
        self.context.copy().run(self.widget.close)

    def draw(self) -> bool:
        """Send one message that brings the page up to date; return whether another one has to follow."""
        is_output, self._is_output_due = self._is_output_due, False
        try:
            if is_output:
                self._draw_end()
            elif self._is_to_keep:
                self._is_to_keep = False
                self._handle.update(self._bundle(), raw=True)
                return True
            else:
                self._draw_table()
                self._is_output_due = self._is_over
        except Exception:  # a page that is gone must not end the drawing of the others
            _log.exception("the runs panel could not be drawn")
        return self._is_output_due

    def _draw_end(self) -> None:
        self._newest = newest(self._session, self._newest, KEPT_ROWS)
        self._handle.update(self._static(), raw=True)
        if self._closes:
            self._closes = False
            self._unlisten()
            self.widget.close()

    def _draw_table(self) -> None:
        state, now = self._state(), self._session.clock.now()
        card = self._card(now)
        with self.widget.hold_sync():  # one message for both
            if state != self._drawn:
                self._drawn = state
                self.widget.panel = {**state, "now": now}
            # What is not shown any more stays: the page would have to draw a card of nothing.
            if card and card != {**self.widget.run, "now": now}:
                self.widget.run = card

    def _card(self, now: float) -> dict[str, Any]:
        """Return what the card of the open run shows; nothing where none is open."""
        opened = self._opened
        if opened is None:
            return {}
        words = opened.run.status_words() if opened.run.live is not None else None
        return view(opened.record, now, opened.run.problem, words, blocks=self._blocks)

    def _state(self) -> dict[str, Any]:
        """Return what the page draws besides the open card."""
        page, opened = self._page, self._opened
        return {
            "id": self.widget.model_id,
            "columns": COLUMNS,
            "rows": [page_row(row, self._session.id) for row in page.rows],
            "live": len(self._session.live_runs),
            "stored": self._stored,
            "status": page.wanted.status,
            "text": page.wanted.text,
            "page": PAGE,
            "has_more": page.has_more,
            "has_newer": bool(page.wanted.before),
            "open": "" if opened is None else key_of(opened.record),
            "answered": self._answered,
            "problem": self._problem,
            "is_over": self._is_over,
            "is_stale": self._kept != _kept(self._newest),
        }

    def _bundle(self) -> dict[str, Any]:
        """Return the output as a page shows it, and as a notebook file keeps it for eyes without a kernel."""
        view = {"version_major": 2, "version_minor": 1, "model_id": self.widget.model_id}
        return {WIDGET_VIEW: view, **self._static()}

    def _static(self) -> dict[str, Any]:
        self._kept = _kept(self._newest)
        records = [row.record for row in self._newest]
        return bundle(records, self._stored, self._session.clock.now())


def _turned(page: RunsPage, way: object) -> tuple[int, ...]:
    """Return where the next page begins, or the one before; without a way, the newest runs are wanted."""
    before = page.wanted.before
    if way == "newer":
        return before[:-1]
    last = page.rows[-1].record.number if page.rows else None
    return (*before, last) if way == "more" and last is not None else ()


def _kept(rows: Sequence[Row]) -> list[object]:
    """Return what a static table of these rows would have to be drawn anew for."""
    return [(key_of(row.record), row.record.status) for row in rows]


class Panels:
    """The panels on display: finds what they show, and has the cards' thread draw it.

    Threads: `show()` on the main thread, the others from any; the session tells of events on the writer's thread;
    the thread `nbrun-panel` reads the store. `_lock` guards the lists.
    """

    def __init__(
        self, session: NotebookSession, board: CardBoard, kernel_id: str, answer: Answer
    ) -> None:
        self._session = session
        self._board = board
        self._kernel_id = kernel_id
        self._answer = answer
        self._lock = threading.Lock()
        self._panels: list[Panel] = []
        self._looking: list[Panel] = []
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._unlisten = session.listen(self._on_events)
        session.on_removed = self._on_removed

    def show(self, cell: str | None) -> None:
        """Display a panel in the cell that is being run, in place of one that is in this cell."""
        widget = PanelWidget(kernel_id=self._kernel_id, session_id=self._session.id)
        widget.on_msg(lambda sender, content, _buffers: self._on_message(sender, content))
        panel = Panel(self._session, widget, cell)
        panel.show(lambda: self._board.mark(panel))
        with self._lock:
            same = [one for one in self._panels if cell is not None and one.cell == cell]
            kept = [one for one in self._panels if one not in same]
            gone = [*same, *kept[: max(0, len(kept) + 1 - KEEP_PANELS)]]
            self._panels = [*(one for one in kept if one not in gone), panel]
        for one in gone:
            one.end(closes=True)
            self._board.mark(one)
        self._look(panel)  # runs may have changed since it was drawn

    def ask(self, content: dict[str, Any]) -> dict[str, Any]:
        """Hand a wish of a page to its panel."""
        with self._lock:
            panel = next(
                (one for one in self._panels if one.widget.model_id == content.get("panel")), None
            )
        if panel is None:
            return {"outcome": "refused", "message": CLOSED}
        reply = panel.ask(content)
        if content.get("op") == "keep":
            self._board.mark(panel)
        else:
            self._look(panel)
        return reply

    def stop(self) -> None:
        """Look for nothing more: who reads a store that is being closed would open it again."""
        self._unlisten()
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(JOIN_S)

    def close(self) -> None:
        """Have every panel drawn for the last time, its runs ended; the board has still to be closed."""
        self.stop()
        for panel in self._copy():
            panel.end(closes=False)
            self._board.mark(panel)

    def close_widgets(self) -> None:
        """Close all widgets."""
        for panel in self._copy():
            panel.close()

    def _copy(self) -> list[Panel]:
        with self._lock:
            return list(self._panels)

    def _on_message(self, widget: PanelWidget, content: object) -> None:
        """Answer a click that came over the comm; on whichever thread the kernel handles it."""
        if isinstance(content, dict):
            widget.send(self._answer(content))

    def _on_events(self, _record: RunRecord, events: Sequence[RunEvent]) -> None:
        if any(event.data.TYPE.startswith(_SEEN) for event in events):
            for panel in self._copy():
                self._look(panel)

    def _on_removed(self) -> None:
        for panel in self._copy():
            panel.forget()
            self._look(panel)

    # --- the thread ------------------------------------------------------------------------------

    def _look(self, panel: Panel) -> None:
        """Have the thread look for what this panel shows."""
        with self._lock:
            if panel not in self._looking:
                self._looking.append(panel)
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._main, name="nbrun-panel", daemon=True)
                self._thread.start()
        self._wake.set()

    def _main(self) -> None:
        while not self._stopping.is_set():
            self._wait()
            for panel in self._take():
                try:
                    if panel.look(self._stopping.is_set):
                        self._board.mark(panel)
                except Exception:  # of one panel: the others are looked for all the same
                    _log.exception("the runs of a panel could not be found")
            self._stopping.wait(REST_S)

    def _wait(self) -> None:
        """Return when a look is asked for, or it is time for one."""
        polling = [panel for panel in self._copy() if panel.polls]
        if not self._wake.wait(POLL_S if polling else None):
            for panel in polling:
                panel.forget()
                self._look(panel)
        self._wake.clear()

    def _take(self) -> list[Panel]:
        with self._lock:
            taken, self._looking = self._looking, []
            return taken
