"""The scripted agent: every verb, the same each time, without any model."""

from __future__ import annotations

import pytest

from nbrun import NotebookSession, RunStatus, ScriptedAgent
from nbrun.agents.scripted import HAIKU, VERBS
from nbrun.core import events as ev
from nbrun.core.errors import BadOption
from tests.fakes.agents import BOUND_S


def test_every_verb_is_played(session: NotebookSession) -> None:
    """Text, reasoning, phases, tools, progress and usage are events, the return value is the output."""
    script = ScriptedAgent(
        [
            {"phase": "planning"},
            {"think": "hm hm"},
            {"wait": 0},
            {"tool": "search", "args": {"q": "tea"}, "result": [1, 2]},
            {"progress": 1, "of": 2},
            {"say": "about {prompt}, twice: {prompt}"},
            {"usage": {"input_tokens": 3, "output_tokens": 4}},
            {"return": {"answer": 42}},
        ],
        name="teacher",
        delay_s=0,
    )
    run = session.start(script, "tea")
    assert run.result(BOUND_S) == {"answer": 42}
    record = run.record
    assert (run.name, run.phase, run.text) == ("teacher", "planning", "about tea, twice: tea")
    assert [(tool.name, tool.args, tool.result) for tool in record.tools] == [("search", {"q": "tea"}, [1, 2])]
    assert record.progress == ev.Progress(1.0, 2.0)
    assert (record.usage.input_tokens, record.usage.output_tokens) == (3, 4)
    assert len([e for e in run.events() if e.type == "reasoning.delta"]) == 2


def test_a_script_plays_the_same_each_time(session: NotebookSession) -> None:
    """Two runs of one script say and do the same, event by event."""
    script = ScriptedAgent([{"say": "one two three"}, {"tool": "t"}], delay_s=0)
    runs = [session.start(script, "tea") for _ in range(2)]
    assert all(run.wait(BOUND_S) for run in runs)
    kinds = [[event.type for event in run.events()] for run in runs]
    assert kinds[0] == kinds[1]
    assert runs[0].text == runs[1].text == "one two three"


def test_text_comes_word_by_word_and_whole(session: NotebookSession) -> None:
    """The joined words are the text, white space included."""
    text = "  two  words\nand a line\n"
    run = session.start(ScriptedAgent([{"say": text}], delay_s=0))
    assert run.result(BOUND_S) == text


def test_a_script_can_fail(session: NotebookSession) -> None:
    """`fail` fails the run with its message; a failing tool is shown as such first."""
    run = session.start(ScriptedAgent([{"say": "x"}, {"fail": "out of tea"}], delay_s=0))
    assert run.wait(BOUND_S)
    assert (run.status, str(run.error)) == (RunStatus.FAILED, "ScriptedFailure: out of tea")
    run = session.start(ScriptedAgent([{"tool": "boil", "error": "no water"}], delay_s=0))
    assert run.wait(BOUND_S)
    assert run.record.tools[0].status == "error"
    assert str(run.error) == "ScriptedFailure: no water"


def test_a_script_can_be_cancelled_while_it_waits(session: NotebookSession) -> None:
    """An open tool is closed as cancelled, and what was said is kept."""
    run = session.start(ScriptedAgent([{"say": "so far"}, {"tool": "boil", "takes": 60}], delay_s=0))
    assert run.live is not None
    while not run.record.tools:
        run.wait(0.005)
    assert run.cancel().wait(BOUND_S)
    assert (run.status, run.output) == (RunStatus.CANCELLED, "so far")
    assert run.record.tools[0].status == "cancelled"


@pytest.mark.parametrize("step", [{}, {"sing": "la"}, {"say": "x", "think": "y"}])
def test_a_bad_step_is_reported_when_the_script_is_made(step: dict[str, object]) -> None:
    """The message counts the step and lists the verbs."""
    with pytest.raises(BadOption, match="step 2 of the script") as caught:
        ScriptedAgent([{"say": "fine"}, step])
    assert all(verb in str(caught.value) for verb in VERBS)


def test_the_stand_in_for_the_model_is_a_script() -> None:
    """What `--model scripted` says is a valid script that uses a tool and reports its tokens."""
    verbs = {verb for step in HAIKU for verb in VERBS & set(step)}
    assert verbs >= {"say", "tool", "usage"}
    ScriptedAgent(HAIKU)
