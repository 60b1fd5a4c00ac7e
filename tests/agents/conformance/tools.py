"""The tools of the scenarios. What they did is told in their run's log, so that it is seen from wherever they run."""

from __future__ import annotations

import asyncio

import nbrun

FOR_EVER_S = 600.0

ENTERED, LEFT = "entered", "left"


async def add(a: int, b: int) -> int:
    """Add two numbers."""
    nbrun.current().emit("added", [a, b])
    return a + b


async def breaks() -> str:
    """Look at the cup."""
    raise ValueError("the cup is broken")


async def waits() -> str:
    """Wait for ever."""
    run = nbrun.current()
    run.emit(ENTERED)
    try:
        await asyncio.sleep(FOR_EVER_S)
    finally:
        run.emit(LEFT)
    return "waited"


def spins() -> str:
    """Compute for ever, in Python."""
    run = nbrun.current()
    run.emit(ENTERED)
    try:
        while True:
            pass
    finally:
        run.emit(LEFT)


async def waits_at_first() -> str:
    """Wait for ever, and not at all in a run that goes on from another."""
    return "went on" if nbrun.current().restored is not None else await waits()


async def listens() -> str:
    """Wait until a person says to go on."""
    await nbrun.current().ask("Go on?")
    return "listened"


async def delete(path: str) -> str:
    """Delete a file."""
    nbrun.current().emit("deleted", path)
    return f"deleted {path}"
