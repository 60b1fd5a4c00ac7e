"""What made the store `version_2.db`, and the files beside it, by the code of commit 97a02cb.

It was run once, with that commit as the code of nbrun, and is kept to show what is in them:

    PYTHONPATH=CHECKOUT python tests/store/data/make_version_2.py tests/store/data

`version_2.db`, `version_2.files`   the store of a notebook: sessions of Python, of a kernel, and of killed ones
`version_2.jsonl`, `version_2.json` all of its runs as exported; `.html` and `.md` are those of one run
`version_2.recording.jsonl`         one run, by `run.save_recording()`
`version_2.expected.json`           what the code of that commit reads from a copy of the store

Only who has written it was put into other words, so that it names no machine. The agents below are used by the tests
as well: a run is resumed by the agent that had begun it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Generator
from itertools import groupby
from pathlib import Path
from typing import Any

import nbrun
from nbrun import NotebookSession, Run, RunContext, SequentialIds

BOUND_S = 30.0
PAGES = 6
SAID = "Dampf steigt 🍵 aus der Tasse – 茶 \u0301é "
LEAVES = [f"Blatt {number:03}: Löwenzahn, Minze, Earl Grey" for number in range(160)]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

# --- agents ------------------------------------------------------------------------------------------


async def poet(prompt: str) -> AsyncIterator[str]:
    """Say many words, one at a time."""
    for number in range(45):
        yield f"{SAID.split()[number % 8]} "


async def breaks(prompt: str, run: RunContext) -> None:
    """Fail after a tool that has failed."""
    run.log("gleich geht es schief", "warning")
    with contextlib.suppress(KeyError), run.tool("look", {"für": prompt}):
        raise KeyError("Tasse")
    raise ValueError(f"kein Glück mit {prompt}")


async def stays(prompt: str, run: RunContext) -> None:
    """Say a little, and go on until somebody cancels."""
    run.text("ich bleibe ")
    run.phase("bleibt")
    await asyncio.Event().wait()


async def spends(prompt: str, run: RunContext) -> None:
    """Call a model until the budget is used up."""
    while True:
        run.begin_turn()
        run.usage(input_tokens=100, output_tokens=20, cost_usd=0.001)
        await asyncio.sleep(0)


def adds(prompt: str) -> int:
    """Add numbers in a thread, and print."""
    total = 0
    for word in prompt.split():
        total += int(word)
        print(f"bis hier {total}")
    return total


def counts(prompt: str) -> Generator[str, None, int]:
    """Stream from a thread, and return something else."""
    yield from ("eins ", "zwei ", "drei")
    return 3


async def does_all(prompt: str, run: RunContext) -> dict[str, object]:
    """Do a little of everything."""
    run.phase("plant")
    run.reasoning("weil es regnet, ")
    run.reasoning("also Tee")
    run.text("erst ")
    with run.tool("look_up", {"wo": prompt, "tief": [1, 2.5, None]}) as tool:
        tool.result = {"gefunden": True, "wie oft": 42}
    run.text("dann ")
    run.progress(1, 2, "halb")
    run.log("eine Zeile", "warning")
    run.log("noch eine")
    run.emit("eigenes", {"x": [1, None, "ß"]})
    run.usage(input_tokens=120, output_tokens=34, cache_read_tokens=60, reasoning_tokens=8, requests=2, cost_usd=0.0123)
    run.text("fertig.")
    return {"antwort": 42, "liste": [True, None, 1.5], "größe": "klein"}


async def speller(prompt: str) -> str:
    """Spell a word."""
    return "-".join(prompt)


async def writer(prompt: str, run: RunContext) -> str:
    """Have each word spelled below."""
    children = [run.start_child(speller, word, name=f"buchstabiert {word}") for word in prompt.split()]
    return " ".join([str(await child) for child in children])


async def editor(prompt: str, run: RunContext) -> list[object]:
    """Have two drafts written below, and a third that is cancelled."""
    drafts = [run.start_child(writer, words, tags={"entwurf": words}) for words in ("Tee", "à la carte")]
    failing = run.start_child(breaks, "dem Entwurf")
    with contextlib.suppress(nbrun.errors.RunFailed):
        await failing
    run.usage(input_tokens=5, output_tokens=1, requests=1)
    return [await draft for draft in drafts]


async def cleaner(prompt: str, run: RunContext) -> dict[str, object]:
    """Ask for this and that, and hear a message."""
    allowed = await run.approve_tool("delete", {"paths": ["a.txt", "ä.txt"]}, message="Löschen?")
    with run.tool("delete", allowed.args) as tool:
        tool.result = "weg"
    second = await run.ask("Den Papierkorb auch leeren?")
    bin_ = await run.ask("Welchen?", options=("blau", "grün"))
    never = await run.approve_tool("format", {"disk": 1})
    heard = await run.inbox.get()
    return {"args": allowed.args, "second": bool(second), "bin": bin_.decision, "format": bool(never), "heard": heard}


async def reader(prompt: str, run: RunContext) -> dict[str, object]:
    """Read page by page and keep the place; numbers in the prompt are pages at which it fails, or waits."""
    state = run.restored
    began_at = state["page"] if isinstance(state, dict) else 0
    assert isinstance(began_at, int)
    stops = [int(word) for word in prompt.split() if word.isdigit()]
    for page in range(began_at, PAGES):
        if page in stops and page != began_at:
            if "wait" in prompt:
                run.phase("half")  # public after the checkpoint is on disk
                await asyncio.Event().wait()
            raise EOFError(f"before page {page}")
        run.begin_turn()
        with run.tool("read", {"page": page}) as tool:
            tool.result = f"Seite {page}"
        run.text(f"p{page} ")
        run.usage(input_tokens=10, output_tokens=1, requests=1, cost_usd=0.5)
        run.checkpoint({"page": page + 1, "of": prompt, "gelesen": ["ja"] * (page + 1)})
    return {"began_at": began_at}


async def seals(prompt: str, run: RunContext) -> list[int] | None:
    """Keep bytes, and wait; give them back where it is resumed."""
    if isinstance(run.restored, bytes):
        return list(run.restored)
    run.checkpoint(b"\x00\xffTee")
    run.phase("half")
    await asyncio.Event().wait()
    return None


async def painter(prompt: str, run: RunContext) -> str:
    """Keep files."""
    run.artifact("bild.png", PNG)
    run.artifact("gedicht – 茶.txt", SAID)
    run.artifact("notizen.md", Path(__file__).with_name("notizen.md"))
    return "drei Dateien"


async def gathers(prompt: str, run: RunContext) -> dict[str, object]:
    """Have more to say than fits into a row."""
    with run.tool("gather", {"wie viele": len(LEAVES)}) as tool:
        tool.result = LEAVES
    return {"leaves": LEAVES}


async def brews(prompt: str) -> datetime.timedelta:
    """Return what is no JSON."""
    return datetime.timedelta(minutes=4)


async def remembers(prompt: str, run: RunContext) -> str:
    """Return what was said before."""
    return f"{prompt} (vorher: {' | '.join(turn.text for turn in run.history)})"


async def waits_below(prompt: str, run: RunContext) -> object:
    """Wait for a child that does not end."""
    return await run.start_child(stays, prompt)


async def asks(prompt: str, run: RunContext) -> bool:
    """Ask, and wait."""
    return bool(await run.ask("Noch da?", args={"seit": 3}))


def weigher(*, stalls: bool, weighed: list[str]) -> Any:
    """Return an agent of pydantic-ai that weighs a leaf by a tool, and stalls then if it is to."""
    from pydantic_ai import Agent
    from pydantic_ai.messages import ModelMessage, ToolReturnPart
    from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

    async def says(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        parts = [part for message in messages for part in message.parts]
        results = [str(part.content) for part in parts if isinstance(part, ToolReturnPart)]
        if not results:
            yield {0: DeltaToolCall("weigh", '{"leaf": "grün"}', tool_call_id="call-0")}
            return
        yield "Hm, "
        if stalls:
            await asyncio.Event().wait()
        yield f"es wiegt {results[0]}."

    def weigh(leaf: str) -> str:
        """Weigh a leaf."""
        weighed.append(leaf)
        return "3,5 g"

    return Agent(FunctionModel(stream_function=says), name="weigher", tools=[weigh])


# --- sessions ----------------------------------------------------------------------------------------


def ended(run: Run) -> Run:
    """Return the run when it has ended."""
    assert run.wait(BOUND_S), f"{run!r} has not ended"
    return run


def until(is_so: Callable[[], object]) -> None:
    """Return when it is so."""
    bound = time.monotonic() + BOUND_S
    while not is_so():
        assert time.monotonic() < bound
        time.sleep(0.005)


def cancelled(run: Run, reason: str | None = None) -> Run:
    """Cancel a run that has said how far it is."""
    until(lambda: run.phase)
    run.cancel(reason)
    return ended(run)


def from_python() -> None:
    """Start runs of most kinds by the API."""
    # Payloads of some kilobytes go to files, so that a small store has some.
    for module, limit in (("large", "LIMIT"), ("ledger", "_LARGE")):
        setattr(importlib.import_module(f"nbrun.store.{module}"), limit, 6_000)
    with NotebookSession("tea.ipynb", ids=SequentialIds("api"), cancel_grace_s=0.2) as session:
        tags = {"fach": "Tee", "größe": "klein"}
        first = ended(session.start(poet, "Ein Gedicht über Tee", name="Träume 茶 🍵", tags=tags))
        ended(session.start(breaks, "der Tasse", tags={"fach": "Pech"}))
        cancelled(session.start(stays, "lange"), "zu spät")
        ended(session.start(stays, "nicht lange", timeout_s=0.05))
        ended(session.start(spends, "viel", max_turns=2))
        ended(session.start(adds, "1 2 39"))
        ended(session.start(counts))
        everything = ended(session.start(does_all, "im Schrank", name="alles", tags={"k": "v"}))
        ended(session.start(editor, "zwei Entwürfe"))

        run = session.start(cleaner, "aufräumen", tags={"fach": "Haus"})
        until(lambda: run.pending)
        run.approve(args={"paths": ["a.txt"]}, text="nur den einen")
        until(lambda: run.pending and run.pending[0].message == "Den Papierkorb auch leeren?")
        run.deny(reason="lieber nicht")
        until(lambda: run.pending and run.pending[0].options)
        run.approve(choice="grün")
        until(lambda: run.pending and run.pending[0].args == {"disk": 1})
        run.deny()
        until(lambda: run.record.is_steerable)
        run.steer("weiter so 👍")
        ended(run)

        shelf = {"regal": "oben"}
        ended(session.start(reader, "fails at 3", name="Buch", tags=shelf, timeout_s=600, max_turns=50))
        cancelled(session.start(reader, "wait at 2", max_cost=20.0), "Pause")
        resumed = ended(session.start(reader, "fails at 4"))
        assert ended(resumed.resume()).status == "completed"
        twice = ended(session.start(reader, "fails at 2 and at 5"))
        assert ended(twice.resume()).status == "failed"
        cancelled(session.start(seals))
        stalled = session.start(weigher(stalls=True, weighed=[]), "Was wiegt das Blatt?")
        until(lambda: stalled.text == "Hm, ")
        stalled.cancel("genug")
        ended(stalled)

        ended(session.start(remembers, "eins"))
        ended(ended(session.get("last").continue_with("zwei")).continue_with("drei"))
        Path("notizen.md").write_text("# Notizen\n\nTee\n", encoding="utf-8")
        ended(session.start(painter, "ein Bild"))
        ended(session.start(gathers, "viel"))
        ended(session.start(brews, keep_object=True))
        ended(session.start(poet, "Tee des Tages", id="tea-of-the-day"))
        ended(session.get("breaks").retry())
        ended(first.replay("max"))
        ended(session.start(adds, "20 22", on="process"))
        ended(session.start(model="scripted", prompt="Ein Haiku"))
        everything.save_recording("version_2.recording.jsonl")


CELLS = (
    "%load_ext nbrun",
    "import asyncio, nbrun\nfach = 'Tee'",
    "async def courier(prompt, run):\n"
    "    '''Carry letters, and keep count.'''\n"
    "    for letter in range((run.restored or {}).get('letters', 0), 3):\n"
    "        if letter == 2 and not run.restored:\n"
    "            raise RuntimeError('der Regen')\n"
    "        run.text(f'Brief {letter}; ')\n"
    "        run.checkpoint({'letters': letter + 1})\n"
    "    return 'alle da'",
    "class Cup:\n"
    "    def _repr_html_(self):\n"
    "        return '<b>Tasse</b>'\n"
    "    def __repr__(self):\n"
    "        return '<Tasse>'",
    "async def potter(prompt):\n    return Cup()",
    '%%agentrun courier --name "Bote 信" --tag fach=Post --timeout 10m --noblock\nBriefe zum {fach}',
    "%agentrun wait",
    "%%agentrun potter --id cup-1 --out cup --block\nEine Tasse",
    "%%agentrun --python --name zelle --block\nprint('aus der Zelle')\nlen(fach)",
    "%%agentrun --model scripted --name haiku --tag a=1 --tag b=2 --block\nEin Haiku",
    "%agentrun replay haiku --speed max",
    "%agentrun wait",
    "%unload_ext nbrun",
)


def from_a_kernel() -> None:
    """Start runs by the magics, in a kernel."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:
        for cell in CELLS:
            reply = client.execute_interactive(cell, timeout=BOUND_S)
            assert reply["content"]["status"] == "ok", cell
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


def killed() -> None:
    """Be killed with runs in all live states."""
    session = NotebookSession("tea.ipynb", ids=SequentialIds("killed"), max_concurrent=3)
    read = session.start(reader, "wait at 4", name="verloren", tags={"regal": "oben"})
    asked = session.start(asks, "wer da")
    above = session.start(waits_below, "unten")
    until(lambda: read.phase and asked.pending and above.record.children)
    below = session.get("stays")
    until(lambda: below.phase)
    while len([run for run in session.live_runs if run.status == "queued"]) < 1:
        session.start(poet, "kommt nie dran")
    print("ready", flush=True)
    signal.pause()


def unseen() -> None:
    """Be killed with one run; nobody has looked since."""
    session = NotebookSession("tea.ipynb", ids=SequentialIds("unseen"))
    read = session.start(reader, "wait at 1", name="anderswo")
    until(lambda: read.phase)
    print("ready", flush=True)
    signal.pause()


def opens() -> None:
    """Look into the store, where runs of a dead kernel are found."""
    with NotebookSession("tea.ipynb") as session:
        assert session.runs(status="lost")


# --- what is in it -----------------------------------------------------------------------------------


USAGE = ("input_tokens", "output_tokens", "cache_read_tokens", "reasoning_tokens", "requests", "cost_usd")


def facts(run: Run) -> dict[str, Any]:
    """Return what there is to know of a run, as JSON has it; what says nothing is left out."""
    record, usage, events = run.record, run.usage, run.events()
    view: dict[str, str] = getattr(run.result_view(), "_repr_mimebundle_", dict)()
    found = {
        "number": run.number, "id": run.id, "name": run.name, "agent": record.agent, "model": record.model,
        "prompt": record.prompt, "status": str(run.status), "cause": run.cause and str(run.cause),
        "reason": run.reason, "is_unknown": run.is_unknown, "tags": record.tags, "phase": run.phase,
        "parent": run.parent_id, "resumed_from": run.resumed_from,
        "origin": record.origin and [record.origin.kind, record.origin.run_id, record.origin.number],
        "sequels": [list(one) for one in run.followups], "times": [run.created_at, run.started_at, run.ended_at],
        "text": run.text, "reasoning": record.reasoning, "output": run.output,
        "view": re.sub("</?div[^>]*>", "", view.get("text/html", "")),
        "error": run.error and [run.error.type, run.error.message],
        "usage": {
            name: value
            for name in USAGE
            if (value := getattr(usage, name))
        },
        "tools": [[tool.id, tool.name, tool.status, tool.args, tool.result] for tool in record.tools],
        "children": [[child.run_id, child.number, child.name, child.status] for child in record.children],
        "pending": [[asked.message, asked.args] for asked in run.pending],
        "steered": [[steered.text, steered.taken_at] for steered in record.steered],
        "progress": record.progress and [record.progress.done, record.progress.total, record.progress.label],
        "log": list(record.log),
        "artifacts": [
            [kept.name, kept.media_type, kept.size, hashlib.sha256(kept.read()).hexdigest()[:16]]
            for kept in run.artifacts
        ],
        "events": [[kind, len(list(same))] for kind, same in groupby(event.type for event in events)],
        "last": [events[-1].seq, events[-1].ts],
    }  # fmt: skip
    said: dict[str, Any] = json.loads(json.dumps(found, default=repr))
    return {name: value for name, value in said.items() if value not in (None, False, "", [], {})}


def looks() -> None:
    """Write what a session finds in a copy of the store."""
    shutil.copytree(".nbrun", "copy/.nbrun", ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    with NotebookSession("copy/tea.ipynb") as session:
        found = [facts(run) for run in session.runs()]
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in found)
    Path("version_2.expected.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


# --- the files ---------------------------------------------------------------------------------------

FOLDER = Path("/srv/lesson")
PHASES = {each.__name__: each for each in (from_python, from_a_kernel, killed, opens, unseen, looks)}


def run_phase(name: str) -> None:
    """Do one of them in a process of its own, and kill that when it says that it is ready."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(FOLDER), "LANG": "C.UTF-8", "JPY_SESSION_NAME": f"{FOLDER}/tea.ipynb",
        "PYTHONPATH": str(FOLDER / "code"), "IPYTHONDIR": str(FOLDER / "ipython"), "TMPDIR": str(FOLDER / "temporary"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    command = [sys.executable, str(FOLDER / "make_version_2.py"), name]
    child = subprocess.Popen(command, cwd=FOLDER, env=environment, stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child, child.stdout:
        if name in ("killed", "unseen"):
            assert child.stdout.readline() == b"ready\n"
            child.kill()
        child.stdout.read()
    assert child.returncode in (0, -signal.SIGKILL), name


def settle(store: Path) -> None:
    """Make one small file of the store that names no machine."""
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute(
            "UPDATE sessions SET host = 'lesson', boot_id = 'a-boot', pid_namespace = 'a-namespace', pid = 100 + key,"
            " process_started_at = 1000"
        )
        connection.execute("UPDATE homes SET device = 1, inode = 1")
        connection.execute("VACUUM")


def main(target: Path) -> None:
    """Make all of it, in a folder with a neutral name that is removed afterwards."""
    FOLDER.mkdir()
    try:
        (FOLDER / "temporary").mkdir()
        shutil.copy(__file__, FOLDER)
        shutil.copytree(Path(nbrun.__file__).parent, FOLDER / "code" / "nbrun")
        for name in ("from_python", "from_a_kernel", "killed", "opens", "unseen"):
            run_phase(name)
        store = FOLDER / ".nbrun" / "tea.db"
        settle(store)
        run_phase("looks")
        environment = {**os.environ, "PYTHONPATH": str(FOLDER / "code")}
        for words in (
            ["--all", "tea.ipynb", "-o", "version_2.jsonl"],
            ["--all", "tea.ipynb", "-o", "version_2.json"],
            ["alles", "tea.ipynb", "-o", "version_2.html"],
            ["alles", "tea.ipynb", "-o", "version_2.md"],
        ):
            command = [sys.executable, "-m", "nbrun.cli", "export", *words]
            subprocess.run(command, cwd=FOLDER, env=environment, check=True)
        settle(store)
        for path in FOLDER.glob("version_2.*"):
            shutil.copy(path, target)
        shutil.copy(store, target / "version_2.db")
        shutil.rmtree(target / "version_2.files", ignore_errors=True)
        shutil.copytree(store.with_suffix(".files"), target / "version_2.files")
    finally:
        shutil.rmtree(FOLDER)


if __name__ == "__main__":
    if sys.argv[1] in PHASES:
        PHASES[sys.argv[1]]()
    else:
        main(Path(sys.argv[1]))
