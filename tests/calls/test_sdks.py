"""The providers' own packages, used by plain functions: counted, priced and closed by a cancel."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import anthropic
import openai
import pytest
from google import genai
from google.genai import types

from nbrun import NotebookSession, events as ev
from nbrun.agents.pricing import cost_usd
from tests.conftest import MakeSession
from tests.fakes.agents import BOUND_S
from tests.fakes.provider import ASKED, FORMS, Provider

pytestmark = [
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The model .* is deprecated:DeprecationWarning"),  # as time goes by
]

HELLO: Any = [{"role": "user", "content": "Hello"}]


class Sdk(NamedTuple):
    """One way to use a package: its clients, and how one is asked for an answer, or a stream of one."""

    form: str
    provider: str
    model: str
    make: Callable[[], Any]
    make_async: Callable[[], Any]
    ask: Callable[[Any, str, bool], Any]


def _openai(kind: Any) -> Any:
    return lambda: kind(api_key="none", base_url="http://api.openai.com/v1", max_retries=0)


def _anthropic(kind: Any) -> Any:
    return lambda: kind(api_key="none", base_url="http://api.anthropic.com", max_retries=0)


def _google() -> Any:
    options = types.HttpOptions(base_url="http://generativelanguage.googleapis.com")
    return genai.Client(api_key="none", vertexai=False, http_options=options)


def _chat(client: Any, model: str, stream: bool) -> Any:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return client.chat.completions.create(model=model, messages=HELLO, stream=stream, **options)


def _generate(client: Any, model: str, stream: bool) -> Any:
    models = client.models
    return (models.generate_content_stream if stream else models.generate_content)(model=model, contents="Hello")


class LiteLlm:
    """litellm's functions as a client; it is large, so `test_large_frameworks` installs it elsewhere."""

    def __init__(self, name: str) -> None:
        self._function = getattr(pytest.importorskip("litellm"), name)

    def ask(self, model: str, stream: bool) -> Any:
        """Ask, or return what does."""
        # Not through a proxy: it keeps its clients, with theirs.
        options = {"api_base": os.environ["HTTP_PROXY"], "api_key": "none", "num_retries": 0}
        return self._function(model=f"anthropic/{model}", messages=HELLO, stream=stream, **options)

    def close(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""


SDKS = {
    "openai": Sdk("chat", "openai", "gpt-4o", _openai(openai.OpenAI), _openai(openai.AsyncOpenAI), _chat),
    "openai-responses": Sdk(
        "responses", "openai", "gpt-4o", _openai(openai.OpenAI), _openai(openai.AsyncOpenAI),
        lambda client, model, stream: client.responses.create(model=model, input="Hello", stream=stream),
    ),
    "anthropic": Sdk(
        "anthropic", "anthropic", "claude-sonnet-4-6",
        _anthropic(anthropic.Anthropic), _anthropic(anthropic.AsyncAnthropic),
        lambda client, model, stream: client.messages.create(
            model=model, max_tokens=99, messages=HELLO, stream=stream
        ),
    ),
    "litellm": Sdk(
        "anthropic", "anthropic", "claude-sonnet-4-6",
        lambda: LiteLlm("completion"), lambda: LiteLlm("acompletion"),
        lambda client, model, stream: client.ask(model, stream),
    ),
    "google-genai": Sdk("google", "google", "gemini-2.5-flash", _google, lambda: _google().aio, _generate),
}  # fmt: skip


ELSEWHERE = [pytest.mark.packages, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]
NAMES = [pytest.param(name, marks=ELSEWHERE if name == "litellm" else ()) for name in SDKS]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """Return a provider that answers for all of them, as the proxy for their names."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it is fetched otherwise
    with Provider() as provider:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, provider.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        for name in ("ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield provider


def ask(sdk: Sdk, client: Any, stream: bool) -> None:
    """Ask and read the answer."""
    answer: Any = sdk.ask(client, sdk.model, stream)
    if stream:
        for _ in answer:
            pass


async def ask_async(sdk: Sdk, stream: bool) -> None:
    """Do the same with an async client of its own."""
    client = sdk.make_async()
    try:
        answer: Any = await sdk.ask(client, sdk.model, stream)
        if stream:
            async for _ in answer:
                pass
    finally:
        await (getattr(client, "aclose", None) or client.close)()


@pytest.mark.parametrize("way", ["sync", "async", "own loop"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", NAMES)
def test_what_a_package_uses_is_what_the_provider_counts(
    session: NotebookSession, provider: Provider, name: str, stream: bool, way: str
) -> None:
    """The tokens, those from a cache and those of reasoning, and the price; each once."""
    sdk = SDKS[name]

    sdk.make().close()  # imported before it is waited for

    def asks() -> None:
        with closing(sdk.make()) as client:
            ask(sdk, client, stream)

    async def asks_async() -> None:
        await ask_async(sdk, stream)

    agents: dict[str, Callable[[], object]] = {
        "sync": asks,
        "async": asks_async,
        "own loop": lambda: asyncio.run(asks_async()),
    }
    run = session.start(agents[way])
    assert run.wait(BOUND_S)
    run.result()
    form = FORMS[sdk.form]
    used = ev.Usage(ASKED, provider.words or 0, form.cached, form.reasoned, requests=1)
    cost = cost_usd(
        sdk.model,
        provider=sdk.provider,
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        cache_read_tokens=used.cache_read_tokens,
    )
    assert cost
    assert len(provider.requests) == 1
    assert run.usage == ev.Usage(ASKED, provider.words or 0, form.cached, form.reasoned, 1, cost)
    [started] = [event.data for event in run.events() if isinstance(event.data, ev.CallStarted)]
    assert (started.provider, started.model) == (sdk.provider, sdk.model)


TRIES = 20


@pytest.mark.parametrize("way", ["sync", "async", "own loop"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", NAMES)
def test_a_cancel_closes_the_call_of_a_package(
    make_session: MakeSession, provider: Provider, name: str, stream: bool, way: str
) -> None:
    """Each time, at once, and its client can be used again."""
    sdk = SDKS[name]
    provider.words = None
    provider.hold = None if stream else threading.Event()
    session = make_session(cancel_grace_s=2 * BOUND_S)  # so it isn't the grace period that ends it
    with closing(sdk.make()) as client:

        def asks() -> None:
            try:
                ask(sdk, client, stream)
            except Exception as error:
                raise AssertionError("it would be tried again") from error

        async def asks_async() -> None:
            await ask_async(sdk, stream)

        agents: dict[str, Callable[[], object]] = {
            "sync": asks,
            "async": asks_async,
            "own loop": lambda: asyncio.run(asks_async()),
        }
        for _ in range(TRIES if way == "sync" else 3):
            while provider.spoke.acquire(blocking=False):
                pass
            run = session.start(agents[way])
            assert provider.arrived.acquire(timeout=BOUND_S)
            if stream:
                assert provider.spoke.acquire(timeout=BOUND_S)
            run.cancel()
            assert provider.hung_up.acquire(timeout=BOUND_S)
            assert run.wait(BOUND_S)
            assert (run.status, run.record.detached, run.error) == ("cancelled", (), None)
            assert [call.data.status for call in run.events() if isinstance(call.data, ev.CallFinished)] == [
                "cancelled"
            ]
