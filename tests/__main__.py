"""Every check of the project, in order: `python -m tests`. People and CI run the same."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.browser import axe, chromium

ROOT = Path(__file__).resolve().parents[1]
JAVASCRIPT = ROOT / "tests" / "js"
KEPT_LINES = 30
OWN_GROUPS = ("kernel", "notebooks", "server", "browser")

Action = Callable[[Sequence[str]], bool]

_failures: list[str] = []  # of each failed command the last lines, for the summary


@dataclass(frozen=True, slots=True)
class Step:
    """One check: does it, shows its output and returns whether it passed."""

    name: str
    title: str
    action: Action


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named steps, or all; return 0 if every one of them passed. A failed step stops no other."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if unknown := set(options.steps) - {step.name for step in STEPS}:
        parser.error(f"no such step: {', '.join(sorted(unknown))}; see --list")
    if options.list:
        print("\n".join(f"{step.name:<8} {step.title}" for step in STEPS))
        return 0
    os.chdir(ROOT)
    results: list[tuple[Step, bool, float]] = []
    for step in STEPS:
        if not options.steps or step.name in options.steps:
            print(f"\n=== {step.name}: {step.title} ===", flush=True)
            started = time.monotonic()
            has_passed = step.action(options.pytest or ())
            took_s = time.monotonic() - started
            print(f"=== {step.name}: {_word(has_passed)} in {took_s:.1f} s ===", flush=True)
            results.append((step, has_passed, took_s))
    return _summarise(results)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests", description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help="default: all")
    parser.add_argument("--list", action="store_true", help="name the steps and end")
    parser.add_argument(
        "--pytest", action="append", metavar="ARG", help="hand ARG on to pytest: --pytest=-x"
    )
    return parser


def _summarise(results: Sequence[tuple[Step, bool, float]]) -> int:
    for failure in _failures:  # again: of a long log, often only the end is kept
        print(f"\n=== how it failed ===\n{failure}")
    print("\n=== summary ===")
    for step, has_passed, took_s in results:
        print(f"{_word(has_passed):<6} {step.name:<8} {took_s:7.1f} s  {step.title}")
    failed = sum(not has_passed for _, has_passed, _ in results)
    print(f"total  {sum(took_s for *_, took_s in results):16.1f} s")
    print(f"steps: {len(results) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def _word(has_passed: bool) -> str:
    return "passed" if has_passed else "FAILED"


def _run(*command: str, cwd: Path = ROOT) -> bool:
    """Run a command, pass on what it prints, and keep its last lines for the summary if it fails."""
    print(f"$ {' '.join(command)}", flush=True)
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        print(f"{command[0]} is missing: pip install -e '.[test]'", flush=True)
        return False
    last_lines: deque[str] = deque(maxlen=KEPT_LINES)
    with process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last_lines.append(line)
    if process.returncode:
        _failures.append(f"$ {' '.join(command)}\n{''.join(last_lines)}exit {process.returncode}")
    return process.returncode == 0


def _python(*arguments: str) -> bool:
    return _run(sys.executable, *arguments)


def _command(name: str) -> str:
    """Return the script of this environment, which need not be active; else the bare name."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name


def _pytest(paths: Sequence[str], more: Sequence[str]) -> bool:
    return _python("-m", "pytest", *paths, "--durations=5", *more)


def _check_layers(_more: Sequence[str]) -> bool:
    return _run(_command("lint-imports"), "--no-logo", "--no-cache")


def _check_javascript(_more: Sequence[str]) -> bool:
    return _install_javascript() and _run("npx", "--no-install", "tsc", "-p", ".", cwd=JAVASCRIPT)


def _install_javascript() -> bool:
    """Install what checks the static files: the type checker, and axe for the browser."""
    if not _has_node() and chromium.can_apt_install():
        chromium.apt_install("nodejs", "npm")
    if not _has_node():
        print("node and npm are missing: install Node.js (Debian: apt-get install nodejs npm)")
        return False
    return _run("npm", "ci", "--no-audit", "--no-fund", cwd=JAVASCRIPT)


def _has_node() -> bool:
    return shutil.which("node") is not None and shutil.which("npm") is not None


def _install_model(_more: Sequence[str]) -> bool:
    return _python("-m", "nbrun.agents.local_model.install")


def _test_units(more: Sequence[str]) -> bool:
    return _pytest(["tests", *(f"--ignore=tests/{group}" for group in OWN_GROUPS)], more)


def _test_kernels(more: Sequence[str]) -> bool:
    # Made beforehand, since an installation is no part of a test's time.
    folders = ("tests/kernel", "tests/notebooks", "tests/server")
    paths = [path for path in folders if (ROOT / path).is_dir()]
    return _python("-m", "tests.kernels") and _pytest(paths, more)


def _test_in_browser(more: Sequence[str]) -> bool:
    try:
        print(f"Chromium: {chromium.find_or_install()}", flush=True)
    except chromium.NoChromium as error:
        print(error, flush=True)
        return False
    if not axe.SCRIPT.is_file() and not _install_javascript():
        return False
    return _python("-m", "tests.kernels") and _pytest(["tests/browser"], more)


STEPS = (
    Step("ruff", "lint", lambda _: _python("-m", "ruff", "check", ".")),
    Step("format", "formatting", lambda _: _python("-m", "ruff", "format", "--check", ".")),
    Step("types", "mypy, strict", lambda _: _python("-m", "mypy")),
    Step("layers", "import contracts", _check_layers),
    Step("js", "types of the static JavaScript files", _check_javascript),
    Step("model", "the local demo model", _install_model),
    Step("unit", "tests without a kernel and a browser", _test_units),
    Step("kernel", "tests in real kernels and servers, and the example notebooks", _test_kernels),
    # In a process of its own: Playwright's running event loop breaks `asyncio.run` elsewhere.
    Step("browser", "tests of the card and of Lab in Chromium", _test_in_browser),
)

if __name__ == "__main__":
    sys.exit(main())
