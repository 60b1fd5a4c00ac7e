"""An agent's text as safe HTML and Markdown: nothing in it runs, hides or is fetched."""

from __future__ import annotations

import functools
import re
import textwrap
from html import escape
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nbrun.core import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it import MarkdownIt
    from markdown_it.token import Token

LIMIT = 100_000
"""Characters; a longer text is shown as written, so that the page need not wait."""

_TAGS = {
    *("p", "br", "hr", "blockquote", "ul", "ol", "li", "pre", "code", "em", "strong", "s", "a"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
# A gap within a line, but for the two spaces after a sentence, or a line that is indented.
_LAYOUT = re.compile(
    r"\S(?: {3,}| *\t[ \t]*)\S|[^\s.!?…](?<![.!?…][)\"'\u201d\u2019]) {2}\S|^(?: {2}| ?\t)[ \t]*\S", re.MULTILINE
)
_PLAIN = {"text", "softbreak", "hardbreak"}
_AS_WRITTEN = "as_written"
_ACTIVE = re.compile(r"[`*_\[\]<>|~#^{}]")
_LIVELY = re.compile(r"[$\\&]|://|www\.|@", re.IGNORECASE)  # formulas, escapes, links, mentions: shown as written
_HOST = re.compile(r"[\w.:-]+")
_PLACE = re.compile(r"[\w-]+(?:\.[\w-]+)+")
_LANGUAGE = re.compile(r"[\w+#.-]{0,20}")


def safe_html(text: str) -> str:
    """Return a text as HTML, with its Markdown rendered.

    HTML in it stays text. Links lead to http(s) only and open a new tab; one whose words name another host shows its
    own behind it. An image becomes a link, so that nothing is fetched, and a heading a strong paragraph: a notebook's
    outline is its author's. A paragraph that is laid out with spaces, such as a table, stays as it was written.
    Characters that hide text or turn its direction are made visible, entities too.
    """
    import nh3  # with the first text

    if len(text) > LIMIT:
        return as_written(text)
    parser = _parser()
    tokens = _with_layout(parser.parse(text), text) if _LAYOUT.search(text) else parser.parse(text)
    # The parser drops what is nested deeper: better no layout than lost words.
    if any(token.level >= parser.options.maxNesting - 1 for token in tokens):
        return as_written(text)
    clean = nh3.clean(
        parser.renderer.render(tokens, parser.options, {}),
        tags=_TAGS,
        attributes={"a": {"href", "title"}, "ol": {"start"}},
        url_schemes={"http", "https"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
        attribute_filter=_attribute,
    )
    return visible(clean)


def _with_layout(tokens: list[Token], text: str) -> list[Token]:
    """Return the tokens with those paragraphs as they were written whose layout would be lost."""
    from markdown_it.token import Token

    lines = text.replace("\r\n", "\n").split("\n")
    found: list[Token] = []
    for token in tokens:
        found.append(token)
        if token.type != "paragraph_close" or token.level:
            continue
        begin, inline, _ = found[-3:]
        first, last = begin.map or (0, 0)
        source = "\n".join(lines[first:last])
        if _LAYOUT.search(source) and {part.type for part in inline.children or ()} <= _PLAIN:
            before = found[-4] if len(found) > 3 else None
            if before is not None and before.type == _AS_WRITTEN and before.map:  # with the lines between them
                first = before.map[0]
                del found[-4]
            found[-3:] = [Token(_AS_WRITTEN, "", 0, content="\n".join(lines[first:last]), map=[first, last])]
    return found


def as_written(text: str) -> str:
    """Return a text as HTML with its lines and spaces, and no Markdown rendered."""
    lines = text.replace("\r\n", "\n")
    return f"<pre><code>{escape(visible(lines))}</code></pre>"


@functools.cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "breaks": True})
    parser.enable(["table", "strikethrough"])
    # Link definitions are not rendered, so they could hide text.
    parser.disable("reference")
    parser.validateLink = _is_web_link  # type: ignore[method-assign]
    rules = parser.renderer.rules  # type: ignore[attr-defined]
    rules["heading_open"] = lambda *_: "<p><strong>"
    rules["heading_close"] = lambda *_: "</strong></p>\n"
    rules["fence"] = _code_block
    rules[_AS_WRITTEN] = lambda tokens, index, *_: f"{as_written(tokens[index].content)}\n"
    rules["image"] = _image_link
    rules["link_close"] = _link_end
    # The first text builds its rule tables; nobody else has the parser yet, so no two threads do.
    parser.render("a")
    return parser


def _code_block(tokens: Sequence[Token], index: int, *_: object) -> str:
    """Return a block of code, without its language; anything else in that place is shown."""
    info = tokens[index].info.strip()
    head = "" if _LANGUAGE.fullmatch(info) else f"{info}\n"
    return f"<pre><code>{escape(head + tokens[index].content)}</code></pre>\n"


def _image_link(tokens: Sequence[Token], index: int, *_: object) -> str:
    token = tokens[index]
    words = escape(f"image: {token.content}" if token.content else "image")
    return f'<a href="{escape(str(token.attrs["src"]))}">{words}</a>'


def _attribute(_tag: str, name: str, value: str) -> str | None:
    """Return an attribute's value, or None to drop it. A link without an address would lead to this page."""
    return None if name == "href" and not _is_web_link(value) else value


def _link_end(tokens: Sequence[Token], index: int, *_: object) -> str:
    """Return the end of a link, and behind it the host it leads to, if its words name another."""
    begin = max(at for at in range(index) if tokens[at].type == "link_open")
    host = _host(str(tokens[begin].attrs["href"])) or ""
    words = "".join(token.content for token in tokens[begin:index]).lower()
    is_plain = all(name.removeprefix("www.") == host.removeprefix("www.") for name in _PLACE.findall(words))
    return "</a>" if is_plain else f"</a> ({escape(host)})"


def _is_web_link(url: str) -> bool:
    return url.lower().startswith(("https://", "http://")) and _host(url) is not None


def _host(url: str) -> str | None:
    """Return the host of a link; None if it is disguised, as in `bank.example@thief.example`."""
    try:
        parts = urlsplit(url)
    except ValueError:  # not an address
        return None
    host = parts.hostname or ""
    return host if "@" not in parts.netloc and _HOST.fullmatch(host) else None


def _fence(text: str, least: int) -> str:
    """Return more backticks than the text has in a row, so that it cannot end its block."""
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    return "`" * max(least, longest + 1)


def fenced(text: str, width: int | None = None) -> str:
    """Return a text as a block of code, with lines broken at `width`."""
    if width is not None:
        text = "\n".join(_broken(line, width) for line in text.splitlines())
    fence = _fence(text, 3)
    return f"{fence}text\n{text}\n{fence}"


def prose(text: str, width: int | None = None) -> str:
    """Return a text as Markdown: plain paragraphs as such, with all of it escaped; else as `fenced` does."""
    if len(text) <= LIMIT and not _LAYOUT.search(text) and not _LIVELY.search(text):
        tokens = _parser().parse(text)
        parts = {part.type for token in tokens for part in (token, *(token.children or ()))}
        if parts <= _PLAIN | {"paragraph_open", "paragraph_close", "inline"}:
            paragraphs = [token.content.split("\n") for token in tokens if token.type == "inline"]
            return "\n\n".join(
                "\\\n".join(_ACTIVE.sub(r"\\\g<0>", line.strip()) for line in each) for each in paragraphs
            )
    return fenced(text, width)


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    lines = textwrap.wrap(line, width, replace_whitespace=False, break_on_hyphens=False)
    return "\n".join(lines)


def code(text: str) -> str:
    """Return a text on one line, as code."""
    line = " ".join(text.split())
    fence = _fence(line, 1)
    return f"{fence} {line} {fence}"


def literal(text: str) -> str:
    """Return a text with all Markdown escaped."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-!|~&" else c for c in text)


# White on a ground of its own: no colour of text has a contrast of 4.5 on white and on #111 as well. Each ground
# has at least 3 on both.
_SIGN = "display:inline-block;min-width:1.5em;text-align:center;border-radius:3px;color:#fff"


def sign(mark: str, colour: str) -> str:
    """Return the sign of a status as HTML; hidden from screen readers."""
    return f'<span style="{_SIGN};background-color:{colour}" aria-hidden="true">{mark}</span>'
