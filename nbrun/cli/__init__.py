"""The `nbrun` command: the demo, and the stored runs of a notebook from outside its kernel."""

# This process is not a kernel: it reads stores, and loads nothing of the kernel side. What needs that side runs in its
# own process: the demo's notebook in a kernel, the installation of the model as a module.

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from nbrun.cli import doctor, gc
from nbrun.cli.demo import DEMO_FOLDER, INSTALLER, run_demo
from nbrun.cli.output import say
from nbrun.cli.runs import list_runs, show_run, trust_runs
from nbrun.cli.transfer import export_runs, import_runs
from nbrun.core import Action, BadOption, Fix, UserError, spell_with
from nbrun.core.commands import FILTERS, FORMS, REF, Argument, Command, asks_for_help, integer, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import SimpleNamespace


_PATH = Argument(
    ("PATH",), "a notebook, a folder of notebooks, or a store file; by default this folder", read=Path, default=Path()
)
NBRUN = Command(
    "nbrun",
    "Agent runs in notebooks: try them, find them again.",
    (Argument(("--version",), "print the version"),),
    commands=(
        Command(
            "nbrun demo", f"run the first notebook in ./{DEMO_FOLDER} and show its runs; needs no key or account",
            (
                Argument(("--lab",), "open the notebook in JupyterLab instead"),
                Argument(("OPTION",), "with --lab: options of `jupyter lab`, after --", field="lab_options",
                         gather=list),
            ),
        ),
        Command(
            "nbrun list", "list the stored runs of notebooks, newest first",
            (
                _PATH,
                Argument(
                    ("--limit",), "at most N runs of each notebook (default 50)", "N", read=whole_number, default=50
                ),
                *FILTERS,
                Argument(("--before",), "only runs below this number: the next page", "N", read=whole_number),
            ),
        ),
        Command(
            "nbrun show", "show one stored run: its prompt, tools, text and error; or a set, such as set-12",
            (msgspec.structs.replace(REF, is_required=True), _PATH),
        ),
        Command(
            "nbrun export", "write stored runs to a file: JSON lines, JSON, a web page or Markdown",
            (
                REF, _PATH,
                Argument(("--all",), "all runs of the store; leave out REF"),
                Argument(("-f", "--form"), "the format; by default from the ending of FILE, else jsonl", choices=FORMS),
                Argument(("-o", "--out"), "by default the standard output", "FILE", read=Path),
            ),
        ),
        Command(
            "nbrun import", "copy exported runs (jsonl, json) into a store, with new numbers; existing runs stay",
            (Argument(("FILE",), "a file that nbrun export wrote", is_required=True, read=Path), _PATH),
        ),
        Command(
            "nbrun trust", "after a question, treat runs that are not signed by your nbrun as your own",
            (REF, _PATH, Argument(("--all",), "all runs of the store; leave out REF")),
        ),
        Command(
            "nbrun gc", "delete old runs and unneeded files, and free their space",
            (
                _PATH,
                Argument(("--keep-runs",), "runs to keep of each notebook (default 10,000; 0: all)", "N", read=integer),
                Argument(
                    ("--keep-bytes",), "the space they may take, such as 500M (default 2 GB; 0: any)",
                    "SIZE",
                ),
            ),
        ),
        Command("nbrun doctor", "check what works here, what doesn't, and how to fix it", (_PATH,)),
        Command(
            "nbrun local", "the local demo model",
            commands=(Command("nbrun local install", "install the local demo model (102 MB)"),),
        ),
    ),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a console that knows no "→" still gets its table
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    spell_with(spell)
    try:
        command, words = find_command(list(sys.argv[1:] if arguments is None else arguments))
        if (not words and command.commands) or asks_for_help(words):
            print(command.manual())
            return 0
        options = command.parse(words)
    except UserError as error:
        print(_prefixed(str(error)), file=sys.stderr)
        return 2
    try:
        code = ACTIONS[command.name](options)
        sys.stdout.flush()
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        is_homeless = isinstance(error, FileNotFoundError) and error.filename is None  # from `os.getcwd()`
        message = "the working folder is gone; change to another one" if is_homeless else str(error)
        print(_prefixed(message), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nbrun: interrupted", file=sys.stderr)
        return 130
    return code


def find_command(words: list[str]) -> tuple[Command, list[str]]:
    """Return the command that the words begin with, and those that are left."""
    command = NBRUN
    while command.commands and words and not words[0].startswith("-"):
        below = command.find(words[0])
        if below is None:
            raise command.unknown(words[0])
        command, words = below, words[1:]
    if command.commands and command is not NBRUN and not words:
        raise BadOption(f"{command.name} needs a COMMAND: {', '.join(each.verb for each in command.commands)}")
    return command, words


def _prefixed(message: str) -> str:
    return message if message.startswith("nbrun") else f"nbrun: {message}"


def spell(fix: Fix) -> str:
    """Return the command for a fix; what only a kernel can do is a line of the notebook."""
    path = f" {shlex.quote(fix.path)}" if fix.path else ""
    match fix.action:
        case Action.LIST | Action.DOCTOR:
            return f"nbrun {fix.action}{path}"
        case Action.SHOW:
            return f"nbrun show {fix.ref.removeprefix('#')}{path}"
        case Action.INSTALL_LOCAL_MODEL:
            return "nbrun local install"
    agent = fix.agent and f" --agent {fix.agent}"
    return f"%agentrun {fix.action} {fix.ref}{agent}".rstrip()


def _install_model(_options: SimpleNamespace) -> int:
    say("Looking for the local demo model; downloading it (102 MB) if it is missing …")
    return subprocess.run(INSTALLER, stdin=subprocess.DEVNULL, check=False).returncode  # noqa: S603 - our own words


def _print_version(_options: SimpleNamespace) -> int:
    print(f"nbrun {metadata.version('jupyter-nbrun')}")
    return 0


ACTIONS: dict[str, Callable[[SimpleNamespace], int]] = {
    "nbrun demo": run_demo, "nbrun list": list_runs, "nbrun show": show_run, "nbrun trust": trust_runs,
    "nbrun export": export_runs, "nbrun import": import_runs, "nbrun gc": gc.collect, "nbrun doctor": doctor.examine,
    "nbrun": _print_version, "nbrun local install": _install_model,
}  # fmt: skip
