"""Any value → JSON-like data. Never raises, never runs more of a value than its fields, items and `repr`."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
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
MAX_BYTES = 60_000_000
"""How many bytes of text are stored of a value: the same long text may be in it many times."""
_NUMBERS = {id(kind) for kind in (int, float, bool, type(None))}  # a list of nothing else is copied as a whole
_NUMBERS_PER_PART = 10
MAX_REPR = 2_000
BYTES_SHOWN = 60
_PART_BYTES = 16  # of a number or a reference, about
_ATTRIBUTES = 100  # of an object, that its size is taken from
_INT_LIMIT = 2**63


_BUILTIN = (dict, list, tuple, set, frozenset, bytes, bytearray, datetime, date, time, timedelta)
"""Types whose values have no code of their own."""

TYPE_KEY = "$type"
REPR_KEY = "$repr"
BASE64_KEY = "$base64"


def plain(value: object) -> Plain:
    """Return `value` as JSON-like data.

    A value without such a form becomes `{"$type": its type's name, "$repr": its repr}`, so that a reader sees
    that it isn't the value itself. Dataclasses, pydantic models, msgspec structs and mappings become
    objects; sequences and sets become lists; dates and paths become text. A part that raises costs only itself.
    """
    return sized(value)[0]


def sized(value: object, *, no_code: str = "") -> tuple[Plain, int]:
    """Return `value` as JSON-like data, and about how many bytes the two of them take; see `plain`.

    Parameters
    ----------
    no_code : why the value's own code must not run, which may take any time; parts that need it are left out.
    """
    walk = _Walk(no_code)
    return _plain(value, walk), walk.size


def is_simple(value: object, parts: int = 200, characters: int = 100_000) -> bool:
    """Return whether a value is small and consists of Python's own types, so that `plain` runs no code of its own."""
    waiting: list[Any] = [value]
    for one in waiting:  # may grow during the loop
        kind = type(one)
        if kind is str or kind is bytes:
            characters -= len(one)
        elif kind is dict and len(one) <= parts:
            waiting += one
            waiting += one.values()
        elif (kind is list or kind is tuple) and len(one) <= parts:
            waiting += one
        elif not (one is None or kind is bool or kind is int or kind is float):
            return False
        if len(waiting) > parts or characters < 0:
            return False
    return True


_name_of, _module_of = type.__dict__["__qualname__"].__get__, type.__dict__["__module__"].__get__


def type_name(value: object) -> str:
    """Return the full name of a value's type, without the module for builtins; runs no code of the type's."""
    kind = type(value)
    name, module = _name_of(kind), _module_of(kind)
    return str(name) if type(module) is not str or module == "builtins" else f"{module}.{name}"


def marked_repr(value: object) -> dict[str, Plain]:
    """Return the placeholder for a value that has no JSON-like form."""
    try:
        text = clean_text(repr(value))
    except Exception as error:  # a broken __repr__ must not end a run
        text = f"<repr failed: {type(error).__name__}>"
    if len(text) > MAX_REPR:
        # At a space, if there is one; half a secret is found before the mark alone.
        space = text.rfind(" ", MAX_REPR - 200, MAX_REPR)
        text = text[: space if space > 0 else MAX_REPR] + f"… ({len(text):,} characters)"
    return _stand_in(value, text)


class _Walk:
    """The state of a walk through one value: the containers it is in, how much may follow, and its size."""

    __slots__ = ("inside", "left", "no_code", "room", "size")

    def __init__(self, no_code: str) -> None:
        self.inside: set[int] = set()
        self.left = MAX_PARTS
        self.room = MAX_BYTES
        self.no_code = no_code
        self.size = 0

    def takes(self, size: int) -> bool:
        """Return whether there is room for so many bytes of text, and count them if there is."""
        if size > self.room:
            return False
        self.room -= size
        self.size += size
        return True


def _plain(value: object, walk: _Walk) -> Plain:
    walk.left -= 1
    walk.size += _PART_BYTES
    # By its type, never by its class, which it may lie about: asking for that would run its code.
    kind = type(value)
    if kind is str:
        return _text(value, walk)
    if value is None or kind is bool or kind is float:
        return value  # type: ignore[return-value]  # its type is known
    if kind is int:
        return value if -_INT_LIMIT <= value < _INT_LIMIT else marked_repr(value)  # type: ignore[operator, return-value]
    if id(value) in walk.inside:
        return _left_out(value, "contains itself")
    if len(walk.inside) >= MAX_DEPTH:
        return _left_out(value, "nested too deeply")
    if walk.left <= 0:
        return _left_out(value, "too many parts")
    if walk.no_code and not any(kind is known for known in _BUILTIN):
        return _left_out(value, walk.no_code)
    walk.inside.add(id(value))
    try:
        if (composed := _composed(value, kind, walk)) is not None:
            return composed
        return _scalar(value, kind, walk)
    except Exception as error:  # a hostile or broken part must not cost the others, or end a run
        return _unreadable(value, error)
    finally:
        walk.inside.discard(id(value))


def _composed(value: Any, kind: type, walk: _Walk) -> Plain:
    """Return the form of a container or a model; None if it is neither."""
    if kind is dict:
        return _mapped(value, tuple(value.items()), walk)  # in one step: a thread may still change it
    if issubclass(kind, list | tuple | set | frozenset):
        return _listed(value, kind, walk)
    if issubclass(kind, Mapping):
        return _mapped(value, value.items(), walk)
    if issubclass(kind, msgspec.Struct):
        return _mapped(value, _fields(value, kind.__struct_fields__), walk)
    if dataclasses.is_dataclass(kind):
        return _mapped(value, _fields(value, [field.name for field in dataclasses.fields(kind)]), walk)
    dump = getattr(kind, "model_dump", None)  # pydantic's models, found without importing it
    if not callable(dump):
        return None
    try:
        dumped = dump(value)
    except Exception:  # for a part that it cannot dump: its repr says more than nothing
        return marked_repr(value)
    return _plain(dumped, walk)


def _scalar(value: Any, kind: type, walk: _Walk) -> Plain:
    if issubclass(kind, str):
        return _text(value, walk)
    if issubclass(kind, Enum):
        return _plain(value.value, walk)
    if issubclass(kind, int):
        return _plain(int.__int__(value), walk)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, datetime | date | time):
        return _text(value.isoformat(), walk)
    if issubclass(kind, timedelta):
        return float(value.total_seconds())
    if issubclass(kind, PurePath | UUID):
        return _text(str(value), walk)
    if issubclass(kind, bytes | bytearray | memoryview):
        size = memoryview(value).nbytes
        # With its text, which is a third longer.
        return mark_bytes(value) if walk.takes(size * 7 // 3) else _left_out(value, "too large")
    walk.size += _held_bytes(value)
    return marked_repr(value)


def _text(value: Any, walk: _Walk) -> Plain:
    text = clean_text(value)
    return text if walk.takes(len(text)) else _left_out(value, "too large")


def _fields(value: object, names: Iterable[str]) -> Iterator[tuple[str, object]]:
    """Yield the fields of an object; where one cannot be read, the error stands in for it."""
    for name in names:
        try:
            yield name, getattr(value, name)
        except Exception as error:  # a property, say
            yield name, _unreadable(value, error)


def _mapped(value: object, items: Iterable[tuple[object, object]], walk: _Walk) -> dict[str, Plain]:
    found: dict[str, Plain] = {}
    try:
        for key, item in items:
            if walk.left <= 0 or walk.room <= 0:
                found["…"] = _left_out(value, "too many parts")
                break
            found[_key(key, found, walk)] = _plain(item, walk)
    except Exception as error:  # what it gave before is kept
        if not found:
            raise
        found["…"] = _unreadable(value, error)
    return found


def _listed(values: Any, kind: Any, walk: _Walk) -> list[Plain]:
    base = next(known for known in (list, tuple, set, frozenset) if issubclass(kind, known))
    is_set = base is set or base is frozenset
    items: Iterable[object] = values
    if kind is base or kind.__iter__ is base.__iter__:
        items = tuple(base.__iter__(values))  # in one step, as above; it has an end
        kinds = set(map(id, map(type, items)))  # a type may have a hash of its own
        if kinds <= _NUMBERS:
            numbers: list[Any] = sorted(items, key=repr) if is_set else list(items)
            if id(int) not in kinds or all(-_INT_LIMIT <= n < _INT_LIMIT for n in numbers if type(n) is int):
                walk.left -= len(numbers) // _NUMBERS_PER_PART
                walk.size += _PART_BYTES * len(numbers)
                return numbers
    found: list[Plain] = []
    try:
        for item in items:
            if walk.left <= 0 or walk.room <= 0:
                found.append(_left_out(values, "too many parts"))
                break
            found.append(_plain(item, walk))
    except Exception as error:  # what it gave before is kept
        if not found:
            raise
        found.append(_unreadable(values, error))
    if is_set:
        found.sort(key=repr)  # so that equal sets are stored alike
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


def _stand_in(value: object, text: str) -> dict[str, Plain]:
    return {TYPE_KEY: clean_text(type_name(value)), REPR_KEY: text}


def _left_out(value: object, why: str) -> dict[str, Plain]:
    """Return the placeholder for a part that is not stored; its repr could be endless as well."""
    return _stand_in(value, f"<left out: {why}>")


def _unreadable(value: object, error: Exception) -> dict[str, Plain]:
    return _stand_in(value, f"<not readable: {type(error).__name__}>")


def _key(key: object, others: Collection[str], walk: _Walk) -> str:
    """Return a key as text that none of the others has: `1` and `"1"` are two keys."""
    text = f"<{clean_text(type_name(key))}>"
    if not walk.no_code or is_simple(key):
        with contextlib.suppress(Exception):  # of its own code
            text = clean_text(str(key))
    if not walk.takes(len(text)):
        text = text[:BYTES_SHOWN]
    if text in others:
        text = next(name for number in itertools.count(2) if (name := f"{text} ({number})") not in others)
    return text


def as_object(value: Plain) -> Plain:
    """Return the JSON object that a text is, if it is one; everything else as it is."""
    if not (isinstance(value, str) and value.lstrip()[:1] == "{"):
        return value
    try:
        return plain(msgspec.json.decode(value))
    except (msgspec.DecodeError, RecursionError, ValueError):  # also text that UTF-8 can't hold
        return value


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


def is_whole(value: Plain) -> bool:
    """Return whether `readable` shows all of JSON-like data: nothing was left out of it, or is cut."""
    if isinstance(value, list):
        return all(map(is_whole, value))
    if not isinstance(value, dict):
        return True
    if REPR_KEY in value:
        return _NOT_ALL.search(str(value[REPR_KEY])) is None
    if (data := marked_bytes(value)) is not None:
        return len(data) <= BYTES_SHOWN
    return all(map(is_whole, value.values()))


_NOT_ALL = re.compile(r"^<(?:left out|not readable|repr failed): |… \([\d,]+ characters\)$")


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
