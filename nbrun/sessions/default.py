"""The session that `nbrun.start()` and its like work on, and those functions themselves."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from nbrun.core.errors import SessionClosed
from nbrun.sessions.session import NotebookSession

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nbrun.agents.builtin.options import Settings
    from nbrun.sessions.run import Run
    from nbrun.sessions.run_list import RunList
    from nbrun.store.filters import Since

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


def start(
    agent: object = None,
    prompt: str = "",
    *,
    name: str | None = None,
    id: str | None = None,
    model: str | None = None,
    timeout_s: float | None = None,
    max_turns: int | None = None,
    max_tokens: int | None = None,
    max_cost: float | None = None,
    approve: str = "ask",
    if_running: str = "queue",
    on: str = "local",
    thread: bool = False,
    loop: str = "host",
    tags: Mapping[str, str] | None = None,
    tools: Sequence[Callable[..., object]] | None = None,
    system: str | None = None,
    output_type: type | None = None,
    mcp: Sequence[str] | str | None = None,
    settings: Settings | None = None,
    keep_object: bool = False,
) -> Run:
    """Start a run in this notebook's session and return its handle; see `NotebookSession.start`."""
    return session().start(
        agent, prompt, name=name, id=id, model=model, timeout_s=timeout_s, max_turns=max_turns,
        max_tokens=max_tokens, max_cost=max_cost, approve=approve, if_running=if_running, on=on, thread=thread,
        loop=loop, tags=tags, tools=tools, system=system, output_type=output_type, mcp=mcp, settings=settings,
        keep_object=keep_object,
    )  # fmt: skip


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
