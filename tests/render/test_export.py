"""Runs out into files and in again: every form, hostile text, hostile files, and nothing that is there changes."""

from __future__ import annotations

import html.parser
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from markdown_it import MarkdownIt

from nbrun import NotebookSession, RunContext, RunStatus, SequentialIds, cli
from nbrun.core import events as ev, recording
from nbrun.core.clock import SystemClock
from nbrun.core.commands import FORMS
from nbrun.core.errors import BadOption
from nbrun.core.record import RunRecord
from nbrun.core.recording import Exported
from nbrun.render import export
from nbrun.store import SessionStore, store_path
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held
from tests.fakes.readers import reader

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> </pre></article>"
    " ``` ````\n# title\n[link](javascript:alert(3)) \x1b[2J\x1b]0;owned\x07 \u202eback\x9b31m &lt; \x00"
)


async def busy(prompt: str, run: RunContext) -> dict[str, Any]:
    """Do a bit of everything, with hostile words."""
    run.phase(HOSTILE)
    with run.tool(HOSTILE, {HOSTILE: prompt}) as tool:
        tool.result = [math.nan, math.inf, HOSTILE]
    run.text(HOSTILE)
    run.text(" and more")
    run.log(HOSTILE)
    run.progress(1, 3, HOSTILE)
    run.usage(input_tokens=10, output_tokens=5, cost_usd=0.25)
    run.emit("custom", HOSTILE)
    await run.start_child(agents.instant, HOSTILE, name=HOSTILE)
    return {"answer": HOSTILE}


class Kept:
    """A notebook's store, as other processes see it."""

    def __init__(self, notebook: Path) -> None:
        self.notebook = notebook
        self.path = store_path(notebook)

    def runs(self) -> list[tuple[RunRecord, list[ev.RunEvent]]]:
        """Return all runs with their events, the oldest first."""
        store = SessionStore([self.path], SystemClock())
        store.open_existing()
        try:
            numbers = [run.number for run in reversed(store.runs())]
            return [(store.record(number), store.events(number)) for number in numbers]
        finally:
            store.close(1.0)


@pytest.fixture
def source(tmp_path: Path) -> Kept:
    """A notebook's runs: one that did a bit of everything and its child, one that failed, one that was cancelled."""
    notebook = tmp_path / "source.ipynb"
    held = Held("so far ")
    with NotebookSession(notebook, ids=SequentialIds(), cancel_grace_s=0.2) as session:
        assert session.start(busy, HOSTILE, name=HOSTILE, tags={"set": HOSTILE}).wait(BOUND_S)
        assert session.start(agents.failing, "tea").wait(BOUND_S)
        run = session.start(held, "tea")
        assert held.entered.wait(BOUND_S)
        assert run.cancel("enough").wait(BOUND_S)
    session.store.close(1.0)
    return Kept(notebook)


@pytest.fixture
def target(tmp_path: Path) -> Kept:
    """Another notebook, with two runs of its own."""
    (tmp_path / "other").mkdir()
    notebook = tmp_path / "other" / "target.ipynb"
    with NotebookSession(notebook, ids=SequentialIds()) as session:
        for prompt in ("a", "b"):
            assert session.start(agents.instant, prompt).wait(BOUND_S)
    session.store.close(1.0)
    return Kept(notebook)


@pytest.fixture
def file(source: Kept, tmp_path: Path) -> Path:
    """All runs of the source, as JSON lines."""
    path = tmp_path / "runs.jsonl"
    assert cli.main(["export", "--all", str(source.notebook), "-o", str(path)]) == 0
    return path


def told(runs: list[tuple[RunRecord, list[ev.RunEvent]]]) -> list[Any]:
    """Return what was told of runs, without what is of their file: their numbers and their session."""
    events = [event for _, events in runs for event in events]
    kinds = (ev.RunCreated, ev.ChildStarted)
    bare = [
        msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, number=None))
        if isinstance(event.data, kinds)
        else event
        for event in events
    ]
    return [
        msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, session_id=""))
        if isinstance(event.data, ev.RunCreated)
        else event
        for event in bare
    ]


# --- out and in --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_what_goes_out_comes_in_as_it_was(
    form: str, source: Kept, target: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every event is there, under the next numbers; the runs that were there are as they were."""
    path = tmp_path / f"runs.{form}"
    assert cli.main(["export", "--all", str(source.notebook), "-o", str(path)]) == 0
    before = target.runs()
    assert cli.main(["import", str(path), str(target.notebook)]) == 0
    after = target.runs()
    assert repr(after[:2]) == repr(before)
    assert repr(told(after[2:])) == repr(told(source.runs()))  # by repr: NaN is not itself
    assert [record.number for record, _ in after] == [1, 2, 3, 4, 5, 6]
    assert [record.status for record, _ in after[2:]] == ["completed", "completed", "failed", "cancelled"]
    assert [record.run_id for record, _ in after[2:4]] == ["run-seq-0", "run-seq-1"]
    assert len({record.session_id for record, _ in after}) == 5
    assert "4 runs of" in capsys.readouterr().out.splitlines()[-1]


def test_the_same_comes_in_only_once(
    file: Path, source: Kept, target: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second import leaves all out, with a word each; so do the file of the copies, and where they came from."""
    for _ in range(2):
        assert cli.main(["import", str(file), str(target.notebook)]) == 0
    said = capsys.readouterr().out
    assert said.count("already imported") == 4
    assert "0 runs of" in said
    assert len(target.runs()) == 6
    again = tmp_path / "again.json"
    assert cli.main(["export", "--all", str(target.notebook), "-o", str(again)]) == 0
    assert cli.main(["import", str(again), str(target.notebook)]) == 0
    assert len(target.runs()) == 6
    assert cli.main(["import", str(file), str(source.notebook)]) == 0
    assert len(source.runs()) == 4


def test_the_number_of_a_child_is_no_strangers(file: Path, target: Kept) -> None:
    """A parent's card does not call its child by the number that another run has here."""
    assert cli.main(["import", str(file), str(target.notebook)]) == 0
    parent = target.runs()[2][0]
    assert [child.number for child in parent.children] == [None]
    assert [child.run_id for child in parent.children] == ["run-seq-1"]


def test_the_number_of_an_origin_is_no_strangers(
    tmp_path: Path, target: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was resumed names the run that it goes on from by its id; here its number is another's."""
    notebook, path = tmp_path / "book.ipynb", tmp_path / "book.jsonl"
    with NotebookSession(notebook, ids=SequentialIds("book")) as session:
        old = session.start(reader(2), "tea")
        assert old.wait(BOUND_S)
        assert old.resume().wait(BOUND_S)
    session.store.close(1.0)
    assert cli.main(["export", "--all", str(notebook), "-o", str(path)]) == 0
    for here in (target.notebook, notebook):
        assert cli.main(["import", str(path), str(here)]) == 0
    resumed = target.runs()[-1][0]
    assert resumed.origin == ev.Origin("resume", "run-book-0", None, "reader", 2)
    store = SessionStore([target.path], SystemClock())
    store.open_existing()
    assert store.followups(1) == []
    store.close(1.0)
    assert len(Kept(notebook).runs()) == 2  # it knows its own
    capsys.readouterr()
    assert cli.main(["show", "last", str(target.notebook)]) == 0
    assert "Resumed from a run in another store (reader)" in capsys.readouterr().out


def test_a_run_that_was_live_is_lost_where_it_comes_in(
    session: NotebookSession, held: Held, tmp_path: Path, target: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its kernel is not here: it says so, keeps all it has told, and ended when it last told something."""
    run = session.start(held, "tea")
    path = run.export(tmp_path / "live.jsonl")
    assert cli.main(["import", str(path), str(target.notebook)]) == 0
    assert "lost" in capsys.readouterr().out
    record, events = target.runs()[-1]
    assert (record.status, events[-1].type) == (RunStatus.LOST, "run.lost")
    assert record.ended_at == events[-2].ts
    assert cli.main(["show", "last", str(target.notebook)]) == 0
    assert "imported while it was running" in capsys.readouterr().out
    assert run.status.is_live


def test_a_kernel_at_work_sees_what_comes_in(file: Path, session: NotebookSession, store_path: Path) -> None:
    """Imported runs are in its list, and in nobody's way; one that names this session is none of its runs."""
    own = session.start(agents.instant, "mine")
    assert own.wait(BOUND_S)
    lines = file.read_bytes().replace(b"session-", b"session-x")
    created = re.sub(rb'"session_id":"[^"]*"', b'"session_id":"%s"' % session.id.encode(), lines)
    file.write_bytes(created)
    assert cli.main(["import", str(file), str(store_path)]) == 0
    assert [run.number for run in session.runs()] == [5, 4, 3, 2, 1]
    assert [run.number for run in session.runs(status="failed")] == [4]
    assert session.get(2).name != own.name
    assert session.get(2).id == own.id
    assert session.get("run-seq-0") == own
    assert not session.get(2).cancel()
    later = session.start(agents.instant, "mine too")
    assert later.wait(BOUND_S)
    assert later.number == 6


def test_an_id_that_is_taken_stays_with_who_has_it(
    tmp_path: Path, target: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that may be in a file once only is left out where its id is taken: a later start must not find it."""
    path = tmp_path / "once.jsonl"
    with NotebookSession(tmp_path / "one.ipynb") as one:
        run = one.start(agents.instant, "theirs", id="nightly")
        assert run.wait(BOUND_S)
        run.export(path)
    one.store.close(1.0)
    with NotebookSession(target.notebook) as two:
        mine = two.start(agents.failing, "mine", id="nightly")
        assert mine.wait(BOUND_S)
        assert cli.main(["import", str(path), str(target.notebook)]) == 0
        assert "already has the id" in capsys.readouterr().out
        assert two.start(agents.failing, "mine", id="nightly") == mine
    two.store.close(1.0)
    assert len(target.runs()) == 3


def test_a_folder_without_runs_gets_a_store(file: Path, tmp_path: Path) -> None:
    """It is the one that a kernel without a notebook has there."""
    folder = tmp_path / "empty"
    folder.mkdir()
    assert cli.main(["import", str(file), str(folder)]) == 0
    assert len(Kept(folder / "session").runs()) == 4


# --- for other eyes ----------------------------------------------------------------------------------


class Tags(html.parser.HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note its text."""
        self.text += data


def exported(source: Kept, form: str, capfdbinary: pytest.CaptureFixture[bytes]) -> str:
    """Return all runs in this form, as a pipe gets them."""
    assert cli.main(["export", "--all", str(source.notebook), "-f", form]) == 0
    return capfdbinary.readouterr().out.decode()


@pytest.mark.parametrize("form", FORMS)
def test_no_form_holds_what_a_terminal_would_obey(
    form: str, source: Kept, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Control characters and marks that turn the direction are written out, in every form."""
    text = exported(source, form, capfdbinary)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", text)
    assert "u202eback" in text


def test_a_page_has_no_script_and_nothing_of_an_agent_in_its_markup(
    source: Kept, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Every run is an article with its prompt and its whole text; all elements are ours, and nothing is fetched."""
    page = Tags(exported(source, "html", capfdbinary))
    names = [tag for tag, _ in page.found]
    assert names.count("article") == 4
    assert set(names) <= {
        "html", "head", "meta", "title", "style", "body", "article", "h1", "h2", "dl", "dt", "dd", "pre", "div",
        "span", "strong", "details", "summary", "code", "p",
    }  # fmt: skip
    used = {name for _, attributes in page.found for name in attributes}
    assert used <= {"lang", "charset", "http-equiv", "content", "name", "style", "class", "aria-hidden", "open"}
    assert "<script>alert(1)</script>" in page.text
    assert "no luck with tea" in page.text
    policy = [a["content"] for tag, a in page.found if tag == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_markdown_shows_hostile_text_as_text(source: Kept, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Read by a reader that lets HTML through, there are no links, no images and no headings but ours."""
    text = exported(source, "md", capfdbinary)
    page = Tags(MarkdownIt("commonmark", {"html": True}).render(text))
    names = [tag for tag, _ in page.found]
    assert set(names) <= {"h1", "h2", "p", "ul", "li", "code", "pre", "strong"}
    assert names.count("h1") == 4
    assert "javascript:alert(3)" in page.text


@pytest.mark.parametrize("form", ["html", "md"])
def test_nothing_is_cut(form: str, session: NotebookSession, tmp_path: Path) -> None:
    """A saved card is small; an export has all of the text, all tools, and long arguments whole."""

    async def long(prompt: str, run: RunContext) -> None:
        for number in range(60):
            with run.tool(f"tool{number}", {"x": "y" * 500 + str(number)}):
                pass
        for number in range(5_000):
            run.text(f"word{number} ")

    run = session.start(long, "start " + "p" * 20_000 + " end")
    assert run.wait(BOUND_S)
    text = run.export(tmp_path / f"run.{form}").read_text(encoding="utf-8")
    words = text.replace("<", " ").replace("\n", " ")
    assert all(f"word{number} " in words for number in range(5_000))
    assert all("y" * 500 + str(number) in text for number in range(60))
    assert "p" * 20_000 + " end" in text


def test_json_is_read_by_others(source: Kept, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """One array: of each run its head, its record and its events, by seq; JSON lines hold the same."""
    entries = json.loads(exported(source, "json", capfdbinary))
    lines = [json.loads(line) for line in exported(source, "jsonl", capfdbinary).splitlines()]
    assert [entry["record"]["status"] for entry in entries] == ["completed", "completed", "failed", "cancelled"]
    for entry in entries:
        assert entry["run"]["number"] == entry["record"]["number"]
        assert [event["seq"] for event in entry["events"]] == list(range(len(entry["events"])))
    assert [entry["run"] for entry in entries] == [line["run"] for line in lines if "run" in line]
    assert [event for entry in entries for event in entry["events"]] == [line for line in lines if "seq" in line]


# --- the file ----------------------------------------------------------------------------------------


def test_the_name_chooses_the_form(session: NotebookSession, tmp_path: Path) -> None:
    """`.html` is a page, `.json` a document; what says nothing is JSON lines, and a form that is none an error."""
    run = session.start(agents.instant, "tea")
    assert run.wait(BOUND_S)
    assert run.export(tmp_path / "a.HTML").read_bytes().startswith(b"<!doctype html>")
    assert run.export(str(tmp_path / "a.json")).read_bytes().startswith(b"[")
    assert run.export(tmp_path / "a.md").read_bytes().startswith(b"# ")
    assert recording.read(run.export(tmp_path / "a"))[1] == run.events()
    assert run.export(tmp_path / "b.md", "jsonl").read_bytes().startswith(b'{"nbrun"')
    with pytest.raises(BadOption, match="jsonl, json, html, md"):
        run.export(tmp_path / "a", "pdf")
    with pytest.raises(BadOption, match=r"can't tell the format of 'a\.pdf'"):
        run.export(tmp_path / "a.pdf")


def test_a_run_under_way_goes_out_as_far_as_it_has_come(session: NotebookSession, held: Held, tmp_path: Path) -> None:
    """The file is in order, and says that the run is live; the run goes on."""
    run = session.start(held, "tea")
    header, events = recording.read(run.export(tmp_path / "live.jsonl"))
    assert header.run_id == run.id
    assert events == run.events()[: len(events)]
    assert "when this was exported" in run.export(tmp_path / "live.md").read_text(encoding="utf-8")


def test_what_was_there_stays_until_the_new_file_is_whole(session: NotebookSession, tmp_path: Path) -> None:
    """An export that fails in the middle leaves the old file, and nothing beside it; a link stays a link."""
    run = session.start(agents.instant, "tea")
    assert run.wait(BOUND_S)
    folder = tmp_path / "files"
    folder.mkdir()
    path, link = folder / "run.jsonl", folder / "link.jsonl"
    path.write_text("old", encoding="utf-8")
    link.symlink_to(path)

    def broken() -> Iterator[ev.RunEvent]:
        yield run.events()[0]
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        export.write(path, "jsonl", [Exported(run.record, broken())])
    assert path.read_text(encoding="utf-8") == "old"
    run.export(link)
    assert link.is_symlink()
    assert recording.read(path)[1] == run.events()
    assert sorted(each.name for each in folder.iterdir()) == ["link.jsonl", "run.jsonl"]


# --- mistakes, and files that mean harm --------------------------------------------------------------


def changed(lines: list[bytes], number: int, line: bytes) -> bytes:
    """Return a file with one line changed; lines count from 1."""
    return b"".join([*lines[: number - 1], line + b"\n", *lines[number:]])


EVENT = b'{"seq":1,"ts":1.0,"attempt":1,"parent":null,"type":"log","data":'
BAD: dict[str, tuple[Callable[[list[bytes]], bytes], str]] = {
    "no-json": (lambda lines: changed(lines, 3, b"garbage"), "line 3 is not a valid event"),
    "later-run": (lambda lines: b"".join(lines) + lines[0] + b"{}\n", "line {last} is not a valid event"),
    "gap": (lambda lines: b"".join([lines[0], lines[1], *lines[3:]]), "came where 1 was due"),
    "half-a-line": (lambda lines: b"".join(lines)[:-30], "line {end} is not a valid event"),
    "nothing": (lambda lines: b"", "first line"),
    "a-page": (lambda lines: b"<!doctype html>", "first line"),
    "not-utf8": (lambda lines: changed(lines, 3, EVENT + b'{"text":"\xff"}}'), "line 3 is not a valid event"),
    "deep": (lambda lines: changed(lines, 3, EVENT + b"[" * 10**5 + b"]" * 10**5 + b"}"), "line 3 is not a"),
    "newer": (lambda lines: changed(lines, 1, lines[0].replace(b'"version":1', b'"version":9').strip()), "update nb"),
    "no-id": (lambda lines: changed(lines, 1, re.sub(rb'"run_id":"[^"]*"', b'"run_id":""', lines[0]).strip()), "id"),
    "far-end": (
        lambda lines: b"".join(lines[:2]) + EVENT.replace(b"log", b"run.lost") + b'{"last_event_at":1e300}}\n', "range"
    ),
    "twice": (lambda lines: b"".join(lines[:2]) + lines[1].replace(b'"seq":0', b'"seq":1'), "twice"),
    "document": (lambda lines: b"[{}]", "run"),
    "document-event": (lambda lines: b'[{"run":{"run_id":"r"},"events":[{"seq":"x"}]}]', "event 0 of run 1"),
    "document-cut": (lambda lines: b'[{"run":{"run_id":"r"},"events":[', "not a document"),
    "document-deep": (lambda lines: b"[" * 10**6, "not a document"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_not_in_order_changes_nothing(
    name: str, file: Path, target: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what is wrong and where; no run of the file is taken, not even those before the place."""
    spoil, words = BAD[name]
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(spoil(lines))
    before = repr(target.runs())
    capsys.readouterr()
    assert cli.main(["import", str(file), str(target.notebook)]) == 1
    said = capsys.readouterr()
    (only,) = said.err.splitlines()
    assert words.format(last=len(lines) + 2, end=len(lines)) in only
    assert len(only) < 500
    assert repr(target.runs()) == before


def test_too_large_a_run_is_refused(
    file: Path, target: Kept, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file fills the memory: a run, a line and a document have their bounds."""
    with monkeypatch.context() as patch:
        patch.setattr(recording, "MAX_RUN", 1_000)
        assert cli.main(["import", str(file), str(target.notebook)]) == 1
        assert "the run of line 1 is longer than 1,000 bytes" in capsys.readouterr().err
    monkeypatch.setattr(recording, "MAX_LINE", 100)
    assert cli.main(["import", str(file), str(target.notebook)]) == 1
    assert "line 1 is longer than 100 bytes" in capsys.readouterr().err
    assert len(target.runs()) == 2


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("export", "--all"),
        ("export 7 {path}", "'7'"),
        ("export 1 {path} -f pdf", "pdf"),
        ("export --all nowhere", "nowhere"),
        ("export 1 {path} -o nowhere/run.jsonl", "no such folder: '"),
        ("import nowhere.jsonl {path}", "nowhere.jsonl"),
        ("import nowhere.jsonl nowhere/x.ipynb", "nowhere.jsonl"),
        ("import {path}/.. {path}", "directory"),
        ("import {file} nowhere/x.ipynb", "nowhere"),
        ("import", "FILE"),
        ("list {path} --status done", "queued, running"),
        ("list {path} --since soon", "use for example 90s"),
        ("list {path} --before x", "--before"),
    ],
)
def test_a_mistake_is_one_line(
    line: str, names: str, target: Kept, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names what was wrong, on the error stream, and the code is not 0."""
    capsys.readouterr()
    try:
        words = line.format(path=target.notebook, file=file).split()
        code = cli.main([word.replace(".ipynb/..", ".nbrun") for word in words])
    except SystemExit as end:
        code = int(str(end.code))
    said = capsys.readouterr()
    assert code != 0
    assert said.out == ""
    (only,) = said.err.splitlines()
    assert names in only.casefold() or names in only


# --- list and show -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("--status failed", [3]),
        ("--agent instant", [2]),
        ("--text LUCK", [3]),
        ("--text tea", [4, 3]),
        ("--tag set", [1]),
        ("--since 1h --limit 2", [4, 3]),
        ("--before 3", [2, 1]),
        ("--before 3 --limit 1", [2]),
    ],
)
def test_list_takes_the_same_filters(
    options: str, found: list[int], source: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the notebook, newest first."""
    assert cli.main(["list", str(source.notebook), *options.split()]) == 0
    text = capsys.readouterr().out
    assert [int(number) for number in re.findall(r"^#(\d+)", text, re.M)] == found


def test_show_tells_of_log_progress_and_cancel(source: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    """What the run printed, how far it came, when it was asked to stop, and why, and when it ended."""
    assert cli.main(["show", "1", str(source.notebook)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  1 of 3", text, re.M)
    assert re.search(r"^  Log \(\d+ lines?\):\n  \| <script>", text, re.M)
    assert cli.main(["show", "last", str(source.notebook)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  cancel   \d{4}-", text, re.M)
    assert re.search(r"^  ended    \d{4}-", text, re.M)
    assert "“enough”" in text


async def returns_much(prompt: str) -> str:
    """Return more than stands in a row."""
    return "steam " * 400_000


@pytest.mark.parametrize("form", ["jsonl", "json", "html", "md"])
def test_what_is_kept_beside_the_log_goes_out_with_it(
    form: str, target: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An output of megabytes is whole in every form, and after it was imported."""
    with NotebookSession(tmp_path / "large.ipynb") as session:
        assert session.start(returns_much).wait(BOUND_S)
    path = tmp_path / f"large.{form}"
    assert cli.main(["export", "last", str(tmp_path / "large.ipynb"), "-o", str(path)]) == 0
    assert path.read_text(encoding="utf-8").count("steam ") >= 400_000
    if form in ("jsonl", "json"):
        assert cli.main(["import", str(path), str(target.notebook)]) == 0
        with NotebookSession(target.notebook) as session:
            assert session.get("last").output == "steam " * 400_000
