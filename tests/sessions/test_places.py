"""Where a session keeps its runs: beside its notebook if that can be written, and nowhere at the cost of a load."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from nbrun import NotebookSession, cli
from nbrun.store import FOLDER, diagnosis
from tests.fakes.agents import BOUND_S, instant


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home: no HOME, and nothing in the password file, as in many containers."""

    def unknown(_uid: int) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_DATA_HOME", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.fixture
def gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder that was deleted."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()


def shown_of(session: NotebookSession) -> tuple[str, tuple[str, ...]]:
    """Run an agent to its end; return its output, and what its card says of the store."""
    run = session.start(instant, "tea")
    return str(run.result(BOUND_S)), run.record.notices


@pytest.mark.usefixtures("homeless")
def test_without_a_home_runs_are_kept_beside_the_notebook(tmp_path: Path) -> None:
    """The data folder isn't needed where that works."""
    with NotebookSession(tmp_path / "a.ipynb") as session:
        assert shown_of(session) == ("done: tea", ())
        assert session.store.path == tmp_path / ".nbrun" / "a.db"


@pytest.mark.usefixtures("homeless")
def test_with_neither_a_home_nor_a_folder_to_write_runs_are_in_memory(tmp_path: Path) -> None:
    """And the card says why, in one line."""
    (tmp_path / "file").touch()  # for everybody, root included
    with NotebookSession(tmp_path / "file" / "a.ipynb") as session:
        output, (notice,) = shown_of(session)
        assert (output, session.store.path) == ("done: tea", None)
        assert f"runs are not saved in {tmp_path}/file/.nbrun/a.db: " in notice
        assert notice.endswith("; runs are kept in memory only")


@pytest.mark.usefixtures("homeless", "gone")
@pytest.mark.parametrize("path", [None, "a.ipynb"])
def test_in_a_folder_that_is_gone_runs_are_in_memory(path: str | None) -> None:
    """And the card and the doctor say why, also of a notebook whose path is relative to it."""
    with NotebookSession(path) as session:
        words = "the kernel's working folder is gone; runs are kept in memory only"
        (before,) = diagnosis.kept(session.store)
        assert "the kernel's working folder is gone" in str(before)
        assert shown_of(session) == ("done: tea", (words,))
        (after,) = [*diagnosis.kept(session.store), *diagnosis.set_aside(session.store)]
        assert words in str(after)
        assert [run.output for run in session.runs()] == ["done: tea"]


@pytest.mark.usefixtures("gone")
@pytest.mark.parametrize("command", ["list", "doctor", "gc", "show", "demo"])
def test_a_command_in_a_folder_that_is_gone_says_so(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line."""
    assert cli.main([command, *(["1"] if command == "show" else [])]) == 1
    assert capsys.readouterr().err == "nbrun: the working folder is gone; change to another one\n"


def test_the_extension_loads_without_a_home_in_a_folder_that_is_gone(tmp_path: Path) -> None:
    """And an agent runs."""
    code = """
import os, pwd
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()  # IPython itself needs a home or a folder
def unknown(*_): raise KeyError("uid not found")
pwd.getpwuid = unknown
os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone"); del os.environ["HOME"]
for cell in ("%load_ext nbrun", "%%agentrun --python\\nprint(6 * 7)", "%agentrun doctor", "%agentrun list"):
    shell.run_cell(cell).raise_error()
"""
    env = {name: text for name, text in os.environ.items() if name != "XDG_DATA_HOME"}
    env |= {
        "HOME": str(tmp_path),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "42" in done.stdout
    assert "the kernel's working folder is gone" in done.stdout
    assert "failed" not in done.stdout


def test_a_name_that_no_file_can_have_costs_the_store_and_not_the_session(tmp_path: Path) -> None:
    """Nor does anything else that keeps the place from being looked at."""
    with NotebookSession(tmp_path / ("n" * 255)) as session:
        output, (notice,) = shown_of(session)
        assert output == "done: tea"
        assert "File name too long" in notice


# --- a notebook that is renamed ------------------------------------------------------------------------

RENAMED = "this notebook was renamed: its runs are in "


class Folder:
    """A folder of notebooks, each with the runs of one session."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, *, cell_id: str = "0a1b2c3d", shows: NotebookSession | None = None) -> Path:
        """Write a notebook with one cell, which shows a run of this session."""
        cell = nbformat.v4.new_code_cell(id=cell_id)
        if shows is not None:
            data = {"application/vnd.nbrun.run+json": {"session_id": shows.id, "run_id": "run-1"}}
            cell.outputs = [nbformat.v4.new_output("display_data", data)]
        path = self.path / name
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
        return path

    def run_in(self, name: str, *, cell_id: str | None = "0a1b2c3d") -> tuple[tuple[str, ...], list[int | None]]:
        """Run an agent in a session of this notebook; return what its card says, and the numbers of all runs."""
        with NotebookSession(self.path / name) as session:
            run = session.start(instant, "tea", cell_id=cell_id)
            run.result(BOUND_S)
            return run.record.notices, [each.number for each in session.runs()]

    def rename(self, name: str, to: str) -> None:
        """Rename a notebook as JupyterLab does: nothing else is renamed."""
        (self.path / name).rename(self.path / to)

    @property
    def stores(self) -> list[str]:
        """The names of all stores."""
        return sorted(path.name for path in (self.path / FOLDER).glob("*.db"))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty one."""
    return Folder(tmp_path)


def test_the_runs_of_a_renamed_notebook_are_found(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """By the cells that started them, however often it is renamed; the card says where, and commands find them."""
    folder.write("a.ipynb")
    assert folder.run_in("a.ipynb") == ((), [1])
    for number, (name, to) in enumerate([("a.ipynb", "b.ipynb"), ("b.ipynb", "c.ipynb")], 2):
        folder.rename(name, to)
        notices, numbers = folder.run_in(to)
        assert notices == (f"{RENAMED}{folder.path / FOLDER / 'a.db'}",)
        assert numbers == [*range(number, 0, -1)]
    assert folder.stores == ["a.db"]
    assert cli.main(["list", str(folder.path / "c.ipynb")]) == 0
    assert "#3" in capsys.readouterr().out


def test_they_are_found_by_what_the_notebook_shows_and_by_its_name(folder: Folder) -> None:
    """Where no cell is known, as of runs that were started in Python: by their cards, and once found by the path."""
    path = folder.write("a.ipynb")
    with NotebookSession(path) as session:
        session.start(instant, "tea").result(BOUND_S)
        folder.write("a.ipynb", shows=session)
    folder.rename("a.ipynb", "b.ipynb")
    assert folder.run_in("b.ipynb", cell_id=None)[1] == [2, 1]
    folder.write("b.ipynb", cell_id="ffffffff")  # its outputs were cleared, and its cells made again
    assert folder.run_in("b.ipynb", cell_id=None)[1] == [3, 2, 1]


@pytest.mark.parametrize("case", ["a copy", "another", "two", "words", "set aside", "no notebook's", "no store"])
def test_nobody_elses_runs_are_taken_for_them(folder: Folder, case: str) -> None:
    """A copy has runs of its own, and so has each notebook that no store knows, or more than one."""
    cell_id = "introduction" if case == "words" else "0a1b2c3d"  # templates give all their notebooks the same words
    folder.write("a.ipynb", cell_id=cell_id)
    folder.run_in("a.ipynb", cell_id=cell_id)
    folder.write("b.ipynb", cell_id="ffffffff" if case == "another" else cell_id)
    if case == "two":
        (folder.path / "c.ipynb").write_bytes((folder.path / "a.ipynb").read_bytes())
        folder.run_in("c.ipynb")
        (folder.path / "c.ipynb").unlink()
    store = folder.path / FOLDER / "a.db"
    if case == "set aside":
        store.rename(store.with_name("a.damaged-20260101T000000.db"))
    elif case == "no notebook's":
        store.rename(store.with_name("session.db"))
    elif case == "no store":
        store.write_text("notes")
    if case != "a copy":
        (folder.path / "a.ipynb").unlink()
    assert folder.run_in("b.ipynb", cell_id=None) == ((), [1])
    assert "b.db" in folder.stores
