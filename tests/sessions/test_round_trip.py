"""From an agent to the file and back: what is read is what was sent, whatever it was."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings, strategies as st

from nbrun import NotebookSession, RunContext
from nbrun.core import events as ev
from nbrun.core.record import fold
from nbrun.core.redaction import Redactor
from nbrun.core.text import clean_text
from nbrun.core.values import plain
from nbrun.store import queries as reader
from tests.fakes.agents import BOUND_S

SECRET = "sk-tea-0123456789"

# Any text that Python can hold: also NUL, lone surrogates, and signs outside of the basic plane.
LONE = st.characters(categories=["Cs"])  # half of a pair: no UTF-8 holds it
TEXT = st.text(st.characters(codec=None) | LONE, max_size=20) | st.sampled_from(
    ["", "\0", "a\0b", "\ud800", "x\udfffy", "\U0010ffff", "e\u0301", "\u202e", "\ufeff", "'; DROP TABLE runs"]
)
VALUE: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
KIND = TEXT.filter(lambda kind: kind not in ev.TYPES)
DATA: st.SearchStrategy[ev.EventData] = st.one_of(
    TEXT.map(ev.TextDelta),
    TEXT.map(ev.TextDelta),  # oftener: they share rows
    TEXT.map(ev.ReasoningDelta),
    TEXT.map(ev.RunPhase),
    st.builds(ev.Log, TEXT, st.sampled_from(["info", "warning", "stdout"])),
    st.builds(ev.Message, TEXT, TEXT),
    st.builds(ev.ToolStarted, TEXT, TEXT, TEXT, VALUE),
    st.builds(ev.ToolFinished, TEXT, st.just("ok"), VALUE, st.floats(0, 1e6)),
    st.builds(ev.Progress, st.floats(), st.none() | st.floats(), TEXT),
    st.builds(ev.Custom, TEXT, VALUE),
    st.builds(ev.Raw, TEXT, VALUE),
    st.builds(ev.Unknown, KIND, VALUE),
)


def cleaned(value: Any) -> Any:
    """Return what the intake makes of a value that cannot be written as it is."""
    if isinstance(value, msgspec.Struct):
        fields = {name: cleaned(getattr(value, name)) for name in value.__struct_fields__}
        return type(value)(**fields)
    return plain(value)


def whole(items: list[tuple[ev.EventData, str | None]]) -> list[tuple[ev.EventData, str | None]]:
    """Return these events, half a character at the end of a text put before the next one of its stream."""
    halves: dict[type[ev.TextDelta | ev.ReasoningDelta], str] = {}
    made: list[tuple[ev.EventData, str | None]] = []
    for item, parent in items:
        if isinstance(item, ev.TextDelta | ev.ReasoningDelta) and (halves or not item.text.isascii()):
            text = halves.pop(type(item), "") + item.text
            if "\ud800" <= text[-1:] <= "\udbff":
                halves[type(item)] = text[-1]
                text = text[:-1]
            if text:
                made.append((type(item)(text), parent))
        else:
            made.append((item, parent))
    return made + [(kind(half), None) for kind, half in reversed(halves.items())]


def stored_form(data: ev.EventData) -> tuple[str, bytes]:
    """Return an event's type and content as they should be in the file."""
    try:
        return clean_text(ev.type_of(data)), ev.encode_data(data)
    except (TypeError, ValueError, OverflowError):
        made: ev.EventData = cleaned(data)
        return ev.type_of(made), ev.encode_data(made)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookSession]:
    """One session for all examples: each is a run of its own."""
    with NotebookSession(store=tmp_path_factory.mktemp("trip") / "all.db") as made:
        yield made


def sent(
    session: NotebookSession, items: list[ev.EventData], pauses: bool, parents: Sequence[str | None] = (None,)
) -> list[ev.RunEvent]:
    """Have an agent send these, below these tools in turn; return its log as another connection reads it.

    Its record, whole and stored, is the fold of that log; of a long text, memory may have the end only.
    """

    async def agent(prompt: str, run: RunContext) -> None:
        for number, item in enumerate(items):
            run.send(item, parent=parents[number % len(parents)])
            if pauses:
                await asyncio.sleep(0)

    run = session.start(agent)
    assert run.wait(BOUND_S)
    assert run.status == "completed"
    assert run.live is not None
    assert run.live.problem is None
    assert run.number is not None
    path = session.store.path
    assert path is not None
    with closing(sqlite3.connect(path)) as connection:
        events = reader.read_events(connection, run.number)
        assert [event.seq for event in events] == list(range(len(events)))
        folded = msgspec.msgpack.encode(fold(events))  # as bytes: NaN is not equal to itself
        assert folded == msgspec.msgpack.encode(run.whole_record)
        assert folded == msgspec.msgpack.encode(reader.read_record(connection, run.number))
    return events


@given(
    items=st.lists(DATA, max_size=40), pauses=st.booleans(), parents=st.lists(st.none() | TEXT, min_size=1, max_size=3)
)
@example(items=[ev.Unknown("\ud800", {"\udfff": "\0"})], pauses=False, parents=[None])
@example(items=[ev.Unknown("\ud800", 1)], pauses=False, parents=["\udfff"])
@example(
    items=[ev.Unknown("\0", 2**63), ev.Custom("big", 2**64), ev.Custom("nan", math.nan)], pauses=True, parents=[None]
)
@settings(max_examples=150, deadline=None)
def test_what_is_read_is_what_was_sent(
    session: NotebookSession, items: list[ev.EventData], pauses: bool, parents: list[str | None]
) -> None:
    """Any events in any order: each is in the file once, in its place, with all that it said."""
    events = sent(session, items, pauses, parents)
    found = [(event.type, ev.encode_data(event.data)) for event in events]
    assert [kind for kind, _ in found[:2]] == ["run.created", "run.started"]
    below = [None if parent is None else clean_text(parent) for parent in parents]
    due = whole([(item, below[number % len(below)]) for number, item in enumerate(items)])
    assert found[2 : 2 + len(due)] == [stored_form(item) for item, _ in due]
    assert found[-1][0] == "run.completed"
    assert [event.parent for event in events[2 : 2 + len(due)]] == [parent for _, parent in due]


@pytest.mark.parametrize("size", [0, 1, 16, 1_000, 65_536, 400_000, 1_000_000, 10_000_000])
def test_payloads_of_any_size_come_back(session: NotebookSession, size: int) -> None:
    """Text up to 10 MB, and data of types that nbrun does not know; of others what is below half a megabyte."""
    text = ("0123456789 tea ü" * (size // 16 + 1))[:size]
    data: list[ev.EventData] = [
        ev.TextDelta(text), ev.TextDelta(text), ev.ReasoningDelta(text), ev.Unknown("oracle.spoke", [text])
    ]  # fmt: skip
    if size < 450_000:
        data += [ev.Log(text), ev.Message("user", text), ev.Custom("value", {"text": text})]
    # On a busy machine so much text may hold up the loop for so long that the host warns of it.
    found = [event.data for event in sent(session, data, pauses=False)]
    found = [one for one in found if not (isinstance(one, ev.Log) and one.text.startswith("blocks the event loop"))]
    assert found[2 : 2 + len(data)] == data


# No piece lacks one byte only: the next row in the file may happen to begin with it.
PIECES = st.sampled_from([SECRET, SECRET[:8], SECRET[8:], SECRET[:-5], "tea ", "\ud800", "\0"])


@given(texts=st.lists(st.lists(PIECES, max_size=4).map("".join), max_size=20), pauses=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_secret_is_in_no_text_however_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], pauses: bool
) -> None:
    """A stream in pieces is stored as the redacted whole of it; no byte of the secret's is in the file."""
    path = tmp_path_factory.mktemp("secret") / "runs.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEA_API_KEY", SECRET)
        with NotebookSession(store=path) as session:
            items = [*map(ev.TextDelta, texts), ev.Custom("all", ["".join(texts)])]
            events = sent(session, items, pauses)
    whole = Redactor({SECRET: "TEA_API_KEY"}).text(clean_text("".join(texts)))
    said = "".join(event.data.text for event in events if isinstance(event.data, ev.TextDelta))
    assert said == whole
    (custom,) = [event.data for event in events if isinstance(event.data, ev.Custom)]
    assert custom.value == [whole]
    assert SECRET.encode() not in path.read_bytes()
