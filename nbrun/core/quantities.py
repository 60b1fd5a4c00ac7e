"""Money, sizes, counts, moments and durations as text, written one way everywhere."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from nbrun.core.errors import BadOption

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = ("", "k", "m", "g", "t")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def counted(count: int, noun: str) -> str:
    """Return `1 run`, `1,204 runs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def money(amount: float | None) -> str:
    """Return US dollars: `$0.50`, `$0.001234`, `$12,345.68`; empty for what is no amount (in another's file)."""
    if amount is None or not 0 <= amount < 1e9:
        return ""
    if 0 < amount < 5e-7:
        return "< $0.000001"
    whole, _, places = f"{amount:,.{6 if amount < 1 else 4 if amount < 100 else 2}f}".partition(".")
    return f"${whole}.{places.rstrip('0').ljust(2, '0')}"


def size_words(count: float) -> str:
    """Return bytes in decimal units, as disks are sold: `980 B`, `1.2 kB`, `3.4 MB`, `2.1 GB`."""
    if count < 1_000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):  # noqa: B007 - the last one is for all that is larger
        count /= 1_000
        if count < 999.95:
            break
    return f"{f'{count:,.1f}'.removesuffix('.0')} {unit}"


def size_bytes(text: str) -> int:
    """Return `500M`, `2 GB` (decimal, as `size_words` writes them) or `2GiB` (binary) as bytes.

    Raises `BadOption` if it isn't a size.
    """
    if (found := _SIZE.fullmatch(text.strip())) is None:
        raise BadOption(f"'{text}' isn't a size; use for example 500M or 2G, or 0 for no limit")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS.index(prefix.lower()))


def moment(at: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Return epoch seconds as local time: `2026-11-30 17:34:05`."""
    try:
        return datetime.fromtimestamp(at, UTC).astimezone().strftime(form)
    except (OverflowError, ValueError, OSError):  # in another's file
        return str(at)


def date_and_time(at: float) -> str:
    """Return epoch seconds as local time, for a sentence: `30 Nov 2026, 17:34`."""
    return moment(at, "%d %b %Y, %H:%M").removeprefix("0")


def duration(seconds: float) -> str:
    """Return a duration in words: `40 ms`, `2.5 s`, `12 s`, `3 min 5 s`, `2 h 10 min`."""
    if not seconds < 1e11:  # also NaN, in another's file
        return "ages"
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
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


def duration_s(text: str, what: str = "duration") -> float:
    """Return `90s`, `10m`, `1h30m`, `2d` or plain seconds as seconds.

    Raises `BadOption` if it isn't a duration, or not greater than zero.
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
