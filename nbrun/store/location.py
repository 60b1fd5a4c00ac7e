"""Which notebook a kernel belongs to, and where its store is kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from nbrun.core import StoreReadOnly, secure

FOLDER = ".nbrun"
SUFFIX = ".db"
NO_NOTEBOOK = "session"  # the name of a store without a notebook
_IGNORE_BYTES = 16
NO_PLACE = "the kernel's working folder is gone"  # why there may be no place for runs


def notebook_path(path: str | Path | None) -> Path | None:
    """Return the notebook's path: the one given, else the one Jupyter names, if its folder exists."""
    # Source: Jupyter Server sets `JPY_SESSION_NAME` to the notebook's absolute path when it starts a kernel.
    if path is not None:
        try:
            return Path(path).absolute()
        except OSError:  # it is relative to a working folder that is gone
            return None
    named = os.environ.get("JPY_SESSION_NAME")
    if named and Path(named).is_absolute() and os.path.isdir(Path(named).parent):
        return Path(named)
    return None


def store_path(notebook: Path) -> Path:
    """Return where the runs of this notebook are kept: `.nbrun/<its name>.db` beside it."""
    name = notebook.stem if notebook.suffix == ".ipynb" else notebook.name
    return notebook.parent / FOLDER / f"{name}{SUFFIX}"


def places_for(notebook: Path | None) -> list[Path]:
    """Return where the runs of a notebook may be kept, best first.

    Beside the notebook, or in the working folder if its path is unknown; if that cannot be written, in the user's
    data folder, under a name that no other notebook has. Without a working folder there is no place, and a user
    without a home has no data folder.
    """
    try:
        beside = store_path(notebook or Path.cwd() / NO_NOTEBOOK)
    except OSError:
        return []
    data = data_folder()
    if data is None:
        return [beside]
    digest = hashlib.sha256(os.fsencode(beside)).hexdigest()[:16]
    return [beside, data / digest / beside.name]


def data_folder() -> Path | None:
    """Return the folder for the user's own data, which need not exist; None for a user without a home."""
    import platformdirs

    try:
        data = platformdirs.user_data_path("nbrun")
    except RuntimeError:  # there is no home; an older platformdirs returned "~/…" as it is
        return None
    return data if data.is_absolute() else None


def prepare_folder(folder: Path) -> None:
    """Make the store's folder, for its owner only and ignored by git, since runs contain prompts.

    A folder that nbrun did not name may be for others too, and stays as it is. Raises `OSError` if it cannot be made
    or written, `StoreReadOnly` if it is a symbolic link, or another user's.
    """
    if folder.is_symlink():
        raise StoreReadOnly(f"{folder} is a symbolic link; nbrun does not write through it")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.name == FOLDER:
        secure(folder)
        _ignore_all(folder / ".gitignore")
    elif folder.parent == data_folder():
        secure(folder)


def _ignore_all(path: Path) -> None:
    """Have git ignore the folder that this `.gitignore` is in, whatever it said before."""
    with contextlib.suppress(OSError), open(path, "rb", opener=_opened_here) as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(_IGNORE_BYTES).split() == [b"*"]:
            return
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with (
        contextlib.suppress(FileExistsError),
        open(path, "xb", opener=_opened_here) as file,
    ):  # another kernel was first
        file.write(b"*\n")


def _opened_here(path: str, flags: int) -> int:
    """Open a file, not one that a link leads to, nor a pipe that blocks its reader."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o600)
