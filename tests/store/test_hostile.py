"""A store that somebody else has filled, as ours in its tables: opened, listed and shown, with nothing of it run."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from nbrun import NotebookSession, Run, RunStatus
from nbrun.cli import main
from nbrun.core import events as ev
from nbrun.render.static_card import bundle, plain_text
from nbrun.sessions.run_list import RunList
from nbrun.store import open_for_writing, validation
from nbrun.store.liveness import this_process
from tests.fakes import agents
from tests.fakes.agents import BOUND_S
from tests.fakes.clock import NOON

MakeSession = Callable[..., NotebookSession]

NOW = round(NOON * 1_000_000)
MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\x08"
OK = {"output": "fine"}


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.path), "w")


def nested(depth: int) -> bytes:
    """Return lists in lists as MessagePack."""
    return b"\x91" * depth + b"\xc0"


def encoded(**fields: object) -> bytes:
    """Return a map as MessagePack."""
    return msgspec.msgpack.encode(fields)


class Planter:
    """Writes into a store's tables what nbrun never would."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True)
        open_for_writing(path).close()
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA ignore_check_constraints = ON")
        self.session()

    def session(self, name: object = "theirs", **columns: object) -> None:
        """Insert a session, closed in good order."""
        here = this_process()
        row = {
            "session_id": name, "host": here.host, "boot_id": here.boot_id, "pid": here.pid,
            "pid_namespace": here.pid_namespace, "process_started_at": here.started_at,
            "started_at": NOW, "heartbeat_at": NOW, "closed_at": NOW, **columns,
        }  # fmt: skip
        self._insert("sessions", row)

    def run(self, number: int = 1, **columns: object) -> None:
        """Insert a run."""
        record = encoded(run_id=f"run-{number}", name="poet", status="completed", created_at=NOON)
        row = {
            "number": number, "session": 1, "run_id": f"run-{number}", "name": "poet",
            "status": "completed", "created_at": NOW, "record": record, **columns,
        }  # fmt: skip
        self._insert("runs", row)

    def event(self, seq: object, kind: object, data: object, **columns: object) -> None:
        """Insert an event of run 1."""
        row = {"run": 1, "seq": seq, "count": 1, "ts": NOW, "attempt": 1, "type": kind, "data": data, **columns}
        self._insert("events", row)

    def log(self, *data: tuple[str, object]) -> None:
        """Insert run 1 with a log: its creation, these events, its end."""
        self.run()
        created = encoded(session_id="theirs", name="poet", agent="poet", prompt="tea")
        for seq, (kind, blob) in enumerate([("run.created", created), *data, ("run.completed", encoded(**OK))]):
            self.event(seq, kind, blob)

    def _insert(self, table: str, row: dict[str, object]) -> None:
        marks = ", ".join("?" * len(row))
        self.db.execute(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})",  # noqa: S608
            list(row.values()),
        )


@pytest.fixture
def planter(store_path: Path, make_session: MakeSession) -> Iterator[Planter]:
    """A store that is filled by hand."""
    store_path.parent.parent.mkdir(exist_ok=True)
    planter = Planter(store_path)
    yield planter
    planter.db.close()


def shown_everywhere(session: NotebookSession, store_path: Path) -> RunList:
    """Return the runs after they were listed and shown in every form, here and by the command line."""
    runs = session.runs()
    assert len(repr(runs)) < 1_000_000
    assert "<script" not in runs._repr_html_()
    assert "\x1b" not in repr(runs) + repr(list(runs))
    runs.to_pandas()
    for run in runs[:20]:
        record = run.record
        assert (run.text, run.status) == (record.text, record.status)
        assert record.run_id
        seqs = [event.seq for event in run.events()]
        assert seqs == sorted(set(seqs))
        repr(run.events())
        assert run.done() or run.is_unknown or run.status.is_live
        saved = bundle(record)
        assert "<script" not in saved["text/html"]
        assert len(msgspec.json.encode(saved)) < 200_000
        assert "\x1b" not in plain_text(record)
        assert main(["show", f"#{run.number}", str(store_path)]) == 0
    assert main(["list", str(store_path)]) == 0
    return runs


def opened(make_session: MakeSession, store_path: Path) -> RunList:
    """Return the runs of the planted store, which is opened as ours, and takes new ones."""
    session = make_session()
    runs = shown_everywhere(session, store_path)
    new = session.start(agents.instant)
    assert new.wait(BOUND_S)
    assert (new.status, session.store.problem) == (RunStatus.COMPLETED, None)
    return runs


def only(runs: RunList) -> Run:
    """Return the one run."""
    (run,) = runs
    return run


# --- what runs nothing -------------------------------------------------------------------------------


def test_no_pickle_is_loaded(planter: Planter, make_session: MakeSession, store_path: Path, tmp_path: Path) -> None:
    """Wherever a pickle stands, nothing unpickles it: what it would do is not done."""
    bomb = pickle.dumps(Bomb(tmp_path / "owned"))
    planter.log(("custom", bomb), ("run.restored", bomb), ("text.delta", bomb))
    planter.run(2, record=bomb, inputs=bomb)
    planter.db.execute("INSERT INTO checkpoints (run, seq, ts, state) VALUES (1, 1, 1, ?)", (bomb,))
    runs = opened(make_session, store_path)
    assert [run.number for run in runs] == [2, 1]
    assert runs[1].output == "fine"
    assert not (tmp_path / "owned").exists()


def test_markup_and_escape_codes_are_text(
    planter: Planter, make_session: MakeSession, store_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In every field: no script, no tag, and nothing that a terminal obeys."""
    evil = MARKUP + ESCAPES
    planter.session(evil, host=evil, notebook=evil)
    planter.log(
        ("run.phase", encoded(phase=evil)),
        ("text.delta", msgspec.msgpack.encode([evil, [len(evil)], [0]])),
        ("tool.started", encoded(id=evil, name=evil, kind=evil, args={evil: [evil]})),
        ("tool.finished", encoded(id=evil, status=evil, result=evil)),
        ("log", encoded(text=evil, level="warning")),
        ("progress", encoded(done=1, total=2, label=evil)),
        ("child.started", encoded(run_id=evil, name=evil)),
        ("cancel.requested", encoded(cause="user", reason=evil, by=evil)),
        (evil, encoded(x=evil)),
    )
    planter.event(20, "run.failed", encoded(error={"type": evil, "message": evil, "traceback": evil}))
    record = encoded(
        run_id=evil, session_id=evil, name=evil, agent=evil, model=evil, prompt=evil, status="cancelled",
        cause="user", reason=evil, tags={evil: evil}, detached=[evil], notices=[evil], phase=evil,
    )  # fmt: skip
    planter.run(2, session=2, run_id=evil, name=evil, record=record)
    runs = opened(make_session, store_path)
    assert runs[0].name == evil
    printed = capsys.readouterr().out
    assert "alert(1)" in printed
    assert "\x1b" not in printed


# --- wrong kinds and numbers -------------------------------------------------------------------------

WRONG_ROWS = {
    "negative numbers": {"seq": -5, "kind": "log", "data": encoded(text="x")},
    "a far number": {"seq": 2**63 - 1, "kind": "log", "data": encoded(text="x")},
    "a text for a number": {"seq": "zero", "kind": "log", "data": encoded(text="x")},
    "a fraction": {"seq": 1.5, "kind": "log", "data": encoded(text="x")},
    "a giant count": {"seq": 1, "kind": "text.delta", "data": b"", "count": 10**9},
    "a negative count": {"seq": 1, "kind": "log", "data": encoded(text="x"), "count": -(10**9)},
    "a count in words": {"seq": 1, "kind": "log", "data": encoded(text="x"), "count": "many"},
    "the end of time": {"seq": 1, "kind": "log", "data": encoded(text="x"), "ts": 2**63 - 1},
    "before all time": {"seq": 1, "kind": "log", "data": encoded(text="x"), "ts": -(2**63)},
    "a time in words": {"seq": 1, "kind": "log", "data": encoded(text="x"), "ts": "noon"},
    "an attempt in words": {"seq": 1, "kind": "log", "data": encoded(text="x"), "attempt": "first"},
    "a blob for a type": {"seq": 1, "kind": b"\xff\x00", "data": encoded(text="x")},
    "a number for a type": {"seq": 1, "kind": 7, "data": encoded(text="x")},
    "a blob for a parent": {"seq": 1, "kind": "log", "data": encoded(text="x"), "parent": b"\xff"},
    "a text for data": {"seq": 1, "kind": "log", "data": "text"},
    "a number for data": {"seq": 1, "kind": "run.completed", "data": 5},
    "text that is none": {"seq": 1, "kind": "log", "data": b"\x81\xa4text\xa2\xff\xfe"},
    "a delta that is none": {"seq": 1, "kind": "text.delta", "data": b"\x93\xa2\xff\xfe\x91\x02\x91\x00"},
    "a bomb of lists": {"seq": 1, "kind": "custom", "data": b"\x82\xa4name\xa1x\xa5value" + nested(10**6)},
    "a bomb at the brink": {"seq": 1, "kind": "custom", "data": b"\x82\xa4name\xa1x\xa5value" + nested(700)},
    "an unknown bomb": {"seq": 1, "kind": "oracle.spoke", "data": nested(900)},
    "a promised giant": {"seq": 1, "kind": "oracle.spoke", "data": b"\xdd\xff\xff\xff\xff"},
    "a delta of a million": {
        "seq": 1,
        "kind": "text.delta",
        "data": b"\x93\xa0\xdd\x00\x0f\x42\x40" + b"\0" * 10**6 + b"\x90",
    },
    "steps beyond time": {"seq": 1, "kind": "text.delta", "data": msgspec.msgpack.encode(["x", [1], [2**63]])},
    "an end beyond time": {"seq": 1, "kind": "run.lost", "data": encoded(reason="x", last_event_at=float("nan"))},
    "a limit beyond time": {
        "seq": 1,
        "kind": "run.created",
        "data": encoded(session_id="s", name="n", agent="a", options={"timeout_s": float("inf")}),
    },
    "no number that JSON has": {"seq": 1, "kind": "progress", "data": encoded(done=float("inf"), total=float("nan"))},
}


@pytest.mark.parametrize("row", WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_a_wrong_row_in_a_log_breaks_nothing(
    planter: Planter, make_session: MakeSession, store_path: Path, row: dict[str, object]
) -> None:
    """Its run is listed, shown and read; what can be read of its log is, in order and once."""
    planter.run()
    created = encoded(session_id="theirs", name="poet", agent="poet", prompt="tea")
    planter.event(0, "run.created", created)
    planter.event(**row)
    planter.event(2, "run.completed", encoded(**OK))
    run = only(opened(make_session, store_path))
    seqs = [event.seq for event in run.events()]
    assert seqs in ([0, 1, 2], [0, 2]) or row.get("count") == 10**9  # that takes up to 16 numbers
    for event in run.events():
        assert isinstance(event.type, str)
        assert 0 <= event.ts <= validation.LATEST_S
        assert not validation.is_deep(event.data)


WRONG_RUNS = {
    "a number for an id": {"run_id": 7},
    "a blob for an id": {"run_id": b"\xff\xfe"},
    "a blob for a name": {"name": b"\xff", "record": b"\xc1"},
    "an unknown status": {"status": "glorious", "record": b"\xc1"},
    "a blob for a status": {"status": b"\xff", "record": b"\xc1"},
    "a time in words": {"created_at": "noon", "record": b"\xc1"},
    "the end of time": {"created_at": 2**63 - 1, "record": b"\xc1"},
    "a text for a record": {"record": "text"},
    "a number for a record": {"record": 5},
    "text that is none": {"record": b"\x81\xa4name\xa2\xff\xfe"},
    "moments beyond time": {
        "record": encoded(
            run_id="run-1", status="cancelled", cause="deadline", created_at=1e300, started_at=float("inf"),
            ended_at=float("nan"), last_event_at=-1e300, options={"timeout_s": float("nan")},
        ),
    },
    "a deep record": {"record": b"\x82\xa6run_id\xa5run-1\xa6output" + nested(600)},
    "a bomb for a record": {"record": b"\x82\xa6run_id\xa5run-1\xa6output" + nested(10**5)},
    "a long record": {"record": encoded(run_id="run-1", name="n" * 10**7, status="completed")},
    "a long name": {"name": "n" * 10**7, "record": b"\xc1"},
    "a live look": {"status": "running", "record": encoded(run_id="run-1", status="running")},
    "a parent that is a number": {"parent": 7, "agent": "poet", "record": b"\xc1"},
    "blobs for agent and model": {"agent": b"\xff", "model": b"\xff", "record": b"\xc1"},
    "an end in words": {"agent": "poet", "ended_at": "late", "record": b"\xc1"},
    "an end beyond time": {"agent": "poet", "ended_at": 2**63 - 1, "record": b"\xc1"},
    "somebody's word on its kernel": {
        "record": encoded(run_id="run-1", status="completed", unseen=MARKUP),
    },
}  # fmt: skip


@pytest.mark.parametrize("columns", WRONG_RUNS.values(), ids=WRONG_RUNS)
@pytest.mark.parametrize("has_log", [True, False])
def test_a_wrong_run_breaks_nothing(
    planter: Planter, make_session: MakeSession, store_path: Path, columns: dict[str, object], has_log: bool
) -> None:
    """It is listed beside the others, and shown as far as it can be read, be it by its log or without one."""
    if has_log:
        planter.log()
        planter.db.execute("DELETE FROM runs")
    planter.run(1, **columns)
    planter.run(2)
    runs = opened(make_session, store_path)
    assert [run.number for run in runs] == [2, 1]
    if has_log:
        assert runs[1].output == "fine"


def test_columns_that_contradict_the_record_find_no_other_run(
    planter: Planter, make_session: MakeSession, store_path: Path
) -> None:
    """They narrow a search and no more: what is shown, and whether a run fits, comes from its record."""
    planter.run(1, agent="liar", model="liar", parent="run-2", ended_at=1)
    planter.run(2, agent="liar", parent="run-2")  # its own parent
    session = make_session()
    assert [run.number for run in session.runs()] == [2, 1]
    assert list(session.runs(agent="liar")) == []
    assert session.get(1).record.parent_id is None
    assert sorted(session.remove(2)) == [1, 2]


def test_broken_text_is_read_with_signs_in_its_place(
    planter: Planter, make_session: MakeSession, store_path: Path
) -> None:
    """A column of text that holds no UTF-8 hides neither its own run nor the others."""
    planter.log(("custom", encoded(name="x")))
    planter.run(2)
    for table, column in (("runs", "run_id"), ("runs", "name"), ("events", "parent")):
        planter.db.execute(
            f"UPDATE {table} SET {column} = CAST(x'61ff62' AS TEXT)"  # noqa: S608
            f" WHERE rowid = 2"
        )
    planter.db.execute("UPDATE sessions SET session_id = CAST(x'ff' AS TEXT)")
    planter.db.execute("UPDATE runs SET record = x'c1' WHERE number = 2")
    runs = opened(make_session, store_path)
    assert runs[0].name == "a\ufffdb"
    assert runs[1].events()[1].parent == "a\ufffdb"


def test_holes_and_overlaps_in_a_log_are_told(planter: Planter, make_session: MakeSession, store_path: Path) -> None:
    """Each number is given once, in order; of a log with a hole the card says that it is damaged."""
    planter.run()
    text = msgspec.msgpack.encode(["abc", [1, 1, 1], [0, 0, 0]])
    planter.event(0, "text.delta", text, count=3)
    planter.event(1, "text.delta", text, count=3)
    planter.event(9, "log", encoded(text="x"))
    run = only(opened(make_session, store_path))
    assert [event.seq for event in run.events()] == [0, 1, 2, 3, 9]
    assert [event.seq for event in run.events(after=2, limit=1)] == [3]
    assert run.record.notices == ("the log is damaged; this is what was last saved in the list of runs",)


# --- sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "column"), [("events", "data"), ("events", "type"), ("runs", "record"), ("runs", "name")]
)
def test_a_value_beyond_all_bounds_hides_no_other_run(
    planter: Planter, make_session: MakeSession, store_path: Path, table: str, column: str
) -> None:
    """300 MB in one value, 70 MB in a text: it is not read, and what can be read without it is."""
    planter.run(3)
    planter.log(("log", encoded(text="x")), ("log", encoded(text="y")))
    is_blob = column in ("data", "record")
    value = "zeroblob(300000000)" if is_blob else "CAST(zeroblob(70000000) AS TEXT)"
    key = "key = 2" if table == "events" else "number = 1"
    planter.db.execute(f"UPDATE {table} SET {column} = {value} WHERE {key}")  # noqa: S608
    planter.db.close()
    runs = make_session().runs()
    assert runs[0].number == 3
    if column in ("data", "type"):
        run = runs[1]
        assert [event.seq for event in run.events()] == ([0, 1, 2, 3] if column == "data" else [0, 2, 3])
        assert run.record.status is RunStatus.COMPLETED
        if column == "data":
            assert run.events()[1].data == ev.Unknown("log", {"$damaged": 0})
    if column == "record":
        assert (runs[1].name, runs[1].status, runs[1].output) == ("poet", "completed", "fine")


def test_a_page_of_events_has_a_bound(
    planter: Planter, make_session: MakeSession, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that is larger than a page may be comes in several, none of them empty, and none of it is left out."""
    monkeypatch.setattr(validation, "PAGE_BYTES", 10_000)
    planter.log(*[("log", encoded(text="x" * 6_000)) for _ in range(6)])
    run = only(make_session().runs())
    assert run.record.event_count == 8
    seqs: list[int] = []
    while page := run.events(after=seqs[-1] if seqs else -1):
        assert len(page) <= 3
        seqs += [event.seq for event in page]
    assert seqs == list(range(8))


def test_a_log_that_would_be_folded_for_ages_is_not(
    planter: Planter, make_session: MakeSession, store_path: Path
) -> None:
    """100,000 open questions: each would be looked at with each that follows."""
    planter.run()
    planter.event(0, "run.created", encoded(session_id="s", name="poet", agent="poet"))
    planter.db.execute("BEGIN")
    for seq in range(1, 100_001):
        planter.event(seq, "approval.requested", encoded(id=str(seq), message="?"))
    planter.db.execute("COMMIT")
    run = only(make_session().runs())
    assert "damaged" in run.record.notices[0]
    assert len(run.events(limit=50)) == 50


def test_numbers_up_to_the_greatest_are_listed(planter: Planter, make_session: MakeSession, store_path: Path) -> None:
    """A run with a number that no page can write exactly is listed, and found by it."""
    planter.run(2**62)
    session = make_session()
    assert [run.number for run in session.runs()] == [2**62]
    assert session.get(f"#{2**62}").name == "poet"
    assert main(["list", str(store_path)]) == 0


def test_ten_thousand_sessions_open_at_once(planter: Planter, make_session: MakeSession, store_path: Path) -> None:
    """Sessions that claim to be open are each looked at once; runs without a session are left out."""
    planter.db.execute("BEGIN")
    for number in range(10_000):
        planter.session(f"s-{number}", closed_at=None, process_started_at=-1, pid=number)
    planter.db.execute("COMMIT")
    planter.run(1, session=3, status="running", record=encoded(run_id="run-1", status="running"))
    planter.run(2, session=10**9)
    run = only(make_session().runs())
    assert run.status is RunStatus.LOST
    (closed,) = planter.db.execute("SELECT count(*) FROM sessions WHERE closed_at IS NULL").fetchone()
    assert closed == 0


def test_sessions_of_nonsense_are_neither_dead_nor_alive(
    planter: Planter, make_session: MakeSession, store_path: Path
) -> None:
    """Whatever stands in a lease, nothing is claimed of its runs, and nothing breaks."""
    for number, nonsense in enumerate((b"\xff", "x" * 10_000, -(2**63), 1.5, MARKUP), 2):
        planter.session(
            f"s-{number}", host=nonsense, boot_id=nonsense, pid=nonsense, pid_namespace=nonsense,
            process_started_at=nonsense, heartbeat_at=nonsense, closed_at=None,
        )  # fmt: skip
        planter.db.execute("INSERT INTO homes VALUES (?, ?, ?)", (number, nonsense, nonsense))
        planter.run(number, session=number, status="running", record=encoded(run_id="r", status="running"))
    runs = opened(make_session, store_path)
    assert [run.is_unknown for run in runs] == [True] * 5


def test_a_damaged_live_run_does_not_keep_the_store_from_opening(
    planter: Planter, make_session: MakeSession, store_path: Path
) -> None:
    """A dead kernel's run that cannot be marked as lost is left as it is, and the others are marked."""
    planter.session("dead", closed_at=None, process_started_at=1)
    live = encoded(run_id="run-2", status="running")
    planter.run(2, session=2, status="running", record=live)
    planter.run(1, session=2, status="running", record=b"\xc1")
    planter.event(2**63 - 1, "log", encoded(text="x"), count=2**62)
    planter.event("text", "log", encoded(text="x"), count="text")
    runs = opened(make_session, store_path)
    assert runs[0].status is RunStatus.LOST


@pytest.mark.parametrize("value", ["'text'", "NULL", str(2**63 - 1)])
def test_the_count_of_runs_may_be_anything(
    planter: Planter, make_session: MakeSession, store_path: Path, value: str
) -> None:
    """A planted counter must not use up the numbers: new runs are kept, somewhere, and told where."""
    planter.run()
    planter.db.execute(f"UPDATE sqlite_sequence SET seq = {value}")  # noqa: S608
    planter.db.close()
    session = make_session()
    new = session.start(agents.instant)
    assert new.wait(BOUND_S)
    assert new.problem is None
    assert "poet" in {run.name for run in session.runs()}
    if value.isdecimal():
        assert "are used up" in (session.store.problem or "")
    with closing(sqlite3.connect(store_path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
