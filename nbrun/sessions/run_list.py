"""A list of runs that shows itself as a table."""

from __future__ import annotations

import shutil
from html import escape
from typing import TYPE_CHECKING

from nbrun.core import PackageMissing, RunRecord, printable
from nbrun.render.run_table import Row, View, cells, html_table, text_lines
from nbrun.sessions.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd


FRAME: dict[str, tuple[str, Callable[[RunRecord], object]]] = {
    "number": ("Int64", lambda record: record.number),
    "id": ("string", lambda record: record.run_id),
    "name": ("string", lambda record: record.name),
    "agent": ("string", lambda record: record.agent),
    "model": ("string", lambda record: record.model),
    "status": ("string", lambda record: str(record.status)),
    "cause": ("string", lambda record: None if record.cause is None else str(record.cause)),
    "created_at": ("time", lambda record: record.created_at),
    "started_at": ("time", lambda record: record.started_at),
    "ended_at": ("time", lambda record: record.ended_at),
    "elapsed_s": ("float64", lambda record: record.elapsed_s(record.ended_at or record.last_event_at)),
    # What the run itself has used, so that a column can be summed up.
    "input_tokens": ("int64", lambda record: record.own_usage.input_tokens),
    "output_tokens": ("int64", lambda record: record.own_usage.output_tokens),
    "requests": ("int64", lambda record: record.own_usage.requests),
    "cost_usd": ("float64", lambda record: record.own_usage.cost_usd),
    "events": ("int64", lambda record: record.event_count),
    "tags": ("object", lambda record: dict(record.tags)),
    "prompt": ("string", lambda record: record.prompt),
    "output": ("object", lambda record: record.output),
    "error": ("string", lambda record: None if record.error is None else str(record.error)),
    "parent_id": ("string", lambda record: record.parent_id),
}
"""The columns of a DataFrame: the type of each, and its value for a run."""


class RunList(list[Run]):
    """Runs, newest first; a table in a notebook, in a terminal and as a DataFrame."""

    def rows(self) -> list[list[str]]:
        """Return what the table shows: one row a run, columns as in `nbrun.render.run_table`."""
        return [cells(row, View.LIST) for row in self._rows()]

    def _rows(self) -> list[Row]:
        return [Row(run.glance, run.status_words()) for run in self]

    def to_pandas(self) -> pd.DataFrame:
        """Return the runs as a DataFrame, one row a run; times are UTC, seconds and US dollars are floats.

        Raises
        ------
        PackageMissing
            pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise PackageMissing("to_pandas() needs pandas, which is not installed: pip install pandas") from None

        records = [run.whole_record for run in self]
        frame = pd.DataFrame({name: [of(record) for record in records] for name, (_, of) in FRAME.items()})
        for name, (dtype, _) in FRAME.items():
            if dtype == "time":
                seconds = frame[name].astype("float64")
                # Another's file may name a time that pandas has none for.
                moments = pd.to_datetime(seconds, unit="s", utc=True, errors="coerce")
                frame[name] = moments.astype("datetime64[us, UTC]")
            else:
                frame[name] = frame[name].astype(dtype)
        return frame

    def __repr__(self) -> str:
        if not self:
            return "no runs"
        width = shutil.get_terminal_size().columns
        return "\n".join([*text_lines(self._rows(), width), *self._notes()])

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no runs</p>"
        notes = "".join(f"<p>{escape(note)}</p>" for note in self._notes())
        return html_table(self._rows(), View.LIST) + notes

    def _notes(self) -> list[str]:
        """Return a line for each read-only file: which runs are from there, and why."""
        numbers: dict[str, list[int]] = {}
        for run in self:
            if (why := run.why_read_only) is not None and run.number is not None:
                numbers.setdefault(printable(why), []).append(run.number)
        return [
            f"#{found[0]} is read-only: {why}"
            if len(found) == 1
            else f"#{min(found)} to #{max(found)} are read-only: {why}"
            for why, found in numbers.items()
        ]
