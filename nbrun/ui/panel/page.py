"""A page of a notebook's runs: those that match the filters, newest first, fifty at a time.

A set is one row; its runs are listed if it is searched for, as `set-12`, or if a text is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from nbrun.core import LIVE, RunRecord, RunStatus
from nbrun.store import Query, read_query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from nbrun.render.set_view import SetView
    from nbrun.sessions import NotebookSession, Run

PAGE = 50
SETS = 20
"""How many sets are listed, the newest."""
SCAN = 200
"""How many runs a search reads before it checks again whether its result is still needed."""
ANY_LIVE = "live"
"""The filter for all runs that haven't ended."""
STATUSES = ("", ANY_LIVE, *RunStatus)
IN_MEMORY = 1_000
"""How many runs of this kernel a refresh considers, the newest."""
_SET = re.compile(r"set[- ]#?(\d{1,15})", re.IGNORECASE)


class PageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs are asked for; `before` has the number below which each page begins, up to this one."""

    status: str = ""
    text: str = ""
    before: tuple[int, ...] = ()

    def filters(self, now: float) -> Query:
        """Return the same as filters of the store, which have no `ANY_LIVE`."""
        status = None if self.status in ("", ANY_LIVE) else self.status
        before = self.before[-1] if self.before else None
        if (wanted := self.in_set) is not None:
            return read_query(now, status=status, before=before, in_set=wanted)
        return read_query(now, status=status, text=self.text or None, before=before)

    @property
    def in_set(self) -> int | None:
        """The set whose runs are asked for; 0 for the runs of none, and None for all, where a text is searched for."""
        match = _SET.fullmatch(self.text)
        return int(match[1]) if match else None if self.text else 0

    def wants(self, seen: SetView) -> bool:
        """Return whether a set is listed: it, or some of its runs, are asked for."""
        if self.in_set:
            return seen.number == self.in_set
        if self.before or self.text.casefold() not in f"{seen.title} {seen.agent}".casefold():
            return False
        if self.status in ("", ANY_LIVE):
            return seen.is_live or not self.status
        return seen.counts.get(RunStatus(self.status), 0) > 0


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
    sets: tuple[SetView, ...] = ()  # that are asked for, newest first
    others: tuple[SetView, ...] = ()  # all that this kernel does not run, as read

    @property
    def is_of_others(self) -> bool:
        """Whether it shows live runs of other kernels, whose changes are not reported here."""
        return not self.query.text and any(row.run.live is None and row.read.is_live for row in self.rows)


def read_page(session: NotebookSession, query: PageQuery, is_over: Callable[[], bool]) -> RunsPage | None:
    """Return the runs that are asked for, from the store and from memory; None if `is_over` meanwhile."""
    rows = [Row(run, run.glance) for run in islice(_stored(session, query, is_over), PAGE + 1)]
    here = set(session.recent_sets)
    others = tuple(found.glance for found in session.sets()[:SETS] if found.number not in here)
    return None if is_over() else _page(session, query, rows, others=others)


def refreshed(session: NotebookSession, page: RunsPage) -> RunsPage:
    """Return the page with the newest records of this kernel's runs; the store isn't read."""
    return _page(session, page.query, page.rows, page.has_more, page.others)


def newest(session: NotebookSession, known: Iterable[Row], count: int) -> list[Row]:
    """Return the newest of the runs that are known or in memory."""
    rows = {row.run: row for row in known}
    rows |= {run: Row(run, run.glance) for run in session.recent_runs(count, in_set=0)}
    return sorted(rows.values(), key=_age)[:count]


def _stored(session: NotebookSession, query: PageQuery, is_over: Callable[[], bool]) -> Iterator[Run]:
    """Yield the matching runs of the store, newest first."""
    filters = query.filters(session.clock.now())
    before = filters.before
    if query.status == ANY_LIVE:
        by_status = [
            session.runs(status=status, before=before, limit=PAGE + 1, in_set=filters.in_set) for status in LIVE
        ]
        runs = {run for found in by_status for run in found if _fits(query, filters, run)}
        yield from sorted(runs, key=lambda run: _age(Row(run, run.glance)))
    elif filters.text is None:
        yield from session.runs(status=filters.status, before=before, limit=PAGE + 1, in_set=filters.in_set)
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


def _page(
    session: NotebookSession, query: PageQuery, known: Iterable[Row], has_more: bool = False,
    others: tuple[SetView, ...] = (),
) -> RunsPage:  # fmt: skip
    """Return the page of these rows and those in memory, if they match now."""
    filters = query.filters(session.clock.now())
    rows = {row.run: row for row in known}
    for run in session.recent_runs(IN_MEMORY, filters.in_set):
        rows.setdefault(run, Row(run, run.glance))
    # Only what is in memory may have changed since it was found.
    fitting = [row for row in rows.values() if row.run.live is None or _fits(query, filters, row.run)]
    fitting.sort(key=_age)
    sets = tuple(seen for seen in listed_sets(session, others) if query.wants(seen))
    return RunsPage(query, tuple(fitting[:PAGE]), has_more or len(fitting) > PAGE, sets, others)


def listed_sets(session: NotebookSession, others: Iterable[SetView]) -> list[SetView]:
    """Return the newest sets: those that this kernel runs as they are now, and others as they were read."""
    here = [found.glance for number in session.recent_sets[:SETS] if (found := session.get_set(number)) is not None]
    numbers = {seen.number for seen in here}
    known = [*here, *(seen for seen in others if seen.number not in numbers)]
    return sorted(known, key=lambda seen: -seen.number)[:SETS]


def _fits(query: PageQuery, filters: Query, run: Run) -> bool:
    return (query.status != ANY_LIVE or run.glance.is_live) and run.fits(filters)


def _age(row: Row) -> tuple[float, float]:
    """Return what rows are sorted by: a run that isn't saved yet is newer than all that are."""
    number = row.record.number
    return (-float("inf") if number is None else -number, -row.record.created_at)
