"""Names in braces: looked up, never evaluated, and all other braces stay."""

from __future__ import annotations

import types

import pytest
from hypothesis import given, settings, strategies as st

from nbrun.core.errors import BadOption
from nbrun.ui.magics.parsing import interpolate

NAMES = {
    "name": "tea",
    "number": 3,
    "items": ["a", "b"],
    "table": {"key": "value", "a b": 1, 2: "two"},
    "thing": types.SimpleNamespace(attr=types.SimpleNamespace(deep=[{"x": "found"}]), _secret="no"),
    "braces": "{name}",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("about {name}", "about tea"),
        ("{name}{number}", "tea3"),
        ("{items[0]} {items[-1]}", "a b"),
        ("{table['key']} {table[\"a b\"]} {table[2]}", "value 1 two"),
        ("{thing.attr.deep[0]['x']}", "found"),
        ("{{name}}", "{name}"),
        ("{braces}", "{name}"),
    ],
)
def test_names_attributes_and_indexes_are_replaced(text: str, expected: str) -> None:
    """A value is put in as its `str`, and is not looked through again."""
    assert interpolate(text, NAMES) == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"json": 1}', "{}", "{ name }", "{name!r}", "{name:>10}", "{1}", "{name()}", "{name + 1}", "\\frac{1}{2}",
        "{thing._secret}", "{thing.__class__}", "{__import__('os')}", "{items[0:1]}", "{a b}", "{name", "name}",
    ],
)  # fmt: skip
def test_all_other_braces_stay(text: str) -> None:
    """JSON, LaTeX, calls, formats and private attributes are text."""
    assert interpolate(text, NAMES) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{nobody}", "name 'nobody' is not defined"),
        ("{thing.nothing}", r"\.nothing not found \(AttributeError\)"),
        ("{items[9]}", r"\[9\] not found \(IndexError\)"),
        ("{table['no']}", r"not found \(KeyError\)"),
        ("{number[0]}", r"not found \(TypeError\)"),
    ],
)
def test_what_does_not_exist_is_one_line_with_the_mend(text: str, words: str) -> None:
    """The message names the expression, and how to keep the braces."""
    with pytest.raises(BadOption, match=words) as caught:
        interpolate(text, NAMES)
    assert "{{" in str(caught.value)
    assert "--no-interpolate" in str(caught.value)


class Trap(dict[str, object]):
    """A namespace in which every name exists, so that nothing is left out for want of it."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> object:
        return f"<{key}>"


@given(st.text(st.sampled_from("{}[]().'\"_ax0:! -"), max_size=30))
@settings(max_examples=200, deadline=None)
def test_nothing_but_plain_names_is_ever_replaced(text: str) -> None:
    """Whatever stands in a prompt, all of it outside of the known forms comes out as it was."""
    try:
        result = interpolate(text, Trap())
    except BadOption:
        return
    if "<" not in result:
        assert result.replace("{", "").replace("}", "") == text.replace("{", "").replace("}", "")
