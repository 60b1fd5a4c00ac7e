"""Adapters of other packages: found by their entry point, and harmless to others if they are broken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbrun import NotebookSession, agents
from nbrun.agents import find_adapter, third_party
from nbrun.agents.functions import PlainAdapter
from nbrun.ui.magics.agent_list import agents_text
from tests.fakes.agents import BOUND_S, Held

PARROT = Path(__file__).parent / "parrot"

CELLS = """
%load_ext nbrun
from nbrun_parrot import Parrot
polly = Parrot("Polly")
%agentrun agents
get_ipython().run_cell_magic("agentrun", "polly --block", "pieces of eight")
print("said:", __import__("nbrun").get("last").result())
get_ipython().run_cell_magic("agentrun", "polly --block --thread", "and again")
"""


@pytest.fixture
def fresh() -> Iterator[None]:
    """Entry points are read anew in this test, and again after it."""
    third_party.cache_clear()
    yield
    third_party.cache_clear()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> Iterator[Path]:
    """A folder on the path, to install packages into."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for module in folder.glob("*.py"):
        sys.modules.pop(module.stem, None)


def plant(packages: Path, name: str, module: str, value: str = "Adapter") -> None:
    """Put a package there that registers what its module has."""
    (packages / f"{name}.py").write_text(module)
    info = packages / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: of-{name}\nVersion: 1.0\n")
    points = f"[{agents.ENTRY_POINTS}]\n{name} = {name}:{value}\n"
    (info / "entry_points.txt").write_text(points)


def line_of(text: str, name: str) -> str:
    """Return the one line about a name."""
    (line,) = (line for line in text.splitlines() if line[4:].startswith(f"{name} "))
    return line.strip()


def test_the_example_package_is_found_when_it_is_installed(packages: Path, tmp_path: Path) -> None:
    """Installed by pip into a folder of its own, it is listed, run by name, in a thread too, and its label shown."""
    install = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *install, str(packages), str(PARROT)],
        check=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    path = os.pathsep.join([str(packages), os.getcwd()])
    shell = subprocess.run(
        [sys.executable, "-m", "IPython", "--colors=NoColor", "--no-banner", "-c", CELLS],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "IPYTHONDIR": str(tmp_path / "ipython")},
    )
    assert line_of(shell.stdout, "polly") == "✔ polly  parrot, Parrot", shell.stderr
    assert "no tools shown, functions as tools: it has none" in line_of(shell.stdout, "parrot")
    assert "said: pieces of eight" in shell.stdout
    assert "and again" in shell.stdout


GOOD = """
class Thing: ...
class Adapter:
    name = "good"
    def match(self, agent): return type(agent).__name__ == "Thing"
    def check(self, agent): ...
    def label(self, agent): return "thing"
    async def events(self, agent, prompt, run): yield __import__("nbrun.agents").agents.Output(prompt)
"""


def test_a_broken_one_is_a_line_and_breaks_nobody(packages: Path, session: NotebookSession, held: Held) -> None:
    """Whatever a package does when it is loaded or asked, others' agents are found and run."""
    plant(packages, "misses", "import nothing_of_this_name")
    plant(packages, "exits", "raise SystemExit(3)")
    plant(packages, "raises", "raise ValueError('first line\\nsecond line')")
    plant(packages, "lacks_it", "other = 1")
    plant(packages, "number", "Adapter = 7")
    plant(packages, "empty", "class Adapter:\n    name = 'empty'\n    def match(self, agent): ...")
    plant(packages, "angry", GOOD.replace('"good"', '"angry"').replace("return type(", "raise type("))
    plant(packages, "good", GOOD)

    from good import Thing  # type: ignore[import-not-found]  # planted a moment ago

    assert find_adapter(Thing()).name == "good"
    assert session.start(Thing(), "hello").result(BOUND_S) == "hello"
    assert isinstance(find_adapter(held), PlainAdapter)
    text = agents_text({}, (), "")
    for name, words in (
        ("misses", "misses:Adapter of of-misses can't be used: ModuleNotFoundError: No module named 'nothing_of"),
        ("exits", "exits:Adapter of of-exits can't be used: SystemExit: 3"),
        ("raises", "raises:Adapter of of-raises can't be used: ValueError: first line"),
        ("lacks_it", "lacks_it:Adapter of of-lacks_it can't be used: AttributeError:"),
        ("number", "number:Adapter of of-number can't be used: TypeError: not an adapter; missing: name, match,"),
        ("empty", "empty:Adapter of of-empty can't be used: TypeError: not an adapter; missing: check, label,"),
    ):
        line = line_of(text, name)
        assert line.startswith("✘")
        assert words in line
    assert "second line" not in text
    assert line_of(text, "good").split(maxsplit=2) == ["✔", "good", "its limitations are not known"]


def test_what_is_installed_later_is_found_by_the_list(packages: Path) -> None:
    """A `%pip install` needs no new kernel: `%agentrun agents` looks again."""
    assert "good" not in agents_text({}, (), "")
    plant(packages, "good", GOOD)
    assert "good" in agents_text({}, (), "")
