"""Sets: many runs of one agent as one thing; what has ended is kept, and the rest can be cancelled, paused, resumed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

import nbrun
from nbrun import NotebookSession, Run, RunContext, RunSet, RunStatus
from nbrun.core.errors import BadOption, Cancelled, NotResumable, RunNotFound
from nbrun.sessions import live_set, scoring
from nbrun.sessions.live_set import ERROR_CHARS, ERROR_KINDS
from nbrun.sessions.scoring import SetItem, paired
from nbrun.store import Keep, sets
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held

MakeSession = Callable[..., NotebookSession]


def done(found: RunSet) -> RunSet:
    """Return the set when it is done."""
    assert found.wait(BOUND_S), f"{found!r} is not done"
    return found


def running(found: RunSet, count: int) -> RunSet:
    """Return the set when so many of its runs are in progress."""
    assert found._wait_until(lambda: found.counts.get("running") == count, BOUND_S), f"{found!r}"
    return found


async def upper(prompt: str) -> str:
    """Return the prompt in capitals."""
    return prompt.upper()


class Flaky:
    """Fails for prompts that begin with "bad", so many times each."""

    def __init__(self, times: int = 1_000) -> None:
        self.times = times
        self.seen: dict[str, int] = {}

    async def __call__(self, prompt: str) -> str:
        """Answer, or fail."""
        self.seen[prompt] = self.seen.get(prompt, 0) + 1
        if prompt.startswith("bad") and self.seen[prompt] <= self.times:
            raise ValueError(f"no luck with {prompt}")
        return prompt.upper()


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    """Return what another connection reads from the file."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


# --- the whole way -------------------------------------------------------------------------------------


def test_a_set_is_one_thing_with_runs_in_the_order_of_their_inputs(make_session: MakeSession, store_path: Path) -> None:
    """It has a number and an id; each run knows its place in it, in memory and in the file."""
    session = make_session()
    found = session.map(upper, ["a", "b", "c"])
    assert [run.output for run in found] == ["A", "B", "C"]
    done(found)
    assert (found.number, found.id, found.status, len(found)) == (1, "set-1", "completed", 3)
    assert found.counts == {"completed": 3}
    assert found.outputs() == ["A", "B", "C"]
    assert [run.glance.member for run in found] == [nbrun.events.Member(1, at) for at in range(3)]
    assert sorted(rows(store_path, "SELECT in_set, position FROM runs")) == [(1, 0), (1, 1), (1, 2)]
    assert found[-1].output == found[2].output == "C"
    assert session.get("set-1").number == 1
    assert [each.number for each in session.sets()] == [1]


def test_a_set_is_awaited_and_iterated_from_a_loop(make_session: MakeSession) -> None:
    """`await` returns the set itself, and `async for` its runs in order."""

    async def main() -> tuple[RunSet, list[object]]:
        found = make_session().map(upper, ["a", "b"])
        outputs = [run.output async for run in found]
        return await found, outputs

    found, outputs = asyncio.run(main())
    assert (found.status, outputs) == ("completed", ["A", "B"])


def test_keys_name_inputs(make_session: MakeSession) -> None:
    """A dict's, or those of pairs; one that comes twice is refused where all inputs are known."""
    session = make_session()
    found = done(session.map(upper, {"x": "a", "y": "b"}))
    assert found["y"].output == "B"
    member = found["y"].glance.member
    assert member is not None
    assert member.key == "y"
    with pytest.raises(KeyError):
        found["z"]
    with pytest.raises(IndexError):
        found[2]
    with pytest.raises(BadOption, match="two inputs have the key 'x'"):
        session.map(upper, [("x", "a"), ("x", "b")])


def test_inputs_that_are_no_prompts_are_refused_before_anything_starts(make_session: MakeSession) -> None:
    """With a line that says which, and what to give."""
    session = make_session()
    for inputs, words in (("abc", "not one text"), (5, "not int"), (["a", 5], "input 1 must be a str")):
        with pytest.raises(BadOption, match=words):
            session.map(upper, inputs)
    for options, words in (
        ({"concurrency": 0}, "concurrency=0"), ({"retries": -1}, "retries=-1"), ({"rate": "fast"}, "600/min"),
        ({"max_failures": 1.5}, "share"), ({"nonsense": 1}, "isn't an option"),
        ({"if_running": "queue"}, "isn't an option of a set"),
    ):  # fmt: skip
        with pytest.raises(BadOption, match=words):
            session.map(upper, ["a"], **options)
    assert session.sets() == []


def test_rows_of_a_table_are_inputs_by_a_template(make_session: MakeSession) -> None:
    """A DataFrame's or dicts; the key is a column, or the index where that says anything."""
    pd = pytest.importorskip("pandas")
    session = make_session()
    frame = pd.DataFrame({"id": ["x", "y"], "the question": ["a", "b"], "year": [1, 2]})
    found = done(session.map(upper, frame, template="{item[the question]} {year}, {key}", key="id"))
    assert (found.outputs(), found["y"].output) == (["A 1, X", "B 2, Y"], "B 2, Y")
    assert done(session.map(upper, frame, template="{item.year} {key}")).outputs() == ["1 0", "2 1"]
    assert done(session.map(upper, frame.set_index("id"), template="{key}"))["y"].output == "Y"
    assert done(session.map(upper, frame["the question"])).outputs() == ["A", "B"]
    rows = ({"word": word} for word in "ab")
    assert done(session.map(upper, rows, template="{{{word}}}")).outputs() == ["{A}", "{B}"]
    assert done(session.map(upper, [1, 2], template="number {item}")).outputs() == ["NUMBER 1", "NUMBER 2"]
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "give a template, such as '{id}'"),
        ({"template": "{word}"}, r"may name {item}, {key}, {id}"),
        ({"template": "{year}", "key": "name"}, "no column 'name' for its key; it has id, the question, year"),
    )
    for options, words in wrong:
        with pytest.raises(BadOption, match=words):
            session.map(upper, frame, **options)


def test_an_empty_set_is_complete(make_session: MakeSession) -> None:
    """There is nothing to wait for."""
    found = done(make_session().map(upper, []))
    assert (found.status, found.counts, found.outputs(), list(found)) == ("completed", {}, [], [])


def test_async_generators_are_read(make_session: MakeSession) -> None:
    """On a loop of their own."""

    async def inputs() -> AsyncIterator[str]:
        for text in "abc":
            await asyncio.sleep(0)
            yield text

    assert done(make_session().map(upper, inputs())).outputs() == ["A", "B", "C"]


def test_a_slow_generator_does_not_hold_up_what_it_has_given(make_session: MakeSession) -> None:
    """Its first input has ended before it gives the second one."""
    more = threading.Event()

    def inputs() -> Iterator[str]:
        yield "a"
        assert more.wait(BOUND_S)
        yield "b"

    found = make_session().map(upper, inputs())
    first = next(iter(found))
    assert (first.output, found.done()) == ("A", False)
    more.set()
    assert done(found).outputs() == ["A", "B"]


def test_a_generator_is_read_so_far_ahead(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no further, however many it would give: what it gives is bounded by what has begun."""
    monkeypatch.setattr(live_set, "READ_AHEAD", 20)
    given, agent = [], Held()

    def inputs() -> Iterator[str]:
        for at in range(200):
            given.append(at)
            yield str(at)

    found = make_session().map(agent, inputs(), concurrency=1)
    assert agent.entered.wait(BOUND_S)
    assert len(given) <= 60
    agent.let_go()
    assert done(found).counts == {"completed": 200}


def test_a_generator_that_fails_stops_its_set(make_session: MakeSession) -> None:
    """What it gave has its endings; the set says what it raised."""

    def inputs() -> Iterator[str]:
        yield "a"
        raise OSError("no more rows")

    found = done(make_session().map(upper, inputs()))
    assert found.status == "failed"
    assert "OSError: no more rows" in str(found.stopped)


@pytest.mark.parametrize("count", [0, 3])
def test_what_a_generator_gave_before_it_failed_is_kept(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Also where the set has not looked at it by then."""
    has_failed, step, read_all = threading.Event(), live_set.LiveSet._step, live_set.LiveSet._read_all

    def late_step(live: live_set.LiveSet) -> bool:
        assert has_failed.wait(BOUND_S)
        return step(live)

    def watched_read(live: live_set.LiveSet) -> None:
        read_all(live)
        has_failed.set()

    def inputs() -> Iterator[str]:
        yield from "abc"[:count]
        raise OSError("no more rows")

    monkeypatch.setattr(live_set.LiveSet, "_step", late_step)
    monkeypatch.setattr(live_set.LiveSet, "_read_all", watched_read)
    found = done(make_session().map(upper, inputs()))
    assert (found.status, len(found)) == ("failed", count)
    assert "OSError: no more rows" in str(found.stopped)


def test_a_window_of_runs_exists_and_the_rest_waits_in_the_store(make_session: MakeSession) -> None:
    """Twice as many as there are places; the others are prompts in the file."""
    session, agent = make_session(), Held()
    found = session.map(agent, [str(at) for at in range(50)], concurrency=3)
    running(found, 3)
    assert len(session.live_runs) <= 6
    assert found.counts == {"queued": 47, "running": 3}
    with pytest.raises(RunNotFound, match="has not begun"):
        found[40]
    agent.let_go()
    assert done(found).counts == {"completed": 50}


def test_a_set_has_places_of_its_own(make_session: MakeSession) -> None:
    """A run that somebody starts does not wait behind a set that is in the way of nobody."""
    session, agent = make_session(max_concurrent=1), Held()
    found = session.map(agent, ["a", "b", "c"])
    assert agent.entered.wait(BOUND_S)
    assert session.start(upper, "at once").result(BOUND_S) == "AT ONCE"
    agent.let_go()
    done(found)


# --- endings -------------------------------------------------------------------------------------------


def test_a_failed_run_is_a_result(make_session: MakeSession) -> None:
    """The others go on; errors are grouped, and `outputs()` has a place for each input."""
    found = done(make_session().map(Flaky(), ["a", "bad 1", "b", "bad 2"]))
    assert (found.status, found.counts) == ("completed", {"completed": 2, "failed": 2})
    assert found.outputs(missing="-") == ["A", "-", "B", "-"]
    assert [run.glance.prompt for run in found.failed] == ["bad 1", "bad 2"]
    assert [(count, error) for count, error, _ in found.errors()] == [
        (1, "ValueError: no luck with bad 1"),
        (1, "ValueError: no luck with bad 2"),
    ]
    assert "2 failed" in repr(found)
    assert "no luck" in found._repr_mimebundle_()["text/html"]


def test_retries_are_attempts_at_the_same_input(make_session: MakeSession) -> None:
    """Each is a run; the newest counts, and the number of attempts is kept."""
    session, agent = make_session(), Flaky(2)
    found = done(session.map(agent, ["a", "bad"], retries=2))
    assert (found.counts, agent.seen) == ({"completed": 2}, {"a": 1, "bad": 3})
    assert list(found.to_pandas()["attempts"]) == [1, 3]
    origin = found[1].glance.origin
    assert origin is not None
    assert origin.kind == "retry"
    refused = done(session.map(Flaky(2), ["bad"], retries=2, retry_if=lambda error: error.type != "ValueError"))
    assert refused.counts == {"failed": 1}


@pytest.mark.parametrize(("most", "failed"), [(3, 4), (0, 1), (0.05, 6)])
def test_max_failures_stops_what_has_not_begun(make_session: MakeSession, most: float, failed: int) -> None:
    """Every input has a place in the counts; what never began is cancelled, without a run."""
    session = make_session()
    found = done(session.map(Flaky(), ["bad"] * 100, concurrency=1, max_failures=most))
    assert found.status == "failed"
    assert failed <= found.counts["failed"] <= failed + 2
    assert sum(found.counts.values()) == 100
    assert session.count_runs() < 100


def test_limits_are_those_of_the_whole_set(make_session: MakeSession) -> None:
    """Tokens of all runs together; then the rest is cancelled."""

    async def thirsty(_prompt: str, run: RunContext) -> None:
        run.usage(input_tokens=10)

    found = done(make_session().map(thirsty, ["a"] * 50, concurrency=1, max_tokens=35))
    assert found.status == "cancelled"
    assert found.usage.input_tokens >= 40
    assert found.counts["cancelled"] >= 44


def test_as_completed_yields_what_ends_first(make_session: MakeSession) -> None:
    """Whatever the order of the inputs."""
    held = Held()

    async def agent(prompt: str, run: RunContext) -> object:
        return await held(prompt, run) if prompt == "slow" else prompt

    found = make_session().map(agent, ["slow", "quick"], concurrency=2)
    order = found.as_completed()
    assert next(order).output == "quick"
    held.let_go()
    assert [run.output for run in order] == ["held"]


def test_a_secret_in_an_input_reaches_the_agent_and_no_file(make_session: MakeSession, store_path: Path) -> None:
    """In this kernel, also when the input is retried."""
    session, seen = make_session(), list[str]()
    session.redact("s3cr3t-word-of-mine", "WORD")

    async def agent(prompt: str) -> None:
        seen.append(prompt)

    found = done(session.map(agent, {"s3cr3t-word-of-mine": "say s3cr3t-word-of-mine"}))
    done(found.retry(keys=[0]))
    session.close()
    assert seen == ["say s3cr3t-word-of-mine"] * 2
    assert rows(store_path, "SELECT key, prompt FROM items") == [(None, "say [WORD]")]
    assert b"s3cr3t-word" not in store_path.read_bytes()


# --- cancelled and paused ------------------------------------------------------------------------------


def test_a_cancel_is_one_row_for_all_that_has_not_begun(make_session: MakeSession, store_path: Path) -> None:
    """What is in progress is cancelled; what is pending has no run, and is a cancelled result all the same."""
    session, agent = make_session(), Held()
    found = session.map(agent, [str(at) for at in range(1_000)], concurrency=2)
    assert agent.entered.wait(BOUND_S)
    receipt = found.cancel("enough")
    assert receipt.outcome == "requested"
    assert receipt.wait(BOUND_S)
    assert (found.status, found.counts) == ("cancelled", {"cancelled": 1_000})
    assert len(rows(store_path, "SELECT number FROM runs")) <= 4
    assert rows(store_path, "SELECT stopped, ended_at > 0 FROM sets") == [("cancelled: enough", 1)]
    assert found.cancel().outcome == "already_finished"
    assert {str(run.status) for run in found} == {"cancelled"}
    assert found[999].reason == "cancelled: enough"
    assert session.get("set-1").counts == {"cancelled": 1_000}
    assert not session.live_runs


def test_a_set_is_cancelled_by_its_reference(make_session: MakeSession) -> None:
    """As a run is."""
    session, agent = make_session(), Held()
    found = session.map(agent, ["a"])
    assert agent.entered.wait(BOUND_S)
    assert session.cancel("set-1").outcome == "requested"
    assert done(found).status == "cancelled"


def test_nothing_begins_while_a_set_is_paused(make_session: MakeSession) -> None:
    """What is in progress goes on; then the rest begins."""
    session, agent = make_session(), Held()
    found = session.map(agent, ["a", "b", "c"], concurrency=1)
    assert agent.entered.wait(BOUND_S)
    found.pause()
    agent.let_go()
    assert found[0].wait(BOUND_S)
    assert (found.status, agent.prompts) == ("paused", ["a"])
    found.unpause()
    assert done(found).counts == {"completed": 3}
    with pytest.raises(NotResumable, match="it is completed"):
        found.pause()


# --- again ---------------------------------------------------------------------------------------------


def test_what_failed_is_retried_in_the_same_set(make_session: MakeSession) -> None:
    """With the agent as it is, or another one; what completed is not run again."""
    session, agent = make_session(), Flaky(1)
    found = done(session.map(agent, ["a", "bad", "worse"]))
    assert found.retry() is found
    assert done(found).counts == {"completed": 3}
    assert agent.seen == {"a": 1, "bad": 2, "worse": 1}
    with pytest.raises(NotResumable, match="nothing to retry"):
        found.retry()
    assert done(found.retry(upper, keys=[2])).outputs() == ["A", "BAD", "WORSE"]
    assert agent.seen["worse"] == 1


def test_a_cancelled_set_is_resumed(make_session: MakeSession) -> None:
    """What has not begun is run; what was cancelled by the user stays so."""
    session, agent = make_session(), Held()
    found = session.map(agent, ["a", "b", "c", "d", "e", "f"], concurrency=1)
    assert agent.entered.wait(BOUND_S)
    found.cancel()
    done(found)
    begun = session.count_runs()
    agent.let_go()
    assert done(found.resume()).counts == {"completed": 6 - begun, "cancelled": begun}
    with pytest.raises(NotResumable, match="nothing left"):
        found.resume()


def test_a_set_of_a_closed_session_is_lost_and_resumed_by_the_next(make_session: MakeSession) -> None:
    """What was cancelled by the close is run again, as what never began; what had ended is not."""
    held = Held()

    async def agent(prompt: str, run: RunContext) -> object:
        return await held(prompt, run) if prompt > "b" else prompt

    with make_session() as first:
        found = first.map(agent, list("abcdefgh"), concurrency=2)
        each = iter(found)
        assert [next(each).output, next(each).output] == ["a", "b"]
        assert held.entered.wait(BOUND_S)
    session, seen = make_session(), Flaky()
    found = session.get("set-1")
    assert (found.status, found.done(), found.counts["completed"]) == ("lost", True, 2)
    with pytest.raises(NotResumable, match=r"name its agent, as in: resume\(my_agent\)"):
        found.resume()
    assert done(found.resume(seen)).counts == {"completed": 8}
    assert sorted(seen.seen) == list("cdefgh")
    assert found.outputs() == [*"ab", *"CDEFGH"]


def test_a_set_that_was_lost_before_its_inputs_were_read_says_so(make_session: MakeSession) -> None:
    """What was read is resumed; the rest is known to nobody."""
    more, held = threading.Event(), Held()

    def inputs() -> Iterator[str]:
        yield "a"
        more.wait(BOUND_S)
        yield "b"

    with make_session() as first:
        first.map(held, inputs())
        assert held.entered.wait(BOUND_S)
    more.set()
    found = make_session().get("set-1")
    assert "lost (before all inputs were read: start the others as another set) · 1 run:" in repr(found)
    assert done(found.resume(upper)).outputs() == ["A"]


KERNEL = """
import asyncio, sys, nbrun
async def agent(prompt):
    await asyncio.sleep(0 if int(prompt) < 20 else 3600)
    return prompt
session = nbrun.NotebookSession(store=sys.argv[1])
found = session.map(agent, [str(at) for at in range(40)], concurrency=4)
for at, run in enumerate(found):
    if at == 19:
        print("ready", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_kernel_that_is_killed_leaves_every_ending(make_session: MakeSession, store_path: Path) -> None:
    """The set is lost, what ended is in the file, and `resume()` runs the rest, each input once."""
    store_path.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([sys.executable, "-c", KERNEL, store_path], stdout=subprocess.PIPE, text=True) as kernel:
        assert kernel.stdout is not None
        assert kernel.stdout.readline() == "ready\n"
        os.kill(kernel.pid, signal.SIGKILL)
    session, seen = make_session(), Flaky()
    found = session.get("set-1")
    assert (found.status, found.counts["completed"], sum(found.counts.values())) == ("lost", 20, 40)
    done(found.resume(seen))
    assert found.outputs() == [str(at) for at in range(40)]
    assert seen.seen == {str(at): 1 for at in range(20, 40)}
    assert found.status == "completed"


# --- what the store keeps ------------------------------------------------------------------------------


def test_retention_takes_nothing_from_a_set_in_progress_and_counts_it_as_one(
    make_session: MakeSession, store_path: Path
) -> None:
    """However many runs it has; an ended one goes whole, and the next run's card says so."""
    session, agent = make_session(keep_runs=3), Held()
    first = done(session.map(upper, ["a"] * 30))
    second = session.map(agent, ["b"] * 10, concurrency=10)
    running(second, 10)
    done(session.map(upper, ["c"] * 30))
    with session.store._sweeping() as sweeper:
        assert sweeper.sweep(Keep(3, 0)) == []
        gone = sweeper.sweep(Keep(1, 0))
        session.store._report_removed(sweeper.removed_sets)
    assert len(gone) == 30
    assert rows(store_path, "SELECT DISTINCT in_set FROM items ORDER BY 1") == [(2,), (3,)]
    assert second.counts == {"running": 10}
    with pytest.raises(RunNotFound):
        _ = first.status
    after = session.start(upper, "x")
    assert after.wait(BOUND_S)
    assert "Set #1 with 30 runs" in after.record.notices[0]
    agent.let_go()
    done(second)


def test_removing_all_runs_removes_their_sets(make_session: MakeSession, store_path: Path) -> None:
    """Nothing is left that nobody could ask for."""
    session = make_session()
    done(session.map(upper, ["a", "b"]))
    session.remove_ended()
    assert session.sets() == []
    assert rows(store_path, "SELECT count(*) FROM items") == [(0,)]


def test_what_somebody_else_wrote_into_a_sets_row_does_no_harm(make_session: MakeSession, store_path: Path) -> None:
    """A header of any kind, or sizes and times out of range."""
    with make_session() as session:
        done(session.map(upper, ["a"]))
    with closing(sqlite3.connect(store_path)) as connection, connection:
        connection.execute("UPDATE sets SET header = x'c1', size = 'many', created_at = -5, session_id = 7")
        connection.execute("UPDATE runs SET position = 'first', status = 'odd'")
    found = make_session().get("set-1")
    assert (found.name, found.agent, len(found), found.counts, found.outputs()) == ("", "", 0, {}, [])


def lost(make_session: MakeSession, path: Path, *changes: str) -> RunSet:
    """Return a set of another session that has run nothing, with these changes of somebody else's."""
    with make_session() as session:
        done(session.map(upper, ["a", "b", "c"]))
    with closing(sqlite3.connect(path)) as connection, connection:
        for change in ("DELETE FROM runs", "UPDATE sets SET ended_at = NULL", *changes):
            connection.execute(change)
    found: RunSet = make_session().get("set-1")
    return found


NOTICE = "Your nbrun hasn't signed set #1: its inputs are taken from it, and nothing else"


def test_what_a_set_was_started_with_is_taken_from_no_stranger(
    make_session: MakeSession, store_path: Path, tmp_path: Path
) -> None:
    """Neither a cassette, which would make an agent do anything, nor limits, nor a name; a run's card says so."""
    cassette = tmp_path / "theirs.jsonl"
    cassette.write_text('{"format": "nbrun-cassette", "version": 1}\n', encoding="utf-8")
    options = {"cassette": str(cassette), "timeout_s": 0.001, "thread": True}
    header = {"name": "theirs", "agent": "upper", "options": options, "set": {"retries": 1_000, "max_cost": 1e9}}
    blob = msgspec.msgpack.encode(header).hex()
    found = lost(make_session, store_path, f"UPDATE sets SET header = x'{blob}'")  # noqa: S608 - of this test
    assert done(found.resume(upper)).outputs() == ["A", "B", "C"]
    assert {(run.name, str(run.record.options)) for run in found} == {("upper", "{'approve': 'deny'}")}
    assert NOTICE in [line for run in found for line in run.record.notices]
    assert found._live is not None
    assert found._live.options.retries == 0


def test_inputs_that_somebody_else_has_changed_are_said_to_be(make_session: MakeSession, store_path: Path) -> None:
    """As of a run that isn't signed, only the prompts are taken."""
    found = done(lost(make_session, store_path, "UPDATE items SET prompt = 'x' WHERE position = 1").resume(upper))
    assert found.outputs() == ["A", "X", "C"]
    assert NOTICE in [line for run in found for line in run.record.notices]


def test_a_users_own_set_keeps_what_it_was_started_with(
    make_session: MakeSession, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inputs may have come in several transactions."""
    monkeypatch.setattr(live_set, "PAGE", 2)
    with make_session() as session:
        done(session.map(upper, [str(number) for number in range(7)], name="mine", timeout_s=77, retries=3))
    with closing(sqlite3.connect(store_path)) as connection, connection:
        connection.execute("DELETE FROM runs")
        connection.execute("UPDATE sets SET ended_at = NULL")
    found = done(make_session().get("set-1").resume(upper))
    assert {(run.name, run.record.options["timeout_s"], run.record.notices) for run in found} == {("mine", 77, ())}
    assert found._live is not None
    assert found._live.options.retries == 3


def test_no_secret_is_in_the_file_of_a_set(
    make_session: MakeSession, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in its name, nor in what its runs were started with."""
    secret = "sk-2718281828459045235360287"
    monkeypatch.setenv("MY_API_KEY", secret)
    with make_session() as session:
        found = done(session.map(upper, ["a"], name=f"of {secret}", tags={"key": secret}))
        assert found.name == "of [MY_API_KEY]"
    assert secret.encode() not in store_path.read_bytes()


@pytest.mark.parametrize("size", [10**9, 2**53 - 1])
def test_a_set_that_says_it_is_large_takes_no_memory(make_session: MakeSession, store_path: Path, size: int) -> None:
    """What is in the file counts, and such a set isn't run again."""
    found = lost(make_session, store_path, f"UPDATE sets SET size = {size}")  # noqa: S608 - of this test
    assert found.counts == {"queued": 3}
    assert found.outputs() == [None, None, None]
    with pytest.raises(NotResumable, match="no longer in the store"):
        found.resume(upper)


def test_inputs_in_odd_places_are_none(make_session: MakeSession, store_path: Path) -> None:
    """A place that is text, below zero, or beyond the end; and one where nothing is."""
    found = lost(
        make_session, store_path, "DELETE FROM items WHERE position > 0", "UPDATE sets SET stopped = 'cancelled'",
        "INSERT INTO items VALUES (1, 'first', 'k1', 'x'), (1, -3, 'k2', 'y'), (1, 7, 'k3', 'z')",
    )  # fmt: skip
    assert found.to_pandas()["prompt"].to_list() == ["a"]
    assert [str(run.status) for run in found] == ["cancelled"] * 3
    for key in ("k1", "k2"):
        with pytest.raises(KeyError):
            found[key]
    with pytest.raises(IndexError):
        found["k3"]
    with pytest.raises(NotResumable, match="no longer in the store"):
        found.resume(upper)


def test_an_input_that_no_store_can_hold_ends_its_set(make_session: MakeSession) -> None:
    """It would wait for the store for ever."""
    found = done(make_session().map(upper, ["a", "x" * (sets.MAX_PROMPT + 1), "c"]))
    assert found.status == "failed"
    assert "input 1 has more than 15,000,000 characters" in str(found.stopped)


def test_an_input_that_cannot_be_read_ends_its_set(make_session: MakeSession, store_path: Path) -> None:
    """The store is there, so waiting for it would change nothing, and no cancel would be heard."""
    gate = threading.Event()

    def waits(prompt: str) -> str:
        assert gate.wait(BOUND_S)
        return prompt

    found = running(make_session().map(waits, [str(number) for number in range(100)], concurrency=1), 1)
    with closing(sqlite3.connect(store_path, timeout=BOUND_S)) as connection, connection:
        connection.execute("UPDATE items SET prompt = zeroblob(80000000) WHERE position = 50")
    gate.set()
    assert done(found).status == "lost"


def test_a_set_whose_kernel_cannot_be_seen_is_in_progress_as_its_runs_are(
    make_session: MakeSession, store_path: Path
) -> None:
    """As in a copy of a folder: once its runs are marked as lost, what is left can be resumed."""
    found = lost(make_session, store_path, "UPDATE sessions SET closed_at = NULL, host = 'elsewhere'")
    assert found.status == "lost"
    with closing(sqlite3.connect(store_path)) as connection, connection:
        connection.execute(
            "INSERT INTO runs (session, run_id, name, status, created_at, record, in_set, position)"
            " SELECT key, 'run-x', 'x', 'running', 1, x'80', 1, 0 FROM sessions ORDER BY key LIMIT 1"
        )
    assert found.status == "running"
    with closing(sqlite3.connect(store_path)) as connection, connection:
        connection.execute("UPDATE runs SET status = 'lost' WHERE run_id = 'run-x'")
    assert done(found.resume(upper)).outputs() == ["A", "B", "C"]


def test_a_run_of_a_set_is_imported_as_a_run(make_session: MakeSession, tmp_path: Path) -> None:
    """In another file it is in no set: a number there names another one."""
    session = make_session()
    run: Run = done(session.map(upper, ["a"]))[0]
    from nbrun.store.connection import open_for_writing
    from nbrun.store.importing import import_run

    with closing(open_for_writing(tmp_path / "other.db", 1.0)) as connection:
        import_run(connection, run.events(), "elsewhere", 1.0)
        assert connection.execute("SELECT in_set FROM runs").fetchall() == [(None,)]
        assert sets.read_sets(connection) == []


def test_children_belong_to_the_set_and_are_no_results(make_session: MakeSession, store_path: Path) -> None:
    """They go with it, and do not count."""

    async def parent(prompt: str, run: RunContext) -> None:
        await run.start_child(agents.instant, prompt)

    found = done(make_session().map(parent, ["a", "b"]))
    assert (len(found), found.counts) == (2, {"completed": 2})
    assert rows(store_path, "SELECT in_set, position IS NULL FROM runs ORDER BY 2") == [(1, 0), (1, 0), (1, 1), (1, 1)]


def test_listeners_of_a_set_are_called_from_its_thread(make_session: MakeSession) -> None:
    """And none is left when nobody waits."""
    session, names = make_session(), queue.SimpleQueue[str]()
    held = Held()
    found = session.map(held, ["a"])
    live = found._live
    assert live is not None
    remove = live.listen(lambda: names.put(threading.current_thread().name))
    held.let_go()
    done(found)
    remove()
    assert names.get(timeout=BOUND_S) == "nbrun-set-1"
    assert live._listeners == ()


# --- any order of things -------------------------------------------------------------------------------

STEPS = ("pause", "unpause", "cancel", "retry", "resume", "reopen", "wait")


class Scripted:
    """Does what the prompt says: completes, fails so often, or goes on until somebody cancels."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    async def __call__(self, prompt: str) -> str:
        """Answer, fail or wait."""
        word, _, place = prompt.partition(" ")
        self.seen[place] = self.seen.get(place, 0) + 1
        if word == "hang":
            await asyncio.Event().wait()
        if word == "fail" or (word == "once" and self.seen[place] == 1):
            raise ValueError(prompt)
        return prompt


def accounts(found: RunSet, path: Path) -> list[dict[str, int]]:
    """Return what each account says of a set: its own, the DataFrame's, the handles' and the file's."""
    frame = found.to_pandas()["status"].value_counts()
    handles = Counter(str(run.status) for run in found) if found.status != "lost" else Counter(found.counts)
    stored = rows(
        path,
        "SELECT status, count(*) FROM (SELECT max(number), status FROM runs WHERE position IS NOT NULL"
        " GROUP BY position) GROUP BY status",
    )
    by_file = Counter({str(status): int(str(count)) for status, count in stored})
    by_file[["queued", "cancelled"][found.stopped is not None]] += len(found) - by_file.total()
    return [found.counts, {str(name): int(count) for name, count in frame.items()}, dict(handles), dict(+by_file)]


def go_through(folder: Path, inputs: list[str], steps: list[str], retries: int) -> None:
    """Run a set through these steps, and compare all accounts of it whenever it is done."""
    path, agent = folder / "a.db", Scripted()
    prompts = [f"{word} {at}" for at, word in enumerate(inputs)]
    session = NotebookSession(store=path, cancel_grace_s=0.2)
    found = session.map(agent, prompts, concurrency=2, retries=retries)
    completed: dict[int, int | None] = {}
    for step in [*steps, "cancel"]:
        if step == "reopen":
            session.close()
            session = NotebookSession(store=path, cancel_grace_s=0.2)
            found = session.get("set-1")
        elif step == "cancel":
            found.cancel()
            done(found)
        elif step == "wait" and "hang" not in inputs and found.status == "running":
            done(found)
        elif step in ("pause", "unpause", "retry", "resume"):
            with contextlib.suppress(NotResumable):
                getattr(found, step)(*([agent] if step in ("retry", "resume") else []))
        if found.done():
            each = accounts(found, path)
            assert all(account == each[0] for account in each), (step, each)
            assert sum(each[0].values()) == len(found)
            numbers = {
                at: found[at].number for at, status in enumerate(found.to_pandas()["status"]) if status == "completed"
            }
            assert completed.items() <= numbers.items()  # what has completed is not run again
            completed = numbers
    session.close()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["ok", "fail", "once", "hang"]), max_size=9),
    st.lists(st.sampled_from(STEPS), max_size=6),
    st.integers(0, 1),
)
def test_all_accounts_of_a_set_agree(inputs: list[str], steps: list[str], retries: int) -> None:
    """Its counts, its DataFrame, its handles and the file, whatever was done with it."""
    with tempfile.TemporaryDirectory() as folder:
        go_through(Path(folder), inputs, steps, retries)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=2_000, deadline=None)
@given(
    st.lists(st.sampled_from(["ok", "fail", "once", "hang"]), max_size=12),
    st.lists(st.sampled_from(STEPS), max_size=10),
    st.integers(0, 2),
)
def test_all_accounts_of_a_set_agree_in_many_orders(inputs: list[str], steps: list[str], retries: int) -> None:
    """The same, at length."""
    with tempfile.TemporaryDirectory() as folder:
        go_through(Path(folder), inputs, steps, retries)


def test_where_a_single_run_is_meant_a_set_is_refused(make_session: MakeSession) -> None:
    """With a line that says so; what makes sense for both takes both."""
    session = make_session()
    found = done(session.map(upper, ["a"]))
    assert session.get(found) is found
    assert session.cancel("set-1").outcome == "already_finished"
    for refused in (
        lambda: session.remove("set-1"),
        lambda: session.follow("retry", "set-1"),
        lambda: session.get_run("set-1"),
    ):
        with pytest.raises(BadOption, match="set-1 is a set of runs, and this takes a single run"):
            refused()
    with pytest.raises(RunNotFound):
        session.get("set-2")


def test_a_retry_of_a_stopped_set_runs_what_failed_and_nothing_else(make_session: MakeSession) -> None:
    """What a cancel has kept from beginning isn't paid for by a retry; a resume begins it."""
    session, agent = make_session(), Flaky(1)
    found = done(session.map(agent, ["bad", "b", "c", "d", "e", "f"], concurrency=1, max_failures=0))
    begun = sorted(agent.seen)
    assert found.counts == {"completed": len(begun) - 1, "failed": 1, "cancelled": 6 - len(begun)}
    again = done(found.retry())
    assert again.counts == {"completed": len(begun), "cancelled": 6 - len(begun)}
    assert sorted(agent.seen) == begun
    assert again.status == "failed"
    assert again.stopped == "1 runs failed, more than max_failures allows"
    assert [str(run.status) for run in again] == ["completed"] * len(begun) + ["cancelled"] * (6 - len(begun))
    assert {run.number for run in again.as_completed()} >= {again[0].number}
    assert again.view.counts == {RunStatus.COMPLETED: len(begun), RunStatus.CANCELLED: 6 - len(begun)} | {
        status: 0 for status in RunStatus if status not in (RunStatus.COMPLETED, RunStatus.CANCELLED)
    }
    assert done(found.resume()).counts == {"completed": 6}
    assert found.status == "completed"


# --- what a card shows ---------------------------------------------------------------------------------


def groups(found: RunSet) -> list[tuple[int, str, int]]:
    """Return the errors of a set's card: how many, the text, and how many runs are named."""
    return sorted((group.count, group.error, len(group.numbers)) for group in found.view.errors)


class Limited:
    """Fails for every prompt but those of a list, with one error or with one for each."""

    def __init__(self, *, each: bool) -> None:
        self.good: list[str] = []
        self.each = each

    async def __call__(self, prompt: str) -> str:
        """Answer, or fail."""
        if prompt in self.good:
            return prompt
        raise ValueError(prompt if self.each else "429")


def test_errors_are_counted_by_their_text_and_forgotten_when_a_retry_succeeds(make_session: MakeSession) -> None:
    """Also of a set that an earlier session has run; its stored view says the same."""
    session, agent = make_session(), Limited(each=False)
    agent.good = ["fine"]
    found = done(session.map(agent, ["fine", *(str(at) for at in range(10))]))
    assert groups(found) == [(10, "ValueError: 429", 3)]
    agent.good += ["3", "4"]
    assert groups(done(found.retry())) == [(8, "ValueError: 429", 3)]
    session.close()
    later = make_session().get("set-1")
    assert groups(later) == [(8, "ValueError: 429", 3)]
    agent.good += ["5"]
    done(later.retry(agent, keys=[6]))
    assert groups(later) == [(7, "ValueError: 429", 3)]
    assert {record.prompt for record in later.view.newest} == {"5"}
    assert later.view.began_at == later.row.created_at


def test_a_card_costs_little_however_many_errors_and_however_long(make_session: MakeSession) -> None:
    """Each is known by its beginning; from a number of kinds on, the others are counted together."""
    found = done(make_session().map(Limited(each=True), [f"{at} {'x' * 5_000}" for at in range(300)], concurrency=50))
    shown = groups(found)
    assert sum(count for count, *_ in shown) == 300
    assert len(shown) == ERROR_KINDS + 1
    assert max(len(error) for _, error, _ in shown) <= ERROR_CHARS
    assert shown[-1][:2] == (100, "")
    assert len(str(found._repr_mimebundle_())) < 64 * 1024


def test_a_set_that_is_being_cancelled_says_how_many_have_stopped(make_session: MakeSession) -> None:
    """Until the last of those that were in progress has."""
    gates = [threading.Event(), threading.Event()]

    def slow(prompt: str) -> str:
        while not gates[int(prompt)].is_set():
            with contextlib.suppress(Cancelled):
                gates[int(prompt)].wait(0.01)
        return prompt

    found = running(make_session(cancel_grace_s=BOUND_S).map(slow, ["0", "1"]), 2)
    found.cancel()
    assert found.view.status_words == "Cancelling… 0 of 2 have stopped"
    assert found.view.notes == ["Still running: 2 × slow"]
    gates[0].set()
    assert found._wait_until(lambda: "1 of 2" in found.view.status_words, BOUND_S)
    gates[1].set()
    assert done(found).view.status_words.startswith("Cancelled after ")


# --- scores --------------------------------------------------------------------------------------------


def is_short(output: str, item: SetItem) -> bool:
    """Score an output by its length."""
    return len(output) < 4 and item.prompt.upper() == output


def test_outputs_are_scored_beside_the_runs_and_the_scores_are_kept(make_session: MakeSession) -> None:
    """A mean has its interval; what failed has no score, and a later session reads the same."""
    session = make_session()
    found = done(session.map(Flaky(), {"a": "tea", "b": "coffee", "c": "bad", "d": "oat"}, score=is_short))
    scores = found.scores
    assert scores == [True, False, None, True]
    assert (scores.means[""].mean, scores.means[""].count) == (2 / 3, 3)
    assert 0 < scores.means[""].low < 2 / 3 < scores.means[""].high < 1
    assert repr(scores) == "score 0.667 (0.208 to 0.939), 3 of 4 inputs scored"
    assert found.view.notes == ["score 0.667 (0.208 to 0.939) · 3 of 4 scored"]
    assert found.to_pandas()["score"].tolist()[:2] == [1.0, 0.0]
    session.close()
    later = make_session().get("set-1")
    assert (later.scores, later.scores.means) == (scores, scores.means)
    assert later.view.notes == found.view.notes


def test_a_score_function_may_be_async_and_give_several_scores(make_session: MakeSession) -> None:
    """Each name has a mean of its own, and a column."""

    async def judge(output: str, item: SetItem) -> dict[str, float | bool]:
        await asyncio.sleep(0)
        return {"length": len(output), "exact": item.key == "a"}

    found = done(make_session().map(upper, {"a": "tea", "b": "oats"}, score=judge))
    assert found.scores == [{"length": 3.0, "exact": True}, {"length": 4.0, "exact": False}]
    assert {name: mean.mean for name, mean in found.scores.means.items()} == {"length": 3.5, "exact": 0.5}
    assert found.to_pandas()["score.length"].tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("good", "a score must be a number, a bool or a dict of these, not 'good'"),
        (None, "a score must be a number, a bool or a dict of these, not None"),
        (float("nan"), "a score must be a number, a bool or a dict of these, not nan"),
        ({}, "a score must have 1 to 20 values, not 0"),
        ({"a": "x"}, "a: a score must be a number or a bool, not 'x'"),
        (KeyError("<b>gold</b>"), "KeyError: '<b>gold</b>'"),
    ],
)
def test_a_wrong_score_is_the_score_s_error(make_session: MakeSession, answer: object, words: str) -> None:
    """The runs have completed, and what they cost is kept."""

    def score(_output: object, _item: SetItem) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    session = make_session()
    found = done(session.map(upper, ["a", "b"], score=score))
    assert (found.counts, found.outputs()) == ({"completed": 2}, ["A", "B"])
    assert found.scores == [None, None]
    assert found.scores.errors == {words: 2}
    session.close()
    assert make_session().get("set-1").scores.errors == {words: 2}


def test_a_retry_scores_what_is_run_again_and_nothing_else(make_session: MakeSession) -> None:
    """The others keep their scores."""
    asked: list[int] = []

    def score(output: str, item: SetItem) -> int:
        asked.append(item.index)
        return len(output)

    session, agent = make_session(), Flaky(1)
    found = done(session.map(agent, ["tea", "bad", "oats"], score=score))
    assert (found.scores, sorted(asked)) == ([3, None, 4], [0, 2])
    assert done(found.retry()).scores == [3, 3, 4]
    assert sorted(asked) == [0, 1, 2]
    assert found.scores.means[""].count == 3


def test_a_score_that_hangs_is_given_up_by_a_cancel(make_session: MakeSession) -> None:
    """Until then the set isn't done; its results are."""
    entered = threading.Event()

    async def hangs(_output: object, _item: SetItem) -> float:
        entered.set()
        await asyncio.Event().wait()
        return 1.0

    found = make_session().map(upper, ["a"], score=hangs)
    assert entered.wait(BOUND_S)
    assert found._wait_until(lambda: found.counts == {"completed": 1}, BOUND_S)
    assert not found.done()
    found.cancel()
    assert done(found).scores == [None]


# --- two sets side by side -----------------------------------------------------------------------------


def by_length(output: str, _item: SetItem) -> int:
    """Score an output by its length."""
    return len(output)


def test_two_sets_are_aligned_by_their_keys(make_session: MakeSession) -> None:
    """Whatever their order; what only one has is counted, and the greatest differences come first."""
    session = make_session()

    async def twice(prompt: str) -> str:
        return prompt * (3 if prompt == "milk" else 2)

    first = done(session.map(upper, {"a": "tea", "b": "milk", "c": "oats"}, score=by_length))
    second = done(session.map(twice, {"d": "rye", "b": "milk", "a": "tea"}, score=by_length))
    both = session.compare("set-1", second)
    assert [(pair.key, pair.first, pair.second, pair.scores) for pair in both.pairs] == [
        ("a", 0, 2, (3, 6)),
        ("b", 1, 1, (4, 12)),
    ]
    assert [pair.key for pair in both.changed] == ["b", "a"]
    mean = both.differences[""]
    assert (mean.mean, mean.count) == (5.5, 2)
    assert 3 <= mean.low <= 5.5 <= mean.high <= 8
    assert "score, set #2 less set #1: 5.5 (3 to 8); 2 higher, 0 lower, of 2" in repr(both)
    assert "2 inputs in both, 1 only in set #1, 1 only in set #2" in repr(both)
    assert "milkmilkmilk" in both._repr_html_()
    assert both.to_pandas()["difference"].tolist() == [3.0, 8.0]
    assert first.scores.means[""].count == second.scores.means[""].count == 3


def test_sets_without_keys_are_aligned_by_place_and_without_scores_say_so(make_session: MakeSession) -> None:
    """A run is no set; nothing of an output is markup."""

    async def hostile(_prompt: str) -> str:
        return "<img src=x onerror=alert(1)>"

    session = make_session()
    done(session.map(upper, ["a", "b"]))
    done(session.map(hostile, ["a", "b", "c"], score=lambda output, item: {"long": len(output)}))
    both = session.compare("set-1", "set-2")
    assert [(pair.first, pair.second) for pair in both.pairs] == [(0, 0), (1, 1)]
    assert "no input has a score in both" in repr(both)
    done(session.map(upper, ["a", "b"], score=lambda output, item: {"long": len(output), "only here": 1}))
    html = session.compare("set-3", "set-2")._repr_html_()
    assert "&lt;img" in html
    assert "<img" not in html
    assert session.compare("set-3", "set-2").differences.keys() == {"long"}
    with pytest.raises(BadOption, match="1 is a run; compare takes two sets, such as set-1 and set-2"):
        session.compare("1", "set-2")
    with pytest.raises(RunNotFound):
        session.compare("set-1", "set-9")


def test_the_interval_of_a_difference_holds_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many samples of a known distribution, about 95 % of the intervals have its mean, the same each time."""
    draw = random.Random(1)  # noqa: S311 - statistics
    monkeypatch.setattr(scoring, "RESAMPLES", 200)
    samples = [[draw.gauss(0.3, 1.0) for _ in range(30)] for _ in range(100)]
    found = [paired(sample) for sample in samples]
    assert 88 <= sum(one.low <= 0.3 <= one.high for one in found) <= 99
    assert found[0] == paired(samples[0])
    assert paired([1.0]).mean == 1.0
    large = paired([draw.gauss(0.3, 1.0) for _ in range(20_000)])
    assert large.low < 0.3 < large.high
    assert large.high - large.low < 0.03


# --- a set with an id ----------------------------------------------------------------------------------


class Noting:
    """Notes what it is asked, and answers in capitals; what begins with "bad" fails."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, prompt: str) -> str:
        """Answer, or fail."""
        self.asked.append(prompt)
        if prompt.startswith("bad"):
            raise ValueError(prompt)
        return prompt.upper()

    def news(self) -> list[str]:
        """Return what it was asked since the last look, in order of the texts."""
        found, self.asked = sorted(self.asked), []
        return found


def test_a_set_with_an_id_runs_only_what_has_no_ending(make_session: MakeSession) -> None:
    """In the same session and in the next; what is new or has another prompt is run; what has failed has ended."""
    session, agent = make_session(), Noting()
    first = done(session.map(agent, {"a": "tea", "b": "bad"}, id="drinks", name="drinks"))
    assert (first.id, session.get("drinks").number, agent.news()) == ("drinks", first.number, ["bad", "tea"])
    again = done(session.map(agent, {"a": "tea", "b": "bad"}, id="drinks"))  # what its runs are called changes nothing
    assert (again.number, agent.news(), again.counts) == (first.number, [], {"completed": 1, "failed": 1})
    more = done(session.map(agent, {"c": "oats", "b": "milk", "a": "tea"}, id="drinks"))
    assert (more.number, agent.news()) == (first.number, ["milk", "oats"])
    assert (more["a"].output, more["b"].output, more["c"].output) == ("TEA", "MILK", "OATS")
    assert [item.key for item in more.items()] == ["a", "b", "c"]
    session.close()
    session = make_session()
    later = done(session.map(agent, {"a": "tea", "b": "milk", "c": "oats", "d": "rye"}, id="drinks"))
    assert (later.number, agent.news(), later.counts) == (first.number, ["rye"], {"completed": 4})
    assert done(later.retry(agent, keys=["d"])).counts == {"completed": 4}  # it is signed for what it has now
    assert len(session.sets()) == 1


def test_another_agent_or_other_options_run_all_of_it_again(make_session: MakeSession) -> None:
    """The agent's label, the prompt and the options are what a result depends on."""
    session, agent = make_session(), Noting()
    done(session.map(agent, ["tea", "milk"], id="x"))
    agent.news()
    assert done(session.map(agent, ["tea", "milk"], id="x", timeout_s=60)).counts == {"completed": 2}
    assert agent.news() == ["milk", "tea"]
    assert done(session.map(upper, ["tea", "milk"], id="x", timeout_s=60)).counts == {"completed": 2}
    assert agent.news() == []
    assert len(session.runs()) == 6


def test_a_set_with_an_id_that_is_live_is_returned_and_one_that_was_cut_goes_on(make_session: MakeSession) -> None:
    """Nothing of it is run twice."""
    session, agent = make_session(), Held()
    found = session.map(agent, ["a", "b", "c"], id="x", concurrency=1)
    assert agent.entered.wait(BOUND_S)
    assert session.map(agent, ["a", "b", "c"], id="x").number == found.number
    session.close()
    session, other = make_session(), Noting()
    gone_on = done(session.map(other, ["a", "b", "c", "d"], id="x"))
    assert (gone_on.number, gone_on.counts, other.news()) == (found.number, {"completed": 4}, ["a", "b", "c", "d"])


async def later_ones() -> AsyncIterator[str]:
    """Yield two prompts."""
    yield "tea"
    yield "milk"


def test_a_generator_of_a_known_set_is_read_whole_also_on_a_loop(make_session: MakeSession) -> None:
    """As in a notebook, whose cells run on one."""
    session, agent = make_session(), Noting()
    done(session.map(agent, ["tea"], id="x"))

    async def cell() -> RunSet:
        return await session.map(agent, later_ones(), id="x")

    assert asyncio.run(cell()).counts == {"completed": 2}
    assert agent.news() == ["milk", "tea"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"id": "set-3"}, "is how a set is called by its number"),
        ({"id": " "}, "1 to 200 characters"),
        ({"id": 3}, "id must be a str, not int"),
        ({"inputs": {"a": "tea"}, "id": "x"}, "also has the input 'b'; give it too, or use another id"),
        ({"inputs": ["tea"], "id": "x"}, "has 2 inputs; give as many at least, or use another id"),
    ],
)
def test_a_wrong_id_or_fewer_inputs_are_refused_and_change_nothing(
    make_session: MakeSession, given: dict[str, Any], words: str
) -> None:
    """One line says what to do."""
    session, agent = make_session(), Noting()
    done(session.map(agent, {"a": "tea", "b": "milk"}, id="x"))
    with pytest.raises(BadOption, match=words):
        session.map(agent, **{"inputs": {"a": "tea", "b": "milk"}, **given})
    assert (len(session.sets()), len(agent.news())) == (1, 2)


def test_results_of_a_set_that_somebody_else_has_planted_are_not_gone_on_from(
    make_session: MakeSession, store_path: Path
) -> None:
    """A signature that isn't this user's is none."""
    session, agent = make_session(), Noting()
    done(session.map(agent, ["tea"], id="x"))
    session.close()
    with closing(sqlite3.connect(store_path)) as connection, connection:
        connection.execute("UPDATE items SET prompt = 'other'")
    with pytest.raises(BadOption, match="hasn't signed set #1 \\('x'\\)"):
        make_session().map(agent, ["other"], id="x")


def test_two_kernels_that_start_a_set_with_one_id_make_one_set(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one says so, and starts nothing: its look came before the first one's set was there."""
    one, other, agent = make_session(), make_session(), Noting()
    look = other._sets.with_id

    def look_then_wait(set_id: str) -> RunSet | None:
        found = look(set_id)
        done(one.map(agent, ["tea"], id="x"))
        return found

    monkeypatch.setattr(other._sets, "with_id", look_then_wait)
    with pytest.raises(NotResumable, match="another kernel has just started a set with the id 'x'"):
        other.map(agent, ["tea"], id="x")
    assert (len(one.sets()), agent.news()) == (1, ["tea"])


# --- one input is cancelled ----------------------------------------------------------------------------


def test_one_input_is_cancelled_whether_it_has_begun_or_not(make_session: MakeSession, store_path: Path) -> None:
    """Its run says so, the agent of one that had not begun isn't entered, and all others go on."""
    session, agent = make_session(), Held()
    found = session.map(agent, {key: key for key in "abcdef"}, concurrency=1)
    assert agent.entered.wait(BOUND_S)
    for item, place in (("f", 5), (0, 0), (-2, 4)):
        receipt = found.cancel("not this one", item=item)
        assert receipt.outcome == "requested"
        assert receipt.wait(BOUND_S)
        assert (found[place].status, found[place].reason) == (RunStatus.CANCELLED, "not this one")
    assert found.cancel(item="f").outcome == "already_finished"
    agent.let_go()
    assert done(found).counts == {"completed": 3, "cancelled": 3}
    assert (found.status, sorted(agent.prompts)) == ("completed", ["a", "b", "c", "d"])
    assert rows(store_path, "SELECT status FROM runs ORDER BY position") == [
        ("cancelled",), ("completed",), ("completed",), ("completed",), ("cancelled",), ("cancelled",)
    ]  # fmt: skip
    with pytest.raises(KeyError, match="no input with the key 'g'"):
        found.cancel(item="g")
    with pytest.raises(IndexError, match="there is no number 6"):
        found.cancel(item=6)


def test_an_input_that_waits_for_its_retry_or_in_a_paused_set_is_cancelled(make_session: MakeSession) -> None:
    """Nothing of it is begun any more; a resume doesn't run it either."""
    session, agent = make_session(), Held()
    found = session.map(agent, ["a", "b", "c"], concurrency=1)
    assert agent.entered.wait(BOUND_S)
    found.pause()
    assert found.cancel(item=2).wait(BOUND_S)
    agent.let_go()
    found.unpause()
    assert done(found).counts == {"completed": 2, "cancelled": 1}
    with pytest.raises(NotResumable, match="nothing left"):
        found.resume()


def test_an_input_that_is_cancelled_while_places_are_free_never_begins(make_session: MakeSession) -> None:
    """As where a rate holds it back: its run gets no place at all."""
    session, agent = make_session(), Noting()
    found = session.map(agent, ["a", "b", "c"], rate="1/h", concurrency=5)
    assert found._wait_until(lambda: found.counts.get("completed") == 1, BOUND_S)
    for item in (2, 1):
        assert found.cancel(item=item).wait(BOUND_S)
    assert done(found).counts == {"completed": 1, "cancelled": 2}
    assert agent.asked == ["a"]


def test_an_input_that_fails_while_it_is_cancelled_is_not_tried_again(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end was on the way when the set looked at the cancel."""
    agent, stops = Flaky(), threading.Event()
    look, held, on = live_set.LiveSet._check_stop, threading.Event(), threading.Event()

    def look_late(live: live_set.LiveSet) -> None:
        if stops.is_set() and live.live:
            held.set()
            assert on.wait(BOUND_S)
        look(live)

    gate = threading.Event()

    def fails(prompt: str) -> None:
        agent.seen[prompt] = agent.seen.get(prompt, 0) + 1
        assert gate.wait(BOUND_S)
        raise ValueError(prompt)

    monkeypatch.setattr(live_set.LiveSet, "_check_stop", look_late)
    session = make_session()
    found = running(session.map(fails, ["bad"], retries=5), 1)
    (run,) = session.live_runs
    stops.set()
    found.cancel(item=0)  # wakes the set, which is held before it takes it up
    assert held.wait(BOUND_S)
    gate.set()
    assert run.wait(BOUND_S)
    on.set()
    assert done(found).counts == {"failed": 1}
    assert agent.seen == {"bad": 1}


def test_a_set_without_inputs_is_a_set(make_session: MakeSession) -> None:
    """It is found by its number and by its id, shown, and done at once."""
    session = make_session()
    found = done(session.map(upper, [], id="none"))
    assert (session.get("set-1").number, session.get("none").number, len(found)) == (1, 1, 0)
    assert (found.status, found.counts, list(found.scores)) == ("completed", {}, [])
    assert "no inputs yet" in found._repr_mimebundle_()["text/plain"]
    assert session.cancel("none").outcome == "already_finished"
    assert done(session.map(upper, ["tea"], id="none")).outputs() == ["TEA"]
