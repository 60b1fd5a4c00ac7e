"""What a set costs: `python -m tests.bench.sets [small]`.

It drains 1,000 and 16,000 queued runs that do nothing, accepts 100,000 inputs behind 8 places that are taken, and
cancels these. CPU is the process's, all threads together; only ratios within one call count on a machine with other
work.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from pathlib import Path

import psutil

from nbrun import NotebookSession, RunSet
from tests.fakes.agents import Held


async def nothing(_prompt: str) -> None:
    """Do nothing."""


def drain(session: NotebookSession, count: int) -> float:
    """Return the milliseconds of CPU that a run takes in a set of so many."""
    gc.collect()
    began = time.process_time()
    session.map(nothing, [str(at) for at in range(count)]).wait()
    return (time.process_time() - began) / count * 1000


def accepted(found: RunSet, count: int) -> None:
    """Return when so many inputs of a set are stored."""
    while found.row.size < count:
        time.sleep(0.01)


def main(scale: int) -> None:
    """Print the figures; `scale` divides the counts."""
    few, many, pending = 1_000 // scale, 16_000 // scale, 100_000 // scale
    with tempfile.TemporaryDirectory() as folder, NotebookSession(store=Path(folder) / "a.db") as session:
        drain(session, 200)  # what is loaded with the first run
        first, then = drain(session, few), drain(session, many)
        print(f"{few:,} queued no-ops {first:.2f} ms CPU/run; {many:,}: {then:.2f} ms, {then / first:.2f} ×")
    with tempfile.TemporaryDirectory() as folder, NotebookSession(store=Path(folder) / "b.db") as session:
        drain(session, 200)
        prompts, agent = [f"question {at}" for at in range(pending)], Held()
        process = psutil.Process()
        gc.collect()
        before, began = process.memory_info().rss, time.perf_counter()
        found = session.map(agent, prompts)
        returned = time.perf_counter() - began
        accepted(found, pending)
        took = time.perf_counter() - began
        gc.collect()
        more = (process.memory_info().rss - before) / 2**20
        print(f"{pending:,} pending: map() {returned * 1000:.0f} ms, accepted {took:.2f} s, memory + {more:.1f} MiB")
        began = time.perf_counter()
        found.cancel()
        found.wait()
        print(f"cancelled, on disk: {time.perf_counter() - began:.2f} s; {found!r}")


if __name__ == "__main__":
    main(50 if "small" in sys.argv else 1)
