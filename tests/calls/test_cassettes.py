"""Cassettes: the model calls of a run in a file, which other runs are answered from, offline."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import aiohttp
import httpx
import httpx2
import openai
import pytest
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from nbrun import NotebookSession, Run, RunContext, RunStatus, events as ev
from nbrun.calls import cassette
from nbrun.core.errors import BadOption, BadRecording
from nbrun.core.journal import MAX_ANSWER, MAX_JOURNAL, journal_name
from tests.fakes.agents import BOUND_S
from tests.fakes.provider import ASKED, FORMS, Provider

KEY = "sk-3141592653589793"
PACKAGES = [pytest.param(package, id=package.__name__) for package in (httpx, httpx2)]


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider that has been started."""
    with Provider() as provider:
        yield provider


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no socket lead anywhere else than to this machine."""
    connect = socket.socket.connect

    def only_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a socket to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)


def ended(run: Run, status: RunStatus = RunStatus.COMPLETED) -> Run:
    """Return the run when it has ended so."""
    assert run.wait(BOUND_S), run.record
    assert run.status is status, run.error
    return run


def sources(run: Run) -> list[str]:
    """Return where the answers to a run's calls came from."""
    return [event.data.source for event in run.events() if isinstance(event.data, ev.CallFinished)]


def warnings(run: Run) -> str:
    """Return what the run's log warns of."""
    found = [event.data for event in run.events() if isinstance(event.data, ev.Log)]
    return "\n".join(log.text for log in found if log.level == "warning")


class Asker:
    """An agent that asks some questions with a package's client, streamed or not."""

    def __init__(self, url: str, package: Any = httpx2, form: str = "chat", *, stream: bool = True) -> None:
        self.package, self.form, self.stream = package, form, stream
        path = FORMS[form].path
        if form == "google":
            path = f"{path}?alt=sse" if stream else path.replace("streamG", "g")
        self.url = url + path
        self.questions = ["one", "two"]

    def body(self, question: str) -> dict[str, Any]:
        """Return a request."""
        return {"model": "gpt-4o", "stream": self.stream, "messages": [{"role": "user", "content": question}]}

    def __call__(self, prompt: str) -> list[str]:
        """Ask."""
        answers = []
        with self.package.Client(verify=False, headers={"authorization": f"Bearer {KEY}", "cookie": KEY}) as client:
            for question in self.questions:
                with client.stream("POST", self.url, json=self.body(question)) as response:
                    response.raise_for_status()
                    answers.append("".join(response.iter_text()))
        return answers

    async def asks(self, prompt: str) -> list[str]:
        """Ask with an async client."""
        answers = []
        async with self.package.AsyncClient(verify=False) as client:
            for question in self.questions:
                async with client.stream("POST", self.url, json=self.body(question)) as response:
                    answers.append("".join([text async for text in response.aiter_text()]))
        return answers


def recorded(session: NotebookSession, agent: Any, path: Path) -> Run:
    """Run an agent, and keep its calls in a file."""
    run = ended(session.start(agent, "tea"))
    assert run.export(path, "cassette") == path
    return run


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("stream", [True, False])
def test_a_run_is_answered_from_the_file(
    session: NotebookSession, tmp_path: Path, package: Any, form: str, *, stream: bool
) -> None:
    """The same bytes, sync and async, when the provider is gone; the calls are shown, and cost nothing."""
    path = tmp_path / "tea.cassette.jsonl"
    with Provider() as provider:
        asker = Asker(provider.url, package, form, stream=stream)
        run = recorded(session, asker, path)
        assert len(provider.requests) == 2
    for agent in (asker, asker.asks):
        again = ended(session.start(agent, "tea", cassette=str(path), speed="max"))
        assert again.output == run.output
        assert sources(again) == ["cassette"] * 2
        assert [call.usage and call.usage.input_tokens for call in again.calls] == [ASKED] * 2
        assert (again.usage.input_tokens, again.usage.requests, again.usage.cost_usd) == (0, 0, None)
        assert again.record.notices == ()
    session.watch_calls = False  # what it answers must be seen all the same
    assert ended(session.start(asker, "tea", cassette=str(path), speed="max")).output == run.output


def test_the_file_can_be_read_and_holds_no_key(session: NotebookSession, provider: Provider, tmp_path: Path) -> None:
    """A line for what it is, one for each call, and one for each piece; of a request's headers there is nothing."""
    path = tmp_path / "tea.jsonl"
    recorded(session, Asker(f"{provider.url}"), path)
    text = path.read_text(encoding="utf-8")
    head, *lines = [json.loads(line) for line in text.splitlines()]
    assert head == {"format": "nbrun-cassette", "version": 1}
    calls = [line for line in lines if "request" in line]
    assert [call["fields"]["model"] for call in calls] == ["gpt-4o"] * 2
    assert all(call["address"] == f"POST {provider.url}/v1/chat/completions" for call in calls)
    body = "".join(line.get("text", "") for line in lines)
    assert body.count('"content": "word "') == 8
    for secret in (KEY, "authorization", "cookie", "Bearer"):
        assert secret.lower() not in text.lower()


def test_no_text_of_a_request_can_be_read_in_it(session: NotebookSession, provider: Provider, tmp_path: Path) -> None:
    """However short a prompt is, and wherever a provider wants its key: all but the model's name is a hash."""
    private = [f"private-{number}" for number in range(7)]
    asker = Asker(provider.url, stream=False)
    query = f"?api-version=1&apikey={private[0]}&accessToken={private[1]}&code={private[2]}"
    fields = {"input": private[3], "system": private[4], "user": private[5], "api_key": private[6], "temperature": 0.5}

    def asks(prompt: str) -> int:
        with httpx2.Client(verify=False) as client:
            return client.post(
                f"{provider.url}/v1/chat/completions{query}", json=asker.body("one") | fields
            ).status_code

    run = recorded(session, asks, tmp_path / "tea.jsonl")
    text = (tmp_path / "tea.jsonl").read_text(encoding="utf-8")
    assert not [each for each in private if each in text]
    assert "/v1/chat/completions?api-version=1" in text
    assert '"model":"gpt-4o"' in text
    assert '"temperature":0.5' in text
    kept = session.store.journals.read(journal_name(session.id, run.id))
    assert kept
    assert not [each for each in private if each.encode() in kept]
    assert ended(session.start(asks, "tea", cassette=str(tmp_path / "tea.jsonl"))).output == 200
    fields["user"] = "another"
    assert ended(session.start(asks, "tea", cassette=str(tmp_path / "tea.jsonl"))).output == 400


def test_a_request_with_a_great_number_is_answered_and_kept(session: NotebookSession, provider: Provider) -> None:
    """More than 64 bits: the call was paid, so it must not fail when its answer is kept."""
    asker = Asker(provider.url, stream=False)

    def asks(prompt: str) -> int:
        with httpx2.Client(verify=False) as client:
            return client.post(asker.url, json=asker.body("one") | {"seed": 10**30}).status_code

    run = ended(session.start(asks, "tea"))
    assert (run.output, warnings(run)) == (200, "")
    assert run.number is not None
    assert len(session.store.journal(run.number)) == 1


def test_what_a_cassette_says_of_a_difference_is_short(session: NotebookSession, tmp_path: Path) -> None:
    """It may be somebody else's, with names of any length."""
    address = "POST http://127.0.0.1:9/v1/chat/completions"
    given: list[dict[str, Any]] = [{"address": "x" * 1_000_000}, {"fields": {"model": "y" * 1_000_000}}]
    for number, changes in enumerate(given):
        path = tmp_path / f"{number}.jsonl"
        line = {"request": "ab" * 32, "address": address, "fields": {}, **changes}
        path.write_bytes(HEAD + json.dumps(line).encode() + b"\n")
        run = session.start(Asker("http://127.0.0.1:9"), "tea", cassette=str(path))
        assert "instead of" in warnings(ended(run, RunStatus.FAILED))
        assert len(warnings(run)) < 1_000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"questions": ["one", "three"]}, "messages[0] differs"),
        ({"questions": ["one", "two", "three"]}, "all of its answers were given"),
        ({"questions": ["one"], "stream": False}, "stream is False instead of True"),
        ({"url": "http://127.0.0.1:9/v1/chat/completions"}, "POST http://127.0.0.1:9/v1/chat/completions instead of"),
    ],
)
def test_a_request_that_is_not_in_it_fails_with_one_line(
    session: NotebookSession, provider: Provider, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """It names the difference; nobody is asked, and no client tries again."""
    path, agent = tmp_path / "tea.jsonl", Asker(provider.url)
    recorded(session, agent, path)
    asked = len(provider.requests)
    for name, value in changes.items():
        setattr(agent, name, value)
    run = ended(session.start(agent, "tea", cassette=str(path)), RunStatus.FAILED)
    assert f"this request is not in the cassette tea.jsonl: {words}" in warnings(run)
    assert len(provider.requests) == asked
    assert sources(run)[-1] == "cassette"
    assert run.usage.requests == 0


@pytest.mark.usefixtures("offline")
def test_an_sdk_says_what_differs(session: NotebookSession, tmp_path: Path) -> None:
    """The error of a provider's package has the line, at its first try; an edited model or tool is named."""
    path = tmp_path / "tea.jsonl"
    with Provider() as provider:
        url = f"{provider.url}/v1"

        def ask(prompt: str, model: str = "gpt-4o", tools: Any = openai.omit) -> str | None:
            client = openai.OpenAI(base_url=url, api_key=KEY)
            with client:
                answer = client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": prompt}], tools=tools
                )
            return answer.choices[0].message.content

        run = recorded(session, ask, path)
    assert ended(session.start(ask, "tea", cassette=str(path))).output == run.output
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    edited = {
        "messages[0] differs": (ask, "coffee"),
        "model is 'gpt-4o-mini' instead of 'gpt-4o'": (lambda prompt: ask(prompt, "gpt-4o-mini"), "tea"),
        "tools differs": (lambda prompt: ask(prompt, tools=[tool]), "tea"),
    }
    for words, (agent, prompt) in edited.items():
        failed = ended(session.start(agent, prompt, cassette=str(path)), RunStatus.FAILED)
        assert failed.error is not None
        assert words in failed.error.message
        assert len(failed.calls) == 1


@pytest.mark.usefixtures("offline")
def test_an_agent_of_a_framework_is_answered_from_it(session: NotebookSession, tmp_path: Path) -> None:
    """Text and usage as they were; its child runs and a retry are answered from it, too."""
    path = tmp_path / "tea.jsonl"
    with Provider() as provider:
        url = f"{provider.url}/v1"

        async def clerk(prompt: str) -> str:
            async with openai.AsyncOpenAI(base_url=url, api_key=KEY) as client:
                model = OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client))
                async with Agent(model).run_stream(prompt) as answer:
                    return await answer.get_output()

        async def market(prompt: str, run: RunContext) -> list[object]:
            return [await run.start_child(clerk, stall) for stall in ("left", "right")]

        run = recorded(session, market, path)
        assert len(provider.requests) == 2
    again = ended(session.start(market, "tea", cassette=str(path), speed=100))
    assert again.output == run.output == ["word word word word "] * 2
    assert ended(again.retry()).output == run.output


@pytest.mark.parametrize("on", ["local", "process"])
def test_it_comes_in_its_time(session: NotebookSession, tmp_path: Path, on: Literal["local", "process"]) -> None:
    """A piece comes no earlier than it was recorded; `speed` divides that. A cancel doesn't wait for it."""
    path = tmp_path / "slow.jsonl"
    with Provider() as provider:
        agent = Asker(provider.url)
        agent.questions = ["one"]
        recorded(session, agent, path)
    head, call, first, *_rest = path.read_text(encoding="utf-8").splitlines()
    piece = json.loads(first)
    later = [json.dumps({**piece, "ms": ms}) for ms in (300, 3_600_000)]
    path.write_text("\n".join([head, call, *later]), encoding="utf-8")
    fast = ended(session.start(agent, "tea", cassette=str(path), speed=1_000_000, on=on))
    assert [call.status for call in fast.calls] == ["ok"]
    slow = session.start(agent, "tea", cassette=str(path), on=on)
    assert not slow.wait(0.4)
    slow.cancel()
    ended(slow, RunStatus.CANCELLED)


def test_what_cannot_be_is_one_line(session: NotebookSession, tmp_path: Path) -> None:
    """A run without calls has no cassette; speed is one of a cassette; a file must be there."""
    run = ended(session.start(lambda prompt: prompt, "tea"))
    with pytest.raises(BadOption, match="has no model calls that were kept"):
        run.export(tmp_path / "tea.jsonl", "cassette")
    with pytest.raises(BadOption, match="speed is only for"):
        session.start(lambda prompt: prompt, "tea", speed=10)
    with pytest.raises(BadOption, match="cassette must be a str, not int"):
        session.start(lambda prompt: prompt, "tea", cassette=3)  # type: ignore[arg-type]  # as a notebook may
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(BadRecording) as refused:
            session.start(lambda prompt: prompt, "tea", cassette=str(path))
        assert "\n" not in str(refused.value)
    (tmp_path / "speed.jsonl").write_text('{"format": "nbrun-cassette", "version": 1}\n', encoding="utf-8")
    with pytest.raises(BadOption, match="speed must be 'max' or a number"):
        session.start(lambda prompt: prompt, "tea", cassette=str(tmp_path / "speed.jsonl"), speed="quick")


HEAD = b'{"format": "nbrun-cassette", "version": 1}\n'
CALL = b'{"request": "%s", "status": 200}\n' % (b"ab" * 32)
HOSTILE = {
    "empty": b"",
    "no JSON": b"tea\n",
    "another format": b'{"format": "tea\\u001b[31m", "version": 1}\n',
    "a newer one": b'{"format": "nbrun-cassette", "version": 2}\n',
    "binary": bytes(range(256)),
    "deep": HEAD + b"[" * 100_000,
    "deep fields": HEAD + CALL.replace(b'"status"', b'"fields": {"a": ' + b"[" * 100_000 + b"}, " + b'"status"'),
    "a piece first": HEAD + b'{"ms": 1, "text": "tea"}\n',
    "a short hash": HEAD + b'{"request": "abcd", "status": 200}\n',
    "a redirect": HEAD + CALL.replace(b"200", b"302"),
    "a wrong status": HEAD + CALL.replace(b"200", b'"ok"'),
    "a header in a header": HEAD + CALL.replace(b'"status"', b'"content_type": "a\\r\\nb: c", "status"'),
    "a negative time": HEAD + CALL + b'{"ms": -1, "text": "tea"}\n',
    "a time without end": HEAD + CALL + b'{"ms": 1e300, "text": "tea"}\n',
    "half a surrogate pair": HEAD + CALL + b'{"ms": 1, "text": "\\ud800"}\n',
    "no base64": HEAD + CALL + b'{"ms": 1, "base64": "???"}\n',
    "fields that are none": HEAD + CALL.replace(b'"status"', b'"fields": {"a": [1, {"": 3}]}, "status"'),
    "a number that is too large": HEAD + CALL.replace(b'"status"', b'"fields": {"a": 1%s}, "status"' % (b"0" * 40)),
    "many calls": HEAD + CALL * 10_001,
    "many pieces": HEAD + CALL + b'{"ms":0}\n' * 1_000_001,
    "a large answer": HEAD + CALL + (b'{"ms": 1, "text": "%s"}\n' % (b"x" * 1_000_000)) * (MAX_ANSWER // 1_000_000 + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_one_line(tmp_path: Path, name: str) -> None:
    """Before a run begins, and without running anything of it."""
    path = tmp_path / "tea.jsonl"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(BadRecording) as refused:
        cassette.load(str(path))
    assert str(refused.value).startswith("tea.jsonl is not a cassette: ")
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    """Neither one that is too large, nor a device."""
    path = tmp_path / "large.jsonl"
    with path.open("wb") as file:
        file.truncate(MAX_JOURNAL + 1)
    with pytest.raises(BadRecording, match="is larger than"):
        cassette.load(str(path))
    with pytest.raises(BadRecording, match="is not a file"):
        cassette.load("/dev/zero")


def test_a_call_through_another_client_is_not_made(
    session: NotebookSession, provider: Provider, tmp_path: Path
) -> None:
    """A run with a cassette asks nobody, also where its cassette can't answer."""
    path, asker = tmp_path / "tea.jsonl", Asker(provider.url)
    recorded(session, asker, path)

    async def by_aiohttp(prompt: str) -> None:
        async with aiohttp.ClientSession() as client:
            await client.post(asker.url, json=asker.body("one"))

    asked = len(provider.requests)
    run = ended(session.start(by_aiohttp, "tea", cassette=str(path)), RunStatus.FAILED)
    assert "the cassette tea.jsonl answers no calls through aiohttp" in str(run.error)
    assert len(provider.requests) == asked


def test_bytes_that_are_no_text_are_kept(session: NotebookSession, provider: Provider, tmp_path: Path) -> None:
    """A character that is cut in two is whole in the file; a body in another code comes as it is."""
    path, agent = tmp_path / "tea.jsonl", Asker(provider.url, stream=False)
    for body in ('{"a": "Grüße 🫖"}'.encode(), b'{"a": "\xff\xfe"}'):
        provider.body = body
        run = recorded(session, agent, path)
        assert ended(session.start(agent, "tea", cassette=str(path))).output == run.output
        assert ("base64" in path.read_text(encoding="utf-8")) == (b"\xff" in body)
