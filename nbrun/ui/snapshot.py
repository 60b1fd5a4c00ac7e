"""A run as static output: HTML without script, Markdown, text and JSON, for saved notebooks and other eyes."""

from __future__ import annotations

from html import escape
from typing import Any

import msgspec

from nbrun.encoding import shown
from nbrun.record import RunRecord, RunStatus, ToolCall
from nbrun.wording import said, status_words, tokens_words

MIME = "application/vnd.nbrun.run+json"
TEXT_LIMIT = 12_000
"""Characters of a run's text in each form; fewer where they take more room."""
TOOL_LIMIT = 30
SAVED_LIMIT = 60 * 1024
"""Bytes that a notebook file gets of a run, so that a saved card stays below 64 KiB."""

_FRAME = "border:1px solid rgba(128,128,128,.35);border-radius:3px;padding:8px 12px"
# `pre` keeps the lines of a text where styles are stripped; the rest makes it prose where they are not.
_PROSE = (
    "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere;font-family:inherit;font-size:inherit;"
    "line-height:1.5;margin:6px 0 0;padding:0;background:transparent;border:0"
)

_SHAPES = {
    RunStatus.QUEUED: ("○", "#757575"),
    RunStatus.RUNNING: ("▶", "#1565c0"),
    RunStatus.WAITING: ("?", "#a05a00"),
    RunStatus.CANCELLING: ("◼", "#a05a00"),
    RunStatus.COMPLETED: ("✔", "#2e7d32"),
    RunStatus.FAILED: ("✘", "#c62828"),
    RunStatus.CANCELLED: ("■", "#a05a00"),
    RunStatus.LOST: ("◌", "#757575"),
}


def bundle(record: RunRecord, problem: str | None = None) -> dict[str, Any]:
    """Return the run under every MIME type that a notebook file keeps of it. All of an agent's text is escaped."""
    record, limit = _trimmed(record), TEXT_LIMIT
    # A character may take six bytes, escaped, and a line twenty: how much text fits is found by trying.
    while _saved_size(data := _bundle(record, problem, limit)) > SAVED_LIMIT and limit > 200:
        limit //= 2
    return data


def _bundle(record: RunRecord, problem: str | None, limit: int) -> dict[str, Any]:
    return {
        "text/html": _html(record, problem, limit),
        "text/markdown": _markdown(record, problem, limit),
        "text/plain": plain_text(record, problem, limit),
        MIME: msgspec.to_builtins(record.brief()),
    }


def _saved_size(data: dict[str, Any]) -> int:
    """Return about how many bytes a notebook file needs, which keeps text as an indented list of lines."""
    lines = sum(text.count("\n") for text in data.values() if isinstance(text, str))
    return len(msgspec.json.encode(data)) + 16 * lines


def _trimmed(record: RunRecord) -> RunRecord:
    """Return the record with what should be short made so: a name or a notice may be of any length."""
    progress = record.progress
    return msgspec.structs.replace(
        record,
        name=shown(record.name, 100),
        agent=shown(record.agent, 100),
        model=record.model and shown(record.model, 100),
        reason=record.reason and shown(record.reason, 200),
        phase=record.phase and shown(record.phase, 100),
        tags={shown(k, 40): shown(v, 100) for k, v in list(record.tags.items())[:20]},
        progress=progress
        and msgspec.structs.replace(progress, label=progress.label and shown(progress.label, 100)),
        notices=tuple(shown(notice, 200) for notice in record.notices),
        detached=tuple(shown(name, 60) for name in record.detached[:5]),
    )


def _shown_tools(record: RunRecord, limit: int) -> tuple[ToolCall, ...]:
    """Return the last of the tools: as many as stand in proportion to so much text."""
    return record.tools[-min(TOOL_LIMIT, max(3, limit // 400)) :]


def plain_text(record: RunRecord, problem: str | None = None, limit: int = TEXT_LIMIT) -> str:
    """Return the run as a few lines of text, at most `limit` characters of them the agent's own."""
    lines = [f"{_SHAPES[record.status][0]} {_headline(record)}"]
    lines += [f"  ! {notice}" for notice in _notices(record, problem)]
    lines += [f"  · {_tool_words(tool)}" for tool in _shown_tools(record, limit)]
    if record.error is not None:
        lines.append(f"  {shown(str(record.error), 500)}")
    body = _body(record, limit)
    return "\n".join(lines + ([body] if body else []))


def _headline(record: RunRecord) -> str:
    number = f" #{record.number}" if record.number is not None else ""
    agent = record.model or (record.agent if record.agent != record.name else "")
    parts = [f"{status_words(record)} – {record.name}{number}", agent, tokens_words(record)]
    return " · ".join(part for part in parts if part)


def _notices(record: RunRecord, problem: str | None) -> list[str]:
    said = [f"“{record.reason}”"] if record.reason and record.status is RunStatus.CANCELLED else []
    return [*said, *record.notices, *([f"not saved: {problem}"] if problem else [])]


def _tool_words(tool: ToolCall) -> str:
    args = f"({shown(tool.args, 120)})" if tool.args is not None else "()"
    result = f" → {shown(tool.result, 120)}" if tool.result is not None else ""
    return f"{shown(tool.name, 80)}{args} {tool.status}{result}"


def _body(record: RunRecord, limit: int) -> str:
    """Return what the run said, or else what it returned; cut in front, for its end is the answer."""
    text = said(record)
    left_out = len(text) - limit
    return f"… {left_out:,} earlier characters\n{text[-limit:]}" if left_out > 0 else text


def _html(record: RunRecord, problem: str | None, limit: int) -> str:
    shape, colour = _SHAPES[record.status]
    number = f" #{record.number}" if record.number is not None else ""
    agent = record.model or (record.agent if record.agent != record.name else "")
    facts = "".join(f" · {escape(part)}" for part in (agent, tokens_words(record)) if part)
    rows = [
        f'<div class="nbrun-static mathjax_ignore tex2jax_ignore" style="{_FRAME};border-left:3px solid {colour}">',
        f'<div><span style="color:{colour}" aria-hidden="true">{shape}</span> '
        f"<strong>{escape(status_words(record))}</strong> · {escape(record.name)}{number}"
        f'<span style="opacity:.75">{facts}</span></div>',
        *(f"<div>! {escape(notice)}</div>" for notice in _notices(record, problem)),
    ]
    tools = _shown_tools(record, limit)
    hidden = len(record.tools) - len(tools)
    if hidden > 0:
        rows.append(f'<div style="opacity:.75">… {hidden:,} earlier tools</div>')
    for tool in tools:
        rows.append(f'<div style="opacity:.85">· <code>{escape(_tool_words(tool))}</code></div>')
    body = _body(record, limit)
    if body:
        rows.append(f'<pre style="{_PROSE}">{escape(body)}</pre>')
    if record.error is not None:
        trace = escape(record.error.traceback[-limit // 2 :])
        rows.append(f"<div><strong>{escape(shown(str(record.error), 500))}</strong></div>")
        rows.append(f"<details><summary>Traceback</summary><pre>{trace}</pre></details>")
    return "".join([*rows, "</div>"])


def _markdown(record: RunRecord, problem: str | None, limit: int) -> str:
    parts = [
        f"**{_literal(status_words(record))}** · {_code(_headline(record).partition(' – ')[2])}"
    ]
    parts += [f"- {_code(notice)}" for notice in _notices(record, problem)]
    parts += [f"- {_code(_tool_words(tool))}" for tool in _shown_tools(record, limit)]
    if record.error is not None:
        parts.append(_fenced(shown(str(record.error), 500)))
    body = _body(record, limit)
    return "\n\n".join(parts + ([_fenced(body)] if body else []))


def _fence(text: str, least: int) -> str:
    """Return backticks that are longer than any run of them in the text, so that it cannot end its block."""
    longest = max(
        (len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0
    )
    return "`" * max(least, longest + 1)


def _fenced(text: str) -> str:
    fence = _fence(text, 3)
    return f"{fence}text\n{text}\n{fence}"


def _code(text: str) -> str:
    line = " ".join(text.split())
    fence = _fence(line, 1)
    return f"{fence} {line} {fence}"


def _literal(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-!|~&" else c for c in text)
