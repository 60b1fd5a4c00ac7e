"""A text that grows, as a page shows it: what is closed as Markdown, drawn once, and its open end as it is."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nbrun.core.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT_LIMIT = 20_000
"""Characters of a text that a page gets: its end."""
HTML_LIMIT = 3 * TEXT_LIMIT
"""Characters of the HTML of a block; one that comes to more is shown as it is."""
NODE_LIMIT = 900
"""Nodes that its Markdown may come to in a page, about; a block that alone comes to more is shown as it is."""

_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_ANY_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)
_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])(?:\s|$)")
_MAY_BE_ITEM = frozenset(" \t\r-*+0123456789") | {""}
_HEADING = re.compile(r" {0,3}#{1,6}(?:\s|$)")
_RULE = re.compile(r" {0,3}([-*_])(?: *\1){2,} *$")


@dataclass(slots=True)
class _Block:
    """A closed part of the text, from `start` to `end`."""

    key: int  # never used twice: what a page has drawn under it, it need not draw again
    start: int
    end: int
    is_torn: bool  # its beginning was left out: drawn, it could be anything
    nodes: int = 0
    shown: dict[str, int | str] = field(default_factory=dict)

    def draw(self, text: str) -> None:
        """Set what a page gets of it: its `html` or, where it is too much to be drawn, its `text`."""
        from nbrun.render.markdown import (
            safe_html,  # with the first: what it needs is not loaded yet
        )

        source = text[self.start : self.end]
        html = safe_html(source) if len(source) < TEXT_LIMIT and not self.is_torn else ""
        # A tag is an element or its end, and what stands behind it a text: as many tags, as many nodes.
        self.nodes = html.count("<") + 1
        if html and self.nodes <= NODE_LIMIT and len(html) <= HTML_LIMIT:
            self.shown = {"key": self.key, "html": html}
            return
        self.nodes = 2
        self.shown = {"key": self.key, "text": visible_end(source.rstrip("\n"), TEXT_LIMIT)}


class Blocks:
    """The text of one run, fed as it grows: each block is looked at and drawn once.

    A block is closed by what no later text can undo: an empty line, the end of its code, the line of a heading.
    Lists may go on after an empty line; they are closed by what follows it. Looking at a line costs little,
    drawing it a hundred times that, so what a page does not get is not drawn.

    Threads: of the thread that draws cards.
    """

    def __init__(self) -> None:
        self._text = ""
        self._key = 0
        self._begin(0)

    def _begin(self, at: int) -> None:
        self._closed: list[_Block] = []
        self._cut = at
        self._start = at  # of what is open
        self._seen = at  # up to here its lines are known
        self._fence = ""
        self._is_list = self._is_doubtful = self._is_torn = False

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
        """How many characters stand before what is shown."""
        is_cut = len(self._text) - self._start > TEXT_LIMIT
        return len(self._text) - TEXT_LIMIT if is_cut else self._cut

    def feed(self, text: str, is_over: bool) -> None:
        """Take the text as it is now; when it `is_over`, all of it is closed."""
        if not text.startswith(self._text):
            self._begin(0)
        self._text = text
        if len(text) - self._seen > TEXT_LIMIT:
            self._skip(len(text) - TEXT_LIMIT)
        for line, end in self._new_lines():
            self._take(line, end)
            self._seen = end
        # A line that has only begun can tell as well that a list does not go on.
        if self._is_doubtful and text[self._seen : self._seen + 1] not in _MAY_BE_ITEM:
            self._close(self._seen)
        if is_over and self._start < len(text):
            self._close(len(text))
        self._draw()

    def _skip(self, at: int) -> None:
        """Go on after `at`, at the next empty line or, within code, at the next line: the rest is not shown."""
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
        """Take one more line; `end` is where the next one begins."""
        if self._fence:
            if _closes(line, self._fence):
                self._close(end)
        elif not line.strip():
            if self._is_list:
                self._is_doubtful = True
            else:
                self._close(end)
        else:
            self._take_words(line, end)

    def _take_words(self, line: str, end: int) -> None:
        is_deep = self._is_list and line.startswith(("  ", "\t"))
        if self._is_doubtful and not is_deep and not _ITEM.match(line):
            self._close(self._seen)
        self._is_doubtful = False
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
        self._is_list = self._is_doubtful = False
        if not self._text[start:end].strip():
            return
        self._key += 1
        self._closed.append(_Block(self._key, start, end, self._is_torn))
        self._is_torn = False

    def _draw(self) -> None:
        """Draw what is not, and let go of the first blocks where there is too much of them."""
        length = TEXT_LIMIT - (len(self._text) - self._start)
        nodes = NODE_LIMIT
        for at in reversed(range(len(self._closed))):
            block = self._closed[at]
            if block.end - block.start > TEXT_LIMIT:
                self._cut = block.start = block.end - TEXT_LIMIT
            length -= block.end - block.start
            if length >= 0 and not block.shown:
                block.draw(self._text)
            nodes -= block.nodes
            if length < 0 or nodes < 0:
                self._cut = block.end
                del self._closed[: at + 1]
                return


def visible_end(text: str, limit: int) -> str:
    """Return the end of a text, with what hides or moves the rest made visible, which takes room."""
    return visible(text[-limit:])[-limit:]


def _closes(line: str, fence: str) -> bool:
    """Return whether a line ends the code that `fence` has opened."""
    found = _FENCE.match(line)
    return found is not None and found.group(1).startswith(fence) and line.strip() == found.group(1)
