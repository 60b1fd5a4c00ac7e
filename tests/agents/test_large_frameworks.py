"""Frameworks that are too large for the test extra, or don't go with it: held to the same tests, elsewhere."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = [
    "tests/agents/conformance",
    "tests/agents/test_claude_agent.py",
    "tests/agents/test_google_adk.py",
    "tests/calls/test_sdks.py",
]


@pytest.mark.packages
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("packages", "names"),
    [
        # From source: its wheel has Claude Code in it, hundreds of megabytes.
        (["--no-binary", "claude-agent-sdk", "claude-agent-sdk"], "claude"),
        (["litellm"], "litellm"),
        (["google-adk"], "adk"),
    ],
)
def test_a_large_framework(packages: list[str], names: str, tmp_path: Path) -> None:
    """In an environment of its own, which has all packages of this one too."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
    Path(found.stdout.strip(), "this-one.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    run = [python, "-m", "pytest", "-q", "-m", "packages or not packages", "-k", names, *TESTS]
    subprocess.run(run, check=True, cwd=ROOT)
