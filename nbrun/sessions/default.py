"""The session that `nbrun.start()` and the like work on, and those functions themselves."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from nbrun.core import RunOptions, SessionClosed, module_lock
from nbrun.sessions.session import NotebookSession
from nbrun.sessions.start import takes

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.sessions.run import Run

SHELL_ATTRIBUTE = "nbrun_session"
"""Under this name the extension holds its session on the shell."""

P = ParamSpec("P")
T = TypeVar("T")

_lock = module_lock()
_slot: list[NotebookSession] = []  # outside a kernel: the one session that was made on first use


def session() -> NotebookSession:
    """Return the session: the extension's, or outside a kernel the one that is made on first use.

    Raises
    ------
    SessionClosed
        nbrun was unloaded from this shell.
    """
    # Looked for, never imported: nbrun works without IPython, too.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        held = getattr(shell, SHELL_ATTRIBUTE, None)
        if not isinstance(held, NotebookSession):
            raise SessionClosed("nbrun is not loaded here: run %load_ext nbrun first")
        if not held.is_inherited:  # else this is a child process of the kernel
            return held
    with _lock:
        if not _slot or _slot[0].is_closed:
            _slot[:] = [NotebookSession()]
        return _slot[0]


@takes(RunOptions)
def start(agent: object = None, prompt: str = "", **options: Any) -> Run:
    """Start a run in this notebook's session and return its handle; see `NotebookSession.start`."""
    return session().start(agent, prompt, **options)


def _on_session(method: Callable[Concatenate[NotebookSession, P], T]) -> Callable[P, T]:
    """Return a method of sessions as a function that works on this notebook's."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return method(session(), *args, **kwargs)

    whole = inspect.signature(method)
    call.__signature__ = whole.replace(parameters=[*whole.parameters.values()][1:])  # type: ignore[attr-defined]  # read by inspect
    return call


get = _on_session(NotebookSession.get)
map = _on_session(NotebookSession.map)  # type: ignore[arg-type]  # mypy: an option could be named self
runs = _on_session(NotebookSession.runs)
compare = _on_session(NotebookSession.compare)
sets = _on_session(NotebookSession.sets)
redact = _on_session(NotebookSession.redact)
panel = _on_session(NotebookSession.panel)
