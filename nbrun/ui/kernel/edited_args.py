"""Edited arguments of a question, as JSON."""

from __future__ import annotations

import json

from nbrun.core.errors import BadOption


def read_args(text: str, hint: str = 'write them as in {"path": "x"}') -> object:
    """Return the value of what was written; `hint` ends the message if it cannot be read.

    Raises
    ------
    BadOption
        It isn't valid JSON, or is null, which would mean no change.
    """
    try:
        args: object = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise BadOption(f"the arguments aren't valid JSON ({why}); {hint}") from None
    if args is None:
        raise BadOption("the arguments are null; leave them out to keep the agent's own")
    return args


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} isn't a JSON number")
