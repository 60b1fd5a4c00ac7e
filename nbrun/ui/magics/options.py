"""The one table of options and subcommands: parser, completion and help come from it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from IPython.core.magic_arguments import argument

from nbrun.core.errors import Action, Fix


class Option(msgspec.Struct, frozen=True):
    """One option of `%%agentrun`."""

    flags: tuple[str, ...]
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    is_switch: bool = False
    is_list: bool = False

    def decorate(self) -> Any:
        """Return the decorator that declares it to IPython."""
        if self.is_switch:
            return argument(*self.flags, action="store_true", help=self.help)
        extra: dict[str, Any] = {"metavar": self.metavar} if self.metavar else {}
        if self.is_list:
            extra["action"] = "append"
        if self.choices:
            extra["choices"] = self.choices
        return argument(*self.flags, help=self.help, **extra)


OPTIONS = (
    Option(("-n", "--name"), "what the run is called", "NAME"),
    Option(("-o", "--out"), "put the run under this name in the notebook", "NAME"),
    Option(("-b", "--block"), "wait for the end (the default when headless)", is_switch=True),
    Option(("-a", "--noblock"), "return at once (the default in a notebook)", is_switch=True),
    Option(("--timeout",), "cancel after this long: 90s, 10m, 1h", "TIME"),
    Option(("--max-turns",), "cancel before one model call more than this", "N"),
    Option(("--max-tokens",), "cancel above so many tokens, in and out together", "N"),
    Option(("--max-cost",), "cancel above so many US dollars, where the model's price is known", "USD"),
    Option(
        ("--model",), "run the built-in agent on a model: local, local:PATH, scripted, demo, provider:name",
        "MODEL",
    ),
    Option(("--continue",), "go on talking from where this run has ended", "REF"),
    Option(
        ("--tools",), "functions of this notebook for the built-in agent: a,b, or notebook",
        "FUNCTION", is_list=True,
    ),
    Option(("--system",), "its instructions: a text, or the name of one in the notebook", "TEXT|NAME"),
    Option(("--output",), "the class of its output: a pydantic model or dataclass of this notebook", "TYPE"),
    Option(("--settings",), "its model's settings: a dict of this notebook, such as {'temperature': 0}", "DICT"),
    Option(("--mcp",), "an MCP server whose tools it may use; may be given again", "COMMAND|URL", is_list=True),
    Option(
        ("--if-running",), "what to do while a run of this cell is live: queue, reject, replace",
        choices=("queue", "reject", "replace"),
    ),
    Option(
        ("--on",), "where: local (this kernel), or process (one of its own, which can always be stopped)",
        choices=("local", "process"),
    ),
    Option(
        ("--approve",), "who answers what the run asks: ask (you), auto (allowed), deny (refused)",
        choices=("ask", "auto", "deny"),
    ),
    Option(("--tag",), "label the run with key=value; may be given again", "K=V", is_list=True),
    Option(("--id",), "start only once: the same id and inputs give the same run", "ID"),
    Option(("--python",), "the body is async Python, run in this notebook's namespace", is_switch=True),
    Option(("--keep-object",), "also keep the output itself, pickled, for run.load_object()", is_switch=True),
    Option(
        ("--loop",),
        "on whose loop: host, or kernel for an agent that cells await too; a busy cell holds it up",
        choices=("host", "kernel"),
    ),
    Option(("--thread",), "drive an async agent on a thread of its own, because it blocks", is_switch=True),
    Option(("--no-interpolate",), "leave {name} in the prompt as it is", is_switch=True),
)  # fmt: skip


class Subcommand(msgspec.Struct, frozen=True):
    """One word after `%agentrun`."""

    usage: str
    help: str


SUBCOMMANDS = {
    "list": Subcommand(
        "list [--status STATUS] [--name NAME] [--agent AGENT] [--tag K=V] [--since TIME] [--text TEXT] [--limit N]"
        " [--before REF]",
        "this notebook's runs, newest first: the last 100, or those that fit",
    ),
    "show": Subcommand(
        "show [REF…] [--thread]", "the card of a run; with --thread, of its whole conversation"
    ),
    "result": Subcommand("result [REF]", "the output of a run"),
    "wait": Subcommand("wait [REF…] [--timeout TIME]", "wait for runs; all live ones without REF"),
    "cancel": Subcommand(
        "cancel [REF… | --all] [--reason TEXT]", "stop runs; the newest live one without REF"
    ),
    "retry": Subcommand("retry [REF] [options]", "run the same again, as a new run"),
    "resume": Subcommand(
        "resume [REF] [options]", "go on from the checkpoint of a failed, cancelled or lost run"
    ),
    "replay": Subcommand(
        "replay [REF] [--speed 1|10|max]", "show a run once more: no agent, no key"
    ),
    "lost": Subcommand("lost REF…", "give up runs whose kernel cannot be seen from here"),
    "approve": Subcommand(
        "approve [REF] [CALL] [--args JSON] [--always] [--choose OPTION] [--text TEXT | -r TEXT]",
        "allow what a run asks for; --always: this tool for the rest of the run",
    ),
    "deny": Subcommand("deny [REF] [CALL] [--reason TEXT | -r TEXT]", "refuse what a run asks for"),
    "say": Subcommand("say REF TEXT…", "a message into a running agent; tells whether it was read"),
    "rm": Subcommand("rm REF… | --all-ended", "remove ended runs, with their child runs and files"),
    "export": Subcommand(
        "export [REF] [--form jsonl|json|html|md] [--out FILE]",
        "a run as a file; run-3.jsonl for #3 without FILE",
    ),
    "logs": Subcommand(
        "logs [REF] [-n N]", "what a run has printed and noted, newest last: 200 lines, or N"
    ),
    "agents": Subcommand("agents", "the agents and models here, and what each of them lacks"),
    "doctor": Subcommand("doctor", "what works here, what does not, and what to do about it"),
    "help": Subcommand("help [SUBCOMMAND]", "this list, or the line of one"),
}
ALIASES = {"stop": "cancel", "ls": "list", "-h": "help", "--help": "help"}

F = TypeVar("F", bound=Callable[..., Any])


def run_options(function: F) -> F:
    """Declare every option of the table on a magic."""
    for option in reversed(OPTIONS):
        function = option.decorate()(function)
    target = argument(
        "target", nargs="?", metavar="TARGET", help="a function or agent of this notebook"
    )
    decorated: F = target(function)
    return decorated


def spell(fix: Fix) -> str:
    """Return the line that carries out a fix, in a notebook."""
    if fix.action is Action.INSTALL_LOCAL_MODEL:
        return "nbrun local install"
    if fix.path:  # of another notebook: only the shell's command opens its store
        return f"nbrun {fix.action} {shlex.quote(fix.path)}"
    return f"%agentrun {fix.action} {fix.ref}".rstrip()


def usage_text(verb: str) -> str:
    """Return what `%agentrun VERB --help` prints."""
    return f"%agentrun {SUBCOMMANDS[verb].usage}\n{SUBCOMMANDS[verb].help}"


def help_text() -> str:
    """Return what `%agentrun help` prints."""
    width = max(len(command.usage) for command in SUBCOMMANDS.values())
    lines = [
        f"  %agentrun {command.usage:<{width}}  {command.help}" for command in SUBCOMMANDS.values()
    ]
    return "\n".join(
        [
            "%%agentrun [TARGET] [options] starts a run on the text of its cell; %%agentrun? lists the options.",
            "%agentrun alone shows the runs in a table that lives.",
            "",
            *lines,
            "",
            "REF is #3, 3, last, -1, a run's name or its id.",
        ]
    )
