"""What a live card shows of a run: one dict, small however long the run is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbrun.encoding import shown
from nbrun.wording import said, status_words

if TYPE_CHECKING:
    from nbrun.record import RunRecord, ToolCall

TEXT_LIMIT = 20_000
TOOL_LIMIT = 20
ERROR_LIMIT = 2_000


def view(record: RunRecord, now: float, problem: str | None = None) -> dict[str, Any]:
    """Return the card's state.

    `now` is the kernel's time in epoch seconds, by which the page reckons elapsed times; `text` is the end
    of the text, `text_cut` the number of characters left out before it.
    """
    usage = record.usage
    text = said(record)
    hidden = max(0, len(text) - TEXT_LIMIT)
    text = text[hidden:]
    notices = [*record.notices, *([f"not saved: {problem}"] if problem else [])]
    if record.reason:
        notices.insert(0, f"“{record.reason}”")
    return {
        "id": record.run_id,
        "number": record.number,
        "name": record.name,
        "agent": record.model or record.agent,
        "status": str(record.status),
        "words": status_words(record),
        "live": record.is_live,
        "phase": record.phase,
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
        "error": None if record.error is None else str(record.error)[:ERROR_LIMIT],
        "notices": notices,
    }


def _tool(tool: ToolCall) -> dict[str, Any]:
    return {
        "id": tool.id,
        "name": shown(tool.name, 80),
        "args": "" if tool.args is None else shown(tool.args),
        "status": tool.status,
        "ms": tool.ms,
        "result": "" if tool.result is None else shown(tool.result),
    }
