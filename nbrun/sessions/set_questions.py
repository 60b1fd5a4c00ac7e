"""The questions that the runs of a set ask: those that ask the same are one group, and answered together."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

from nbrun.core import BadOption, NotPending
from nbrun.render.set_view import QuestionGroup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nbrun.core import events as ev
    from nbrun.sessions.control import Control
    from nbrun.sessions.live_run import LiveRun

GROUPS, KINDS = 3, 10
"""How many groups are shown, and how many different arguments each of them names."""
LOOKED_AT = 500
"""How many questions are looked at."""
STEADY_S = 3.0
"""For how long a group stays as it is, so that somebody can read it and press its button."""
REMEMBERED = 100

_Asked = tuple["LiveRun", "ev.ApprovalRequested"]


class SetQuestions:
    """Groups the questions of a set. Threads: any; `_lock` guards what is remembered.

    An answer names a group by the digest of its questions, and goes to these alone: what is asked after the group was
    shown is not answered with it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shown: dict[str, tuple[float, QuestionGroup]] = {}  # by what they ask, and since when it is shown
        self._known: dict[str, list[_Asked]] = {}  # the questions of each group that was shown, by its digest

    def groups(self, lives: Iterable[LiveRun], now: float) -> list[QuestionGroup]:
        """Return what is asked at this moment, the oldest first."""
        with self._lock:
            found: dict[str, list[_Asked]] = {}
            for _, asked in zip(range(LOOKED_AT), _pending(lives), strict=False):
                found.setdefault(_kind(asked[1]), []).append(asked)
            shown: dict[str, tuple[float, QuestionGroup]] = {}
            for kind, asked_by in list(found.items())[:GROUPS]:
                since, group = self._shown.get(kind, (0.0, None))
                if group is None or now - since >= STEADY_S or not self._is_pending(group):
                    group, since = self._group(kind, asked_by), now
                shown[kind] = since, group
            self._shown = shown
            return [group for _, group in shown.values()]

    def _group(self, kind: str, asked_by: list[_Asked]) -> QuestionGroup:
        alike: dict[str, list[_Asked]] = {}
        for asked in asked_by:
            args = repr(asked[1].args)
            if args in alike or len(alike) < KINDS:
                alike.setdefault(args, []).append(asked)
        those = [asked for same in alike.values() for asked in same]
        digest = hashlib.blake2b(digest_size=16)
        for live, question in those:
            digest.update(f"{live.run_id} {question.digest} ".encode())
        self._known[digest.hexdigest()] = those
        while len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return QuestionGroup(
            digest=digest.hexdigest(), kind=kind, count=len(those),
            asked=[(len(same), same[0][1]) for same in alike.values()],
            numbers=[same[0][0].record.number or 0 for same in alike.values()],
        )  # fmt: skip

    def _is_pending(self, group: QuestionGroup) -> bool:
        known = self._known.get(group.digest, ())
        return any(question in live.record.pending for live, question in known)

    def answer(self, digest: str, decision: str, control: Control, by: str) -> int:
        """Answer the questions of a group that are still asked; return how many. Raises `NotPending` if none is."""
        with self._lock:
            known = self._known.get(digest, [])
        count = 0
        for live, question in known:
            if question in live.record.pending:
                try:
                    control.answer(live, question.id, decision, by=by)
                except (NotPending, BadOption):  # it has just been answered, or ended
                    continue
                count += 1
        if not count:
            raise NotPending("These questions are no longer asked")
        return count


def _pending(lives: Iterable[LiveRun]) -> Iterator[_Asked]:
    for live in lives:
        for question in live.record.pending:
            yield live, question


def _kind(question: ev.ApprovalRequested) -> str:
    """Return what questions have in common that are answered together; only the arguments may differ."""
    alike = repr((question.message, question.tool, question.options, question.hidden, question.input))
    return hashlib.blake2b(alike.encode(errors="surrogatepass"), digest_size=8).hexdigest()
