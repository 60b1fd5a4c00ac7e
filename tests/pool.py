"""How several workers share the tests, and what each folder, test and worker took."""

from __future__ import annotations

from collections import defaultdict

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

BROWSER = "tests/browser/"
LONGEST = 25


class Pool(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """One queue of modules, in the order in which their folders were named.

    Half of the workers take the browser's modules first, so that few of them need a server and a browser; the others
    take these last. A worker that has gone on from them to others has closed its browser, and takes none of them again.
    """

    def __init__(self, config: pytest.Config, log: object) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _assign_work_unit(self, node: WorkerController) -> None:
        kinds = [_is_in_browser(module) for module in self.assigned_work[node]]
        has_left_browser = True in kinds and not kinds[-1]
        wants_browser = kinds[-1] if kinds else self.nodes.index(node) % 2 == 0
        of_each_kind = {_is_in_browser(module): module for module in reversed(self.workqueue)}
        module = of_each_kind.get(wants_browser, None if has_left_browser else of_each_kind.get(not wants_browser))
        if module is None:
            node.shutdown()
            return
        self.workqueue.move_to_end(module, last=False)
        super()._assign_work_unit(node)


def _is_in_browser(module: str) -> bool:
    return module.startswith(BROWSER)


def lines(reports: list[pytest.TestReport]) -> list[str]:
    """Return a table of what the folders, the longest tests and the workers took, in seconds."""
    began = min((report.start for report in reports), default=0.0)
    folders: dict[str, float] = defaultdict(float)
    tests: dict[str, float] = defaultdict(float)
    workers: dict[str, float] = defaultdict(float)  # when each was last at work
    busy: dict[str, float] = defaultdict(float)
    for report in reports:
        worker = str(getattr(report, "worker_id", "the only one"))
        folders["/".join(report.nodeid.split("/")[:2])] += report.duration
        tests[report.nodeid] += report.duration
        busy[worker] += report.duration
        workers[worker] = max(workers[worker], report.stop - began)
    longest = sorted(tests, key=lambda name: -tests[name])[:LONGEST]
    return [
        *(f"{took:8.1f} s  {name}" for name, took in sorted(folders.items(), key=lambda item: -item[1])),
        *(f"{tests[name]:8.1f} s  {name}" for name in longest),
        *(
            f"{busy[name]:8.1f} s  worker {name}, which was done after {end:.1f} s"
            for name, end in sorted(workers.items())
        ),
    ]
