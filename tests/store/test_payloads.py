"""Values too large for a row: in a file beside the store, whole again for who asks for the output."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from nbrun import NotebookSession, Run, RunContext
from nbrun.core import events as ev
from nbrun.core.artifacts import folder_beside
from nbrun.store import payloads as large
from tests.fakes.agents import BOUND_S

MakeSession = Callable[..., NotebookSession]

TEXT = "Tee ü\n" * 300_000
VALUE = {"rows": [[n, n / 2, float("inf")] for n in range(80_000)]}


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


@pytest.mark.parametrize("value", [TEXT, VALUE], ids=["text", "data"])
def test_a_large_output_is_whole_in_the_next_session(
    make_session: MakeSession, store_path: Path, value: object
) -> None:
    """The file of the store stays small; the output is exactly what it was."""

    async def agent(prompt: str) -> object:
        return value

    with make_session() as session:
        assert ended(session.start(agent, name="large")).output == value
    assert store_path.stat().st_size < large.LIMIT
    later = make_session().get("large")
    assert later.output == value
    assert later.result() == value
    assert later.result_view() == value
    (made,) = later.artifacts
    assert made.name == "run.completed output"
    assert made.size > large.LIMIT


def test_long_pieces_of_text_are_all_kept(make_session: MakeSession) -> None:
    """Together they are more than SQLite is let hold in one row."""
    piece = "x" * 15_000_000

    async def agent(prompt: str) -> AsyncIterator[str]:
        for _ in range(6):
            yield piece

    with make_session() as session:
        run = ended(session.start(agent, name="long"))
        assert (len(run.text), run.record.notices) == (6 * len(piece), ())
    later = make_session().get("long")
    assert (len(later.text), later.record.notices) == (6 * len(piece), ())


def test_events_keep_head_and_size_of_a_large_payload(session: NotebookSession) -> None:
    """A tool's result, its arguments, a log line and a value of the agent's own; small ones are as they were."""

    async def agent(prompt: str, run: RunContext) -> None:
        with run.tool("read", {"path": TEXT}) as tool:
            tool.result = TEXT
        run.log(TEXT)
        run.emit("rows", VALUE)
        run.emit("small", {"a": 1})

    run = ended(session.start(agent))
    assert run.problem is None
    found = {event.type: event.data for event in run.events() if event.type != "custom"}
    tool, log = found["tool.finished"], found["log"]
    assert isinstance(tool, ev.ToolFinished)
    assert isinstance(tool.result, dict)
    assert str(tool.result["$repr"]).startswith("Tee ü Tee ü")
    assert "2,100,000 bytes" in str(tool.result["$repr"])
    assert isinstance(log, ev.Log)
    assert len(log.text) < 2 * large.HEAD
    customs = [e.data.value for e in run.events() if isinstance(e.data, ev.Custom)]
    assert customs[1] == {"a": 1}
    by_id = {made.id: made for made in run.artifacts}
    assert by_id[str(tool.result["$artifact"])].read().decode() == TEXT
    assert len(by_id) == 4
    assert large.whole(customs[0], run.artifacts) == VALUE
    assert [event.seq for event in run.events()] == list(range(run.record.event_count))


def test_where_no_file_can_be_written_the_row_holds_it(
    make_session: MakeSession, store_path: Path, tmp_path: Path
) -> None:
    """Nothing is lost, and the run is saved."""
    store_path.parent.mkdir(parents=True)
    folder_beside(store_path).symlink_to(tmp_path)

    async def agent(prompt: str) -> object:
        return TEXT

    with make_session() as session:
        run = ended(session.start(agent, name="large"))
        assert run.problem is None
    later = make_session().get("large")
    assert later.output == TEXT
    assert later.artifacts == []


def test_an_output_whose_file_is_gone_still_has_its_head(make_session: MakeSession, store_path: Path) -> None:
    """It says what it stands for."""

    async def agent(prompt: str) -> object:
        return TEXT

    with make_session() as session:
        run = ended(session.start(agent, name="large"))
        for path in folder_beside(store_path).rglob(run.artifacts[0].sha256):
            path.unlink()
    output = make_session().get("large").output
    assert isinstance(output, dict)
    assert output["$artifact"] == run.artifacts[0].id
    assert "2,100,000 bytes" in str(output["$repr"])


def test_a_value_that_only_looks_like_one_in_a_file_stays_itself(make_session: MakeSession) -> None:
    """An agent may return any dict."""
    value = {"$artifact": "event-7"}

    async def agent(prompt: str) -> object:
        return value

    ended(make_session().start(agent, name="odd"))
    assert make_session().get("odd").output == value
