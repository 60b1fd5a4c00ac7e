"""Files that nothing is written to: their runs can still be listed, shown and found; what is planted runs nothing."""

from __future__ import annotations

import os
import sqlite3
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from contextlib import closing
from html import escape
from pathlib import Path

import pytest

from nbrun import NotebookSession, Run
from nbrun.cli import main
from nbrun.core.errors import BadOption, RunNotFound, StoreDamaged, StoreReadOnly
from nbrun.store import SessionStore, open_for_writing, read_only
from nbrun.store.connection import connect
from tests.fakes import agents
from tests.fakes.agents import BOUND_S
from tests.fakes.clock import FakeClock

MakeSession = Callable[..., NotebookSession]

READABLE = {
    "newer schema": "PRAGMA user_version = 99",
    "trigger": "CREATE TRIGGER evil AFTER INSERT ON runs BEGIN DELETE FROM events; END",
    "view": "CREATE VIEW evil AS SELECT * FROM runs",
    "table": "CREATE TABLE evil (x)",
    "more columns": "ALTER TABLE runs ADD COLUMN evil TEXT",
    "missing table": "DROP TABLE checkpoints",
    "missing index": "DROP INDEX events_by_run",
    "another's homes": "DROP TABLE homes; CREATE VIEW homes AS SELECT 1 AS session, 2 AS device, 3 AS inode",
}
VIEW = "CREATE VIEW runs AS SELECT 1 AS number, 1 AS session, 'x' AS run_id, 'x' AS name"
UNREADABLE = {
    "a view for a table": f"ALTER TABLE runs RENAME TO old; {VIEW}, 'queued' AS status, 0 AS created_at,"
    " NULL AS inputs, zeroblob(100000000) AS record",
    "a virtual table": "ALTER TABLE events RENAME TO old; CREATE VIRTUAL TABLE events USING"
    " fts5(key, run, seq, count, ts, attempt, parent, type, data)",
    "a computed column": "DROP INDEX runs_by_status; ALTER TABLE runs DROP COLUMN status;"
    " ALTER TABLE runs ADD COLUMN status TEXT AS (hex(record))",
    "a missing column": "ALTER TABLE events DROP COLUMN parent",
    "no sessions": "DROP TABLE sessions",
}


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


def planted(path: Path, sql: str, journal: str = "delete") -> bytes:
    """Make a store with two runs, change it, and return its bytes."""
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    with NotebookSession(store=path) as session:
        ended(session.start(agents.talking, "tea", name="poet"))
        ended(session.start(agents.failing, "tea"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(f"PRAGMA foreign_keys = OFF; PRAGMA journal_mode = {journal}; {sql}")
    return path.read_bytes()


@pytest.mark.parametrize("sql", READABLE.values(), ids=READABLE)
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_the_runs_of_a_strange_file_are_read_and_new_ones_go_on_above_them(
    make_session: MakeSession, store_path: Path, sql: str, journal: str
) -> None:
    """Listed, shown and found by number, name and id; not a byte of the file changes, and the notice says all of it."""
    before = planted(store_path, sql, journal)
    session = make_session()
    new = ended(session.start(agents.instant))
    assert [(run.number, run.name, str(run.status)) for run in session.runs()] == [
        (3, "instant", "completed"),
        (2, "failing", "failed"),
        (1, "poet", "completed"),
    ]
    poet = session.get("#1")
    assert session.get("poet") == session.get(poet.id) == session.get(-3) == poet
    assert (poet.text, poet.record.prompt) == ("one two three", "tea")
    assert [event.seq for event in poet.events()] == list(range(poet.record.event_count))
    assert poet.cancel().outcome == "already_finished"
    assert poet.why_read_only is not None
    assert new.why_read_only is None
    with pytest.raises(BadOption, match="can't be removed because its file is read-only"):
        session.remove("poet")
    note = f"#1 to #2 are read-only: {poet.why_read_only}"
    assert repr(session.runs()).endswith(f"\n{note}")
    assert session.runs()._repr_html_().endswith(f"<p>{escape(note)}</p>")
    problem = session.store.problem or ""
    assert str(store_path) in problem
    assert "the runs in it can be read" in problem
    assert problem in new.record.notices
    session.close()
    assert store_path.read_bytes() == before


@pytest.mark.parametrize("sql", UNREADABLE.values(), ids=UNREADABLE)
def test_nothing_is_read_from_a_file_without_our_tables(make_session: MakeSession, store_path: Path, sql: str) -> None:
    """A view, a virtual table or a computed column is never taken for one of our tables; the notice says so."""
    before = planted(store_path, sql)
    session = make_session()
    assert session.runs() == []
    run = ended(session.start(agents.instant))
    assert run.number == 1
    assert "nothing can be read from" in (session.store.problem or "")
    session.close()
    assert store_path.read_bytes() == before
    with pytest.raises(StoreReadOnly, match=r"has no table \w+( or \w+)* like"):
        read_only.open_to_read(store_path)


def test_a_strange_file_is_listed_and_shown_by_the_command_line(
    store_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`nbrun list` and `nbrun show` read it, and say on the other stream why it is only read."""
    planted(store_path, READABLE["newer schema"])
    assert main(["list", str(store_path)]) == 0
    said = capsys.readouterr()
    assert "poet" in said.out
    assert "newer nbrun" in said.err
    assert main(["show", "poet", str(store_path)]) == 0
    said = capsys.readouterr()
    assert "one two three" in said.out
    assert "newer nbrun" in said.err
    assert main(["show", "nobody", str(store_path)]) == 1


def test_a_strange_file_is_read_while_another_kernel_writes_it(make_session: MakeSession, store_path: Path) -> None:
    """Whatever is committed is seen at the next look, though it stands in the journal only."""
    planted(store_path, "CREATE TABLE evil (x)", "wal")
    session = make_session()
    assert len(session.runs()) == 2
    with closing(sqlite3.connect(store_path, isolation_level=None)) as other:
        other.execute("UPDATE runs SET run_id = 'run-changed' WHERE number = 1")
        assert session.get("run-changed").number == 1
        assert len(session.runs()) == 2
    assert session.get("run-changed").name == "poet"


def test_a_strange_file_lets_nothing_but_reading_happen(store_path: Path) -> None:
    """The connection takes no writing statement, no pragma, no attachment, and no look at other tables."""
    planted(store_path, "CREATE TABLE evil (x)")
    with closing(read_only.open_to_read(store_path)) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (2,)
        for sql in (
            "DELETE FROM runs",
            "SELECT * FROM evil",
            "PRAGMA query_only = OFF",
            "ATTACH ':memory:' AS x",
            "CREATE TEMP TABLE y (x)",
            "CREATE TEMP VIEW y AS SELECT * FROM runs",
        ):
            with pytest.raises(sqlite3.DatabaseError, match=r"not authorized|prohibited"):
                connection.execute(sql)


def test_a_look_that_would_take_too_long_is_broken_off(
    make_session: MakeSession, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has promised an index: a look has a bound, and our own runs are listed all the same."""
    planted(
        store_path,
        "DROP INDEX runs_by_run_id; ALTER TABLE events ADD COLUMN x; WITH RECURSIVE n(i) AS (SELECT 10"
        " UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO runs (number, session, run_id, name, status,"
        " created_at, record, agent) SELECT i, 1, i, i, 'completed', 0, x'80', '' FROM n",
    )
    monkeypatch.setattr(read_only, "STEP", 1_000)
    monkeypatch.setattr(read_only, "MAX_STEPS", 5)
    session = make_session()
    own = ended(session.start(agents.instant))
    assert session.get(own.id) == own
    with pytest.raises(RunNotFound):
        session.get("nobody")
    assert session.store.read_only is not None
    with pytest.raises(StoreDamaged, match="interrupted"):
        session.store.read_only.find("nobody")


def test_numbers_that_nobody_comes_to_are_not_gone_on_from(make_session: MakeSession, store_path: Path) -> None:
    """A planted number of 2**62 does not use up ours."""
    planted(store_path, "CREATE TABLE evil (x); UPDATE runs SET number = 1 << 62 WHERE number = 2")
    session = make_session()
    run = ended(session.start(agents.instant))
    assert run.number == 1
    assert session.get("#1") == run


def test_in_the_next_place_numbers_go_on_too(tmp_path: Path) -> None:
    """Where there is a second place, new runs are kept there, numbered above those of the strange file."""
    places = [tmp_path / "a" / ".nbrun" / "x.db", tmp_path / "b" / "x.db"]
    planted(places[0], READABLE["newer schema"])
    for numbers in ([3, 2, 1], [4, 3, 2, 1]):
        with NotebookSession(store=SessionStore(places, FakeClock())) as session:
            ended(session.start(agents.instant))
            assert session.store.path == places[1]
            assert [run.number for run in session.runs()] == numbers


READER = textwrap.dedent(
    """
    import os, sys, nbrun
    from nbrun.store.diagnosis import kept

    async def agent(prompt):
        return prompt

    with nbrun.NotebookSession(store=sys.argv[2]) as session:  # loads what is loaded late
        session.start(agent, "tea").wait(5)
    if os.geteuid() == 0:
        os.setuid(65534)  # root itself may write everywhere
    with nbrun.NotebookSession(store=sys.argv[1]) as session:
        run = session.start(agent, "tea")
        run.wait(5)
        print(run.problem, [run.number for run in session.runs()], session.store.problem)
        print(kept(session.store.read_only)[0].fix)
    """
)


@pytest.mark.parametrize("is_open", [False, True])
def test_a_write_protected_file_is_read(tmp_path: Path, is_open: bool) -> None:
    """Our own file, where it may not be written to, is read like a stranger's, also while its owner has it open."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to other users
        path = Path(folder) / ".nbrun" / "x.db"
        planted(path, "", "wal")
        with closing(sqlite3.connect(path, isolation_level=None)) as owner:
            if is_open:
                owner.execute("UPDATE runs SET inputs = NULL")
            for part in path.parent.glob("x.db*"):
                part.chmod(0o444)
            for each in (path.parent, path.parent.parent):
                each.chmod(0o555)
            said = subprocess.run(
                [sys.executable, "-c", READER, path, tmp_path / "other.db"],
                capture_output=True, text=True, check=False, timeout=BOUND_S,
            )  # fmt: skip
            for each in (path.parent, path.parent.parent):
                each.chmod(0o755)
    assert said.stdout.startswith("None [3, 2, 1] runs are not saved in"), said.stderr
    assert "the runs in it can be read" in said.stdout
    assert "make the file and its folder writable" in said.stdout


# --- links --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_link_is_followed_neither_to_write_nor_to_read(
    make_session: MakeSession, store_path: Path, tmp_path: Path, suffix: str
) -> None:
    """Be it the file or what SQLite keeps beside it: what it leads to stays as it is, and nothing of it is shown."""
    planted(tmp_path / "victim" / ".nbrun" / "v.db", "")
    victim = tmp_path / "victim" / ".nbrun" / "v.db"
    planted(store_path, "")
    part = store_path.with_name(store_path.name + suffix)
    part.unlink(missing_ok=True)
    part.symlink_to(victim)
    before = victim.read_bytes()
    session = make_session()
    ended(session.start(agents.instant))
    assert [run.number for run in session.runs()] == [1]
    problem = session.store.problem or ""
    assert "is a symbolic link" in problem
    assert str(part) in problem
    assert victim.read_bytes() == before
    with pytest.raises(StoreReadOnly, match="symbolic link"):
        read_only.open_to_read(store_path)


def test_what_is_no_file_keeps_nobody_waiting(make_session: MakeSession, store_path: Path) -> None:
    """A pipe in the place of the store is refused; opening it would wait for ever."""
    store_path.parent.mkdir(parents=True)
    os.mkfifo(store_path)
    session = make_session()
    ended(session.start(agents.instant))
    assert "is not a regular file" in (session.store.problem or "")
    with pytest.raises(StoreReadOnly, match="is not a regular file"):
        read_only.open_to_read(store_path)


def test_a_journal_that_names_another_file_costs_nobody_that_file(
    make_session: MakeSession, store_path: Path, tmp_path: Path
) -> None:
    """SQLite deletes the file that a planted journal names as the one above it: such a store is not opened."""
    planted(store_path, "")
    victim = tmp_path / "thesis.txt"
    victim.write_text("three years of work", encoding="utf-8")
    with closing(sqlite3.connect(store_path)) as connection:
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    magic, name = bytes.fromhex("d9d505f920a163d7"), os.fsencode(victim)
    head = (magic + struct.pack(">5I", 0, 1, pages, 512, page_size)).ljust(512, b"\0")
    tail = struct.pack(">I", 2**30 // page_size + 1) + name + struct.pack(">2I", len(name), sum(name))
    store_path.with_name(f"{store_path.name}-journal").write_bytes(head + tail + magic)
    session = make_session()
    assert session.runs() == []
    assert session.start(agents.instant).wait(BOUND_S)
    assert "names another file" in (session.store.problem or "")
    assert main(["list", str(store_path)]) == 1
    assert victim.read_text(encoding="utf-8") == "three years of work"


def test_making_sure_of_a_file_leaves_its_locks_alone(store_path: Path) -> None:
    """A second opening in this process must not take away the first one's locks: others would then write over it."""
    store_path.parent.mkdir(parents=True)
    with closing(open_for_writing(store_path)) as first:
        first.execute("PRAGMA journal_mode = DELETE")
        first.execute("BEGIN IMMEDIATE")
        connect(store_path, create=True).close()
        held = _locks(store_path)
        first.execute("ROLLBACK")
    assert held


def _locks(path: Path) -> bool:
    """Return whether this process has a lock on the file, as the system sees it."""
    inode = path.stat().st_ino
    lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    return any(f" {os.getpid()} " in line and f":{inode} " in line for line in lines)
