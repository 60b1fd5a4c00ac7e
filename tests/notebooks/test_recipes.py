"""The recipes of the guide: each runs as printed, on its framework's own packages, in an environment of its own.

They are installed from the package index, which takes minutes: `pytest -m packages tests/notebooks/test_recipes.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import site
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.openai_server import USAGE, OpenAIServer
from tests.guide import GUIDE, ROOT

INSTALL_S = 900
RECIPES = dict(
    re.findall(r"^`pip install ([^`]+)`\n(?:\n[^`\n#][^\n]*\n)*\n```python\n(.*?)^```$",
               (GUIDE / "recipes.md").read_text(encoding="utf-8"), re.M | re.S)
)  # fmt: skip
ENVIRONMENTS = Path(tempfile.gettempdir()) / "nbrun-recipes"
"""Kept, so that a second run takes seconds."""

RUNNER = """
import json, re, sys
from pathlib import Path
import nbrun
source = Path(sys.argv[1]).read_text()
names = {}
exec(compile(source, "recipe", "exec"), names)
(name,) = re.findall(r"^(?:async )?def (\\w+)\\(prompt, run\\)", source, re.M)
with nbrun.NotebookSession(store=Path(sys.argv[1]).with_suffix(".db")) as session:
    run = session.start(names[name], "How many cups are there?")
    run.wait(60)
    record = run.record
    tools = [(tool.name, tool.status) for tool in record.tools]
    print(json.dumps([run.status, str(run.error), str(run.output), tools, run.usage.input_tokens]))
"""

_FIELDS = re.compile(r"`\[\[ ## (\w+) ## \]\]`")


async def counts_cups(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Use the tool, and then say how many there are; in the form that DSPy asks for, if it does."""
    last = json.dumps(request["messages"][-1]["content"])
    was_used = any(message["role"] == "tool" for message in request["messages"]) or "observation_0" in last
    if fields := [name for name in _FIELDS.findall(last) if name != "completed"]:
        step = ("finish", "{}") if was_used else ("stock", '{"thing": "cup"}')
        values = dict(zip(("next_tool_name", "next_tool_args"), step, strict=True))
        text = "".join(f"[[ ## {name} ## ]]\n{values.get(name, 'three cups')}\n" for name in fields)
        yield {"content": f"{text}[[ ## completed ## ]]"}
    elif request.get("tools") and not was_used:
        name = request["tools"][0]["function"]["name"]
        call = {"name": name, "arguments": '{"thing": "cup"}'}
        yield {"tool_calls": [{"index": 0, "id": "call-1", "type": "function", "function": call}]}
    else:
        for word in ("three ", "cups"):
            yield {"content": word}
            await asyncio.sleep(0)


def python_with(packages: str) -> Path:
    """Return the Python of an environment that has these packages, and behind them those that nbrun needs."""
    folder = ENVIRONMENTS / re.sub(r"\W+", "-", packages)
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages.split()], check=True)
        (own,) = folder.glob("lib/python*/site-packages")
        (own / "zz-nbrun.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
        (folder / "done").touch()
    return python


def test_every_framework_has_a_recipe() -> None:
    """All of them are found; each is short, and defines one agent."""
    assert len(RECIPES) == 8
    for source in RECIPES.values():
        assert len(source.splitlines()) <= 40
        compile(source, "recipe", "exec")
        assert len(re.findall(r"^(?:async )?def \w+\(prompt, run\)", source, re.MULTILINE)) == 1


@pytest.mark.packages
@pytest.mark.timeout(INSTALL_S)
@pytest.mark.parametrize("packages", RECIPES)
def test_a_recipe_runs_as_printed(tmp_path: Path, packages: str) -> None:
    """The agent's answer is the run's, its tool is on the card, and the tokens are those of the provider."""
    (recipe := tmp_path / "recipe.py").write_text(RECIPES[packages], encoding="utf-8")
    with OpenAIServer(counts_cups) as server:
        env = os.environ | {
            "OPENAI_API_KEY": "sk-none", "OPENAI_BASE_URL": server.url, "OPENAI_API_BASE": server.url,
            "PYTHONPATH": str(ROOT), "CREWAI_DISABLE_TELEMETRY": "true", "OTEL_SDK_DISABLED": "true",
            "HAYSTACK_TELEMETRY_ENABLED": "false", "HOME": str(tmp_path),
        }  # fmt: skip
        command = [str(python_with(packages)), "-c", RUNNER, str(recipe)]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        status, error, output, tools, tokens = json.loads(done.stdout.splitlines()[-1])
        assert (status, output) == ("completed", "three cups"), error
        name, end = tools[0]
        assert "stock" in name
        assert end == "ok"
        assert tokens == len(server.requests) * USAGE["prompt_tokens"]
