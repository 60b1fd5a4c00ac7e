"""The session store: one SQLite file per notebook, with the runs and events of all its sessions."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from nbrun.errors import NotPending, StoreDamaged, StoreError, StoreReadOnly
from nbrun.record import RunRecord
from nbrun.store import reader, schema, stranger
from nbrun.store.orphans import give_up, mark_lost
from nbrun.store.reader import StoredRun
from nbrun.store.sight import sight_of
from nbrun.store.writer import Committed, Source, Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbrun.clock import Clock
    from nbrun.events import RunEvent

__all__ = [
    "Committed",
    "SessionStore",
    "Source",
    "StoredRun",
    "Stranger",
    "places_for",
    "store_path",
]

S = TypeVar("S", StoredRun, StoredRun | None)

SUFFIX = ".db"
NO_NOTEBOOK = "session"
MAX_NUMBER = 10**9
"""The greatest number of a stranger's run that ours go on from; nobody comes to more honestly."""


def store_path(notebook: Path) -> Path:
    """Return where the runs of this notebook are kept: `.nbrun/<its name>.db` beside it."""
    return (
        notebook.parent
        / schema.FOLDER
        / f"{notebook.stem if notebook.suffix == '.ipynb' else notebook.name}{SUFFIX}"
    )


def places_for(notebook: Path | None) -> list[Path]:
    """Return where the runs of a notebook may be kept, best first.

    Beside the notebook; without a path of it, in the working folder; where that cannot be written, in the
    user's data folder, under a name that two notebooks never share.
    """
    beside = store_path(notebook or Path.cwd() / NO_NOTEBOOK)
    import platformdirs

    digest = hashlib.sha256(os.fsencode(beside)).hexdigest()[:16]
    return [beside, platformdirs.user_data_path("nbrun") / digest / beside.name]


class SessionStore:
    """The runs of one notebook on disk, or in memory where nothing can be written.

    A file is made when the first run begins, not before. `problem` says in one line why the first choice of
    a place was not taken; None when all is well. `stranger` is the first choice where it can be read though it
    must not be written to.

    Threads: any method, from any thread. Readers of a file have a connection of their own; in memory they
    share the writer's, under `_lock`.

    Parameters
    ----------
    places : where to keep it, best first; memory when none can be written.
    """

    def __init__(self, places: list[Path], clock: Clock) -> None:
        self._places = places
        self._clock = clock
        self._lock = threading.RLock()
        self._writer: Writer | None = None
        self._write_connection: sqlite3.Connection | None = None
        self._read_connection: sqlite3.Connection | None = None
        self._is_open = False
        self._is_closed = False
        self.path: Path | None = None
        self.problem: str | None = None
        self.stranger: Stranger | None = None
        self._above = 0  # the greatest number of the stranger's runs
        self.lost = 0

    @property
    def wanted(self) -> Path:
        """The first choice of a place, whether it could be taken or not."""
        return self._places[0]

    @property
    def is_durable(self) -> bool:
        """Whether runs are kept beyond this process."""
        return not self._is_open or self.path is not None

    def open_existing(self) -> None:
        """Open the file if there is one, and mark as lost what a dead kernel left live."""
        with self._lock:
            if not self._is_open and any(path.exists() for path in self._places[:1]):
                self._open()

    def begin(self, source: Source, *, session_id: str, notebook: str | None) -> Writer:
        """Open or make the file and start its writer; the same writer again when it is called again."""
        with self._lock:
            self._open()
            assert self._write_connection is not None  # noqa: S101 - _open() sees to it
            if self._writer is None:
                self._writer = Writer(
                    self._write_connection,
                    self._lock if self.path is None else threading.RLock(),
                    source,
                    session_id=session_id,
                    notebook=notebook,
                    clock=self._clock,
                )
            if self._writer.source is not source:
                raise StoreError(
                    "this store is in use by another session; give each its own SessionStore"
                )
            return self._writer

    def _open(self) -> None:
        if self._is_open:
            return
        for path in self._places:
            try:
                self._write_connection = self._opened(path)
            except (OSError, StoreError, sqlite3.Error) as error:
                self.problem = self.problem or self._refused(path, error)
                continue
            self.path = path
            break
        else:
            self._write_connection = schema.open_for_writing(None, self._clock.now())
            self.problem = f"{self.problem or 'no place to write'}; runs are kept in memory only"
        if 0 < self._above <= MAX_NUMBER:  # so that a number names one run
            schema.number_above(self._write_connection, self._above)
        self._is_open = True

    def _refused(self, path: Path, error: Exception) -> str:
        """Return why a place was not taken, having looked whether what is there can at least be read."""
        found = stranger.look(path, error)
        if found.greatest is not None:
            self.stranger = Stranger(path, str(error), self._clock)
            self._above = found.greatest
        return f"runs are not kept in {path}: {found.words}"

    def _opened(self, path: Path) -> sqlite3.Connection:
        schema.prepare_folder(path.parent)
        if path.exists() and not os.access(path, os.W_OK):
            # SQLite may open it all the same, and even begin to write: it says so at the first event only.
            raise StoreReadOnly(f"{path} is write-protected")
        connection = schema.open_for_writing(path, self._clock.now())
        try:
            self.lost = mark_lost(connection, self._clock.now())
        except BaseException:
            connection.close()
            raise
        return connection

    # --- reading ---------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        with self._lock:
            if not self._is_open and not self._is_closed:
                self.open_existing()  # another kernel may have made it by now
            if not self._is_open:
                yield None
                return
            if self.path is None:
                yield self._write_connection
                return
            if self._read_connection is None:
                self._read_connection = schema.connect(self.path)
                self._read_connection.execute("PRAGMA query_only = ON")
            yield self._read_connection

    def runs(self, limit: int | None = None, before: int | None = None) -> list[StoredRun]:
        """Return stored runs, newest first, those below number `before`, at most `limit`; records are brief."""
        with self._reading() as connection:
            if connection is None:
                return []
            found = reader.read_runs(connection, limit, before)
            return [self._seen(connection, stored) for stored in found]

    def run(self, number: int) -> StoredRun | None:
        """Return the run with this number."""
        with self._reading() as connection:
            if connection is None:
                return None
            return self._seen(connection, reader.read_run(connection, number))

    def find(self, text: str) -> StoredRun | None:
        """Return the newest run with this id or name."""
        with self._reading() as connection:
            if connection is None:
                return None
            return self._seen(connection, reader.find_run(connection, text))

    def find_id(self, run_id: str, session_id: str | None = None) -> StoredRun | None:
        """Return the newest run with exactly this id, of that session if one is given."""
        with self._reading() as connection:
            if connection is None:
                return None
            return self._seen(connection, reader.find_id(connection, run_id, session_id))

    def record(self, number: int) -> RunRecord:
        """Return the whole record of a run."""
        with self._reading() as connection:
            if connection is None:
                return RunRecord(number=number)
            record = reader.read_record(connection, number)
            return msgspec.structs.replace(
                record, number=number, unseen=self._unseen(connection, number, record)
            )

    def _seen(self, connection: sqlite3.Connection, stored: S) -> S:
        """Return a run with a word on its kernel, where it looks live."""
        if stored is None or not stored.record.is_live:
            return stored
        unseen = self._unseen(connection, stored.number, stored.record)
        return replace(stored, record=msgspec.structs.replace(stored.record, unseen=unseen))

    def _unseen(self, connection: sqlite3.Connection, number: int, record: RunRecord) -> str:
        """Return why nobody here can say how a live-looking run stands; empty for all others."""
        sight = sight_of(connection, number) if record.is_live else None
        return "" if sight is None else sight.unseen(self._clock.now())

    def events(self, number: int, after: int = -1, limit: int | None = None) -> list[RunEvent]:
        """Return the events of a run that come after seq `after`, by seq, at most `limit`."""
        with self._reading() as connection:
            return (
                [] if connection is None else reader.read_events(connection, number, after, limit)
            )

    def give_up(self, number: int) -> None:
        """Mark a live-looking run as lost whose kernel cannot be seen from here.

        Raises
        ------
        NotPending
            It has ended, or its kernel lives.
        StoreReadOnly
            The file that it is in must not be written to.
        """
        if self.path is None:
            raise NotPending(f"run #{number} is of this kernel; cancel it")
        with closing(schema.connect(self.path)) as connection:
            give_up(connection, number, self._clock.now())

    def close(self, timeout_s: float, source: Source | None = None) -> bool:
        """Write what waits and close the file; return whether that was done in time.

        With a `source`, only if the writer is that one's: a session that was refused must not end another's.
        """
        if self._writer is not None and source is not None and self._writer.source is not source:
            return True
        done = self._writer.close(timeout_s) if self._writer is not None else True
        with self._lock:
            if self._read_connection is not None:
                self._read_connection.close()
                self._read_connection = None
            if self._writer is None and self._write_connection is not None:
                self._write_connection.close()
            self._is_closed = True
            self._is_open = self.path is not None and done
        return done


class Stranger(SessionStore):
    """A file that is read and never written to: `problem` says why.

    Threads: any method, from any thread; every look has a connection of its own, since others may change the
    file meanwhile.
    """

    def __init__(self, path: Path, why: str, clock: Clock) -> None:
        super().__init__([path], clock)
        self.path: Path = path
        self.problem: str = why

    def open_existing(self) -> None:
        """Do nothing: it is opened for each look."""

    def give_up(self, number: int) -> None:
        """Refuse.

        Raises
        ------
        StoreReadOnly
            Always.
        """
        raise StoreReadOnly(self.problem)

    def begin(self, source: Source, *, session_id: str, notebook: str | None) -> Writer:
        """Refuse.

        Raises
        ------
        StoreReadOnly
            Always.
        """
        raise StoreReadOnly(self.problem)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        try:
            with closing(stranger.open_to_read(self.path)) as connection:
                yield connection
        except sqlite3.Error as error:
            raise StoreDamaged(f"{self.path} cannot be read: {error}") from error
