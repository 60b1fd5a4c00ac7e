"""The rows of sets and of their inputs: read, and written in short transactions beside the writer's.

The runs of a set are in the table of all runs, by the set's number and the position of their input. What has ended is
what their rows say; a set has no second account of it.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from nbrun.core import CancelCause, Plain, RunRecord, RunStatus, events as ev
from nbrun.store.liveness import open_kernels
from nbrun.store.rows import micros
from nbrun.store.schema import LIVE_STATUSES
from nbrun.store.signing import Signer, is_same
from nbrun.store.validation import MAX_DEPTH, MAX_SEQ, is_deep, moment, text

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

_COLUMNS = "number, session_id, set_id, created_at, ended_at, size, is_whole, stopped, substr(header, 1, 65536)"
_IS_PLACE = "typeof(position) = 'integer' AND position >= 0"  # somebody else may have written anything there
_PAGE = 2_000  # inputs that are read at once
_record = msgspec.msgpack.Decoder(RunRecord)
_encode = msgspec.msgpack.Encoder().encode
CODES = {status: code for code, status in enumerate((s for s in RunStatus if s.is_terminal), 2)}
"""A byte for each way an input can end; 0 and 1 are for those that have not."""
SIGNATURE = "signature"
"""Where a header has the signature of the rest of it and of all inputs: of what this user's kernel has put there."""
MAX_PROMPT = 15_000_000
"""Characters of the longest input: more than that, in UTF-8, is no value that is read."""
MANY = 1_000_000
"""A set that says it has more inputs is not believed before they are counted: there is memory for each."""
ATTEMPTS = 255
"""How many attempts at an input are counted."""

_statuses = {str(status): status for status in RunStatus}


@dataclass(frozen=True, slots=True)
class StoredSet:
    """A set: how many inputs it has so far, whether these are all, and why the rest of them won't be run."""

    number: int
    session_id: str
    set_id: str
    created_at: float
    ended_at: float | None
    size: int
    is_whole: bool
    stopped: str | None
    header: dict[str, Plain]
    signature: object  # what stands in the place of one
    is_here: bool  # whether a kernel runs it, as far as that can be seen


class Item(NamedTuple):
    """An input: its position, from 0, its key, and the prompt."""

    position: int
    key: str | None
    prompt: str


class Newest(NamedTuple):
    """The newest run of an input, and how many there were; `is_cut` if it ended with its kernel, not by itself."""

    position: int
    number: int
    status: RunStatus
    attempts: int
    is_cut: bool
    error: str
    score: bytes | None


class Seal:
    """Signs a set as it grows: its number, its header, and all its inputs so far. Threads: one at a time."""

    def __init__(self, signer: Signer, number: int, header: dict[str, Plain]) -> None:
        self._signer, self._number, self._header = signer, number, header
        self._digest = hashlib.sha256()

    def take(self, items: Iterable[Item]) -> None:
        """Take the next inputs."""
        self._digest.update(b"".join(map(_encode, items)))

    @property
    def signature(self) -> bytes:
        """The signature of what there is."""
        return self._signer.of_set(self._number, self._header, self._digest.digest())

    @property
    def header(self) -> bytes:
        """The header as it is stored, with the signature."""
        return _encode({**self._header, SIGNATURE: self.signature})


def is_signed(connection: sqlite3.Connection, row: StoredSet, signer: Signer) -> bool:
    """Return whether this user's kernels wrote a set's header and all of its inputs."""
    if not row.signature:
        return False
    seal = Seal(signer, row.number, row.header)
    for first in range(0, row.size, _PAGE):
        count = min(_PAGE, row.size - first)
        items = read_items(connection, row.number, first, count)
        if [item.position for item in items] != list(range(first, first + count)):
            return False
        seal.take(items)
    return is_same(row.signature, seal.signature)


def count_items(connection: sqlite3.Connection, number: int, size: int) -> int:
    """Return how many inputs a set of this size has indeed."""
    sql = f"SELECT count(*) FROM items WHERE in_set = ? AND {_IS_PLACE} AND position < ?"  # noqa: S608 - ours
    return int(connection.execute(sql, (number, size)).fetchone()[0])


def insert_set(
    connection: sqlite3.Connection, session_id: str, set_id: str | None, header: dict[str, Plain], now: float
) -> int:
    """Insert a set without inputs; return its number, which names it if no id is given."""
    cursor = connection.execute(
        "INSERT INTO sets (session_id, set_id, created_at, size, is_whole, header) VALUES (?, ?, ?, 0, 0, ?)",
        (session_id, set_id or "", micros(now), _encode(header)),
    )
    number = int(cursor.lastrowid or 0)
    if set_id is None:
        connection.execute("UPDATE sets SET set_id = ? WHERE number = ?", (f"set-{number}", number))
    return number


def add_items(
    connection: sqlite3.Connection, number: int, items: Iterable[Item], size: int, is_whole: bool, header: bytes
) -> None:
    """Add inputs, which make `size` of them; the `header` has the signature of all."""
    connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", ((number, *item) for item in items))
    values = (size, is_whole, header, number)
    connection.execute("UPDATE sets SET size = ?, is_whole = ?, header = ? WHERE number = ?", values)


def replace_items(connection: sqlite3.Connection, number: int, items: Sequence[Item], header: bytes) -> None:
    """Put these in the place of a set's inputs, of which there are no more; the `header` has their signature."""
    connection.execute("UPDATE items SET key = NULL WHERE in_set = ?", (number,))  # so that keys may change places
    connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", ((number, *item) for item in items))
    values = (len(items), header, number)
    connection.execute("UPDATE sets SET size = ?, is_whole = 1, header = ? WHERE number = ?", values)


def begin_again(connection: sqlite3.Connection, row: StoredSet, session_id: str, stopped: str | None) -> bool:
    """Note that a session runs a part of a set again; return False if another one was faster.

    `stopped` is why the rest of it still won't be run.
    """
    changed = connection.execute(
        "UPDATE sets SET session_id = ?, ended_at = NULL, stopped = ? WHERE number = ? AND session_id = ?",
        (session_id, stopped, row.number, row.session_id),
    )
    return changed.rowcount == 1


def stop(connection: sqlite3.Connection, number: int, why: str) -> None:
    """Note why what has not begun won't be run: one row, however many inputs there are."""
    connection.execute("UPDATE sets SET stopped = ? WHERE number = ?", (why, number))


def end(connection: sqlite3.Connection, number: int, now: float) -> None:
    """Note that nothing of a set is live any more."""
    connection.execute("UPDATE sets SET ended_at = ? WHERE number = ?", (micros(now), number))


def read_sets(connection: sqlite3.Connection, ref: int | str | None = None) -> list[StoredSet]:
    """Return the set with this number or id, or all of them, newest first."""
    where = "" if ref is None else " WHERE number = ?" if isinstance(ref, int) else " WHERE set_id = ?"
    sql = f"SELECT {_COLUMNS} FROM sets{where} ORDER BY number DESC"  # noqa: S608 - our own names
    rows = connection.execute(sql, () if ref is None else (ref,)).fetchall()
    here = running_sessions(connection) if rows else {}

    def is_here(number: object, session_id: object) -> bool:
        """Return whether a kernel runs a set; one that can't be seen does, as long as it has live-looking runs."""
        is_running = here.get(text(session_id), False)
        if is_running is not None:
            return is_running
        sql = f"SELECT 1 FROM runs WHERE in_set = ? AND status IN ({LIVE_STATUSES}) LIMIT 1"  # noqa: S608 - ours
        return connection.execute(sql, (number,)).fetchone() is not None

    return [_stored(row, is_here(row[0], row[1])) for row in rows]


def running_sessions(connection: sqlite3.Connection) -> dict[str, bool | None]:
    """Return the ids of the sessions whose kernels may be running: True for those that are, None if unknown."""
    alive = {kernel.session: kernel.is_alive() for kernel in open_kernels(connection)}
    found: dict[str, bool | None] = {}
    for key, is_alive in alive.items():
        row = connection.execute("SELECT session_id FROM sessions WHERE key = ?", (key,)).fetchone()
        if row is not None and is_alive is not False:
            found[text(row[0])] = is_alive
    return found


def _stored(row: tuple[object, ...], is_here: bool) -> StoredSet:
    """Return a set, whatever somebody has put into its row."""
    number, session_id, set_id, created_at, ended_at, size, is_whole, stopped, blob = row
    header: object = {}
    if isinstance(blob, bytes) and len(blob) < MAX_SEQ:
        try:
            header = msgspec.msgpack.decode(blob)
        except (msgspec.DecodeError, RecursionError):
            header = {}
    if not isinstance(header, dict) or (len(blob or b"") > MAX_DEPTH and is_deep(header)):  # type: ignore[arg-type]
        header = {}
    return StoredSet(
        number if isinstance(number, int) else 0,
        text(session_id),
        text(set_id),
        moment(created_at, 0) if isinstance(created_at, int) else 0.0,
        moment(ended_at, 0) if isinstance(ended_at, int) else None,
        size if isinstance(size, int) and 0 <= size < MAX_SEQ else 0,
        bool(is_whole),
        None if stopped is None else text(stopped),
        {name: value for name, value in header.items() if name != SIGNATURE},
        header.get(SIGNATURE),
        is_here,
    )


def read_items(connection: sqlite3.Connection, number: int, first: int, count: int) -> list[Item]:
    """Return inputs from a position on, at most `count`."""
    rows = connection.execute(
        f"SELECT position, key, prompt FROM items WHERE in_set = ? AND {_IS_PLACE} AND position >= ?"  # noqa: S608 - ours
        " ORDER BY position LIMIT ?",
        (number, first, count),
    )
    return [Item(at, None if key is None else text(key), text(prompt)) for at, key, prompt in rows]


def find_key(connection: sqlite3.Connection, number: int, key: str) -> int | None:
    """Return the position of the input with this key."""
    sql = f"SELECT position FROM items WHERE in_set = ? AND key = ? AND {_IS_PLACE}"  # noqa: S608 - ours
    row = connection.execute(sql, (number, key)).fetchone()
    return None if row is None else int(row[0])


def read_newest(connection: sqlite3.Connection, number: int) -> list[Newest]:
    """Return the newest run of each input that has one, in the order of the inputs."""
    # Source: with one max(), SQLite takes the other columns from the row that has it.
    rows = connection.execute(
        "SELECT position, max(number), status, count(*),"
        " CASE WHEN status IN ('cancelled', 'failed') AND length(record) <= 65536 THEN record END,"
        " CASE WHEN typeof(score) = 'blob' AND length(score) <= 65536 THEN score END"
        " FROM runs WHERE in_set = ? AND position IS NOT NULL GROUP BY position",
        (number,),
    )
    found = []
    for at, run, status, count, blob, score in rows:
        record = _read(blob)
        is_cut = status == "lost" or (record is not None and record.cause is CancelCause.SHUTDOWN)
        error = "" if record is None or record.error is None else str(record.error)
        if isinstance(at, int):
            found.append(Newest(at, run, _statuses.get(text(status), RunStatus.LOST), count, is_cut, error, score))
    return found


def add_scores(connection: sqlite3.Connection, scores: Iterable[tuple[bytes, int]]) -> None:
    """Note how the outputs of runs were scored, each with the run's number."""
    connection.executemany("UPDATE runs SET score = ? WHERE number = ?", scores)


def laid_out(size: int, newest: Iterable[Newest]) -> tuple[bytearray, array[int], bytearray]:
    """Return for each input a code of how it has ended, the number of its newest run, and its attempts.

    The code is 0 without an ending, else that of the status, see `CODES`.
    """
    states, numbers, attempts = bytearray(size), array("q", bytes(8 * size)), bytearray(size)
    for one in newest:
        if 0 <= one.position < size:
            states[one.position] = CODES.get(one.status, 0)
            numbers[one.position] = one.number
            attempts[one.position] = min(ATTEMPTS, one.attempts)
    return states, numbers, attempts


def read_usage(connection: sqlite3.Connection, number: int) -> ev.Usage:
    """Return what the runs of a set, all attempts, have used."""
    total = ev.Usage()
    rows = connection.execute(
        "SELECT record FROM runs WHERE in_set = ? AND position IS NOT NULL AND length(record) <= 65536", (number,)
    )
    for (blob,) in rows:
        if (record := _read(blob)) is not None:
            total = total.plus(record.own_usage)
    return total


def _read(blob: object) -> RunRecord | None:
    """Return a record, or None for what somebody else has put into its place."""
    try:
        return _record.decode(blob) if isinstance(blob, bytes) else None
    except (RecursionError, TypeError, ValueError):
        return None
