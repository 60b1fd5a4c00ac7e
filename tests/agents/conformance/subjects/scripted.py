"""The scripted agent: it shows tools and runs none."""

from __future__ import annotations

from typing import Any

from nbrun import ScriptedAgent
from tests.agents.conformance.script import Script, Turn, filled
from tests.agents.conformance.subject import Subject
from tests.agents.conformance.tools import FOR_EVER_S

SHOWN: dict[str, dict[str, Any]] = {
    "add": {"result": 5},
    "breaks": {"error": "the cup is broken"},
    "delete": {"result": "deleted a"},
    "listens": {"result": "listened"},
}
"""What a tool gives, where it is only shown; all others take for ever."""


class Scripted(Subject):
    """A `ScriptedAgent`."""

    name = "scripted"

    def agent(self, script: Script) -> ScriptedAgent:
        """Return the script in its own words."""
        steps: list[dict[str, object]] = []
        results: list[object] = []
        for turn in script.turns:
            steps.append({"usage": {"input_tokens": 7, "output_tokens": 4, "requests": 1}})
            steps += _steps(turn, results)
        return ScriptedAgent(steps, name="poet", delay_s=0.0)


def _steps(turn: Turn, results: list[object]) -> list[dict[str, object]]:
    steps: list[dict[str, object]] = [{"say": filled(word, results, ())} for word in turn.words]
    if turn.stalls:
        steps.append({"wait": FOR_EVER_S})
    if turn.fails:
        steps.append({"fail": turn.fails})
    for call in turn.calls:
        shown = SHOWN.get(call.name, {"takes": FOR_EVER_S})
        results.append(shown.get("result", ""))
        steps.append({"tool": call.name, "args": call.args, **shown})
    return steps


SUBJECTS = (Scripted(),)
