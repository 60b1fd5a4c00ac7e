"""What a live card shows of a run: one dict, small however long the run is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nbrun.encoding import readable, shown
from nbrun.wording import (
    cancel_notes,
    child_title,
    going_on_notes,
    progress_words,
    said,
    status_words,
    visible,
)

if TYPE_CHECKING:
    from nbrun.events import ApprovalRequested, Progress
    from nbrun.record import ChildSummary, RunRecord, ToolCall

TEXT_LIMIT = 20_000
TOOL_LIMIT = 20
ERROR_LIMIT = 2_000
QUESTION_LIMIT = 5
ASKED_LIMIT = 3_000


def view(
    record: RunRecord, now: float, problem: str | None = None, words: str | None = None
) -> dict[str, Any]:
    """Return the card's state.

    `now` is the kernel's time in epoch seconds, by which the page reckons elapsed times; `text` is the end
    of the text, `text_cut` the number of characters left out before it. `words` say how the run stands where
    more is known of that than its record tells.
    """
    usage = record.usage
    text = said(record)
    hidden = max(0, len(text) - TEXT_LIMIT)
    text = text[hidden:]
    notices = [*going_on_notes(record), *cancel_notes(record), *record.notices]
    if problem:
        notices.append(f"not saved: {problem}")
    return {
        "id": record.run_id,
        "number": record.number,
        "name": record.name,
        "agent": record.model or record.agent,
        "status": str(record.status),
        "words": words or status_words(record),
        "live": record.is_live,
        "phase": record.phase,
        "progress": _progress(record.progress),
        "created_at": record.created_at,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "now": now,
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "exact": usage.exact,
        },
        "text": text,
        "text_cut": hidden,
        "tools": [_tool(tool) for tool in record.tools[-TOOL_LIMIT:]],
        "tools_cut": max(0, len(record.tools) - TOOL_LIMIT),
        "children": [_child(child) for child in record.children[-TOOL_LIMIT:]],
        "children_cut": max(0, len(record.children) - TOOL_LIMIT),
        "log": list(record.log),
        "log_count": record.log_count,
        "questions": [_question(asked) for asked in record.pending[:QUESTION_LIMIT]],
        "questions_cut": max(0, len(record.pending) - QUESTION_LIMIT),
        "error": None if record.error is None else str(record.error)[:ERROR_LIMIT],
        "notices": notices,
    }


def _question(asked: ApprovalRequested) -> dict[str, Any]:
    return {
        "id": asked.id,
        "message": _head(asked.message),
        "args": "" if asked.args is None else _head(readable(asked.args)),
        "options": list(asked.options),
        "deadline": asked.deadline,
    }


def _head(text: str) -> str:
    """Return the beginning of a text, and how much of it is not shown to who decides."""
    text = visible(text)
    hidden = len(text) - ASKED_LIMIT
    return text if hidden <= 0 else f"{text[:ASKED_LIMIT]}… {hidden:,} more characters"


def _tool(tool: ToolCall) -> dict[str, Any]:
    return {
        "id": tool.id,
        "name": shown(tool.name, 80),
        "args": "" if tool.args is None else shown(tool.args),
        "status": tool.status,
        "ms": tool.ms,
        "result": "" if tool.result is None else shown(tool.result),
    }


def _child(child: ChildSummary) -> dict[str, Any]:
    return {
        "title": shown(child_title(child), 100),
        "status": child.status,
        "words": shown(child.status, 20),
    }


def _progress(progress: Progress | None) -> dict[str, Any] | None:
    """Return what the bar shows: `part` of 1, or None where no end is known."""
    if progress is None:
        return None
    done, total = progress.done, progress.total
    is_known = total is not None and total > 0 and math.isfinite(done) and math.isfinite(total)
    part = min(1.0, max(0.0, done / total)) if is_known and total is not None else None
    return {"part": part, "words": progress_words(progress)}
