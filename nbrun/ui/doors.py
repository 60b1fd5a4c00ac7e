"""The doors of a kernel: what a page or the server asks for, by comm or control channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbrun.encoding import shown
from nbrun.ui.clicks import Clicks
from nbrun.wording import status_words, visible

if TYPE_CHECKING:
    from nbrun.run import Run
    from nbrun.session import NotebookSession
    from nbrun.ui.panel import Panels

LIST_LIMIT = 200
"""How many live runs are told of at once, the newest: a cancel may be waiting behind the answer."""


class Doors:
    """Does what is asked for from outside of the cells; only passes it on, touches no widget.

    Threads: `answer()`, from any; `panels` is written by the main thread, with the first panel.
    """

    def __init__(self, session: NotebookSession) -> None:
        self.panels: Panels | None = None
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
        panels = self.panels
        if panels is None:
            return {"outcome": "not_found"}
        return self._clicks.once(content.get("nonce"), lambda: panels.ask(content))

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
