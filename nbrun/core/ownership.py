"""Whose a file or folder is, and who else may use it.

What is looked at is what is changed: it is held by a descriptor meanwhile, so its name may lead elsewhere by then.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from typing import TYPE_CHECKING, BinaryIO

from nbrun.core.errors import StoreReadOnly

if TYPE_CHECKING:
    from pathlib import Path

OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""What group and others may do."""

_ROOT = 0
# Source: POSIX drops all of a process's locks on a file when it closes a descriptor of it, but not one of this kind,
# which Linux has. It can't be read, blocks at no pipe, and is a link's own if the name is one.
_O_PATH = getattr(os, "O_PATH", 0)


def secure(path: Path, *, tightens: bool = True) -> os.stat_result | None:
    """Refuse a file or folder that is another user's; with `tightens`, take all rights from group and others.

    Returns what is there, None if there is nothing. A file system without modes leaves them as they are. Raises
    `StoreReadOnly`, with the reason, for a symbolic link too.
    """
    with contextlib.ExitStack() as stack:
        name: str | Path = path
        try:
            if _O_PATH:
                descriptor = os.open(path, _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                name, found = f"/proc/self/fd/{descriptor}", os.fstat(descriptor)
            else:
                found = os.lstat(path)
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(found.st_mode):
            raise StoreReadOnly(f"{path} is a symbolic link; nbrun does not write through it")
        if not is_trusted(found, path):
            raise StoreReadOnly(f"{path} belongs to another user ({_name_of(found.st_uid)}); nbrun does not use it")
        if tightens and os.name != "nt" and found.st_mode & OTHERS:
            # Not on a file system without modes, nor what is root's; doctor says who may read the store.
            with contextlib.suppress(OSError, NotImplementedError):
                os.chmod(name, stat.S_IMODE(found.st_mode) & stat.S_IRWXU, follow_symlinks=bool(_O_PATH))
    return found


def is_trusted(found: os.stat_result, path: Path) -> bool:
    """Return whether a file or folder is this user's or root's.

    For root, so is what the owner of the folder around it has there: a container's root works in its user's folder.
    """
    if not hasattr(os, "geteuid"):  # Windows: what is in a user's folders is the user's
        return True
    user = os.geteuid()
    if found.st_uid in (user, _ROOT):
        return True
    try:
        if user == _ROOT and os.stat(path.parent).st_uid == found.st_uid:
            return True
        # A share or a memory card may show one owner for all that anybody makes there.
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            return os.fstat(probe.fileno()).st_uid == found.st_uid
    except OSError:
        return False


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it; raises `OSError` for anything else: a pipe would block, and a device may never end."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is not a regular file")
    return file


def is_private(found: os.stat_result) -> bool:
    """Return whether this is the user's own, and nobody else (but root) may read or write it."""
    return os.name == "nt" or (found.st_uid == os.geteuid() and not found.st_mode & OTHERS)


def _name_of(user: int) -> str:
    import pwd  # not on Windows

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user id {user}"
