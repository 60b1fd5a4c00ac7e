"""Copies, other hosts and recycled numbers: a run is told as lost only where its kernel is known to be dead."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from nbrun import NotebookSession, Run, RunStatus
from nbrun.cli import main
from nbrun.core.errors import Action, BadOption, Fix, NotPending, NotResumable, RunNotFinished, StoreReadOnly
from nbrun.render.static_card import bundle, plain_text
from nbrun.sessions import catalog
from nbrun.store import SessionStore, places_for, rows
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held
from tests.fakes.clock import NOON, FakeClock

MakeSession = Callable[..., NotebookSession]

KERNEL = """
import asyncio, sys, nbrun

async def agent(prompt, run):
    run.text("half of it")
    run.phase("under way")
    await asyncio.Event().wait()

session = nbrun.NotebookSession(store=sys.argv[1], ids=nbrun.SequentialIds())
run = session.start(agent, "tea", name="poet")

async def follow():
    async for event in run:
        if event.type == "run.phase":
            print("shown", flush=True)

asyncio.run(follow())
"""


@contextmanager
def kernel(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process with a live run in this store; killed at the end."""
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", KERNEL, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "shown\n"
        yield process
    finally:
        process.kill()
        process.wait(BOUND_S)
        process.stdout.close()


def changed(path: Path, sql: str, *values: object) -> None:
    """Change what the store says."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute(sql, values).rowcount == 1


def only_run(session: NotebookSession) -> Run:
    """Return the one run that there is."""
    (run,) = session.runs()
    return run


# --- copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_dead", [True, False])
def test_the_live_looking_run_of_a_copied_folder_is_unknown(
    make_session: MakeSession, store_path: Path, tmp_path: Path, is_dead: bool
) -> None:
    """Its kernel writes to the original, if it lives: in the copy nothing is claimed, and nothing changed."""
    copy = tmp_path / "copy" / ".nbrun" / store_path.name
    with kernel(store_path) as process:
        if is_dead:
            process.kill()
            process.wait(BOUND_S)
        shutil.copytree(store_path.parent, copy.parent)
        session = make_session(store=copy)
        run = only_run(session)
        assert run.is_unknown
        assert run.status is RunStatus.RUNNING
        assert run.text == "half of it"
        words = "Unknown: its kernel cannot be seen from here (this file is a copy"
        assert run.status_words().startswith(words)
        assert words[:40] in repr(session.runs())
        assert words in session.runs()._repr_html_()
        assert run.record.is_unknown
        assert run.glance.is_unknown
        assert run.cancel().outcome == "foreign"
        assert session.store.lost == 0
        assert [found.id for found in session.runs(status="unknown")] == [run.id]
        assert session.runs(status="running") == []
        for refused in (run.resume, run.retry, partial(session.remove, run)):
            with pytest.raises((NotResumable, BadOption), match="mark it as lost") as caught:
                refused()
            assert caught.value.fixes == (Fix(Action.LOST, f"#{run.number}"),)
        original = only_run(make_session())
        assert original.status is (RunStatus.LOST if is_dead else RunStatus.RUNNING)
        assert not original.is_unknown


def test_the_run_of_a_moved_folder_is_lost(make_session: MakeSession, store_path: Path, tmp_path: Path) -> None:
    """A folder that was moved is no copy: what its dead kernel left is lost, as it would have been."""
    with kernel(store_path):
        pass
    moved = tmp_path / "moved"
    store_path.parent.parent.rename(moved)
    session = make_session(store=moved / ".nbrun" / store_path.name)
    assert only_run(session).status is RunStatus.LOST


def test_the_move_of_a_live_kernel_s_folder_changes_nothing(
    make_session: MakeSession, store_path: Path, tmp_path: Path
) -> None:
    """Its kernel writes on into the same file, and is seen to live."""
    moved = tmp_path / "moved"
    with kernel(store_path):
        store_path.parent.parent.rename(moved)
        run = only_run(make_session(store=moved / ".nbrun" / store_path.name))
        assert (run.status, run.is_unknown) == (RunStatus.RUNNING, False)


def test_after_another_boot_a_device_may_have_another_number(make_session: MakeSession, store_path: Path) -> None:
    """Device numbers are given anew at each boot: the inode alone then tells a copy."""
    with kernel(store_path):
        pass
    changed(store_path, "UPDATE homes SET device = device + 1")
    assert only_run(make_session()).is_unknown  # same boot: another disk
    changed(store_path, "UPDATE sessions SET boot_id = 'the one before'")
    assert only_run(make_session()).status is RunStatus.LOST


def test_a_session_of_a_file_that_tells_no_home_is_taken_at_its_word(
    make_session: MakeSession, store_path: Path
) -> None:
    """Files of the first version did not note it: their dead kernels' runs are lost, as ever."""
    with kernel(store_path):
        pass
    changed(store_path, "DELETE FROM homes")
    assert only_run(make_session()).status is RunStatus.LOST


def test_two_notebooks_of_one_name_never_mix(make_session: MakeSession, tmp_path: Path) -> None:
    """Each folder's notebook lists its own runs only, while both are open and afterwards."""
    notebooks = [tmp_path / folder / "tea.ipynb" for folder in ("a", "b")]
    for notebook in notebooks:
        notebook.parent.mkdir()
    sessions = [make_session(path=notebook) for notebook in notebooks]
    for session, name in zip(sessions, ("first", "second"), strict=True):
        assert session.start(agents.instant, name=name).wait(BOUND_S)
    again = [make_session(path=notebook) for notebook in notebooks]
    for which in (sessions, again):
        assert [only_run(session).name for session in which] == ["first", "second"]
        assert [only_run(session).number for session in which] == [1, 1]
    assert not set(places_for(notebooks[0])) & set(places_for(notebooks[1]))


def test_the_runs_of_a_live_kernel_are_listed_by_the_command_line(
    store_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file is known for a store from its first run on, though most of it still stands in its journal."""
    with kernel(store_path):
        assert main(["list", str(store_path)]) == 0
        assert "poet" in capsys.readouterr().out


# --- the lease ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "status", "words"),
    [
        ("process_started_at = process_started_at + 1", "lost", "Lost: its kernel died"),
        ("boot_id = 'another'", "lost", "Lost: its kernel died"),
        ("host = 'big-box'", "running", "Unknown: its kernel cannot be seen from here (on big-box"),
        ("pid_namespace = 'pid:[1]'", "running", "cannot be seen from here (in another container"),
        ("host = 'big-box', boot_id = 'another'", "running", "(on big-box"),
    ],
    ids=["recycled number", "other boot", "other host", "other namespace", "other host and boot"],
)
def test_the_lease_decides_what_is_claimed(
    make_session: MakeSession, store_path: Path, sql: str, status: str, words: str
) -> None:
    """A kernel that lives under this number may be another one; one elsewhere is neither dead nor alive."""
    with kernel(store_path):
        changed(store_path, f"UPDATE sessions SET {sql}")  # noqa: S608 - of the list above
        run = only_run(make_session())
        assert run.status == status
        assert words in run.status_words()


def test_a_zombie_is_dead(make_session: MakeSession, store_path: Path) -> None:
    """A kernel that has ended, and that nobody has waited for, writes no more."""
    with kernel(store_path) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{process.pid}/stat").exists()
        assert only_run(make_session()).status is RunStatus.LOST


def test_an_unknown_run_says_when_its_kernel_was_last_seen(make_session: MakeSession, store_path: Path) -> None:
    """By the heartbeat, which decides nothing."""
    with kernel(store_path):
        changed(store_path, "UPDATE sessions SET host = 'big-box', heartbeat_at = ?", round((NOON - 180) * 1_000_000))
        run = only_run(make_session(clock=FakeClock()))
    said = "its kernel cannot be seen from here (on big-box, last seen 3 min 0 s ago)"
    assert run.status_words() == f"Unknown: {said}"
    saved = bundle(run.record)
    for form in ("text/html", "text/markdown", "text/plain"):
        assert "last seen 3 min 0 s ago" in saved[form]
        assert "%agentrun lost #1" in saved[form].replace("\\", "")
        assert "Was running" not in saved[form]
    assert plain_text(run.record).startswith("◌ Unknown")


@pytest.mark.parametrize(("beat_s", "has_beaten"), [(0.0, True), (rows.BEAT_S, False)])
def test_commits_carry_the_heartbeat_now_and_then(
    make_session: MakeSession,
    store_path: Path,
    held: Held,
    monkeypatch: pytest.MonkeyPatch,
    beat_s: float,
    has_beaten: bool,
) -> None:
    """A commit says that the kernel lives, if that was not said a moment ago."""
    monkeypatch.setattr(rows, "BEAT_S", beat_s)
    clock = FakeClock()
    session = make_session(clock=clock)
    session.start(held)
    assert held.entered.wait(BOUND_S)
    clock.move(60)
    assert session.start(agents.instant).wait(BOUND_S)
    with closing(sqlite3.connect(store_path)) as connection:
        (beat,) = connection.execute("SELECT heartbeat_at FROM sessions").fetchone()
    assert beat == round((NOON + (60 if has_beaten else 0)) * 1_000_000)
    held.let_go()


def test_the_end_of_an_unknown_run_is_not_waited_for(make_session: MakeSession, store_path: Path) -> None:
    """Nobody may ever see it: who waits without a limit is told so at once, with the way out."""
    with kernel(store_path):
        changed(store_path, "UPDATE sessions SET host = 'big-box'")
    run = only_run(make_session())
    assert run.wait() is False
    with pytest.raises(RunNotFinished, match=r"Unknown.*mark_lost"):
        run.result()

    async def awaited() -> object:
        return await run

    with pytest.raises(RunNotFinished, match=r"Unknown.*mark_lost"):
        asyncio.run(awaited())


# --- asked -------------------------------------------------------------------------------------------


def test_an_unknown_run_is_lost_when_somebody_says_so(
    make_session: MakeSession, store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`run.mark_lost()` writes the end, once, with its reason; the log is whole, and other readers see it."""
    with kernel(store_path):
        pass
    copy = tmp_path / "copy" / ".nbrun" / store_path.name
    shutil.copytree(store_path.parent, copy.parent)
    session = make_session(store=copy)
    run = only_run(session)
    before = run.events()
    run.mark_lost()
    assert (run.status, run.is_unknown, run.cause) == (RunStatus.LOST, False, "kernel_died")
    assert "given up by hand" in run.status_words()
    assert run.events()[:-1] == before
    assert run.ended_at == before[-1].ts
    with pytest.raises(NotPending, match="has already ended"):
        run.mark_lost()
    assert main(["list", str(copy)]) == 0
    assert "given up" in capsys.readouterr().out


def test_only_what_is_unknown_can_be_given_up(make_session: MakeSession, store_path: Path, held: Held) -> None:
    """A run whose kernel lives, one of this kernel, and one that has ended stay as they are."""
    session = make_session()
    own = session.start(held)
    with pytest.raises(NotPending, match="belongs to this kernel"):
        own.mark_lost()
    with kernel(store_path):
        other = session.get("poet")
        with pytest.raises(NotPending, match="is running; cancel the run there"):
            other.mark_lost()
        assert other.status is RunStatus.RUNNING
    held.let_go()
    assert own.wait(BOUND_S)
    with pytest.raises(NotPending):
        own.mark_lost()


def test_in_a_file_that_is_only_read_no_run_is_claimed_to_run(make_session: MakeSession, store_path: Path) -> None:
    """Its kernel is dead and nobody may write that down: it is told as unknown, with the reason."""
    with kernel(store_path):
        pass
    with closing(sqlite3.connect(store_path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    run = only_run(make_session())
    assert run.status_words() == "Unknown: its kernel died, and this file is read-only"
    with pytest.raises(StoreReadOnly, match="newer nbrun"):
        run.mark_lost()


def test_an_ended_run_is_never_to_be_cancelled(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed run that only a store in memory has can't be given up either, because it has ended."""
    monkeypatch.setattr(catalog, "KEEP_ENDED", 0)
    session = make_session(store=SessionStore([], FakeClock()))
    assert session.start(agents.failing).wait(BOUND_S)
    assert session.start(agents.instant).wait(BOUND_S)
    run = session.get(1)
    assert run.live is None
    with pytest.raises(NotPending, match=r"^Run #1 \(failing\) has already ended; there is nothing to give up\.$"):
        run.mark_lost()
