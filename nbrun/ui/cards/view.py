"""What a live card shows of a run: one dict, small even for a long run."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.core import (
    CallGroup,
    ChildSummary,
    RunRecord,
    RunStatus,
    ToolCall,
    events as ev,
    is_whole,
    readable,
    shown,
    values,
    visible,
)
from nbrun.render import words
from nbrun.ui.cards.markdown_blocks import TEXT_LIMIT, Blocks, visible_end

if TYPE_CHECKING:
    from collections.abc import Mapping


TOOL_LIMIT = 20
CALL_LIMIT = 10
"""How many model calls are listed one by one, besides the last of each group."""
ARGS_LIMIT, RESULT_LIMIT = 300, 500
"""Characters of a tool's arguments and of its result: they travel with each update of the card."""
OUTPUT_LIMIT = 4_000
ERROR_LIMIT = 2_000
TRACEBACK_LIMIT = 4_000
QUESTION_LIMIT = 5
NOTICE_LIMIT = 20
OPTION_LIMIT = 20
LINE_LIMIT = 200
ASKED_LIMIT = 6_000
"""Characters of a question or its arguments; who can't see all of it can't allow it on the card."""
ONE_LINE = 60
"""How many characters of arguments are shown in one line; longer ones get a line for each member."""
EDIT_LIMIT = 6_000
"""How many characters of arguments can be edited on the card; longer ones with `run.approve(args=…)`."""


def view(
    record: RunRecord,
    now: float,
    problem: str | None = None,
    status: str | None = None,
    *,
    blocks: Blocks | None = None,
    children: Mapping[str, RunRecord] | None = None,
) -> dict[str, Any]:
    """Return the card's state.

    `now` is the kernel's time in epoch seconds, from which the page computes elapsed times; `status` is the status in
    words, if more is known than the record says; `blocks` renders the text, each block once; without it the text
    isn't rendered. `children` are the live child runs by id: the parent's log has only their ends.
    """
    mine = filter(None, [words.always_words(record), words.files_words(record)])
    notes = [*mine, *words.followup_notes(record), *words.cancel_notes(record)]
    notices = [*record.notices, *([f"Not saved: {problem}"] if problem else [])]
    return {
        "id": record.run_id,
        "number": record.number,
        "name": _line(record.name),
        "agent": _line(record.model or record.agent),
        "awaited": "model" if record.model else "agent",
        "status": str(record.status),
        "words": _line(status or words.status_words(record), 2 * LINE_LIMIT),
        "live": record.is_live,
        "phase": record.phase and _line(record.phase),
        "progress": _progress(record.progress),
        "created_at": record.created_at,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "now": now,
        "usage": words.usage_words(record.usage),
        **_text(record, blocks),
        "reasoning": visible(record.reasoning),
        "reasoning_count": record.reasoning_count,
        "tools": [_tool(tool) for tool in record.tools[-TOOL_LIMIT:]],
        "tools_cut": max(0, len(record.tools) - TOOL_LIMIT),
        **_calls(record),
        "children": [_child(child, children or {}) for child in record.children[-TOOL_LIMIT:]],
        "children_cut": max(0, len(record.children) - TOOL_LIMIT),
        "log": [visible(line) for line in record.log],
        "log_count": record.log_count,
        "questions": [question(asked) for asked in record.pending[:QUESTION_LIMIT]],
        "questions_cut": max(0, len(record.pending) - QUESTION_LIMIT),
        "steer": _steer(record),
        **_error(record),
        "notes": [_line(note, 2 * LINE_LIMIT) for note in notes],
        "notices": [_line(notice, 2 * LINE_LIMIT) for notice in notices[-NOTICE_LIMIT:]],
    }


def _line(text: str, limit: int = LINE_LIMIT) -> str:
    """Return a text for one line; one that an agent gave may be of any length."""
    return visible(shown(text, limit))


def _key(name: str) -> str:
    """Return what tells the page one row from another: a name that an agent gave, or if that is long, its digest."""
    is_long = len(name) > LINE_LIMIT
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest() if is_long else name


def _text(record: RunRecord, blocks: Blocks | None) -> dict[str, Any]:
    """Return the rendered `blocks` of the run's text, the `text` after them, and `output` that isn't text.

    `result` is what can be copied once the run has ended: all of it, or its end if it is long.
    """
    text, output = record.text, record.output
    if isinstance(output, str):
        text = words.answer_of(record)
    is_data = output is not None and not isinstance(output, str)
    state: dict[str, Any] = {
        "blocks": [],
        "text": visible_end(text, TEXT_LIMIT),
        "text_cut": record.text_cut + max(0, len(text) - TEXT_LIMIT),
        "output": _head(_laid_out(output), OUTPUT_LIMIT) if is_data else "",
    }
    if blocks is not None:
        blocks.feed(text, not record.is_live)
        state.update(blocks=blocks.shown, text=blocks.tail, text_cut=record.text_cut + blocks.cut)
    whole = "" if record.is_live else words.answer_of(record)
    result_cut = record.text_cut + max(0, len(whole) - TEXT_LIMIT) if whole else 0
    return {**state, "result": whole[-TEXT_LIMIT:], "result_cut": result_cut}


def _laid_out(output: values.Plain) -> str:
    """Return data as indented JSON, unless it is long: a page gets only its beginning."""
    text = readable(output)
    is_json = text.startswith(("{", "[")) and len(text) <= 4 * OUTPUT_LIMIT
    try:
        return msgspec.json.format(text, indent=2) if is_json else text
    except msgspec.DecodeError:  # a repr that looked like JSON
        return text


def _error(record: RunRecord) -> dict[str, str | None]:
    error = record.error
    if error is None:
        return {"error": None, "traceback": ""}
    end = visible_end(error.traceback, TRACEBACK_LIMIT)
    return {"error": _head(str(error), ERROR_LIMIT), "traceback": end}


def question(asked: ev.ApprovalRequested) -> dict[str, Any]:
    """Return what a page shows of a question; its digest only if that is all of it."""
    args = "" if asked.args is None else readable(asked.args)
    if len(args) > ONE_LINE:
        args = _laid_out(asked.args)
    is_all = max(len(visible(asked.message)), len(visible(args))) <= ASKED_LIMIT
    # The chosen one is sent back as it is, so one that is too long for a card can't be chosen on it.
    options = [option for option in asked.options[:OPTION_LIMIT] if len(option) <= 5 * LINE_LIMIT]
    return {
        "id": asked.id,
        "message": _head(asked.message),
        "args": _head(args),
        "options": options,
        "labels": [_line(option, 80) for option in options],
        "deadline": asked.deadline,
        "tool": _line(asked.tool, 80) if not asked.options else "",
        "edit": _edit(asked),
        "hidden": [_line(name, 80) for name in asked.hidden],
        "digest": asked.digest if is_all and is_whole(asked.args) else "",
        "input": asked.input,
    }


def _edit(asked: ev.ApprovalRequested) -> str | None:
    """Return the arguments as JSON to edit; None if they can't be edited on the card."""
    if not asked.editable or asked.args is None or not _is_data(asked.args):
        return None
    text = json.dumps(asked.args, ensure_ascii=False, indent=2)
    if len(text) > EDIT_LIMIT:
        return None
    # What can't be seen becomes JSON's own escapes: it is in strings only, where they mean the same.
    return visible(text, lambda found: json.dumps(found[0])[1:-1])


def _is_data(value: values.Plain) -> bool:
    """Return whether it contains no placeholder of an object: sent back, it would replace the object."""
    if isinstance(value, dict):
        return values.REPR_KEY not in value and all(map(_is_data, value.values()))
    if isinstance(value, list):
        return all(map(_is_data, value))
    return not isinstance(value, float) or math.isfinite(value)


def _steer(record: RunRecord) -> dict[str, Any]:
    """Return the last messages to the agent, each with its receipt, and whether the page may send one."""
    is_on = record.status in (RunStatus.RUNNING, RunStatus.WAITING)
    return {
        "can": is_on and record.is_steerable,
        "messages": [
            {
                "id": one.id,
                "text": visible(shown(one.text)),
                "words": words.receipt_words(one, record),
                "taken": one.taken_at is not None,
            }
            for one in record.steered
        ],
    }


def _head(text: str, limit: int = ASKED_LIMIT) -> str:
    """Return the beginning of a text, and how much is left out: somebody may base a decision on it."""
    head = visible(text[:limit])
    hidden = max(0, len(text) - limit) + max(0, len(head) - limit)
    return f"{head[:limit]}… {hidden:,} more characters" if hidden else head


def _tool(tool: ToolCall) -> dict[str, Any]:
    return {
        "id": _key(tool.id),
        "kind": _line(tool.kind, 20),
        "name": _line(tool.name, 80),
        "args": "" if tool.args is None else _head(readable(tool.args), ARGS_LIMIT),
        "status": _line(tool.status, 20),
        "started_at": tool.started_at,
        "ms": tool.ms,
        "progress": _progress(tool.progress) if tool.status == "running" else None,
        "result": "" if tool.result is None else _head(readable(tool.result), RESULT_LIMIT),
    }


def _calls(record: RunRecord) -> dict[str, Any]:
    """Return the groups of model calls between the tools that are shown, each with the place of the tool after it.

    Their calls are listed one by one: the newest `CALL_LIMIT`, and the last of each group.
    """
    first, room = max(0, len(record.tools) - TOOL_LIMIT), CALL_LIMIT
    rows: list[dict[str, Any]] = []
    groups = [group for group in record.call_groups[-TOOL_LIMIT - 1 :] if group.tools >= first]
    for group in reversed(groups):
        lines = words.call_lines(group, max(1, room))
        room -= len(lines)
        rows.append(_call_row(group, lines))
    return {"calls": rows[::-1], "calls_cut": record.call_count - sum(group.count for group in groups)}


def _call_row(group: CallGroup, lines: list[str]) -> dict[str, Any]:
    last = group.last
    running = [call for call in last if call.status == "running"]
    is_one = group.count == 1
    return {
        "place": group.tools,
        "status": "running" if group.running else last[-1].status if last else "ok",
        "words": _line(words.group_words(group)),
        "nested": bool(last and last[-1].parent),
        "started_at": running[0].started_at if running else 0.0,
        "ms": last[-1].ms if is_one and last else None,
        "lines": [_line(line, 2 * LINE_LIMIT) for line in lines],
        "lines_cut": group.count - len(lines),
    }


def _child(child: ChildSummary, live: Mapping[str, RunRecord]) -> dict[str, Any]:
    record = live.get(child.run_id)
    return {
        "id": _key(child.run_id),
        "title": _line(words.name_and_number(child), 100),
        "status": _line(child.status, 20) if record is None else str(record.status),
        "words": _line(child.status if record is None else words.status_words(record), 60),
        "started_at": child.started_at if record is None else record.started_at,
        "ended_at": child.ended_at,
        "usage": words.usage_words(record.usage if record is not None else child.usage or ev.Usage()),
    }


def _progress(progress: ev.Progress | None) -> dict[str, Any] | None:
    """Return what the bar shows: `part` of 1, or None if the total isn't known."""
    if progress is None:
        return None
    done, total = progress.done, progress.total
    is_known = total is not None and total > 0 and math.isfinite(done) and math.isfinite(total)
    part = min(1.0, max(0.0, done / total)) if is_known and total is not None else None
    return {"part": part, "words": _line(words.progress_words(progress))}
