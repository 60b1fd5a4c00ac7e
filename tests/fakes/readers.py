"""Agents that read a book page by page, and keep their place in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nbrun import RunContext

PAGES = 6


class PowerCut(Exception):
    """What ends a reader in the middle of the book."""


def reader(stop_after: int | None = None) -> Callable[[str, RunContext], object]:
    """Return an agent that begins where it was left, and fails once it has read so many pages."""

    async def reader(prompt: str, run: RunContext) -> dict[str, object]:
        state = run.restored
        began_at = state["page"] if isinstance(state, dict) else 0
        assert isinstance(began_at, int)
        for page in range(began_at, PAGES):
            if page == stop_after != began_at:
                raise PowerCut(f"before page {page}")
            run.begin_turn()
            with run.tool("read", {"page": page}):
                run.text(f"p{page} ")
            run.usage(input_tokens=10, output_tokens=1, requests=1)
            run.checkpoint({"page": page + 1, "of": prompt})
        return {"began_at": began_at}

    return reader


async def half_read(prompt: str, run: RunContext) -> None:
    """Read as many pages as the prompt says, keep the place, and wait."""
    for page in range(int(prompt)):
        run.text(f"p{page} ")
        run.usage(input_tokens=10, requests=1)
        run.checkpoint({"page": page + 1})
    run.phase("half")  # public after the checkpoint is on disk
    await asyncio.Event().wait()
