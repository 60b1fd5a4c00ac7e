"""The file of a store: opened at the best place, watched, and replaced if it is lost or damaged."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from nbrun.core import Clock, StoreDamaged, StoreError, StoreUnavailable
from nbrun.store import orphans, read_only, rows, schema
from nbrun.store.connection import Connection, connect, open_for_writing
from nbrun.store.faults import FaultKind, StoreFault, fault_of, is_damage
from nbrun.store.location import FOLDER, NO_PLACE, prepare_folder
from nbrun.store.locks import COMPANIONS, WAIT_S, Identity, Use, exclusive, identity, is_open_here

if TYPE_CHECKING:
    from pathlib import Path


_log = logging.getLogger("nbrun")

_ASIDE = re.compile(r"\.damaged-\d{8}T\d{6}(?:-\d+)?$")

OPEN_WAIT_S = 0.5  # how long opening waits for a lock; after that the writer tries again
MAX_NUMBER = 10**9
"""New runs are numbered from above those of a read-only file, unless its numbers are beyond this."""
CHECK_S = 0.1
"""How often the file is checked if no run starts or ends; a check takes 3 µs, far more on a network."""
SET_ASIDE_LIMIT = 3
"""How many files one kernel sets aside: a disk that damages every one would fill up."""

_HEAD_BYTES = 64 * 1024
_MAGIC = b"SQLite format 3\x00"
_MARK_AT = 68  # where SQLite keeps the application's id
_IN_USE = StoreFault(FaultKind.OTHER, "the file is damaged, and another kernel has it open")


def is_set_aside(path: Path) -> bool:
    """Return whether a file has the name of one that was set aside because it was damaged."""
    return _ASIDE.search(path.stem) is not None


class DatabaseFile:
    """The file where a store is kept: at the first of `places` that can be written, in memory if none can.

    A fault that may pass leaves it as it is, and is raised as `StoreUnavailable`. If the file is gone, replaced or
    damaged, a new one is made: it `needs_rebuild` then, and `previous` is the connection to the old one, from which
    the runs of this kernel can be copied as far as possible, until `close_previous()`.

    Threads: it is opened under the store's lock until there is a writer; from then on all methods are the writer's.
    `path`, `problem`, `generation`, `incidents` and `fault` may be read by anyone.
    """

    def __init__(self, places: list[Path], clock: Clock) -> None:
        self._places = places
        self._clock = clock
        self._name = ""
        self._doubted: Identity | None = None  # a file that seemed damaged, and was not when it was looked at again
        self._waits_until: float | None = None  # for others to let go of a damaged file; by the monotonic clock
        self._avoided: Path | None = None  # a damaged file that others have open
        self._size = 0
        self._looked_at = 0.0  # by the monotonic clock
        self._set_aside_count = 0
        self._suspected: StoreFault | None = None
        self._incident: str | None = None  # to report when the next file is open
        self.connection: Connection | None = None
        self.previous: sqlite3.Connection | None = None
        self.path: Path | None = None
        self.problem: str | None = None  # why it is not at the first place
        self.why_read_only: tuple[Path, str] | None = None  # a file that must not be written to, and why
        self.fault: StoreFault | None = None  # why it is not open
        self.lost = 0
        self.needs_rebuild = False  # this kernel's runs are not in it yet
        self.generation = 0  # how often a file was opened
        self.incidents: tuple[str, ...] = ()  # all that happened to its files
        self.unreported: deque[str] = deque()  # those that are in no run's log yet

    # --- opening ---------------------------------------------------------------------------------

    def open(self, *, sets_aside: bool = True) -> Connection:
        """Open the file, or make it; with `sets_aside`, a damaged file of ours is renamed to make room for a new one.

        Raises `StoreUnavailable` if the file is locked, or the disk is full and no other place is better.
        """
        problem, may_pass, above = None, None, 0
        for path in self._places:
            try:
                connection = self._opened(path, sets_aside)
            except (OSError, StoreError, sqlite3.Error) as error:
                found = fault_of(error, path)
                is_kept = found.kind is FaultKind.DAMAGED and not sets_aside and was_ours(path)
                if found.kind is FaultKind.LOCKED or is_kept:
                    self.fault = found
                    raise StoreUnavailable(found) from error
                may_pass = may_pass or (found if found.kind is FaultKind.FULL else None)
                if problem is None:
                    words, greatest = read_only.examine(path, error, str(found))
                    problem = f"runs are not saved in {path}: {words}"
                    if greatest is not None:
                        self.why_read_only, above = (path, str(found)), greatest
                continue
            self.path = path
            break
        else:
            if may_pass is not None:
                self.fault = may_pass
                raise StoreUnavailable(may_pass)
            connection, self.path = open_for_writing(None, self._clock.now()), None
            problem = f"{problem or NO_PLACE}; runs are kept in memory only"
        if problem is not None and self.path is not None:
            problem = f"{problem}; new runs are saved in {self.path}"
        self.problem, self.fault = problem, None
        if 0 < above <= MAX_NUMBER:  # so that a number names one run
            schema.number_above(connection, above)
        self._take(connection)
        return connection

    def _opened(self, path: Path, sets_aside: bool) -> Connection:
        if path == self._avoided:
            raise StoreUnavailable(_IN_USE)
        prepare_folder(path.parent)
        with exclusive(path):
            try:
                return self._connected(path)
            except (StoreDamaged, sqlite3.DatabaseError) as error:
                # A file that was never ours, such as notes under this name, is left alone.
                is_damaged = isinstance(error, StoreDamaged) or is_damage(error)
                file = identity(path)
                if not is_damaged or not sets_aside or file is None or not was_ours(path):
                    raise
                use = Use.begin(path, file)
                try:
                    if not use.is_alone():
                        raise StoreUnavailable(_IN_USE) from error
                    self._rename(path, fault_of(error, path))
                finally:
                    use.end()
            return self._connected(path)

    def _connected(self, path: Path) -> Connection:
        connection = open_for_writing(path, self._clock.now(), OPEN_WAIT_S)
        try:
            self.lost = orphans.mark_lost(connection, self._clock.now())
            rows.delete_stale_checkpoints(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _take(self, connection: Connection) -> None:
        """Use this connection from now on; report what happened to the file before."""
        self.connection = connection
        self.generation += 1
        self._suspected = self._waits_until = None
        if self.path is not None:
            self._name = os.fspath(self.path)
            with contextlib.suppress(OSError):  # gone already; the first look finds that
                self._size = self.path.stat().st_size
        if self._incident is None:
            return
        if self.previous is not None and _newest(connection) == _newest(self.previous) != []:
            # The same file with another identity, as on some network file systems: nothing was lost.
            self.close_previous()
        else:
            self._report(self._incident)
        self._incident = None

    # --- watching --------------------------------------------------------------------------------

    def suspect(self, error: BaseException) -> None:
        """Note that the file seems damaged; the next `ready()` sets it aside."""
        self._suspected = fault_of(error, self.path)

    def is_in_place(self) -> bool:
        """Return whether file and journal are where they were opened; else the next `ready()` opens others."""
        use = None if self.connection is None else self.connection.use
        return use is None or use.is_in_place()

    def ready(self, *, looks: bool = True) -> Connection:
        """Return a connection to the file, or to a new one if it is gone or damaged.

        `looks` says whether to check the file even if that was done a moment ago.
        """
        if self.connection is None:
            return self.open()
        if self.path is None:
            return self.connection
        if self._suspected is not None:
            return self._set_aside(self._suspected)
        now = self._clock.monotonic()
        if not looks and now < self._looked_at + CHECK_S:
            return self.connection
        self._looked_at = now
        try:
            found = os.stat(self._name)
        except FileNotFoundError:
            return self._start_over("was deleted or moved")
        use = self.connection.use
        if use is not None and (found.st_dev, found.st_ino) != use.file:
            return self._start_over("was replaced by another file")
        if use is not None and not use.is_whole():
            self._restore_journal(use)
        if found.st_size < self._size and not self._is_sound():
            return self._set_aside(StoreFault(FaultKind.DAMAGED, "the file is damaged (cut short)"))
        self._size = found.st_size
        return self.connection

    def _restore_journal(self, use: Use) -> None:
        """Put the journal back that was deleted, moved or replaced, so that others see what is written to it."""
        path, connection = self._open_one()
        with exclusive(path):
            if identity(path) != use.file or use.restore():
                _log.info("%s: its journal was gone, and was put back", path)
                return
        # It cannot be put back: what is in it goes into the file itself.
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _is_sound(self) -> bool:
        """Return whether a file that has shrunk is undamaged: another process may have compacted it."""
        assert self.path is not None  # noqa: S101 - asked of files only
        try:
            with contextlib.closing(connect(self.path)) as connection:
                answer: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except (sqlite3.Error, StoreError) as error:
            return not is_damage(error)
        return answer == "ok"

    # --- replacing the file ----------------------------------------------------------------------

    def _start_over(self, what: str) -> Connection:
        """Open what is at the path now, or make it; the old file stays readable as `previous`."""
        path, old = self._open_one()
        above = path.parent.parent
        if path.parent.name == FOLDER and not above.is_dir():
            # The notebook's own folder is not ours to make. Wherever it went, the old file is still written.
            raise StoreUnavailable(StoreFault(FaultKind.OTHER, f"its folder is gone ({above})"))
        with contextlib.suppress(sqlite3.Error):  # makes a file that was moved away complete
            old.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._incident = f"{path} {what}; the runs of this kernel were saved again"
        return self._open_new(old)

    def _open_new(self, old: Connection) -> Connection:
        self.connection = None
        if self.needs_rebuild:  # none of this kernel's runs were in it yet
            old.close()
        else:
            self.previous, self.needs_rebuild = old, True
        return self.open()

    def _open_one(self) -> tuple[Path, Connection]:
        assert self.path is not None  # noqa: S101 - only a file can be gone or damaged
        assert self.connection is not None  # noqa: S101
        return self.path, self.connection

    def _set_aside(self, fault: StoreFault) -> Connection:
        """Rename the damaged file and what belongs to it, and open a new one; wait while others have it open."""
        path, old = self._open_one()
        use = old.use
        assert use is not None  # noqa: S101 - it is a file
        with exclusive(path):
            if identity(path) != use.file:
                return self._start_over("was set aside by another kernel")
            if self._doubted != use.file and self._is_sound():
                self._doubted, self.connection = use.file, None
                old.close()
                return self.open()
            if use.consent():
                if os.name == "nt":  # a file that is open cannot be renamed there
                    old.close()
                self._rename(path, fault)
                return self._open_new(old)
        # Each kernel consents when it notices the damage itself; one that is idle may not.
        now = self._clock.monotonic()
        self._waits_until = self._waits_until or now + WAIT_S
        if now < self._waits_until:
            raise StoreUnavailable(_IN_USE)
        self._avoided = path
        return self._open_new(old)

    def _rename(self, path: Path, fault: StoreFault) -> None:
        if self._set_aside_count >= SET_ASIDE_LIMIT:
            words = f"the file is damaged, like {SET_ASIDE_LIMIT} files before it; check the disk"
            raise StoreUnavailable(StoreFault(FaultKind.OTHER, words))
        self._set_aside_count += 1
        aside = self._aside(path)
        for part in ("", *COMPANIONS):  # the database first: the others are useless without it
            with contextlib.suppress(FileNotFoundError):
                path.with_name(f"{path.name}{part}").rename(aside.with_name(f"{aside.name}{part}"))
        self._report(f"{path}: {fault}; it was set aside as {aside.name}, and a new file was made")

    def _aside(self, path: Path) -> Path:
        moment = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y%m%dT%H%M%S")
        names = [f"{path.stem}.damaged-{moment}{path.suffix}"]
        names += [f"{path.stem}.damaged-{moment}-{n}{path.suffix}" for n in range(2, 100)]
        taken = set(os.listdir(path.parent))
        free = (n for n in names if not any(f"{n}{part}" in taken for part in ("", *COMPANIONS)))
        return path.with_name(next(free, names[-1]))

    def _report(self, what: str) -> None:
        _log.info("%s", what)
        self.unreported.append(what)
        self.incidents = (*self.incidents, what)

    def close_previous(self) -> None:
        """Close the old file: this kernel's runs are in the new one."""
        self.needs_rebuild = False
        if self.previous is not None:
            self.previous.close()
            self.previous = None

    def close(self) -> None:
        """Close both files."""
        self.close_previous()
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def was_ours(path: Path) -> bool:
    """Return whether a damaged file was once a store: by its application id, or the text of a table.

    One that is too short for the id counts as ours: it is of no use to anyone.
    """
    if is_open_here(path):  # as a store; and reading it would drop the locks of this process
        return True
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    mark = schema.APPLICATION_ID.to_bytes(4, "big")
    if head.startswith(_MAGIC):
        return len(head) < _MARK_AT + 4 or head[_MARK_AT : _MARK_AT + 4] == mark
    return not head or b"CREATE TABLE runs (" in head


def _newest(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    """Return the newest run and the newest row of events, by which a copy of a file is recognised."""
    try:
        return connection.execute(
            "SELECT number, run_id, created_at FROM runs WHERE number = (SELECT max(number) FROM runs)"
            " UNION ALL SELECT key, run, ts FROM events WHERE key = (SELECT max(key) FROM events)"
        ).fetchall()
    except sqlite3.Error:
        return []
