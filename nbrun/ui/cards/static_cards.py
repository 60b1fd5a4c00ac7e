"""Static cards: what a cell shows of a run without a widget, updated until the run has ended."""

from __future__ import annotations

import contextvars
import functools
from typing import TYPE_CHECKING, Any

from nbrun.render.words import with_followups
from nbrun.ui.kernel.waiting import is_headless

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.core import RunRecord
    from nbrun.sessions.run import Run


class StaticCards:
    """Shows runs as outputs without a widget, or as text where there is no kernel.

    Threads: the main thread shows; updates are drawn on whichever thread reports them.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        # Runs that were still live when a headless notebook showed them, and what redraws each.
        self._outdated: list[tuple[Run, Callable[[], object]]] = []

    def show(self, run: Run) -> None:
        """Show a run as it is now; what is shown of a live run is updated later."""
        from IPython.display import DisplayHandle, display

        from nbrun.render import static_card

        record, problem = _shown_record(run), run.problem
        if getattr(self._shell, "kernel", None) is None:
            print(static_card.plain_text(record, problem))
            return
        handle, live, headless = DisplayHandle(), run.live, is_headless(self._shell)
        data = static_card.bundle(record, problem, is_redrawn=live is not None and not headless)
        display(data, raw=True, display_id=handle.display_id)

        def redraw() -> None:
            handle.update(static_card.bundle(_shown_record(run), run.problem), raw=True)

        is_final = record.is_settled and problem is None
        if is_final or (live is None and not record.is_live):
            return
        if headless:
            self._outdated.append((run, redraw))
            return
        # In this cell's context: a bare thread would send into whichever cell ran last.
        context = contextvars.copy_context()
        redraw_here = functools.partial(_in_copy, context, redraw)
        if live is not None:
            shown = [record.pending]

            def look(record: RunRecord, _events: object) -> None:
                # `follow_end` draws the end.
                if record.is_live and record.pending != shown[0]:
                    shown[0] = record.pending
                    redraw_here()

            live.listen(look)
            look(live.record, ())  # it may have asked before we listened
        run.follow_end(redraw_here)

    def redraw_ended(self) -> None:
        """Update the static cards whose runs have ended.

        Source: nbclient takes an update only while a cell runs, and only as that cell's, so a waiting cell
        has to send it.
        """
        outdated, self._outdated = self._outdated, []
        for run, redraw in outdated:
            if run.done():
                redraw()
            if not run.record.is_settled or run.problem is not None:
                self._outdated.append((run, redraw))


def _in_copy(context: contextvars.Context, function: Callable[[], object]) -> object:
    """Call a function in a copy of the context: two threads may do so at once."""
    return context.copy().run(function)


def _shown_record(run: Run) -> RunRecord:
    """Return the record; once it has ended, with the runs that were started from it."""
    record = run.record
    return record if record.is_live else with_followups(record, run.followups)
