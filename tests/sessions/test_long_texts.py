"""A run that streams a very long text: memory keeps its end, and everything that is whole comes from the store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nbrun import NotebookSession, Run, RunContext, RunRecord
from nbrun.core import SystemClock, events as ev
from nbrun.core.values import readable
from nbrun.render import static_card
from nbrun.store import SessionStore
from nbrun.ui.cards import view
from nbrun.ui.cards.markdown_blocks import TEXT_LIMIT, Blocks
from tests.fakes.agents import BOUND_S, Held

MakeSession = Callable[..., NotebookSession]

KEPT = 1_000
PIECES = [f"{number:06} words\n" for number in range(3_000)]
TEXT = "".join(PIECES)


@pytest.fixture(autouse=True)
def _is_soon_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbrun.core.record.TEXT_KEPT", KEPT)
    monkeypatch.setattr("nbrun.host.driver.PIECES_HELD", 500)


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


def stream(prompt: str, run: RunContext) -> str | None:
    """Stream, then return nothing, the text, or something else that has its length."""
    for piece in PIECES:
        run.text(piece)
    return {"": None, "text": TEXT, "other": TEXT[:-1] + "!"}[prompt]


def test_memory_keeps_the_end_and_the_handle_has_all_of_it(session: NotebookSession) -> None:
    """The record says how much is cut; text, output, events and the stored record are whole."""
    run = ended(session.start(stream, ""))
    record = run.record
    assert run.live is not None
    assert run.live.output is None
    assert len(record.text) <= 2 * KEPT
    assert TEXT.endswith(record.text)
    assert record.text_cut + len(record.text) == len(TEXT)
    assert run.text == run.output == run.result() == TEXT
    assert session.store.record(run.number or 0).text == TEXT
    assert record.brief() == session.store.run(run.number or 0).record  # type: ignore[union-attr]  # it is there
    assert record.brief().text == TEXT[:300]


def test_a_live_run_has_all_of_its_text(session: NotebookSession, held: Held) -> None:
    """Nothing waits for the end: what was cut is read while the run streams."""

    async def agent(prompt: str, run: RunContext) -> str:
        for piece in PIECES:
            run.text(piece)
        return str(await held("", run))

    run = session.start(agent, "")
    assert held.entered.wait(BOUND_S)
    assert run.live is not None
    assert run.live.wait_until(lambda record: record.text_cut + len(record.text) == len(TEXT), BOUND_S)
    assert run.record.text_cut > 0
    assert run.text == TEXT
    assert run.output is None
    held.let_go()
    assert ended(run).output == "held"


@pytest.mark.parametrize("prompt", ["text", "other"])
def test_an_output_that_was_streamed_is_not_stored_twice(session: NotebookSession, prompt: str) -> None:
    """The driver compares by length and digest."""
    run = ended(session.start(stream, prompt))
    (end,) = [event.data for event in run.events() if isinstance(event.data, ev.RunCompleted)]
    expected = TEXT if prompt == "text" else TEXT[:-1] + "!"
    assert (end.output is None) is (prompt == "text")
    assert run.output == expected
    assert run.text == TEXT


def test_what_is_made_of_a_run_has_all_of_its_text(session: NotebookSession, tmp_path: Path) -> None:
    """A file, the history of a conversation, a replay, a search, a data frame: none of them shows the end only."""
    run = ended(session.start(stream, ""))
    assert PIECES[7].strip() in run.export(tmp_path / "run.md").read_text()
    (entry,) = json.loads(run.export(tmp_path / "run.json").read_text())
    assert (entry["record"]["text"], entry["record"]["output"]) == (TEXT, TEXT)
    assert "text_cut" not in entry["record"]
    assert ended(run.replay("max")).text == TEXT
    assert [found.id for found in session.runs(text="000007 words")][-1:] == [run.id]
    heard: list[str] = []
    ended(run.continue_with("more", agent=lambda prompt, run: heard.extend(turn.text for turn in run.history)))
    assert TEXT.rstrip() in heard[-1]
    pytest.importorskip("pandas")
    assert session.runs(agent="stream").to_pandas()["output"].tolist()[-1] == TEXT


def test_cards_count_what_memory_has_cut_as_left_out(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card and the one in the file show the same end, and the same number of earlier characters, as ever."""
    monkeypatch.setattr("nbrun.core.record.TEXT_KEPT", TEXT_LIMIT)
    pieces = [f"{number:06} words, and a few more of them\n" for number in range(3_000)]

    def agent(prompt: str, run: RunContext) -> None:
        for piece in pieces:
            run.text(piece)

    run = ended(session.start(agent, ""))
    cut, whole = run.record, run.whole_record
    assert cut.text_cut > 0
    assert view.view(cut, 0.0) == view.view(whole, 0.0)
    assert static_card.plain_text(cut) == static_card.plain_text(whole)
    assert static_card.bundle(cut) == static_card.bundle(whole)
    drawn, redrawn = (view.view(record, 0.0, blocks=Blocks()) for record in (cut, whole))
    assert drawn == redrawn


def test_a_text_is_not_cut_within_code() -> None:
    """What is shown of it is set as code if it is code, however much was before it."""
    code = "```python\n" + "x = 1\n" * 300 + "```\n"
    record = RunRecord(text="y\n" * 100 + code + "z\n" * 400)
    cut = record.with_end_of_text()
    assert cut.text == "z\n" * 400
    assert cut.text_cut == len(record.text) - len(cut.text)
    assert RunRecord(text="y" * (2 * KEPT - 1)).with_end_of_text().text_cut == 0


def test_memory_keeps_only_the_beginning_of_what_many_tools_gave(
    session: NotebookSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last calls stay whole, the handle has all of them, and so has the store."""
    for module in ("core.record", "store.writer"):
        monkeypatch.setattr(f"nbrun.{module}.TOOLS_KEPT", 100_000)

    async def agent(prompt: str, run: RunContext) -> None:
        for number in range(100):
            with run.tool("look", {"at": number, "for": "y" * 9_000}) as tool:
                tool.result = f"{number:06}" + "x" * 20_000
            await asyncio.sleep(0)

    run = ended(session.start(agent, ""))
    record, whole = run.record, run.whole_record
    assert 0 < record.tools_cut <= len(record.tools) == 100
    assert [tool.result for tool in whole.tools] == [f"{number:06}" + "x" * 20_000 for number in range(100)]
    assert whole == session.store.record(run.number or 0)
    assert readable(record.tools[0].result).startswith("000000xxx")
    assert readable(record.tools[0].result).endswith("(20,006 bytes)")
    kept = record.with_short_tools()
    assert kept.with_short_tools() == kept
    assert kept.tools[-1] == record.tools[-1]


def test_a_text_that_is_gone_with_its_store_says_so() -> None:
    """A store in memory has the rest as long as it is open; later, the beginning and the end are left."""
    session = NotebookSession(store=SessionStore([], SystemClock()))
    run = ended(session.start(stream, "other"))
    assert run.text == TEXT
    session.close()
    head, line, tail = run.text.split("\n[… ")[0], run.text.split("\n[… ")[1].split("\n")[0], run.record.text
    assert TEXT.startswith(head)
    assert run.text.endswith(f"\n{tail}")
    assert line == f"{len(TEXT) - len(head) - len(tail):,} characters can't be read any more …]"


def test_a_text_in_a_file_is_whole_after_its_session_is_closed(make_session: MakeSession) -> None:
    """It is read from there."""
    session = make_session()
    run = ended(session.start(stream, ""))
    session.close()
    assert run.text == TEXT
