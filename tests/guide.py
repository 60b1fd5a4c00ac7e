"""The README and the guide: their snippets, and the tables that come from the code.

`python -m tests.guide` writes the tables of options, subcommands, settings and commands anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nbrun import cli
from nbrun.core.commands import Command
from nbrun.ui.config import NbRun
from nbrun.ui.magics.manual import grouped
from nbrun.ui.magics.options import LINE

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
GUIDE = ROOT / "notebooks" / "guide"
PAGES = (README, *sorted(GUIDE.glob("*.md")))

LANGUAGES = {"python", "ipython", "sh", "toml"}
"""What a fence may be marked with; the first two are cells of a notebook."""

_FENCE = re.compile(r"(?:^<!-- until (?P<until>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_GENERATED = re.compile(r"(?<=<!-- generated: )(\w+)( -->\n).*?(?=<!-- end -->)", re.S)


@dataclass(frozen=True, slots=True)
class Snippet:
    """A fenced block of a page; `until` is what a reader would have waited for before it."""

    page: str
    line: int
    language: str
    text: str
    until: str | None


def snippets(page: Path) -> Iterator[Snippet]:
    """Yield the fenced blocks of a page, from top to bottom."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        yield Snippet(page.name, line, match["language"], match["text"].rstrip(), match["until"])


def with_tables(text: str) -> str:
    """Return a page's text with each generated table as it has to be."""
    return _GENERATED.sub(lambda match: f"{match[1]}{match[2]}{_TABLES[match[1]]()}\n", text)


def _options() -> str:
    groups = []
    for group, options in grouped().items():
        rows = [(f"`{option.usage}`", option.help) for option in options]
        groups.append(f"**{group[0].upper()}{group[1:]}**\n\n" + _table("option", rows))
    return "\n\n".join(groups)


def _subcommands() -> str:
    rows = [(f"`{each.usage}`", each.help) for each in LINE.commands]
    return _table("line", rows)


def _settings() -> str:
    traits = NbRun.class_own_traits(config=True)
    helps = {name: str(trait.help).replace("<", r"\<") for name, trait in traits.items()}
    return _table("setting", [(f"`NbRun.{name}`", text) for name, text in helps.items()])


def _commands() -> str:
    return _table("command", [(f"`{each.usage}`", each.help) for each in _leaves(cli.NBRUN)])


def _leaves(command: Command) -> Iterator[Command]:
    """Yield the commands that have none below themselves."""
    if not command.commands:
        yield command
    for below in command.commands:
        yield from _leaves(below)


def _table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    cells = [(title, "what it does"), ("---", "---"), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells)


_TABLES: dict[str, Callable[[], str]] = {
    "options": _options,
    "subcommands": _subcommands,
    "settings": _settings,
    "commands": _commands,
}

if __name__ == "__main__":
    for each in PAGES:
        before = each.read_text(encoding="utf-8")
        if (after := with_tables(before)) != before:
            each.write_text(after, encoding="utf-8")
            print(each.relative_to(ROOT))
