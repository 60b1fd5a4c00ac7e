"""The record: one fold makes a run's state, and an ending stays."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from nbrun import CancelCause, RunRecord, RunStatus
from nbrun.core import events as ev
from nbrun.core.cancellation import Rung
from nbrun.core.checkpoint import Turn
from nbrun.core.record import (
    AFTER_END,
    ARGS_HEAD,
    GROUP_CALLS,
    LIVE,
    REASONING_TAIL,
    TERMINAL,
    TRANSITIONS,
    CallGroup,
    ModelCall,
    ToolCall,
    fold,
    is_admitted,
    model_calls,
    next_status,
)
from tests.core.test_events import SAMPLES

CREATED = ev.RunCreated(session_id="s", name="haiku", agent="poet", prompt="tea", tags={"k": "v"})
REQUEST = ev.CancelRequested(CancelCause.USER, "enough", "card")


def log(*data: ev.EventData, first: int = 0) -> list[ev.RunEvent]:
    """Return events of one run, a second apart."""
    return [ev.RunEvent(seq, 100.0 + seq, "run-1", 1, item) for seq, item in enumerate(data, first)]


def admitted(data: list[ev.EventData]) -> list[ev.RunEvent]:
    """Return the log that an intake would make of these."""
    status, taken = RunStatus.QUEUED, []
    for item in data:
        kind = ev.type_of(item)
        if is_admitted(status, kind):
            status = next_status(status, kind)
            taken.append(item)
    return log(*taken)


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], RunStatus.QUEUED),
        ([ev.RunStarted()], RunStatus.RUNNING),
        ([ev.RunStarted(), ev.RunWaiting()], RunStatus.WAITING),
        ([ev.RunStarted(), ev.RunWaiting(), ev.RunResumed()], RunStatus.RUNNING),
        ([ev.RunStarted(), REQUEST], RunStatus.CANCELLING),
        ([ev.RunStarted(), ev.RunCompleted("x")], RunStatus.COMPLETED),
        ([ev.RunStarted(), ev.RunFailed(ev.ErrorInfo("E", "m"))], RunStatus.FAILED),
        ([REQUEST, ev.RunCancelled(CancelCause.USER)], RunStatus.CANCELLED),
        ([ev.RunStarted(), ev.RunLost()], RunStatus.LOST),
    ],
    ids=lambda value: str(value) if isinstance(value, RunStatus) else "",
)
def test_every_status_is_reachable(events: list[ev.EventData], status: RunStatus) -> None:
    """Each status is the fold of some log (W20)."""
    assert fold(log(CREATED, *events)).status is status


def test_those_are_all_statuses() -> None:
    """The test above names each status there is, live or terminal, and no status is both."""
    assert set(LIVE) | TERMINAL == set(RunStatus) == set(TRANSITIONS)
    assert not set(LIVE) & TERMINAL


@pytest.mark.parametrize("status", RunStatus)
def test_live_and_terminal_exclude_each_other(status: RunStatus) -> None:
    """A status says itself whether anything follows it."""
    assert status.is_live is not status.is_terminal


@pytest.mark.parametrize("status", LIVE)
@pytest.mark.parametrize("kind", sorted(ev.END_TYPES))
def test_any_live_status_may_go_to_any_end(status: RunStatus, kind: str) -> None:
    """Nothing that goes on is beyond an ending."""
    assert next_status(status, kind).is_terminal


@pytest.mark.parametrize("status", sorted(TERMINAL))
@pytest.mark.parametrize("data", SAMPLES, ids=ev.type_of)
def test_an_end_stays(status: RunStatus, data: ev.EventData) -> None:
    """No event changes a terminal status, and only the end of detached work is taken after it."""
    kind = ev.type_of(data)
    assert next_status(status, kind) is status
    assert is_admitted(status, kind) is (kind in AFTER_END)


def test_cancelling_is_not_undone() -> None:
    """A late start or answer does not make a run look as if nobody had asked it to stop."""
    record = fold(log(CREATED, REQUEST, ev.RunStarted(), ev.RunWaiting(), ev.RunResumed()))
    assert record.status is RunStatus.CANCELLING
    assert (record.cause, record.reason, record.cancelled_by) == (CancelCause.USER, "enough", "card")
    assert record.cancel_requested_at == 101.0


def test_the_creation_sets_what_a_run_is() -> None:
    """Name, agent, prompt, tags and the time come from the first event."""
    record = fold(log(CREATED))
    assert (record.run_id, record.session_id, record.name) == ("run-1", "s", "haiku")
    assert (record.agent, record.prompt, record.tags) == ("poet", "tea", {"k": "v"})
    assert (record.created_at, record.event_count, record.started_at) == (100.0, 1, None)


def test_start_and_end_set_output_and_times() -> None:
    """Start, end: completed, output and text stored, events counted."""
    record = fold(log(CREATED, ev.RunStarted(), ev.TextDelta("a"), ev.TextDelta("b"), ev.RunCompleted([1])))
    assert (record.status, record.output, record.text) == (RunStatus.COMPLETED, [1], "ab")
    assert (record.started_at, record.ended_at, record.event_count) == (101.0, 104.0, 5)
    assert record.elapsed_s(now=999.0) == 3.0


def test_a_failure_keeps_error_and_partial_output() -> None:
    """What there was until the error is kept with it."""
    error = ev.ErrorInfo("ValueError", "no luck", "Traceback …")
    record = fold(log(CREATED, ev.RunStarted(), ev.RunFailed(error, "half", ev.Usage(5))))
    assert (record.error, record.output, record.cause) == (error, "half", CancelCause.ERROR)
    assert record.usage == ev.Usage(5)


def test_a_cancelled_run_keeps_output_error_and_what_still_runs() -> None:
    """Nothing that was paid for is lost, and what goes on has a name."""
    end = ev.RunCancelled(CancelCause.USER, "enough", "half", ev.ErrorInfo("E", "m"), None, ("tool",))
    record = fold(log(CREATED, ev.RunStarted(), REQUEST, end))
    assert (record.output, record.reason, record.detached) == ("half", "enough", ("tool",))
    assert record.error == ev.ErrorInfo("E", "m")


def test_the_end_of_detached_work_changes_neither_status_nor_output() -> None:
    """It may follow an ending, and is counted."""
    end = ev.RunCancelled(CancelCause.USER, None, "half", detached=("tool",))
    before = fold(log(CREATED, ev.RunStarted(), REQUEST, end))
    after = fold(log(ev.DetachedFinished("tool", 2), first=4), before)
    assert (after.status, after.output, after.ended_at) == (before.status, "half", before.ended_at)
    assert after.event_count == 5


def test_detached_work_is_told_to_its_end() -> None:
    """What ended when, what still runs, how much was refused; only then is the run settled."""
    end = ev.RunCancelled(CancelCause.USER, detached=("fetch", "search"))
    record = fold(log(CREATED, ev.RunStarted(), REQUEST, end))
    assert (record.still_running, record.is_settled) == (("fetch", "search"), False)
    both = log(ev.DetachedFinished("fetch", 2), ev.DetachedFinished("search", 3), first=4)
    record = fold(both[:1], record)
    assert (record.still_running, record.is_settled) == (("search",), False)
    assert (record.detached_finished, record.detached_finished_at) == (("fetch",), 104.0)
    record = fold(both[1:], record)
    assert (record.still_running, record.is_settled, record.refused) == ((), True, 3)
    assert record.detached == ("fetch", "search")  # what it left behind at its end stays told


def test_detached_work_may_be_told_of_together() -> None:
    """One event for all of it: nothing is left running then."""
    end = ev.RunCancelled(CancelCause.USER, detached=("fetch", "search"))
    record = fold(log(CREATED, REQUEST, end, ev.DetachedFinished("fetch, search", 1)))
    assert (record.still_running, record.detached_finished) == ((), ("fetch", "search"))


def test_the_last_rung_of_a_cancel_is_kept() -> None:
    """The record says how firmly the run was asked."""
    record = fold(log(CREATED, ev.RunStarted(), REQUEST))
    assert record.rung is None
    rungs = [ev.CancelEscalated(Rung.NATIVE), ev.CancelEscalated(Rung.TASK)]
    assert fold(log(*rungs, first=3), record).rung is Rung.TASK


def test_a_lost_run_ended_with_its_last_event() -> None:
    """It is not made to look as if it had gone on until somebody noticed."""
    record = fold(log(CREATED, ev.RunStarted(), ev.RunLost("its kernel died", 101.0)))
    assert (record.ended_at, record.cause) == (101.0, CancelCause.KERNEL_DIED)


def test_tools_are_folded_by_their_id() -> None:
    """A tool has one entry, in the order of the starts; an end without its start is tolerated."""
    record = fold(
        log(
            CREATED,
            ev.ToolStarted("t1", "search", args={"q": 1}),
            ev.ToolStarted("t2", "read"),
            ev.ToolFinished("t1", "ok", "found", 5.0),
            ev.ToolFinished("t9", "error", "gone"),
        )
    )
    assert [(tool.id, tool.name, tool.status) for tool in record.tools] == [
        ("t1", "search", "ok"),
        ("t2", "read", "running"),
        ("t9", "t9", "error"),
    ]
    assert (record.tools[0].args, record.tools[0].result, record.tools[0].ms) == ({"q": 1}, "found", 5.0)


def test_the_end_of_the_reasoning_is_kept_and_all_of_it_counted() -> None:
    """It may be long, and is no part of the answer."""
    many = [ev.ReasoningDelta("x" * 900) for _ in range(9)]
    record = fold(log(CREATED, ev.RunStarted(), *many, ev.ReasoningDelta("end"), ev.TextDelta("a")))
    assert (len(record.reasoning), record.reasoning_count) == (REASONING_TAIL, 8103)
    assert record.reasoning.endswith("xend")
    assert record.text == "a"
    assert record.brief().reasoning == ""


def test_how_far_a_tool_has_come_is_kept_until_its_end() -> None:
    """The last word of it counts; of an ended or unknown tool there is nothing to tell."""
    started = [CREATED, ev.RunStarted(), ev.ToolStarted("t", "read")]
    steps = [ev.ToolProgress("t", 1, 9), ev.ToolProgress("t", 2, 9, "pages"), ev.ToolProgress("u", 1)]
    (tool,) = fold(log(*started, *steps)).tools
    assert tool.progress == ev.Progress(2, 9, "pages")
    late = [ev.ToolFinished("t"), ev.ToolProgress("t", 9, 9)]
    (tool,) = fold(log(*started, *steps, *late)).tools
    assert (tool.status, tool.progress) == ("ok", ev.Progress(2, 9, "pages"))


@pytest.mark.parametrize(
    "text", ['{"q": {"deep": [1, 2.5, null]}}', "tea", '{"q": ', '{"q": ' * 3000, '{"q": "\ud800"}']
)
def test_arguments_that_come_in_pieces_are_a_tools_arguments(text: str) -> None:
    """As text while the model writes them, and as an object once they are whole; text that isn't one stays text."""
    pieces = [ev.ToolArgsDelta("t", piece) for piece in (text[:5], text[5:])]
    begun = [CREATED, ev.RunStarted(), ev.ToolStarted("t", "read"), *pieces]
    (tool,) = fold(log(*begun)).tools
    assert tool.args == text[:ARGS_HEAD]
    late = ev.ToolArgsDelta("t", "late")
    (tool,) = fold(log(*begun, ev.ToolFinished("t"), late, ev.ToolArgsDelta("unknown", "x"))).tools
    assert tool.args == ({"q": {"deep": [1, 2.5, None]}} if "deep" in text else text)
    whole = ev.ToolStarted("t", "read", args={"q": 1})
    (tool,) = fold(log(*begun[:2], whole, *pieces)).tools
    assert tool.args == {"q": 1}


def test_of_arguments_without_an_end_the_beginning_is_kept() -> None:
    """A record stays small, however much a model writes."""
    pieces = [ev.ToolArgsDelta("t", "x" * 1_000)] * 100
    (tool,) = fold(log(CREATED, ev.RunStarted(), ev.ToolStarted("t", "read"), *pieces)).tools
    assert tool.args == "x" * ARGS_HEAD


def test_a_child_run_has_its_times_and_what_it_used() -> None:
    """By the parent's log, in which both of its ends stand."""
    usage = ev.Usage(3, 4)
    both = [ev.ChildStarted("run-2", "helper", 5), ev.ChildFinished("run-2", "failed", usage)]
    (child,) = fold(log(CREATED, ev.RunStarted(), *both)).children
    assert (child.started_at, child.ended_at, child.usage) == (102.0, 103.0, usage)


def test_warnings_become_notices_whether_they_come_alone_or_together() -> None:
    """Each warning of a batch is shown; the card keeps the last five."""
    warnings = [ev.Log(f"w{number}", "warning") for number in range(7)]
    together = fold(log(CREATED, *warnings, ev.Log("quiet", "info")))
    assert together.notices == ("w2", "w3", "w4", "w5", "w6")


def test_the_last_log_lines_are_kept_and_all_are_counted() -> None:
    """Twenty lines, whichever events they came in; each is cut, and empty ones count."""
    record = fold(log(CREATED, ev.Log("a\nb", "stdout"), ev.Log("", "stdout"), ev.Log("c")))
    assert (record.log, record.log_count) == (("a", "b", "", "c"), 4)
    many = "\n".join(f"line {number}" for number in range(1000))
    record = fold(log(ev.Log(many, "stderr"), ev.Log("x" * 1000), first=4), record)
    assert record.log_count == 1005
    assert (len(record.log), record.log[0], record.log[-2]) == (20, "line 981", "line 999")
    assert record.log[-1] == "x" * 299 + "…"


def test_a_log_line_is_what_a_terminal_shows() -> None:
    """Colours are taken out, a bar that is drawn over itself is its last state, other controls are visible."""
    bar = ev.Log("10%\r\x1b[32m20%\x1b[0m\r\nbell\x07", "stderr")
    assert fold(log(CREATED, bar)).log == ("20%", "bell\u2407")
    coloured = ev.Log("\x1b[31m" * 50 + "y" * 400)
    assert fold(log(CREATED, coloured)).log == ("y" * 299 + "…",)


def test_a_notice_of_the_session_is_no_log_line_of_the_agent() -> None:
    """A warning of the agent's is both; the session's own events have attempt 0."""
    own, notice = ev.Log("careful", "warning"), ev.Log("queued behind #1", "warning")
    events = [*log(CREATED, own), ev.RunEvent(2, 102.0, "run-1", 0, notice)]
    record = fold(events)
    assert record.notices == ("careful", "queued behind #1")
    assert (record.log, record.log_count) == (("careful",), 1)


def test_pending_questions_are_those_without_an_answer() -> None:
    """By id, oldest first, alone or in one batch; an end and a new attempt leave none."""
    first, second = ev.ApprovalRequested("ask-1", "a?"), ev.ApprovalRequested("ask-2", "b?")
    asked = [CREATED, ev.RunStarted(), first, ev.RunWaiting(), second]
    assert fold(log(*asked)).pending == (first, second)
    answered = [*asked, ev.ApprovalResolved("ask-1", "allow"), ev.ApprovalResolved("x", "deny")]
    assert fold(log(*answered)).pending == (second,)
    assert fold(log(ev.ApprovalResolved("ask-2", "deny"), first=5), fold(log(*asked))).pending == (first,)
    for last in (ev.RunLost(), ev.RunCompleted(), ev.RunStarted()):
        assert fold(log(*asked, last)).pending == ()


def test_messages_are_counted_as_they_come_and_are_read() -> None:
    """So that everybody sees how many still wait."""
    record = fold(log(CREATED, ev.Steer("a"), ev.Steer("b"), ev.SteerTaken(2), ev.Steer("c")))
    assert (record.steers, record.steers_taken) == (3, 2)


def test_a_brief_record_keeps_a_few_questions_small() -> None:
    """Whatever an agent asks, and however much."""
    long = "x" * 100_000
    asked = [
        ev.ApprovalRequested(f"ask-{n}", long, None, {"a": long}, tuple(f"{long}{i}" for i in range(99)))
        for n in range(50)
    ]
    record = fold(log(CREATED, ev.RunStarted(), *asked, ev.RunWaiting()))
    assert len(record.pending) == 50
    assert len(msgspec.msgpack.encode(record.brief())) < 5_000
    assert [asked.id for asked in record.brief().pending] == ["ask-0", "ask-1", "ask-2"]


def test_a_gap_is_refused() -> None:
    """An event that does not come next raises, and names both numbers."""
    with pytest.raises(ValueError, match="event 3 came where 1 was due"):
        fold(log(ev.RunStarted(), first=3), fold(log(CREATED)))


def test_an_event_after_the_end_is_refused() -> None:
    """The fold never lets a log say two endings."""
    record = fold(log(CREATED, ev.RunCompleted("x")))
    with pytest.raises(ValueError, match="came after the run was completed"):
        fold(log(ev.RunFailed(ev.ErrorInfo("E", "late")), first=2), record)


def test_an_unknown_event_changes_nothing_but_the_count() -> None:
    """Types are open: a later version's event is taken."""
    before = fold(log(CREATED))
    after = fold(log(ev.Unknown("oracle.spoke", {"x": 1}), first=1), before)
    assert msgspec.structs.replace(after, event_count=1, last_event_at=100.0) == before


def test_a_brief_record_is_small_and_says_so() -> None:
    """A list of runs does not carry megabytes, and status and times are not cut."""
    long = "x" * 100_000
    record = fold(
        log(
            msgspec.structs.replace(CREATED, prompt=long, options={"system": long, "timeout_s": 5.0}),
            ev.TextDelta(long), ev.ToolStarted("t", "t", args=long), ev.Log("\n".join([long] * 30)),
            ev.RunFailed(ev.ErrorInfo("E", long, long), long),
        )
    )  # fmt: skip
    brief = record.brief()
    assert len(msgspec.msgpack.encode(brief)) < 2_500
    assert brief.is_brief
    assert (brief.status, brief.ended_at, brief.event_count) == (RunStatus.FAILED, 104.0, 5)
    assert brief.options["timeout_s"] == 5.0


MORE = [
    *SAMPLES,
    ev.Log("careful", "warning"),
    ev.Log("\n".join("many")),
    ev.DetachedFinished("other", 1),
    ev.ToolStarted("t2", "read"),
    ev.RunStarted("again"),
]
DATA = st.lists(st.sampled_from(MORE), max_size=40).map(lambda data: [CREATED, *data])


@given(DATA)
@settings(max_examples=200, deadline=None)
def test_any_order_gives_a_legal_status_and_an_end_stays(data: list[ev.EventData]) -> None:
    """Whatever comes in whatever order, each step is in the table, and the first ending is the last word."""
    record = RunRecord()
    for event in admitted(data):
        before, record = record, fold([event], record)
        legal = {before.status, TRANSITIONS[before.status].get(event.type, before.status)}
        assert record.status in legal
        if before.status.is_terminal:
            assert (record.status, record.output, record.error) == (before.status, before.output, before.error)
            assert record.ended_at == before.ended_at
    assert (record.ended_at is None) is record.is_live


@given(DATA, st.lists(st.integers(0, 41), max_size=5))
@settings(max_examples=200, deadline=None)
def test_a_fold_in_batches_equals_one_by_one(data: list[ev.EventData], cuts: list[int]) -> None:
    """However the log is cut into batches, the record is the same."""
    events = admitted(data)
    single = RunRecord()
    for event in events:
        single = fold([event], single)
    edges = [0, *sorted(min(cut, len(events)) for cut in cuts), len(events)]
    batched = RunRecord()
    for start, end in pairwise(edges):
        batched = fold(events[start:end], batched)
    assert batched == single
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(single), type=RunRecord) == single


def test_a_repr_hides_nothing() -> None:
    """Python counts some invisible characters, such as the fillers of Hangul, as printable."""
    filler = "a\u3164\uffa0\u2800b"
    tool = ToolCall("tool-1", filler, result={filler: filler})
    parts = [ev.TextDelta(filler), ev.ErrorInfo("Error", filler), tool]
    for one in (*parts, RunRecord(name=filler, tools=(tool,)), Turn("user", filler)):
        assert not {"\u3164", "\uffa0", "\u2800"} & set(repr(one))
        assert "\\u3164" in repr(one)


@pytest.mark.parametrize(
    "end", [ev.RunCancelled(CancelCause.SHUTDOWN, detached=("poet",)), ev.RunLost("its kernel died")]
)
def test_no_tool_runs_on_in_a_run_that_was_cut_short(end: ev.EventData) -> None:
    """Its host had no time to say so: the record does; a tool that had ended stays as it was."""
    tools = [
        ev.ToolStarted("a", "search"),
        ev.ToolFinished("a", "ok"),
        ev.ToolStarted("b", "fetch"),
        ev.ChildStarted("run-2", "helper"),
    ]
    before = fold(log(CREATED, ev.RunStarted(), *tools))
    record = fold(log(end, first=before.event_count), before)
    is_lost = record.status is RunStatus.LOST
    # Nobody has cancelled what was lost; a child goes with the kernel.
    assert [tool.status for tool in record.tools] == ["ok", "unknown" if is_lost else "cancelled"]
    assert [child.status for child in record.children] == ["lost" if is_lost else "running"]
    assert record == fold(log(CREATED, ev.RunStarted(), *tools, end))


def call(number: int, **fields: object) -> list[ev.EventData]:
    """Return the events of a model call; `fields` are those of its end."""
    end = ev.CallFinished(f"call-{number}", ms=100.0, usage=ev.Usage(7, 4, requests=1))
    return [ev.CallStarted(end.id, "openai", "gpt-4o"), msgspec.structs.replace(end, **fields)]


def test_model_calls_are_in_groups_between_the_tools() -> None:
    """In order, with what they sum up to; and each by itself, also of a whole log."""
    tool = [ev.ToolStarted("t1", "search"), ev.ToolFinished("t1")]
    refused = call(2, status="error", usage=None, error="HTTP 429", retry_after=2.0)
    events = log(CREATED, ev.RunStarted(), *call(1), *refused, *tool, *call(3, source="journal", waited_ms=50.0))
    record = fold(events)
    assert record.call_count == 3
    first, second = record.call_groups
    assert (first.tools, first.count, first.running, first.failed, first.answered) == (0, 2, 0, 1, 0)
    assert (first.ms, first.usage) == (200.0, ev.Usage(7, 4, requests=1))
    assert (second.tools, second.count, second.answered, second.waited_ms) == (1, 1, 1, 50.0)
    assert second.usage == ev.Usage()  # it was free
    calls = model_calls(events, record.status)
    assert calls == [*first.last, *second.last]
    assert calls[1] == ModelCall(
        "call-2", "openai", "gpt-4o", "", "error", 104.0, 100.0, error="HTTP 429", retry_after=2.0
    )


def test_a_record_holds_few_of_a_thousand_model_calls() -> None:
    """Their sums have all of them, also where they are all open at once, and their ends come in any order."""
    numbers = range(1_000)
    begun = [one for number in numbers for one in call(number)[:1]]
    ended = [one for number in reversed(numbers) for one in call(number)[1:]]
    for data in ([one for number in numbers for one in call(number)], [*begun, *ended]):
        events = log(CREATED, ev.RunStarted(), *data)
        record = fold(events)
        [group] = record.call_groups
        assert (group.count, group.running, len(group.last)) == (1_000, 0, GROUP_CALLS)
        assert (group.ms, group.usage.input_tokens, record.call_count) == (100_000.0, 7_000, 1_000)
        assert {one.status for one in group.last} == {"ok"}
        assert len(model_calls(events, record.status)) == 1_000


@pytest.mark.parametrize(
    ("end", "status"),
    [(ev.RunCompleted(), "unknown"), (ev.RunCancelled(CancelCause.USER), "cancelled"), (ev.RunLost(), "unknown")],
    ids=lambda value: type(value).__name__,
)
def test_no_model_call_runs_after_its_run(end: ev.EventData, status: str) -> None:
    """A body that nobody has read to its end, or an end that nobody has seen."""
    events = log(CREATED, ev.RunStarted(), *call(1), *call(2)[:1], end)
    [group] = fold(events).call_groups
    assert (group.running, [one.status for one in group.last]) == (0, ["ok", status])
    assert [one.status for one in model_calls(events, fold(events).status)] == ["ok", status]


def test_the_end_of_an_unknown_model_call_changes_nothing() -> None:
    """Nor does a second end of a known one."""
    record = fold(log(CREATED, ev.RunStarted(), *call(1), *call(1)[1:], *call(9)[1:]))
    assert [(group.count, group.running, group.ms) for group in record.call_groups] == [(1, 0, 100.0)]
    assert record.brief().call_groups == ()
    assert record.call_groups[0] != CallGroup(0)


def test_a_later_attempt_counts_its_model_calls_anew() -> None:
    """The same id is another call then."""
    data = [*call(1)[:1], ev.RunStarted(), *call(1)]
    record = fold(log(CREATED, ev.RunStarted(), *data))
    calls = model_calls(log(CREATED, ev.RunStarted(), *data), record.status)
    assert [one.status for one in calls] == ["running", "ok"]
    [group] = record.call_groups
    assert ([one.status for one in group.last], group.running) == (["running", "ok"], 1)
