"""Arguments that a person has edited, as the JSON that they wrote."""

from __future__ import annotations

import json

from nbrun.core.errors import BadOption


def read_args(text: str, mend: str = 'write them as in {"path": "x"}') -> object:
    """Return the value of what was written; `mend` ends the message of what cannot be read.

    Raises
    ------
    BadOption
        It is no JSON, or null, which would stand for no change.
    """
    try:
        args: object = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise BadOption(f"the arguments are no JSON ({why}); {mend}") from None
    if args is None:
        raise BadOption("the arguments are null; leave them out to keep the agent's own")
    return args


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no number of JSON's")
