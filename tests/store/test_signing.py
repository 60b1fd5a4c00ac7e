"""The key that runs are signed with: whose it is, who makes it, and what is done where there is none."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nbrun import NotebookSession, RunContext
from nbrun.core import RunRecord, events as ev
from nbrun.store import diagnosis, signing
from nbrun.store.signing import KEY_BYTES, KEY_FILE, Signer
from tests.fakes.agents import BOUND_S, Held, instant
from tests.sessions.test_places import homeless as homeless  # a fixture

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no modes there")
MakeSession = Callable[..., NotebookSession]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder, which does not exist yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "nbrun"


def test_the_key_is_made_once_and_for_its_owner_only(data: Path) -> None:
    """Kernels that need it at the same moment agree on one, and leave nothing else."""
    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            keys = set(pool.map(lambda signer: signer.key, [Signer() for _ in range(8)]))
        [path] = data.iterdir()
        found = path.stat()
        assert (path.name, found.st_size, stat.S_IMODE(found.st_mode)) == (KEY_FILE, KEY_BYTES, 0o600)
        assert keys == {path.read_bytes()}
        path.unlink()
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def _linked(path: Path) -> None:
    path.with_name("other").write_bytes(b"k" * KEY_BYTES)
    path.with_name("other").chmod(0o600)
    path.symlink_to("other")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _readable(path: Path) -> None:
    path.write_bytes(b"k" * KEY_BYTES)
    path.chmod(0o640)


def _short(path: Path) -> None:
    path.write_bytes(b"")
    path.chmod(0o600)


def _long(path: Path) -> None:
    path.write_bytes(b"k" * 64)
    path.chmod(0o600)


def _pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _someone_elses(path: Path) -> None:
    path.write_bytes(b"k" * KEY_BYTES)
    path.chmod(0o600)
    os.chown(path, 1, 1)


@pytest.mark.parametrize(
    "make",
    [
        _linked, _dangling, _readable, _short, _long, _pipe,
        pytest.param(_someone_elses, marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")),
    ],
)  # fmt: skip
def test_a_key_that_somebody_else_may_know_is_not_used(data: Path, make: Callable[[Path], None]) -> None:
    """Nor is it changed; this process has a key of its own, and doctor says why."""
    data.mkdir(parents=True)
    make(data / KEY_FILE)
    before = (data / KEY_FILE).lstat()
    one, two = Signer(), Signer()
    assert one.key == two.key
    assert one.key not in (b"k" * KEY_BYTES, b"")
    assert one.problem is not None
    assert KEY_FILE in one.problem
    assert (data / KEY_FILE).lstat().st_ino == before.st_ino
    assert not (data / "nowhere").exists()
    [finding] = diagnosis.signing(one)
    assert (finding.sign, one.problem in finding.text) == ("note", True)


@pytest.mark.usefixtures("homeless")
def test_without_a_data_folder_runs_are_signed_for_this_kernel(make_session: MakeSession) -> None:
    """Another session of this process knows them; one of another key doesn't."""
    with make_session() as session:
        assert session.start(instant, "tea").wait(BOUND_S)
    later = make_session()
    assert later.get(1).signed is not None
    assert later.store.signer.problem == "this user has no data folder"
    later.store.signer = _with_key(b"another" * 8)
    assert later.get(1).signed is None


def _with_key(key: bytes) -> Signer:
    signer = Signer()
    signer._key = key
    return signer


def test_doctor_says_where_the_key_is(data: Path) -> None:
    """And nothing of what is in it."""
    [finding] = diagnosis.signing(Signer())
    assert finding.sign == "ok"
    assert str(data / KEY_FILE) in finding.text


@pytest.mark.parametrize(
    "change",
    [
        {"name": "x"}, {"agent": "x"}, {"prompt": "x"}, {"model": "x"}, {"tags": {"x": "y"}}, {"options": {"x": 1}},
        {"target": "x"}, {"session_id": "x"}, {"origin": ev.Origin("resume", "x")},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_signature_covers_all_that_is_taken_over(data: Path, change: dict[str, Any]) -> None:
    """What a run was started with, and which run it is; not its number, which another file may change."""
    signer = _with_key(b"k" * KEY_BYTES)
    created = ev.RunCreated("s", "name", "agent", "prompt")
    signature = signer.of_run("run-1", created)
    assert signer.of_run("run-2", created) != signature
    assert signer.of_run("run-1", msgspec.structs.replace(created, **change)) != signature
    assert signer.of_run("run-1", msgspec.structs.replace(created, number=7)) == signature
    record = RunRecord(run_id="run-1", session_id="s", name="name", agent="agent", prompt="prompt")
    assert signer.of_run("run-1", record) == signature
    assert not data.exists()


def test_a_signature_of_a_checkpoint_is_of_no_other() -> None:
    """Neither of another run's, nor of another state or place; nor is it one of a run."""
    signer = _with_key(b"k" * KEY_BYTES)
    one = signer.of_checkpoint("s", "run-1", 3, b"state")
    others = [
        ("s", "run-2", 3, b"state"),
        ("t", "run-1", 3, b"state"),
        ("s", "run-1", 4, b"state"),
        ("s", "run-1", 3, b""),
    ]
    assert one not in {signer.of_checkpoint(*other) for other in others}
    assert not signing.is_same(None, one)
    assert not signing.is_same(one.hex(), one)


def test_a_file_that_is_written_again_keeps_the_signatures(make_session: MakeSession, store_path: Path) -> None:
    """After it was deleted: the runs of this kernel and their checkpoints are signed in the new one, too."""

    async def fails(prompt: str, run: RunContext) -> None:
        run.checkpoint("half")
        raise ValueError("over")

    session, held = make_session(), Held()
    live = session.start(held, "waits")
    assert held.entered.wait(BOUND_S)
    assert session.start(fails, "tea", tags={"a": "b"}, timeout_s=60).wait(BOUND_S)
    store_path.unlink()
    held.let_go()
    assert live.wait(BOUND_S)
    assert session.start(instant, "new").wait(BOUND_S)
    session.close()
    later = make_session()
    assert later.store.unsigned() == []
    assert [later.get(number).signed is not None for number in (1, 2, 3)] == [True] * 3
    assert later.store.checkpoint(2) is not None


def test_runs_of_older_versions_are_the_users_after_a_question(data: Path, tmp_path: Path) -> None:
    """They are shown as before; once trusted, they are resumed as before."""
    path = tmp_path / "small_3.db"
    path.write_bytes((Path(__file__).parent / "data" / "small_3.db").read_bytes())
    with NotebookSession(store=path) as session:
        assert [run.signed for run in session.runs()] == [None] * 5
        assert session.get("reads").text == "half"
        found = session.store.unsigned()
        assert [(one.number, one.checkpoint is not None) for one in found] == [
            (1, False), (2, False), (3, False), (4, False), (5, True),
        ]  # fmt: skip
        session.store.trust(found)

        async def reads(prompt: str, run: RunContext) -> object:
            return run.restored

        session.find_agent = {"reads": reads}.get
        new = session.get("reads").resume()
        assert new.wait(BOUND_S)
        assert (new.output, new.record.options) == ({"page": 3}, {"timeout_s": 60})
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM runs WHERE length(signature) = 32").fetchone() == (6,)
