"""A line of `%%agentrun` or `%agentrun` as its values, checked as a whole; and the names in braces of a prompt."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nbrun.core import BadOption
from nbrun.core.commands import Command, asks_for_help
from nbrun.ui.magics.options import CELL, LINE, SET_FLAGS

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import SimpleNamespace


_CALL = re.compile(r"\s*(\w+)\s*\(")
_SAY = re.compile(
    r"\s*say(?:\s+(?:(?P<quote>['\"])(?P<quoted>.+?)(?P=quote)|(?P<ref>\S+)))?(?:\s+(?P<text>.*?))?\s*", re.DOTALL
)


def read_cell(line: str) -> SimpleNamespace:
    """Return what a `%%agentrun` line asks for; None for what it doesn't give.

    Raises `BadOption`, whose message says how to fix it, if an option or a value is wrong.
    """
    given = CELL.parse(_split(line))
    if given.target is not None and given.model is not None:
        raise BadOption("Give a TARGET or a --model, not both")
    if given.block and given.loop == "kernel":
        raise BadOption("--loop kernel makes no progress while its cell waits; leave out --block, and await the run")
    if given.python and (given.target is not None or given.model is not None):
        raise BadOption("--python runs the cell body itself; leave out TARGET and --model")
    _check_map(given)
    if given.python and given.on == "process":
        raise BadOption("--python runs in this notebook's namespace; leave out --on process")
    return given


def _check_map(given: SimpleNamespace) -> None:
    """Raise `BadOption` if the line has an option that makes no sense for many runs, or only for them."""
    if given.map is None:
        for flag, option in SET_FLAGS.items():
            if getattr(given, option.key) is not None:
                raise BadOption(f"{flag} is for a set of runs: add --map with the variable that has the inputs")
        return
    for flag, is_given, why in (
        ("--python", given.python, "runs its cell once"),
        ("--continue", given.continues is not None, "continues a single run"),
        ("--no-interpolate", given.interpolate is False, "would leave no place for the input"),
    ):
        if is_given:
            raise BadOption(f"{flag} {why}; leave it out, or leave out --map")


def read_line(line: str) -> tuple[Command, list[str]]:
    """Return a `%agentrun` line's subcommand (default: `list`) and words; raise `BadOption` for an unknown one."""
    if (say := _SAY.fullmatch(line)) is not None:  # its text is taken as it is, quotes included
        words = [word for word in (say["quoted"] or say["ref"], say["text"]) if word]
        words = ["say", *([] if asks_for_help(words[:1]) else ["--"]), *words]
    else:
        words = _split(line) or ["list"]
    if (command := LINE.find(words[0])) is not None:
        return command, words[1:]
    raise BadOption(
        f"{LINE.unknown(words[0])} To start a run, put %%agentrun on the first line of a cell and the prompt below it."
    )


def _split(line: str) -> list[str]:
    if call := _CALL.match(line):
        raise BadOption(f"Name the agent, don't call it: write %%agentrun {call[1]}, and the prompt below it")
    try:
        return shlex.split(line)
    except ValueError as error:  # a quote that is never closed
        raise BadOption(f"The line can't be read ({error}); close the quote or escape it") from None


# Names; attributes that do not begin with an underscore; whole numbers and quoted keys. All else stays as
# it is: JSON, LaTeX and format strings are full of braces that mean nothing here.
_EXPRESSION = r"[A-Za-z_]\w*(?:\.[A-Za-z]\w*|\[-?\d+\]|\['[^'\]]*'\]|\[\"[^\"\]]*\"\])*"


# LaTeX: a command with its arguments, such as \frac{a}{b}, and what follows ^, or the _ of a single letter; whole, with
# the braces in it. Atomic, so that an open brace costs no second look.
_GROUP = functools.reduce(lambda inner, _: rf"\{{(?>[^{{}}]|{inner})*+\}}", range(3), r"\{[^{}]*+\}")
_LATEX = rf"(?:\\[A-Za-z]+\*?|\^(?=\{{)|(?:(?<!\w)[A-Za-z]|(?<=[)\]]))_(?=\{{))(?:[_^]?{_GROUP}|\[[^\[\]{{}}]*\])*+"


_BRACES = re.compile(rf"{_LATEX}|\{{\{{({_EXPRESSION})\}}\}}|\{{({_EXPRESSION})\}}")


_STEP = re.compile(r"\.([A-Za-z]\w*)|\[(-?\d+)\]|\['([^'\]]*)'\]|\[\"([^\"\]]*)\"\]")


_NAME = re.compile(r"\w+")


def interpolate(text: str, names: Mapping[str, object]) -> str:
    r"""Return `text` with `{name}`, `{name.attr}`, `{name[0]}` and `{name["key"]}` replaced by their values.

    `{{name}}` stands for `{name}` itself. LaTeX stays as it is: `\frac{a}{b}`, `x_{i}^{n}`.

    Raises
    ------
    BadOption
        A name, attribute, index or key does not exist.
    """

    def value(match: re.Match[str]) -> str:
        escaped, expression = match.groups()
        if not (escaped or expression):
            return match.group()
        return f"{{{escaped}}}" if escaped else str(_look_up(expression, names))

    return _BRACES.sub(value, text)


def template(text: str, names: Mapping[str, object]) -> Callable[[object, object], str]:
    """Return a function that makes the prompt of an input and its key from a cell's text.

    `{item}`, `{key}` and the input's columns come first, then the notebook's names, with the values that they have now.
    """
    found = [match[1] or match[2] or "" for match in _BRACES.finditer(text)]
    mentioned = {name.group() for each in found if (name := _NAME.match(each)) is not None}
    kept = {name: names[name] for name in mentioned if name in names}

    def prompt(item: object, key: object) -> str:
        own = {**(item if isinstance(item, Mapping) else {}), "item": item, "key": key}
        if mentioned.isdisjoint(own):
            raise BadOption(
                f"The cell's text names nothing of its input, so all prompts would be the same: "
                f"write {' or '.join(f'{{{name}}}' for name in own)}"
            )
        return interpolate(text, {**kept, **own})

    return prompt


def look_up(expression: str, names: Mapping[str, object]) -> object:
    """Return the value of a name, or of `name.attribute`; raises `BadOption` if there is none."""
    if re.fullmatch(_EXPRESSION, expression) is None:
        raise BadOption(f"--map {expression}: name a variable of this notebook that has the inputs")
    try:
        return _look_up(expression, names)
    except BadOption:
        raise BadOption(f"--map {expression}: this notebook has no such variable; define it in a cell above") from None


def _look_up(expression: str, names: Mapping[str, object]) -> object:
    name = _NAME.match(expression)
    assert name is not None  # noqa: S101 - the pattern begins with one
    if name.group() not in names:
        raise _missing(expression, f"name '{name.group()}' is not defined")
    value = names[name.group()]
    for step in _STEP.finditer(expression, name.end()):
        value = _step(value, step, expression)
    return value


def _step(value: object, step: re.Match[str], expression: str) -> object:
    attribute, index, single, double = step.groups()
    try:
        if attribute is not None:
            return getattr(value, attribute)
        key: object = int(index) if index is not None else single if single is not None else double
        return value[key]  # type: ignore[index]  # what cannot be indexed raises TypeError
    except (AttributeError, LookupError, TypeError) as error:
        raise _missing(expression, f"{step.group()} not found ({type(error).__name__})") from error


def _missing(expression: str, why: str) -> BadOption:
    return BadOption(
        f"{{{expression}}} in the prompt: {why}; write {{{{{expression}}}}} to keep the braces, or use --no-interpolate"
    )
