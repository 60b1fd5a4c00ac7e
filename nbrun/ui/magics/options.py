"""The options and subcommands of `%%agentrun` and `%agentrun`: parsing, completion, help and the guide use it."""

from __future__ import annotations

import keyword
import shlex
from itertools import chain

import msgspec

from nbrun.core import Action, Fix, duration_s
from nbrun.core.commands import CASSETTE, FILTERS, FORMS, REF, Argument, Command, integer, whole_number
from nbrun.core.options import LABELS, choices


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError("write key=value")
    return key, value


def _timeout(text: str) -> float:
    return duration_s(text, "timeout")


def _dollars(text: str) -> float:
    try:
        return float(text.removeprefix("$").replace(",", ""))
    except ValueError:
        raise ValueError("expected US dollars, for example 0.50") from None


def _variable(text: str) -> str:
    if not text.isidentifier() or keyword.iskeyword(text):
        raise ValueError("not a valid Python variable name")
    return text


def _names(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _flat(parts: list[list[str]]) -> tuple[str, ...]:
    return tuple(chain.from_iterable(parts))


def _failures(text: str) -> float:
    """Return a number of runs, or a share: `20`, `5%`, `0.05`."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else integer(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ValueError("expected a number of runs, or a share such as 5%") from None


def _choice(flag: str, help: str, group: str) -> Argument:
    """Return an option that takes one of the words that `RunOptions` allows."""
    return Argument((flag,), help, choices=choices()[flag.strip("-").replace("-", "_")], group=group)


WHAT, NAMES, WAITING = "What to run, and where", "Names and what is kept", "Waiting"
LIMITS, QUESTIONS, BUILT_IN, MANY = "Limits", "Questions", "The built-in agent", "Many runs"

OPTIONS = (
    Argument(
        ("--model",), "run the built-in agent on this model: local, local:PATH, scripted, demo or provider:name",
        "MODEL", group=WHAT,
    ),
    Argument(("--python",), "run the cell body as async Python in this notebook's namespace", group=WHAT),
    Argument(
        ("--continue",), "continue the conversation of this run", "REF", field="continues", group=WHAT
    ),
    _choice(
        "--on", "where to run: local (this kernel) or process (its own process, which can always be killed)",
        group=WHAT,
    ),
    Argument(
        ("--retries",),
        "try again, at most N times: an input of --map whose run failed; with --on process, a run that fails", "N",
        read=integer, group=WHAT,
    ),
    Argument(("--thread",), "run an async agent in its own thread, because it blocks the event loop", group=WHAT),
    _choice(
        "--loop",
        "event loop: host (default), or kernel if cells also await this agent's client (a busy cell then blocks it)",
        group=WHAT,
    ),
    Argument(
        ("--cassette",), "answer its model calls from this file, offline; export --form cassette writes it", "FILE",
        group=WHAT,
    ),
    Argument(
        ("--speed",), "of a cassette: 1 (as recorded), 10 (ten times as fast), another number, or max", "1|10|max",
        group=WHAT,
    ),
    Argument(
        ("--no-interpolate",), "leave {name} in the prompt as it is", field="interpolate", value=False, group=WHAT
    ),
    Argument(("-n", "--name"), "the name of the run", "NAME", group=NAMES),
    Argument(("-o", "--out"), "assign the run to this variable", "NAME", read=_variable, group=NAMES),
    Argument(
        ("--tag",), "label the run with key=value; repeatable", "K=V", field="tags", read=_tag, gather=dict,
        group=NAMES,
    ),
    Argument(("--id",), "start only once: the same id and inputs return the same run", "ID", group=NAMES),
    Argument(
        ("--keep-object",), "also keep the output object itself, pickled, for run.load_object()", group=NAMES
    ),
    Argument(("-b", "--block"), "wait for the run to end (default when headless)", group=WAITING),
    Argument(
        ("-a", "--noblock"), "return at once (default in a notebook)", field="block", value=False, group=WAITING
    ),
    _choice(
        "--if-running", "if a run of this cell is still in progress: queue, reject or replace it", group=WAITING,
    ),
    Argument(
        ("--timeout",), "cancel the run after this long: 90s, 10m, 1h", "TIME", field="timeout_s", read=_timeout,
        group=LIMITS,
    ),
    Argument(
        ("--max-turns",), "cancel the run before it makes more than N model calls", "N", read=integer, group=LIMITS
    ),
    Argument(
        ("--max-tokens",), "cancel the run above N tokens, input plus output", "N", read=integer, group=LIMITS
    ),
    Argument(
        ("--max-cost",), "cancel the run above this cost in US dollars, if the model's price is known", "USD",
        read=_dollars, group=LIMITS,
    ),
    _choice(
        "--approve", "how to answer approval requests: ask (you decide), auto (allow) or deny", group=QUESTIONS,
    ),
    Argument(
        ("--tools",), "functions of this notebook that it may call: a,b, or notebook", "FUNCTION", read=_names,
        gather=_flat, group=BUILT_IN,
    ),
    Argument(
        ("--system",), "its instructions: text, or the name of a str in the notebook", "TEXT|NAME", group=BUILT_IN
    ),
    Argument(
        ("--output",), "the class of its output: a pydantic model or dataclass in this notebook", "TYPE",
        field="output_type", group=BUILT_IN,
    ),
    Argument(
        ("--settings",), "model settings: a dict in this notebook, such as {'temperature': 0}", "DICT", group=BUILT_IN
    ),
    Argument(
        ("--mcp",), "an MCP server whose tools it may call; repeatable", "COMMAND|URL", gather=tuple, group=BUILT_IN
    ),
    Argument(
        ("--map",),
        "run it on each of these inputs; the text is the prompt of each, with {item}, {key}, {column}",
        "INPUTS", group=MANY,
    ),
    Argument(("--key",), "the column that has the keys of the inputs", "COLUMN", group=MANY),
    Argument(("--concurrency",), "how many may be in progress at once", "N", read=integer, group=MANY),
    Argument(("--rate",), "how many may start at most: 600/min, 5/s", "N/min", group=MANY),
    Argument(
        ("--max-failures",), "begin nothing further if more inputs fail: a number, or a share such as 5%", "N|N%",
        read=_failures, group=MANY,
    ),
    Argument(
        ("--score",), "a function of this notebook that scores each output: score(output, item)", "FUNCTION",
        group=MANY,
    ),
)  # fmt: skip
SET_FLAGS = {option.names[-1]: option for option in OPTIONS if option.group == MANY and option.key != "map"}

TARGET = Argument(("TARGET",), "a function or agent of this notebook, or a registered one; Tab lists them")
CELL = Command(
    "%%agentrun", "start a run with the text of this cell as its prompt", (TARGET,), OPTIONS, see="%%agentrun?"
)

_NEW_ONLY = ("--id", "--python", "--no-interpolate", "--continue", "--map", *SET_FLAGS)
_SAME_INPUTS = tuple(option for option in OPTIONS if option.names[-1] not in _NEW_ONLY)
_SHOWN_AGAIN = tuple(option for option in _SAME_INPUTS if option.key in (*LABELS, "out", "block"))
_REFS = Argument(("REF",), "the runs: #3, 3, last, -1, their names or ids", field="refs", gather=list)
_CALL = Argument(("CALL",), "the id of the question, if the run asks more than one")


_AGENT = Argument(
    ("--agent",), "the agent to run: a function or agent of this notebook, or a registered one", "NAME", field="target",
    group=WHAT,
)  # fmt: skip


def _again(verb: str, help: str, options: tuple[Argument, ...], *more: Argument) -> Command:
    return Command(f"%agentrun {verb}", help, (REF, *more), options, see=f"%agentrun help {verb}")


LINE = Command(
    "%agentrun",
    "list, show, wait for and cancel the runs of this notebook",
    commands=(
        Command(
            "%agentrun list", "this notebook's runs, newest first: the last 100, or those that match",
            (
                *FILTERS,
                Argument(("--limit",), "at most N runs", "N", read=whole_number),
                Argument(("--before",), "only runs older than this one: the next page", "REF"),
            ),
            aliases=("ls",),
        ),
        Command(
            "%agentrun show", "the card of a run; with --thread, of its whole conversation",
            (_REFS, Argument(("--thread",), "every run of the conversation")),
        ),
        Command("%agentrun result", "the output of a run", (REF,)),
        Command(
            "%agentrun compare", "two sets side by side: how the scores of the second differ, input by input",
            (
                Argument(("SET",), "the first set: set-1", field="first", is_required=True),
                Argument(("OTHER",), "the second set: set-2", field="second", is_required=True),
            ),
        ),
        Command(
            "%agentrun wait", "wait for runs; without REF, for all that are in progress",
            (_REFS, Argument(("--timeout",), "stop waiting after this long", "TIME", read=_timeout)),
        ),
        Command(
            "%agentrun cancel", "stop runs; without REF, the newest one in progress",
            (
                (_REFS, Argument(("--all",), "every run in progress")),
                Argument(("--reason",), "kept with the run, and shown to its agent", "TEXT"),
            ),
            aliases=("stop",),
        ),
        _again(
            "retry", "run the same prompt and agent again, as a new run", (_AGENT, *_SAME_INPUTS),
            Argument(("--reuse",), "answer the model calls that it has made from its journal, for free"),
            Argument(("--error",), "of a set: only the runs whose error contains this text", "TEXT"),
        ),
        _again(
            "resume", "resume a failed, cancelled or lost run: from its checkpoint, or again with the answers it had",
            (_AGENT, *_SAME_INPUTS),
        ),
        _again(
            "replay", "show a run again; runs no agent and needs no key", _SHOWN_AGAIN,
            Argument(("--speed",), "1 (original speed), 10 (ten times as fast), another number, or max", "1|10|max"),
        ),
        Command(
            "%agentrun trust", "after a question, treat runs that are not signed by your nbrun as your own",
            ((_REFS, Argument(("--all",), "every run of this notebook that is not signed")),),
        ),
        Command(
            "%agentrun lost", "mark runs as lost if their kernel cannot be reached",
            (msgspec.structs.replace(_REFS, is_required=True),),
        ),
        Command(
            "%agentrun approve", "allow what a run asks for; --always: this tool for the rest of the run",
            (
                REF, _CALL,
                Argument(("--args",), "other arguments for the tool, as JSON", "JSON"),
                Argument(("--always",), "allow this tool for the rest of the run"),
                Argument(("--choose",), "one of the options that the question offers", "OPTION"),
                Argument(("-r", "--text"), "a message to the agent", "TEXT"),
            ),
        ),
        Command(
            "%agentrun deny", "refuse what a run asks for",
            (REF, _CALL, Argument(("-r", "--reason"), "a message to the agent", "TEXT")),
        ),
        Command(
            "%agentrun say", "send a message to a running agent; reports whether the agent has read it",
            (
                msgspec.structs.replace(REF, is_required=True),
                Argument(("TEXT",), "the message; quotes are part of it", is_required=True),
            ),
        ),
        Command(
            "%agentrun rm", "remove ended runs, with their child runs and files",
            ((_REFS, Argument(("--all-ended",), "every run that has ended")),),
        ),
        Command(
            "%agentrun export", "save a run as a file; without --out, #3 is saved as run-3.jsonl",
            (
                REF,
                Argument(
                    ("--form",), "the format, by default from FILE's ending, else jsonl; cassette: its model calls",
                    choices=(*FORMS, CASSETTE),
                ),
                Argument(("--out",), "the file", "FILE"),
            ),
        ),
        Command(
            "%agentrun logs", "what a run printed and logged, newest last: 200 lines, or N",
            (REF, Argument(("-n",), "how many lines", "N", read=whole_number)),
        ),
        Command("%agentrun agents", "the agents and models you can use here, and what each can't do"),
        Command("%agentrun doctor", "check what works here, what doesn't, and how to fix it"),
        Command(
            "%agentrun help", "list the subcommands, or explain one", (Argument(("SUBCOMMAND",), "its name"),),
            aliases=("-h", "--help"),
        ),
    ),
)  # fmt: skip


def spell(fix: Fix) -> str:
    """Return the line that carries out a fix, in a notebook."""
    if fix.action is Action.INSTALL_LOCAL_MODEL:
        return "nbrun local install"
    if fix.path:  # another notebook's runs: only the shell's command opens their store
        return f"nbrun {fix.action} {shlex.quote(fix.path)}"
    agent = fix.agent and f" --agent {fix.agent}"
    return f"%agentrun {fix.action} {fix.ref}{agent}".rstrip()
