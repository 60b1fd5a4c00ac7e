"""Shows runs and waits for them: as live cards, static cards, panels, or lines in a terminal."""

from __future__ import annotations

import contextvars
import re
from typing import TYPE_CHECKING, Any

from nbrun.agents import registered
from nbrun.core import (
    Action,
    BadOption,
    Fix,
    Interrupted,
    RunCancelled,
    RunFailed,
    RunNotFinished,
    RunRecord,
    RunStatus,
)
from nbrun.render.words import run_ref, with_followups
from nbrun.sessions import LIST_LIMIT, NotebookSession, Run, RunSet
from nbrun.ui.kernel import requests, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbrun.ui.config import NbRun
    from nbrun.ui.kernel.main_thread import MainThread


class Presenter:
    """Shows the runs of a session in one shell. Cards and panels are set up when first needed.

    Threads: the main thread, except `close()`, which the kernel's shutdown calls on its control thread; static
    cards are redrawn on whichever thread reports a change.
    """

    def __init__(self, shell: Any, session: NotebookSession, config: NbRun) -> None:
        self.shell = shell
        self.session = session
        self.config = config
        self.kernel = getattr(shell, "kernel", None)
        self.requests = requests.Requests(session)
        self._board: Any = None
        self._panels: Any = None
        self._set_cards: Any = None
        self._main_thread: MainThread | None = None
        # Static cards of runs that were still live when a headless notebook showed them, and what redraws each.
        self._outdated: list[tuple[Run, Callable[[], object]]] = []

    def stop_panels(self) -> None:
        """Stop updating the panels, before the session closes."""
        if self._panels is not None:
            self._panels.stop()

    def close(self, timeout_s: float) -> None:
        """Draw everything once more, for so long at most, and stop; the session is closed."""
        if self._panels is not None:
            self._panels.close()
        if self._set_cards is not None:
            self._set_cards.draw_all()
        if self._board is not None:
            self._board.close(timeout_s)
        if self._main_thread is not None:
            self.session.parts.lend = None
            self._main_thread.close()
            self._main_thread = None

    def close_widgets(self) -> None:
        """Close the widgets of cards and panels, in a kernel that continues without nbrun."""
        for shown in (self._panels, self._set_cards, self._board):
            if shown is not None:
                shown.close_widgets()

    # --- showing a run ---------------------------------------------------------------------------

    def present(self, run: Run, block: bool | None) -> None:
        """Show a run that was just started, and wait for it if asked to, or if nobody is watching.

        If the run that is waited for fails, so must the cell: this raises what `run.result()` does, or `Interrupted`.
        """
        is_on_kernel_loop = run.live is not None and run.live.loop is not None
        if self.is_text:
            self._present_as_text(run, block is not False and not is_on_kernel_loop)
            return
        headless = waiting.is_headless(self.shell)
        waits = headless if block is None else block
        if not waits or is_on_kernel_loop:  # on that loop, it could not run while this waits
            self.show(run)
            return
        try:
            with waiting.cancelled_by_interrupt(run, self.session.cancel_grace_s):
                if not headless:
                    self.show(run)
                while not run.wait(waiting.TICK_S):  # in short steps: on Windows, ■ does not end a wait
                    pass
        finally:
            if headless:  # nobody can click: static output instead of a widget
                self._show_static(run)
        self.raise_end(run)

    def raise_end(self, run: Run) -> None:
        """Raise what `run.result()` does, in one line: the run is shown, and where it failed is said there."""
        try:
            run.result(0)
        except RunFailed as failed:
            raise failed from None

    def present_set(self, found: RunSet, block: bool | None, *, may_fail: bool = False) -> None:
        """Show a set that was just started, and wait for it as `present()` does for a run.

        The cell fails with the set, and with any of its runs unless these `may_fail`.
        """
        is_live = self.has_page
        waits = not is_live if block is None else block
        if not waits:
            self.show_set(found)
            return
        try:
            with waiting.cancelled_by_interrupt(found, self.session.cancel_grace_s):
                if is_live:
                    self.show_set(found)
                if self.is_text:
                    from nbrun.ui.terminal.live_line import show_set_until_end

                    show_set_until_end(found, self.session, self.kernel)
                while not found.wait(waiting.TICK_S):  # as in `present()`
                    pass
        finally:
            if not is_live:
                self.show_set(found)
        failed = found.counts.get(RunStatus.FAILED, 0)
        if found.status == "cancelled":
            raise RunCancelled(repr(found))
        if found.status != "completed" or (failed and not may_fail):
            raise RunFailed(f"{found!r}. If some may fail, say how many: --max-failures 5%")

    def show_set(self, found: RunSet) -> None:
        """Show a set's card: a live one on a page, else what it is at this moment."""
        from IPython.display import display

        from nbrun.render import static_card

        if self.has_page and found.number in self.session.recent_sets:
            with waiting.uninterrupted():  # as in `show()`
                self.set_cards.show(found)
        elif self.is_text:
            print(static_card.set_text(found.view))
        else:
            display(static_card.set_bundle(found.view), raw=True)

    def _present_as_text(self, run: Run, waits: bool) -> None:
        from nbrun.ui.terminal.live_line import show_until_end

        if not waits:
            print(repr(run))
            return
        show_until_end(run, self.session, self.kernel)
        self.raise_end(run)

    def show(self, run: Run) -> None:
        """Show a run's card: live while the run is live in this kernel, static otherwise."""
        run.wait_created()  # its number is on the card
        live = run.live
        if live is not None and not run.done() and self.has_page:
            # A card shown halfway would never update, or its widget would never be closed.
            with waiting.uninterrupted():
                self.board.show(live, is_executed=waiting.is_executed(self.shell))
        else:
            self._show_static(run)

    def _show_static(self, run: Run) -> None:
        """Show a run without a widget, as text where nothing else is shown; a live run's output is updated."""
        from IPython.display import DisplayHandle, display

        from nbrun.render import static_card

        record, problem = _shown_record(run), run.problem
        if self.is_text:
            print(static_card.plain_text(record, problem))
            return
        handle, live, headless = DisplayHandle(), run.live, waiting.is_headless(self.shell)
        data = static_card.bundle(record, problem, is_redrawn=live is not None and not headless)
        display(data, raw=True, display_id=handle.display_id)

        def redraw() -> None:
            handle.update(static_card.bundle(_shown_record(run), run.problem), raw=True)

        is_final = record.is_settled and problem is None
        if is_final or (live is None and not record.is_live):
            return
        if headless or waiting.is_executed(self.shell):
            self._outdated.append((run, redraw))
        if headless:
            return
        context, asked = contextvars.copy_context(), [record.pending]

        def redraw_here() -> None:
            # A bare thread would update whichever cell ran last. A copy, since two threads may redraw at once.
            context.copy().run(redraw)

        def look(record: RunRecord, _events: object) -> None:
            if record.is_live and record.pending != asked[0]:  # `follow_end` draws the end
                asked[0] = record.pending
                redraw_here()

        if live is not None:
            live.listen(look)
            look(live.record, ())  # it may have asked before we listened
        run.follow_end(redraw_here)

    def redraw_ended(self) -> None:
        """Bring the cards in the notebook's file up to date, at the end of each cell.

        Source: nbclient takes an update only while a cell runs, and only from that cell, so whichever cell runs when a
        run ends, or is the next to run, sends it.
        """
        if self._board is not None and waiting.is_executed(self.shell):
            self._board.draw_ended_here()
        outdated, self._outdated = self._outdated, []
        for run, redraw in outdated:
            if run.done():
                redraw()
            if not run.record.is_settled or run.problem is not None:
                self._outdated.append((run, redraw))

    @property
    def is_text(self) -> bool:
        """Whether text is all that is shown: in a terminal, or a console of a kernel."""
        return self.kernel is None or waiting.is_console(self.shell)

    @property
    def has_page(self) -> bool:
        """Whether somebody can see what is displayed, and click on it."""
        return bool(not self.is_text and self.config.card and not waiting.is_headless(self.shell))

    def show_panel(self) -> None:
        """Show the runs: a live table on a page, else a list of the newest."""
        if self.has_page:
            with waiting.uninterrupted():  # as in `show()`
                self.panels.show(waiting.cell_id(self.shell))
            return
        runs = self.session.runs(limit=LIST_LIMIT)
        if self.is_text:
            print(repr(runs))
        else:
            from IPython.display import display

            display(runs)

    def redraw_after_followup(self, run: Run) -> None:
        """Update the card of a run that was resumed, retried …: it names the new runs."""
        if self._board is not None and run.live is not None:
            self._board.note_followups(run.live, run.followups)

    @property
    def board(self) -> Any:
        """The cards, set up with the first one: their widget library takes 0.2 s to import."""
        if self._board is None:
            from nbrun.ui.cards.board import CardBoard

            self._board = CardBoard(
                self.session, waiting.kernel_id(self.kernel), self.requests.answer, lambda: self.config.notify_after
            )
            self.session.on_queue_moved = self._board.redraw_queued
        return self._board

    @property
    def set_cards(self) -> Any:
        """The cards of sets, set up with the first one."""
        if self._set_cards is None:
            from nbrun.ui.cards.set_cards import SetCards

            kernel_id = waiting.kernel_id(self.kernel)
            self._set_cards = SetCards(self.session, self.board, kernel_id, self.requests.answer)
        return self._set_cards

    @property
    def panels(self) -> Any:
        """The panels, set up with the first one."""
        if self._panels is None:
            from nbrun.ui.panel.panel import Panels

            kernel_id = waiting.kernel_id(self.kernel)
            self._panels = Panels(self.session, self.board, kernel_id, self.requests.answer)
            self.requests.ask_panel = self._panels.ask
        return self._panels

    # --- waiting ---------------------------------------------------------------------------------

    def wait(self, runs: Sequence[Run | RunSet], timeout_s: float | None) -> None:
        """Wait for runs, in order; the runs continue after `RunNotFinished` (time is up) and `Interrupted` (■)."""
        clock = self.session.clock
        until = None if timeout_s is None else clock.monotonic() + timeout_s
        try:
            for run in runs:
                while not run.wait(waiting.TICK_S):
                    if isinstance(run, Run) and run.is_unknown:
                        fix = Fix(Action.LOST, run_ref(run.glance))
                        raise RunNotFinished(repr(run), fixes=[fix])
                    if until is not None and clock.monotonic() >= until:
                        raise RunNotFinished(f"{run!r} hasn't finished after {timeout_s:g} s; it continues")
        except KeyboardInterrupt:
            live = sum(not run.done() for run in runs)
            still = "1 run is" if live == 1 else f"{live} runs are"
            raise Interrupted(
                f"{still} still in progress. To stop one: %agentrun cancel REF. To stop all: %agentrun cancel --all"
            ) from None
        for run in runs:
            print(repr(run))
        if not runs:
            print("No runs in progress.")

    def confirms(self, question: str) -> bool:
        """Ask the person at this cell; raises `BadOption` where nobody can be asked."""
        from IPython.core.error import StdinNotImplementedError

        if self.kernel is None:
            from nbrun.ui.terminal import keyboard

            keyboard.discard_typed_ahead(0.0)
        try:
            return input(question).strip().lower() in ("y", "yes")
        except (EOFError, StdinNotImplementedError):
            raise BadOption(
                "this asks a question, and nobody can answer here; run it in a notebook or console"
            ) from None

    # --- agents and their tools ------------------------------------------------------------------

    def find_agent(self, name: str) -> object:
        """Return the agent of this name, from the notebook's namespace or the registered ones; None if not found.

        `bot.chat` is an attribute of what the notebook calls `bot`, such as a method.
        """
        shell = self.shell
        first, *attributes = name.split(".")
        if first in shell.user_ns and first not in shell.user_ns_hidden and not re.search(r"(^|\.)_", name):
            found: object = shell.user_ns[first]
            for attribute in attributes:
                found = getattr(found, attribute, None)
            return found
        return registered().get(name) or self._tool(name)

    def _tool(self, name: str) -> object:
        from nbrun.ui.kernel import notebook_tools  # with the first that asks: a load must be quick

        tools = self.toolset(notebook_tools.NAME) if name in notebook_tools.TOOLS else None
        return next((tool for tool in tools or () if tool.__name__ == name), None)

    def toolset(self, name: str) -> tuple[Callable[..., object], ...] | None:
        """Return the functions of the toolset of this name; None if there isn't one."""
        from nbrun.ui.kernel import main_thread, notebook_tools  # as above

        if name != notebook_tools.NAME:
            return None
        if self._main_thread is None and self.kernel is not None:
            self._main_thread = main_thread.MainThread(self.shell)
            self.session.parts.lend = self._main_thread.run_here
        return notebook_tools.NotebookTools(self.shell, self._main_thread).functions()


def _shown_record(run: Run) -> RunRecord:
    """Return the record; once it has ended, with the runs that were started from it."""
    record = run.record
    return record if record.is_live else with_followups(record, run.followups)
