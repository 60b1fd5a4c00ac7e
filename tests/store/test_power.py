"""Power that fails at any moment: an ending that was visible is on the disk, and the file is whole."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nbrun import NotebookSession, Run, RunRecord
from nbrun import events as ev
from nbrun.store import lease
from tests.fakes import agents, doomed
from tests.fakes.doomed import Shown
from tests.fakes.power import Disk, Left, Step, cuts, lay_out, recorded
from tests.store.crash import Life, check

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files there have other rules")

LIVE = ("queued", "running", "waiting", "cancelling")


def two_kernels(path: Path, disk: Disk) -> None:
    """Have two sessions write to one file, and note on the disk when something is shown."""

    def follow(run: Run) -> Run:
        def look(record: RunRecord, events: Sequence[ev.RunEvent]) -> None:
            marks = [(event.seq, event.type, doomed.checksum(event)) for event in events]
            disk.note(Shown(record.run_id, record.status, record.event_count, marks))

        assert run._live is not None
        run._live.listen(look)
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
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Step]:
    """What two kernels wrote to one file, and where in between something was shown."""
    with recorded() as disk:
        two_kernels(tmp_path_factory.mktemp("before") / "test.db", disk)
        return disk.steps


@pytest.fixture
def next_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a power cut: the machine has been started anew, and no kernel from before lives."""
    new = replace(lease.this_process(), boot_id="the next one")
    monkeypatch.setattr(lease, "_identity_of", lambda _pid: new)


@pytest.mark.usefixtures("next_boot")
@pytest.mark.parametrize("how", Left)
def test_a_power_cut_at_any_moment_keeps_every_visible_ending(
    steps: list[Step], tmp_path: Path, how: Left
) -> None:
    """After each write and sync: what had been shown as ended has its end and whole log, and nothing is torn."""
    folder = tmp_path / "after"
    layouts = ends = 0
    for notes, files in cuts(steps, {}, how):
        lay_out(folder, files)
        shown = [note for note in notes if isinstance(note, Shown)]
        if (
            how is not Left.EVERYTHING
        ):  # a power loss, and no mere death: endings are promised, with what led there
            ended = {item.run_id for item in shown if item.status not in LIVE}
            shown = [item for item in shown if item.run_id in ended]
        check(folder / "test.db", Life(shown), 0)
        layouts += 1
        ends = max(ends, len({item.run_id for item in shown}))
    print(f"{how.name}: {layouts} layouts")
    assert layouts > 30
    assert ends == 9
