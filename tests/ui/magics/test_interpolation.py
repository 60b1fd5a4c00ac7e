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


LATEX = (
    r"\frac{name}{number}", r"\text{name}", r"\begin{items} \item \end{items}", r"\sqrt[3]{name}", r"\section*{name}",
    r"x_{name}^{number}", r"e^{name}", r"\sum_{number}^{name}", r"\hat{x}_{name}", r"f(x)_{number}",
    r"\frac{{name}}{2}",
    r"\frac{\bar{name} + 1}{\sqrt{name}}", r"\frac{nobody}{nothing}", r"$\mathbf{x}^{name}$", r"\d{number}",
)  # fmt: skip


@pytest.mark.parametrize("text", LATEX)
def test_latex_stays(text: str) -> None:
    """Arguments of a command, superscripts, and subscripts of a single letter are neither replaced nor looked up."""
    assert interpolate(f"Explain {text} to {{name}}.", NAMES) == f"Explain {text} to tea."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file_{name}.txt", "file_tea.txt"), ("{name}_{number}", "tea_3"), ("${number}-${number}", "$3-$3"),
        ("C:\\{name}", "C:\\tea"), (r"\alpha {name}", r"\alpha tea"), (r"\frac{a {name}", r"\frac{a tea"),
        (r"{name}\frac{a}{b}{number}", r"tea\frac{a}{b}{number}"),
    ],
)  # fmt: skip
def test_what_only_looks_a_little_like_latex_is_replaced(text: str, expected: str) -> None:
    """Longer words before `_`, prices, a backslash before the brace, and a brace that is never closed."""
    assert interpolate(text, NAMES) == expected


def test_many_open_braces_are_read_quickly() -> None:
    """A command whose argument is never closed costs no second look at what follows."""
    text = r"\a{" * 20_000
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
