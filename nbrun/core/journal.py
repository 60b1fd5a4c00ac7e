"""A run's journal: the answers to its model calls and the results of its steps, kept to be given again.

Each run has a file beside the store, which its host appends to as soon as an answer is complete, and before the agent
learns that it is. So a kill of the process costs the calls whose answers are still on their way, and no others; a power
loss may cost more, since the file isn't synced. Every entry is signed with a key of its run: what somebody else has
put there answers nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import stat
import struct
import threading
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import msgspec

from nbrun.core.artifacts import MEMORY_BYTES, STRAY_AGE_S, make_folder
from nbrun.core.errors import StoreError, StoreReadOnly
from nbrun.core.ownership import is_trusted, secure
from nbrun.core.quantities import size_words

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from nbrun.core.redaction import Redactor, SecretRegistry

CALL, STEP, STEP_BEGUN, STEP_FAILED, LOST = "call", "step", "begun", "failed", "lost"
"""What an entry is: the answer to a model call, the result of a step, or that a step has begun, or has failed.

The last one is in no file: whoever reads a journal puts it where entries are missing, of which nothing is known.
"""

MAX_ANSWER = 20_000_000
"""Bytes of the largest answer that is kept."""
MAX_JOURNAL = 200_000_000
"""Bytes of the largest journal."""
MAX_OPENED = 32
"""How many journals are open at once: to open one for each answer takes longer than to write it."""
LOOK_S = 1.0
"""How often it is looked whether they are still there."""

_NAME = re.compile(r"[0-9a-f]{64}")
_HEAD = struct.Struct("!I32s")  # of a frame: the length of its content, and the signature
# A link isn't followed, and a pipe blocks nobody.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What was asked, as a hash, and what was answered; `at` is when, in epoch seconds (UTC)."""

    kind: str
    request: bytes
    at: float
    answer: bytes = b""
    outline: bytes = b""  # of the request, to say what differs in another one


class _Placed(msgspec.Struct, frozen=True, array_like=True):
    """An entry and its place: no signed one can be left out before it, or come twice."""

    attempt: int
    number: int
    entry: Entry


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_Placed)


def journal_name(session_id: str, run_id: str) -> str:
    """Return the name of the file with a run's journal."""
    return hashlib.sha256(f"{session_id}\0{run_id}".encode()).hexdigest()


def read_entries(data: bytes, key: bytes) -> list[Entry]:
    """Return the entries of a file that are signed with this key, oldest first, and `LOST` for the first that isn't."""
    entries: list[Entry] = []
    start, attempt, number = 0, 0, 0
    while start < len(data):
        if start + _HEAD.size > len(data):
            break
        length, signature = _HEAD.unpack_from(data, start)
        start += _HEAD.size
        content = data[start : start + length]
        start += length
        if len(content) < length or not hmac.compare_digest(hmac.digest(key, content, "sha256"), signature):
            break
        placed = _decoder.decode(content)
        if placed.attempt > attempt:
            attempt, number = placed.attempt, 0
        if (placed.attempt, placed.number) != (attempt, number):
            break
        entries.append(placed.entry)
        number += 1
    else:
        return entries
    return [*entries, Entry(LOST, b"", entries[-1].at if entries else 0.0)]


class JournalFiles:
    """The journals of a store's runs: files in a folder, by name, or the same in memory if the store has no folder.

    Threads: any method, from any thread.

    Parameters
    ----------
    folder : of the store's other files; None for memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = None if folder is None else folder / "journal"
        self._lock = threading.Lock()
        self._held: dict[str, bytes] = {}
        self._opened: OrderedDict[str, int] = OrderedDict()  # by name, its descriptor; what was used last, last
        self._max_opened = MAX_OPENED
        self._looked_at = 0.0
        self._is_made = False  # whether the folder was there, and was ours

    def append(self, name: str, data: bytes) -> None:
        """Append to a journal, whole; raises `StoreError` or `OSError` if it can't be written."""
        with self._lock:
            if self.folder is None:
                if sum(map(len, self._held.values())) + len(data) > MEMORY_BYTES:
                    raise StoreError("runs are kept in memory only, and there is no room for it")
                self._held[name] = self._held.get(name, b"") + data
                return
            descriptor = self._opened.get(name)
            now = time.monotonic()
            if descriptor is not None and now - self._looked_at > LOOK_S:
                self._looked_at = now
                for each in [one for one, opened in self._opened.items() if not os.fstat(opened).st_nlink]:
                    self._close(each)  # removed by somebody else
                descriptor = self._opened.get(name)
            if descriptor is None:
                descriptor = self._open(self.folder, name)
            self._opened.move_to_end(name)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            while len(self._opened) > self._max_opened:
                self._close(next(iter(self._opened)))

    def _open(self, folder: Path, name: str) -> int:
        """Open a journal for what is appended next; the caller holds the lock."""
        flags, path = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _FLAGS, folder / name
        if self._is_made and not folder.is_dir():  # removed meanwhile
            self._is_made = False
        if not self._is_made:
            make_folder(folder.parent)
            make_folder(folder)
            self._is_made = True
        descriptor = os.open(path, flags, 0o600)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or not is_trusted(found, path):
            os.close(descriptor)
            raise StoreReadOnly(f"{path} belongs to another user, or is not a file; nbrun does not use it")
        self._opened[name] = descriptor
        return descriptor

    def _close(self, name: str) -> None:
        if (descriptor := self._opened.pop(name, None)) is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Leave no file open from now on."""
        with self._lock:
            self._max_opened = 0
            for name in tuple(self._opened):
                self._close(name)

    def read(self, name: str) -> bytes:
        """Return a journal; nothing if there is none that can be read."""
        if self.folder is None:
            return self._held.get(name, b"")
        try:
            if not self._is_ours(self.folder):
                return b""
            descriptor = os.open(self.folder / name, os.O_RDONLY | _FLAGS)
            with open(descriptor, "rb") as file:
                return file.read(MAX_JOURNAL + MAX_ANSWER)
        except (OSError, StoreReadOnly):
            return b""

    def remove(self, name: str) -> int:
        """Remove a journal; return its size in bytes, 0 if there is none."""
        if self.folder is None:
            with self._lock:
                return len(self._held.pop(name, b""))
        with self._lock:
            self._close(name)  # Windows removes no file that is open
        with contextlib.suppress(OSError, StoreReadOnly):
            if self._is_ours(self.folder):
                size = os.lstat(self.folder / name).st_size
                os.unlink(self.folder / name)
                return size
        return 0

    def size(self) -> int:
        """Return the size of all of them, in bytes."""
        return sum(found.st_size for _, found in self._files())

    def remove_strays(self, named: Collection[str], now: float) -> int:
        """Remove journals whose run is gone, left by a crash; return how many there were."""
        strays = [name for name, found in self._files() if name not in named and now - found.st_mtime > STRAY_AGE_S]
        for name in strays:
            self.remove(name)
        return len(strays)

    def _is_ours(self, folder: Path) -> bool:
        """Return whether the folder is there; raises `StoreReadOnly` if a link leads to it, or it is another user's."""
        return all(secure(part, tightens=False) is not None for part in (folder.parent, folder))

    def _files(self) -> Iterable[tuple[str, os.stat_result]]:
        if self.folder is None:
            return
        try:
            if not self._is_ours(self.folder):
                return
            found = [entry for entry in os.scandir(self.folder) if _NAME.fullmatch(entry.name)]
        except (OSError, StoreReadOnly):
            return
        for entry in found:
            with contextlib.suppress(OSError):
                yield entry.name, entry.stat(follow_symlinks=False)


class Journals:
    """What the journals of a session's runs have in common. Threads: any.

    Parameters
    ----------
    files : called at each use, for a session's store may not be open yet.
    key_of : returns the key that a run's entries are signed with, by the run's id.
    keyring : looked at at each use, for there may be new secrets.
    """

    def __init__(
        self,
        session_id: str,
        files: Callable[[], JournalFiles],
        key_of: Callable[[str], bytes],
        keyring: SecretRegistry,
    ) -> None:
        self.session_id = session_id
        self.files = files
        self.key_of = key_of
        self.keyring = keyring
        self.is_on = True
        """Whether new entries are kept."""


class Journal:
    """One run's journal: what it is answered from, and what it keeps. Threads: any method, from any thread.

    Parameters
    ----------
    known : the entries of earlier runs; each answers once, in order, to what asks the same.
    before : those that the state to resume from knows already; they answer last.
    source : the run or the file that they come from, in words.
    speed : of a cassette, how much faster it answers than it was recorded: then nothing else answers. None: a journal.
    """

    def __init__(
        self,
        journals: Journals,
        run_id: str,
        attempt: int,
        known: Sequence[Entry] = (),
        before: Sequence[Entry] = (),
        source: str = "",
        speed: float | None = None,
    ) -> None:
        self._journals = journals
        self._run_id, self._attempt = run_id, attempt
        self._lock = threading.Lock()
        self._known: dict[tuple[str, bytes], deque[Entry]] = {}
        self._news = tuple(known)
        for entry in (*known, *before):
            self._known.setdefault((entry.kind, entry.request), deque()).append(entry)
        self._left = sum(entry.kind == CALL for entry in known)
        self.is_cut = any(entry.kind == LOST for entry in (*known, *before))
        """Whether entries are missing: what isn't known may have been answered, or called, all the same."""
        self._number = self._size = 0
        self._is_broken = False
        self._file: tuple[hmac.HMAC, str] | None = None  # what signs its entries, and its name
        self.source = source
        self.speed = speed
        self.given = 0
        """How many model calls were answered."""
        self.has_diverged = False
        """Whether something was asked that isn't known, though more was."""

    @property
    def is_answering(self) -> bool:
        """Whether there are answers to model calls left."""
        return self._left > 0

    @property
    def keeps(self) -> bool:
        """Whether answers are kept."""
        return self._journals.is_on and not self._is_broken

    @property
    def redactor(self) -> Redactor:
        """Replaces the secrets that are known now."""
        return self._journals.keyring.look()

    def find(self, kind: str, request: bytes) -> Entry | None:
        """Return the next known answer to this request, once; None if there is none."""
        if not self._known:  # most runs
            return None
        with self._lock:
            entries = self._known.get((kind, request))
            if not entries:
                return None
            entry = entries.popleft()
            if kind == CALL:
                self._left -= any(entry is one for one in self._news)
                self.given += 1
            return entry

    def unused(self, kind: str) -> list[Entry]:
        """Return the entries of a kind, not in the state, that have answered nothing yet, oldest first."""
        with self._lock:
            left = {id(entry) for entries in self._known.values() for entry in entries}
        return [entry for entry in self._news if entry.kind == kind and id(entry) in left]

    def keep(self, entry: Entry) -> None:
        """Keep an entry, in which there are no secrets; it is in the file when this returns.

        Raises `StoreError` if it is too large, and `OSError` or `StoreError` if nothing can be kept from now on.
        """
        if len(entry.answer) > MAX_ANSWER:
            raise StoreError(f"it has {size_words(len(entry.answer))}, and {size_words(MAX_ANSWER)} are kept at most")
        if self._size + len(entry.answer) > MAX_JOURNAL:
            self._is_broken = True
            raise StoreError(f"the run's journal is full ({size_words(MAX_JOURNAL)})")
        journals = self._journals
        with self._lock:
            if self._file is None:
                key = journals.key_of(self._run_id)
                self._file = hmac.new(key, None, "sha256"), journal_name(journals.session_id, self._run_id)
            signer, name = self._file
            content = _encode(_Placed(self._attempt, self._number, entry))
            signing = signer.copy()  # `hmac.digest()` would let other threads run meanwhile, and then wait for them
            signing.update(content)
            frame = _HEAD.pack(len(content), signing.digest()) + content
            try:
                journals.files().append(name, frame)
            except (OSError, StoreError):
                self._is_broken = True  # what follows would come after half an entry
                raise
            self._number += 1
            self._size += len(frame)
