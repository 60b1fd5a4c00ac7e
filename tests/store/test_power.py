"""Power that fails at any moment: an ending that was visible is on the disk, and the file is whole."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nbrun import NotebookSession, Run, RunRecord
from nbrun.core import events as ev
from nbrun.store import SessionStore, liveness
from tests.fakes import agents, doomed
from tests.fakes.clock import FakeClock
from tests.fakes.doomed import Shown
from tests.fakes.power import Disk, Files, Left, Note, Step, cuts, lay_out, recorded
from tests.store.crash import Life, check

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files there have other rules")

RUNS = 9
LIVE = ("queued", "running", "waiting", "cancelling")


def two_kernels(path: Path, disk: Disk) -> None:
    """Have two sessions write to one file, and note on the disk when something is shown."""

    def follow(run: Run) -> Run:
        def look(record: RunRecord, events: Sequence[ev.RunEvent]) -> None:
            marks = [(event.seq, event.type, doomed.checksum(event)) for event in events]
            disk.note(Shown(record.run_id, record.status, record.event_count, marks))

        assert run.live is not None
        run.live.listen(look)
        return run

    with NotebookSession(store=path, cancel_grace_s=0.05) as one:
        assert follow(one.start(agents.talking, "x" * 5_000)).wait(10)
        with NotebookSession(store=path) as other:
            staying = follow(one.start(agents.waits_for_cancel))
            for agent in (agents.chatty(60), agents.failing, agents.counting):
                assert follow(other.start(agent, "tea")).wait(10)
                assert follow(one.start(agents.instant)).wait(10)
        staying.cancel()
        assert staying.wait(10)
        follow(one.start(agents.waits_for_cancel))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file."""
    return tmp_path_factory.mktemp("power") / "test.db"


@pytest.fixture(scope="module")
def steps(path: Path) -> list[Step]:
    """What two kernels wrote to it, and where in between something was shown."""
    with recorded() as disk:
        two_kernels(path, disk)
        return disk.steps


@pytest.fixture
def next_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a power cut: the machine has been started anew, and no kernel from before lives."""
    new = replace(liveness.this_process(), boot_id="the next one")
    monkeypatch.setattr(liveness, "_identity_of", lambda _pid: new)


def check_cuts(path: Path, steps: list[Step], start: Files, how: Left, seed: int = 0) -> int:
    """Check what every cut leaves; return how many runs had been shown as ended at the last."""
    ended: set[str] = set()
    layouts = 0
    for notes, files in cuts(steps, start, how, seed):
        lay_out(path, files)
        shown = [note for note in notes if isinstance(note, Shown)]
        ended = {item.run_id for item in shown if item.status not in LIVE}
        if how is not Left.EVERYTHING:  # a power loss, and no mere death: endings are promised, and what led there
            shown = [item for item in shown if item.run_id in ended]
        check(path, Life(shown), 0)
        layouts += 1
    print(f"{how.name}: {layouts} layouts")
    return len(ended)


@pytest.mark.timeout(120)  # hundreds of layouts, each opened and read
@pytest.mark.usefixtures("next_boot")
@pytest.mark.parametrize("how", Left)
def test_a_power_cut_at_any_moment_keeps_every_visible_ending(path: Path, steps: list[Step], how: Left) -> None:
    """After each write and sync: what had been shown as ended has its end and whole log, and nothing is torn."""
    assert check_cuts(path, steps, {}, how) == RUNS


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("next_boot")
def test_whatever_part_of_it_had_arrived(path: Path, steps: list[Step]) -> None:
    """The same for twenty ways in which what was not synced may be torn."""
    for seed in range(1, 21):
        assert check_cuts(path, steps, {}, Left.SOME, seed) == RUNS


@pytest.mark.timeout(120)  # hundreds of layouts, each opened and read
@pytest.mark.usefixtures("next_boot")
@pytest.mark.parametrize("how", Left)
def test_a_power_cut_at_load_leaves_lost_runs_to_the_next_load(path: Path, steps: list[Step], how: Left) -> None:
    """A file with live-looking runs of a dead kernel may lose the power again while these are told as lost."""
    layouts = list(cuts(steps, {}, Left.EVERYTHING))
    notes, files = layouts[len(layouts) * 3 // 5]
    lay_out(path, files)
    with recorded() as disk:
        store = SessionStore([path], FakeClock())
        store.open_existing()
        store.close(1)
    assert store.problem is None
    assert store.lost > 0
    again: list[Step] = [*(Note(note) for note in notes), *disk.steps]
    assert check_cuts(path, again, files, how) > 0
