"""Every check of the project: `python -m tests`. People and CI run the same."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.browser import chromium

ROOT = Path(__file__).resolve().parents[1]
JAVASCRIPT = ROOT / "tests" / "js"
KEPT_LINES = 30
WORKERS = 2 + max(2, os.cpu_count() or 2)  # a test waits a third of its time: for a grace period, a kernel, a page
# The long ones first: nothing long should be left to wait for at the end.
KERNEL = ("notebooks", "server", "kernel")
UNIT = ("cli", "agents", "store", "host", "sessions")  # and every folder that is named nowhere
BROWSER = ("browser",)

Action = Callable[["Shell"], bool]

_turn_to_print = threading.Lock()
_one_installer = threading.Lock()


@dataclass(frozen=True, slots=True)
class Step:
    """One check: does it, shows its output and returns whether it passed."""

    name: str
    title: str
    action: Action
    is_aside: bool = False
    """Whether it runs beside the others: it needs nothing of theirs, and one core at most."""
    folders: Sequence[str] = ()
    """Whose tests it runs, after its action and in one run with those of other steps."""


@dataclass(slots=True)
class Shell:
    """Runs the commands of one step. Its output is shown at once, or as one block at the step's end."""

    pytest_options: Sequence[str] = ()
    is_quiet: bool = False
    """Whether the output is kept back until the step's end, since other steps run beside it."""
    failures: list[str] = field(default_factory=list)
    """The last lines of each failed command, for the summary."""
    _kept: list[str] = field(default_factory=list)

    def say(self, line: object) -> None:
        """Print a line."""
        if self.is_quiet:
            self._kept.append(str(line))
        else:
            print(line, flush=True)

    def show(self) -> None:
        """Print what was kept back."""
        if self._kept:
            with _turn_to_print:
                print("\n".join(self._kept), flush=True)
        self._kept.clear()

    def run(self, *command: str, cwd: Path = ROOT) -> bool:
        """Run a command, pass on what it prints, and keep its last lines for the summary if it fails."""
        self.say(f"$ {' '.join(command)}")
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
            self.say(f"{command[0]} is missing: pip install -e '.[test]'")
            return False
        last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        with process:
            for line in process.stdout or ():
                self.say(line.rstrip("\n"))
                last_lines.append(line)
        if process.returncode:
            failure = f"$ {' '.join(command)}\n{''.join(last_lines)}exit {process.returncode}"
            self.failures.append(failure)
        return process.returncode == 0

    def python(self, *arguments: str) -> bool:
        """Run this environment's Python."""
        return self.run(sys.executable, *arguments)

    def script(self, name: str, *arguments: str) -> bool:
        """Run a script of this environment, which need not be active."""
        folder = str(Path(sys.executable).parent)
        return self.run(shutil.which(name, path=folder) or name, *arguments)

    def pytest(self, *folders: str) -> bool:
        """Run the tests of these folders, shared out over more workers than there are cores (tests/pool.py)."""
        named = [f"tests/{folder}" for folder in folders]
        return self.python("-m", "pytest", "-n", str(WORKERS), *named, *self.pytest_options)


@dataclass(frozen=True, slots=True)
class Result:
    """How a step has ended."""

    step: Step
    has_passed: bool
    took_s: float
    failures: Sequence[str]

    @property
    def word(self) -> str:
        """How it has ended, in a word."""
        return "passed" if self.has_passed else "FAILED"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named steps, or all; return 0 if every one of them passed. A failed step stops no other."""
    _set_up_what_is_inherited()
    parser = make_parser()
    options = parser.parse_args(arguments)
    if unknown := set(options.steps) - {step.name for step in STEPS}:
        parser.error(f"no such step: {', '.join(sorted(unknown))}; see --list")
    if options.list:
        print("\n".join(f"{step.name:<8} {step.title}" for step in STEPS))
        return 0
    os.chdir(ROOT)
    began = time.monotonic()
    steps = [step for step in STEPS if not options.steps or step.name in options.steps]
    aside = [step for step in steps if step.is_aside]
    others = [step for step in steps if not step.is_aside and not step.folders]
    if tested := [step for step in steps if step.folders]:
        others.append(_together(tested))
    with ThreadPoolExecutor(1) as pool:
        beside = pool.map(lambda step: _run(step, Shell(is_quiet=bool(others))), aside)
        results = [_run(step, Shell(options.pytest or ())) for step in others]
        results = [*beside, *results]
    return _summarise(results, time.monotonic() - began)


def _set_up_what_is_inherited() -> None:
    """Give the processes that are started here a working Ctrl-C, and compiled modules, as users have them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests", description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help="default: all")
    parser.add_argument("--list", action="store_true", help="list the steps and exit")
    parser.add_argument("--pytest", action="append", metavar="ARG", help="pass ARG to pytest: --pytest=-x")
    return parser


def _together(steps: Sequence[Step]) -> Step:
    """Return the step that runs the tests of these ones: while some wait for a page, others have the cores."""

    def action(shell: Shell) -> bool:
        ready = [step for step in steps if step.action(shell)]
        folders = [folder for step in ready for folder in step.folders]
        return shell.pytest(*folders) and ready == steps if folders else False

    return Step("tests", "; ".join(step.title for step in steps), action)


def _run(step: Step, shell: Shell) -> Result:
    shell.say(f"\n=== {step.name}: {step.title} ===")
    began = time.monotonic()
    has_passed = step.action(shell)
    result = Result(step, has_passed, time.monotonic() - began, shell.failures)
    shell.say(f"=== {step.name}: {result.word} in {result.took_s:.1f} s ===")
    shell.show()
    return result


def _summarise(results: Sequence[Result], took_s: float) -> int:
    for result in results:  # again: of a long log, often only the end is kept
        for failure in result.failures:
            print(f"\n=== how {result.step.name} failed ===\n{failure}")
    print("\n=== summary ===")
    for result in results:
        step = result.step
        print(f"{result.word:<6} {step.name:<8} {result.took_s:7.1f} s  {step.title}")
    failed = sum(not result.has_passed for result in results)
    used = os.times()
    print(f"total  {took_s:16.1f} s, and {used.children_user + used.children_system:.1f} s of CPU")
    print(f"steps: {len(results) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def _check_javascript(shell: Shell) -> bool:
    return _install_javascript(shell) and shell.run("npx", "--no-install", "tsc", "-p", ".", cwd=JAVASCRIPT)


def _install_javascript(shell: Shell) -> bool:
    """Install what checks the static files, the type checker and axe for the browser, if it is not there."""
    with _one_installer:
        if _is_installed():
            return True
        if not _has_node() and chromium.can_apt_install():
            chromium.apt_install("nodejs", "npm")
        if not _has_node():
            shell.say("node and npm are missing: install Node.js (Debian: apt-get install nodejs npm)")
            return False
        return shell.run("npm", "ci", "--no-audit", "--no-fund", cwd=JAVASCRIPT)


def _is_installed() -> bool:
    wanted, there = JAVASCRIPT / "package-lock.json", JAVASCRIPT / "node_modules/.package-lock.json"
    return there.is_file() and there.stat().st_mtime >= wanted.stat().st_mtime  # npm writes it last


def _has_node() -> bool:
    return shutil.which("node") is not None and shutil.which("npm") is not None


def _make_kernels(shell: Shell) -> bool:
    # Made beforehand, since an installation is no part of a test's time.
    return shell.python("-m", "tests.kernels")


def _make_browser_ready(shell: Shell) -> bool:
    try:
        shell.say(f"Chromium: {chromium.find_quick_or_install()}")
    except chromium.NoChromium as error:
        shell.say(error)
        return False
    return _install_javascript(shell) and _make_kernels(shell)


def _unit_folders() -> list[str]:
    with_tests = {path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").rglob("test_*.py")}
    return [*UNIT, *sorted(with_tests - {*UNIT, *KERNEL, *BROWSER})]


STEPS = (
    Step("ruff", "lint", lambda shell: shell.python("-m", "ruff", "check", "."), is_aside=True),
    Step("format", "formatting", lambda shell: shell.python("-m", "ruff", "format", "--check", "."), is_aside=True),
    Step(
        "layers",
        "import contracts",
        lambda shell: shell.script("lint-imports", "--no-logo", "--no-cache"),
        is_aside=True,
    ),
    Step("js", "types of the static JavaScript files", _check_javascript, is_aside=True),
    Step("types", "mypy, strict", lambda shell: shell.python("-m", "mypy"), is_aside=True),
    Step("model", "the local demo model", lambda shell: shell.python("-m", "nbrun.agents.local_model.install")),
    Step("browser", "tests of the card and of Lab in Chromium", _make_browser_ready, folders=BROWSER),
    Step("kernel", "tests in real kernels and servers, and the example notebooks", _make_kernels, folders=KERNEL),
    Step("unit", "tests without a kernel and a browser", lambda _shell: True, folders=_unit_folders()),
)

if __name__ == "__main__":
    sys.exit(main())
