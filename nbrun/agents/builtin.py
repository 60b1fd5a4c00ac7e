"""The built-in agent (`--model M`): chooses its model, and makes a pydantic-ai agent with it and its tools.

Order: the model given, `NBRUN_MODEL`, a provider's key, `OLLAMA_BASE_URL`, the local demo model. Models: `local` (tiny,
in this process, no key), `local:PATH` (a GGUF file), `scripted` (no model, always the same answer), `demo` (`local` if
it is installed, else `scripted`) and `provider:name` (any model of pydantic-ai).
"""

from __future__ import annotations

import shlex
from contextlib import AsyncExitStack, aclosing
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nbrun.agents import (
    Action,
    AgentAdapter,
    BadOption,
    EventData,
    Fix,
    Limitations,
    Output,
    RunContext,
    State,
    Worker,
    asks_first,
    is_installed,
    local_model,
    shown,
    type_name,
)
from nbrun.agents.pydantic_ai import adapter as pydantic_ai
from nbrun.agents.scripted import HAIKU, ScriptedAgent
from nbrun.core import RunOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from pydantic_ai import Agent, Tool
    from pydantic_ai.models import Model
    from pydantic_ai.toolsets import AbstractToolset

    Items = AsyncIterator[EventData | Output]

NO_SETUP = RunOptions()

LOCAL = "local"
SCRIPTED = "scripted"
DEMO = "demo"

LABELS = {LOCAL: "local (135 M parameters, tiny)", SCRIPTED: "scripted (no model)"}

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
"""Provider → the environment variables for its key; one of them must be set.

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
"""The models that are offered by name; `--model` takes any `provider:name`."""

_PACKAGES = {
    "anthropic": "anthropic", "google": "google.genai", "groq": "groq", "mistral": "mistralai",
    "cohere": "cohere", "xai": "xai_sdk",
}  # fmt: skip
"""Provider → the package with which pydantic-ai reaches it; openai's for all others."""

_INSTALL_FRAMEWORK = 'pip install "jupyter-nbrun[agents]"'


@dataclass(frozen=True, slots=True)
class ModelAgent:
    """A pydantic-ai agent that the run makes in a thread: importing it takes seconds."""

    model: str
    label: str
    setup: RunOptions = NO_SETUP


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model for `--model` and its description, or the problem that keeps it from being used here."""

    model: str
    description: str
    problem: str | None = None


def choose(
    model: str | None, environ: Mapping[str, str], setup: RunOptions = NO_SETUP
) -> tuple[ModelAgent | ScriptedAgent, str]:
    """Return the built-in agent for `model`, and the model's name on cards.

    Raises `BadOption` if there is no such model, its key or its package is missing, or nothing is configured at all.
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
        named = LOCAL if local_model.demo_problem() is None else SCRIPTED
    if named == SCRIPTED:
        if setup != NO_SETUP:
            raise BadOption("the scripted agent has no model: leave out tools and the like, or name another model")
        return ScriptedAgent(HAIKU), LABELS[SCRIPTED]
    if (problem := _problem(named, environ)) is not None:
        raise BadOption(f"--model {named}: {problem}")
    label = LABELS.get(named, named)
    return ModelAgent(named, label, setup), label


def named(label: str) -> str:
    """Return the model with this name on cards."""
    return next((model for model, words in LABELS.items() if words == label), label)


def configured(environ: Mapping[str, str]) -> str | None:
    """Return the default model."""
    if model := environ.get("NBRUN_MODEL"):
        return model
    for provider, default in DEFAULTS.items():
        if _keys_in(environ, provider):
            return default
    if environ.get("OLLAMA_BASE_URL"):
        return _ollama(environ)
    return LOCAL if local_model.demo_problem() is None else None


def model_choices(environ: Mapping[str, str]) -> list[ModelChoice]:
    """Return the available models, as far as is known without a network and without importing anything heavy."""
    problem = local_model.demo_problem()
    demo = LOCAL if problem is None else SCRIPTED
    choices = [
        ModelChoice(LOCAL, "in this process, tiny, no key", problem),
        ModelChoice(SCRIPTED, "no model: always gives the same answer"),
        ModelChoice(DEMO, f"the same as {demo} here"),
    ]
    for provider, keys in KEYS.items():
        found = _keys_in(environ, provider)
        problem = _uninstalled(provider) or (None if found else f"set {' or '.join(keys)}")
        model = DEFAULTS.get(provider, f"{provider}:NAME")
        choices.append(ModelChoice(model, f"{' and '.join(found)} found, not tried", problem))
    url = environ.get("OLLAMA_BASE_URL")
    problem = _uninstalled("ollama") or (None if url else "set OLLAMA_BASE_URL")
    choices.append(ModelChoice(_ollama(environ), "OLLAMA_BASE_URL found, not tried", problem))
    return choices


def _keys_in(environ: Mapping[str, str], provider: str) -> list[str]:
    return [key for key in KEYS[provider] if environ.get(key)]


def _ollama(environ: Mapping[str, str]) -> str:
    return f"ollama:{environ.get('OLLAMA_MODEL', 'llama3.2')}"


def _uninstalled(provider: str) -> str | None:
    """Return the command that installs what a provider's models need, if something is missing."""
    if not is_installed("pydantic_ai"):
        return _INSTALL_FRAMEWORK
    extra = provider if provider in _PACKAGES else "openai"
    if not is_installed(_PACKAGES.get(provider, "openai")):
        return f'pip install "pydantic-ai-slim[{extra}]"'
    return None


def _problem(model: str, environ: Mapping[str, str]) -> str | None:
    """Return why a model can't be used."""
    if model == LOCAL:
        return local_model.demo_problem()
    provider, colon, name = model.partition(":")
    if provider == LOCAL and name:
        return local_model.file_problem(local_model.own_file(name))
    if not colon or not name:
        return f"give local, local:PATH, scripted, demo, or provider:name such as {DEFAULTS['openai']}"
    if not is_installed("pydantic_ai"):
        return f"pydantic-ai is not installed: {_INSTALL_FRAMEWORK}"
    keys = KEYS.get(kind := provider.split("-")[0])
    if keys is None:
        return _provider_problem(provider)
    if not _keys_in(environ, kind):
        return f"it needs a key: set {' or '.join(keys)} in the environment of the kernel"
    return None


def _provider_problem(provider: str) -> str | None:
    """Ask pydantic-ai about a provider that has no key here; importing it takes a second."""
    from pydantic_ai.providers import infer_provider_class

    try:
        infer_provider_class(provider)
    except ValueError:
        return f"pydantic-ai has no provider '{provider}'; it has {', '.join(KEYS)} and others"
    except ImportError as error:  # the provider's own package; pydantic-ai says which
        return " ".join(str(error).split())
    return None


# --- the agent; imported only here, in a thread of a run ---------------------------------------------


def assemble(model: str, setup: RunOptions, warn: Callable[[str], None]) -> Agent[None, object]:
    """Return the pydantic-ai agent; a tool that can't be described to a model is left out, with a warning.

    Raises pydantic-ai's `UserError` if it has an MCP server, and the package for that is not installed.
    """
    from pydantic_ai import Agent

    return Agent(
        _model(model),
        tools=[tool for tool in (_tool(function, warn) for function in setup.tools or ()) if tool],
        instructions=setup.system,
        output_type=setup.output_type or str,
        toolsets=[_server(server) for server in setup.mcp or ()],
        model_settings=setup.settings,  # type: ignore[arg-type]  # of any provider: it checks them
    )


def _model(model: str) -> Model | str:
    provider, _, path = model.partition(":")
    if provider != LOCAL:
        return model
    from nbrun.agents.local_model.model import LocalModel

    return LocalModel(local_model.own_file(path) if path else None)


def _tool(function: Callable[..., object], warn: Callable[[str], None]) -> Tool[Any] | None:
    from pydantic_ai import Tool

    try:
        return Tool(function, requires_approval=asks_first(function))
    except Exception as error:  # whatever an annotation of the user's raises when it is evaluated
        name = getattr(function, "__name__", type_name(function))
        why = shown(str(error), 200)
        warn(f"the tool {name} is left out because it can't be described to a model: {why}")
        return None


def _server(server: str) -> AbstractToolset[Any]:
    """Return the tools of an MCP server: at a URL, or of a command that runs as long as the run."""
    try:
        from fastmcp.client import Client
        from fastmcp.client.transports import StdioTransport
        from pydantic_ai.mcp import MCPToolset
    except ImportError as error:
        from pydantic_ai.exceptions import UserError

        extra = 'pip install "jupyter-nbrun[mcp]"'
        raise UserError(f"an MCP server needs its client: {extra} ({error})") from None
    if server.startswith(("http://", "https://")):
        return MCPToolset(server)
    command, *args = shlex.split(server)
    # Kept alive, its process would outlast the run.
    return MCPToolset(Client(StdioTransport(command, args, keep_alive=False)))


async def make_agent(agent: ModelAgent, run: RunContext) -> Agent[None, object]:
    """Return the pydantic-ai agent, made in a worker thread: the import would block the loop for seconds."""
    make = partial(assemble, agent.model, agent.setup, partial(run.log, level="warning"))
    return await Worker(f"{run.run_id}-import", make, copy_context()).result()


async def _driven(agent: object, run: RunContext, begin: Callable[[Agent[None, object]], Items]) -> Items:
    assert isinstance(agent, ModelAgent)  # noqa: S101 - match() said so
    made = await make_agent(agent, run)
    async with AsyncExitStack() as stack:
        # Its connections belong to this run, so they are never used on another loop, and are closed with it.
        if (model := made.model) is not None and not isinstance(model, str):
            await stack.enter_async_context(model)
        items = await stack.enter_async_context(aclosing(begin(made)))  # type: ignore[type-var]  # a generator
        async for item in items:
            yield item


class BuiltinAdapter(AgentAdapter):
    """Makes the pydantic-ai agent and drives it with that framework's adapter."""

    name = "builtin"
    framework = pydantic_ai.FRAMEWORK
    limitations = Limitations()

    def match(self, agent: object) -> bool:
        """Return whether it is the built-in agent."""
        return isinstance(agent, ModelAgent)

    def label(self, agent: object) -> str:
        """Return its model's name without the provider."""
        model = agent.model if isinstance(agent, ModelAgent) else self.name
        return model.partition(":")[2] or model

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
