"""The session that `nbrun.start()` and its like work on, and those functions themselves."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from nbrun.core.errors import SessionClosed
from nbrun.core.options import RunOptions
from nbrun.sessions.session import NotebookSession
from nbrun.sessions.start import takes

if TYPE_CHECKING:
    from nbrun.sessions.run import Run
    from nbrun.sessions.run_list import RunList
    from nbrun.store import Since

SHELL_ATTRIBUTE = "nbrun_session"
"""Under this name the extension holds its session on the shell."""

_lock = threading.Lock()
_slot: list[NotebookSession] = []  # outside IPython: the one session that was made on first use


def session() -> NotebookSession:
    """Return the session: the extension's, or outside a kernel the one that is made on first use.

    Raises
    ------
    SessionClosed
        nbrun was unloaded from this shell.
    """
    # Looked for, never imported: who runs without IPython does without.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        held = getattr(shell, SHELL_ATTRIBUTE, None)
        if isinstance(held, NotebookSession):
            return held
        raise SessionClosed("nbrun is not loaded here: run %load_ext nbrun first")
    with _lock:
        if not _slot or _slot[0].is_closed:
            _slot[:] = [NotebookSession()]
        return _slot[0]


@takes(RunOptions)
def start(agent: object = None, prompt: str = "", **options: Any) -> Run:
    """Start a run in this notebook's session and return its handle; see `NotebookSession.start`."""
    return session().start(agent, prompt, **options)


def get(ref: Run | int | str) -> Run:
    """Return the run that `ref` names: `#3`, `3`, `last`, `-1`, a name or an id; see `NotebookSession.get`."""
    return session().get(ref)


def runs(
    *,
    status: str | None = None,
    name: str | None = None,
    agent: str | None = None,
    tag: str | None = None,
    since: Since | None = None,
    text: str | None = None,
    limit: int | None = None,
    before: Run | int | None = None,
) -> RunList:
    """Return this notebook's runs, newest first; see `NotebookSession.runs`."""
    return session().runs(
        status=status, name=name, agent=agent, tag=tag, since=since, text=text, limit=limit, before=before
    )  # fmt: skip


def redact(value: str, name: str = "SECRET") -> None:
    """Have a secret replaced by `[NAME]` in all that runs tell from now on; see `NotebookSession.redact`."""
    session().redact(value, name)


def panel() -> None:
    """Show a live table of this notebook's runs, live and stored; where there is no page, print the newest."""
    session().panel()
