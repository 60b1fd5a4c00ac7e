"""Requests from outside the cells: of cards, panels and the server, over a widget's comm or the control channel."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbrun.agents import ALLOW, DENY
from nbrun.core import BadOption, UserError, shown, visible
from nbrun.render.words import status_words

if TYPE_CHECKING:
    from nbrun.sessions import NotebookSession, Run, RunSet

REQUEST, REPLY = "nbrun_request", "nbrun_reply"
LIST_LIMIT = 200
"""How many live runs a list has, the newest: a cancel may be waiting behind the answer."""
MAX_NONCE = 64
"""Characters of a nonce by which the page recognises the receipt of its message."""
_LOOKS = 256
"""How many looks of a panel are remembered. All other requests are, for as long as the session: people make them."""

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def install(kernel: Any, answer: Answer) -> None:
    """Have `answer(content)` called for every `nbrun_request` on the kernel's control channel.

    It runs on the thread `Control`, whatever the main thread does, so it may fire tokens and must not touch widgets.

    Source: ipykernel looks custom message types up in `kernel.control_handlers`, a dict, and awaits what the
    handler returns (measured on 6.30 to 7.4).
    """

    async def on_request(stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        content = parent.get("content")
        reply = answer(content if isinstance(content, dict) else {})
        kernel.session.send(stream, REPLY, reply, parent, ident)

    kernel.control_handlers[REQUEST] = on_request


def remove(kernel: Any) -> None:
    """Remove the handler."""
    kernel.control_handlers.pop(REQUEST, None)


class Requests:
    """Passes requests on to the session, each once: a page sends them over both channels, with one nonce.

    Threads: `answer()` from any thread; the main thread writes `ask_panel`, with the first panel. `_lock` guards
    `_replies` and `_looks`, and makes a request's second copy wait for the first. It isn't held for a cancel, which is
    idempotent.
    """

    def __init__(self, session: NotebookSession) -> None:
        self.ask_panel: Answer | None = None
        self._session = session
        self._lock = threading.RLock()
        self._replies: dict[str, dict[str, Any]] = {}
        self._looks: deque[str] = deque()

    def answer(self, content: dict[str, Any]) -> dict[str, Any]:
        """Do what a page or the server asks for; return the reply."""
        nonce = content.get("nonce")
        reply: dict[str, Any] = {"op": "reply", "nonce": nonce if isinstance(nonce, str) else None}
        match content.get("op"):
            case "list":
                return reply | self._list()
            case "ping":
                return reply | {"outcome": "pong"}
            case "cancel_all":
                return reply | self._cancel_all(content)
            case "look" | "open" | "keep" if self.ask_panel is not None:
                return reply | self._once(self.ask_panel, content)
            case "look" | "open" | "keep":
                return reply | {"outcome": "not_found"}
            case "cancel" | "pause" | "unpause" | "retry" | "approve" | "deny" if "set" in content:
                return reply | self._answer_for_set(content)
            case "cancel" | "approve" | "deny" | "steer":
                return reply | self._answer_for_run(content)
            case _:
                return reply | {"outcome": "unknown_op"}

    def _list(self) -> dict[str, Any]:
        live = self._session.live_runs
        runs = [{**_listed(run), "session_id": self._session.id} for run in live[:LIST_LIMIT]]
        return {"outcome": "listed", "runs": runs, "total": len(live)}

    def _cancel_all(self, content: dict[str, Any]) -> dict[str, Any]:
        """Cancel all live runs, once: the second copy may arrive when new runs have started."""
        if content.get("session_id") != self._session.id:
            return {"outcome": "not_found"}

        def cancel_all(_content: object) -> dict[str, Any]:
            return {"outcome": "requested", "count": len(self._session.cancel_all(by="panel"))}

        return self._once(cancel_all, content)

    def _answer_for_run(self, content: dict[str, Any]) -> dict[str, Any]:
        by = content["by"] if content.get("by") in ("server", "panel") else "card"
        run_id, reason = content.get("run_id"), content.get("reason")
        # The server finds its kernel by id, so it may leave the session out: exactly this id, in this session.
        # A page outlives its kernel, and must name the session of its run.
        session_id = content.get("session_id", self._session.id if by == "server" else None)
        is_ours = session_id == self._session.id
        run = self._session.own(run_id) if is_ours and isinstance(run_id, str) else None
        if run is None:
            return {"outcome": "not_found"}
        if content["op"] != "cancel":
            return self._once(lambda content: self._talk(run, content, by), content)
        receipt = run.cancel(reason if isinstance(reason, str) else None, by=by)
        return {"outcome": str(receipt.outcome)}

    def _answer_for_set(self, content: dict[str, Any]) -> dict[str, Any]:
        number, is_ours = content["set"], content.get("session_id") == self._session.id
        found = self._session.get_set(number) if is_ours and isinstance(number, int) else None
        if found is None:
            return {"outcome": "not_found"}
        if content["op"] == "cancel":
            by = "panel" if content.get("by") == "panel" else "card"
            return {"outcome": str(found.cancel(by=by).outcome)}
        return self._once(lambda content: self._change(found, content), content)

    def _change(self, found: RunSet, content: dict[str, Any]) -> dict[str, Any]:
        """Pause a set, run a part of it again, or answer its questions; return `sent`, or `refused` and why."""
        error, digest = content.get("error"), content.get("digest")
        try:
            match content["op"]:
                case "pause":
                    found.pause()
                case "unpause":
                    found.unpause()
                case "approve" | "deny" as decision:
                    if not isinstance(digest, str):
                        raise BadOption("digest is missing: which questions are meant")
                    found.answer(digest, ALLOW if decision == "approve" else DENY, by="card")
                case _:
                    found.retry(error=error if isinstance(error, str) else None)
        except UserError as refused:
            return {"outcome": "refused", "message": str(refused)}
        return {"outcome": "sent"}

    def _once(self, do: Answer, content: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks for, unless its other copy was here before; return the reply."""
        nonce = content.get("nonce")
        if not isinstance(nonce, str) or len(nonce) > MAX_NONCE:  # nothing to recognise it by
            return do(content)
        with self._lock:
            reply = self._replies.get(nonce)
            if reply is None:
                reply = self._replies[nonce] = do(content)
                if content.get("op") == "look":
                    self._looks.append(nonce)
                    if len(self._looks) > _LOOKS:
                        del self._replies[self._looks.popleft()]
        return reply

    def _talk(self, run: Run, content: dict[str, Any], by: str) -> dict[str, Any]:
        """Answer a run's question, or send it a message; return `sent`, or `refused` with a `message` that says why."""
        names = ("call", "text", "choice", "args_json", "nonce", "digest")
        call, text, choice, args_json, nonce, digest = (content.get(name) for name in names)
        try:
            if not all(isinstance(one, str | None) for one in (call, text, choice, args_json)):
                raise BadOption("call, text, choice and args_json must be strings")
            if content["op"] != "steer" and not call:  # a click never answers just any question
                raise BadOption("call is missing: the id of the question")
            match content["op"]:
                case "approve" if any(asked.digest != digest for asked in run.pending if asked.id == call):
                    raise BadOption("this page doesn't show the whole question; look at it again, then answer")
                case "approve":
                    # Edited ones as text: a page's own numbers are exact up to 2**53 only.
                    args = content.get("args") if args_json is None else read_args(args_json)
                    always = content.get("always") is True
                    run.answer(call, choice or ALLOW, args=args, text=text, always=always, by=by)
                case "deny":
                    run.answer(call, DENY, text=text, by=by)
                case _:
                    known_by = nonce if isinstance(nonce, str) and len(nonce) <= MAX_NONCE else None
                    run.steer(text or "", by=by, id=known_by)
        except UserError as error:
            return {"outcome": "refused", "message": str(error)}
        return {"outcome": "sent"}


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


def read_args(text: str, hint: str = 'write them as in {"path": "x"}') -> object:
    """Return the edited arguments of a question, from JSON that isn't null; `hint` ends the message of an error."""
    try:
        args: object = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise BadOption(f"the arguments aren't valid JSON ({why}); {hint}") from None
    if args is None:
        raise BadOption("the arguments are null; leave them out to keep the agent's own")
    return args


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} isn't a JSON number")
