"""Live cards of sets: each is one widget, whatever the number of its runs, drawn by the thread that draws the cards."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import traitlets

from nbrun.core import RunNotFound, RunRecord, UserError, counted, duration, shown, visible
from nbrun.render import set_view, static_card, words
from nbrun.ui.cards import esm, view
from nbrun.ui.cards.board import CardBoard, CardCode, CardWidget, Drawable, Priority
from nbrun.ui.cards.markdown_blocks import Blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.render.set_view import SetView
    from nbrun.sessions import NotebookSession, Run, RunSet
    from nbrun.ui.kernel.requests import Answer

KEEP_SETS = 20
"""How many widgets of sets stay open; the oldest of more leaves its static card."""
ERROR_LIMIT = 10
"""How many different errors of a set are listed."""
SURE_S, SURE_ENDS = 60.0, 10
"""The time left is shown once so many runs have ended, if it has not doubled or halved within so long."""
PACE_OVER_S, PACE_FROM_S = 20.0, 2.0
"""A pace is that of the last seconds, so many, and is not given before it is of so many."""
SAMPLES = 600
ARGS_LIMIT = 300
"""How much of the arguments of a question is shown; what is longer is answered on the card of its run."""
PACE_S, PACE_ENDS = 5.0, 5
"""A pace is shown for so long after the last end, or for as long as so many ends take."""


class SetWidget(CardWidget):
    """The card of a set in the page: the set in a trait of its own, and the open run in the card's trait."""

    set = traitlets.Dict().tag(sync=True)


class SetCard(Drawable):
    """The card of one set on display.

    Threads: `open()` on whichever thread the kernel handles a message; `draw()` on the cards' thread, which alone
    writes the traits from the first display on.
    """

    def __init__(self, found: RunSet, widget: SetWidget, session: NotebookSession, is_placed: bool) -> None:
        from IPython.display import DisplayHandle

        super().__init__()
        self.found = found
        self.widget = widget
        self.is_placed = is_placed
        self.handle = DisplayHandle()
        self.follow: Callable[[], None] = lambda: None  # ends what tells of changes, and begins it anew
        self._session = session
        self._pacer = Pacer()
        self._opened: tuple[Run, RunRecord | None] | None = None  # a live run's record is asked for anew
        self._unlisten: Callable[[], None] = lambda: None
        self._blocks = Blocks()
        self._in_output: tuple[object, ...] | None = None  # what the output depends on, as drawn
        self._is_end_due = False

    @property
    def priority(self) -> Priority:  # type: ignore[override]  # it changes at the end
        """Whether it has ended."""
        return Priority.LIVE if self.found.is_live else Priority.ENDED

    def output(self) -> dict[str, Any]:
        """Return the output for a page, and for a notebook file that is read without a kernel."""
        shown_now = self.found.view
        self._in_output = shown_now.is_live, shown_now.ended_at, self.is_placed
        data = static_card.set_bundle(shown_now)
        if shown_now.is_live:
            return self.widget.output(data, is_placed=self.is_placed)
        return self.widget.in_place(data, is_final=True) if self.is_placed else data

    def open(self, number: object, on_change: Callable[[], object]) -> None:
        """Show the card of one of its runs below; 0 for none."""
        self._unlisten()
        self._unlisten, self._opened = (lambda: None), None
        if not isinstance(number, int) or number <= 0:
            return
        try:
            run = self._session.get_run(number)
        except RunNotFound:
            return
        if run.live is not None and run.live.record.is_live:
            self._unlisten = run.live.listen(lambda _record, _events: on_change())
            self._opened = run, None
        else:
            self._opened = run, run.record

    def draw(self) -> bool:
        """Send the set's state and the open run's; before a live one its output, and at the end the static one."""
        is_end, self._is_end_due = self._is_end_due, False
        if is_end:
            self.handle.update(self.output(), raw=True)
            return False
        seen = self.found.view
        state = self.state(seen)
        is_outdated = self._in_output != (seen.is_live, seen.ended_at, self.is_placed)
        if is_outdated and seen.is_live:
            self.handle.update(self.output(), raw=True)
            return True
        with self.widget.hold_sync():  # one message for both
            if self._opened is not None:
                self.widget.run = self._open_state(*self._opened)
            self.widget.set = state
        self._is_end_due = is_outdated
        return self._is_end_due

    def _open_state(self, run: Run, record: RunRecord | None) -> dict[str, Any]:
        record = run.record if record is None else record
        return view.view(record, self._session.clock.now(), run.problem, blocks=self._blocks)

    def close(self) -> None:
        """Close the widget."""
        self._unlisten()
        self.context.copy().run(self.widget.close)

    # --- what it shows ---------------------------------------------------------------------------

    def state(self, seen: SetView | None = None) -> dict[str, Any]:
        """Return what the page draws."""
        seen, opened = seen or self.found.view, self._opened
        number = 0 if opened is None else opened[0].number or 0
        return state(seen, self._session.clock.now(), self._pace(seen), number)

    def _pace(self, seen: SetView) -> Pace:
        if seen.status != "running":
            self._pacer = Pacer()
            return NO_PACE
        rest = sum(count for status, count, _ in seen.parts if status.is_live)
        ended, clock = sum(seen.counts.values()) - rest, self._session.clock
        return self._pacer.pace(ended, rest if seen.is_size_known else None, clock.monotonic(), clock.now())


class Pace(NamedTuple):
    """How fast a set is, in words, and until when they hold, in epoch seconds: then the next end is overdue."""

    words: str
    until: float


NO_PACE = Pace("", 0.0)


class Pacer:
    """Says how fast a set is, and about how long it will take if that is sure enough."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=SAMPLES)  # how many had ended when, a second apart or more
        self._last = (0.0, 0)  # when the number changed last, and that number
        self._guesses: deque[tuple[float, float]] = deque(maxlen=SAMPLES)  # when the end was estimated, and for when

    def pace(self, ended: int, rest: int | None, now: float, epoch_s: float) -> Pace:
        """Return the pace of what has ended lately, where `rest` has not, or None if nobody knows how much."""
        if ended < self._last[1]:  # some are run again
            self._seen.clear()
            self._guesses.clear()
        if ended != self._last[1]:
            self._last = now, ended
        if not self._seen or now - self._seen[-1][0] >= 1:
            self._seen.append((now, ended))
        # By the ends of the last seconds, which come in bursts; by more seconds where that are few.
        while len(self._seen) > 1 and now - self._seen[1][0] >= PACE_OVER_S and ended - self._seen[1][1] >= SURE_ENDS:
            self._seen.popleft()
        since, before = self._seen[0]
        if ended - before < SURE_ENDS or now - since < PACE_FROM_S:
            return NO_PACE
        per_s = (ended - before) / (now - since)
        until = epoch_s + self._last[0] + max(PACE_S, PACE_ENDS / per_s) - now
        speed = f"{per_s:,.0f}/s" if per_s >= 2 else f"{60 * per_s:,.0f}/min"
        if not rest:
            return Pace(speed, until)
        left_s = rest / per_s
        if not self._guesses or now - self._guesses[-1][0] >= 1:
            self._guesses.append((now, now + left_s))
        while self._guesses[0][0] < now - SURE_S:
            self._guesses.popleft()
        lefts = [left_s, *(max(0.0, end - now) for _, end in self._guesses)]
        if max(lefts) > 2 * min(lefts) + PACE_S:
            return Pace(speed, until)
        left = duration(60 * round(left_s / 60)).removesuffix(" 0 s") if left_s > 90 else f"{max(1, round(left_s))} s"
        return Pace(f"{speed} · about {left} left", until)


def state(seen: SetView, now: float, pace: Pace = NO_PACE, opened: int = 0) -> dict[str, Any]:
    """Return what the page draws of a set: small, however many runs there are."""
    return {
        "id": f"set-{seen.number}",
        "number": seen.number,
        "name": visible(shown(seen.name, 200)),
        "agent": visible(shown(seen.agent, 200)),
        "status": seen.status,
        "words": visible(seen.status_words),
        "live": seen.is_live,
        "created_at": seen.began_at,
        "now": now,
        "usage": words.usage_words(seen.usage),
        "parts": [{"status": str(status), "count": count, "words": text} for status, count, text in seen.parts],
        "rest": sum(count for status, count, _ in seen.parts if status.is_live),
        "size": f"{counted(seen.size, 'run')}{'' if seen.is_size_known else ' so far'}",
        "pace": pace.words,
        "pace_until": pace.until,
        "notes": [visible(note) for note in seen.notes],
        "questions": [_asked(group) for group in seen.questions],
        "failed": sum(group.count for group in seen.errors),
        "errors": [_error(group) for group in seen.errors[:ERROR_LIMIT]],
        "errors_cut": max(0, len(seen.errors) - ERROR_LIMIT),
        "newest": [_member(record) for record in seen.newest],
        "slowest": [_member(record) for record in seen.slowest],
        "open": opened,
    }


def _asked(group: set_view.QuestionGroup) -> dict[str, Any]:
    asked = [(count, view.question(one)) for count, one in group.asked]
    first = asked[0][1]
    can_answer = not first["options"] and not first["input"] and all(one["digest"] for _, one in asked)
    lines = [(count, shown(one["args"], ARGS_LIMIT)) for count, one in asked if one["args"]]
    can_answer = can_answer and all(len(one["args"]) <= ARGS_LIMIT for _, one in asked)
    return {
        "kind": group.kind,
        "digest": group.digest if can_answer else "",  # without it nobody can answer what they have not seen
        "count": group.count,
        "message": first["message"],
        "tool": first["tool"],
        "hidden": first["hidden"],
        "args": [f"{count:,} × {text}" if group.count > 1 else text for count, text in lines],
        "runs": list(group.numbers),
    }


def _error(group: set_view.ErrorGroup) -> dict[str, Any]:
    return {
        "count": group.count,
        "key": group.error,  # sent back as it is
        "words": visible(group.words()),
        "runs": list(group.numbers),
    }


def _member(record: RunRecord) -> dict[str, Any]:
    took_s = record.elapsed_s(record.ended_at or record.last_event_at)
    return {
        "number": record.number or 0,
        "status": str(record.status),
        "title": visible(set_view.member_words(record)),
        "took": "" if took_s is None else duration(took_s),
        "text": visible(set_view.output_words(record)),
    }


class SetCards:
    """The cards of sets on display; the board's thread draws them.

    Threads: `show()` on the main thread, `on_begun()` and the listeners on any. `_lock` guards the list.
    """

    def __init__(self, session: NotebookSession, board: CardBoard, kernel_id: str, answer: Answer) -> None:
        self._session = session
        self._board = board
        self._kernel_id = kernel_id
        self._answer = answer
        self._lock = threading.Lock()
        self._cards: list[SetCard] = []
        self._code: CardCode | None = None
        self._shown = 0
        session.on_set_begun = self.on_begun

    def show(self, found: RunSet) -> None:
        """Display a set's card in the running cell."""
        from IPython.display import display

        self._shown += 1
        if self._code is None or self._code.comm is None:  # closed, as by `Widget.close_all()`
            style = esm.page_style("card.css", "questions.css", "set.css")
            self._code = CardCode(text=esm.page_module("set.js"), style=style)
        widget = SetWidget(
            code_id=self._code.model_id,
            kernel_id=self._kernel_id,
            session_id=self._session.id,
            place=f"nbrun-at-{self._session.id}-set-{self._shown}",
        )
        card = SetCard(found, widget, self._session, self._board.is_placed)
        widget.set = card.state()
        widget.on_msg(lambda _widget, content, _buffers: self._on_message(card, content))
        display(card.output(), raw=True, display_id=card.handle.display_id)
        with self._lock:
            self._cards.append(card)
            oldest = self._cards.pop(0) if len(self._cards) > KEEP_SETS else None
        if oldest is not None:
            oldest.follow()
            oldest.close()
        self._follow(card)

    def on_begun(self, number: int) -> None:
        """Follow a set that is run again."""
        with self._lock:
            cards = [card for card in self._cards if card.found.number == number]
        for card in cards:
            card.follow()
            self._follow(card)

    def close_widgets(self) -> None:
        """Close all widgets."""
        with self._lock:
            cards, self._cards = self._cards, []
        for card in cards:
            card.follow()
            card.close()
        if self._code is not None:
            self._code.close()

    def draw_all(self) -> None:
        """Have all drawn once more: the session is closed."""
        with self._lock:
            cards = [*self._cards]
        for card in cards:
            self._board.mark(card)

    def _follow(self, card: SetCard) -> None:
        card.follow = card.found.listen(lambda: self._board.mark(card))
        self._board.mark(card)  # it may have changed before we listened

    def _on_message(self, card: SetCard, content: object) -> None:
        """Answer what came over the comm, such as a click; on whichever thread the kernel handles it."""
        if not isinstance(content, dict):
            return
        code = self._code
        match content.get("op"):
            case "placed":
                self._board.is_placed = card.is_placed = True
                self._board.mark(card)
            case "code" if code is not None:
                card.widget.send({"op": "code", "text": code.text, "style": code.style})
            case "static":
                if not card.found.is_live:
                    card.widget.send({"op": "static", "data": card.output()})
            case "open":
                try:
                    card.open(content.get("number"), lambda: self._board.mark(card))
                except UserError:  # the store can't be read now: the card says so where it can
                    card.open(0, lambda: None)
                self._board.mark(card)
            case _:
                card.widget.send(self._answer(content))
