"""The session store: one SQLite file per notebook, with the runs and events of all its sessions."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from nbrun.artifacts import ArtifactFiles, folder_beside
from nbrun.errors import StoreError
from nbrun.record import RunRecord
from nbrun.store import reader, schema
from nbrun.store.artifacts import read_artifacts
from nbrun.store.orphans import mark_lost
from nbrun.store.reader import StoredRun
from nbrun.store.retention import REST_S, Cleaned, Keep, Sweeper
from nbrun.store.writer import Committed, Source, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from nbrun.artifacts import Artifact
    from nbrun.clock import Clock
    from nbrun.events import RunEvent

__all__ = ["Committed", "Keep", "SessionStore", "Source", "StoredRun", "places_for", "store_path"]

SUFFIX = ".db"
NO_NOTEBOOK = "session"
SWEEP_S = 60.0
"""How often it is looked at most whether there is more than is kept."""
CLOSE_SWEEP_S = 0.2
"""How long a close waits for the step that is under way."""

_log = logging.getLogger("nbrun")


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
    a place was not taken; None when all is well.

    Threads: any method, from any thread. Readers of a file have a connection of their own; in memory they
    share the writer's, under `_lock`.

    Parameters
    ----------
    places : where to keep it, best first; memory when none can be written.
    keep : how much of it is kept; older runs are removed.
    """

    def __init__(self, places: list[Path], clock: Clock, keep: Keep | None = None) -> None:
        self.keep = keep or Keep()
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
        self.lost = 0
        self._held = ArtifactFiles(None)  # for a store in memory
        self._sweep_lock = threading.Lock()
        self._sweep_at = 0.0
        self._sweep_thread: threading.Thread | None = None
        self._is_stopping = threading.Event()

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
                if self.path is not None:
                    self._writer.use_files(self.files)
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
                self.problem = self.problem or f"runs are not kept in {path}: {error}"
                continue
            self.path = path
            break
        else:
            self._write_connection = schema.open_for_writing(None, self._clock.now())
            self.problem = f"{self.problem or 'no place to write'}; runs are kept in memory only"
        self._is_open = True

    def _opened(self, path: Path) -> sqlite3.Connection:
        schema.prepare_folder(path.parent)
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
            return [] if connection is None else reader.read_runs(connection, limit, before)

    def run(self, number: int) -> StoredRun | None:
        """Return the run with this number."""
        with self._reading() as connection:
            return None if connection is None else reader.read_run(connection, number)

    def find(self, text: str) -> StoredRun | None:
        """Return the newest run with this id or name."""
        with self._reading() as connection:
            return None if connection is None else reader.find_run(connection, text)

    def find_id(self, run_id: str, session_id: str | None = None) -> StoredRun | None:
        """Return the newest run with exactly this id, of that session if one is given."""
        with self._reading() as connection:
            return None if connection is None else reader.find_id(connection, run_id, session_id)

    def record(self, number: int) -> RunRecord:
        """Return the whole record of a run."""
        with self._reading() as connection:
            if connection is None:
                return RunRecord(number=number)
            return msgspec.structs.replace(reader.read_record(connection, number), number=number)

    def events(self, number: int, after: int = -1, limit: int | None = None) -> list[RunEvent]:
        """Return the events of a run that come after seq `after`, by seq, at most `limit`."""
        with self._reading() as connection:
            return (
                [] if connection is None else reader.read_events(connection, number, after, limit)
            )

    @property
    def files(self) -> ArtifactFiles:
        """Where the files that runs have made are kept: beside the store, or in memory with it."""
        return self._held if self.path is None else ArtifactFiles(folder_beside(self.path))

    def artifacts(self, number: int) -> list[Artifact]:
        """Return the files that a run has made, oldest first."""
        with self._reading() as connection:
            return [] if connection is None else read_artifacts(connection, number, self.files)

    # --- removing --------------------------------------------------------------------------------

    def is_removed(self, number: int) -> bool:
        """Return whether there is no run with this number any more."""
        with self._reading() as connection:
            return connection is not None and reader.read_run(connection, number) is None

    def remove(self, numbers: Iterable[int]) -> list[int]:
        """Remove runs and those below them; return the numbers of those that are gone: no live one is.

        Raises
        ------
        StoreError
            The file cannot be written.
        """
        with self._sweeping() as sweeper:
            return sweeper.remove(numbers)

    def clean(self, keep: Keep) -> Cleaned:
        """Remove what is more than is kept, and give back the room; see `retention.clean`."""
        with self._sweeping() as sweeper:
            return sweeper.clean(keep, self._clock.now())

    def note_end(self, number: int | None) -> None:
        """Look now and then, on a thread, whether more is stored than is kept; the number is that of an ended run.

        Most stores are far from that, and then this costs next to nothing.
        """
        now = self._clock.monotonic()
        if now < self._sweep_at or self._is_stopping.is_set():
            return
        self._sweep_at = now + SWEEP_S
        if self._may_hold_too_much(number or 0):
            self._sweep_thread = threading.Thread(
                target=self._sweep, name="nbrun-retention", daemon=True
            )
            self._sweep_thread.start()

    def _may_hold_too_much(self, number: int) -> bool:
        if self.keep.runs and number > self.keep.runs:
            return True
        if not self.keep.bytes or self.path is None:
            return False
        try:
            is_large = self.path.stat().st_size > self.keep.bytes
        except OSError:
            return False
        return is_large or folder_beside(self.path).is_dir()

    def _sweep(self) -> None:
        try:
            with self._sweeping(lambda: self._is_stopping.wait(REST_S)) as sweeper:
                sweeper.sweep(self.keep)
        except (OSError, StoreError, sqlite3.Error) as error:  # it is tried again
            _log.warning("old runs are not removed: %s", error)

    @contextmanager
    def _sweeping(self, rest: Callable[[], bool] | None = None) -> Iterator[Sweeper]:
        if self.path is None:
            with self._lock:
                if self._write_connection is None or self._is_closed:
                    raise StoreError("there are no stored runs")
                yield Sweeper(self._write_connection, self.files, lambda: False)
            return
        try:
            with self._sweep_lock, closing(schema.connect(self.path)) as connection:
                # What is removed is overwritten: it may be removed because nobody should read it.
                connection.execute("PRAGMA secure_delete = ON")
                yield Sweeper(connection, self.files, rest)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be written: {error}") from error

    def close(self, timeout_s: float, source: Source | None = None) -> bool:
        """Write what waits and close the file; return whether that was done in time.

        With a `source`, only if the writer is that one's: a session that was refused must not end another's.
        """
        if self._writer is not None and source is not None and self._writer.source is not source:
            return True
        self._is_stopping.set()
        done = self._writer.close(timeout_s) if self._writer is not None else True
        if self._sweep_thread is not None:
            self._sweep_thread.join(CLOSE_SWEEP_S)
        with self._lock:
            if self._read_connection is not None:
                self._read_connection.close()
                self._read_connection = None
            if self._writer is None and self._write_connection is not None:
                self._write_connection.close()
            self._is_closed = True
            self._is_open = self.path is not None and done
        return done
