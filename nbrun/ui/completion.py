"""Tab in a line of `%agentrun` or `%%agentrun`, as IPython's completer asks for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from IPython.core.completer import SimpleCompletion, context_matcher

if TYPE_CHECKING:
    from nbrun.session import NotebookSession
    from nbrun.ui.offers import Offer

_log = logging.getLogger("nbrun")


class Completion:
    """Completes the lines of our magics in one shell, until it is closed.

    Threads: whichever completes, in a kernel also one of its subshells; nothing is kept between two calls.
    """

    def __init__(self, shell: Any, session: NotebookSession) -> None:
        self._shell = shell
        self._session = session
        # Before all others: where the line is ours, they need not even look.
        mark = context_matcher(priority=1000, identifier="nbrun")
        self._matcher: Any = mark(lambda context: self._match(context))

    def open(self) -> None:
        """Take part in the shell's completion."""
        self._shell.Completer.custom_matchers.append(self._matcher)

    def close(self) -> None:
        """Take part no more."""
        if self._matcher in self._shell.Completer.custom_matchers:
            self._shell.Completer.custom_matchers.remove(self._matcher)

    def offer(self, text: str) -> Offer | None:
        """Return what fits at the end of this text; None where that is not ours to say."""
        from nbrun.ui.offers import Offers  # with the first Tab: a load must be quick

        return Offers(self._shell, self._session).offer(text)

    def _match(self, context: Any) -> dict[str, Any]:
        try:
            offer = self.offer(context.text_until_cursor)
        except Exception:  # whatever it is, nobody who presses Tab wants to read of it
            _log.debug("no completion", exc_info=True)
            offer = None
        if offer is None:
            return {"completions": []}
        texts = _Only(SimpleCompletion(text, type=offer.kind) for text in offer.texts)
        fragment = offer.fragment
        return {
            "completions": texts,
            "matched_fragment": fragment,
            "ordered": True,
            "suppress": True,
        }


class _Only(list[SimpleCompletion]):
    """Our completions and no others, also where there are none: IPython takes no others for a list of some length.

    Without it Tab after `--timeout` would offer Python's keywords and the names of files.
    """

    def __len__(self) -> int:
        return max(1, super().__len__())
