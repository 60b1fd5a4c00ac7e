"""The example notebooks: each executes in a real kernel, and is saved as its readers should see it."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from nbrun.calls.cassette import load
from nbrun.core.clock import SystemClock
from nbrun.core.record import RunRecord
from nbrun.store import SessionStore, store_path
from tests.notebooks.headless import CASSETTES, FOLDER, NOTEBOOKS, execute
from tests.notebooks.record_cassettes import ANSWER, HAIKU, NOTEBOOK as SIXTH

pytestmark = pytest.mark.timeout(120)

MACHINE = re.compile(r"/(?:home|root|tmp|Users|work|var|opt|usr)/|[A-Za-z]:\\\\|ipykernel_|-packages")
STATIC = {"text/html", "text/markdown", "text/plain", "application/vnd.nbrun.run+json"}

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


Executed = Callable[[Path], tuple[nbformat.NotebookNode, list[RunRecord]]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the cassettes of 06 as the packages that are installed here record them."""
    folder = tmp_path_factory.mktemp("recorded")
    subprocess.run(
        [sys.executable, "-m", "tests.notebooks.record_cassettes", str(folder)], cwd=FOLDER.parent, check=True
    )
    return folder / CASSETTES.name


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Executed:
    """Executes a notebook, the first time that it is asked for; gives it with its stored runs, oldest first."""

    @functools.cache
    def execute_once(path: Path) -> tuple[nbformat.NotebookNode, list[RunRecord]]:
        folder = tmp_path_factory.mktemp("notebook")
        if path == SIXTH:
            shutil.copytree(request.getfixturevalue("recorded"), folder / CASSETTES.name)
        return execute(path, folder), stored_runs(folder / path.name)

    return execute_once


def code_cells(notebook: nbformat.NotebookNode) -> list[Any]:
    """Return the cells that are code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def stored_runs(notebook: Path) -> list[RunRecord]:
    """Return the whole records of a notebook's runs, oldest first."""
    store = SessionStore([store_path(notebook)], SystemClock())
    store.open_existing()
    try:
        return [store.record(run.number) for run in reversed(store.runs())]
    finally:
        store.close(1.0)


def table_of(cell: Any) -> str:
    """Return the text of the table of runs that a cell shows."""
    (result,) = [out for out in cell.outputs if out.output_type == "execute_result"]
    assert "<table " in result.data["text/html"]
    return str(result.data["text/plain"])


@each_notebook
def test_executes_and_ends_with_its_stored_runs(notebook: Path, executed: Executed) -> None:
    """From top to bottom with no error and no network; the last cell shows the runs that the store has.

    Of sets it doesn't.
    """
    result, records = executed(notebook)
    records = [record for record in records if record.member is None]
    assert len(records) >= 2
    assert not any(record.is_live for record in records)
    rows = table_of(code_cells(result)[-1]).splitlines()[1:]
    shown = [tuple(row.split()[:2]) for row in reversed(rows)]
    assert shown == [(f"#{record.number}", record.name) for record in records]


@pytest.mark.parametrize("number", ["02", "03", "04"])
def test_executes_also_where_no_cell_waits_for_its_run(number: str, tmp_path: Path) -> None:
    """As for somebody who runs all cells in JupyterLab: whatever needs a run's end waits for it by itself."""
    (notebook,) = FOLDER.glob(f"{number}_*.ipynb")
    execute(notebook, tmp_path, waits=False)


@each_notebook
def test_cards_of_a_headless_run_show_its_end(notebook: Path, executed: Executed) -> None:
    """No saved card says that its run is still going on, also where the cell did not wait for it."""
    outputs = [out for cell in code_cells(executed(notebook)[0]) for out in cell.outputs]
    cards = [out.data for out in outputs if "application/vnd.nbrun.run+json" in out.get("data", {})]
    statuses = {card["application/vnd.nbrun.run+json"].get("status", "queued") for card in cards}
    assert cards
    assert statuses <= {"completed", "failed", "cancelled", "lost"}
    assert all(set(card) == STATIC for card in cards)


def test_first_notebook_asks_the_local_model(executed: Executed) -> None:
    """Both prompts of 01 are answered by the real local model, and the braces were filled in."""
    _, (haiku, winter) = executed(FOLDER / "01_first_run.ipynb")
    assert "tea" in haiku.prompt
    assert "{" not in winter.prompt
    for record in (haiku, winter):
        assert record.status == "completed"
        assert (record.model or "").startswith("local")
        assert record.text == record.output != ""
        assert record.usage.output_tokens > 0


def test_second_notebook_has_four_endings(executed: Executed) -> None:
    """The runs of 02 end as its text says, and the cancelled one keeps the reason and the finished tools."""
    _, records = executed(FOLDER / "02_cancel_and_failure.ipynb")
    assert [(record.status, record.cause) for record in records] == [
        ("completed", None),
        ("cancelled", "user"),
        ("failed", "error"),
        ("cancelled", "deadline"),
    ]
    cancelled = records[1]
    assert cancelled.reason == "the printer was quicker"
    assert [tool.status for tool in cancelled.tools[-2:]] == ["ok", "cancelled"]
    failed = records[2].error
    assert failed is not None
    first_frame = failed.traceback.splitlines()[1]
    assert first_frame.endswith("in calculator")  # it begins where the reader's own code does


def test_third_notebook_runs_every_kind_of_agent(executed: Executed) -> None:
    """Function, generator, async, class, child runs and a framework's; the cancelled one has tidied up."""
    _, records = executed(FOLDER / "03_your_own_agent.ipynb")
    names = ["count_words", "parrot", "shopkeeper", "fence", "diary", "diary", "cups", "market",
             "left", "right", "clerk"]  # fmt: skip
    assert [record.name for record in records] == names
    ends = {record.name: record.status for record in records}
    assert {name for name, status in ends.items() if status != "completed"} == {"fence"}
    bill, fence = records[2], records[3]
    assert [made.name for made in bill.files] == ["bill.txt"]
    assert (bill.output, bill.progress is not None) == (19.5, True)
    assert (fence.status, fence.reason) == ("cancelled", "it rains")
    assert fence.log[-1].startswith("the brush is clean after ")
    assert records[7].output == 24.0
    assert [tool.name for tool in records[10].tools] == ["stock"]


def test_fourth_notebook_asks_before_it_acts(executed: Executed) -> None:
    """The real local model uses two tools, and may not use a third; questions are denied, changed and allowed."""
    _, records = executed(FOLDER / "04_tools_and_approvals.ipynb")
    assert [record.status for record in records] == ["completed"] * 7
    added, looked, clearing, denied, allowed, refused, walk = records
    for record in (added, looked, refused):
        assert (record.model or "").startswith("local")
    assert [(tool.args, tool.result) for tool in added.tools] == [({"a": 100, "b": 250}, 350)]
    assert "shelf" in str(looked.tools[0].result)
    assert [(tool.status, tool.args) for tool in clearing.tools] == [
        ("denied", {"thing": "a lamp"}),
        ("ok", {"thing": "some dust"}),
        ("ok", {"thing": "old newspapers"}),
    ]
    assert clearing.always == ("throw_away",)
    assert {tool.status for tool in denied.tools} == {"denied"}
    assert {tool.status for tool in allowed.tools} == {"ok"}
    assert [(tool.name, tool.status) for tool in refused.tools] == [("send", "denied")]
    assert walk.steers_taken == 1


def test_fifth_notebook_goes_on_after_a_kill(executed: Executed) -> None:
    """The killed kernel's run of 05 is lost, its resumption reads the rest, and a replay shows that once more."""
    _, (lost, resumed, replayed) = executed(FOLDER / "05_nothing_is_lost.ipynb")
    assert [run.status for run in (lost, resumed, replayed)] == ["lost", "completed", "completed"]
    assert lost.checkpoint is not None
    assert resumed.resumed_from == lost.run_id
    chapters = [f"chapter {number}" for number in range(1, 13)]
    assert resumed.output == replayed.output == chapters
    read = [tool.args for tool in resumed.tools]
    assert read == [{"book": "Emma", "chapter": n} for n in range(13 - len(read), 13)]
    assert 0 < len(read) < 12
    assert replayed.origin is not None
    assert (replayed.origin.kind, replayed.origin.number) == ("replay", resumed.number)


def test_sixth_notebook_runs_real_agents_on_cassettes(executed: Executed) -> None:
    """The text and the tools of 06 are those that were recorded, nothing is paid, and what differs is named."""
    _, (poet, clerk, changed) = executed(SIXTH)
    assert [record.status for record in (poet, clerk, changed)] == ["completed", "completed", "failed"]
    assert (poet.text, clerk.output) == (HAIKU, ANSWER)
    assert [(tool.name, tool.args, tool.result) for tool in clerk.tools] == [
        ("stock", {"thing": "teapot"}, 18),
        ("price", {"thing": "teapot"}, 4.5),
    ]
    assert [record.usage.requests for record in (poet, clerk, changed)] == [0, 0, 0]
    assert changed.notices == ("this request is not in the cassette clerk.jsonl: messages[1] differs",)


def test_seventh_notebook_runs_sets(executed: Executed) -> None:
    """The four sets of 07 end as its text says, and no question is asked again that has an answer."""
    notebook, records = executed(FOLDER / "07_many_runs.ipynb")
    by_set: dict[int, list[RunRecord]] = {}
    for record in records:
        if record.member is not None:
            by_set.setdefault(record.member.set, []).append(record)
    assert sorted(by_set) == [1, 2, 3, 4]
    assert Counter(record.status for record in by_set[1]) == {"completed": 200, "failed": 18}
    assert 100 <= len(by_set[2]) < 200
    for number in (3, 4):
        ended = Counter(
            record.member.index for record in by_set[number] if record.member and record.status == "completed"
        )
        assert ended == dict.fromkeys(range(200), 1)
    assert by_set[3][0].session_id != by_set[3][-1].session_id
    cells = {cell.id: str(cell.outputs) for cell in code_cells(notebook)}
    assert "lost True" in cells["again"]
    assert "set #4 less set #1: 0.09" in cells["compare"]


def test_the_cassettes_are_those_of_the_installed_packages(recorded: Path) -> None:
    """Readers run 06 on the files that are here: each request is in them; a package's new version may change it."""
    for file in CASSETTES.iterdir():
        kept, now = ([entry.request for entry in load(str(folder / file.name))] for folder in (CASSETTES, recorded))
        assert len(kept) == len(now) > 0
        if kept != now:
            pytest.skip("a package asks in other words now: python -m tests.notebooks.record_cassettes")


@each_notebook
def test_saved_with_outputs_and_without_this_machine(notebook: Path) -> None:
    """A reader on the web sees every output, all of it static, and no path, error or timing of the author's."""
    saved = nbformat.read(notebook, as_version=4)
    nbformat.validate(saved)
    assert saved.metadata.kernelspec.name == "python3"
    assert MACHINE.search(json.dumps(saved)) is None
    cells = code_cells(saved)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(not cell.metadata for cell in saved.cells)
    outputs = [out for cell in cells for out in cell.outputs]
    assert not [out for out in outputs if out.output_type == "error"]
    assert all(set(out.get("data", {})) <= STATIC for out in outputs)
    assert len(table_of(cells[-1]).splitlines()) >= 3
