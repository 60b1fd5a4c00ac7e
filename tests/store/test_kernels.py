"""Several kernels that write to one file at the same time."""

from __future__ import annotations

import multiprocessing
import sqlite3
import sys
import threading
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from nbrun.store import open_for_writing
from nbrun.store.rows import RowWriter
from tests.fakes import doomed
from tests.store.crash import Life, check

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork server there")

KERNELS = 4
BOUND_S = 60.0


def write_together(path: Path, span_s: float) -> list[Life]:
    """Have four processes open a new file and write to it for so long; return what each had to tell."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(doomed.PRELOAD)

    def hear(pipe: Connection, life: Life) -> None:
        while life.hear(pipe, None):
            pass

    lives, readers, children = [], [], []
    for _ in range(KERNELS):
        ours, its = context.Pipe(duplex=False)
        child = context.Process(target=doomed.works_for, args=(path, its, span_s), daemon=True)
        child.start()
        its.close()
        life = Life()
        reader = threading.Thread(target=hear, args=(ours, life), daemon=True)
        reader.start()
        children.append(child)
        readers.append((reader, ours))
        lives.append(life)
    for child, (reader, ours) in zip(children, readers, strict=True):
        child.join(BOUND_S)
        reader.join(BOUND_S)
        ours.close()
        assert child.exitcode == 0
    return lives


def check_together(path: Path, lives: list[Life]) -> None:
    """Check that nothing was lost, no run was troubled, and every run has a number of its own."""
    assert [life.troubles for life in lives] == [[]] * KERNELS
    assert {life.died_in for life in lives} == {"gone"}
    shown = [item for life in lives for item in life.shown]
    check(path, Life(shown), 0)
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT number, run_id, session FROM runs ORDER BY number").fetchall()
        statuses = dict(connection.execute("SELECT status, count(*) FROM runs GROUP BY status"))
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    assert {row[1] for row in rows} == {item.run_id for item in shown}
    assert len({row[2] for row in rows}) == KERNELS
    assert statuses == {"completed": len(rows) * 2 // 3, "failed": len(rows) // 3}
    events = sum(len(item.events) for item in shown)
    print(f"{len(rows)} runs, {events} events shown")


def test_four_kernels_write_to_one_file(tmp_path: Path) -> None:
    """For some seconds, from the first moment of the file: no run hears of a fault, and nothing is lost."""
    path = tmp_path / "shared.db"
    check_together(path, write_together(path, 6.0))


@pytest.mark.long
@pytest.mark.timeout(180)
def test_four_kernels_write_to_one_file_for_long(tmp_path: Path) -> None:
    """The same for half a minute."""
    path = tmp_path / "shared.db"
    check_together(path, write_together(path, 30.0))


@pytest.mark.parametrize("held_s", [0.3, 1.15])
def test_a_writer_behind_many_others_comes_through(tmp_path: Path, held_s: float) -> None:
    """Where the file is free only after SQLite has given up to wait, the next look a moment later finds that."""
    path = tmp_path / "busy.db"
    with closing(open_for_writing(path)) as other, closing(open_for_writing(path)) as connection:
        other.execute("BEGIN IMMEDIATE")
        free = threading.Timer(held_s, other.execute, ("COMMIT",))
        free.start()
        RowWriter(connection).begin()
        assert connection.in_transaction
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (1_000,)
        free.join(BOUND_S)


def test_a_lock_that_stays_is_told_of_in_time(tmp_path: Path) -> None:
    """Well within the two seconds after which a run goes on unsaved; at once where it is known to be there."""
    path = tmp_path / "busy.db"
    with closing(open_for_writing(path)) as other, closing(open_for_writing(path)) as connection:
        other.execute("BEGIN IMMEDIATE")
        for patience_ms in (1_000, 20):
            connection.execute(f"PRAGMA busy_timeout = {patience_ms}")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                RowWriter(connection).begin()
            assert connection.execute("PRAGMA busy_timeout").fetchone() == (patience_ms,)
        other.execute("COMMIT")
