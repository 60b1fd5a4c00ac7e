"""The checkpoints in a store: the last one of a run, kept until what goes on from it has completed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nbrun.core import events as ev
from nbrun.core.artifacts import Artifact, ArtifactFiles

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable


class Checkpointed(NamedTuple):
    """A state as it goes into the file; `ts` in microseconds."""

    seq: int
    ts: int
    state: bytes


# The steps are bounded, because a planted file may lead in a circle.
_LINE_UP = """WITH RECURSIVE line (run, steps) AS (
  SELECT ?1, 0 UNION
  SELECT o.origin, line.steps + 1 FROM origins o JOIN line ON o.run = line.run
   WHERE o.kind = 'resume' AND line.steps < 1000
)"""


def keep(connection: sqlite3.Connection, number: int, checkpointed: Checkpointed) -> None:
    """Write a run's checkpoint in the place of the one before it."""
    connection.execute(
        "INSERT OR REPLACE INTO checkpoints (run, seq, ts, state) VALUES (?, ?, ?, ?)",
        (number, *checkpointed),
    )


def read(connection: sqlite3.Connection, number: int) -> bytes | None:
    """Return what a run can be gone on from: its own checkpoint, else that of the run it was resumed from."""
    row = connection.execute(
        f"{_LINE_UP} SELECT c.state FROM line JOIN checkpoints c ON c.run = line.run"  # noqa: S608 - ours
        " ORDER BY line.steps LIMIT 1",
        (number,),
    ).fetchone()
    return None if row is None else bytes(row[0])


def drop(connection: sqlite3.Connection, number: int) -> None:
    """Delete the checkpoints of a run that has completed, and of those that it was resumed from."""
    connection.execute(
        f"{_LINE_UP} DELETE FROM checkpoints WHERE run IN (SELECT run FROM line)",  # noqa: S608 - ours
        (number,),
    )


def sweep(connection: sqlite3.Connection) -> None:
    """Delete what is of no use any more: a kernel has died after a run had completed, and before it did that."""
    connection.execute(
        """WITH RECURSIVE line (kept, run) AS (
  SELECT run, run FROM checkpoints UNION
  SELECT line.kept, o.run FROM origins o JOIN line ON o.origin = line.run WHERE o.kind = 'resume'
)
DELETE FROM checkpoints WHERE run IN (
  SELECT line.kept FROM line JOIN runs r ON r.number = line.run WHERE r.status = 'completed'
)"""
    )


def insert_origin(connection: sqlite3.Connection, number: int, origin: int, kind: str) -> None:
    """Note which run of the same file a run comes from."""
    connection.execute(
        "INSERT INTO origins (run, origin, kind) VALUES (?, ?, ?)", (number, origin, kind)
    )


def is_resumed(connection: sqlite3.Connection, number: int) -> bool:
    """Return whether a run that goes on from this one is live, or has completed."""
    row = connection.execute(
        "SELECT 1 FROM origins o JOIN runs r ON r.number = o.run WHERE o.origin = ? AND o.kind = 'resume'"
        " AND r.status NOT IN ('failed', 'cancelled', 'lost')",
        (number,),
    ).fetchone()
    return row is not None


def sequels(connection: sqlite3.Connection, number: int) -> list[tuple[int, str]]:
    """Return the number and the kind of each run that comes from this one, oldest first."""
    rows = connection.execute(
        "SELECT run, kind FROM origins WHERE origin = ? ORDER BY run", (number,)
    )
    return [(int(run), str(kind)) for run, kind in rows]


# A later attempt at a run counts its files anew: the last one of a name stands.
_INSERT = (
    "INSERT INTO artifacts (run, id, name, media_type, size, sha256, made_at) VALUES (?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (run, id) DO UPDATE SET name = excluded.name, media_type = excluded.media_type,"
    " size = excluded.size, sha256 = excluded.sha256, made_at = excluded.made_at"
)


def insert_artifacts(
    connection: sqlite3.Connection, number: int, events: Iterable[ev.RunEvent]
) -> None:
    """List the files that events of a run tell of, in their transaction: the files are written already."""
    for event in events:
        data = event.data
        if (
            type(data) is ev.Artifact and data.sha256
        ):  # for every event that there is: the quickest look
            made_at = round(event.ts * 1_000_000)
            row = (number, data.id, data.name, data.media_type, data.size, data.sha256, made_at)
            connection.execute(_INSERT, row)


def read_artifacts(
    connection: sqlite3.Connection, number: int, files: ArtifactFiles
) -> list[Artifact]:
    """Return the files of a run, in the order in which they were made."""
    rows = connection.execute(
        "SELECT id, name, media_type, size, sha256, made_at FROM artifacts WHERE run = ? ORDER BY key",
        (number,),
    )
    return [
        Artifact(id_, name, media_type, size, sha256, made_at / 1_000_000, files)
        for id_, name, media_type, size, sha256, made_at in rows
    ]
