"""`%agentrun agents`: what can be run here, and what keeps the rest from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nbrun import ScriptedAgent, agents
from nbrun.agents import agent, builtin, local_model
from nbrun.agents.builtin import DEFAULTS, KEYS, model_choices
from nbrun.agents.scripted import HAIKU
from nbrun.core.errors import BadOption
from nbrun.ui.magics.agent_list import agents_text

Problems = Callable[[dict[str, str]], dict[str, str | None]]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No agent is registered, no key is set, and the local model is not here."""
    monkeypatch.setattr(agents, "_registered", {})
    for name in ("NBRUN_MODEL", "OLLAMA_BASE_URL", "OLLAMA_MODEL", *(k for ks in KEYS.values() for k in ks)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(local_model, "demo_problem", lambda: "run nbrun local install")


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> Problems:
    """What each model lacks in an environment, where no package but pydantic-ai and openai's is installed."""

    def find_spec(name: str) -> object:
        if name.startswith("google."):
            raise ModuleNotFoundError(name)
        return "a spec" if name in ("pydantic_ai", "openai") else None

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    return lambda environ: {choice.model: choice.problem for choice in model_choices(environ)}


def line_of(text: str, name: str) -> str:
    """Return the one line about a name."""
    (line,) = (line for line in text.splitlines() if line[4:].startswith(f"{name} "))
    return line.strip()


def test_agents_are_listed_with_their_problems() -> None:
    """What they are, and where a function wants too much, what; registered ones have their own place."""

    async def poet(prompt: str) -> None:
        """Write poems.

        Not shown.
        """

    def wants_more(prompt: str, key: str, other: str) -> None: ...

    @agent
    async def known(prompt: str) -> None: ...

    class Framework:
        def __call__(self, prompt: str) -> None: ...

        async def stream_async(self, prompt: str) -> None: ...

    names: dict[str, Any] = {
        "framework": Framework(), "poet": poet, "wants_more": wants_more, "known": known, "number": 3,
        "script": ScriptedAgent(HAIKU),
    }  # fmt: skip
    text = agents_text(names, (), "")
    assert line_of(text, "poet") == "✔ poet        function: Write poems."
    assert line_of(text, "script") == "✔ script      scripted, ScriptedAgent"
    assert "no adapter for Framework: it is run as a sync function" in line_of(text, "framework")
    assert "it also has stream_async" in line_of(text, "framework")
    assert line_of(text, "wants_more").startswith(
        "✘ wants_more  can't be used as an agent: it also requires 'key', 'other'"
    )
    assert line_of(text, "known") == "✔ known  function"
    assert text.index("poet") < text.index("Registered") < text.index("known") < text.index("Models")
    assert "number" not in text
    assert text.endswith("name an agent, or add --model")
    assert "  none: a function of one argument" in agents_text({}, (), "")


def test_the_default_model_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting's, else what the environment gives."""
    monkeypatch.setenv("OPENAI_API_KEY", "x" * 20)
    assert agents_text({}, (), "scripted").endswith("Default model: scripted")
    text = agents_text({}, (), "")
    assert text.endswith(f"Default model: {DEFAULTS['openai']}")
    assert "x" * 20 not in text


def test_models_are_listed_with_what_they_are_missing(problems: Problems) -> None:
    """A package, a key, an address, or nothing, as far as is known without a request."""
    found = problems({"OPENAI_API_KEY": "x" * 20, "GROQ_API_KEY": "x" * 20})
    assert found["scripted"] is None
    assert found["demo"] is None
    assert found["local"] == "run nbrun local install"
    assert found[DEFAULTS["openai"]] is None
    assert found[DEFAULTS["groq"]] == 'pip install "pydantic-ai-slim[groq]"'
    assert found[DEFAULTS["google"]] == 'pip install "pydantic-ai-slim[google]"'
    assert found["deepseek:NAME"] == "set DEEPSEEK_API_KEY"
    assert found["ollama:llama3.2"] == "set OLLAMA_BASE_URL"
    url = {"OLLAMA_BASE_URL": "http://user:secret@localhost", "OLLAMA_MODEL": "qwen3"}
    (ollama,) = (choice for choice in model_choices(url) if choice.model == "ollama:qwen3")
    assert (ollama.problem, "secret" in ollama.description) == (None, False)


def test_every_provider_with_a_key_is_listed(problems: Problems) -> None:
    """And each needs one of its keys, or its package first."""
    found = problems({})
    for provider in KEYS:
        (problem,) = (problem for model, problem in found.items() if model.startswith(f"{provider}:"))
        assert problem is not None
        assert problem.startswith(("set ", "pip install "))


def test_without_the_framework_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """No provider can be reached then; the scripted agent can."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    found = {choice.model: choice.problem for choice in model_choices({"OPENAI_API_KEY": "x" * 20})}
    assert found[DEFAULTS["openai"]] == 'pip install "jupyter-nbrun[agents]"'
    assert found["scripted"] is None


def test_a_model_that_is_listed_as_usable_is_accepted(problems: Problems) -> None:
    """Where nothing is lacking, starting a run on that model finds nothing lacking either, and the other way round."""
    environ = {"OPENAI_API_KEY": "x" * 20, "DEEPSEEK_API_KEY": "x" * 20}
    for model, problem in problems(environ).items():
        named = model.replace("NAME", "some-model")
        if problem is None:
            builtin.choose(named, environ)
        elif problem.startswith("set ") and not model.startswith("ollama"):
            with pytest.raises(BadOption, match="needs a key"):
                builtin.choose(named, environ)


def test_kinds_are_listed_with_their_limitations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason a line, with all that it keeps from them; of a framework that is not here, what to install."""
    text = agents_text({}, (), "")
    begin = text.index("Kinds of agents, and what they can't do:")
    kinds = text[begin : text.index("Models, for")].splitlines()
    place = next(n for n, line in enumerate(kinds) if line[4:].startswith("scripted "))
    assert kinds[place].endswith("no functions as tools: its tools are shown, not run")
    assert kinds[place].startswith("  ✔ scripted ")
    assert kinds[place + 1].strip() == "no approvals: it asks nothing"
    assert kinds[place].index("no ") == kinds[place + 1].index("no ")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    line = line_of(agents_text({}, (), ""), "pydantic-ai")
    assert line.startswith("✘ pydantic-ai ")
    assert line.endswith('pip install "jupyter-nbrun[agents]"')
