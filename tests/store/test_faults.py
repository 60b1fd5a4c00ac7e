"""The store in trouble: whatever happens to its file, the run goes on, somebody is told, and nothing more is lost."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from nbrun import NotebookSession, Run, RunContext, RunStatus
from nbrun.core import events as ev
from nbrun.core.cancellation import CancelCause
from nbrun.core.clock import SystemClock
from nbrun.core.errors import StoreUnavailable
from nbrun.core.record import RunRecord, fold
from nbrun.store import SessionStore, database_file, writer as writer_module
from nbrun.store.backlog import Dropped
from nbrun.store.connection import BUSY_TIMEOUT_S
from nbrun.store.diagnosis import Sign, kept
from nbrun.store.rebuild import reconstructed
from tests.conftest import MakeSession
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held
from tests.fakes.clock import FakeClock


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults are tried again in milliseconds."""
    monkeypatch.setattr(writer_module, "RETRY_S", 0.05)


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


def until(is_so: Callable[[], bool], what: str) -> None:
    """Return when it is so."""
    late = time.monotonic() + BOUND_S
    pause = threading.Event()
    while not is_so():
        assert time.monotonic() < late, what
        pause.wait(0.01)


def saved(run: Run) -> Run:
    """Return the run when it is in the file."""
    until(lambda: run.number is not None and run.problem is None, f"not saved: {run.problem}")
    return run


@contextmanager
def locked(path: Path, how: str = "IMMEDIATE") -> Iterator[None]:
    """Hold the file's lock, as a backup program might."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        if how == "EXCLUSIVE":  # readers are kept out as well
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute(f"BEGIN {how}")
        other.execute("UPDATE runs SET name = name")
        yield
        other.execute("ROLLBACK")


def made(path: Path, count: int = 1) -> None:
    """Make a store with some runs, of which each has some text."""
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    with NotebookSession(store=path) as session:
        for _ in range(count):
            ended(session.start(agents.talking))


def said(session: NotebookSession) -> str:
    """Return what doctor says of the store."""
    return "\n".join(map(str, kept(session.store)))


def texts(session: NotebookSession) -> list[str]:
    """Return the texts of all runs, the newest first, after looking that their logs have no gap."""
    for run in session.runs():
        assert [event.seq for event in run.events()] == list(range(run.record.event_count))
    return [run.text for run in session.runs()]


# --- locked ------------------------------------------------------------------------------------------


def test_a_file_that_is_locked_at_load_is_waited_for(
    make_session: MakeSession, store_path: Path, tmp_path: Path
) -> None:
    """A start is not held up, the run ends, and is written where it belongs when the lock goes, and nowhere else."""
    made(store_path)
    elsewhere = tmp_path / "data" / "test.db"
    with locked(store_path):
        session = make_session(store=SessionStore([store_path, elsewhere], SystemClock()))
        run = ended(session.start(agents.talking, "meanwhile"))
        assert run.problem == f"the file is locked by another program ({store_path})"
        assert "✘ problem  store: can't be written: the file is locked" in said(session)
        assert "1 run is in memory, waiting to be saved" in said(session)
    saved(run)
    assert (run.number, session.store.path, session.store.fault) == (2, store_path, None)
    assert not elsewhere.exists()
    assert texts(session) == ["one two three"] * 2


def test_while_a_file_is_known_to_be_locked_nothing_waits_for_it(make_session: MakeSession, store_path: Path) -> None:
    """Only the first commit takes the time that a lock is given; starts and ends after that are prompt."""
    session = make_session()
    ended(session.start(agents.instant))
    with locked(store_path):
        ended(session.start(agents.instant))
        for _ in range(10):
            ended(session.start(agents.instant))
            assert session.store.fault is not None
        assert session.store.behind == 11
    until(lambda: session.store.behind == 0, "still behind")
    assert len(session.runs()) == 12


def test_a_file_that_nobody_may_read_is_told_in_one_line(make_session: MakeSession, store_path: Path) -> None:
    """Who reads a file under an exclusive lock gets an error that says so; the run goes on."""
    made(store_path)
    with locked(store_path, "EXCLUSIVE"):
        session = make_session()
        run = ended(session.start(agents.talking))
        with pytest.raises(StoreUnavailable, match="locked by another program") as caught:
            session.runs()
        assert len(caught.value._render_traceback_()) == 1
        assert run.events()[-1].type == "run.completed"
    saved(run)
    assert len(session.runs()) == 2


# --- full --------------------------------------------------------------------------------------------


class SmallDisk:
    """A folder on a disk that can be filled: a small file system, or a limit on the size of files.

    The limit is for where nobody may mount: it holds for all files of this process, so it is not on for long.
    """

    def __init__(self, folder: Path, *, is_mounted: bool) -> None:
        self.folder = folder
        self.is_mounted = is_mounted
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Let nothing more be written until the block is left, however that happens: pytest's report is a file too."""
        try:
            self._fill()
            yield
        finally:
            (self.folder / "ballast").unlink(missing_ok=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    def _fill(self) -> None:
        if self.is_mounted:
            with (self.folder / "ballast").open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    return
        biggest = max(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        resource.setrlimit(resource.RLIMIT_FSIZE, (biggest, self._limits[1]))


@pytest.fixture(params=["file system", "limit"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk with 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "nbrun-test", str(folder)]
    is_mounted = (
        request.param == "file system"
        and shutil.which("mount") is not None
        and subprocess.run(mount, capture_output=True).returncode == 0
    )
    try:
        yield SmallDisk(folder, is_mounted=is_mounted)
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_in_the_middle_of_a_run_loses_nothing(
    make_session: MakeSession, small_disk: SmallDisk, held: Held
) -> None:
    """The run goes on and ends, which is told with what is wrong; when there is room all of it is written."""
    session = make_session(store=small_disk.folder / ".nbrun" / "x.db")
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    why = "the disk is full" if small_disk.is_mounted else "the disk refused the write"
    with small_disk.full():
        big = ended(session.start(agents.chatty(20_000)))
        held.let_go()
        ended(run)
        assert (big.problem or "").startswith(why)
        assert f"can't be written: {why}" in said(session)
        assert len(big.events()) == 20_003
    saved(big)
    saved(run)
    assert session.store.fault is None
    assert "not written" not in said(session)
    session.close()
    again = make_session(store=small_disk.folder / ".nbrun" / "x.db")
    assert [len(one.events()) for one in again.runs()] == [20_003, run.record.event_count]
    assert again.get("#2").text == big.text
    again.close()


def test_a_disk_that_is_full_at_the_first_run_is_waited_for(make_session: MakeSession, small_disk: SmallDisk) -> None:
    """With no other place to go to, runs wait in memory for room, and are not given up to it."""
    (small_disk.folder / ".nbrun").mkdir()
    (small_disk.folder / ".nbrun" / ".gitignore").write_text("*\n")
    with small_disk.full():
        session = make_session(store=small_disk.folder / ".nbrun" / "x.db")
        run = ended(session.start(agents.talking))
        assert "the disk" in (run.problem or "")
    saved(run)
    assert session.store.is_durable
    assert texts(session) == ["one two three"]
    session.close()


# --- silent ------------------------------------------------------------------------------------------


@contextmanager
def silent(session: NotebookSession) -> Iterator[None]:
    """Have no statement of the writer come back, as from a disk that does not answer."""
    connection = session.store._write_connection
    assert connection is not None
    answer, is_asked = threading.Event(), threading.Event()

    def wait() -> int:
        is_asked.set()
        answer.wait(BOUND_S)
        return 0

    connection.set_progress_handler(wait, 1)
    try:
        yield
        assert is_asked.is_set()
    finally:
        answer.set()  # the handler stays: to take it away would wait for the statement, and keep all others out


def test_a_disk_that_does_not_answer_keeps_no_end_back(
    make_session: MakeSession, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while what waits for it becomes public unsaved, and what comes then; when it answers, all is written."""
    monkeypatch.setattr(writer_module, "HANG_S", 0.2)
    session = make_session()
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    with silent(session):
        first = session.start(agents.talking, "first")
        ended(first)
        assert first.problem == "the disk has not answered for 0.2 s"
        second = ended(session.start(agents.chatty(500), "second"))
        assert [event.seq for event in second.events()] == list(range(503))
        held.let_go()
        ended(run)
        assert "can't be written: the disk has not answered" in said(session)
    for one in (run, first, second):
        saved(one)
    assert [one.number for one in (run, first, second)] == [1, 2, 3]
    assert session.store.fault is None
    session.close()
    assert texts(make_session()) == [second.text, first.text, run.text]


def test_the_watch_over_the_writer_rests_when_nothing_is_written(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that is idle is not woken for it."""
    monkeypatch.setattr(writer_module, "LOOK_S", 0.02)
    session = make_session()
    ended(session.start(agents.instant))
    writer = session.store._writer
    assert writer is not None
    until(lambda: not writer._stall_guard._is_awake, "it looks on and on")


# --- a backlog that grows ----------------------------------------------------------------------------


def test_a_backlog_is_bounded_and_says_what_it_left_out(
    make_session: MakeSession, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit events are let go of, not their text, nor the end; the log has no gap and says how many."""
    monkeypatch.setattr(writer_module, "HELD_BYTES", 100_000)
    session = make_session()
    ended(session.start(agents.instant))

    async def busy(prompt: str, run: object) -> str:
        from nbrun import RunContext

        assert isinstance(run, RunContext)
        for number in range(2_000):
            run.text(f"{number} ")
            run.emit("thing", {"number": number})
        return "done"

    with locked(store_path):
        run = ended(session.start(busy))
        whole = run.text
        assert run.output == "done"
        in_memory = run.events()
        assert session.store._writer is not None
        assert session.store._writer._held < 150_000
    saved(run)
    stored = run.events()
    assert [event.seq for event in stored] == list(range(4_003))
    assert [event.data for event in stored[1:]] == [event.data for event in in_memory[1:]]
    (marker,) = [event.data for event in stored if isinstance(event.data, ev.Log)]
    assert " events were not kept: the file is locked by another program" in marker.text
    assert ", since " in marker.text
    kept_ones = [event for event in stored if event.type == "custom"]
    assert 0 < len(kept_ones) < 2_000
    session.close()
    again = make_session().get("#2")
    assert (again.status, again.text, again.record.output) == ("completed", whole, "done")


def test_a_text_that_was_cut_in_memory_is_whole_through_a_fault(
    make_session: MakeSession, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is cut while events wait, since what was let go of them is a part of the record's text."""
    monkeypatch.setattr("nbrun.core.record.TEXT_KEPT", 1_000)
    monkeypatch.setattr(writer_module, "HELD_BYTES", 20_000)
    session, gate = make_session(), threading.Event()
    pieces = [f"{number} " for number in range(4_000)]

    def busy(prompt: str, run: RunContext) -> None:
        for piece in pieces[:1_000]:
            run.text(piece)
        assert gate.wait(BOUND_S)
        for piece in pieces[1_000:]:
            run.text(piece)

    run = session.start(busy)
    assert run.live is not None
    assert run.live.wait_until(lambda record: record.text.endswith(pieces[999]) and record.text_cut > 0, BOUND_S)
    with locked(store_path):
        gate.set()
        assert ended(run).text == run.output == "".join(pieces)
        assert run.record.text_cut > 0
    saved(run)
    assert run.text == "".join(pieces)
    session.close()
    again = make_session().get("#1")
    assert (again.text, again.record.text_cut) == ("".join(pieces), 0)


def test_a_long_fault_costs_no_memory_for_what_was_dropped() -> None:
    """However many events were let go of, they are one entry, and are written a few at a time."""
    dropped = Dropped("run-1", 2, 100_000, 5.0, 1, "disk full, since 12:03", 0, 4)
    parts = list(dropped.parts("text and more"))
    assert max(map(len, parts)) <= 1024
    flat = [event for part in parts for event in part]
    assert [event.seq for event in flat] == list(range(2, 100_002))
    assert flat[0].data == ev.Log("100000 events were not kept: disk full, since 12:03", "warning")
    assert flat[1].data == ev.TextDelta("text")
    assert {event.data for event in flat[2:]} == {ev.TextDelta("")}


# --- gone --------------------------------------------------------------------------------------------


def delete(path: Path) -> None:
    """Delete the database, and leave its journal."""
    path.unlink()


def delete_all(path: Path) -> None:
    """Delete the folder."""
    shutil.rmtree(path.parent)


def move_away(path: Path) -> None:
    """Give the database another name."""
    path.rename(path.parent.parent / "away.db")


def replace(path: Path) -> None:
    """Put another notebook's store in its place, journal and all left as they are."""
    other = path.parent.parent / "other" / "y.db"
    made(other, 3)
    other.replace(path)


@pytest.mark.parametrize("befall", [delete, delete_all, move_away, replace])
def test_a_file_that_is_gone_is_begun_again_with_what_the_kernel_knows(
    make_session: MakeSession, store_path: Path, held: Held, befall: Callable[[Path], None]
) -> None:
    """Runs that have ended and those under way are in the new file, logs whole; cards and doctor say what happened."""
    session = make_session()
    before = ended(session.start(agents.talking, "before"))
    run = session.start(held, "during")
    assert held.entered.wait(BOUND_S)
    befall(store_path)
    after = ended(session.start(agents.talking, "after"))
    until(lambda: bool(run.record.notices), "no card tells it")
    held.let_go()
    ended(run)
    others = 3 if befall is replace else 0
    assert [one.number for one in (before, run, after)] == [others + n for n in (1, 2, 3)]
    what = "replaced by another file" if befall is replace else "deleted or moved"
    assert any(what in notice for notice in run.record.notices)
    assert f"• note     store: {store_path} was {what}" in said(session)
    assert session.store.fault is None
    session.close()
    again = make_session()
    assert texts(again) == [after.text, run.text, before.text] + ["one two three"] * others
    assert again.store.incidents == ()
    again.close()
    left = {path.name for path in store_path.parent.iterdir()}
    assert left == {".gitignore", store_path.name}
    with closing(sqlite3.connect(store_path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_kernels_that_share_a_file_share_the_new_one(make_session: MakeSession, store_path: Path) -> None:
    """Whichever of them misses it first makes it; the others join in, and no number is given twice."""
    first, second = make_session(ids=None), make_session(ids=None)
    for round_ in range(3):
        for session in (first, second):
            ended(session.start(agents.talking, f"round {round_}"))
        store_path.unlink()
    for session in (first, second):
        ended(session.start(agents.talking, "last"))
    until(lambda: len(first.runs()) == len(second.runs()) == 8, "not all runs are in the new file")
    assert sorted(run.number or 0 for run in first.runs()) == list(range(1, 9))
    assert texts(first) == texts(second) == ["one two three"] * 8
    with closing(sqlite3.connect(store_path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_file_that_was_moved_away_is_whole(make_session: MakeSession, store_path: Path) -> None:
    """Its journal stays behind under the old name, so what was in that is brought into it first."""
    session = make_session()
    for _ in range(3):
        ended(session.start(agents.talking))
    move_away(store_path)
    ended(session.start(agents.instant))
    session.close()
    away = SessionStore([store_path.parent.parent / "away.db"], SystemClock())
    away.open_existing()
    assert [len(away.events(number)) for number in (1, 2, 3)] == [6, 6, 6]
    away.close(1.0)


def test_the_same_file_under_another_identity_is_taken_for_what_it_is(
    make_session: MakeSession, store_path: Path
) -> None:
    """A copy that is put in the place of the file, with all of it, is gone on with; nothing is told."""
    session = make_session()
    ended(session.start(agents.talking))
    copy = store_path.with_name("copy.db")
    with closing(sqlite3.connect(store_path)) as old, closing(sqlite3.connect(copy)) as new:
        old.backup(new)
    copy.replace(store_path)
    ended(session.start(agents.talking))
    assert session.store.incidents == ()
    session.close()
    assert texts(make_session()) == ["one two three"] * 2


def test_a_notebooks_folder_that_is_gone_is_not_made_again(make_session: MakeSession, store_path: Path) -> None:
    """A project that was renamed does not come back under its old name; what waits is written when it does."""
    session = make_session()
    ended(session.start(agents.talking))
    folder = store_path.parent.parent
    renamed = folder.rename(folder.with_name("renamed"))
    run = ended(session.start(agents.talking))
    assert run.problem == f"its folder is gone ({folder})"
    assert not folder.exists()
    renamed.rename(folder)
    saved(run)
    assert (session.store.incidents, run.number) == ((), 2)


# --- damaged -----------------------------------------------------------------------------------------


def cut_short(raw: bytes) -> bytes:
    """Return half of it."""
    return raw[: len(raw) // 2]


def cut_to_a_rest(raw: bytes) -> bytes:
    """Return no more than a few bytes."""
    return raw[:50]


def flipped_head(raw: bytes) -> bytes:
    """Return it with a header that is none."""
    return bytes(byte ^ 0xFF for byte in raw[:16]) + raw[16:]


def flipped_tables(raw: bytes) -> bytes:
    """Return it with what stands behind the header turned round."""
    return raw[:100] + bytes(byte ^ 0xFF for byte in raw[100:2000]) + raw[2000:]


@pytest.mark.parametrize("damage", [cut_short, cut_to_a_rest, flipped_head, flipped_tables])
def test_a_damaged_file_is_set_aside_at_load(
    make_session: MakeSession, store_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    """It keeps every byte under a name that is told, a new file takes its place, and the run is in that."""
    made(store_path, 20)
    bytes_left = damage(store_path.read_bytes())
    store_path.write_bytes(bytes_left)
    session = make_session()
    run = ended(session.start(agents.talking))
    (aside,) = store_path.parent.glob("test.damaged-*.db")
    assert aside.read_bytes() == bytes_left
    assert (run.problem, session.store.path) == (None, store_path)
    assert any(aside.name in notice for notice in run.record.notices)
    assert f"it was set aside as {aside.name}" in said(session)
    assert texts(session) == ["one two three"]
    assert ended(session.start(agents.talking)).record.notices == ()  # told once
    session.close()
    assert len(make_session().runs()) == 2


def test_who_only_reads_sets_nothing_aside(store_path: Path) -> None:
    """The command line says that the file is damaged, and leaves it."""
    made(store_path, 5)
    raw = cut_short(store_path.read_bytes())
    store_path.write_bytes(raw)
    store = SessionStore([store_path], SystemClock())
    store.open_existing()
    with pytest.raises(StoreUnavailable, match="damaged"):
        store.runs()
    store.close(1.0)
    assert [path.name for path in store_path.parent.glob("*.db")] == [store_path.name]
    assert store_path.read_bytes() == raw


def test_a_database_of_another_program_is_not_ours_to_set_aside(make_session: MakeSession, store_path: Path) -> None:
    """A file that never was a store stays where it is, damaged or not."""
    store_path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(store_path)) as connection:
        connection.execute("CREATE TABLE precious (x)")
        connection.executemany("INSERT INTO precious VALUES (?)", [("y" * 500,)] * 100)
        connection.commit()
    raw = cut_short(store_path.read_bytes())
    store_path.write_bytes(raw)
    session = make_session()
    assert ended(session.start(agents.instant)).status is RunStatus.COMPLETED
    assert store_path.read_bytes() == raw
    assert "runs are kept in memory only" in (session.store.problem or "")


@pytest.mark.parametrize("by", ["the writer", "a reader"])
def test_a_file_that_is_damaged_under_a_kernel_is_set_aside(
    make_session: MakeSession, store_path: Path, held: Held, by: str
) -> None:
    """Whoever comes upon it: the file is kept, and what this kernel knows is in the new one."""
    session = make_session()
    before = ended(session.start(agents.talking, "before"))
    run = session.start(held, "during")
    assert held.entered.wait(BOUND_S)
    if by == "the writer":
        os.truncate(store_path, 0)
        ended(session.start(agents.instant))
    else:
        assert session.store._write_connection is not None
        size = store_path.stat().st_size
        os.truncate(store_path.with_name(f"{store_path.name}-wal"), 0)
        store_path.write_bytes(os.urandom(size))
        with pytest.raises(StoreUnavailable, match="damaged"):
            session.runs()
    until(lambda: any("is damaged" in notice for notice in run.record.notices), "not noticed")
    held.let_go()
    ended(run)
    saved(run)
    (aside,) = store_path.parent.glob("test.damaged-*.db")
    assert f"it was set aside as {aside.name}" in said(session)
    assert any(aside.name in notice for notice in run.record.notices)
    session.close()
    again = make_session()
    assert texts(again)[-2:] == [run.text, before.text]
    assert again.get("#2").status is RunStatus.COMPLETED


def test_a_disk_that_damages_every_file_is_not_filled_with_them(make_session: MakeSession, store_path: Path) -> None:
    """After a few files no more are set aside: the run goes on in memory, which is told."""
    session = make_session()
    for _ in range(database_file.SET_ASIDE_LIMIT):
        ended(session.start(agents.instant))
        os.truncate(store_path, 0)
    ended(session.start(agents.instant))
    os.truncate(store_path, 0)
    run = ended(session.start(agents.instant))
    assert "check the disk" in (run.problem or "")
    assert len(list(store_path.parent.glob("test.damaged-*.db"))) == database_file.SET_ASIDE_LIMIT


RECORDS: dict[str, list[ev.EventData]] = {
    "queued": [ev.RunCreated("s", "n", "a", "p")],
    "running": [ev.RunCreated("s", "n", "a", "p"), ev.RunStarted(), *[ev.TextDelta("x")] * 5],
    "waiting": [
        ev.RunCreated("s", "n", "a", "p"),
        ev.RunStarted(),
        ev.RunPhase("p"),
        ev.ApprovalRequested("q-1", "may I?"),
        ev.RunWaiting("q-1"),
    ],
    "completed": [ev.RunCreated("s", "n", "a", "p"), ev.RunStarted(), *[ev.TextDelta("x")] * 3, ev.RunCompleted(7)],
    "one word": [ev.RunCreated("s", "n", "a", "p"), ev.RunStarted(), ev.TextDelta("x"), ev.RunCompleted()],
    "failed": [ev.RunCreated("s", "n", "a", "p"), ev.RunStarted(), ev.Log("l"), ev.RunFailed(ev.ErrorInfo("E", "m"))],
    "cancelled early": [
        ev.RunCreated("s", "n", "a", "p"),
        ev.CancelRequested(CancelCause.USER, "why", "card"),
        ev.RunCancelled(CancelCause.USER, "why"),
    ],
    "cancelled": [
        ev.RunCreated("s", "n", "a", "p"),
        ev.RunStarted(),
        ev.CancelRequested(CancelCause.USER),
        ev.RunCancelled(CancelCause.USER, detached=("w",)),
        ev.DetachedFinished("w"),
    ],
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_log_that_cannot_be_read_is_told_again_from_its_record(name: str) -> None:
    """It has as many events, no gap, and comes to the same status, text, output and error."""
    data = RECORDS[name]
    log = [ev.RunEvent(n, 5.0 + n, "run-1", 1 if n else 0, one) for n, one in enumerate(data)]
    record = fold(log)
    flat: list[ev.RunEvent] = []
    for item in reconstructed(record, len(log)):
        flat += item.events(record.text) if isinstance(item, Dropped) else [item]
    again = fold(flat)

    def gist(one: RunRecord) -> tuple[object, ...]:
        return (
            one.event_count, one.status, one.cause, one.reason, one.text, one.output, one.error, one.prompt,
            one.created_at, one.started_at, one.ended_at, one.pending, one.still_running, one.run_id,
        )  # fmt: skip

    assert gist(again) == gist(record)
    assert sorted(event.ts for event in flat) == [event.ts for event in flat]
    for count in range(1, len(log)):  # some of it is in the backlog: no end must stand before that
        begun = [
            event
            for item in reconstructed(record, count)
            for event in (item.events("") if isinstance(item, Dropped) else [item])
        ]
        assert [event.seq for event in begun] == list(range(count))
        assert fold(begun).is_live


# --- read-only ---------------------------------------------------------------------------------------

AS_NOBODY = textwrap.dedent(
    """
    import os, sys, nbrun
    from pathlib import Path
    from nbrun.store.diagnosis import kept

    async def agent(prompt):
        return "done"

    def run(path):
        with nbrun.NotebookSession(path) as session:
            run = session.start(agent)
            assert run.wait(10)
            return run, session, "\\n".join(map(str, kept(session.store)))

    data, os.environ["XDG_DATA_HOME"] = os.environ["XDG_DATA_HOME"], str(Path(sys.argv[1]) / "warm")
    run(Path(sys.argv[1]) / "warm" / "up.ipynb")  # modules must be there before root is given up
    os.environ["XDG_DATA_HOME"] = data
    if os.getuid() == 0:
        os.setuid(65534)
    run, session, said = run(Path(sys.argv[1]) / "fixed" / "tea.ipynb")
    print(run.status, run.problem, session.store.path)
    print(session.store.problem)
    print(said)
    """
)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_may_only_be_read_is_left_for_the_next_place(what: str) -> None:
    """Without the right to write beside the notebook, runs go to the data folder; doctor says why."""
    # A folder that nobody else's rights stand in the way of.
    top = Path(tempfile.mkdtemp(prefix="nbrun-readonly-"))
    try:
        for name in ("warm", "fixed", "data"):
            (top / name).mkdir()
        top.chmod(0o755)
        (top / "data").chmod(0o777)
        store = top / "fixed" / ".nbrun" / "tea.db"
        if what == "file":
            made(store)
            store.chmod(0o444)
            store.parent.chmod(0o777 if os.getuid() == 0 else 0o755)
        (top / "fixed").chmod(0o555)
        shown = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(top)], capture_output=True, text=True, timeout=BOUND_S,
            env={**os.environ, "XDG_DATA_HOME": str(top / "data")},
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        first, problem, *said_by_doctor = shown.stdout.splitlines()
        assert first.startswith(f"completed None {top / 'data' / 'nbrun'}")
        assert problem.startswith(f"runs are not saved in {store}: ")
        assert any(line.startswith("• note") and str(store) in line for line in said_by_doctor)
    finally:
        (top / "fixed").chmod(0o755)
        shutil.rmtree(top)


# --- the clock ---------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_turns_no_run_round(make_session: MakeSession, store_path: Path, held: Held) -> None:
    """The events of a run stay in order, no time is negative, and the next run is still the newest."""
    clock = FakeClock()
    session = make_session(clock=clock, store=SessionStore([store_path], clock))
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    clock.move(-3600)
    held.let_go()
    ended(run)
    times = [event.ts for event in run.events()]
    assert times == sorted(times)
    assert run.record.elapsed_s(clock.now()) == 0.0
    after = ended(session.start(agents.instant))
    assert [one.number for one in session.runs()] == [after.number, run.number]
    session.close()
    assert [one.status for one in make_session().runs()] == ["completed", "completed"]


def test_a_sound_store_has_no_trouble(make_session: MakeSession) -> None:
    """Nothing is told of a store that nothing has befallen."""
    session = make_session()
    ended(session.start(agents.instant))
    assert (session.store.fault, session.store.incidents, session.store.behind) == (None, (), 0)
    assert {found.sign for found in kept(session.store)} == {Sign.OK}
    assert BUSY_TIMEOUT_S == 1.0
