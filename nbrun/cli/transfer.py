"""`nbrun export` and `nbrun import`: stored runs to files, and back."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nbrun.cli.output import CommandError, relative, say
from nbrun.cli.runs import find, opened, store_at, stores_at
from nbrun.core import (
    BadRecording,
    Exported,
    IdConflict,
    RunEvent,
    StoreError,
    SystemClock,
    printable,
    recording,
    shown,
)
from nbrun.render import export
from nbrun.store import (
    NO_NOTEBOOK,
    SUFFIX,
    SessionStore,
    open_for_writing,
    prepare_folder,
    store_of,
    store_path,
    whole_run,
)
from nbrun.store.importing import import_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import SimpleNamespace

    Recorded = tuple[recording.Header, list[RunEvent]]


def export_runs(options: SimpleNamespace) -> int:
    """Write one run, or all of a store, into a file or to the standard output; return the exit code."""
    if options.all and options.ref is not None:  # it can only be the path
        options.path = Path(options.ref)
    elif not options.all and options.ref is None:
        raise CommandError("Name a run, or export all with --all: nbrun export last")
    form = export.read_form(options.form, options.out)
    path = store_at(options.path)
    with opened(path) as store:
        numbers = _all_numbers(store) if options.all else [find(store, options.ref).number]
        if not numbers:
            raise CommandError(f"{path} has no runs")
        runs = (_exported(store, number) for number in numbers)
        if options.out is not None:
            export.write(options.out, form, runs)
            words = "1 run" if len(numbers) == 1 else f"{len(numbers):,} runs"
            say(f"{words} of {relative(path)} written to {options.out}")
            return 0
        is_terminal = sys.stdout.isatty()
        for part in export.dump(form, runs):
            if is_terminal:  # it would obey what is no harm in a file
                sys.stdout.write(printable(part.decode()))
            else:
                sys.stdout.buffer.write(part)
    return 0


def _all_numbers(store: SessionStore) -> list[int]:
    """Return the numbers of all runs, the oldest first."""
    numbers: list[int] = []
    while page := store.runs(export.PAGE, numbers[-1] if numbers else None):
        numbers += [run.number for run in page]
    return numbers[::-1]


def _exported(store: SessionStore, number: int) -> Exported:
    read = lambda after, limit: store.events(number, after, limit)  # noqa: E731 - two words
    return whole_run(store.record(number), export.paged(read), store.artifacts(number))


def import_runs(options: SimpleNamespace) -> int:
    """Import the runs of a file into a store, or none if the file is invalid; return the exit code."""
    source: Path = options.file
    if not source.exists():
        raise CommandError(f"{source} can't be read: {os.strerror(errno.ENOENT)}")
    path = _store_for(options.path)
    count = sum(1 for _ in _recorded(source))  # all are looked at before any is taken
    clock = SystemClock()
    try:
        prepare_folder(path.parent)
        connection = open_for_writing(path, clock.now())
    except (StoreError, sqlite3.Error) as error:
        raise CommandError(f"{path} can't be written: {error}") from None
    taken = 0
    try:
        for header, events in _recorded(source):
            taken += _import(connection, header, events, str(source.absolute()), clock.now())
    except sqlite3.Error as error:
        raise CommandError(f"{path} can't be written: {error}; try again") from None
    finally:
        connection.close()
    words = "1 run" if taken == 1 else f"{taken:,} runs"
    rest = f", {count - taken:,} skipped" if taken < count else ""
    say(f"{words} of {source} imported into {relative(path)}{rest}")
    return 0


def _import(
    connection: sqlite3.Connection, header: recording.Header, events: list[RunEvent], label: str, now: float
) -> bool:
    """Import one run, and print the result; return whether it was imported."""
    try:
        imported = import_run(connection, events, label, now)
    except IdConflict as error:
        say(f"  {shown(header.name or header.run_id)}: {error}")
        return False
    if not imported.is_new:
        say(f"  #{imported.number} {shown(header.name)}: already imported")
        return False
    note = ", marked as lost: it was in progress when it was exported" if imported.was_live else ""
    say(f"  #{imported.number} {shown(header.name)}: {len(events):,} events{note}")
    return True


def _recorded(path: Path) -> Iterator[Recorded]:
    """Yield the runs of a file, in either form; raise `BadRecording`, which names the line, if it isn't one."""
    try:
        with path.open("rb") as file:
            if file.read(1_000).lstrip().startswith(b"["):
                file.seek(0)
                yield from recording.load_document(file.read(recording.MAX_RUN + 1))
                return
            file.seek(0)
            yield from recording.load_all(iter(lambda: file.readline(recording.MAX_LINE + 1), b""))
    except OSError as error:
        raise BadRecording(f"{path} can't be read: {error.strerror or error}") from None
    except BadRecording as error:
        raise BadRecording(f"{path}: {error}") from None


def _store_for(path: Path) -> Path:
    """Return the store file that runs are imported into, which need not exist yet."""
    path = path.absolute()
    if path.is_dir():
        found = stores_at(path)
        return store_at(path) if found else store_path(path / NO_NOTEBOOK)
    if path.suffix == SUFFIX:
        return stores_at(path)[0] if path.exists() else path
    if not path.parent.is_dir():
        raise CommandError(f"folder {path.parent} not found")
    return store_of(path, SystemClock())
