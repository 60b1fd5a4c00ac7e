"""A growing text as a page gets it: closed blocks drawn once, the open end as it is, never too much."""

from __future__ import annotations

import random
import re

import pytest

from nbrun.render.markdown import safe_html
from nbrun.ui.cards.markdown_blocks import NODE_LIMIT, TEXT_LIMIT, Blocks

LETTER = """# Comets

A *comet* is a body of ice
and dust.
Setext
------

- one

- two
  with more

      code in the list

  ```
  fenced

  in the list
  ```
- three
1. first
2. second

After the list.
```python
if comet:

    # no heading
    watch(comet)
```
| a | b |
|---|---|
| 1 | 2 |

> quoted
> too
***
~~~~
```
~~~
~~~~
Items:
* x

    indented, of the list

the end

of it"""


def drawn(blocks: Blocks) -> str:
    """Return the HTML of all closed blocks."""
    return "".join(str(block.get("html", block.get("text"))) for block in blocks.shown)


def words(text: str) -> str:
    """Return its letters and digits only."""
    return re.sub(r"\W", "", text)


@pytest.mark.parametrize("step", [1, 7, 50, 10_000])
def test_blocks_are_the_same_however_the_text_comes(step: int) -> None:
    """Letter by letter or at once: what is drawn in pieces is what the whole would be, and nothing is lost."""
    blocks = Blocks()
    for end in range(0, len(LETTER) + step, step):
        blocks.feed(LETTER[:end], is_over=False)
    assert blocks.tail == "of it"
    blocks.feed(LETTER[: LETTER.index("the end") + 2], is_over=False)
    assert blocks.tail == "th"  # what goes on as no list does closes it
    blocks.feed(LETTER, is_over=False)
    blocks.feed(LETTER, is_over=True)
    assert (blocks.tail, blocks.cut) == ("", 0)
    assert drawn(blocks) == safe_html(LETTER)
    assert len(blocks.shown) == 11


def test_what_was_drawn_stays() -> None:
    """A closed block keeps its key and is not drawn again; only what is new has a new key."""
    blocks = Blocks()
    blocks.feed("one\n\ntwo", is_over=False)
    (first,) = blocks.shown
    blocks.feed("one\n\ntwo\n\nthree", is_over=False)
    assert blocks.shown[0] is first
    assert [block["key"] for block in blocks.shown] == [1, 2]
    blocks.feed("other\n\n", is_over=False)  # a text of its own
    assert [block["key"] for block in blocks.shown] == [3]
    assert (drawn(blocks), blocks.cut) == ("<p>other</p>\n", 0)


def test_open_code_is_shown_as_it_is() -> None:
    """Half a block could be anything; what would hide the rest of it is visible in both forms."""
    blocks = Blocks()
    blocks.feed("```\n\n**a**\n\n\u202eb", is_over=False)
    assert blocks.shown == []
    assert blocks.tail == "```\n\n**a**\n\n\\u202eb"
    blocks.feed("```\n\n**a**\n\n\u202eb\n```\n", is_over=False)
    assert drawn(blocks) == "<pre><code>\n**a**\n\n\\u202eb\n</code></pre>\n"


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "word " * 100_000,
        "*a* `b`\n\n" * 20_000,
        "```\n" + "code\n\n" * 20_000 + "```\n",
        "- item\n\n" * 20_000,
        "p\n\n" * 3_000 + "*a*" * 6_000 + "\n\nend",
        "x" * (TEXT_LIMIT + 5) + "\n\nthe end",
    ],
    ids=["line", "words", "blocks", "code", "list", "nodes", "long"],
)
@pytest.mark.parametrize("step", [3_333, 1_000_000])
def test_a_long_text_comes_to_little(text: str, step: int) -> None:
    """Characters and nodes are bounded, the end is there, and what is left out in front is counted."""
    blocks = Blocks()
    for end in range(step, len(text) + step, step):
        blocks.feed(text[:end], is_over=end >= len(text))
    html = drawn(blocks)
    assert html.count("<") <= NODE_LIMIT
    assert len(blocks.tail) + sum(len(str(block.get("text", ""))) for block in blocks.shown) <= TEXT_LIMIT
    assert 0 < blocks.cut < len(text)
    assert words(re.sub("<[^>]*>", "", html) + blocks.tail).endswith(words(text[-100:])[-3:])


def test_anything_may_come_in_any_pieces() -> None:
    """No text stops it, and no character of a short one is left out."""
    dice = random.Random(1)  # noqa: S311 - no secret
    parts = ["\n", "\n\n", "```", "~~~", "- ", "1. ", "  ", "\t", "# ", "a", "*", "`", "> ", "<b>", "|", "\r\n", "---"]
    for _ in range(300):
        text = "".join(dice.choices(parts, k=40))
        blocks, end = Blocks(), 0
        while end < len(text):
            end += dice.randint(1, 9)
            blocks.feed(text[:end], is_over=False)
        at_once = Blocks()
        at_once.feed(text, is_over=False)
        assert (drawn(blocks), blocks.tail, blocks.cut) == (drawn(at_once), at_once.tail, 0)
