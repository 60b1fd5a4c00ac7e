"""Which notebook this kernel is of."""

from __future__ import annotations

import os
from pathlib import Path


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
