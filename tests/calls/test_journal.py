"""The journal: what a run was answered is kept with it, and answers the same requests of a run that comes from it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import httpx
import httpx2
import pytest

from nbrun import NotebookSession, Run, RunContext, events as ev
from nbrun.core.errors import BadOption, NotResumable
from nbrun.core.journal import LOST, MAX_ANSWER, journal_name, read_entries
from nbrun.sessions.intake import Intake
from nbrun.store import writer
from nbrun.store.rows import FileWriter
from tests.conftest import MakeSession
from tests.fakes.agents import BOUND_S
from tests.fakes.provider import ASKED, FORMS, Provider

PACKAGES = [pytest.param(package, id=package.__name__) for package in (httpx, httpx2)]


class Broken(Exception):
    """What an agent fails with."""


@pytest.fixture
def provider() -> Iterator[Provider]:
    """Return a provider that has been started."""
    with Provider() as provider:
        yield provider


def finish(run: Run) -> Run:
    """Wait for a run's end."""
    assert run.wait(BOUND_S)
    return run


def url_of(provider: Provider, form: str, *, stream: bool) -> str:
    """Return where a form's requests go."""
    path = FORMS[form].path
    if form == "google":
        path = f"{path}?alt=sse" if stream else path.replace("streamG", "g")
    return provider.url + path


def asked(content: str, *, stream: bool = True, **fields: Any) -> dict[str, Any]:
    """Return a request."""
    return {"model": "gpt-4o", "stream": stream, "messages": [{"role": "user", "content": content}], **fields}


def ask(client: Any, url: str, content: str, **fields: Any) -> bytes:
    """Make a call as a provider's package does, and return its body."""
    with client.stream("POST", url, json=asked(content, **fields)) as response:
        return b"".join(response.iter_bytes())


async def ask_async(client: Any, url: str, content: str, **fields: Any) -> bytes:
    """Do the same with an async client."""
    async with client.stream("POST", url, json=asked(content, **fields)) as response:
        return b"".join([piece async for piece in response.aiter_bytes()])


def contents(provider: Provider) -> list[str]:
    """Return what the provider was asked, in order."""
    return [request["messages"][0]["content"] for request in provider.requests]


def sources(run: Run) -> list[str]:
    """Return where the answers to a run's calls came from."""
    return [event.data.source for event in run.events() if isinstance(event.data, ev.CallFinished)]


def warnings(run: Run) -> list[str]:
    """Return what a run's log says."""
    return [event.data.text for event in run.events() if isinstance(event.data, ev.Log)]


class Asker:
    """An agent that asks some questions one after the other, and fails after a number of them, once."""

    def __init__(self, provider: Provider, questions: list[str], fails_after: int, form: str = "chat") -> None:
        self.provider, self.questions, self.fails_after, self.form = provider, questions, fails_after, form
        self.stream = True
        self.package: ModuleType = httpx2

    def __call__(self, prompt: str) -> list[str]:
        """Ask."""
        answers = []
        url = url_of(self.provider, self.form, stream=self.stream)
        with self.package.Client(verify=False) as client:
            for number, question in enumerate(self.questions):
                if number == self.fails_after:
                    self.fails_after = -1
                    raise Broken
                answers.append(ask(client, url, question, stream=self.stream).decode())
        return answers

    async def asks(self, prompt: str) -> list[str]:
        """Ask with an async client."""
        answers = []
        url = url_of(self.provider, self.form, stream=self.stream)
        async with self.package.AsyncClient(verify=False) as client:
            for number, question in enumerate(self.questions):
                if number == self.fails_after:
                    self.fails_after = -1
                    raise Broken
                answers.append((await ask_async(client, url, question, stream=self.stream)).decode())
        return answers


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("package", PACKAGES)
def test_a_failed_run_is_resumed_without_paying_again(
    session: NotebookSession, provider: Provider, package: ModuleType, form: str, stream: bool, is_async: bool
) -> None:
    """A plain function has no checkpoint: it runs again from its beginning, for free up to where it was."""
    agent = Asker(provider, ["one", "two", "three"], 2, form)
    agent.stream, agent.package = stream, package
    first = finish(session.start(agent.asks if is_async else agent, "Ask"))
    assert first.status == "failed"
    again = finish(first.resume())
    assert contents(provider) == ["one", "two", "three"]
    assert again.status == "completed"
    assert sources(again) == ["journal", "journal", "live"]
    answers = again.result()
    assert isinstance(answers, list)
    assert answers[0] == answers[2], "what is given again is byte for byte what came"
    # What the old run has paid for is part of the new one's usage, once.
    assert again.usage.input_tokens == 3 * ASKED
    assert again.usage.requests == 3


def test_an_unbroken_run_has_the_same_answer(session: NotebookSession, provider: Provider) -> None:
    """A retry that reuses the journal asks nobody."""
    agent = Asker(provider, ["one", "two"], -1)
    first = finish(session.start(agent, "Ask"))
    again = finish(first.retry(reuse=True))
    assert again.result() == first.result()
    assert contents(provider) == ["one", "two"]
    assert again.usage == ev.Usage()
    assert finish(first.retry()).result() == first.result()
    assert contents(provider) == ["one", "two", "one", "two"], "a retry calls anew"
    third = finish(again.retry(reuse=True))
    assert sources(third) == ["journal", "journal"], "a run that reused a journal has it, too"


def test_another_request_goes_to_the_provider_and_the_log_says_what_differs(
    session: NotebookSession, provider: Provider
) -> None:
    """A changed prompt is asked, from where it was changed."""
    agent = Asker(provider, ["one", "two", "three"], -1)
    first = finish(session.start(agent, "Ask"))
    agent.questions[1] = "TWO"
    again = finish(first.retry(reuse=True))
    assert sources(again) == ["journal", "live", "journal"]
    assert contents(provider)[3:] == ["TWO"]
    [said] = [text for text in warnings(again) if "journal" in text]
    assert said == "1 answer came from the journal of run #1; this request is not in it: messages[0] differs"


def test_a_resumed_run_is_resumed_with_all_that_was_paid(session: NotebookSession, provider: Provider) -> None:
    """Each run keeps what it has asked itself, and is answered from those before it."""
    agent = Asker(provider, ["one", "two", "three"], 1)
    first = finish(session.start(agent, "Ask"))
    agent.fails_after = 2
    second = finish(first.resume())
    third = finish(second.resume())
    assert third.status == "completed"
    assert sources(third) == ["journal", "journal", "live"]
    assert contents(provider) == ["one", "two", "three"]


def test_the_same_question_is_answered_in_order(session: NotebookSession, provider: Provider) -> None:
    """Each answer is given once."""
    provider.words = 1
    agent = Asker(provider, ["one", "one"], -1)
    url = url_of(provider, "chat", stream=True)

    def asks() -> list[int]:
        found = []
        with httpx2.Client(verify=False) as client:
            for _ in range(2):
                found.append(len(ask(client, url, "Hello")))
                provider.words = (provider.words or 0) + 1
        return found

    first = finish(session.start(asks))
    again = finish(first.retry(reuse=True))
    assert again.result() == first.result()
    assert agent.questions
    assert len(provider.requests) == 2


def test_parallel_calls_are_told_apart(session: NotebookSession, provider: Provider) -> None:
    """They are known by what they ask, not by their order."""
    names = [f"question {number}" for number in range(5)]
    url = url_of(provider, "chat", stream=True)
    order = list(names)

    async def asks() -> dict[str, bytes]:
        async with httpx2.AsyncClient(verify=False) as client:
            answers = await asyncio.gather(*(ask_async(client, url, name) for name in order))
        return dict(zip(order, answers, strict=True))

    first = finish(session.start(asks))
    order.reverse()
    again = finish(first.retry(reuse=True))
    assert again.status == "completed"
    assert len(provider.requests) == 5
    assert sources(again) == ["journal"] * 5


def test_a_refusal_and_a_broken_body_are_no_answers(session: NotebookSession, provider: Provider) -> None:
    """Only what was answered whole, and well, is given again."""
    provider.refusals.append(429)
    url = url_of(provider, "chat", stream=True)
    is_broken = True

    def asks() -> None:
        with httpx2.Client(verify=False) as client:
            ask(client, url, "refused")
            with client.stream("POST", url, json=asked("left")) as response:
                next(response.iter_bytes())  # and it is closed in the middle
            ask(client, url, "answered")
        if is_broken:
            raise Broken

    first = finish(session.start(asks))
    is_broken = False
    again = finish(first.resume())
    assert again.status == "completed"
    assert sources(again) == ["live", "live", "journal"]


def test_a_stream_that_says_that_it_is_over_is_complete(session: NotebookSession, provider: Provider) -> None:
    """Packages stop reading there and close the response."""
    provider.content_type = "text/event-stream"
    provider.body = b'data: {"choices": []}\n\ndata: [DONE]\n\n'
    url = url_of(provider, "chat", stream=True)

    def asks() -> bytes:
        with httpx2.Client(verify=False) as client, client.stream("POST", url, json=asked("Hello")) as response:
            return bytes(next(response.iter_bytes(40)))

    first = finish(session.start(asks))
    again = finish(first.retry(reuse=True))
    assert again.result() == first.result()
    assert len(provider.requests) == 1


def test_a_compressed_answer_is_kept_as_text(session: NotebookSession, provider: Provider) -> None:
    """So that secrets are found in it."""
    provider.is_gzipped = True
    agent = Asker(provider, ["one"], -1)
    agent.stream = False
    first = finish(session.start(agent, "Ask"))
    again = finish(first.retry(reuse=True))
    assert again.result() == first.result()
    assert sources(again) == ["journal"]


SECRET = "hq2Jx8vN4kTz7RwB"


@pytest.mark.parametrize("on", ["local", "process"])
def test_nothing_secret_is_kept(
    make_session: MakeSession,
    provider: Provider,
    store_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    on: Literal["local", "process"],
) -> None:
    """No header of a request, no key, no cookie; a secret in an answer is replaced."""
    session = make_session()
    monkeypatch.setenv("PROVIDER_API_KEY", SECRET)
    provider.body = f'{{"text": "the key is {SECRET}"}}'.encode()
    url = f"{url_of(provider, 'chat', stream=False)}?key={SECRET}&other=1"

    def asks() -> str:
        headers = {"authorization": f"Bearer {os.environ['PROVIDER_API_KEY']}", "x-odd": "odd header"}
        with httpx2.Client(verify=False, headers=headers, cookies={"session": "a cookie"}) as client:
            return ask(client, url, f"my key is {SECRET}", stream=False).decode()

    first = finish(session.start(asks, on=on))
    assert first.status == "completed", first.error
    again = finish(first.retry(reuse=True, on=on))
    assert sources(again) == ["journal"]
    assert again.result() == '{"text": "the key is [PROVIDER_API_KEY]"}'
    kept = b"".join(path.read_bytes() for path in store_path.parent.rglob("*") if path.is_file())
    for word in (SECRET, "odd header", "a cookie", "Bearer"):
        assert word.encode() not in kept


def test_a_strangers_journal_answers_nothing(make_session: MakeSession, provider: Provider, store_path: Path) -> None:
    """What this user's nbrun has not signed could put tool calls into an agent."""
    agent = Asker(provider, ["one", "two"], -1)
    session = make_session()
    first = finish(session.start(agent, "Ask"))
    [file] = [path for path in store_path.parent.rglob("journal/*") if path.is_file()]
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"word", b"WORD"))
    with pytest.raises(NotResumable, match="no answers that were kept"):
        first.retry(reuse=True)
    file.write_bytes(whole[:-1])  # a kill in the middle of writing: what is whole counts
    cut = finish(first.retry(reuse=True))
    assert sources(cut) == ["journal", "live"]
    assert any("is incomplete" in line for line in cut.record.log), "what is paid again is said"
    second = finish(session.start(agent, "Ask"))
    assert second.number is not None
    assert len(session.store.journal(second.number)) == 2
    (file.parent / journal_name(session.id, second.id)).write_bytes(whole)  # of another run
    assert [entry.kind for entry in session.store.journal(second.number)] == [LOST]


def test_a_journal_goes_with_its_run(make_session: MakeSession, provider: Provider, store_path: Path) -> None:
    """Removing a run removes what it was answered."""
    session = make_session()
    run = finish(session.start(Asker(provider, ["one"], -1), "Ask"))
    assert len(list(store_path.parent.rglob("journal/*"))) == 1
    session.remove(run)
    assert list(store_path.parent.rglob("journal/*")) == []


def test_it_can_be_switched_off(make_session: MakeSession, provider: Provider, store_path: Path) -> None:
    """Then nothing is kept."""
    session = make_session()
    session.journal = "off"
    run = finish(session.start(Asker(provider, ["one", "two"], 1), "Ask"))
    assert list(store_path.parent.rglob("journal/*")) == []
    with pytest.raises(NotResumable):
        run.resume()


def test_a_large_answer_is_not_kept_and_the_log_says_so(session: NotebookSession, provider: Provider) -> None:
    """There is a bound."""
    provider.body = b'{"a": "' + b"x" * MAX_ANSWER + b'"}'
    agent = Asker(provider, ["one"], -1)
    agent.stream = False
    run = finish(session.start(agent, "Ask"))
    assert run.status == "completed"
    assert any("is not kept" in text for text in warnings(run))


def test_a_run_in_a_process_of_its_own_has_a_journal(session: NotebookSession, provider: Provider) -> None:
    """Its process keeps it, and is given it."""
    url = url_of(provider, "chat", stream=True)
    flag: list[str] = []

    def asks(prompt: str) -> str:
        with httpx2.Client(verify=False) as client:
            answer = ask(client, url, "one").decode()
            if not flag:
                raise RuntimeError("not yet")
            return answer

    first = finish(session.start(asks, "Ask", on="process"))
    assert first.status == "failed"
    flag.append("now")
    again = finish(first.resume(on="process"))
    assert again.status == "completed"
    assert sources(again) == ["journal"]
    assert len(provider.requests) == 1


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("on", ["local", "process"])
def test_an_answer_is_kept_behind_what_has_led_to_it(
    make_session: MakeSession,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
    on: Literal["local", "process"],
    is_async: bool,
) -> None:
    """While that is not on disk yet, the answer waits: after a kill, the run would ask something else."""
    url = url_of(provider, "chat", stream=True)
    waits, gate = threading.Event(), threading.Event()
    call, write = Intake.call_when_stored, FileWriter.write

    def watched_call(*args: Any, **options: Any) -> None:
        call(*args, **options)
        if options.get("is_urgent"):
            waits.set()

    def held_write(*args: Any, **options: Any) -> Any:
        assert gate.wait(BOUND_S)
        return write(*args, **options)

    async def asks(prompt: str, run: RunContext) -> str:
        await run.inbox.get()
        with run.tool("look"):
            pass
        async with httpx2.AsyncClient(verify=False) as client:
            return (await ask_async(client, url, "one")).decode()

    def asks_blocking(prompt: str, run: RunContext) -> str:
        while not run.inbox.take():
            run.sleep(0.01)
        with run.tool("look"):
            pass
        with httpx2.Client(verify=False) as client:
            return ask(client, url, "one").decode()

    monkeypatch.setattr(Intake, "call_when_stored", watched_call)
    monkeypatch.setattr(writer, "HANG_S", 2 * BOUND_S)
    session = make_session()
    run = session.start(asks if is_async else asks_blocking, on=on)
    assert run.live is not None
    assert run.live.wait_until(lambda record: record.is_steerable, BOUND_S)
    monkeypatch.setattr(FileWriter, "write", held_write)
    run.steer("go")
    assert waits.wait(BOUND_S)
    assert number(session, run) == 0
    gate.set()
    assert finish(run).status == "completed"
    assert number(session, run) == 1


def number(session: NotebookSession, run: Run) -> int:
    """Return how many answers are in the file of a run's journal."""
    files = session.store.journals
    key = session.store.signer.journal_key(session.id, run.id)
    return len(read_entries(files.read(journal_name(session.id, run.id)), key))


def test_the_session_checks_its_setting(make_session: MakeSession) -> None:
    """A mistake is one line."""
    with pytest.raises(BadOption, match="use on or off"):
        make_session(journal="maybe")
