"""Encoding: any value becomes data that can be stored, and nothing that it does can end a run."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import itertools
import math
import uuid
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given, settings, strategies as st

from nbrun.core.text import clean_text, printable
from nbrun.core.values import REPR_KEY, TYPE_KEY, Plain, is_simple, marked_repr, plain, readable, revived, shown, sized


class Colour(enum.Enum):
    """An enum."""

    RED = "red"


@dataclasses.dataclass
class Node:
    """A node that knows its parent, as trees often do."""

    name: str
    parent: Node | None = None
    children: list[Node] = dataclasses.field(default_factory=list)


class Point(msgspec.Struct):
    """A struct."""

    x: int
    y: object


class Model(pydantic.BaseModel):
    """A pydantic model."""

    name: str
    when: dt.date


class Hostile:
    """Raises wherever it is touched."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __str__(self) -> str:
        raise RuntimeError("no str")

    def __hash__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ("tea", "tea"),
        (Colour.RED, "red"),
        (dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC), "2026-01-02T03:04:00+00:00"),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (dt.timedelta(minutes=1.5), 90.0),
        (PurePosixPath("a/b"), "a/b"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ({"a": (1, {2})}, {"a": [1, [2]]}),
        ({1: "one", None: "none"}, {"1": "one", "None": "none"}),
        ({"b", "a"}, ["a", "b"]),
        (Point(1, [2]), {"x": 1, "y": [2]}),
        (Model(name="n", when=dt.date(2026, 1, 2)), {"name": "n", "when": "2026-01-02"}),
        (Node("leaf"), {"name": "leaf", "parent": None, "children": []}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_common_values_have_a_plain_form(value: object, expected: object) -> None:
    """Containers, models, dates and paths become JSON-like data."""
    assert plain(value) == expected


def test_what_has_no_plain_form_is_marked_as_its_repr() -> None:
    """A reader can tell a stand-in from the value itself."""
    assert plain(object) == {TYPE_KEY: "type", REPR_KEY: "<class 'object'>"}
    assert plain(2**64) == {TYPE_KEY: "int", REPR_KEY: str(2**64)}


def test_a_long_repr_is_cut_and_says_so() -> None:
    """A stand-in does not carry megabytes."""
    marked = plain(slice(0, 9**3_000))
    assert isinstance(marked, dict)
    text = marked[REPR_KEY]
    assert isinstance(text, str)
    assert len(text) < 2_100
    assert text.endswith("characters)")


@pytest.mark.parametrize(
    "value", [Hostile(), [Hostile()], {Hostile(): 1}, {Hostile()}, Node("x", Hostile())],  # type: ignore[arg-type]
    ids=["itself", "listed", "key", "set", "field"],
)  # fmt: skip
def test_a_hostile_value_raises_nothing(value: object) -> None:
    """Whatever a value's own methods raise, there is something to store."""
    msgspec.msgpack.encode(plain(value))


def test_a_value_that_contains_itself_ends() -> None:
    """A list within itself is cut, not followed for ever."""
    value: list[Any] = [1]
    value.append(value)
    msgspec.msgpack.encode(plain(value))


def test_nodes_that_know_each_other_end_soon() -> None:
    """A tree whose nodes know their parents is stored in time that grows with its size, not with its paths."""
    root = Node("root")
    root.children = [Node(f"child {number}", root) for number in range(20)]
    stored = plain(root)
    assert isinstance(stored, dict)
    children = stored["children"]
    assert isinstance(children, list)
    assert [child["name"] for child in children if isinstance(child, dict)] == [
        f"child {number}" for number in range(20)
    ]


def test_shared_parts_do_not_multiply_without_end() -> None:
    """Forty lists that each hold the next one twice have a trillion paths: what is too much is left out."""
    value: list[Any] = ["end"]
    for _ in range(40):
        value = [value, value]
    plain(value)


def repr_head(value: object) -> str:
    """Return what a case is called."""
    return type(value).__name__


class Endless(Mapping[str, int]):
    """Says that it is empty, and has items for ever."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return map(str, itertools.count())

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(
    "value", [["tea"] * 7_000, {str(n): n for n in range(7_000)}, [["a", 1]] * 4_000, Endless()], ids=repr_head
)
def test_each_part_counts(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts and numbers, too; what is left out is said at its place."""
    monkeypatch.setattr("nbrun.core.values.MAX_PARTS", 5_000)
    stored, size = sized(value)
    assert isinstance(stored, list | dict)
    assert 1_500 < len(stored) <= 5_001
    last = stored[-1] if isinstance(stored, list) else stored["…"]
    assert "too many parts" in str(last)
    assert size >= 16 * len(stored)


def test_lists_of_numbers_are_stored_whole() -> None:
    """They are copied at once, so a few million of them hold nobody up."""
    numbers = [*range(1_000_000), 0.5, None, True]
    assert plain(numbers) == numbers
    assert plain([1, 2**63]) == [1, marked_repr(2**63)]
    assert plain({3, 1, 2}) == [1, 2, 3]


def test_a_lone_surrogate_becomes_letters() -> None:
    """Text that UTF-8 cannot hold is stored as its escape."""
    assert clean_text("a\ud800b") == "a\\ud800b"
    assert clean_text("a\ud83d\ude00\ud83d") == "a😀\\ud83d"
    assert plain({"\ud800": "\ud800"}) == {"\\ud800": "\\ud800"}


def test_a_subclass_of_a_simple_type_becomes_that_type() -> None:
    """What is stored is exactly text, a whole number or a float."""

    class Text(str):
        __slots__ = ()

    class Number(int):
        pass

    class Fraction(float):
        pass

    assert type(plain(Text("é"))) is str
    assert type(plain(Number(3))) is int
    assert type(plain(Fraction(0.5))) is float


def test_shown_is_one_short_line() -> None:
    """A value is shown on one line, cut at the limit, and a stand-in by its repr."""
    assert shown("a\n  b") == "a b"
    assert shown("x" * 300, 10) == "x" * 9 + "…"
    assert shown({"a": [1, None]}) == '{"a":[1,null]}'
    assert shown(plain(object)) == "<class 'object'>"
    assert shown(math.inf) == "inf"


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary()
    | st.dates() | st.timedeltas() | st.uuids() | st.sampled_from(Colour) | st.builds(Hostile)
    | st.complex_numbers() | st.decimals()
)  # fmt: skip
HASHABLE = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats()
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.frozensets(HASHABLE, max_size=4)
        | st.builds(Point, st.integers(), inner)
        | st.builds(Node, st.text(), inner, st.lists(inner, max_size=2))
    ),
    max_leaves=12,
)


@given(VALUES)
@settings(max_examples=150, deadline=None)
def test_any_value_can_be_stored_and_read_back(value: object) -> None:
    """Encoding raises nothing; what is decoded equals the plain form, and that is its own plain form."""
    stored = plain(value)
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(stored))
    # By repr, because NaN is not equal to itself.
    assert repr(decoded) == repr(stored)
    assert repr(plain(stored)) == repr(stored)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain", "plain"),
        ("\x1b[1;31mred\x1b[0m \x9b2Kgone", "red gone"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x07", "link"),
        ("\x1b(Bcharset\x1b=", "charset"),
        ("\x1b]0;no end", "\u241b]0;no end"),
        ("a\x08b\x00c\x7f", "a\u2408b\u2400c\u2421"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_printable_text_has_no_codes_and_hides_nothing(text: str, seen: str) -> None:
    """A code that is whole is left out; what only begins like one is shown."""
    assert printable(text) == seen


def test_bytes_come_back() -> None:
    """They are kept in letters, wherever they stand; for a person they are short."""
    value = {"png": b"\x89PNG", "many": [bytearray(b"x" * 10_000), memoryview(b"y")]}
    kept = plain(value)
    assert kept == msgspec.json.decode(msgspec.json.encode(kept))
    assert revived(kept) == {"png": b"\x89PNG", "many": [b"x" * 10_000, b"y"]}
    assert "b'\\\\x89PNG'" in readable(kept)
    assert len(readable(kept)) < 200
    odd: Plain = {TYPE_KEY: "bytes", "$base64": "no base64!"}  # somebody else's file
    assert revived(odd) == odd


def test_text_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One long text that is in a value many times would be stored many times; the first parts stay."""
    monkeypatch.setattr("nbrun.core.values.MAX_BYTES", 10_000)
    stored = plain(["first", *["x" * 4_000] * 1_000])
    assert isinstance(stored, list)
    assert stored[:3] == ["first", "x" * 4_000, "x" * 4_000]
    assert len(msgspec.msgpack.encode(stored)) < 200_000
    assert "too large" in str(stored[3])
    assert "too large" in str(plain([b"x" * 9_000]))


def test_keys_that_read_alike_stay_apart() -> None:
    """No value is lost to another one whose key has the same text."""
    assert plain({1: "a", "1": "b", 1.5: "c", "1 (2)": "d"}) == {"1": "a", "1 (2)": "b", "1.5": "c", "1 (2) (2)": "d"}
    stored = plain({Hostile(): "paid for", "x": 1})
    assert isinstance(stored, dict)
    assert list(stored.values()) == ["paid for", 1]


class Claims:
    """Claims to be a text."""

    @property  # type: ignore[misc]  # it is one that can only be read
    def __class__(self) -> type:
        return str


class HashlessType(type):
    """A type that cannot be looked up."""

    def __hash__(cls) -> int:
        raise RuntimeError("no hash")


class Hashless(metaclass=HashlessType):
    """An instance of it."""


class Partly(Mapping[str, int]):
    """Gives some items, then an error."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        yield "first"
        raise RuntimeError("no more")

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize("value", [Claims(), Hashless(), Partly(), Node("x", Hostile()), Hostile()], ids=repr_head)  # type: ignore[arg-type]
@pytest.mark.parametrize("wrap", [lambda value: ["kept", value], lambda value: {"a": "kept", "b": value}])
def test_a_part_that_cannot_be_read_costs_only_itself(value: Any, wrap: Any) -> None:
    """What is beside it stays, and nothing of the value is asked for its class."""
    assert "kept" in str(plain(wrap(value)))
    assert "first" in str(plain(Partly()))


def test_no_code_is_run_where_it_must_not_be() -> None:
    """Python's own types are read all the same; the rest says why it is left out."""
    day, raised = dt.date(2026, 1, 2), Hostile()
    value = {"a": [1, "x", (2.5, None)], 3: {4}, "day": day, "odd": raised, "node": Node("leaf")}
    stored, _ = sized(value, no_code="it took too long")
    assert isinstance(stored, dict)
    assert {**stored, "odd": 0, "node": 0} == {
        "a": [1, "x", [2.5, None]], "3": [4], "day": "2026-01-02", "odd": 0, "node": 0,
    }  # fmt: skip
    assert str(stored).count("<left out: it took too long>") == 2


def test_what_is_simple_is_small_and_pythons_own() -> None:
    """Only that is read where other runs wait."""
    circle: list[Any] = []
    circle.append(circle)
    assert all(map(is_simple, (None, "tea", 3, 2.5, b"x", [1, {"a": ("b", None)}])))
    class_of_its_own = type("Text", (str,), {})
    for value in (
        circle,
        ["x"] * 1_000,
        "x" * 200_000,
        {n: n for n in range(10**6)},
        {1},
        class_of_its_own(),
        Hostile(),
    ):
        assert not is_simple(value)
