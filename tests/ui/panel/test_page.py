"""Which runs the panel shows: from a real store and from memory, by filter, text and page."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nbrun import NotebookSession, RunContext
from nbrun.ui.panel import page as runs_page
from nbrun.ui.panel.page import ANY_LIVE, PageQuery, RunsPage, newest, read_page, refreshed
from nbrun.ui.panel.table import bundle, in_order, page_row, set_row
from tests.fakes import agents
from tests.fakes.agents import Held

MakeSession = Callable[..., NotebookSession]
BOUND_S = 10


def page_of(session: NotebookSession, **wanted: object) -> RunsPage:
    """Return a page that is looked for to its end."""
    page = read_page(session, PageQuery(**wanted), lambda: False)  # type: ignore[arg-type]  # by name
    assert page is not None
    return page


def numbers(page: RunsPage) -> list[int | None]:
    """Return the numbers of the runs on a page, as they stand."""
    return [row.record.number for row in page.rows]


def ended(session: NotebookSession, count: int, name: str = "tea") -> None:
    """Run so many to their end."""
    for run in [session.start(agents.instant, f"{name} {at}", name=name) for at in range(count)]:
        assert run.wait(BOUND_S)


async def fails(prompt: str) -> str:
    """Fail."""
    raise ValueError(prompt)


def test_pages_follow_one_another_without_a_gap(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newest first, by number; the last page has no more; the same in the kernel that ran them and in a later one."""
    monkeypatch.setattr(runs_page, "PAGE", 3)
    with make_session() as first:
        ended(first, 8)
        for session in (first, make_session()):
            before: tuple[int, ...] = ()
            seen = []
            for has_more in (True, True, False):
                page = page_of(session, before=before)
                assert page.has_more is has_more
                seen.append(numbers(page))
                before = (*before, page.rows[-1].record.number or 0)
            assert seen == [[8, 7, 6], [5, 4, 3], [2, 1]]


def test_what_runs_do_is_seen_without_the_store(
    session: NotebookSession, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New runs come on top and ended ones leave a filter, though nothing is read; on an older page nothing comes."""
    ended(session, 2)
    everything, live = page_of(session), page_of(session, status=ANY_LIVE)
    older = page_of(session, before=(2,))
    assert (numbers(everything), numbers(live), numbers(older)) == ([2, 1], [], [1])
    for question in ("runs", "select"):
        monkeypatch.setattr(session.store, question, None)
    run = session.start(held, "hm")
    assert run.wait_created(BOUND_S)
    assert numbers(refreshed(session, everything)) == [3, 2, 1]
    live = refreshed(session, live)
    assert numbers(live) == [3]
    assert numbers(refreshed(session, older)) == [1]
    run.cancel().wait(BOUND_S)
    assert [row.record.status for row in live.rows] == ["cancelled"]  # a row follows its run
    assert numbers(refreshed(session, live)) == []
    assert [row.record.number for row in newest(session, older.rows, 2)] == [3, 2]


def test_filters_and_text_find_what_fits(make_session: MakeSession, held: Held) -> None:
    """One status, all that is live, and a text of name, prompt or output; by a later kernel as well."""
    with make_session() as first:
        ended(first, 2, "green")
        first.start(fails, "tea", name="spilt").wait(BOUND_S)
        live = first.start(held, "a cup", name="kettle")
        assert live.wait_created(BOUND_S)
        for session in (first, make_session()):
            assert numbers(page_of(session, status="failed")) == [3]
            assert numbers(page_of(session, status=ANY_LIVE)) == [4]
            assert numbers(page_of(session, text="GREEN 1")) == [2]  # prompt and output
            assert numbers(page_of(session, text="spilt")) == [3]  # a name
            assert numbers(page_of(session, text="kettle", status=ANY_LIVE)) == [4]
            assert numbers(page_of(session, text="kettle", status="completed")) == []
        assert page_of(make_session(), status=ANY_LIVE).is_of_others
        assert not page_of(first, status=ANY_LIVE).is_of_others


def test_a_search_is_given_up_when_something_else_is_wanted(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks up between runs whether it is still wanted; one that is not gives nothing."""
    monkeypatch.setattr(runs_page, "SCAN", 2)
    with make_session() as first:
        ended(first, 9)
    later = make_session()
    asked: list[bool] = []

    def is_over() -> bool:
        asked.append(True)
        return len(asked) > 4

    assert read_page(later, PageQuery(text="nowhere"), is_over) is None
    assert 4 < len(asked) < 9


def keys(session: NotebookSession, **wanted: object) -> list[object]:
    """Return the rows of a panel's page: the numbers of runs, and the keys of sets."""
    page = page_of(session, **wanted)
    rows = [page_row(row, session.id) for row in page.rows]
    sets = [set_row(seen, is_own=True) for seen in page.sets]
    return [row["number"] or row["key"] for row in in_order(rows, sets, lambda row: float(row["created_at"]))]


async def parent(prompt: str, run: RunContext) -> str:
    """Start a child run; fail if that is asked for."""
    if prompt == "fail":
        raise ValueError(prompt)
    return str(await run.start_child(agents.instant, prompt))


def test_a_set_is_one_row_however_many_runs_it_has(make_session: MakeSession) -> None:
    """In the kernel that ran it and in a later one; its runs are found by its name, by status, and by what they say."""
    with make_session() as first:
        ended(first, 1)
        found = first.map(parent, ["a", "b", "fail", "d"], name="graded", concurrency=1)
        assert found.wait(BOUND_S)
        ended(first, 1)
        last = first.runs(limit=1)[0].number
        for session in (first, make_session()):
            assert keys(session) == [last, "set-1", 1]
            members = [run.number for run in reversed(list(found)) if run.number]
            assert keys(session, text="set-1") == [*members, "set-1"]
            assert keys(session, text="Set #1", status="failed") == [found[2].number, "set-1"]
            assert keys(session, status="failed") == ["set-1"]
            assert (
                keys(session, status="cancelled") == keys(session, text="set-9") == keys(session, status=ANY_LIVE) == []
            )
            assert keys(session, text="grad")[-1] == "set-1"
            assert found[3].number in keys(session, text="grad")
            assert [run.number for run in session.runs(in_set=1)] == members
            assert [run.number for run in session.runs(in_set=0)] == [last, 1]


def test_the_runs_of_a_large_set_push_no_other_out(session: NotebookSession, held: Held) -> None:
    """Neither from the page, nor from what a file keeps; a live set has its counts, and can be cancelled."""
    ended(session, 1)
    found = session.map(held, [str(at) for at in range(300)], concurrency=100)
    assert found._wait_until(lambda: found.counts.get("running") == 100, BOUND_S)
    page = page_of(session)
    assert (numbers(page), [seen.number for seen in page.sets]) == ([1], [1])
    (row,) = [set_row(seen, is_own=True) for seen in page.sets]
    assert row["cells"]["status"] == "Running: 0 of 300 ended"
    assert (row["set"], row["live"], row["own"], row["name"]) == (1, True, True, "Held set #1")
    assert [one.record.number for one in newest(session, page.rows, 20)] == [1]
    found.cancel()
    assert found.wait(BOUND_S)
    page = refreshed(session, page)
    assert numbers(page) == [1]
    assert set_row(page.sets[0], is_own=True)["cells"]["status"] == "Cancelled: 300 cancelled"
    text = bundle([row.record for row in page.rows], 101, 0.0, page.sets)["text/plain"]
    assert "The newest of 101 runs" in text
    assert "300 cancelled" in text
