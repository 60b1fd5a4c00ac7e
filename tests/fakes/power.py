"""A disk that can lose its power: what SQLite writes is recorded, and every cut of that can be laid out as files.

nbrun's own code runs on SQLite, as ever, only by another binding (apsw), since that of the standard library takes
no file layer from Python. The model: what a file was told before its last sync is there; of what came after it
any part may be, sector by sector and in any order. A file's removal counts when the folder was synced.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

import apsw
import pytest

from nbrun.store.locks import Use

SECTOR = 512


@dataclass(frozen=True)
class Write:
    """Bytes were written at an offset."""

    file: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    """A file was cut, or made longer."""

    file: str
    size: int


@dataclass(frozen=True)
class Sync:
    """All that was done to a file has reached the disk."""

    file: str


@dataclass(frozen=True)
class Remove:
    """A file was removed."""

    file: str
    is_synced: bool


@dataclass(frozen=True)
class SyncFolder:
    """What was made and removed has reached the disk."""


@dataclass(frozen=True)
class Note:
    """Something else happened here: of the test."""

    what: object


Step = Write | Truncate | Sync | SyncFolder | Remove | Note


class Left(Enum):
    """How much of what was not synced is there after a cut."""

    NOTHING = auto()
    EVERYTHING = auto()
    SOME = auto()


class Disk(apsw.VFS):
    """A file layer of SQLite that passes everything on and keeps `steps`, in order.

    Threads: any; a list is appended to in one step.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: list[Step] = []
        super().__init__(name, "")

    def note(self, what: object) -> None:
        """Remember that something happened between two writes."""
        self.steps.append(Note(what))

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        """Open a file that records."""
        return _File(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        """Remove a file."""
        super().xDelete(filename, syncdir)
        self.steps.append(Remove(Path(filename).name, syncdir))


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self._steps = disk.steps
        self._name = Path(name if isinstance(name, str) else name.filename()).name if name else ""
        # Source: SQLite's unix layer syncs the folder with the first sync of a journal that it may have made.
        journals = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL
        self._is_new = bool(flags[0] & journals and flags[0] & apsw.SQLITE_OPEN_CREATE)
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._steps.append(Write(self._name, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:
        super().xTruncate(newsize)
        self._steps.append(Truncate(self._name, newsize))

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._steps.append(Sync(self._name))
        if self._is_new:
            self._steps.append(SyncFolder())
            self._is_new = False


class Connection:
    """What nbrun uses of a connection of the standard library, on a `Disk`."""

    def __init__(self, uri: str, disk: Disk) -> None:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
        self.use: Use | None = None
        self._connection = apsw.Connection(uri, vfs=disk.name, flags=flags)
        self._connection.set_busy_timeout(1_000)
        # Checkpoints after some kilobytes, not megabytes: a short test must have some.
        self.execute("PRAGMA wal_autocheckpoint = 16")

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return bool(self._connection.in_transaction)

    def execute(self, sql: str, values: Any = ()) -> Cursor:
        """Run one statement."""
        return Cursor(self._connection.cursor().execute(sql, values), self._connection)

    def executemany(self, sql: str, values: Iterable[Any]) -> None:
        """Run it for each of these."""
        self._connection.cursor().executemany(sql, values)

    def setlimit(self, category: int, limit: int) -> None:
        """Set one of SQLite's limits."""
        self._connection.limit(category, limit)

    def setconfig(self, op: int, enable: bool = True) -> None:
        """Set one of its switches; the standard library has that from Python 3.12 on."""
        self._connection.config(op, int(enable))

    def close(self) -> None:
        """Close it."""
        use, self.use = self.use, None
        if use is None:
            self._connection.close()
        else:
            use.end(self._connection.close)


class Cursor:
    """What a statement gave."""

    def __init__(self, cursor: Any, connection: Any) -> None:
        self._cursor = cursor
        self.lastrowid = connection.last_insert_rowid()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)

    def fetchone(self) -> Any:
        """Return the next row."""
        return next(self._cursor, None)

    def fetchall(self) -> list[Any]:
        """Return all rows."""
        return list(self._cursor)


@contextmanager
def recorded() -> Iterator[Disk]:
    """A recording disk under every file that SQLite opens meanwhile."""
    disk, connect = Disk("nbrun-power"), sqlite3.connect

    def connect_to_disk(path: Any, **options: Any) -> Any:
        return connect(path, **options) if path == ":memory:" else Connection(str(path), disk)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect_to_disk)
        yield disk
    disk.unregister()


@dataclass
class _Content:
    """A file: what is on the disk for sure, and what was done since. None: there is no file."""

    safe: bytes | None = None
    since: list[Write | Truncate | Remove] = field(default_factory=list)

    def take(self, step: Step) -> None:
        match step:
            case Sync():
                self.safe = _after(self.safe, self.since)
                self.since = []
            case Write() | Truncate() | Remove():
                self.since.append(step)

    def keep_removals(self) -> None:
        removals = [place for place, step in enumerate(self.since) if isinstance(step, Remove)]
        if removals:
            self.safe, self.since = None, self.since[removals[-1] + 1 :]

    def left(self, how: Left, rng: random.Random) -> bytes | None:
        match how:
            case Left.NOTHING:
                return self.safe
            case Left.EVERYTHING:
                return _after(self.safe, self.since)
            case Left.SOME:
                return _after(self.safe, [part for step in self.since for part in _some(step, rng)])


def _some(step: Write | Truncate | Remove, rng: random.Random) -> Iterator[Write | Truncate | Remove]:
    """Give the sectors of a write that have arrived; the rest of a step has, or has not."""
    if not isinstance(step, Write):
        if rng.random() < 0.5:
            yield step
        return
    start = 0
    while start < len(step.data):
        end = min(len(step.data), start + SECTOR - (step.offset + start) % SECTOR)
        if rng.random() < 0.5:
            yield Write(step.file, step.offset + start, step.data[start:end])
        start = end


def _after(content: bytes | None, steps: Iterable[Write | Truncate | Remove]) -> bytes | None:
    made = None if content is None else bytearray(content)
    for step in steps:
        match step:
            case Remove():
                made = None
            case Truncate(size=size):
                made = bytearray() if made is None else made
                made = made[:size].ljust(size, b"\0")
            case Write(offset=offset, data=data):
                made = bytearray() if made is None else made
                if len(made) < offset:
                    made.extend(bytes(offset - len(made)))
                made[offset : offset + len(data)] = data
    return None if made is None else bytes(made)


Files = dict[str, bytes]


def cuts(steps: list[Step], start: Files, how: Left, seed: int = 0) -> Iterator[tuple[list[object], Files]]:
    """Give what is left of the files if the power goes after each step, and what was noted until then.

    Layouts that are like the one before are left out, unless something was noted between.
    """
    rng = random.Random(seed)  # noqa: S311 - a disk keeps no secrets
    disk = {name: _Content(content) for name, content in start.items()}
    notes: list[object] = []
    before: tuple[int, Files] | None = None
    for step in steps:
        if isinstance(step, Note):
            notes.append(step.what)
        elif not isinstance(step, SyncFolder):
            disk.setdefault(step.file, _Content()).take(step)
        if isinstance(step, SyncFolder) or (isinstance(step, Remove) and step.is_synced):
            for content in disk.values():
                content.keep_removals()
        left = {name: content.left(how, rng) for name, content in disk.items()}
        files = {name: data for name, data in left.items() if data is not None}
        if before != (len(notes), files):
            before = len(notes), files
            yield list(notes), files


def lay_out(path: Path, files: Files) -> None:
    """Have exactly these files in the folder of a store.

    The store's own file is written to, empty where there is none, and never replaced: one that is another on
    the disk would be taken for a copy.
    """
    path.parent.mkdir(exist_ok=True)
    for old in path.parent.iterdir():
        if old.name not in files and old != path:
            old.unlink()
    for name, data in ({path.name: b""} | files).items():
        path.with_name(name).write_bytes(data)
