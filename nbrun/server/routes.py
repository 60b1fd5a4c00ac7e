"""The routes under `nbrun/api/`: who may use them, and what they answer."""

from __future__ import annotations

import json
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from nbrun.core import clean_text
from nbrun.server.kernel_client import NoAnswer, call

MAX_REASON = 1000

_STATUS = {"requested": 200, "already_requested": 200, "already_finished": 200, "foreign": 409}
"""The HTTP status of each outcome of a cancel; 404 for any other."""


def routes(base_url: str) -> list[tuple[str, type[web.RequestHandler]]]:
    """Return every route: a pattern and its handler."""
    runs = url_path_join(base_url, "nbrun/api/kernels/([^/]+)/runs")
    return [(runs, RunsHandler), (f"{runs}/([^/]+)/cancel", CancelHandler)]


class KernelHandler(APIHandler):
    """What the routes of a kernel share.

    Source: `APIHandler` checks the XSRF cookie before it calls a method, except with the server's secret token.
    """

    auth_resource = "kernels"

    async def ask(self, kernel_id: str, op: str, **content: object) -> dict[str, Any]:
        """Return nbrun's answer in a kernel; 404: no such kernel, 504: no answer, 501: an older nbrun than here."""
        kernel = self.kernel_manager.get_kernel(kernel_id)  # raises the 404
        try:
            answer = await call(kernel, op, by="server", **content)
        except NoAnswer as error:
            raise web.HTTPError(504, str(error)) from error
        if answer.get("outcome") == "unknown_op":
            raise web.HTTPError(501, f"nbrun in the kernel is too old for '{op}'; restart the kernel")
        return answer


class RunsHandler(KernelHandler):
    """The live runs of a kernel."""

    @web.authenticated
    @authorized("read", resource="contents")
    async def get(self, kernel_id: str) -> None:
        """Send the live runs, newest first, and their number."""
        answer = await self.ask(kernel_id, "list")
        self.finish(json.dumps({"runs": answer.get("runs"), "total": answer.get("total")}))


class CancelHandler(KernelHandler):
    """The cancel of one run."""

    @web.authenticated
    @authorized("execute", resource="kernels")
    async def post(self, kernel_id: str, run_id: str) -> None:
        """Cancel a run, and send the outcome: it may have ended, or be unknown."""
        answer = await self.ask(kernel_id, "cancel", run_id=run_id, **self._options())
        outcome = str(answer.get("outcome"))
        self.set_status(_STATUS.get(outcome, 404))
        self.finish(json.dumps({"outcome": outcome}))

    def _options(self) -> dict[str, str]:
        """Return what the body has: `reason`, and the `session_id` that the list gave for the run."""
        try:
            body = self.get_json_body()
        except UnicodeDecodeError as error:
            raise web.HTTPError(400, "the body is not UTF-8") from error
        if body is None:
            return {}
        names = ("reason", "session_id")
        if not isinstance(body, dict) or not set(body) <= set(names):
            raise web.HTTPError(400, f"the body must be a JSON object; it may have {' and '.join(names)}")
        options = {name: value for name, value in body.items() if value is not None}
        if not all(isinstance(value, str) for value in options.values()):
            raise web.HTTPError(400, f"{' and '.join(names)} must be strings")
        if len(options.get("reason", "")) > MAX_REASON:
            raise web.HTTPError(400, f"reason is longer than {MAX_REASON} characters")
        return {name: clean_text(value) for name, value in options.items()}
