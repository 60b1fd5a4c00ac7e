"""The output of a run that another kernel made: shown as it was, and loaded where that is asked for."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

from nbrun.core import mimebundle as bundle
from nbrun.core.artifacts import DISPLAY, OBJECT, PICKLE
from nbrun.core.errors import ArtifactLost, BadOption, NbrunError, NoResult
from nbrun.core.values import Plain, readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbrun.core.artifacts import Artifact

_READ_LIMIT = 2 * bundle.LIMIT  # of a bundle that we did not write, perhaps


class ResultView:
    """An output as Jupyter showed it; `value` is its JSON-like form.

    HTML is sanitised: tables and text stay, scripts, styles and remote images do not.
    """

    def __init__(self, value: Plain, data: dict[str, str]) -> None:
        self.value = value
        self._data = data

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return self._data

    def __repr__(self) -> str:
        return self._data[bundle.TEXT]


def view_of(value: Plain, artifacts: Sequence[Artifact]) -> object:
    """Return what shows a stored output: the value itself, unless a view of it was kept."""
    look = look_of(value, artifacts)
    return value if look is None else ResultView(value, look)


def look_of(value: Plain, artifacts: Sequence[Artifact]) -> dict[str, str] | None:
    """Return what a stored output looked like, safe to be shown, by MIME type; None where only a text was kept."""
    kept = next((made for made in artifacts if made.id == DISPLAY), None)
    if kept is None:
        return None
    if kept.size > _READ_LIMIT:
        return {bundle.TEXT: f"{readable(value)}\n(its view is too large)"}
    try:
        return bundle.unpacked(kept.read())
    except ArtifactLost as error:
        return {bundle.TEXT: f"{readable(value)}\n({error})"}


def load_object(title: str, artifacts: Sequence[Artifact], *, trusted: bool) -> object:
    """Return the object that a run gave, unpickled.

    Raises
    ------
    BadOption
        It was not said that the store is trusted.
    NoResult, ArtifactLost
        None was kept, or its file is gone.
    NbrunError
        It cannot be loaded here.
    """
    if trusted is not True:
        raise BadOption(
            "loading an object runs whatever code its store's author has put there; if the store is your own: "
            "run.load_object(trusted=True)"
        )
    kept = [made for made in artifacts if made.id == OBJECT and made.media_type == PICKLE]
    if not kept:
        raise NoResult(f"{title} has kept no object; start it with --keep-object for that")
    blob = kept[0].read()
    try:
        return pickle.loads(blob)  # noqa: S301 - the caller has said that the store is trusted
    except Exception as error:  # of the object's own class, or a module that is not here
        why = f"{type(error).__name__}: {error}"
        raise NbrunError(f"the object of {title} cannot be loaded here: {why}") from error
