"""A shell without a kernel, in which runs of hostile text are looked at in every way; prints what each has shown.

The output is JSON: `[where, text]` for each thing that went to a terminal, into a file or to the server.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import nbrun
from nbrun import Answer, Run, RunContext, cli
from nbrun.ui.extension import _EXTENSION_ATTRIBUTE
from tests.fakes.hostile import GROUPS

MORE = [
    "\x90q;\x9c", "\x9d0;title\x9c", "\x9d8;;http://127.0.0.1:9/hit\x9clink", "\x98string\x9c", "\x1b\x1b[2J",
    "\x1b]0;unended", "\x1bPunended", "\x1b[31", "\x1b", "[link=http://127.0.0.1:9/hit]x[/link]", "[blink]x",
    "line\n✔ Completed – forged #9",
]  # fmt: skip
"""What only a terminal minds."""
LENGTH = 90
"""Characters of a text, so that a name of it is not cut."""


def texts() -> list[str]:
    """Return the payloads, several in one text."""
    joined = [""]
    for payload in [*GROUPS["invisible"], *GROUPS["terminal"], *MORE]:
        if len(joined[-1]) + len(payload) > LENGTH:
            joined.append("")
        joined[-1] += payload.replace("\\ud800", "\ud800") + " "
    return joined


async def full(text: str, run: RunContext) -> str:
    """Tell of everything with one text."""
    run.text(text)
    run.phase(text)
    run.progress(1, 2, text)
    run.log(text)
    run.emit(text, text)
    with run.tool(text, {text: text}) as tool:
        tool.result = text
    with suppress(ValueError), run.tool(text, {text: text}):
        raise ValueError(text)
    await run.start_child(echo, text, name=text)
    return text


async def echo(text: str) -> str:
    """Return the text."""
    return text


async def fails(text: str, run: RunContext) -> None:
    """Tell of everything, then fail."""
    await full(text, run)
    raise ValueError(text)


async def asks(text: str, run: RunContext) -> Answer:
    """Ask a question."""
    return await run.ask(text, args={text: text}, options=(text, "b"))


async def waits(text: str, run: RunContext) -> None:
    """Go on until the cancel."""
    run.text(text)
    await asyncio.Event().wait()


class Looker:
    """Runs lines in the shell and keeps what they show."""

    def __init__(self) -> None:
        config = Config()
        config.InteractiveShell.colors = "nocolor"
        config.HistoryManager.enabled = False
        self.shell: Any = InteractiveShell.instance(config=config)
        self.shell.run_line_magic("load_ext", "nbrun")
        self.names: dict[str, Any] = self.shell.user_ns
        self.names.update(full=full, echo=echo, fails=fails, asks=asks, waits=waits, nbrun=nbrun)
        self.seen: list[tuple[str, str]] = []

    def start(self, agent: Any, text: str) -> Run:
        """Start a run with the text for all that a start takes."""
        tags = {text.replace("=", ""): text}
        run = self.names["r"] = nbrun.start(agent, text, name=text, tags=tags)
        self.names["p"] = text
        return run

    def look(self, where: str, *lines: str) -> None:
        """Keep what lines show; `R` in them is the run's number."""
        for line in lines:
            number = f"#{self.names['r'].number}"
            shown = io.StringIO()
            with redirect_stdout(shown), redirect_stderr(shown):
                self.shell.run_cell(line.replace(" R", f" {number}"), store_history=False)
            self.seen.append((f"{where}: {line.splitlines()[0]}", shown.getvalue()))

    def command(self, *arguments: str) -> None:
        """Keep what the `nbrun` command prints."""
        shown = io.StringIO()
        with redirect_stdout(shown), redirect_stderr(shown):
            cli.main(arguments)
        self.seen.append((f"nbrun {' '.join(arguments)}", shown.getvalue()))


def look_at(looker: Looker, text: str) -> None:
    """Look at runs of one text, in every state, by every command."""
    looker.start(full, text).wait(10)
    of_all = ("r", "print(r)", "%agentrun list --limit 3", "%agentrun show R", "%agentrun wait R",
              "%agentrun cancel R", "%agentrun say R x")  # fmt: skip
    looker.look(
        "completed", *of_all, "%agentrun show --thread R", "%agentrun logs R", "%agentrun approve R",
        "%agentrun resume R", "%agentrun lost R", "%agentrun export R --out run.md", "%agentrun retry R",
        "nbrun.runs(limit=3)", "nbrun.panel()", "nbrun.start(full, 'y', id=r.id)",
        f"%%agentrun full --no-interpolate\nx{text}", f"%%agentrun fails --no-interpolate\nx{text}",
    )  # fmt: skip
    looker.start(fails, text).wait(10)
    looker.look("failed", *of_all, "%agentrun result R", "r.result()")

    run = looker.start(waits, text)
    run.when_created(lambda: None)
    looker.look(
        "running", "r", "r.result(0)", "%agentrun wait R --timeout 10ms", "%agentrun result R", "%agentrun rm R",
        "%agentrun approve R", "%agentrun say R hey",
    )  # fmt: skip
    extension = getattr(looker.shell, _EXTENSION_ATTRIBUTE)
    listed = extension.presenter.requests.answer({"op": "list", "by": "server"})
    looker.seen += [("server", str(value)) for one in listed["runs"] for value in one.values()]
    looker.look("cancelled", "print(r.cancel(reason=p))")
    run.wait(10)
    looker.look("cancelled", *of_all, "r.result()")

    run = looker.start(asks, text)
    while not run.pending and not run.done():
        run.wait(0.01)
    looker.look(
        "asking", "r", "%agentrun show R", "%agentrun list --limit 1", "%agentrun approve R none",
        "%agentrun approve R --choose none", "r.approve(r.pending[0].id)", "%agentrun deny R --reason x",
    )  # fmt: skip
    run.wait(10)
    looker.look("mistakes", "nbrun.get(p)", "nbrun.start(p, 'x')", "nbrun.start(echo, 'x', approve=p)",
                "nbrun.start(echo, 'x', on=p)", "nbrun.runs(status=p)")  # fmt: skip


def main() -> None:
    """Look at all, in a folder of its own."""
    os.environ |= {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "400"}  # as in a terminal
    # The file's name is anybody's too: a folder may come with it.
    folder = Path(tempfile.mkdtemp(prefix="\x1b]0;title\x07"), "work")
    folder.mkdir()
    os.chdir(folder)
    looker = Looker()
    for text in texts():
        look_at(looker, text)
    looker.shell.run_line_magic("unload_ext", "nbrun")
    looker.command("list", "--limit", "100")
    for number in (1, 5, 7, 8):
        looker.command("show", f"#{number}")
    looker.command("show", "none\x1b[2J")
    looker.command("doctor")
    for form in ("md", "html", "json", "jsonl"):
        looker.command("export", "--all", "-o", f"all.{form}")
        looker.seen.append((f"export {form}", Path(f"all.{form}").read_text(encoding="utf-8")))
    looker.command("import", "all.jsonl", str(folder / "other.ipynb"))
    json.dump(looker.seen, sys.stdout)


if __name__ == "__main__":
    main()
