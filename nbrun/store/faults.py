"""What is wrong with a store's file: told apart by what helps, and in words."""

from __future__ import annotations

import errno
import os
import sqlite3
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from nbrun.core.errors import StoreDamaged, StoreError, StoreInTrouble

if TYPE_CHECKING:
    from pathlib import Path

FULL_BYTES = 64 * 1024
"""A disk with less room than this is full, whatever the error says."""


class Kind(Enum):
    """What helps: waiting for another program, making room, a new file, or none of these."""

    LOCKED = auto()
    FULL = auto()
    DAMAGED = auto()
    OTHER = auto()


_MENDS = {
    Kind.LOCKED: "close the program that holds it; what waits is then written",
    Kind.FULL: "make room; what waits is then written",
    Kind.DAMAGED: "the next run that is kept has it set aside, and a new file begun",
    Kind.OTHER: "mend that; what waits is then written",
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a store's file cannot be used, in `words` that stand behind "not saved: "."""

    kind: Kind
    words: str

    @property
    def mend(self) -> str:
        """What to do about it."""
        return _MENDS[self.kind]

    def __str__(self) -> str:
        return self.words


def trouble_of(error: BaseException, path: Path | None) -> Trouble:
    """Return what an error at this file means."""
    if isinstance(error, StoreInTrouble) and isinstance(error.trouble, Trouble):
        return error.trouble
    if isinstance(error, StoreDamaged):
        return Trouble(Kind.DAMAGED, f"the file is damaged ({error.__cause__ or error})")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Trouble(Kind.FULL, "the disk is full")
    match _code(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Trouble(Kind.LOCKED, f"the file is locked by another program ({path})")
        case sqlite3.SQLITE_FULL:
            return Trouble(Kind.FULL, "the disk is full")
        case sqlite3.SQLITE_IOERR if _is_full(path):
            return Trouble(Kind.FULL, "the disk is full")
        case sqlite3.SQLITE_IOERR:  # a quota, a limit of the process, a disk that fails
            words = f"the disk does not take it: it is over a quota, or it fails ({error})"
            return Trouble(Kind.FULL, words)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Trouble(Kind.DAMAGED, f"the file is damaged ({error})")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return Trouble(Kind.OTHER, f"the file cannot be written, only read ({path})")
        case sqlite3.SQLITE_CANTOPEN:
            return Trouble(Kind.OTHER, f"the file cannot be opened ({path})")
        case _:
            return Trouble(Kind.OTHER, str(error))


def is_of_file(error: BaseException) -> bool:
    """Return whether an error is the file's, and not that of a value that is to be written."""
    return isinstance(error, sqlite3.OperationalError | OSError | StoreError) or is_damage(error)


def is_damage(error: BaseException) -> bool:
    """Return whether it was found that the file is not as it was written."""
    damaged = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return isinstance(error, StoreDamaged) or _code(error) in damaged


def _code(error: BaseException) -> int | None:
    """Return SQLite's primary code of an error; the extended ones tell it in more detail."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


def _is_full(path: Path | None) -> bool:
    try:
        found = os.statvfs(path.parent) if path is not None else None
    except (OSError, AttributeError):  # the folder is gone; Windows has no such call
        return False
    return found is not None and found.f_bavail * found.f_frsize < FULL_BYTES
