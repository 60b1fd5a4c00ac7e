"""The context: what an agent says of its run, and what it can see of it."""

from __future__ import annotations

import asyncio
import threading

import pytest

import nbrun
from nbrun import RunContext
from nbrun.agents import current_run
from nbrun.core import events as ev
from nbrun.core.errors import Cancelled, NbrunError
from tests.fakes.backend import context_on_no_host


class Log:
    """Collects what a context sends."""

    def __init__(self) -> None:
        self.data: list[ev.EventData] = []
        self.parents: list[str | None] = []

    def __call__(self, data: ev.EventData, parent: str | None = None) -> None:
        """Take an event."""
        self.data.append(data)
        self.parents.append(parent)


@pytest.fixture
def log() -> Log:
    """What the context of the test has sent."""
    return Log()


@pytest.fixture
def run(log: Log) -> RunContext:
    """A context on no host."""
    return context_on_no_host(log)


def test_each_method_sends_its_event(run: RunContext, log: Log) -> None:
    """Text, phases, progress, logs and own values are one event each, in order."""
    run.text("a")
    run.reasoning("b")
    run.phase("planning")
    run.progress(1, 3, "files")
    run.progress(2)
    run.log("careful", "warning")
    run.emit("score", {"value": (1, 2)})
    assert log.data == [
        ev.TextDelta("a"),
        ev.ReasoningDelta("b"),
        ev.RunPhase("planning"),
        ev.Progress(1.0, 3.0, "files"),
        ev.Progress(2.0, None, ""),
        ev.Log("careful", "warning"),
        ev.Custom("score", {"value": [1, 2]}),
    ]


def test_empty_text_sends_no_event(run: RunContext, log: Log) -> None:
    """Nothing said is nothing logged."""
    run.text("")
    run.reasoning("")
    assert log.data == []


def test_text_that_utf8_cannot_hold_is_made_so(run: RunContext, log: Log) -> None:
    """A lone surrogate from a broken stream does not stop the log."""
    run.phase("\ud800")
    assert log.data == [ev.RunPhase("\\ud800")]


def test_usage_adds_up(run: RunContext, log: Log) -> None:
    """Each call adds; what is sent are totals, and costs are known from the first one on."""
    run.usage(input_tokens=10, requests=1)
    run.usage(output_tokens=5, cost_usd=0.25)
    run.usage(output_tokens=5, cost_usd=0.25)
    assert log.data[0] == ev.Usage(input_tokens=10, requests=1)
    assert log.data[-1] == ev.Usage(input_tokens=10, output_tokens=10, requests=1, cost_usd=0.5)


def test_usage_takes_any_kind_of_number(run: RunContext, log: Log) -> None:
    """What counts tokens may be a number of another library: what is stored are plain ones."""
    numpy = pytest.importorskip("numpy")
    run.usage(input_tokens=numpy.int64(3), cost_usd=numpy.float64(0.5))
    (usage,) = log.data
    assert ev.decode_data("usage", ev.encode_data(usage)) == ev.Usage(input_tokens=3, cost_usd=0.5)


def test_a_tool_is_shown_from_start_to_end(run: RunContext, log: Log) -> None:
    """Its start, progress and end carry one id; args and result are data."""
    with run.tool("search", {"q": ("tea",)}) as tool:
        tool.progress(1, 2, "half")
        tool.result = {"found": 3}
    started, progress, finished = log.data
    assert started == ev.ToolStarted("tool-1", "search", "function", {"q": ["tea"]})
    assert progress == ev.ToolProgress("tool-1", 1, 2, "half")
    assert isinstance(finished, ev.ToolFinished)
    assert (finished.id, finished.status, finished.result) == ("tool-1", "ok", {"found": 3})
    with run.tool("again") as other:
        assert other.id == "tool-2"


def test_a_tool_that_raises_has_failed(run: RunContext, log: Log) -> None:
    """The error is its result, and goes on to the agent."""
    with pytest.raises(ValueError, match="no luck"), run.tool("search"):
        raise ValueError("no luck")
    end = log.data[-1]
    assert isinstance(end, ev.ToolFinished)
    assert (end.status, end.result) == ("error", "ValueError: no luck")


def test_a_tool_that_is_cancelled_says_so(run: RunContext, log: Log) -> None:
    """With a fired token a tool ends `cancelled`, and keeps what it had."""

    def use() -> None:
        with run.tool("search") as tool:
            tool.result = "half"
            run.token.cancel()
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        use()
    end = log.data[-1]
    assert isinstance(end, ev.ToolFinished)
    assert (end.status, end.result) == ("cancelled", "half")


def test_a_tool_of_a_cancelled_run_is_not_entered(run: RunContext, log: Log) -> None:
    """Between two tools is where a cancel is seen at the latest."""
    run.token.cancel("enough")
    with pytest.raises(Cancelled, match="enough"), run.tool("search"):
        raise AssertionError("entered")
    assert log.data == []


def test_a_tool_is_begun_and_finished_apart(run: RunContext, log: Log) -> None:
    """As by a framework's hooks, on any thread: its own id, arguments as they come, and one end."""
    tool = run.begin_tool("search", id="call-7")
    tool.args('{"q": ')
    tool.args('"tea"}')
    assert run.begin_tool("search", id="call-7") is tool  # reported twice
    other = threading.Thread(target=tool.finish, args=([3],), kwargs={"status": "denied"})
    other.start()
    other.join()
    *begun, end = log.data
    assert begun == [
        ev.ToolStarted("call-7", "search"),
        ev.ToolArgsDelta("call-7", '{"q": '),
        ev.ToolArgsDelta("call-7", '"tea"}'),
    ]
    assert isinstance(end, ev.ToolFinished)
    assert (end.id, end.status, end.result) == ("call-7", "denied", [3])


def test_a_tool_ends_once(run: RunContext, log: Log) -> None:
    """What is reported of it later changes nothing, also not of the next tool with its id."""
    tool = run.begin_tool("search", {"q": "tea"}, id="call-7")
    assert tool.finish("found")
    again = run.begin_tool("search", id="call-7")
    assert again is not tool
    assert not tool.finish("late")
    tool.args("late")
    tool.progress(1, 1)
    again.result = "kept"
    assert again.finish()
    ends = [data.result for data in log.data if isinstance(data, ev.ToolFinished)]
    assert ends == ["found", "kept"]
    assert len(log.data) == 4
    with run.tool("price") as block:
        assert block.finish(2, status="error")
    assert [data.status for data in log.data if isinstance(data, ev.ToolFinished)] == ["ok", "ok", "error"]


def test_threads_that_finish_a_tool_at_once_end_it_once(run: RunContext, log: Log) -> None:
    """Exactly one of them is told that it did."""
    tool, together = run.begin_tool("search"), threading.Barrier(8)
    told: list[bool] = []

    def finish() -> None:
        together.wait()
        told.append(tool.finish())

    threads = [threading.Thread(target=finish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told.count(True) == 1
    assert len([data for data in log.data if isinstance(data, ev.ToolFinished)]) == 1


def test_a_wrong_end_or_id_of_a_tool_is_one_line(run: RunContext, log: Log) -> None:
    """It says what can be given, and the tool stays as it was."""
    tool = run.begin_tool("search")
    with pytest.raises(ValueError, match="status must be one of ok, error, denied, cancelled, not 'done'"):
        tool.finish(status="done")
    assert tool.finish()
    with pytest.raises(TypeError, match="id must be a str, not int"):
        run.begin_tool("search", id=7)  # type: ignore[arg-type]  # as a notebook may
    run.token.cancel("enough")
    with pytest.raises(Cancelled, match="enough"):
        run.begin_tool("search")
    assert len(log.data) == 2


def test_whole_lines_are_logged_and_the_rest_waits(run: RunContext, log: Log) -> None:
    """Prints come in pieces; a line is logged when it is whole, what is left at the end as well."""
    for piece in ("one", " line\ntwo", " lines\nthree\nrest"):
        run.write(piece)
    run.write("oops\n", "stderr")
    run.flush_lines()
    run.flush_lines()
    assert log.data == [
        ev.Log("one line", "stdout"),
        ev.Log("two lines\nthree", "stdout"),
        ev.Log("oops", "stderr"),
        ev.Log("rest", "stdout"),
    ]


def test_sleep_ends_at_a_cancel(run: RunContext) -> None:
    """A sleeping sync agent is woken by the token, with the exception that ends it."""
    run.sleep(0.0)
    run.token.cancel("enough")
    with pytest.raises(Cancelled, match="enough"):
        run.sleep(60.0)


def test_current_outside_of_an_agent_is_one_line() -> None:
    """Where there is no run, `nbrun.current()` says where it works."""
    with pytest.raises(NbrunError, match="works only inside a running agent"):
        nbrun.current()


def test_current_is_the_run_that_the_code_belongs_to(run: RunContext) -> None:
    """`nbrun.current()` gives the context."""
    token = current_run.set(run)
    try:
        assert nbrun.current() is run
    finally:
        current_run.reset(token)
