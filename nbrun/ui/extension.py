"""The extension, from load to unload: makes the session and wires it to the shell and the kernel."""

from __future__ import annotations

import atexit
import functools
import inspect
from typing import TYPE_CHECKING, Any

from nbrun.calls import GOVERNOR, Limits
from nbrun.core import errors, mimebundle, record
from nbrun.sessions import SHELL_ATTRIBUTE, NotebookSession, RunSet
from nbrun.store import Keep
from nbrun.ui import presenter
from nbrun.ui.config import AT_LOAD, settings_of
from nbrun.ui.kernel import requests, waiting
from nbrun.ui.magics import completion, magics, options

if TYPE_CHECKING:
    from collections.abc import Callable

_EXTENSION_ATTRIBUTE = "nbrun_extension"

SHUTDOWN_DRAW_S = 0.3
"""How long the kernel's end waits for the last drawings: a frontend that shuts it down kills it soon."""
UNLOAD_DRAW_S = 10.0
"""How long an unload does: its kernel goes on, and what closes the widgets must not overtake what draws them."""


class Extension:
    """One load of nbrun in one shell: its session, its magics, and every way in which a cancel can come.

    Threads: the main thread, except `close()`, which the kernel's shutdown calls on its control thread.
    """

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.config = settings_of(shell)
        self.session = NotebookSession(
            shell.user_ns.get("__vsc_ipynb_file__"),
            store=self.config.store or None,
            max_concurrent=self.config.max_concurrent,
            cancel_grace_s=self.config.cancel_grace_s,
            reentrant_loop=self.config.reentrant_loop,
            watch_calls=self.config.watch_calls,
            journal=self.config.journal,
            keep_runs=self.config.keep_runs,
            keep_bytes=self.config.keep_bytes,
        )
        self.presenter = presenter.Presenter(shell, self.session, self.config)
        self._follow_config()
        self.session.on_display = self.presenter.show
        self.session.on_panel = self.presenter.show_panel
        self.session.find_agent = self.presenter.find_agent
        self.session.on_followed = self.presenter.redraw_after_followup
        if self.presenter.kernel is not None:
            self.session.parts.artifact_writer.on_format = functools.partial(format_value, shell)
        self._undo: list[Callable[[], object]] = []

    def _follow_config(self) -> None:
        """Apply settings now, and again whenever they change."""
        config, session = self.config, self.session

        def set_limits(_change: object) -> None:
            session.store.keep = Keep(config.keep_runs, config.keep_bytes)

        def set_rates(_change: object) -> None:
            GOVERNOR.set_limits(Limits(config.requests_per_minute, config.tokens_per_minute))

        config.observe(
            lambda change: setattr(session, change["name"], change["new"]),
            ["max_concurrent", "cancel_grace_s", "watch_calls", "journal"],
        )
        config.observe(lambda change: session.let_enter_loop(change["new"]), "reentrant_loop")
        config.observe(lambda _: session.watch_variables(config.secrets), "secrets")
        config.observe(set_limits, ["keep_runs", "keep_bytes"])
        config.observe(set_rates, ["requests_per_minute", "tokens_per_minute"])
        config.observe(lambda _: print(f"NbRun.store: {AT_LOAD}"), "store")
        session.watch_variables(config.secrets)
        set_rates(None)

    def open(self) -> None:
        """Register the magics, and all that brings a cancel or the kernel's end to the session."""
        self.shell.register_magics(magics.AgentMagics(self.presenter))
        completions = completion.Completion(self.shell, self.session)
        completions.open()
        self._undo.append(completions.close)
        if self.config not in self.shell.configurables:
            self.shell.configurables.append(self.config)
        kernel = self.presenter.kernel
        if kernel is not None:
            redraw = lambda _result: self.presenter.redraw_ended()  # noqa: E731 - a name to unregister it by
            self.shell.events.register("post_run_cell", redraw)
            self._undo.append(lambda: self.shell.events.unregister("post_run_cell", redraw))
            formatter = self.shell.display_formatter.ipython_display_formatter
            formatter.for_type(RunSet, self.presenter.show_set)
            self._undo.append(lambda: formatter.pop(RunSet, None))
            requests.install(kernel, self.presenter.requests.answer)
            self._undo += [lambda: requests.remove(kernel), waiting.wrap_shutdown(kernel, self.close)]
        self._undo += [waiting.renew_capture(self.shell), waiting.wrap_capture()]
        atexit.register(self.close)
        self._undo.append(lambda: atexit.unregister(self.close))

    def close(self, *, by: str = "shutdown") -> None:
        """End the session and undo what `open()` did; idempotent. A forked child of the kernel has no part in it."""
        if self.session.is_inherited:
            return
        self.presenter.stop_panels()
        self.session.close(by=by)
        GOVERNOR.set_limits(Limits())
        self.presenter.close(SHUTDOWN_DRAW_S if by == "shutdown" else UNLOAD_DRAW_S)
        undo, self._undo = self._undo, []
        for step in reversed(undo):
            step()
        if self.config in self.shell.configurables:
            self.shell.configurables.remove(self.config)


def load(shell: Any) -> None:
    """Load the extension into a shell; a second load does nothing."""
    if getattr(shell, _EXTENSION_ATTRIBUTE, None) is not None:
        return
    extension = Extension(shell)
    extension.open()
    setattr(shell, _EXTENSION_ATTRIBUTE, extension)
    setattr(shell, SHELL_ATTRIBUTE, extension.session)
    errors.spell_with(options.spell)


def unload(shell: Any) -> None:
    """Close the session and remove the magics."""
    extension = getattr(shell, _EXTENSION_ATTRIBUTE, None)
    if extension is None:
        return
    live = len(extension.session.live_runs)
    extension.close(by=record.UNLOAD)
    extension.presenter.close_widgets()
    for kind in ("cell", "line"):
        shell.magics_manager.magics[kind].pop("agentrun", None)
    setattr(shell, _EXTENSION_ATTRIBUTE, None)
    setattr(shell, SHELL_ATTRIBUTE, None)
    errors.spell_with(None)
    if live:
        print(f"nbrun was unloaded: {live} run{'s' if live > 1 else ''} cancelled")


def format_value(shell: Any, value: object) -> dict[str, object]:
    """Return a value as this shell would display it, by MIME type, without displaying it; only what nbrun keeps.

    The value's own code runs, and may raise. `_ipython_display_` is left out: it would show something in some cell.

    Source: IPython's formatters print what a value raises into the cell that ran last; what their wrapper
    (`catch_format_error`) calls raises it instead.
    """
    formatter = shell.display_formatter
    data: dict[str, object] = {}
    bundle = _called(formatter.mimebundle_formatter, value)
    if isinstance(bundle, tuple):  # with metadata
        bundle = bundle[0]
    if isinstance(bundle, dict):
        data.update({kind: bundle[kind] for kind in mimebundle.KINDS if kind in bundle})
    for kind in mimebundle.KINDS:
        made = formatter.formatters.get(kind)
        if made is not None and kind not in data:
            form = _called(made, value)
            data[kind] = form[0] if isinstance(form, tuple) else form
    return data


def _called(formatter: Any, value: object) -> Any:
    try:
        return inspect.unwrap(type(formatter).__call__)(formatter, value)
    except NotImplementedError:  # a value's way to say that it has no such form
        return None
