"""A page of a notebook's runs: those that fit what is asked for, newest first, fifty at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from nbrun.core.record import LIVE, RunStatus
from nbrun.store.filters import read_query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from nbrun.core.record import RunRecord
    from nbrun.sessions.run import Run
    from nbrun.sessions.session import NotebookSession
    from nbrun.store.filters import Query

PAGE = 50
SCAN = 200
"""Runs that a search reads between two checks that it is still wanted."""
ANY_LIVE = "live"
"""The filter for all runs that have not ended, whatever their status."""
STATUSES = ("", ANY_LIVE, *RunStatus)
IN_MEMORY = 1_000
"""The newest runs of this kernel, which are checked when one of them has changed."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs to show; `before` are the numbers below which the pages up to this one begin."""

    status: str = ""
    text: str = ""
    before: tuple[int, ...] = ()

    def query(self, now: float) -> Query:
        """Return this as a query, which leaves out `ANY_LIVE`."""
        status = None if self.status in ("", ANY_LIVE) else self.status
        text, before = self.text or None, self.before[-1] if self.before else None
        return read_query(now, status=status, text=text, before=before)


@dataclass(frozen=True, slots=True)
class Row:
    """A run of a page, and its record as it was read: for other kernels' runs, nothing newer is known."""

    run: Run
    read: RunRecord

    @property
    def record(self) -> RunRecord:
        """The newest record that is known without asking the store."""
        live = self.run.live
        return self.read if live is None else live.record


@dataclass(frozen=True, slots=True)
class RunsPage:
    """The rows that are shown, and whether older runs match as well."""

    wanted: Wanted
    rows: tuple[Row, ...] = ()
    has_more: bool = False

    @property
    def is_of_others(self) -> bool:
        """Whether live runs of other kernels are on it, whose changes nobody reports."""
        return not self.wanted.text and any(
            row.run.live is None and row.read.is_live for row in self.rows
        )


def read_page(
    session: NotebookSession, wanted: Wanted, is_over: Callable[[], bool]
) -> RunsPage | None:
    """Return the wanted runs, from the store and from memory; None once `is_over`."""
    found: list[Run] = []
    for run in _stored(session, wanted, is_over):
        found.append(run)
        if len(found) > PAGE:
            break
    rows = [Row(run, run.glance) for run in found]
    return None if is_over() else _page(session, wanted, rows)


def refreshed(session: NotebookSession, page: RunsPage) -> RunsPage:
    """Return the page with this kernel's runs brought up to date, without asking the store."""
    return _page(session, page.wanted, page.rows, page.has_more)


def newest(session: NotebookSession, known: Iterable[Row], count: int) -> list[Row]:
    """Return the newest runs, of those known and those in memory."""
    rows = {row.run: row for row in known}
    rows |= {run: Row(run, run.glance) for run in session.recent_runs(count)}
    return sorted(rows.values(), key=_age)[:count]


def _stored(session: NotebookSession, wanted: Wanted, is_over: Callable[[], bool]) -> Iterator[Run]:
    """Yield the stored runs, newest first, as far as they are read."""
    query = wanted.query(session.clock.now())
    if wanted.status == ANY_LIVE:
        by_status = [
            session.runs(status=status, before=query.before, limit=PAGE + 1) for status in LIVE
        ]
        runs = {run for found in by_status for run in found if _fits(wanted, query, run)}
        yield from sorted(runs, key=lambda run: _age(Row(run, run.glance)))
    elif query.text is None:
        yield from session.runs(status=query.status, before=query.before, limit=PAGE + 1)
    else:
        yield from _searched(session, wanted, query, is_over)


def _searched(
    session: NotebookSession, wanted: Wanted, query: Query, is_over: Callable[[], bool]
) -> Iterator[Run]:
    """Yield the runs that contain the text, in small steps: it may take long, and be abandoned."""
    before = query.before
    while not is_over():
        page = session.runs(status=query.status, before=before, limit=SCAN)
        for run in page:
            if is_over():
                return
            if _fits(wanted, query, run):
                yield run
        numbers = [run.number for run in page if run.number is not None]
        if len(page) < SCAN or not numbers:
            return
        before = numbers[-1]


def _page(
    session: NotebookSession, wanted: Wanted, known: Iterable[Row], has_more: bool = False
) -> RunsPage:
    """Return the page of these rows and of the runs in memory that match now."""
    query = wanted.query(session.clock.now())
    rows = {row.run: row for row in known}
    for run in session.recent_runs(IN_MEMORY):
        rows.setdefault(run, Row(run, run.glance))
    # Runs found in the store have not changed since; runs in memory may have.
    fitting = [
        row for row in rows.values() if row.run.live is None or _fits(wanted, query, row.run)
    ]
    fitting.sort(key=_age)
    return RunsPage(wanted, tuple(fitting[:PAGE]), has_more or len(fitting) > PAGE)


def _fits(wanted: Wanted, query: Query, run: Run) -> bool:
    record = run.glance
    if wanted.status == ANY_LIVE and not record.is_live:
        return False
    if not query.fits(record):
        return False
    is_found = query.finds(record)
    return bool(query.finds(run.record) if is_found is None else is_found)


def _age(row: Row) -> tuple[float, float]:
    """Return the sort key of rows: unsaved runs count as the newest."""
    number = row.record.number
    return (-float("inf") if number is None else -number, -row.record.created_at)
