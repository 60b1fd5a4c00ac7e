"""Plain functions as agents: of every kind, with what they ask for."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import nbrun
from nbrun import NotebookSession, RunContext, RunStatus
from nbrun.agents import Output, find_adapter
from nbrun.agents.functions import PlainAdapter
from nbrun.core import events as ev
from nbrun.core.errors import AgentNotFound
from tests.fakes import agents
from tests.fakes.agents import BOUND_S
from tests.fakes.backend import context_on_no_host


class Caller:
    """An object that can be called, in one way or the other."""

    async def __call__(self, prompt: str) -> str:
        """Answer."""
        return f"called: {prompt}"

    async def method(self, prompt: str) -> str:
        """Answer."""
        return f"method: {prompt}"

    def __repr__(self) -> str:
        return "Caller"


async def no_argument() -> str:
    """Ask for nothing."""
    return "nothing"


async def with_run(prompt: str, run: RunContext) -> str:
    """Ask for the prompt and the run."""
    return f"{prompt} {run.run_id}"


async def only_run(run: RunContext) -> str:
    """Ask for the run only."""
    return f"{run.prompt} {run.run_id}"


async def keyword_run(prompt: str, *, run: RunContext) -> str:
    """Ask for the run by its name."""
    return f"{prompt} {run.run_id}"


async def positional_run(prompt: str, run: RunContext, /) -> str:
    """Ask for the run in its place."""
    return f"{prompt} {run.run_id}"


async def with_default(prompt: str, extra: int = 3) -> str:
    """Ask for more, which need not be given."""
    return f"{prompt} {extra}"


async def anything(*args: object) -> str:
    """Take whatever there is."""
    return " ".join(map(str, args))


def sync_with_run(prompt: str, run: RunContext) -> str:
    """Ask for both, in a thread."""
    return f"{prompt} {run.run_id} {threading.current_thread().name}"


def sync_generator(prompt: str) -> Iterator[str]:
    """Yield text."""
    yield "one "
    yield "two"


def decorated(function: Callable[..., object]) -> Callable[..., object]:
    """Return a plain function around whatever `function` is, as many decorators do."""

    @functools.wraps(function)
    def wrapper(*args: object, **options: object) -> object:
        return function(*args, **options)

    return wrapper


@pytest.mark.parametrize(
    ("agent", "output"),
    [
        (agents.instant, "done: tea"),
        (agents.sync, "sync: tea"),
        (agents.talking, "one two three"),
        (sync_generator, "one two"),
        (agents.counting, 3),
        (no_argument, "nothing"),
        (with_run, "tea run-seq-0"),
        (only_run, "tea run-seq-0"),
        (keyword_run, "tea run-seq-0"),
        (positional_run, "tea run-seq-0"),
        (with_default, "tea 3"),
        (anything, "tea"),
        (sync_with_run, "tea run-seq-0 nbrun-agent-run-seq-0"),
        (Caller(), "called: tea"),
        (Caller().method, "method: tea"),
        (functools.partial(with_default, extra=4), "tea 4"),
        (lambda prompt: prompt.upper(), "TEA"),
        (lambda prompt: agents.instant(prompt), "done: tea"),
        (lambda prompt: agents.talking(prompt), "one two three"),
        (decorated(agents.instant), "done: tea"),
        (decorated(agents.talking), "one two three"),
        (str.upper, "TEA"),
    ],
)
def test_every_kind_of_function_runs(session: NotebookSession, agent: object, output: object) -> None:
    """Async or sync, returning or yielding, with or without the run; what it returns, or said, is the output."""
    run = session.start(agent, "tea")
    assert run.result(BOUND_S) == output
    assert run.status is RunStatus.COMPLETED


def test_yielded_text_is_streamed(session: NotebookSession) -> None:
    """Each item is a delta; a sync generator's return value is the output beside its text."""
    run = session.start(agents.counting)
    assert run.result(BOUND_S) == 3
    assert run.text == "a b c"
    assert [e.data for e in run.events() if e.type == "text.delta"] == [
        ev.TextDelta("a "),
        ev.TextDelta("b "),
        ev.TextDelta("c"),
    ]


def test_an_agent_may_yield_events(session: NotebookSession) -> None:
    """What has a type of its own is logged as that."""

    async def yields_events(prompt: str) -> AsyncIterator[ev.EventData]:
        yield ev.StepStarted("one")
        yield ev.Message("assistant", "hello")

    run = session.start(yields_events)
    assert run.wait(BOUND_S)
    assert [event.type for event in run.events()][2:4] == ["step.started", "message"]


def test_a_sync_agent_sees_its_run(session: NotebookSession) -> None:
    """`nbrun.current()` works in its thread; text, tools and progress go to its run."""

    def works(prompt: str) -> str:
        run = nbrun.current()
        run.text("hello")
        with run.tool("search") as tool:
            tool.result = 1
        return run.run_id

    run = session.start(works)
    assert run.result(BOUND_S) == "run-seq-0"
    assert (run.text, run.record.tools[0].status) == ("hello", "ok")


@pytest.mark.parametrize("thread", [False, True])
def test_context_variables_of_the_starter_are_seen(session: NotebookSession, *, thread: bool) -> None:
    """An agent begins with a copy of its cell's context, on the loop as in a thread."""
    from contextvars import ContextVar

    cell: ContextVar[str] = ContextVar("cell")
    cell.set("cell 3")

    def sync(prompt: str) -> str:
        return cell.get()

    async def on_loop(prompt: str) -> str:
        return cell.get()

    assert session.start(sync).result(BOUND_S) == "cell 3"
    assert session.start(on_loop, thread=thread).result(BOUND_S) == "cell 3"


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (lambda a, b: None, "it also requires 'b'"),
        (lambda a, *, k: None, "it also requires 'k'"),
        (42, "int can't be used as an agent"),
        ("text", "str can't be used as an agent"),
        (Caller, "type can't be used as an agent"),
        (None, "NoneType can't be used as an agent"),
    ],
)
def test_an_invalid_agent_is_reported_before_a_run(agent: object, words: str) -> None:
    """The message names what is wanted, and what would do."""
    with pytest.raises(AgentNotFound, match=words):
        find_adapter(agent).check(agent)


@pytest.mark.parametrize(
    ("agent", "label"),
    [
        (agents.instant, "instant"),
        (functools.partial(agents.instant), "instant"),
        (Caller(), "Caller"),
        (Caller().method, "method"),
    ],
)
def test_an_agent_is_called_by_its_functions_name(agent: object, label: str) -> None:
    """A partial is called as what it wraps, an object as its class."""
    assert PlainAdapter().label(agent) == label


def test_a_cancelled_generator_is_left_at_its_next_item(make_session: Callable[..., NotebookSession]) -> None:
    """At once, whatever the grace period; it is closed in its own thread, and what it said is kept."""
    session = make_session(cancel_grace_s=BOUND_S * 2)
    ready, gate = threading.Event(), threading.Event()
    closed: list[str] = []

    def speaks(prompt: str) -> Iterator[str]:
        try:
            for number in range(1000):
                yield f"{number} "
                if number == 1:
                    ready.set()
                    gate.wait(BOUND_S)
        finally:
            closed.append(threading.current_thread().name)

    run = session.start(speaks)
    assert ready.wait(BOUND_S)
    run.cancel()
    gate.set()
    assert run.wait(BOUND_S)
    assert (run.status, run.error, run.record.detached) == (RunStatus.CANCELLED, None, ())
    assert run.text == run.output == "0 1 2 "
    assert closed == [f"nbrun-agent-{run.id}"]


class Framework:
    """An agent of a framework that nbrun does not know: it drives async code on a loop of its own."""

    def __call__(self, prompt: str) -> str:
        """Answer."""
        with ThreadPoolExecutor() as pool:
            return pool.submit(asyncio.run, self.invoke_async(prompt)).result()

    async def invoke_async(self, prompt: str) -> str:
        """Answer."""
        await asyncio.sleep(3600 if prompt == "slow" else 0)
        return f"{prompt}!"

    async def stream_async(self, prompt: str) -> AsyncIterator[str]:
        """Answer word by word."""
        yield prompt

    async def aclose(self) -> None:
        """Have nothing to do with it."""

    def run(self, prompt: str) -> str:
        """Answer, not async."""
        return self(prompt)


class Module:
    """Its async call is hidden by a decorator."""

    def __call__(self, prompt: str) -> str:
        """Answer."""
        return prompt

    @functools.lru_cache  # noqa: B019 - any decorator
    def acall(self, prompt: str) -> Awaitable[str]:
        """Answer."""
        return asyncio.sleep(0, prompt)


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (Framework(), "no adapter for Framework: it is run as a sync function, by its __call__(); it also has "
         "invoke_async and stream_async, and an async function around it is cancelled at once"),
        (functools.partial(Module()), "it also has acall, and an async function around it is cancelled at once"),
        (Caller(), ""),
        (Caller().method, ""),
        (agents.sync, ""),
    ],
)  # fmt: skip
def test_an_object_of_an_unknown_framework_is_named(session: NotebookSession, agent: object, words: str) -> None:
    """The log says how it is run, and which async methods it has."""
    run = session.start(agent, "tea")
    run.result(BOUND_S)
    (*logs,) = (event.data.text for event in run.events() if isinstance(event.data, ev.Log))
    assert logs[0].endswith(words) if words else logs == []
    assert run.record.notices == ()


def test_a_callable_object_is_cancelled_through_the_loop_that_it_has_started(session: NotebookSession) -> None:
    """Not by an exception in a thread that waits for another one."""
    run = session.start(Framework(), "slow")
    while run.events()[-1].type != ev.Log.TYPE:
        assert not run.wait(0.01)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.record.detached) == (RunStatus.CANCELLED, ())


def test_the_adapter_yields_the_output_last() -> None:
    """Without a host as with one: events first, then what was returned."""
    sent: list[ev.EventData] = []
    run = context_on_no_host(sent.append)

    async def collect(agent: object) -> list[object]:
        return [item async for item in PlainAdapter().events(agent, "tea", run)]

    assert asyncio.run(collect(agents.instant)) == [Output("done: tea")]
    assert asyncio.run(collect(agents.counting)) == [Output(3)]
    assert sent == [ev.TextDelta("a "), ev.TextDelta("b "), ev.TextDelta("c")]
    assert run.work == ()
