"""The built-in agent (`--model M`): which model it runs on, and how that is found out.

Order: the model given, `NBRUN_MODEL`, a provider's key, `OLLAMA_BASE_URL`, the local demo model.

| model | what it is |
| --- | --- |
| `local` | the tiny local model, in process, no key |
| `scripted` | the scripted agent: says the same to everything, for teaching without any model |
| `local:PATH` | a model of your own: a GGUF file, in process |
| `demo` | `local` where it is installed, else `scripted` |
| `provider:name` | any model string of pydantic-ai |
"""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from nbrun.agents import (
    Action,
    BadOption,
    EventData,
    Fix,
    Lacks,
    Output,
    RunContext,
    State,
    Worker,
    is_installed,
)
from nbrun.agents.builtin.options import local_file
from nbrun.agents.pydantic_ai import adapter as pydantic_ai
from nbrun.agents.scripted import HAIKU, ScriptedAgent
from nbrun.core.options import RunOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from pydantic_ai import Agent

    Items = AsyncIterator[EventData | Output]

NO_SETUP = RunOptions()

LOCAL = "local"
SCRIPTED = "scripted"
DEMO = "demo"

LABELS = {
    LOCAL: "local (135 M parameters, tiny)",
    SCRIPTED: "scripted (no model)",
}

KEYS: dict[str, tuple[str, ...]] = {
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "google": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
    "groq": ("GROQ_API_KEY",),
    "mistral": ("MISTRAL_API_KEY",),
    "cohere": ("CO_API_KEY",),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY",),
    "together": ("TOGETHER_API_KEY",),
    "xai": ("XAI_API_KEY",),
}
"""Provider → the environment variables of which one must hold its key.

Source: the providers of pydantic-ai, which refuse to be made without it.
"""

DEFAULTS = {
    "openai": "openai:gpt-5.6-luna",
    "anthropic": "anthropic:claude-haiku-4-5",
    "google": "google:gemini-3.5-flash-lite",
    "groq": "groq:openai/gpt-oss-20b",
    "mistral": "mistral:mistral-small-latest",
}
"""Provider → the model taken when only its key is there."""

KNOWN = (LOCAL, SCRIPTED, DEMO, *DEFAULTS.values())
"""Models that have a name here; `--model` takes any `provider:name`."""

_PACKAGES = {
    "anthropic": "anthropic", "google": "google.genai", "groq": "groq", "mistral": "mistralai",
    "cohere": "cohere", "xai": "xai_sdk",
}  # fmt: skip
"""Provider → the package that pydantic-ai reaches it by; openai's for all others."""


@dataclass(frozen=True, slots=True)
class ModelAgent:
    """A pydantic-ai agent to be made on the run's thread: importing it takes seconds."""

    model: str
    label: str
    setup: RunOptions = NO_SETUP


def choose(
    model: str | None, environ: Mapping[str, str], setup: RunOptions = NO_SETUP
) -> tuple[ModelAgent | ScriptedAgent, str]:
    """Return the built-in agent for `model`, and what cards call its model.

    Raises
    ------
    BadOption
        There is no such model, its key or its package is missing, or nothing is configured at all.
    """
    named = model or configured(environ)
    if named is None:
        raise BadOption(
            "No agent and no model given. Name a function, add --model, or set NBRUN_MODEL, OLLAMA_BASE_URL or an "
            f"API key ({', '.join(KEYS[provider][0] for provider in DEFAULTS)})",
            fixes=[Fix(Action.INSTALL_LOCAL_MODEL, purpose="or install the local model")],
        )
    named = named.strip()
    if named == DEMO:
        named = LOCAL if _local_lack() is None else SCRIPTED
    if named == SCRIPTED:
        if setup != NO_SETUP:
            raise BadOption(
                "the scripted agent has no model: leave tools and the like out, or name another model"
            )
        return ScriptedAgent(HAIKU), LABELS[SCRIPTED]
    _check(named, environ)
    label = LABELS.get(named, named)
    return ModelAgent(named, label, setup), label


def named(label: str) -> str:
    """Return the model that cards call so."""
    return next((model for model, words in LABELS.items() if words == label), label)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model that `--model` takes, and what speaks for it; or, as `lack`, why it cannot be used here."""

    model: str
    words: str
    lack: str | None = None


def configured(environ: Mapping[str, str]) -> str | None:
    """Return the model that is taken where none is given."""
    return environ.get("NBRUN_MODEL") or _found_in(environ)


def model_choices(environ: Mapping[str, str]) -> list[ModelChoice]:
    """Return the models there are, as far as can be told without a network and without importing anything heavy."""
    lack = _local_lack()
    stand_in = LOCAL if lack is None else SCRIPTED
    choices = [
        ModelChoice(LOCAL, "in this process, tiny, no key", lack),
        ModelChoice(SCRIPTED, "no model at all: says the same to everything"),
        ModelChoice(DEMO, f"the same as {stand_in} here"),
    ]
    for provider, keys in KEYS.items():
        found = [key for key in keys if environ.get(key)]
        lack = _package_lack(provider) or (None if found else f"set {' or '.join(keys)}")
        model = DEFAULTS.get(provider, f"{provider}:NAME")
        choices.append(ModelChoice(model, f"{' and '.join(found)} found, not tried", lack))
    url = environ.get("OLLAMA_BASE_URL")
    lack = _package_lack("ollama") or (None if url else "set OLLAMA_BASE_URL")
    model = f"ollama:{environ.get('OLLAMA_MODEL', 'llama3.2')}"
    choices.append(ModelChoice(model, "OLLAMA_BASE_URL found, not tried", lack))
    return choices


def _package_lack(provider: str) -> str | None:
    """Return what is to be installed before a provider's models can be used."""
    if not is_installed("pydantic_ai"):
        return 'pip install "jupyter-nbrun[agents]"'
    extra = provider if provider in _PACKAGES else "openai"
    if not is_installed(_PACKAGES.get(provider, "openai")):
        return f'pip install "pydantic-ai-slim[{extra}]"'
    return None


def _found_in(environ: Mapping[str, str]) -> str | None:
    for provider, default in DEFAULTS.items():
        if any(environ.get(key) for key in KEYS[provider]):
            return default
    if environ.get("OLLAMA_BASE_URL"):
        return f"ollama:{environ.get('OLLAMA_MODEL', 'llama3.2')}"
    return LOCAL if _local_lack() is None else None


def _check(model: str, environ: Mapping[str, str]) -> None:
    if model == LOCAL:
        if (problem := _local_lack()) is not None:
            raise BadOption(f"--model local: {problem}")
        return
    provider, colon, name = model.partition(":")
    if provider == LOCAL and name:
        _check_file(model, name)
        return
    if not colon or not name:
        raise BadOption(
            f"--model {model}: give local, local:PATH, scripted, demo, or provider:name such as {DEFAULTS['openai']}"
        )
    if not is_installed("pydantic_ai"):
        raise BadOption(f'--model {model} needs pydantic-ai: pip install "jupyter-nbrun[agents]"')
    keys = KEYS.get(provider.split("-")[0])
    if keys and not any(environ.get(key) for key in keys):
        raise BadOption(
            f"--model {model} needs a key: set {' or '.join(keys)} in the environment of the kernel"
        )
    if keys is None:
        _check_provider(model, provider)


def _check_file(model: str, path: str) -> None:
    from nbrun.agents.local_model import install

    if (lack := install.model_lack(local_file(path))) is not None:
        raise BadOption(f"--model {model}: {lack}")


def _check_provider(model: str, provider: str) -> None:
    """Ask pydantic-ai about a provider that has no key here; that takes the second of its import."""
    from pydantic_ai.providers import infer_provider_class

    try:
        infer_provider_class(provider)
    except ValueError:
        raise BadOption(
            f"--model {model}: pydantic-ai has no provider '{provider}'; it has {', '.join(KEYS)} and others"
        ) from None
    except ImportError as error:  # the provider's own package; pydantic-ai says which
        raise BadOption(f"--model {model}: {' '.join(str(error).split())}") from None


def _local_lack() -> str | None:
    """Return what the local model lacks; imported here, so that its module can also be run as a program."""
    from nbrun.agents.local_model import install

    return install.missing()


async def make_agent(agent: ModelAgent, run: RunContext) -> Agent[None, object]:
    """Return the pydantic-ai agent, made in a worker thread: the import would block the loop for seconds."""

    def make() -> Agent[None, object]:
        from nbrun.agents.builtin.assembly import assemble

        return assemble(agent.model, agent.setup, partial(run.log, level="warning"))

    return await Worker(f"{run.run_id}-import", make, copy_context()).result()


async def _driven(
    agent: object, run: RunContext, begin: Callable[[Agent[None, object]], Items]
) -> Items:
    assert isinstance(agent, ModelAgent)  # noqa: S101 - match() said so
    made = await make_agent(agent, run)
    async with AsyncExitStack() as stack:
        # Its connections are this run's own, so no other loop ever meets them, and closed with it.
        if (model := made.model) is not None and not isinstance(model, str):
            await stack.enter_async_context(model)
        items = await stack.enter_async_context(aclosing(begin(made)))  # type: ignore[type-var]  # a generator
        async for item in items:
            yield item


class BuiltinAdapter:
    """Makes the pydantic-ai agent and drives it as that framework's adapter does."""

    name = "builtin"
    framework = pydantic_ai.FRAMEWORK
    lacks = Lacks()

    def match(self, agent: object) -> bool:
        """Return whether it is the built-in agent."""
        return isinstance(agent, ModelAgent)

    def check(self, agent: object) -> None:
        """Accept it: its model was checked when it was chosen."""

    def label(self, agent: object) -> str:
        """Return its model's name without the provider."""
        return (
            agent.model.partition(":")[2] or agent.model
            if isinstance(agent, ModelAgent)
            else self.name
        )

    def events(self, agent: object, prompt: str, run: RunContext) -> Items:
        """Yield what the model does."""
        return _driven(agent, run, lambda made: pydantic_ai.ADAPTER.events(made, prompt, run))

    def resume(self, agent: object, state: State, run: RunContext) -> Items:
        """Yield what the model does from there on."""
        return _driven(agent, run, lambda made: pydantic_ai.ADAPTER.resume(made, state, run))

    async def cancel(self, run: RunContext) -> None:
        """Stop the model through pydantic-ai."""
        await pydantic_ai.ADAPTER.cancel(run)


ADAPTER = BuiltinAdapter()
