"""Prints of an agent go to its own run's log, everybody else's where they always went."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import getpass
import inspect
import io
import logging
import sys
import threading

import matplotlib.pyplot as plt
import pytest
import rich.jupyter
from rich.console import Console
from rich.logging import RichHandler

from nbrun import NotebookSession, Run, RunContext
from nbrun.core import events as ev
from nbrun.host import capture
from tests.fakes.agents import BOUND_S


def printed(run: Run, level: str = "stdout") -> str:
    """Return what the run printed, by its log."""
    assert run.wait(BOUND_S)
    lines = [e.data.text for e in run.events() if isinstance(e.data, ev.Log) and e.data.level == level]
    return "\n".join(lines)


def test_prints_land_in_the_log(session: NotebookSession, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output and error of an async agent are log events of its run, and reach no cell."""

    async def prints(prompt: str) -> None:
        print("hello", prompt)
        print("no newline", end="")
        print("oops", file=sys.stderr)
        sys.stdout.writelines(["", ", and more"])

    run = session.start(prints, "tea")
    assert printed(run) == "hello tea\nno newline, and more"
    assert printed(run, "stderr") == "oops"
    session.close()
    out, err = capsys.readouterr()
    assert "hello" not in out
    assert "oops" not in err


def test_prints_of_a_sync_agent_land_in_its_log(session: NotebookSession) -> None:
    """Its thread knows which run it belongs to."""

    def prints(prompt: str) -> None:
        print("from a thread")

    assert printed(session.start(prints)) == "from a thread"


def test_prints_of_a_failing_agent_are_kept(session: NotebookSession) -> None:
    """What it printed before the error, the unfinished line included, is in the log before the end."""

    async def prints(prompt: str) -> None:
        print("last words", end="")
        raise ValueError("oops")

    run = session.start(prints)
    assert printed(run) == "last words"
    assert run.events()[-1].type == "run.failed"


def test_two_runs_at_once_keep_their_prints_apart(session: NotebookSession) -> None:
    """Interleaved on one loop, each line lands in the log of who printed it."""

    async def prints(prompt: str) -> None:
        for number in range(20):
            print(prompt, number)
            await asyncio.sleep(0)

    runs = [session.start(prints, name) for name in ("a", "b")]
    for run, name in zip(runs, "ab", strict=True):
        assert printed(run) == "\n".join(f"{name} {number}" for number in range(20))


def test_everybody_elses_prints_pass_through(session: NotebookSession, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell, and a thread that is nobody's agent, print as ever while runs are under way."""

    async def prints(prompt: str) -> None:
        print("the agent's")

    run = session.start(prints)
    print("the cell's")
    thread = threading.Thread(target=print, args=("the thread's",))
    thread.start()
    thread.join(BOUND_S)
    assert run.wait(BOUND_S)
    assert capsys.readouterr().out == "the cell's\nthe thread's\n"


def everything_global() -> list[object]:
    """Return what a session changes in the process while it lives."""
    manager = contextlib.redirect_stdout.__base__
    figures = inspect.getattr_static(sys.modules["matplotlib._pylab_helpers"].Gcf, "figs")
    return [
        sys.stdout, sys.stderr, *(vars(stream).get("write") for stream in (sys.stdout, sys.stderr, sys.__stdout__)),
        builtins.input, getpass.getpass, *(vars(manager)[name] for name in ("__enter__", "__exit__")),
        figures, vars(plt)["_get_backend_mod"], rich.jupyter.display, *sys.meta_path,
    ]  # fmt: skip


def test_everything_is_given_back_at_the_close(session: NotebookSession) -> None:
    """What the process has once is changed only while a session lives; the streams are the same objects throughout."""

    async def nothing(prompt: str) -> None:
        """Do nothing."""

    before = everything_global()
    session.start(nothing).wait(BOUND_S)
    during = everything_global()
    assert during[:2] == before[:2]
    assert all(now is not former for now, former in zip(during[2:12], before[2:12], strict=True))
    session.close()
    assert all(now is former for now, former in zip(everything_global(), before, strict=True))


# --- what was made before the first run --------------------------------------------------------------


def test_handlers_made_before_the_first_run_log_for_their_run(
    session: NotebookSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold the stream of the imports cell; an agent's records go to its log, and through the redaction."""
    monkeypatch.setenv("TEA_TOKEN", "tea-0123456789abcdef")
    handler, mine = logging.StreamHandler(sys.stderr), logging.getLogger("tea")
    console = Console(file=sys.stderr, force_jupyter=False)
    monkeypatch.setattr(mine, "handlers", [handler, RichHandler(console=console, show_time=False)])
    held = sys.stderr

    async def logs(prompt: str) -> None:
        mine.warning("from logging and rich: tea-0123456789abcdef")
        held.write("from who holds the stream\n")

    shown = printed(session.start(logs), "stderr")
    assert shown.count("from logging and rich: [TEA_TOKEN]") == 2
    assert "from who holds the stream" in shown


def test_rich_in_a_notebook_prints_into_the_log(session: NotebookSession) -> None:
    """There it would show something in a cell."""
    console = Console(force_jupyter=True, color_system="truecolor")

    async def prints(prompt: str) -> None:
        console.print("[bold]strong[/bold] tea")

    assert printed(session.start(prints)) == "strong tea"


# --- redirect_stdout() -------------------------------------------------------------------------------


def test_a_redirect_of_an_agent_is_its_own(session: NotebookSession, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes what the agent prints, its nested redirects included; others' prints go where they always went."""
    begun, go_on = threading.Event(), threading.Event()

    def redirects(prompt: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as outer:
            print("outer")
            with contextlib.redirect_stderr(sys.stdout), contextlib.redirect_stdout(io.StringIO()) as inner:
                print("inner")
                print("to outer", file=sys.stderr)
            begun.set()
            assert go_on.wait(BOUND_S)
            print("outer again")
        print("to the log")
        return outer.getvalue() + inner.getvalue()

    async def prints(prompt: str) -> None:
        print("the other's")

    run = session.start(redirects)
    assert begun.wait(BOUND_S)
    print("the cell's")
    assert printed(session.start(prints)) == "the other's"
    go_on.set()
    assert printed(run) == "to the log"
    assert run.output == "outer\nto outer\nouter again\ninner\n"
    assert capsys.readouterr().out == "the cell's\n"


def test_an_async_redirect_is_its_own_across_an_await(session: NotebookSession) -> None:
    """Two agents on one loop redirect at the same time, and their tasks with them."""

    async def redirects(prompt: str) -> str:
        async def task() -> None:
            print(prompt, "task")

        with contextlib.redirect_stdout(io.StringIO()) as out:
            print(prompt)
            await asyncio.create_task(task())
            await asyncio.sleep(0)
            print(prompt)
        return out.getvalue()

    runs = [session.start(redirects, name) for name in "ab"]
    assert [run.result(BOUND_S) for run in runs] == [f"{name}\n{name} task\n{name}\n" for name in "ab"]


def test_a_child_run_prints_into_its_own_log(session: NotebookSession) -> None:
    """Also where its parent redirects its own prints meanwhile."""

    async def child(prompt: str) -> None:
        print("the child's")

    async def parent(prompt: str, run: RunContext) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            await run.start_child(child)
        return out.getvalue()

    run = session.start(parent)
    assert run.result(BOUND_S) == ""
    assert printed(session.get("child")) == "the child's"


def test_a_redirect_of_a_cell_takes_no_runs_prints(session: NotebookSession) -> None:
    """The run's log has them."""
    go_on = threading.Event()

    def prints(prompt: str) -> None:
        assert go_on.wait(BOUND_S)
        print("the agent's")

    run = session.start(prints)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        print("the cell's")
        go_on.set()
        assert printed(run) == "the agent's"
    assert out.getvalue() == "the cell's\n"


def test_no_print_is_too_early_for_its_log(session: NotebookSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may print at the very moment at which a cell's stream is put in place."""
    go_on, enter = threading.Event(), capture._enter

    def prints(prompt: str) -> None:
        assert go_on.wait(BOUND_S)
        print("the agent's")

    def enter_and_let_go(manager: object) -> object:
        target = enter(manager)
        go_on.set()
        assert run.wait(BOUND_S)
        return target

    run = session.start(prints)
    monkeypatch.setattr(capture, "_enter", enter_and_let_go)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        pass
    assert printed(run) == "the agent's"
    assert out.getvalue() == ""


# --- input() and getpass() ---------------------------------------------------------------------------


def asked(run: Run) -> ev.ApprovalRequested:
    """Return the question that the run asks."""
    assert run.live is not None
    assert run.live.wait_until(lambda record: bool(record.pending), BOUND_S)
    return run.pending[0]


def test_input_is_a_question_of_the_run(session: NotebookSession) -> None:
    """In a thread; what was printed before is in the log by then, and the answer's text is the line."""

    def asks(prompt: str) -> str:
        print("Who are you? ", end="")
        return input("Name: ")

    run = session.start(asks)
    question = asked(run)
    assert (question.message, question.input, question.editable) == ("Name:", "text", False)
    assert [e.data.text for e in run.events() if isinstance(e.data, ev.Log)] == ["Who are you? "]
    run.approve(text="Earl")
    assert run.result(BOUND_S) == "Earl"
    assert "Earl" in str(run.events())


def test_an_input_that_is_denied_is_the_end_of_the_input(session: NotebookSession) -> None:
    """With the reason that was given; in a headless notebook everything is denied."""

    def asks(prompt: str) -> str:
        try:
            return input()
        except EOFError as error:
            return str(error)

    run = session.start(asks)
    assert asked(run).message == "The agent waits for a line of input"
    run.deny(reason="none of your business")
    assert run.result(BOUND_S) == "input() got no answer: none of your business"
    assert session.start(asks, approve="auto").result(BOUND_S) == ""
    headless = session.start(asks, answerable=False).result(BOUND_S)
    assert headless == "input() got no answer: nobody can answer in a headless notebook"
    assert session.start(asks, approve="deny").result(BOUND_S) == "input() got no answer: the question was denied"


@pytest.mark.parametrize("secret", ["swordfish", "abc"])
def test_what_is_typed_for_getpass_is_nowhere(session: NotebookSession, secret: str) -> None:
    """Not in the answer; nor in what the agent prints of it, unless it is as short as an ordinary word."""

    def asks(prompt: str) -> str:
        word = getpass.getpass()
        print(f"it is {word}" if len(word) > 3 else "it is short")
        return word[::-1]

    run = session.start(asks)
    question = asked(run)
    assert (question.message, question.input) == ("Password:", "secret")
    run.approve(text=secret)
    assert run.result(BOUND_S) == secret[::-1]
    assert secret not in str(run.events())


def test_input_on_the_loop_is_refused_in_words(session: NotebookSession) -> None:
    """It would block all runs; the error says what to write."""

    async def asks(prompt: str) -> str:
        return input("Name: ")  # noqa: ASYNC250 - this is the mistake

    async def asks_in_a_thread(prompt: str, run: RunContext) -> str:
        return await run.in_thread(input, "Name: ")

    run = session.start(asks)
    assert run.wait(BOUND_S)
    assert run.error is not None
    assert "use `await run.ask(…)`" in run.error.message
    run = session.start(asks_in_a_thread)
    asked(run)
    run.approve(text="Earl")
    assert run.result(BOUND_S) == "Earl"


def test_a_cancel_ends_the_wait_for_a_line(session: NotebookSession) -> None:
    """As any other question."""

    def asks(prompt: str) -> str:
        return input()

    run = session.start(asks)
    asked(run)
    run.cancel()
    assert run.wait(BOUND_S)
    assert run.status == "cancelled"
    assert not any(event.type == "cancel.escalated" for event in run.events())
