"""What an agent says, as HTML: drawn where it is Markdown, and nothing in it that acts, hides or fetches."""

from __future__ import annotations

from html import escape, unescape
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from nbrun.render.markdown import LIMIT, prose, safe_html

TAGS = {
    "p", "br", "hr", "blockquote", "ul", "ol", "li", "pre", "code", "em", "strong", "s", "a",
    "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip


class Page(HTMLParser):
    """Collects the tags, attributes, links and text of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note them."""
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        """Note it."""
        self.text += data


def test_markdown_is_drawn() -> None:
    """Emphasis, lists, code, quotes, rules and tables are what they are in any other front end."""
    page = Page(
        safe_html(
            "**a** *b* ~~c~~ `d`\n\n3. one\n4. two\n\n- x\n\n> q\n\n---\n\n```python\nif x:\n```\n\n|h|\n|-|\n|v|\n"
        )
    )
    assert page.tags == TAGS - {"a", "br"}
    assert page.attributes == {"start"}
    assert "if x:" in page.text
    assert "python" not in page.text


def test_lines_stay_lines() -> None:
    """A text that was written line by line is not run together."""
    assert safe_html("one\ntwo\r\nthree") == "<p>one<br>\ntwo<br>\nthree</p>\n"


def test_a_heading_is_no_heading_of_the_page() -> None:
    """The outline of a notebook is its author's: Lab's table of contents reads what a cell shows as well."""
    assert safe_html("# A *b*\n\nTea\n===\n") == ("<p><strong>A <em>b</em></strong></p>\n<p><strong>Tea</strong></p>\n")


def test_a_link_to_the_web_opens_a_page_of_its_own() -> None:
    """Which knows nothing of the page that it comes from."""
    assert safe_html("[tea](https://tea.example/a?b=1&c=2)") == (
        '<p><a href="https://tea.example/a?b=1&amp;c=2" target="_blank" rel="noopener noreferrer nofollow">'
        "tea</a></p>\n"
    )
    assert Page(safe_html("<http://tea.example>")).links == ["http://tea.example"]


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)", "JaVaScRiPt:alert(1)", "&#106;avascript:alert(1)", "java&#10;script:alert(1)",
        "data:text/html,<script>alert(1)</script>", "data:image/svg+xml;base64,PHN2Zz4=", "vbscript:x", "file:///etc",
        "//evil.example/x", "/api/kernels", "../x", "#top", "mailto:a@b.example", "\\x01javascript:alert(1)",
        "blob:http://x/1", "http:\\\\x", "http&colon;//x",
    ],
)  # fmt: skip
def test_any_other_link_is_text(url: str) -> None:
    """Nothing is hidden: both its words and where it would have led can be read."""
    page = Page(safe_html(f"[tea]({url}) and <{url}> ![pot]({url})"))
    assert not [link for link in page.links if not link.startswith(("http://x", "https://"))]
    assert page.attributes <= {"href", "rel", "target"}
    assert "tea" in page.text


def test_an_image_is_a_link_to_it() -> None:
    """A page that shows an answer asks nobody for a picture."""
    page = Page(safe_html("![pot](https://tea.example/pot.png)"))
    assert "img" not in page.tags
    assert page.links == ["https://tea.example/pot.png"]
    assert page.text == "image: pot\n"
    assert Page(safe_html("![](https://tea.example/pot.png)")).text == "image\n"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", "<style>*{}</style>",
        "<!-- hidden -->", "<details><summary>x</summary>hidden</details>", "<base href=//evil>", "<math><mtext>",
        "`<b>`", "```\n</code></pre><script>x</script>\n```", "**<b>**", "a\n<div\nonclick=x>", "<![CDATA[x]]>",
        "<?php x ?>", "<a href='javascript:x'>y</a>", '[a](https://x "onclick=alert(1)")', "[//]: # (hidden)",
        "[1]: https://tea.example 'hidden'", "&#27;[31mhidden", "&lt;script&gt;",
    ],
)  # fmt: skip
def test_html_is_text(text: str) -> None:
    """Whatever looks like markup is read as it was written; not even a comment goes missing."""
    page = Page(safe_html(text))
    assert page.tags <= TAGS
    assert page.attributes <= {"href", "rel", "target", "title"}
    assert "\x1b" not in page.text
    for word in ("alert(1)", "hidden", "<b>", "script", "svg"):
        if word in text and '"' not in text:
            assert word in page.text


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\u202eb", "a&#x202e;b", "a&rlm;b"])
def test_what_hides_or_turns_a_text_is_made_visible(text: str) -> None:
    """Also where an entity of Markdown has put it there."""
    html = safe_html(text)
    assert not set(unescape(html)) & {"\x1b", "\u202e", "\u200f"}
    assert "\\u" in html


@pytest.mark.parametrize(
    "text",
    [
        ">" * 5000 + " deep", "\n".join("  " * n + "- deep" for n in range(100)), "[" * 20_000 + "deep",
        "![" * 10_000 + "deep", "*a_" * 6000 + "deep", "a" + "`" * 9999 + "deep",
        "```sh and deep\nx", "x" * (LIMIT + 1) + "<b>deep",
        "**" * 9999 + "deep", "<" * 20_000 + "deep", "| a " * 5000 + "deep",
    ],
    ids=lambda text: text[:6],
)  # fmt: skip
def test_every_word_is_shown_however_deep_it_lies(text: str) -> None:
    """What is nested too deep, or too long to be drawn, is shown as it was written."""
    page = Page(safe_html(text))
    assert page.text.count("deep") == text.count("deep")
    assert page.tags <= TAGS


@pytest.mark.parametrize("text", ["name   price\ngreen     10\n", "  two\n    four", "a\tb"])
def test_a_text_that_is_laid_out_keeps_its_layout(text: str) -> None:
    """A table of an agent that has never heard of Markdown stays one, line breaks of another system or not."""
    assert safe_html(text) == f"<pre><code>{text.rstrip()}</code></pre>\n"
    assert safe_html(text.replace("\n", "\r\n")) == safe_html(text)


@pytest.mark.parametrize(
    "text",
    ["One.\n\nTwo.", "One.\nAnd a half.\n\n\nTwo.\n", " One.\n\n Two.", "One.  Two!  (Three.)  “Four.”  Five.\n\nSix."],
)
def test_prose_is_paragraphs(text: str) -> None:
    """Empty lines, a space before the first word, and two spaces after a sentence are no layout."""
    html = safe_html(text)
    assert "<pre>" not in html
    assert html.count("<p>") == 2
    markdown = prose(text)
    assert markdown.count("\n\n") == 1
    assert MarkdownIt("commonmark", {"breaks": True}).render(markdown).replace("<br />", "<br>") == html


@pytest.mark.parametrize("text", ["a_b_c <i>d</i> #1 [e] ~f g|h *i j", "5 > 4 ^2^ {x}"])
def test_prose_in_markdown_means_nothing_but_its_words(text: str) -> None:
    """Whatever could be Markdown or HTML elsewhere is escaped."""
    shown = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(prose(text))
    assert shown == f"<p>{escape(text)}</p>\n"


@pytest.mark.parametrize(
    "text", ["- a", "**a**", "a   b", "$x$ and $y$", "see https://evil.example", "www.evil.example", "a@b.c", "&lt;"]
)
def test_other_text_is_code_in_markdown(text: str) -> None:
    """Markdown, layout, formulas, links and mentions are shown as they were written."""
    assert prose(text) == f"```text\n{text}\n```"


def test_layout_is_kept_by_paragraphs() -> None:
    """A table by spaces stays one between prose, headings and lists; neighbours keep the lines between them."""
    html = safe_html("# Prices\n\nPer cup.\n\ntea   5\nmilk  1\n\n\nsum   6\n\n- cheap  tea\n\nEnjoy.")
    assert "<strong>Prices</strong></p>\n<p>Per cup.</p>\n" in html
    assert "<pre><code>tea   5\nmilk  1\n\n\nsum   6</code></pre>\n" in html
    assert "<li>cheap  tea</li>" in html
    assert html.endswith("<p>Enjoy.</p>\n")


def test_layout_beside_markdown_is_drawn() -> None:
    """Two spaces somewhere do not make a text less Markdown."""
    assert "<strong>b</strong>" in safe_html("a  **b**")


def test_an_empty_text_is_empty() -> None:
    """There is nothing to show of it."""
    assert safe_html("") == ""
