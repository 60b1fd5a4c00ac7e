"""Events: every type survives its codec, and what is unknown is kept as it came."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nbrun import CancelCause
from nbrun.core import events as ev
from nbrun.core.cancellation import Rung

SAMPLES: list[ev.EventData] = [
    ev.RunCreated(
        session_id="s", name="n", agent="a", prompt="p", number=3, parent_id="run-1", cell_id="c",
        model="m", tags={"k": "v"}, options={"timeout_s": 2.5},
    ),
    ev.RunStarted("local"),
    ev.RunPhase("planning"),
    ev.RunWaiting("approval"),
    ev.RunResumed(),
    ev.RunCompleted({"a": [1, None, "x"]}, ev.Usage(1, 2, 3, 4, 5, 0.5, False)),
    ev.RunFailed(ev.ErrorInfo("ValueError", "no", "Traceback"), "partial", ev.Usage(1)),
    ev.RunCancelled(CancelCause.USER, "why", "partial", ev.ErrorInfo("E", ""), ev.Usage(1), ("tool",)),
    ev.AttemptLost(1, ev.ErrorInfo("ProcessDied", "killed"), ev.Usage(1)),
    ev.RunLost("its kernel died", 12.5),
    ev.CancelRequested(CancelCause.DEADLINE, "why", "its time limit"),
    ev.CancelEscalated(Rung.THREAD, "worker"),
    ev.DetachedFinished("tool", 3),
    ev.TextDelta("héllo"),
    ev.ReasoningDelta("hm"),
    ev.Message("assistant", "hello"),
    ev.ToolStarted("t1", "search", "function", {"q": "tea"}),
    ev.ToolArgsDelta("t1", '{"q"'),
    ev.ToolProgress("t1", 1.0, 2.0, "half"),
    ev.ToolFinished("t1", "ok", [1, 2], 12.5),
    ev.CallStarted("call-1", "openai", "gpt-4o", "tool-1"),
    ev.CallWaiting("call-1", "openai refused a call (HTTP 429)", 1_790_000_000.0),
    ev.CallFinished("call-1", "ok", 812.5, 90.0, ev.Usage(7, 4, requests=1), "HTTP 429", 1500.0, "journal", 2.5),
    ev.ApprovalRequested("a1", "may I?", "t1", {"x": 1}, ("yes", "no"), 99.0, "search", False),
    ev.ApprovalResolved("a1", "yes", {"x": 2}, "you", "go on", True),
    ev.Steer("left", "you", "say-1"),
    ev.SteerReady(),
    ev.SteerTaken(2),
    ev.StepStarted("one"),
    ev.StepFinished("one"),
    ev.Progress(1.0, 3.0, "files"),
    ev.Log("said", "stdout"),
    ev.Usage(1, 2, 3, 4, 5, None, True),
    ev.Checkpoint("c1", 10),
    ev.Artifact("f1", "big.txt", 2_000_000, "head"),
    ev.ChildStarted("run-2"),
    ev.ChildFinished("run-2", "completed"),
    ev.Custom("score", 0.5),
    ev.Raw("acp", {"any": ["thing"]}),
]  # fmt: skip


def test_there_is_a_sample_of_every_type() -> None:
    """A new event type needs a line in this file."""
    assert {ev.type_of(sample) for sample in SAMPLES} == set(ev.TYPES)


@pytest.mark.parametrize("data", SAMPLES, ids=ev.type_of)
def test_every_type_survives_its_codec(data: ev.EventData) -> None:
    """What is decoded equals what was encoded."""
    assert ev.decode_data(ev.type_of(data), ev.encode_data(data)) == data


def test_an_unknown_type_is_kept_byte_for_byte() -> None:
    """An event of a later version is read as `Unknown`, and written again exactly as it was."""
    blob = msgspec.msgpack.encode({"answer": [42, None, "x"], "nested": {"deep": True}})
    data = ev.decode_data("oracle.spoke", blob)
    assert data == ev.Unknown("oracle.spoke", {"answer": [42, None, "x"], "nested": {"deep": True}})
    assert ev.type_of(data) == "oracle.spoke"
    assert ev.encode_data(data) == blob


def test_data_that_does_not_fit_its_type_is_kept_whole() -> None:
    """A known type with another version's fields loses nothing."""
    blob = msgspec.msgpack.encode({"text": ["not", "a", "string"]})
    data = ev.decode_data("text.delta", blob)
    assert data == ev.Unknown("text.delta", {"text": ["not", "a", "string"]})


def test_damaged_data_is_marked_and_raises_nothing() -> None:
    """Bytes that are no MessagePack are an event all the same, which says how much was there."""
    assert ev.decode_data("log", b"\xc1\xc1\xc1") == ev.Unknown("log", {"$damaged": 3})


def test_data_cannot_be_changed() -> None:
    """An event is a fact."""
    with pytest.raises(AttributeError):
        ev.TextDelta("a").text = "b"  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ({"name": "other"}, True),
        ({"cell_id": "other"}, True),
        ({"tags": {"k": "v"}}, True),
        ({"number": 9}, True),
        ({"session_id": "other"}, True),
        ({"agent": "other"}, False),
        ({"prompt": "other"}, False),
        ({"model": "other"}, False),
        ({"options": {"timeout_s": 1.0}}, False),
    ],
)
def test_inputs_are_agent_prompt_model_and_options(changed: dict[str, object], *, is_same: bool) -> None:
    """A name, tags and a cell do not make another run of the same inputs; all else does."""
    first = ev.RunCreated(session_id="s", name="n", agent="a", prompt="p", model="m")
    other = msgspec.structs.replace(first, **changed)
    assert (first.inputs() == other.inputs()) is is_same


def test_a_call_of_an_older_store_is_read() -> None:
    """What its version didn't know is as if it had not happened."""
    blob = msgspec.msgpack.encode({"id": "call-1", "ms": 8, "usage": {"input_tokens": 7}})
    assert ev.decode_data("call.finished", blob) == ev.CallFinished("call-1", "ok", 8.0, None, ev.Usage(7))
    assert ev.decode_data("call.started", msgspec.msgpack.encode({"id": "call-1"})) == ev.CallStarted("call-1")


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": None},
        {"waited_ms": -1.0},
        {"waited_ms": float("nan")},
        {"retry_after": float("inf")},
        {"retry_after": -0.5},
        {"ms": -1.0},
        {"first_ms": float("nan")},
    ],
    ids=str,
)
def test_a_call_is_checked_at_the_door(wrong: dict[str, Any]) -> None:
    """A time that can't be, or a source that is no text, is left out with a warning."""
    call = msgspec.structs.replace(ev.CallFinished("call-1"), **wrong)
    left_out = ev.checked(call)
    assert isinstance(left_out, ev.Log)
    assert left_out.level == "warning"
    assert "CallFinished" in left_out.text


def test_an_event_is_one_short_line() -> None:
    """Its place, its type and the head of its data, however much that is."""
    event = ev.RunEvent(7, 0.0, "run-1", 1, ev.TextDelta("a\n" * 100_000))
    assert repr(event).startswith("<RunEvent 7 text.delta: TextDelta(text='a")
    assert len(repr(event)) < 160


def test_an_error_reads_as_type_and_message() -> None:
    """An error without words is its type."""
    assert str(ev.ErrorInfo("ValueError", "no luck")) == "ValueError: no luck"
    assert str(ev.ErrorInfo("KeyboardInterrupt", "")) == "KeyboardInterrupt"
