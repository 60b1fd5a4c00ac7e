"""Asking for runs: filters, pages and search, the same from Python, the notebook's line and the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from nbrun import NotebookSession, RunList, RunRecord, RunStatus
from nbrun.core import events as ev
from nbrun.core.errors import BadOption, PackageMissing
from nbrun.sessions.run import Run
from nbrun.store import read_query
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held
from tests.fakes.clock import FakeClock
from tests.fakes.people import until

MakeSession = Callable[..., NotebookSession]


def numbers(runs: list[Run]) -> list[int | None]:
    """Return the numbers of runs, in their order."""
    return [run.number for run in runs]


def ended(session: NotebookSession, agent: object, prompt: str = "tea", **options: Any) -> Run:
    """Start a run and return it when it has ended."""
    run = session.start(agent, prompt, **options)
    assert run.wait(BOUND_S)
    return run


def long_text(end: str) -> Callable[[str], Any]:
    """Return an agent whose text is longer than a list of runs keeps of it, with `end` behind that."""

    async def writer(prompt: str) -> Any:
        for _ in range(20):
            yield "a line that says nothing; "
        yield end

    return writer


# --- filters -----------------------------------------------------------------------------------------


@pytest.fixture
def mixed(make_session: MakeSession) -> NotebookSession:
    """A session after another one: #1 and #2 are of that, #3 to #5 of this one."""
    with make_session() as first:
        ended(first, agents.instant, name="poem", tags={"set": "a"})
        ended(first, agents.failing, name="poem", tags={"set": "b", "hard": ""})
    second = make_session()
    ended(second, agents.instant, name="essay", tags={"set": "a"})
    ended(second, agents.failing, name="poem", tags={"set": "a"})
    ended(second, agents.instant, name="poem")
    return second


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, [5, 4, 3, 2, 1]),
        ({"status": "failed"}, [4, 2]),
        ({"status": "Completed"}, [5, 3, 1]),
        ({"status": "lost"}, []),
        ({"name": "poem"}, [5, 4, 2, 1]),
        ({"name": "poe"}, []),
        ({"agent": "failing"}, [4, 2]),
        ({"tag": "set=a"}, [4, 3, 1]),
        ({"tag": "hard"}, [2]),
        ({"tag": "hard="}, [2]),
        ({"name": "poem", "status": "completed", "tag": "set=a"}, [1]),
        ({"name": "poem", "limit": 2}, [5, 4]),
        ({"status": "failed", "limit": 1}, [4]),
        ({"agent": "failing", "limit": 1, "before": 4}, [2]),
        ({"before": 3}, [2, 1]),
        ({"before": 3, "limit": 1}, [2]),
        ({"before": 1}, []),
        ({"limit": 0}, []),
        ({"since": "1h"}, [5, 4, 3, 2, 1]),
        ({"since": timedelta(hours=-1)}, []),
        ({"since": "2999-01-01"}, []),
        ({"since": "1999-01-01T12:00", "name": "essay"}, [3]),
    ],
)
def test_runs_that_fit_every_filter_are_found(asked: dict[str, Any], found: list[int], mixed: NotebookSession) -> None:
    """Newest first, those in memory and those in the file; what does not fit takes no place of the limit's."""
    assert numbers(mixed.runs(**asked)) == found


def test_a_page_goes_on_where_the_last_one_ended(mixed: NotebookSession) -> None:
    """`before` takes a run as well: pages of two are all runs, each once."""
    seen: list[int | None] = []
    page = mixed.runs(limit=2)
    while page:
        seen += numbers(page)
        page = mixed.runs(limit=2, before=page[-1])
    assert seen == [5, 4, 3, 2, 1]


def test_since_takes_dates_and_times(make_session: MakeSession) -> None:
    """A run is found from its own moment on; without a zone, a time is the local one, and a date its midnight."""
    clock = FakeClock()
    session = make_session(clock=clock)
    run = ended(session, agents.instant)
    at = datetime.fromtimestamp(run.created_at, UTC)
    local = at.astimezone().replace(tzinfo=None)
    assert session.runs(since=at) == [run]
    assert session.runs(since=local) == [run]
    assert session.runs(since=run.created_at) == [run]
    assert session.runs(since=int(run.created_at) + 1) == []
    assert session.runs(since=at.isoformat()) == [run]
    assert session.runs(since=local.date()) == [run]
    assert session.runs(since=at + timedelta(seconds=1)) == []
    assert session.runs(since=date(2999, 1, 1)) == []
    clock.move(7200)
    assert session.runs(since="2h") == [run]
    assert session.runs(since="90 min") == []


def test_the_state_in_memory_decides(session: NotebookSession, held: Held) -> None:
    """A run is found by the status that its card shows, before and after its end."""
    run = session.start(held, "tea")
    until(run, lambda record: record.status is RunStatus.RUNNING)
    assert session.runs(status="running") == [run]
    assert session.runs(status="completed") == []
    held.let_go()
    assert run.wait(BOUND_S)
    assert session.runs(status="running") == []
    assert session.runs(status="completed") == [run]


def test_a_child_of_another_session_with_the_same_id_is_another_run(mixed: NotebookSession) -> None:
    """Two sessions may have a `run-seq-0` each: both are found, and each is its own."""
    assert [run.name for run in mixed.runs() if run.id == "run-seq-0"] == ["essay", "poem"]
    assert numbers(mixed.runs(name="poem", status="completed")) == [5, 1]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"status": "done"}, "queued, running, waiting, cancelling, completed, failed, cancelled, lost"),
        ({"since": "yesterday"}, "use for example 90s, 10m or 1h30m"),
        ({"since": "2026-13-01"}, "write 2026-01-31"),
        ({"since": 3600}, "epoch seconds such as run.created_at, or a str such as '2h', not 3600"),
        ({"since": float("nan")}, "not nan"),
        ({"since": True}, "not True"),
        ({"limit": -1}, "at least 0"),
        ({"tag": "=a"}, "key=value"),
        ({"text": " "}, "text is empty"),
        ({"tag": {"set": "a"}}, "'key=value'"),
        ({"tag": ["set"]}, "tag must be a str"),
        ({"limit": "3"}, "limit must be an int"),
        ({"before": "#3"}, r"before=nbrun.get\("),
        ({"status": ["failed", "running"]}, "status must be a single str"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(asked: dict[str, Any], words: str, session: NotebookSession) -> None:
    """It says what is valid, whatever is in the store."""
    with pytest.raises(BadOption, match=words) as caught:
        session.runs(**asked)
    assert "\n" not in str(caught.value)


# --- text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("green tea", [4, 1]),
        ("GREEN Tea", [4, 1]),
        ("needle", [3, 2]),
        ("tea,  please", [1]),
        ("straße", [5]),
        ("strasse", [5]),
        ("twelve", [6]),
        ("nowhere", []),
    ],
)
def test_text_is_found_in_whole_prompts_and_outputs(text: str, found: list[int], make_session: MakeSession) -> None:
    """In any case, and also where a list of runs keeps only the beginning; by a later session as well."""
    with make_session() as first:
        ended(first, agents.instant, "Green tea,\nplease")
        ended(first, long_text("and a needle."))
        ended(first, agents.instant, f"{'hay ' * 200} NEEDLE")
        ended(first, long_text("Green tea."), "what?")
        ended(first, agents.instant, "Hauptstraße 1")

        async def figures(prompt: str) -> dict[str, Any]:
            return {"numbers": list(range(200)), "last": "Twelve"}

        ended(first, figures)
        assert numbers(first.runs(text=text)) == found
    later = make_session()
    assert numbers(later.runs(text=text)) == found
    assert numbers(later.runs(text=text, limit=1)) == found[:1]


def test_text_of_a_live_run_is_found_by_another_session(session: NotebookSession, make_session: MakeSession) -> None:
    """The file keeps a short form of a run from its last change of status; its log has gone on since."""
    talker = Held("the cat sat")
    run = session.start(talker, "hm")
    until(run, lambda record: "cat" in record.text)
    assert numbers(make_session().runs(text="CAT")) == [run.number]
    talker.let_go()


def test_a_search_stops_at_its_limit(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs of runs that are older than what was asked for are not read."""
    with make_session() as first:
        for _ in range(5):
            ended(first, long_text("needle"))
    later = make_session()
    read: list[int] = []
    whole = later.store.record

    def record(number: int) -> RunRecord:
        read.append(number)
        return whole(number)

    monkeypatch.setattr(later.store, "record", record)
    assert numbers(later.runs(text="needle", limit=2)) == [5, 4]
    assert read == [5, 4]


def test_text_is_found_in_errors(session: NotebookSession, make_session: MakeSession) -> None:
    """What a run failed with, and its class, in this session and in another one."""

    async def fails(prompt: str) -> None:
        raise LookupError("the kettle " + "was cold, " * 100 + "and empty")

    run = ended(session, fails)
    for asked in (session, make_session()):
        assert numbers(asked.runs(text="The Kettle")) == [run.number]
        assert numbers(asked.runs(text="and empty")) == [run.number]
        assert numbers(asked.runs(text="lookuperror")) == [run.number]


def test_a_name_is_that_of_the_run_and_not_of_its_replay(session: NotebookSession, make_session: MakeSession) -> None:
    """Here and in a later session; where there are only replays, the newest of them is found."""
    real = ended(session, agents.instant, name="tea")
    first, second = real.replay("max"), real.replay("max")
    assert first.wait(BOUND_S)
    assert second.wait(BOUND_S)
    assert session.get("tea") == real
    later = make_session()
    assert later.get("tea").id == real.id
    session.close()
    later.remove(real)
    assert later.get("tea").id == second.id


# --- a model of it -----------------------------------------------------------------------------------

RECORDS = st.builds(
    lambda **fields: RunRecord(status=RunStatus.COMPLETED, **fields),
    name=st.sampled_from(["a", "b"]),
    agent=st.sampled_from(["f", "g"]),
    model=st.sampled_from([None, "m"]),
    tags=st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["1", "2"])),
    text=st.text("xyz ", max_size=700),
    prompt=st.text("xyz ", max_size=700),
    error=st.none() | st.builds(ev.ErrorInfo, st.just("y"), st.text("xyz ", max_size=700)),
    output=st.none() | st.text("xyz \n", max_size=700) | st.lists(st.integers(), max_size=200),
)


@given(RECORDS, st.text("xyz… \n", min_size=1, max_size=12).filter(str.strip))
@settings(max_examples=200, deadline=None)
def test_a_brief_record_never_tells_otherwise_than_the_whole_one(record: RunRecord, text: str) -> None:
    """It says what the whole one says of the text, or that it cannot tell."""
    query = read_query(0.0, text=text)
    assert query.finds(record.brief()) in (query.finds(record), None)


# --- events, and a table of runs ---------------------------------------------------------------------


def test_events_come_in_pages(session: NotebookSession, make_session: MakeSession) -> None:
    """`after` and `limit` go through a log without a gap and without a repeat, also inside rows of deltas."""
    run = ended(session, agents.chatty(100))
    for asked in (run, make_session().get(1)):
        for size in (1, 7, 16, 1000):
            seen: list[ev.RunEvent] = []
            while page := asked.events(after=seen[-1].seq if seen else -1, limit=size):
                assert len(page) <= size
                seen += page
            assert seen == asked.events()
            assert [event.seq for event in seen] == list(range(run.record.event_count))
        assert asked.events(limit=0) == []
        assert asked.events(after=10_000) == []


def test_a_data_frame_has_types_that_can_be_reckoned_with(session: NotebookSession) -> None:
    """Times are UTC, lengths and costs floats, tokens whole numbers, also where there is nothing."""

    async def costly(prompt: str, run: Any) -> dict[str, int]:
        run.usage(input_tokens=10, output_tokens=5, cost_usd=0.25)
        return {"a": 1}

    empty = RunList().to_pandas()
    ended(session, costly, tags={"set": "a"})
    ended(session, agents.failing)
    frame = session.runs().to_pandas()
    kinds = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    assert kinds == {name: str(dtype) for name, dtype in empty.dtypes.items()}
    assert all(kinds[name].endswith("UTC]") for name in ("created_at", "started_at", "ended_at"))
    assert kinds["elapsed_s"] == kinds["cost_usd"] == "float64"
    assert kinds["input_tokens"] == kinds["requests"] == "int64"
    assert list(frame["number"]) == [2, 1]
    assert frame["cost_usd"].sum() == 0.25
    assert frame["output"][1] == {"a": 1}
    assert frame["tags"][1] == {"set": "a"}
    assert "no luck" in frame["error"][0]
    seconds = (frame["ended_at"] - frame["started_at"]).dt.total_seconds()
    assert abs(seconds - frame["elapsed_s"]).max() < 1e-3
    assert abs(frame["created_at"][1].timestamp() - session.get(1).created_at) < 1e-3


def test_a_time_that_pandas_has_none_for_spoils_no_frame(make_session: MakeSession) -> None:
    """Somebody else's run may have been created in the year 4821: its time is missing, the others are there."""
    with make_session() as now:
        ended(now, agents.instant)
    later = make_session(clock=FakeClock(9e10))
    ended(later, agents.instant)
    frame = later.runs().to_pandas()
    assert list(frame["created_at"].isna()) == [True, False]
    assert list(frame["output"]) == ["done: tea"] * 2


def test_without_pandas_there_is_one_line(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how to install it, and is an ImportError for code that looks for one."""
    monkeypatch.setitem(sys.modules, "pandas", None)  # how Python says that it cannot be imported
    with pytest.raises(PackageMissing, match="pip install pandas") as caught:
        session.runs().to_pandas()
    assert isinstance(caught.value, ImportError)
    assert len(caught.value._render_traceback_()) == 1
