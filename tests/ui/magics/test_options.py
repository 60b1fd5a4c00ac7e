"""The lines of the magics: read once, and every mistake is one line that names the mend."""

from __future__ import annotations

from typing import Any

import pytest
from IPython.core.magic_arguments import magic_arguments

from nbrun.core.durations import duration_s
from nbrun.core.errors import BadOption
from nbrun.ui.magics import options, parsing as lines
from nbrun.ui.magics.parsing import Request, read_request, read_sequel, read_subcommand, take_flag


@magic_arguments()  # type: ignore[no-untyped-call, untyped-decorator]  # IPython has no types here
@options.run_options
def agentrun(line: str) -> None:
    """Stand for the magic."""


def request(line: str) -> Request:
    """Return what a line asks for."""
    return read_request(agentrun, line)


def test_an_empty_line_is_all_defaults() -> None:
    """Nothing given: the configured agent, in the background unless headless, with names put in."""
    empty = request("")
    assert (empty.target, empty.model, empty.name, empty.out, empty.id) == (None,) * 5
    assert (empty.block, empty.timeout_s, empty.if_running, empty.tags) == (None, None, "queue", {})
    assert (empty.max_turns, empty.max_tokens, empty.max_cost) == (None, None, None)
    assert (empty.python, empty.thread, empty.interpolate) == (False, False, True)
    assert empty.on == "local"
    assert empty.approve == "ask"


def test_every_option_is_read() -> None:
    """Short and long forms, quotes, and tags given more than once."""
    given = request(
        "poet -n 'my haiku' --out result -b --timeout 1m30s --if-running replace"
        " --max-turns 5 --max-tokens 10,000 --max-cost $0.50"
        " --tag a=1 --tag b=x=y --id nightly --on process --thread --no-interpolate"
    )
    assert (given.target, given.name, given.out, given.block) == (
        "poet",
        "my haiku",
        "result",
        True,
    )
    assert (given.timeout_s, given.if_running, given.id) == (90.0, "replace", "nightly")
    assert (given.max_turns, given.max_tokens, given.max_cost) == (5, 10_000, 0.5)
    assert given.tags == {"a": "1", "b": "x=y"}
    assert (given.on, given.thread, given.interpolate) == ("process", True, False)
    assert request("-a").block is False
    assert request("--model local").model == "local"
    assert request("--python").python
    assert request("--approve auto").approve == "auto"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--blok", "did you mean --block"),
        ("--nonsense", "lists the options"),
        ("one two", "two"),
        ("--timeout soon", "write 90s, 10m or 1h30m"),
        ("--timeout 0s", "above zero, such as 90s"),
        ("--timeout -5s", "above zero, such as 90s"),
        ("--timeout=-5s", "above zero, such as 90s"),
        ("--timeout 1000000h", "too long"),
        ("--timeout", "expected one argument"),
        ("--max-turns many", "give a whole number"),
        ("--max-turns 2.5", "give a whole number"),
        ("--max-tokens 10k", "give a whole number"),
        ("--max-cost cheap", "give US dollars"),
        ("--max-cost", "expected one argument"),
        ("--if-running panic", "invalid choice"),
        ("--approve maybe", "invalid choice"),
        ("--tag x", "write key=value"),
        ("--tag =x", "write key=value"),
        ("--out 1x", "a name that Python takes"),
        ("--out class", "a name that Python takes"),
        ("-b -a", "exclude each other"),
        ("poet --model local", "not both"),
        ("poet --python", "leave TARGET and --model out"),
        ("--python --on process", "leave --on process out"),
        ("--on mars", "invalid choice"),
        ("'open", "close the quote"),
        ("poet(prompt)", "write %%agentrun poet, and"),
        ("poet('a, b', 3) --block", "write %%agentrun poet, and"),
    ],
)
def test_a_mistake_is_one_line_with_its_mend(line: str, words: str) -> None:
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


@pytest.mark.parametrize(
    "text", ["", "s", "-5s", "1e3", "5 days", "inf", "nan", "1:30", "0", "0ms"]
)
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    """No guess is made."""
    with pytest.raises(BadOption, match=r"length of time|too short|below zero"):
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
        ('say #3 don\'t "do"  that ', "say", ["#3", 'don\'t "do"  that']),
        ("say 'green tea' it's hot", "say", ["green tea", "it's hot"]),
        ("say last", "say", ["last"]),
        ("say", "say", []),
    ],
)
def test_subcommands_are_read(line: str, verb: str, words: list[str]) -> None:
    """An empty line lists; aliases mean their verb."""
    assert read_subcommand(line) == (verb, words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cancle 3", "did you mean cancel"),
        ("make tea", "two per cent"),
        ("show 'x", "close the quote"),
        ("poet(prompt)", "write %%agentrun poet, and"),
        ("saying #3 hello", "did you mean say"),
        ("res 3", "did you mean result"),
        ("lsit", "did you mean list"),
        ("dance", "has no 'dance'. It knows"),
    ],
)
def test_an_unknown_subcommand_names_what_there_is(line: str, words: str) -> None:
    """The nearest one, all of them, and the magic that starts runs."""
    with pytest.raises(BadOption, match=words):
        read_subcommand(line)


def test_flags_are_taken_out_of_the_words() -> None:
    """With a value behind it or after `=`, or as a switch; a missing value is told."""
    words = ["3", "--reason", "too slow", "--all", "4"]
    assert take_flag(words, "--reason", has_value=True) == "too slow"
    assert take_flag(words, "--all", has_value=False) == "--all"
    assert take_flag(words, "--timeout", has_value=True) is None
    assert words == ["3", "4"]
    assert take_flag(["--timeout=5s"], "--timeout", has_value=True) == "5s"
    with pytest.raises(BadOption, match="--timeout needs a value"):
        take_flag(["--timeout"], "--timeout", has_value=True)


def test_a_strange_flag_of_a_subcommand_is_refused() -> None:
    """The message is the subcommand's usage; a place counted from the end is no flag."""
    with pytest.raises(BadOption, match="%agentrun show"):
        lines.refuse_flags("show", ["--wide"])
    lines.refuse_flags("show", ["-1", "#3", "-12"])
    for rest in (["--status", "lost"], ["--status=lost"]):  # the first of two was taken
        with pytest.raises(BadOption, match="--status is here twice, give it only once"):
            lines.refuse_flags("list", rest)


def test_an_option_that_is_like_none_gets_no_hint() -> None:
    """What was meant by it nobody knows."""
    assert lines._mended("unrecognized arguments: --foo").startswith(
        "unrecognized arguments: --foo; %%agentrun?"
    )


@pytest.mark.parametrize("flag", ["-a", "-all", "--al", "--alll"])
def test_a_flag_that_is_nearly_one_gets_a_hint(flag: str) -> None:
    """A beginning, one dash for two, and a slip of the finger are enough to know what was meant."""
    with pytest.raises(BadOption, match=r"did you mean --all\?"):
        lines.refuse_flags("cancel", [flag])


def test_a_subcommand_has_a_help_of_its_own() -> None:
    """It is the line of the table."""
    assert options.usage_text("wait").startswith("%agentrun wait [REF…] [--timeout TIME]\nwait for")


def test_the_help_names_every_subcommand() -> None:
    """One table makes parser and help."""
    text = options.help_text()
    assert all(f"%agentrun {command.usage}" in text for command in options.SUBCOMMANDS.values())


def test_the_magics_own_help_names_every_option() -> None:
    """`%%agentrun?` comes from the same table."""
    described: Any = agentrun
    text = described.parser.format_help()
    for option in options.OPTIONS:
        assert option.flags[-1] in text


def test_a_sequels_line_gives_what_is_to_be_other() -> None:
    """The run, the options that are given and no others; `last` where no run is named."""
    asked = read_sequel(
        agentrun, "retry", ["#3", "--timeout", "90s", "-o", "again", "--tag", "a=1"]
    )
    assert (asked.ref, asked.out, asked.block) == ("#3", "again", None)
    assert asked.options == {"timeout_s": 90.0, "tags": {"a": "1"}}
    assert read_sequel(agentrun, "resume", []).ref == "last"
    assert read_sequel(agentrun, "resume", []).options == {}
    assert read_sequel(agentrun, "resume", ["-1", "-b"]).ref == "-1"
    assert read_sequel(agentrun, "replay", ["tea", "--speed", "10"]).options == {"speed": "10"}


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("retry", ["1", "--id", "x"], "--id has no place in %agentrun retry"),
        ("resume", ["1", "--python"], "--python has no place in %agentrun resume"),
        ("replay", ["1", "--timeout", "3s"], "--timeout has no place in %agentrun replay"),
        ("retry", ["1", "2"], "unrecognized arguments: 2"),
        ("retry", ["1", "--speed", "3"], "unrecognized"),
    ],
)
def test_what_has_no_place_in_a_sequels_line_is_refused(
    verb: str, words: list[str], message: str
) -> None:
    """In one line."""
    with pytest.raises(BadOption, match=message):
        read_sequel(agentrun, verb, words)
