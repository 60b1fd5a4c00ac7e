"""The parts of a session, which what starts, finds and handles its runs shares."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nbrun.core import ArtifactWriter, CancelToken, Clock, Journals, SecretRegistry, SessionClosed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nbrun.sessions.control import Control
    from nbrun.sessions.intake import Intake
    from nbrun.sessions.live_run import LiveRun
    from nbrun.sessions.scheduler import Scheduler
    from nbrun.store import SessionStore


CREATION_S = 2.0
"""How long who asks about a run that was just started waits for its creation to be saved."""


@dataclass(slots=True, kw_only=True)
class Parts:
    """What a session is made of. `lock` makes starts and the close follow one another."""

    session_id: str
    notebook: Path | None
    clock: Clock
    cancel_grace_s: float
    watch_calls: bool
    store: SessionStore
    keyring: SecretRegistry
    artifact_writer: ArtifactWriter
    journals: Journals
    intake: Intake
    scheduler: Scheduler
    control: Control
    display: Callable[[Any], object]  # shows the card of a run
    follow: Callable[..., Any]  # `NotebookSession.follow()`
    close: Callable[[], object]
    lend: Callable[[], object] | None = None  # runs what agents wait to have done on the main thread, if it only waits
    token: CancelToken = field(default_factory=CancelToken)
    lock: threading.RLock = field(default_factory=threading.RLock)
    is_begun: bool = False  # whether its threads run
    is_closed: bool = False
    why_closed: str = "this session is closed; run %reload_ext nbrun"
    is_inherited: bool = False  # whether this process was forked from the one that the session belongs to

    def refuse_child(self) -> None:
        """Raise `SessionClosed` in a child process: what would be waited for or changed is its parent's."""
        if self.is_inherited:
            raise SessionClosed(self.why_closed)

    def await_creation(self, live: LiveRun) -> None:
        """Block until a run's creation is public, for a moment at most; not where nothing could happen meanwhile."""
        if live.is_created.is_set() or self.is_inherited or self.intake.is_publishing or self.scheduler.is_on_loop:
            return
        live.is_created.wait(CREATION_S)
