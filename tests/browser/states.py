"""What a card shows of runs in every state, by the way that it takes: events, the record, the view."""

from __future__ import annotations

from typing import Any

from nbrun import CancelCause, RunRecord, RunStatus
from nbrun.core import events as ev
from nbrun.core.cancellation import Rung
from nbrun.core.record import fold
from nbrun.render.words import queued_words
from nbrun.ui.cards.markdown_blocks import Blocks
from nbrun.ui.cards.view import view
from tests.browser.card_page import NOW

ANSWER = """## Two comets to watch

Both return **this century**; the second one is *fainter* than `magnitude 5`.

| comet | period | next visit |
|---|---:|---|
| 1P/Halley | 76 years | 2061 |
| 109P/Swift-Tuttle | 133 years | 2126 |

1. Look them up in the [catalogue](https://example.org/comets).
2. Compute the orbit:

   ```python
   orbit = fit(observations, epoch=2451545.0)
   ```

> A comet is like a cat: it has a tail, and it does precisely what it wants.

הטקסט הזה נכתב מימין לשמאל, עם the word comet בתוכו."""

TRACEBACK = """Traceback (most recent call last):
  File "<cell 4>", line 12, in survey
    orbit = fit(observations, epoch)
            ^^^^^^^^^^^^^^^^^^^^^^^^
  File "<cell 3>", line 31, in fit
    raise ValueError(f"no such comet: {name}")
ValueError: no such comet: 12P/Pons-Brooks-Olbers
"""

CREATED = ev.RunCreated(
    "session-1", "comet_survey", "pydantic-ai", "Which comets return?", 7, model="openai:gpt-5-mini"
)
USED = ev.Usage(18_204, 3_340, cost_usd=0.0423)
SEARCH = ev.ToolStarted("t1", "search_catalogue", "function", {"query": "periodic comets", "limit": 5})
FOUND = ev.ToolFinished("t1", "ok", [{"name": "1P/Halley"}, {"name": "109P/Swift-Tuttle"}], 1240.0)
FETCH = ev.ToolStarted("t2", "fetch", "mcp", {"url": "https://example.org/ephemerides/109P?from=2120&to=2130"})
REFUSED = ev.ToolFinished("t2", "error", "HTTPError: 503 Service Unavailable", 2310.0)
READ = ev.ToolStarted("t3", "read_pages", "function", {"path": "archive/109P.txt"})
DELETE = ev.ApprovalRequested(
    "ask-1", "Delete the old ephemerides?", "t4", {"path": "archive/old", "files": 214}, (), NOW + 75
)
CANCEL = ev.CancelRequested(CancelCause.USER, "wrong catalogue", "card")
THOUGHTS = "The user wants periodic comets. Halley is certain; Swift-Tuttle has to be checked. " * 8


def told(*moments: tuple[float, ev.EventData]) -> RunRecord:
    """Return the record of a run that was created 20 s ago; moments are seconds before now."""
    all_of_them = [(-20.0, CREATED), *moments]
    events = [ev.RunEvent(seq, NOW + at, "run-01k9", 1, data) for seq, (at, data) in enumerate(all_of_them)]
    return fold(events)


STARTED = (-14.0, ev.RunStarted("local"))
TOOLS = ((-12.0, SEARCH), (-10.8, FOUND), (-9.0, FETCH), (-6.7, REFUSED), (-5.0, READ))
HALF = ev.TextDelta(ANSWER[: ANSWER.index("| 109P")])
SPOKEN = (STARTED, *TOOLS[:4], (-3.0, ev.TextDelta(ANSWER)), (-2.0, USED))
CHILDREN = (
    (-13.0, ev.ChildStarted("run-c1", "reader", 8)),
    (-12.0, ev.ChildStarted("run-c2", "reader", 9)),
    (-7.0, ev.ChildFinished("run-c1", "completed", ev.Usage(2_101, 340))),
    (-6.0, ev.ChildStarted("run-c3", "checker", 10)),
)
CUT = ev.Usage(9_120, 811, cost_usd=0.0187, exact=False)

ASKED = ev.CallStarted("call-1", "openai", "gpt-5-mini")
ANSWERED = ev.CallFinished("call-1", "ok", 2_140.0, 310.0, ev.Usage(6_204, 340, 5_120, 128, 1, 0.0123))
BUSY = ev.CallFinished("call-2", "error", 40.0, error="HTTP 429", retry_after=2.0)
AGAIN = ev.CallFinished("call-3", "ok", 1.0, 0.5, ev.Usage(12_000, 3_000, requests=1), "", 2_100.0, "journal")
CALLS = (
    (-13.0, ASKED), (-12.2, ANSWERED), *TOOLS[:2], (-10.0, ev.CallStarted("call-2", "openai", "gpt-5-mini")),
    (-9.8, BUSY), (-9.6, ev.CallStarted("call-3", "openai", "gpt-5-mini")), (-9.5, AGAIN), *TOOLS[2:4],
    (-5.0, ev.CallStarted("call-4", "anthropic", "claude-sonnet-5", "t2")),
)  # fmt: skip

RECORDS: dict[str, RunRecord] = {
    "queued": told(),
    "silent": told((-3.0, ev.RunStarted("local"))),
    "reasoning": told(STARTED, (-4.0, ev.ReasoningDelta(THOUGHTS))),
    "running": told(
        STARTED, (-13.0, ev.ReasoningDelta(THOUGHTS)), (-12.5, ev.RunPhase("reading")), *TOOLS,
        (-4.0, ev.ToolProgress("t3", 31, 120, "pages")), (-3.0, ev.Progress(3, 12, "comets")),
        (-2.5, ev.Log("31 pages read\n/archive/109P.txt has no page 32", "stdout")), (-2.0, USED), (-1.0, HALF),
    ),
    "waiting": told(STARTED, *TOOLS[:4], (-1.0, DELETE), (-1.0, ev.RunWaiting("approval"))),
    "cancelling": told(STARTED, *TOOLS, (-2.0, CUT), (-1.5, CANCEL), (-1.0, ev.CancelEscalated(Rung.NATIVE))),
    "cancelled": told(
        *SPOKEN, (-2.0, CANCEL), (-0.5, ev.RunCancelled(CancelCause.USER, "wrong catalogue", usage=CUT)),
    ),
    "detached": told(
        STARTED, *TOOLS, (-3.0, CANCEL), (-2.0, ev.CancelEscalated(Rung.THREAD, "fetch_all")),
        (-0.5, ev.RunCancelled(CancelCause.USER, "wrong catalogue", usage=CUT, detached=("fetch_all",))),
    ),
    "failed": told(
        STARTED, *TOOLS[:4], (-1.0, HALF), (-0.5, ev.RunFailed(
            ev.ErrorInfo("ValueError", "no such comet: 12P/Pons-Brooks-Olbers", TRACEBACK), usage=USED)),
    ),
    "timed-out": told(
        STARTED, *TOOLS[:2], (-1.0, ev.CancelRequested(CancelCause.DEADLINE)),
        (-0.9, ev.RunCancelled(CancelCause.DEADLINE, usage=CUT)),
    ),
    "lost": told(STARTED, *TOOLS, (-2.0, CUT), (-0.1, ev.RunLost("its kernel died", NOW - 2))),
    "completed": told(*SPOKEN, (-0.5, ev.RunCompleted(usage=USED))),
    "data": told(STARTED, (-0.5, ev.RunCompleted({"comets": ["1P/Halley"], "count": 1}))),
    "children": told(STARTED, *CHILDREN, (-1.0, HALF)),
    "calls": told(STARTED, *CALLS, (-3.0, HALF), (-2.0, USED)),
    "calls-lost": told(STARTED, *CALLS, (-2.0, CUT), (-0.1, ev.RunLost("its kernel died", NOW - 2))),
}  # fmt: skip
"""By the name of their picture."""

RUNNING_CHILDREN = {
    "run-c2": RunRecord(
        run_id="run-c2", status=RunStatus.WAITING, started_at=NOW - 12, usage=ev.Usage(1_204, 99, exact=False)
    ),
    "run-c3": RunRecord(run_id="run-c3", status=RunStatus.RUNNING, started_at=NOW - 6),
}


def state(name: str) -> dict[str, Any]:
    """Return what the kernel sends of the run of that name."""
    record = RECORDS[name]
    words = queued_words(2, 4, 8, 8) if name == "queued" else None
    return view(record, NOW, status=words, blocks=Blocks(), children=RUNNING_CHILDREN)
