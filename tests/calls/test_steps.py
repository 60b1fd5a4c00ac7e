"""Steps: calls that are made once, whose results a run that comes from it finds in the journal."""

from __future__ import annotations

from typing import Any

import pytest

from nbrun import NotebookSession, Run, RunContext, events as ev
from nbrun.core.journal import STEP_BEGUN, Entry, journal_name
from tests.conftest import MakeSession
from tests.fakes.agents import BOUND_S


class Broken(Exception):
    """What an agent fails with."""


class Till:
    """Takes money, and counts how often; the agents fail after it unless it `is_open`."""

    def __init__(self) -> None:
        self.charges: list[int] = []
        self.is_open = False
        self.returns: Any = None

    def charge(self, amount: int, currency: str = "EUR") -> Any:
        """Take money."""
        self.charges.append(amount)
        return {"amount": amount, "currency": currency} if self.returns is None else self.returns

    async def charge_later(self, amount: int) -> Any:
        """Take money, and let others run meanwhile."""
        return self.charge(amount)

    async def pays(self, prompt: str, run: RunContext) -> list[Any]:
        """Use both."""
        paid = [await run.step(self.charge, 1), await run.step(self.charge_later, 2), await run.step(self.charge, 1)]
        if not self.is_open:
            raise Broken
        return paid

    def pays_sync(self, prompt: str, run: RunContext) -> list[Any]:
        """Use the one."""
        paid = [run.step_sync(self.charge, 1, currency="CHF"), run.step_sync(self.charge, 2)]
        if not self.is_open:
            raise Broken
        return paid


def finish(run: Run) -> Run:
    """Wait for a run's end."""
    assert run.wait(BOUND_S)
    return run


@pytest.mark.parametrize("kind", ["pays", "pays_sync"])
def test_a_step_of_an_earlier_run_is_not_made_again(session: NotebookSession, kind: str) -> None:
    """A resumed run gets its result, also a second time where the first run called it twice."""
    till = Till()
    first = finish(session.start(getattr(till, kind), "Pay"))
    assert first.status == "failed"
    charges = list(till.charges)
    till.is_open = True
    again = finish(first.retry(reuse=True))
    assert again.status == "completed", again.error
    assert till.charges == charges
    paid: Any = again.output
    amounts = [one["amount"] for one in paid]
    assert amounts == charges
    tools = [event.data for event in again.events() if isinstance(event.data, ev.ToolFinished)]
    assert [tool.status for tool in tools] == ["ok"] * len(charges)
    assert finish(first.retry()).status == "completed"
    assert till.charges == charges * 2, "a retry makes them again"


def test_a_run_with_steps_is_resumed(session: NotebookSession) -> None:
    """It needs no checkpoint and no model call."""
    till = Till()
    first = finish(session.start(till.pays, "Pay"))
    till.is_open = True
    assert finish(first.resume()).status == "completed"
    assert till.charges == [1, 2, 1]


def test_another_argument_is_another_step(session: NotebookSession) -> None:
    """It is made."""
    till = Till()
    amount = 5

    async def pays(prompt: str, run: RunContext) -> Any:
        return await run.step(till.charge, amount)

    first = finish(session.start(pays, "Pay"))
    amount = 6
    assert finish(first.retry(reuse=True)).output == {"amount": 6, "currency": "EUR"}
    assert till.charges == [5, 6]


def test_a_step_that_raised_is_made_again(session: NotebookSession) -> None:
    """It has no result."""
    tries: list[str] = []

    def fails(word: str) -> str:
        tries.append(word)
        if len(tries) == 1:
            raise Broken
        return word

    async def tries_it(prompt: str, run: RunContext) -> Any:
        return await run.step(fails, "now")

    first = finish(session.start(tries_it, "Try"))
    assert finish(first.resume()).output == "now"
    assert tries == ["now", "now"]


@pytest.mark.parametrize("policy", ["auto", "deny"])
def test_a_step_that_was_cut_off_is_made_again_only_if_the_user_allows_it(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch, policy: Any
) -> None:
    """Nobody knows how far it got: its process was killed."""
    session, till = make_session(), Till()

    async def pays(prompt: str, run: RunContext) -> Any:
        return await run.step(till.charge, 3)

    first = finish(session.start(pays, "Pay"))
    assert first.number is not None
    kept = session.store.journal(first.number)
    begun: list[Entry] = [entry for entry in kept if entry.kind == STEP_BEGUN]
    assert len(begun) == 1
    monkeypatch.setattr(type(session.store), "journal", lambda *_, **__: begun)  # as a kill leaves it
    again = finish(first.retry(reuse=True, approve=policy))
    if policy == "auto":
        assert again.output == {"amount": 3, "currency": "EUR"}
        assert till.charges == [3, 3]
    else:
        assert again.status == "failed"
        assert "isn't called again" in str(again.error)
        assert till.charges == [3]


@pytest.mark.parametrize("odd", [(1, 2), {1: "one"}, {1, 2}, object()], ids=["tuple", "dict", "set", "object"])
def test_a_result_that_cannot_be_kept_whole_is_an_error(session: NotebookSession, odd: Any) -> None:
    """A resumed run would get something else."""
    till = Till()
    till.returns, till.is_open = odd, True
    run = finish(session.start(till.pays, "Pay"))
    assert run.status == "failed"
    assert "can't be kept whole" in str(run.error)


def test_an_argument_that_is_no_data_is_an_error(session: NotebookSession) -> None:
    """The call couldn't be recognized in another run."""
    till = Till()

    async def pays(prompt: str, run: RunContext) -> Any:
        return await run.step(till.charge, object())

    run = finish(session.start(pays, "Pay"))
    assert "which isn't data" in str(run.error)
    assert till.charges == []


def test_bytes_and_nested_data_come_back_as_they_were(session: NotebookSession) -> None:
    """The first time, too."""
    till = Till()
    till.is_open = True
    till.returns = {"a": [1, 2.5, None, True, b"raw"], "b": {"c": "text"}}
    first = finish(session.start(till.pays_sync, "Pay"))
    assert first.output == [till.returns] * 2
    assert finish(first.retry(reuse=True)).output == [till.returns] * 2


def test_a_secret_in_a_result_is_not_kept(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is replaced, as everywhere."""
    session, till = make_session(), Till()
    monkeypatch.setenv("TILL_API_KEY", "hq2Jx8vN4kTz7RwB")
    till.is_open, till.returns = True, "key hq2Jx8vN4kTz7RwB"
    first = finish(session.start(till.pays_sync, "Pay"))
    assert finish(first.retry(reuse=True)).output == ["key [TILL_API_KEY]"] * 2


def _frames(data: bytes) -> list[int]:
    """Return where each entry of a journal's file begins."""
    starts, at = [], 0
    while at < len(data):
        starts.append(at)
        at += 36 + int.from_bytes(data[at : at + 4], "big")
    return starts


@pytest.mark.parametrize("cut", ["before the begun of the last", "within the begun of the last", "changed in it"])
@pytest.mark.parametrize("policy", ["auto", "deny"])
def test_a_journal_that_is_cut_makes_no_step_again_without_a_question(
    make_session: MakeSession, policy: Any, cut: str
) -> None:
    """What the run's log has and its journal has not may have taken effect; what the journal has is not made again."""
    session, till = make_session(), Till()
    first = finish(session.start(till.pays_sync, "Pay"))
    assert till.charges == [1, 2]
    folder = session.store.journals.folder
    assert folder is not None
    path = folder / journal_name(session.id, first.id)
    data = path.read_bytes()
    at = _frames(data)[2]  # the first step has two
    match cut:
        case "before the begun of the last":
            path.write_bytes(data[:at])
        case "within the begun of the last":
            path.write_bytes(data[: at + 50])
        case _:
            path.write_bytes(data[: at + 50] + b"!" + data[at + 51 :])
    till.is_open = True
    again = finish(first.retry(reuse=True, approve=policy))
    asked = [event.data for event in again.events() if isinstance(event.data, ev.ApprovalRequested)]
    assert ["is incomplete" in one.message for one in asked] == [True]
    if policy == "auto":
        assert again.status == "completed"
        assert till.charges == [1, 2, 2]
    else:
        assert "isn't called again" in str(again.error)
        assert till.charges == [1, 2]
    kinds = [tool.kind for tool in again.record.tools]
    assert kinds[0] == ev.STEP_KNOWN, "the count of a run that comes from this one is right, too"


def test_a_sound_journal_asks_nothing_however_often_it_is_used(session: NotebookSession) -> None:
    """Steps whose results were known are no calls that are missing."""
    till = Till()
    run = finish(session.start(till.pays_sync, "Pay"))
    for _ in range(3):
        run = finish(run.retry(reuse=True, approve="deny"))
        assert "Broken" in str(run.error)
    till.is_open = True
    assert finish(run.retry(reuse=True, approve="deny")).status == "completed"
    assert till.charges == [1, 2]
