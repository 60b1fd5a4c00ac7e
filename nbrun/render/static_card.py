"""A run or a set as static output, for saved notebooks and exported files.

`_sections` walks over the record once, `_set_sections` over a set, and says what there is to show; three writers,
`_html`, `_markdown` and `_text`, know only how a section looks. No text of an agent becomes markup in any of them.
"""

from __future__ import annotations

import functools
from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nbrun.core import (
    Action,
    CallGroup,
    Fix,
    RunRecord,
    RunStatus,
    ToolCall,
    counted,
    mimebundle,
    moment,
    printable,
    quantities,
    shown,
    visible,
)
from nbrun.render import set_view, words
from nbrun.render.markdown import as_written, code, fenced, literal, prose, safe_html, sign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MIME = "application/vnd.nbrun.run+json"
TEXT_LIMIT = 12_000
"""Characters of a run's text in each form; fewer where they take more room."""
WHOLE = 10**12
"""A limit that cuts nothing."""
CHILD_LIMIT = 20
SET_ERRORS = 10
"""How many different errors of a set are listed."""
SET_TEXT_LIMIT = 160
"""How many characters of an error or an output of a set are shown."""
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
_LINES = (
    "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere;margin:4px 0 0;padding:0;background:transparent;"
    "border:0"
)
_MUTED = "opacity:.75"
_TO_COME, _QUEUED = "rgba(128,128,128,.3)", words.SHAPES[RunStatus.QUEUED][0]
_BAR = "display:flex;height:10px;gap:1px;margin:6px 0 4px;border-radius:2px;overflow:hidden;forced-color-adjust:none"

STILL = {
    RunStatus.QUEUED: "Still queued",
    RunStatus.RUNNING: "Still running",
    RunStatus.WAITING: "Still waiting for you",
    RunStatus.CANCELLING: "Still being cancelled",
}
_TOOL_ENDS = {"ok": "succeeded", "error": "failed"}


# --- what there is to show -------------------------------------------------------------------------


class _Head(NamedTuple):
    """The sign of the status and its colour, the status in words, the run, and what it used."""

    mark: str
    colour: str
    status: str
    name: str
    facts: list[str]


class _Line(NamedTuple):
    """One line: a question (`?`), a warning (`!`), a child run (`↳`), a model call (`→`), an error, or else a note."""

    text: str
    mark: str = ""
    is_muted: bool = False
    is_error: bool = False


class _Fold(NamedTuple):
    """Lines that fold to their title: calls of tools (`·`) or of models (`→`), or what was printed (`|`).

    Where nothing can be folded, calls of models are only their title, and what `is_aside` (the reasoning, and the
    traceback) isn't shown.
    """

    title: str
    lines: Sequence[str | _Line]
    mark: str = "|"
    is_open: bool = False
    is_aside: bool = False

    def marked(self) -> Iterator[tuple[str, str]]:
        """Yield each line with its mark."""
        for line in self.lines:
            yield (line.mark, line.text) if isinstance(line, _Line) else (self.mark, line)


class _Answer(NamedTuple):
    """What the run streamed, and what it returned if that is something else; `cut` characters before are left out."""

    text: str
    result: str
    is_data: bool
    cut: int

    def laid_out(
        self, draw: Callable[[str], str], draw_data: Callable[[str], str], small: Callable[[str], str] = str
    ) -> list[str]:
        """Return its parts in order; `draw` and `draw_data` show its texts, `small` the notes between them."""
        parts = [small(f"… {counted(self.cut, 'earlier character')}")] if self.cut else []
        parts += [draw(self.text)] if self.text else []
        parts += [small(words.RETURNED)] if self.text and self.result else []
        return parts + ([(draw_data if self.is_data else draw)(self.result)] if self.result else [])


class _Bar(NamedTuple):
    """How many inputs of a set have which status: the sign of each, its colour, the count, and both in words."""

    parts: Sequence[tuple[str, str, int, str]]


_Section = _Head | _Line | _Fold | _Answer | _Bar


_Snapshot = tuple[str, tuple[str, ...]]
"""How a live run reads in a file, where it may stay for years: its status, and notes."""


def _sections(record: RunRecord, problem: str | None, limit: int, snapshot: _Snapshot | None) -> Iterator[_Section]:
    """Yield what there is to show of a run, in order, with at most `limit` characters of its text."""
    mark, colour = words.shape(record)
    agent = record.model or (record.agent if record.agent != record.name else "")
    facts = [part for part in (agent, words.usage_words(record.usage)) if part]
    status = words.status_words(record)
    if snapshot is not None:
        colour, status = words.SHAPES[RunStatus.LOST][1], snapshot[0]
    yield _Head(mark, colour, status, words.name_and_number(record), facts)
    yield from (_Line(text, "?") for text in words.question_lines(record))
    notes = [words.progress_words(record.progress), *(snapshot[1] if snapshot else ())]
    if record.is_unknown:
        notes.append(words.sentence(str(Fix(Action.LOST, words.run_ref(record)))))
    notes += [words.always_words(record), words.steer_words(record), words.files_words(record)]
    notes += [*words.followup_notes(record), *words.cancel_notes(record)]
    yield from (_Line(note) for note in notes if note)
    yield from (_Line(notice, "!") for notice in record.notices)
    if problem:
        yield _Line(f"Not saved: {problem}", "!")
    if record.tools:
        yield _tools(record, limit)
    elif record.call_groups:
        yield _calls(record.call_groups[-1], limit)
    yield from _children(record)
    if record.log_count:
        yield _Fold(f"Log ({counted(record.log_count, 'line')})", _log(record, limit))
    if record.reasoning:  # its end, as much as the record holds
        count, end = counted(record.reasoning_count, "character"), record.reasoning[-limit // 4 :]
        yield _Fold(f"Reasoning ({count})", end.split("\n"), is_aside=True)
    if record.text or words.result_of(record):
        yield _answer(record, limit)
    if record.error is not None:
        yield _Line(shown(str(record.error), 500), is_error=True)
        yield _Fold("Traceback", record.error.traceback[-limit // 2 :].split("\n"), is_aside=True)
    when = quantities.date_and_time(record.created_at)
    yield _Line(f"Get it in Python: {words.python_call(record)} · {when}", is_muted=True)


def _set_sections(view: set_view.SetView, limit: int, *, is_snapshot: bool) -> Iterator[_Section]:
    """Yield what there is to show of a set, in order, with at most so many characters of each error and output."""
    mark, colour = view.shape
    status = view.status_words
    if is_snapshot and view.is_live:
        status = "Not finished when the notebook was saved"
    yield _Head(mark, colour, status, view.title, view.facts)
    bar = [(*words.SHAPES[status], count, text) for status, count, text in view.parts]
    yield _Bar(bar) if bar else _Line("no inputs yet", is_muted=True)
    yield from (_Line(note) for note in view.notes)
    if view.errors:
        failed = sum(group.count for group in view.errors)
        lines = [_Line(_error_words(group, limit)) for group in view.errors[:SET_ERRORS]]
        lines += (
            [_Line(f"… {counted(len(view.errors) - SET_ERRORS, 'more error')}")] if view.errors[SET_ERRORS:] else []
        )
        yield _Fold(f"{failed:,} failed, by error", lines, "✘", is_open=True)
    for title, records in (("Newest", view.newest), ("Slowest", view.slowest)):
        if records:
            yield _Fold(title, [_Line(_member_line(record, limit, title == "Slowest")) for record in records], "·")
    when = quantities.date_and_time(view.began_at)
    yield _Line(f'Get it in Python: nbrun.get("set-{view.number}") · {when}', is_muted=True)


def _error_words(group: set_view.ErrorGroup, limit: int) -> str:
    runs = ", ".join(f"#{number}" for number in group.numbers)
    return f"{group.count:,} × {group.words(limit)}" + (f" ({runs})" if runs else "")


def _member_line(record: RunRecord, limit: int, is_timed: bool) -> str:
    took = record.elapsed_s(record.ended_at or record.last_event_at) if is_timed else None
    time = "" if took is None else f" {quantities.duration(took)}"
    return f"{set_view.member_words(record, limit)}{time} → {set_view.output_words(record, limit)}"


def _tools(record: RunRecord, limit: int) -> _Fold:
    """Return the last tool calls, in proportion to so much text, and the model calls between; open if one failed."""
    last = record.tools[-max(3, limit // 400) :]
    hidden = len(record.tools) - len(last)
    ends = Counter(_TOOL_ENDS.get(tool.status, shown(tool.status, 20)) for tool in record.tools)
    title = f"{counted(len(record.tools), 'tool call')}: "
    title += ", ".join(f"{count:,} {word}" for word, count in ends.most_common(5))
    if record.call_count:
        title += f" · {counted(record.call_count, 'model call')}"
    is_open = record.status is RunStatus.FAILED or any(tool.status == "error" for tool in last)
    width = 120 if limit <= TEXT_LIMIT else limit
    groups = {group.tools: group for group in record.call_groups[-len(last) - 1 :]}
    lines: list[str | _Line] = []
    for at, tool in enumerate([*last, None], hidden):
        if at in groups:
            lines.append(_line_of(groups[at], limit))
        if tool is not None:
            lines.append(_tool_words(tool, width))
    return _Fold(title, [*_earlier(hidden, "tool call"), *lines], "·", is_open)


def _calls(group: CallGroup, limit: int) -> _Section:
    """Return the model calls of a run without tools."""
    if group.count == 1:
        return _line_of(group, limit)
    last = words.call_lines(group, max(3, limit // 400))
    return _Fold(words.group_words(group), [*_earlier(group.count - len(last), "model call"), *last], "→")


def _line_of(group: CallGroup, limit: int) -> _Line:
    is_one = group.count == 1 and group.last
    line = words.call_words(group.last[0]) if is_one else words.group_words(group)
    return _Line(shown(line, max(80, min(400, limit // 10))), "→", is_muted=True)


def _earlier(hidden: int, noun: str) -> list[str]:
    """Return the line above others that counts the hidden ones."""
    return [f"… {counted(hidden, f'earlier {noun}')}"] if hidden > 0 else []


def _tool_words(tool: ToolCall, width: int) -> str:
    args = shown(tool.args, width) if tool.args is not None else ""
    result = f" → {shown(tool.result, width)}" if tool.result is not None else ""
    return f"{shown(tool.name, 80)}({args}) {tool.status}{result}"


def _children(record: RunRecord) -> list[_Line]:
    last = record.children[-CHILD_LIMIT:]
    lines = [f"{shown(words.name_and_number(one), 100)} {shown(one.status, 20)}" for one in last]
    lines = [*_earlier(len(record.children) - len(last), "child run"), *lines]
    return [_Line(line, "↳", is_muted=True) for line in lines]


def _log(record: RunRecord, limit: int) -> list[str]:
    """Return the last log lines, in proportion to so much text."""
    count, width = max(3, limit // 400), max(40, limit // 20)
    last = record.log[-count:]
    lines = [line if len(line) <= width else f"{line[: width - 1]}…" for line in last]
    return [*_earlier(record.log_count - len(last), "line"), *lines]


def _answer(record: RunRecord, limit: int) -> _Answer:
    """Return what the run gave, cut in front: its end is the answer."""
    text, result = record.text, words.result_of(record)
    cut = max(0, len(text) + len(result) - limit)
    result = result[-limit:]
    begin = max(0, len(text) - (limit - len(result)))
    # A text that is cut within a block of code begins with one.
    is_code = sum(line.startswith("```") for line in text[:begin].splitlines()) % 2
    text = ("```\n" if is_code else "") + text[begin:]
    return _Answer(text, result, not isinstance(record.output, str), record.text_cut + cut)


# --- the writers -----------------------------------------------------------------------------------


def _html(sections: Iterator[_Section]) -> str:
    parts: list[str] = []
    for section in sections:
        match section:
            case _Head(mark, colour, status, name, facts):
                frame = f"{_FRAME};border-left:3px solid {colour}"
                more = escape("".join(f" · {fact}" for fact in facts))
                # The classes keep dollar signs in an agent's text from being set as formulas.
                parts.append(
                    f'<div class="nbrun-static mathjax_ignore tex2jax_ignore" style="{frame}"><div>'
                    f"{sign(mark, colour)} <strong>{escape(status)}</strong> · {escape(name)}"
                    f'<span style="{_MUTED}">{more}</span></div>'
                )
            case _Bar():
                parts.append(_html_bar(section))
            case _Line(text, is_error=True):
                parts.append(f"<div><strong>{escape(text)}</strong></div>")
            case _Line(text, mark, is_muted):
                style = f' style="{_MUTED}"' if is_muted else ""
                parts.append(f"<div{style}>{escape(f'{mark} {text}' if mark else text)}</div>")
            case _Fold(title, _, "·" | "→" | "✘", is_open):
                parts.append(_fold(title, "".join(_html_call(*call) for call in section.marked()), is_open))
            case _Fold(title):
                text = escape("\n".join(line for _, line in section.marked()))
                parts.append(_fold(title, f'<pre style="{_LINES}">{text}</pre>'))
            case _Answer():
                parts.append(_html_answer(section))
    return "".join([*parts, "</div>"])


def _html_bar(bar: _Bar) -> str:
    """Return the bar, and below it the counts; the bar says nothing that these don't."""
    pieces = "".join(
        f'<div style="flex:{count} 0 2px;background:{_TO_COME if mark == _QUEUED else colour}"></div>'
        for mark, colour, count, _ in bar.parts
    )
    counts = " · ".join(f"{mark} {escape(text)}" for mark, _, _, text in bar.parts)
    return f'<div style="{_BAR}">{pieces}</div><div>{counts}</div>'


def _html_answer(answer: _Answer) -> str:
    """Return the answer with its Markdown rendered, unless it is data; a long one in a box that scrolls."""
    rows = answer.laid_out(safe_html, as_written, lambda text: f'<div style="{_MUTED}">{text}</div>')
    both = f"{answer.text}\n{answer.result}"
    is_long = len(both) > 1_500 or both.count("\n") > 12
    keys = ' tabindex="0"' if is_long else ""  # for those who scroll without a mouse
    # JupyterLab cuts the words of a `pre` anywhere, if nobody says otherwise.
    html = "".join(rows).replace("<pre>", '<pre style="word-break:normal">')
    return f'<div style="{_PROSE}"{keys}>{html}</div>'


def _html_call(mark: str, line: str) -> str:
    """Return a call of a tool, or a quieter one of a model."""
    if mark == "→":
        return f'<div style="{_MUTED}">→ {escape(line)}</div>'
    return f"<div>{mark} <code>{escape(line)}</code></div>"


def _fold(title: str, html: str, is_open: bool = False) -> str:
    attribute = " open" if is_open else ""
    return f"<details{attribute}><summary>{escape(title)}</summary>{html}</details>"


def _markdown(sections: Iterator[_Section], width: int | None) -> str:
    """Return Markdown in which all text of an agent is code; lines of a block are broken at `width`."""
    parts: list[str] = []
    block = functools.partial(fenced, width=width)
    for section in sections:
        match section:
            case _Bar(bar):
                parts.append("- " + " · ".join(text for _, _, _, text in bar))
            case _Head(_, _, status, name, facts):
                parts.append(f"**{literal(status)}** · {code(' · '.join([name, *facts]))}")
            case _Line(text, is_error=True):
                parts.append(block(text))
            case _Line(text, mark, is_muted):
                bullet = f"- {mark} " if mark in ("↳", "→") else "" if is_muted else "- "
                parts.append(bullet + code(text))
            case _Fold(title, mark="✘"):
                parts += [f"- {code(line)}" for _, line in section.marked()]
            case _Fold(mark="·"):
                parts += [f"- {'→ ' if mark == '→' else ''}{code(line)}" for mark, line in section.marked()]
            case _Fold(title, mark="→"):
                parts.append(f"- → {code(title)}")
            case _Fold(title, is_aside=False):
                parts += [f"{title}:", block("\n".join(line for _, line in section.marked()))]
            case _Answer():
                parts += section.laid_out(functools.partial(prose, width=width), block)
    return "\n\n".join(parts)


def _text(sections: Iterator[_Section]) -> str:
    lines: list[str] = []
    for section in sections:
        match section:
            case _Head(mark, _, status, name, facts):
                lines.append(" · ".join([f"{mark} {status} – {name}", *facts]))
            case _Bar(bar):
                lines.append("  " + " · ".join(f"{mark} {text}" for mark, _, _, text in bar))
            case _Line(text, mark):
                lines.append(f"  {mark} {text}" if mark else f"  {text}")
            case _Fold(title, mark="→"):
                lines.append(f"  → {title}")
            case _Fold(title, mark=mark, is_aside=False):
                lines += [] if mark == "·" else [f"  {title}:"]
                lines += [f"  {each} {line}" for each, line in section.marked()]
            case _Answer():
                lines += section.laid_out(str, str)
    return visible(printable("\n".join(lines)))


# --- the outputs -----------------------------------------------------------------------------------


def bundle(record: RunRecord, problem: str | None = None, *, is_redrawn: bool = False) -> dict[str, Any]:
    """Return the run under every MIME type that a notebook file keeps of it. All of an agent's text is escaped.

    A live run is shown as a snapshot; `is_redrawn` says that its end will replace it.
    """
    snapshot = _snapshot(record, "this was drawn" if is_redrawn else "the notebook was saved", is_redrawn)
    record, limit = _trimmed(record), TEXT_LIMIT
    # A character may take six bytes, escaped, and a line twenty: how much text fits is found by trying.
    while True:
        data = _bundle(record, problem, limit, snapshot)
        if limit <= 200 or _saved_size(data) <= SAVED_LIMIT:
            return data
        limit //= 2


def _bundle(record: RunRecord, problem: str | None, limit: int, snapshot: _Snapshot | None) -> dict[str, Any]:
    html = _html(_sections(record, problem, limit, snapshot)).replace("\r\n", "\n")
    markdown = _markdown(_sections(record, problem, limit, snapshot), PRINTED_WIDTH)
    return {
        # On one line: nbconvert writes it into Markdown, where an empty line would end it and begin an agent's own.
        "text/html": visible(html).replace("\n", "&#10;"),
        "text/markdown": visible(markdown.replace("\r\n", "\n")),
        "text/plain": _text(_sections(record, problem, limit, snapshot)),
        MIME: msgspec.to_builtins(record.brief()),
    }


def set_bundle(view: set_view.SetView) -> dict[str, Any]:
    """Return a set under every MIME type that a notebook file keeps of it; what is in progress is a snapshot."""
    limit = SET_TEXT_LIMIT
    while True:  # as in `bundle()`
        data = _set_bundle(view, limit)
        if limit <= 20 or _saved_size(data) <= SAVED_LIMIT:
            return data
        limit //= 2


def _set_bundle(view: set_view.SetView, limit: int) -> dict[str, Any]:
    markdown = _markdown(_set_sections(view, limit, is_snapshot=True), PRINTED_WIDTH)
    return {
        "text/html": visible(_html(_set_sections(view, limit, is_snapshot=True))).replace("\n", "&#10;"),
        "text/markdown": visible(markdown),
        "text/plain": _text(_set_sections(view, limit, is_snapshot=True)),
    }


def set_text(view: set_view.SetView) -> str:
    """Return a set's current state as a few lines of text."""
    return _text(_set_sections(view, SET_TEXT_LIMIT, is_snapshot=False))


def _saved_size(data: dict[str, Any]) -> int:
    """Return about how many bytes a notebook file needs, which keeps text as an indented list of lines."""
    lines = sum(text.count("\n") for text in data.values() if isinstance(text, str))
    return len(msgspec.json.encode(data)) + 16 * lines


def plain_text(record: RunRecord, problem: str | None = None) -> str:
    """Return the run's current state as a few lines of text, with at most `TEXT_LIMIT` characters of its own text."""
    return _text(_sections(record, problem, TEXT_LIMIT, None))


def whole_html(record: RunRecord, look: Mapping[str, str] | None = None) -> str:
    """Return a run as part of a page: its facts, its prompt, its card with nothing cut, and its result.

    `look` is what the output looks like, by MIME type, safe to be shown: a picture, or a table.
    """
    title = escape(shown(words.name_and_number(record), 100))
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _facts(record))
    prompt = f'<h2>Prompt</h2><pre style="{_LINES}">{escape(record.prompt)}</pre>'
    card = _html(_whole(record))
    return f"<article><h1>{title}</h1><dl>{facts}</dl>{prompt}<h2>Run</h2>{card}{_pictured(look or {})}</article>"


def whole_markdown(record: RunRecord) -> str:
    """Return a run as Markdown: its facts, its prompt, and its card with nothing cut."""
    parts = [f"# {code(shown(words.name_and_number(record), 100))}"]
    parts.append("\n".join(f"- {name}: {code(text)}" for name, text in _facts(record)))
    if record.prompt:
        parts += ["## Prompt", fenced(record.prompt)]
    parts += ["## Run", _markdown(_whole(record), None)]
    if record.error is not None and record.error.traceback:
        parts += ["## Traceback", fenced(record.error.traceback)]
    return "\n\n".join(parts) + "\n"


def whole_text(record: RunRecord, store: str) -> str:
    """Return all that is kept of a run as text; `store` names its file."""
    facts = [*_facts(record), ("store", store)]
    parts = ["\n".join(f"  {name:<8} {text}" for name, text in facts)]
    parts += [f"Prompt:\n{record.prompt}"] if record.prompt else []
    parts.append(_text(_sections(_trimmed(record), None, WHOLE, None)))
    if record.error is not None and record.error.traceback:
        parts.append(record.error.traceback)
    return visible(printable("\n\n".join([words.sentence(words.title(record)), *parts])))


def _whole(record: RunRecord) -> Iterator[_Section]:
    return _sections(_trimmed(record), None, WHOLE, _snapshot(record, "this was exported", False))


def _pictured(look: Mapping[str, str]) -> str:
    """Return a result as it was displayed, if that is more than the card's text."""
    for kind in mimebundle.IMAGES:
        if kind in look:
            about = escape(shown(look.get(mimebundle.TEXT, ""), 200))
            return f'<h2>Result</h2><img src="data:{kind};base64,{look[kind]}" alt="{about}">'
    return f"<h2>Result</h2>{look[mimebundle.HTML]}" if mimebundle.HTML in look else ""


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    """Return the other facts about a run, for those who have only the file."""
    times = {
        "created": record.created_at, "started": record.started_at, "cancel": record.cancel_requested_at,
        "ended": record.ended_at,
    }  # fmt: skip
    facts = {
        "id": record.run_id,
        "agent": record.agent,
        "model": record.model,
        **{name: at and moment(at, "%Y-%m-%d %H:%M:%S %z") for name, at in times.items()},
        "phase": record.phase,
        "tokens": words.tokens_words(record.usage),
        "cost": words.cost_words(record.usage),
        "tags": ", ".join(f"{key}={value}" for key, value in record.tags.items()),
        "events": f"{record.event_count:,}",
    }
    return [(name, shown(text, 1_000)) for name, text in facts.items() if text]


def _snapshot(record: RunRecord, when: str, is_redrawn: bool) -> _Snapshot | None:
    """Return how the state of a live run reads in a file; None for a run that has ended."""
    if not record.is_live:
        return None
    if record.is_unknown:
        return (words.status_words(record), ())
    command = Fix(Action.SHOW, words.run_ref(record)).command
    show = f"Run {command}" if command else ""
    if is_redrawn:
        now = show and f"{show} for its current state"
        return (f"{STILL[record.status]} when {when}", ("Updated when the run ends", now))
    # A live card's file keeps what was drawn at its start: a run that was queued then may have done anything since.
    is_queued = record.status is RunStatus.QUEUED
    still = "Not finished" if is_queued else STILL[record.status]
    return (f"{still} when {when}", (show and f"{show} to see how it ended",))


def _trimmed(record: RunRecord) -> RunRecord:
    """Return the record with its names, notices and the like cut short: they may be of any length."""
    limits = {"name": 100, "agent": 100, "model": 100, "reason": 200, "phase": 100, "cancelled_by": 60}
    texts = {key: shown(text, limit) for key, limit in limits.items() if (text := getattr(record, key))}
    progress, origin = record.progress, record.origin
    return msgspec.structs.replace(
        record,
        **texts,
        tags={shown(k, 40): shown(v, 100) for k, v in list(record.tags.items())[:20]},
        progress=progress and msgspec.structs.replace(progress, label=progress.label and shown(progress.label, 100)),
        notices=tuple(shown(notice, 200) for notice in record.notices),
        origin=origin and msgspec.structs.replace(origin, name=shown(origin.name, 60)),
        detached=tuple(shown(name, 60) for name in record.detached[:5]),
        detached_finished=tuple(shown(name, 60) for name in record.detached_finished[:5]),
    )
