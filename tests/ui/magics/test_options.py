"""The lines of the magics: read once, and every mistake is one line that says how to fix it."""

from __future__ import annotations

import inspect

import pytest

from nbrun import NotebookSession
from nbrun.core.commands import Argument
from nbrun.core.errors import BadOption
from nbrun.core.options import choices, defaults
from nbrun.core.quantities import duration_s
from nbrun.ui.magics.manual import help_text
from nbrun.ui.magics.options import LINE, OPTIONS, SET_FLAGS
from nbrun.ui.magics.parsing import read_cell as request, read_line


def test_an_empty_line_gives_nothing() -> None:
    """All is as `RunOptions` has it by default."""
    assert set(vars(request("")).values()) == {None}


def test_every_option_of_a_run_has_a_flag() -> None:
    """By the name of its field, and with the words that the field takes."""
    options = {option.key: option for option in OPTIONS}
    own = {"out", "block", "python", "interpolate", "continues", "map"}
    of_sets = {option.key for option in SET_FLAGS.values()}
    assert options.keys() == defaults().keys() | own | of_sets
    assert of_sets <= inspect.signature(NotebookSession.map).parameters.keys()
    assert {key: each.choices for key, each in options.items() if each.choices} == choices()


def test_every_option_is_read() -> None:
    """Short and long forms, quotes, and tags given more than once."""
    given = request(
        "poet -n 'my haiku' --out result -b --timeout 1m30s --if-running replace"
        " --max-turns 5 --max-tokens 10,000 --max-cost $0.50"
        " --tag a=1 --tag b=x=y --id nightly --on process --thread --no-interpolate"
        " --tools a,b --tools c --mcp one --mcp two"
    )
    assert (given.target, given.name, given.out, given.block) == ("poet", "my haiku", "result", True)
    assert (given.timeout_s, given.if_running, given.id) == (90.0, "replace", "nightly")
    assert (given.max_turns, given.max_tokens, given.max_cost) == (5, 10_000, 0.5)
    assert given.tags == {"a": "1", "b": "x=y"}
    assert (given.tools, given.mcp) == (("a", "b", "c"), ("one", "two"))
    assert (given.on, given.thread, given.interpolate) == ("process", True, False)
    assert request("-a").block is False
    assert request("--model local").model == "local"
    assert request("--python").python
    assert request("--approve auto").approve == "auto"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--blok", "did you mean --block"),
        ("--nonsense", r"has no option --nonsense\. See %%agentrun\?"),
        ("one two", "two"),
        ("--timeout soon", "use for example 90s, 10m or 1h30m"),
        ("--timeout 0s", "greater than zero, for example 90s"),
        ("--timeout -5s", "greater than zero, for example 90s"),
        ("--timeout=-5s", "greater than zero, for example 90s"),
        ("--timeout 1000000h", "too long"),
        ("--timeout", "--timeout needs a value: --timeout TIME"),
        ("--max-turns many", "expected a whole number"),
        ("--max-turns 2.5", "expected a whole number"),
        ("--max-tokens 10k", "expected a whole number"),
        ("--max-cost cheap", "expected US dollars"),
        ("--max-cost", "--max-cost needs a value"),
        ("--if-running panic", "choose from"),
        ("--approve maybe", "choose from"),
        ("--tag x", "write key=value"),
        ("--tag =x", "write key=value"),
        ("--out 1x", "not a valid Python variable name"),
        ("--out class", "not a valid Python variable name"),
        ("-b -a", "exclude each other"),
        ("poet --model local", "not both"),
        ("poet --python", "leave out TARGET and --model"),
        ("--python --on process", "leave out --on process"),
        ("--on mars", "choose from"),
        ("'open", "close the quote"),
        ("poet(prompt)", "write %%agentrun poet, and"),
        ("poet('a, b', 3) --block", "write %%agentrun poet, and"),
    ],
)
def test_a_mistake_is_one_line_with_its_fix(line: str, words: str) -> None:
    """Unknown options, bad values and contradictions raise `BadOption`, without a line break."""
    with pytest.raises(BadOption, match=words) as caught:
        request(line)
    assert "\n" not in str(caught.value).strip()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("10min", 600.0), ("1h30m", 5400.0), ("1.5h", 5400.0),
        ("250ms", 0.25), ("1 h 5 s", 3605.0), ("2d", 172_800.0),
    ],
)  # fmt: skip
def test_lengths_of_time_are_read(text: str, seconds: float) -> None:
    """Units may be combined; a bare number is seconds."""
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5s", "1e3", "5 days", "inf", "nan", "1:30", "0", "0ms"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    """No guess is made."""
    with pytest.raises(BadOption, match=r"isn't a duration|greater than zero"):
        duration_s(text)


@pytest.mark.parametrize(
    ("line", "verb", "words"),
    [
        ("", "list", []),
        ("show #3", "show", ["#3"]),
        ("stop last", "cancel", ["last"]),
        ("ls", "list", []),
        ("-h", "help", []),
        ("--help", "help", []),
        ("cancel 3 --reason 'too slow'", "cancel", ["3", "--reason", "too slow"]),
        ("approve 3 ask-1 --args '{\"a\": 1}'", "approve", ["3", "ask-1", "--args", '{"a": 1}']),
        ('say #3 don\'t "do"  that ', "say", ["--", "#3", 'don\'t "do"  that']),
        ("say 'green tea' it's hot", "say", ["--", "green tea", "it's hot"]),
        ("say last --please", "say", ["--", "last", "--please"]),
        ("say --help", "say", ["--help"]),
        ("say", "say", ["--"]),
    ],
)
def test_subcommands_are_read(line: str, verb: str, words: list[str]) -> None:
    """An empty line lists; aliases mean their verb; what is said is taken as it is."""
    command, rest = read_line(line)
    assert (command.verb, rest) == (verb, words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cancle 3", "did you mean cancel"),
        ("make tea", "put %%agentrun on the first line of a cell"),
        ("show 'x", "close the quote"),
        ("poet(prompt)", "write %%agentrun poet, and"),
        ("saying #3 hello", "did you mean say"),
        ("res 3", "did you mean result"),
        ("lsit", "did you mean list"),
        ("dance", "Unknown subcommand 'dance'. Available: list, show"),
    ],
)
def test_an_unknown_subcommand_names_what_there_is(line: str, words: str) -> None:
    """The nearest one, all of them, and the magic that starts runs."""
    with pytest.raises(BadOption, match=words):
        read_line(line)


def test_a_subcommand_has_a_help_of_its_own() -> None:
    """It comes from the table."""
    wait = LINE.find("wait")
    assert wait is not None
    assert wait.manual().startswith("%agentrun wait [REF…] [--timeout TIME]\nwait for")


def test_the_help_names_every_subcommand() -> None:
    """One table makes parser and help."""
    text = help_text()
    assert all(command.usage in text for command in LINE.commands)


def test_a_followup_gives_what_is_to_be_other() -> None:
    """The run, the options that are given and no others."""
    given = followup("retry", "#3", "--timeout", "90s", "-o", "again", "--tag", "a=1")
    assert given == {"ref": "#3", "out": "again", "timeout_s": 90.0, "tags": {"a": "1"}}
    assert followup("resume") == {}
    assert followup("resume", "-1", "-b") == {"ref": "-1", "block": True}
    assert followup("replay", "tea", "--speed", "10") == {"ref": "tea", "speed": "10"}


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("retry", ["1", "--id", "x"], "%agentrun retry has no option --id"),
        ("resume", ["1", "--python"], "%agentrun resume has no option --python"),
        ("replay", ["1", "--timeout", "3s"], "%agentrun replay has no option --timeout"),
        ("retry", ["1", "2"], "no further argument: leave out '2'"),
        ("retry", ["1", "--fast", "3"], r"no option --fast.* See %agentrun help retry"),
    ],
)
def test_what_has_no_place_in_a_followup_is_refused(verb: str, words: list[str], message: str) -> None:
    """In one line."""
    with pytest.raises(BadOption, match=message):
        followup(verb, *words)


def followup(verb: str, *words: str) -> dict[str, object]:
    """Return what a line of this subcommand gives."""
    command = LINE.find(verb)
    assert command is not None
    return command.read(words)


def test_arguments_are_known_to_completion() -> None:
    """What each takes is a word in capitals or a choice."""
    taken = [each.takes for command in LINE.commands for each in command.all() if each.takes]
    assert all("|" in takes or takes.isupper() for takes in taken)
    assert all(isinstance(each, Argument) and each.help for each in OPTIONS)
