"""A growing text, as a page shows it: its closed blocks rendered as Markdown, once each, and its open end as it is."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nbrun.core import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT_LIMIT = 20_000
"""How many characters of a text a page gets, from its end."""
HTML_LIMIT = 3 * TEXT_LIMIT
"""How long the HTML of a block may be; a longer one is shown as plain text."""
NODE_LIMIT = 900
"""About how many nodes the Markdown may have in a page; a block that has more alone is shown as plain text."""

_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_ANY_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)
_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])(?:\s|$)")
_MAY_BE_ITEM = frozenset(" \t\r-*+0123456789") | {""}
_HEADING = re.compile(r" {0,3}#{1,6}(?:\s|$)")
_RULE = re.compile(r" {0,3}([-*_])(?: *\1){2,} *$")


@dataclass(slots=True)
class _Block:
    """A closed part of the text, from `start` to `end`."""

    key: int  # never used twice: what a page has drawn under it needs no redrawing
    start: int
    end: int
    is_torn: bool  # its beginning was left out: rendered, it could be anything
    nodes: int = 0
    shown: dict[str, int | str] = field(default_factory=dict)

    def render(self, text: str) -> None:
        """Set what a page gets: its `html` or, if that is too much, its `text`."""
        from nbrun.render.markdown import safe_html  # here: it is slow to import

        source = text[self.start : self.end]
        html = safe_html(source) if len(source) < TEXT_LIMIT and not self.is_torn else ""
        # A tag starts or ends an element, and a text may follow it: about as many nodes as tags.
        self.nodes = html.count("<") + 1
        if html and self.nodes <= NODE_LIMIT and len(html) <= HTML_LIMIT:
            self.shown = {"key": self.key, "html": html}
            return
        self.nodes = 2
        self.shown = {"key": self.key, "text": visible_end(source.rstrip("\n"), TEXT_LIMIT)}


class Blocks:
    """The text of one run, fed as it grows: each block is parsed and rendered once.

    A block is closed by what no later text can undo: an empty line, the end of its code, the line of a heading. A
    list may continue after an empty line; what follows closes it. Rendering a line costs a hundred times as much as
    parsing it, so what a page doesn't get isn't rendered. Threads: only the one that draws cards.
    """

    def __init__(self) -> None:
        self._text = ""
        self._key = 0
        self._begin(0)

    def _begin(self, at: int) -> None:
        self._closed: list[_Block] = []
        self._cut = at
        self._start = at  # of the open end
        self._seen = at  # the lines before this were parsed
        self._fence = ""
        self._is_list = self._may_have_ended = self._is_torn = False

    @property
    def shown(self) -> list[dict[str, int | str]]:
        """The closed blocks that a page gets."""
        return [block.shown for block in self._closed]

    @property
    def tail(self) -> str:
        """The open end, as it is."""
        return visible_end(self._text[self._start :], TEXT_LIMIT)

    @property
    def cut(self) -> int:
        """How many characters are left out before what is shown."""
        is_cut = len(self._text) - self._start > TEXT_LIMIT
        return len(self._text) - TEXT_LIMIT if is_cut else self._cut

    def feed(self, text: str, is_over: bool) -> None:
        """Take the text as it is now; once it `is_over`, all of it is closed."""
        if not text.startswith(self._text):
            self._begin(0)
        self._text = text
        if len(text) - self._seen > TEXT_LIMIT:
            self._skip(len(text) - TEXT_LIMIT)
        for line, end in self._new_lines():
            self._take(line, end)
            self._seen = end
        # The start of a line may already show that a list doesn't continue.
        if self._may_have_ended and text[self._seen : self._seen + 1] not in _MAY_BE_ITEM:
            self._close(self._seen)
        if is_over and self._start < len(text):
            self._close(len(text))
        self._render()

    def release(self) -> None:
        """Let go of a text that is over; what a page gets of it stays."""
        self._text = ""

    def _skip(self, at: int) -> None:
        """Leave out the text up to the next empty line after `at` or, within code, the next line."""
        fences = _ANY_FENCE.findall(self._text, self._start, at)
        is_code = len(fences) % 2 == 1
        gap = self._text.find("\n" if is_code else "\n\n", at)
        self._begin(at if gap < 0 else gap + (1 if is_code else 2))
        if is_code:
            self._fence, self._is_torn = fences[-1], True

    def _new_lines(self) -> Iterator[tuple[str, int]]:
        at = self._seen
        while (end := self._text.find("\n", at) + 1) > 0:
            yield self._text[at : end - 1].rstrip("\r"), end
            at = end

    def _take(self, line: str, end: int) -> None:
        """Parse one more line; `end` is where the next one starts."""
        if self._fence:
            if _closes(line, self._fence):
                self._close(end)
        elif not line.strip():
            if self._is_list:
                self._may_have_ended = True
            else:
                self._close(end)
        else:
            self._take_words(line, end)

    def _take_words(self, line: str, end: int) -> None:
        is_deep = self._is_list and line.startswith(("  ", "\t"))
        if self._may_have_ended and not is_deep and not _ITEM.match(line):
            self._close(self._seen)
        self._may_have_ended = False
        if is_deep:
            return
        if fence := _FENCE.match(line):
            self._close(self._seen)
            self._fence = fence.group(1)
        elif _HEADING.match(line):
            self._close(self._seen)
            self._close(end)
        elif _ITEM.match(line) and not _RULE.match(line):
            self._is_list = True

    def _close(self, end: int) -> None:
        """Close what is open, up to `end`."""
        start, self._start = self._start, end
        self._fence = ""
        self._is_list = self._may_have_ended = False
        if not self._text[start:end].strip():
            return
        self._key += 1
        self._closed.append(_Block(self._key, start, end, self._is_torn))
        self._is_torn = False

    def _render(self) -> None:
        """Render the blocks that aren't yet, and drop the first ones if there is too much."""
        length = TEXT_LIMIT - (len(self._text) - self._start)
        nodes = NODE_LIMIT
        for at in reversed(range(len(self._closed))):
            block = self._closed[at]
            if block.end - block.start > TEXT_LIMIT:
                self._cut = block.start = block.end - TEXT_LIMIT
            length -= block.end - block.start
            if length >= 0 and not block.shown:
                block.render(self._text)
            nodes -= block.nodes
            if length < 0 or nodes < 0:
                self._cut = block.end
                del self._closed[: at + 1]
                return


def visible_end(text: str, limit: int) -> str:
    """Return the end of a text, with invisible characters made visible, which takes room."""
    return visible(text[-limit:])[-limit:]


def _closes(line: str, fence: str) -> bool:
    """Return whether a line ends the code that `fence` started."""
    found = _FENCE.match(line)
    return found is not None and found.group(1).startswith(fence) and line.strip() == found.group(1)
