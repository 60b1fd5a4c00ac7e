"""Command lines as data: one table of commands that is read, explained and completed from.

`%%agentrun`, `%agentrun` and the shell's `nbrun` are commands of this kind. Not argparse: it takes `-5s` for an option,
refuses an option between two positional arguments, and words its errors differently in each Python version.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec

from nbrun.core.errors import BadOption

SLIP = 0.75
"""How similar two words are if one is a typo: `lsit` and `list`, not `dance` and `cancel`."""

_NOT_AN_OPTION = re.compile(r"[^-]|-[\d.]|-?$")  # also -1, the newest run, and -5s
_WIDTH = 28


class Argument(msgspec.Struct, frozen=True):
    """One argument of a command: an option, or a place, whose name has no dash.

    Parameters
    ----------
    takes : what its value is called, in capitals; empty for a switch.
    field : the name of its value; by default made from its last name.
    value : what a switch stands for.
    read : makes a value of the text. A `ValueError` says what it should have been.
    gather : makes one value of all; None where it may be given once.
    """

    names: tuple[str, ...]
    help: str
    takes: str = ""
    choices: tuple[str, ...] = ()
    is_required: bool = False
    field: str = ""
    value: object = True
    read: Callable[[str], Any] = str
    gather: Callable[[list[Any]], Any] | None = None
    default: object = None
    group: str = ""

    @property
    def is_option(self) -> bool:
        """Whether it has a flag, which may be anywhere in the line."""
        return self.names[0].startswith("-")

    @property
    def takes_value(self) -> bool:
        """Whether it takes a value."""
        return bool(self.takes or self.choices) or not self.is_option

    @property
    def key(self) -> str:
        """The name of its value."""
        return self.field or self.names[-1].strip("-…").lower().replace("-", "_")

    @property
    def usage(self) -> str:
        """The argument as one types it: `-n/--name NAME`."""
        value = "|".join(self.choices) if self.choices else self.takes
        if not self.is_option:
            return f"{self.names[0]}…" if self.gather else self.names[0]
        return "/".join(self.names) + (f" {value}" if value else "")

    def value_of(self, flag: str, text: str) -> object:
        """Return the value of a text; raises `BadOption` if the argument doesn't take it."""
        if self.choices and text not in self.choices:
            raise BadOption(f"{flag} {text}: choose from {', '.join(self.choices)}")
        try:
            return self.read(text)
        except ValueError as error:
            raise BadOption(f"{flag} {text}: {error}") from None


@dataclass(slots=True)
class Line:
    """What the words of a line mean, mistakes included.

    Parameters
    ----------
    given : each argument with its flag and text; None for a word that has no place.
    pending : the option whose value comes next.
    place : what the next word is, if it isn't an option.
    """

    given: list[tuple[Argument | None, str, str | None]] = field(default_factory=list)
    pending: Argument | None = None
    place: Argument | None = None


class Command(msgspec.Struct, frozen=True):
    """One command: its name as one types it, what it does, its arguments, and the commands below it.

    Parameters
    ----------
    arguments : in the order of its usage. Of arguments that are a tuple of their own, one may be given.
    options : more arguments, which the usage leaves out; `see` is where they are listed.
    """

    name: str
    help: str
    arguments: tuple[Argument | tuple[Argument, ...], ...] = ()
    options: tuple[Argument, ...] = ()
    commands: tuple[Command, ...] = ()
    aliases: tuple[str, ...] = ()
    see: str = ""

    @property
    def verb(self) -> str:
        """The last word of its name."""
        return self.name.split()[-1]

    def all(self) -> Iterator[Argument]:
        """Yield every argument."""
        for each in self.arguments:
            yield from (each,) if isinstance(each, Argument) else each
        yield from self.options

    def flags(self) -> dict[str, Argument]:
        """Return the options by their flags, the long one first."""
        return {name: each for each in self.all() if each.is_option for name in reversed(each.names)}

    # --- reading -----------------------------------------------------------------------------------

    def walk(self, words: Sequence[str]) -> Line:
        """Return what the words are; nothing is refused."""
        flags, line = self.flags(), Line()
        places = [each for each in self.all() if not each.is_option]
        is_open = True  # until `--`, after which all words are places
        flag = ""
        for word in words:
            name, equals, text = word.partition("=")
            if line.pending and not (word.startswith("--") or word in flags):
                line.given.append((line.pending, flag, word))
                line.pending = None
                continue
            if line.pending:
                line.given.append((line.pending, flag, None))
                line.pending = None
            if word == "--" and is_open:
                is_open = False
            elif is_open and (found := flags.get(name)):
                if found.takes_value and not equals:
                    line.pending, flag = found, name
                else:
                    line.given.append((found, name, text if equals else None))
            elif is_open and (found := _joined(word, flags)):
                line.given.append((found, word[:2], word[2:]))
            elif is_open and not _NOT_AN_OPTION.match(word):
                line.given.append((None, name, None))
            else:
                line.given.append((places[0] if places else None, "", word))
                if places and places[0].gather is None:
                    del places[0]
        if line.pending:
            line.given.append((line.pending, flag, None))
        line.place = places[0] if places else None
        return line

    def read(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the values that the words give, by the keys of their arguments.

        Raises `BadOption` if a word has no place here, or a value is wrong or missing.
        """
        found: dict[str, Any] = {}
        said: dict[str, str] = {}
        for argument, flag, text in self.walk(words).given:
            if argument is None:
                raise self._misplaced(flag, text)
            if argument.takes_value and text is None:
                raise BadOption(f"{flag} needs a value: {flag} {argument.usage.partition(' ')[2]}")
            if not argument.takes_value and text is not None:
                raise BadOption(f"{flag} takes no value")
            value = argument.value if text is None else argument.value_of(flag, text)
            if argument.gather is not None:
                found.setdefault(argument.key, []).append(value)
            elif argument.key in found:
                self._refuse_twice(said[argument.key], flag)
            else:
                found[argument.key] = value
            said[argument.key] = flag or argument.usage
        for either in self.arguments:
            if not isinstance(either, Argument):
                both = [each.usage.partition(" ")[0] for each in either if each.key in found]
                if len(both) > 1:
                    raise BadOption(f"Give {' or '.join(both)}, not both")
        for argument in self.all():
            if argument.gather is not None and argument.key in found:
                found[argument.key] = argument.gather(found[argument.key])
            if argument.is_required and argument.key not in found:
                raise BadOption(f"{self.name} needs {argument.names[0]}. Usage: {self.usage}")
        return found

    def parse(self, words: Sequence[str]) -> SimpleNamespace:
        """Return the values that the words give, and the defaults of the others; raises as `read` does."""
        defaults = {each.key: each.default for each in self.all()}
        return SimpleNamespace(**{**defaults, **self.read(words)})

    def _misplaced(self, flag: str, text: str | None) -> BadOption:
        if text is not None:
            return BadOption(f"{self.name} takes no further argument: leave out '{text}'")
        letters, flags = flag.lstrip("-"), [*self.flags()]
        near = [known for known in flags if letters and known.startswith(f"--{letters}")]
        near = near or close_to(f"--{letters}", flags, 1, SLIP)
        hint = f"; did you mean {near[0]}?" if near else "."
        where = f"See {self.see}" if self.see else f"Usage: {self.usage}"
        return BadOption(f"{self.name} has no option {flag}{hint} {where}")

    def _refuse_twice(self, before: str, now: str) -> None:
        if before == now:
            raise BadOption(f"{now} is given twice; give it once")
        raise BadOption(f"{before} and {now} exclude each other; give one")

    def find(self, word: str) -> Command | None:
        """Return the command below this one that has this name."""
        return next((each for each in self.commands if word in (each.verb, *each.aliases)), None)

    def unknown(self, word: str) -> BadOption:
        """Return the error for a word that names no command below this one."""
        verbs = [each.verb for each in self.commands]
        near = [verb for verb in verbs if word.startswith(verb) or verb.startswith(word)]
        near = near or close_to(word, verbs, 3, SLIP)
        near.sort(key=lambda verb: sorted(verb) != sorted(word))  # letters that changed places first
        hint = f"; did you mean {near[0]}?" if near else "."
        return BadOption(f"Unknown subcommand '{word}'{hint} Available: {', '.join(verbs)}.")

    # --- explaining --------------------------------------------------------------------------------

    @property
    def usage(self) -> str:
        """The command as one types it: `nbrun show REF [PATH]`."""
        parts = [self.name]
        for each in self.arguments:
            either = (each,) if isinstance(each, Argument) else each
            words = " | ".join(argument.usage for argument in either)
            parts.append(words if either[0].is_required else f"[{words}]")
        parts += ["[options]"] if self.options else []
        return " ".join([*parts, "COMMAND"] if self.commands else parts)

    def manual(self) -> str:
        """Return the usage, what the command does, its arguments and the commands below it."""
        lines = [self.usage, self.help]
        if rows := [(each.usage, each.help) for each in self.all()]:
            lines += ["", *two_columns(rows)]
        if self.commands:
            lines += ["", *two_columns([(each.verb, each.help) for each in self.commands])]
            lines += ["", f"{self.name} COMMAND --help explains one."]
        return "\n".join(lines)


def _joined(word: str, flags: Mapping[str, Argument]) -> Argument | None:
    """Return the option of `-n5`; -name is rather --name, with a dash too few."""
    found = flags.get(word[:2]) if re.match(r"-\w.", word) else None
    is_slip = any(flag.startswith(f"-{word}") for flag in flags)
    return found if found and found.takes_value and not is_slip else None


def asks_for_help(words: Sequence[str]) -> bool:
    """Return whether `-h` or `--help` is among the options."""
    options = words[: words.index("--")] if "--" in words else words
    return "-h" in options or "--help" in options


def two_columns(rows: Iterable[tuple[str, str]], indent: str = "  ") -> list[str]:
    """Return rows as lines; where the first column is wide, the second is on a line of its own."""
    lines = []
    for left, right in rows:
        if len(left) > _WIDTH:
            lines += [f"{indent}{left}", f"{indent}{'':<{_WIDTH}}  {right}"]
        else:
            lines.append(f"{indent}{left:<{_WIDTH}}  {right}")
    return lines


def close_to(word: str, known: Iterable[str], count: int, at_least: float = 0.6) -> list[str]:
    """Return what a word was perhaps meant to be, the nearest first."""
    import difflib  # with the first slip

    return difflib.get_close_matches(word, known, count, at_least)


def integer(text: str) -> int:
    """Return a whole number, as `10,000` too, its range unchecked; raises `ValueError` if it isn't one."""
    try:
        return int(text.replace(",", ""))
    except ValueError:
        raise ValueError("expected a whole number") from None


def whole_number(text: str) -> int:
    """Return a number of 1 or more: `10`, `10,000`; raises `ValueError` if it isn't one."""
    digits = text.replace(",", "")
    if not digits.isdecimal() or not (number := integer(digits[:18])) > 0:
        raise ValueError("expected a whole number, at least 1")
    return number


def set_number(text: str) -> int:
    """Return the number of a set: of `12`, `#12` or `set-12`; raises `ValueError` if it isn't one."""
    try:
        return whole_number(text.lower().removeprefix("set").strip("-# "))
    except ValueError:
        raise ValueError("expected a set, such as 12 or set-12") from None


# --- what the notebook and the shell have in common ------------------------------------------------

REFERENCE = "REF is #3, 3, last, -1, a run's name or its id."
_NUMBERS = range(-(2**63), 2**63)  # what SQLite takes; what is longer may be a name
REF = Argument(("REF",), "the run: #3, 3, last, -1, its name or its id")
STATUS = Argument(("--status",), "only runs with this status: completed, failed, running …", "STATUS")
FILTERS = (
    STATUS,
    Argument(("--name",), "only runs of this name", "NAME"),
    Argument(("--agent",), "only runs of this agent or model", "AGENT"),
    Argument(("--tag",), "only runs with this tag, or with any tag K", "K=V"),
    Argument(("--since",), "only runs of the last 2h, or since 2026-01-31", "TIME"),
    Argument(("--text",), "only runs whose name, prompt, output or error contains this text", "TEXT"),
    Argument(("--set",), "only runs of this set: 12 or set-12", "SET", field="in_set", read=set_number),
)
FORMS = ("jsonl", "json", "html", "md")
"""What runs can be exported as; the first two can be imported again."""
CASSETTE = "cassette"
"""What the model calls of a run are exported as, in a notebook: they are beside the store."""


def number_of(ref: str) -> int | None:
    """Return the run's number that a reference is; None for a name or an id.

    Below 0 it is a place from the end: `last` and -1 are the newest run that somebody started. Its child runs aren't
    counted; they have numbers, names and ids.
    """
    digits = "-1" if ref == "last" else ref.removeprefix("#")
    is_number = digits.removeprefix("-").isdecimal() and len(digits) <= 20  # int() takes no text of any length
    return number if is_number and (number := int(digits)) in _NUMBERS else None
