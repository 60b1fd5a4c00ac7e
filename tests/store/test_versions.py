"""Stores of earlier versions: opened, brought up, and whole.

`data/version_1.db` was written by the version of nbrun that had that schema: it is kept, not made here.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from nbrun import NotebookSession
from nbrun.store import SessionStore, schema
from tests.fakes import agents
from tests.fakes.clock import FakeClock

OLD = Path(__file__).parent / "data" / "version_1.db"


def copied(folder: Path) -> Path:
    """Return a copy of the old store that may be written to."""
    path = folder / ".nbrun" / "old.db"
    path.parent.mkdir()
    shutil.copy(OLD, path)
    return path


def test_a_store_of_the_previous_version_is_brought_up_and_goes_on(tmp_path: Path) -> None:
    """Its runs are all there, a new one follows them in number, and the file says when it was brought up."""
    path = copied(tmp_path)
    with NotebookSession(store=path) as session:
        new = session.start(agents.talking)
        assert new.wait(5)
        found = [(run.number, run.name, str(run.status)) for run in session.runs()]
        assert session.store.problem is None
        talk = session.get(1)
        assert talk.record.text == "one two"
        assert [tool.result for tool in talk.record.tools] == [3]
        assert session.get(2).record.error is not None
    assert found == [
        (4, "talking", "completed"),
        (3, "waits", "cancelled"),
        (2, "breaks", "failed"),
        (1, "talk", "completed"),
    ]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        versions = connection.execute("SELECT version, made_at > 0 FROM versions").fetchall()
    assert versions == [(number, 1) for number in range(2, schema.VERSION + 1)]


def test_looking_into_an_old_store_brings_it_up_once(tmp_path: Path) -> None:
    """Opened again, nothing is done twice."""
    path = copied(tmp_path)
    for _ in range(2):
        store = SessionStore([path], FakeClock())
        store.open_existing()
        assert len(store.runs()) == 3
        assert store.problem is None
        store.close(1)


def test_a_new_store_and_an_old_one_brought_up_are_alike(tmp_path: Path) -> None:
    """Whatever the way, the tables are the same: nothing can be left out of one of the two."""
    path, new = copied(tmp_path), tmp_path / "new.db"
    schemas = []
    for file in (path, new):
        with closing(schema.open_for_writing(file, 1.0)) as connection:
            rows = connection.execute("SELECT type, name, sql FROM sqlite_schema")
            schemas.append(sorted(rows, key=repr))
    assert schemas[0] == schemas[1]
