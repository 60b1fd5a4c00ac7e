"""What `?`, `%agentrun help` and `%config` show: everything, the same everywhere, and correct."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from traitlets import TraitType
from traitlets.config import Configurable

from nbrun import NotebookSession
from nbrun.core.commands import REFERENCE
from nbrun.ui.config import NbRun
from nbrun.ui.magics.magics import AgentMagics
from nbrun.ui.magics.manual import CELL_EXAMPLES, LINE_EXAMPLES, grouped, manual
from nbrun.ui.magics.options import LINE, OPTIONS

MakeSession = Callable[..., NotebookSession]

SETTINGS = NbRun.class_own_traits(config=True)


def test_every_option_and_subcommand_has_a_help() -> None:
    """A line of words, each another one, that does not end in a stop: it stands in tables."""
    helps = [option.help for option in OPTIONS] + [one.help for one in LINE.commands]
    assert len(helps) == len(set(helps))
    assert all(text.strip() and "\n" not in text and not text.endswith(".") for text in helps)
    assert all(command.name.startswith("%agentrun ") for command in LINE.commands)


@pytest.mark.parametrize("magic", [AgentMagics.agentrun, AgentMagics.agentrun_line])
def test_the_manual_begins_with_examples_and_has_everything(magic: Callable[..., object]) -> None:
    """A line on what it does, three examples, options by groups, then every subcommand, with their helps."""
    text = magic.__doc__ or ""
    parts = ["Examples", *(f"  {group}\n" for group in grouped()), "%agentrun SUBCOMMAND"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert text.partition("\n\n")[0].endswith(".")
    assert text.partition("\n\n")[2].startswith("Examples")
    for option in OPTIONS:
        assert re.search(rf"^    {re.escape(option.usage)}\s+{re.escape(option.help)}$", text, re.M)
    for command in LINE.commands:
        usage = re.escape(command.usage.removeprefix("%agentrun "))
        assert re.search(rf"^  {usage}\s+{re.escape(command.help)}$", text, re.M)
    assert text.endswith(REFERENCE)
    assert max(map(len, text.splitlines())) <= 140


def test_the_two_manuals_have_examples_of_their_own() -> None:
    """Four and three."""
    assert (len(CELL_EXAMPLES), len(LINE_EXAMPLES)) == (4, 3)
    for examples, magic in ((CELL_EXAMPLES, AgentMagics.agentrun), (LINE_EXAMPLES, AgentMagics.agentrun_line)):
        shown = (magic.__doc__ or "").partition("%%agentrun [TARGET]")[0]
        assert shown in manual(shown.partition("\n")[0], examples)
        for example in examples:
            assert example.title in shown
            assert all(line in shown for cell in example.cells for line in cell.splitlines())


def test_every_option_is_in_a_group() -> None:
    """Once: the groups are in the order of the table."""
    assert [option for options in grouped().values() for option in options] == [*OPTIONS]


# --- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_tells_its_unit_and_default(name: str) -> None:
    """In parentheses: `(seconds; default 2.0)`; where the default means something else, with what it means."""
    trait: TraitType[object, object] = SETTINGS[name]
    told = re.search(r"\(([^;()]+); default ([^):]+)(?:: [^)]+)?\)", str(trait.help))
    assert told is not None, f"{name}: end its help with (UNIT; default {trait.default()!r})"
    assert told[2].replace(",", "") == repr(trait.default())


def test_settings_are_printed_readably() -> None:
    """`%config NbRun` prints this: each setting with its help and what it is now."""
    printed = Configurable.class_get_help.__func__(NbRun, NbRun(max_concurrent=3))  # type: ignore[attr-defined]
    assert all(f"NbRun.{name}=" in printed for name in SETTINGS)
    assert re.search(r"NbRun\.max_concurrent=<Int>\n(?: .*\n)+    Current: 3\n", printed)
    assert max(map(len, printed.splitlines())) <= 80
