"""The one table of options and subcommands: parser, completion and help come from it."""

from __future__ import annotations

import keyword
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from IPython.core.error import UsageError
from IPython.core.magic_arguments import argument

from nbrun.errors import BadOption
from nbrun.wording import duration_s


class Option(msgspec.Struct, frozen=True):
    """One option of `%%agentrun`."""

    flags: tuple[str, ...]
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    is_switch: bool = False
    is_list: bool = False

    def decorate(self) -> Any:
        """Return the decorator that declares it to IPython."""
        if self.is_switch:
            return argument(*self.flags, action="store_true", help=self.help)
        extra: dict[str, Any] = {"metavar": self.metavar} if self.metavar else {}
        if self.is_list:
            extra["action"] = "append"
        if self.choices:
            extra["choices"] = self.choices
        return argument(*self.flags, help=self.help, **extra)


OPTIONS = (
    Option(("-n", "--name"), "what the run is called", "NAME"),
    Option(("-o", "--out"), "put the run under this name in the notebook", "NAME"),
    Option(("-b", "--block"), "wait for the end (the default when headless)", is_switch=True),
    Option(("-a", "--noblock"), "return at once (the default in a notebook)", is_switch=True),
    Option(("--timeout",), "cancel after this long: 90s, 10m, 1h", "TIME"),
    Option(("--max-turns",), "cancel before one model call more than this", "N"),
    Option(("--max-tokens",), "cancel above so many tokens, in and out together", "N"),
    Option(("--max-cost",), "cancel above so many US dollars, where the model's price is known", "USD"),
    Option(
        ("--model",), "run the built-in agent on a model: local, local:PATH, scripted, demo, provider:name",
        "MODEL",
    ),
    Option(("--continue",), "go on talking from where this run has ended", "REF"),
    Option(
        ("--tools",), "functions of this notebook for the built-in agent: a,b, or notebook",
        "FUNCTION", is_list=True,
    ),
    Option(("--system",), "its instructions: a text, or the name of one in the notebook", "TEXT|NAME"),
    Option(("--output",), "the class of its output: a pydantic model or dataclass of this notebook", "TYPE"),
    Option(("--settings",), "its model's settings: a dict of this notebook, such as {'temperature': 0}", "DICT"),
    Option(("--mcp",), "an MCP server whose tools it may use; may be given again", "COMMAND|URL", is_list=True),
    Option(
        ("--if-running",), "what to do while a run of this cell is live: queue, reject, replace",
        choices=("queue", "reject", "replace"),
    ),
    Option(
        ("--on",), "where: local (this kernel), or process (one of its own, which can always be stopped)",
        choices=("local", "process"),
    ),
    Option(
        ("--approve",), "who answers what the run asks: ask (you), auto (allowed), deny (refused)",
        choices=("ask", "auto", "deny"),
    ),
    Option(("--tag",), "label the run with key=value; may be given again", "K=V", is_list=True),
    Option(("--id",), "start only once: the same id and inputs give the same run", "ID"),
    Option(("--python",), "the body is async Python, run in this notebook's namespace", is_switch=True),
    Option(("--keep-object",), "also keep the output itself, pickled, for run.load_object()", is_switch=True),
    Option(
        ("--loop",),
        "on whose loop: host, or kernel for an agent that cells await too; a busy cell holds it up",
        choices=("host", "kernel"),
    ),
    Option(("--thread",), "drive an async agent on a thread of its own, because it blocks", is_switch=True),
    Option(("--no-interpolate",), "leave {name} in the prompt as it is", is_switch=True),
)  # fmt: skip


class Subcommand(msgspec.Struct, frozen=True):
    """One word after `%agentrun`."""

    usage: str
    help: str


SUBCOMMANDS = {
    "list": Subcommand(
        "list [--status STATUS] [--name NAME] [--agent AGENT] [--tag K=V] [--since TIME] [--text TEXT] [--limit N]"
        " [--before REF]",
        "this notebook's runs, newest first: the last 100, or those that fit",
    ),
    "show": Subcommand(
        "show [REF…] [--thread]", "the card of a run; with --thread, of its whole conversation"
    ),
    "result": Subcommand("result [REF]", "the output of a run"),
    "wait": Subcommand("wait [REF…] [--timeout TIME]", "wait for runs; all live ones without REF"),
    "cancel": Subcommand(
        "cancel [REF… | --all] [--reason TEXT]", "stop runs; the newest live one without REF"
    ),
    "retry": Subcommand("retry [REF] [options]", "run the same again, as a new run"),
    "resume": Subcommand(
        "resume [REF] [options]", "go on from the checkpoint of a failed, cancelled or lost run"
    ),
    "replay": Subcommand(
        "replay [REF] [--speed 1|10|max]", "show a run once more: no agent, no key"
    ),
    "lost": Subcommand("lost REF…", "give up runs whose kernel cannot be seen from here"),
    "approve": Subcommand(
        "approve [REF] [CALL] [--args JSON] [--always] [--choose OPTION] [--text TEXT | -r TEXT]",
        "allow what a run asks for; --always: this tool for the rest of the run",
    ),
    "deny": Subcommand("deny [REF] [CALL] [--reason TEXT | -r TEXT]", "refuse what a run asks for"),
    "say": Subcommand("say REF TEXT…", "a message into a running agent; tells whether it was read"),
    "rm": Subcommand("rm REF… | --all-ended", "remove ended runs, with their child runs and files"),
    "export": Subcommand(
        "export [REF] [--form jsonl|json|html|md] [--out FILE]",
        "a run as a file; run-3.jsonl for #3 without FILE",
    ),
    "logs": Subcommand(
        "logs [REF] [-n N]", "what a run has printed and noted, newest last: 200 lines, or N"
    ),
    "agents": Subcommand("agents", "the agents and models here, and what each of them lacks"),
    "doctor": Subcommand("doctor", "what works here, what does not, and what to do about it"),
    "help": Subcommand("help [SUBCOMMAND]", "this list, or the line of one"),
}
ALIASES = {"stop": "cancel", "ls": "list", "-h": "help", "--help": "help"}

F = TypeVar("F", bound=Callable[..., Any])


def run_options(function: F) -> F:
    """Declare every option of the table on a magic."""
    for option in reversed(OPTIONS):
        function = option.decorate()(function)
    target = argument(
        "target", nargs="?", metavar="TARGET", help="a function or agent of this notebook"
    )
    decorated: F = target(function)
    return decorated


class Request(msgspec.Struct, frozen=True):
    """What a `%%agentrun` line asks for, read and checked."""

    target: str | None
    name: str | None
    out: str | None
    block: bool | None
    timeout_s: float | None
    model: str | None
    if_running: str
    approve: str
    tags: dict[str, str]
    id: str | None
    on: str
    python: bool
    thread: bool
    loop: str
    interpolate: bool
    max_turns: int | None
    max_tokens: int | None
    max_cost: float | None
    keep_object: bool
    tools: tuple[str, ...]
    system: str | None
    output: str | None
    mcp: tuple[str, ...]
    settings: str | None
    continues: str | None


def read_request(magic: Callable[..., Any], line: str) -> Request:
    """Return what the line asks for.

    Raises
    ------
    BadOption
        An option or a value is unknown; the message names the mend.
    """
    refuse_call(line)
    try:
        # Not by IPython's parse_argstring: it leaves the quotes in a quoted value.
        words = shlex.split(line)
    except ValueError as error:  # a quote that is never closed
        raise BadOption(
            f"the line cannot be read ({error}); close the quote, or escape it"
        ) from None
    return _request(_parsed(magic, words))


def _parsed(magic: Callable[..., Any], words: list[str]) -> Any:
    try:
        return magic.parser.parse_args(_joined(words))  # type: ignore[attr-defined]  # the decorators add it
    except UsageError as error:
        raise BadOption(_mended(str(error))) from None


def _request(args: Any) -> Request:
    """Return what was parsed, checked."""
    if args.block and args.noblock:
        raise BadOption("--block and --noblock exclude each other; give one")
    if args.out is not None and (not args.out.isidentifier() or keyword.iskeyword(args.out)):
        raise BadOption(f"--out {args.out}: give a name that Python takes for a variable")
    if args.target is not None and args.model is not None:
        raise BadOption("give a TARGET or a --model, not both")
    if args.block and args.loop == "kernel":
        raise BadOption(
            "--loop kernel cannot go on while its cell waits; leave --block out, and await run"
        )
    if args.python and (args.target is not None or args.model is not None):
        raise BadOption("--python runs the body itself; leave TARGET and --model out")
    if args.python and args.on == "process":
        raise BadOption("--python runs in this notebook's namespace; leave --on process out")
    return Request(
        args.target, args.name, args.out, True if args.block else False if args.noblock else None,
        None if args.timeout is None else duration_s(args.timeout), args.model, args.if_running or "queue",
        args.approve or "ask", _tags(args.tag or ()), args.id, args.on or "local", args.python, args.thread,
        args.loop or "host",
        not args.no_interpolate,
        _number(args.max_turns, int, "--max-turns"), _number(args.max_tokens, int, "--max-tokens"),
        _number(args.max_cost, float, "--max-cost"), args.keep_object, _names(args.tools or ()), args.system,
        args.output, tuple(args.mcp or ()), args.settings, getattr(args, "continue"),
    )  # fmt: skip


def _names(given: Sequence[str]) -> tuple[str, ...]:
    """Return names given with commas, or one by one."""
    return tuple(name for part in given for name in part.replace(",", " ").split())


def _joined(words: list[str]) -> list[str]:
    """Return the words with a value below zero joined to its option, for which it would be taken else."""
    valued = {flag for option in OPTIONS if not option.is_switch for flag in option.flags}
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in valued and re.match(r"-[\d.]", word):
            joined[-1] = f"{joined[-1]}{'=' if joined[-1].startswith('--') else ''}{word}"
        else:
            joined.append(word)
    return joined


class SequelRequest(msgspec.Struct, frozen=True):
    """What a `%agentrun retry`, `resume` or `replay` line asks for: a run, and what is to be other than there."""

    ref: str
    out: str | None
    block: bool | None
    options: dict[str, Any]


_NOT_OF_SEQUELS = ("id", "python", "no_interpolate", "continue")
_NOT_OF_REPLAYS = (
    "timeout_s", "max_turns", "max_tokens", "max_cost", "model", "approve", "on", "thread", "loop",
    "keep_object", "tools", "system", "output_type", "mcp", "settings",
)  # fmt: skip


def read_sequel(magic: Callable[..., Any], verb: str, words: list[str]) -> SequelRequest:
    """Return what the line asks for; of the options, those that it gives.

    Raises
    ------
    BadOption
        An option or a value is unknown, or has no place here; the message names the mend.
    """
    speed = take_flag(words, "--speed", has_value=True) if verb == "replay" else None
    args = _parsed(magic, words)
    for name in _NOT_OF_SEQUELS:
        if getattr(args, name):
            raise BadOption(f"--{name.replace('_', '-')} has no place in %agentrun {verb}")
    target, args.target = args.target, None  # a run, no agent
    request = _request(args)
    given = {
        "name": request.name, "timeout_s": request.timeout_s, "model": request.model,
        "max_turns": request.max_turns, "max_tokens": request.max_tokens, "max_cost": request.max_cost,
        "if_running": args.if_running, "approve": args.approve, "on": args.on,
        "tags": request.tags or None, "thread": args.thread or None, "loop": args.loop, "speed": speed,
        "keep_object": args.keep_object or None, "tools": request.tools or None, "system": request.system,
        "output_type": request.output, "mcp": request.mcp or None, "settings": request.settings,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    if verb == "replay" and (strange := [name for name in _NOT_OF_REPLAYS if name in options]):
        flag = strange[0].removesuffix("_s").replace("_", "-")
        raise BadOption(f"--{flag} has no place in %agentrun replay: no agent runs in one")
    return SequelRequest(target or "last", request.out, request.block, options)


_CALL = re.compile(r"\s*(\w+)\s*\(")


def refuse_call(line: str) -> None:
    """Raise `BadOption` for a line that calls its agent, as `slow(prompt)` would."""
    if call := _CALL.match(line):
        raise BadOption(
            f"the agent is named, not called: write %%agentrun {call[1]}, and the prompt below it"
        )


N = TypeVar("N", int, float)


def _number(text: str | None, kind: Callable[[str], N], flag: str) -> N | None:
    """Return a limit as a number; whether it can be one is the session's to say."""
    if text is None:
        return None
    try:
        return kind(text.removeprefix("$").replace(",", ""))
    except ValueError:
        what = "a whole number" if kind is int else "US dollars, such as 0.50"
        raise BadOption(f"{flag} {text}: give {what}") from None


def whole_number(text: str, flag: str) -> int:
    """Return the value of a subcommand's flag as a number of 1 or more.

    Raises
    ------
    BadOption
        It is none.
    """
    if not text.isdecimal() or not (number := int(text[:18])) > 0:
        raise BadOption(f"{flag} {text}: give a whole number, at least 1")
    return number


def _tags(pairs: Sequence[str]) -> dict[str, str]:
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise BadOption(f"--tag {pair}: write key=value")
        tags[key] = value
    return tags


def _mended(message: str) -> str:
    """Return argparse's complaint with what to do about it."""
    flags = [flag for option in OPTIONS for flag in option.flags]
    near = [
        match
        for word in re.findall(r"--?[\w-]+", message)
        if word not in flags
        for match in close_to(word, flags, 1, SLIP)
    ]
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{message}; {hint}%%agentrun? lists the options"


SLIP = 0.75
"""How alike a word and a subcommand are where a finger has slipped: `lsit`, and not `dance` for `cancel`."""

_SAY = re.compile(
    r"\s*say(?:\s+(?:(?P<quote>['\"])(?P<quoted>.+?)(?P=quote)|(?P<ref>\S+)))?(?:\s+(?P<text>.*?))?\s*",
    re.DOTALL,
)


def read_subcommand(line: str) -> tuple[str, list[str]]:
    """Return the subcommand of a `%agentrun` line and its words; `list` for an empty line.

    Raises
    ------
    BadOption
        There is no such subcommand.
    """
    if (said := _SAY.fullmatch(line)) is not None:  # the text as it is: quotes are a part of it
        return "say", [word for word in (said["quoted"] or said["ref"], said["text"]) if word]
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise BadOption(
            f"the line cannot be read ({error}); close the quote, or escape it"
        ) from None
    refuse_call(line)
    verb = words[0] if words else "list"
    verb = ALIASES.get(verb, verb)
    if verb not in SUBCOMMANDS:
        near = [name for name in SUBCOMMANDS if verb.startswith(name) or name.startswith(verb)]
        near = near or close_to(verb, SUBCOMMANDS, 3, SLIP)
        # Letters that changed places come first.
        near.sort(key=lambda name: sorted(name) != sorted(verb))
        hint = f"; did you mean {near[0]}?" if near else "."
        raise BadOption(f"%agentrun has no '{verb}'{hint} It knows: {', '.join(SUBCOMMANDS)}. "
                        "To start a run, begin its cell with %%agentrun (two per cents), the prompt below")  # fmt: skip
    return verb, words[1:]


def take_flag(words: list[str], flag: str, *, has_value: bool) -> str | None:
    """Take `flag`, and its value if it has one, out of `words`; None when it is not there.

    Raises
    ------
    BadOption
        The value is missing.
    """
    for index, word in enumerate(words):
        if has_value and word.startswith(f"{flag}="):
            del words[index]
            return word.partition("=")[2]
        if word != flag:
            continue
        if not has_value:
            del words[index]
            return flag
        if index + 1 >= len(words):
            raise BadOption(f"{flag} needs a value")
        value = words[index + 1]
        del words[index : index + 2]
        return value
    return None


def refuse_flags(verb: str, words: Sequence[str]) -> None:
    """Raise `BadOption` for an option that the subcommand does not know."""
    usage = SUBCOMMANDS[verb].usage
    flags = re.findall(r"--[a-z]+", usage)
    for word in words:
        letters = word.lstrip("-")
        if (flag := word.partition("=")[0]) in flags:  # the first one was taken out
            raise BadOption(f"{flag} is here twice, give it only once: %agentrun {usage}")
        if word == letters or letters.isdecimal():  # a reference: -1 is the last run
            continue
        near = [flag for flag in flags if letters and flag.startswith(f"--{letters}")]
        near = near or close_to(f"--{letters}", flags, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise BadOption(f"{word} is no option of it{hint}: %agentrun {usage}")


def usage_text(verb: str) -> str:
    """Return what `%agentrun VERB --help` prints."""
    return f"%agentrun {SUBCOMMANDS[verb].usage}\n{SUBCOMMANDS[verb].help}"


def help_text() -> str:
    """Return what `%agentrun help` prints."""
    width = max(len(command.usage) for command in SUBCOMMANDS.values())
    lines = [
        f"  %agentrun {command.usage:<{width}}  {command.help}" for command in SUBCOMMANDS.values()
    ]
    return "\n".join(
        [
            "%%agentrun [TARGET] [options] starts a run on the text of its cell; %%agentrun? lists the options.",
            "%agentrun alone shows the runs in a table that lives.",
            "",
            *lines,
            "",
            "REF is #3, 3, last, -1, a run's name or its id.",
        ]
    )


def close_to(word: str, known: Iterable[str], count: int, at_least: float = 0.6) -> list[str]:
    """Return what a word was perhaps meant to be, the nearest first."""
    import difflib  # with the first slip

    return difflib.get_close_matches(word, known, count, at_least)
