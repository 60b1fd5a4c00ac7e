"""A page of a notebook's runs: those that match the filters, newest first, fifty at a time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from nbrun.core import LIVE, RunRecord, RunStatus
from nbrun.store import Query, read_query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from nbrun.sessions import NotebookSession, Run

PAGE = 50
SCAN = 200
"""How many runs a search reads before it checks again whether its result is still needed."""
ANY_LIVE = "live"
"""The filter for all runs that haven't ended."""
STATUSES = ("", ANY_LIVE, *RunStatus)
IN_MEMORY = 1_000
"""How many runs of this kernel a refresh considers, the newest."""


class PageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs are asked for; `before` has the number below which each page begins, up to this one."""

    status: str = ""
    text: str = ""
    before: tuple[int, ...] = ()

    def filters(self, now: float) -> Query:
        """Return the same as filters of the store, which have no `ANY_LIVE`."""
        status = None if self.status in ("", ANY_LIVE) else self.status
        text, before = self.text or None, self.before[-1] if self.before else None
        return read_query(now, status=status, text=text, before=before)


@dataclass(frozen=True, slots=True)
class Row:
    """A run of a page, and its record as read: for other kernels' runs nothing newer is known."""

    run: Run
    read: RunRecord

    @property
    def record(self) -> RunRecord:
        """The newest record known; the store isn't read."""
        live = self.run.live
        is_newer = live is not None and (self.read.is_live or not live.record.is_brief)
        return live.record if live is not None and is_newer else self.read


@dataclass(frozen=True, slots=True)
class RunsPage:
    """What is shown: the rows, and whether older runs match as well."""

    query: PageQuery
    rows: tuple[Row, ...] = ()
    has_more: bool = False

    @property
    def is_of_others(self) -> bool:
        """Whether it shows live runs of other kernels, whose changes are not reported here."""
        return not self.query.text and any(row.run.live is None and row.read.is_live for row in self.rows)


def read_page(session: NotebookSession, query: PageQuery, is_over: Callable[[], bool]) -> RunsPage | None:
    """Return the runs that are asked for, from the store and from memory; None if `is_over` meanwhile."""
    rows = [Row(run, run.glance) for run in islice(_stored(session, query, is_over), PAGE + 1)]
    return None if is_over() else _page(session, query, rows)


def refreshed(session: NotebookSession, page: RunsPage) -> RunsPage:
    """Return the page with the newest records of this kernel's runs; the store isn't read."""
    return _page(session, page.query, page.rows, page.has_more)


def newest(session: NotebookSession, known: Iterable[Row], count: int) -> list[Row]:
    """Return the newest of the runs that are known or in memory."""
    rows = {row.run: row for row in known}
    rows |= {run: Row(run, run.glance) for run in session.recent_runs(count)}
    return sorted(rows.values(), key=_age)[:count]


def _stored(session: NotebookSession, query: PageQuery, is_over: Callable[[], bool]) -> Iterator[Run]:
    """Yield the matching runs of the store, newest first."""
    filters = query.filters(session.clock.now())
    before = filters.before
    if query.status == ANY_LIVE:
        by_status = [session.runs(status=status, before=before, limit=PAGE + 1) for status in LIVE]
        runs = {run for found in by_status for run in found if _fits(query, filters, run)}
        yield from sorted(runs, key=lambda run: _age(Row(run, run.glance)))
    elif filters.text is None:
        yield from session.runs(status=filters.status, before=before, limit=PAGE + 1)
    else:
        yield from _searched(session, query, filters, is_over)


def _searched(session: NotebookSession, query: PageQuery, filters: Query, is_over: Callable[[], bool]) -> Iterator[Run]:
    """Yield the runs that contain the text; in small steps, since it may take long and be abandoned."""
    before = filters.before
    while not is_over():
        page = session.runs(status=filters.status, before=before, limit=SCAN)
        for run in page:
            if is_over():
                return
            if _fits(query, filters, run):
                yield run
        numbers = [run.number for run in page if run.number is not None]
        if len(page) < SCAN or not numbers:
            return
        before = numbers[-1]


def _page(session: NotebookSession, query: PageQuery, known: Iterable[Row], has_more: bool = False) -> RunsPage:
    """Return the page of these rows and those in memory, if they match now."""
    filters = query.filters(session.clock.now())
    rows = {row.run: row for row in known}
    for run in session.recent_runs(IN_MEMORY):
        rows.setdefault(run, Row(run, run.glance))
    # Only what is in memory may have changed since it was found.
    fitting = [row for row in rows.values() if row.run.live is None or _fits(query, filters, row.run)]
    fitting.sort(key=_age)
    return RunsPage(query, tuple(fitting[:PAGE]), has_more or len(fitting) > PAGE)


def _fits(query: PageQuery, filters: Query, run: Run) -> bool:
    return (query.status != ANY_LIVE or run.glance.is_live) and run.fits(filters)


def _age(row: Row) -> tuple[float, float]:
    """Return what rows are sorted by: a run that isn't saved yet is newer than all that are."""
    number = row.record.number
    return (-float("inf") if number is None else -number, -row.record.created_at)
