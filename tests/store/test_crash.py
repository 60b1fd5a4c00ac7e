"""A kernel that is killed at any moment: what it had shown is in the file, and the next load finds it.

Each test's child processes come from a fork server, so that 200 of them take seconds.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import statistics
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes import doomed
from tests.fakes.doomed import PHASES
from tests.store.crash import Life, check

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork server there")

ROUNDS = 25
NEW_FILE_EVERY = 5  # else a round goes on with the file of the one before: its load has lost runs to tell
TEND_S = 10.0


class Nursery:
    """Starts children and kills them."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(doomed.PRELOAD)

    def live(self, path: Path, kill: tuple[str, float] | None, dies_in: str | None = None) -> Life:
        """Run a child on the file until it has ended, or is killed so many seconds after a phase began, or as it does.

        A phase may be over before this process, or its signal, has its turn; a child that kills itself is in time.
        """
        ours, its = self._context.Pipe(duplex=False)
        child = self._context.Process(target=doomed.work, args=(path, its, None, dies_in), daemon=True)
        child.start()
        its.close()
        life = Life()
        with closing(ours):
            deadline = time.monotonic() + TEND_S
            while life.hear(ours, deadline):
                if kill is not None and kill[0] in life.began:
                    phase, delay_s = kill
                    deadline, kill = life.began[phase] + delay_s, None
            child.kill()  # no news until the deadline, or it has gone
            while life.hear(ours, None):
                pass  # it is dead, and what it had said is still in the pipe
        child.join(TEND_S)
        assert child.exitcode in ((-9,) if life.died_in != "gone" else (-9, 0))
        child.close()
        return life


@pytest.fixture(scope="module")
def nursery() -> Nursery:
    """One fork server for all tests."""
    return Nursery()


def die_often(nursery: Nursery, folder: Path, seed: int, rounds: int) -> Counter[str]:
    """Kill that many children at moments by `seed`, check after each; return the phases in which they died."""
    rng = random.Random(seed)  # noqa: S311 - moments are no secrets
    path, newest = folder / "whole.db", 0
    lengths: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for _ in range(3):  # nobody is killed: how long each phase takes here and now
        life = nursery.live(path, None)
        assert life.died_in == "gone"
        newest = check(path, life, newest)
        for phase, following in itertools.pairwise(PHASES):
            lengths[phase].append(life.began[following] - life.began[phase])
    typical = {phase: statistics.median(found) for phase, found in lengths.items() if found}
    deaths: Counter[str] = Counter()
    number = 0
    while number < rounds or (missing := [phase for phase in PHASES[:-1] if phase not in deaths]):
        if number % NEW_FILE_EVERY == 0:
            path, newest = folder / f"{number}.db", 0
        # Every other moment is one of the whole life; the others see to it that its short phases have their part.
        phase = PHASES[number // 2 % 4] if number % 2 else "load"
        span = typical[phase] if number % 2 else sum(typical.values())
        kill = (phase, rng.random() * span)
        life = nursery.live(path, kill) if number < rounds else nursery.live(path, None, missing[0])
        deaths[life.died_in] += 1
        newest = check(path, life, newest)
        number += 1
    return deaths


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_at_any_moment_loses_nothing_that_was_shown(nursery: Nursery, tmp_path: Path, seed: int) -> None:
    """25 kills, 200 with all seeds: every event that was public is stored, no log has a gap, no end is lost."""
    deaths = die_often(nursery, tmp_path, seed, ROUNDS)
    print(f"seed {seed}: died in {dict(deaths)}")
    assert set(PHASES[:-1]) <= deaths.keys()  # else these were no random moments
    assert deaths["gone"] < deaths.total() / 2


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_thousand_kills_lose_nothing_that_was_shown(nursery: Nursery, tmp_path: Path) -> None:
    """The same, longer, with other moments."""
    deaths: Counter[str] = Counter()
    for seed in range(100, 120):
        folder = tmp_path / str(seed)
        folder.mkdir()
        deaths += die_often(nursery, folder, seed, 50)
    print(f"died in {dict(deaths)}")
    assert deaths.total() >= 1_000
