"""The intake: one order, gapless numbers, one end, and nothing of an older attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from nbrun import CancelCause, CancelToken, RunStatus
from nbrun.core import events as ev
from nbrun.core.cancellation import CancelOutcome
from nbrun.core.record import fold
from nbrun.core.redaction import SecretRegistry
from nbrun.host.attempt import HostEvent
from nbrun.sessions.intake import COMMIT_BYTES, INTAKE_BYTES, MOST, TURN_BYTES, Intake
from nbrun.sessions.live_run import LiveRun
from nbrun.store import Committed
from tests.fakes.clock import NOON, FakeClock

SECRET = "sk-test-0123456789"
CREATED = ev.RunCreated(session_id="s", name="n", agent="a")
REQUEST = ev.CancelRequested(CancelCause.USER, "enough")


class Desk:
    """An intake with one run, and no thread behind it: `drain()` is called by the test."""

    def __init__(self, secrets: dict[str, str] | None = None) -> None:
        self.published: list[tuple[LiveRun, Sequence[ev.RunEvent]]] = []
        self.intake = Intake(
            FakeClock(), SecretRegistry(secrets or {}), lambda live, events: self.published.append((live, events))
        )
        self.live = LiveRun("run-1", CancelToken())
        self.intake.open(self.live, CREATED)
        self._n = 0

    def send(self, *data: ev.EventData, attempt: int = 1, n: int | None = None) -> None:
        """Hand events over as a host does."""
        for item in data:
            number = self._n if n is None else n
            self.intake.put([HostEvent("run-1", attempt, number, NOON, item)])
            self._n += n is None

    def log(self) -> list[ev.RunEvent]:
        """Return what the writer would get."""
        return self.intake.drain()


@pytest.fixture
def desk() -> Desk:
    """An intake with one run."""
    return Desk()


def test_events_are_numbered_without_gaps_across_batches(desk: Desk) -> None:
    """Numbers go on from one drain to the next."""
    desk.send(ev.RunStarted(), ev.TextDelta("a"))
    first = desk.log()
    desk.send(ev.TextDelta("b"))
    assert [event.seq for event in (*first, *desk.log())] == [0, 1, 2, 3]
    assert desk.log() == []


def test_events_of_an_older_attempt_are_refused(desk: Desk) -> None:
    """The attempt's number is a fence: what an older try still sends is counted and dropped."""
    desk.live.attempt = 2
    desk.send(ev.TextDelta("late"), ev.RunCompleted("late"), attempt=1)
    desk.send(ev.RunStarted(), attempt=2, n=0)
    assert [event.type for event in desk.log()] == ["run.created", "run.started"]
    assert desk.live.refused == 2
    assert not desk.live.has_end


def test_repeated_and_early_events_are_refused(desk: Desk) -> None:
    """A host's event is taken only if it is the next one: a batch that is sent again changes nothing."""
    desk.send(ev.RunStarted(), n=0)
    desk.send(ev.RunStarted(), n=0)
    desk.send(ev.TextDelta("too early"), n=2)
    assert [event.type for event in desk.log()] == ["run.created", "run.started"]
    assert desk.live.refused == 2


def test_nothing_follows_the_end_but_detached_work(desk: Desk) -> None:
    """Late events, a second end and a late request are refused; the end of detached work is taken."""
    desk.send(ev.RunStarted(), ev.RunCompleted("x"), ev.TextDelta("late"))
    desk.send(ev.RunFailed(ev.ErrorInfo("E", "late")), ev.DetachedFinished("tool"))
    desk.intake.emit(desk.live, ev.RunCancelled(CancelCause.SHUTDOWN))
    assert desk.intake.request_cancel(desk.live, REQUEST) is CancelOutcome.ALREADY_FINISHED
    events = desk.log()
    assert [event.type for event in events[2:]] == ["run.completed", "detached.finished"]
    assert [event.seq for event in events] == [0, 1, 2, 3]
    assert desk.live.refused == 2


@pytest.mark.parametrize(
    "end",
    [
        ev.RunCompleted("result", ev.Usage(1)),
        ev.RunFailed(ev.ErrorInfo("E", "m"), "result", ev.Usage(1)),
        ev.RunCancelled(CancelCause.PARENT, "other", "result", None, ev.Usage(1)),
    ],
    ids=ev.type_of,
)
def test_a_request_that_came_first_wins_over_any_end(desk: Desk, end: ev.EventData) -> None:
    """The run ends cancelled, by that request; output, error and usage that exist are kept."""
    desk.send(ev.RunStarted())
    assert desk.intake.request_cancel(desk.live, REQUEST) is CancelOutcome.REQUESTED
    desk.send(end)
    record = fold(desk.log())
    assert (record.status, record.cause, record.reason) == (RunStatus.CANCELLED, CancelCause.USER, "enough")
    assert (record.output, record.usage) == ("result", ev.Usage(1))
    assert (record.error is not None) is isinstance(end, ev.RunFailed)


def test_only_the_first_request_is_recorded(desk: Desk) -> None:
    """The second is told so, and its reason is not taken."""
    assert desk.intake.request_cancel(desk.live, REQUEST) is CancelOutcome.REQUESTED
    other = ev.CancelRequested(CancelCause.DEADLINE, "later")
    assert desk.intake.request_cancel(desk.live, other) is CancelOutcome.ALREADY_REQUESTED
    assert [event.data for event in desk.log()[1:]] == [REQUEST]


def test_a_close_does_not_take_the_place_of_the_first_request(desk: Desk) -> None:
    """A run that a user had cancelled, and that its session cuts short, was cancelled by that user."""
    desk.intake.request_cancel(desk.live, REQUEST)
    desk.intake.emit(desk.live, ev.RunCancelled(CancelCause.SHUTDOWN, detached=("a",)))
    record = fold(desk.log())
    assert (record.cause, record.reason, record.detached) == (CancelCause.USER, "enough", ("a",))


def test_a_cancelled_end_always_follows_a_request(desk: Desk) -> None:
    """Where a host saw the token before its callbacks were called, the request is told for it."""
    desk.send(ev.RunStarted(), ev.RunCancelled(CancelCause.BUDGET, "too dear"))
    assert desk.intake.request_cancel(desk.live, REQUEST) is CancelOutcome.ALREADY_FINISHED
    events = desk.log()
    assert [event.type for event in events[2:]] == ["cancel.requested", "run.cancelled"]
    assert events[2].data == ev.CancelRequested(CancelCause.BUDGET, "too dear", "its token")


def test_a_lost_runs_end_is_not_made_a_cancel(desk: Desk) -> None:
    """A host that vanished is what it is, also after a request."""
    desk.intake.request_cancel(desk.live, REQUEST)
    desk.intake.emit(desk.live, ev.RunLost("its host vanished"))
    assert fold(desk.log()).status is RunStatus.LOST


def test_what_cannot_be_stored_is_kept_as_data(desk: Desk) -> None:
    """An adapter that lets an object through does not stop the log."""
    desk.send(ev.RunStarted(), ev.Custom("thing", object()), ev.Custom("next", 1))  # type: ignore[arg-type]
    events = desk.log()
    assert [event.type for event in events[2:]] == ["custom", "custom"]
    assert isinstance(events[2].data, ev.Custom)
    for event in events:
        ev.encode_data(event.data)


def test_a_secret_across_deltas_comes_out_replaced_before_the_end() -> None:
    """What was held is an event of its own before the end; text and reasoning are streams of their own."""
    desk = Desk({"TEA_API_KEY": SECRET})
    desk.send(ev.RunStarted(), ev.TextDelta(f"a {SECRET[:9]}"), ev.ReasoningDelta("sk-te"))
    desk.send(ev.TextDelta(f"{SECRET[9:]} sk-"), ev.RunCompleted(f"a {SECRET} sk-"))
    events = desk.log()
    assert [event.seq for event in events] == list(range(len(events)))
    record = fold(events)
    assert record.text == record.output == "a [TEA_API_KEY] sk-"
    reasoning = [e.data.text for e in events if isinstance(e.data, ev.ReasoningDelta)]
    assert "".join(reasoning) == "sk-te"
    assert SECRET not in repr(events)


def test_secrets_are_replaced_in_every_kind_of_event() -> None:
    """Prompts, arguments, results, errors, logs and unknown events: after the intake none holds it."""
    from tests.core.test_events import SAMPLES

    desk = Desk({"TEA_API_KEY": SECRET})

    def planted(value: Any) -> Any:
        match value:
            case ev.EventData() | ev.ErrorInfo():
                fields = {name: planted(getattr(value, name)) for name in value.__struct_fields__}
                return type(value)(**fields)
            case str() if type(value) is str:
                return f"{value} {SECRET}"
            case dict():
                return {key: planted(item) for key, item in value.items()}
            case list() | tuple():
                return type(value)(planted(item) for item in value)
        return value

    for sample in (*SAMPLES, ev.Unknown("oracle.spoke", {"deep": ["x"]})):
        data = planted(sample)
        assert isinstance(data, ev.EventData)
        clean = desk.intake.storable(data)
        assert type(clean) is type(data)
        assert SECRET.encode() not in ev.encode_data(clean)
        again = ev.decode_data(ev.type_of(clean), ev.encode_data(clean))
        assert type(again) is type(data)


def test_publishing_makes_the_record_public_before_anybody_hears(desk: Desk) -> None:
    """Record, output and the end are set when the listener is called."""
    desk.send(ev.RunStarted(), ev.RunCompleted("x"))
    events = desk.log()
    assert not desk.live.is_ended.is_set()
    desk.intake.publish([Committed("run-1", fold(events), events)])
    assert desk.live.is_ended.is_set()
    assert desk.live.record.status is RunStatus.COMPLETED
    assert desk.published == [(desk.live, events)]


def test_what_is_not_saved_is_kept_until_it_is(desk: Desk) -> None:
    """Events that are public and not on disk stay in memory, with the problem; saved, they leave it."""
    events = desk.log()
    record = fold(events)
    desk.intake.publish([Committed("run-1", record, events, "disk full", events)])
    assert (desk.live.unsaved, desk.live.problem) == (events, "disk full")
    desk.intake.publish([Committed("run-1", record, ())])
    assert (desk.live.unsaved, desk.live.problem) == ((), None)


def test_events_of_a_forgotten_run_are_dropped(desk: Desk) -> None:
    """A run that the session has let go of takes nothing more, also of what waits already."""
    desk.send(ev.RunStarted())
    desk.intake.forget(desk.live)
    desk.send(ev.TextDelta("late"))
    assert desk.log() == []


def flood(live: LiveRun, intake: Intake, pieces: int, size: int, first: int = 0) -> int:
    """Send pieces of text as an obedient host does, until it should pause; return how many it sent."""
    for number in range(first, pieces):
        is_full = intake.put([HostEvent(live.run_id, 1, number, NOON, ev.TextDelta("x" * size))])
        if is_full is not None and is_full():
            return number + 1 - first
    return pieces - first


def test_a_run_over_its_share_is_paused_until_the_writer_has_taken_some(desk: Desk) -> None:
    """While a commit takes long, a flood of any length puts in no more bytes than its share; all of it arrives."""
    pieces, size = 300, 200_000
    sent = flood(desk.live, desk.intake, pieces, size)
    assert sent * size <= MOST + size
    assert flood(desk.live, desk.intake, sent + 1, size, sent) == 1  # it is still full
    sent += 1
    events: list[ev.RunEvent] = []
    while sent < pieces:
        batch = desk.log()
        assert sum(ev.weight(event.data) for event in batch) <= COMMIT_BYTES + TURN_BYTES + size
        events += batch
        sent += flood(desk.live, desk.intake, pieces, size, sent)
        assert desk.live.sent_bytes - desk.live.taken_bytes <= MOST + 2 * size
    while batch := desk.log():
        events += batch
    assert [event.seq for event in events] == list(range(pieces + 1))
    assert len(fold(events).text) == pieces * size
    assert desk.live.sent_bytes == desk.live.taken_bytes


def test_a_share_is_smaller_the_more_runs_are_live_and_other_runs_are_not_paused(desk: Desk) -> None:
    """All runs together are bounded, too; one that sends little is never held up by another's flood."""
    others = [LiveRun(f"run-{number}", CancelToken()) for number in range(2, 42)]
    for live in others:
        desk.intake.open(live, CREATED)
    waiting = sum(flood(live, desk.intake, 100, 200_000) * 200_000 for live in others)
    assert waiting <= INTAKE_BYTES + len(others) * 200_000
    assert flood(desk.live, desk.intake, 100, 20) == 100


def test_a_small_run_ends_in_the_next_commit_however_much_another_has_sent(desk: Desk) -> None:
    """Runs take turns: the end is not behind the megabytes that came before it."""
    small = LiveRun("run-2", CancelToken())
    desk.intake.open(small, CREATED)
    desk.log()
    flood(desk.live, desk.intake, 1_000, 200_000)
    desk.intake.put([HostEvent("run-2", 1, 0, NOON, ev.RunStarted())])
    desk.intake.put([HostEvent("run-2", 1, 1, NOON, ev.RunCompleted("done"))])
    assert [event.type for event in desk.log() if event.run_id == "run-2"] == ["run.started", "run.completed"]
    assert desk.intake.drain()  # of the other one, something was left


# --- wrong types -------------------------------------------------------------------------------------

WRONG: dict[str, Any] = {
    "question": lambda: ev.ApprovalRequested("ask", "x?", 7),  # type: ignore[arg-type]
    "tool": lambda: ev.ToolStarted(7, "x"),  # type: ignore[arg-type]
    "result": lambda: ev.ToolFinished("t", "ok", None, "soon"),  # type: ignore[arg-type]
    "usage": lambda: ev.Usage(input_tokens="many"),  # type: ignore[arg-type]
    "artifact": lambda: ev.Artifact("a", "n", "big"),  # type: ignore[arg-type]
    "progress": lambda: ev.Progress("half", None),  # type: ignore[arg-type]
    "message": lambda: ev.Message("assistant", 7),  # type: ignore[arg-type]
    "text": lambda: ev.TextDelta(7),  # type: ignore[arg-type]
    "log": lambda: ev.Log(7),  # type: ignore[arg-type]
    "phase": lambda: ev.RunPhase(["p"]),  # type: ignore[arg-type]
    "name": lambda: ev.Custom(7, object()),  # type: ignore[arg-type]
    "end": lambda: ev.RunCompleted("kept", ev.Usage(input_tokens="many")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_event_with_a_wrong_type_is_left_out_and_its_run_is_kept(kind: str) -> None:
    """As an adapter may send it: what is stored can be read again, with what came before and after it, and its end."""
    desk = Desk()
    wrong = WRONG[kind]()
    desk.send(ev.RunStarted(), ev.TextDelta("paid for"), wrong)
    if kind != "end":
        desk.send(ev.TextDelta(" twice"), ev.RunCompleted("kept"))
    events = desk.intake.drain()
    record = fold(events)
    assert (record.status, record.output) == (RunStatus.COMPLETED, "kept")
    assert record.text == ("paid for" if kind == "end" else "paid for twice")
    for event in events:
        read = ev.decode_data(event.type, ev.encode_data(event.data))
        assert type(read) is type(event.data)
    assert record.notices or kind == "end"
