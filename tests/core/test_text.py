"""Text that is safe to show: what nobody can see becomes visible, and ordinary writing stays as it is."""

from __future__ import annotations

import unicodedata

import pytest

from nbrun.core.text import visible

INVISIBLE = (
    "\x00\x1b\x7f\x9b\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b\u180e\u200b\u200e\u200f\u202a\u202e\u2028\u2029"
    "\u2060\u2062\u2066\u206f\u2800\u3164\ufeff\uffa0\ufff9\U0001bca0\U0001bca3\U0001d173\U0001d17a\U000e0001\U000e0041"
    "\u200c\u200d\ufe00\ufe0f\U0001d159\U00016fe4\U0001107f\U00013430\U0001343f"
)


@pytest.mark.parametrize("hidden", INVISIBLE, ids=ascii)
def test_what_is_invisible_in_a_command_is_made_visible(hidden: str) -> None:
    """Between Latin letters nothing of it has a use."""
    for text in (f"rm{hidden} -rf", f"a{hidden}b", f"{hidden * 3}!"):
        assert hidden not in visible(text) or hidden in "\ufe00\ufe0f"
    assert hidden not in visible(f"a{hidden}b")


def test_every_format_character_is_made_visible() -> None:
    """All that Unicode calls a format character, but for those that other scripts show or need."""
    signs = {"\u200c", "\u200d", *map(chr, range(0x600, 0x606)), "\u06dd", "\u070f", "\u0890", "\u0891", "\u08e2"}
    signs |= {"\U000110bd", "\U000110cd"}
    for code in range(0x110000):
        if unicodedata.category(chr(code)) == "Cf" and chr(code) not in signs:
            assert chr(code) not in visible(f"a{chr(code)}b"), hex(code)


@pytest.mark.parametrize(
    "text",
    ["да\u200d", "αω\u200c", "日\u200d本", "rm -rf /\ufe0f", "a \ufe0fb", "id=1\ufe0f2", "д\ufe0f", "ก" + "\u0e49" * 9],
    ids=ascii,
)  # fmt: skip
def test_two_texts_do_not_look_alike_by_what_is_not_seen(text: str) -> None:
    """After other letters, digits and signs, joiners and selectors have no use either; nor has a heap of marks."""
    assert visible(text) != text


@pytest.mark.parametrize(
    "text",
    [
        "naïve café – “quotes” …", "👩\u200d💻 ❤\ufe0f 1\ufe0f\u20e3 🇩🇪", "\u0645\u06cc\u200c\u062e\u0648", "क्\u200dष",
        "日本語",
        "tab\tand\nlines",
    ],
    ids=ascii,
)  # fmt: skip
def test_ordinary_writing_stays_as_it_is(text: str) -> None:
    """Emoji, their joiners and selectors, and scripts that need joiners."""
    assert visible(text) == text
