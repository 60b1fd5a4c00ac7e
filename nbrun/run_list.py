"""A list of runs that shows itself as a table."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from nbrun.encoding import shown
from nbrun.run import Run
from nbrun.wording import tokens_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

COLUMNS = ("run", "name", "status", "agent", "started", "tokens", "output")


class RunList(list[Run]):
    """Runs, newest first; a table in a notebook, in a terminal and as a DataFrame."""

    def rows(self) -> list[tuple[str, ...]]:
        """Return what the table shows: one row a run, columns as in `COLUMNS`."""
        return [_row(run) for run in self]

    def to_pandas(self) -> pd.DataFrame:
        """Return the runs as a DataFrame, one row a run; times are UTC, seconds are floats.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        import pandas as pd

        frame = pd.DataFrame([_fields(run) for run in self])
        for column in ("created_at", "started_at", "ended_at"):
            if column in frame:
                frame[column] = pd.to_datetime(frame[column], unit="s", utc=True)
        return frame

    def __repr__(self) -> str:
        if not self:
            return "no runs"
        rows = [COLUMNS, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no runs</p>"
        body = "".join(_html(row, "td") for row in self.rows())
        head = _html(COLUMNS, "th")
        # The class keeps dollar signs in an agent's text from being set as formulas.
        return f'<table class="mathjax_ignore tex2jax_ignore"><thead>{head}</thead><tbody>{body}</tbody></table>'


def _html(cells: Sequence[str], tag: str) -> str:
    inner = "".join(f'<{tag} style="text-align:left">{escape(cell)}</{tag}>' for cell in cells)
    return f"<tr>{inner}</tr>"


def _row(run: Run) -> tuple[str, ...]:
    record = run.glance
    started = record.started_at or record.created_at
    result = shown(record.output, 60) if record.output is not None else ""
    if record.error is not None:
        result = shown(str(record.error), 60)
    return (
        f"#{record.number}" if record.number is not None else "–",
        record.name,
        run.status_words(),
        record.model or record.agent,
        datetime.fromtimestamp(started, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        tokens_words(record),
        result,
    )


def _fields(run: Run) -> dict[str, object]:
    record = run.record
    return {
        "number": record.number,
        "id": record.run_id,
        "name": record.name,
        "agent": record.agent,
        "model": record.model,
        "status": str(record.status),
        "cause": None if record.cause is None else str(record.cause),
        "created_at": record.created_at,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "elapsed_s": record.elapsed_s(record.ended_at or record.last_event_at),
        "input_tokens": record.usage.input_tokens,
        "output_tokens": record.usage.output_tokens,
        "events": record.event_count,
        "prompt": record.prompt,
        "output": record.output,
        "error": None if record.error is None else str(record.error),
    }
