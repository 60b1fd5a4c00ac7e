"""A process that opens stores together with others, and is held in the middle of one of its file operations.

Python tells an audit hook of each: opening, making, renaming, linking and removing a file, locking one, connecting to
a database; a wrapper tells it of looks at a file, and SQLite of the statements that open a journal. So a test can hold
each of these moments open, without a seam in the product and without sleeping.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from nbrun import NotebookSession, Run, RunRecord
from nbrun.core import events as ev
from tests.fakes.doomed import Shown, brief, checksum

BOUND_S = 20.0

_PATHS = frozenset(
    {
        "open", "os.link", "os.listdir", "os.lstat", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.stat",
        "sqlite3.connect", "sqlite3.execute",
    }
)  # fmt: skip
_OPENING = ("PRAGMA schema_version", "PRAGMA journal_mode", "PRAGMA wal_checkpoint")


class Play(msgspec.Struct, array_like=True, tag=True):
    """Open this store and start a run; wait at the file operation with this number, counted from 0."""

    path: str
    held_at: int | None = None
    is_again: bool = False  # start another run in the session that is open
    is_last: bool = True  # close it then


class Go(msgspec.Struct, array_like=True, tag=True):
    """Leave the file operation."""


class Held(msgspec.Struct, array_like=True, tag=True):
    """It is in the middle of that file operation."""

    what: str


class Waits(msgspec.Struct, array_like=True, tag=True):
    """It waits for its turn, since another process is opening the file."""


class Done(msgspec.Struct, array_like=True, tag=True):
    """What it had to tell: of its store, and how many file operations there were."""

    store: str | None
    problem: str | None
    incidents: list[str]
    troubles: list[str]
    operations: int


def _told(look: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
    """Return a way to look at a file that tells audit hooks of it, as the others do."""

    def tells(path: Any, *args: Any, **options: Any) -> os.stat_result:
        sys.audit(f"os.{look.__name__}", path)
        return look(path, *args, **options)

    return tells


_connect = sqlite3.connect


def _traced(database: str, **options: Any) -> sqlite3.Connection:
    """Return a connection that tells audit hooks of the statements that open a journal."""
    connection: sqlite3.Connection = _connect(database, **options)
    if database != ":memory:":
        connection.set_trace_callback(lambda sql: sys.audit("sqlite3.execute", sql))
    return connection


_decoder = msgspec.msgpack.Decoder(Play | Go)
_encoder = msgspec.msgpack.Encoder()


class Member:
    """One process of a crowd.

    Threads: what is told may come from any; the hook runs on the thread whose operation it is. `live()` runs on the
    main thread, and what the parent says is heard by one of its own.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._plays: queue.Queue[Play | None] = queue.Queue()
        self._go = threading.Event()
        self._play: Play | None = None
        self._operations = 0
        self._has_waited = False
        self._local = threading.local()
        self._session: NotebookSession | None = None
        self._troubles: list[str] = []
        sys.addaudithook(self._hook)
        for module, name, told in (
            (os, "stat", _told(os.stat)),
            (os, "lstat", _told(os.lstat)),
            (sqlite3, "connect", _traced),
        ):
            setattr(module, name, told)

    def live(self) -> None:
        """Play as often as told, until nobody is there to tell."""
        threading.Thread(target=self._hear, daemon=True).start()
        while (play := self._plays.get()) is not None:
            self._operations, self._has_waited, self._troubles = 0, False, []
            self._go.clear()
            self._play = play
            store, problem, incidents = self._act(play)
            self._play = None
            self._tell(Done(store, problem, incidents, self._troubles, self._operations))

    def _act(self, play: Play) -> tuple[str | None, str | None, list[str]]:
        if not play.is_again:
            self._session = NotebookSession(store=Path(play.path))
        session = self._session
        assert session is not None
        run = session.start(brief, "tea")
        self._follow(run)
        if not run.wait(BOUND_S):
            self._troubles.append("has not ended")
        store = session.store
        if play.is_last:
            session.close()
            assert store._writer is not None
            store._writer._thread.join(BOUND_S)  # it may be held for longer than a close waits
        return None if store.path is None else str(store.path), store.problem, list(store.incidents)

    def _follow(self, run: Run) -> None:
        live = run.live
        assert live is not None

        def look(record: RunRecord, events: Sequence[ev.RunEvent]) -> None:
            if live.problem is not None:
                self._troubles.append(live.problem)
            marks = [(event.seq, event.type, checksum(event)) for event in events]
            self._tell(Shown(record.run_id, record.status, record.event_count, marks))

        live.listen(look)

    def _hook(self, event: str, values: tuple[Any, ...]) -> None:
        play = self._play
        if play is None:
            return
        if event == "fcntl.flock":
            # Tried again at once, on the same descriptor: another process has its turn.
            is_again, self._local.attempt = getattr(self._local, "attempt", None) == values, values
            if is_again and not self._has_waited:
                self._has_waited = True
                self._tell(Waits())
        elif event == "sqlite3.execute" and not values[0].startswith(_OPENING):
            if values[0].startswith(("BEGIN", "COMMIT", "ROLLBACK")):
                self._local.is_writing = values[0].startswith("BEGIN")
        elif getattr(self._local, "is_writing", False):
            pass  # nobody could write: they would wait for SQLite's lock, and not for their turn
        elif event == "sqlite3.execute" or (event in _PATHS and str(values[0]).find(str(Path(play.path).parent)) >= 0):
            self._local.attempt = None
            number = self._operations
            self._operations += 1
            if number == play.held_at:
                self._tell(Held(f"{event} {values[:2]}"))
                assert self._go.wait(BOUND_S)

    def _tell(self, item: Held | Waits | Done | Shown) -> None:
        with self._lock:
            self._pipe.send_bytes(_encoder.encode(item))

    def _hear(self) -> None:
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                item = _decoder.decode(self._pipe.recv_bytes())
                if isinstance(item, Go):
                    self._go.set()
                else:
                    self._plays.put(item)
        self._plays.put(None)


def lives(pipe: Connection) -> None:
    """Be a member of a crowd."""
    Member(pipe).live()
