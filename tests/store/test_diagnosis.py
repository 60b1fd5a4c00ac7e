"""Findings: one line each, and what can be told without a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nbrun import NotebookSession
from nbrun.core.clock import SystemClock
from nbrun.core.errors import StoreUnavailable
from nbrun.store import SessionStore, diagnosis as finding, open_for_writing
from nbrun.store.diagnosis import Finding, Sign, kept, served, set_aside, sqlite_version, tried, versions
from nbrun.store.faults import FaultKind, StoreFault
from tests.conftest import MakeSession
from tests.fakes import agents


def used(session: NotebookSession) -> SessionStore:
    """Return the session's store, with one run in it."""
    assert session.start(agents.instant, "tea").wait(10)
    return session.store


def test_a_finding_is_one_line() -> None:
    """Its sign as a mark and a word, what was found and what to do, whatever line breaks are in it."""
    found = Finding(Sign.PROBLEM, "store", "it is\nfull", "make room")
    assert str(found) == "✘ problem  store: it is full → make room"
    assert str(Finding(Sign.OK, "disk", "9 GB free")) == "✔ ok       disk: 9 GB free"


def test_a_probe_that_fails_is_a_finding() -> None:
    """What it had found is not told half; the error's kind and words are."""

    def probe() -> Iterator[Finding]:
        yield Finding(Sign.OK, "store", "half of it")
        raise OSError("no such device")

    (found,) = tried("store", probe)
    assert (found.sign, found.text) == (Sign.NOTE, "the check failed: OSError: no such device")
    assert found.fix


def test_versions_name_what_is_missing_and_what_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that nbrun needs is a problem with the line that installs it; an old nbrun in memory is one too."""
    (fine,) = versions("no-such-extra")
    assert fine.sign is Sign.OK
    assert "no-such-extra" not in fine.text
    monkeypatch.setattr(finding, "NEEDED", (*finding.NEEDED, "no-such-package"))
    monkeypatch.setattr("nbrun.__version__", "0.0.9")
    _, missing, stale = versions()
    assert (missing.sign, stale.sign) == (Sign.PROBLEM, Sign.PROBLEM)
    assert "pip install no-such-package" in missing.fix
    assert "0.0.9 is running" in stale.text


@pytest.mark.parametrize(
    ("version", "sign"),
    [((3, 40, 1), Sign.NOTE), ((3, 51, 2), Sign.NOTE), ((3, 51, 3), Sign.OK), ((3, 52, 0), Sign.OK)],
)
def test_a_sqlite_with_the_wal_reset_bug_is_told(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], sign: Sign
) -> None:
    """In one line, with the version that has it no more."""
    monkeypatch.setattr("sqlite3.sqlite_version_info", version)
    monkeypatch.setattr("sqlite3.sqlite_version", ".".join(map(str, version)))
    found = sqlite_version()
    assert (found.sign, found.subject) == (sign, "SQLite")
    assert found.text.startswith(".".join(map(str, version)))
    assert ("3.51.3" in found.fix) is (sign is Sign.NOTE)


def test_the_servers_extension_is_told_by_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first folder that says something wins; what is off has the line that switches it on."""
    near, far = tmp_path / "near", tmp_path / "far"
    monkeypatch.setattr("jupyter_core.paths.jupyter_config_path", lambda: [str(tmp_path / "none"), str(near), str(far)])
    nowhere = served()
    assert (nowhere.sign, "not enabled" in nowhere.text) == (Sign.NOTE, True)
    assert nowhere.fix.startswith("jupyter server extension enable nbrun.server")

    shipped = next((Path(__file__).parents[2] / "jupyter-config").glob("*.d/*.json"))
    copied = far / shipped.parent.name / shipped.name
    copied.parent.mkdir(parents=True)
    copied.write_text(shipped.read_text())
    there = served()
    assert (there.sign, str(copied) in there.text) == (Sign.OK, True)

    near.mkdir()
    (near / "jupyter_server_config.json").write_text("{no json")
    assert served() == there
    off = '{"ServerApp": {"jpserver_extensions": {"nbrun.server": false}}}'
    (near / "jupyter_server_config.json").write_text(off)
    assert (served().sign, "disabled in" in served().text) == (Sign.NOTE, True)
    monkeypatch.setattr(finding, "_version", lambda _name: None)
    assert "not installed in this environment" in served().text


def test_a_store_is_told_with_its_size_and_its_room(session: NotebookSession) -> None:
    """Where it is, that it lasts, and how much is free; before the first run, where it will be."""
    (empty,) = kept(session.store)
    assert (empty.sign, str(session.store.wanted) in empty.text) == (Sign.OK, True)
    file, disk = kept(used(session))
    assert (file.sign, disk.sign) == (Sign.OK, Sign.OK)
    assert f"{session.store.path}, durable, " in file.text
    assert file.text.endswith("journal mode WAL")
    session.store._database.lost = 2
    assert "2 runs were in progress when their kernel died" in kept(session.store)[-1].text


def test_a_store_in_another_place_or_in_memory_says_why(make_session: MakeSession, tmp_path: Path) -> None:
    """The second choice is a note, memory is a problem; both name what was wrong with the first."""
    blocked = tmp_path / "file" / "store.db"
    blocked.parent.write_text("no folder")
    elsewhere = SessionStore([blocked, tmp_path / "other" / "store.db"], SystemClock())
    second, _disk = kept(used(make_session(store=elsewhere)))
    assert second.sign is Sign.NOTE
    assert str(blocked) in second.text
    (memory,) = kept(used(make_session(store=SessionStore([blocked], SystemClock()))))
    assert memory.sign is Sign.PROBLEM
    assert "in memory only" in memory.text
    assert "NbRun.store" in memory.fix


def test_a_full_disk_and_a_slow_journal_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little room is a problem; a file system without WAL only a note."""
    path = tmp_path / "store.db"
    open_for_writing(path).close()
    store = SessionStore([path], SystemClock())
    store.open_existing()
    monkeypatch.setattr(store, "journal_mode", lambda: "delete")
    monkeypatch.setattr(finding, "LOW_DISK_BYTES", 1 << 80)
    slow, full = kept(store)
    assert (slow.sign, full.sign) == (Sign.NOTE, Sign.PROBLEM)
    assert "journal mode DELETE: this file system doesn't support WAL" in slow.text
    assert full.text.startswith("only ")
    store.close(1.0)


def test_a_file_that_was_set_aside_is_not_forgotten(make_session: MakeSession, store_path: Path) -> None:
    """Who set it aside and every later kernel say that it may contain runs; the others' files are not told of."""
    store_path.parent.mkdir(parents=True)
    store_path.write_bytes(b"CREATE TABLE runs (" + bytes(4096))
    (store_path.parent / "other.damaged-20260101T000000.db").touch()
    first = make_session()
    (told, *_) = kept(used(first))
    assert "may contain runs" in told.fix
    assert set_aside(first.store) == []  # it has said so already
    first.close()
    (found,) = set_aside(make_session().store)
    assert ".damaged-" in found.text
    assert "may contain runs" in found.text


def test_a_store_that_is_not_written_to_is_not_called_durable(
    session: NotebookSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of its file does not contradict the one above it."""
    store = used(session)
    fault = StoreFault(FaultKind.FULL, "the disk is full")
    monkeypatch.setattr(SessionStore, "fault", fault)
    first, second, *_ = kept(store)
    assert first.text.startswith("can't be written: the disk is full")
    assert "durable" not in second.text
    assert str(StoreUnavailable(fault)) == f"the disk is full; {fault.fix}"


def test_what_was_kept_at_another_place_is_found_again(tmp_path: Path) -> None:
    """When the first place can be written again, the file in the second one is named."""
    first, second = tmp_path / ".nbrun" / "a.db", tmp_path / "data" / "a.db"
    first.parent.mkdir()
    first.write_bytes(b"somebody's notes")
    session = NotebookSession(store=SessionStore([first, second], SystemClock()))
    problem = used(session).problem or ""
    session.close()
    assert problem.endswith(f"; new runs are saved in {second}")
    first.unlink()
    later = SessionStore([first, second], SystemClock())
    assert f"there are also runs in {second}" in [found.text for found in kept(later)]
