"""The `nbrun` command, as a person at a terminal meets it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbformat
import pytest

import nbrun
from nbrun import NotebookSession, RunContext, ScriptedAgent, SequentialIds, cli
from nbrun.agents import local_model
from nbrun.core.clock import SystemClock
from nbrun.core.record import RunRecord
from nbrun.store import SessionStore

COMMAND = str(Path(sys.executable).with_name("nbrun"))
NOTEBOOK = "01_first_run.ipynb"
SCRIPTED = "scripted (no model)"
LOCAL = "local (135 M parameters, tiny)"
BOUND_S = 90

slow = pytest.mark.timeout(120)  # a kernel, and where it is there the model


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment without the user's settings and keys."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JUPYTER", "JPY_", "NBRUN_", "OLLAMA_", "PYTEST_"))
        and not name.endswith(("_KEY", "_TOKEN"))
    }
    own = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    return kept | {name: str(folder / f".{name.lower()}") for name in own} | more


def run(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    return subprocess.run(
        [COMMAND, *arguments],
        cwd=cwd,
        env=environment(cwd.parent) if env is None else env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


def records_of(store_file: Path) -> list[RunRecord]:
    """Return the runs of a store, oldest first."""
    store = SessionStore([store_file], SystemClock())
    store.open_existing()
    try:
        return [store.record(run.number) for run in reversed(store.runs())]
    finally:
        store.close(1.0)


def page(url: str) -> str:
    """Return the page at an address that a server has printed; it begins to listen a moment later."""
    give_up_at = time.monotonic() + BOUND_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - our own server
                return str(answer.read(), "utf-8")
        except urllib.error.URLError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)  # another process's start cannot be awaited


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def kept(folder: Path) -> Path:
    """A notebook's path, beside which three runs are stored: `plain`, `hostile` and `broken`."""
    notebook = folder / "lesson.ipynb"
    scripts: dict[str, list[dict[str, object]]] = {
        "plain": [
            {"tool": "look", "args": {"at": "tea"}, "result": 5},
            {"say": "It is green."},
            {"usage": {"input_tokens": 12, "output_tokens": 3}},
        ],
        "hostile": [{"say": "\x1b[2J\x1b]0;owned\x07 [bold]loud[/bold] \u202eback"}],
        "broken": [{"fail": "the kettle is cold"}],
    }
    with NotebookSession(notebook, ids=SequentialIds()) as session:
        for name, script in scripts.items():
            agent = ScriptedAgent(script, delay_s=0)
            assert session.start(agent, f"prompt of {name}", name=name).wait(10)
    session.store.close(1.0)
    return notebook


# --- trust -------------------------------------------------------------------------------------------


def test_trust_asks_first(kept: Path) -> None:
    """What a run names is shown; without an answer nothing is trusted, and with a yes what was shown."""

    def trust(*words: str, answer: str) -> tuple[int, str]:
        done = subprocess.run(
            [COMMAND, "trust", *words], cwd=kept.parent, env=environment(kept.parent.parent), input=answer,
            capture_output=True, text=True, timeout=BOUND_S, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    [path] = (kept.parent / ".nbrun").glob("*.db")
    assert trust("--all", answer="") == (0, "Your nbrun has signed them: nothing to do.\n")
    with sqlite3.connect(path) as stranger:
        stranger.execute("UPDATE runs SET signature = NULL")
        (count,) = stranger.execute("SELECT count(*) FROM runs").fetchone()
    stranger.close()
    code, text = trust("--all", answer="")
    assert (code, "nobody has answered; nothing was changed" in text) == (1, True)
    code, text = trust("1", answer="no\n")
    assert (code, "#1 (" in text, "Nothing was changed." in text) == (0, True, True)
    code, text = trust("--all", answer="y\n")
    assert (code, f"Trusted: {count} runs." in text) == (0, True)
    assert trust("last", answer="") == (0, "Your nbrun has signed them: nothing to do.\n")
    assert trust(answer="y\n")[0] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_what_was_typed_before_the_question_does_not_trust(kept: Path) -> None:
    """In a terminal only what is typed after the question answers it."""
    import pty

    [path] = (kept.parent / ".nbrun").glob("*.db")
    with sqlite3.connect(path) as stranger:
        stranger.execute("UPDATE runs SET signature = NULL")
    stranger.close()
    keyboard, terminal = pty.openpty()
    os.write(keyboard, b"y\n")
    with subprocess.Popen(
        [COMMAND, "trust", "--all"], cwd=kept.parent, env=environment(kept.parent.parent), stdin=terminal,
        stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as trust:  # fmt: skip
        assert trust.stdout is not None
        text = ""
        while not text.endswith("[y/N] ") and (more := trust.stdout.read(1)):
            text += more
        os.write(keyboard, b"no\n")
        text += trust.stdout.read()
    os.close(terminal)
    os.close(keyboard)
    assert text.endswith("Nothing was changed.\n")


# --- doctor ------------------------------------------------------------------------------------------


def test_doctor_tells_what_is_here_without_a_kernel(kept: Path) -> None:
    """Versions, whether cards can be drawn, and each store with its size and journal; all well is exit code 0."""
    done = run("doctor", cwd=kept.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^✔ ok +versions: Python 3.*nbrun \d.*jupyterlab \d", done.stdout, re.M)
    assert re.search(r"^✔ ok +cards: JupyterLab", done.stdout, re.M)
    line = r"^✔ ok +store: .*lesson\.db, durable, [\d.]+ kB, journal mode WAL$"
    assert re.search(line, done.stdout, re.M)


def test_doctor_says_what_is_wrong_and_what_to_do(kept: Path, folder: Path) -> None:
    """A store that cannot be opened is a problem with its mend, and the exit code 1; so is a place that is none."""
    store = kept.parent / ".nbrun" / "lesson.db"
    with sqlite3.connect(store) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    done = run("doctor", str(kept), cwd=folder)
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(r"^✘ problem +store: .*newer nbrun.* → move the file away", done.stdout, re.M)
    done = run("doctor", "nowhere", cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nbrun: ")


# --- demo --------------------------------------------------------------------------------------------


@slow
def test_demo_runs_the_first_notebook_on_the_local_model(folder: Path) -> None:
    """One command: a line for each cell, then each run with its text; notebook and store are left behind."""
    assert local_model.demo_problem() is None, local_model.demo_problem()
    done = run("demo", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")

    path = folder / "nbrun-demo" / NOTEBOOK
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    progress = re.findall(r"^ +(\d+)/(\d+)  \S.*  [\d.]+ (?:ms|s)$", done.stdout, re.M)
    assert progress == [(str(number), str(len(cells))) for number in range(1, len(cells) + 1)]
    assert all(cell.execution_count for cell in cells)

    store = path.parent / ".nbrun" / "01_first_run.db"
    records = records_of(store)
    assert [(record.status, record.model) for record in records] == [("completed", LOCAL)] * 2
    table = " ".join(done.stdout.split())
    assert "scripted" not in done.stdout
    assert LOCAL in done.stdout
    for record in records:
        assert f"#{record.number} {record.name} Completed" in table
        assert " ".join(record.text.split()[:3]) in table
        assert f"{record.usage.input_tokens} in · {record.usage.output_tokens} out" in table
    assert str(path) in done.stdout
    assert str(store) in done.stdout


@slow
def test_demo_without_the_model_says_so_in_one_line(tmp_path: Path, folder: Path) -> None:
    """Where the model's runtime cannot be had, the same notebook runs on the scripted agent, and says so."""
    without = tmp_path / "without"
    without.mkdir()
    # What stands for a machine that has no xllamacpp: a module of that name, first on the path, with nothing
    # in it. Command, installer and kernel all see it.
    (without / "xllamacpp.py").touch()
    done = run("demo", cwd=folder, env=environment(tmp_path, PYTHONPATH=str(without)))
    assert (done.returncode, done.stderr) == (0, "")

    before, running, after = done.stdout.partition("Running nbrun-demo")
    assert running
    *fetching, told = before.splitlines()
    assert len(fetching) <= 1
    assert 'xllamacpp is not installed (fix: pip install "jupyter-nbrun[local]")' in told
    assert "scripted agent" in told
    assert SCRIPTED in after
    notebook = (folder / "nbrun-demo" / NOTEBOOK).read_text(encoding="utf-8")
    assert SCRIPTED in notebook
    assert LOCAL not in notebook
    records = records_of(folder / "nbrun-demo/.nbrun/01_first_run.db")
    assert [(record.status, record.model) for record in records] == [("completed", SCRIPTED)] * 2


def checkout_with(folder: Path, *cells: str) -> dict[str, str]:
    """Make a checkout whose first notebook has these cells; return the environment in which it is run."""
    shutil.copytree(Path(nbrun.__file__).parent, folder / "checkout/nbrun")
    (folder / "checkout/notebooks").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, folder / "checkout/notebooks" / NOTEBOOK)
    return environment(folder, PYTHONPATH=str(folder / "checkout"))


@slow
def test_demo_that_stops_halfway_is_a_failure(tmp_path: Path) -> None:
    """A cell that raises ends the demo with code 1 and one line; the notebook is saved as far as it came.

    An earlier demo's folder is left as it is.
    """
    env = checkout_with(tmp_path, "1 + 1", "1 / 0", "print('never')")
    earlier = tmp_path / "work" / "nbrun-demo" / NOTEBOOK
    earlier.parent.mkdir(parents=True)
    earlier.write_text("mine", encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-m", "nbrun.cli", "demo"],
        cwd=tmp_path / "work",
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"nbrun: .*ZeroDivisionError: division by zero.*\n", done.stderr)
    saved = nbformat.read(tmp_path / "work/nbrun-demo-2" / NOTEBOOK, as_version=4)
    assert [len(cell.outputs) for cell in saved.cells] == [1, 1, 0]
    assert earlier.read_text(encoding="utf-8") == "mine"


@slow
@pytest.mark.skipif(os.name != "posix", reason="only POSIX has a signal for Ctrl-C")
def test_interrupted_demo_ends_with_a_word(tmp_path: Path, folder: Path) -> None:
    """Ctrl-C ends the kernel and then the command, which says so in one line."""
    command = subprocess.Popen(
        [sys.executable, "-m", "nbrun.cli", "demo"],
        cwd=folder,
        env=checkout_with(tmp_path, "import time; time.sleep(100)"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with command:
        assert command.stdout is not None
        seen = ""
        while "1/1" not in seen:  # the line of the cell is begun when the cell is
            seen += command.stdout.read(1)
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=BOUND_S)
    assert (command.returncode, said) == (130, "nbrun: interrupted\n")


@slow
def test_demo_opens_lab_on_the_same_notebook(folder: Path) -> None:
    """`--lab` starts JupyterLab at the copied notebook, with the options after `--`; Ctrl-C's signal ends it."""
    options = ["--no-browser", "--allow-root", "--ServerApp.port=0", "--ServerApp.ip=127.0.0.1"]
    server = subprocess.Popen(
        [COMMAND, "demo", "--lab", "--", *options],
        cwd=folder,
        env=environment(folder.parent),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with server:
        try:
            assert server.stdout is not None
            url = next(
                found.group()
                for line in server.stdout
                if (found := re.search(rf"http://127\.0\.0\.1:\d+/lab/tree/\S*{NOTEBOOK}\S*", line))
            )
            assert NOTEBOOK in page(url)
        finally:
            server.terminate()
            server.communicate(timeout=30)  # reads on: a full pipe would hold it up
    assert (folder / "nbrun-demo" / NOTEBOOK).is_file()


@pytest.mark.parametrize(("options", "package"), [((), "nbclient"), (("--lab",), "jupyterlab")])
def test_demo_names_the_extra_it_needs(
    options: tuple[str, ...],
    package: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without the demo's packages there is one line with the command that brings them, and nothing is made."""
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, package, None)  # how Python says that it cannot be imported
    assert cli.main(["demo", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert package in line
    assert 'pip install "jupyter-nbrun[demo]"' in line
    assert list(folder.iterdir()) == []


# --- list and show -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "lesson.ipynb", ".nbrun", ".nbrun/lesson.db"])
def test_list_shows_the_stored_runs_newest_first(path: str, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder, a notebook or a store's file will do, also when the notebook itself was never saved."""
    assert cli.main(["list", str(kept.parent / path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    places = [text.index(f"#{number} {name}") for number, name in ((3, "broken"), (2, "hostile"), (1, "plain"))]
    assert places == sorted(places)
    assert "12 in · 3 out" in text
    assert "It is green." in text


def test_list_stops_at_its_limit(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the newest are listed, and it says that there are more."""
    assert cli.main(["list", str(kept), "--limit", "2"]) == 0
    text = capsys.readouterr().out
    assert ("#3" in text, "#2" in text, "#1" in text) == (True, True, False)
    assert "There are more" in text


def test_list_of_a_folder_without_runs_makes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says that there are none, which is no mistake, and leaves the folder empty."""
    assert cli.main(["list", str(folder)]) == 0
    assert "No runs in" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "pipe as its WAL", "endless WAL"])
def test_list_does_not_wait_for_what_is_no_file(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe in place of a store, or of its WAL, is only named; a device that never ends isn't read."""
    file = folder / ".nbrun" / "odd.db"
    file.parent.mkdir(mode=0o700)
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "device":
            file.symlink_to("/dev/zero")
        case "folder":
            file.mkdir()
        case "pipe as its WAL":
            file.touch()
            os.mkfifo(f"{file}-wal")
        case _:
            file.touch()
            with open(f"{file}-wal", "wb") as wal:
                wal.truncate(2**40)
    assert cli.main(["list", str(folder)]) == 0
    assert "odd.db: damaged, or not an nbrun store" in capsys.readouterr().out


@pytest.mark.parametrize("ref", ["#1", "1", "-3", "plain", "run-seq-0"])
def test_show_finds_a_run_by_every_reference(ref: str, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Number, place from the end, name and id name the same run; all that it did is shown."""
    assert cli.main(["show", ref, str(kept)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Run #1 (plain)\n")
    for part in ("Completed", "prompt of plain", "It is green.", "look(", "12 in · 3 out", "run-seq-0"):
        assert part in text


def test_last_is_no_child_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`last` and `-1` are the newest run that somebody started, not a child that it started later."""
    notebook = folder / "book.ipynb"

    async def editor(prompt: str, run: RunContext) -> str:
        return str(await run.start_child(ScriptedAgent([{"say": "Once."}], delay_s=0), "chapter one", name="writer"))

    with NotebookSession(notebook, ids=SequentialIds()) as session:
        assert session.start(editor, "a book", name="editor").wait(10)
    session.store.close(1.0)
    for ref, title in (("last", "#1 (editor)"), ("-1", "#1 (editor)"), ("2", "#2 (writer)")):
        assert cli.main(["show", ref, str(notebook)]) == 0
        assert capsys.readouterr().out.startswith(f"Run {title}\n")
    assert cli.main(["show", "-2", str(notebook)]) == 1


def test_show_of_a_failed_run_has_its_error(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error stands there with its traceback; `last` is the newest run."""
    assert cli.main(["show", "last", str(kept)]) == 0
    text = capsys.readouterr().out
    assert "Failed" in text
    assert "Traceback" in text
    assert "ScriptedFailure: the kettle is cold" in text


@pytest.mark.parametrize("command", [["list"], ["show", "hostile"]])
def test_an_agents_text_commands_no_terminal(
    command: list[str], kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences and direction marks come out as harmless signs, and markup as it was written."""
    assert cli.main([*command, str(kept)]) == 0
    text = capsys.readouterr().out
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert "[bold]" in text


def test_another_programs_database_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A database that nbrun did not make is refused before it is opened: not a byte of it changes."""
    path = folder / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    assert cli.main(["list", str(path)]) == 1
    assert "isn't an nbrun session store" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert [each.name for each in folder.iterdir()] == ["other.db"]


def test_runs_of_a_kernel_that_has_just_begun_are_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While the first kernel of a notebook is at work, all of its store may still be in the log beside it."""
    with NotebookSession(folder / "fresh.ipynb") as session:
        run = session.start(ScriptedAgent([{"say": "hello"}], delay_s=0), "hm", name="early")
        assert run.wait(10)
        for path in (folder, folder / "fresh.ipynb", folder / ".nbrun" / "fresh.db"):
            assert cli.main(["list", str(path)]) == 0
            assert "early" in capsys.readouterr().out


def test_show_asks_which_notebook_is_meant(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder with runs of two notebooks a reference alone would be a guess."""
    shutil.copy(kept.parent / ".nbrun/lesson.db", kept.parent / ".nbrun/other.db")
    assert cli.main(["show", "1", str(kept.parent)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "lesson" in line
    assert "other" in line


# --- the line itself ---------------------------------------------------------------------------------


@pytest.fixture
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working folder is an empty one."""
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        yield


@pytest.mark.usefixtures("_in_folder")
@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("frobnicate", "frobnicate"),
        ("list --frobnicate", "--frobnicate"),
        ("list --limit many", "many"),
        ("list --limit 0", "at least 1"),
        ("list no-such-folder", "no-such-folder"),
        ("show", "REF"),
        ("show 1", "no runs in"),
        ("local", "COMMAND"),
        ("demo -- --no-browser", "--lab"),
        ("export", "export"),
    ],
)
def test_bad_usage_is_one_line(line: str, names: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake is one line on the error stream, which names it, and a code that is not 0."""
    try:
        code = cli.main(line.split())
    except SystemExit as end:
        code = int(str(end.code))
    said = capsys.readouterr()
    assert code != 0
    assert said.out == ""
    (only,) = said.err.splitlines()
    assert names in only


@pytest.mark.parametrize("ref", ["7", "-9", "nobody", "9" * 30])
def test_an_unknown_run_is_one_line(ref: str, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the reference and where it was looked for."""
    assert cli.main(["show", ref, str(kept)]) == 1
    (only,) = capsys.readouterr().err.splitlines()
    assert f"'{ref}'" in only
    assert "lesson.db" in only


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    """`nbrun` alone names its commands."""
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("demo", "list", "show", "local"))


@slow
def test_local_install_leaves_what_is_there(folder: Path) -> None:
    """Where the model is here already, the command says so and fetches nothing."""
    done = run("local", "install", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "already installed" in done.stdout


def test_a_reader_that_leaves_early_is_no_error(kept: Path) -> None:
    """`nbrun list | head -1` ends quietly."""
    with subprocess.Popen(
        [COMMAND, "list", str(kept)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_list_and_show_tell_what_comes_from_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A retry names the run that it repeats, and that one names its retry; what can be gone on with says how."""

    async def keeps(prompt: str, run: nbrun.RunContext) -> None:
        run.checkpoint(1)
        raise ValueError("over")

    with NotebookSession(tmp_path / "tea.ipynb", ids=SequentialIds()) as session:
        old = session.start(keeps, name="old")
        old.wait(BOUND_S)
        old.retry().wait(BOUND_S)
    path = str(tmp_path / "tea.ipynb")
    assert cli.main(["list", path]) == 0
    assert "old (retry of #1)" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["show", "1", path]) == 0
    shown = capsys.readouterr().out
    assert "Retried as #2" in shown
    assert "Resume from the last checkpoint: %agentrun resume #1" in shown
    assert cli.main(["show", "2", path]) == 0
    assert "Retry of #1" in capsys.readouterr().out


def test_a_damaged_file_hides_no_other(kept: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Healthy stores are listed; what was set aside, what is damaged and what cannot be read are named."""
    stores = folder / ".nbrun"
    healthy = (stores / "lesson.db").read_bytes()
    (stores / "lesson.damaged-20261122T101500.db").write_bytes(healthy[:5_000])
    (stores / "broken.db").write_bytes(b"\0" * 8_192 + healthy[8_192:])
    (stores / "torn.db").write_bytes(healthy[:4_096] + b"\0" * (len(healthy) - 4_096))
    assert cli.main(["list", str(folder)]) == 1
    told = capsys.readouterr()
    assert "hostile" in told.out
    assert "lesson.damaged-20261122T101500.db: a damaged store, set aside" in told.out
    assert "broken.db: damaged, or not an nbrun store" in told.out
    assert "torn.db can't be read: " in told.err
    assert "None" not in told.err
    cli.main(["doctor", str(folder)])
    assert "a damaged store, set aside" in capsys.readouterr().out


# --- sets ----------------------------------------------------------------------------------------------


@pytest.fixture
def with_set(folder: Path) -> Path:
    """A notebook with a set of three runs, one of which has failed, and a run of its own."""
    notebook = folder / "sets.ipynb"

    async def picky(prompt: str) -> str:
        if prompt == "bad":
            raise ValueError("no \x1b[31mluck")
        return prompt

    with NotebookSession(notebook, ids=SequentialIds()) as session:
        assert session.map(picky, ["a", "bad", "c"], name="graded", id="nightly").wait(10)
        assert session.start(picky, "alone", name="alone").wait(10)
    session.store.close(1.0)
    return notebook


@pytest.mark.parametrize("ref", ["set-1", "SET-1", "nightly"])
def test_show_of_a_set_counts_its_runs(ref: str, with_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its errors, by how many runs have each; by its number or the id that it was started with."""
    assert cli.main(["show", ref, str(with_set)]) == 0
    text = capsys.readouterr().out
    for part in ("Completed in", "graded set #1", "2 completed · ✘ 1 failed", "1 × ValueError: no", "(#2)"):
        assert part in text
    assert "\x1b" not in text


def test_show_of_a_set_that_is_not_there_says_so(with_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As for a run."""
    for ref in ("set-9", "set-x", "weekly"):
        assert cli.main(["show", ref, str(with_set)]) == 1
        assert f"No run '{ref}' found" in capsys.readouterr().err


@pytest.mark.parametrize(("ref", "count"), [("1", 3), ("set-1", 3), ("#1", 3), ("2", 0)])
def test_list_finds_the_runs_of_a_set(ref: str, count: int, with_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no others."""
    assert cli.main(["list", str(with_set), "--set", ref]) == 0
    text = capsys.readouterr().out
    assert (text.count("graded"), text.count("alone")) == (count, 0)
    assert cli.main(["list", str(with_set), "--set", "x"]) == 2
    assert "expected a set, such as 12 or set-12" in capsys.readouterr().err
