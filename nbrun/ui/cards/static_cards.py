"""Static cards: what a cell shows of a run where nothing lives, and how it is brought up to date."""

from __future__ import annotations

import contextvars
import functools
from typing import TYPE_CHECKING, Any

from nbrun.render.words import with_sequels
from nbrun.ui.kernel.waiting import is_headless

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.core.record import RunRecord
    from nbrun.sessions.run import Run


class StaticCards:
    """Shows runs as outputs without a widget, or as text where there is no kernel.

    Threads: the main thread shows; a run's end is drawn on whichever thread tells of it.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        # Those of a headless notebook whose runs went on, and what brings them up to date.
        self._still_shown: list[tuple[Run, Callable[[], object]]] = []

    def show(self, run: Run) -> None:
        """Show a run as it is; where it goes on, what was shown is brought up to date at its end."""
        from IPython.display import DisplayHandle, display

        from nbrun.render.static_card import bundle, plain_text

        if getattr(self._shell, "kernel", None) is None:
            print(plain_text(_shown_record(run), run.problem))
            return
        handle, record, problem = DisplayHandle(), _shown_record(run), run.problem
        is_ours, headless = run._live is not None, is_headless(self._shell)
        data = bundle(record, problem, is_redrawn=is_ours and not headless)
        display(data, raw=True, display_id=handle.display_id)
        redraw = functools.partial(_redraw, run, handle)
        is_last = record.is_settled and problem is None
        if is_last or not (is_ours or record.is_live):
            return  # what is shown is the last word
        if headless:
            self._still_shown.append((run, redraw))
        else:  # as this cell's: a bare thread would send it as whichever cell's ran last
            context = contextvars.copy_context()
            redraw_here = lambda: context.copy().run(redraw)  # noqa: E731 - two listen with it
            _when_asking(run, record, redraw_here)
            run.follow_end(redraw_here)

    def redraw_ended(self) -> None:
        """Bring static cards up to date whose runs have ended.

        Source: nbclient takes an update only while a cell runs, and only as that cell's, so a waiting cell
        has to send it.
        """
        still, self._still_shown = self._still_shown, []
        for run, redraw in still:
            if run.done():
                redraw()
            if not run.record.is_settled or run.problem is not None:
                self._still_shown.append((run, redraw))


def _redraw(run: Run, handle: Any) -> None:
    from nbrun.render.static_card import bundle

    handle.update(bundle(_shown_record(run), run.problem), raw=True)


def _shown_record(run: Run) -> RunRecord:
    """Return the record with a word on the runs that come from this one."""
    record = run.record
    return record if record.is_live else with_sequels(record, run.sequels)


def _when_asking(run: Run, drawn: RunRecord, redraw: Callable[[], object]) -> None:
    """Call `redraw` whenever a live run asks something else than was drawn: a static card must say that it waits."""
    live = run._live
    if live is None:
        return
    shown = [drawn.pending]

    def look(record: RunRecord, _events: object) -> None:
        if record.is_live and record.pending != shown[0]:  # its end is drawn by who waits for that
            shown[0] = record.pending
            redraw()

    live.listen(look)
    look(live.record, ())  # it may have asked before we listened
