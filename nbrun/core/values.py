"""Any value → JSON-like data. Never raises, never runs more of a value than its `repr`."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from nbrun.core.text import clean_text

if TYPE_CHECKING:
    Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
    """What can be stored: JSON's types, with NaN and the infinities as floats."""
else:
    Plain = Any  # msgspec reads these annotations to decode, and knows no recursive unions

MAX_DEPTH = 32
MAX_PARTS = 500_000
"""How many parts of a value are stored: a value that shares its parts can have an astronomical number of paths."""
_NUMBERS, _NUMBERS_PER_PART = {int, float, bool, type(None)}, 10  # a list of nothing else is copied as a whole
MAX_REPR = 2_000
BYTES_SHOWN = 60
_PART_BYTES = 16  # of a number or a reference, about
_ATTRIBUTES = 100  # of an object, that its size is taken from
_INT_LIMIT = 2**63


TYPE_KEY = "$type"
REPR_KEY = "$repr"
BASE64_KEY = "$base64"


def plain(value: object) -> Plain:
    """Return `value` as JSON-like data.

    A value without such a form becomes `{"$type": its type's name, "$repr": its repr}`, so that a reader sees
    that it isn't the value itself. Dataclasses, pydantic models, msgspec structs and mappings become
    objects; sequences and sets become lists; dates and paths become text.
    """
    return sized(value)[0]


def sized(value: object) -> tuple[Plain, int]:
    """Return `value` as JSON-like data, and about how many bytes the two of them take; see `plain`."""
    walk = _Walk()
    try:
        return _plain(value, walk), walk.size
    except Exception as error:  # a hostile or broken value must not end a run
        return {TYPE_KEY: type_name(value), REPR_KEY: f"<not readable: {type(error).__name__}>"}, walk.size


def type_name(value: object) -> str:
    """Return the full name of a value's type, without the module for builtins."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def marked_repr(value: object) -> dict[str, Plain]:
    """Return the placeholder for a value that has no JSON-like form."""
    try:
        text = repr(value)
    except Exception as error:  # a broken __repr__ must not end a run
        text = f"<repr failed: {type(error).__name__}>"
    if len(text) > MAX_REPR:
        # At a space, if there is one: half a secret would not be recognised.
        space = text.rfind(" ", MAX_REPR - 200, MAX_REPR)
        text = text[: space if space > 0 else MAX_REPR] + f"… ({len(text):,} characters)"
    return {TYPE_KEY: type_name(value), REPR_KEY: clean_text(text)}


class _Walk:
    """The state of a walk through one value: the containers it is in, how many parts may follow, and its size."""

    __slots__ = ("inside", "left", "size")

    def __init__(self) -> None:
        self.inside: set[int] = set()
        self.left = MAX_PARTS
        self.size = 0


def _plain(value: object, walk: _Walk) -> Plain:
    walk.left -= 1
    walk.size += _PART_BYTES
    match value:
        case None | bool():
            return value
        case str():
            walk.size += len(value)
            return clean_text(value)
        case Enum():
            return _plain(value.value, walk)
        case int():
            return int(value) if -_INT_LIMIT <= value < _INT_LIMIT else marked_repr(value)
        case float():
            return float(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case PurePath() | UUID():
            return clean_text(str(value))
        case bytes() | bytearray() | memoryview():
            walk.size += len(value) * 7 // 3  # with its text, which is a third longer
            return mark_bytes(value)
    if id(value) in walk.inside:
        return _left_out(value, "contains itself")
    if len(walk.inside) >= MAX_DEPTH:
        return _left_out(value, "nested too deeply")
    if walk.left <= 0:
        return _left_out(value, "too many parts")
    walk.inside.add(id(value))
    try:
        return _composed(value, walk)
    finally:
        walk.inside.discard(id(value))


def _composed(value: object, walk: _Walk) -> Plain:
    match value:
        case Mapping():
            found: dict[str, Plain] = {}
            for key, item in value.items():
                if walk.left <= 0:
                    found["…"] = _left_out(value, "too many parts")
                    break
                found[_key(key)] = _plain(item, walk)
            return found
        case list() | tuple() | set() | frozenset():
            return _listed(value, walk)
        case msgspec.Struct():
            return {name: _plain(getattr(value, name), walk) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value))
        return {name: _plain(getattr(value, name), walk) for name in fields}
    dump = getattr(type(value), "model_dump", None)  # pydantic's models, found without importing it
    if callable(dump):
        return _plain(dump(value), walk)
    walk.size += _held_bytes(value)
    return marked_repr(value)


def _listed(values: Iterable[object], walk: _Walk) -> list[Plain]:
    kinds = set(map(type, values))
    if kinds <= _NUMBERS:
        numbers: list[Any] = list(_ordered(values))
        if int not in kinds or all(-_INT_LIMIT <= n < _INT_LIMIT for n in numbers if type(n) is int):
            walk.left -= len(numbers) // _NUMBERS_PER_PART
            walk.size += _PART_BYTES * len(numbers)
            return numbers
    found: list[Plain] = []
    for item in _ordered(values):
        if walk.left <= 0:
            found.append(_left_out(values, "too many parts"))
            break
        found.append(_plain(item, walk))
    return found


def _held_bytes(value: object) -> int:
    """Return how many bytes an array, a table, or an object with such attributes takes; 0 for what is not known."""
    try:
        if found := _own_bytes(value):
            return found
        attributes = getattr(value, "__dict__", None) or {}
        return sum(map(_own_bytes, [*attributes.values()][:_ATTRIBUTES]))
    except Exception:  # a guess, which must not cost the value its form
        return 0


def _own_bytes(value: object) -> int:
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    # Only of these packages, which are quick to say it: a lazy array would be computed.
    array: Any = value
    match type(value).__module__.partition(".")[0]:
        case "numpy" | "torch" | "pyarrow":
            return int(array.nbytes)
        case "pandas":
            used = array.memory_usage(deep=False)
            return int(used.sum() if hasattr(used, "sum") else used)
        case "polars":
            return int(array.estimated_size())
    return 0


def _left_out(value: object, why: str) -> dict[str, Plain]:
    """Return the placeholder for a part that is not stored; its repr could be endless as well."""
    return {TYPE_KEY: type_name(value), REPR_KEY: f"<left out: {why}>"}


def _key(key: object) -> str:
    return clean_text(key) if isinstance(key, str) else clean_text(str(key))


def _ordered(values: Iterable[object]) -> Iterable[object]:
    """Return sets in the order of their repr, so that equal sets are stored alike."""
    return sorted(values, key=repr) if isinstance(values, set | frozenset) else values


def shown(value: Plain, limit: int = 200) -> str:
    """Return JSON-like data as one short line to read."""
    text = readable(value)
    line = " ".join(text[: 8 * limit].split())  # of megabytes only the beginning is looked at
    is_whole = len(text) <= 8 * limit and len(line) <= limit
    return line if is_whole else line[: limit - 1] + "…"


def readable(value: Plain) -> str:
    """Return JSON-like data as text to read: a string as it is, a placeholder as its repr, the rest as JSON."""
    value = _unmarked(value)
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return msgspec.json.encode(value).decode()


def has_placeholder(value: Plain) -> bool:
    """Return whether a part of JSON-like data is only the repr of what it was."""
    if isinstance(value, list):
        return any(map(has_placeholder, value))
    return isinstance(value, dict) and (REPR_KEY in value or any(map(has_placeholder, value.values())))


def revived(value: Plain) -> object:
    """Return JSON-like data with the bytes in it decoded."""
    if isinstance(value, list):
        return [revived(item) for item in value]
    if not isinstance(value, dict):
        return value
    if (data := marked_bytes(value)) is not None:
        return data
    return {key: revived(item) for key, item in value.items()}


def mark_bytes(data: bytes | bytearray | memoryview) -> dict[str, Plain]:
    """Return bytes as JSON-like data."""
    return {TYPE_KEY: "bytes", BASE64_KEY: base64.b64encode(data).decode()}


def marked_bytes(value: dict[str, Plain]) -> bytes | None:
    """Return the bytes that a value encodes; None if it is something else."""
    if BASE64_KEY not in value or value.keys() != {TYPE_KEY, BASE64_KEY}:
        return None
    try:
        return base64.b64decode(str(value[BASE64_KEY]), validate=True)
    except ValueError:  # in another's file
        return None


def _unmarked(value: Plain) -> Plain:
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if REPR_KEY in value:
        return str(value[REPR_KEY])
    if (data := marked_bytes(value)) is not None:
        return repr(data) if len(data) <= BYTES_SHOWN else f"{data[:BYTES_SHOWN]!r}… ({len(data):,} bytes)"
    return {key: _unmarked(item) for key, item in value.items()}
