"""Races, not luck: a session in a world where chance says who goes next, and in real threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from nbrun.host.driver import Driver
from nbrun.host.host import Watchdog
from nbrun.sessions import scheduler as dispatch
from tests.fakes.virtual import VirtualThread
from tests.fakes.world import World

SEQUENCES = 250
"""In each of forty blocks."""
STEPS = 25


def play(seed: int, made: list[VirtualThread]) -> None:
    """Play one sequence; what goes wrong is told with its seed and its steps."""
    world = World(seed, made)
    try:
        world.play(STEPS)
        world.check()
    except BaseException as error:
        error.add_note(f"seed {seed}:\n" + "\n".join(world.trace))
        raise
    finally:
        world.end()


async def look_here(self: Driver, function: Callable[[], object], *_: object, **__: object) -> asyncio.Future[Any]:
    """Look at what an agent has left without a thread: to one of its own, the world's time would seem to fly."""
    look = self._thread.loop.create_future()
    try:
        look.set_result(function())
    except Exception as error:  # as a thread keeps it
        look.set_exception(error)
    return look


@pytest.mark.parametrize("block", range(40))
def test_every_interleaving_keeps_the_rules(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, emit, cancel, end, deadline and close in any order: one end each, the first wins, nothing is lost."""
    monkeypatch.setattr(Watchdog, "begin", lambda _self: None)  # a thread of its own, by real time
    monkeypatch.setattr(Driver, "_look", look_here)
    made: list[VirtualThread] = []
    monkeypatch.setattr(dispatch, "LoopThread", lambda *_: made[0])
    for seed in range(block * SEQUENCES, (block + 1) * SEQUENCES):
        play(seed, made)
