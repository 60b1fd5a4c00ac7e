"""What holds for the project as a whole: what an import loads, what a wheel holds, what lies where."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import nbrun

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"IPython", "anywidget", "ipywidgets", "jupyter_server", "tornado", "pydantic", "pydantic_ai", "zmq"}
TOP_LEVEL = {
    *("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"),
    *("jupyter-config", "nbrun", "notebooks", "tests"),
}
BUILD_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in the wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"]
    build = [*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, timeout=BUILD_TIMEOUT_S)
    (path,) = folder.glob("jupyter_nbrun-*.whl")
    with zipfile.ZipFile(path) as file:
        return set(file.namelist())


def test_import_is_light() -> None:
    """Importing nbrun loads no IPython, no widgets, no server and no agent framework."""
    ask = "import json, sys, nbrun; print(json.dumps(sorted(m.partition('.')[0] for m in sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True, cwd=ROOT)
    assert HEAVY.isdisjoint(json.loads(answer.stdout))


def test_no_client_for_http_is_loaded() -> None:
    """Neither by the import nor by the extension: they are changed when somebody else imports them."""
    ask = (
        "import sys, nbrun\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "InteractiveShell.instance().run_line_magic('load_ext', 'nbrun')\n"
        "print(sorted({'httpx', 'httpx2', 'aiohttp', 'urllib3', 'requests', 'genai_prices'} & sys.modules.keys()))"
    )
    answer = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True, cwd=ROOT)
    assert answer.stdout.splitlines()[-1] == "[]"


def test_import_says_and_starts_nothing() -> None:
    """Importing nbrun prints nothing and starts no thread."""
    ask = "import nbrun, sys, threading; sys.exit(threading.active_count() - 1)"
    answer = subprocess.run([sys.executable, "-W", "error", "-c", ask], capture_output=True, text=True, cwd=ROOT)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_public_names_are_sorted_and_documented() -> None:
    """Each name in `nbrun.__all__` is there once, in order, and classes and functions say what they are."""
    assert nbrun.__doc__
    assert list(nbrun.__all__) == sorted(set(nbrun.__all__))
    undocumented = [
        name for name in nbrun.__all__ if callable(getattr(nbrun, name)) and not getattr(nbrun, name).__doc__
    ]
    assert undocumented == []


@pytest.mark.timeout(BUILD_TIMEOUT_S)
def test_wheel_holds_what_is_needed_at_run_time(wheel: set[str]) -> None:
    """A wheel brings the card's files, the type marker, all notebooks and guide pages, and the server's switch."""
    notebooks = {f"nbrun/{path.relative_to(ROOT)}" for path in ROOT.glob("notebooks/*.ipynb")}
    pages = {f"nbrun/{path.relative_to(ROOT)}" for path in ROOT.glob("notebooks/guide/*.md")}
    assert notebooks
    assert pages
    static = {str(path.relative_to(ROOT)) for path in ROOT.glob("nbrun/ui/static/*")}
    assert static
    (data,) = {name.partition("/")[0] for name in wheel if ".data/" in name}
    switch = f"{data}/data/etc/jupyter/jupyter_server_config.d/nbrun.json"
    assert {"nbrun/py.typed", switch, *static, *notebooks, *pages} <= wheel


@pytest.mark.timeout(BUILD_TIMEOUT_S)
def test_wheel_holds_nothing_else(wheel: set[str]) -> None:
    """A wheel brings nbrun and its own metadata: no tests, stores or leftovers."""
    suffixes = {".py", ".js", ".css", ".ipynb", ".typed"}
    others = {
        name
        for name in wheel
        if not name.startswith("jupyter_nbrun-") and not (name.startswith("nbrun/") and Path(name).suffix in suffixes)
    }
    beside = re.compile(r"nbrun/notebooks/(?:guide/[^/]+\.md|cassettes/[^/]+\.jsonl)")
    assert {name for name in others if not beside.fullmatch(name)} == set()


def test_top_level_holds_only_what_is_known() -> None:
    """A new file at the top of the checkout is a decision, not an accident."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    top = {name.partition("/")[0] for name in listed.stdout.split("\0") if name}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_ci_runs_the_readmes_test_command() -> None:
    """What the README tells people to run is, letter for letter, what CI runs."""
    (command,) = re.findall(r"^pip install .*$", (ROOT / ".ci/run").read_text("utf-8"), re.M)
    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
