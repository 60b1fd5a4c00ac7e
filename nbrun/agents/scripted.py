"""The scripted agent: deterministic and offline, from a small declarative script; for teaching and tests.

A script is a list of steps, each a dict with one verb:

    {"say": "text"}                       streamed word by word
    {"think": "text"}                     the same, as reasoning
    {"phase": "planning"}
    {"wait": 0.5}                         seconds
    {"tool": "search", "args": {…}, "result": …, "takes": 0.3}
    {"progress": 3, "of": 10}
    {"fail": "message"}                   raises ScriptedFailure
    {"return": value}                     the run's output; by default, the text
    {"usage": {"input_tokens": 12, "output_tokens": 7}}

`{prompt}` in a text stands for the prompt.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec

from nbrun.agents import NO_NATIVE_CANCEL, AgentAdapter, BadOption, Limitations, Output, RunContext, events as ev, plain

Step = Mapping[str, object]

VERBS = frozenset({"say", "think", "phase", "wait", "tool", "progress", "fail", "return", "usage"})

HAIKU: tuple[Step, ...] = (
    {"phase": "thinking"},
    {"wait": 0.3},
    {"tool": "count_syllables", "args": {"text": "steam curls from the cup"}, "result": 5, "takes": 0.4},
    {"phase": "writing"},
    {"say": "Steam curls from the cup,\nleaves remember mountain rain,\nthe room holds its breath.\n"},
    {"usage": {"input_tokens": 12, "output_tokens": 21, "requests": 1}},
)
"""The script that replaces the local demo model if that is not installed."""


class ScriptedFailure(Exception):
    """Raised by a script's `fail` step."""


class ScriptedAgent(msgspec.Struct, frozen=True):
    """An agent that follows a script; the docstring of `nbrun.agents.scripted` lists the verbs.

    Cards show its `name`; `delay_s` is the seconds between two words of a text.
    """

    script: Sequence[Step]
    name: str = "scripted"
    delay_s: float = 0.05

    def __post_init__(self) -> None:
        for number, step in enumerate(self.script, 1):
            verbs = VERBS & set(step)
            if len(verbs) != 1:
                raise BadOption(
                    f"step {number} of the script must have one verb, not {len(verbs)}: {', '.join(sorted(VERBS))}"
                )


class ScriptedAdapter(AgentAdapter):
    """Drives a `ScriptedAgent`."""

    name = "scripted"
    limitations = Limitations(
        functions="its tools are shown, not run",
        approvals="it asks nothing",
        steering="its script is fixed",
        native_cancel=NO_NATIVE_CANCEL,
        resume="it saves no checkpoints",
    )

    def match(self, agent: object) -> bool:
        """Return whether it is a script."""
        return isinstance(agent, ScriptedAgent)

    async def events(self, agent: object, prompt: str, run: RunContext) -> AsyncIterator[ev.EventData | Output]:
        """Play the script."""
        assert isinstance(agent, ScriptedAgent)  # noqa: S101 - match() said so
        for step in agent.script:
            async for event in _play(step, agent.delay_s, prompt, run):
                yield event


async def _play(step: Step, delay_s: float, prompt: str, run: RunContext) -> AsyncIterator[ev.EventData | Output]:
    match step:
        case {"say": text} | {"think": text}:
            kind = ev.TextDelta if "say" in step else ev.ReasoningDelta
            for word in re.findall(r"\S*\s*", str(text).replace("{prompt}", prompt)):
                if word:
                    yield kind(word)
                    await asyncio.sleep(delay_s)
        case {"phase": name}:
            yield ev.RunPhase(str(name))
        case {"wait": seconds}:
            await asyncio.sleep(_number(seconds))
        case {"tool": name}:
            with run.tool(str(name), step.get("args")) as tool:
                await asyncio.sleep(_number(step.get("takes", 0)))
                if "error" in step:
                    raise ScriptedFailure(str(step["error"]))
                tool.result = step.get("result")
        case {"progress": done}:
            total = step.get("of")
            yield ev.Progress(_number(done), None if total is None else _number(total))
        case {"usage": usage}:
            run.usage(**usage)  # type: ignore[arg-type]  # a wrong key fails the run, with its name
        case {"fail": message}:
            raise ScriptedFailure(str(message))
        case {"return": value}:
            yield Output(plain(value))


def _number(value: object) -> float:
    return float(str(value))


ADAPTER = ScriptedAdapter()
