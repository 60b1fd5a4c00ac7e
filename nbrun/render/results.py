"""The stored output of a run: shown as Jupyter showed it, and its object loaded on request."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

from nbrun.core import (
    Artifact,
    ArtifactLost,
    BadOption,
    NbrunError,
    NoResult,
    Plain,
    artifacts as kinds,
    mimebundle as bundle,
    readable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


_READ_LIMIT = 2 * bundle.LIMIT  # a bundle may come from another program


class ResultView:
    """An output as Jupyter showed it, without scripts, styles and remote images; `value` is its JSON-like form."""

    def __init__(self, value: Plain, data: dict[str, str]) -> None:
        self.value = value
        self._data = data

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return self._data

    def __repr__(self) -> str:
        return self._data[bundle.TEXT]


def view_of(value: Plain, artifacts: Sequence[Artifact]) -> object:
    """Return what displays a stored output: the value itself, unless its view was kept."""
    look = look_of(value, artifacts)
    return value if look is None else ResultView(value, look)


def look_of(value: Plain, artifacts: Sequence[Artifact]) -> dict[str, str] | None:
    """Return a stored output as it was displayed, sanitised, by MIME type; None if only text was kept."""
    kept = next((made for made in artifacts if made.id == kinds.DISPLAY), None)
    if kept is None:
        return None
    if kept.size > _READ_LIMIT:
        return {bundle.TEXT: f"{readable(value)}\n(its view is too large)"}
    try:
        return bundle.unpacked(kept.read())
    except ArtifactLost as error:
        return {bundle.TEXT: f"{readable(value)}\n({error})"}


def load_object(title: str, artifacts: Sequence[Artifact], *, trusted: bool) -> object:
    """Return the object that a run returned, unpickled.

    Raises `BadOption` unless `trusted` is True, `NoResult` if no object was kept, `ArtifactLost` if its file is gone,
    and `NbrunError` if it cannot be loaded here.
    """
    if trusted is not True:
        raise BadOption(
            "loading an object runs any code its store's author put there; if you trust it: "
            "run.load_object(trusted=True)"
        )
    kept = [made for made in artifacts if made.id == kinds.OBJECT and made.media_type == kinds.PICKLE]
    if not kept:
        raise NoResult(f"{title} kept no object; to keep it, start the run with --keep-object")
    blob = kept[0].read()
    try:
        return pickle.loads(blob)  # noqa: S301 - the caller trusts the store
    except Exception as error:  # from the object's class, or a missing module
        why = f"{type(error).__name__}: {error}"
        raise NbrunError(f"the object of {title} cannot be loaded here: {why}") from error
