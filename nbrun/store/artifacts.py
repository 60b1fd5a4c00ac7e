"""The files of runs, as the store's table lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbrun import events as ev
from nbrun.artifacts import Artifact, ArtifactFiles

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

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
