"""What commit 97a02cb has written is read, shown, resumed and imported: its store, exports and a recording.

`data/make_version_2.py` made the files. Only public names are used here, so that these tests hold whatever moves.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nbrun import NotebookSession, Run, SequentialIds, errors
from nbrun.agents import Replay
from tests.store.data import make_version_2 as made
from tests.store.data.make_version_2 import ended, facts

DATA = Path(__file__).parent / "data"
COMMAND = str(Path(sys.executable).with_name("nbrun"))
BOUND_S = 60

EXPECTED: list[dict[str, Any]] = json.loads((DATA / "version_2.expected.json").read_bytes())
NEXT = len(EXPECTED) + 1


def lay_out(folder: Path) -> Path:
    """Return a notebook that has a copy of the old store beside it."""
    store = folder / ".nbrun" / "tea.db"
    store.parent.mkdir(parents=True)
    shutil.copy(DATA / "version_2.db", store)
    shutil.copytree(DATA / "version_2.files", store.with_suffix(".files"))
    return folder / "tea.ipynb"


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """A notebook with the old store."""
    return lay_out(tmp_path)


@pytest.fixture
def session(notebook: Path) -> Iterator[NotebookSession]:
    """A session on a copy of the old store, whose runs the user has been asked about: they are signed."""
    with NotebookSession(notebook, ids=SequentialIds("new"), cancel_grace_s=0.2) as session:
        session.store.trust(session.store.unsigned())
        yield session


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookSession]:
    """A session that only reads its copy."""
    with NotebookSession(lay_out(tmp_path_factory.mktemp("reading"))) as session:
        yield session


def one(**known: Any) -> dict[str, Any]:
    """Return what is expected of the one run of which this is known."""
    (found,) = [run for run in EXPECTED if known.items() <= run.items()]
    return found


def without(run: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return what is known of a run, but for these."""
    return {name: value for name, value in run.items() if name not in names}


def holds(found: Any, expected: Any) -> bool:
    """Return whether all that is expected is there; there may be more members in an object, such as new ones."""
    match expected:
        case dict():
            return isinstance(found, dict) and all(
                name in found and holds(found[name], value) for name, value in expected.items()
            )
        case list():
            return isinstance(found, list) and len(found) == len(expected) and all(map(holds, found, expected))
        case _:
            return bool(found == expected)


def test_the_file_that_is_kept_is_of_version_2() -> None:
    """Nobody has opened it with a newer nbrun, and it has runs in every state that a file can have."""
    uri = f"{(DATA / 'version_2.db').as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        statuses = {row[0] for row in connection.execute("SELECT status FROM runs")}
        kept = connection.execute("SELECT run FROM checkpoints ORDER BY run").fetchall()
    assert statuses == {"completed", "failed", "cancelled", "lost", "running"}
    resumable = [
        one(name="Buch"),
        one(prompt="wait at 2"),
        *(run for run in EXPECTED[::-1] if run.get("prompt") == "fails at 2 and at 5"),
        one(name="seals"),
        one(name="weigher"),
        one(name="Bote 信"),
        one(name="verloren"),
        one(name="anderswo"),
    ]
    assert [number for (number,) in kept] == [run["number"] for run in resumable]


# --- read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda run: f"{run['number']}-{run['agent']}")
def test_a_run_is_as_it_was(reading: NotebookSession, expected: dict[str, Any]) -> None:
    """Status, output, events, tools, children, files and all else; by its number and by its id."""
    assert facts(reading.get(expected["number"])) == expected
    assert reading.get(expected["id"]).number == expected["number"]


def test_all_runs_are_listed_and_found(reading: NotebookSession) -> None:
    """Newest first, and by each filter."""

    def found(**filters: Any) -> list[int | None]:
        return [run.number for run in reading.runs(**filters)]

    def fitting(is_so: Any) -> list[int]:
        return [run["number"] for run in EXPECTED if is_so(run)]

    assert found() == [run["number"] for run in EXPECTED] == list(range(NEXT - 1, 0, -1))
    for status in ("completed", "failed", "cancelled", "lost"):
        assert found(status=status) == fitting(lambda run, wanted=status: run["status"] == wanted)
    assert found(name="Träume 茶 🍵") == fitting(lambda run: run["name"] == "Träume 茶 🍵")
    assert found(agent="reader") == fitting(lambda run: run["agent"] == "reader")
    assert found(agent="scripted (no model)") == fitting(lambda run: "model" in run)
    assert found(tag="fach=Tee") == fitting(lambda run: run.get("tags", {}).get("fach") == "Tee")
    assert found(tag="größe") == fitting(lambda run: "größe" in run.get("tags", {}))
    assert found(text="lieber Himmel") == []
    assert found(text="à l-a c-a-r-t-e") == fitting(
        lambda run: "à l-a c-a-r-t-e" in json.dumps(run.get("output"), ensure_ascii=False)
    )
    assert found(limit=2, before=10) == [9, 8]


def test_an_object_that_was_kept_is_loaded(reading: NotebookSession) -> None:
    """The output itself, where its author is trusted."""
    assert reading.get("brews").load_object(trusted=True) == timedelta(minutes=4)


def test_files_of_a_run_are_there(reading: NotebookSession, tmp_path: Path) -> None:
    """To be read and saved."""
    picture, poem, _notes = reading.get("painter").artifacts
    assert picture.read() == made.PNG
    assert poem.save(tmp_path).read_text(encoding="utf-8") == made.SAID


# --- written to --------------------------------------------------------------------------------------


def test_the_store_is_written_to(notebook: Path) -> None:
    """A new run follows the old ones in number, all are there in the next session, and the file is whole."""
    with NotebookSession(notebook) as session:
        new = ended(session.start(made.poet, "noch eines"))
        assert (new.number, new.status, new.problem) == (NEXT, "completed", None)
    with closing(sqlite3.connect(notebook.parent / ".nbrun" / "tea.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with NotebookSession(notebook) as session:
        first, *others = session.runs()
        assert (first.number, first.text) == (NEXT, new.text)
        assert [facts(run) for run in others] == EXPECTED


def test_a_run_is_removed_with_those_below_it(session: NotebookSession) -> None:
    """Its children and theirs; no other."""
    editor = one(agent="editor")
    below = {editor["id"]}
    for run in EXPECTED[::-1]:
        if run.get("parent") in below:
            below.add(run["id"])
    gone = [run["number"] for run in EXPECTED if run["id"] in below]
    assert len(gone) == 8
    assert sorted(session.remove(editor["number"])) == sorted(gone)
    kept = [run["number"] for run in EXPECTED if run["number"] not in gone]
    assert [run.number for run in session.runs()] == kept


def test_an_id_still_names_its_run(session: NotebookSession) -> None:
    """The same id and inputs give the run of before, and others are refused."""
    run = session.start(made.poet, "Tee des Tages", id="tea-of-the-day")
    assert (run.number, run.done()) == (one(id="tea-of-the-day")["number"], True)
    with pytest.raises(errors.IdConflict):
        session.start(made.poet, "Tee von gestern", id="tea-of-the-day")
    assert len(session.runs()) == len(EXPECTED)


# --- resumed, retried, continued, replayed -----------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "page"),
    [
        ({"name": "Buch"}, 3),
        ({"prompt": "wait at 2"}, 2),
        ({"prompt": "fails at 2 and at 5", "resumed_from": "run-api-21"}, 5),
        ({"name": "verloren"}, 4),
    ],
    ids=["failed", "cancelled", "failed-again", "lost"],
)
def test_a_run_is_resumed_from_its_checkpoint(session: NotebookSession, known: dict[str, Any], page: int) -> None:
    """It goes on with the next page, and counts what was used before; the old run stays as it was."""
    expected = one(**known)
    old = session.get(expected["number"])
    new = ended(old.resume(agent=made.reader))
    assert (new.number, new.status) == (NEXT, "completed")
    assert new.output == {"began_at": page}
    assert new.text == "".join(f"p{number} " for number in range(page, made.PAGES))
    pages = range(page, made.PAGES)
    assert [tool.id for tool in new.record.tools] == [f"tool-{number + 1}" for number in pages]
    assert (new.usage.input_tokens, new.usage.requests, new.usage.cost_usd) == (60, 6, 3.0)
    assert (new.name, new.record.tags) == (expected["name"], expected.get("tags", {}))
    assert (new.resumed_from, new.record.prompt) == (old.id, expected["prompt"])
    assert without(facts(old), "sequels") == expected
    assert old.followups == [(NEXT, "resume")]
    with pytest.raises(errors.NotResumable):
        old.resume(agent=made.reader)


def test_what_was_used_before_counts_in_the_budget(session: NotebookSession) -> None:
    """A run that had used up more than it may now is not resumed; with a little left, it is cancelled in time."""
    old = session.get(one(name="Buch")["number"])
    with pytest.raises(errors.NotResumable):
        old.resume(agent=made.reader, max_cost=1.2)
    new = ended(old.resume(agent=made.reader, max_cost=2.2))
    assert (new.status, new.cause, new.usage.cost_usd) == ("cancelled", "budget", 2.5)


def test_bytes_of_a_checkpoint_come_back(session: NotebookSession) -> None:
    """As they were."""
    new = ended(session.get("seals").resume(agent=made.seals))
    assert (new.status, new.output) == ("completed", list(b"\x00\xffTee"))


def test_an_agent_of_pydantic_ai_is_resumed(session: NotebookSession) -> None:
    """With its messages: it knows what the tool has given, and does not call it again."""
    pytest.importorskip("pydantic_ai")
    weighed: list[str] = []
    old = session.get("weigher")
    new = ended(old.resume(agent=made.weigher(stalls=False, weighed=weighed)))
    assert (new.status, new.output, weighed) == ("completed", "Hm, es wiegt 3,5 g.", [])
    assert new.usage.input_tokens > old.usage.input_tokens


@pytest.mark.parametrize(
    "known",
    [{"prompt": "der Tasse"}, {"name": "alles"}, {"id": "run-api-19"}, {"id": "run-api-32"}],
    ids=["no-checkpoint", "completed", "resumed", "replay"],
)
def test_what_cannot_be_resumed_is_refused(session: NotebookSession, known: dict[str, Any]) -> None:
    """And nothing is started."""
    with pytest.raises(errors.NotResumable):
        session.get(one(**known)["number"]).resume(agent=made.reader)
    assert len(session.runs()) == len(EXPECTED)


def test_a_run_of_a_kernel_out_of_sight_is_given_up_and_resumed(session: NotebookSession) -> None:
    """It is unknown until somebody says that it is lost; then it goes on like any other."""
    old = session.get(one(name="anderswo")["number"])
    assert (old.status, old.is_unknown, old.done()) == ("running", True, False)
    with pytest.raises(errors.NotResumable):
        old.resume(agent=made.reader)
    old.mark_lost()
    assert (old.status, old.cause) == ("lost", "kernel_died")
    assert ended(old.resume(agent=made.reader)).output == {"began_at": 1}


@pytest.mark.parametrize(
    ("known", "agent"),
    [
        ({"prompt": "der Tasse"}, made.breaks),
        ({"id": "run-api-0"}, made.poet),
        ({"prompt": "1 2 39"}, made.adds),
        ({"prompt": "20 22"}, made.adds),
        ({"prompt": "viel", "agent": "spends"}, made.spends),
        ({"agent": "painter"}, made.painter),
        ({"name": "haiku", "tags": {"a": "1", "b": "2"}, "sequels": [[41, "replay"]]}, None),
    ],
    ids=["failed", "completed", "sync", "process", "budget", "files", "model"],
)
def test_a_run_is_retried(
    session: NotebookSession, known: dict[str, Any], agent: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With its prompt, name, tags and limits; it comes to the same."""
    (tmp_path / "notizen.md").write_text("# Notizen\n\nTee\n", encoding="utf-8")
    monkeypatch.setattr(made, "__file__", str(tmp_path / "make.py"))
    expected = one(**known)
    where = {"on": "process"} if known == {"prompt": "20 22"} else {}  # no policy comes from a record
    new = ended(session.get(expected["number"]).retry(agent=agent, **where))
    own = ("number", "id", "times", "last", "origin", "sequels")
    assert without(facts(new), *own) == without(expected, *own)
    origin = new.record.origin
    assert origin is not None
    assert (origin.kind, origin.run_id, origin.number) == ("retry", expected["id"], expected["number"])


def test_a_conversation_goes_on(session: NotebookSession) -> None:
    """With all that was said in it, in the order of before."""
    earlier = [one(prompt=prompt) for prompt in ("eins", "zwei", "drei")]
    turns = [text for run in earlier for text in (run["prompt"], run["output"])]
    old = session.get(earlier[-1]["number"])
    new = ended(old.continue_with("vier", agent=made.remembers))
    assert new.output == f"vier (vorher: {' | '.join(turns)})"


def same_in_sight(run: Run, expected: dict[str, Any], *apart: str) -> None:
    """Check that a replay shows what its run had."""
    own = ("number", "id", "times", "last", "events", "origin", "sequels", "artifacts", *apart)
    assert without(facts(run), *own) == without(expected, *own)


@pytest.mark.parametrize(
    "known",
    [
        {"name": "alles"},
        {"id": "run-api-0"},
        {"prompt": "der Tasse"},
        {"agent": "gathers"},
        {"prompt": "lange"},
        {"name": "Buch"},
    ],
    ids=["everything", "text", "failed", "large", "cancelled", "checkpoints"],
)
def test_a_run_is_replayed(session: NotebookSession, known: dict[str, Any]) -> None:
    """Without its agent, with the same to be seen."""
    expected = one(**known)
    new = ended(session.get(expected["number"]).replay("max"))
    if "agent" in known:  # what was in a file beside the store is told again
        assert new.record.tools[0].result == made.LEAVES
        expected = {**expected, "tools": facts(new)["tools"]}
    same_in_sight(new, expected)
    assert new.record.origin is not None
    assert new.record.origin.kind == "replay"


def test_the_recording_is_replayed(tmp_path: Path) -> None:
    """In a notebook that knows nothing of its run."""
    with NotebookSession(tmp_path / "new.ipynb") as session:
        new = ended(session.start(Replay(DATA / "version_2.recording.jsonl", "max")))
        same_in_sight(new, one(name="alles"), "name", "tags")  # those are of the start
        assert facts(new)["events"] == one(name="alles")["events"]


# --- the command line --------------------------------------------------------------------------------


def nbrun(*arguments: str | Path, cwd: Path) -> str:
    """Return what the `nbrun` command prints."""
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=BOUND_S, check=False,
        env={**os.environ, "COLUMNS": "300", "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers_in(listing: str) -> list[int]:
    """Return the numbers of the runs in a listing."""
    return [int(number) for number in re.findall(r"^\W*#(\d+)\b", listing, re.MULTILINE)]


def test_the_command_lists_the_runs(notebook: Path) -> None:
    """All of them, and some."""
    folder = notebook.parent
    assert numbers_in(nbrun("list", notebook, cwd=folder)) == list(range(NEXT - 1, 0, -1))
    lost = [run["number"] for run in EXPECTED if run["status"] == "lost"]
    assert numbers_in(nbrun("list", notebook, "--status", "lost", cwd=folder)) == lost
    assert "Träume 茶 🍵" in nbrun("list", notebook, "--tag", "größe=klein", cwd=folder)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"name": "alles"}, ["im Schrank", "look_up", "erst dann fertig.", "42", "k=v"]),
        ({"prompt": "der Tasse"}, ["ValueError", "kein Glück mit der Tasse", "look"]),
        ({"prompt": "lange"}, ["ich bleibe", "zu spät"]),
        ({"agent": "cleaner"}, ["aufräumen", "delete", "format", "weiter so 👍"]),
        ({"name": "verloren"}, ["wait at 4", "p0 p1 p2 p3", "read"]),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_the_command_shows_a_run(notebook: Path, known: dict[str, Any], words: list[str]) -> None:
    """Its prompt, its tools, what it has said, and how it ended."""
    expected = one(**known)
    shown = nbrun("show", f"#{expected['number']}", notebook, cwd=notebook.parent)
    assert [word for word in [*words, expected["id"]] if word not in shown] == []


def test_the_command_exports_the_same_lines(notebook: Path) -> None:
    """Each line says all that the one of before has said."""
    nbrun("export", "--all", notebook, "-o", "new.jsonl", cwd=notebook.parent)
    new, old = [
        path.read_text(encoding="utf-8").splitlines()
        for path in (notebook.with_name("new.jsonl"), DATA / "version_2.jsonl")
    ]
    assert len(new) == len(old) > 500
    wrong = [line for line, earlier in zip(new, old, strict=True) if not holds(json.loads(line), json.loads(earlier))]
    assert wrong == []


def test_the_command_exports_the_same_document(notebook: Path) -> None:
    """Runs and events; the record, which is for other readers, by what is asked for most."""
    nbrun("export", "--all", notebook, "-o", "new.json", cwd=notebook.parent)
    new = json.loads(notebook.with_name("new.json").read_bytes())
    old = json.loads((DATA / "version_2.json").read_bytes())
    assert len(new) == len(old) == len(EXPECTED)
    for one_new, one_old in zip(new, old, strict=True):
        assert holds(without(one_new, "record"), without(one_old, "record"))
        for name in ("run_id", "status", "output", "error", "prompt", "usage", "tools", "text"):
            assert holds(one_new["record"].get(name), one_old["record"].get(name)), name


@pytest.mark.parametrize("form", ["html", "md"])
def test_the_command_exports_a_page_of_a_run(notebook: Path, form: str) -> None:
    """What the page of before shows of the run is on the new one, which needs no script either."""
    nbrun("export", "alles", notebook, "-o", f"new.{form}", cwd=notebook.parent)
    for path in (notebook.with_name(f"new.{form}"), DATA / f"version_2.{form}"):
        page = path.read_text(encoding="utf-8")
        words = ["alles", "run-api-7", "does_all", "im Schrank", "look_up", "erst dann fertig.", "größe"]
        assert [word for word in words if word not in page] == []
        assert "<script" not in page


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_the_command_imports_what_was_exported(tmp_path: Path, form: str) -> None:
    """The same runs under new numbers, oldest first; what was live is lost here. A second time adds none."""
    notebook = tmp_path / "new.ipynb"
    for _ in range(2):
        nbrun("import", DATA / f"version_2.{form}", notebook, cwd=tmp_path)
    with NotebookSession(notebook) as session:
        found = [facts(run) for run in session.runs()]
        assert session.get("gathers").record.tools[0].result == made.LEAVES
    assert len(found) == len(EXPECTED)
    elsewhere = ("number", "sequels", "origin", "children", "artifacts", "view", "is_unknown")
    for new, old in zip(found, EXPECTED, strict=True):
        apart: tuple[str, ...] = elsewhere
        if old["agent"] == "gathers":
            apart = (*apart, "tools")
        if old["status"] == "running":
            assert (new["status"], new["cause"]) == ("lost", "kernel_died")
            apart = (*apart, "status", "cause", "reason", "output", "times", "events", "last")
        assert without(new, *apart) == without(old, *apart)
        assert new.get("origin", [])[:2] == old.get("origin", [])[:2]
        children = [[child[0], *child[2:]] for child in old.get("children", [])]
        assert [[child[0], *child[2:]] for child in new.get("children", [])] == children


# --- the magics --------------------------------------------------------------------------------------

SHELL = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config
from tests.store.data.make_version_2 import CELLS, facts

config = Config()
config.HistoryManager.enabled = False
config.InteractiveShell.colors = "nocolor"
shell = InteractiveShell.instance(config=config)
raised = [
    type(shell.run_cell(cell).error_in_exec).__name__
    for cell in [*CELLS[:3], *json.loads(sys.argv[1])]
]
session = shell.user_ns["nbrun"].session()
print("\\n" + json.dumps([raised, *(facts(run) for run in session.runs(limit=3))]))
shell.run_cell("%unload_ext nbrun").raise_error()
"""


def test_the_magics_go_on_from_runs_of_before(notebook: Path) -> None:
    """In another shell an agent is found by its name; its run is resumed and retried, shown, listed and replayed."""
    courier = one(name="Bote 信")
    number = courier["number"]
    lines = [
        f"%agentrun resume #{number}", f"%agentrun trust #{number}", f"%agentrun resume #{number}",
        f"%agentrun retry #{number}", "%agentrun replay alles --speed max",
        f"%agentrun show #{number}", "%agentrun list --limit 5", f"%agentrun export #{number} --out brief.jsonl",
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SHELL, json.dumps(lines)],
        cwd=notebook.parent, input="yes\n", capture_output=True, encoding="utf-8", timeout=BOUND_S,
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
            "JPY_SESSION_NAME": str(notebook), "IPYTHONDIR": str(notebook.parent / "ipython"), "PYTHONUTF8": "1",
        }, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    raised, replayed, retried, resumed = json.loads(done.stdout.splitlines()[-1])
    # Nobody knows whose it is, until the question is answered. Where no page is, a cell waits.
    assert raised == ["NoneType"] * 3 + ["NotResumable", "NoneType", "NoneType", "RunFailed"] + ["NoneType"] * 4
    assert (resumed["number"], resumed["status"]) == (NEXT, "completed")
    assert (resumed["resumed_from"], retried["origin"][0]) == (courier["id"], "retry")
    assert (resumed["text"], resumed["output"]) == ("Brief 2; ", "alle da")
    assert (resumed["name"], resumed["tags"]) == ("Bote 信", {"fach": "Post"})
    for name in ("status", "error", "text", "tags", "prompt"):
        assert retried[name] == courier[name]
    assert replayed["output"] == one(name="alles")["output"]
    for word in ("Bote 信", "der Regen", "alles"):
        assert word in "".join(done.stdout.splitlines()[:-1])
    exported = notebook.with_name("brief.jsonl").read_bytes().splitlines()
    assert len(exported) == 1 + courier["last"][0] + 1
