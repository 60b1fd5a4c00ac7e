"""What the store costs, on a file as big as years of use leave it: `python -m tests.bench.store [--million]`.

Reads are of a store of 100,000 runs, and of 1,000,000 with `--million` (3 GB, a minute to make): CPU
milliseconds, the median of many reads. A figure above its aim is marked with `!`. What is stored is counted.

newest    the newest 50 runs, as the store's reader gives them, and as `session.runs(limit=50)`.
panel     a page of the runs panel: the newest, from the middle, those that are live, and those with a word.
page      1,000 events of a run's 10,000, from the middle of its log, one row each; and the same of text.
open      opening the file, its tables checked, and closing it.
load      a new session on it: also looks for runs of dead kernels.
deltas    text of 20 characters: CPU of what stores it, and bytes on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from nbrun import NotebookSession
from nbrun.core import events as ev
from nbrun.core.record import RunRecord, fold
from nbrun.store import open_for_writing, queries as reader
from nbrun.store.connection import connect
from nbrun.store.liveness import this_process
from nbrun.store.rows import Row, RowWriter
from nbrun.ui.panel.page import ANY_LIVE, PageQuery, read_page

RUNS = 100_000
TIMES = 10  # a million is ten times that
EVENTS = 10_000
DELTAS = 10_000
BATCH = 1_000
NOON = 1_790_000_000.0

AIMS_MS = {
    "newest: reader": 0.5, "newest: session": 0.5, "page: rows": 5.0, "page: text": 5.0, "open": 50.0,
    "panel: newest": 2.0, "panel: middle": 2.0, "panel: live": 2.0, "panel: a common word": 5.0,
}  # fmt: skip
AIM_DELTA_BYTES, AIM_DELTA_US, AIM_GROWTH = 40.0, 3.0, 1.2


def a_run(number: int, session_id: str) -> list[ev.RunEvent]:
    """Return the log of an ordinary run: a question, a tool, some text, an answer."""
    run_id, moment = f"run-{number:026d}", NOON + number
    words = [f"word {n} of the answer " for n in range(12)]
    answer = "".join(words)
    data = (
        ev.RunCreated(
            session_id, "summarise", "assistant",
            prompt=f"Summarise chapter {number} of the report in three sentences, for a newcomer.",
            cell_id=f"cell-{number % 40}", model="openai:gpt-5-mini", tags={"course": "intro"},
            options={"timeout_s": 60.0, "max_turns": 10},
        ),
        ev.RunStarted("local"),
        ev.ToolStarted("t1", "read_file", args={"path": f"chapters/{number}.md"}),
        ev.ToolFinished("t1", result={"characters": 1_800, "first line": "Chapter"}, ms=3.5),
        *(ev.TextDelta(word) for word in words),
        ev.RunCompleted(answer, ev.Usage(1_200, 90, requests=2, cost_usd=0.0004)),
    )  # fmt: skip
    return [ev.RunEvent(seq, moment + seq / 100, run_id, min(seq, 1), item) for seq, item in enumerate(data)]


def a_session(row_writer: RowWriter, name: str) -> int:
    """Insert a session, one that is over: it holds no lease; return its key."""
    who = this_process()
    return row_writer.insert_session(
        (name, "/home/me/report.ipynb", who.host, who.boot_id, who.pid_namespace, who.pid, who.started_at, 0, 0)
    )


def write(row_writer: RowWriter, session_key: int, log: list[ev.RunEvent]) -> Row:
    """Write a whole run, as the writer does."""
    row, created = row_writer.insert_run(session_key, log[0])
    log = [created, *log[1:]]
    row = row_writer.write_events(row, log)
    return row_writer.write_record(row, fold(log))


def fill(path: Path) -> None:
    """Write 100,000 runs, and a long one of each kind: #1 one row an event, #2 text."""
    with contextlib.closing(open_for_writing(path, NOON)) as connection:
        connection.execute("PRAGMA synchronous = OFF")  # it is made once and read
        row_writer = RowWriter(connection)
        row_writer.begin()
        key = a_session(row_writer, "session-1")
        for number, kind in ((1, ev.Log), (2, ev.TextDelta)):
            log = a_run(number, "session-1")
            first, last = log[:2], log[-1]
            for seq in range(2, EVENTS - 1):
                first.append(ev.RunEvent(seq, NOON, first[0].run_id, 1, kind(f"line {seq} of the log")))
            write(row_writer, key, [*first, msgspec.structs.replace(last, seq=EVENTS - 1)])
        for number in range(3, RUNS + 1):
            write(row_writer, key, a_run(number, "session-1"))
            if number % BATCH == 0:
                row_writer.commit()
                row_writer.begin()
        connection.execute("UPDATE sessions SET closed_at = 1")
        row_writer.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def multiply(path: Path) -> None:
    """Copy every run nine times, with numbers and ids of its own, so that there are a million."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = OFF")
        for copy in range(1, TIMES):
            shift = {"shift": copy * RUNS, "copy": f"-{copy}", "runs": RUNS}
            connection.execute(
                "INSERT INTO runs (number, session, run_id, name, status, created_at, inputs, record, parent, agent,"
                " model, ended_at) SELECT number + :shift, session, run_id || :copy, name, status, created_at,"
                " inputs, record, parent, agent, model, ended_at FROM runs WHERE number <= :runs ORDER BY number",
                shift,
            )
            connection.execute(
                "INSERT INTO events (run, seq, count, ts, attempt, parent, type, data)"
                " SELECT run + :shift, seq, count, ts, attempt, parent, type, data FROM events"
                " WHERE run <= :runs ORDER BY run, seq",
                shift,
            )
        connection.execute("PRAGMA journal_mode = WAL")


def panel_page(session: NotebookSession, **wanted: Any) -> object:
    """Return what the runs panel shows."""
    return read_page(session, PageQuery(**wanted), lambda: False)


@contextlib.contextmanager
def reads(path: Path, runs: int) -> Iterator[dict[str, Callable[[], object]]]:
    """Every read of a store, each checked once."""
    with contextlib.closing(connect(path)) as connection, NotebookSession(store=path) as session:
        connection.execute("PRAGMA query_only = ON")
        (stored,) = connection.execute("SELECT count(*) FROM runs").fetchone()
        assert stored == runs, stored
        numbers = list(range(runs, runs - 50, -1))
        newest = reader.read_runs(connection, 50)
        assert [run.number for run in newest] == numbers
        assert all(run.record.output for run in newest)
        listed = session.runs(limit=50)
        assert [run.number for run in listed] == numbers
        for number in (1, 2):
            page = reader.read_events(connection, number, 5_000, 1_000)
            assert [event.seq for event in page] == list(range(5_001, 6_001))
        yield {
            "newest: reader": lambda: reader.read_runs(connection, 50),
            "newest: session": lambda: session.runs(limit=50),
            "newest: its table": listed._repr_html_,
            "panel: newest": lambda: panel_page(session),
            "panel: middle": lambda: panel_page(session, before=(runs // 2,)),
            "panel: live": lambda: panel_page(session, status=ANY_LIVE),
            "panel: a common word": lambda: panel_page(session, text="chapter"),
            "page: rows": lambda: reader.read_events(connection, 1, 5_000, 1_000),
            "page: text": lambda: reader.read_events(connection, 2, 5_000, 1_000),
            "filter: a rare agent": lambda: session.runs(agent="rare", limit=50),
            "open": lambda: open_for_writing(path).close(),
            "load": lambda: NotebookSession(store=path).close(),
        }


def cpu_ms(stores: list[Callable[[], object]], times: int) -> list[float]:
    """Return what a read takes of each store: the medians of many, by turns, since machines are noisy."""
    took: list[list[float]] = [[] for _ in stores]
    for _ in range(times):
        for read, found in zip(stores, took, strict=True):
            began = time.process_time_ns()
            read()
            found.append((time.process_time_ns() - began) / 1e6)
    return [statistics.median(found) for found in took]


def measure_reads(stores: list[tuple[Path, int]]) -> None:
    """Print what reading costs, of each store."""
    with contextlib.ExitStack() as stack:
        all_reads = [stack.enter_context(reads(path, runs)) for path, runs in stores]
        for name in all_reads[0]:
            found = cpu_ms([each[name] for each in all_reads], 200)
            for (_, runs), ms in zip(stores, found, strict=True):
                shown(f"{name}, of {runs:,}", ms, "ms", AIMS_MS.get(name))
            if len(found) > 1:
                shown("    more runs, more time", found[1] / found[0], "x", AIM_GROWTH)


def deltas(folder: Path) -> tuple[float, float, float]:
    """Return of 10,000 deltas of 20 characters: CPU µs each to store them, to fold them too, and bytes on disk."""
    path = folder / "deltas.db"
    log = a_run(1, "session-1")[:2]
    for seq in range(2, DELTAS + 2):
        log.append(ev.RunEvent(seq, NOON + seq / 1e3, log[0].run_id, 1, ev.TextDelta("x" * 20)))
    with contextlib.closing(open_for_writing(path, NOON)) as connection:
        row_writer = RowWriter(connection)
        row_writer.begin()
        row, log[0] = row_writer.insert_run(a_session(row_writer, "s"), log[0])
        row_writer.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = path.stat().st_size
        storing, folding, record = 0.0, 0.0, RunRecord()
        for start in range(0, len(log), 250):  # about what a stream gathers between two commits
            batch = log[start : start + 250]
            began = time.process_time()
            row_writer.begin()
            row = row_writer.write_events(row, batch)
            row_writer.commit()
            storing += time.process_time() - began
            began = time.process_time()
            record = fold(batch, record)
            folding += time.process_time() - began
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert len(reader.read_events(connection, 1)) == DELTAS + 2
    grown = path.stat().st_size - before
    return storing / DELTAS * 1e6, (storing + folding) / DELTAS * 1e6, grown / DELTAS


def shown(name: str, value: float, unit: str, aim: float | None) -> None:
    """Print a figure beside its aim."""
    mark = "!" if aim is not None and value > aim else " "
    wanted = "" if aim is None else f"   (aim {aim:g})"
    print(f"{mark} {name:<36} {value:8.3f} {unit}{wanted}", flush=True)


def main() -> None:
    """Make the stores, and print what reading and writing costs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--million", action="store_true", help="also with 1,000,000 runs")
    is_million = parser.parse_args().million
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = [(folder / "runs.db", RUNS)]
        fill(stores[0][0])
        if is_million:
            stores.append((folder / "more.db", RUNS * TIMES))
            shutil.copy(stores[0][0], stores[1][0])
            multiply(stores[1][0])
        for path, runs in stores:
            print(f"{runs:,} runs, {path.stat().st_size / 1e6:,.0f} MB")
        measure_reads(stores)
        storing, both, bytes_each = deltas(folder)
        shown("deltas: storing", storing, "µs CPU", AIM_DELTA_US)
        shown("deltas: storing and folding", both, "µs CPU", AIM_DELTA_US)
        shown("deltas: on disk", bytes_each, "bytes", AIM_DELTA_BYTES)


if __name__ == "__main__":
    main()
