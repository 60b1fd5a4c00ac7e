"""A real kernel that is killed while its runs stream: what it had shown is found by the next one."""

from __future__ import annotations

import os
import random
import time
from multiprocessing.connection import Connection

from tests.kernel.cells import loaded, run_ok, store_file, value
from tests.kernel.driver import Kernel
from tests.kernels import CHECKOUT
from tests.store.crash import Life, check

ROUNDS = 5

STARTS = """\
import os, sys
from multiprocessing.connection import Connection
sys.path.insert(0, {checkout!r})
from tests.fakes import doomed

# A file is as good as a pipe: what was written to it outlives this process.
told = os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
teller = doomed.Teller(Connection(told, readable=False))
for agent in (doomed.streams, doomed.stays, doomed.brief, doomed.streams, doomed.breaks):
    teller.follow(nbrun.start(agent, "tea"))
"""


def test_a_kernel_killed_at_any_moment_loses_nothing_that_it_had_shown(loaded_kernel: Kernel) -> None:
    """Five kills in one folder: all events that listeners had seen are stored, ends stay, the rest is `lost`."""
    kernel, newest = loaded_kernel, 0
    rng = random.Random(7)  # noqa: S311 - moments are no secrets
    for number in range(ROUNDS):
        told = kernel.folder / f"told-{number}"
        run_ok(kernel, STARTS.format(path=str(told), checkout=str(CHECKOUT)))
        time.sleep(rng.random() * 0.4)  # the moment: nothing to wait for tells of it
        kernel.kill()
        with Connection(os.open(told, os.O_RDONLY), writable=False) as pipe:
            life = Life()
            while life.hear(pipe, None):
                pass
        assert life.shown
        newest = check(store_file(kernel.folder), life, newest)
        kernel.restart()
        loaded(kernel)
    assert value(kernel, "[run for run in nbrun.runs() if not run.done()]") == "[]"
