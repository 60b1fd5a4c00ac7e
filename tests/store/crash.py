"""What a process that died had shown, against what the file holds after one load."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from nbrun.core.record import fold
from nbrun.store import SessionStore, StoredRun
from tests.fakes import doomed
from tests.fakes.clock import FakeClock
from tests.fakes.doomed import Phase, Shown, Trouble

_decoder = msgspec.msgpack.Decoder(Shown | Trouble | Phase)


@dataclass
class Life:
    """What a child told before it died, and when its phases began, in seconds."""

    shown: list[Shown] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    began: dict[str, float] = field(default_factory=dict)

    @property
    def died_in(self) -> str:
        """The phase that it was in at last."""
        return list(self.began)[-1] if self.began else "before"

    def hear(self, pipe: Connection, deadline: float | None) -> bool:
        """Take the next word, by the deadline; return whether there was one."""
        if deadline is not None and not pipe.poll(max(0.0, deadline - time.monotonic())):
            return False
        try:
            item = _decoder.decode(pipe.recv_bytes())
        except (EOFError, OSError):  # also in the middle of a word
            return False
        if isinstance(item, Phase):
            self.began[item.name] = time.monotonic()
        elif isinstance(item, Trouble):
            self.troubles.append(f"{item.run_id}: {item.problem}")
        else:
            self.shown.append(item)
        return True


def check(path: Path, life: Life, after: int) -> int:
    """Check that all that was shown is in the file after one load; return the number of its newest run."""
    if not path.exists():
        assert life.shown == []
        return after
    store = SessionStore([path], FakeClock())
    store.open_existing()
    assert store.problem is None
    runs = {run.record.run_id: run for run in store.runs() if run.number > after}
    assert all(not run.record.is_live for run in runs.values())
    stored = {run_id: check_log(store, run) for run_id, run in runs.items()}
    ends: dict[str, str] = {}
    for shown in life.shown:
        events = stored[shown.run_id]
        assert shown.count <= len(events)
        for seq, kind, checksum in shown.events:
            assert (events[seq][0], events[seq][1]) == (kind, checksum)
        if shown.status in ("completed", "failed", "cancelled"):
            ends[shown.run_id] = shown.status
    assert {run_id: str(runs[run_id].record.status) for run_id in ends} == ends
    store.close(1)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return max((run.number for run in runs.values()), default=after)


def check_log(store: SessionStore, run: StoredRun) -> list[tuple[str, int]]:
    """Check that a log has no gap and is what the list says of its run; return type and checksum of its events."""
    events = store.events(run.number)
    assert [event.seq for event in events] == list(range(len(events)))
    record = fold(events)
    assert (record.run_id, record.status) == (run.record.run_id, run.record.status)
    assert not record.is_live
    return [(event.type, doomed.checksum(event)) for event in events]
