"""A run as static output: HTML without script, Markdown, text and JSON, for saved notebooks and other eyes."""

from __future__ import annotations

from html import escape
from typing import Any

import msgspec

from nbrun.encoding import shown
from nbrun.record import RunRecord, RunStatus, ToolCall
from nbrun.wording import status_words, tokens_words

MIME = "application/vnd.nbrun.run+json"
TEXT_LIMIT = 12_000
"""Characters of a run's text in each form, so that a saved card stays below 64 KiB."""
TOOL_LIMIT = 30

_WARN, _BAD = "#a05a00", "#c62828"
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
    return {
        "text/html": _html(record, problem),
        "text/markdown": _markdown(record, problem),
        "text/plain": plain_text(record, problem),
        MIME: msgspec.to_builtins(record.brief()),
    }


def plain_text(record: RunRecord, problem: str | None = None) -> str:
    """Return the run as a few lines of text."""
    lines = [f"{_SHAPES[record.status][0]} {_headline(record)}"]
    lines += [f"  ! {notice}" for notice in _notices(record, problem)]
    lines += [f"  · {_tool_words(tool)}" for tool in record.tools[-TOOL_LIMIT:]]
    if record.error is not None:
        lines.append(f"  {shown(str(record.error), 500)}")
    body = _body(record)
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
    return f"{tool.name}{args} {tool.status}{result}"


def _body(record: RunRecord) -> str:
    """Return what the run said, or else what it returned; cut in front, for its end is the answer."""
    if record.text:
        text = record.text
    elif record.output is not None:
        text = shown(record.output, TEXT_LIMIT)
    else:
        return ""
    left_out = len(text) - TEXT_LIMIT
    return f"… {left_out:,} earlier characters\n{text[-TEXT_LIMIT:]}" if left_out > 0 else text


def _html(record: RunRecord, problem: str | None) -> str:
    shape, colour = _SHAPES[record.status]
    number = f" #{record.number}" if record.number is not None else ""
    agent = record.model or (record.agent if record.agent != record.name else "")
    facts = "".join(f" · {escape(part)}" for part in (agent, tokens_words(record)) if part)
    rows = [
        f'<div class="nbrun-static" style="{_FRAME};border-left:3px solid {colour}">',
        f'<div><span style="color:{colour}" aria-hidden="true">{shape}</span> '
        f"<strong>{escape(status_words(record))}</strong> · {escape(record.name)}{number}"
        f'<span style="opacity:.75">{facts}</span></div>',
        *(
            f'<div style="color:{_WARN}">! {escape(notice)}</div>'
            for notice in _notices(record, problem)
        ),
    ]
    hidden = len(record.tools) - TOOL_LIMIT
    if hidden > 0:
        rows.append(f'<div style="opacity:.75">… {hidden:,} earlier tools</div>')
    for tool in record.tools[-TOOL_LIMIT:]:
        rows.append(f'<div style="opacity:.85">· <code>{escape(_tool_words(tool))}</code></div>')
    body = _body(record)
    if body:
        rows.append(f'<pre style="{_PROSE}">{escape(body)}</pre>')
    if record.error is not None:
        trace = escape(record.error.traceback[-TEXT_LIMIT // 2 :])
        rows.append(f'<div style="color:{_BAD}">{escape(shown(str(record.error), 500))}</div>')
        rows.append(f"<details><summary>Traceback</summary><pre>{trace}</pre></details>")
    return "".join([*rows, "</div>"])


def _markdown(record: RunRecord, problem: str | None) -> str:
    parts = [
        f"**{_literal(status_words(record))}** · {_code(_headline(record).partition(' – ')[2])}"
    ]
    parts += [f"- {_code(notice)}" for notice in _notices(record, problem)]
    parts += [f"- {_code(_tool_words(tool))}" for tool in record.tools[-TOOL_LIMIT:]]
    if record.error is not None:
        parts.append(_fenced(shown(str(record.error), 500)))
    body = _body(record)
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
