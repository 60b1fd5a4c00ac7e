"""Durations such as 90s or 1h30m: read and written."""

from __future__ import annotations

import re

from nbrun.core.errors import BadOption


def duration(seconds: float) -> str:
    """Return a duration as people say it: `40 ms`, `2.5 s`, `12 s`, `3 min 5 s`, `2 h 10 min`."""
    if not seconds < 1e11:  # also what is no number
        return "ages"
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if not seconds < 1e12:  # also what is no number: in somebody else's file
        return f"{seconds:g} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d)?")


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def duration_s(text: str, what: str = "duration") -> float:
    """Return `90s`, `10m`, `1h30m`, `2d` or plain seconds as seconds.

    Raises
    ------
    BadOption
        It isn't a duration, or not greater than zero.
    """
    signed = text.replace(" ", "")
    compact = signed.removeprefix("-")
    parts = list(_DURATION.finditer(compact))
    if not parts or "".join(part.group() for part in parts) != compact:
        raise BadOption(f"'{text}' isn't a duration; use for example 90s, 10m or 1h30m")
    seconds = sum(float(part.group(1)) * _UNITS[part.group(2) or "s"] for part in parts)
    if compact != signed or not seconds:
        raise BadOption(f"The {what} must be greater than zero, for example 90s")
    if seconds > 366 * 86_400:
        raise BadOption(f"'{text}' is too long; use at most a year")
    return seconds
