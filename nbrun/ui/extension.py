"""nbrun in a notebook: the extension, from load to unload. The only part that knows IPython and widgets."""

from __future__ import annotations

import atexit
import functools
import os
from typing import TYPE_CHECKING, Any

from nbrun.agents import registered
from nbrun.core.errors import Interrupted, RunNotFinished
from nbrun.core.record import UNLOAD
from nbrun.sessions.default import SHELL_ATTRIBUTE
from nbrun.sessions.session import LIST_LIMIT as LISTED
from nbrun.sessions.session import NotebookSession
from nbrun.store.retention import Keep
from nbrun.ui.cards.static_cards import StaticCards
from nbrun.ui.config import NbRun
from nbrun.ui.kernel import control_channel as control
from nbrun.ui.kernel.formatting import format_value
from nbrun.ui.kernel.requests import Doors
from nbrun.ui.kernel.waiting import (
    cancelled_by_interrupt,
    cell_id,
    is_headless,
    uninterrupted,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.sessions.run import Run
    from nbrun.ui.kernel.main_thread import MainThread

_EXTENSION_ATTRIBUTE = "nbrun_extension"


class Extension:
    """One load of nbrun in one shell: its session, its magics, its cards and its doors for a cancel.

    Threads: the main thread, except `close()`, which the kernel's shutdown calls on its control thread.
    """

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.config = NbRun(parent=shell)
        self.kernel = getattr(shell, "kernel", None)
        self.session = NotebookSession(
            shell.user_ns.get("__vsc_ipynb_file__"),
            store=self.config.store or None,
            max_concurrent=self.config.max_concurrent,
            cancel_grace_s=self.config.cancel_grace_s,
            reentrant_loop=self.config.reentrant_loop,
            keep_runs=self.config.keep_runs,
            keep_bytes=self.config.keep_bytes,
        )
        self.config.observe(
            lambda change: self.session.let_enter_loop(change["new"]), "reentrant_loop"
        )
        self.config.observe(lambda _: self._name_secrets(), "secrets")
        self.config.observe(lambda _: self._say_how_much_is_kept(), ["keep_runs", "keep_bytes"])
        self._name_secrets()
        self.session.on_display = self.show
        self.session.on_panel = self.show_panel
        self.session.find_agent = self._find_agent
        self.session.on_followed = self._redraw_followed
        if self.kernel is not None:
            self.session.on_format = functools.partial(format_value, shell)
        self.doors = Doors(self.session)
        self._board: Any = None
        self._panels: Any = None
        self._main_thread: MainThread | None = None
        self._static_cards = StaticCards(shell)
        self._undo: list[Callable[[], object]] = []

    def _say_how_much_is_kept(self) -> None:
        self.session.store.keep = Keep(self.config.keep_runs, self.config.keep_bytes)

    def _name_secrets(self) -> None:
        self.session.watch_variables(self.config.secrets)

    def open(self) -> None:
        """Register the magics and every road by which a cancel or the end can come."""
        from nbrun.ui.magics.magics import AgentMagics

        self.shell.register_magics(AgentMagics(self))
        self._complete_lines()
        if self.config not in self.shell.configurables:
            self.shell.configurables.append(self.config)
        if self.kernel is not None:
            control.install(self.kernel, self.doors.answer)
            self._undo += [
                lambda: control.remove(self.kernel),
                _wrap_shutdown(self.kernel, self.close),
            ]
        atexit.register(self.close)
        self._undo.append(lambda: atexit.unregister(self.close))

    def _complete_lines(self) -> None:
        from nbrun.ui.magics.completion import Completion

        completion = Completion(self.shell, self.session)
        completion.open()
        self._undo.append(completion.close)

    def close(self, *, by: str = "shutdown") -> None:
        """End the session and take everything away again; idempotent."""
        if self._panels is not None:
            self._panels.stop()
        self.session.close(by=by)
        if self._panels is not None:
            self._panels.close()
        if self._board is not None:
            self._board.close(0.3)
        undo, self._undo = self._undo, []
        for step in reversed(undo):
            step()
        if self.config in self.shell.configurables:
            self.shell.configurables.remove(self.config)

    def let_go(self) -> None:
        """Close the widgets of cards and panels, where the kernel goes on without nbrun."""
        if self._panels is not None:
            self._panels.let_go()
        if self._board is not None:
            self._board.let_go()

    # --- showing ---------------------------------------------------------------------------------

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
            self._undo.append(self._main_thread.close)
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
            with (
                uninterrupted()
            ):  # half-shown, a card would never change again, or be a widget of nobody
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
        runs = self.session.runs(limit=LISTED)
        if self.kernel is None:
            print(repr(runs))
        else:
            from IPython.display import display

            display(runs)

    def _redraw_followed(self, run: Run) -> None:
        """Have the card of a run say which runs come from it by now."""
        if self._board is not None and run._live is not None:
            self._board.note_sequels(run._live, run.sequels)

    def _find_agent(self, name: str) -> object:
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
                self.doors.answer,
                lambda: self.config.notify_after,
            )
            self.session.on_line_moved = self._board.redraw_queued
        return self._board

    @property
    def panels(self) -> Any:
        """The panels, made with the first of them."""
        if self._panels is None:
            from nbrun.ui.panel.panel import Panels

            self._panels = self.doors.panels = Panels(
                self.session, self.board, kernel_id(self.kernel), self.doors.answer
            )
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
                        raise RunNotFinished(f"{run!r}; %agentrun lost gives it up")
                    if until is not None and clock.monotonic() >= until:
                        raise RunNotFinished(
                            f"{run!r} has not finished after {timeout_s:g} s; it goes on"
                        )
        except KeyboardInterrupt:
            live = sum(not run.done() for run in runs)
            going = "1 run goes on" if live == 1 else f"{live} runs go on"
            raise Interrupted(f"{going}; %agentrun cancel stops one, --all stops all") from None
        self._static_cards.redraw_ended()
        for run in runs:
            print(repr(run))
        if not runs:
            print("no run is live: nothing to wait for")


def _wrap_shutdown(kernel: Any, close: Callable[[], None]) -> Callable[[], None]:
    """Have `close` called at the kernel's shutdown request, before the kernel's own; return the way back.

    Source: ipykernel calls `do_shutdown(restart)` on its control thread; `atexit` alone is not sure to run
    when a child process is alive.
    """
    original = kernel.do_shutdown

    def do_shutdown(restart: bool) -> Any:
        close()
        return original(restart)

    kernel.do_shutdown = do_shutdown

    def restore() -> None:
        if kernel.do_shutdown is do_shutdown:  # else somebody has wrapped it after us
            kernel.do_shutdown = original

    return restore


def kernel_id(kernel: Any) -> str:
    """Return the kernel's id as the server knows it, or nothing.

    Source: Jupyter names the connection file `kernel-<id>.json`.
    """
    config = getattr(getattr(kernel, "parent", None), "connection_file", "")
    name = os.path.basename(str(config)).removesuffix(".json")
    return name.removeprefix("kernel-") if name.startswith("kernel-") else ""


def load(shell: Any) -> None:
    """Load the extension into a shell; a second load is a no-op."""
    if getattr(shell, _EXTENSION_ATTRIBUTE, None) is not None:
        return
    extension = Extension(shell)
    extension.open()
    setattr(shell, _EXTENSION_ATTRIBUTE, extension)
    setattr(shell, SHELL_ATTRIBUTE, extension.session)


def unload(shell: Any) -> None:
    """Close the session and take the magics away."""
    extension = getattr(shell, _EXTENSION_ATTRIBUTE, None)
    if extension is None:
        return
    live = len(extension.session.live_runs)
    extension.close(by=UNLOAD)
    extension.let_go()
    for kind in ("cell", "line"):
        shell.magics_manager.magics[kind].pop("agentrun", None)
    setattr(shell, _EXTENSION_ATTRIBUTE, None)
    setattr(shell, SHELL_ATTRIBUTE, None)
    if live:
        print(f"nbrun was unloaded: {live} live run{'s were' if live > 1 else ' was'} cancelled")
