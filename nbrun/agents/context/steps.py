"""Steps: calls of an agent's that must not be made twice, whose results a resumed run finds in the journal."""

from __future__ import annotations

import hashlib
import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from nbrun.core import (
    BadOption,
    Clock,
    NbrunError,
    Plain,
    StoreError,
    clean_text,
    events as ev,
    plain,
    shown,
    type_name,
)
from nbrun.core.checkpoint import stand_ins
from nbrun.core.journal import STEP, STEP_BEGUN, STEP_FAILED, Entry
from nbrun.core.values import revived

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nbrun.core.journal import Journal

_encode = msgspec.json.Encoder(order="sorted").encode


def is_async(function: Callable[..., object]) -> bool:
    """Return whether calling a function gives something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - not whether, but what it is


class StepCall:
    """One call of a step. Threads: of the agent that makes it.

    Raises `BadOption` if an argument isn't data, so that the same call couldn't be recognized in another run.
    """

    def __init__(
        self,
        journal: Journal | None,
        clock: Clock,
        warn: Callable[[str], object],
        function: Callable[..., object],
        args: Sequence[object],
        kwargs: Mapping[str, object],
    ) -> None:
        self._journal, self._clock, self._warn = journal, clock, warn
        name = getattr(function, "__qualname__", type_name(function))
        self.name = clean_text(str(getattr(function, "__name__", name)))
        self.given: Plain = plain({"args": list(args), **kwargs} if args else dict(kwargs))
        if odd := stand_ins(self.given):
            raise BadOption(
                f"step: {self.name}() is given a {odd[0]}, which isn't data; pass text, numbers, lists or dicts"
            )
        asked = _encode([getattr(function, "__module__", ""), name, self.given])
        if self._journal is not None:
            asked = self._journal.redactor.raw(asked)
        self._request = hashlib.sha256(asked).digest()
        self._known = self._find(STEP)
        self.is_known = self._known is not None
        """Whether its result is in the journal."""
        if self.is_known:
            self._find(STEP_BEGUN)
        while self._find(STEP_FAILED) is not None:
            self._find(STEP_BEGUN)
        self._was_begun = not self.is_known and self._find(STEP_BEGUN) is not None
        self.is_open = self._was_begun or (not self.is_known and journal is not None and journal.is_cut)
        """Whether an earlier run has begun it, or may have, and how far that got is unknown."""
        self.kind = ev.STEP_KNOWN if self.is_known else ev.STEP

    def _find(self, kind: str) -> Entry | None:
        return None if self._journal is None else self._journal.find(kind, self._request)

    @property
    def question(self) -> str:
        """What the user is asked if it is open."""
        source = "an earlier run" if self._journal is None else self._journal.source
        if self._was_begun:
            return f"{self.name}() had begun when {source} ended, so it may have taken effect. Call it again?"
        return f"The journal of {source} is incomplete, so {self.name}() may have been called already. Call it?"

    def refused(self) -> NbrunError:
        """Return the error of a step that must not be repeated."""
        return NbrunError(f"step: {self.name}() may have taken effect in an earlier run, so it isn't called again")

    def known(self) -> Plain:
        """Return the result in the journal, as it is stored."""
        assert self._known is not None  # noqa: S101 - the caller has looked
        result: Plain = msgspec.msgpack.decode(self._known.answer)
        return result

    @contextmanager
    def calling(self) -> Iterator[Callable[[object], Plain]]:
        """Note that it begins, and with what the block hands over, its result; that returns it as it is stored."""
        self._keep(STEP_BEGUN)
        has_returned = False

        def hand_over(result: object) -> Plain:
            nonlocal has_returned
            has_returned = True
            kept = plain(result)
            if stand_ins(kept) or revived(kept) != result:
                raise BadOption(
                    f"step: what {self.name}() returned can't be kept whole ({shown(kept, 100)}); "
                    "return text, numbers, bytes, lists, or dicts whose keys are text"
                )
            self._keep(STEP, kept)
            return kept

        try:
            yield hand_over
        except Exception:
            if not has_returned:
                self._keep(STEP_FAILED)
            raise

    def _keep(self, kind: str, result: Plain = None) -> None:
        journal = self._journal
        try:
            if journal is None or not journal.keeps:
                if kind == STEP:
                    self._warn(f"{self.name}() is not in the run's journal, so a resumed run calls it again")
                return
            answer = msgspec.msgpack.encode(journal.redactor.data(result)) if kind == STEP else b""
            journal.keep(Entry(kind, self._request, self._clock.now(), answer))
        except (OSError, StoreError) as error:
            self._warn(f"{self.name}() is not in the run's journal: {error}")
