"""Runs as files for other tools: JSON lines, JSON, an HTML page without script, Markdown."""

from __future__ import annotations

import errno
import secrets
from html import escape
from typing import TYPE_CHECKING

from nbrun.core import BadOption, Exported, commands, events as ev, recording, visible
from nbrun.render import results, static_card

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path


PAGE = 1_000
"""How many events are read at once."""

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".html": "html", ".htm": "html",
             ".md": "md", ".markdown": "md"}  # fmt: skip

_HEAD = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    # Nothing in it is fetched or run, even if something written below were wrong.
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'\">"
    '<meta name="viewport" content="width=device-width"><title>{title}</title><style>'
    ":root{{color-scheme:light dark;font-family:system-ui,sans-serif}}body{{max-width:60em;margin:2em auto;"
    "padding:0 1em}}dl{{display:grid;grid-template-columns:max-content 1fr;gap:.2em 1em}}dd{{margin:0;"
    "overflow-wrap:anywhere}}pre{{max-height:none!important}}article+article{{margin-top:4em}}"
    "img{{max-width:100%}}</style></head><body>\n"
)


def read_form(form: str | None, path: Path | None) -> str:
    """Return the requested format, else the file suffix's, else JSON lines; raise `BadOption` for an unknown one."""
    if form is None and path is not None and path.suffix:
        form = _SUFFIXES.get(path.suffix.lower())
        if form is None:
            ends = ", ".join(_SUFFIXES)
            raise BadOption(f"can't tell the format of '{path.name}' by its suffix ({ends}); name it with --form")
    if form is None:
        return "jsonl"
    if form not in commands.FORMS:
        raise BadOption(f"unknown format '{form}'; available: {', '.join(commands.FORMS)}")
    return form


def paged(read: Callable[[int, int], list[ev.RunEvent]]) -> Iterator[ev.RunEvent]:
    """Yield all events of a run; `read(after, limit)` gives a page of them."""
    after = -1
    while page := read(after, PAGE):
        yield from page
        after = page[-1].seq


def dump(form: str, runs: Iterable[Exported]) -> Iterator[bytes]:
    """Yield the parts of a file with these runs in it."""
    match form:
        case "jsonl":
            for record, events, _ in runs:
                yield from map(_plain_json, recording.dump(record, events))
        case "json":
            for number, (record, events, _) in enumerate(runs):
                yield b",\n" if number else b"["
                yield from map(_plain_json, recording.dump_entry(record, events))
            yield b"]\n"
        case "html":
            yield from _page(runs)
        case _:
            for number, (record, *_) in enumerate(runs):
                yield (("\n" if number else "") + visible(static_card.whole_markdown(record))).encode()


def write(path: Path, form: str, runs: Iterable[Exported]) -> None:
    """Write a file of these runs; see `write_lines`."""
    write_lines(path, dump(form, runs))


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write a file, or raise `OSError`; an existing file stays until the new one is complete."""
    if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced
        with path.open("wb") as file:
            file.writelines(lines)
        return
    path = path.resolve()  # a link stays a link
    if not path.parent.is_dir():  # else the error would name the draft
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as file:
            file.writelines(lines)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _page(runs: Iterable[Exported]) -> Iterator[bytes]:
    for number, (record, _, artifacts) in enumerate(runs):
        if not number:
            yield visible(_HEAD.format(title=escape(record.name))).encode()
        yield visible(f"{static_card.whole_html(record, results.look_of(record.output, artifacts))}\n").encode()
    yield b"</body></html>\n"


def _plain_json(part: bytes) -> bytes:
    """Return JSON with invisible characters escaped: they can only be parts of texts."""
    return part if part.isascii() and b"\x7f" not in part else visible(part.decode()).encode()
