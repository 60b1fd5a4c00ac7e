"""Several kernels that write to one file at the same time."""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec
import pytest

from nbrun import NotebookSession
from nbrun.store import is_set_aside, open_for_writing
from nbrun.store.rows import RowWriter
from tests.fakes import crowd, doomed
from tests.fakes.crowd import Done, Go, Held, Play, Waits
from tests.fakes.doomed import Shown
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
    assert not any(map(is_set_aside, path.parent.iterdir()))
    # Also told: a store that is in memory, or elsewhere.
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
    check_together(path, write_together(path, 4.0))


@pytest.mark.long
@pytest.mark.timeout(180)
def test_four_kernels_write_to_one_file_for_long(tmp_path: Path) -> None:
    """The same for half a minute."""
    path = tmp_path / "shared.db"
    check_together(path, write_together(path, 30.0))


# --- every moment of opening, closing and replacing the file ---------------------------------------------

_decoder = msgspec.msgpack.Decoder(Held | Waits | Done | Shown)
_encoder = msgspec.msgpack.Encoder()


class Member:
    """A process of a crowd, from here."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*doomed.PRELOAD, "tests.fakes.crowd"])
        self._child: BaseProcess | None = None
        self._pipe: Connection | None = None
        self.shown: list[Shown] = []

    def tell(self, item: Play | Go) -> None:
        """Send it; a member that was killed is replaced."""
        if self._child is None:
            self._pipe, its = self._context.Pipe()
            self._child = self._context.Process(target=crowd.lives, args=(its,), daemon=True)
            self._child.start()
            its.close()
        assert self._pipe is not None
        self._pipe.send_bytes(_encoder.encode(item))

    def hear(self) -> Held | Waits | Done | None:
        """Return what it says next, besides what it shows; None when it is dead."""
        assert self._pipe is not None
        while self._pipe.poll(BOUND_S):
            try:
                item: Held | Waits | Done | Shown = _decoder.decode(self._pipe.recv_bytes())
            except (EOFError, OSError):
                return None
            if not isinstance(item, Shown):
                return item
            self.shown.append(item)
        raise AssertionError("a process neither ends nor waits")

    def done(self) -> Done:
        """Return what it says at the end."""
        while not isinstance(item := self.hear(), Done):
            assert isinstance(item, Waits), item
        return item

    def kill(self) -> None:
        """Kill it, and keep what it has said until then."""
        assert self._child is not None
        self._child.kill()
        while self.hear() is not None:
            pass
        self._child.join(BOUND_S)
        self._child = None

    def close(self) -> None:
        """Let it end."""
        if self._pipe is not None and self._child is not None:
            self._pipe.close()
            self._child.join(BOUND_S)


@pytest.fixture(scope="module")
def members() -> Iterator[list[Member]]:
    """Four processes, for all rounds."""
    found = [Member() for _ in range(KERNELS)]
    yield found
    for member in found:
        member.close()


def play_round(
    members: list[Member], play: Play, victim: int, held_at: int, *, is_killed: bool
) -> tuple[str, list[Done]]:
    """Hold one of the processes at one file operation until each of the others has ended or waits for it.

    Return what it was held at, empty if it has fewer operations, and what those said that were not killed.
    """
    one, others = members[victim], [member for at, member in enumerate(members) if at != victim]
    one.tell(msgspec.structs.replace(play, held_at=held_at))
    said = one.hear()
    while isinstance(said, Waits):
        said = one.hear()
    for other in others:
        other.tell(play)
    ends: list[Done] = []
    waiting = []
    for other in others:
        item = other.hear()
        if isinstance(item, Done):
            ends.append(item)
        else:
            assert isinstance(item, Waits)
            waiting.append(other)
    if isinstance(said, Done):
        ends.append(said)
    elif is_killed:
        one.kill()
    else:
        one.tell(Go())
        ends.append(one.done())
    ends += [other.done() for other in waiting]
    return said.what if isinstance(said, Held) else "", ends


def check_round(path: Path, members: list[Member], ends: list[Done]) -> None:
    """Check that all that was shown is in the one file, and nobody had to go elsewhere."""
    for end in ends:
        assert (end.store, end.problem, end.troubles) == (str(path), None, [])
    check(path, Life([item for member in members for item in member.shown]), 0)


def play_all(members: list[Member], folder: Path, one_round: Callable[[Path, int, int], str], rounds: int) -> set[str]:
    """Play rounds, each on a file of its own, with a process held at its first operation, its second and so on.

    At least so many, and until there were all operations. Return the operations that there were.
    """
    held: set[str] = set()
    held_at = cycles = number = 0
    while number < rounds or not cycles:
        number += 1
        for member in members:
            member.shown = []
        place = folder / str(number) / ".nbrun"
        place.mkdir(parents=True)
        what = one_round(place / "x.db", (held_at + cycles) % KERNELS, held_at)
        shutil.rmtree(place)
        if what:
            held.add(what.partition(" ")[0])
            held_at += 1
        else:
            held_at, cycles = 0, cycles + 1
    print(f"{number} rounds, {cycles} times through all operations, of which there are {sorted(held)}")
    return held


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("rounds", "is_killed"), [(300, False), (1, True)])
def test_a_new_file_is_opened_by_four_at_every_moment_of_each_other(
    members: list[Member], tmp_path: Path, rounds: int, is_killed: bool
) -> None:
    """Whatever one of them is in the middle of, or dies in: nothing is lost, set aside, or kept elsewhere."""

    def one_round(path: Path, victim: int, held_at: int) -> str:
        what, ends = play_round(members, Play(str(path)), victim, held_at, is_killed=is_killed)
        check_round(path, members, ends)
        assert [end.incidents for end in ends] == [[]] * len(ends)
        assert not any(map(is_set_aside, path.parent.iterdir()))
        return what

    held = play_all(members, tmp_path, one_round, rounds)
    assert held >= {"open", "os.stat", "sqlite3.connect", "sqlite3.execute", "os.rmdir"}


@pytest.mark.timeout(120)
def test_a_file_that_is_deleted_under_four_is_made_by_one(members: list[Member], tmp_path: Path) -> None:
    """Whatever one of them is in the middle of when it misses the file: all runs of all four are in the new one."""

    def one_round(path: Path, victim: int, held_at: int) -> str:
        first = Play(str(path), is_last=False)
        for member in members:
            member.tell(first)
        for member in members:
            assert member.done().troubles == []
        path.unlink()
        what, ends = play_round(members, Play(str(path), is_again=True), victim, held_at, is_killed=False)
        check_round(path, members, ends)
        assert all(len(end.incidents) == 1 for end in ends)
        assert {child.name for child in path.parent.iterdir()} == {".gitignore", "x.db"}
        return what

    held = play_all(members, tmp_path, one_round, 1)
    assert held >= {"os.stat", "sqlite3.connect", "sqlite3.execute"}


@pytest.mark.timeout(120)
def test_a_damaged_file_is_set_aside_once(members: list[Member], tmp_path: Path) -> None:
    """Whatever one of them is in the middle of: it keeps every byte, and the new file has the runs of all four."""
    open_for_writing(tmp_path / "sound.db").close()
    damaged = (tmp_path / "sound.db").read_bytes()[:5_000]

    def one_round(path: Path, victim: int, held_at: int) -> str:
        path.write_bytes(damaged)
        what, ends = play_round(members, Play(str(path)), victim, held_at, is_killed=False)
        check_round(path, members, ends)
        (aside,) = filter(is_set_aside, path.parent.glob("*.db"))
        assert aside.read_bytes() == damaged
        assert sum(len(end.incidents) for end in ends) == 1
        return what

    held = play_all(members, tmp_path, one_round, 1)
    assert held >= {"os.rename", "os.stat", "sqlite3.connect", "sqlite3.execute"}


def test_a_damaged_file_that_another_kernel_has_open_stays_where_it_is(members: list[Member], tmp_path: Path) -> None:
    """Who opens it then keeps its runs elsewhere, which is told in one line."""
    path = tmp_path / "x.db"
    members[0].tell(Play(str(path), is_last=False))
    members[0].done()
    with path.open("r+b") as file:
        file.seek(100)  # after the header, which tells that it is a store
        file.write(b"\xff" * (path.stat().st_size - 100))
    members[1].tell(Play(str(path)))
    end = members[1].done()
    assert end.store is None
    assert end.problem is not None
    assert "the file is damaged, and another kernel has it open" in end.problem
    assert not any(map(is_set_aside, tmp_path.iterdir()))
    members[0].kill()


def test_eight_open_a_new_file_at_the_same_moment(tmp_path: Path) -> None:
    """All at once, again and again: each has its row, is told of no lock, and writes to the file."""
    crowd_of_eight = [Member() for _ in range(8)]
    for number in range(15):
        path = tmp_path / f"{number}.db"
        for member in crowd_of_eight:
            member.shown = []
            member.tell(Play(str(path)))
        check_round(path, crowd_of_eight, [member.done() for member in crowd_of_eight])
    for member in crowd_of_eight:
        member.close()


OUTSIDE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(connection.execute("SELECT count(*) FROM runs").fetchone()[0])
connection.close()
"""


def outside(path: Path) -> int:
    """Return how many runs another program sees, which then closes the file."""
    told = subprocess.run([sys.executable, "-c", OUTSIDE, str(path)], capture_output=True, text=True, check=True)
    return int(told.stdout)


def test_a_kernel_that_has_copied_its_file_keeps_its_journal(members: list[Member], tmp_path: Path) -> None:
    """The copy drops its locks; a second kernel that closes leaves the journal, and another program's is put back."""
    path = tmp_path / "x.db"
    journal = path.with_name("x.db-wal")
    with NotebookSession(store=path) as session:
        assert session.start(doomed.brief).wait(BOUND_S)
        inode = journal.stat().st_ino
        shutil.copy(path, tmp_path / "copy.db")
        members[1].tell(Play(str(path)))
        assert members[1].done().troubles == []
        assert journal.stat().st_ino == inode
        outside(path)
        assert not journal.exists()  # SQLite's own doing
        assert session.start(doomed.brief).wait(BOUND_S)
        assert journal.stat().st_ino == inode
        assert outside(path) == 3
        assert (session.store.fault, session.store.incidents) == (None, ())
    assert outside(path) == 3


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
@pytest.mark.parametrize("is_moved", [False, True])
def test_a_journal_that_is_taken_away_is_put_back(tmp_path: Path, suffix: str, is_moved: bool) -> None:
    """By the kernel that misses it, or by the next one that opens the file: nothing is lost or damaged."""
    path = tmp_path / "x.db"
    part = path.with_name(f"x.db{suffix}")
    with NotebookSession(store=path) as one:
        assert one.start(doomed.brief).wait(BOUND_S)
        for _ in range(3):
            inode = part.stat().st_ino
            if is_moved:
                part.rename(tmp_path / "away")
            else:
                part.unlink()
            with NotebookSession(store=path) as other:
                assert other.start(doomed.brief).wait(BOUND_S)
            assert part.stat().st_ino == inode
            part.unlink()
            assert one.start(doomed.brief).wait(BOUND_S)
            assert part.stat().st_ino == inode
        assert outside(path) == 7
    assert sorted(child.name for child in tmp_path.iterdir() if child.name != "away") == ["x.db"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


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
