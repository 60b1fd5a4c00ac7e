"""The example agent that the protocol's package has in its sources, as it is."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

from nbrun import NotebookSession, RunStatus
from nbrun.agents import AcpAgent
from tests.agents.conformance import log
from tests.fakes.agents import BOUND_S

PACKAGE = "agent-client-protocol"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the example's file; it is not in what is installed."""
    folder = tmp_path_factory.mktemp("sources")
    wanted = f"{PACKAGE}=={version(PACKAGE)}"
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
         "--dest", folder, wanted],
        check=True,
    )  # fmt: skip
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        sources.extractall(folder, filter="data")
    (found,) = folder.glob("*/examples/agent.py")
    return found


@pytest.mark.timeout(120)
def test_the_example_of_the_protocols_package(session: NotebookSession, example: Path) -> None:
    """It says what it was sent; what it writes to its standard error is in the log."""
    run = session.start(AcpAgent([sys.executable, str(example)], name="example"), "Which tea?")
    assert run.result(BOUND_S) == "Client sent:Which tea?"
    assert run.status is RunStatus.COMPLETED
    assert any("Received prompt request" in line for line in run.record.log)
    log.check(run)
