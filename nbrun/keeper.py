"""What is kept of a run beside its log: the files that its agent makes."""

from __future__ import annotations

import mimetypes
from typing import TYPE_CHECKING

from nbrun import events as ev
from nbrun.encoding import clean_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nbrun.artifacts import ArtifactFiles
    from nbrun.redaction import Redactor

HEAD = 300
"""Characters of a text that its event holds."""


class Keeper:
    """Makes files of what runs give it, and the events that tell of them.

    Threads: any method, from any thread.

    Parameters
    ----------
    files : asked at each use, for a session's store may not be open yet.
    redactor : the same: there may be new secrets. Text is redacted; bytes and files are kept as they are.
    """

    def __init__(
        self, files: Callable[[], ArtifactFiles], redactor: Callable[[], Redactor]
    ) -> None:
        self._files = files
        self._redactor = redactor

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
