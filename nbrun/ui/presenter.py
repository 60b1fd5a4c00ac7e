"""Shows runs and waits for them: as live cards, static cards, panels, or lines of a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbrun.agents import registered
from nbrun.core.errors import Action, Fix, Interrupted, RunNotFinished
from nbrun.render.words import run_ref
from nbrun.sessions.session import LIST_LIMIT
from nbrun.ui.cards.static_cards import StaticCards
from nbrun.ui.kernel.requests import Requests
from nbrun.ui.kernel.waiting import (
    cancelled_by_interrupt,
    cell_id,
    is_headless,
    kernel_id,
    uninterrupted,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.sessions.run import Run
    from nbrun.sessions.session import NotebookSession
    from nbrun.ui.config import NbRun
    from nbrun.ui.kernel.main_thread import MainThread


class Presenter:
    """Shows the runs of a session in one shell. Cards and panels are made with the first of each.

    Threads: the main thread, except `close()`, which the kernel's shutdown calls on its control thread.
    """

    def __init__(self, shell: Any, session: NotebookSession, config: NbRun) -> None:
        self.shell = shell
        self.session = session
        self.config = config
        self.kernel = getattr(shell, "kernel", None)
        self.requests = Requests(session)
        self._board: Any = None
        self._panels: Any = None
        self._main_thread: MainThread | None = None
        self._static_cards = StaticCards(shell)

    def stop_panels(self) -> None:
        """Stop updating the panels, before the session closes."""
        if self._panels is not None:
            self._panels.stop()

    def close(self) -> None:
        """Draw everything once more and stop; the session is closed."""
        if self._panels is not None:
            self._panels.close()
        if self._board is not None:
            self._board.close(0.3)
        if self._main_thread is not None:
            self._main_thread.close()
            self._main_thread = None

    def close_widgets(self) -> None:
        """Close the widgets of cards and panels, for a kernel that goes on without nbrun."""
        if self._panels is not None:
            self._panels.let_go()
        if self._board is not None:
            self._board.let_go()

    def present(self, run: Run, block: bool | None) -> None:
        """Show a run that was just started, and wait for it where that is asked for or nobody looks on.

        Raises
        ------
        RunFailed, RunCancelled
            It was waited for, and ended so: the cell must not count as done.
        Interrupted
            ■ came while it was waited for.
        """
        if self.kernel is None:
            self._present_in_terminal(run, block)
            return
        headless = is_headless(self.shell)
        is_on_kernel_loop = run._live is not None and run._live.loop is not None
        waits = headless if block is None else block
        waits = waits and not is_on_kernel_loop  # while this waits, it could not go on
        if headless and waits:  # nobody can click: no widget, only what stays in the file
            try:
                with cancelled_by_interrupt(run, self.session.cancel_grace_s):
                    wait_for(run, self.run_agents_code)
            finally:
                self._static_cards.show(run)
        elif waits:
            with cancelled_by_interrupt(run, self.session.cancel_grace_s):
                self.show(run)
                wait_for(run, self.run_agents_code)
        else:
            self.show(run)
        if waits:
            run.result(0)

    def toolset(self, name: str) -> tuple[Callable[..., object], ...] | None:
        """Return the functions of a toolset that has this name."""
        from nbrun.ui.kernel import notebook_tools

        if name != notebook_tools.NAME:
            return None
        if self._main_thread is None and self.kernel is not None:
            from nbrun.ui.kernel.main_thread import MainThread

            self._main_thread = MainThread(self.shell)
        return notebook_tools.NotebookTools(self.shell, self._main_thread).functions()

    def run_agents_code(self) -> None:
        """Run what agents want to be run on the main thread, which has nothing else to do now."""
        if self._main_thread is not None:
            self._main_thread.run_here()

    def is_answerable(self, block: bool | None) -> bool:
        """Return whether a person could answer the run's questions: not where a headless cell waits for it."""
        waits = block is not False
        return self.kernel is None or not (waits and is_headless(self.shell))

    def _present_in_terminal(self, run: Run, block: bool | None) -> None:
        from nbrun.ui.terminal.live_line import show_until_end

        if block is False:
            print(repr(run))
            return
        show_until_end(run, self.session)
        run.result(0)

    def show(self, run: Run) -> None:
        """Show a run's card: live while it lives here, static otherwise."""
        live = run._live
        if live is not None and not run.done() and self.has_page:
            # Half-shown, a card would never change again, or its widget would belong to nobody.
            with uninterrupted():
                self.board.show(live)
        else:
            self._static_cards.show(run)

    @property
    def has_page(self) -> bool:
        """Whether what is displayed now is looked at by somebody, who may click on it."""
        return bool(self.kernel is not None and self.config.card and not is_headless(self.shell))

    def show_panel(self) -> None:
        """Show the runs: a live table where there is a page, else the list of the newest."""
        if self.has_page:
            with uninterrupted():  # as above
                self.panels.show(cell_id(self.shell))
            return
        runs = self.session.runs(limit=LIST_LIMIT)
        if self.kernel is None:
            print(repr(runs))
        else:
            from IPython.display import display

            display(runs)

    def redraw_followed(self, run: Run) -> None:
        """Have the card of a run say which runs come from it by now."""
        if self._board is not None and run._live is not None:
            self._board.note_sequels(run._live, run.sequels)

    def find_agent(self, name: str) -> object:
        """Return the agent of this name: registered, or made by the notebook itself; None where there is none."""
        shell = self.shell
        if name in shell.user_ns and not name.startswith("_") and name not in shell.user_ns_hidden:
            return shell.user_ns[name]
        return registered().get(name) or self._tool(name)

    def _tool(self, name: str) -> object:
        from nbrun.ui.kernel.notebook_tools import NAME, TOOLS

        tools = (self.toolset(NAME) or ()) if name in TOOLS else ()
        return next((tool for tool in tools if tool.__name__ == name), None)

    @property
    def board(self) -> Any:
        """The cards, made with the first of them: their widget library takes 0.2 s to import."""
        if self._board is None:
            from nbrun.ui.cards.board import CardBoard

            self._board = CardBoard(
                self.session,
                kernel_id(self.kernel),
                self.requests.answer,
                lambda: self.config.notify_after,
            )
            self.session.on_line_moved = self._board.redraw_queued
        return self._board

    @property
    def panels(self) -> Any:
        """The panels, made with the first of them."""
        if self._panels is None:
            from nbrun.ui.panel.panel import Panels

            self._panels = Panels(
                self.session, self.board, kernel_id(self.kernel), self.requests.answer
            )
            self.requests.ask_panel = self._panels.ask
        return self._panels

    def wait(self, runs: list[Run], timeout_s: float | None) -> None:
        """Wait for runs, in order.

        Raises
        ------
        RunNotFinished
            The time is over; the runs go on.
        Interrupted
            ■ came: only the waiting ends, the runs go on.
        """
        clock = self.session.clock
        until = None if timeout_s is None else clock.monotonic() + timeout_s
        try:
            for run in runs:
                while not run.wait(0.05):
                    if run.is_unknown:
                        raise RunNotFinished(
                            repr(run), fixes=[Fix(Action.LOST, run_ref(run.glance))]
                        )
                    if until is not None and clock.monotonic() >= until:
                        raise RunNotFinished(
                            f"{run!r} has not finished after {timeout_s:g} s; it goes on"
                        )
        except KeyboardInterrupt:
            live = sum(not run.done() for run in runs)
            going = "1 run goes on" if live == 1 else f"{live} runs go on"
            raise Interrupted(
                f"{going}. Stop one with %agentrun cancel, or all with --all"
            ) from None
        self._static_cards.redraw_ended()
        for run in runs:
            print(repr(run))
        if not runs:
            print("No runs in progress.")
