"""A process that works on a store until somebody kills it, and says what it has shown."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import zlib
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from nbrun import NotebookSession, Run, RunContext, RunRecord
from nbrun.core import events as ev

PHASES = ("load", "first", "work", "close", "gone")
"""What it is at, in this order; `gone` is after the close."""

PRELOAD = ["pytest", "nbrun", "tests.fakes.doomed"]
"""What a fork server of such processes imports once for all; pytest, since a child imports its parent's main module."""

SAYS = 150


class Shown(msgspec.Struct, array_like=True, tag=True):
    """What a card would show of a run by now; `events` are (seq, type, checksum) of those that are new."""

    run_id: str
    status: str
    count: int
    events: list[tuple[int, str, int]]


class Trouble(msgspec.Struct, array_like=True, tag=True):
    """What a run was told of the store; there should be none."""

    run_id: str
    problem: str


class Phase(msgspec.Struct, array_like=True, tag=True):
    """A new phase begins."""

    name: str


def checksum(event: ev.RunEvent) -> int:
    """Return what tells one event's content from another's."""
    return zlib.crc32(ev.encode_data(event.data), round(event.ts * 1_000_000) & 0xFFFFFFFF)


async def streams(prompt: str, run: RunContext) -> str:
    """Stream, with tools between."""
    for number in range(SAYS):
        run.text(f"{prompt} {number} ")
        if number % 25 == 0:
            with run.tool("look", {"at": number}):
                await asyncio.sleep(0.001)
        if number % 5 == 0:
            await asyncio.sleep(0.001)
    run.usage(input_tokens=3, output_tokens=SAYS)
    return prompt


async def brief(prompt: str) -> str:
    """Return at once."""
    return prompt


async def breaks(prompt: str) -> None:
    """Raise, a moment later."""
    await asyncio.sleep(0.005)
    raise ValueError(prompt)


async def stays(prompt: str, run: RunContext) -> None:
    """Go on for as long as it can."""
    while True:
        run.log("still here")
        await asyncio.sleep(0.002)


class Teller:
    """Tells the parent through a pipe. Threads: any."""

    def __init__(self, pipe: Connection, dies_in: str | None = None) -> None:
        self._pipe = pipe
        self._dies_in = dies_in
        self._lock = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder()

    def tell(self, item: Shown | Trouble | Phase) -> None:
        """Send it."""
        with self._lock:
            self._pipe.send_bytes(self._encoder.encode(item))
        if isinstance(item, Phase) and item.name == self._dies_in:
            os.kill(os.getpid(), signal.SIGKILL)

    def follow(self, run: Run) -> None:
        """Tell all that becomes public of a run from now on, and how far it is."""
        live = run.live
        assert live is not None

        def look(record: RunRecord, events: Sequence[ev.RunEvent]) -> None:
            if live.problem is not None:
                self.tell(Trouble(record.run_id, live.problem))
            marks = [(event.seq, event.type, checksum(event)) for event in events]
            self.tell(Shown(record.run_id, record.status, record.event_count, marks))

        live.listen(look)
        record = run.record
        self.tell(Shown(record.run_id, record.status, record.event_count, []))


def work(path: Path, pipe: Connection, options: dict[str, Any] | None = None, dies_in: str | None = None) -> None:
    """Load, start runs of every kind, wait for those that end, and close; or die where a phase begins."""
    teller = Teller(pipe, dies_in)
    teller.tell(Phase("load"))
    with NotebookSession(store=path, cancel_grace_s=0.05, **(options or {})) as session:
        assert session.store.problem is None
        teller.tell(Phase("first"))
        first = session.start(brief, "first")
        teller.follow(first)
        first.wait(10)
        teller.tell(Phase("work"))
        talks = [session.start(agent, f"talk {n}") for n, agent in enumerate((streams, streams))]
        staying = [session.start(stays) for _ in range(2)]
        short = [session.start(agent, "short") for agent in (brief, breaks, brief)]
        for run in (*talks, *staying, *short):
            teller.follow(run)
        short[-1].wait(10)
        staying[0].cancel("enough")
        for run in (*talks, *short, staying[0]):
            run.wait(10)
        teller.tell(Phase("close"))
    teller.tell(Phase("gone"))


def works_for(path: Path, pipe: Connection, span_s: float) -> None:
    """Start runs one after another, some at a time, for so long; end them all, and close."""
    teller = Teller(pipe)
    teller.tell(Phase("load"))
    with NotebookSession(store=path, max_concurrent=4) as session:
        teller.tell(Phase("work"))
        runs: list[Run] = []
        until = time.monotonic() + span_s
        while time.monotonic() < until:
            runs += [session.start(agent, "tea") for agent in (streams, brief, breaks)]
            for run in runs[-3:]:
                teller.follow(run)
            runs[-3].wait(10)
        for run in runs:
            assert run.wait(10)
        if session.store.problem is not None:
            teller.tell(Trouble("", session.store.problem))
        teller.tell(Phase("close"))
    teller.tell(Phase("gone"))
