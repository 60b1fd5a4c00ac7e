"""The built-in agent: which model it runs on, in which order, and what is said when there is none."""

from __future__ import annotations

import pytest

from nbrun import ScriptedAgent
from nbrun.agents import builtin, local_model
from nbrun.agents.builtin import DEFAULTS, KEYS, LABELS, ModelAgent, choose
from nbrun.core.errors import Action, BadOption


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


def test_with_nothing_configured_the_local_model_is_taken_or_the_ways_are_listed(
    *, has_local: bool
) -> None:
    """The last resort is the local model; without it one line lists all that would do."""
    if has_local:
        agent, label = choose(None, {})
        assert isinstance(agent, ModelAgent)
        assert (agent.model, label) == ("local", LABELS["local"])
        assert "tiny" in label
        return
    with pytest.raises(BadOption) as caught:
        choose(None, {})
    for way in (
        "--model",
        "NBRUN_MODEL",
        "OPENAI_API_KEY",
        "OLLAMA_BASE_URL",
        "install the local model",
    ):
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
def test_what_is_no_model_is_one_line(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
