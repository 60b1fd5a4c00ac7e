"""Filters for runs: read once from what was given, then a record fits or not."""

from __future__ import annotations

import math
from datetime import date, datetime, time, timedelta

import msgspec

from nbrun.core import BadOption, RunRecord, RunStatus, duration_s, readable
from nbrun.core.record import BRIEF_HEAD

_A_YEAR = 366 * 86_400

UNKNOWN = "unknown"
"""Finds runs whose kernel cannot be seen from here; it is not a status that they have."""

Since = datetime | date | timedelta | float | str
"""Of numbers: epoch seconds, as `run.created_at` is."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Filters that a run must fit, all of them; None leaves one out. See `read_query`."""

    status: RunStatus | None = None
    is_unknown: bool = False  # only runs whose state is unknown here
    is_top_level: bool = False  # only runs that somebody started: no child runs
    in_set: int | None = None  # only runs of this set; 0: only what belongs to none
    name: str | None = None
    agent: str | None = None
    tag: str | None = None
    since: float | None = None  # epoch seconds
    text: str | None = None  # as `_comparable` makes it
    limit: int | None = None
    before: int | None = None

    @property
    def is_unfiltered(self) -> bool:
        """Whether every run fits."""
        filters = (self.status, self.name, self.agent, self.tag, self.since, self.text, self.in_set)
        return all(value is None for value in filters) and not (self.is_unknown or self.is_top_level)

    @property
    def is_of_columns(self) -> bool:
        """Whether the columns of a store's table are enough: no record has to be read."""
        return self.tag is None and self.text is None and not self.is_unknown

    def fits(self, record: RunRecord) -> bool:
        """Return whether a record fits all but the text, and is below `before`."""
        return (
            (self.status is None or record.status is self.status)
            and (self.name is None or record.name == self.name)
            and (self.since is None or record.created_at >= self.since)
            and (self.before is None or (record.number or self.before) < self.before)
            and self.fits_within(record)
        )

    def fits_within(self, record: RunRecord) -> bool:
        """Return whether it fits what a store's columns do not say, or may say wrongly; the text excepted."""
        if self.is_top_level and record.parent_id is not None:
            return False
        if self.in_set is not None and self.in_set != (0 if record.member is None else record.member.set):
            return False
        # A run in an unknown state has no other status.
        if record.is_unknown != self.is_unknown and (self.is_unknown or self.status is not None):
            return False
        if self.agent is not None and self.agent not in (record.agent, record.model):
            return False
        if self.tag is None:
            return True
        key, equals, value = self.tag.partition("=")
        return record.tags.get(key) == value if equals else key in record.tags

    def finds(self, record: RunRecord) -> bool | None:
        """Return whether name, prompt, error or output contain the text; None if a brief record is not enough."""
        if self.text is None:
            return True
        output = "" if record.output is None else readable(record.output)
        if record.is_brief and len(output) >= BRIEF_HEAD:
            output = output[: BRIEF_HEAD - 1]  # the last character may be an ellipsis
        kind, message = (record.error.type, record.error.message) if record.error else ("", "")
        parts = (record.prompt, record.text, output, message)
        if any(self.text in _comparable(part) for part in (record.name, kind, *parts)):
            return True
        is_cut = record.text_cut > 0 or (record.is_brief and any(len(part) >= BRIEF_HEAD - 1 for part in parts))
        # The store has the brief record of a live run as of its last change of status.
        return None if is_cut or (record.is_brief and record.is_live) else False


def _comparable(text: str) -> str:
    """Fold case and white space: a brief record, whose output is one line, contains what the whole one does."""
    return " ".join(text.split()).casefold()


def read_query(
    now: float,
    *,
    status: str | None = None,
    name: str | None = None,
    agent: str | None = None,
    tag: str | None = None,
    since: Since | None = None,
    text: str | None = None,
    limit: int | None = None,
    before: int | None = None,
    in_set: int | None = None,
) -> Query:
    """Return the filters; `now`, in epoch seconds, is the moment that `since="2h"` counts back from.

    Raises `BadOption` if a value is not valid; the message says what is.
    """
    texts = {"name": name, "agent": agent, "tag": tag, "text": text}
    for option, value in texts.items():
        if value is not None and not isinstance(value, str):
            how = ", such as 'key=value' or 'key'" if option == "tag" else ""
            raise BadOption(f"{option} must be a str{how}, not {type(value).__name__}")
    if status is not None and not isinstance(status, str):
        raise BadOption(f"status must be a single str, not {type(status).__name__}")
    for option, number in (("limit", limit), ("before", before), ("in_set", in_set)):
        if number is not None and not isinstance(number, int):
            how = "; for a reference, use before=nbrun.get(…)" if option == "before" else ""
            raise BadOption(f"{option} must be an int, not {type(number).__name__}{how}")
    if limit is not None and limit < 0:
        raise BadOption(f"limit must be at least 0, not {limit}; leave it out for all runs")
    if tag is not None and not tag.partition("=")[0]:
        raise BadOption(f"tag '{tag}' has no key; write key=value, or only the key")
    if text is not None and not text.strip():
        raise BadOption("text is empty; give a part of a name, prompt, error or output")
    return Query(
        status=None if status is None or _is_unknown(status) else _status(status),
        is_unknown=status is not None and _is_unknown(status),
        name=name,
        agent=agent,
        tag=tag,
        since=None if since is None else _since(since, now),
        text=None if text is None else _comparable(text),
        limit=limit,
        before=before,
        in_set=in_set,
    )


def _is_unknown(text: str) -> bool:
    return str(text).lower() == UNKNOWN


def _status(text: str) -> RunStatus:
    try:
        return RunStatus(str(text).lower())
    except ValueError:
        raise BadOption(f"'{text}' isn't a status; use one of {', '.join(RunStatus)}, {UNKNOWN}") from None


def _since(since: Since, now: float) -> float:
    """Return the moment in epoch seconds; a date or time without a time zone is local."""
    if isinstance(since, str):
        since = since.strip()
        if since[:4].isdecimal() and since[4:5] == "-":
            try:
                since = datetime.fromisoformat(since)
            except ValueError:
                raise BadOption(f"since '{since}' isn't a date; write 2026-01-31, or 2h for two hours ago") from None
    match since:
        case str():
            return now - duration_s(since)
        case timedelta():
            return now - since.total_seconds()
        case bool():
            pass
        case int() | float() if _A_YEAR < since < math.inf:  # 3600 is rather meant as a duration
            return float(since)
        case datetime():
            return since.timestamp()
        case date():
            return datetime.combine(since, time()).timestamp()
    raise BadOption(
        "since must be a datetime, a date, a timedelta, epoch seconds such as run.created_at, or a str such as '2h', "
        f"not {since if isinstance(since, float | int) else type(since).__name__}"
    )
