"""The `nbrun` command: the demo, and the stored runs of a notebook from outside its kernel."""

# Another process than any kernel: it reads stores and loads nothing of the kernel side. What needs that
# side runs as a process of its own: the demo's notebook in a kernel, the model's installation as a module.

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nbrun.cli import doctor, gc
from nbrun.cli.demo import DEMO_FOLDER, INSTALLER, run_demo
from nbrun.cli.output import say
from nbrun.cli.runs import list_runs, show_run
from nbrun.cli.transfer import export_runs, import_runs
from nbrun.core.errors import Action, Fix, UserError, spell_with
from nbrun.render.export import FORMS

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with one line, without the usage in front of it."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a console that knows no "→" still gets its table
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    spell_with(spell)
    parser = make_parser()
    options = parser.parse_args(arguments)
    if "action" not in options:
        parser.print_help()
        return 0
    try:
        code: int = options.action(options)
        sys.stdout.flush()
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"nbrun: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nbrun: interrupted", file=sys.stderr)
        return 130
    return code


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
    return f"%agentrun {fix.action} {fix.ref}".rstrip()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _Parser(
        prog="nbrun", description="Agent runs in notebooks: try them, find them again."
    )
    parser.add_argument(
        "--version", action="version", version=f"nbrun {metadata.version('jupyter-nbrun')}"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    about = f"run the first notebook in ./{DEMO_FOLDER} and show its runs; no key, no account"
    demo = commands.add_parser("demo", help=about, description=about.capitalize())
    demo.add_argument("--lab", action="store_true", help="open the notebook in JupyterLab instead")
    demo.add_argument(
        "lab_options", nargs="*", metavar="-- OPTION", help="with --lab: options of `jupyter lab`"
    )
    demo.set_defaults(action=run_demo)

    where = "a notebook, a folder of notebooks, or a store's file; default: the working folder"
    about = "list the stored runs of notebooks, newest first"
    listing = commands.add_parser("list", help=about, description=about.capitalize())
    listing.add_argument("path", nargs="?", type=Path, default=Path(), metavar="PATH", help=where)
    listing.add_argument(
        "--limit", type=int, default=50, metavar="N", help="at most so many of each notebook (50)"
    )
    _add_filters(listing)
    listing.set_defaults(action=list_runs)

    about = "show one stored run: its prompt, tools, text and error"
    show = commands.add_parser("show", help=about, description=about.capitalize())
    show.add_argument("ref", metavar="REF", help="#3, 3, last, -1, a run's name or its id")
    show.add_argument("path", nargs="?", type=Path, default=Path(), metavar="PATH", help=where)
    show.set_defaults(action=show_run)

    _add_transfer(commands, where)

    about = "remove old runs and unneeded files, and give back their room"
    clean = commands.add_parser("gc", help=about, description=about.capitalize())
    clean.add_argument("path", nargs="?", type=Path, default=Path(), metavar="PATH", help=where)
    clean.add_argument(
        "--keep-runs",
        type=int,
        metavar="N",
        help="runs that are kept of each notebook (10,000; 0: all)",
    )
    clean.add_argument(
        "--keep-bytes",
        metavar="SIZE",
        help="what they may take, such as 500M (2G; 0: any size); the newest run stays in any case",
    )
    clean.set_defaults(action=gc.collect)

    about = "tell what works here, what does not, and what to do about it"
    check = commands.add_parser("doctor", help=about, description=about.capitalize())
    check.add_argument("path", nargs="?", type=Path, default=Path(), metavar="PATH", help=where)
    check.set_defaults(action=doctor.examine)

    about = "the local demo model"
    local = commands.add_parser("local", help=about, description=about.capitalize())
    verbs = local.add_subparsers(title="commands", metavar="COMMAND", required=True)
    about = "bring the local demo model here (102 MB)"
    install = verbs.add_parser("install", help=about, description=about.capitalize())
    install.set_defaults(action=_install_model)
    return parser


def _add_filters(listing: argparse.ArgumentParser) -> None:
    """Add the options that choose runs."""
    for flag, value, about in (
        (
            "--status",
            "STATUS",
            "only runs that stand so: completed, failed, cancelled, lost, running …",
        ),
        ("--name", "NAME", "only runs of this name"),
        ("--agent", "AGENT", "only runs of this agent or model"),
        ("--tag", "K=V", "only runs with this tag, or with a tag K"),
        ("--since", "TIME", "only runs of the last 2h, or since 2026-01-31"),
        (
            "--text",
            "TEXT",
            "only runs whose name, prompt, output or error holds this text as it is, in any case",
        ),
    ):
        listing.add_argument(flag, metavar=value, help=about)
    listing.add_argument(
        "--before", type=int, metavar="N", help="only runs below this number: the next page"
    )


def _add_transfer(commands: Any, where: str) -> None:
    """Add the commands that bring runs out of a store, and in."""
    about = "write stored runs to a file: JSON lines, JSON, a page, Markdown"
    out = commands.add_parser("export", help=about, description=about[0].upper() + about[1:])
    out.add_argument(
        "ref", nargs="?", metavar="REF", help="#3, 3, last, -1, a run's name or its id"
    )
    out.add_argument("path", nargs="?", type=Path, default=Path(), metavar="PATH", help=where)
    out.add_argument("--all", action="store_true", help="all runs of the store; leave REF out")
    out.add_argument("-f", "--form", choices=FORMS, help="default: as FILE ends, else jsonl")
    out.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: the standard output")
    out.set_defaults(action=export_runs)

    about = (
        "take exported runs (jsonl, json) into a store, under new numbers; nothing there is changed"
    )
    into = commands.add_parser("import", help=about, description=about.capitalize())
    into.add_argument("file", type=Path, metavar="FILE", help="what nbrun export has written")
    into.add_argument("path", nargs="?", type=Path, default=Path(), metavar="PATH", help=where)
    into.set_defaults(action=import_runs)


def _install_model(_options: argparse.Namespace) -> int:
    say("Looking for the local demo model, and fetching it (102 MB) where it is missing …")
    return subprocess.run(INSTALLER, stdin=subprocess.DEVNULL, check=False).returncode  # noqa: S603 - our own words
