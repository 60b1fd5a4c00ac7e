"""The built-in agent: which model it uses, and its tools, instructions, output type and MCP servers on a test model."""

from __future__ import annotations

import asyncio
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

import nbrun
from nbrun import NotebookSession, RunStatus, ScriptedAgent
from nbrun.agents import builtin, local_model
from nbrun.agents.builtin import DEFAULTS, KEYS, LABELS, ModelAgent, assemble, choose
from nbrun.core.errors import Action, BadOption
from nbrun.core.options import RunOptions
from tests.fakes.agents import BOUND_S
from tests.fakes.people import asking

if TYPE_CHECKING:
    from nbrun import Run
    from tests.conftest import MakeSession

MCP_S = 40
"""Client and server import for seconds each, on a busy machine."""
ROOT = Path(__file__).parents[2]


@dataclass
class Cup:
    """What an agent may return."""

    tea: str
    grams: int


def brew(tea, grams=2):  # type: ignore[no-untyped-def]  # as people write it in a notebook
    """Brew tea."""
    return f"{tea}: {grams} g"


def odd(tea: "Missing") -> str:  # type: ignore[name-defined]  # noqa: F821, UP037 - that is the point
    """Take what nobody has defined."""
    return "never"


def run_on(session: NotebookSession, setup: RunOptions, **options: Any) -> Run:
    """Return an ended run of the built-in agent on the test model, which calls each of its tools once."""
    run = session.start(ModelAgent("test", "test", setup), "tea", **options)
    assert run.wait(BOUND_S)
    return run


def test_untyped_functions_are_tools(session: NotebookSession) -> None:
    """A function without annotations is called by the model, with what it was described as."""
    run = run_on(session, RunOptions(tools=(brew,)))
    assert run.status is RunStatus.COMPLETED
    assert [(tool.name, tool.status) for tool in run.record.tools] == [("brew", "ok")]


def test_a_tool_that_cannot_be_described_is_left_out(session: NotebookSession) -> None:
    """The others work; a warning names it and says why."""
    run = run_on(session, RunOptions(tools=(odd, brew)))
    assert run.status is RunStatus.COMPLETED
    assert [tool.name for tool in run.record.tools] == ["brew"]
    [warning] = run.record.notices
    assert warning.startswith("the tool odd is left out because it can't be described to a model: ")
    assert "Missing" in warning


def test_instructions_reach_the_model() -> None:
    """What `system` says goes with each request."""
    sent: list[str | None] = []

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        sent.extend(m.instructions for m in messages if isinstance(m, ModelRequest))
        return ModelResponse([TextPart("yes")])

    agent: Agent[None, Any] = assemble("test", RunOptions(system="Be brief."), print)
    result = asyncio.run(agent.run("tea", model=FunctionModel(answer)))  # run_sync() leaves its loop open
    assert result.output == "yes"
    assert sent == ["Be brief."]


def test_settings_reach_the_model_step_by_step() -> None:
    """A dict goes with each request; a function is asked before each."""
    sent: list[object] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        sent.append((info.model_settings or {}).get("temperature"))
        return ModelResponse([TextPart("yes")])

    for settings in ({"temperature": 0.5}, lambda context: {"temperature": context.run_step / 10}):
        agent: Agent[None, Any] = assemble("test", RunOptions(settings=settings), print)
        asyncio.run(agent.run("tea", model=FunctionModel(answer)))
    assert sent == [0.5, 0.1]


def test_the_output_is_an_instance_of_its_type(session: NotebookSession) -> None:
    """A dataclass of the notebook is filled by the model, and is `run.output`."""
    run = run_on(session, RunOptions(output_type=Cup))
    assert isinstance(run.output, Cup)


def test_a_tool_under_needs_approval_asks_first(session: NotebookSession) -> None:
    """It runs once it is allowed; the question shows its arguments."""
    called: list[str] = []

    @nbrun.needs_approval
    def pour(cup: str) -> str:
        """Pour."""
        called.append(cup)
        return "poured"

    run = session.start(ModelAgent("test", "test", RunOptions(tools=(pour,))), "tea")
    asked = asking(run)[0]
    assert (asked.message, called) == ("Use pour?", [])
    run.approve(asked.id)
    assert run.wait(BOUND_S)
    assert (len(called), run.record.tools[0].result) == (1, "poured")


@pytest.mark.timeout(MCP_S + 20)
def test_an_mcp_server_brings_its_tools_and_ends_with_the_run(
    session: NotebookSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command is started for the run; its tool is called; its process is gone at the end."""
    monkeypatch.chdir(ROOT)
    kept = tmp_path / "pid"
    command = shlex.join([sys.executable, "-m", "tests.fakes.mcp_server", str(kept)])
    run = session.start(ModelAgent("test", "test", RunOptions(mcp=(command,))), "tea")
    assert run.wait(MCP_S)
    assert run.status is RunStatus.COMPLETED, run.error
    assert [(tool.name, tool.status) for tool in run.record.tools] == [("boil", "ok")]
    assert not psutil.pid_exists(int(kept.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "given",
    [
        {"tools": [brew]}, {"system": "Be brief."}, {"output_type": Cup}, {"mcp": "false planted"},
        {"settings": {"temperature": 0.5}},
    ],
    ids=lambda given: next(iter(given)),
)  # fmt: skip
def test_a_later_kernel_asks_for_the_setup_again(make_session: MakeSession, given: dict[str, Any]) -> None:
    """No policy comes from a record, and without it the agent would be another one."""
    first = make_session()
    run = first.start(model="local", prompt="tea", **given)
    run.cancel()
    assert run.wait(BOUND_S)
    first.close()
    second = make_session()
    second.find_agent = {"brew": brew, "Cup": Cup}.get
    [option] = given
    for again in (second.get(run.id).retry, partial(second.get(run.id).continue_with, "more")):
        with pytest.raises(BadOption, match=rf"more than is taken from a record \({option}: .*; give that again"):
            again()
    again_given = second.get(run.id).retry(**given)
    again_given.cancel()
    assert again_given.wait(BOUND_S)
    assert again_given.record.options == run.record.options
    without = second.get(run.id).retry(**{option: None})
    without.cancel()
    assert without.wait(BOUND_S)
    assert without.record.options == {}


def test_this_kernel_has_the_setup(session: NotebookSession) -> None:
    """A retry is the same agent; with another model or tool, the rest of its setup stays."""
    run = session.start(model="local", prompt="tea", tools=[brew], system="Be brief.")
    run.cancel()
    assert run.wait(BOUND_S)
    same, other = run.retry(), run.retry(system="Be long.")
    for one in (same, other):
        one.cancel()
        assert one.wait(BOUND_S)
    assert same.live is not None
    assert run.live is not None
    assert same.live.agent is run.live.agent
    assert other.record.options == {"tools": ["brew"], "system": "Be long."}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tools": ["brew"]}, "a tool must be a function, not str"),
        ({"system": 3}, "system must be a str, not int"),
        ({"output_type": "Cup"}, "output_type must be a class"),
        ({"mcp": [" "]}, "mcp must be a command or a URL"),
        ({"settings": 0.5}, r"settings must be a dict such as \{'temperature': 0\}, not float"),
    ],
)
def test_what_the_agent_cannot_take_is_refused(session: NotebookSession, given: dict[str, Any], message: str) -> None:
    """One line names the fix, and nothing is started."""
    with pytest.raises(BadOption, match=message):
        session.start(None, "tea", model="local", **given)
    assert session.runs() == []


def test_an_agent_of_ones_own_takes_no_setup(session: NotebookSession) -> None:
    """Tools given with an agent would be lost without a word."""

    async def mine(prompt: str) -> str:
        return prompt

    with pytest.raises(BadOption, match=r"^tools: only for the built-in agent"):
        session.start(mine, "tea", tools=[brew])


def test_a_model_of_ones_own_is_a_file(session: NotebookSession, tmp_path: Path) -> None:
    """One that does not exist, or is not a model, is reported in one line."""
    with pytest.raises(BadOption, match="can't be read: No such file"):
        session.start(None, "tea", model=f"local:{tmp_path}/gone.gguf")
    text = tmp_path / "notes.gguf"
    text.write_text("tea", encoding="utf-8")
    with pytest.raises(BadOption, match="isn't a model file in the GGUF format"):
        session.start(None, "tea", model=f"local:{text}")


def test_a_model_of_ones_own_answers(session: NotebookSession, tmp_path: Path) -> None:
    """A GGUF file at any path is loaded instead of the demo model, which is loaded again after it."""
    demo = local_model.demo_file()
    assert demo is not None
    mine = tmp_path / "mine.gguf"
    mine.symlink_to(demo)
    own = session.start(None, "Say hello.", model=f"local:{mine}", max_tokens=4_000)
    assert own.wait(BOUND_S)
    assert (own.status, own.record.model) == (RunStatus.COMPLETED, f"local:{mine}")
    assert own.text
    again = session.start(None, "Say hello.", model="local")
    assert again.wait(BOUND_S)
    assert again.status is RunStatus.COMPLETED


# --- which model -------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["local", "no-local"])
def has_local(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the local model is installed, both ways."""
    installed = bool(request.param)
    problem = None if installed else "it is not installed"
    monkeypatch.setattr(local_model, "demo_problem", lambda: problem)
    return installed


def model(named: str | None, environ: dict[str, str]) -> str:
    """Return the model string that is chosen."""
    agent, _label = choose(named, environ)
    return agent.model if isinstance(agent, ModelAgent) else "scripted"


@pytest.mark.usefixtures("has_local")
def test_the_order_is_model_setting_key_ollama() -> None:
    """What is given wins over NBRUN_MODEL, that over a provider's key, that over Ollama."""
    environ = {
        "NBRUN_MODEL": "groq:some-model",
        "GROQ_API_KEY": "x" * 20,
        "ANTHROPIC_API_KEY": "x" * 20,
        "OLLAMA_BASE_URL": "http://localhost:11434",
        "OLLAMA_MODEL": "qwen3",
    }
    assert model("anthropic:claude", environ) == "anthropic:claude"
    assert model(None, environ) == "groq:some-model"
    del environ["NBRUN_MODEL"]
    assert model(None, environ) == DEFAULTS["anthropic"]
    del environ["ANTHROPIC_API_KEY"]
    assert model(None, environ) == DEFAULTS["groq"]
    del environ["GROQ_API_KEY"]
    assert model(None, environ) == "ollama:qwen3"


def test_with_nothing_configured_the_local_model_is_taken_or_the_ways_are_listed(*, has_local: bool) -> None:
    """The last resort is the local model; without it one line lists all that would do."""
    if has_local:
        agent, label = choose(None, {})
        assert isinstance(agent, ModelAgent)
        assert (agent.model, label) == ("local", LABELS["local"])
        assert "tiny" in label
        return
    with pytest.raises(BadOption) as caught:
        choose(None, {})
    for way in ("--model", "NBRUN_MODEL", "OPENAI_API_KEY", "OLLAMA_BASE_URL", "install the local model"):
        assert way in str(caught.value)
    assert [fix.action for fix in caught.value.fixes] == [Action.INSTALL_LOCAL_MODEL]
    assert "\n" not in str(caught.value)


def test_demo_is_the_local_model_or_the_script(*, has_local: bool) -> None:
    """`demo` always works, and its label says which of the two it is."""
    agent, label = choose("demo", {})
    assert isinstance(agent, ModelAgent if has_local else ScriptedAgent)
    assert label == LABELS["local" if has_local else "scripted"]


def test_local_without_its_model_names_the_fix(*, has_local: bool) -> None:
    """Asking for it by name does not fall back silently."""
    if has_local:
        assert model("local", {}) == "local"
        return
    with pytest.raises(BadOption, match="--model local: it is not installed"):
        choose("local", {})


@pytest.mark.parametrize("provider", KEYS)
def test_a_missing_key_names_its_variable(provider: str) -> None:
    """No run is made of a model that could not be asked; any of the provider's variables will do."""
    with pytest.raises(BadOption, match=KEYS[provider][0]):
        choose(f"{provider}:some-model", {})
    for key in KEYS[provider]:
        assert model(f"{provider}:some-model", {key: "x" * 20}) == f"{provider}:some-model"


@pytest.mark.parametrize("named", ["gpt", ":", "openai:", ":name", ""])
def test_an_invalid_model_is_one_line(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what a model looks like."""
    monkeypatch.setattr(local_model, "demo_problem", lambda: "it is not installed")
    with pytest.raises(BadOption, match=r"provider:name|No agent and no model|no provider"):
        choose(named, {})


def test_without_the_framework_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pydantic-ai is not installed, the message is the command that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadOption, match=r"pip install .*\[agents\]"):
        choose("openai:gpt", {"OPENAI_API_KEY": "x" * 20})


def test_a_model_is_called_by_its_name_without_the_provider() -> None:
    """`openai:gpt` is `gpt` on a card."""
    assert builtin.ADAPTER.label(ModelAgent("openai:gpt", "openai:gpt")) == "gpt"
    assert builtin.ADAPTER.label(ModelAgent("local", "local")) == "local"
