"""Whose the folder and the files of a store are: another user's aren't used, and nobody else may use ours."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbrun import NotebookSession
from nbrun.core import ArtifactFiles, ArtifactLost, JournalFiles, StoreReadOnly
from nbrun.store import diagnosis, newest_references, open_for_writing
from nbrun.store.read_only import open_to_read
from tests.fakes.agents import BOUND_S, instant
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no modes there")
needs_root = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can be two users")
NOBODY, STRANGER = 65534, 65533


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where everybody may make files and nobody may remove another's, as /tmp is."""
    folder = Path(tempfile.mkdtemp(prefix="nbrun-shared-"))  # pytest's own is closed to other users
    (folder / "data").mkdir()
    for each in (folder, folder / "data"):
        each.chmod(0o1777)
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    yield folder
    shutil.rmtree(folder)


def mode(path: Path) -> int:
    """Return what its owner, group and others may do."""
    return stat.S_IMODE(path.lstat().st_mode)


def made(store: Path) -> Path:
    """Make a store with one run; it is closed."""
    with NotebookSession(store=store) as session:
        session.start(instant, "theirs").result(BOUND_S)
    return store


def given_away(top: Path, to: int = STRANGER, rights: int = 0o777) -> None:
    """Make a file or a folder, and all in it, another user's, with rights for everybody."""
    for path in (top, *top.rglob("*")):
        path.chmod(rights if path.is_dir() else rights & 0o666)
        os.chown(path, to, to, follow_symlinks=False)


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Return what is in a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


# --- another user's ------------------------------------------------------------------------------------


def _folder(beside: Path) -> Path:
    beside.parent.mkdir()
    return beside.parent


def _store(beside: Path) -> Path:
    made(beside)
    return beside.parent


def _file(beside: Path) -> Path:
    beside.parent.mkdir(mode=0o700)
    open_for_writing(beside).close()
    return beside


def _empty_file(beside: Path) -> Path:
    beside.parent.mkdir(mode=0o700)
    beside.touch()
    return beside


def _journal(beside: Path) -> Path:
    made(beside)
    beside.with_name("tea.db-wal").touch()
    return beside.with_name("tea.db-wal")


def _index(beside: Path) -> Path:
    made(beside)
    beside.with_name("tea.db-shm").touch()
    return beside.with_name("tea.db-shm")


def _locks(beside: Path) -> Path:
    made(beside)
    beside.with_name("tea.db-lock").mkdir()
    return beside.with_name("tea.db-lock")


PLANTED = [_folder, _store, _file, _empty_file, _journal, _index, _locks]
BY_NAME = PLANTED[2:]


@needs_root
@pytest.mark.parametrize("plant", PLANTED)
def test_what_another_user_has_put_beside_the_notebook_is_not_used(shared: Path, plant: Callable[[Path], Path]) -> None:
    """It is neither read nor written; runs go to the data folder, and card and doctor say why in one line."""
    beside = shared / ".nbrun" / "tea.db"
    planted = plant(beside)
    given_away(planted)
    before = contents(shared / ".nbrun")
    with NotebookSession(shared / "tea.ipynb") as session:
        run = session.start(instant, "mine")
        assert run.result(BOUND_S) == "done: mine"
        (notice,) = run.record.notices
        assert notice.startswith(f"runs are not saved in {beside}: ")
        named = "it" if planted == beside else planted
        assert f": {named} belongs to another user (user id {STRANGER})" in notice
        assert notice.endswith(f"; new runs are saved in {session.store.path}")
        assert (session.store.path or beside).is_relative_to(shared / "data" / "nbrun")
        assert "theirs" not in [each.record.prompt for each in session.runs()]
        assert any(notice in str(finding) for finding in diagnosis.kept(session.store))
    assert newest_references(beside, 9, FakeClock()) == []
    if beside.exists():
        with pytest.raises(StoreReadOnly, match="another user"):
            open_to_read(beside)
    after = contents(shared / ".nbrun")
    after.pop(shared / ".nbrun" / ".gitignore", None)  # the folder itself may be ours
    before.pop(shared / ".nbrun" / ".gitignore", None)
    assert after == before


@needs_root
@pytest.mark.parametrize("plant", BY_NAME)
def test_another_users_file_under_a_name_of_ours_is_not_used(shared: Path, plant: Callable[[Path], Path]) -> None:
    """A store that `NbRun.store` names has no other place; its runs are in memory."""

    def seen() -> dict[Path, bytes | None]:
        return {path: data for path, data in contents(shared).items() if path.name.startswith("tea.db")}

    given_away(plant(shared / "deep" / "tea.db"))
    for path in (shared / "deep").iterdir():
        path.rename(shared / path.name)
    before = seen()
    with NotebookSession(store=shared / "tea.db") as session:
        run = session.start(instant, "mine")
        assert run.result(BOUND_S) == "done: mine"
        assert session.store.path is None
        assert "another user" in (session.store.problem or "")
    assert seen() == before
    assert mode(shared) == 0o1777


@needs_root
def test_a_folder_in_the_data_folder_that_another_user_has_made_is_not_used(shared: Path) -> None:
    """The second place is looked at like the first one."""
    (shared / "file").touch()
    with NotebookSession(shared / "file" / "tea.ipynb") as session:
        session.start(instant, "mine").result(BOUND_S)
        path = session.store.path
    assert path is not None
    given_away(path.parent)
    with NotebookSession(shared / "file" / "tea.ipynb") as session:
        session.start(instant, "mine").result(BOUND_S)
        assert session.store.path is None


@needs_root
@pytest.mark.parametrize("part", ["", "aa"])
def test_another_users_folder_of_files_is_not_used(shared: Path, part: str) -> None:
    """Neither is the folder nor one within it."""
    files = ArtifactFiles(shared / "tea.files")
    sha256, size = files.keep(b"mine")
    planted = shared / "tea.files" / (part and sha256[:2])
    os.chown(planted, STRANGER, STRANGER)
    with pytest.raises(StoreReadOnly, match="another user"):
        files.keep(b"mine")
    with pytest.raises(ArtifactLost, match="another user"):
        files.read(sha256, size, "x")


@needs_root
def test_root_works_in_a_users_folder(tmp_path: Path) -> None:
    """As in a container: what the owner of the notebook's folder has there is used."""
    made(tmp_path / "home" / ".nbrun" / "tea.db")
    given_away(tmp_path / "home")
    with NotebookSession(tmp_path / "home" / "tea.ipynb") as session:
        run = session.start(instant, "mine")
        run.result(BOUND_S)
        assert (run.record.notices, [each.number for each in session.runs()]) == ((), [2, 1])


AS_NOBODY = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    import nbrun
    from nbrun.store.diagnosis import kept

    def agent(prompt):
        return prompt

    top, path = Path(sys.argv[1]), Path(sys.argv[2])
    with nbrun.NotebookSession(store=Path(sys.argv[3])) as session:  # modules must be there before root is given up
        session.start(agent, "warm").result(10)
    os.setgid(65534)
    os.setuid(65534)
    if sys.argv[4:]:
        os.geteuid = lambda: int(sys.argv[4])
    where = {"store": path} if path.suffix == ".db" else {"path": path}
    with nbrun.NotebookSession(**where) as session:
        run = session.start(agent, "nobody's")
        run.result(10)
        print(session.store.path)
        print([each.record.prompt for each in session.runs()])
        print(session.store.problem)
        print(*kept(session.store), sep="\\n")
    """
)


def as_nobody(shared: Path, path: Path, *more: str) -> list[str]:
    """Start a run as another user; return its file, all prompts in it, its problem, and what doctor says."""
    with tempfile.TemporaryDirectory() as warm:
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, shared, path, f"{warm}/w.db", *more],
            capture_output=True, text=True, check=False, timeout=BOUND_S,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_root
@pytest.mark.parametrize("name", ["tea.ipynb", "tea.db"])
@pytest.mark.parametrize("first", ["root", "nobody"])
def test_two_users_in_one_sticky_folder_have_runs_of_their_own(shared: Path, first: str, name: str) -> None:
    """Neither reads nor writes the other's, whoever came first."""
    seen = {}
    for user in (first, "nobody" if first == "root" else "root"):
        if user == "nobody":
            where, prompts, problem, *_ = as_nobody(shared, shared / name)
        else:
            path = shared / name
            with NotebookSession(store=path) if name == "tea.db" else NotebookSession(path) as session:
                session.start(instant, "root's").result(BOUND_S)
                where, prompts = str(session.store.path), str([each.record.prompt for each in session.runs()])
                problem = str(session.store.problem)
        seen[user] = where
        assert prompts == str([f"{user}'s"])
        assert (problem == "None") == (user == first)
    assert len(set(seen.values())) == 2
    for path in shared.rglob("*.db*"):
        assert mode(path) & 0o077 == 0


@needs_root
def test_where_rights_cannot_be_changed_runs_are_kept_and_doctor_says_who_may_read_them(shared: Path) -> None:
    """Here because the folder is root's, whose rights another user can't change."""
    made(shared / ".nbrun" / "tea.db")
    given_away(shared / ".nbrun", to=0)
    where, prompts, problem, *doctor = as_nobody(shared, shared / "tea.ipynb")
    assert where == str(shared / ".nbrun" / "tea.db")
    assert (prompts, problem) == ("[\"nobody's\", 'theirs']", "None")
    assert [line for line in doctor if line.startswith("• note") and f"other users may read {where}" in line]


@needs_root
def test_a_file_system_with_one_owner_for_all_files_is_used(shared: Path) -> None:
    """As a network share may show them: a new file there isn't this user's either."""
    _, _, problem, *_ = as_nobody(shared, shared / "tea.ipynb")
    assert problem == "None"
    (shared / ".nbrun").chmod(0o700)
    where, prompts, problem, *_ = as_nobody(shared, shared / "tea.ipynb", "1234")
    assert (where, problem) == (str(shared / ".nbrun" / "tea.db"), "None")
    assert prompts == str(["nobody's"] * 2)


# --- ours ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rights", [0o755, 0o777, 0o770])
def test_a_store_that_was_cloned_or_copied_becomes_its_owners_only(tmp_path: Path, rights: int) -> None:
    """The folder, the file and all that belongs to it."""
    folder = tmp_path / ".nbrun"
    made(folder / "tea.db")
    ArtifactFiles(folder / "tea.files").keep(b"x")
    (folder / "tea.db-wal").touch()
    (folder / "tea.db-shm").touch()
    given_away(folder, to=os.getuid(), rights=rights)
    with NotebookSession(tmp_path / "tea.ipynb") as session:
        run = session.start(instant, "mine")
        run.result(BOUND_S)
        ArtifactFiles(folder / "tea.files").keep(b"x")
        assert run.record.notices == ()
        found = {path.name: mode(path) for path in (folder, *folder.glob("tea.*")) if path.exists()}
        assert {path: each for path, each in found.items() if each & 0o077} == {}
        assert {"tea.db", "tea.db-wal", "tea.files", ".nbrun"} <= set(found)
        assert not any("other users" in str(finding) for finding in diagnosis.kept(session.store))


@pytest.mark.parametrize("rights", [0o755, 0o777])
def test_a_folder_that_nbrun_has_not_named_stays_as_it_is(tmp_path: Path, rights: int) -> None:
    """It may be for others too; the store in it is not."""
    folder = tmp_path / "project"
    made(folder / "runs.db")
    given_away(folder, to=os.getuid(), rights=rights)
    with NotebookSession(store=folder / "runs.db") as session:
        session.start(instant, "mine").result(BOUND_S)
        assert {mode(path) & 0o077 for path in folder.iterdir()} == {0}
    assert mode(folder) == rights
    assert not (folder / ".gitignore").exists()


def test_a_store_that_its_owner_has_protected_stays_protected(tmp_path: Path) -> None:
    """Only others lose rights; nobody gets any."""
    path = made(tmp_path / ".nbrun" / "tea.db")
    path.chmod(0o444)
    with NotebookSession(tmp_path / "tea.ipynb") as session:
        session.start(instant, "mine").result(BOUND_S)
    assert mode(path) == 0o400


# --- .gitignore ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", ["link", "dangling link", "text", "empty", "long", "pipe"])
def test_a_gitignore_that_is_not_ours_is_renewed(tmp_path: Path, planted: str) -> None:
    """And nothing is written to where it leads."""
    folder, target = tmp_path / ".nbrun", tmp_path / "target"
    folder.mkdir()
    ignore = folder / ".gitignore"
    if planted == "link":
        target.write_text("!*\n")
    if planted.endswith("link"):
        ignore.symlink_to(target)
    elif planted == "pipe":
        os.mkfifo(ignore)
    else:
        ignore.write_text({"text": "!*\n", "empty": "", "long": "*\n" + "#" * 99 + "\n!*\n"}[planted])
    made(folder / "tea.db")
    assert stat.S_ISREG(ignore.lstat().st_mode)
    assert (ignore.read_text(), mode(ignore)) == ("*\n", 0o600)
    assert (target.read_text() if planted == "link" else target.exists()) == ("!*\n" if planted == "link" else False)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_gitignore_that_is_ours_stays(tmp_path: Path, end: str) -> None:
    """Git may have changed the end of its line."""
    ignore = tmp_path / ".nbrun" / ".gitignore"
    ignore.parent.mkdir()
    ignore.write_bytes(f"*{end}".encode())
    before = ignore.stat()
    made(ignore.with_name("tea.db"))
    assert (ignore.stat().st_ino, ignore.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


# --- the journals of runs ------------------------------------------------------------------------------

NAME = "ab" * 32


@pytest.mark.parametrize("which", ["journal", "."])
def test_a_journal_is_not_written_through_a_link(tmp_path: Path, which: str) -> None:
    """Neither the folder of journals nor the one around it may be a link; nothing behind it is read or removed."""
    other, files = tmp_path / "other", tmp_path / "session.files"
    (other / "journal").mkdir(parents=True)
    theirs = other / "journal" / NAME
    theirs.write_bytes(b"theirs")
    os.utime(theirs, (1, 1))
    if which == ".":
        files.symlink_to(other)
    else:
        files.mkdir()
        (files / "journal").symlink_to(other / "journal")
    journals = JournalFiles(files)
    with pytest.raises(StoreReadOnly, match="symbolic link"):
        journals.append("cd" * 32, b"mine")
    assert (journals.read(NAME), journals.size(), journals.remove(NAME)) == (b"", 0, 0)
    assert journals.remove_strays((), 1e9) == 0
    assert [path.name for path in (other / "journal").iterdir()] == [NAME]


def test_nobody_else_may_use_the_folder_of_journals(tmp_path: Path) -> None:
    """One that was planted with rights for all loses them before anything is written there."""
    folder = tmp_path / "session.files" / "journal"
    folder.mkdir(parents=True)
    for part in (folder.parent, folder):
        part.chmod(0o777)
    journals = JournalFiles(folder.parent)
    journals.append(NAME, b"mine")
    journals.close()
    assert [stat.S_IMODE(part.stat().st_mode) for part in (folder.parent, folder)] == [0o700, 0o700]


def test_a_pipe_in_place_of_a_journal_blocks_nobody(tmp_path: Path) -> None:
    """A run would wait in it for ever, and with it all others and the close."""
    journals = JournalFiles(tmp_path / "session.files")
    journals.append("cd" * 32, b"mine")
    folder = tmp_path / "session.files" / "journal"
    os.mkfifo(folder / NAME)
    with pytest.raises(OSError):  # noqa: PT011 - of the system
        journals.append(NAME, b"mine")
    reader = os.open(folder / NAME, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(StoreReadOnly, match="not a file"):
        journals.append(NAME, b"mine")
    os.close(reader)
    journals.close()


def test_a_folder_of_journals_that_was_removed_is_made_again(tmp_path: Path) -> None:
    """As an empty one, with the next answer."""
    journals = JournalFiles(tmp_path / "session.files")
    journals.append("cd" * 32, b"mine")
    shutil.rmtree(tmp_path / "session.files")
    journals.append(NAME, b"more")
    journals.close()
    assert journals.read(NAME) == b"more"
