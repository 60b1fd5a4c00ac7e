"""A kernel that is killed while an agent of pydantic-ai asks: run as a program, with the store's path."""

from __future__ import annotations

import asyncio
import sys

import nbrun
from nbrun import RunEvent
from nbrun.core import events as ev
from tests.agents.conformance.scenarios import SCENARIOS
from tests.agents.conformance.subjects.pydantic_ai import PydanticAI


async def asked(run: nbrun.Run) -> RunEvent:
    """Return the run's question once it is in the store."""
    async for event in run:
        if isinstance(event.data, ev.ApprovalRequested):
            return event
    raise AssertionError(f"it has not asked: {run!r}")


def main(store: str) -> None:
    """Say when it asks, and wait for the end."""
    session = nbrun.NotebookSession(store=store, ids=nbrun.SequentialIds("killed"))
    run = PydanticAI().start(session, SCENARIOS["asks half way"])
    asyncio.run(asked(run))
    print("asking", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
