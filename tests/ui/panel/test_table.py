"""Runs as rows: what goes to a page is short and hides nothing, what a file keeps is harmless and true later."""

from __future__ import annotations

from markdown_it import MarkdownIt

from nbrun import NotebookSession, RunRecord, RunStatus
from nbrun.core import events as ev
from nbrun.ui.panel.page import PageQuery, read_page
from nbrun.ui.panel.table import bundle, page_row
from tests.fakes import agents
from tests.fakes.agents import Held
from tests.fakes.people import until
from tests.kernel.test_cards import HOSTILE, Tags

NOON = 1_790_000_000.0


def a_record(status: RunStatus = RunStatus.COMPLETED, **fields: object) -> RunRecord:
    """Return a record as a store has it."""
    known = {"number": 7, "name": "tea", "agent": "poet", "created_at": NOON, "started_at": NOON}
    return RunRecord(run_id="run-7", status=status, **(known | fields))  # type: ignore[arg-type]


def test_a_row_tells_whose_run_it_is(session: NotebookSession, held: Held) -> None:
    """One of this kernel may be cancelled from here; one of another says where it is."""
    ended, run = session.start(agents.instant, "hi"), session.start(held, "hi")
    assert ended.wait(10)
    until(run, lambda record: record.status is RunStatus.RUNNING)
    page = read_page(session, PageQuery(), lambda: False)
    assert page is not None
    own = [page_row(row, session.id) for row in page.rows]
    assert [(row["own"], row["live"]) for row in own] == [(True, True), (True, False)]
    with NotebookSession(store=session.store.path) as other:
        page = read_page(other, PageQuery(), lambda: False)
        assert page is not None
        rows = [page_row(row, other.id) for row in page.rows]
    assert [row["key"] for row in rows] == [row["key"] for row in own]
    assert [(row["own"], row["live"]) for row in rows] == [(False, True), (False, False)]
    assert [row["cells"]["status"] for row in rows] == ["Running, in another kernel", "Completed"]


def test_what_is_kept_calls_nothing_live() -> None:
    """A run that was live when the table was drawn is told in the past, in every form."""
    usage = ev.Usage(1_204, 340, cost_usd=0.5, exact=False)
    records = [a_record(status, usage=usage) for status in RunStatus]
    data = bundle(records, 1_204, NOON)
    for form in ("text/html", "text/markdown", "text/plain"):
        text = data[form]
        assert "The 8 newest of 1,204 runs at 2026-09-21" in text
        assert text.count("Was ") == 4
        for live in ("Running", "Queued", "Waiting for", "Cancelling"):
            assert live not in text
        assert "≥ 1,204 in · 340 out" in text
        assert "≥ $0.50" in text
    assert "No runs at" in bundle([], 0, NOON)["text/html"]


def test_hostile_text_stays_text_in_what_is_kept() -> None:
    """In HTML and in a Markdown table no tag, link or column comes of a run's name, agent or ending."""
    record = a_record(name=HOSTILE, agent=f"a | b `{HOSTILE}", detached=(HOSTILE,))
    record = a_record(RunStatus.CANCELLED, name=HOSTILE, agent=record.agent, detached=(HOSTILE,))
    data = bundle([record, record], 2, NOON)
    html = Tags(data["text/html"])
    assert html.tags <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td", "span"}
    assert html.attributes <= {"class", "style", "aria-hidden"}
    renderer = MarkdownIt("commonmark", {"html": True}).enable("table")
    rendered = renderer.render(data["text/markdown"])
    assert Tags(rendered).tags <= {"p", "strong", "table", "thead", "tbody", "tr", "th", "td", "code"}
    assert (rendered.count("<th>"), rendered.count("<td>")) == (7, 14)
    for text in data.values():
        assert "\u202e" not in text
        assert "\x1b" not in text
        assert len(text) < 5_000
