"""Stores of earlier versions: opened, migrated, and whole.

`data/version_1.db` and `small_2.db` to `small_5.db` were written by the versions of nbrun that had schema 1 to 5.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
import sys
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from nbrun import NotebookSession, RunRecord, RunStatus
from nbrun.store import SessionStore, open_for_writing, queries as reader, schema
from nbrun.store.connection import connect
from nbrun.store.rows import encode_record
from tests.fakes import agents, doomed
from tests.fakes.agents import BOUND_S
from tests.fakes.clock import FakeClock
from tests.fakes.power import Left, cuts, lay_out, recorded

PROCESSES, FILES = 6, 40
DATA = Path(__file__).parent / "data"
FILES_OF = {1: DATA / "version_1.db", **{number: DATA / f"small_{number}.db" for number in range(2, 6)}}
NAMES = {
    1: ["waits", "breaks", "talk"],
    2: ["waits", "breaks", "child", "talk"],
    3: ["reads", "waits", "breaks", "child", "talk"],
    4: ["waits", "breaks", "child", "talk"],
    5: ["upper", "upper", "breaks", "talk"],
}
"""The runs of each version's file, newest first."""


def copied(folder: Path, version: int = 1) -> Path:
    """Return a copy of an old store that may be written to."""
    path = folder / ".nbrun" / "old.db"
    path.parent.mkdir()
    shutil.copy(FILES_OF[version], path)
    return path


def columns(path: Path) -> list[tuple[object, ...]]:
    """Return what the columns of each run say that the record says as well."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT name, agent, model, parent IS NOT NULL, ended_at > created_at FROM runs ORDER BY number"
        ).fetchall()


def test_a_store_of_the_previous_version_is_brought_up_and_goes_on(tmp_path: Path) -> None:
    """Its runs are all there, a new one follows them in number, and the file says when it was migrated."""
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


@pytest.mark.parametrize("version", NAMES)
def test_an_old_store_is_migrated_once(tmp_path: Path, version: int) -> None:
    """Opened again, nothing is done twice."""
    path = copied(tmp_path, version)
    for _ in range(2):
        store = SessionStore([path], FakeClock())
        store.open_existing()
        assert [run.record.name for run in store.runs()] == NAMES[version]
        assert store.problem is None
        store.close(1)


@pytest.mark.parametrize("version", NAMES)
def test_a_new_store_and_a_migrated_one_are_alike(tmp_path: Path, version: int) -> None:
    """Whatever the way, the tables are the same: nothing can be left out of one of the two."""
    path, new = copied(tmp_path, version), tmp_path / "new.db"
    schemas = []
    for file in (path, new):
        with closing(open_for_writing(file, 1.0)) as connection:
            rows = connection.execute("SELECT type, name, sql FROM sqlite_schema")
            schemas.append(sorted(rows, key=repr))
    assert schemas[0] == schemas[1]


def test_columns_are_filled_from_the_records_of_an_old_store(tmp_path: Path) -> None:
    """Agent, parent and end: runs are filtered by them, and a child is removed with its parent."""
    path = copied(tmp_path, 2)
    open_for_writing(path, 1.0).close()
    assert columns(path) == [
        ("talk", "talk", None, 0, 1),
        ("child", "child", None, 1, 1),
        ("breaks", "breaks", None, 0, 1),
        ("waits", "waits", None, 0, 1),
    ]
    with NotebookSession(store=path) as session:
        assert [run.number for run in session.runs(agent="child")] == [2]
        assert sorted(session.remove(1)) == [1, 2]


OLDER_KERNEL = (
    "INSERT INTO runs (session, run_id, name, status, created_at, inputs, record)"
    " SELECT session, 'run-late', 'late', status, created_at, inputs, ? FROM runs WHERE number = 1"
)


def test_a_kernel_of_an_older_version_may_go_on_in_a_migrated_file(tmp_path: Path) -> None:
    """It knows nothing of the new columns: its runs are found all the same, and go with their parent."""
    path = copied(tmp_path, 2)
    session = NotebookSession(store=path)
    parent = session.get(1)
    record = encode_record(RunRecord(run_id="run-late", agent="older", status=RunStatus.COMPLETED, parent_id=parent.id))
    with closing(sqlite3.connect(path, isolation_level=None)) as older:
        older.execute(OLDER_KERNEL, (record,))
    assert [run.number for run in session.runs(agent="older")] == [5]
    assert columns(path)[-1][1:4] == (None, None, 0)
    assert sorted(session.remove(1)) == [1, 2, 5]
    session.close()


def test_an_old_store_that_must_not_be_written_to_is_read(tmp_path: Path) -> None:
    """Its runs are listed and filtered, though it lacks columns that are newer than it is."""
    path = copied(tmp_path, 2)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE evil (x)")
    before = path.read_bytes()
    with NotebookSession(store=path) as session:
        assert [run.number for run in session.runs()] == [4, 3, 2, 1]
        assert [run.number for run in session.runs(agent="child", limit=1)] == [2]
        assert session.get(1).text == "one two"
    assert path.read_bytes() == before


# --- migrated while something happens ------------------------------------------------------------------


def version_of(path: Path, runs: int = 3) -> int:
    """Return the version that a file says it has, once it is seen to have that version's tables and all runs."""
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        found = {row[0] for row in connection.execute("SELECT sql FROM sqlite_schema WHERE sql > ''")}
        assert found == schema.schema_of(version)
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (runs,)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return int(version)


@pytest.mark.parametrize("version", NAMES)
@pytest.mark.parametrize("how", Left)
def test_a_power_failure_during_migration_leaves_one_version_whole(tmp_path: Path, how: Left, version: int) -> None:
    """After each write and sync the file is of the old version or of the new one, and can be migrated."""
    path, runs = copied(tmp_path, version), len(NAMES[version])
    before = {path.name: path.read_bytes()}
    with recorded() as disk:
        open_for_writing(path, 1.0).close()
    found = []
    for _, files in cuts(disk.steps, before, how):
        lay_out(path, files)
        found.append(version_of(path, runs))
        open_for_writing(path, 1.0).close()
        assert version_of(path, runs) == schema.VERSION
        assert all(agent == name for name, agent, *_ in columns(path))
    assert found == sorted(found)
    assert set(found) == {version, schema.VERSION}


def open_at_once(paths: list[Path], gate: Barrier, answers: Connection) -> None:
    """Open each of these files at the same time as others do, and say what came of it; a process of its own."""
    for path in paths:
        gate.wait(BOUND_S)
        store = SessionStore([path], FakeClock())
        with NotebookSession(store=store) as session:
            session.store.begin(session.parts.intake, session_id=session.id, notebook=None)
            answers.send((store.problem, [run.record.name for run in store.runs()]))


@pytest.mark.skipif(sys.platform == "win32", reason="no fork server there")
@pytest.mark.parametrize(("version", "names"), [*NAMES.items(), (0, [])])
def test_processes_that_open_the_same_file_at_once_agree(tmp_path: Path, version: int, names: list[str]) -> None:
    """Six at a time, forty files: an old one is migrated, a new one made, once; nobody finds a fault in it."""
    paths = [tmp_path / f"{number}.db" for number in range(FILES)]
    if version:
        for path in paths:
            shutil.copy(FILES_OF[version], path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(doomed.PRELOAD)
    gate, pipes = context.Barrier(PROCESSES), [context.Pipe(duplex=False) for _ in range(PROCESSES)]
    children = [context.Process(target=open_at_once, args=(paths, gate, its), daemon=True) for _, its in pipes]
    for child in children:
        child.start()
    for child, (ours, its) in zip(children, pipes, strict=True):
        its.close()
        with ours:
            found = [ours.recv() for _ in paths]  # ends with an error where the child has died
        assert found == [(None, names)] * FILES
        child.join(BOUND_S)
        assert child.exitcode == 0
    for path in paths:
        assert version_of(path, len(names)) == schema.VERSION
        with closing(sqlite3.connect(path)) as connection:
            (times,) = connection.execute("SELECT count(*) FROM versions").fetchone()
        assert times == schema.VERSION - 1


def test_a_reader_of_the_old_version_goes_on_while_the_file_is_brought_up(tmp_path: Path) -> None:
    """A process that had the old file open, in the middle of reading or not, reads the same before and after."""
    path = copied(tmp_path)
    with closing(sqlite3.connect(path)) as connection:  # as it is in use; the copy that is kept is one file
        connection.execute("PRAGMA journal_mode = WAL")
    with closing(connect(path)) as old, closing(connect(path)) as idle:
        before = reader.read_runs(old), reader.read_events(old, 1)
        assert len(reader.read_runs(idle)) == 3
        old.execute("BEGIN")  # in the middle of a read: it keeps what it sees
        old.execute("SELECT count(*) FROM runs").fetchone()
        with NotebookSession(store=path) as session:
            assert session.store.problem is None
            assert session.start(agents.talking).wait(5)
            assert (reader.read_runs(old), reader.read_events(old, 1)) == before
            old.execute("COMMIT")
            for connection in (old, idle):
                assert [run.number for run in reader.read_runs(connection)] == [4, 3, 2, 1]
                assert reader.read_events(connection, 1) == before[1]
