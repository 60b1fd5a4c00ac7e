"""Checkpoints, and the runs that go on from them or do the same again (group H of the reference; W14)."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import nbrun
from nbrun import NotebookSession, Run, RunContext, RunStatus
from nbrun.agents import Output
from nbrun.core import checkpoint, events as ev
from nbrun.core.checkpoint import State
from nbrun.core.errors import Action, AgentNotFound, BadOption, Fix, NotResumable
from nbrun.core.redaction import Redactor
from nbrun.sessions.followups import plan as plan_followup
from nbrun.store import SessionStore
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held
from tests.fakes.readers import PAGES, reader

MakeSession = Callable[..., NotebookSession]
ROOT = Path(__file__).resolve().parents[2]


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


def checkpoints_in(path: Path) -> list[int]:
    """Return the numbers of the runs that have a checkpoint in this file, as another process sees it."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return [row[0] for row in connection.execute("SELECT run FROM checkpoints ORDER BY run")]


def cut_short(session: NotebookSession, after: int = 3, **options: Any) -> Run:
    """Return a run that has failed after so many pages."""
    run = ended(session.start(reader(after), "tea", **options))
    assert run.status is RunStatus.FAILED
    return run


# --- checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [None, 0, "text", [1, [2.5, None]], {"a": {"b": [True]}}, b"", b"\x00\xff" * 100],
    ids=lambda state: type(state).__name__,
)
def test_a_state_comes_back_as_it_was(session: NotebookSession, state: State) -> None:
    """H: a round trip through the store, of JSON-like data and of bytes."""
    found: list[State] = []

    async def once_more(prompt: str, run: RunContext) -> None:
        found.append(run.restored)
        run.checkpoint(state)
        if len(found) == 1:
            raise ValueError("once more")

    assert ended(ended(session.start(once_more)).resume()).status is RunStatus.COMPLETED
    assert found == [None, state]


def test_the_log_tells_of_a_checkpoint_and_does_not_hold_it(session: NotebookSession, store_path: Path) -> None:
    """The event has a name and a size; the state is beside the log, the last one of the run only."""
    run = cut_short(session)
    told = [event.data for event in run.events() if event.type == "checkpoint"]
    assert [data.id for data in told if isinstance(data, ev.Checkpoint)] == [f"checkpoint-{n}" for n in (1, 2, 3)]
    assert run.record.checkpoint == told[-1]
    assert all(isinstance(data, ev.Checkpoint) and data.size and not data.state for data in told)
    with closing(sqlite3.connect(store_path)) as connection:
        ((number, seq, state),) = connection.execute("SELECT run, seq, state FROM checkpoints")
        blobs = [row[0] for row in connection.execute("SELECT data FROM events")]
    assert checkpoint.unpack(state) == {"page": 3, "of": "tea"}
    assert (number, run.events()[seq].data) == (run.number, told[-1])
    assert not any(b"page" in blob and b"of" in blob for blob in blobs)


def test_a_checkpoint_is_stored_with_all_that_was_said_before(
    session: NotebookSession, store_path: Path, held: Held
) -> None:
    """Whenever another process looks, the events before a stored checkpoint are in the file as well."""

    async def reads(prompt: str, run: RunContext) -> None:
        for page in range(300):
            run.text(f"p{page} ")
            run.checkpoint(page)
        raise ValueError("over")

    run = session.start(reads)
    with closing(sqlite3.connect(f"file:{store_path}?mode=ro", uri=True)) as connection:
        looked: list[tuple[int, int]] = []
        while not run.done():
            looked += connection.execute(
                "SELECT c.seq, (SELECT max(seq + count) - 1 FROM events e WHERE e.run = c.run) FROM checkpoints c"
            )
    assert all(seq <= last for seq, last in looked)


def test_secrets_in_a_state_are_replaced() -> None:
    """In data and in bytes, as everywhere in the store."""
    redactor = Redactor({"sk-0123456789": "TEA_KEY", "sk-0123456789-abc": "LONG_KEY"})
    for state, clean in (
        ({"k": ["sk-0123456789"]}, {"k": ["[TEA_KEY]"]}),
        (b'{"k": "sk-0123456789-abc"}', b'{"k": "[LONG_KEY]"}'),
        ({"k": "other"}, {"k": "other"}),
    ):
        assert checkpoint.unpack(checkpoint.redacted(checkpoint.pack(state), redactor)) == clean


def test_a_secret_is_not_in_the_file(
    make_session: MakeSession, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the agent keeps may hold a key; the file does not."""
    monkeypatch.setenv("TEA_API_KEY", "sk-0123456789")

    async def keeps(prompt: str, run: RunContext) -> None:
        run.checkpoint({"header": "Bearer sk-0123456789"})
        raise ValueError("over")

    session = make_session()
    run = ended(session.start(keeps))
    session.close()
    assert run.number is not None
    assert not any(b"sk-0123" in path.read_bytes() for path in store_path.parent.iterdir())


def test_what_is_no_data_is_kept_as_its_repr_and_said(session: NotebookSession) -> None:
    """It does not end the run; the card says that not all will come back."""

    async def keeps(prompt: str, run: RunContext) -> None:
        run.checkpoint({"page": 1, "model": Held()})
        raise ValueError("over")

    run = ended(session.start(keeps))
    (notice,) = run.record.notices
    assert "Held" in notice
    assert run.record.checkpoint is not None


def test_a_state_that_is_too_large_leaves_the_last_one(
    session: NotebookSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that cannot be kept never stops a run."""
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 1000)

    async def grows(prompt: str, run: RunContext) -> object:
        if run.restored is not None:
            return run.restored
        run.checkpoint("small")
        run.checkpoint("x" * 2000)
        raise ValueError("over")

    run = ended(session.start(grows))
    assert "too large" in run.record.notices[0]
    assert ended(run.resume()).output == "small"


def test_a_state_past_the_context_is_measured_too(
    session: NotebookSession, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter may send the event itself: what is too large is not stored, and said."""
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 1000)

    async def sends(prompt: str, run: RunContext) -> None:
        run.send(ev.Checkpoint("mine", 2000, checkpoint.pack(b"x" * 2000)))
        raise ValueError("over")

    run = ended(session.start(sends))
    assert "too large" in run.record.notices[0]
    assert checkpoints_in(store_path) == []


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "damaged"), (b"\xff\x00", "damaged"), (b"\x92\x02\xc0", "newer nbrun"), (b"\x81\x01\x02", "damaged"),
        (b"\x92\x01" + b"\x91" * 100_000, "damaged"),
    ],
    ids=["empty", "noise", "newer", "other", "deep"],
)  # fmt: skip
def test_a_state_that_cannot_be_read_is_refused(blob: bytes, words: str) -> None:
    """H: a future version is refused; so is what is none. In one line."""
    with pytest.raises(NotResumable, match=words):
        checkpoint.unpack(blob)


# --- resume ------------------------------------------------------------------------------------------


def test_a_completed_run_clears_its_checkpoint(make_session: MakeSession, store_path: Path) -> None:
    """H: what has completed is not gone on with, and leaves nothing behind."""
    session = make_session()
    run = ended(session.start(reader()))
    session.close()
    assert (run.id, run.status) == ("run-seq-0", "completed")
    assert checkpoints_in(store_path) == []


def test_a_resumed_run_goes_on_with_what_was_used(make_session: MakeSession, store_path: Path) -> None:
    """H: a fresh id, usage and tool calls go on, and the old run stays as it was."""
    session = make_session()
    old = cut_short(session, 3, name="book", tags={"k": "v"}, timeout_s=60)
    before = old.events()
    new = ended(old.resume())
    assert (new.id, new.number, new.status) == ("run-seq-1", 2, "completed")
    assert new.output == {"began_at": 3}
    assert new.text == "p3 p4 p5 "
    usage = new.usage
    assert (usage.input_tokens, usage.output_tokens, usage.requests) == (60, 6, 6)
    assert (len(new.record.tools), new.record.tool_count) == (3, PAGES)
    assert new.record.tools[0].id == "tool-4"
    assert new.record.resumed_from == old.id
    assert new.record.origin == ev.Origin("resume", old.id, 1, "book", 3)
    assert (new.name, new.record.tags, new.record.prompt) == ("book", {"k": "v"}, "tea")
    assert new.record.options == old.record.options
    assert (old.status, old.events()) == ("failed", before)
    assert old.followups == [(2, "resume")]


def test_the_old_checkpoint_stays_until_the_new_run_has_completed(make_session: MakeSession, store_path: Path) -> None:
    """W14: through a second failure too; when the last run has completed, those of the whole line are gone."""
    session = make_session()
    first = cut_short(session, 2)
    second = ended(first.resume(agent=reader(4)))
    assert (second.status, second.usage.requests) == ("failed", 4)
    assert checkpoints_in(store_path) == [1, 2]
    held = Held()
    third = second.resume(agent=held)  # keeps none of its own
    assert checkpoints_in(store_path) == [1, 2]
    assert third.cancel().wait(BOUND_S)
    assert checkpoints_in(store_path) == [1, 2]
    fourth = ended(third.resume(agent=reader()))
    assert fourth.output == {"began_at": 4}
    assert fourth.usage.requests == PAGES
    session.close()
    assert checkpoints_in(store_path) == []


def test_a_checkpoint_outlives_an_end_that_is_not_on_disk(
    make_session: MakeSession, store_path: Path, held: Held
) -> None:
    """W14: while the completed end cannot be written, what the run could be gone on from is still there."""

    async def reads(prompt: str, run: RunContext) -> None:
        run.checkpoint({"page": 1})
        run.phase("kept")
        await held(prompt, run)

    session = make_session()
    run = session.start(reads)
    assert held.entered.wait(BOUND_S)
    while run.phase != "kept":
        assert not run.wait(0.01)
    with closing(sqlite3.connect(store_path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # another program holds the file
        held.let_go()
        assert ended(run).status is RunStatus.COMPLETED
        assert run.problem is not None
        assert checkpoints_in(store_path) == [1]
        other.execute("ROLLBACK")
    session.close()
    assert checkpoints_in(store_path) == []


def test_what_a_crash_has_left_is_swept(make_session: MakeSession, store_path: Path) -> None:
    """W14: a kernel that dies between the end and the deletion leaves a checkpoint; the next load deletes it."""
    session = make_session()
    failed = cut_short(session)
    resumed = ended(failed.resume())
    other = cut_short(session)
    session.close()
    with closing(sqlite3.connect(store_path)) as connection:
        connection.executemany(
            "INSERT INTO checkpoints (run, seq, ts, state) VALUES (?, 1, 1, x'00')",
            [(failed.number,), (resumed.number,)],
        )
        connection.commit()
    make_session()
    assert checkpoints_in(store_path) == [other.number]


def test_a_cancelled_run_can_be_gone_on_with(session: NotebookSession) -> None:
    """What it had kept before the cancel is where the new run begins."""

    async def waits(prompt: str, run: RunContext) -> object:
        if run.restored is not None:
            return run.restored
        run.checkpoint("half")
        await agents.waits_for_cancel(prompt)
        return None

    run = session.start(waits)
    while run.record.checkpoint is None:
        assert not run.wait(0.01)
    assert run.cancel().wait(BOUND_S)
    assert ended(run.resume()).output == "half"


@pytest.mark.parametrize("kind", ["resume", "retry", "replay"])
def test_a_live_run_has_no_followup(session: NotebookSession, held: Held, kind: str) -> None:
    """One line, and nothing is started."""
    run = session.start(held)
    with pytest.raises(NotResumable, match=r"run #1 \(Held\) is still running; wait for it, or cancel it"):
        getattr(run, kind)()
    assert len(session.runs()) == 1


@pytest.mark.parametrize(("agent", "words"), [(agents.instant, "has completed"), (agents.failing, "has no checkpoint")])
def test_what_cannot_be_gone_on_with_says_why(session: NotebookSession, agent: object, words: str) -> None:
    """H: a run that has completed, or has no checkpoint: an error, and no run is created."""
    run = ended(session.start(agent, "tea"))
    with pytest.raises(NotResumable, match=rf"run #1 .* {words}. Run it again") as caught:
        run.resume()
    assert caught.value.fixes == (Fix(Action.RETRY, "#1"),)
    assert len(session.runs()) == 1


def test_nobody_goes_on_twice(session: NotebookSession, held: Held) -> None:
    """While a resumption is live, and after it has completed, there is no second one."""
    old = cut_short(session)
    new = old.resume(agent=held)
    with pytest.raises(NotResumable, match="is already being resumed as #2"):
        old.resume()
    held.let_go()
    ended(new)
    with pytest.raises(NotResumable, match="was resumed as #2, which has completed"):
        old.resume()
    assert len(session.runs()) == 2


def test_of_two_kernels_one_goes_on(make_session: MakeSession, held: Held) -> None:
    """Both have looked, and nobody went on; the file takes the first, and the other creates no run."""
    one = make_session()
    cut_short(one)
    two = make_session(ids=nbrun.SequentialIds("two"))
    found = two.get(1)
    plan = plan_followup("resume", found, held, {}, two.find_agent, two.get)
    first = one.get(1).resume(agent=held)
    with pytest.raises(NotResumable, match="another kernel is already resuming that run"):
        two.start(plan.agent, plan.prompt, **plan.options)
    assert len(held.prompts) <= 1
    assert (len(two.live_runs), len(two.runs())) == (0, 2)
    held.let_go()
    assert ended(first).status is RunStatus.COMPLETED
    assert ended(two.start(agents.instant)).status is RunStatus.COMPLETED  # as if nothing had been


def test_a_run_of_another_store_is_refused(session: NotebookSession, make_session: MakeSession, tmp_path: Path) -> None:
    """H: a foreign checkpoint creates no run."""
    other = make_session(store=tmp_path / "other.db")
    run = cut_short(other)
    with pytest.raises(NotResumable, match="another store"):
        session.follow("resume", run)
    assert session.runs() == []


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"max_tokens": 32}, "max_tokens 32: 33 used"), ({"max_turns": 2}, "max_turns 2: 3 model calls")],
)
def test_an_exhausted_budget_stays_exhausted(session: NotebookSession, limits: dict[str, int], words: str) -> None:
    """H: what the old run has used up counts; a larger budget is a decision."""
    old = cut_short(session)
    with pytest.raises(NotResumable, match=rf"has used up its budget \({words}.*\); give it a larger max_"):
        old.resume(**limits)
    new = ended(old.resume(max_tokens=50))
    assert (new.status, new.cause) == ("cancelled", "budget")
    assert new.usage.input_tokens + new.usage.output_tokens == 55


def test_the_last_calls_of_a_budget_are_those_that_are_left(session: NotebookSession) -> None:
    """Three of four calls were made: the resumed run makes one more and no other, in a process too."""
    old = cut_short(session, max_turns=4)
    for on in ("local", "process"):
        new = ended(old.resume(on=on))
        assert (new.status, new.cause, new.usage.requests) == ("cancelled", "budget", 4)
        assert new.text == "p3 "


@pytest.mark.parametrize("on", ["local", "process"])
def test_a_budget_with_no_call_left_makes_none(session: NotebookSession, on: str) -> None:
    """All three calls were made: the resumed run is entered, for it may need none, and stopped before one."""
    old = cut_short(session, max_turns=3)
    new = ended(old.resume(on=on))
    assert (new.status, new.cause, new.text) == ("cancelled", "budget", "")
    assert new.usage.requests == 3


def test_calls_that_are_told_of_afterwards_go_on_too(session: NotebookSession) -> None:
    """An agent that only reports what it has used adds to what was used before."""

    async def reports(prompt: str, run: RunContext) -> None:
        run.usage(requests=2, input_tokens=5)
        run.checkpoint("here")
        if run.restored is None:
            raise ValueError("over")

    new = ended(ended(session.start(reports)).resume())
    assert (new.usage.requests, new.usage.input_tokens) == (4, 10)


def test_usage_goes_on_where_nothing_more_was_told(session: NotebookSession) -> None:
    """A run that fails at once has the usage of the one that it goes on from."""
    old = cut_short(session)
    new = ended(old.resume(agent=agents.failing))
    assert (new.status, new.usage) == ("failed", old.usage)


def test_a_process_restores_and_keeps(session: NotebookSession, store_path: Path) -> None:
    """The state travels to a process of its own, and from it."""
    old = cut_short(session, on="process")
    assert checkpoints_in(store_path) == [1]
    new = ended(old.resume())
    assert (new.output, new.text, new.usage.requests) == ({"began_at": 3}, "p3 p4 p5 ", 6)


class Chapters:
    """An agent of a framework that knows how to go on."""


class ChaptersAdapter:
    """Drives it."""

    name = "chapters"

    def match(self, agent: object) -> bool:
        """Return whether it is one."""
        return isinstance(agent, Chapters)

    def check(self, agent: object) -> None:
        """Accept it."""

    def label(self, agent: object) -> str:
        """Return its name."""
        return "chapters"

    async def events(self, agent: object, prompt: str, run: RunContext) -> AsyncIterator[ev.EventData | Output]:
        """Begin."""
        run.checkpoint(b"at 1")
        yield ev.TextDelta("one ")
        raise ValueError("over")

    async def resume(self, agent: object, state: State, run: RunContext) -> AsyncIterator[ev.EventData | Output]:
        """Go on."""
        yield Output(["went on", str(state)])


def test_an_adapter_that_can_go_on_is_asked_to(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """`resume()` of the adapter drives the new run, with the bytes that it had kept."""
    registered = nbrun.agents.ThirdParty((ChaptersAdapter(),))
    monkeypatch.setattr(nbrun.agents, "third_party", lambda: registered)
    old = ended(session.start(Chapters()))
    assert (old.status, old.text) == ("failed", "one ")
    assert ended(old.resume()).output == ["went on", "b'at 1'"]


# --- after a restart ---------------------------------------------------------------------------------


def kill_while_reading(store_path: Path, pages: int) -> None:
    """Have a process read so many pages and die by SIGKILL when its last checkpoint is public."""
    code = f"""
import os, signal, sys; sys.path.insert(0, {str(ROOT)!r})
import nbrun
from tests.fakes.readers import half_read
session = nbrun.NotebookSession(store={str(store_path)!r}, ids=nbrun.SequentialIds())
run = session.start(half_read, "{pages}", name="book")
while run.phase != "half":
    run.wait(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    store_path.parent.parent.mkdir(exist_ok=True)
    died = subprocess.run([sys.executable, "-c", code], timeout=BOUND_S * 2, check=False)
    assert died.returncode == -9


def test_a_run_of_a_killed_process_is_gone_on_with(make_session: MakeSession, store_path: Path) -> None:
    """What was kept survives SIGKILL; the agent is found by its name, and goes on in the new process."""
    kill_while_reading(store_path, 4)
    session = make_session(ids=nbrun.SequentialIds("new"))
    lost = session.get("book")
    assert (lost.status, lost.text) == ("lost", "p0 p1 p2 p3 ")
    with pytest.raises(AgentNotFound, match="define half_read first, or pass agent="):
        lost.resume()
    session.find_agent = {"half_read": reader()}.get
    with pytest.raises(AgentNotFound, match=r"half_read is another agent now \(reader, not"):
        lost.resume()
    assert len(session.runs()) == 1
    run = ended(lost.resume(agent=reader()))
    assert (run.status, run.output) == ("completed", {"began_at": 4})
    assert run.usage.input_tokens == 4 * 10 + 2 * 10
    assert run.record.resumed_from == "run-seq-0"
    session.close()
    assert checkpoints_in(store_path) == []


def test_nothing_is_gone_on_with_unasked(make_session: MakeSession, store_path: Path) -> None:
    """A restart starts nothing."""
    kill_while_reading(store_path, 1)
    session = make_session()
    assert [str(run.status) for run in session.runs()] == ["lost"]
    assert session.live_runs == []
    assert checkpoints_in(store_path) == [1]


def test_a_store_in_memory_keeps_checkpoints(make_session: MakeSession) -> None:
    """For as long as it lives."""
    session = make_session(store=SessionStore([], nbrun.core.clock.SystemClock()))
    assert ended(cut_short(session).resume()).output == {"began_at": 3}


# --- retry -------------------------------------------------------------------------------------------


def test_a_retry_runs_the_same_inputs_anew(session: NotebookSession) -> None:
    """Agent, prompt and options are those of the old run; nothing of what it had used or kept is."""
    old = cut_short(session, name="book", tags={"k": "v"}, timeout_s=60, max_tokens=1000, id="once")
    new = ended(old.retry())
    assert new.id != old.id
    assert new.record.origin == ev.Origin("retry", "once", 1, "book")
    assert (new.status, new.usage, new.text) == ("failed", old.usage, old.text)
    assert (new.record.prompt, new.record.tags, new.name) == ("tea", {"k": "v"}, "book")
    assert new.record.options == {k: v for k, v in old.record.options.items() if k != ev.ONCE}
    assert new.record.resumed_from is None
    assert old.followups == [(new.number, "retry")]


def test_a_retry_may_have_other_options(session: NotebookSession) -> None:
    """What is given counts, the rest stays; the prompt is what makes it a retry."""
    old = ended(session.start(agents.failing, "tea", timeout_s=60, approve="deny"))
    new = ended(old.retry(timeout_s=30, agent=agents.instant, tags={"try": "2"}))
    assert (new.output, new.record.agent) == ("done: tea", "instant")
    assert new.record.options == {"timeout_s": 30, "approve": "deny"}
    with pytest.raises(BadOption, match=r"timeout isn't an option of a run; did you mean timeout_s"):
        old.retry(timeout=1)
    with pytest.raises(BadOption, match="prompt can't be changed here"):
        old.retry(prompt="coffee")


def test_a_completed_run_can_be_retried(session: NotebookSession) -> None:
    """It runs again, as a new run."""
    assert ended(ended(session.start(agents.instant, "tea")).retry()).output == "done: tea"


def test_a_registered_agent_is_found_after_a_restart(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name that it is registered under."""
    monkeypatch.setattr(nbrun.agents, "_registered", {"instant": agents.instant})
    first = make_session()
    ended(first.start("instant", "tea", name="one"))
    first.close()
    assert ended(make_session().get("one").retry()).output == "done: tea"


def test_the_built_in_agent_is_made_again_after_a_restart(make_session: MakeSession) -> None:
    """By what cards call its model."""
    first = make_session()
    old = ended(first.start(None, "tea", model="scripted", name="one"))
    first.close()
    new = ended(make_session().get("one").retry())
    assert (new.status, new.record.model) == ("completed", old.record.model)


def test_what_a_planted_file_says_of_options_is_not_trusted(make_session: MakeSession, store_path: Path) -> None:
    """A run whose beginning was changed isn't signed: neither its options nor its agent are taken from it."""
    session = make_session()
    old = ended(session.start(agents.failing, "tea"))
    planted = ev.RunCreated(session.id, "x", "system", "echo", options={"timeout_s": "1", "thread": [1], "evil": 1})
    session.close()
    with closing(sqlite3.connect(store_path)) as connection:
        connection.execute(
            "UPDATE events SET data = ? WHERE run = ? AND seq = 0", (ev.encode_data(planted), old.number)
        )
        connection.commit()
    later = make_session()
    later.find_agent = {"system": agents.instant}.get
    with pytest.raises(NotResumable, match=r"isn't signed by your nbrun, .* \(agent: system; prompt: echo\)"):
        later.get(1).retry()
    assert ended(later.get(1).retry(agent=agents.instant)).record.options == {}


def test_what_was_used_is_counted_once(session: NotebookSession) -> None:
    """A run that goes on shows all that was used; in a table each run has its own, and a replay none."""

    async def spends(prompt: str, run: RunContext) -> str:
        run.usage(input_tokens=10, requests=1, cost_usd=1.0)
        if run.restored is None:
            run.checkpoint("half")
            raise ValueError("over")
        return "done"

    old = ended(session.start(spends, "tea"))
    new = ended(old.resume())
    ended(new.replay("max"))
    assert new.usage.cost_usd == 2.0
    table = session.runs().to_pandas()
    assert list(table.cost_usd.fillna(0.0)) == [0.0, 1.0, 1.0]
    assert list(table.input_tokens) == [0, 10, 10]
