"""What holds of every run's log, whatever the agent."""

from __future__ import annotations

from nbrun import Run
from nbrun.core import events as ev


def check(run: Run) -> list[ev.RunEvent]:
    """Return the events of a run that has ended, after looking at their order and pairs."""
    events = run.events()
    types = [event.type for event in events]
    assert [event.seq for event in events] == list(range(len(events)))
    assert types[0] == ev.RunCreated.TYPE
    # A host may say before that another run holds it up.
    own = [event.type for event in events if event.attempt and not _is_notice(event.data)]
    assert own[0] == ev.RunStarted.TYPE, "nothing of an agent comes before its start"
    ends = [number for number, kind in enumerate(types) if kind in ev.END_TYPES]
    assert len(ends) == 1, types
    assert set(types[ends[0] + 1 :]) <= {ev.DetachedFinished.TYPE}, "nothing follows the end"
    _check_tools(events)
    _check_questions(events)
    _check_messages(events)
    return events


def _is_notice(data: ev.EventData) -> bool:
    return isinstance(data, ev.Log) and data.level == "warning"


def _check_tools(events: list[ev.RunEvent]) -> None:
    running: set[str] = set()
    for event in events:
        match event.data:
            case ev.ToolStarted(id=tool_id):
                assert tool_id not in running, f"{tool_id} begins twice"
                running.add(tool_id)
            case ev.ToolProgress(id=tool_id):
                assert tool_id in running, f"progress of {tool_id}, which does not run"
            case ev.ToolFinished(id=tool_id):
                assert tool_id in running, f"{tool_id} ends and does not run"
                running.remove(tool_id)
    assert not running, f"never finished: {running}"


def _check_questions(events: list[ev.RunEvent]) -> None:
    asked: set[str] = set()
    for event in events:
        match event.data:
            case ev.ApprovalRequested(id=asked_id):
                asked.add(asked_id)
            case ev.ApprovalResolved(id=asked_id):
                asked.remove(asked_id)
    assert not asked, f"never answered: {asked}"


def _check_messages(events: list[ev.RunEvent]) -> None:
    """Every complete message of the agent comes once, after the deltas of its text and no others."""
    streamed, is_streamed = "", any(isinstance(event.data, ev.TextDelta) for event in events)
    for event in events:
        match event.data:
            case ev.TextDelta(text=text):
                streamed += text
            case ev.Message(role="assistant", text=text):
                assert not is_streamed or streamed == text, (streamed, text)
                streamed = ""


def told(run: Run, name: str) -> list[object]:
    """Return what the tools of a run have told of themselves under this name."""
    return [event.data.value for event in run.events() if isinstance(event.data, ev.Custom) and event.data.name == name]
