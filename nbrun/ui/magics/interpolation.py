"""`{name}` in a prompt → the value of that name in the notebook. Nothing is ever evaluated."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nbrun.core import BadOption

if TYPE_CHECKING:
    from collections.abc import Mapping

# Names; attributes that do not begin with an underscore; whole numbers and quoted keys. All else stays as
# it is: JSON, LaTeX and format strings are full of braces that mean nothing here.
_EXPRESSION = r"[A-Za-z_]\w*(?:\.[A-Za-z]\w*|\[-?\d+\]|\['[^'\]]*'\]|\[\"[^\"\]]*\"\])*"
_BRACES = re.compile(r"\{\{(" + _EXPRESSION + r")\}\}|\{(" + _EXPRESSION + r")\}")
_STEP = re.compile(r"\.([A-Za-z]\w*)|\[(-?\d+)\]|\['([^'\]]*)'\]|\[\"([^\"\]]*)\"\]")
_NAME = re.compile(r"\w+")


def interpolate(text: str, names: Mapping[str, object]) -> str:
    """Return `text` with `{name}`, `{name.attr}`, `{name[0]}` and `{name["key"]}` replaced by their values.

    `{{name}}` stands for `{name}` itself.

    Raises
    ------
    BadOption
        A name, attribute, index or key does not exist.
    """

    def value(match: re.Match[str]) -> str:
        escaped, expression = match.groups()
        return f"{{{escaped}}}" if escaped else str(_look_up(expression, names))

    return _BRACES.sub(value, text)


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
