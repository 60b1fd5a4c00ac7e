"""Text made safe to print: valid UTF-8, no escape codes, nothing invisible."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_ESCAPE_CODE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, moves of the cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links
    r"|\x1b[ -/]*[0-Z\\^-~]"  # the short ones; not the openings of those above
)


# What is invisible, or moves, hides or turns the rest: control characters but tab and line feed, what Unicode calls
# "default ignorable" (direction marks, zero-width spaces, fillers, tags), the empty pattern of Braille, and more
# combining marks or variation selectors than a letter needs. The joiners and selectors of emoji and of other scripts
# stay; after a Latin, Greek or Cyrillic letter, or a sign of ASCII, they have no use.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u2800\u3164\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff\U0001107f\U00011a47\U00013430-\U0001343f\U00013441-\U00013446\U00016fe4\U0001d159]"
    "|[\ufe00-\ufe0f]{2,}|(?<![^\x00-\u05ff\u2e80-\ud7ff])[\u200c\u200d]+|[\u200c\u200d]{2,}"
    '|(?<=[ -"$-)+-/:-~\u00c0-\u05ff])[\ufe00-\ufe0f]|(?<=[#*0-9])[\ufe00-\ufe0f](?!\u20e3)'
    "|[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
    "\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]{9,}"
)


_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}


def exact(text: str) -> str:
    """Return `text` as a `str` and nothing else: a subclass has code of its own. Raises `TypeError` if it isn't one."""
    if not issubclass(type(text), str):  # not by its class, which it may lie about
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    return str.__str__(text)


def clean_text(text: str) -> str:
    """Return `text` as UTF-8 can hold it: two surrogates become their character, a lone one its escape in letters."""
    if type(text) is not str:
        text = exact(text)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return joined.encode("utf-8", "backslashreplace").decode()
    return text


def split_half(text: str) -> tuple[str, str]:
    """Return text without the first half of a surrogate pair at its end, and that half, which awaits the second."""
    return (text[:-1], text[-1]) if "\ud800" <= text[-1:] <= "\udbff" else (text, "")


def escaped(found: re.Match[str]) -> str:
    """Return the escapes of invisible characters, as Python writes them."""
    return "".join(f"\\u{ord(c):04x}" if c <= "\uffff" else f"\\U{ord(c):08x}" for c in found[0])


def visible(text: str, escape: Callable[[re.Match[str]], str] = escaped) -> str:
    """Return a text in which nothing hides or moves the rest: such characters become their escapes."""
    if text.isascii() and text.isprintable():  # other printable characters may be fillers
        return text
    return _UNSEEN.sub(escape, text)


def uncoloured(text: str) -> str:
    """Return text without escape codes."""
    return _ESCAPE_CODE.sub("", text)


def printable(text: str) -> str:
    """Return text as a terminal shows it, without escape codes; other invisible characters become visible."""
    if text.isascii() and text.isprintable():
        return text
    return visible(uncoloured(text).translate(_PICTURES))
