"""Hostile text in a terminal: whatever command shows a run, the terminal has nothing of it to obey."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nbrun import NotebookSession
from nbrun.core.errors import NotPending, RunFailed
from nbrun.core.text import visible
from nbrun.render.words import title
from tests.fakes.hostile_shell import texts

ROOT = Path(__file__).parents[2]

_OURS = re.compile(r"\x1b\[[0-9;?]*[AKhlm]|\r")
"""How a line that lives is drawn over, and its colours: rich writes nothing else."""


def test_a_terminal_gets_nothing_to_obey() -> None:
    """Names, texts, tools, errors and answers of runs in every state, by every command, in exports, to the server."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fakes.hostile_shell"], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    seen: list[tuple[str, str]] = json.loads(done.stdout)
    assert len(seen) > 40 * len(texts())
    obeyed = {
        where: next(ascii(line) for line in text.splitlines() if visible(line) != line)
        for where, shown in seen
        if visible(text := _OURS.sub("", shown)) != text
    }
    assert obeyed == {}
    assert "forged" in " ".join(shown for _, shown in seen)  # the payloads have come as far as that


def test_a_name_forges_no_line(session: NotebookSession) -> None:
    """A name with a line end in it stays in the line that names it."""

    async def agent(prompt: str) -> None:
        raise ValueError(prompt)

    run = session.start(agent, "x", name="tea\n✔ forged")
    run.wait(10)
    shown = [repr(run), repr(session.runs()), str(session.cancel(run)), title(run.record)]
    with pytest.raises(RunFailed) as failed:
        run.result()
    with pytest.raises(NotPending) as refused:
        run.steer("x")
    for text in (*shown, str(failed.value), str(refused.value)):
        assert "forged" in text
        assert not [line for line in text.splitlines() if line.startswith("✔")]
