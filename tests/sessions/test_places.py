"""Where a session keeps its runs: beside its notebook if that can be written, and nowhere at the cost of a load."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from nbrun import NotebookSession, cli
from nbrun.store import diagnosis
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
