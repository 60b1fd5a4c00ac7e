"""What a run costs, beside bare SQLite in the same process: `python -m tests.bench.core`.

Each job is measured in rounds, an anchor in every round, since machines are noisy: read the ratios, and the
CPU figures before the wall ones. What was stored is counted.

A   no-op runs, one after another, each waited for until it is durable; the anchor commits twice a run,
    the second time with `synchronous = FULL`, as an ending is.
B   one run of 10,000 deltas of 20 characters.
C   1,000 sleeping runs: started, then cancelled until all are durable; what they hold in memory, as the first
    round shows it (later ones get memory that was used before). The anchor is a bare asyncio loop that writes
    the same rows into the same tables: who asked, what was done, how it ended, a record; in two transactions.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from nbrun import NotebookSession, RunContext
from nbrun.store import open_for_writing
from nbrun.store.rows import micros

ROUNDS = 5
RUNS = 300
DELTAS = 10_000
SLEEPERS = 1_000


class Cost:
    """CPU and wall seconds of a block."""

    cpu = 0.0
    wall = 0.0


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """Measure the block; of the whole process, all threads."""
    cost, cpu, wall = Cost(), time.process_time(), time.perf_counter()
    yield cost
    cost.cpu, cost.wall = time.process_time() - cpu, time.perf_counter() - wall


async def nothing(prompt: str) -> str:
    """Return at once."""
    return prompt


async def deltas(prompt: str, run: RunContext) -> None:
    """Stream."""
    for number in range(DELTAS):
        run.text("x" * 20)
        if number % 20 == 0:
            await asyncio.sleep(0)


async def sleeper(prompt: str) -> None:
    """Wait to be cancelled."""
    await asyncio.sleep(3600)


def anchor(path: Path) -> Cost:
    """Do what a no-op run needs of SQLite, and nothing else."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE IF NOT EXISTS t (a, b, c)")
    with measured() as cost:
        for number in range(RUNS):
            for mode in ("NORMAL", "FULL"):
                connection.execute(f"PRAGMA synchronous = {mode}")
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO t VALUES (?, ?, ?)", (number, "x" * 100, mode))
                connection.execute("COMMIT")
    connection.close()
    return cost


def job_a(folder: Path, session: NotebookSession) -> tuple[float, float, float, float, float]:
    """Return CPU ms a run, wall ms a run, the CPU ratio to the anchor, and the ms of `start()`: its CPU, wall."""
    cpu = wall = 0.0
    with measured() as cost:
        for _ in range(RUNS):
            cpu, wall = cpu - time.thread_time(), wall - time.perf_counter()
            run = session.start(nothing)
            cpu, wall = cpu + time.thread_time(), wall + time.perf_counter()
            assert run.wait(10)
    bare = anchor(folder / "anchor.db")
    return cost.cpu / RUNS * 1e3, cost.wall / RUNS * 1e3, cost.cpu / bare.cpu, cpu / RUNS * 1e3, wall / RUNS * 1e3


def job_b(session: NotebookSession) -> tuple[float, float]:
    """Return CPU µs an event and bytes an event; every event is counted in the store."""
    path = session.store.path
    before = path.stat().st_size if path and path.exists() else 0
    with measured() as cost:
        run = session.start(deltas)
        assert run.wait(60)
    stored = len(run.events())
    assert stored == run.record.event_count == DELTAS + 3, stored
    path = session.store.path
    assert path is not None
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return cost.cpu / DELTAS * 1e6, (path.stat().st_size - before) / DELTAS


async def bare_loop(path: Path) -> Cost:
    """Cancel as many bare tasks to a durable end, by hand: the same rows in the same tables."""
    db = open_for_writing(path, time.time())
    db.execute("PRAGMA synchronous = FULL")
    db.execute("INSERT INTO sessions VALUES (1, 's', NULL, 'h', 'b', 'n', 1, 1, 1, 1, NULL)")
    run = (
        "INSERT INTO runs (number, session, run_id, name, status, created_at, record, agent)"
        " VALUES (?, 1, ?, 'sleeper', 'running', ?, ?, 'sleeper')"
    )
    event = "INSERT INTO events (run, seq, count, ts, attempt, type, data) VALUES (?, ?, 1, ?, 1, ?, ?)"
    update = "UPDATE runs SET status = 'cancelled', record = ? WHERE number = ?"
    tasks = [asyncio.create_task(sleeper("")) for _ in range(SLEEPERS)]
    records = []
    db.execute("BEGIN")
    for number in range(SLEEPERS):
        record = {"run_id": f"run-{number}", "name": "sleeper", "agent": "sleeper", "session_id": "s" * 26}
        records.append({**record, "number": number, "started_at": time.time(), "status": "running"})
        db.execute(run, (number, f"run-{number}", micros(time.time()), json.dumps(records[-1])))
        db.execute(event, (number, 0, micros(time.time()), "run.started", b"{}"))
    db.execute("COMMIT")
    await asyncio.sleep(0)
    with measured() as cost:
        db.execute("BEGIN")
        for number, task in enumerate(tasks):
            data = json.dumps({"cause": "user", "by": "python"})
            db.execute(event, (number, 1, micros(time.time()), "cancel.requested", data))
            task.cancel()
            rung = json.dumps({"rung": "task"})
            db.execute(event, (number, 2, micros(time.time()), "cancel.escalated", rung))
        db.execute("COMMIT")
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        db.execute("BEGIN")
        for number, _end in enumerate(ends):
            end = {"status": "cancelled", "cause": "user", "ended_at": time.time()}
            db.execute(event, (number, 3, micros(time.time()), "run.cancelled", json.dumps(end)))
            whole = json.dumps({**records[number], **end, "by": "python", "event_count": 4})
            db.execute(update, (whole, number))
        db.execute("COMMIT")
    db.close()
    return cost


def job_c(folder: Path, session: NotebookSession) -> tuple[float, float, float, float, float]:
    """Return CPU ms a start, wall s to cancel all, its ratios to the anchor (wall, CPU), and KiB a run."""
    session.start(nothing).wait(10)
    gc.collect()
    before = psutil.Process().memory_info().rss
    with measured() as start:
        runs = [session.start(sleeper) for _ in range(SLEEPERS)]
    while any(run.status != "running" for run in runs):
        time.sleep(0.01)
    gc.collect()
    held = psutil.Process().memory_info().rss - before
    with measured() as cancel:
        session.cancel_all()
        assert all(run.wait(30) for run in runs)
    assert len(session.runs(status="cancelled")) == SLEEPERS
    bare = asyncio.run(bare_loop(folder / "bare.db"))
    ratios = cancel.wall / bare.wall, cancel.cpu / bare.cpu
    return start.cpu / SLEEPERS * 1e3, cancel.wall, *ratios, held / SLEEPERS / 1024


def main() -> None:
    """Print the medians of all rounds."""
    a, b, c = [], [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with NotebookSession(store=folder / "a.db") as session:
                a.append(job_a(folder, session))
            with NotebookSession(store=folder / "b.db") as session:
                b.append(job_b(session))
            with NotebookSession(store=folder / "c.db", max_concurrent=SLEEPERS) as session:
                c.append(job_c(folder, session))
    cpu, wall, ratio, *start_ms = (statistics.median(column) for column in zip(*a, strict=True))
    print(
        f"A  {cpu:.3f} ms CPU, {wall:.3f} ms wall a run; {ratio:.2f} x bare SQLite (two commits, one FULL); "
        f"start() takes its caller {start_ms[0]:.3f} ms CPU, {start_ms[1]:.3f} ms wall"
    )
    micro, size = (statistics.median(column) for column in zip(*b, strict=True))
    print(f"B  {micro:.2f} µs CPU, {size:.1f} bytes a delta; {DELTAS:,} of {DELTAS:,} stored")
    start, cancel, wall, cpu, _ = (statistics.median(column) for column in zip(*c, strict=True))
    held = c[0][-1]
    print(
        f"C  {start:.3f} ms CPU a start; {SLEEPERS:,} cancelled to a durable end in {cancel:.3f} s, "
        f"{wall:.1f} x bare asyncio and SQLite ({cpu:.1f} x its CPU); {held:.1f} KiB a live run"
    )


if __name__ == "__main__":
    main()
