"""nbrun in a plain terminal IPython: no kernel, no widgets."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect  # type: ignore[import-untyped]  # comes with IPython, without types
import pytest

AGENTS = (
    "import asyncio, nbrun",
    "async def shout(prompt): return prompt.upper()",
    "async def endless(prompt, run): run.text('word ' * 80 + 'begun '); await asyncio.Event().wait()",
    "async def asks(prompt, run): return [(await run.ask(word, args=prompt)).decision for word in ('one?', 'two?')]",
    "may = lambda run, word: run.approve_tool(word, {'n': 1}, timeout_s=90)",
    "async def uses(prompt, run): return [(a.decision, a.args, a.text) for word in prompt.split() "
    "for a in [await may(run, word)]]",
    "async def asks_briefly(prompt, run): return (await run.ask('quick?', timeout_s=3)).by",
    "who = lambda run: [(e.data.decision, e.data.by) for e in run.events() if e.type == 'approval.resolved']",
    "async def broken(prompt): raise ValueError('the kettle is empty')",
)


IPYTHON = ("IPython", "--simple-prompt", "--no-banner", "--no-confirm-exit")
CONSOLE = ("jupyter_console", "--simple-prompt", "--kernel", "python3")


class Terminal:
    """A terminal with IPython or jupyter console in it, typed into line by line; every wait is bounded."""

    def __init__(self, folder: Path, program: tuple[str, ...] = IPYTHON) -> None:
        env = {name: text for name, text in os.environ.items() if not name.startswith("NBRUN_")}
        env |= {"IPYTHONDIR": str(folder / "ipython"), "TERM": "xterm"}  # not "dumb", on which nothing moves
        env["PYTHONPATH"] = str(Path(__file__).parents[2])
        self._numbers = itertools.count(1)
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", *program],
            cwd=str(folder),
            env=env,
            encoding="utf-8",
            timeout=15,
            dimensions=(40, 160),
        )
        self.read()

    def read(self) -> str:
        """Return what is shown until the prompt of the next cell."""
        self.child.expect_exact(f"In [{next(self._numbers)}]: ")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.child.before).replace("\r\n", "\n")

    def type(self, *lines: str) -> None:
        """Type the lines of a cell; IPython takes two empty ones for the end of a cell of several."""
        for line in (*lines, "", "") if len(lines) > 1 else lines:
            self.child.sendline(line)

    def run(self, *lines: str) -> str:
        """Run a cell and return what is shown, the typed lines left out."""
        self.type(*lines)
        shown = self.read()
        for line in lines:
            shown = shown.partition(line)[2]
        return shown


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A terminal with nbrun loaded and some agents defined."""
    terminal = Terminal(tmp_path)
    assert terminal.run("%load_ext nbrun").strip() == ""
    for line in AGENTS:
        terminal.run(line)
    yield terminal
    terminal.child.close(force=True)


def test_a_run_is_shown_until_its_end(terminal: Terminal) -> None:
    """The cell waits, shows the words, the name and the text; a failure and a mistake are one line each."""
    shown = terminal.run("%%agentrun shout -n loud", "hello there")
    assert "Completed" in shown
    assert "loud #1" in shown
    assert "HELLO THERE" in shown
    assert "42" in terminal.run("6 * 7")

    shown = terminal.run("%%agentrun broken", "hi")
    assert "RunFailed: run #2 (broken) failed: ValueError: the kettle is empty" in shown
    assert "Traceback" not in shown

    shown = terminal.run("%%agentrun nobody", "hi")
    lines = [line for line in shown.splitlines() if line.strip(" .:")]
    assert len(lines) == 1
    assert lines[0].lstrip(" .:").startswith("AgentNotFound: No agent 'nobody'")

    shown = terminal.run("%agentrun doctor")
    assert "✔ ok       front end: a terminal" in shown
    assert "page: not checked: a terminal has no page" in shown.replace("\n", "")
    assert "could not be tried" not in shown

    for line in ("%agentrun list", "%agentrun", "nbrun.panel()"):
        shown = terminal.run(line)
        assert shown.index("#2   broken") < shown.index("#1   loud")
    assert "HELLO THERE" in terminal.run("%agentrun show 1")


def test_progress_is_on_the_line(terminal: Terminal) -> None:
    """The line that lives tells how far the run has come; what is left of it tells that and what was printed."""
    terminal.run(
        "async def counts(prompt, run): run.progress(3, 12, 'pages'); print('page 3'); await asyncio.Event().wait()"
    )
    terminal.type("%%agentrun counts -n counts", "hi")
    terminal.child.expect(r"Running · counts #1 · [\d.]+ m?s · 3 of 12 · pages")
    terminal.child.sendintr()
    shown = terminal.read()
    assert "Interrupted after" in shown
    assert "counts #1\n  3 of 12 · pages\n  Log (1 line):\n  | page 3" in shown


def test_a_question_is_asked_at_the_keyboard(terminal: Terminal) -> None:
    """The cell waits, so what the run asks is asked there, until it is answered by a clear yes or no."""
    terminal.type("%%agentrun asks -o answers", "hello")
    terminal.child.expect_exact("? one? hello")
    terminal.child.expect_exact("/N]")
    terminal.child.sendline("y")
    terminal.child.expect_exact("? two? hello")
    terminal.child.expect_exact("/N]")
    terminal.child.sendline("what?")
    terminal.child.expect_exact("answer with one of: y/edit/N")
    terminal.child.expect_exact("/N]")
    terminal.child.sendline("n")
    assert "Completed" in terminal.read()
    assert "[('allow', 'terminal'), ('deny', 'terminal')]" in terminal.run("print(who(answers))")

    terminal.type("%%agentrun asks -o answers", "hello")
    terminal.child.expect_exact("/N]")
    terminal.child.sendline("")
    terminal.child.expect_exact("? two? hello")
    terminal.child.expect_exact("/N]")
    terminal.child.sendeof()
    assert "Completed" in terminal.read()
    assert "['deny', 'deny']" in terminal.run("print(answers.output)")


def test_a_line_of_input_is_typed_at_the_keyboard(terminal: Terminal) -> None:
    """Any line is an answer to `input()`, an empty one too; Ctrl-D is none. A secret one isn't shown."""
    terminal.run("lines = lambda prompt: (print('printed by the agent'), *map(input, 'ab'))[1:]")
    terminal.type("%%agentrun lines -o lined", "hello")
    for name, line in (("a", "no"), ("b", "")):
        terminal.child.expect_exact(f"? {name}")
        terminal.child.expect_exact("  >")
        terminal.child.sendline(line)
    assert re.findall(".*printed by the agent", terminal.read()) == ["  | printed by the agent"]  # in its log
    assert "('no', '')" in terminal.run("print(lined.output)")
    terminal.type("%%agentrun lines", "hello")
    terminal.child.expect_exact("? a")
    terminal.child.expect_exact("  >")
    terminal.child.sendeof()
    assert "EOFError" in terminal.read()

    terminal.run("import getpass; secret = lambda prompt: len(getpass.getpass())")
    terminal.type("%%agentrun secret", "hello")
    terminal.child.expect_exact("? Password:")
    terminal.child.expect_exact("  >")
    terminal.child.sendline("swordfish")
    shown = terminal.read()
    assert "Completed" in shown
    assert "swordfish" not in shown


def test_a_tool_is_allowed_changed_or_denied_at_the_keyboard(terminal: Terminal) -> None:
    """Its arguments can be edited, a slip there costs nothing; always is for this tool; a no can say why."""
    terminal.type("%%agentrun uses -o used", "cut cut cut saw")
    terminal.child.expect_exact('? Use cut? {"n":1}')
    terminal.child.expect(r"denied automatically in 1 min \d+ s if you don't answer")
    terminal.child.expect_exact("[y/always/edit/N]")
    for typed, words in (("{n: 2}", "the arguments aren't valid JSON"), ("[2]", "must stay an object")):
        terminal.child.sendline("e")
        terminal.child.expect_exact("arguments as JSON (an empty line keeps them):")
        terminal.child.sendline(typed)
        terminal.child.expect_exact(words)
        terminal.child.expect_exact("[y/always/edit/N]")
    terminal.child.sendline("edit")
    terminal.child.expect_exact("keeps them):")
    terminal.child.sendline('{"n": 2}')
    terminal.child.expect_exact('? Use cut? {"n":2} (edited)')
    terminal.child.expect_exact("[y/always/edit/N]")
    terminal.child.sendline("yes, but")
    terminal.child.expect_exact("answer with one of")
    terminal.child.sendline("always")
    terminal.child.expect_exact("? Use saw?")  # the other cuts are not asked about
    terminal.child.expect_exact("N]")
    terminal.child.sendline("n too sharp")
    assert "Always allowed in this run: cut" in terminal.read()
    shown = terminal.run("print(used.output)")
    assert "[('allow', {'n': 2}, ''), ('allow', {'n': 1}, ''), ('allow', {'n': 1}, '')" in shown
    assert "('deny', {'n': 1}, 'too sharp')]" in shown


def test_a_question_that_is_over_takes_no_line(terminal: Terminal, tmp_path: Path) -> None:
    """Its deadline, a time limit and a cancel end the prompt at once; what is typed then is the next cell's."""
    terminal.type("%%agentrun asks_briefly -o brief", "hello")
    terminal.child.expect_exact("/N]")
    terminal.child.expect_exact("denied: no answer in 3 s")
    terminal.type("6 * 7")
    assert "Completed" in terminal.read()
    assert "42" in terminal.read()
    assert "deadline" in terminal.run("print(brief.output)")

    terminal.type("%%agentrun asks --timeout 3s", "hello")
    terminal.child.expect_exact("/N]")
    terminal.child.expect_exact("denied: the run timed out")
    terminal.type("6 * 8")
    assert "Timed out" in terminal.read()
    assert "48" in terminal.read()

    typed = tmp_path / "typed"
    terminal.run("import os, threading, time")
    terminal.run(f"typed = lambda: os.path.exists({str(typed)!r}) or time.sleep(0.02) or typed()")
    terminal.run("threading.Thread(target=lambda: typed() and nbrun.session().cancel_all('no')).start()")
    terminal.type("%%agentrun asks", "hello")
    terminal.child.expect_exact("/N]")
    terminal.child.send("ye")  # half an answer is not a part of the next cell either
    terminal.child.expect_exact("ye")
    typed.touch()
    terminal.child.expect_exact("denied: the run is being cancelled")
    terminal.type("6 * 9")
    assert "Cancelled by you" in terminal.read()
    assert "54" in terminal.read()


def test_questions_of_a_piped_session_are_answered_by_its_lines(tmp_path: Path) -> None:
    """Where stdin is no terminal the next line is the answer, and its end is a no."""
    lines = ["%load_ext nbrun", *AGENTS, "", "", "%%agentrun asks -o piped", "hello", "", "", "y"]
    script = "\n".join(f"{line}\n" if line.startswith("async def") else line for line in lines)
    env = {name: text for name, text in os.environ.items() if not name.startswith("NBRUN_")}
    env |= {"IPYTHONDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--no-confirm-exit"],
        input=f"{script}\nno\nprint(piped.output, who(piped))\n",
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=15, check=False,
    )  # fmt: skip
    assert "['allow', 'deny'] [('allow', 'terminal'), ('deny', 'terminal')]" in done.stdout


def test_ctrl_c_at_a_question_cancels_the_run(terminal: Terminal) -> None:
    """It is no answer: the run is interrupted, and its question with it."""
    terminal.type("%%agentrun asks -o stopped", "hello")
    terminal.child.expect_exact("/N]")
    terminal.child.sendintr()
    assert "KeyboardInterrupt: Run #1 (asks): Interrupted after" in terminal.read()
    assert "[('deny', 'cancel')]" in terminal.run("print(who(stopped))")


def test_what_was_typed_before_a_question_is_no_answer(terminal: Terminal) -> None:
    """A line that was typed ahead is dropped, with a word, where a question comes up."""
    terminal.run(
        "async def late(prompt, run): run.text('begun'); await asyncio.sleep(1); return (await run.ask('ok?')).decision"
    )
    terminal.type("%%agentrun late", "hello")
    terminal.child.expect_exact("begun")
    terminal.child.sendline("y")
    terminal.child.expect_exact("typed before the question, so discarded: y")
    terminal.child.expect_exact("/N]")
    terminal.child.sendline("no")
    assert "deny" in terminal.read()


def test_a_second_yes_is_no_answer_to_the_next_question(terminal: Terminal, tmp_path: Path) -> None:
    """It may come late, when the next question is on the screen: nobody can have read that yet."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    wait = f"open({str(gate)!r}).read()"  # until the test lets the time pass
    terminal.run(
        "import nbrun.ui.terminal.keyboard as keyboard; "
        f"keyboard.time = type('Time', (), {{'sleep': staticmethod(lambda seconds: {wait})}})"
    )
    terminal.run("async def twice(prompt, run): return [(await run.ask(ask)).decision for ask in ('one?', 'two?')]")
    terminal.type("%%agentrun twice", "hello")
    terminal.child.expect_exact("? one?")
    gate.write_text("")
    terminal.child.expect_exact("/N]")
    terminal.child.sendline("y")
    terminal.child.expect_exact("? two?")
    terminal.child.sendline("y")
    gate.write_text("")
    terminal.child.expect_exact("typed before the question, so discarded: y")
    terminal.child.expect_exact("/N]")
    terminal.child.sendline("no")
    assert '["allow","deny"]' in terminal.read()


def test_ctrl_c_cancels_that_run(terminal: Terminal) -> None:
    """Ctrl-C ends the wait and the run; a background run beside it goes on, and the exit is not held up."""
    terminal.run("%%agentrun endless -a -n beside", "hi")
    terminal.type("%%agentrun endless -n fore", "hi")
    terminal.child.expect_exact("fore #2")
    terminal.child.expect_exact("word begun")  # the newest text, of more than one line holds
    terminal.child.sendintr()
    shown = terminal.read()
    assert "Interrupted after" in shown
    assert "KeyboardInterrupt: Run #2 (fore): Interrupted after" in shown
    assert "Traceback" not in shown
    states = "[(r.name, str(r.status), str(r.cause)) for r in nbrun.runs()]"
    assert "[('fore', 'cancelled', 'interrupt'), ('beside', 'running', 'None')]" in terminal.run(f"print({states})")
    terminal.type("exit")
    terminal.child.expect(pexpect.EOF)
    terminal.child.close()
    assert terminal.child.exitstatus == 0


def test_a_console_of_a_kernel_is_a_terminal(tmp_path: Path) -> None:
    """It shows text only: a cell waits for its run and prints its end, asks its questions, and Ctrl-C cancels it."""
    console = Terminal(tmp_path, CONSOLE)
    console.run("%load_ext nbrun")
    for line in AGENTS:
        console.run(line)
    magic = "get_ipython().run_cell_magic('agentrun', {!r}, {!r})"  # a simple prompt takes cells of one line
    for options in ("shout -n loud", "shout -n loud --block"):
        shown = console.run(magic.format(options, "hello there"))
        assert "HELLO THERE" in shown
        assert "when the notebook was saved" not in shown
    for line in ("%agentrun list", "%agentrun", "nbrun.panel()"):
        shown = console.run(line)
        assert shown.index("#2   loud") < shown.index("#1   loud")
    assert "HELLO THERE" in console.run("%agentrun show 1")
    assert "front end: a console" in console.run("%agentrun doctor")

    console.type(magic.format("asks -o answers", "hello"))
    for word, answer in (("one?", "y"), ("two?", "n not today")):
        console.child.expect_exact(f"? {word} hello")
        console.child.expect_exact("[y/edit/N] ")
        console.child.sendline(answer)
    console.read()
    assert "['allow', 'deny']" in console.run("answers.output")

    console.run(magic.format("endless -a -o beside", "hi"))
    console.type(magic.format("endless -n waited -o waited", "hi"))
    console.child.expect_exact("begun")
    console.child.sendintr()
    assert "(waited): Interrupted after" in console.read()
    assert "'cancelled', 'running'" in console.run("str(waited.status), str(beside.status)")
    console.child.close(force=True)
