"""The session store: one SQLite file per notebook, with the runs and events of all its sessions."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, TypeVar

from nbrun.core import (
    ArtifactFiles,
    Clock,
    JournalFiles,
    NotPending,
    StoreDamaged,
    StoreError,
    StoreReadOnly,
    StoreUnavailable,
    folder_beside,
)
from nbrun.store import orphans, read_only
from nbrun.store.connection import Connection, connect, note_inherited, transaction
from nbrun.store.database_file import DatabaseFile, is_set_aside
from nbrun.store.faults import StoreFault, fault_of, is_damage
from nbrun.store.location import NO_NOTEBOOK, SUFFIX, store_path
from nbrun.store.queries import StoredRuns, Unsigned
from nbrun.store.retention import REST_S, Cleaned, Keep, Sweeper
from nbrun.store.signing import Signer
from nbrun.store.writer import Source, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path


T = TypeVar("T")

SWEEP_S = 60.0  # how often, at most, the store checks whether it holds too much
CLOSE_SWEEP_S = 0.2  # how long a close waits for the removal of old runs to stop

_log = logging.getLogger("nbrun")

_LAST_NOTEBOOK = "SELECT notebook FROM sessions ORDER BY key DESC LIMIT 1"
_KNOWN_BY = 200  # how many of a store's newest runs may show whose they are
_ID = re.compile(rb'"(?:id|session_id)": *"([0-9a-f-]{8,36}|session-[0-9a-z]+)"')


def store_of(notebook: Path, clock: Clock) -> Path:
    """Return the file with the runs of this notebook, which need not exist: that of an earlier name if it was renamed.

    That is the one store beside it whose notebook is gone and that knows this one, by the path of its last session, or
    by an id of a session or a cell that is in the notebook's file. It keeps its name, since others may have it open.
    """
    beside = store_path(notebook)
    if os.path.lexists(beside) or not os.path.isdir(beside.parent):  # unlike `Path.exists`, they never raise
        return beside
    lonely = [
        path
        for path in beside.parent.glob(f"*{SUFFIX}")
        if path.stem != NO_NOTEBOOK
        and not is_set_aside(path)
        and not os.path.lexists(notebook.with_name(f"{path.stem}.ipynb"))
    ]
    ids = _ids_in(notebook) if lonely else frozenset()
    found = [path for path in lonely if ReadOnlyStore(path, "", clock).knows(notebook, ids)]
    return found[0] if len(found) == 1 else beside


def _ids_in(notebook: Path) -> frozenset[str]:
    """Return the ids in a notebook's file: of its cells, unless they are words, and of the sessions of its cards."""
    try:
        found = _ID.findall(notebook.read_bytes())
    except OSError:
        return frozenset()
    return frozenset(each.decode() for each in found)


class SessionStore(StoredRuns):
    """The runs of one notebook on disk, at the first of `places` that can be written, or in memory if none can.

    The file is made when the first run starts; runs older than those that `keep` allows for are removed.

    Threads: any method, from any thread. Readers of a file have their own connection, under `_lock`; in memory
    they share the writer's, under `_write_lock`.
    """

    def __init__(self, places: list[Path], clock: Clock, keep: Keep | None = None) -> None:
        self.keep = keep or Keep()
        self._places = places
        self._lock = threading.RLock()
        self._write_lock = threading.RLock()  # of the writer's connection
        self._database = DatabaseFile(places, clock)
        self._clock = clock
        self.signer = Signer()
        self._writer: Writer | None = None
        self._read_connection: Connection | None = None
        self._read_generation = 0
        self._is_closed = False
        self._is_shut = False  # what was in memory is gone
        self._refusal: str | None = None  # in a child process that was forked
        self._read_only: ReadOnlyStore | None = None
        self._memory_files = ArtifactFiles(None)
        self._journals = JournalFiles(None)
        self._journals_at: Path | None = None
        self._sweep_lock = threading.Lock()
        self._sweep_at = 0.0
        self._sweep_thread: threading.Thread | None = None
        self._is_stopping = threading.Event()

    @property
    def wanted(self) -> Path | None:
        """The preferred place, whether or not it can be used; None if the store is in memory only."""
        return self._places[0] if self._places else None

    @property
    def has_second_place(self) -> bool:
        """Whether there is a place to use if the preferred one can't be written."""
        return len(self._places) > 1

    @property
    def path(self) -> Path | None:
        """The file; None until it is opened, and in memory."""
        return self._database.path

    @property
    def problem(self) -> str | None:
        """Why the preferred place is not used, in one line."""
        return self._database.problem

    @property
    def elsewhere(self) -> list[Path]:
        """The files at this store's other places, made while the preferred one could not be written."""
        return [path for path in self._places[1:] if path != self.path and os.path.isfile(path)]

    @property
    def read_only(self) -> ReadOnlyStore | None:
        """The preferred place, if it can be read but must not be written to."""
        why_read_only = self._database.why_read_only
        if why_read_only is None:
            return None
        if self._read_only is None:
            self._read_only = ReadOnlyStore(*why_read_only, self._clock)
        return self._read_only

    @property
    def fault(self) -> StoreFault | None:
        """Why nothing can be written now; None if all is well."""
        return self._database.fault if self._writer is None else self._writer.fault

    @property
    def incidents(self) -> tuple[str, ...]:
        """What happened to this store's files: which were set aside, deleted or replaced."""
        return self._database.incidents

    @property
    def lost(self) -> int:
        """How many runs of dead kernels were found when the file was opened."""
        return self._database.lost

    @property
    def behind(self) -> int:
        """How many runs are not saved yet."""
        return 0 if self._writer is None else self._writer.behind

    @property
    def is_durable(self) -> bool:
        """Whether runs are kept beyond this process."""
        return not self._is_open or self.path is not None

    @property
    def _is_open(self) -> bool:
        return self._database.generation > 0 and not self._is_shut

    @property
    def _write_connection(self) -> Connection | None:
        return self._database.connection

    def report(self, what: str) -> None:
        """Have the card of the next run say this."""
        self._database.unreported.append(what)

    def leave_to_parent(self, why: str) -> None:
        """Never use this store again, in a child process that was forked; `why` is what to say then.

        Neither its connections nor its locks may be touched: a thread of the parent may have been using them.
        """
        self._lock, self._write_lock, self._sweep_lock = threading.RLock(), threading.RLock(), threading.Lock()
        self._refusal = why
        is_connected = self._database.connection is not None or self._read_connection is not None
        if self.path is not None and is_connected:
            note_inherited(self.path)

    def _refuse_child(self) -> None:
        if self._refusal is not None:
            raise StoreError(self._refusal)

    def notices(self) -> list[str]:
        """Return what the card of a new run should say of the store: each incident is reported once."""
        problem, news = self._database.problem, self._database.unreported
        incidents = [news.popleft() for _ in range(len(news))]
        return incidents if problem is None else [problem, *incidents]

    def open_existing(self, *, sets_aside: bool = False) -> None:
        """Open the file if there is one, and mark the live-looking runs of dead kernels as lost.

        If it cannot be opened now, `fault` says why. A damaged file is set aside only for who is about to write.
        """
        with self._lock:
            is_there = any(map(os.path.exists, self._places[:1]))  # unlike `Path.exists`, it never raises
            if is_there and not self._is_open and self._writer is None:
                with contextlib.suppress(StoreUnavailable):
                    self._database.open(sets_aside=sets_aside)

    def begin(self, source: Source, *, session_id: str, notebook: str | None) -> Writer:
        """Open or make the file and start its writer, once; if the file is unavailable, the writer opens it later."""
        self._refuse_child()
        with self._lock:
            if self._writer is None:
                if not self._is_open and self._database.fault is None:
                    with contextlib.suppress(StoreUnavailable):
                        self._database.open()
                self._writer = Writer(
                    self._database.connection,
                    self._write_lock,
                    source,
                    session_id=session_id,
                    notebook=notebook,
                    clock=self._clock,
                    database=self._database,
                    signer=self.signer,
                )
            if self._writer.source is not source:
                raise StoreError("this store is in use by another session; give each its own SessionStore")
            return self._writer

    # --- reading ---------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        self._refuse_child()
        with self._lock:
            if not self._is_open and not self._is_closed and self._writer is None:
                self.open_existing()  # another kernel may have made it meanwhile
            if not self._is_open:
                if self._database.fault is not None:
                    raise StoreUnavailable(self._database.fault)
                yield None
                return
            if self.path is None:
                with self._write_lock:
                    yield self._write_connection
                return
            try:
                yield self._reader(self.path)
            except (sqlite3.DatabaseError, StoreDamaged) as error:
                if is_damage(error):
                    self._database.suspect(error)
                    if self._writer is not None:
                        self._writer.wake(is_urgent=True)
                raise StoreUnavailable(fault_of(error, self.path)) from error

    def _reader(self, path: Path) -> Connection:
        """Return the readers' connection, to the file that is written to now."""
        generation = self._database.generation
        if self._read_connection is not None and self._read_generation != generation:
            self._read_connection.close()
            self._read_connection = None
        if self._read_connection is None:
            self._read_connection = connect(path)
            self._read_connection.execute("PRAGMA query_only = ON")
            self._read_generation = generation
        return self._read_connection

    def journal_mode(self) -> str:
        """Return the journal mode of the file, `wal` where that is supported; empty without a file."""
        with self._reading() as connection:
            return "" if connection is None else str(connection.execute("PRAGMA journal_mode").fetchone()[0])

    def give_up(self, number: int) -> None:
        """Mark a live-looking run as lost whose kernel cannot be seen from here.

        Raises `NotPending` if it has ended or its kernel is running, `StoreReadOnly` if the file is read-only.
        """
        self._refuse_child()
        if self.path is None:
            raise NotPending(f"Run #{number} belongs to this kernel; cancel it instead")
        with closing(connect(self.path)) as connection:
            orphans.give_up(connection, number, self._clock.now())

    def trust(self, runs: Iterable[Unsigned]) -> None:
        """Sign runs that somebody else may have written, as they were read; whoever calls this has asked the user."""
        self._refuse_child()
        if self.path is None:
            raise StoreError("no runs are stored")
        try:
            with closing(connect(self.path)) as connection, transaction(connection):
                for run in runs:
                    connection.execute("UPDATE runs SET signature = ? WHERE number = ?", (run.signature, run.number))
                    if run.checkpoint is not None:
                        seq, signature = run.checkpoint
                        values = (signature, run.number, seq)
                        connection.execute("UPDATE checkpoints SET signature = ? WHERE run = ? AND seq = ?", values)
        except sqlite3.Error as error:
            raise StoreUnavailable(fault_of(error, self.path)) from error

    def ask(self, question: Callable[[sqlite3.Connection], T], nothing: T) -> T:
        """Return what a function of `store.sets` reads; `nothing` without a file."""
        return self._ask(question, nothing)

    def change(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Have a function of `store.sets` write, in a short transaction of its own, beside the writer's."""
        self._refuse_child()
        if self._is_closed or not self._is_open:
            raise StoreUnavailable(self.fault) if self.fault is not None else StoreError("the store is closed")
        if self.path is None:
            with self._write_lock:
                if self._write_connection is None:
                    raise StoreError("the store is closed")
                with transaction(self._write_connection):
                    return change(self._write_connection)
        try:
            with closing(connect(self.path)) as connection, transaction(connection):
                return change(connection)
        except sqlite3.Error as error:
            raise StoreUnavailable(fault_of(error, self.path)) from error

    @property
    def files(self) -> ArtifactFiles:
        """Where artifacts are kept: beside the file, or in memory."""
        return self._memory_files if self.path is None else ArtifactFiles(folder_beside(self.path))

    @property
    def journals(self) -> JournalFiles:
        """Where the journals of runs are kept: beside the file, or in memory."""
        path, known = self.path, self._journals
        if path != self._journals_at:  # the file is elsewhere now
            self._journals = JournalFiles(None if path is None else folder_beside(path))
            self._journals_at = path
            known.close()
        return self._journals

    # --- removing --------------------------------------------------------------------------------

    def remove(self, numbers: Iterable[int]) -> list[int]:
        """Remove runs with their child runs, except live ones; return the numbers of those removed."""
        with self._sweeping() as sweeper:
            return sweeper.remove(numbers)

    def clean(self, keep: Keep) -> Cleaned:
        """Remove runs beyond these limits, and free the space; see `Sweeper.clean`."""
        with self._sweeping() as sweeper:
            return sweeper.clean(keep, self._clock.now())

    def note_end(self, number: int | None) -> None:
        """Note that a run has ended; now and then, at little cost, check whether to remove old ones on a thread."""
        now = self._clock.monotonic()
        if now < self._sweep_at or self._is_stopping.is_set():
            return
        self._sweep_at = now + SWEEP_S
        if self._may_hold_too_much(number or 0):
            self._sweep_thread = threading.Thread(target=self._sweep, name="nbrun-retention", daemon=True)
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
                try:
                    sweeper.sweep(self.keep)
                finally:
                    self._report_removed(sweeper.removed_sets)
        except (OSError, StoreError, sqlite3.Error) as error:  # it will be tried again
            _log.warning("old runs were not removed: %s", error)

    def _report_removed(self, removed: dict[int, int]) -> None:
        """Have the card of the next run say which sets are gone, and why."""
        for number, count in removed.items():
            self.report(
                f"Set #{number} with {count:,} runs, the oldest, was removed: the store had more than "
                f"keep_runs={self.keep.runs:,} runs and sets, or keep_bytes={self.keep.bytes:,}"
            )

    @contextmanager
    def _sweeping(self, rest: Callable[[], bool] | None = None) -> Iterator[Sweeper]:
        self._refuse_child()
        if self.path is None:
            with self._write_lock:
                if self._write_connection is None or self._is_closed:
                    raise StoreError(str(self.fault or "no runs are stored"))
                yield Sweeper(self._write_connection, self.files, self.journals, lambda: False)
            return
        try:
            with self._sweep_lock, closing(connect(self.path)) as connection:
                # Overwrite what is removed: perhaps nobody should ever read it.
                connection.execute("PRAGMA secure_delete = ON")
                yield Sweeper(connection, self.files, self.journals, rest)
        except sqlite3.Error as error:
            raise StoreUnavailable(fault_of(error, self.path)) from error

    def close(self, timeout_s: float, source: Source | None = None) -> bool:
        """Write what waits and close the file; return whether that was done in time.

        With a `source`, only if it is the writer's: a session that was refused must not end another's writer.
        """
        is_others = self._writer is not None and source is not None and self._writer.source is not source
        if is_others or self._refusal is not None:
            return True
        self._is_stopping.set()
        done = self._writer.close(timeout_s) if self._writer is not None else True
        if self._sweep_thread is not None:
            self._sweep_thread.join(CLOSE_SWEEP_S)
        with self._lock:
            if self._read_connection is not None:
                self._read_connection.close()
                self._read_connection = None
            if self._writer is None:
                self._database.close()
            self._journals.close()
            self._is_closed = True
            self._is_shut = self.path is None or not done
        return done


class ReadOnlyStore(SessionStore):
    """A file that is read but never written to; `problem` says why.

    Threads: any method, from any thread; each has its own connection, since others may change the file meanwhile.
    """

    def __init__(self, path: Path, why: str, clock: Clock) -> None:
        super().__init__([path], clock)
        self._why = why

    @property
    def path(self) -> Path:
        """The file."""
        return self._places[0]

    @property
    def problem(self) -> str:
        """Why it is read-only, in one line."""
        return self._why

    def knows(self, notebook: Path, ids: frozenset[str]) -> bool:
        """Return whether its last session was this notebook's, or one of its newest runs has one of these ids."""
        try:
            last = self._ask(lambda connection: connection.execute(_LAST_NOTEBOOK).fetchone(), None)
            newest = self.runs(limit=_KNOWN_BY) if ids else []
        except (StoreError, OSError, sqlite3.Error):
            return False
        known = {each for one in newest for each in (one.record.session_id, one.record.cell_id)}
        return last == (str(notebook),) or not ids.isdisjoint(known)

    def open_existing(self, *, sets_aside: bool = False) -> None:
        """Do nothing: each method opens it."""

    def give_up(self, number: int) -> None:
        """Raise `StoreReadOnly`."""
        raise StoreReadOnly(self.problem)

    def trust(self, runs: Iterable[Unsigned]) -> None:
        """Raise `StoreReadOnly`."""
        raise StoreReadOnly(self.problem)

    def begin(self, source: Source, *, session_id: str, notebook: str | None) -> Writer:
        """Raise `StoreReadOnly`."""
        raise StoreReadOnly(self.problem)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        try:
            with closing(read_only.open_to_read(self.path)) as connection:
                yield connection
        except sqlite3.Error as error:
            raise StoreDamaged(f"{self.path} cannot be read: {error}") from error
