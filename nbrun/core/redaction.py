"""Redacts secrets in text and data, also if a secret is split across the deltas of a stream."""

from __future__ import annotations

import html
import json
import logging
import re
import shlex
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, unquote

from nbrun.core.errors import BadOption
from nbrun.core.text import clean_text, uncoloured
from nbrun.core.values import BASE64_KEY, Plain, mark_bytes, marked_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


MIN_LENGTH = 8
"""Shorter values are left alone: replacing them would damage ordinary words."""
LINE_LENGTH = 16
"""The least length of a line of a secret that counts by itself, as in a private key that is printed line by line."""

CUT = "…"
"""Marks where nbrun has cut a text, before it is known what is secret: beside it, a part of a secret counts."""
_HIDING = (CUT.encode(), BASE64_KEY.encode(), b"\x1b[")  # where a secret may be that isn't found as it is

WORDS = ("KEY", "TOKEN", "SECRET", "PASS", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS")
"""Words in the name of an environment variable that mark its value as secret, if it looks like one."""
PARTS = ("PASSWORD", "PASSWD", "APIKEY")
"""The same, as any part of the name."""
ENDINGS = ("PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "APIKEY", "API_KEY")
"""Ends of such a name: the value is secret even if it is made of words."""

_SECRET_NAME = re.compile(rf"(?:^|_)(?:{'|'.join(WORDS)})(?:$|_)|{'|'.join(PARTS)}", re.IGNORECASE)
_SECRET_END = re.compile(rf"(?:^|_)(?:{'|'.join(ENDINGS)})$|(?:{'|'.join(PARTS)})$", re.IGNORECASE)
# Sources: the token formats that the providers document, for those who scan repositories for leaked ones.
_KNOWN_SHAPE = re.compile(
    r"(?:sk|pk|rk|gsk|npm|hf|r8|ghp|gho|ghu|ghs|ghr|github_pat|glpat|xox[abeoprs]|pypi|SG|dop_v1|shpat)[-_.]"
    r"[\w.-]{12,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}|ya29\.[\w-]{20,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+|-----BEGIN [A-Z ]*PRIVATE KEY-----.*",
    re.DOTALL,
)
_PLACE = re.compile(
    r"(?:~|\.{1,2})/[\w.@~ /-]*|/[\w.@~ -]+/[\w.@~ /-]*|[a-z]:\\[^\n]*|[a-z][a-z0-9+.-]*://[^\s@]*", re.IGNORECASE
)
_IN_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#:@]*:([^\s/?#@]+)@", re.IGNORECASE)
_BREAKS = re.compile(r"[^0-9A-Za-z]+")
_PIECES = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_DATE = re.compile(r"\d{8}T\d{4,6}Z?")
_LONGEST_WORD = 20

RULE = (
    f"These values are replaced by [NAME] before anything is stored or shown: environment variables with one of the "
    f"words {', '.join(WORDS)} in their name, such as OPENAI_API_KEY, or with {', '.join(PARTS)} anywhere in it, if "
    f"the value looks random or the name ends in {', '.join(ENDINGS)}; values that have the form of a well-known "
    f"kind of key, and passwords in addresses, whatever the name; and values given to nbrun.redact(value). "
    f"Values shorter than {MIN_LENGTH} characters are never replaced."
)
"""What is replaced, for users."""


def forms_of(value: str) -> set[str]:
    """Return the forms of a secret in texts: as it is, and in strings of JSON and Python, in HTML, a shell and a URL.

    Without the white space around it, which it often has when read from a file. Of several lines, each one counts
    by itself if it looks random.
    """
    value = value.strip()
    forms = {value}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        forms |= {text[1:-1], json.dumps(text[1:-1])[1:-1], json.dumps(text[1:-1], ensure_ascii=False)[1:-1]}
    # With both kinds of quotes before it, as in a longer text, Python escapes the single ones.
    both = "'\""
    for text in (repr(both + value)[4:], ascii(both + value)[4:], repr((both + value).encode(errors="replace"))[5:]):
        forms |= {text[:-1], text[:-1].replace("\\'", "'")}
    forms.add(html.escape(value, quote=False))
    for single, double in (("&#x27;", "&quot;"), ("&#39;", "&#34;"), ("&apos;", "&quot;")):
        forms.add(html.escape(value).replace("&#x27;", single).replace("&quot;", double))
    if (quoted := shlex.quote(value)) != value:
        forms.add(quoted[1:-1])
    for text in (
        quote(value, "", errors="replace"),
        quote(value, errors="replace"),
        quote_plus(value, errors="replace"),
    ):
        forms |= {text, _PERCENT.sub(lambda match: match.group().lower(), text)}
    if "\n" in value:
        lines = (line.strip() for line in value.splitlines())
        forms |= {form for line in lines if len(line) >= LINE_LENGTH and looks_random(line) for form in forms_of(line)}
    return forms


_PERCENT = re.compile(r"%[0-9A-F]{2}")


def looks_random(value: str) -> bool:
    """Return whether a value has the look of a key, rather than of words, names, numbers or a date."""
    return any(len(part) >= MIN_LENGTH and not _is_word(part) for part in _BREAKS.split(value))


def _is_word(part: str) -> bool:
    """Return whether a part is a word, perhaps with a number, several of them in camel case, or a number."""
    if part.isdigit() or _DATE.fullmatch(part):
        return True
    pieces = _PIECES.findall(part)
    letters = [piece for piece in pieces if piece.isalpha()]
    digits = [piece for piece in pieces if piece.isdigit()]
    if len(part) > _LONGEST_WORD and len(letters) == 1:
        return False
    mean = sum(map(len, letters)) / max(1, len(letters))
    return len(digits) <= 1 and all(len(digit) <= 4 for digit in digits) and mean >= 3


def secrets_in(environ: Mapping[str, str], names: Collection[str] = ()) -> dict[str, str]:
    """Return secret → name: variables with these names, and those that hold a secret by their name and look."""
    found: dict[str, str] = {}
    for name, value in environ.items():
        bare = value.strip()
        if len(bare) < MIN_LENGTH:
            continue
        if name in names or _KNOWN_SHAPE.fullmatch(bare) or _is_secret(name, bare):
            found[value] = name
        for match in _IN_ADDRESS.finditer(bare):
            found |= dict.fromkeys((match[1], unquote(match[1])), name)
        if bare.startswith("{"):  # the credentials of a service, say
            found |= dict.fromkeys(secrets_in(_texts_in(bare)), name)
    return found


def _texts_in(text: str) -> dict[str, str]:
    """Return the texts of a JSON object; of anything else, nothing."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {name: value for name, value in read.items() if isinstance(value, str)}


def _is_secret(name: str, value: str) -> bool:
    if not _SECRET_NAME.search(name) or _PLACE.fullmatch(value):
        return False
    return looks_random(value) or _SECRET_END.search(name) is not None


class Redactor:
    """Replaces known secrets: value → name; those under 8 characters are ignored.

    Threads: immutable after construction.
    """

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        # Longest first: a secret that contains another one wins.
        pairs = sorted(
            (
                (form, name)
                for value, name in (secrets or {}).items()
                if len(value.strip()) >= MIN_LENGTH
                for form in forms_of(clean_text(value))
            ),
            key=lambda pair: (-len(pair[0]), pair[0]),
        )
        self._names = dict(reversed(pairs))
        self.secrets: tuple[str, ...] = tuple(dict.fromkeys(value for value, _ in pairs))
        self.encoded = tuple(value.encode() for value in self.secrets)
        self._pattern = re.compile("|".join(map(re.escape, self.secrets))) if pairs else None

    def __bool__(self) -> bool:
        return self._pattern is not None

    def text(self, text: str) -> str:
        """Return `text` with each secret replaced by `[NAME]`."""
        if self._pattern is None:
            return text
        if "\x1b" in text and self._pattern.search(bare := uncoloured(text)):  # as pages show it
            text = bare
        text = self._pattern.sub(lambda match: f"[{self._names[match.group()]}]", text)
        return self._beside_cuts(text) if CUT in text else text

    def _beside_cuts(self, text: str) -> str:
        """Return a text without what is left of a secret before or after a cut, if that is long enough to matter."""
        parts = text.split(CUT)
        for at, part in enumerate(parts):
            if at > 0:
                for secret, start in self._places.get(part[:MIN_LENGTH], ()):
                    if part.startswith(secret[start:]):
                        part = f"[{self._names[secret]}]{part[len(secret) - start :]}"
                        break
            if at < len(parts) - 1:
                for secret, start in self._places.get(part[-MIN_LENGTH:], ()):
                    if part.endswith(secret[: start + MIN_LENGTH]):
                        part = f"{part[: -start - MIN_LENGTH]}[{self._names[secret]}]"
                        break
            parts[at] = part
        return CUT.join(parts)

    @cached_property
    def _places(self) -> dict[str, list[tuple[str, int]]]:
        """Where in the secrets each piece of the least length is found."""
        places: dict[str, list[tuple[str, int]]] = {}
        for secret in self.secrets:
            for at in range(len(secret) - MIN_LENGTH + 1):
                places.setdefault(secret[at : at + MIN_LENGTH], []).append((secret, at))
        return places

    def concerns(self, blob: bytes) -> bool:
        """Return whether packed data may hold a secret: one look at its bytes lets nearly everything pass."""
        return bool(self.encoded) and any(part in blob for part in (*self.encoded, *_HIDING))

    def names_in(self, *values: Plain) -> tuple[str, ...]:
        """Return the names that stand for secrets in redacted data."""
        text = json.dumps(values, ensure_ascii=False)
        return tuple(sorted({name for name in self._names.values() if f"[{name}]" in text}))

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


class SecretRegistry:
    """Collects the secrets of a process, and makes the redactor that replaces them. What was one once stays one.

    Threads: any method, from any thread; `redactor` is replaced, never changed.

    Parameters
    ----------
    environ : the variables; they may change.
    known, names : secret → name, and variables to watch, from the process that started this one.
    """

    def __init__(
        self, environ: Mapping[str, str], known: Mapping[str, str] | None = None, names: Collection[str] = ()
    ) -> None:
        self._environ = environ
        # Source: `os.environ` keeps its variables encoded in this dict. To encode them all again takes fifty times
        # as long as to hash them, since bytes keep their hash.
        self._variables: Mapping[Any, Any] = getattr(environ, "_data", environ)
        self._lock = threading.RLock()
        self.names = frozenset(names)
        """Variables that are secret, whatever their values look like; replaced, never changed."""
        self._seen = 0
        self.known: Mapping[str, str] = known or {}
        """Secret → name; replaced, never changed."""
        self.redactor = Redactor(self.known)
        self.look()

    def look(self) -> Redactor:
        """Return the redactor, with what is new in the environment; it takes a microsecond if nothing is."""
        try:
            seen = hash((self.names, *self._variables.values()))
        except RuntimeError:  # another thread has changed it just now: the next look sees that
            return self.redactor
        if seen != self._seen:
            self.take(self._environ)
            self._seen = seen
        return self.redactor

    def watch(self, names: Collection[str]) -> None:
        """Treat the values of these variables as secrets, whatever their names and values look like."""
        self.names = frozenset(names)
        self.look()

    def take(self, environ: Mapping[str, str]) -> None:
        """Add the secrets of an environment, such as one that is passed to an agent."""
        self.add_all(secrets_in(dict(environ), self.names))

    def add(self, value: str, name: str) -> None:
        """Add a secret; raises `BadOption` if it is so short that replacing it would damage ordinary words."""
        if not isinstance(value, str) or len(value.strip()) < MIN_LENGTH:
            raise BadOption(f"a secret must be a str of at least {MIN_LENGTH} characters; this one is not redacted")
        self.add_all({value: name})

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace secrets in what a logger is about to log, as a filter of it; an error becomes text."""
        redactor = self.look()
        try:
            message = record.getMessage()
        except Exception as error:  # an agent's object, whose `repr` fails
            message = f"{record.msg} ({type(error).__name__})"
        record.msg, record.args = redactor.text(message), ()
        if record.exc_info:
            record.exc_text = redactor.text(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True

    def add_all(self, found: Mapping[str, str]) -> None:
        """Add secrets with their names."""
        # Cleaned, as in events: an environment may hold other bytes.
        found = {clean_text(value): name for value, name in found.items()}
        with self._lock:
            if not found.items() <= self.known.items():
                self.known = {**self.known, **found}
                self.redactor = Redactor(self.known)


class RunSecrets:
    """What the process of one run names as secret: replaced in what comes from this run, and nowhere else.

    Threads: `add()` from one thread, `beside()` from another.
    """

    def __init__(self) -> None:
        self._found: Mapping[str, str] = {}  # secret → name; replaced, never changed
        self._made: tuple[Mapping[str, str], Mapping[str, str], Redactor] | None = None  # of which two, the last

    def add(self, found: Mapping[str, str]) -> None:
        """Add secrets with their names."""
        self._found = {**self._found, **{clean_text(value): name for value, name in found.items()}}

    def beside(self, known: Mapping[str, str]) -> Redactor:
        """Return what replaces these and those that are known to the session."""
        found, made = self._found, self._made
        if made is None or made[0] is not found or made[1] is not known:
            made = self._made = found, known, Redactor({**found, **known})
        return made[2]
