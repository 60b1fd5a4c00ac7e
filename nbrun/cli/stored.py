"""The stored runs of notebooks: found, listed and shown from outside their kernels."""

from __future__ import annotations

import struct
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nbrun.cli.printing import (
    CommandError,
    answer,
    cells,
    console,
    moment,
    relative,
    safe,
    say,
    table,
    tokens,
)
from nbrun.clock import SystemClock
from nbrun.encoding import shown
from nbrun.errors import RunNotFound
from nbrun.store import SUFFIX, SessionStore, schema, store_path
from nbrun.wording import status_words

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.table import Table

    from nbrun.store import StoredRun


def list_runs(options: argparse.Namespace) -> int:
    """List the runs of every store that the path stands for; return the exit code."""
    if options.limit < 1:
        raise CommandError(f"--limit {options.limit}: give at least 1")
    paths = stores_at(options.path)
    if not paths:
        say(f"No runs are kept in {options.path.absolute()}.")
    for path in paths:
        with opened(path) as store:
            runs = store.runs(options.limit + 1)
        say(f"{relative(path)}" if runs else f"{relative(path)}: no runs")
        if runs:
            console().print(_list_table(runs[: options.limit]))
        if len(runs) > options.limit:
            say(f"There are more: --limit shows more than {options.limit}.")
    return 0


def _list_table(runs: Sequence[StoredRun]) -> Table:
    rows = table("run", "name", "status", "agent", "started", "tokens", "output")
    for run in runs:
        record = run.record
        rows.add_row(
            *cells(
                f"#{run.number}",
                record.name,
                status_words(record),
                record.agent,
                moment(record.started_at or record.created_at),
                tokens(record),
                shown(str(record.error) if record.error else answer(record), 80),
            )
        )
    return rows


def show_run(options: argparse.Namespace) -> int:
    """Show all that is kept of one run; return the exit code."""
    paths = stores_at(options.path)
    if not paths:
        raise CommandError(f"no runs are kept in {options.path.absolute()}")
    if len(paths) > 1:
        names = ", ".join(path.stem for path in paths)
        raise CommandError(
            f"{options.path.absolute()} has runs of several notebooks: name one of {names}"
        )
    with opened(paths[0]) as store:
        record = store.record(_find(store, options.ref).number)
    said = [
        ("status", status_words(record) + (f": {record.reason}" if record.reason else "")),
        ("agent", record.model or record.agent),
        ("started", moment(record.started_at or record.created_at)),
        ("tokens", tokens(record)),
        ("tags", ", ".join(f"{key}={value}" for key, value in record.tags.items())),
        ("id", record.run_id),
        ("events", f"{record.event_count} in {relative(paths[0])}"),
    ]
    say(safe(f"#{record.number} {record.name}"))
    for word, text in said:
        if text:
            say(safe(f"  {word:<8} {text}"))
    for notice in record.notices:
        say(safe(f"  ! {notice}"))
    for tool in record.tools:
        result = "" if tool.result is None else f" → {shown(tool.result)}"
        say(
            safe(
                f"  tool     {tool.name}({shown(tool.args) if tool.args is not None else ''}) {tool.status}{result}"
            )
        )
    parts = [
        ("prompt", record.prompt),
        ("text" if record.text else "output", answer(record)),
        ("error", (record.error.traceback or str(record.error)) if record.error else ""),
    ]
    for word, text in parts:
        if text:
            say(f"\n{word}:")
            say(safe("\n".join(f"  {line}" for line in text.strip().splitlines())))
    return 0


def stores_at(path: Path) -> list[Path]:
    """Return the store files that a notebook, a folder or a file stands for.

    Raises
    ------
    CommandError
        There is nothing at this path, or a file that is none of ours.
    """
    path = path.absolute()
    if path.is_dir():
        folder = path if path.name == schema.FOLDER else path / schema.FOLDER
        return [found for found in sorted(folder.glob(f"*{SUFFIX}")) if _is_store(found)]
    if path.suffix == SUFFIX and path.is_file():
        if not _is_store(path):
            raise CommandError(f"{path} is no session store of nbrun")
        return [path]
    if (store := store_path(path)).is_file() and _is_store(store):
        return [store]
    if not path.exists():
        raise CommandError(f"there is no {path}")
    return []


def _is_store(path: Path) -> bool:
    """Return whether the file's head says that nbrun made it: opening another one could change it.

    Source: the SQLite file format has the application's id at offset 68.
    """
    with path.open("rb") as file:
        head = file.read(72)
    return head[68:] == struct.pack(">I", schema.APPLICATION_ID)


@contextmanager
def opened(path: Path, *, is_told: bool = True) -> Iterator[SessionStore]:
    """Open a store to read it; where that is all that may be done with it, say so unless `is_told` is false.

    Raises
    ------
    CommandError
        It cannot be opened.
    """
    store = SessionStore([path], SystemClock())
    store.open_existing()
    if store.stranger is not None:
        if is_told:
            print(f"nbrun: only read: {store.stranger.problem}", file=sys.stderr)
        yield store.stranger
        return
    if store.path is None:
        raise CommandError(f"{path} cannot be read: {store.problem}")
    try:
        yield store
    finally:
        store.close(1.0)


def _find(store: SessionStore, ref: str) -> StoredRun:
    """Return the run that a reference names: `#3`, `3`, `last`, `-1`, a name or an id."""
    digits = "-1" if ref == "last" else ref.removeprefix("#")
    found: StoredRun | None
    # SQLite takes no greater number; then it may be a name.
    if digits.removeprefix("-").isdecimal() and len(digits) < 19:
        number = int(digits)
        newest = store.runs(-number) if number < 0 else []
        found = (
            store.run(number) if number >= 0 else (newest[-1] if len(newest) == -number else None)
        )
    else:
        found = store.find(ref)
    if found is None:
        raise RunNotFound(f"no run '{ref}' in {store.path}; nbrun list shows what there is")
    return found
