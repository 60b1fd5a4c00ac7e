"""Runs that go: the oldest of too many, and those that are named; whole, never live, and nothing else with them."""

from __future__ import annotations

import queue
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from nbrun import NotebookSession, Run, RunContext, RunRecord, RunStatus
from nbrun.core import events as ev
from nbrun.core.artifacts import ArtifactFiles, folder_beside
from nbrun.core.errors import BadOption, RunNotFound
from nbrun.core.journal import JournalFiles
from nbrun.store import Keep, SessionStore, retention
from nbrun.store.connection import connect
from nbrun.store.retention import Sweeper
from nbrun.store.rows import Row, RowWriter
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held
from tests.fakes.clock import FakeClock

MakeSession = Callable[..., NotebookSession]
TABLES = ("runs", "events", "artifacts", "checkpoints", "origins")


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


async def keeper(prompt: str, run: RunContext) -> None:
    """Keep the prompt as a file."""
    run.artifact("prompt.txt", prompt)


async def parent(prompt: str, run: RunContext) -> None:
    """Start a child, and a child's child below it."""
    await run.start_child(middle, prompt)


async def middle(prompt: str, run: RunContext) -> None:
    """Start a child."""
    await run.start_child(agents.instant, prompt)


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    """Return what another connection reads from the file."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def numbers(path: Path) -> list[object]:
    """Return the numbers of the stored runs."""
    return [row[0] for row in rows(path, "SELECT number FROM runs ORDER BY number")]


def swept(path: Path, keep: Keep) -> list[int]:
    """Sweep the file as a kernel does; return the numbers of the runs that went."""
    with closing(connect(path)) as connection:
        return Sweeper(connection, ArtifactFiles(folder_beside(path)), JournalFiles(folder_beside(path))).sweep(keep)


class Told:
    """Hears of ends, after the store has."""

    def __init__(self) -> None:
        self.ends: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def on_ended(self, record: RunRecord) -> None:
        """Note it."""
        self.ends.put(record.number)


# --- too many ----------------------------------------------------------------------------------------


def test_the_oldest_runs_go_and_leave_nothing(make_session: MakeSession, store_path: Path) -> None:
    """Two stay, the newest ones; no row and no file tells of the others, and no number is given twice."""
    with make_session() as session:
        for number in range(5):
            ended(session.start(keeper, f"{number}"))
    assert swept(store_path, Keep(runs=2)) == [1, 2, 3]
    assert numbers(store_path) == [4, 5]
    for table in TABLES[1:]:
        left = {row[0] for row in rows(store_path, f"SELECT run FROM {table}")}  # noqa: S608 - ours
        assert left <= {4, 5}
    kept = sorted(p.read_bytes() for p in folder_beside(store_path).rglob("*") if p.is_file())
    assert kept == [b"3", b"4"]
    assert swept(store_path, Keep(runs=1)) == [4]
    with make_session() as session:
        assert ended(session.start(agents.instant)).number == 6


def test_a_live_run_stays_with_all_that_belongs_to_it(make_session: MakeSession, store_path: Path, held: Held) -> None:
    """However old it is, and however little is kept; its ended children stay too, until it has ended."""

    async def lasting(prompt: str, run: RunContext) -> None:
        await run.start_child(agents.instant)
        await held(prompt, run)

    with make_session() as session:
        run = session.start(lasting)
        assert held.entered.wait(BOUND_S)
        for _ in range(3):
            ended(session.start(agents.instant))
        assert swept(store_path, Keep(runs=1)) == [3, 4]
        assert numbers(store_path) == [1, 2, 5]
        held.let_go()
        ended(run)
    assert sorted(swept(store_path, Keep(runs=1))) == [1, 2]


def test_children_go_with_their_root_and_not_before(make_session: MakeSession, store_path: Path) -> None:
    """A tree is three runs or none; a child that is the oldest of its kind does not go alone."""
    with make_session() as session:
        for _ in range(2):
            ended(session.start(parent))
        ended(session.start(agents.instant))
    assert sorted(swept(store_path, Keep(runs=6))) == [1, 2, 3]
    assert numbers(store_path) == [4, 5, 6, 7]


def test_what_runs_take_is_bounded_with_their_files(make_session: MakeSession, store_path: Path) -> None:
    """The oldest go until file and files are within the bound; the newest stays, whatever it takes."""
    with make_session() as session:
        for letter in "abc":
            ended(session.start(keeper, letter * 400_000))
    assert swept(store_path, Keep(runs=0, bytes=0)) == []
    assert swept(store_path, Keep(bytes=2_000_000)) == [1]
    assert swept(store_path, Keep(bytes=1)) == [2]
    assert numbers(store_path) == [3]


def test_a_file_that_another_run_has_made_too_stays(make_session: MakeSession, store_path: Path) -> None:
    """It goes with the last run that names it."""
    with make_session() as session:
        first, second = ended(session.start(keeper, "same")), ended(session.start(keeper, "same"))
        session.remove(first)
        assert second.artifacts[0].read() == b"same"
        session.remove(second)
        assert not [p for p in folder_beside(store_path).rglob("*") if p.is_file()]


def test_a_log_takes_no_run_along_that_is_not_its_child(make_session: MakeSession, store_path: Path) -> None:
    """A log may say what it likes: only a run that names its parent goes with that."""
    with make_session() as session:
        liar, other = ended(session.start(agents.instant)), ended(session.start(agents.instant))
        ended(session.start(agents.instant))
    with closing(sqlite3.connect(store_path)) as connection:
        row_writer = RowWriter(connection)
        claim = ev.RunEvent(99, 1.0, liar.id, 1, ev.ChildStarted(other.id, "mine", other.number))
        row_writer.write_events(Row(1, RunStatus.COMPLETED), [claim])
        row_writer.flush()
        connection.commit()
    assert swept(store_path, Keep(runs=2)) == [1]
    assert numbers(store_path) == [2, 3]


def test_a_removal_that_was_cut_short_is_finished_by_the_next(
    make_session: MakeSession, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In between no reader meets half a run: it is gone, and its events belong to nobody."""
    monkeypatch.setattr(retention, "STEP", 2)
    with make_session() as session:
        ended(session.start(agents.talking))
        ended(session.start(agents.instant))
    with closing(connect(store_path)) as connection:
        files = ArtifactFiles(folder_beside(store_path))
        assert Sweeper(connection, files, JournalFiles(None), lambda: True).remove([1]) == [1]
    assert rows(store_path, "SELECT DISTINCT run FROM events") == [(1,), (2,)]
    session = make_session()
    assert [run.number for run in session.runs()] == [2]
    assert session.store.events(1) == []
    swept(store_path, Keep())
    assert rows(store_path, "SELECT DISTINCT run FROM events") == [(2,)]


def test_a_session_sweeps_by_itself_on_a_thread_of_its_own(make_session: MakeSession, store_path: Path) -> None:
    """With the first end beyond the bound, while runs go on; the session's own handles keep what they know."""
    told = Told()
    with make_session(keep_runs=2, observers=[told]) as session:
        first = [ended(session.start(agents.instant, str(n))) for n in range(2)]
        assert [told.ends.get(timeout=BOUND_S) for _ in first] == [1, 2]
        assert session.store._sweep_thread is None
        session.store._sweep_at = 0.0  # a minute has passed
        session.start(agents.instant)
        assert told.ends.get(timeout=BOUND_S) == 3
        assert session.store._sweep_thread is not None
        assert session.store._sweep_thread.name == "nbrun-retention"
        session.store._sweep_thread.join(BOUND_S)
        assert numbers(store_path) == [2, 3]
        assert first[0].output == "done: 0"
        with pytest.raises(RunNotFound, match="was removed"):
            first[0].events()
        assert first[1].events() != []


def test_a_small_store_costs_no_thread(session: NotebookSession) -> None:
    """Nothing is begun where nothing can be too much."""
    for _ in range(3):
        session.store._sweep_at = 0.0
        ended(session.start(agents.instant))
    assert session.store._sweep_thread is None
    assert "nbrun-retention" not in {thread.name for thread in threading.enumerate()}


def test_a_negative_bound_is_refused(make_session: MakeSession) -> None:
    """One line says what to give."""
    with pytest.raises(BadOption, match="0 to keep all"):
        make_session(keep_runs=-1)


# --- by name -----------------------------------------------------------------------------------------


def test_a_removed_run_is_found_no_more_and_its_handle_keeps_what_it_has(
    make_session: MakeSession, store_path: Path
) -> None:
    """Its row, events, children and files are gone; `events()` says so, the output is still there."""
    session = make_session()
    kept, run = ended(session.start(agents.instant)), ended(session.start(parent))
    assert sorted(session.remove(run)) == [2, 3, 4]
    assert numbers(store_path) == [1]
    for ref in ("#2", run.id, run.name):
        with pytest.raises(RunNotFound):
            session.get(ref)
    assert run.status == "completed"
    assert run.record.prompt == ""
    with pytest.raises(RunNotFound, match=r"run #2 \(parent\) was removed"):
        run.events()
    assert kept.events() != []
    assert ended(session.start(agents.instant)).number == 5


def test_a_run_of_an_earlier_session_is_removed_too(make_session: MakeSession) -> None:
    """A handle that was held meanwhile has no record to read any more, and keeps the short one."""
    ended(make_session().start(agents.instant, "tea"))
    session = make_session()
    held, again = session.get(1), session.get(1)
    assert held.record.prompt == "tea"
    assert session.remove(1) == [1]
    assert held.record.prompt == "tea"
    assert again.status == "completed"
    with pytest.raises(RunNotFound, match="was removed"):
        again.events()
    assert list(session.runs()) == []


def test_live_runs_are_refused_and_then_nothing_is_removed(
    session: NotebookSession, store_path: Path, held: Held
) -> None:
    """One live run among those that are named, and all stay; `remove_ended` passes it by."""
    done, live = ended(session.start(agents.instant)), session.start(held)
    assert held.entered.wait(BOUND_S)
    with pytest.raises(BadOption, match="is still running; cancel it first"):
        session.remove(done, live)
    with pytest.raises(RunNotFound):
        session.remove(done, "no such run")
    assert numbers(store_path) == [1, 2]
    assert live.number is not None
    assert session.store.remove([live.number]) == []  # the store itself looks, too
    assert session.remove_ended() == [1]
    assert numbers(store_path) == [2]
    held.let_go()
    assert ended(live).output == "held"


def test_runs_in_memory_are_removed_too(
    make_session: MakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store without a file does the same."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file" / "data"))
    session = make_session(store=tmp_path / "file" / "x.db")
    run = ended(session.start(keeper, "tea"))
    (made,) = run.artifacts
    assert session.remove(run) == [1]
    assert list(session.runs()) == []
    with pytest.raises(Exception, match="no longer in memory"):
        made.read()


def test_what_was_removed_cannot_be_read_from_the_file(make_session: MakeSession, store_path: Path) -> None:
    """Its bytes are overwritten, not only forgotten: people remove what nobody should see."""
    with make_session() as session:
        ended(session.start(agents.instant, "a very secret recipe"))
        ended(session.start(agents.instant))
        session.remove(1)
    assert b"very secret recipe" not in store_path.read_bytes()


# --- from outside ------------------------------------------------------------------------------------


def gc(path: Path, *arguments: str) -> str:
    """Return what `nbrun gc` prints."""
    command = [sys.executable, "-m", "nbrun.cli", "gc", str(path), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_command_removes_and_gives_back_room(make_session: MakeSession, store_path: Path) -> None:
    """What is more than is kept goes, and the file becomes smaller."""
    with make_session() as session:
        for _ in range(4):
            ended(session.start(agents.chatty(3000)))
    before = store_path.stat().st_size
    said = gc(store_path, "--keep-runs", "1")
    assert "3 runs removed" in said
    assert "kB freed" in said
    assert numbers(store_path) == [4]
    assert store_path.stat().st_size < 0.6 * before


def test_the_command_leaves_the_room_of_a_file_in_use_alone(
    make_session: MakeSession, store_path: Path, held: Held
) -> None:
    """Ended runs may go; the kernel's live run goes on, and is stored to its end."""
    with make_session() as earlier:
        for _ in range(2):
            ended(earlier.start(agents.instant))
    session = make_session()
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    said = gc(store_path, "--keep-runs", "1")
    assert "2 runs removed" in said
    assert "a kernel is using it" in said
    held.let_go()
    assert ended(run).problem is None
    assert run.events()[-1].type == "run.completed"


@pytest.mark.parametrize("words", [("--keep-bytes", "many"), ("--keep-runs", "-1")])
def test_the_command_refuses_nonsense_in_one_line(
    session: NotebookSession, store_path: Path, words: tuple[str, ...]
) -> None:
    """The line names the option and what to give."""
    ended(session.start(agents.instant))
    with pytest.raises(subprocess.CalledProcessError) as raised:
        gc(store_path, *words)
    lines = raised.value.stderr.splitlines()
    assert len(lines) == 1
    assert words[0] in lines[0]
    assert re.search("use for example 500M|must be at least 1", lines[0])


def test_a_store_sweeps_what_is_its_own_to_sweep(store_path: Path) -> None:
    """One that has no file yet is not made by it."""
    store = SessionStore([store_path], FakeClock(), Keep(runs=1))
    store.note_end(5)
    if store._sweep_thread is not None:
        store._sweep_thread.join(BOUND_S)
    assert not store_path.exists()


def test_others_can_write_between_the_steps_of_a_large_removal(
    make_session: MakeSession, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step the file is free: another connection that does not wait at all can write."""
    monkeypatch.setattr(retention, "STEP", 10)
    with make_session() as session:
        for _ in range(5):
            ended(session.start(agents.chatty(500)))
    with closing(sqlite3.connect(store_path, timeout=0)) as other, closing(connect(store_path)) as connection:
        written: list[int] = []

        def rest() -> bool:
            other.execute("UPDATE sessions SET heartbeat_at = heartbeat_at + 1")
            other.commit()
            written.append(1)
            return False

        files = ArtifactFiles(folder_beside(store_path))
        assert Sweeper(connection, files, JournalFiles(None), rest).sweep(Keep(runs=1)) == [1, 2, 3, 4]
    assert len(written) > 5


def test_a_removed_run_does_not_come_back_with_a_file_that_is_begun_anew(
    make_session: MakeSession, store_path: Path
) -> None:
    """What a kernel knows is told to the new file: not what was removed."""
    session = make_session()
    removed, kept = ended(session.start(agents.instant)), ended(session.start(agents.instant))
    session.remove(removed)
    store_path.unlink()
    ended(session.start(agents.instant))
    assert numbers(store_path)[0] == kept.number
    assert len(numbers(store_path)) == 2
