"""What is wrong with a store's file, by what helps, and in words."""

from __future__ import annotations

import errno
import os
import sqlite3
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from nbrun.core import StoreDamaged, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from pathlib import Path

FULL_BYTES = 64 * 1024  # a disk with less room than this is full, whatever the error says


class FaultKind(Enum):
    """What helps: waiting for another program, making room, a new file, or none of these."""

    LOCKED = auto()
    FULL = auto()
    DAMAGED = auto()
    OTHER = auto()


_FIXES = {
    FaultKind.LOCKED: "close the program that holds it; runs are then saved",
    FaultKind.FULL: "free some disk space; runs are then saved",
    FaultKind.DAMAGED: "it is set aside, and a new file made, when the next run is saved",
    FaultKind.OTHER: "fix this; runs are saved as soon as the problem is gone",
}


@dataclass(frozen=True, slots=True)
class StoreFault:
    """Why a store's file cannot be used; `words` follow "not saved: "."""

    kind: FaultKind
    words: str

    @property
    def fix(self) -> str:
        """What to do about it."""
        return _FIXES[self.kind]

    def __str__(self) -> str:
        return self.words


def fault_of(error: BaseException, path: Path | None) -> StoreFault:
    """Return what an error at this file means."""
    if isinstance(error, StoreUnavailable) and isinstance(error.fault, StoreFault):
        return error.fault
    if isinstance(error, StoreDamaged):
        return StoreFault(FaultKind.DAMAGED, f"the file is damaged ({error.__cause__ or error})")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFault(FaultKind.FULL, "the disk is full")
    match _code(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreFault(FaultKind.LOCKED, f"the file is locked by another program ({path})")
        case sqlite3.SQLITE_FULL:
            return StoreFault(FaultKind.FULL, "the disk is full")
        case sqlite3.SQLITE_IOERR if _is_full(path):
            return StoreFault(FaultKind.FULL, "the disk is full")
        case sqlite3.SQLITE_IOERR:  # a quota, a limit of the process, a disk that fails
            words = f"the disk refused the write: a quota is exceeded, or the disk is failing ({error})"
            return StoreFault(FaultKind.FULL, words)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreFault(FaultKind.DAMAGED, f"the file is damaged ({error})")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return StoreFault(FaultKind.OTHER, f"the file is read-only ({path})")
        case sqlite3.SQLITE_CANTOPEN:
            return StoreFault(FaultKind.OTHER, f"the file cannot be opened ({path})")
        case _:
            return StoreFault(FaultKind.OTHER, str(error))


def is_of_file(error: BaseException) -> bool:
    """Return whether an error comes from the file, not from a value to be written."""
    return isinstance(error, sqlite3.OperationalError | OSError | StoreError) or is_damage(error)


def is_damage(error: BaseException) -> bool:
    """Return whether the error says that the file is damaged."""
    damaged = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return isinstance(error, StoreDamaged) or _code(error) in damaged


def _code(error: BaseException) -> int | None:
    """Return SQLite's primary code of an error."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


def _is_full(path: Path | None) -> bool:
    try:
        found = os.statvfs(path.parent) if path is not None else None
    except (OSError, AttributeError):  # the folder is gone; Windows has no such call
        return False
    return found is not None and found.f_bavail * found.f_frsize < FULL_BYTES
