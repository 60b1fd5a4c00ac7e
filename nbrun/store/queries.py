"""Reading a session store: runs newest first, events by seq. No stored code is ever run."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, TypeVar

import msgspec

from nbrun.core import (
    LIVE,
    Artifact,
    ArtifactFiles,
    Clock,
    JournalFiles,
    RunRecord,
    RunStatus,
    StoreReadOnly,
    events as ev,
    fold,
)
from nbrun.core.journal import LOST, STEP_BEGUN, Entry, journal_name, read_entries
from nbrun.store import liveness, payloads, schema, validation
from nbrun.store.connection import MAX_VALUE_BYTES, refuse_links, set_limits
from nbrun.store.rows import ORIGINS
from nbrun.store.signing import Signer, is_same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from nbrun.store.filters import Query

T = TypeVar("T")

_log = logging.getLogger("nbrun")

MAX_REPLAYS = 1_000  # how many replays are skipped when a run is looked up by name
PATIENCE_S = 0.02  # how long looking up references for completion may take; then there are none
MAX_LINE = 1_000
"""Runs whose journals are read for one: a planted file may lead in a circle."""
PAGE = 200  # runs that a search reads at once

_STEPS = 1_000  # of SQLite's instructions, between two looks at the clock
_decoder = msgspec.msgpack.Decoder(RunRecord)

_GREATEST = 2**63 - 1  # of SQLite's numbers
_COLUMNS = (
    # By the type first: the length of a text is not known without reading it.
    f"SELECT r.number, CASE WHEN typeof(r.record) = 'blob' AND length(r.record) <= {schema.MAX_RECORD_BYTES}"  # noqa: S608 - ours
    " THEN r.record END, s.session_id"
    " FROM runs r JOIN sessions s ON s.key = r.session"
)
_EVENTS = (
    "SELECT seq, count, ts, attempt, parent, type,"
    " CASE WHEN typeof(data) = 'blob' AND length(data) <= ?1 THEN data END FROM events"
)


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as the store lists it; `record` is brief."""

    number: int
    record: RunRecord


def read_events(
    connection: sqlite3.Connection, number: int, after: int = -1, limit: int | None = None
) -> list[ev.RunEvent]:
    """Return the events of run `number` that come after seq `after`, by seq, at most `limit`.

    A page of more than `validation.PAGE_BYTES` ends early, with a whole row.
    """
    if limit is not None and limit <= 0:
        return []
    return list(islice(_events(connection, number, after, validation.PAGE_BYTES), limit))


def _events(connection: sqlite3.Connection, number: int, after: int, most_bytes: float = inf) -> Iterator[ev.RunEvent]:
    """Yield the events of a run that come after a seq: each once, by seq."""
    found = connection.execute("SELECT run_id FROM runs WHERE number = ?", (number,)).fetchone()
    if found is None:
        return
    log = _Log(validation.text(found[0]), after, most_bytes)
    # A row of deltas begins before its last event does: look as far back as one can be long.
    first = min(after, validation.MAX_SEQ) - payloads.PER_ROW
    try:
        yield from log.events(
            connection.execute(f"{_EVENTS} WHERE run = ?2 AND seq > ?3 ORDER BY seq", (MAX_VALUE_BYTES, number, first))
        )
    except sqlite3.DataError as error:
        _log.warning("run #%s: a row of its log cannot be read (%s)", number, error)
        yield from log.events(_single_rows(connection, number, first))


class _Log:
    """Reads one log; knows what it has already returned."""

    def __init__(self, run_id: str, after: int, most_bytes: float) -> None:
        self._run_id = run_id
        self._last = after
        self._left = most_bytes

    def events(self, rows: Iterable[validation.Row]) -> Iterator[ev.RunEvent]:
        """Yield the events of these rows that were not returned yet."""
        for row in rows:
            if not validation.is_sound(row):
                row = validation.repaired(row)
            seq, count, ts, attempt, parent, kind, blob = row
            if seq + count - 1 <= self._last or self._left < 0:
                continue
            for offset, (at, data) in enumerate(_unpack(kind, blob, ts, count)):
                if seq + offset > self._last:
                    self._last = seq + offset
                    ts_s = (at if 0 <= at <= validation.LATEST else ts) / 1_000_000
                    yield ev.RunEvent(self._last, ts_s, self._run_id, attempt, data, parent)
            self._left -= len(blob) if blob is not None else 0


def _has_sets(connection: sqlite3.Connection) -> bool:
    """Return whether runs may belong to sets: a file that isn't written to may be of an older version."""
    return bool(connection.execute("SELECT 1 FROM pragma_table_info('runs') WHERE name = 'in_set'").fetchone())


def _single_rows(connection: sqlite3.Connection, number: int, after: int) -> Iterator[validation.Row]:
    """Yield the rows of a run's log, without those in which a text is longer than the limit."""
    keys = connection.execute(
        "SELECT key FROM events WHERE run = ? AND seq > ? ORDER BY seq", (number, after)
    ).fetchall()
    for (key,) in keys:
        with contextlib.suppress(sqlite3.DataError):
            yield from connection.execute(f"{_EVENTS} WHERE key = ?2", (MAX_VALUE_BYTES, key))


def _unpack(kind: str, blob: bytes | None, ts: int, count: int) -> list[tuple[int, ev.EventData]]:
    if kind in ev.DELTA_TYPES:
        try:
            return payloads.decode(kind, blob or b"", ts)
        except (msgspec.DecodeError, TypeError, ValueError):
            # Damaged: its numbers stay taken, so that there is no gap; but no more than a row can hold.
            count = max(1, min(count, payloads.PER_ROW))
            return [(ts, validation.damaged(kind, blob))] * count
    return [(ts, validation.data(kind, blob))]


def read_record(connection: sqlite3.Connection, number: int) -> RunRecord:
    """Return the whole record of a run: the fold of its log, or its brief record if the log is damaged."""
    events = _events(connection, number, -1)
    (rows,) = connection.execute("SELECT count(*) FROM events WHERE run = ?", (number,)).fetchone()
    try:
        record = validation.sound(fold(events if rows <= validation.LOG_OPEN else validation.foldable(events)))
    except (TypeError, ValueError):
        record = RunRecord()
    if record.run_id:  # of the first event
        return record
    stored = read_run(connection, number)
    if stored is None:
        return record
    notice = "the log is damaged; this is what was last saved in the list of runs"
    return msgspec.structs.replace(stored.record, is_brief=False, notices=(notice,))


def read_runs(
    connection: sqlite3.Connection, limit: int | None = None, before: int | None = None, query: Query | None = None
) -> list[StoredRun]:
    """Return at most `limit` runs below number `before`, newest first, that fit a `query` as far as columns say.

    Somebody may have changed the columns: check the records of what is returned. A run without an agent was written
    by an older version, which may still be running.
    """
    last, count = _GREATEST if before is None else before - 1, -1 if limit is None else limit
    values: list[object] = [last]
    where = "r.number <= ?"
    if query is not None:
        for condition, value in (
            ("r.status = ?", query.status),
            ("r.name = ?", query.name),
            ("r.created_at >= ?", None if query.since is None else round(query.since * 1_000_000)),
            ("(? IN (r.agent, r.model) OR r.agent IS NULL)", query.agent),
        ):
            if value is not None:
                where, values = f"{where} AND {condition}", [*values, value]
        if query.is_top_level:
            where += " AND r.parent IS NULL"
        if query.in_set is not None and _has_sets(connection):
            where += " AND r.in_set IS NULL" if not query.in_set else " AND r.in_set = ? AND r.position IS NOT NULL"
            values += [query.in_set] if query.in_set else []
        if query.is_unknown or query.status in LIVE:
            where += f" AND r.status IN ({schema.LIVE_STATUSES})"
    try:
        rows = connection.execute(f"{_COLUMNS} WHERE {where} ORDER BY r.number DESC LIMIT ?", [*values, count])
        return [_stored(connection, row) for row in rows]
    except sqlite3.DataError:  # some text is longer than the limit: leave that run out
        numbers = connection.execute(
            "SELECT number FROM runs WHERE number <= ? ORDER BY number DESC LIMIT ?", (last, count)
        ).fetchall()
        found = [read_run(connection, number) for (number,) in numbers]
        return [stored for stored in found if stored is not None]


def count_runs(connection: sqlite3.Connection) -> int:
    """Return how many runs there are."""
    (count,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    return int(count)


def read_run(connection: sqlite3.Connection, number: int) -> StoredRun | None:
    """Return the run with this number."""
    return _first(connection, "WHERE r.number = ?", number)


def find_id(connection: sqlite3.Connection, run_id: str, session_id: str | None = None) -> StoredRun | None:
    """Return the newest run with exactly this id, of that session if one is given."""
    return _first(
        connection,
        "WHERE r.run_id = ?1 AND (?2 IS NULL OR s.session_id = ?2) ORDER BY r.number DESC LIMIT 1",
        run_id,
        session_id,
    )


def find_run(connection: sqlite3.Connection, text: str) -> StoredRun | None:
    """Return the newest run with this id, else the newest with this name, preferably not a replay."""
    found = _first(connection, "WHERE r.run_id = ? ORDER BY r.number DESC LIMIT 1", text)
    if found is not None:
        return found
    newest, below = None, _GREATEST
    for _ in range(MAX_REPLAYS):
        found = _first(connection, "WHERE r.name = ? AND r.number < ? ORDER BY r.number DESC LIMIT 1", text, below)
        if found is None or not found.record.is_replay:
            return found or newest
        newest, below = newest or found, found.number
    return newest


def _first(connection: sqlite3.Connection, which: str, *values: object) -> StoredRun | None:
    """Return the first run that fits; None if it cannot be read."""
    try:
        row = connection.execute(f"{_COLUMNS} {which}", values).fetchone()
    except sqlite3.DataError as error:
        _log.warning("a run cannot be read (%s)", error)
        return None
    return None if row is None else _stored(connection, row)


def _stored(connection: sqlite3.Connection, row: tuple[int, bytes | None, str]) -> StoredRun:
    number, blob, session_id = row
    try:
        record = validation.sound_brief(_decoder.decode(blob or b""), number, session_id)
    except (RecursionError, TypeError, ValueError):  # the log may be whole even if this copy is not
        record = _from_columns(connection, number)
    return StoredRun(number, record)


def _from_columns(connection: sqlite3.Connection, number: int) -> RunRecord:
    """Return what the columns say of a run whose brief record cannot be read."""
    (run_id, session_id, name, status, created_at, parent, agent, model, ended_at) = connection.execute(
        "SELECT r.run_id, s.session_id, r.name, r.status, r.created_at, r.parent, r.agent, r.model, r.ended_at"
        " FROM runs r JOIN sessions s ON s.key = r.session WHERE r.number = ?",
        (number,),
    ).fetchone()
    is_known = status in RunStatus.__members__.values()
    at = validation.moment(created_at, 0) if isinstance(created_at, int) else 0.0
    return RunRecord(
        run_id=validation.text(run_id), session_id=validation.text(session_id), name=validation.text(name),
        number=number, status=RunStatus(status) if is_known else RunStatus.QUEUED, created_at=at, last_event_at=at,
        parent_id=None if parent is None else validation.text(parent), agent=validation.text(agent or ""),
        model=None if model is None else validation.text(model),
        ended_at=validation.moment(ended_at, 0) if isinstance(ended_at, int) else None,
        is_brief=True,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunReference:
    """A stored run by the names that refer to it."""

    number: int
    run_id: str
    name: str
    status: RunStatus
    is_child: bool = False

    def is_named_in(self, words: Sequence[str]) -> bool:
        """Return whether one of the words is its number, its name or its id."""
        return not {f"#{self.number}", str(self.number), self.name, self.run_id}.isdisjoint(words)


def newest_references(path: Path, limit: int, clock: Clock) -> list[RunReference]:
    """Return the newest runs of a file, newest first; none if it is missing, locked, damaged or slow."""
    # On its own connection, because the store's may be busy reading a long log.
    try:
        refuse_links(path)
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE_S)) as connection:
            return _newest(connection, limit, clock)
    except (OSError, StoreReadOnly, sqlite3.Error):
        return []


def _newest(connection: sqlite3.Connection, limit: int, clock: Clock) -> list[RunReference]:
    until = clock.monotonic() + PATIENCE_S
    set_limits(connection)
    # Somebody else may have made the file: `runs` may be a view that never ends, and a name of any length.
    connection.set_progress_handler(lambda: clock.monotonic() > until, _STEPS)
    rows = connection.execute(
        "SELECT number, substr(run_id, 1, 200), substr(name, 1, 200), status, parent IS NOT NULL"
        " FROM runs ORDER BY number DESC LIMIT ?",
        (limit,),
    ).fetchall()
    statuses = {str(status): status for status in RunStatus}
    return [
        RunReference(number, run_id, name, statuses[status], bool(is_child))
        for number, run_id, name, status, is_child in rows
        if isinstance(number, int) and isinstance(run_id, str) and isinstance(name, str) and status in statuses
    ]


def read_artifacts(connection: sqlite3.Connection, number: int, files: ArtifactFiles) -> list[Artifact]:
    """Return the artifacts of a run, oldest first."""
    rows = connection.execute(
        "SELECT id, name, media_type, size, sha256, made_at FROM artifacts WHERE run = ? ORDER BY key", (number,)
    )
    text = validation.text
    return [
        Artifact(text(id_), text(name), text(media_type), size, sha256, made_at / 1_000_000, files)
        for id_, name, media_type, size, sha256, made_at in rows
        if type(size) is type(made_at) is int and type(sha256) is str  # as we write them
        if size >= 0 and 0 <= made_at <= validation.LATEST
    ]


def read_created(connection: sqlite3.Connection, number: int) -> tuple[str, ev.RunCreated, object] | None:
    """Return a run's id, what it was started with, and what stands in the place of its signature."""
    row = connection.execute("SELECT run_id, signature FROM runs WHERE number = ?", (number,)).fetchone()
    first = read_events(connection, number, limit=1)
    if row is None or not first or not isinstance(first[0].data, ev.RunCreated):
        return None
    return validation.text(row[0]), first[0].data, row[1]


def read_signed(connection: sqlite3.Connection, number: int, signer: Signer) -> ev.RunCreated | None:
    """Return what a run was started with, if its signature is this user's."""
    found = read_created(connection, number)
    if found is None or not found[2]:
        return None
    run_id, created, signature = found
    return created if is_same(signature, signer.of_run(run_id, created)) else None


def read_checkpoint(connection: sqlite3.Connection, number: int, signer: Signer) -> bytes | None:
    """Return what a run can be resumed from: its own checkpoint, else that of the run it was resumed from.

    Only if this user's nbrun wrote them all.
    """
    lines = connection.execute(f"{ORIGINS} SELECT run FROM line ORDER BY steps", (number,)).fetchall()  # noqa: S608
    run_id = None  # of the origin that the run before names
    for (run,) in lines:
        created = read_signed(connection, run, signer)
        row = connection.execute(
            "SELECT r.run_id, c.seq, c.state, c.signature FROM runs r LEFT JOIN checkpoints c ON c.run = r.number"
            " WHERE r.number = ?",
            (run,),
        ).fetchone()
        if created is None or run_id not in (None, row[0]):
            return None
        run_id, seq, state, signature = row
        if state is not None:
            if not isinstance(state, bytes):  # of a number, bytes() would make that many
                return None
            expected = signer.of_checkpoint(created.session_id, run_id, seq, state)
            return state if is_same(signature, expected) else None
        if created.origin is None:
            return None
        run_id = created.origin.run_id
    return None


def read_journal(
    connection: sqlite3.Connection, number: int, signer: Signer, files: JournalFiles, since_checkpoint: bool
) -> list[Entry]:
    """Return what a run was answered, and what was there to answer it, oldest first.

    That is the journal of the run and of those that it resumes, or answers from, as far as this user's nbrun wrote
    them; with `since_checkpoint`, without what the checkpoint that it can be resumed from knows already. Where a file
    is damaged, or has fewer steps than the run's log, there is an entry that says so.
    """
    parts: list[list[Entry]] = []
    run: int | None = number
    run_id = None  # of the origin that the run before names
    while run is not None and len(parts) < MAX_LINE:
        created = read_signed(connection, run, signer)
        row = connection.execute(
            "SELECT r.run_id, c.ts FROM runs r LEFT JOIN checkpoints c ON c.run = r.number WHERE r.number = ?", (run,)
        ).fetchone()
        if created is None or run_id not in (None, row[0]):
            break
        name, key = journal_name(created.session_id, row[0]), signer.journal_key(created.session_id, row[0])
        entries = read_entries(files.read(name), key)
        begun = sum(entry.kind == STEP_BEGUN for entry in entries)
        if not any(entry.kind == LOST for entry in entries) and begun < _count_steps(connection, run):
            entries.append(Entry(LOST, b"", 0.0))
        if since_checkpoint and isinstance(row[1], int):
            parts.append([entry for entry in entries if entry.kind == LOST or entry.at * 1_000_000 >= row[1]])
            break
        parts.append(entries)
        origin, run = created.origin, None
        if origin is not None and (origin.kind == ev.RESUME or created.options.get(ev.REUSE)):
            run_id, run = origin.run_id, origin.number
    return [entry for part in reversed(parts) for entry in part]


def _count_steps(connection: sqlite3.Connection, number: int) -> int:
    """Return how many steps a run has called, by its log."""
    rows = connection.execute(
        "SELECT CASE WHEN typeof(data) = 'blob' AND length(data) <= ?1 THEN data END FROM events"
        " WHERE run = ?2 AND type = ?3", (MAX_VALUE_BYTES, number, ev.ToolStarted.TYPE),
    )  # fmt: skip
    called = (validation.data(ev.ToolStarted.TYPE, blob) for (blob,) in rows)
    return sum(isinstance(tool, ev.ToolStarted) and tool.kind == ev.STEP for tool in called)


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A run that this user's nbrun has not signed, or whose checkpoint it has not: as it was read.

    `signature` is what would make it the user's, for just what was read; `checkpoint` is a seq with its signature.
    """

    number: int
    created: ev.RunCreated
    signature: bytes
    checkpoint: tuple[int, bytes] | None


def read_unsigned(connection: sqlite3.Connection, number: int, signer: Signer) -> Unsigned | None:
    """Return a run if it is not signed; None if it is, or cannot be read."""
    found = read_created(connection, number)
    if found is None:
        return None
    run_id, created, known = found
    signature, checkpoint, is_signed = signer.of_run(run_id, created), None, True
    row = connection.execute("SELECT seq, state, signature FROM checkpoints WHERE run = ?", (number,)).fetchone()
    if row is not None and isinstance(row[1], bytes):
        checkpoint = (row[0], signer.of_checkpoint(created.session_id, run_id, row[0], row[1]))
        is_signed = is_same(row[2], checkpoint[1])
    return None if is_signed and is_same(known, signature) else Unsigned(number, created, signature, checkpoint)


def read_followups(connection: sqlite3.Connection, number: int) -> list[tuple[int, str]]:
    """Return the number and the kind of each run that comes from this one, oldest first."""
    rows = connection.execute("SELECT run, kind FROM origins WHERE origin = ? ORDER BY run", (number,))
    return [(int(run), str(kind)) for run, kind in rows]


class StoredRuns(ABC):
    """Answers questions about the runs in a file.

    Every method may raise `StoreUnavailable`: there are runs, but they cannot be read now.

    Threads: any method, from any thread, as far as `_reading()` allows.
    """

    _clock: Clock
    signer: Signer

    @abstractmethod
    def _reading(self) -> AbstractContextManager[sqlite3.Connection | None]:
        """Give a connection to read with; None if there is nothing to read."""

    @property
    @abstractmethod
    def files(self) -> ArtifactFiles:
        """Where artifacts are kept."""

    @property
    @abstractmethod
    def journals(self) -> JournalFiles:
        """Where the journals of runs are kept."""

    def _ask(self, question: Callable[[sqlite3.Connection], T], nothing: T) -> T:
        with self._reading() as connection:
            return nothing if connection is None else question(connection)

    def runs(self, limit: int | None = None, before: int | None = None) -> list[StoredRun]:
        """Return stored runs, newest first, those below number `before`, at most `limit`; records are brief."""
        return self._page(None, before, limit)

    def _page(self, query: Query | None, before: int | None, size: int | None) -> list[StoredRun]:
        return self._ask(lambda db: [self._checked(db, run) for run in read_runs(db, size, before, query)], [])

    def select(self, query: Query, skip: Callable[[StoredRun], bool] = lambda _: False) -> list[StoredRun]:
        """Return stored runs that fit the query, newest first, without those that `skip` rejects.

        It reads page by page, so that others can read in between.
        """
        found: list[StoredRun] = []
        before, limit = query.before, query.limit
        while limit is None or len(found) < limit:
            is_short = query.is_of_columns and limit is not None
            size = min(limit - len(found), PAGE) if is_short and limit is not None else PAGE
            page = self._page(query, before, size)
            for stored in page:
                if query.fits_within(stored.record) and not skip(stored) and self._finds(query, stored):
                    found.append(stored)
                    if len(found) == limit:
                        break
            if len(page) < size:
                break
            before = page[-1].number
        return found

    def _finds(self, query: Query, stored: StoredRun) -> bool:
        is_found = query.finds(stored.record)
        return bool(query.finds(self.record(stored.number)) if is_found is None else is_found)

    def count(self) -> int:
        """Return how many runs are stored."""
        return self._ask(count_runs, 0)

    def run(self, number: int) -> StoredRun | None:
        """Return the run with this number."""
        return self._one(lambda db: read_run(db, number))

    def find(self, text: str) -> StoredRun | None:
        """Return the newest run with this id or name."""
        return self._one(lambda db: find_run(db, text))

    def find_id(self, run_id: str, session_id: str | None = None) -> StoredRun | None:
        """Return the newest run with exactly this id, of that session if one is given."""
        return self._one(lambda db: find_id(db, run_id, session_id))

    def _one(self, question: Callable[[sqlite3.Connection], StoredRun | None]) -> StoredRun | None:
        with self._reading() as connection:
            found = None if connection is None else question(connection)
            return found if found is None or connection is None else self._checked(connection, found)

    def record(self, number: int) -> RunRecord:
        """Return the whole record of a run."""
        with self._reading() as connection:
            if connection is None:
                return RunRecord(number=number)
            record = read_record(connection, number)
            unseen = self._unseen(connection, number, record)
            is_unsigned = read_signed(connection, number, self.signer) is None
            return msgspec.structs.replace(record, number=number, unseen=unseen, is_unsigned=is_unsigned)

    def _checked(self, connection: sqlite3.Connection, stored: StoredRun) -> StoredRun:
        """Return a run; one that looks live says whether its kernel can be seen."""
        if not stored.record.is_live:
            return stored
        unseen = self._unseen(connection, stored.number, stored.record)
        return replace(stored, record=msgspec.structs.replace(stored.record, unseen=unseen))

    def _unseen(self, connection: sqlite3.Connection, number: int, record: RunRecord) -> str:
        """Return why the state of a live-looking run is unknown here; empty for all others."""
        kernel = liveness.kernel_of(connection, number) if record.is_live else None
        return "" if kernel is None else kernel.why_unknown(self._clock.now())

    def events(self, number: int, after: int = -1, limit: int | None = None) -> list[ev.RunEvent]:
        """Return the events of a run that come after seq `after`, by seq, at most `limit`."""
        return self._ask(lambda db: read_events(db, number, after, limit), [])

    def signed(self, number: int) -> ev.RunCreated | None:
        """Return what a run was started with; None if nothing shows that this user's nbrun wrote it."""
        return self._ask(lambda db: read_signed(db, number, self.signer), None)

    def unsigned(self, numbers: Sequence[int] | None = None) -> list[Unsigned]:
        """Return those of these runs, by default of all, that this user's nbrun has not signed, oldest first."""

        def read(db: sqlite3.Connection) -> list[Unsigned]:
            wanted = numbers
            if wanted is None:
                wanted = [number for (number,) in db.execute("SELECT number FROM runs ORDER BY number").fetchall()]
            found = (read_unsigned(db, number, self.signer) for number in wanted)
            return [one for one in found if one is not None]

        return self._ask(read, [])

    def checkpoint(self, number: int) -> bytes | None:
        """Return the packed state that a run can be resumed from, if this user's nbrun wrote one."""
        return self._ask(lambda db: read_checkpoint(db, number, self.signer), None)

    def journal(self, number: int, *, since_checkpoint: bool = False) -> list[Entry]:
        """Return what a run and those that it comes from were answered, oldest first; see `read_journal`."""
        return self._ask(lambda db: read_journal(db, number, self.signer, self.journals, since_checkpoint), [])

    def followups(self, number: int) -> list[tuple[int, str]]:
        """Return the number and the kind (`resume`, `retry`, `replay`) of each run that comes from this one."""
        return self._ask(lambda db: read_followups(db, number), [])

    def artifacts(self, number: int) -> list[Artifact]:
        """Return the artifacts of a run, oldest first."""
        return self._ask(lambda db: read_artifacts(db, number, self.files), [])

    def is_removed(self, number: int) -> bool:
        """Return whether the run with this number was removed."""
        return self._ask(lambda db: read_run(db, number) is None, False)
