"""A subject of the conformance suite: one kind of agent, and how to make one that follows a script.

To have the suite look at another kind, put a module into `subjects/` with a tuple `SUBJECTS`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

from nbrun import NotebookSession, Run
from nbrun.agents import Limitations, find_adapter, limitations_of
from tests.agents.conformance.script import Script, Turn, script

PROMPT = "a poem on tea"

HELLO = script(Turn(("Steam ", "from ", "the ", "cup")))


class Subject:
    """One kind of agent."""

    name: ClassVar[str]
    crowd: ClassVar[int] = 50  # how many run at once, in the test of that
    has_http: ClassVar[bool] = False  # whether its models are also reached over OpenAI's protocol

    @property
    def environ(self) -> dict[str, str]:
        """What its agents need of the environment, in every process."""
        return {}

    def agent(self, script: Script) -> Any:
        """Return an agent that follows the script, on the framework's own package."""
        raise NotImplementedError

    def prompt(self, script: Script) -> str:
        """Return what it is asked."""
        return PROMPT

    def over_http(self, url: str, model: str) -> Any:
        """Return an agent on the framework's own client of OpenAI's chat completions, at this address."""
        raise NotImplementedError

    async def awaited(self, agent: Any, prompt: str) -> str:
        """Return what the agent says when it is awaited, as a cell does, without nbrun."""
        raise NotImplementedError

    async def hang_up(self, agent: Any) -> None:
        """Close that client; it keeps its connections until then."""
        raise NotImplementedError

    def start(self, session: NotebookSession, script: Script, **options: Any) -> Run:
        """Start a run of it."""
        return session.start(self.agent(script), self.prompt(script), **options)

    @property
    def limitations(self) -> Limitations:
        """What its adapter says that it cannot do."""
        limitations = limitations_of(find_adapter(self.agent(HELLO)))
        assert limitations is not None, f"the adapter of {self.name} has to say what it lacks"
        return limitations


def subjects() -> dict[str, Subject]:
    """Return all subjects by name."""
    modules = sorted(path.stem for path in (Path(__file__).parent / "subjects").glob("*.py"))
    package = f"{__name__.rpartition('.')[0]}.subjects"
    found: list[Subject] = []
    for module in modules:
        found += importlib.import_module(f"{package}.{module}").SUBJECTS
    return {subject.name: subject for subject in found}
