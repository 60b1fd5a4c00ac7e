"""Clicks, each done once; and those by which a page says something to a run: `approve`, `deny` and `steer`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from nbrun.errors import BadOption, UserError
from nbrun.questions import ALLOW, DENY
from nbrun.ui.edited import read_args

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.run import Run
    from nbrun.session import NotebookSession

_REMEMBERED = 256
MAX_NONCE = 64
"""Characters of a nonce by which the page knows the receipt of its message."""


class Clicks:
    """Does what a click asks for, once: it comes twice, down two roads, with one nonce.

    Threads: any method, from any thread; `_lock` guards `_replies`, and makes the second wait for the first.
    """

    def __init__(self, session: NotebookSession) -> None:
        self._session = session
        self._lock = threading.RLock()
        self._replies: dict[str, dict[str, Any]] = {}

    def answer(self, run: Run, content: dict[str, Any], by: str) -> dict[str, Any]:
        """Return `outcome`: `sent`, or `refused` with a `message` that says why."""
        return self.once(content.get("nonce"), lambda: self._do(run, content, by))

    def once(self, nonce: object, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do what a click asks for, unless that was done already; return what came of it."""
        if not isinstance(nonce, str):  # nothing to know it by
            return do()
        with self._lock:
            reply = self._replies.get(nonce)
            if reply is None:
                reply = self._replies[nonce] = do()
                if len(self._replies) > _REMEMBERED:
                    del self._replies[next(iter(self._replies))]
        return reply

    def _do(self, run: Run, content: dict[str, Any], by: str) -> dict[str, Any]:
        names = ("call", "text", "choice", "args_json", "nonce")
        call, text, choice, args_json, nonce = (content.get(name) for name in names)
        try:
            for word in (call, text, choice, args_json):
                if word is not None and not isinstance(word, str):
                    raise BadOption("call, text, choice and args_json are texts")
            if (
                content["op"] != "steer" and not call
            ):  # a click is one on a question, never on whichever is open
                raise BadOption("call is missing: the id of the question")
            match content["op"]:
                case "approve":
                    # As text, where a person has edited it: the page's own numbers end at 2**53.
                    args = content.get("args") if args_json is None else read_args(args_json)
                    always = content.get("always") is True
                    self._session.answer(
                        run, call, choice or ALLOW, args=args, text=text, always=always, by=by
                    )
                case "deny":
                    self._session.answer(run, call, DENY, text=text, by=by)
                case _:
                    known_by = nonce if isinstance(nonce, str) and len(nonce) <= MAX_NONCE else None
                    self._session.steer(run, text or "", by=by, id=known_by)
        except UserError as error:
            return {"outcome": "refused", "message": str(error)}
        return {"outcome": "sent"}
