"""Redacts secrets in text and data, also if a secret is split across the deltas of a stream."""

from __future__ import annotations

import json
import re
import threading
from typing import TYPE_CHECKING
from urllib.parse import quote

from nbrun.core.errors import BadOption
from nbrun.core.text import clean_text
from nbrun.core.values import Plain, mark_bytes, marked_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping


MIN_LENGTH = 8
"""Shorter values are left alone: replacing them would damage ordinary words."""

WORDS = ("KEY", "TOKEN", "SECRET", "PASS", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS")
"""Words in the name of an environment variable that mark its value as secret."""
PARTS = ("PASSWORD", "PASSWD", "APIKEY")
"""The same, as any part of the name."""

_SECRET_NAME = re.compile(rf"(?:^|_)(?:{'|'.join(WORDS)})(?:$|_)|{'|'.join(PARTS)}", re.IGNORECASE)

RULE = (
    f"These values are replaced by [NAME] before anything is stored or shown: environment variables with one of the "
    f"words {', '.join(WORDS)} in their name, such as OPENAI_API_KEY, or with {', '.join(PARTS)} anywhere in it, and "
    f"values given to nbrun.redact(value). Values shorter than {MIN_LENGTH} characters are never replaced."
)
"""What is replaced, for users."""


def forms_of(value: str) -> set[str]:
    """Return the forms of a secret in texts: as it is, in a JSON or Python string, and in a URL.

    Without the white space around it, which it often has when read from a file.
    """
    value = value.strip()
    escaped = json.dumps(value, ensure_ascii=False)[1:-1]
    return {value, escaped, json.dumps(value)[1:-1], quote(value, safe="", errors="replace")}


def secrets_in(environ: Mapping[str, str], names: Collection[str] = ()) -> dict[str, str]:
    """Return the variables whose names look like keys, and those with the given names."""
    return {name: value for name, value in environ.items() if name in names or _SECRET_NAME.search(name)}


class Redactor:
    """Replaces known secrets.

    Parameters
    ----------
    secrets : name → value; values under 8 characters are ignored.
    registered : value → name; the same.

    Threads: immutable after construction.
    """

    def __init__(self, secrets: Mapping[str, str] | None = None, registered: Mapping[str, str] | None = None) -> None:
        # Longest first: a secret that contains another one wins.
        known = [*(secrets or {}).items(), *((name, value) for value, name in (registered or {}).items())]
        # Cleaned, as in events: an environment may hold other bytes.
        pairs = sorted(
            (
                (form, name)
                for name, value in known
                if len(value.strip()) >= MIN_LENGTH
                for form in forms_of(clean_text(value))
            ),
            key=lambda pair: (-len(pair[0]), pair[0]),
        )
        self._names = dict(reversed(pairs))
        self.encoded = tuple(value.encode() for value, _ in pairs)
        self.secrets: tuple[str, ...] = tuple(value for value, _ in pairs)
        self._pattern = re.compile("|".join(map(re.escape, self.secrets))) if pairs else None

    def __bool__(self) -> bool:
        return self._pattern is not None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Redactor:
        """Return a redactor for the values of variables whose names look like keys."""
        return cls(secrets_in(environ))

    def text(self, text: str) -> str:
        """Return `text` with each secret replaced by `[NAME]`."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: f"[{self._names[match.group()]}]", text)

    def raw(self, data: bytes) -> bytes:
        """Return bytes with each secret in them replaced, if it is there as UTF-8."""
        for secret in self.secrets:  # the longest first, as in a text
            data = data.replace(secret.encode(), f"[{self._names[secret]}]".encode())
        return data

    def data(self, value: Plain) -> Plain:
        """Return JSON-like data with each secret in it replaced, keys included."""
        if self._pattern is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list | tuple):
            return [self.data(item) for item in value]
        if isinstance(value, dict):
            if (data := marked_bytes(value)) is not None:  # base64 would hide a secret
                return mark_bytes(self.raw(data))
            return {self.text(key): self.data(item) for key, item in value.items()}
        return value

    def split(self, text: str) -> tuple[str, str]:
        """Return the part of a stream's `text` that can be shown, redacted, and the rest, which may become a secret.

        The result is that of the whole text: at each place, from the left, the longest secret is replaced. So a match
        is replaced only when no longer one can begin at or before it.
        """
        if self._pattern is None:
            return text, ""
        shown: list[str] = []
        start = 0
        while True:
            rest = text[start:]
            held = max((_overlap(rest, secret) for secret in self.secrets), default=0)
            found = self._pattern.search(rest)
            if found is None or len(rest) - held <= found.start():
                return "".join((*shown, rest[: len(rest) - held])), rest[len(rest) - held :]
            shown += (rest[: found.start()], f"[{self._names[found.group()]}]")
            start += found.end()


def _overlap(text: str, secret: str) -> int:
    """Return the length of the longest proper beginning of `secret` that `text` ends with."""
    start = max(0, len(text) - len(secret) + 1)
    while True:
        start = text.find(secret[0], start)
        if start < 0:
            return 0
        if secret.startswith(text[start:]):
            return len(text) - start
        start += 1


class StreamRedactor:
    """Redacts one stream of text deltas.

    The longest suffix that begins a secret is held until it matches, breaks, or the stream ends; never by
    time, because a pause of the model must not let half a key through.

    Threads: one at a time; the intake owns it.
    """

    def __init__(self, redactor: Redactor) -> None:
        self.redactor = redactor  # may be replaced: what is held is searched again
        self._tail = ""

    def feed(self, delta: str) -> str:
        """Return what can be shown of the text up to and including `delta`."""
        shown, self._tail = self.redactor.split(self._tail + delta)
        return shown

    def flush(self) -> str:
        """Return what was held, at the end of the stream; a secret that could have been a longer one is replaced."""
        tail, self._tail = self._tail, ""
        return self.redactor.text(tail)


LOOK_S = 1.0
"""How long a burst of starts shares one look at the environment, which costs as much as half a start."""


class SecretRegistry:
    """Collects the secrets, and makes the redactor that replaces them.

    Threads: any method, from any thread; `redactor` is replaced, never changed.

    Parameters
    ----------
    environ : the variables; they may change.
    use : called with each new redactor.
    """

    def __init__(
        self, environ: Mapping[str, str], monotonic: Callable[[], float], use: Callable[[Redactor], object]
    ) -> None:
        self._environ = environ
        self._monotonic = monotonic
        self._use = use
        self._lock = threading.RLock()
        self._names: frozenset[str] = frozenset()
        self._registered: dict[str, str] = {}  # value → name
        self._found = secrets_in(environ)
        # The number of variables at the last look at the environment, and the time of that look.
        self._looked = (len(environ), monotonic())
        self.redactor = Redactor(self._found)

    def look(self) -> None:
        """Add keys that are new in the environment."""
        now, size = self._monotonic(), len(self._environ)
        are_known = all(self._environ.get(name) == value for name, value in self._found.items())
        if are_known and size == self._looked[0] and now - self._looked[1] < LOOK_S:
            return
        self._looked = (size, now)
        self._find()

    def watch(self, names: Collection[str]) -> None:
        """Treat the values of these variables as secrets, whatever their names look like."""
        self._names = frozenset(names)
        self._find()

    def take(self, environ: Mapping[str, str]) -> None:
        """Add the keys in an environment that is passed to an agent."""
        found = {clean_text(value): name for name, value in secrets_in(environ, self._names).items()}
        with self._lock:
            if not found.items() <= self._registered.items():
                self._registered = {**self._registered, **found}
                self._renew()

    def add(self, value: str, name: str) -> None:
        """Add a secret; raises `BadOption` if it is so short that replacing it would damage ordinary words."""
        if not isinstance(value, str) or len(value.strip()) < MIN_LENGTH:
            raise BadOption(f"a secret must be a str of at least {MIN_LENGTH} characters; this one is not redacted")
        with self._lock:
            self._registered = {**self._registered, clean_text(value): name}
            self._renew()

    def _find(self) -> None:
        with self._lock:
            found = secrets_in(self._environ, self._names)
            if found != self._found:
                self._found = found
                self._renew()

    def _renew(self) -> None:
        self.redactor = Redactor(self._found, self._registered)
        self._use(self.redactor)
