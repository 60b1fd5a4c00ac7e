"""What a line of `%agentrun` or `%%agentrun` asks for: its words, read and checked."""

from __future__ import annotations

import keyword
import re
import shlex
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from IPython.core.error import UsageError

from nbrun.core.durations import duration_s
from nbrun.core.errors import BadOption
from nbrun.ui.magics.options import ALIASES, OPTIONS, SUBCOMMANDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


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


def close_to(word: str, known: Iterable[str], count: int, at_least: float = 0.6) -> list[str]:
    """Return what a word was perhaps meant to be, the nearest first."""
    import difflib  # with the first slip

    return difflib.get_close_matches(word, known, count, at_least)
