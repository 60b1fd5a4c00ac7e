"""Files that runs have made: kept beside the store, named by their hash, and what writes them."""

from __future__ import annotations

import contextlib
import hashlib
import mimetypes
import os
import re
import stat
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nbrun.core import events as ev, mimebundle as bundle
from nbrun.core.errors import ArtifactLost, StoreError, StoreReadOnly
from nbrun.core.ownership import secure
from nbrun.core.text import clean_text, printable
from nbrun.core.values import type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from nbrun.core.redaction import SecretRegistry

MEMORY_BYTES = 64 * 1024 * 1024
"""The most that a store in memory keeps of files, all together."""
STRAY_AGE_S = 3600.0
"""How old an unused file must be before it is removed: a younger one may be about to be used."""

_PIECE = 1 << 20
_HASH = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = ".part"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that a run has made; `made_at` is epoch seconds (UTC), `size` is in bytes."""

    id: str
    name: str
    media_type: str
    size: int
    sha256: str
    made_at: float
    _files: ArtifactFiles = field(repr=False, compare=False)

    def read(self) -> bytes:
        """Return its content.

        Raises
        ------
        ArtifactLost
            Its file is gone, or was changed.
        """
        return self._files.read(self.sha256, self.size, self.name)

    def save(self, path: str | Path) -> Path:
        """Write it to a file, or under its own name into a folder; return the file's path. Missing folders are made.

        Parameters
        ----------
        path : a folder if it exists as one, ends in a slash, or has no suffix where the artifact's name has one
            (`plots` for `plot.png`); else a file.

        Raises
        ------
        FileExistsError
            The file exists: nothing is overwritten.
        ArtifactLost, OSError
            It is gone; it cannot be written.
        """
        target = Path(path)
        # The agent chose the name: no part of it may lead elsewhere.
        name = printable(self.name.replace("\\", "/").rpartition("/")[2]).strip(". ") or self.id
        is_folder = str(path).endswith(("/", os.sep)) or (not target.suffix and Path(name).suffix)
        if target.is_dir() or (is_folder and not target.exists()):
            target /= name
        data = self.read()
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(data)
        return target


class ArtifactFiles:
    """A folder of files named by their SHA-256, or the same in memory if a store has no folder.

    A file is complete before it has its name: it is written under another one, synced, and renamed. Nothing is ever
    changed, so readers, also in other kernels, need no lock.

    Threads: any method, from any thread. `_lock` guards what is in memory.

    Parameters
    ----------
    folder : made when the first file is kept; None for memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._held: dict[str, bytes] = {}

    def keep(self, source: bytes | Path) -> tuple[str, int]:
        """Keep bytes, or a copy of a file; return their hash and size.

        Raises
        ------
        StoreError, OSError
            There is no room, or no such file.
        """
        if isinstance(source, Path) and not source.is_file():  # a pipe would block
            raise StoreError(f"{source} is not a regular file")
        return self._hold(source) if self.folder is None else self._write(self.folder, source)

    def _hold(self, source: bytes | Path) -> tuple[str, int]:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        with self._lock:
            if sum(map(len, self._held.values())) + size > MEMORY_BYTES:
                raise StoreError("runs are kept in memory only, and there is no room for it")
            data = source if isinstance(source, bytes) else source.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            self._held[sha256] = data
        return sha256, len(data)

    def _write(self, folder: Path, source: bytes | Path) -> tuple[str, int]:
        make_folder(folder)
        handle, unfinished = tempfile.mkstemp(suffix=_UNFINISHED, dir=folder)  # 0600
        try:
            with os.fdopen(handle, "wb") as file:
                sha256, size = _copy(source, file)
                file.flush()
                os.fsync(file.fileno())
            place = folder / sha256[:2]
            make_folder(place)
            Path(unfinished).replace(place / sha256)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise
        _sync_folder(place)
        return sha256, size

    def read(self, sha256: str, size: int, name: str) -> bytes:
        """Return a file's content; raises `ArtifactLost`, calling it `name`, if it is gone or was changed."""
        title = f"the artifact '{name}'"
        if not _HASH.fullmatch(sha256):  # the row was not written by us: it could name any path
            raise ArtifactLost(f"{title} has an invalid hash; its store is damaged")
        try:
            data = self._held[sha256] if self.folder is None else _read(self.folder, sha256, size)
        except (KeyError, FileNotFoundError):
            where = "memory" if self.folder is None else self.folder
            raise ArtifactLost(f"{title} is no longer in {where}") from None
        except (OSError, StoreReadOnly) as error:
            raise ArtifactLost(f"{title} cannot be read: {error}") from None
        if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            raise ArtifactLost(f"{title} is not what was saved: its file was changed")
        return data

    def remove(self, sha256: str) -> None:
        """Remove a file that no run uses any more; a no-op when it is gone already."""
        if self.folder is None:
            with self._lock:
                self._held.pop(sha256, None)
        elif _HASH.fullmatch(sha256):
            with contextlib.suppress(OSError, StoreReadOnly):
                _check_folders(self.folder, sha256)
                (self.folder / sha256[:2] / sha256).unlink()

    def remove_strays(self, named: Collection[str], now: float) -> int:
        """Remove files that no run uses, left by a crash between file and row; return how many there were."""
        try:
            if self.folder is None or secure(self.folder, tightens=False) is None or not self.folder.is_dir():
                return 0
        except (OSError, StoreReadOnly):
            return 0
        removed = 0
        for path in [*self.folder.glob("*" + _UNFINISHED), *self.folder.glob("??/*")]:
            is_ours = path.suffix == _UNFINISHED or _HASH.fullmatch(path.name)
            if not is_ours or path.name in named or path.parent.is_symlink():
                continue
            with contextlib.suppress(OSError):
                if now - path.lstat().st_mtime > STRAY_AGE_S:
                    path.unlink()
                    removed += 1
        return removed


def folder_beside(store: Path) -> Path:
    """Return the folder for the files of a store's runs: `<its name>.files`."""
    return store.with_name(f"{store.name.removesuffix('.db')}.files")


def _copy(source: bytes | Path, file: object) -> tuple[str, int]:
    """Write the source into an open file; return its hash and size."""
    digest, size = hashlib.sha256(), 0
    write = file.write  # type: ignore[attr-defined]  # an open binary file
    if isinstance(source, bytes):
        digest.update(source)
        write(source)
        return digest.hexdigest(), len(source)
    with source.open("rb") as original:
        while piece := original.read(_PIECE):
            digest.update(piece)
            write(piece)
            size += len(piece)
    return digest.hexdigest(), size


def make_folder(folder: Path) -> None:
    """Make a folder that only this user can use; raises `StoreReadOnly` if it is somebody else's."""
    secure(folder)
    folder.mkdir(mode=0o700, exist_ok=True)
    secure(folder)  # somebody else may have made it in between


def _check_folders(folder: Path, sha256: str) -> None:
    for part in (folder, folder / sha256[:2]):
        found = secure(part, tightens=False)
        if found is None:
            raise FileNotFoundError(part)
        if not stat.S_ISDIR(found.st_mode):
            raise OSError(f"{part} is not a folder of nbrun's")


def _read(folder: Path, sha256: str, size: int) -> bytes:
    """Return a file's content, at most one byte more than it should have; links are not followed."""
    _check_folders(folder, sha256)
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(folder / sha256[:2] / sha256, flags | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError("it is not a regular file")
        return file.read(max(0, size) + 1)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power loss, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


HEAD = 300
"""Characters of a text in its event."""


DISPLAY, OBJECT = "display", "object"


"""The ids of an output's artifacts: its rendering in Jupyter, and the object itself."""


PICKLE = "application/x-python-pickle"


BUNDLE = "application/vnd.nbrun.display+json"


_PLAIN = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, set, frozenset})


class ArtifactWriter:
    """Writes the files of runs, and returns the events that announce them.

    Threads: any method, from any thread.

    Parameters
    ----------
    files : called at each use, for a session's store may not be open yet.
    keyring : looked at at each use, for there may be new secrets. Text is redacted; bytes and files stay as they are.
    on_format : set by the user interface: returns a value's renderings by MIME type. It runs the value's own code.
    """

    def __init__(self, files: Callable[[], ArtifactFiles], keyring: SecretRegistry) -> None:
        self._files = files
        self.keyring = keyring
        self.on_format: Callable[[object], Mapping[str, object]] | None = None

    @property
    def folder(self) -> Path | None:
        """The folder, which another process may use too; None if files are in this process's memory."""
        return self._files().folder

    def keep(self, id_: str, name: str, data: bytes | str | Path, media_type: str | None = None) -> ev.Artifact:
        """Write a file; return the event that announces it. Raises `StoreError` or `OSError`."""
        head = ""
        if isinstance(data, str):
            data = self.keyring.look().text(clean_text(data))
            head = data[:HEAD]
            data = data.encode()
            media_type = media_type or mimetypes.guess_type(name)[0] or "text/plain"
        media_type = media_type or mimetypes.guess_type(name)[0] or "application/octet-stream"
        sha256, size = self._files().keep(data)
        return ev.Artifact(id_, clean_text(name), size, head, clean_text(media_type), sha256)

    def wants(self, output: object, keep_object: bool) -> bool:
        """Return whether an output has more to keep than its data; costs nothing for plain values."""
        if output is None:
            return False
        return keep_object or (type(output) not in _PLAIN and self.on_format is not None)

    def keep_output(self, output: object, keep_object: bool) -> list[ev.EventData]:
        """Keep an output's rendering, and the object itself if that is wanted; return the events for the log.

        It runs the output's own code, which may take any time. Nothing that this raises is an error of the run.
        """
        events: list[ev.EventData] = []
        if type(output) not in _PLAIN and self.on_format is not None:
            events += self._try(self._keep_look, output, "the output's rendering was not kept")
        if keep_object:
            events += self._try(self._keep_object, output, "the output object was not kept")
        return events

    def _try(self, keep: Callable[[object], list[ev.EventData]], output: object, failed: str) -> list[ev.EventData]:
        try:
            return keep(output)
        except (StoreError, OSError) as error:
            return [ev.Log(f"{failed}: {error}", "warning")]
        except Exception as error:  # its own code
            why = clean_text(f"{type(error).__name__}: {_message(error)}")
            return [ev.Log(f"{failed} ({why})", "warning")]

    def _keep_look(self, output: object) -> list[ev.EventData]:
        if self.on_format is None:
            return []
        blob = bundle.packed(self.on_format(output), self.keyring.look().text)
        return [] if blob is None else [self.keep(DISPLAY, "output", blob, BUNDLE)]

    def _keep_object(self, output: object) -> list[ev.EventData]:
        import cloudpickle  # with the first run that wants it

        blob = cloudpickle.dumps(output)
        # Nothing can be replaced inside a pickle.
        if any(secret in blob for secret in self.keyring.look().encoded):
            raise StoreError("it holds a secret")
        return [self.keep(OBJECT, type_name(output), blob, PICKLE)]


def _message(error: Exception) -> str:
    try:
        return " ".join(str(error).split())
    except Exception as broken:  # in a __str__ of the agent's
        return f"<str failed: {type(broken).__name__}>"
