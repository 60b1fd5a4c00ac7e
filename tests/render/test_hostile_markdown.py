"""Hostile Markdown, and any text at all, as HTML for a page: it shows, and has nothing that acts, hides or fetches."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings, strategies as st

from nbrun.core.text import visible
from nbrun.render.markdown import safe_html
from tests.fakes.hostile import FLOOD, PAYLOADS

TAGS = {
    "p", "br", "hr", "blockquote", "ul", "ol", "li", "pre", "code", "em", "strong", "s", "a",
    "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
SAFE_LINK = {"rel": "noopener noreferrer nofollow", "target": "_blank"}
"""What every link has besides its address."""

PIECES = [
    "[a](", "![", "](", ")", "<", ">", '"', "'", "`", "```", "~~~", "\n", "\n\n", "\n> ", "\n- ", "\n|-|\n", "|", "*",
    "_", "#", "&#", "&#x", ";", "&colon;", "&NewLine;", "\\", "\t", "    ", "\0", "\x1b", "\u202e", "http://",
    "https://x", "HTTPS://", "javascript:", "data:", "//x", "onerror=hit()", "style=", "<!--", "-->", "[x]: ",
]  # fmt: skip
"""What Markdown and HTML are made of."""


class Strict(HTMLParser):
    """Notes whatever is in HTML that should not be, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.amiss: list[object] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag or an attribute that is not allowed, and a link without what a link must have."""
        found = dict(attrs)
        if tag not in TAGS:
            self.amiss.append(tag)
        if tag == "a" and "href" in found:
            if not re.match("https?://", found.pop("href") or "", re.I):
                self.amiss.append(attrs)
            if {name: found.pop(name, None) for name in SAFE_LINK} != SAFE_LINK:
                self.amiss.append(attrs)
        harmless = {"a": {"title", *SAFE_LINK}, "ol": {"start"}}.get(tag, set())
        self.amiss += [(tag, name) for name in found.keys() - harmless]

    def handle_data(self, data: str) -> None:
        """Note it."""
        self.text += data

    def handle_comment(self, data: str) -> None:
        """Note it: nobody would see it."""
        self.amiss.append(f"comment {data}")

    def handle_decl(self, decl: str) -> None:
        """Note it."""
        self.amiss.append(decl)

    def handle_pi(self, data: str) -> None:
        """Note it."""
        self.amiss.append(data)

    def unknown_decl(self, data: str) -> None:
        """Note it."""
        self.amiss.append(data)


def check(text: str) -> None:
    """Fail if the HTML of a text has what it should not have, or something that nobody sees."""
    page = Strict(safe_html(text))
    assert page.amiss == []
    assert visible(page.text) == page.text


@pytest.mark.parametrize("payload", [*PAYLOADS, FLOOD], ids=lambda payload: ascii(payload[:30]))
def test_a_payload_is_only_shown(payload: str) -> None:
    """Alone, in the midst of a paragraph, a list, a table, a quote, code and a link."""
    for frame in ("{}", "a {} b", "- {}", "|a|\n|-|\n|{}|", "> {}", "`{}`", "[{}](https://x)", "[a]({})", "<{}>"):
        check(frame.replace("{}", payload[:100_001]))


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[https://bank.example/x](https://thief.example/y)", "https://bank.example/x (thief.example)"),
        ("[at www.bank.example](http://x.thief.example)", "at www.bank.example (x.thief.example)"),
        ("[*bank.example*](https://thief.example)", "bank.example (thief.example)"),
        ("[https://www.bank.example](https://bank.example/y)", "https://www.bank.example"),
        ("[tea](https://tea.example)", "tea"),
        ("<https://tea.example/x>", "https://tea.example/x"),
    ],
)
def test_a_link_does_not_name_another_place_than_it_leads_to(link: str, shown: str) -> None:
    """Its words may be anything, but where they are an address, the right one can be read."""
    assert Strict(safe_html(link)).text.strip() == shown


@pytest.mark.parametrize("space", ["\n", " ", "\t", "\n ", " \n"])
def test_empty_lines_take_no_time_of_their_own(space: str) -> None:
    """As many as a text may have, at its end: each is looked at once, or this would take minutes."""
    text = f"tea{space * (49_000 // len(space))}"
    assert visible(text.strip()) in safe_html(text)
    assert "cup" in safe_html(f"{text}cup")


@pytest.mark.parametrize(
    "url", ["https://bank.example@thief.example", "http://a:b@c.example", "https://[x", "http://", ""]
)
def test_an_address_that_misleads_is_text(url: str) -> None:
    """As one with a name before its place, or one that no browser would understand."""
    assert "href" not in safe_html(f"[x]({url})")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=25).map("".join))
def test_any_text_is_only_shown(text: str) -> None:
    """Whatever is put together of the signs of Markdown and HTML."""
    check(text)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=8).map("".join),
    st.sampled_from([payload for payload in PAYLOADS if len(payload) < 300]),
    st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=8).map("".join),
)
def test_a_payload_is_only_shown_wherever_it_stands(before: str, payload: str, after: str) -> None:
    """Whatever stands before it and behind."""
    check(f"{before}{payload}{after}")
