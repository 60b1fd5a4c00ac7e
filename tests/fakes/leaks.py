"""An agent that tells its key wherever something can be told."""

from __future__ import annotations

import asyncio
import contextlib
import os

from nbrun import RunContext
from nbrun.core import events as ev

NAME = "LEAKY_API_KEY"
KEY = "sk-test-0123456789"


async def leaking(prompt: str, run: RunContext) -> dict[str, object]:
    """Tell it by every word of the run's context, ask about it, and return it."""
    key = os.environ[NAME]
    run.phase(f"with {key}")
    run.progress(1, 2, key)
    run.log(key)
    run.log(f"careful with {key}", "warning")
    run.emit(key, {key: [key, {"deep": f"<{key}>"}]})
    print(f"printed {key}")
    for letter in key:
        print(letter, end="")
    with run.tool(key, {"key": key}) as tool:
        tool.progress(1, 2, key)
        tool.result = [key]
    with contextlib.suppress(OSError), run.tool("breaks", key):
        raise OSError(key)
    for letter in f"I know {key}.":
        run.text(letter)
        run.reasoning(letter)
        run.send(ev.ToolArgsDelta("t-1", letter))
    run.send(ev.Message("assistant", key))
    run.send(ev.Raw("wire", {"header": f"Bearer {key}"}))
    answer = await run.ask(f"Use {key}?", args={"key": key}, options=("yes", "no"))
    run.log(f"{answer.text} {answer.args}")
    await run.inbox.get()
    if "child" in prompt:  # only in this process can a run start others
        await run.start_child(repeats, key, name=key)
    return {"answer": key, key: key}


async def repeats(prompt: str) -> str:
    """Say the prompt."""
    return prompt


async def failing(prompt: str) -> None:
    """Raise it."""
    raise ValueError(f"{os.environ[NAME]} is not accepted") from KeyError(os.environ[NAME])


LOADED = "loaded-0123456789"


async def loads_a_key(prompt: str) -> str:
    """Set a key, as a settings file does, and tell it."""
    os.environ["LOADED_API_KEY"] = LOADED
    try:
        return f"loaded {LOADED}"
    finally:
        await asyncio.sleep(0)


async def writes_files(prompt: str, run: RunContext) -> None:
    """Write a file with the prompt in it, and with a variable that it sets first."""
    os.environ["PLAIN_NAME"] = "plain value"
    run.artifact("notes.txt", f"{prompt} and plain value")
