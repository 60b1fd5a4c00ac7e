"""A run as static output: the same in every form, small, and with nothing in it that acts."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import msgspec
import pytest
from markdown_it import MarkdownIt

from nbrun import CancelCause, RunRecord, RunStatus
from nbrun import events as ev
from nbrun.record import ToolCall
from nbrun.ui.snapshot import MIME, bundle, plain_text

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>[x](javascript:alert(1))`` ` ```\n```\n# h\n<b>"
SAVED_LIMIT = 64 * 1024

RECORD = RunRecord(
    run_id="run-1", number=3, name="tea", agent="poet", model="local (tiny)", prompt="make tea",
    status=RunStatus.COMPLETED, created_at=100.0, started_at=100.0, ended_at=102.5, text="Steam\nfrom the cup",
    output="Steam\nfrom the cup", usage=ev.Usage(1200, 34),
    tools=(ToolCall("t1", "search", args={"q": "tea"}, status="ok", result=[1, 2]),), notices=("careful",),
)  # fmt: skip


def hostile(text: str) -> RunRecord:
    """Return a record that holds `text` wherever an agent may put it."""
    return RunRecord(
        run_id="run-1", number=3, name=text, agent=text, model=text, prompt=text, status=RunStatus.CANCELLED,
        cause=CancelCause.USER, reason=text, text=text, output=text, error=ev.ErrorInfo(text[:200], text, text),
        tools=tuple(ToolCall(text, text, args={text: text}, result=text) for _ in range(50)), phase=text,
        notices=(text,) * 5, detached=(text,), tags={text: text}, started_at=1.0, ended_at=2.0,
    )  # fmt: skip


class Tags(HTMLParser):
    """Collects the tags and attributes of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note them."""
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def test_every_form_says_the_same() -> None:
    """Status in words, number, name, model, tools, notices and text are in each of them."""
    data = bundle(RECORD)
    assert set(data) == {"text/html", "text/markdown", "text/plain", MIME}
    for kind in ("text/html", "text/markdown", "text/plain"):
        for fact in (
            "Completed in 2.5 s",
            "tea",
            "3",
            "local",
            "tiny",
            "search",
            "careful",
            "Steam",
        ):
            assert fact in data[kind], (kind, fact)
    assert (data[MIME]["run_id"], data[MIME]["status"]) == ("run-1", "completed")
    json.dumps(data)


@pytest.mark.parametrize("status", RunStatus)
def test_every_status_has_a_shape_and_words(status: RunStatus) -> None:
    """Colour is never the only sign."""
    record = msgspec.structs.replace(RECORD, status=status)
    line = plain_text(record).splitlines()[0]
    assert line[0] not in " <"
    assert "tea #3" in line


def test_text_of_an_agent_is_never_html() -> None:
    """Whatever it says, wherever it says it, there is no tag and no attribute but our own."""
    page = Tags(bundle(hostile(EVIL), EVIL)["text/html"])
    assert page.tags <= {"div", "span", "strong", "code", "pre", "details", "summary"}
    assert page.attributes <= {"class", "style", "aria-hidden"}


def test_text_of_an_agent_is_never_markup_in_markdown() -> None:
    """Rendered with raw HTML on, the Markdown has no link, image, heading or tag of an agent's making."""
    html = MarkdownIt("commonmark", {"html": True}).render(
        bundle(hostile(EVIL), EVIL)["text/markdown"]
    )
    assert Tags(html).tags <= {"p", "strong", "code", "ul", "li", "pre"}
    assert Tags(html).attributes <= {"class"}


@pytest.mark.parametrize(
    "text", ["x" * 200_000, "&<>\"'" * 40_000, "🍵" * 100_000, "\n" * 100_000, "`" * 50_000]
)
def test_a_saved_card_is_small_whatever_the_run_said(text: str) -> None:
    """All forms together stay below 64 KiB, as a notebook file keeps them."""
    assert (
        len(json.dumps(bundle(hostile(text), "disk full"), ensure_ascii=False).encode())
        <= SAVED_LIMIT
    )


def test_a_long_text_is_cut_in_front() -> None:
    """Its end is the answer; how much is left out is said."""
    record = msgspec.structs.replace(RECORD, text="x" * 100_000 + "the end", output=None)
    text = plain_text(record)
    assert text.endswith("the end")
    assert "earlier characters" in text


def test_what_was_returned_stands_below_what_was_streamed() -> None:
    """A run that streams one thing and returns another shows both; the same twice is shown once."""
    both = msgspec.structs.replace(RECORD, text="thinking aloud", output={"final": 42})
    assert plain_text(both).endswith('thinking aloud\n\n→ {"final":42}')
    once = msgspec.structs.replace(RECORD, text="tea", output="tea")
    assert plain_text(once).count("\ntea") == 1


def test_a_run_that_is_not_saved_says_so() -> None:
    """The problem is in every form that a person reads."""
    data = bundle(RECORD, "disk full")
    for kind in ("text/html", "text/markdown", "text/plain"):
        assert "not saved: disk full" in data[kind]


def test_an_error_is_shown_with_its_traceback() -> None:
    """The message in front, the traceback behind a fold."""
    record = msgspec.structs.replace(
        RECORD,
        status=RunStatus.FAILED,
        error=ev.ErrorInfo("ValueError", "no luck", "Traceback: line 3"),
    )
    html = bundle(record)["text/html"]
    assert "ValueError: no luck" in html
    assert "Traceback: line 3" in html
    assert "ValueError: no luck" in plain_text(record)


def test_output_without_text_is_shown_as_data() -> None:
    """An agent that returns data and says nothing still has something to show."""
    record = msgspec.structs.replace(RECORD, text="", output={"answer": 42})
    assert '{"answer":42}' in plain_text(record)
