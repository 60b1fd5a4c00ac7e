"""What is kept of a run beside its log: files that its agent makes, what its output looks like, the object itself."""

from __future__ import annotations

import mimetypes
from typing import TYPE_CHECKING

from nbrun import bundle
from nbrun import events as ev
from nbrun.encoding import clean_text, type_name
from nbrun.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from nbrun.artifacts import ArtifactFiles
    from nbrun.redaction import Redactor

HEAD = 300
"""Characters of a text that its event holds."""
DISPLAY, OBJECT = "display", "object"
"""The ids of what is kept of an output: how Jupyter shows it, and the object itself."""
PICKLE = "application/x-python-pickle"
BUNDLE = "application/vnd.nbrun.display+json"

_PLAIN = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, set, frozenset})


class Keeper:
    """Makes files of what runs give it, and the events that tell of them.

    Threads: any method, from any thread.

    Parameters
    ----------
    files : asked at each use, for a session's store may not be open yet.
    redactor : the same: there may be new secrets. Text is redacted; bytes and files are kept as they are.
    on_format : given by the user interface: returns a value's forms by MIME type. It runs the value's own code.
    """

    def __init__(
        self, files: Callable[[], ArtifactFiles], redactor: Callable[[], Redactor]
    ) -> None:
        self._files = files
        self._redactor = redactor
        self.on_format: Callable[[object], Mapping[str, object]] | None = None

    @property
    def folder(self) -> Path | None:
        """Where another process may keep files; None if they are in this one's memory."""
        return self._files().folder

    def keep(
        self, id_: str, name: str, data: bytes | str | Path, media_type: str | None = None
    ) -> ev.Artifact:
        """Write a file; return the event that has it known.

        Raises
        ------
        StoreError, OSError
            It cannot be written.
        """
        head = ""
        if isinstance(data, str):
            data = self._redactor().text(clean_text(data))
            head = data[:HEAD]
            data = data.encode()
            media_type = media_type or mimetypes.guess_type(name)[0] or "text/plain"
        media_type = media_type or mimetypes.guess_type(name)[0] or "application/octet-stream"
        sha256, size = self._files().keep(data)
        return ev.Artifact(id_, clean_text(name), size, head, clean_text(media_type), sha256)

    def wants(self, output: object, keep_object: bool) -> bool:
        """Return whether there is something to keep of an output besides its data; costs nothing for plain ones."""
        if output is None:
            return False
        return keep_object or (type(output) not in _PLAIN and self.on_format is not None)

    def keep_output(self, output: object, keep_object: bool) -> list[ev.EventData]:
        """Keep how an output looks, and itself if that is wanted; return what the log should say of it.

        It runs the output's own code, which may take any time. Nothing that this raises is an error of the run.
        """
        told: list[ev.EventData] = []
        if type(output) not in _PLAIN and self.on_format is not None:
            told += self._tried(self._keep_look, output, "how its output looks is not kept")
        if keep_object:
            told += self._tried(self._keep_object, output, "the object of its output is not kept")
        return told

    def _tried(
        self, keep: Callable[[object], list[ev.EventData]], output: object, failed: str
    ) -> list[ev.EventData]:
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
        blob = bundle.packed(self.on_format(output), self._redactor().text)
        return [] if blob is None else [self.keep(DISPLAY, "output", blob, BUNDLE)]

    def _keep_object(self, output: object) -> list[ev.EventData]:
        import cloudpickle  # with the first run that wants it

        blob = cloudpickle.dumps(output)
        # In a pickle nothing can be replaced.
        if any(secret in blob for secret in self._redactor().encoded):
            raise StoreError("it holds a secret")
        return [self.keep(OBJECT, type_name(output), blob, PICKLE)]


def _message(error: Exception) -> str:
    try:
        return " ".join(str(error).split())
    except Exception as broken:  # somebody's __str__
        return f"<str failed: {type(broken).__name__}>"
