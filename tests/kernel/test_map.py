"""`%%agentrun --map` and the subcommands on a set, in a real kernel."""

from __future__ import annotations

import pytest

from tests.kernel.cells import error_line, run_ok, value
from tests.kernel.driver import Kernel

CODE = """
import asyncio, threading
async def shout(prompt):
    if "bad" in prompt:
        raise ValueError(f"no {prompt}")
    return prompt.upper()
async def waits(prompt):
    await asyncio.Event().wait()
words = ["tea", "milk"]
rows = [{"id": "a", "word": "tea"}, {"id": "b", "word": "milk"}]
mood = "loud"
"""


@pytest.fixture
def shared(shared_kernel: Kernel) -> Kernel:
    """The module's kernel, with nothing live in it."""
    run_ok(shared_kernel, "for each in nbrun.session().cancel_all(): each.wait(5)" + CODE)
    return shared_kernel


def test_the_cell_is_the_template_of_each_prompt(shared: Kernel) -> None:
    """Columns and keys of the input come first, then the notebook's names as they were; LaTeX and JSON stay."""
    run_ok(shared, '%%agentrun shout --map rows --key id -o told -b\n{key} {item.word} {word} {mood} {"a": 1} x_{i}')
    expected = ['A TEA TEA LOUD {"A": 1} X_{I}', 'B MILK MILK LOUD {"A": 1} X_{I}']
    assert value(shared, "told.outputs()") == repr(expected)
    run_ok(shared, "def is_tea(output, item): return output == 'TEA'")
    run_ok(shared, "%%agentrun shout --map words -o scored -b --score is_tea\n{item}")
    assert value(shared, "scored.scores == [True, False]") == "True"
    run_ok(shared, "%%agentrun shout --map words -o plain -b -n quick --concurrency 1 --rate 600/min\n{item}")
    assert value(shared, "(plain.outputs(), plain.name)") == "(['TEA', 'MILK'], 'quick')"


def test_a_name_that_changes_later_changes_no_prompt(shared: Kernel) -> None:
    """What the text names is taken when the cell runs, though inputs are read later."""
    run_ok(
        shared,
        "gate = threading.Event()\n"
        "def slowly():\n"
        "    yield 'first'\n"
        "    gate.wait(30)\n"
        "    yield 'second'\n"
        "inputs = slowly()",
    )
    run_ok(shared, "%%agentrun shout --map inputs -o late\n{mood} {item}")
    run_ok(shared, "mood = 'quiet'; gate.set(); late.wait(30)")
    assert value(shared, "late.outputs()") == "['LOUD FIRST', 'LOUD SECOND']"


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("%%agentrun shout --map nothing\nx", "this notebook has no such variable"),
        ("%%agentrun shout --map a-b\nx", "name a variable of this notebook that has the inputs"),
        ("%%agentrun shout --map words\nthe word", "all prompts would be the same: write {item} or {key}"),
        ("%%agentrun shout --map words\n{item} {nothing}", "name 'nothing' is not defined"),
        ("%%agentrun shout --map rows\n\n", "give a template, such as '{id}'"),
        ("%%agentrun shout --concurrency 3\nx", "--concurrency is for a set of runs: add --map"),
        ("%%agentrun shout --max-failures 5%\nx", "--max-failures is for a set of runs: add --map"),
        ("%%agentrun shout --map words --no-interpolate\nx", "--no-interpolate would leave no place for the input"),
        ("%%agentrun --python --map words\nx", "--python runs its cell once"),
        (
            "%%agentrun shout --map words --max-failures many\n{item}",
            "expected a number of runs, or a share such as 5%",
        ),
        ("%%agentrun shout --map mood\n{item}", "inputs must be a list of prompts, not one text"),
        ("%%agentrun shout --map words --score nothing\n{item}", "--score nothing"),
        ("%%agentrun shout --score is_tea\nx", "--score is for a set of runs: add --map"),
        ("%agentrun retry last --error x", "--error is for a set of runs"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_started(shared: Kernel, cell: str, words: str) -> None:
    """Each mistake names its mend, and there is no new set."""
    run_ok(shared, "%%agentrun shout -b\none run, for `last`")
    before = value(shared, "len(nbrun.sets())")
    assert words in error_line(shared.run(cell))
    assert value(shared, "len(nbrun.sets())") == before


def test_a_set_is_waited_for_retried_and_cancelled_by_its_name(shared: Kernel) -> None:
    """`wait`, `retry --error` and `cancel` take `set-N`; a cancel of all stops the set, not only its live runs."""
    run_ok(shared, "some = ['tea', 'bad day', 'bad luck']")
    run_ok(shared, "%%agentrun shout --map some -o mixed\n{item}")
    name = value(shared, "mixed.id").strip("'")
    assert "1 completed, 2 failed" in run_ok(shared, f"%agentrun wait {name}").stdout
    run_ok(shared, "async def shout(prompt): return 'now ' + prompt")
    run_ok(shared, f"%agentrun retry {name} --agent shout --error luck\nmixed.wait(30)")
    assert value(shared, "mixed.counts") == "{'completed': 2, 'failed': 1}"
    assert value(shared, "mixed.outputs()") == "['TEA', None, 'now bad luck']"

    run_ok(shared, "%%agentrun waits --map words -o held --concurrency 1\n{item}")
    run_ok(shared, "while not held.counts.get('running'): pass")
    assert f"set #{value(shared, 'held.number')}: cancel requested" in run_ok(shared, "%agentrun cancel --all").stdout
    run_ok(shared, "held.wait(30)")
    assert value(shared, "held.counts") == "{'cancelled': 2}"
    run_ok(shared, "%%agentrun waits --map words -o held --concurrency 1\n{item}")
    run_ok(shared, "while not held.counts.get('running'): pass")
    assert "cancel requested" in run_ok(shared, "%agentrun cancel\nheld.wait(30)").stdout
    assert value(shared, "held.counts") == "{'cancelled': 2}"


def test_a_cell_that_waits_fails_if_a_run_has_failed_and_nothing_allows_it(shared: Kernel) -> None:
    """So does a headless cell, which waits by itself; with `--max-failures` a failed run is a result."""
    run_ok(shared, "some = ['tea', 'bad day']")
    headless = shared.start("%%agentrun shout --map some\n{item}", headless=True).wait()
    assert headless.error is not None
    assert "1 completed, 1 failed" in error_line(headless)
    assert "1 completed, 1 failed" in str(headless.outputs)
    assert "--max-failures 5%" in error_line(shared.run("%%agentrun shout --map some -b\n{item}"))
    run_ok(shared, "%%agentrun shout --map some -b --max-failures 1 -o fine\n{item}")
    assert value(shared, "fine.status") == "'completed'"
    assert "failed" in error_line(shared.run("%%agentrun shout --map some -b --max-failures 0\n{item}"))


def test_an_interrupt_of_a_cell_that_waits_cancels_the_set(shared: Kernel) -> None:
    """■ stops what the cell waits for: the whole set."""
    cell = shared.start("%%agentrun waits --map words -o held -b\n{item}")
    shared.wait_until(lambda: "set #" in str(cell.outputs) or cell.is_done)
    shared.interrupt()
    assert "cancelled" in error_line(cell.wait())
    assert value(shared, "(held.wait(30), held.counts)") == "(True, {'cancelled': 2})"
