"""A run as static output: HTML without script, Markdown, text and JSON, for saved notebooks and other eyes."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nbrun.core.mimebundle import HTML, IMAGES, TEXT
from nbrun.core.quantities import counted
from nbrun.core.record import RunRecord, RunStatus, ToolCall
from nbrun.core.text import printable
from nbrun.core.values import readable, shown
from nbrun.render.markdown import as_written, code, fenced, literal, safe_html, sign
from nbrun.render.words import (
    SHAPES,
    always_words,
    cancel_notes,
    child_title,
    cost_words,
    files_words,
    going_on_notes,
    name_and_number,
    progress_words,
    question_words,
    said,
    shape,
    status_words,
    steer_words,
    tokens_words,
    usage_words,
    visible,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

MIME = "application/vnd.nbrun.run+json"
TEXT_LIMIT = 12_000
"""Characters of a run's text in each form; fewer where they take more room."""
WHOLE = 10**12
"""A limit that cuts nothing."""
CHILD_LIMIT = 20
SAVED_LIMIT = 60 * 1024
"""Bytes that a notebook file gets of a run, so that a saved card stays below 64 KiB."""
PRINTED_WIDTH = 88
"""Characters of a line on paper: LaTeX does not break what is fenced."""

# JupyterLab takes `anywhere` out of a notebook that it does not trust, and leaves `break-word`.
_FRAME = (
    "border:1px solid rgba(128,128,128,.35);border-radius:3px;padding:8px 12px;line-height:1.5;"
    "overflow-wrap:break-word;overflow-wrap:anywhere"
)
_PROSE = "overflow-wrap:anywhere;margin:6px 0 0;max-height:30em;overflow:auto"
_LINES = "white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0 0;padding:0;background:transparent;border:0"
_MUTED = "opacity:.75"

_WAS = {
    RunStatus.QUEUED: "Was queued",
    RunStatus.RUNNING: "Was running",
    RunStatus.WAITING: "Was waiting for you",
    RunStatus.CANCELLING: "Was being cancelled",
}
_PAST = SHAPES[RunStatus.LOST][1]


class _Moment(NamedTuple):
    """What a static card says of the moment that it shows."""

    words: str
    notes: tuple[str, ...] = ()


def bundle(
    record: RunRecord, problem: str | None = None, *, is_redrawn: bool = False
) -> dict[str, Any]:
    """Return the run under every MIME type that a notebook file keeps of it. All of an agent's text is escaped.

    Of a live run it says that it is a snapshot; `is_redrawn` when somebody will put the end in its place.
    """
    moment = _moment(record, is_redrawn)
    record, limit = _trimmed(record), TEXT_LIMIT
    # A character may take six bytes, escaped, and a line twenty: how much text fits is found by trying.
    while (
        _saved_size(data := _bundle(record, problem, limit, moment)) > SAVED_LIMIT and limit > 200
    ):
        limit //= 2
    return data


def whole_html(record: RunRecord, look: Mapping[str, str] | None = None) -> str:
    """Return a run as part of a page: its facts, its prompt, its card with nothing cut, and its result.

    Parameters
    ----------
    look : what the output looks like, by MIME type, safe to be shown: a picture, or a table.
    """
    facts = "".join(
        f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in _table(record)
    )
    card = _html(_trimmed(record), None, WHOLE, _moment(record, is_redrawn=False))
    prompt = f'<h2>Prompt</h2><pre style="{_LINES}">{escape(record.prompt)}</pre>'
    title = escape(shown(name_and_number(record), 100))
    return f"<article><h1>{title}</h1><dl>{facts}</dl>{prompt}<h2>Run</h2>{card}{_pictured(look or {})}</article>"


def _pictured(look: Mapping[str, str]) -> str:
    """Return a result as it looked, where that is more than the text which the card has."""
    for kind in IMAGES:
        if kind in look:
            about = escape(shown(look.get(TEXT, ""), 200))
            return f'<h2>Result</h2><img src="data:{kind};base64,{look[kind]}" alt="{about}">'
    return f"<h2>Result</h2>{look[HTML]}" if HTML in look else ""


def whole_markdown(record: RunRecord) -> str:
    """Return a run as Markdown: its facts, its prompt, and its card with nothing cut."""
    facts = "\n".join(f"- {word}: {code(text)}" for word, text in _table(record))
    parts = [f"# {code(shown(name_and_number(record), 100))}", facts]
    if record.prompt:
        parts += ["## Prompt", fenced(record.prompt)]
    parts += ["## Run", _markdown(_trimmed(record), None, WHOLE, _moment(record, is_redrawn=False))]
    if record.error is not None and record.error.traceback:
        parts += ["## Traceback", fenced(record.error.traceback)]
    return "\n\n".join(parts) + "\n"


def _table(record: RunRecord) -> list[tuple[str, str]]:
    """Return what else there is to say of a run, for somebody who has only the file."""
    facts = [
        ("id", record.run_id),
        ("agent", record.agent),
        ("model", record.model or ""),
        ("created", _utc(record.created_at)),
        ("started", _utc(record.started_at)),
        ("ended", _utc(record.ended_at)),
        ("tokens", tokens_words(record.usage)),
        ("cost", cost_words(record.usage)),
        ("tags", ", ".join(f"{key}={value}" for key, value in record.tags.items())),
        ("events", f"{record.event_count:,}"),
    ]
    return [(word, shown(text, 1_000)) for word, text in facts if text]


def _utc(at: float | None) -> str:
    try:
        return "" if at is None else datetime.fromtimestamp(at, UTC).isoformat(" ", "seconds")
    except (OverflowError, ValueError, OSError):  # somebody else's file
        return str(at)


def _moment(record: RunRecord, is_redrawn: bool) -> _Moment | None:
    """Return how the state of a live run reads in a file, where it may stay for ever; None for an end."""
    if not record.is_live:
        return None
    if record.is_unknown:
        return _Moment(status_words(record))
    show = f"%agentrun show {_ref(record)}"
    if is_redrawn:
        notes = ("drawn again when the run has ended", f"{show} tells how it stands")
        return _Moment(f"{_WAS[record.status]} when this was drawn", notes)
    # A live card's file has what was drawn when it began: of one that was queued then, no more is known than this.
    was = "Had not ended" if record.status is RunStatus.QUEUED else _WAS[record.status]
    return _Moment(f"{was} when this was saved", (f"{show} tells how it ended",))


def _bundle(
    record: RunRecord, problem: str | None, limit: int, moment: _Moment | None
) -> dict[str, Any]:
    html = _html(record, problem, limit, moment).replace("\r\n", "\n")
    markdown = _markdown(record, problem, limit, moment).replace("\r\n", "\n")
    return {
        # On one line: nbconvert writes it into Markdown, where an empty line would end it and begin an agent's own.
        "text/html": visible(html).replace("\n", "&#10;"),
        "text/markdown": visible(markdown),
        "text/plain": plain_text(record, problem, limit, moment),
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
        cancelled_by=shown(record.cancelled_by, 60),
        origin=record.origin
        and msgspec.structs.replace(record.origin, name=shown(record.origin.name, 60)),
        detached=tuple(shown(name, 60) for name in record.detached[:5]),
        detached_finished=tuple(shown(name, 60) for name in record.detached_finished[:5]),
    )


def _shown_tools(record: RunRecord, limit: int) -> tuple[ToolCall, ...]:
    """Return the last of the tools: as many as stand in proportion to so much text."""
    return record.tools[-max(3, limit // 400) :]


def _shown_log(record: RunRecord, limit: int) -> list[str]:
    """Return the last log lines, in proportion as well, under a word on those that are left out."""
    count, width = max(3, limit // 400), max(40, limit // 20)
    lines = [_cut(line, width) for line in record.log[-count:]]
    hidden = record.log_count - len(lines)
    return [f"… {counted(hidden, 'earlier line')}", *lines] if hidden > 0 else lines


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def plain_text(
    record: RunRecord,
    problem: str | None = None,
    limit: int = TEXT_LIMIT,
    moment: _Moment | None = None,
) -> str:
    """Return the run as a few lines of text, at most `limit` characters of them the agent's own."""
    lines = [f"{shape(record)[0]} {_headline(record, moment)}"]
    lines += [f"  ? {words}" for words in question_words(record)]
    lines += [f"  {words}" for words in [progress_words(record.progress)] if words]
    lines += [f"  {note}" for note in _notes(record, moment)]
    lines += [f"  ! {warning}" for warning in _warnings(record, problem)]
    lines += [f"  · {_tool_words(tool, limit)}" for tool in _shown_tools(record, limit)]
    lines += [f"  ↳ {words}" for words in _child_words(record)]
    if record.log_count:
        lines.append(f"  {_log_title(record)}:")
        lines += [f"  | {line}" for line in _shown_log(record, limit)]
    if record.error is not None:
        lines.append(f"  {shown(str(record.error), 500)}")
    lines.append(f"  {_whereabouts(record)}")
    body = _body(record, limit)
    return visible(printable("\n".join(lines + ([body] if body else []))))


def _ref(record: RunRecord) -> str:
    return record.run_id if record.number is None else f"#{record.number}"


def _words(record: RunRecord, moment: _Moment | None) -> str:
    return status_words(record) if moment is None else moment.words


def _headline(record: RunRecord, moment: _Moment | None) -> str:
    parts = [f"{_words(record, moment)} – {name_and_number(record)}", *_facts(record)]
    return " · ".join(parts)


def _facts(record: RunRecord) -> list[str]:
    agent = record.model or (record.agent if record.agent != record.name else "")
    return [part for part in (agent, usage_words(record.usage)) if part]


def _whereabouts(record: RunRecord) -> str:
    """Return how the whole run can be had, for somebody who has only what is shown of it."""
    at = _utc(record.created_at)[:16] + " UTC"
    ref = f'"{record.run_id}"' if record.number is None else record.number
    return f"nbrun.get({ref}) has it all · {record.run_id} · {at}"


def _notes(record: RunRecord, moment: _Moment | None) -> list[str]:
    """Return what there is to say besides the status; nothing of it is wrong."""
    notes = [] if moment is None else list(moment.notes)
    if record.is_unknown:
        notes.append(f"%agentrun lost {_ref(record)} gives it up, if you know that it has ended")
    words = (always_words(record), steer_words(record), files_words(record))
    notes += [note for note in words if note]
    return [*notes, *going_on_notes(record), *cancel_notes(record)]


def _warnings(record: RunRecord, problem: str | None) -> list[str]:
    return [*record.notices, *([f"not saved: {problem}"] if problem else [])]


def _log_title(record: RunRecord) -> str:
    return f"Log ({counted(record.log_count, 'line')})"


def _tools_title(record: RunRecord) -> str:
    """Return how many tools there were and how they ended: `3 tool calls: 2 ok, 1 error`."""
    kinds = Counter(shown(tool.status, 20) for tool in record.tools).most_common(5)
    calls = counted(len(record.tools), "tool call")
    return f"{calls}: {', '.join(f'{number:,} {kind}' for kind, number in kinds)}"


def _tool_words(tool: ToolCall, limit: int) -> str:
    width = 120 if limit <= TEXT_LIMIT else limit
    args = f"({shown(tool.args, width)})" if tool.args is not None else "()"
    result = f" → {shown(tool.result, width)}" if tool.result is not None else ""
    return f"{shown(tool.name, 80)}{args} {tool.status}{result}"


def _child_words(record: RunRecord) -> list[str]:
    """Return a line for each of the last child runs, and for how many came before them."""
    last = record.children[-CHILD_LIMIT:]
    hidden = len(record.children) - len(last)
    lines = [f"… {counted(hidden, 'earlier child run')}"] if hidden else []
    return lines + [f"{shown(child_title(child), 100)} {shown(child.status, 20)}" for child in last]


def _body(record: RunRecord, limit: int) -> str:
    """Return what the run said, or else what it returned; cut in front, for its end is the answer."""
    text = said(record)
    left_out = len(text) - limit
    return f"… {left_out:,} earlier characters\n{text[-limit:]}" if left_out > 0 else text


def _html(record: RunRecord, problem: str | None, limit: int, moment: _Moment | None) -> str:
    mark, colour = shape(record)
    edge = colour if moment is None else _PAST
    facts = "".join(f" · {escape(part)}" for part in _facts(record))
    rows = [
        f'<div class="nbrun-static mathjax_ignore tex2jax_ignore" style="{_FRAME};border-left:3px solid {edge}">',
        f"<div>{sign(mark, edge)} "
        f"<strong>{escape(_words(record, moment))}</strong> · {escape(name_and_number(record))}"
        f'<span style="{_MUTED}">{facts}</span></div>',
        *(f"<div>? {escape(words)}</div>" for words in question_words(record)),
    ]
    if record.progress is not None:
        rows.append(f"<div>{escape(progress_words(record.progress))}</div>")
    rows += [f"<div>{escape(note)}</div>" for note in _notes(record, moment)]
    rows += [f"<div>! {escape(warning)}</div>" for warning in _warnings(record, problem)]
    rows += _html_tools(record, limit)
    rows += [f'<div style="{_MUTED}">↳ {escape(words)}</div>' for words in _child_words(record)]
    if record.log_count:
        lines = escape("\n".join(_shown_log(record, limit)))
        rows.append(_folded(_log_title(record), f'<pre style="{_LINES}">{lines}</pre>'))
    if record.reasoning:  # its end, as much as the record holds
        tail = escape(record.reasoning[-limit // 4 :])
        title = f"Reasoning ({counted(record.reasoning_count, 'character')})"
        rows.append(_folded(title, f'<pre style="{_LINES}">{tail}</pre>'))
    rows += _html_body(record, limit)
    if record.error is not None:
        trace = escape(record.error.traceback[-limit // 2 :])
        rows.append(f"<div><strong>{escape(shown(str(record.error), 500))}</strong></div>")
        rows.append(_folded("Traceback", f'<pre style="{_LINES}">{trace}</pre>'))
    rows.append(f'<div style="{_MUTED};margin-top:6px">{escape(_whereabouts(record))}</div>')
    return "".join([*rows, "</div>"])


def _html_body(record: RunRecord, limit: int) -> list[str]:
    """Return what the run said, its Markdown drawn, and below it what it returned where that is something else."""
    text, output, rows = record.text, record.output, []
    is_other = output is not None and output != text
    result = readable(output) if is_other else ""
    left_out = max(0, len(text) + len(result) - limit)
    result = result[-limit:]
    text = _tail(text, limit - len(result))
    if left_out:
        rows.append(f'<div style="{_MUTED}">… {left_out:,} earlier characters</div>')
    if text:
        rows.append(safe_html(text))
    if result:
        drawn = safe_html(result) if isinstance(output, str) else as_written(result)
        rows.append(f'<div style="{_MUTED}">→ and returned</div>{drawn}' if text else drawn)
    is_long = len(text) + len(result) > 1_500 or text.count("\n") + result.count("\n") > 12
    by_keys = ' tabindex="0"' if is_long else ""  # it scrolls, and not only by a mouse
    return [f'<div style="{_PROSE}"{by_keys}>{"".join(rows)}</div>'] if rows else []


def _tail(text: str, limit: int) -> str:
    """Return the end of a Markdown text; where it begins within a block of code, it is one."""
    cut = max(0, len(text) - limit)
    fences = sum(line.startswith("```") for line in text[:cut].splitlines())
    return ("```\n" if fences % 2 else "") + text[cut:]


def _html_tools(record: RunRecord, limit: int) -> list[str]:
    """Return the tools behind a fold, which is open where something failed: there they tell why."""
    tools = _shown_tools(record, limit)
    if not tools:
        return []
    hidden = len(record.tools) - len(tools)
    rows = (
        [f'<div style="{_MUTED}">… {counted(hidden, "earlier tool call")}</div>']
        if hidden > 0
        else []
    )
    rows += [f"<div>· <code>{escape(_tool_words(tool, limit))}</code></div>" for tool in tools]
    is_open = record.status is RunStatus.FAILED or any(tool.status == "error" for tool in tools)
    return [_folded(_tools_title(record), "".join(rows), is_open)]


def _folded(title: str, html: str, is_open: bool = False) -> str:
    return (
        f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{html}</details>"
    )


def _markdown(record: RunRecord, problem: str | None, limit: int, moment: _Moment | None) -> str:
    width = None if limit == WHOLE else PRINTED_WIDTH
    title = " · ".join([name_and_number(record), *_facts(record)])
    parts = [f"**{literal(_words(record, moment))}** · {code(title)}"]
    parts += [f"- {code(words)}" for words in question_words(record)]
    parts += [code(words) for words in [progress_words(record.progress)] if words]
    parts += [f"- {code(note)}" for note in (*_notes(record, moment), *_warnings(record, problem))]
    parts += [f"- {code(_tool_words(tool, limit))}" for tool in _shown_tools(record, limit)]
    parts += [f"- ↳ {code(words)}" for words in _child_words(record)]
    if record.log_count:
        parts.append(f"{_log_title(record)}:")
        parts.append(fenced("\n".join(_shown_log(record, limit)), width))
    if record.error is not None:
        parts.append(fenced(shown(str(record.error), 500), width))
    body = _body(record, limit)
    parts += [fenced(body, width)] if body else []
    return "\n\n".join([*parts, code(_whereabouts(record))])
