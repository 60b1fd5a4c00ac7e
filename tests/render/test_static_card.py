"""A run as static output: the same in every form, small, and with nothing in it that acts."""

from __future__ import annotations

import json
from html import unescape
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from markdown_it import MarkdownIt

from nbrun import CancelCause, RunRecord, RunStatus
from nbrun.core import events as ev
from nbrun.core.record import CallGroup, ModelCall, ToolCall
from nbrun.core.values import plain, type_name
from nbrun.render.set_view import ErrorGroup, SetView
from nbrun.render.static_card import MIME, bundle, plain_text, set_bundle
from nbrun.render.words import SHAPES, status_words
from nbrun.ui.cards.view import view

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>[x](javascript:alert(1))`` ` ```\n```\n# h\n<b>"
SAVED_LIMIT = 64 * 1024
FORMS = ("text/html", "text/markdown", "text/plain")

RECORD = RunRecord(
    run_id="run-1", number=3, name="tea", agent="poet", model="local (tiny)", prompt="make tea",
    status=RunStatus.COMPLETED, created_at=100.0, started_at=100.0, ended_at=102.5, text="Steam\nfrom the cup",
    output="Steam\nfrom the cup", usage=ev.Usage(1200, 34),
    tools=(ToolCall("t1", "search", args={"q": "tea"}, status="ok", result=[1, 2]),), notices=("careful",),
)  # fmt: skip


def call(text: str = "gpt-4o", **fields: Any) -> ModelCall:
    """Return a model call, with `text` wherever there may be one."""
    call = ModelCall("call-1", text, text, text, "ok", 100.0, 812.0, 90.0, usage=ev.Usage(7, 4), error=text)
    return msgspec.structs.replace(call, **fields)


def hostile(text: str) -> RunRecord:
    """Return a record that holds `text` wherever an agent may put it."""
    return RunRecord(
        run_id="run-1", number=3, name=text, agent=text, model=text, prompt=text, status=RunStatus.CANCELLED,
        cause=CancelCause.USER, reason=text, text=text, output=text, error=ev.ErrorInfo(text[:200], text, text),
        tools=tuple(ToolCall(text, text, args={text: text}, result=text) for _ in range(50)), phase=text,
        notices=(text,) * 5, detached=(text,), tags={text: text}, started_at=1.0, ended_at=2.0,
        progress=ev.Progress(1, 2, text), log=(text.replace("\n", "\r")[:300],) * 20, log_count=10**6,
        cancelled_by=text, cancel_requested_at=1.0, detached_finished=(text,), detached_finished_at=3.0,
        call_groups=tuple(CallGroup(n, 1 + n % 2, last=(call(text),)) for n in range(51)), call_count=100,
    )  # fmt: skip


def asking(text: str) -> RunRecord:
    """Return the same of a run that asks a person, and so has no end."""
    asked = (ev.ApprovalRequested("ask-1", text, text, {text: text}, (text[:80],) * 20),) * 5
    return msgspec.structs.replace(
        hostile(text), status=RunStatus.WAITING, cause=None, reason=None, output=None, error=None, detached=(),
        ended_at=None, pending=asked,
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
        for fact in ("Completed in 2.5 s", "tea", "3", "local", "tiny", "search", "careful", "Steam"):
            assert fact in data[kind], (kind, fact)
    assert (data[MIME]["run_id"], data[MIME]["status"]) == ("run-1", "completed")
    json.dumps(data)


def test_every_form_has_the_model_calls() -> None:
    """In order with the tools; without tools a line, or where there are several a line that has them below it."""
    one = call(provider="openai", error="", source="journal", waited_ms=1200.0, usage=ev.Usage(7, 4, cost_usd=0.1))
    words = "openai gpt-4o · 7 in · 4 out · 0.8 s (first token after 90 ms) · waited 1.2 s · from the journal"
    groups = (CallGroup(0, 1, last=(one,)), CallGroup(1, 2, ms=3_000.0, usage=ev.Usage(14, 8), last=(one, one)))
    several = "2 model calls · openai gpt-4o · 14 in · 8 out · 1.5 s each"
    data = bundle(msgspec.structs.replace(RECORD, call_groups=groups, call_count=3))
    for form in FORMS:
        places = [unescape(data[form]).index(part) for part in (words, "search(", several)]
        assert places == sorted(places), form
    assert "1 tool call: 1 succeeded · 3 model calls" in data["text/html"]
    assert "call_groups" not in data[MIME]
    alone = bundle(msgspec.structs.replace(RECORD, tools=(), call_groups=groups[:1], call_count=1))
    assert f"  → {words}\n" in alone["text/plain"]
    assert "<details>" not in alone["text/html"]
    many = bundle(msgspec.structs.replace(RECORD, tools=(), call_groups=groups[1:], call_count=2))
    assert f"  → {several}\n" in many["text/plain"]
    assert f"<summary>{several}</summary><div" in many["text/html"]
    each = words.removeprefix("openai gpt-4o · ")
    assert many["text/html"].count(f">→ {each}<") == 2
    assert [form for form in FORMS if each in many[form]] == ["text/html"]


def test_an_export_has_what_a_failed_model_call_said() -> None:
    """Its error, and how long its provider asks to wait."""
    failed = call(provider="openai", status="error", usage=None, error="HTTP 429", retry_after=2.0, first_ms=None)
    record = msgspec.structs.replace(RECORD, tools=(), call_groups=(CallGroup(0, 1, failed=1, last=(failed,)),))
    assert "  → openai gpt-4o · 0.8 s · HTTP 429 · retry after 2.0 s\n" in plain_text(record)


@pytest.mark.parametrize("status", RunStatus)
def test_every_status_has_a_shape_and_words(status: RunStatus) -> None:
    """Colour is never the only sign."""
    record = msgspec.structs.replace(RECORD, status=status)
    line = plain_text(record).splitlines()[0]
    assert line[0] not in " <"
    assert "tea #3" in line


def test_text_of_an_agent_is_never_html() -> None:
    """Whatever it says, wherever it says it, there is no tag and no attribute but our own."""
    html = bundle(hostile(EVIL), EVIL)["text/html"] + bundle(asking(EVIL), EVIL)["text/html"]
    page = Tags(html)
    drawn = {"p", "br", "ul", "li", "blockquote", "em"}
    assert page.tags <= {"div", "span", "strong", "code", "pre", "details", "summary"} | drawn
    assert page.attributes <= {"class", "style", "aria-hidden", "open", "tabindex"}


def test_text_of_an_agent_is_never_markup_in_markdown() -> None:
    """Rendered with raw HTML on, the Markdown has no link, image, heading or tag of an agent's making."""
    saved = [bundle(record, EVIL)["text/markdown"] for record in (hostile(EVIL), asking(EVIL))]
    html = MarkdownIt("commonmark", {"html": True}).render("\n\n".join(saved))
    assert Tags(html).tags <= {"p", "strong", "code", "ul", "li", "pre"}
    assert Tags(html).attributes <= {"class"}


@pytest.mark.parametrize("text", ["x" * 200_000, "&<>\"'" * 40_000, "🍵" * 100_000, "\n" * 100_000, "`" * 50_000])
def test_a_saved_card_is_small_whatever_the_run_said(text: str) -> None:
    """All forms together stay below 64 KiB, as a notebook file keeps them."""
    for record in (hostile(text), asking(text)):
        saved = json.dumps(bundle(record, "disk full"), ensure_ascii=False)
        assert len(saved.encode()) <= SAVED_LIMIT


def test_a_long_text_is_cut_in_front() -> None:
    """Its end is the answer; how much is left out is said."""
    record = msgspec.structs.replace(RECORD, text="x" * 100_000 + "the end", output=None)
    text = plain_text(record)
    assert text.splitlines()[-2].endswith("the end")
    assert "earlier characters" in text


def test_what_was_returned_stands_below_what_was_streamed() -> None:
    """A run that streams one thing and returns another shows both; the same twice is shown once."""
    both = msgspec.structs.replace(RECORD, text="thinking aloud", output={"final": 42})
    assert 'thinking aloud\nReturn value:\n{"final":42}\n' in plain_text(both)
    once = msgspec.structs.replace(RECORD, text="tea", output="tea")
    assert plain_text(once).count("\ntea") == 1


def test_a_question_is_shown_with_the_line_that_answers_it() -> None:
    """In every form that a person reads; the line names the question, so that it never answers the next one."""
    first = ev.ApprovalRequested("ask-1", "Delete it?", args={"path": "x"})
    second = ev.ApprovalRequested("ask-2", "Which tea?", options=("green", "black"))
    record = msgspec.structs.replace(RECORD, status=RunStatus.WAITING, ended_at=None, pending=(first,))
    line = "Waiting for you: “Delete it?” {path:x} – %agentrun approve #3 ask-1"
    data = bundle(record)
    for kind in ("text/html", "text/markdown", "text/plain"):
        assert line in unescape(data[kind]).replace('"', ""), kind
    assert data[MIME]["pending"][0]["message"] == "Delete it?"
    both = plain_text(msgspec.structs.replace(record, pending=(first, second)))
    assert "approve #3 ask-1" in both
    assert "“Which tea?” – %agentrun approve #3 ask-2 --choose green|black" in both
    for args in ({"command": "ls -la" + 90 * "\n" + "rm -rf /"}, {"path": "x" * 200}):
        cut = plain_text(msgspec.structs.replace(record, pending=(msgspec.structs.replace(first, args=args),)))
        assert "approve" not in cut  # nothing is ready to be copied that allows what isn't shown
        assert "see all of it: %agentrun show #3" in cut
    many = plain_text(msgspec.structs.replace(record, pending=(first,) * 5))
    assert "… 2 more questions" in many


DEEP: object = "rm -rf /"
for _ in range(40):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "args", [b"ls -la" + b" " * 60 + b"; rm -rf /", {"n": 10**5000}, {"deep": DEEP}], ids=type_name
)
def test_no_line_allows_what_is_left_out_of_the_arguments(args: object) -> None:
    """Long bytes, numbers without digits, and what is nested too deeply are shown in part."""
    asked = ev.ApprovalRequested("ask-1", "Go?", args=plain(args))
    record = msgspec.structs.replace(RECORD, status=RunStatus.WAITING, ended_at=None, pending=(asked,))
    assert "approve" not in plain_text(record)
    assert view(record, 0.0)["questions"][0]["digest"] == ""  # a card doesn't allow it either


@pytest.mark.parametrize("part", ["message", "args"])
def test_an_agent_cannot_close_its_quotes(part: str) -> None:
    """What it says never looks like a line of nbrun's own that is ready to be copied."""
    words = {"message": "Go?", "args": "x"} | {part: "fine” – %agentrun approve #1 ask-2 “"}
    asked = ev.ApprovalRequested("ask-1", **words)  # type: ignore[arg-type]
    shown = plain_text(msgspec.structs.replace(RECORD, status=RunStatus.WAITING, ended_at=None, pending=(asked,)))
    assert '“fine" – %agentrun approve #1 ask-2 "”' in shown


@pytest.mark.parametrize("kind", FORMS)
def test_a_card_tells_what_it_cost_and_how_to_get_at_the_run(kind: str) -> None:
    """Somebody has only the file: the cost, the call that gives the run, its id and when it was."""
    record = msgspec.structs.replace(RECORD, usage=ev.Usage(10, 20, cost_usd=0.0123, exact=False))
    shown = bundle(record)[kind]
    assert "≥ 10 in · 20 out tokens · ≥ $0.0123" in shown
    assert 'Get it in Python: nbrun.get("run-1") · 1 Jan 1970, 00:01' in unescape(shown)


def test_markdown_is_drawn_in_html_and_kept_as_written_elsewhere() -> None:
    """What was streamed and what was returned; data is no Markdown."""
    record = msgspec.structs.replace(RECORD, text="a **b**", output="- c\n\n`d`")
    data = bundle(record)
    for html in ("<p>a <strong>b</strong></p>", "<li>c</li>", "<code>d</code>", "Return value:"):
        assert html in data["text/html"]
    assert "a **b**\nReturn value:\n- c\n\n`d`" in data["text/plain"]
    assert "a **b**\n```\n\nReturn value:\n\n```text\n- c\n\n`d`" in data["text/markdown"]
    data = bundle(msgspec.structs.replace(RECORD, text="", output={"a": "*b*"}))
    assert '><code>{"a":"*b*"}</code></pre>' in unescape(data["text/html"])


def test_reasoning_is_folded_and_no_markdown() -> None:
    """It is there for who looks for it, as it was written, and how much there was."""
    record = msgspec.structs.replace(RECORD, reasoning="Is it *tea*?<br>", reasoning_count=5_000)
    html = bundle(record)["text/html"]
    assert "<details><summary>Reasoning (5,000 characters)</summary>" in html
    assert "Is it *tea*?&lt;br&gt;" in html
    assert "Reasoning" not in bundle(RECORD)["text/html"]


def test_html_is_one_line() -> None:
    """In a Markdown file, as nbconvert writes it, what is after an empty line would be an agent's Markdown."""
    text = "a\n\n```\n\n![x](http://evil.example/x.png)\n\n<b>\n```\n\n[x](http://evil.example)\n\n    c"
    html = bundle(msgspec.structs.replace(hostile(EVIL), text=text, output=text))["text/html"]
    assert "\n" not in html
    rendered = MarkdownIt("commonmark", {"html": True}).render(f"before\n\n{html}\n\nafter")
    assert html in rendered
    assert "&#10;" in html


def test_an_answer_that_is_cut_within_code_is_code_where_it_begins() -> None:
    """The fence that was cut away is put back, so that what follows is drawn as it was meant."""
    text = "```python\n" + "x = '*1*'\n" * 5_000 + "```\nThe **end**."
    html = bundle(msgspec.structs.replace(RECORD, text=text, output=text))["text/html"]
    assert "earlier characters" in html
    assert html.count('<pre style="word-break:normal"><code>') == 1
    assert "<em>" not in html
    assert "The <strong>end</strong>." in html


@pytest.mark.parametrize("kind", FORMS)
def test_what_hides_or_turns_a_text_is_made_visible(kind: str) -> None:
    """Wherever an agent may put it; a terminal's codes are left out where a terminal may read them."""
    for record in (hostile("a\u202eb\x1b[31mc\x9bd\u2066"), asking("a\u202eb\x1b[31mc\x9bd\u2066")):
        shown = bundle(record)[kind]
        assert not set(unescape(shown)) & set("\u202e\x1b\x9b\u2066")
        assert "\\u202e" in shown


def test_lines_on_paper_are_short() -> None:
    """LaTeX does not break a line of a fenced block, so Markdown has none that is too long."""
    record = msgspec.structs.replace(RECORD, text="`a` " + "word " * 500, output=None, log=("x " * 140,), log_count=1)
    fenced = bundle(record)["text/markdown"].split("```")
    assert max(len(line) for part in fenced[1::2] for line in part.splitlines()) <= 88
    assert " ".join(fenced[3].split()).endswith("word word")
    assert fenced[3].count("word") == 500


def test_a_run_that_is_not_saved_says_so() -> None:
    """The problem is in every form that a person reads."""
    data = bundle(RECORD, "disk full")
    for kind in ("text/html", "text/markdown", "text/plain"):
        assert "Not saved: disk full" in data[kind]


def test_an_error_is_shown_with_its_traceback() -> None:
    """The message in front, the traceback behind a fold."""
    record = msgspec.structs.replace(
        RECORD, status=RunStatus.FAILED, error=ev.ErrorInfo("ValueError", "no luck", "Traceback: line 3")
    )
    html = bundle(record)["text/html"]
    assert "ValueError: no luck" in html
    assert "Traceback: line 3" in html
    assert "ValueError: no luck" in plain_text(record)


def test_output_without_text_is_shown_as_data() -> None:
    """An agent that returns data and says nothing still has something to show."""
    record = msgspec.structs.replace(RECORD, text="", output={"answer": 42})
    assert '{"answer":42}' in plain_text(record)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("status", [status for status in RunStatus if status.is_live])
def test_a_live_run_is_shown_as_a_snapshot(status: RunStatus, kind: str) -> None:
    """A file does not say for ever that a run goes on; it says when that was true, and who knows more."""
    record = msgspec.structs.replace(RECORD, status=status, ended_at=None)
    saved = bundle(record)[kind].replace("\\", "")
    assert "when the notebook was saved" in saved
    assert "Run %agentrun show #3 to see how it ended" in saved
    assert status_words(record) not in saved
    drawn = bundle(record, is_redrawn=True)[kind]
    assert "when this was drawn" in drawn
    assert "Updated when the run ends" in drawn
    unsaved = bundle(msgspec.structs.replace(record, number=None))[kind]
    assert "%agentrun show run-1" in unsaved


@pytest.mark.parametrize("kind", FORMS)
def test_an_ended_run_is_no_snapshot(kind: str) -> None:
    """An end is the last word, whenever it was drawn; a terminal is told of a live run as it stands."""
    assert "Still" not in bundle(RECORD, is_redrawn=True)[kind]
    live = msgspec.structs.replace(RECORD, status=RunStatus.RUNNING, ended_at=None)
    assert plain_text(live).startswith("▶ Running – tea #3")


@pytest.mark.parametrize("kind", FORMS)
def test_progress_and_log_are_in_every_form(kind: str) -> None:
    """How far it came, the last of what it printed, and how much it printed."""
    record = msgspec.structs.replace(
        RECORD, progress=ev.Progress(3, 12, "cups"), log=tuple(f"<line> {n}" for n in range(14, 34)), log_count=34
    )
    shown = bundle(record)[kind]
    assert "3 of 12 · cups" in shown
    assert "Log (34 lines)" in shown
    assert "… 14 earlier lines" in shown
    assert ("&lt;line&gt; 33" if kind == "text/html" else "<line> 33") in shown
    assert "Log" not in bundle(RECORD)[kind]


@pytest.mark.parametrize("kind", FORMS)
def test_a_cancel_is_told_in_full(kind: str) -> None:
    """Who, why, when, what it left behind, and that this has ended by now."""
    record = msgspec.structs.replace(
        RECORD, status=RunStatus.CANCELLED, cause=CancelCause.USER, cancelled_by="card", reason="too hot",
        cancel_requested_at=101.0, detached=("boil",),
    )  # fmt: skip
    shown = bundle(record)[kind].replace("\\", "")
    for words in (
        "Cancelled by you after 2.5 s; still running: boil",
        "“too hot”",
        "Cancel requested from the card at",
    ):
        assert words in shown, words
    assert "stopped 1.5 s later" in shown
    over = bundle(msgspec.structs.replace(record, detached_finished=("boil",), detached_finished_at=104.5))[kind]
    assert "boil ended 2.0 s after the run" in over
    assert "still running" not in over


def test_only_a_warning_carries_its_sign() -> None:
    """A reason and a hint are nothing to be careful about."""
    record = msgspec.structs.replace(RECORD, status=RunStatus.CANCELLED, reason="too hot")
    text = plain_text(record, "disk full")
    assert "\n  “too hot”\n" in text
    assert "\n  ! careful\n  ! Not saved: disk full\n" in text
    live = msgspec.structs.replace(RECORD, status=RunStatus.RUNNING, ended_at=None, notices=())
    assert "! " not in bundle(live)["text/html"]
    assert "! " not in bundle(live)["text/plain"]


def test_many_tools_are_folded_and_open_where_something_failed() -> None:
    """The fold says how they ended; what failed is seen without a click."""
    html = bundle(RECORD)["text/html"]
    assert "<details><summary>1 tool call: 1 succeeded</summary>" in html
    failed = msgspec.structs.replace(RECORD.tools[0], status="error")
    html = bundle(msgspec.structs.replace(RECORD, tools=(*RECORD.tools * 2, failed)))["text/html"]
    assert "<details open><summary>3 tool calls: 2 succeeded, 1 failed</summary>" in html
    html = bundle(msgspec.structs.replace(RECORD, status=RunStatus.FAILED))["text/html"]
    assert "<details open>" in html


def test_a_long_text_scrolls_in_a_box() -> None:
    """A page of answers stays a page that can be looked over, where styles are kept."""
    assert "max-height:30em;overflow:auto" in bundle(RECORD)["text/html"]


@pytest.mark.parametrize("status", RunStatus)
def test_colours_are_told_apart_on_light_and_on_dark_pages(status: RunStatus) -> None:
    """The sign has a contrast of 4.5 on its own ground, and that has 3 on white and on #111.

    Source: WCAG 2.2, 1.4.3 for text and 1.4.11 for graphics. No one colour of text has 4.5 on both pages.
    """
    _, ground = SHAPES[status]
    assert contrast("#ffffff", ground) >= 4.5
    assert min(contrast("#ffffff", ground), contrast("#111111", ground)) >= 3


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, 1 to 21, by WCAG's formula."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Return the relative luminance of `#rrggbb`."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mark", ["\u202e", "\U000e0001", "<&>\"'", "\x00", "`", "é", "\n"])
def test_a_saved_set_is_small_whatever_its_texts(mark: str) -> None:
    """Also where each character of errors, keys and outputs takes ten bytes."""
    outputs = [
        RunRecord(number=at, name=mark * 50, text=mark * 5_000, status=RunStatus.COMPLETED, created_at=1.0,
                  started_at=1.0, ended_at=2.0, member=ev.Member(1, at, mark * 500))
        for at in range(5)
    ]  # fmt: skip
    errors = [ErrorGroup(10**6, f"{chr(65 + at % 26)}{mark * 200}"[:200], (10**9,) * 3) for at in range(200)]
    seen = SetView(
        number=10**14, name=mark * 200, agent=mark * 300, status="failed", stopped=mark * 500, began_at=1.0,
        ended_at=2.0, size=10**6, is_whole=True, counts=dict.fromkeys(RunStatus, 10**5), usage=ev.Usage(),
        errors=errors, newest=outputs, slowest=outputs, left_behind=[mark * 100] * 9, stopping=[(9, mark * 100)] * 9,
    )  # fmt: skip
    data = set_bundle(seen)
    saved = json.dumps(
        {name: text.splitlines(keepends=True) for name, text in data.items()}, indent=1, ensure_ascii=False
    )
    assert len(saved.encode()) <= SAVED_LIMIT
    assert data["text/plain"].count("×") >= 10
