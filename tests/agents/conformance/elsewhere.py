"""Another process: goes on there with runs of a store that this one has left. One program for all tests.

It reads a line of JSON for each run, and answers with one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbrun
from nbrun.core.errors import NbrunError
from tests.agents.conformance.scenarios import SCENARIOS
from tests.agents.conformance.subject import subjects

IMPORTS_S = 40
"""A framework is imported in a fresh process: for seconds, on a busy machine."""


class Elsewhere:
    """The other process, started with its first question."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def resume(self, store: Path, run_id: str, subject: str, scenario: str) -> dict[str, Any]:
        """Have it go on with a run; return its end, or, as `refused`, why it does not."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"store": str(store), "run": run_id, "subject": subject, "scenario": scenario}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the other process has died; it says why on stderr"
        told: dict[str, Any] = json.loads(answer)
        return told

    def close(self) -> None:
        """End it, at once: it has answered, and all its frameworks take seconds to go by themselves."""
        if self._process is None:
            return
        with self._process as process:
            process.kill()


def main() -> None:
    """Answer until there is nothing more to read."""
    known = subjects()
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(_resumed(asked, known[asked["subject"]])), flush=True)


def _resumed(asked: dict[str, str], subject: Any) -> dict[str, Any]:
    os.environ.update(subject.environ)
    with nbrun.NotebookSession(store=asked["store"]) as session:
        run = session.get(asked["run"])
        try:
            resumed = run.resume(agent=subject.agent(SCENARIOS[asked["scenario"]]))
        except NbrunError as error:
            return {"refused": str(error)}
        resumed.wait(IMPORTS_S)
        return {
            "status": str(resumed.status),
            "text": resumed.text,
            "error": str(resumed.error or ""),
            "told": told(resumed),
        }


def told(run: nbrun.Run) -> list[str]:
    """Return the names of what the tools of a run have told of themselves."""
    return [event.data.name for event in run.events() if isinstance(event.data, nbrun.core.events.Custom)]


if __name__ == "__main__":
    main()
