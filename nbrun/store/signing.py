"""Signatures: which runs and checkpoints this user's kernels have written; all others may be anybody's.

A run's signature covers what other runs are started from, a checkpoint's its state; both name the run. A set's covers
its header and all of its inputs. The entries of a journal are signed with a key of their run, which its process may
know. Events have none. The user's key never leaves the data folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import stat
import threading
from operator import attrgetter
from typing import TYPE_CHECKING

import msgspec

from nbrun.core import RunRecord, StoreError, events as ev, is_private
from nbrun.store.location import data_folder

if TYPE_CHECKING:
    from pathlib import Path

KEY_FILE = "signing.key"
KEY_BYTES = 32

_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_KEY_OF_THIS_PROCESS = os.urandom(KEY_BYTES)

_encode = msgspec.msgpack.Encoder().encode
_inputs_of = attrgetter("session_id", "name", "agent", "prompt", "model", "tags", "options", "target")


class Signer:
    """Signs what this user's kernels write, and recognizes it. Threads: any.

    Without a key file there is a key for this process only; `problem` says why.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self._key: bytes | None = None
        self._lock = threading.Lock()

    @property
    def key(self) -> bytes:
        """The user's key, made when it is first needed."""
        with self._lock:
            if self._key is None:
                self._key = self._load()
            return self._key

    def _load(self) -> bytes:
        try:
            folder = data_folder()
            if folder is not None:
                return _key_in(folder)
            self.problem = "this user has no data folder"
        except (OSError, StoreError) as error:
            self.problem = str(error)
        return _KEY_OF_THIS_PROCESS

    def of_run(self, run_id: str, created: RunRecord | ev.RunCreated) -> bytes:
        """Return the signature of a run."""
        origin = None if created.origin is None else (created.origin.kind, created.origin.run_id)
        return self._sign("run", run_id, *_inputs_of(created), origin)

    def of_checkpoint(self, session_id: str, run_id: str, seq: int, state: bytes) -> bytes:
        """Return the signature of the checkpoint that a run had at event `seq`."""
        return self._sign("checkpoint", run_id, session_id, seq, hashlib.sha256(state).digest())

    def of_set(self, number: int, header: object, inputs: bytes) -> bytes:
        """Return the signature of a set: of its header, and the digest of its inputs."""
        return self._sign("set", number, header, inputs)

    def journal_key(self, session_id: str, run_id: str) -> bytes:
        """Return the key that the entries of a run's journal are signed with."""
        return self._sign("journal", session_id, run_id)

    def _sign(self, *parts: object) -> bytes:
        return hmac.digest(self.key, _encode(parts), "sha256")


def is_same(found: object, signature: bytes) -> bool:
    """Return whether what was found in a file is this signature."""
    return isinstance(found, bytes) and hmac.compare_digest(found, signature)


def _key_in(folder: Path) -> bytes:
    """Return the key in a folder; make it if it is missing."""
    path = folder / KEY_FILE
    with contextlib.suppress(FileNotFoundError):
        return _read(path)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Linked when it is complete, so that of two kernels one makes it, and neither reads half a key.
    draft = folder / f".{KEY_FILE}.{os.urandom(8).hex()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, stat.S_IRUSR | stat.S_IWUSR)
    try:
        with open(descriptor, "wb") as file:
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)
    return _read(path)


def _read(path: Path) -> bytes:
    """Return the key in a file; raises `StoreError` if somebody else could have read or written it."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _FLAGS)
    with open(descriptor, "rb") as file:
        found, key = os.fstat(descriptor), file.read(KEY_BYTES + 1)
    if not stat.S_ISREG(found.st_mode) or not is_private(found) or len(key) != KEY_BYTES:
        raise StoreError(f"{path} isn't a key that only you can read")
    return key
