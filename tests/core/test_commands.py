"""The table of commands: words are read by it, and every mistake is one line that says how to fix it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbrun.core.commands import Argument, Command, asks_for_help, integer, whole_number
from nbrun.core.errors import BadOption

REFS = Argument(("REF",), "runs", field="refs", gather=list)
STOP = Command(
    "stop", "stop runs",
    (
        (REFS, Argument(("--all",), "all of them")),
        Argument(("-r", "--reason"), "why", "TEXT"),
        Argument(("-n",), "how many", "N", read=whole_number),
        Argument(("--tag",), "a label", "K=V", gather=tuple),
        Argument(("--how",), "in which way", choices=("gently", "hard")),
    ),
)  # fmt: skip
SHOW = Command(
    "show", "show a run",
    (Argument(("REF",), "a run", is_required=True), Argument(("PATH",), "where", read=Path, default=Path())),
)  # fmt: skip
TOOL = Command("tool", "a tool", commands=(STOP, SHOW))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], {}),
        (["3", "--reason", "too slow", "4"], {"refs": ["3", "4"], "reason": "too slow"}),
        (["-1", "#3"], {"refs": ["-1", "#3"]}),
        (["--all", "-r=x=y"], {"all": True, "reason": "x=y"}),
        (["--reason="], {"reason": ""}),
        (["--reason", "-5s"], {"reason": "-5s"}),
        (["-n5", "--tag", "a", "--tag", "b"], {"n": 5, "tag": ("a", "b")}),
        (["-n", "1,000", "--how", "hard"], {"n": 1000, "how": "hard"}),
        (["--", "--all"], {"refs": ["--all"]}),
        (["-"], {"refs": ["-"]}),
    ],
)
def test_words_are_read(words: list[str], found: dict[str, object]) -> None:
    """Options anywhere, values behind them or after `=`, negative ones too; after `--` all words are places."""
    assert STOP.read(words) == found


def test_what_is_not_given_has_its_default() -> None:
    """Places are filled in their order."""
    given = SHOW.parse(["7"])
    assert (given.ref, given.path) == ("7", Path())
    assert SHOW.parse(["7", "lesson.ipynb"]).path == Path("lesson.ipynb")


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (STOP, ["--reason"], "--reason needs a value: --reason TEXT"),
        (STOP, ["--reason", "--all"], "--reason needs a value"),
        (STOP, ["--all=yes"], "--all takes no value"),
        (STOP, ["--all", "--all"], "--all is given twice; give it once"),
        (STOP, ["-r", "a", "--reason", "b"], "-r and --reason exclude each other; give one"),
        (STOP, ["3", "--all"], "Give REF… or --all, not both"),
        (STOP, ["-n", "none"], "-n none: expected a whole number, at least 1"),
        (STOP, ["-n0"], "-n 0: expected a whole number, at least 1"),
        (STOP, ["--how", "now"], "--how now: choose from gently, hard"),
        (STOP, ["--fast"], r"stop has no option --fast\. Usage: stop \[REF… \| --all\] \[-r/--reason TEXT\]"),
        (SHOW, [], r"show needs REF\. Usage: show REF \[PATH\]"),
        (SHOW, ["1", "2", "3"], "show takes no further argument: leave out '3'"),
    ],
)
def test_a_mistake_is_one_line_with_its_fix(command: Command, words: list[str], message: str) -> None:
    """It names the word and what should be there."""
    with pytest.raises(BadOption, match=f"^{message}"):
        command.read(words)


@pytest.mark.parametrize("flag", ["-a", "-all", "--al", "--alll"])
def test_an_option_that_is_nearly_one_gets_a_hint(flag: str) -> None:
    """A beginning, one dash for two, and a slip of the finger are enough to know what was meant."""
    with pytest.raises(BadOption, match=r"did you mean --all\?"):
        STOP.read([flag])


def test_a_line_that_is_being_typed_is_walked() -> None:
    """What is pending and which place is next, mistakes or not."""
    assert STOP.walk(["--nonsense", "3", "--how"]).pending == STOP.flags()["--how"]
    assert STOP.walk(["3"]).place == REFS
    place = SHOW.walk(["3"]).place
    assert place is not None
    assert place.names == ("PATH",)
    assert SHOW.walk(["3", "x"]).place is None


def test_a_command_is_found_by_its_verb() -> None:
    """Another word is answered with those that there are."""
    assert TOOL.find("stop") is STOP
    assert TOOL.find("stp") is None
    assert str(TOOL.unknown("stp")) == "Unknown subcommand 'stp'; did you mean stop? Available: stop, show."
    assert str(TOOL.unknown("dance")) == "Unknown subcommand 'dance'. Available: stop, show."


def test_the_manual_has_every_argument() -> None:
    """As one types it, with its help."""
    text = STOP.manual()
    assert text.startswith("stop [REF… | --all] [-r/--reason TEXT] [-n N] [--tag K=V] [--how gently|hard]\nstop runs")
    assert all(each.usage in text and each.help in text for each in STOP.all())
    assert "show a run" in TOOL.manual()


def test_help_is_asked_for_among_the_options() -> None:
    """Not after `--`."""
    assert asks_for_help(["3", "-h"])
    assert asks_for_help(["--help"])
    assert not asks_for_help(["3", "--", "-h"])


@pytest.mark.parametrize("text", ["", "ten", "2.5", "10k", "0", "-1", "²"])
def test_what_is_not_a_whole_number_is_refused(text: str) -> None:
    """Of 1 or more."""
    with pytest.raises(ValueError, match="expected a whole number"):
        whole_number(text)


def test_a_whole_number_may_have_commas() -> None:
    """`10,000`; where 0 means something, `integer` reads it."""
    assert whole_number("10,000") == 10_000
    assert integer("-1,000") == -1000
