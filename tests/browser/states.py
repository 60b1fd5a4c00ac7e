"""What a card shows of runs in every state, by the way that it takes: events, the record, the view."""

from __future__ import annotations

from typing import Any

import msgspec

from nbrun import CancelCause, RunRecord, RunStatus
from nbrun.core import events as ev
from nbrun.core.cancellation import Rung
from nbrun.core.record import fold
from nbrun.render.set_view import ErrorGroup, QuestionGroup, SetView
from nbrun.render.words import queued_words
from nbrun.ui.cards import set_cards
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


# --- sets ----------------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>\u202e**not bold** "
LONG = "a-key-without-a-space-" * 8


def member(number: int, key: str, *moments: tuple[float, ev.EventData]) -> RunRecord:
    """Return the record of a run of a set."""
    record = told(STARTED, *moments)
    return msgspec.structs.replace(record, number=number, member=ev.Member(12, number, key))


OUTPUTS = (
    member(4_801, "case-4801", (-2.0, ev.RunCompleted("4"))),
    member(4_800, "case-4800", (-3.0, ev.RunFailed(ev.ErrorInfo("RateLimitError", "429, try again in 2 s")))),
    member(4_799, LONG, (-4.0, ev.TextDelta("The answer is **blue**, since " * 20)), (-4.0, ev.RunCompleted())),
    member(4_798, HOSTILE, (-5.0, ev.TextDelta(HOSTILE * 40)), (-5.0, ev.RunCompleted())),
)
ERRORS = (
    ErrorGroup(118, "RateLimitError: 429, try again in 2 s", (40, 41, 57)),
    ErrorGroup(11, "ValidationError: 1 error for Score\n" + LONG * 3, (212, 890)),
    ErrorGroup(2, HOSTILE, (3_001, 3_002)),
    ErrorGroup(9, "", (3_100,)),
)


def asked(message: str, args: Any, tool: str = "delete") -> ev.ApprovalRequested:
    """Return a question about a call of a tool."""
    return ev.ApprovalRequested("ask-1", message, "t1", args, tool=tool)


QUESTIONS = (
    QuestionGroup(
        digest="d1", kind="k1", count=40, numbers=(41, 52, 63), asked=[
            (38, asked("Delete the old file?", {"path": "old.txt"})),
            (1, asked("Delete the old file?", {"path": "archive/2024/another-one.txt", "force": True})),
            (1, asked("Delete the old file?", {"path": HOSTILE})),
        ],
    ),
    QuestionGroup(digest="d2", kind="k2", count=1, numbers=(71,), asked=[(1, asked(HOSTILE, None))]),
    QuestionGroup(
        digest="d3", kind="k3", count=2, numbers=(72, 73), asked=[(2, asked("Send it?", {"text": "x" * 9_000}))],
    ),
)  # fmt: skip
ENDED = {RunStatus.COMPLETED: 3_655, RunStatus.FAILED: 140, RunStatus.CANCELLED: 10}
USAGE = ev.Usage(101_402, 17_000, cost_usd=3.41)


def set_of(status: str, counts: dict[RunStatus, int], **fields: Any) -> SetView:
    """Return what is known of a set in that status."""
    is_live = status in ("running", "paused", "cancelling")
    given: dict[str, Any] = {
        "number": 12, "name": "graded", "agent": "my_agent", "status": status, "stopped": None, "began_at": NOW - 847,
        "ended_at": None if is_live else NOW, "size": sum(counts.values()), "is_whole": True, "counts": counts,
        "usage": USAGE, "newest": OUTPUTS, "slowest": OUTPUTS[:2],
    }  # fmt: skip
    return SetView(**given | fields)


SETS: dict[str, SetView] = {
    "begins": set_of("running", {RunStatus.QUEUED: 100_000}, newest=(), slowest=(), usage=ev.Usage()),
    "reads": set_of("running", {RunStatus.RUNNING: 8, RunStatus.QUEUED: 900}, is_whole=False, newest=(), slowest=()),
    "running": set_of(
        "running", ENDED | {RunStatus.RUNNING: 800, RunStatus.WAITING: 2, RunStatus.QUEUED: 5_393}, errors=ERRORS
    ),
    "asking": set_of(
        "running", ENDED | {RunStatus.RUNNING: 757, RunStatus.WAITING: 43, RunStatus.QUEUED: 5_393}, errors=ERRORS[:1],
        questions=QUESTIONS,
    ),
    "paused": set_of("paused", ENDED | {RunStatus.RUNNING: 3, RunStatus.QUEUED: 6_192}, errors=ERRORS[:1]),
    "cancelling": set_of(
        "cancelling", ENDED | {RunStatus.CANCELLED: 6_192, RunStatus.CANCELLING: 3}, errors=ERRORS[:1], asked=800,
        stopping=[(3, "parse_pdf"), (1, HOSTILE)],
    ),
    "cancelled": set_of(
        "cancelled", ENDED | {RunStatus.CANCELLED: 6_195}, errors=ERRORS, stopped="cancelled: wrong data set",
        left_behind=["parse_pdf"],
    ),
    "failed": set_of(
        "failed", ENDED | {RunStatus.CANCELLED: 6_195}, errors=ERRORS[:1],
        stopped="140 runs failed, more than max_failures allows",
    ),
    "lost": set_of("lost", ENDED | {RunStatus.QUEUED: 5_390, RunStatus.LOST: 8}, newest=(), slowest=()),
    "completed": set_of(
        "completed", {RunStatus.COMPLETED: 10_000}, scores=["score 0.83 (0.82 to 0.84)"], scored=10_000
    ),
    "hostile": set_of(
        "running", ENDED | {RunStatus.RUNNING: 8}, name=HOSTILE * 9, agent=LONG, errors=ERRORS, usage=ev.Usage()
    ),
}  # fmt: skip
"""By the name of their picture."""
PACE = set_cards.Pace("61/s · about 9 min left", NOW + 5)


def set_state(name: str) -> dict[str, Any]:
    """Return what the kernel sends of the set of that name."""
    seen = SETS[name]
    return set_cards.state(seen, NOW, PACE if seen.status == "running" and seen.errors else set_cards.NO_PACE)
