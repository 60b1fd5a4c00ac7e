"""`nbrun list` and `nbrun show`: the stored runs of notebooks, without their kernels."""

from __future__ import annotations

import contextlib
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from nbrun.cli.output import CommandError, relative, say, say_table
from nbrun.core import (
    Action,
    Fix,
    RunNotFound,
    RunStatus,
    SystemClock,
    UserError,
    counted,
    events as ev,
    open_regular,
    printable,
)
from nbrun.core.commands import number_of, set_number
from nbrun.render.set_view import ErrorGroup, SetView, ended_as
from nbrun.render.static_card import set_text, whole_text
from nbrun.render.words import trust_words, with_followups
from nbrun.store import (
    FOLDER,
    SUFFIX,
    Query,
    SessionStore,
    StoredRun,
    is_open_here,
    is_set_aside,
    read_query,
    schema,
    sets,
    store_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import SimpleNamespace


SET_ASIDE = "a damaged store, set aside; recover its runs with .recover of the sqlite3 tool"
NO_STORE = "damaged, or not an nbrun store; the next run saved here sets it aside"

_MAX_FRAMES = 10_000
"""How many frames of a WAL are looked at: the file's first page is among the first that are ever written."""
_ID = struct.pack(">I", schema.APPLICATION_ID)


def list_runs(options: SimpleNamespace) -> int:
    """List the runs of every store at the path; return the exit code."""
    query = read_query(
        SystemClock().now(), status=options.status, name=options.name, agent=options.agent, tag=options.tag,
        since=options.since, text=options.text, limit=options.limit + 1, before=options.before, in_set=options.in_set,
    )  # fmt: skip
    paths, odd = stores_at(options.path), odd_files_at(options.path)
    if not paths and not odd:
        say(f"No runs in {options.path.absolute()}.")
    unread = 0
    for path in paths:
        try:
            with opened(path) as store:
                runs = store.select(query)
        except UserError as error:  # the others can be read all the same
            print(f"nbrun: {error}", file=sys.stderr)
            unread += 1
            continue
        none = "no runs" if query.is_unfiltered and query.before is None else "no matching runs"
        say(f"{relative(path)}" if runs else f"{relative(path)}: {none}")
        if runs:
            say_table(run.record for run in runs[: options.limit])
        if len(runs) > options.limit:
            last = runs[options.limit - 1].number
            say(f"There are more: continue with --before {last}, or raise --limit ({options.limit}).")
    for file, words in odd:
        say(f"{relative(file)}: {words}")
    return 1 if unread else 0


def show_run(options: SimpleNamespace) -> int:
    """Show all that is kept of one run, or a set and its counts; return the exit code."""
    path = store_at(options.path)
    with opened(path) as store:
        if (found := find_set(store, options.ref)) is not None:
            say(set_text(_view_of(store, found)))
            return 0
        number = find(store, options.ref).number
        record = with_followups(store.record(number), store.followups(number))
    say(whole_text(record, relative(path)))
    return 0


def find_set(store: SessionStore, ref: str) -> sets.StoredSet | None:
    """Return the set that a reference names: `set-12`, or the id that it was started with."""
    is_numbered = ref.lower().startswith(("set-", "set #"))
    with contextlib.suppress(ValueError):
        known: int | str = set_number(ref) if is_numbered else ref
        if not is_numbered and number_of(ref) is not None:
            return None
        found = store.ask(lambda db: sets.read_sets(db, known), list[sets.StoredSet]())
        return found[0] if found else None
    return None


def _view_of(store: SessionStore, row: sets.StoredSet) -> SetView:
    newest = store.ask(lambda db: sets.read_newest(db, row.number), list[sets.Newest]())
    newest = [one for one in newest if one.position < row.size]
    counts = Counter(one.status for one in newest)
    counts[RunStatus.QUEUED if row.stopped is None else RunStatus.CANCELLED] += row.size - len(newest)
    errors = Counter(one.error for one in newest if one.status is RunStatus.FAILED)
    numbers = {error: [one.number for one in newest if one.error == error][:3] for error, _ in errors.most_common(20)}
    is_running = row.ended_at is None and row.is_here
    return SetView(
        number=row.number, name=str(row.header.get("name", "")), agent=str(row.header.get("agent", "")),
        status="running" if is_running else "lost" if row.ended_at is None else ended_as(row.stopped),
        stopped=row.stopped, began_at=row.created_at, ended_at=row.ended_at, size=row.size, is_whole=row.is_whole,
        counts=counts, usage=store.ask(lambda db: sets.read_usage(db, row.number), ev.Usage()),
        errors=[ErrorGroup(count, error, numbers.get(error, ())) for error, count in errors.most_common()],
    )  # fmt: skip


def trust_runs(options: SimpleNamespace) -> int:
    """Show what runs name that may be anybody's, and sign them if the user says so; return the exit code."""
    if options.all and options.ref is not None:  # it can only be the path
        options.path = Path(options.ref)
    elif not options.all and options.ref is None:
        raise CommandError("Name a run, or trust all with --all: nbrun trust last")
    with opened(store_at(options.path)) as store:
        found = store.unsigned(None if options.all else [find(store, options.ref).number])
        if not found:
            say("Your nbrun has signed them: nothing to do.")
            return 0
        text, question = trust_words([(one.number, one.created, one.checkpoint is not None) for one in found])
        say(text)
        if sys.stdin.isatty():  # what was typed before was meant for something else
            with contextlib.suppress(ImportError):  # on Windows
                import termios

                termios.tcflush(sys.stdin, termios.TCIFLUSH)
        try:
            is_trusted = input(question).strip().lower() in ("y", "yes")
        except EOFError:
            raise CommandError("nobody has answered; nothing was changed") from None
        if is_trusted:
            store.trust(found)
        say(f"Trusted: {counted(len(found), 'run')}." if is_trusted else "Nothing was changed.")
    return 0


def stores_at(path: Path) -> list[Path]:
    """Return the store files of a notebook, a folder, or a store file itself.

    Raises `CommandError` if there is nothing at this path, or a file that isn't a store.
    """
    path = path.absolute()
    if path.is_dir():
        folder = path if path.name == FOLDER else path / FOLDER
        return [found for found in sorted(folder.glob(f"*{SUFFIX}")) if _is_store(found) and not is_set_aside(found)]
    if path.suffix == SUFFIX and path.is_file():
        if not _is_store(path):
            raise CommandError(f"{path} isn't an nbrun session store")
        return [path]
    if (store := store_of(path, SystemClock())).is_file() and _is_store(store):
        return [store]
    if not path.exists():
        raise CommandError(f"{path} not found")
    return []


def odd_files_at(path: Path) -> list[tuple[Path, str]]:
    """Return the files of a folder that are named like stores but aren't, with what they are."""
    path = path.absolute()
    if not path.is_dir():
        return []
    folder = path if path.name == FOLDER else path / FOLDER
    found = sorted(folder.glob(f"*{SUFFIX}"))
    aside = [(file, SET_ASIDE) for file in found if is_set_aside(file)]
    return aside + [(file, NO_STORE) for file in found if not is_set_aside(file) and not _is_store(file)]


def store_at(path: Path) -> Path:
    """Return the one store of a notebook, a folder, or a store file itself.

    Raises `CommandError` if it finds none, or several.
    """
    paths = stores_at(path)
    if not paths:
        raise CommandError(f"no runs in {path.absolute()}")
    if len(paths) > 1:
        names = ", ".join(found.stem for found in paths)
        raise CommandError(f"{path.absolute()} has runs of several notebooks; name one of: {names}")
    return paths[0]


def _is_store(path: Path) -> bool:
    """Return whether nbrun made this file, by its header: opening another program's could change it.

    Source: the SQLite file format has the application's id at offset 68.
    """
    if is_open_here(path):  # closing it would drop this process's locks
        return True
    try:
        with open_regular(path) as file:
            head = file.read(72)
    except PermissionError:
        raise
    except OSError:  # a folder, say
        return False
    return head[68:] == _ID or _is_store_soon(path.with_name(f"{path.name}-wal"))


def _is_store_soon(wal: Path) -> bool:
    """Return whether the file's header is still in its WAL, as while the first kernel that uses it runs.

    Source: the SQLite file format: after 32 bytes, of which four at 8 are the page's size, a log has frames of
    24 bytes, the first four of which are the page's number, and a page.
    """
    try:
        with open_regular(wal) as file:
            (size,) = struct.unpack(">8xI20x", file.read(32))
            for _ in range(_MAX_FRAMES if size else 0):
                (number,) = struct.unpack_from(">I", file.read(24))
                if number != 1:
                    file.seek(size, 1)
                elif (page := file.read(size))[68:72] == _ID:
                    return True
                elif len(page) < size:
                    return False
    except (OSError, struct.error):
        pass  # no WAL, or not yet
    return False


@contextlib.contextmanager
def opened(path: Path, *, reports: bool = True) -> Iterator[SessionStore]:
    """Open a store to read it; report a read-only file unless `reports` is false.

    Raises `CommandError` if it cannot be opened.
    """
    store = SessionStore([path], SystemClock())
    try:
        store.open_existing()
        if store.read_only is not None:
            if reports:
                print(printable(f"nbrun: read-only: {store.read_only.problem}"), file=sys.stderr)
            yield store.read_only
            return
        if store.path is None:
            raise CommandError(f"{path} can't be read: {store.problem or store.fault}")
        yield store
    finally:
        store.close(1.0)


def find(store: SessionStore, ref: str) -> StoredRun:
    """Return the run that a reference names: `#3`, `3`, `last`, `-1`, a name or an id."""
    number = number_of(ref)
    if number is None:
        found = store.find(ref)
    elif number < 0:
        newest = store.select(Query(is_top_level=True, limit=-number))
        found = newest[-1] if len(newest) == -number else None
    else:
        found = store.run(number)
    if found is None:
        path = "" if store.path is None else relative(store.path)
        raise RunNotFound(f"No run '{ref}' found in {path}", fixes=[Fix(Action.LIST, path=path)])
    return found
