"""What `%%agentrun?` and `%agentrun?` say of options and subcommands, from the one table of them."""

from __future__ import annotations

import msgspec

from nbrun.ui.magics.options import OPTIONS, SUBCOMMANDS, Option


class Example(msgspec.Struct, frozen=True):
    """Cells that run as they stand, one after another, and what they show."""

    title: str
    cells: tuple[str, ...]


CELL_EXAMPLES = (
    Example(
        "The built-in agent on a model; scripted needs none and says the same to everything:",
        ("%%agentrun --model scripted\nWrite a haiku about tea.",),
    ),
    Example(
        "A function of the notebook is an agent; what it yields is streamed:",
        (
            'async def poet(prompt):\n    for word in ("Steam", "curls", "up"):\n        yield word + " "',
            "%%agentrun poet --name haiku --timeout 90s\nWrite a haiku about tea.",
        ),
    ),
    Example(
        "The cell itself, in the background; nbrun.get('sum').output has its value:",
        ("%%agentrun --python --name sum\nimport asyncio\nawait asyncio.sleep(1)\n20 + 22",),
    ),
)
LINE_EXAMPLES = (
    Example("The runs of this notebook, in a table that lives:", ("%agentrun",)),
    Example("The card of the newest run, also after a restart:", ("%agentrun show last",)),
    Example("Stop all that is live:", ('%agentrun cancel --all --reason "too slow"',)),
)

GROUPS = {
    "what is run, and where": (
        "--model",
        "--python",
        "--on",
        "--thread",
        "--loop",
        "--no-interpolate",
    ),
    "how it is called and found": ("--name", "--out", "--tag", "--id", "--keep-object"),
    "waiting for it": ("--block", "--noblock", "--if-running"),
    "limits": ("--timeout", "--max-turns", "--max-tokens", "--max-cost"),
    "questions": ("--approve",),
}
MORE = "more"
"""The group of an option that is in no other."""

TARGET = "a function or agent of this notebook, or a registered one; Tab names them"
REFERENCE = "REF is #3, 3, last, -1, a run's name or its id."


def grouped() -> dict[str, list[Option]]:
    """Return every option under the name of its group."""
    group_of = {flag: group for group, flags in GROUPS.items() for flag in flags}
    groups: dict[str, list[Option]] = {group: [] for group in (*GROUPS, MORE)}
    for option in OPTIONS:
        groups[group_of.get(option.flags[-1], MORE)].append(option)
    return {group: options for group, options in groups.items() if options}


def option_usage(option: Option) -> str:
    """Return an option as one types it: `-n/--name NAME`."""
    value = "|".join(option.choices) if option.choices else option.metavar
    return "/".join(option.flags) + (f" {value}" if value else "")


def manual(summary: str, examples: tuple[Example, ...]) -> str:
    """Return what `?` shows of a magic: what it does, examples, options by groups, subcommands."""
    lines = [summary, "", "Examples"]
    for example in examples:
        lines += ["", f"  {example.title}"]
        for cell in example.cells:
            lines += ["", *(f"      {line}" for line in cell.splitlines())]
    lines += ["", "%%agentrun [TARGET] [options], the prompt below it", "", f"  TARGET: {TARGET}"]
    lines += ["  {name}, {name.attr} and {name[0]} in the prompt stand for values of the notebook"]
    for group, options in grouped().items():
        lines += ["", f"  {group}"]
        lines += _rows([(option_usage(option), option.help) for option in options], "    ")
    lines += ["", "%agentrun SUBCOMMAND", ""]
    lines += _rows([(command.usage, command.help) for command in SUBCOMMANDS.values()], "  ")
    return "\n".join([*lines, "", REFERENCE])


def _rows(rows: list[tuple[str, str]], indent: str) -> list[str]:
    """Return two columns; where the first is wide, the second is on a line of its own."""
    width = 32
    lines = []
    for left, right in rows:
        if len(left) > width:
            lines += [f"{indent}{left}", f"{indent}{'':<{width}}  {right}"]
        else:
            lines.append(f"{indent}{left:<{width}}  {right}")
    return lines
