"""Tab in the lines of the magics: what is offered where, of what, and at no cost."""

from __future__ import annotations

import asyncio
import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest
from IPython.core.completer import IPCompleter, provisionalcompleter

from nbrun import NotebookSession, RunContext, ScriptedAgent, agent, agents as agents_module
from nbrun.agents.builtin import KNOWN
from nbrun.agents.scripted import HAIKU
from nbrun.store import SessionStore
from nbrun.ui.magics.agent_list import agents_in
from nbrun.ui.magics.completion import SUBCOMMANDS, Completion, Typed, read_typed
from nbrun.ui.magics.options import CELL
from tests.fakes import agents
from tests.fakes.agents import BOUND_S, Held

MakeSession = Callable[..., NotebookSession]


@dataclass
class Shell:
    """What completion needs of a shell: its names, and the completer of a real one."""

    user_ns: dict[str, Any] = field(default_factory=dict)
    user_ns_hidden: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        magics = types.SimpleNamespace(lsmagic=lambda: {"line": {}, "cell": {}})
        shell = types.SimpleNamespace(magics_manager=magics)  # what IPython's own matchers look at
        self.Completer = IPCompleter(shell=shell, namespace=self.user_ns, use_jedi=False)  # type: ignore[no-untyped-call]


@pytest.fixture
def shell() -> Shell:
    """A shell with an agent in it."""
    return Shell({"poet": agents.talking, "number": 3})


@pytest.fixture
def completion(shell: Shell, session: NotebookSession) -> Completion:
    """The completion of that shell, for a session without runs."""
    return Completion(shell, session)


def offered(completion: Completion, text: str) -> list[str]:
    """Return what is offered at the end of a line that is ours."""
    offer = completion.offer(text)
    assert offer is not None
    assert text.endswith(offer.fragment)
    return [*offer.texts]


# --- the line --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("%agentrun ", Typed(False, (), "")),
        ("%%agentrun po", Typed(True, (), "po")),
        ("  %agentrun show #", Typed(False, ("show",), "#")),
        ("runs = %agentrun list --", Typed(False, ("list",), "--")),
        ("%agentrun show 'green t", Typed(False, ("show",), "'green t")),
        ("%agentrun show 'green tea' ", Typed(False, ("show", "green tea"), "")),
        ("%%agentrun poet --tag a='x y' -", Typed(True, ("poet", "--tag", "a=x y"), "-")),
        ("%agentrun", None),
        ("%agentrunner x", None),
        ("print('%agentrun ", None),
        ("# %agentrun ", None),
        ("x = 3", None),
        ("", None),
    ],
)
def test_a_line_is_read_up_to_the_cursor(text: str, typed: Typed | None) -> None:
    """Whole words as the magic gets them, the last one as it stands; other lines are not ours."""
    assert read_typed(text) == typed


# --- what is offered -------------------------------------------------------------------------------


@dataclass
class Cup:
    """What an agent may return."""

    tea: str


def test_what_the_built_in_agent_takes_is_offered(shell: Shell, completion: Completion) -> None:
    """Functions, also behind a comma, classes, texts and dicts of the notebook; of `--mcp` nothing is known."""

    def brew(tea: str) -> str:
        return tea

    shell.user_ns |= {"brew": brew, "Cup": Cup, "brief": "Be brief.", "cold": {"temperature": 0}}
    shell.user_ns |= {"_hidden": brew, "Out": {}}
    shell.user_ns_hidden["Out"] = {}
    assert offered(completion, "%%agentrun --tools ") == ["notebook", "brew", "poet"]
    assert offered(completion, "%%agentrun --tools notebook,b") == ["brew"]
    assert offered(completion, "%%agentrun --output=") == ["Cup"]
    assert offered(completion, "%%agentrun --system ") == ["brief"]
    assert offered(completion, "%agentrun retry last --settings c") == ["cold"]
    assert offered(completion, "%%agentrun --mcp ") == []


def test_a_run_to_continue_is_one_that_has_ended(completion: Completion, session: NotebookSession, held: Held) -> None:
    """A live one cannot be gone on with."""
    session.start(agents.instant, name="over").wait(BOUND_S)
    session.start(held, name="live")
    assert held.entered.wait(BOUND_S)
    assert offered(completion, "%%agentrun --continue ") == ["#1", "over"]


def test_subcommands_are_offered(completion: Completion) -> None:
    """All of them, or those that begin so; also as what help is asked for."""
    assert offered(completion, "%agentrun ") == [*SUBCOMMANDS]
    assert offered(completion, "%agentrun ca") == ["cancel"]
    assert offered(completion, "%agentrun CA") == ["cancel"]
    assert offered(completion, "%agentrun help wa") == ["wait"]
    assert offered(completion, "%agentrun nonsense ") == []


def test_options_are_offered(completion: Completion) -> None:
    """Those that were not given yet; in a cell's line every one of the table."""
    assert offered(completion, "%agentrun cancel --") == ["--all", "--reason"]
    assert offered(completion, "%agentrun stop --all --") == ["--reason"]
    assert offered(completion, "%agentrun cancel --reas") == ["--reason"]
    everything = {*CELL.flags()}
    assert {*offered(completion, "%%agentrun poet -")} == everything
    left = offered(completion, "%%agentrun poet --block --tag a=b --")
    assert "--block" not in left
    assert "--tag" in left
    assert offered(completion, "%%agentrun poet ")[:2] == ["--model", "--python"]


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("%%agentrun poet --approve ", ["ask", "auto", "deny"]),
        ("%%agentrun poet --approve=a", ["ask", "auto"]),
        ("%%agentrun poet --on p", ["process"]),
        ("%%agentrun poet --if-running r", ["reject", "replace"]),
        ("%%agentrun --model ", [*KNOWN]),
        ("%%agentrun --model openai:", [model for model in KNOWN if model.startswith("openai:")]),
        ("%%agentrun poet --tag k=", []),
        ("%%agentrun poet --timeout ", []),
        ("%%agentrun poet -n ", []),
        ("%agentrun cancel --reason ", []),
    ],
)
def test_the_values_of_an_option_are_offered(completion: Completion, text: str, choices: list[str]) -> None:
    """Choices and known models; nothing for what only the person knows."""
    assert offered(completion, text) == choices


def test_agents_are_offered(completion: Completion, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered ones and those of the notebook; not for a second place, nor beside a model."""
    monkeypatch.setattr(agents_module, "_registered", {})
    agent(agents.instant)
    shell.user_ns |= {"_hidden": agents.instant, "exit": agents.instant, "AClass": Held}
    shell.user_ns_hidden["exit"] = None
    assert offered(completion, "%%agentrun ") == ["instant", "poet"]
    assert offered(completion, "%%agentrun p") == ["poet"]
    assert offered(completion, "%%agentrun --name x p") == ["poet"]
    assert offered(completion, "%%agentrun --model local p") == []
    assert offered(completion, "%%agentrun --python p") == []
    assert offered(completion, "%%agentrun poet p") == []


class _Alarm:
    """An object that cannot even be asked for its class without its code being run."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise AssertionError(f"{name} was looked at")


class _Proxy:
    """One that says it is of another class."""

    @property  # type: ignore[misc]  # so do proxies
    def __class__(self) -> NoReturn:  # type: ignore[override]  # the same
        raise AssertionError("it was asked what it is")


class _Callable:
    """One that can be run, and whose attributes are nobody's business."""

    def __call__(self, prompt: str) -> str:
        return prompt

    def method(self, prompt: str) -> str:
        """Return the prompt."""
        return prompt

    def __getattr__(self, name: str) -> NoReturn:
        raise AssertionError(f"{name} was looked at")

    @property
    def costly(self) -> NoReturn:
        """Fail."""
        raise AssertionError("a property was evaluated")


def test_nothing_of_the_notebook_is_evaluated() -> None:
    """Agents are known by their class; what would act when looked at is left out."""
    names: dict[str, Any] = {
        "alarm": _Alarm(), "proxy": _Proxy(), "callable": _Callable(), "method": _Callable().method,
        "part": functools.partial(agents.instant), "script": ScriptedAgent(HAIKU), "function": agents.instant,
        "built_in": print, "a_class": _Callable, "module": types, "number": 3, "thing": object(),
    }  # fmt: skip
    found = ["callable", "method", "part", "script", "function", "built_in"]
    assert [*agents_in(names, ())] == found


# --- references ------------------------------------------------------------------------------------


@pytest.fixture
def runs(make_session: MakeSession, held: Held) -> Iterator[NotebookSession]:
    """A session with a run of an earlier one, a completed, a failed and two live runs: #1 to #5."""
    with make_session() as before:
        assert before.start(agents.instant, "x", name="old one").wait(BOUND_S)
        before.close()
        before.store.close(1.0)
    with make_session() as session:
        assert session.start(agents.instant, "x", name="done").wait(BOUND_S)
        assert session.start(agents.failing, "x", name="failed").wait(BOUND_S)
        for name in ("first", "second"):
            session.start(held, "x", name=name)
        yield session


@pytest.mark.parametrize(
    ("text", "refs"),
    [
        ("%agentrun cancel ", ["#5", "#4", "last", "second", "first"]),
        ("%agentrun cancel #5 ", ["#4", "first"]),
        ("%agentrun say ", ["#5", "#4", "last", "second", "first"]),
        ("%agentrun say #5 ", []),
        ("%agentrun show #", ["#5", "#4", "#3", "#2", "#1"]),
        ("%agentrun show 2", ["2"]),
        ("%agentrun show d", ["done"]),
        ("%agentrun show old", ["'old one'"]),
        ('%agentrun show "o', ['"old one"']),
        ("%agentrun result ", ["#3", "#2", "#1", "failed", "done", "'old one'"]),
        ("%agentrun logs l", ["last"]),
        ("%agentrun show run-seq-0", ["run-seq-0"]),
        ("%agentrun approve ", []),
        ("%agentrun rm ", ["#3", "#2", "#1", "failed", "done", "'old one'"]),
        ("%agentrun resume ", ["#3", "failed"]),
        ("%agentrun lost ", []),
        ("%agentrun list --before #4", ["#4"]),
        ("%agentrun retry failed --approve d", ["deny"]),
        ("%agentrun export done --form ", ["jsonl", "json", "html", "md", "cassette"]),
        ("%agentrun replay done --speed ", ["1", "10", "max"]),
        ("%agentrun list --status f", ["failed"]),
    ],
)
def test_runs_are_offered_where_they_fit(runs: NotebookSession, shell: Shell, text: str, refs: list[str]) -> None:
    """Live ones to cancel, ended ones for a result, all to be shown: the newest first, then names, quoted."""
    assert offered(Completion(shell, runs), text) == refs


def test_files_are_left_to_ipython(completion: Completion) -> None:
    """It knows them better."""
    assert completion.offer("%agentrun export last --out ") is None


def test_questions_are_offered(session: NotebookSession, shell: Shell) -> None:
    """A run that asks is offered to be answered, and then what it asks."""

    async def asks(prompt: str, run: RunContext) -> None:
        await run.ask("really?")

    run = session.start(asks, "x", name="asker")
    assert run.live is not None
    while not run.pending:
        assert not run.wait(0.01)
    completion = Completion(shell, session)
    assert offered(completion, "%agentrun approve ") == ["#1", "last", "asker"]
    assert offered(completion, "%agentrun deny asker ") == [run.pending[0].id]
    run.deny(run.pending[0].id)


def test_last_is_offered_for_a_run_that_has_children(make_session: MakeSession, shell: Shell, held: Held) -> None:
    """The newest run that somebody started is `last`, live or ended, where its child is newer than it."""

    async def editor(prompt: str, run: RunContext) -> None:
        await run.ask("really?")
        await run.start_child(held, "x", name="writer")

    session = make_session()
    run = session.start(editor, "x", name="editor")
    while not run.pending:
        assert not run.wait(0.01)
    completion = Completion(shell, session)
    assert offered(completion, "%agentrun deny last ") == [run.pending[0].id]
    run.approve(run.pending[0].id)
    assert held.entered.wait(BOUND_S)
    assert session.live_runs[0].wait_created(BOUND_S)
    assert offered(completion, "%agentrun cancel ") == ["#2", "#1", "last", "writer", "editor"]


def test_a_name_that_nobody_would_type_is_not_offered(session: NotebookSession, shell: Shell) -> None:
    """Unprintable, very long, or with every kind of quote in it: there is the number."""
    for name in ("a\x1b[31m", "b" * 100, "c'\"d", "e\\f", "g'h"):
        assert session.start(agents.instant, "x", name=name).wait(BOUND_S)
    assert offered(Completion(shell, session), "%agentrun show ") == [*("#5", "#4", "#3", "#2", "#1"), "last", '"g\'h"']


def test_references_make_no_file_and_wait_for_no_store(make_session: MakeSession, shell: Shell, held: Held) -> None:
    """Without a run there is no file afterwards; while somebody else reads the store, references still come."""
    session = make_session()
    completion = Completion(shell, session)
    assert offered(completion, "%agentrun show ") == []
    file = session.store.wanted
    assert file is not None
    assert not file.exists()
    session.start(held, "x", name="live")
    answer: list[list[str]] = []
    with session.store._lock:  # as a reader of a long log holds it
        asking = asyncio.to_thread(offered, completion, "%agentrun show l")
        answer.append(asyncio.run(asyncio.wait_for(asking, BOUND_S)))
    assert answer == [["last", "live"]]


def test_runs_in_memory_are_offered_where_nothing_is_kept(
    make_session: MakeSession, shell: Shell, session: NotebookSession
) -> None:
    """A store in memory has no file to look at."""
    memory = make_session(store=SessionStore([], session.clock))
    assert memory.start(agents.instant, "x", name="kept").wait(BOUND_S)
    assert offered(Completion(shell, memory), "%agentrun show ") == ["#1", "last", "kept"]


# --- in IPython ------------------------------------------------------------------------------------


def completed(shell: Shell, text: str) -> list[str]:
    """Return what IPython's completer makes of a line."""
    with provisionalcompleter():
        return [found.text for found in shell.Completer.completions(text, len(text))]


def test_only_ours_stands_in_our_lines(completion: Completion, shell: Shell) -> None:
    """No keywords and no files, also where nothing is offered; in other lines nothing of ours."""
    completion.open()
    assert completed(shell, "%agentrun canc") == ["cancel"]
    assert completed(shell, "%%agentrun poet --timeout ") == []
    assert "number" in completed(shell, "numb")
    completion.close()
    assert completed(shell, "%agentrun canc") != ["cancel"]
    assert shell.Completer.custom_matchers == []
    completion.close()  # a second time is nothing


def test_an_error_does_not_surface(completion: Completion, shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever fails, Tab offers nothing of ours and says nothing of it."""

    def breaks() -> NoReturn:
        raise RuntimeError("no names today")

    shell.user_ns = types.SimpleNamespace(keys=breaks)  # type: ignore[assignment]
    completion.open()
    assert "pow" in completed(shell, "%%agentrun po")  # so others are asked
    assert capsys.readouterr() == ("", "")  # IPython would print a traceback


def test_sets_and_their_inputs_are_offered(shell: Shell, session: NotebookSession, completion: Completion) -> None:
    """`--map` offers what can be iterated over, but no text; what takes a set offers it by its id."""
    shell.user_ns.update(words=["tea"], rows={"a": "tea"}, later=iter(["tea"]), title="tea")
    assert offered(completion, "%%agentrun poet --map ") == ["later", "rows", "words"]
    made = session.map(agents.talking, ["tea"])
    assert made.wait(BOUND_S)
    assert offered(completion, "%agentrun show set") == [made.id]
    assert offered(completion, "%agentrun say set") == []
