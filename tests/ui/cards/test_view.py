"""What a live card shows: one small dict, true to the record."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest

from nbrun import CancelCause, RunRecord, RunStatus
from nbrun.core import events as ev
from nbrun.core.record import CallGroup, ChildSummary, ModelCall, Steered, ToolCall
from nbrun.render.static_card import bundle
from nbrun.ui.cards.markdown_blocks import TEXT_LIMIT, Blocks
from nbrun.ui.cards.view import TOOL_LIMIT, view
from tests.fakes.hostile_runs import runs_with

RECORD = RunRecord(
    run_id="run-1", number=3, name="tea", agent="poet", status=RunStatus.RUNNING, phase="pouring",
    created_at=100.0, started_at=101.0, text="Steam", usage=ev.Usage(12, 3, exact=False),
    tools=(ToolCall("t1", "search", args={"q": "tea"}, status="running"),), notices=("careful",),
)  # fmt: skip


def test_a_view_is_what_the_record_says() -> None:
    """Name, number, status and words, text, tools, tokens and times are the record's."""
    shown = view(RECORD, now=105.0)
    assert (shown["id"], shown["number"], shown["name"], shown["agent"]) == ("run-1", 3, "tea", "poet")
    assert (shown["status"], shown["words"], shown["live"]) == ("running", "Running", True)
    assert (shown["phase"], shown["text"], shown["text_cut"]) == ("pouring", "Steam", 0)
    assert (shown["started_at"], shown["ended_at"], shown["now"]) == (101.0, None, 105.0)
    assert shown["usage"] == "≥ 12 in · 3 out tokens"
    (tool,) = shown["tools"]
    assert (tool["id"], tool["name"], tool["status"], tool["args"]) == ("t1", "search", "running", '{"q":"tea"}')
    assert "careful" in shown["notices"]


@pytest.mark.parametrize("status", RunStatus)
def test_a_view_of_every_status_can_be_sent(status: RunStatus) -> None:
    """It is JSON, and `live` is what the status says."""
    record = msgspec.structs.replace(RECORD, status=status, cause=CancelCause.USER, ended_at=110.0)
    shown = json.loads(json.dumps(view(record, now=105.0)))
    assert (shown["status"], shown["live"]) == (str(status), status.is_live)


def test_a_long_run_has_a_small_view() -> None:
    """Text and tools are cut in front, and how much is left out is told."""
    record = msgspec.structs.replace(
        RECORD, text="x" * 1_000_000 + "end",
        tools=tuple(ToolCall(f"t{n}", "search", args={"q": "y" * 10_000}) for n in range(100)),
    )  # fmt: skip
    shown = view(record, now=105.0)
    assert shown["text"].endswith("end")
    assert shown["text_cut"] == 1_000_003 - TEXT_LIMIT
    assert [tool["id"] for tool in shown["tools"]] == [f"t{n}" for n in range(100 - TOOL_LIMIT, 100)]
    assert shown["tools_cut"] == 100 - TOOL_LIMIT
    assert len(json.dumps(shown)) < 64 * 1024


def calls(*numbers: int, **fields: Any) -> tuple[ModelCall, ...]:
    """Return model calls that have ended."""
    return tuple(ModelCall(f"call-{n}", "openai", "gpt-4o", "", "ok", 100.0, 812.0, **fields) for n in numbers)


def test_model_calls_are_rows_between_the_tools() -> None:
    """One row for all that follow each other, with its place; the last of them, one by one."""
    used = ev.Usage(1_204, 340, 1_000, 0, 1, 0.0123)
    one = CallGroup(0, 1, ms=812.0, usage=used, last=calls(1, usage=used, first_ms=90.0))
    running = ModelCall("call-9", "openai", "gpt-4o", "t1", started_at=103.0)
    several = CallGroup(1, 14, 1, 2, 3, ms=13_000.0, last=(*calls(*range(19), source="journal"), running))
    shown = view(msgspec.structs.replace(RECORD, call_count=15, call_groups=(one, several)), now=105.0)
    assert shown["calls_cut"] == 0
    first, second = shown["calls"]
    assert first == {
        "place": 0, "status": "ok", "words": "openai gpt-4o · 1,204 in · 340 out · $0.0123", "nested": False,
        "started_at": 0.0, "ms": 812.0, "lines_cut": 0,
        "lines": ["1,204 in (1,000 cached) · 340 out · $0.0123 · 0.8 s (first token after 90 ms)"],
    }  # fmt: skip
    assert second["words"] == (
        "14 model calls · openai gpt-4o · 1.0 s each · 1 running · 2 failed · 3 from the journal"
    )
    assert (second["place"], second["status"], second["nested"], second["started_at"]) == (1, "running", True, 103.0)
    assert (len(second["lines"]), second["lines_cut"], second["lines"][-1]) == (10, 4, "running")


def test_a_view_of_a_thousand_model_calls_is_small() -> None:
    """Also between a thousand tools, whatever provider and model are called."""
    evil = "<b>\u202e\x1b[2J" * 100_000
    call = ModelCall("call-1", evil, evil, evil, "error", 1.0, 2.0, 1.0, 9e9, ev.Usage(1, 2), evil, "journal", 9.0)
    groups = tuple(CallGroup(n, 1_000, last=(call,) * 20) for n in range(1_001))
    tools = tuple(ToolCall(f"t{n}", "search", status="ok") for n in range(1_000))
    shown = view(msgspec.structs.replace(RECORD, tools=tools, call_groups=groups, call_count=1_001_000), now=105.0)
    assert [group["place"] for group in shown["calls"]] == [*range(980, 1_001)]
    assert (shown["tools_cut"], shown["calls_cut"]) == (980, 980_000)
    assert sum(len(group["lines"]) for group in shown["calls"]) <= 10 + 21
    text = json.dumps(shown)
    assert len(text) < 64 * 1024
    assert "\\x1b" not in text
    assert "\\u202e" not in text.replace("\\\\u202e", "")


def test_a_flood_in_every_field_has_a_small_view() -> None:
    """Also in ids and statuses, which nobody reads; tools stay told apart."""
    for record in runs_with("a flood of <b>text</b> " * 10_000):
        shown = view(record, now=105.0, blocks=Blocks())
        assert len(json.dumps(shown)) < 128 * 1024
        assert len({tool["id"] for tool in shown["tools"]}) == len(shown["tools"])


def test_a_question_is_shown_as_it_is_asked() -> None:
    """Message, args as text, options and deadline; what would hide the rest of a line is made visible."""
    asked = ev.ApprovalRequested("ask-1", "Delete?", "t1", {"path": "a\u202eb\x1b[2K"}, ("a", "b"), 130.0)
    record = msgspec.structs.replace(RECORD, status=RunStatus.WAITING, pending=(asked,))
    (shown,) = view(record, now=105.0)["questions"]
    assert shown == {
        "id": "ask-1", "message": "Delete?", "args": '{"path":"a\\u202eb\\u001b[2K"}', "options": ["a", "b"],
            "labels": ["a", "b"],
        "deadline": 130.0, "tool": "", "edit": '{\n  "path": "a\\u202eb\\u001b[2K"\n}', "hidden": [],
            "digest": asked.digest, "input": "",
    }  # fmt: skip


def test_what_can_be_edited_is_given_as_json() -> None:
    """Data that the tool lets be changed, whole and exact; nothing in whose place an edit would be something else."""
    exact = {"id": 2**60, "part": 1.0, "note": "\u202e", "paths": ["a" * 50]}
    (shown,) = _asked(args=exact, tool="delete\u202e")
    assert json.loads(shown["edit"]) == exact
    assert (shown["tool"], "\u202e" in shown["edit"]) == ("delete\\u202e", False)
    assert shown["args"].splitlines()[1] == f'  "id": {2**60},'
    stand_in = {"$type": "Cup", "$repr": "Cup()"}
    fixed: list[dict[str, Any]] = [
        {"args": None}, {"args": {"x": 1}, "editable": False}, {"args": stand_in}, {"args": [{"cup": stand_in}]},
        {"args": math.nan}, {"args": "x" * 7_000},
    ]  # fmt: skip
    for fields in fixed:
        assert _asked(**fields)[0]["edit"] is None, fields
    long = {"$type": "Cup", "$repr": "Cup(" + "x" * 100 + ")"}
    assert _asked(args=long)[0]["args"] == long["$repr"]


def _asked(**fields: Any) -> list[dict[str, Any]]:
    asked = ev.ApprovalRequested("ask-1", "Delete?", **fields)
    record = msgspec.structs.replace(RECORD, status=RunStatus.WAITING, pending=(asked,))
    shown: list[dict[str, Any]] = json.loads(json.dumps(view(record, now=105.0)["questions"]))
    return shown


def test_messages_to_the_agent_have_their_receipts() -> None:
    """Each in words; one can be sent where the agent looks for them and is not being stopped."""
    steered = (Steered(1, "left", "card", "n1", 100.0, 102.5), Steered(2, "\u202eright", "card", "n2", 103.0))
    record = msgspec.structs.replace(
        RECORD, steered=steered, steers=2, steers_taken=1, is_steerable=True, always=("delete",)
    )
    shown = view(record, now=105.0)
    assert shown["steer"] == {
        "can": True,
        "messages": [
            {"id": "n1", "text": "left", "words": "read after 2.5 s", "taken": True},
            {"id": "n2", "text": "\\u202eright", "words": "not read yet", "taken": False},
        ],
    }
    assert shown["notes"][0] == "Always allowed in this run: delete"
    deaf = msgspec.structs.replace(record, is_steerable=False)
    stopping = msgspec.structs.replace(record, status=RunStatus.CANCELLING)
    waiting = msgspec.structs.replace(record, status=RunStatus.WAITING)
    can = [view(one, now=105.0)["steer"]["can"] for one in (deaf, stopping, waiting)]
    assert can == [False, False, True]


def test_many_and_long_questions_have_a_small_view() -> None:
    """How much is not shown to who decides is told."""
    asked = tuple(ev.ApprovalRequested(f"ask-{n}", "x" * 10_000, None, "y" * 10_000) for n in range(9))
    shown = view(msgspec.structs.replace(RECORD, pending=asked), now=105.0)
    assert [question["id"] for question in shown["questions"]] == [f"ask-{n}" for n in range(5)]
    assert shown["questions_cut"] == 4
    assert shown["questions"][0]["args"].endswith("y… 4,000 more characters")
    veiled = ev.ApprovalRequested("ask", "\0" * 5_999 + "!")  # what makes room for itself hides nothing untold
    (shown_one,) = view(msgspec.structs.replace(RECORD, pending=(veiled,)), now=105.0)["questions"]
    assert {question["digest"] for question in (*shown["questions"], shown_one)} == {""}  # so it can't be allowed here
    assert shown_one["message"].endswith("… 29,995 more characters")
    assert len(json.dumps(shown)) < 64 * 1024


def test_error_reason_and_problem_are_shown() -> None:
    """What went wrong, why it was stopped, and that it is not saved."""
    record = msgspec.structs.replace(
        RECORD, status=RunStatus.CANCELLED, cause=CancelCause.USER, reason="too slow",
        error=ev.ErrorInfo("ValueError", "no luck"),
    )  # fmt: skip
    shown = view(record, now=105.0, problem="disk full")
    assert shown["error"] == "ValueError: no luck"
    assert any("too slow" in note for note in shown["notes"])
    assert any("Not saved: disk full" in notice for notice in shown["notices"])


def test_output_without_text_is_shown() -> None:
    """An agent that returns data and says nothing has something to show."""
    record = msgspec.structs.replace(RECORD, text="", output={"answer": 42}, status=RunStatus.COMPLETED)
    shown = view(record, now=105.0)
    assert (shown["text"], shown["output"]) == ("", '{\n  "answer": 42\n}')
    assert shown["result"] == '{"answer":42}'


@pytest.mark.parametrize(
    ("progress", "part"),
    [
        (ev.Progress(3, 12, "cups"), 0.25),
        (ev.Progress(13, 12), 1.0),
        (ev.Progress(-1, 12), 0.0),
        (ev.Progress(3), None),
        (ev.Progress(3, 0), None),
        (ev.Progress(math.nan, 12), None),
        (ev.Progress(3, math.inf), None),
    ],
)
def test_progress_is_a_part_of_one(progress: ev.Progress, part: float | None) -> None:
    """Whatever numbers an agent gives, the page gets a part of a whole or none, and words."""
    shown = view(msgspec.structs.replace(RECORD, progress=progress), now=105.0)["progress"]
    assert shown["part"] == part
    assert shown["words"]
    json.dumps(shown, allow_nan=False)


def test_log_and_place_in_line_are_shown() -> None:
    """The tail of the log and its length are the record's; words of a place stand for the status."""
    record = msgspec.structs.replace(RECORD, log=("a", "b"), log_count=12)
    shown = view(record, now=105.0, status="Queued (next) · 1 of 8 slots busy")
    assert (shown["log"], shown["log_count"]) == (["a", "b"], 12)
    assert shown["words"] == "Queued (next) · 1 of 8 slots busy"
    assert view(RECORD, now=105.0)["progress"] is None


def test_a_slow_cancel_is_told_on_the_card() -> None:
    """What a static card says of a cancel, the live one says too."""
    record = msgspec.structs.replace(
        RECORD, status=RunStatus.CANCELLED, cause=CancelCause.USER, cancelled_by="card",
        cancel_requested_at=102.0, ended_at=104.0,
    )  # fmt: skip
    assert "stopped 2.0 s later" in view(record, now=105.0)["notes"][0]


def test_a_view_and_a_saved_card_tell_where_a_run_comes_from() -> None:
    """In words on both, and escaped where the name of a recording is anybody's."""
    origin = ev.Origin("replay", "run-0", None, "<b>tea</b>" * 20)
    record = msgspec.structs.replace(RECORD, origin=origin, status=RunStatus.COMPLETED)
    assert view(record, now=105.0)["notes"][0].startswith("Replay of a recorded run (<b>tea")
    saved = bundle(record)
    assert "Replay of a recorded run (&lt;b&gt;tea" in saved["text/html"]
    assert "<b>" not in saved["text/html"]
    assert "Replay of a recorded run" in saved["text/plain"]


def test_a_tool_is_shown_with_its_kind_and_how_far_it_has_come() -> None:
    """Arguments and result keep their lines and are cut; a bar is for what still runs."""
    progress = ev.Progress(1, 4, "pages")
    running = ToolCall("t1", "read", "mcp", {"q": "\x1b[2K"}, started_at=103.0, progress=progress)
    ended = msgspec.structs.replace(running, status="ok", result="a\nb" * 1_000, ms=12.0)
    first, second = view(msgspec.structs.replace(RECORD, tools=(running, ended)), now=105.0)["tools"]
    assert (first["kind"], first["name"], first["args"]) == ("mcp", "read", '{"q":"\\u001b[2K"}')
    assert (first["started_at"], first["progress"]["words"]) == (103.0, "1 of 4 · pages")
    assert (second["progress"], second["result"][:4]) == (None, "a\nba")
    assert second["result"].endswith("… 2,500 more characters")


def test_child_runs_are_shown_as_they_stand_while_they_live() -> None:
    """By their own records; of ended ones the parent's log has told how, how long and what they used."""
    usage = ev.Usage(5, 6)
    ended = ChildSummary("run-2", "reader", 4, "failed", 101.0, 103.5, usage)
    live = ChildSummary("run-3", "writer", 5, "running", 102.0)
    record = msgspec.structs.replace(RECORD, children=(ended, live))
    now = RunRecord(run_id="run-3", status=RunStatus.WAITING, started_at=102.5, usage=ev.Usage(1))
    first, second = view(record, now=105.0, children={"run-3": now})["children"]
    assert (first["title"], first["words"]) == ("reader #4", "failed")
    assert first["ended_at"] - first["started_at"] == 2.5
    assert first["usage"] == "5 in · 6 out tokens"
    assert (second["status"], second["words"]) == ("waiting", "Waiting for you")
    assert (second["started_at"], second["ended_at"]) == (102.5, None)
    assert second["usage"] == "1 in · 0 out tokens"


@pytest.mark.parametrize(("cost", "shown_cost"), [(0.25, "$0.25"), (math.nan, ""), (None, "")])
def test_the_cost_is_an_amount_or_empty(cost: float | None, shown_cost: str) -> None:
    """Whatever an agent reports."""
    usage = view(msgspec.structs.replace(RECORD, usage=ev.Usage(cost_usd=cost)), now=1.0)["usage"]
    assert usage == shown_cost


def test_a_text_is_drawn_where_somebody_draws_it() -> None:
    """Without that it is as it came; with it the closed blocks are HTML, and the copy is what was written."""
    record = msgspec.structs.replace(RECORD, text="*a*\n\n*b", model="big", reasoning="hm", reasoning_count=9)
    plain, drawn = view(record, now=105.0), view(record, now=105.0, blocks=Blocks())
    assert (plain["blocks"], plain["text"]) == ([], "*a*\n\n*b")
    assert (drawn["blocks"], drawn["text"]) == ([{"key": 1, "html": "<p><em>a</em></p>\n"}], "*b")
    assert (drawn["awaited"], drawn["reasoning"], drawn["reasoning_count"]) == ("model", "hm", 9)
    ended = msgspec.structs.replace(record, status=RunStatus.COMPLETED, output="*a*\n\n*b")
    last = view(ended, now=105.0, blocks=Blocks())
    assert (drawn["result"], last["result"], last["result_cut"]) == ("", "*a*\n\n*b", 0)
    assert (last["text"], len(last["blocks"])) == ("", 2)


def test_an_error_is_a_line_and_a_traceback() -> None:
    """The line may be long, and of the traceback the end tells most."""
    error = ev.ErrorInfo("E", "m" * 3_000, "first\n" + "t" * 9_000 + "last")
    shown = view(msgspec.structs.replace(RECORD, error=error), now=105.0)
    assert shown["error"].endswith("m… 1,003 more characters")
    assert len(shown["traceback"]) == 4_000
    assert shown["traceback"].endswith("tlast")
