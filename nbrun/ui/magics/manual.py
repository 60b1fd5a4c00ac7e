"""What `%%agentrun?` and `%agentrun?` show: examples, and all of the table of options and subcommands."""

from __future__ import annotations

from itertools import groupby

import msgspec

from nbrun.core.commands import REFERENCE, Argument, two_columns
from nbrun.ui.magics.options import CELL, LINE, OPTIONS, TARGET


class Example(msgspec.Struct, frozen=True):
    """Cells that run as they stand, one after another, and what they show."""

    title: str
    cells: tuple[str, ...]


CELL_EXAMPLES = (
    Example(
        "The built-in agent on a model; scripted needs no key and always gives the same answer:",
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
        "The cell itself, in the background; its value is nbrun.get('sum').output:",
        ("%%agentrun --python --name sum\nimport asyncio\nawait asyncio.sleep(1)\n20 + 22",),
    ),
    Example(
        "Many runs, one for each input of a list, dict, DataFrame or generator:",
        (
            'drinks = ["green tea", "coffee"]',
            "%%agentrun --model scripted --map drinks --out haikus\nWrite a haiku about {item}.",
        ),
    ),
)
LINE_EXAMPLES = (
    Example("A live table of this notebook's runs:", ("%agentrun",)),
    Example("The card of the newest run, also after a restart:", ("%agentrun show last",)),
    Example("Stop every run in progress:", ('%agentrun cancel --all --reason "too slow"',)),
)


def grouped() -> dict[str, list[Argument]]:
    """Return the options of a cell by their groups."""
    return {group: [*options] for group, options in groupby(OPTIONS, lambda option: option.group)}


def manual(summary: str, examples: tuple[Example, ...]) -> str:
    """Return what `?` shows of a magic: what it does, examples, options by groups, subcommands."""
    lines = [summary, "", "Examples"]
    for example in examples:
        lines += ["", f"  {example.title}"]
        for cell in example.cells:
            lines += ["", *(f"      {line}" for line in cell.splitlines())]
    lines += ["", f"{CELL.usage}, with the prompt below it", "", f"  TARGET: {TARGET.help}"]
    lines += ["  {name}, {name.attr} and {name[0]} in the prompt are replaced by values of the notebook"]
    for group, options in grouped().items():
        lines += ["", f"  {group}"]
        lines += two_columns([(option.usage, option.help) for option in options], "    ")
    lines += ["", "%agentrun SUBCOMMAND", ""]
    lines += two_columns([(each.usage.removeprefix(f"{LINE.name} "), each.help) for each in LINE.commands])
    return "\n".join([*lines, "", REFERENCE])


def help_text() -> str:
    """Return what `%agentrun help` prints."""
    rows = [(each.usage, each.help) for each in LINE.commands]
    return "\n".join(
        [
            f"{CELL.usage} starts a run with the text of its cell as the prompt; %%agentrun? lists the options.",
            "%agentrun alone shows a live table of your runs.",
            "",
            *two_columns(rows),
            "",
            REFERENCE,
        ]
    )
