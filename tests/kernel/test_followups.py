"""A kernel that is killed, and its next one that goes on: resume, retry and replay by their lines."""

from __future__ import annotations

from tests.kernel.cells import error_line, loaded, run_ok, stored, value
from tests.kernel.driver import Kernel

READER = """\
async def reader(prompt, run):
    begin = (run.restored or {"page": 0})["page"]
    for page in range(begin, 6):
        run.text(f"p{page} ")
        run.usage(input_tokens=10, requests=1)
        run.checkpoint({"page": page + 1})
        if page == 3 and begin == 0:
            run.phase("half")
            await asyncio.Event().wait()
    return f"began at {begin}"
"""


def test_a_run_of_a_killed_kernel_is_gone_on_with(renewed_kernel: Kernel) -> None:
    """Start, checkpoint, SIGKILL, restart: it is lost, says how to go on, and goes on to its end."""
    kernel = renewed_kernel
    run_ok(kernel, READER)
    run_ok(kernel, "%%agentrun reader -n book --max-tokens 1000 --tag k=v\ntea")
    kernel.wait_until(lambda: (r := stored(kernel.folder, "book")) is not None and r.phase == "half")
    kernel.kill()
    kernel.restart()
    loaded(kernel)

    card = str(run_ok(kernel, "%agentrun show book").outputs)
    assert "Lost: its kernel died" in card
    assert "Resume from the last checkpoint: %agentrun resume #1" in card
    line = error_line(kernel.run("%agentrun resume book"))
    assert line == (
        "AgentNotFound: the agent of run #1 (book) isn't defined: define reader first, or pass agent= in Python"
    )
    assert value(kernel, "len(nbrun.runs())") == "1"

    run_ok(kernel, READER)
    run_ok(kernel, "%agentrun resume book -b -o new")
    assert value(kernel, "(str(new.status), new.output, new.text)") == ("('completed', 'began at 4', 'p4 p5 ')")
    assert value(kernel, "(new.usage.input_tokens, new.record.tags, new.name)") == ("(60, {'k': 'v'}, 'book')")
    assert "Resumed from #1" in str(run_ok(kernel, "%agentrun show 2").outputs)
    card = str(run_ok(kernel, "%agentrun show 1").outputs)
    assert "Resumed as #2" in card
    assert "%agentrun resume" not in card
    assert "book (resumed from #1)" in value(kernel, "nbrun.runs()._repr_html_()")
    assert "has completed. Run it again: %agentrun retry #2" in error_line(kernel.run("%agentrun resume #2"))

    run_ok(kernel, "%agentrun retry #2 --timeout 50s -n again -a -o again")
    run_ok(kernel, "%agentrun cancel again\n%agentrun wait again")
    assert value(kernel, "again.record.options") == "{'timeout_s': 50.0, 'max_tokens': 1000}"
    assert "Retry of #2" in str(run_ok(kernel, "%agentrun show again").outputs)

    run_ok(kernel, "%agentrun replay 2 --speed max -b -o shown")
    assert value(kernel, "(shown.text, shown.output, shown.usage == new.usage)") == ("('p4 p5 ', 'began at 4', True)")
    assert "Replay of #2" in str(run_ok(kernel, "%agentrun show last").outputs)


def test_lines_that_ask_for_what_cannot_be(shared_kernel: Kernel) -> None:
    """Each mistake is one line that names the mend."""
    kernel = shared_kernel
    run_ok(kernel, "%%agentrun say -n said -b\nhi")
    for line, words in (
        ("%agentrun resume said", "has completed. Run it again: %agentrun retry #"),
        ("%agentrun retry nobody", "No run 'nobody' found. List the runs: %agentrun list"),
        ("%agentrun retry said --id x", "%agentrun retry has no option --id"),
        ("%agentrun replay said --max-turns 3", "%agentrun replay has no option --max-turns"),
        ("%agentrun replay said --speed fast", "speed must be 'max' or a number"),
        ("%agentrun retry said --timout 3s", "did you mean --timeout?"),
        ("%agentrun replay said --speed", "--speed needs a value"),
    ):
        assert words in error_line(kernel.run(line)), line


def test_the_code_of_a_cell_is_not_run_again_unseen(renewed_kernel: Kernel) -> None:
    """`--python`: in its own session a retry runs the same code; a later kernel asks for the cell itself."""
    kernel = renewed_kernel
    run_ok(kernel, "%%agentrun --python -n code -b\n6 * 7")
    run_ok(kernel, "%agentrun retry code -b -o again")
    assert value(kernel, "again.output") == "42"
    kernel.restart()
    loaded(kernel)
    assert "is its cell: run that cell again" in error_line(kernel.run("%agentrun retry code"))


def test_the_card_of_the_old_run_names_the_new_one(renewed_kernel: Kernel) -> None:
    """It is drawn again, in its own cell, when another run comes from its run."""
    kernel = renewed_kernel
    old = kernel.run("%%agentrun broken -n old -a\nhi")
    run_ok(kernel, "%agentrun wait old")
    kernel.wait_until(lambda: "Failed" in str(old.outputs))
    assert "Retried as" not in str(old.outputs)
    run_ok(kernel, "%agentrun retry old -a")
    kernel.wait_until(lambda: "Retried as #2" in str(old.outputs))


def test_a_notebook_ships_a_run_as_a_file(renewed_kernel: Kernel) -> None:
    """It is named in a cell like any agent, and its card says what it is."""
    kernel = renewed_kernel
    run_ok(kernel, "%%agentrun say -n said -b\nhello")
    run_ok(kernel, "nbrun.get('said').save_recording('said.jsonl')")
    run_ok(kernel, "lesson = nbrun.agents.Replay('said.jsonl', speed='max')")
    cell = run_ok(kernel, "%%agentrun lesson -b -o shown\nhello", headless=True)
    assert "Replay of a recorded run (said)" in str(cell.outputs)
    assert value(kernel, "shown.output") == "'hello'"
    line = error_line(kernel.run("nbrun.agents.Replay('gone.jsonl')"))
    assert line.startswith("BadRecording: gone.jsonl cannot be read")


def test_a_cell_continues_a_run(renewed_kernel: Kernel) -> None:
    """`--continue` hands on what was said; `show --thread` shows all of the conversation, oldest first."""
    kernel = renewed_kernel
    run_ok(kernel, "async def counts(prompt, run):\n    return f'{len(run.history)} before {prompt}'")
    run_ok(kernel, "%%agentrun counts -b\none")
    run_ok(kernel, "%%agentrun --continue last -b -o second\ntwo")
    assert value(kernel, "second.output") == "'2 before two'"
    shown = run_ok(kernel, "%agentrun show last --thread").outputs
    assert ["Continued as #2" in str(shown[0]), "Continues #1" in str(shown[1])] == [True, True]
    assert "No run" in error_line(kernel.run("%%agentrun --continue gone\nthree"))


DISOWN = """\
import sqlite3
with sqlite3.connect(nbrun.session().store.path) as stranger:
    stranger.execute("UPDATE runs SET signature = NULL")
"""


def test_a_run_of_a_stranger_needs_its_agent_named_or_a_question_answered(renewed_kernel: Kernel) -> None:
    """Its card and each line say so; where nobody can be asked, nothing is trusted; from the keyboard, it is."""
    kernel = renewed_kernel
    run_ok(kernel, "%%agentrun say -n said -b\nhello")
    run_ok(kernel, DISOWN)
    run_ok(kernel, "%agentrun retry said -b")  # this kernel knows it
    kernel.restart()
    loaded(kernel)
    line = error_line(kernel.run("%agentrun retry 1"))
    assert line == (
        "NotResumable: run #1 (said) isn't signed by your nbrun, so what it names isn't run (agent: say; prompt: "
        "hello); name the agent: agent= or model=. Run its prompt with an agent that you name: %agentrun retry #1 "
        "--agent NAME. "
        "If you know that it is yours, trust it: %agentrun trust #1"
    )
    assert "No agent 'nobody' found" in error_line(kernel.run("%agentrun retry 1 --agent nobody"))
    run_ok(kernel, "%agentrun retry 1 --agent say -b -o again")
    assert value(kernel, "(again.output, again.record.target)") == "('hello', 'say')"
    assert "Name the runs to trust, or add --all" in error_line(kernel.run("%agentrun trust"))
    assert "nobody can answer here" in error_line(kernel.run("%agentrun trust --all", headless=True))
    assert value(kernel, "nbrun.get(1).signed") == "None"
    answer = "import builtins; builtins.input = lambda question: print(question) or '{}'\n%agentrun trust {}"
    refused = run_ok(kernel, answer.format("n", "1")).stdout
    assert "#1 (said): agent: say; prompt: hello" in refused
    assert "Nothing was changed." in refused
    assert "Trust this run? [y/N]" in run_ok(kernel, answer.format("y", "--all")).stdout
    assert "Your nbrun has signed them" in run_ok(kernel, "%agentrun trust --all").stdout
    run_ok(kernel, "%agentrun retry 1 -b")


SHOP = """\
placed = []
def place(what):
    placed.append(what)
    return {"order": len(placed)}
async def shop(prompt, run):
    return await run.step(place, prompt.strip())
"""


def test_a_retry_reuses_what_the_run_has_kept(renewed_kernel: Kernel) -> None:
    """With --reuse a step isn't made again; without, it is; `NbRun.journal` switches that off."""
    kernel = renewed_kernel
    run_ok(kernel, SHOP)
    run_ok(kernel, "%%agentrun shop -n order -b\ntea")
    run_ok(kernel, "%agentrun retry order --reuse -b -o reused")
    assert value(kernel, "(reused.output, placed)") == "({'order': 1}, ['tea'])"
    run_ok(kernel, "%agentrun retry order -b -o again")
    assert value(kernel, "(again.output, placed)") == "({'order': 2}, ['tea', 'tea'])"
    run_ok(kernel, "%config NbRun.journal = 'off'")
    run_ok(kernel, "%%agentrun shop -n unkept -b\ntea")
    assert "has no answers that were kept" in error_line(kernel.run("%agentrun retry unkept --reuse"))
    run_ok(kernel, "%config NbRun.journal = 'on'")
