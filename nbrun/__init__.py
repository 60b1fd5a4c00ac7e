"""nbrun: run AI agents in a notebook; watch them, stop them, and find them again."""

# Layout. A folder imports only from those below it in this list.
#
#   ui                    magics, cards, panel, terminal: the only part that knows IPython, the kernel and widgets
#   sessions              the runs of one notebook: starts, finds, cancels and closes them
#   host | cli            runs one attempt and stops it | the nbrun command, which needs no kernel
#   calls                 the model calls of any code: counted, limited and closed at the HTTP client
#   agents | store | render | server
#                         what an agent sees, and an adapter for each kind | SQLite | a run in words and HTML |
#                         the Jupyter Server extension
#   core                  what a run is: events, record, cancellation, redaction, files of runs. No Jupyter
#
# What happens to a prompt: ui/magics reads the cell, sessions/start makes the run, whose attempt goes to the host once
# its creation is on disk, host/driver drives the agent through its adapter, sessions/intake orders, redacts and
# numbers what it sends, store/writer commits it, core/record folds it into the record, and ui/cards draws that. A
# cancel goes the other way: sessions/control fires the token, host/escalation takes the steps.
#
# A set of runs: sessions/live_set reads its inputs and starts its runs, sessions/run_set is its handle, store/sets its
# rows.
#
# Where to change what: an option: core/options and ui/magics/options. What Tab offers: ui/magics/completion. A status:
# core/record and render/words, then tests/core/test_statuses.py names the rest. Another fact of a run: core/events and
# core/record (the store saves whole records). A column of the panel or of lists: render/run_table. Durations and sizes:
# core/quantities. A framework: agents/NAME, the list in agents/__init__, an extra, and a subject of the conformance
# suite. A provider's form of requests: calls/forms. A way to cancel: where it begins, and its name in render/words; in
# the kernel it calls run.cancel(by=…), and what comes from outside (cards, panel, server) goes through
# ui/kernel/requests.
#
# Importing nbrun loads no IPython, no anywidget and no agent framework.

from __future__ import annotations

import sys
from typing import Any

from nbrun.agents import Answer, RunContext, agent, current, needs_approval
from nbrun.agents.scripted import ScriptedAgent
from nbrun.core import (
    CancelCause,
    CancelReceipt,
    CancelToken,
    RunEvent,
    RunRecord,
    RunStatus,
    SequentialIds,
    errors,
    events,
)
from nbrun.render.agui import to_agui
from nbrun.sessions import NotebookSession, Observer, Run, RunList, RunSet
from nbrun.sessions.default import compare, get, map as map, panel, redact, runs, session, sets, start

# Third parties import these two by their short names, too.
sys.modules[f"{__name__}.errors"] = errors
sys.modules[f"{__name__}.events"] = events

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "CancelCause",
    "CancelReceipt",
    "CancelToken",
    "NotebookSession",
    "Observer",
    "Run",
    "RunContext",
    "RunEvent",
    "RunList",
    "RunRecord",
    "RunSet",
    "RunStatus",
    "ScriptedAgent",
    "SequentialIds",
    "agent",
    "compare",
    "current",
    "errors",
    "get",
    "needs_approval",
    "panel",
    "redact",
    "runs",
    "session",
    "sets",
    "start",
    "to_agui",
]


def load_ipython_extension(shell: Any) -> None:
    """Switch nbrun on in this shell: `%load_ext nbrun`."""
    from nbrun.ui import extension

    extension.load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Switch nbrun off: cancels what is live, writes everything, takes its magics away."""
    from nbrun.ui import extension

    extension.unload(shell)
