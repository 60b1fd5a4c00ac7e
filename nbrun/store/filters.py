"""Which runs are asked for: what was given is read once, and then a record fits it or not."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta

import msgspec

from nbrun.core.errors import BadOption
from nbrun.core.quantities import duration_s
from nbrun.core.record import BRIEF_HEAD, RunRecord, RunStatus
from nbrun.core.values import readable

UNKNOWN = "unknown"
"""What is asked for runs whose kernel cannot be seen from here; no status of theirs."""

Since = datetime | date | timedelta | str


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Filters, all of which a run has to fit; None leaves one out. See `read_query`."""

    status: RunStatus | None = None
    is_unknown: bool = False  # only runs of which nobody here can say how they stand
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
        filters = (self.status, self.name, self.agent, self.tag, self.since, self.text)
        return all(value is None for value in filters) and not self.is_unknown

    @property
    def is_of_columns(self) -> bool:
        """Whether the columns of a store's table tell all that is asked: no record has to be looked into."""
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
        # One that looks live has no other status than unknown.
        if record.is_unknown != self.is_unknown and (self.is_unknown or self.status is not None):
            return False
        if self.agent is not None and self.agent not in (record.agent, record.model):
            return False
        if self.tag is None:
            return True
        key, equals, value = self.tag.partition("=")
        return record.tags.get(key) == value if equals else key in record.tags

    def finds(self, record: RunRecord) -> bool | None:
        """Return whether name, prompt, error or output hold the text; None where this brief record does not tell."""
        if self.text is None:
            return True
        output = "" if record.output is None else readable(record.output)
        if record.is_brief and len(output) >= BRIEF_HEAD:
            output = output[: BRIEF_HEAD - 1]  # the last may be the sign that it was cut
        kind, message = (record.error.type, record.error.message) if record.error else ("", "")
        parts = (record.prompt, record.text, output, message)
        if any(self.text in _comparable(part) for part in (record.name, kind, *parts)):
            return True
        is_cut = record.is_brief and any(len(part) >= BRIEF_HEAD - 1 for part in parts)
        # Of a run that is live, a store has the short form from its last change of status.
        return None if is_cut or (record.is_brief and record.is_live) else False


def _comparable(text: str) -> str:
    """Return a text as it is searched: in no case, and a space where there is any white space.

    So the short form of a record, whose output is one line, has in it what the whole one has.
    """
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
) -> Query:
    """Return what is asked for.

    Parameters
    ----------
    now : epoch seconds, from which `since="2h"` is reckoned back.

    Raises
    ------
    BadOption
        A value is none that can be asked for; the message names the mend.
    """
    texts = {"name": name, "agent": agent, "tag": tag, "text": text}
    for option, value in texts.items():
        if value is not None and not isinstance(value, str):
            how = ", as 'key=value' or 'key'" if option == "tag" else ""
            raise BadOption(f"{option} is a text (str){how}, not {type(value).__name__}")
    if status is not None and not isinstance(status, str):
        raise BadOption(
            f"status is one text (str), not {type(status).__name__}: ask for each alone"
        )
    for option, number in (("limit", limit), ("before", before)):
        if number is not None and not isinstance(number, int):
            how = "; for a reference: before=nbrun.get(…)" if option == "before" else ""
            raise BadOption(f"{option} is a number (int), not {type(number).__name__}{how}")
    if limit is not None and limit < 0:
        raise BadOption(f"limit is {limit}; give how many runs at most, or leave it out for all")
    if tag is not None and not tag.partition("=")[0]:
        raise BadOption(f"tag '{tag}': write key=value, or only the key")
    if text is not None and not text.strip():
        raise BadOption("text is empty; give what the name, the prompt or the output holds")
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
    )


def _is_unknown(text: str) -> bool:
    return str(text).lower() == UNKNOWN


def _status(text: str) -> RunStatus:
    try:
        return RunStatus(str(text).lower())
    except ValueError:
        raise BadOption(
            f"no run has the status '{text}'; there are {', '.join(RunStatus)}, {UNKNOWN}"
        ) from None


def _since(since: Since, now: float) -> float:
    """Return the moment in epoch seconds; a date or time without a zone is of the local one."""
    if isinstance(since, str):
        since = since.strip()
        if since[:4].isdecimal() and since[4:5] == "-":
            try:
                since = datetime.fromisoformat(since)
            except ValueError:
                raise BadOption(
                    f"since '{since}' is no date; write 2026-01-31, or 2h for two hours ago"
                ) from None
    match since:
        case str():
            return now - duration_s(since)
        case timedelta():
            return now - since.total_seconds()
        case datetime():
            return since.timestamp()
        case date():
            return datetime.combine(since, time()).timestamp()
        case _:
            raise BadOption(
                f"since is of type {type(since).__name__}; give a datetime, a date or text such as 2h"
            )
