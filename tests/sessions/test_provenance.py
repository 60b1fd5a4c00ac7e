"""Whose a run is: what a stranger's store, export or checkpoint names is shown, and never run."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from agents import Agent as OpenAIAgent
from agents.tool import function_tool
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

import nbrun
from nbrun import NotebookSession, Run, RunContext, RunStatus
from nbrun.core import checkpoint, errors, events as ev, recording
from nbrun.core.checkpoint import Turn
from nbrun.core.errors import Action, BadOption, Fix, NotResumable
from nbrun.render.words import followup_notes
from nbrun.sessions import catalog
from nbrun.store import open_for_writing
from nbrun.store.importing import import_run
from nbrun.ui.magics.options import spell
from tests.agents.test_openai_agents import Speaker
from tests.fakes.agents import BOUND_S, instant
from tests.fakes.people import asking

MakeSession = Callable[..., NotebookSession]


@pytest.fixture
def called() -> list[str]:
    """What was called that nobody has asked for."""
    return []


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), run.record
    return run


def change(path: Path, *statements: tuple[str, tuple[object, ...]]) -> None:
    """Change a store as somebody else can who may write to its file."""
    with closing(sqlite3.connect(path)) as connection:
        for sql, values in statements:
            connection.execute(sql, values)
        connection.commit()


def disown(path: Path) -> None:
    """Make a store that of a stranger: another user's key has signed what is in it."""
    with closing(sqlite3.connect(path)) as connection:
        for table in ("runs", "checkpoints"):
            if any(row[1] == "signature" for row in connection.execute(f"PRAGMA table_info({table})")):
                connection.execute(f"UPDATE {table} SET signature = ?", (b"\x01" * 32,))  # noqa: S608
        connection.commit()


def plant(path: Path, created: ev.RunCreated) -> None:
    """Have run #1 begin otherwise; its signature stays."""
    change(path, ("UPDATE events SET data = ? WHERE run = 1 AND seq = 0", (ev.encode_data(created),)))


def keeps(state: object) -> Callable[..., Any]:
    """Return an agent that saves a state and fails."""

    async def keeps(prompt: str, run: RunContext) -> None:
        run.checkpoint(state)
        raise ValueError("over")

    return keeps


def planted(make_session: MakeSession, store_path: Path, state: object) -> Run:
    """Return a stranger's failed run with this checkpoint."""
    with make_session() as session:
        ended(session.start(keeps(state), "tea"))
    disown(store_path)
    return make_session(ids=nbrun.SequentialIds("later")).get(1)


async def asks(prompt: str, run: RunContext) -> bool:
    """Do what needs an approval."""
    return bool(await run.ask("Delete it?"))


# --- what a record names -------------------------------------------------------------------------------

FOLLOWUPS: dict[str, Callable[[Run], Run]] = {
    "retry": Run.retry,
    "resume": Run.resume,
    "continue": lambda run: run.continue_with("more"),
}


@pytest.mark.parametrize("kind", FOLLOWUPS)
@pytest.mark.parametrize(
    "names",
    [
        {"agent": "system", "target": "os.system"},
        {"agent": "read_pickle", "target": "pandas.read_pickle"},
        {"agent": "system"},
        {"agent": "local", "model": "local (135 M parameters, tiny)", "options": {"tools": ["system"]}},
        {"agent": "x", "model": "local:/tmp/planted.gguf", "options": {"approve": "auto", "on": "process"}},
    ],
    ids=["target", "other-target", "agent", "tools", "model"],
)
@pytest.mark.parametrize("how", ["a stranger's key", "changed since"])
def test_what_a_record_names_is_not_run(
    make_session: MakeSession, store_path: Path, called: list[str], kind: str, names: dict[str, Any], how: str
) -> None:
    """Neither a callable of the notebook, nor a tool, nor a model; whoever asks is shown what it names."""
    with make_session() as session:
        ended(session.start(keeps("half"), "rm -rf tea"))
    plant(store_path, ev.RunCreated(session.id, "poet", prompt="rm -rf tea", **names))
    if how == "a stranger's key":
        disown(store_path)
    later = make_session(ids=nbrun.SequentialIds("later"))

    def find(name: str) -> object:
        def found(prompt: str) -> None:
            called.append(prompt)

        called.append(name)
        found.__name__ = name.rpartition(".")[2]
        return found

    later.find_agent = find
    with pytest.raises(NotResumable, match="isn't signed by your nbrun") as caught:
        FOLLOWUPS[kind](later.get(1))
    assert names.get("model", names.get("target", names["agent"])) in caught.value.reason
    assert "rm -rf tea" in caught.value.reason
    assert caught.value.fixes[-1] == Fix(Action.TRUST, "#1")
    assert called == []
    assert len(later.runs()) == 1


def test_a_card_says_what_a_run_of_a_stranger_needs(
    make_session: MakeSession, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It doesn't suggest a line that would run what the file names."""
    monkeypatch.setattr(errors, "_spell", spell)
    run = planted(make_session, store_path, "half")
    (note,) = followup_notes(run.record)
    command = "%agentrun resume #1 --agent NAME"
    assert note == f"Your nbrun hasn't signed this run; name an agent to continue from its history: {command}"
    run.store.trust(run.store.unsigned())
    assert followup_notes(run.store.record(1)) == ["Resume from the last checkpoint: %agentrun resume #1"]
    assert b"unsigned" not in run.export(store_path.with_name("run.json")).read_bytes()


def test_with_an_agent_that_is_named_the_prompt_is_used_and_nothing_else(
    make_session: MakeSession, store_path: Path
) -> None:
    """The new run says so; it asks, although the record allows all."""
    with make_session() as session:
        first = session.start(asks, "tea", name="book", approve="auto", max_turns=3, thread=True)
        assert ended(first).output is True
    disown(store_path)
    new = make_session(ids=nbrun.SequentialIds("later")).get(1).retry(agent=asks)
    asking(new)
    assert (new.record.options, new.record.prompt, new.name) == ({}, "tea", "book")
    assert new.live is not None
    assert new.live.wait_until(lambda record: bool(record.notices), BOUND_S)  # it is told beside the agent's start
    assert new.record.notices == ("Your nbrun hasn't signed run #1: the prompt is taken from it, and nothing else",)
    new.deny()
    assert ended(new).output is False


def test_usage_below_zero_extends_no_budget(make_session: MakeSession, store_path: Path) -> None:
    """Events aren't signed: what they claim was used may only be too little."""
    with make_session() as session:
        ended(session.start(keeps("half"), "tea", max_tokens=10))
    usage = ev.encode_data(ev.Usage(input_tokens=-(10**9), requests=-5, cost_usd=-1.0))
    end = "UPDATE events SET type = 'usage', data = ? WHERE run = 1 AND type = 'checkpoint'"
    change(store_path, (end, (usage,)))

    async def spends(prompt: str, run: RunContext) -> None:
        run.usage(input_tokens=20, requests=1)

    new = ended(make_session(ids=nbrun.SequentialIds("later")).get(1).resume(agent=spends))
    assert (new.status, new.cause, new.usage.input_tokens) == ("cancelled", "budget", 20)


def test_a_run_that_memory_has_let_go_has_its_whole_prompt(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken from the store, signed; memory has only its head."""
    monkeypatch.setattr(catalog, "KEEP_ENDED", 1)
    session, prompt = make_session(), "tea " * 500
    old = ended(session.start(instant, prompt))
    for _ in range(3):
        ended(session.start(instant, "milk"))
    new = ended(old.retry(agent=instant))
    assert (old.live is None or old.live.record.is_brief, new.record.prompt) == (True, prompt)


def test_a_policy_that_denies_stays(make_session: MakeSession) -> None:
    """It is the strictest there is."""
    with make_session() as session:
        assert ended(session.start(asks, "tea", approve="deny")).output is False
    assert ended(make_session().get(1).retry(agent=asks)).output is False


@pytest.mark.parametrize("is_later", [False, True])
def test_no_policy_comes_from_ones_own_record_either(make_session: MakeSession, is_later: bool) -> None:
    """It is given for each run; the card says what wasn't taken over. Limits are."""
    session = make_session()
    old = ended(session.start(asks, "tea", approve="auto", timeout_s=60, max_turns=3))
    if is_later:
        session.close()
        session = make_session(ids=nbrun.SequentialIds("later"))
    session.find_agent = {"asks": asks}.get
    new = session.get(old.id).retry()
    asking(new)
    assert new.record.options == {"timeout_s": 60, "max_turns": 3}
    assert new.live is not None
    assert new.live.wait_until(lambda record: bool(record.notices), BOUND_S)  # it is told beside the agent's start
    assert new.record.notices == ("Not taken over from run #1: approve=auto",)
    new.cancel()
    ended(new)
    assert ended(session.get(old.id).retry(approve="auto")).record.notices == ()


def test_a_strangers_words_are_not_laundered(make_session: MakeSession, store_path: Path, called: list[str]) -> None:
    """A run that was started from a stranger's is signed; what the stranger named is not in it."""
    with make_session() as session:
        ended(session.start(instant, "tea"))
    names: dict[str, Any] = {"agent": "system", "model": "local:/tmp/planted.gguf", "target": "os.system"}
    plant(store_path, ev.RunCreated(session.id, "poet", prompt="tea", options={"approve": "auto"}, **names))
    with make_session(ids=nbrun.SequentialIds("second")) as second:
        ended(second.get(1).retry(agent=instant))
        ended(second.get(1).continue_with("more", agent=instant))
        ended(second.get(1).replay("max"))
    third = make_session(ids=nbrun.SequentialIds("third"))

    def find(name: str) -> object:
        called.append(name)
        return instant if name == "instant" else None

    third.find_agent = find
    assert ended(third.get(2).retry()).output == "done: tea"
    assert ended(third.get(3).retry()).output == "done: more"
    assert [third.get(number).record.model for number in (2, 3)] == [None, None]
    with pytest.raises(NotResumable, match="is a replay, so what it names isn't run"):
        third.get(4).continue_with("more")
    assert set(called) == {"instant"}


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_an_imported_run_is_a_strangers(make_session: MakeSession, store_path: Path, form: str) -> None:
    """Whatever its file says of whose it is, and whatever it allows."""
    with make_session(store=store_path.with_name("other.db")) as elsewhere:
        run = ended(elsewhere.start(asks, "tea", approve="auto"))
        path = run.export(store_path.with_name(f"run.{form}"))
    if form == "jsonl":
        events = recording.read(path)[1]
    else:
        ((_, events),) = recording.load_document(path.read_bytes())
    with closing(open_for_writing(store_path, 1.0)) as connection:
        import_run(connection, events, "a file", 1.0)
    session = make_session(ids=nbrun.SequentialIds("later"))
    session.find_agent = {"asks": asks}.get
    imported = session.get(1)
    assert (imported.output, imported.signed) == (True, None)
    with pytest.raises(NotResumable, match="isn't signed"):
        imported.retry()
    new = imported.retry(agent=asks)
    asking(new)
    new.cancel()
    ended(new)


# --- checkpoints ---------------------------------------------------------------------------------------

CALL = ToolCallPart("delete", {"path": "/"}, "call-1")
OTHER = ToolCallPart("delete", {"path": "/home"}, "call-2")


def pydantic_agent(called: list[str]) -> Agent[None, str]:
    """Return an agent whose tool needs no approval, and whose model says what it has heard."""

    async def says(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        yield " ".join(f"{part.part_kind}" for part in messages[-1].parts)

    def delete(path: str) -> str:
        """Delete a folder."""
        called.append(path)
        return "gone"

    return Agent(FunctionModel(stream_function=says), tools=[delete], name="helper")


@pytest.mark.parametrize("is_trusted", [False, True])
@pytest.mark.parametrize(
    ("calls", "opened"), [([CALL], []), ([CALL, OTHER], []), ([CALL, OTHER], ["call-2"])], ids=["one", "two", "half"]
)
def test_a_call_that_a_checkpoint_of_pydantic_ai_hides_is_not_made(
    make_session: MakeSession,
    store_path: Path,
    called: list[str],
    calls: list[ToolCallPart],
    opened: list[str],
    is_trusted: bool,
) -> None:
    """A stranger's checkpoint isn't read; of one's own, each call without a result counts as interrupted."""
    text = ModelMessagesTypeAdapter.dump_json([ModelResponse(parts=calls)]).decode()
    run = planted(make_session, store_path, {"messages": text, "open": opened, "asking": []})
    if is_trusted:
        run.store.trust(run.store.unsigned())
    new = ended(run.resume(agent=pydantic_agent(called), approve="auto"))
    assert (new.status, called) == (RunStatus.COMPLETED, [])
    assert new.output == " ".join(["tool-return"] * len(calls) if is_trusted else ["user-prompt"] * 2)


@pytest.mark.parametrize("is_emptied", [True, False])
@pytest.mark.parametrize("is_trusted", [False, True])
def test_a_call_that_a_state_of_openai_hides_is_not_made(
    make_session: MakeSession, store_path: Path, called: list[str], is_trusted: bool, is_emptied: bool
) -> None:
    """Its interruptions were emptied, or the call that needed an approval is now one of a tool that doesn't."""

    def delete(path: str) -> str:
        """Delete a folder."""
        called.append(path)
        return "gone"

    def boss(asks_first: bool) -> OpenAIAgent[Any]:
        model = Speaker(("delete", {"path": "/"})) if asks_first else Speaker("said")
        return OpenAIAgent("boss", tools=[function_tool(delete, needs_approval=asks_first)], model=model)

    with make_session() as session:
        cut = session.start(boss(True), "tea")
        asking(cut)
        cut.cancel()
        ended(cut)
        blob = session.store.checkpoint(1)
    assert blob is not None
    state: Any = checkpoint.unpack(blob)
    if is_emptied:
        assert state["state"]["current_step"]["data"]["interruptions"]
        state["state"]["current_step"]["data"]["interruptions"] = []
    disown(store_path)
    change(store_path, ("UPDATE checkpoints SET state = ?", (checkpoint.pack(state),)))
    run = make_session(ids=nbrun.SequentialIds("later")).get(1)
    if is_trusted:
        run.store.trust(run.store.unsigned())
    new = run.resume(agent=boss(not is_emptied and is_trusted))
    if is_trusted and not is_emptied:  # as it was: the question is asked again
        asking(new)
        new.cancel()
    ended(new)
    assert called == []
    if not is_trusted:
        assert (new.status, new.output) == (RunStatus.COMPLETED, "said")


@pytest.mark.parametrize("how", ["a stranger's run", "one's own run", "a copied signature"])
def test_a_checkpoint_of_langgraph_names_no_other_thread(
    make_session: MakeSession, store_path: Path, called: list[str], how: str
) -> None:
    """The user's checkpointer has a thread that stopped before a tool: only the run that stopped there may go on."""

    def delete(state: MessagesState) -> dict[str, Any]:
        called.append("delete")
        return {"messages": [AIMessage("deleted")]}

    def begin(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage("let us see")]}

    builder = StateGraph(MessagesState)
    builder.add_sequence([begin, delete])
    builder.add_edge(START, "begin")
    graph = builder.compile(checkpointer=InMemorySaver(), interrupt_before=["delete"])
    with make_session() as session:
        for _ in range(2):
            victim = session.start(graph, "tea")
            asking(victim)
            victim.cancel()
            ended(victim)
    state = checkpoint.pack({"thread": victim.id})
    if how == "a stranger's run":
        disown(store_path)
        change(store_path, ("UPDATE checkpoints SET state = ? WHERE run = 1", (state,)))
    elif how == "one's own run":
        change(store_path, ("UPDATE checkpoints SET state = ? WHERE run = 1", (state,)))
    else:
        copied = "(SELECT {0} FROM checkpoints WHERE run = 2)"
        change(
            store_path,
            (f"UPDATE checkpoints SET state = {copied.format('state')}, signature = {copied.format('signature')},"  # noqa: S608
             f" seq = {copied.format('seq')} WHERE run = 1", ()),
        )  # fmt: skip
    run = make_session(ids=nbrun.SequentialIds("later")).get(1)
    if how == "a stranger's run":
        new = run.resume(agent=graph, approve="auto")
        ended(new)
        assert called == ["delete"]  # by its own thread, which began anew: the user has named the graph, and `auto`
        assert [message.content for message in graph.get_state({"configurable": {"thread_id": victim.id}}).values[
            "messages"]] == ["tea", "let us see"]  # fmt: skip
    else:
        with pytest.raises(NotResumable, match="has no checkpoint that is signed"):
            run.resume(agent=graph, approve="auto")
        assert called == []


def test_a_function_has_no_state_of_a_stranger(make_session: MakeSession, store_path: Path) -> None:
    """It has the history, as one that continues; the usage that the file claims isn't counted."""
    seen: list[tuple[object, tuple[Turn, ...], str]] = []

    async def looks(prompt: str, run: RunContext) -> None:
        seen.append((run.restored, run.history, prompt))

    run = planted(make_session, store_path, {"page": 3})
    new = ended(run.resume(agent=looks, target="looks"))
    ((restored, history, prompt),) = seen
    assert (restored, history[0], prompt) == (None, Turn("user", "tea"), nbrun.agents.CONTINUE)
    assert new.record.origin == ev.Origin("continue", run.id, 1, "keeps")
    assert new.record.target == "looks"


def test_a_checkpoint_of_another_run_is_not_taken(make_session: MakeSession, store_path: Path) -> None:
    """Which run a run was resumed from is signed: no other one's checkpoint can be put in its place."""

    async def fails(prompt: str, run: RunContext) -> None:
        raise ValueError("over")

    with make_session() as session:
        for page in (1, 2):
            ended(session.start(keeps(page), "tea"))
        ended(session.get(1).resume(agent=fails))
    later = make_session(ids=nbrun.SequentialIds("later"))
    blob = later.store.checkpoint(3)
    assert blob is not None
    assert checkpoint.unpack(blob) == 1
    change(store_path, ("UPDATE origins SET origin = 2 WHERE run = 3", ()))
    assert later.store.checkpoint(3) is None
    assert later.store.checkpoint(2) is not None


def test_an_earlier_state_under_a_later_number_is_not_taken(make_session: MakeSession, store_path: Path) -> None:
    """A signature is of one checkpoint: of its run, of its place in the log, and of its state."""
    with make_session() as session:
        ended(session.start(keeps("half"), "tea"))
    later = make_session()
    assert later.store.checkpoint(1) is not None
    change(store_path, ("UPDATE checkpoints SET seq = seq + 1", ()))
    assert later.store.checkpoint(1) is None


# --- trusting ------------------------------------------------------------------------------------------


def test_what_was_read_is_trusted_and_not_what_came_since(make_session: MakeSession, store_path: Path) -> None:
    """Between the question and its answer the file may change."""
    run = planted(make_session, store_path, "half")
    found = run.store.unsigned()
    assert [(one.number, one.created.prompt) for one in found] == [(1, "tea")]
    changed = ev.RunCreated(found[0].created.session_id, "x", "system", "rm")
    plant(store_path, changed)
    run.store.trust(found)
    assert run.signed is None
    plant(store_path, found[0].created)
    change(store_path, ("UPDATE checkpoints SET state = ?", (checkpoint.pack("evil"),)))
    assert run.signed == found[0].created
    assert run.store.checkpoint(1) is None
    assert [one.number for one in run.store.unsigned()] == [1]


@pytest.mark.parametrize("state", ["half", -1, 1.5])
def test_a_checkpoint_that_is_no_bytes_is_none(make_session: MakeSession, store_path: Path, state: object) -> None:
    """Of a number, `bytes()` would make that many zeros."""
    with make_session() as session:
        ended(session.start(keeps("half"), "tea"))
    change(store_path, ("UPDATE checkpoints SET state = ?", (state,)))
    run = make_session(ids=nbrun.SequentialIds("later")).get(1)
    assert run.store.checkpoint(1) is None
    disown(store_path)
    [found] = run.store.unsigned()
    assert found.checkpoint is None


def test_a_target_needs_its_agent(session: NotebookSession) -> None:
    """It is what the agent is called."""
    run = ended(session.start(instant, "tea"))
    with pytest.raises(BadOption, match="give agent= as well"):
        run.retry(target="os.system")
    assert json.dumps(run.record.options) == "{}"
