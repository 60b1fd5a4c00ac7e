"""The store: what was shown is in the file, a strange file is left alone, and a fault loses nothing."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from nbrun import NotebookSession, Run, RunRecord, RunStatus
from nbrun.core.errors import StoreDamaged, StoreReadOnly, StoreTooNew
from nbrun.store import SessionStore, open_for_writing, places_for, schema, writer as writer_module
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held, Stubborn
from tests.fakes.clock import FakeClock

MakeSession = Callable[..., NotebookSession]


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    """Return what another connection reads from the file."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


# --- what is on disk, and when -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "status"),
    [(agents.talking, "completed"), (agents.failing, "failed"), (agents.waits_for_cancel, "cancelled")],
)
def test_an_end_is_on_disk_before_it_is_visible(
    make_session: MakeSession, store_path: Path, held: Held, agent: object, status: str
) -> None:
    """When a listener first sees a terminal status, another connection reads it, and the whole log, from the file."""
    session = make_session(max_concurrent=1)
    session.start(held)
    run = session.start(agent, "x")
    assert run.live is not None
    seen: list[tuple[RunRecord, object, object]] = []

    def look(record: RunRecord, events: object) -> None:
        if not record.is_live:
            stored = rows(store_path, "SELECT status FROM runs WHERE number = 2")
            count = rows(store_path, "SELECT sum(count) FROM events WHERE run = 2")
            seen.append((record, stored[0][0], count[0][0]))

    run.live.listen(look)
    held.let_go()
    if status == "cancelled":
        run.cancel()
    ended(run)
    session.close()
    (record, stored_status, count) = seen[0]
    assert (record.status, stored_status, count) == (status, status, record.event_count)


def test_every_shown_event_is_on_disk(session: NotebookSession, store_path: Path) -> None:
    """Not only endings: no listener is told of an event that another connection does not read."""
    run = session.start(agents.chatty(200))
    assert run.live is not None
    missing: list[int] = []

    def look(record: RunRecord, events: object) -> None:
        (stored,) = rows(store_path, "SELECT sum(count) FROM events")[0]
        if not isinstance(stored, int) or stored < record.event_count:
            missing.append(record.event_count)

    run.live.listen(look)
    ended(run)
    assert missing == []


def test_folder_and_files_are_for_their_owner_only(session: NotebookSession, store_path: Path) -> None:
    """The folder is 0700, the database and its companions 0600, whatever the umask."""
    before = os.umask(0o000)
    try:
        ended(session.start(agents.instant))
        files = list(store_path.parent.glob("test.db*"))
        assert store_path in files
        assert {path.is_dir(): stat.S_IMODE(path.stat().st_mode) for path in files} == {False: 0o600, True: 0o700}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files if path.is_file()} == {0o600}
        assert stat.S_IMODE(store_path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_the_folder_keeps_itself_out_of_version_control(session: NotebookSession, store_path: Path) -> None:
    """Runs hold prompts: the folder's own `.gitignore` names everything."""
    ended(session.start(agents.instant))
    assert (store_path.parent / ".gitignore").read_text(encoding="utf-8") == "*\n"


def test_no_file_is_made_before_the_first_run(session: NotebookSession, store_path: Path) -> None:
    """Loading, listing and looking for runs leave nothing behind."""
    assert session.runs() == []
    assert session.cancel("last").run_id is None
    session.close()
    assert not store_path.parent.exists()


def test_deltas_share_rows(session: NotebookSession, store_path: Path) -> None:
    """Consecutive text deltas are kept about 16 to a row, each with its text and number."""
    run = ended(session.start(agents.chatty(1_000)))
    (count,) = rows(store_path, "SELECT count(*) FROM events WHERE type = 'text.delta'")[0]
    assert isinstance(count, int)
    assert 62 <= count <= 70
    assert len([e for e in run.events() if e.type == "text.delta"]) == 1_000


def test_secrets_are_not_in_the_file(
    make_session: MakeSession, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a run that said its key everywhere, no byte of the store's files holds it."""
    make_session()  # cleans the environment
    secret = "sk-test-0123456789"
    monkeypatch.setenv("TEA_API_KEY", secret)
    session = make_session()

    async def tells_all(prompt: str, run: object) -> None:
        from nbrun import RunContext

        assert isinstance(run, RunContext)
        assert prompt == f"use {secret}"  # the agent's own prompt is as it was given
        for letter in f"my key is {secret}!":
            run.text(letter)
        run.log(f"log {secret}")
        print(f"print {secret}")
        run.emit("key", {"deep": [secret], secret: 1})
        run.phase(secret)
        run.progress(1, 2, secret)
        with run.tool("call", {"headers": {"auth": secret}}) as tool:
            tool.result = secret
        raise ValueError(f"refused: {secret}")

    run = ended(session.start(tells_all, f"use {secret}", name=f"n {secret}", tags={"t": secret}))
    session.close()
    for path in store_path.parent.iterdir():
        assert secret.encode() not in path.read_bytes(), path.name
    assert run.text == "my key is [TEA_API_KEY]!"
    assert run.record.prompt == "use [TEA_API_KEY]"
    assert run.record.tools[0].args == {"headers": {"auth": "[TEA_API_KEY]"}}
    assert run.error is not None
    assert run.error.message == "refused: [TEA_API_KEY]"
    assert "[TEA_API_KEY]" in run.error.traceback
    assert secret not in repr(run.events())


def test_a_secret_that_is_one_of_our_own_words_breaks_nothing(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever people use as a password, causes and field names stay readable."""
    make_session()  # cleans the environment
    monkeypatch.setenv("A_PASSWORD", "shutdown")
    monkeypatch.setenv("B_PASSWORD", "traceback")
    monkeypatch.setenv("C_PASSWORD", "requests")
    session = make_session()
    failed = ended(session.start(agents.failing, "shutdown"))
    assert (failed.status, failed.error and failed.error.message) == (RunStatus.FAILED, "no luck with [A_PASSWORD]")
    run = session.start(agents.waits_for_cancel, "shutdown traceback requests")
    session.close()
    assert run.status is RunStatus.CANCELLED
    assert run.cause == "shutdown"


# --- strange files -----------------------------------------------------------------------------------


def made_store(path: Path) -> None:
    """Make a store with one run."""
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    with NotebookSession(store=path) as session:
        ended(session.start(agents.instant))


PLANTED = {
    "newer schema": "PRAGMA user_version = 99",
    "trigger": "CREATE TRIGGER evil AFTER INSERT ON runs BEGIN DELETE FROM events; END",
    "view": "CREATE VIEW evil AS SELECT * FROM runs",
    "table": "CREATE TABLE evil (x)",
    "changed table": "ALTER TABLE runs ADD COLUMN evil TEXT",
    "missing table": "DROP TABLE checkpoints",
}


@pytest.mark.parametrize("sql", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_strange_file_is_not_written_to_and_the_run_still_works(
    make_session: MakeSession, store_path: Path, sql: str, journal: str
) -> None:
    """A store of a newer version, or with something planted, keeps every byte; runs go to memory, which is said."""
    made_store(store_path)
    with closing(sqlite3.connect(store_path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute(sql)
    before = store_path.read_bytes()
    session = make_session()
    run = ended(session.start(agents.talking))
    assert (run.status, run.output) == (RunStatus.COMPLETED, "one two three")
    assert run.events()[-1].type == "run.completed"
    assert not session.store.is_durable
    assert session.store.problem is not None
    assert str(store_path) in session.store.problem
    assert "memory only" in session.store.problem
    assert ("newer nbrun" in session.store.problem) == ("user_version" in sql)
    session.close()
    assert store_path.read_bytes() == before


def test_each_kind_of_strange_file_has_its_error(tmp_path: Path) -> None:
    """Too new, not ours, no database: each is told apart, in words that name the file."""
    path = tmp_path / ".nbrun" / "x.db"
    made_store(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreTooNew, match="update nbrun"):
        open_for_writing(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION}")
        connection.execute("CREATE TABLE evil (x)")
    with pytest.raises(StoreReadOnly, match="CREATE TABLE evil"):
        open_for_writing(path)
    other = tmp_path / "other.db"
    other.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(StoreDamaged, match="not a usable database"):
        open_for_writing(other)


def test_a_damaged_file_is_left_as_it_is(make_session: MakeSession, store_path: Path) -> None:
    """What is no database is not deleted and not written over; the run works."""
    store_path.parent.mkdir(parents=True)
    store_path.write_bytes(b"precious notes, no database" * 100)
    session = make_session()
    assert ended(session.start(agents.instant)).status is RunStatus.COMPLETED
    assert store_path.read_bytes() == b"precious notes, no database" * 100
    assert session.store.problem is not None


@pytest.mark.parametrize("link", ["file", "folder"])
def test_links_are_refused(make_session: MakeSession, store_path: Path, tmp_path: Path, link: str) -> None:
    """Nothing is written through a symbolic link that somebody has put where the store should be."""
    victim = tmp_path / "victim"
    if link == "file":
        victim.write_bytes(b"")
        store_path.parent.mkdir(parents=True)
        store_path.symlink_to(victim)
    else:
        victim.mkdir()
        store_path.parent.parent.mkdir(exist_ok=True)
        store_path.parent.symlink_to(victim)
    session = make_session()
    assert ended(session.start(agents.instant)).status is RunStatus.COMPLETED
    assert "symbolic link" in (session.store.problem or "")
    assert list(victim.iterdir()) == [] if victim.is_dir() else victim.read_bytes() == b""


def test_where_the_notebooks_folder_is_not_writable_the_data_folder_is_taken(tmp_path: Path) -> None:
    """The next place is tried, and the store says why it is not beside the notebook."""
    (tmp_path / "readonly").write_text("a file where a folder is wanted", encoding="utf-8")
    places = [tmp_path / "readonly" / ".nbrun" / "x.db", tmp_path / "data" / "x.db"]
    with NotebookSession(store=SessionStore(places, FakeClock())) as session:
        ended(session.start(agents.instant))
        assert session.store.path == places[1]
        assert str(places[0]) in (session.store.problem or "")


def test_two_notebooks_never_share_a_place(tmp_path: Path) -> None:
    """Beside the notebook by its name, and in the data folder under a name of its own."""
    first, second = (places_for(tmp_path / name / "tea.ipynb") for name in "ab")
    assert first[0] == tmp_path / "a" / ".nbrun" / "tea.db"
    assert not set(first) & set(second)


# --- faults ------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are waited for, and faults tried again, in milliseconds."""
    monkeypatch.setattr("nbrun.store.connection.BUSY_TIMEOUT_S", 0.03)
    monkeypatch.setattr(writer_module, "RETRY_S", 0.05)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file's write lock, as a backup program might."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def until_saved(run: Run) -> None:
    """Return when the run is written."""
    assert run.live is not None
    came = threading.Event()
    remove = run.live.listen(lambda _record, _events: came.set())
    try:
        for _ in range(200):
            if run.problem is None:
                return
            came.wait(0.05)
            came.clear()
    finally:
        remove()
    raise AssertionError(f"still not saved: {run.problem}")


@pytest.mark.usefixtures("impatient")
def test_a_run_ends_visibly_while_its_file_is_locked(make_session: MakeSession, store_path: Path) -> None:
    """The end is public with the problem named; when the lock is gone all of it is written, numbers and all."""
    session = make_session()
    ended(session.start(agents.instant, "before"))
    with locked(store_path):
        run = ended(session.start(agents.talking, "meanwhile"))
        assert (run.status, run.output) == (RunStatus.COMPLETED, "one two three")
        assert "locked" in (run.problem or "")
        assert [event.seq for event in run.events()] == list(range(6))
        assert rows(store_path, "SELECT count(*) FROM runs") == [(1,)]
    until_saved(run)
    assert run.number == 2
    assert [event.seq for event in run.events()] == list(range(6))
    assert run.events()[-1].type == "run.completed"
    session.close()
    stored = make_session().get("#2")
    assert (stored.status, stored.output, len(stored.events())) == ("completed", "one two three", 6)


@pytest.mark.usefixtures("impatient")
def test_a_full_disk_in_the_middle_of_a_run_loses_nothing(
    make_session: MakeSession, store_path: Path, held: Held
) -> None:
    """What cannot be written while the disk is full is written when there is room again."""
    session = make_session()
    run = session.start(held)
    assert held.entered.wait(BOUND_S)
    connection = session.store._write_connection
    assert connection is not None
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    big = ended(session.start(agents.chatty(5_000)))
    assert "full" in (big.problem or "")
    held.let_go()
    ended(run)
    connection.execute("PRAGMA max_page_count = 1000000")
    until_saved(big)
    until_saved(run)
    assert len(big.events()) == 5_003
    session.close()
    again = make_session()
    assert [(one.status, len(one.events())) for one in again.runs()] == [("completed", 5_003), ("completed", 3)]


@pytest.mark.usefixtures("impatient")
def test_detached_work_that_ends_during_a_fault_stops_nothing(make_session: MakeSession, store_path: Path) -> None:
    """The late end of a run that has long been saved is kept until it can be written, as all else is."""
    session, stubborn = make_session(cancel_grace_s=0.02), Stubborn()
    run = session.start(stubborn)
    assert stubborn.entered.wait(BOUND_S)
    assert run.cancel().wait(BOUND_S)
    with locked(store_path):
        stubborn.let_go()
        assert stubborn.left.wait(BOUND_S)
        other = ended(session.start(agents.instant, "meanwhile"))
        assert other.problem is not None
    until_saved(other)
    assert run.events()[-1].type == "detached.finished"
    assert ended(session.start(agents.instant, "after")).problem is None


@pytest.mark.usefixtures("impatient")
def test_a_reader_that_iterates_through_a_fault_misses_nothing(make_session: MakeSession, store_path: Path) -> None:
    """Events that are public and not saved come from memory, later from the file, each once."""
    import asyncio

    session = make_session()
    ended(session.start(agents.instant))

    async def follow(run: Run) -> list[int]:
        return [event.seq async for event in run]

    with locked(store_path):
        run = session.start(agents.chatty(100))
        seqs = asyncio.run(asyncio.wait_for(follow(run), BOUND_S))
    assert seqs == list(range(103))


# --- dead kernels ------------------------------------------------------------------------------------

KERNEL = textwrap.dedent(
    """
    import asyncio, sys, nbrun

    async def agent(prompt, run):
        for number in range(20):
            run.text(f"{number} ")
        run.phase("waiting to be killed")
        await asyncio.Event().wait()

    session = nbrun.NotebookSession(store=sys.argv[1], ids=nbrun.SequentialIds())
    run = session.start(agent, "tea")

    async def follow():
        async for event in run:
            if event.type == "run.phase":
                print(event.seq, flush=True)

    asyncio.run(follow())
    """
)


def test_the_run_of_a_killed_process_is_lost_with_all_that_was_shown(
    make_session: MakeSession, store_path: Path
) -> None:
    """After SIGKILL the next session shows the run as `lost`, ended with its last event, the log whole (W15)."""
    store_path.parent.parent.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", KERNEL, str(store_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        shown = int(process.stdout.readline())
        beside = make_session()
        # It lives: another session changes nothing.
        assert beside.get("#1").status is RunStatus.RUNNING
        beside.close()
    finally:
        process.kill()
        process.wait(BOUND_S)
        assert process.stdout is not None
        process.stdout.close()
    session = make_session()
    run = session.get("#1")
    events = run.events()
    assert (run.status, run.cause) == (RunStatus.LOST, "kernel_died")
    assert [event.seq for event in events] == list(range(shown + 2))
    assert events[-1].type == "run.lost"
    assert run.text == "".join(f"{number} " for number in range(20))
    assert run.ended_at == events[-2].ts
    assert run.cancel().outcome == "already_finished"
    session.close()
    assert len(make_session().get("#1").events()) == len(events)  # marked once
