"""References to the newest runs, for completion: at once, or none; never a wait, a new file or an error."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from nbrun import NotebookSession
from nbrun.core.clock import SystemClock
from nbrun.core.record import RunStatus
from nbrun.store import RunReference, newest_references
from tests.fakes import agents
from tests.fakes.agents import BOUND_S

MakeSession = Callable[..., NotebookSession]


def seen(path: Path, limit: int = 30) -> list[RunReference]:
    """Return what the file refers to."""
    return newest_references(path, limit, SystemClock())


@pytest.fixture
def stored(make_session: MakeSession, store_path: Path) -> Path:
    """A store with three runs, of which the second failed; nobody has it open."""
    session = make_session()
    for name, agent in (("one", agents.instant), ("two", agents.failing), ("three", agents.sync)):
        assert session.start(agent, "x", name=name).wait(BOUND_S)
    session.close()
    session.store.close(1.0)
    return store_path


def test_the_newest_runs_are_seen_newest_first(stored: Path) -> None:
    """Number, id, name and status of as many as are asked for."""
    assert seen(stored) == [
        RunReference(3, "run-seq-2", "three", RunStatus.COMPLETED),
        RunReference(2, "run-seq-1", "two", RunStatus.FAILED),
        RunReference(1, "run-seq-0", "one", RunStatus.COMPLETED),
    ]
    assert [run.number for run in seen(stored, 2)] == [3, 2]


def test_runs_are_seen_while_they_are_written(make_session: MakeSession, store_path: Path) -> None:
    """The session that writes need not be closed."""
    session = make_session()
    assert session.start(agents.instant, "x", name="now").wait(BOUND_S)
    assert [run.name for run in seen(store_path)] == ["now"]


def test_a_missing_file_stays_missing(tmp_path: Path) -> None:
    """Nothing is seen, and nothing is made."""
    assert seen(tmp_path / "none.db") == []
    assert list(tmp_path.iterdir()) == []


def test_a_locked_file_is_not_waited_for(stored: Path) -> None:
    """Who holds it may hold it for ever."""
    with closing(sqlite3.connect(stored, isolation_level=None)) as holder:
        holder.execute("PRAGMA journal_mode = DELETE")
        holder.execute("BEGIN EXCLUSIVE")
        for _ in range(5):  # SQLite's own patience, 5 s each, is more than the test has
            assert seen(stored) == []
        holder.execute("COMMIT")
    assert len(seen(stored)) == 3


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100], ids=["empty", "damaged"])
def test_what_is_no_store_shows_nothing(tmp_path: Path, content: bytes) -> None:
    """And no error."""
    path = tmp_path / "strange.db"
    path.write_bytes(content)
    assert seen(path) == []
    assert path.read_bytes() == content


def test_a_link_is_not_followed(stored: Path, tmp_path: Path) -> None:
    """As the store does not follow one."""
    link = tmp_path / "link.db"
    link.symlink_to(stored)
    assert seen(link) == []


def test_a_view_that_never_ends_is_left(tmp_path: Path) -> None:
    """A planted file costs no more time than an honest one may."""
    path = tmp_path / "planted.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE VIEW runs AS WITH RECURSIVE n(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM n)"
            " SELECT number, 'a' AS run_id, 'b' AS name, 'failed' AS status FROM n"
        )
    assert seen(path) == []


def test_rows_of_other_types_are_left_out(tmp_path: Path) -> None:
    """What is no number, no text and no status is no run."""
    path = tmp_path / "planted.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE runs (number, run_id, name, status, parent)")
        rows = [("x", "id", "name", "failed"), (1, None, "name", "failed"), (2, "id", "name", "fine"),
                (3, "id", b"name", "failed"), (4, "id", "n" * 10_000, "failed")]  # fmt: skip
        connection.executemany("INSERT INTO runs VALUES (?, ?, ?, ?, NULL)", rows)
        connection.commit()
    assert seen(path) == [RunReference(4, "id", "n" * 200, RunStatus.FAILED)]
