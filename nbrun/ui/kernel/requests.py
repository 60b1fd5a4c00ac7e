"""The doors of a kernel: what a page or the server asks for, by comm or control channel."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from nbrun.agents.context.approvals import ALLOW, DENY
from nbrun.core.errors import BadOption, UserError
from nbrun.core.values import shown
from nbrun.render.words import status_words, visible
from nbrun.ui.kernel.edited_args import read_args

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbrun.sessions.run import Run
    from nbrun.sessions.session import NotebookSession

LIST_LIMIT = 200
"""How many live runs are told of at once, the newest: a cancel may be waiting behind the answer."""


class Requests:
    """Does what is asked for from outside of the cells; only passes it on, touches no widget.

    Threads: `answer()`, from any; `ask_panel` is written by the main thread, with the first panel.
    """

    def __init__(self, session: NotebookSession) -> None:
        self.ask_panel: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        self._session = session
        self._clicks = Clicks(session)

    def answer(self, content: dict[str, Any]) -> dict[str, Any]:
        """Do what a card or the server asks for; return what came of it.

        A card's request comes twice, once down each road, with one nonce; a cancel is idempotent, so the
        second finds `already_requested`.
        """
        nonce = content.get("nonce")
        reply: dict[str, Any] = {"op": "reply", "nonce": nonce if isinstance(nonce, str) else None}
        match content.get("op"):
            case "list":
                return reply | self._answer_list()
            case "ping":
                return reply | {"outcome": "pong"}
            case "cancel_all":
                return reply | self._answer_cancel_all(content)
            case "look" | "open" | "keep":
                return reply | self._answer_for_panel(content)
            case "cancel" | "approve" | "deny" | "steer":
                return reply | self._answer_for_run(content)
            case _:
                return reply | {"outcome": "unknown_op"}

    def _answer_for_run(self, content: dict[str, Any]) -> dict[str, Any]:
        by = content["by"] if content.get("by") in ("server", "panel") else "card"
        run_id, reason = content.get("run_id"), content.get("reason")
        # The server finds its kernel by id, so it may leave the session out: exactly this id, in this session.
        # A page outlives its kernel, and must name the session that its run is of.
        session_id = content.get("session_id", self._session.id if by == "server" else None)
        is_ours = session_id == self._session.id
        run = self._session.own(run_id) if is_ours and isinstance(run_id, str) else None
        if run is None:
            return {"outcome": "not_found"}
        if content["op"] != "cancel":
            return self._clicks.answer(run, content, by)
        receipt = self._session.cancel(run, reason if isinstance(reason, str) else None, by=by)
        return {"outcome": str(receipt.outcome)}

    def _answer_cancel_all(self, content: dict[str, Any]) -> dict[str, Any]:
        """Cancel all that is live, once: the click's second road may be read when other runs have begun."""
        if content.get("session_id") != self._session.id:
            return {"outcome": "not_found"}

        def cancel_all() -> dict[str, Any]:
            return {"outcome": "requested", "count": len(self._session.cancel_all(by="panel"))}

        return self._clicks.once(content.get("nonce"), cancel_all)

    def _answer_for_panel(self, content: dict[str, Any]) -> dict[str, Any]:
        ask_panel = self.ask_panel
        if ask_panel is None:
            return {"outcome": "not_found"}
        return self._clicks.once(content.get("nonce"), lambda: ask_panel(content))

    def _answer_list(self) -> dict[str, Any]:
        live = self._session.live_runs
        runs = [{**_listed(run), "session_id": self._session.id} for run in live[:LIST_LIMIT]]
        return {"outcome": "listed", "runs": runs, "total": len(live)}


def _listed(run: Run) -> dict[str, Any]:
    """Return what a list outside the kernel shows of a run; no prompt and no output."""
    record = run.glance
    return {
        "id": run.id,
        "number": record.number,
        "name": visible(shown(record.name, 200)),
        "agent": visible(shown(record.model or record.agent, 200)),
        "status": str(record.status),
        "words": visible(shown(status_words(record), 300)),
        "created_at": record.created_at,
        "started_at": record.started_at,
    }


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
