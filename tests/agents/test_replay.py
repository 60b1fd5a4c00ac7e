"""Replays: a stored or recorded run once more, on a card, with no agent and no key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from nbrun import NotebookSession, Run, RunContext, RunStatus
from nbrun.agents import Replay
from nbrun.core import events as ev
from nbrun.core.errors import BadOption, BadRecording, NotResumable
from nbrun.core.record import fold
from nbrun.core.recording import Header
from tests.fakes import agents
from tests.fakes.agents import BOUND_S
from tests.fakes.readers import reader

MakeSession = Callable[..., NotebookSession]

OWN_TIMES = ("run.created", "run.started")


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


def replayed(run: Run) -> list[tuple[str, ev.EventData]]:
    """Return the events of a run's log, without its creation, start and end."""
    apart = {*OWN_TIMES, *ev.END_TYPES}
    return [(event.type, event.data) for event in run.events() if event.type not in apart]


async def does_all(prompt: str, run: RunContext) -> dict[str, object]:
    """Do a little of everything."""
    run.phase("planning")
    run.text("one ")
    run.reasoning("because")
    with run.tool("look", {"at": prompt}) as tool:
        tool.result = 42
    run.text("two")
    run.progress(1, 2, "half")
    run.log("a line", "warning")
    run.emit("mine", {"x": [1, None]})
    run.send(ev.Unknown("acme.thing", {"any": [1.5, "x"]}))
    run.usage(input_tokens=3, output_tokens=4, requests=1)
    run.checkpoint({"kept": True})
    return {"answer": 42}


def same_in_sight(one: Run, other: Run) -> None:
    """Check that two runs show the same, times apart."""
    a, b = one.record, other.record
    assert (b.status, b.cause, b.reason) == (a.status, a.cause, a.reason)
    assert (b.text, b.output, b.error) == (a.text, a.output, a.error)
    assert [(t.name, t.args, t.status, t.result, t.ms) for t in b.tools] == [
        (t.name, t.args, t.status, t.result, t.ms) for t in a.tools
    ]
    assert (b.usage, b.phase, b.progress) == (a.usage, a.phase, a.progress)
    assert (b.prompt, b.name, b.agent, b.model, b.tags) == (a.prompt, a.name, a.agent, a.model, a.tags)


def test_a_replay_tells_the_same_events(session: NotebookSession) -> None:
    """Text, tools, usage, unknown types and the ending: everything is repeated, in order and unchanged."""
    old = ended(session.start(does_all, "tea", name="all", tags={"k": "v"}))
    new = ended(old.replay("max"))
    assert replayed(new) == replayed(old)
    assert new.events()[-1].data == old.events()[-1].data
    same_in_sight(old, new)
    assert new.record.origin == ev.Origin("replay", old.id, 1, "all")
    assert old.followups == [(2, "replay")]


def test_a_failure_fails_again(session: NotebookSession) -> None:
    """With the error and the traceback that there was."""
    old = ended(session.start(reader(2), "tea"))
    new = ended(old.replay("max"))
    same_in_sight(old, new)
    assert new.status is RunStatus.FAILED
    assert new.error is not None
    assert "PowerCut" in new.error.traceback


def test_a_cancelled_run_is_cancelled_again(session: NotebookSession) -> None:
    """By the same cause, for the same reason, with its tool cut short."""

    async def waits(prompt: str, run: RunContext) -> None:
        run.text("so far")
        run.usage(input_tokens=5)
        with run.tool("wait"):
            await asyncio.Event().wait()

    old = session.start(waits)
    while not old.record.usage.input_tokens:
        assert not old.wait(0.01)
    assert old.cancel("enough").wait(BOUND_S)
    new = ended(old.replay("max"))
    same_in_sight(old, new)
    assert (new.status, new.reason, new.record.tools[0].status) == ("cancelled", "enough", "cancelled")


def test_a_long_replay_lets_others_have_their_turn(session: NotebookSession) -> None:
    """At full speed too, a run that is started beside it ends first."""
    old = ended(session.start(agents.chatty(80_000)))
    new = old.replay("max")
    other = ended(session.start(agents.instant))
    assert ended(new).text == old.text
    assert other.ended_at is not None
    assert new.ended_at is not None
    assert other.ended_at < new.ended_at


def recorded(*gaps_s: float, session_id: str = "s") -> tuple[Header, list[ev.RunEvent]]:
    """Return a recording with a word after each of these times."""
    data: list[ev.EventData] = [ev.RunCreated(session_id, "poet", "poet", "tea"), ev.RunStarted()]
    times = [1e9, 1e9]
    for gap_s in gaps_s:
        data.append(ev.TextDelta(f"{len(times)} "))
        times.append(times[-1] + gap_s)
    data.append(ev.RunCompleted("done"))
    times.append(times[-1])
    events = [ev.RunEvent(seq, ts, "run-x", 1, item) for seq, (ts, item) in enumerate(zip(times, data, strict=True))]
    fold(events)
    return Header(run_id="run-x", name="poet", agent="poet", prompt="tea"), events


@pytest.mark.parametrize(("speed", "least_s", "most_s"), [(1, 0.4, 5.0), (10, 0.04, 0.35), ("max", 0, 0.2)])
def test_a_replay_keeps_its_pace(session: NotebookSession, speed: float | str, least_s: float, most_s: float) -> None:
    """As it was, ten times as fast, or at once."""
    run = ended(session.start(Replay(recorded(0.2, 0.2), speed)))
    assert run.started_at is not None
    assert run.ended_at is not None
    assert least_s <= run.ended_at - run.started_at <= most_s


def test_the_time_of_people_is_not_waited_for(session: NotebookSession) -> None:
    """A person had taken an hour to answer; a replay does not."""
    header, events = recorded(0.0)
    *before, end = events
    asked = [ev.RunWaiting("Delete it?"), ev.RunResumed(), ev.TextDelta("yes")]
    later = [
        ev.RunEvent(end.seq + at, end.ts + 3600 * min(at, 1), "run-x", 1, data)
        for at, data in enumerate([*asked, end.data])
    ]
    run = ended(session.start(Replay((header, [*before, *later]))))
    assert (run.status, run.text) == ("completed", "2 yes")


def test_a_replay_can_be_cancelled(session: NotebookSession) -> None:
    """Between two events that are far apart, at once."""
    run = session.start(Replay(recorded(0.0, 3600.0)))
    while not run.text:
        assert not run.wait(0.01)
    assert run.cancel("seen enough").wait(BOUND_S)
    assert (run.status, run.reason, run.text) == ("cancelled", "seen enough", "2 ")


def test_nobody_is_asked_again(session: NotebookSession) -> None:
    """What people were asked, and had answered, becomes lines; the time that they took is not waited for."""

    async def asks(prompt: str, run: RunContext) -> str:
        return "did it" if await run.ask("Delete it?", args={"path": "x"}) else "left it"

    old = session.start(asks)
    while not old.pending:
        assert not old.wait(0.01)
    old.approve()
    new = ended(ended(old).replay("max"))
    assert (new.output, new.pending) == ("did it", ())
    assert new.record.log == ("asked: Delete it?", "answered: allow (by python)")
    assert not {"approval.requested", "run.waiting"} & {event.type for event in new.events()}


@pytest.mark.parametrize("end", [ev.RunLost("its kernel died"), None], ids=["lost", "unfinished"])
def test_a_recording_without_an_end_of_its_own_fails(session: NotebookSession, end: ev.EventData | None) -> None:
    """A replay does not end its kernel: it reports that the recorded one died, or that the recording ends."""
    header, events = recorded(0.0)
    last = events.pop()
    if end is not None:
        events.append(ev.RunEvent(last.seq, last.ts, "run-x", 0, end))
    run = ended(session.start(Replay((header, events), "max")))
    assert (run.status, run.text) == ("failed", "2 ")
    assert run.error is not None
    assert run.error.type in ("RunLost", "Unfinished")


def test_a_file_is_run_as_an_agent(make_session: MakeSession, tmp_path: Path) -> None:
    """A notebook ships a run as a file: another session shows it, with its prompt, under its name."""
    old = ended(make_session().start(does_all, "tea", name="all"))
    path = old.save_recording(tmp_path / "all.jsonl")
    session = make_session(store=tmp_path / "other.db")
    new = ended(session.start(Replay(path, speed="max")))
    assert replayed(new) == replayed(old)
    assert (new.output, new.record.prompt, new.record.agent) == ({"answer": 42}, "tea", "does_all")
    assert new.record.origin == ev.Origin("replay", old.id, None, "all")


def test_an_output_that_is_kept_as_a_file_is_shown_whole(session: NotebookSession, tmp_path: Path) -> None:
    """By a replay of the store, and by one of a file, which then needs no other file."""

    async def gives_much(prompt: str) -> list[str]:
        return ["much " * 20] * 20_000

    old = ended(session.start(gives_much))
    path = old.save_recording(tmp_path / "much.jsonl")
    for new in (old.replay("max"), session.start(Replay(path, "max"))):
        assert ended(new).output == old.output


def test_a_replay_runs_in_a_process_too(session: NotebookSession) -> None:
    """It holds nothing that cannot travel."""
    run = ended(session.start(Replay(recorded(0.0), "max"), on="process"))
    assert (run.status, run.output, run.text) == ("completed", "done", "2 ")


def test_a_replay_cannot_be_resumed(session: NotebookSession) -> None:
    """It kept nothing, and there is nothing to run again but what it shows."""
    new = ended(ended(session.start(reader(2))).replay("max"))
    assert new.status is RunStatus.FAILED
    for follow in (new.resume, new.retry):
        with pytest.raises(NotResumable, match="is a replay; resume or retry the run that it shows"):
            follow()
    assert ended(new.replay("max")).text == new.text


@pytest.mark.parametrize("speed", [0, -1, "fast", None, float("nan")])
def test_an_invalid_speed_is_refused(session: NotebookSession, speed: object) -> None:
    """In one line, before anything is started."""
    run = ended(session.start(agents.instant))
    with pytest.raises(BadOption, match="must be 'max' or a number greater than 0"):
        run.replay(speed)  # type: ignore[arg-type]  # the point
    assert len(session.runs()) == 1


def test_a_file_that_is_not_a_recording_is_refused(tmp_path: Path) -> None:
    """In one line that names the file."""
    (tmp_path / "notes.txt").write_text("tea\n")
    with pytest.raises(BadRecording, match=r"notes\.txt: not a valid recording"):
        Replay(tmp_path / "notes.txt")
