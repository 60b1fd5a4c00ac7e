"""Which notebook this kernel is of."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from nbrun.core.errors import StoreReadOnly


def notebook_path(path: str | Path | None) -> Path | None:
    """Return the notebook's path: the one given, else the one Jupyter names, if its folder exists.

    Source: Jupyter Server sets `JPY_SESSION_NAME` to the notebook's absolute path when it starts a kernel.
    """
    if path is not None:
        return Path(path).absolute()
    named = os.environ.get("JPY_SESSION_NAME")
    if named and Path(named).is_absolute() and Path(named).parent.is_dir():
        return Path(named)
    return None


SUFFIX = ".db"


NO_NOTEBOOK = "session"


def store_path(notebook: Path) -> Path:
    """Return where the runs of this notebook are kept: `.nbrun/<its name>.db` beside it."""
    return (
        notebook.parent
        / FOLDER
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


FOLDER = ".nbrun"


def prepare_folder(folder: Path) -> None:
    """Make the store's folder: 0700, and with a `.gitignore` of its own, since runs hold prompts.

    Raises
    ------
    OSError
        It cannot be made or written.
    StoreReadOnly
        It is a link to somewhere else.
    """
    if folder.is_symlink():
        raise StoreReadOnly(f"{folder} is a symbolic link; nbrun does not write through it")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if folder.name == FOLDER and not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")
