"""`nbrun gc`: removes old runs and files that belong to no run, and frees disk space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbrun.cli.output import CommandError, relative, say
from nbrun.cli.runs import opened, stores_at
from nbrun.core import BadOption, StoreError, folder_beside, quantities
from nbrun.store import KEEP_BYTES, KEEP_RUNS, Keep

if TYPE_CHECKING:
    from pathlib import Path
    from types import SimpleNamespace


def collect(options: SimpleNamespace) -> int:
    """Clean every store at the path; return the exit code."""
    keep = _keep(options)
    paths = stores_at(options.path)
    if not paths:
        say(f"No runs in {options.path.absolute()}.")
    for path in paths:
        before = _size(path)
        with opened(path) as store:
            try:
                done = store.clean(keep)
            except StoreError as error:
                raise CommandError(str(error)) from None
        freed = before - _size(path)
        words = [
            quantities.counted(len(done.removed), "run") + " removed",
            quantities.counted(done.strays, "file") + " without a run removed",
            f"{quantities.size_words(freed)} freed"
            if not done.is_in_use
            else "a kernel is using it: the space is freed once that kernel has ended",
        ]
        say(f"{relative(path)}: {', '.join(words)}")
    return 0


def _keep(options: SimpleNamespace) -> Keep:
    runs = KEEP_RUNS if options.keep_runs is None else options.keep_runs
    if runs < 0:
        raise CommandError(f"--keep-runs must be at least 1, or 0 to keep all; got {runs}")
    try:
        size = KEEP_BYTES if options.keep_bytes is None else quantities.size_bytes(options.keep_bytes)
    except BadOption as error:
        raise CommandError(f"--keep-bytes: {error}") from None
    return Keep(runs, size)


def _size(path: Path) -> int:
    """Return the bytes of a store, including the files next to it."""
    beside = folder_beside(path)
    files = [path, path.with_name(f"{path.name}-wal"), *(beside.rglob("*") if beside.is_dir() else ())]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())
