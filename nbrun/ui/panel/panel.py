"""The runs panel: a live table of a notebook's runs, drawn by the thread that draws the cards."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import traitlets

from nbrun.core import NbrunError, RunRecord, events as ev
from nbrun.ui.cards import esm, view
from nbrun.ui.cards.board import CardBoard, CardWidget, Drawable, Priority
from nbrun.ui.cards.markdown_blocks import Blocks
from nbrun.ui.panel import page as pages, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbrun.render.set_view import SetView
    from nbrun.sessions import NotebookSession
    from nbrun.ui.kernel.requests import Answer

_log = logging.getLogger("nbrun")

KEEP_PANELS = 4
"""How many panels are live; the oldest of more becomes a static table."""
KEPT_ROWS = 20
"""How many runs a notebook file keeps of a panel."""
TEXT_LIMIT = 500
REST_S = 0.2
"""The shortest time between two refreshes."""
POLL_S = 5.0
"""How often a panel that shows live runs of other kernels is refreshed."""
JOIN_S = 0.1
"""How long a close waits for a refresh that is under way."""
CLOSED = "This table no longer updates. Run %agentrun again."

_SEEN = ("run.", "cancel.", "detached.", "usage")
"""How the types of events begin that change what a row shows."""


class PanelWidget(CardWidget):
    """The panel in the page: the table in a trait of its own, and the open run in the card's traits."""

    _esm = esm.page_module("panel.js")
    _css: Any = esm.page_style("card.css", "questions.css", "panel.css")
    panel = traitlets.Dict().tag(sync=True)


class Panel(Drawable):
    """One panel on display.

    Threads: `ask()` and `end()` from any thread; `refresh()` on the thread of its `Panels`, and once on the main
    thread, before it is on display; `draw()` on the cards' thread, which alone writes the traits from then on.
    `_lock` guards what is asked for; `_page` and `_opened` are replaced, never changed.
    """

    def __init__(
        self, session: NotebookSession, widget: PanelWidget, cell: str | None, *, is_placed: bool = False
    ) -> None:
        from IPython.display import DisplayHandle

        super().__init__()
        self.cell = cell
        self.widget = widget
        self.is_placed = is_placed  # whether the page draws it over the static table in the output
        self._handle = DisplayHandle()
        self._session = session
        self._lock = threading.Lock()
        self._query = pages.PageQuery()
        self._asked = ""  # the nonce of the latest request for other runs,
        self._answered = ""  # and of the one that the page answers
        self._is_read = False  # whether the page was read from the store
        self._page = pages.RunsPage(self._query)
        self._stored = 0
        self._problem = ""
        self._open_key = ""
        self._opened: pages.Row | None = None
        self._blocks = Blocks()  # of whichever run is open: their keys are never used twice
        self._on_opened: Callable[[], object] = lambda: None  # called when the open run has changed
        self._unlisten: Callable[[], None] = lambda: None
        self._newest: list[pages.Row] = []
        self._on_set_changed: Callable[[], object] = lambda: None
        self._followed: dict[int, Callable[[], None]] = {}  # sets in progress, and what ends that
        self._kept: list[object] = []  # what a notebook file has of it
        self._is_to_keep = False
        self._drawn: dict[str, Any] = {}
        self._is_over = False
        self._is_output_due = False  # the last state has been sent
        self._closes = False

    @property
    def priority(self) -> Priority:  # type: ignore[override]  # it changes at the end
        """Its end comes first, as that of a run does."""
        return Priority.ENDED if self._is_over else Priority.LIVE

    @property
    def polls(self) -> bool:
        """Whether it shows runs whose changes are not reported here."""
        return not self._is_over and self._page.is_of_others

    # --- requests of the page --------------------------------------------------------------------

    def ask(self, content: dict[str, Any]) -> dict[str, Any]:
        """Accept a request of the page; the next refresh and drawing do it."""
        if self._is_over:
            return {"outcome": "refused", "message": CLOSED}
        match content.get("op"):
            case "look":
                return self._ask_for_page(content)
            case "open":
                key = content.get("key")
                self._open_key = key if isinstance(key, str) else ""
            case _:
                self._is_to_keep = True
        return {"outcome": "sent"}

    def _ask_for_page(self, content: dict[str, Any]) -> dict[str, Any]:
        status, text, nonce = (content.get(name) for name in ("status", "text", "nonce"))
        if (
            not (isinstance(status, str) and status in pages.STATUSES)
            or not isinstance(text, str)
            or len(text) > TEXT_LIMIT
        ):
            statuses = ", ".join(pages.STATUSES[1:])
            message = f"status must be one of {statuses}; text may have {TEXT_LIMIT} characters."
            return {"outcome": "refused", "message": message}
        text = text.strip()
        with self._lock:
            shown = self._page
            before: tuple[int, ...] = ()
            if (status, text) == (shown.query.status, shown.query.text):
                before = _turned(shown, content.get("page"))
            self._query = pages.PageQuery(status=status, text=text, before=before)
            self._asked = nonce if isinstance(nonce, str) else ""
            self._is_read = False
        return {"outcome": "sent"}

    def note_placed(self) -> bool:
        """Note that the page draws it in its place; return whether its output has to change for that."""
        self._is_to_keep = not self.is_placed
        self.is_placed = True
        return self._is_to_keep

    # --- refreshing ------------------------------------------------------------------------------

    def forget(self) -> None:
        """Have the next refresh read the store again."""
        with self._lock:
            self._is_read = False

    def refresh(self, is_closing: Callable[[], bool]) -> bool:
        """Find the runs to show; return whether there is something to draw."""
        with self._lock:
            query, asked, is_read = self._query, self._asked, self._is_read
            self._is_read = True

        def is_outdated() -> bool:
            return is_closing() or self._is_over or self._asked != asked

        try:
            self._stored = self._session.count_runs()
            known = None if is_read else pages.read_page(self._session, query, is_outdated)
            self._problem = ""
        except NbrunError as error:  # the store can't be read: what is known stays
            self.forget()
            self._problem, known = str(error), None
        if is_outdated():
            return False
        self._page = pages.refreshed(self._session, self._page if known is None else known)
        self._answered = asked
        self._newest = pages.newest(self._session, self._newest or self._page.rows, KEPT_ROWS)
        self._follow(self._open_key)
        self._follow_sets()
        return True

    def _follow_sets(self) -> None:
        """Follow the sets that this kernel runs: a pause or an end changes no run."""
        numbers = [seen.number for seen in self._page.sets if seen.is_live and seen.number not in self._followed]
        for found in map(self._session.get_set, numbers):
            if found is not None and found.is_live:
                self._followed[found.number] = found.listen(self._on_set_changed)

    def _follow(self, key: str) -> None:
        """Follow the run whose card is open, if it is on the page."""
        row = next((row for row in self._page.rows if table.key_of(row.record) == key), None)
        if row is not None and self._opened is not None and self._opened.run == row.run:
            return
        self._unlisten()
        self._unlisten = lambda: None
        if row is not None and row.run.live is not None:
            self._unlisten = row.run.live.listen(lambda _record, _events: self._on_opened())
        elif row is not None:  # the whole record, read here and not while cards are drawn
            row = pages.Row(row.run, row.run.record)
        self._opened = row
        if row is None:
            self._open_key = ""

    # --- drawing ---------------------------------------------------------------------------------

    def show(self, on_opened: Callable[[], object], on_set_changed: Callable[[], object]) -> None:
        """Display it in the running cell."""
        from IPython.display import display

        self._on_opened, self._on_set_changed = on_opened, on_set_changed
        self.refresh(lambda: False)
        data = self._output()
        self._drawn = self._state()
        self.widget.panel = {**self._drawn, "now": self._session.clock.now()}
        display(data, raw=True, display_id=self._handle.display_id)

    def end(self, *, closes: bool) -> None:
        """Have the next drawing be the last one; it leaves a static table, and `closes` the widget."""
        self._is_over, self._closes = True, closes
        for unfollow in tuple(self._followed.values()):
            unfollow()

    def close(self) -> None:
        """Close the widget."""
        self._unlisten()
        self.context.copy().run(self.widget.close)

    def draw(self) -> bool:
        """Send the table and the open card, or what the notebook file keeps; at the end the static table."""
        is_output, self._is_output_due = self._is_output_due, False
        if is_output:
            self._draw_end()
        elif self._is_to_keep:
            self._is_to_keep = False
            self._handle.update(self._output(), raw=True)
            return True
        else:
            self._draw_table()
            self._is_output_due = self._is_over
        return self._is_output_due

    def _draw_end(self) -> None:
        self._newest = pages.newest(self._session, self._newest, KEPT_ROWS)
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
            # The last one stays when its card is closed: the page can't draw a card of nothing.
            if card and card != {**self.widget.run, "now": now}:
                self.widget.run = card

    def _card(self, now: float) -> dict[str, Any]:
        """Return what the card of the open run shows; nothing if none is open."""
        opened = self._opened
        if opened is None:
            return {}
        words = opened.run.status_words() if opened.run.live is not None else None
        record = opened.record
        record = opened.run.record if record.is_brief else record  # it has ended, and memory keeps it no longer
        return view.view(record, now, opened.run.problem, words, blocks=self._blocks)

    def _state(self) -> dict[str, Any]:
        """Return what the page draws besides the open card."""
        page, opened, here = self._page, self._opened, set(self._session.recent_sets)
        rows = [table.page_row(row, self._session.id) for row in page.rows]
        sets = [table.set_row(seen, seen.number in here) for seen in page.sets]
        return {
            "id": self.widget.model_id,
            "columns": table.COLUMNS,
            "rows": table.in_order(rows, sets, lambda row: float(row["created_at"])),
            "live": len(self._session.live_runs),
            "stored": self._stored,
            "status": page.query.status,
            "text": page.query.text,
            "page": pages.PAGE,
            "has_more": page.has_more,
            "has_newer": bool(page.query.before),
            "open": "" if opened is None else table.key_of(opened.record),
            "set": page.query.in_set or 0,
            "answered": self._answered,
            "problem": self._problem,
            "is_over": self._is_over,
            "is_stale": self._kept != _kept(self._newest, self._newest_sets()),
        }

    def _output(self) -> dict[str, Any]:
        """Return the output for a page, and for a notebook file that is read without a kernel."""
        return self.widget.output(self._static(), is_placed=self.is_placed)

    def _static(self) -> dict[str, Any]:
        sets = self._newest_sets()
        self._kept = _kept(self._newest, sets)
        records = [row.record for row in self._newest]
        return table.bundle(records, self._stored, self._session.clock.now(), sets)

    def _newest_sets(self) -> list[SetView]:
        return pages.listed_sets(self._session, self._page.others)


def _turned(page: pages.RunsPage, direction: object) -> tuple[int, ...]:
    """Return where the next or the previous page begins; without a direction, the newest one."""
    before = page.query.before
    if direction == "newer":
        return before[:-1]
    last = page.rows[-1].record.number if page.rows else None
    return (*before, last) if direction == "more" and last is not None else ()


def _kept(rows: Sequence[pages.Row], sets: Sequence[SetView]) -> list[object]:
    """Return what a static table of these rows depends on."""
    runs = [(table.key_of(row.record), row.record.status) for row in rows]
    return [*runs, *((seen.number, seen.brief_words) for seen in sets)]


class Panels:
    """The panels on display: refreshes them, and has the cards' thread draw them.

    Threads: `show()` on the main thread, the others from any; the session reports events on the writer's thread;
    the thread `nbrun-panel` reads the store. `_lock` guards the lists.
    """

    def __init__(self, session: NotebookSession, board: CardBoard, kernel_id: str, answer: Answer) -> None:
        self._session = session
        self._board = board
        self._kernel_id = kernel_id
        self._answer = answer
        self._lock = threading.Lock()
        self._panels: list[Panel] = []
        self._outdated: list[Panel] = []
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._shown = 0
        self._unlisten = session.listen(self._on_events)
        session.on_removed = self._on_removed

    def show(self, cell: str | None) -> None:
        """Display a panel in the running cell; it replaces an earlier one of this cell."""
        self._shown += 1
        place = f"nbrun-at-{self._session.id}-panel-{self._shown}"
        widget = PanelWidget(kernel_id=self._kernel_id, session_id=self._session.id, place=place)
        panel = Panel(self._session, widget, cell, is_placed=self._board.is_placed)
        widget.on_msg(lambda _widget, content, _buffers: self._on_message(panel, content))
        panel.show(lambda: self._board.mark(panel), lambda: self._refresh(panel))
        with self._lock:
            same = [one for one in self._panels if cell is not None and one.cell == cell]
            kept = [one for one in self._panels if one not in same]
            gone = [*same, *kept[: max(0, len(kept) + 1 - KEEP_PANELS)]]
            self._panels = [*(one for one in kept if one not in gone), panel]
        for one in gone:
            one.end(closes=True)
            self._board.mark(one)
        self._refresh(panel)  # runs may have changed since it was drawn

    def ask(self, content: dict[str, Any]) -> dict[str, Any]:
        """Pass a request of a page on to its panel."""
        model_id = content.get("panel")
        panel = next((one for one in self._copy() if one.widget.model_id == model_id), None)
        if panel is None:
            return {"outcome": "refused", "message": CLOSED}
        reply = panel.ask(content)
        if content.get("op") == "keep":
            self._board.mark(panel)
        else:
            self._refresh(panel)
        return reply

    def stop(self) -> None:
        """Stop refreshing: reading a store that is being closed would open it again."""
        self._unlisten()
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(JOIN_S)

    def close(self) -> None:
        """Have every panel drawn for the last time, its runs ended; the board is closed after this."""
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

    def _on_message(self, panel: Panel, content: object) -> None:
        """Answer what came over the comm, such as a click; on whichever thread the kernel handles it."""
        if not isinstance(content, dict):
            return
        if content.get("op") != "placed":
            panel.widget.send(self._answer(content))
            return
        self._board.is_placed = True
        if panel.note_placed():
            self._board.mark(panel)

    def _on_events(self, _record: RunRecord, events: Sequence[ev.RunEvent]) -> None:
        if any(event.data.TYPE.startswith(_SEEN) for event in events):
            for panel in self._copy():
                self._refresh(panel)

    def _on_removed(self) -> None:
        for panel in self._copy():
            panel.forget()
            self._refresh(panel)

    # --- the thread ------------------------------------------------------------------------------

    def _refresh(self, panel: Panel) -> None:
        """Have the thread refresh this panel."""
        with self._lock:
            if panel not in self._outdated:
                self._outdated.append(panel)
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._main, name="nbrun-panel", daemon=True)
                self._thread.start()
        self._wake.set()

    def _main(self) -> None:
        while not self._stopping.is_set():
            self._wait()
            with self._lock:
                outdated, self._outdated = self._outdated, []
            for panel in outdated:
                try:
                    if panel.refresh(self._stopping.is_set):
                        self._board.mark(panel)
                except Exception:  # of one panel: the others are refreshed all the same
                    _log.exception("a panel could not be refreshed")
            self._stopping.wait(REST_S)

    def _wait(self) -> None:
        """Return when a refresh is asked for, or due."""
        polling = [panel for panel in self._copy() if panel.polls]
        if not self._wake.wait(POLL_S if polling else None):
            for panel in polling:
                panel.forget()
                self._refresh(panel)
        self._wake.clear()
